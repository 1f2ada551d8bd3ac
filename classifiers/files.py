"""The files that classifiers come in, read without executing what they hold, and the one that we write.

Read are: what `save_classifier` writes; a bare state dict; one under 'state_dict' or another usual key,
with the prefixes that wrappers leave; checkpoints of the `robustness` package, with their normaliser;
safetensors; and the programs that torch.jit.save and torch.export.save write.
"""

import json
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from utils import UserError, load_torch, replacing, save_torch

HOLDERS = ("state_dict", "model_state_dict", "model", "net", "weights")  # where checkpoints keep their state dict
WRAPPERS = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
ROBUSTNESS = ("attacker.", "normalizer.")  # what the robustness package keeps beside the network


@dataclass
class ClassifierFile:
    """What a file holds: a state dict `weights` or a whole network `model`, and what it says of itself.

    said: any of arch, num_classes, channels, resolution, mean, std, classes, role and card.
    """

    weights: dict = field(default_factory=dict)
    model: nn.Module | None = None
    said: dict = field(default_factory=dict)


def read_classifier(path, trust=False):
    """The ClassifierFile at `path`, on the CPU.

    Pickles are read with weights_only=True; `trust` allows what that refuses (and runs whatever code it
    holds). TorchScript and exported files are programs of tensor operations. Raises UserError for a file that is
    truncated, needs trust, or holds no classifier.
    """
    path = Path(path)
    if is_safetensors(path):
        return _read_safetensors(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.split("/", 1)[-1] for name in archive.namelist()}
        if "archive_format" in names:
            return ClassifierFile(model=_read_exported(path))
        if "constants.pkl" in names:
            return ClassifierFile(model=_read_torchscript(path))
    content = _unpickled(path) if trust else load_torch(path, "If you trust where it came from, give --C_trust.")
    if isinstance(content, nn.Module):
        return ClassifierFile(model=content)
    return _read_dict(content, path)


def _read_safetensors(path):
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            said = json.loads((file.metadata() or {}).get("classifier", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is truncated or no file of safetensors ({error}).") from error
    return ClassifierFile(without_wrapper(weights), said=said)


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
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=dill)
    except Exception as error:  # what a pickle runs can fail in any way
        raise UserError(f"{path} could not be unpickled ({type(error).__name__}: {last_line(error)}); install the "
                        "packages that its classes come from, or export its state dict.") from error


def _read_dict(content, path):
    """The ClassifierFile of an unpickled dict."""
    holder = next((key for key in HOLDERS if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
    weights = content[holder] if holder else content
    if not isinstance(weights, dict) or not weights or not all(torch.is_tensor(v) for v in weights.values()):
        raise UserError(f"{path} holds no state dict: give a checkpoint of classifiers.train, a state dict, or a dict "
                        f"with a state dict under one of: {', '.join(HOLDERS)}.")
    kept = ("arch", "num_classes", "channels", "resolution", "mean", "std", "classes", "role", "card")
    # only what save_classifier wrote means by these names what we mean
    said = {key: content[key] for key in kept if holder == "state_dict" and key in content}
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    if any(name.startswith(ROBUSTNESS) for name in weights):
        if "normalizer.new_mean" in weights:
            said |= {key: weights[f"normalizer.new_{key}"].flatten().tolist() for key in ("mean", "std")}
        weights = {name: value for name, value in weights.items() if not name.startswith(ROBUSTNESS)}
    return ClassifierFile(without_wrapper(weights), said=said)


def wrapper_of(names):
    """The prefix that all names share with a wrapper, such as 'module.model.'; '' where there is none."""
    names, prefix = list(names), ""
    while names:
        shared = next((w for w in WRAPPERS if all(name.startswith(prefix + w) for name in names)), None)
        if shared is None:
            break
        prefix += shared
    return prefix


def without_wrapper(weights):
    """A state dict without the prefix that all its names share with a wrapper."""
    prefix = wrapper_of(weights)
    return {name[len(prefix):]: value for name, value in weights.items()}


def last_line(error):
    """The last line of an error's text, where a library's message ends in a long trace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def is_safetensors(path):
    return Path(path).suffix == ".safetensors"


def round_to_file(frozen, path):
    """Round a classifier's weights in place to what a file of this name will hold: float16 for safetensors."""
    if is_safetensors(path):
        frozen.model.load_state_dict(halved(frozen.model.state_dict()))


def halved(weights):
    return {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}


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
