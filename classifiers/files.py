"""The files that classifiers come in, read without executing what they hold, and the one that we write.

Read are: what `save_classifier` writes; state dicts, bare or anywhere in a dict; safetensors; folders of Hugging Face,
with their shards; and the programs that torch.jit.save and torch.export.save write. What else a file is, is recognised
by its content and said.
"""

import argparse
import json
import pickle
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from classifiers.foreign import inside, their_traceback
from classifiers.names import preference
from utils import UserError, load_torch, replacing, save_torch

# what a file of this project says, and of which kind
SAID = {"arch": str, "num_classes": int, "channels": int, "resolution": int, "mean": list, "std": list}
ALSO_SAID = {"classes": list, "role": str, "card": dict}
HOLDERS = ("state_dict", "model_state_dict", "model", "net", "weights")  # where checkpoints keep their state dict
# beginnings of files that are no classifier that can be read, and what to do about each
BEGINNINGS = (
    (rb"\s*<(!doctype|html|\?xml)", "a web page, such as a download that asked to log in: fetch the file itself"),
    (rb"version https://git-lfs", "a pointer of Git LFS, which stands for the file: fetch that by git lfs pull"),
    (rb"\x89HDF", "an HDF5 file, as Keras writes: convert its weights to a state dict of PyTorch"),
    (rb"GGUF", "a GGUF file: take the weights that it was made from, as safetensors"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", "a compressed archive: unpack it and give the checkpoint in it"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "an image"),
    (rb"\x93NUMPY", "a NumPy array: give a state dict of PyTorch"))


@dataclass
class ClassifierFile:
    """What a file holds: a state dict `weights` or a whole network `model`, and what it says of itself.

    said: any of arch, num_classes, channels, resolution, mean, std, classes, role and card, of this project's files.
    hints: any of arch, mean, std, resolution and classes that a file of others says, which is not believed.
    others: {place in the file: state dict} where there are several, the one that is taken first. notes: sentences for
    the user.
    """

    weights: dict = field(default_factory=dict)
    model: nn.Module | None = None
    said: dict = field(default_factory=dict)
    hints: dict = field(default_factory=dict)
    others: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def setting_of(role, name):
    """What a Config calls a setting of the probed classifier ('C') or of the evaluator ('evaluator')."""
    return f"{role}_{'map' if (role, name) == ('evaluator', 'class_map') else name}"


def flag(role, name):
    """The flag of that setting."""
    return f"--{setting_of(role, name)}"


# ------------------------------------------------------------------------------------ by content


def begins(path, count=512):
    with open(path, "rb") as file:
        return file.read(count)


def is_safetensors(path):
    """By its name, where it is to be written."""
    return Path(path).suffix == ".safetensors"


def holds_safetensors(head):
    """Whether a file begins as one of safetensors: the length of a JSON object, and the object."""
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def refuse_other_files(path, head):
    """Raise UserError with what a file is, where its content is of a known kind that holds no classifier for torch."""
    if not head.strip():
        raise UserError(f"{path} is empty; fetch it again.")
    for beginning, kind in BEGINNINGS:
        if re.match(beginning, head, re.IGNORECASE):
            raise UserError(f"{path} holds no classifier: it is {kind}.")
    if path.suffix == ".onnx" or head[:1] == b"\x08" and re.search(rb"pytorch|onnx|tf2onnx|skl2onnx", head):
        raise UserError(f"{path} is an ONNX file, which torch cannot differentiate; give the checkpoint that it was "
                        "made from, or torch.export it.")
    if head.lstrip()[:1] in (b"{", b"["):
        raise UserError(f"{path} is a JSON file and holds no weights; give the file with the weights, which it may "
                        "name, or their folder.")
    if head[257:262] == b"ustar":
        raise UserError(f"{path} is a tar archive; unpack it and give the checkpoint in it.")
    if not zipfile.is_zipfile(path) and not head.startswith((b"\x80", b"PK")):
        kind = f"a text file (it begins with '{head.split()[0][:40].decode()}')" if head.isascii() else \
            "of no kind that is known here; known are files of torch.save, TorchScript, torch.export and safetensors"
        raise UserError(f"{path} holds no classifier: it is {kind}.")


# ------------------------------------------------------------------------------------ what was made by others


def read_classifier(path, trust=False, which="", role="C"):
    """The ClassifierFile at `path`, a file or a folder of Hugging Face, on the CPU.

    Pickles are read with weights_only=True; `trust` allows what that refuses (and runs whatever code it
    holds). TorchScript and exported files are programs of tensor operations. which: the place of the weights in a file
    that holds several. role: whose flags messages name, 'C' or 'evaluator'. Raises UserError for a file that is
    truncated, needs trust, or holds no classifier.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, trust, which, role)
    if re.search(r"-\d{5}-of-\d{5}\.", path.name):
        return _read_shard(path, trust, which, role)
    head = begins(path)
    if head.lstrip()[:1] == b"{" and "weight_map" in (index := _json(path)):
        return _read_shards(path, index, trust, which, role)
    if holds_safetensors(head):
        return _read_safetensors(path)
    refuse_other_files(path, head)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.split("/", 1)[-1] for name in archive.namelist()}
        if "archive_format" in names:
            return ClassifierFile(model=_read_exported(path))
        if "constants.pkl" in names:
            return ClassifierFile(model=_read_torchscript(path))
        if "data.pkl" not in names:
            raise UserError(f"{path} is a zip of {', '.join(sorted(names)[:3])}, and no file of torch.save; unpack it "
                            "and give the checkpoint in it.")
    content = _unpickled(path) if trust else _plain(path, role)
    if isinstance(content, nn.Module):
        return ClassifierFile(model=content)
    return _read_dict(content, path, which, role)


def _plain(path, role):
    # training scripts keep their arguments beside the weights; a Namespace holds no code
    with torch.serialization.safe_globals([argparse.Namespace]):
        return load_torch(path, f"If you trust where it came from, give {flag(role, 'trust')}.")


def _json(path):
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _read_safetensors(path):
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is truncated or no file of safetensors ({error}).") from error
    try:
        said = own_words(json.loads(metadata.get("classifier", "{}")))
    except ValueError:
        said = {}
    return ClassifierFile(weights, said=said, hints={} if said else hints_of(metadata))


def _read_folder(path, trust, which, role):
    """A folder as Hugging Face keeps it: config.json beside the weights, which may be in shards."""
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        held = sorted(file.name for file in path.iterdir() if file.suffix in (".pt", ".pth", ".safetensors", ".bin"))
        raise UserError(f"{path} is a folder without {' or '.join(names[::2])}; give the file of the weights"
                        + (f", which may be {', '.join(held[:3])}." if held else "."))
    file = read_classifier(found, trust, which, role)
    if not file.said:
        config = _json(path / "config.json")
        file.hints |= hints_of(config) | hints_of(_json(path / "preprocessor_config.json"))
        if isinstance(kinds := config.get("architectures"), list) and kinds:
            file.notes.append(f"{path / 'config.json'} names {kinds[0]} of the package transformers")
    return file


def _read_shard(path, trust, which, role):
    """One shard of several: they are joined by the index beside it."""
    index = path.with_name(re.sub(r"-\d{5}-of-\d{5}(\..*)", r"\1.index.json", path.name))
    if not index.is_file():
        raise UserError(f"{path} is one shard of several, and the index {index.name} is not beside it; give the folder "
                        "with all shards and their index.")
    return _read_shards(index, _json(index), trust, which, role)


def _read_shards(path, index, trust, which, role):
    """The state dict whose parts an index names."""
    if not isinstance(index.get("weight_map"), dict):
        raise UserError(f"{path} is no index of shards.")
    weights = {}
    for name in sorted({str(name) for name in index["weight_map"].values()}):
        part = path.parent / Path(name).name
        if not part.is_file():
            raise UserError(f"{path} names the shard {name}, which is not beside it; fetch it too.")
        weights |= _read_safetensors(part).weights if holds_safetensors(begins(part)) else \
            _read_dict(_unpickled(part) if trust else _plain(part, role), part, which, role).weights
    return ClassifierFile(weights, notes=[f"joined from the shards that {path.name} names"])


def _read_torchscript(path):
    try:
        return torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise UserError(f"{path} is not a TorchScript file that this torch reads ({last_line(error)}).") from error


def _read_exported(path):
    try:
        model = torch.export.load(path).module()
    except Exception as error:  # torch raises many kinds
        raise UserError(f"{path} is not an exported file that this torch reads ({last_line(error)}).") from error
    # an exported program has the one mode it was exported in, and raises when it is given another
    model.train = model.eval = lambda mode=True: model
    return model


def _unpickled(path):
    try:
        import dill  # what the robustness package writes with
    except ImportError:
        dill = pickle
    try:
        with inside(Path.cwd(), path.parent):
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=dill)
    except ModuleNotFoundError as error:
        raise UserError(f"{path} needs the module {error.name}, which is neither installed nor in {Path.cwd()} or "
                        f"{path.parent.resolve()}; run the command from the folder of that code, or export its state "
                        "dict.") from error
    except AttributeError as error:
        if "__main__" not in str(error):
            raise UserError(f"{path} could not be unpickled. This is where it fails:\n"
                            f"{their_traceback(error)}") from error
        raise UserError(f"{path} needs a class that the script which wrote it defined itself ({error}); save its state "
                        "dict instead, and name the class by FILE.py:CLASS.") from error
    except Exception as error:  # what a pickle runs can fail in any way
        raise UserError(f"{path} could not be unpickled ({type(error).__name__}: {last_line(error)}); install the "
                        "packages that its classes come from, or export its state dict.") from error


# ------------------------------------------------------------------------- state dicts in a dict


def is_state_dict(value):
    """Whether a dict is a state dict, whatever else lies beside its tensors: by names, one of them of a layer."""
    return isinstance(value, dict) and all(isinstance(key, str) for key in value) and any(
        torch.is_tensor(part) and part.ndim >= 2 for part in value.values())


def networks_in(content, at="", depth=3):
    """{place: state dict or nn.Module} of all that a dict holds, at most `depth` dicts deep."""
    if isinstance(content, nn.Module) or is_state_dict(content):
        return {at: content}
    if not isinstance(content, dict) or not depth:
        return {}
    found = {}
    for key, value in content.items():
        if isinstance(key, str) and "optim" not in key.lower():
            found |= networks_in(value, f"{at}.{key}" if at else key, depth - 1)
    return found


def _read_dict(content, path, which, role):
    """The ClassifierFile of an unpickled dict."""
    if isinstance(content, dict) and is_state_dict(content.get("state_dict")) and (said := own_words(content)):
        return ClassifierFile(content["state_dict"], said=said)
    found = networks_in(content)
    if not found:
        raise UserError(f"{path} holds no state dict: give a checkpoint of classifiers.train, a state dict, or a dict "
                        f"with a state dict under one of: {', '.join(HOLDERS)}.")
    places = sorted(found, key=lambda place: (preference(place)[:2], place not in HOLDERS, preference(place)[2:]))
    # a name may also be that of a prefix inside of one of them, which is looked for when the network is known
    places.sort(key=lambda place: not (which and f".{place}".endswith(f".{which}")))
    model = found[places[0]] if isinstance(found[places[0]], nn.Module) else None
    others = {place: {name: value for name, value in found[place].items() if torch.is_tensor(value)}
              for place in places if not isinstance(found[place], nn.Module)}
    file = ClassifierFile(next(iter(others.values()), {}), model, hints=hints_of(content), others=others)
    if model is not None and len(places) > 1:
        file.notes.append(f"taken is the network under '{places[0]}'; also there: {', '.join(places[1:])} "
                          f"({flag(role, 'weights')})")
    return file


# ------------------------------------------------------------------------------- what a file says


def own_words(content):
    """What a file of this project says of its classifier; {} where it is not this project's.

    It is known by all names of SAID together, with values of their kind.
    """
    said = {key: content[key] for key in SAID | ALSO_SAID if key in content} if isinstance(content, dict) else {}
    kinds = SAID | ALSO_SAID
    if not said.keys() >= SAID.keys() or not all(isinstance(value, kinds[key]) or key == "classes" and
                                                 isinstance(value, tuple) for key, value in said.items()):
        return {}
    numbers = [*said["mean"], *said["std"]]
    # whether the numbers fit the network is asked on loading: not to believe them would be to pass over the mistake
    right = (said["channels"] > 0 and said["num_classes"] > 0 and all(isinstance(n, (int, float)) for n in numbers)
             and all(isinstance(name, str) for name in said.get("classes", ()))
             and len(said.get("classes", ())) in (0, said["num_classes"]))
    return said if right else {}


def floats(value):
    """A list of 1 or 3 floats, or None."""
    if torch.is_tensor(value) and value.numel() in (1, 3):
        value = value.flatten().tolist()
    value = list(value) if isinstance(value, (tuple, list)) else [value]
    return [float(n) for n in value] if len(value) in (1, 3) and all(
        isinstance(n, (int, float)) and not isinstance(n, bool) for n in value) else None


def hints_of(content):
    """What a dict that others wrote says by names that many use: any of arch, mean, std, resolution and classes.

    Values of another kind than the name suggests are passed over.
    """
    if not isinstance(content, dict):
        return {}
    flat = dict(content)
    for key in ("args", "hyper_parameters", "config", "hparams", "pretrained_cfg"):
        inner = content.get(key)
        flat |= vars(inner) if isinstance(inner, argparse.Namespace) else inner if isinstance(inner, dict) else {}
    hints = {}
    for key in ("arch", "architecture", "model_name", "model"):
        if isinstance(flat.get(key), str) and re.fullmatch(r"[\w.:-]{2,80}", flat[key]):
            hints.setdefault("arch", flat[key])
    for name, keys in (("mean", ("mean", "image_mean")), ("std", ("std", "image_std"))):
        found = next((floats(flat[key]) for key in keys if key in flat), None)
        if found and (name == "mean" or min(found) > 0):
            hints[name] = found
    for key in ("classes", "class_names", "label_names", "id2label", "idx_to_class", "class_to_idx"):
        names = flat.get(key)
        if isinstance(names, dict):
            if names and all(isinstance(place, int) for place in names.values()):
                names = {place: name for name, place in names.items()}  # class_to_idx
            try:
                names = [names[place] for place in sorted(names, key=int)]
            except (TypeError, ValueError):
                continue
        if isinstance(names, (list, tuple)) and len(names) > 1 and all(isinstance(name, str) for name in names):
            hints.setdefault("classes", list(names))
    size = next((flat[key] for key in ("input_size", "img_size", "image_size", "crop_size") if key in flat), None)
    size = size[-1] if isinstance(size, (list, tuple)) and size else size
    if isinstance(size, int) and 8 <= size <= 1024 and not isinstance(size, bool):
        hints["resolution"] = size
    return hints


def last_line(error):
    """The last line of an error's text, where a library's message ends in a long trace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


# ---------------------------------------------------------------------------------- what we write


def round_to_file(frozen, path):
    """Round a classifier's weights in place to what a file of this name will hold: float16 for safetensors."""
    if is_safetensors(path):
        frozen.model.load_state_dict(halved(frozen.model.state_dict()))


def halved(weights):
    """Weights in float16, but for what would overflow there, as a running variance may."""
    return {name: value.half() if value.is_floating_point() and value.half().isfinite().all() else value
            for name, value in weights.items()}


def save_classifier(path, frozen):
    """Write a FrozenClassifier with all that load_classifier needs, atomically: <name>.safetensors in float16,
    any other name by torch.save as it is. Raises UserError when the disk refuses."""
    weights = {name: value.detach().cpu().contiguous() for name, value in frozen.model.state_dict().items()}
    said = {"arch": frozen.arch, "num_classes": frozen.num_classes, "channels": frozen.channels,
            "resolution": frozen.resolution, "mean": frozen.mean.flatten().tolist(),
            "std": frozen.std.flatten().tolist(), "classes": list(frozen.classes), "role": frozen.role,
            "card": frozen.card}
    if not is_safetensors(path):
        save_torch(path, {**said, "state_dict": weights})
        return
    try:
        with replacing(path) as temporary:
            save_file(halved(weights), temporary, metadata={"classifier": json.dumps(said)})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} could not be written ({error}); make room on the disk and run the command "
                        "again.") from error
