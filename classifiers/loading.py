"""From a file to a FrozenClassifier, and from its labels to those of a data set.

What is found out on the way (which weights, which names were passed over, which images a network takes, how it answers)
stands in the classifier's `notes`.
"""

import copy
import math
from collections import OrderedDict
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from classifiers.answers import Answers, Trial, takes, try_out
from classifiers.architectures import ARCHITECTURES, OTHERS, alternatives, build, find
from classifiers.files import ClassifierFile, flag, read_classifier, setting_of
from classifiers.frozen import FrozenClassifier, fingerprint
from classifiers.names import Fitted, fit_names, normaliser_in
from classifiers.strangers import is_own_code, require_asked
from utils import DATASETS, ROOT, UserError, find_dataset, nearest

SAME = 0.99  # correlation of two classifiers' answers from which they are taken for one; see `same_classifier`


@dataclass(frozen=True)
class Asked:
    """What the user says of a classifier, the probed one (role 'C') or the evaluator: the values of its flags."""

    path: str
    arch: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: int = 0
    range: tuple[float, float] = (0.0, 1.0)
    bgr: bool = False
    class_map: tuple[str, ...] = ()
    trust: bool = False
    weights: str = ""
    role: str = "C"

    @classmethod
    def of(cls, config, role="C"):
        """From a Config's settings of that role."""
        given = {field.name: getattr(config, setting_of(role, field.name)) for field in fields(cls)
                 if hasattr(config, setting_of(role, field.name))}
        return cls(**{"path": getattr(config, "evaluator", "")} | given | {"role": role})

    def flag(self, name):
        return flag(self.role, name)


IN_MEMORY = {}  # {name: nn.Module} of classifiers that are in no file


def remember(module):
    """Let a module of this process be found in place of a file, under the name that is returned. It is copied."""
    model = copy.deepcopy(module).cpu().eval()
    name = f"memory:{fingerprint(model)[:12]}"
    IN_MEMORY[name] = model
    return name


def found_file(asked):
    """The path of the classifier: as given, or else from the repository. Raises UserError where it is in neither."""
    path = Path(asked.path)
    tried = [path] if path.is_absolute() else [Path.cwd() / path, ROOT / path]
    for place in tried:
        if asked.path and (place.is_file() or place.is_dir()):
            return place if place != Path.cwd() / path else path
    how = "--role evaluator" if asked.role == "evaluator" else "--robust l2 --eps 1.5"
    raise UserError(f"classifier '{path}' does not exist; make one: python -m classifiers.train --dataset NAME {how} "
                    f"--out {asked.path or 'runs/classifiers/robust.pt'}, or give its path (looked for: "
                    f"{', '.join(map(str, dict.fromkeys(tried)))}).")


# ---------------------------------------------------------------------- the network and its weights


@dataclass
class Attempt:
    """A network of one architecture and how the file's weights fit it; `problem` says what keeps them from it."""

    arch: str
    num_classes: int
    channels: int
    fitted: Fitted
    wanted: dict

    @property
    def problem(self):
        if self.channels not in (1, 3):
            return f"it takes images of {self.channels} channels; only 1 and 3 are supported"
        return self.fitted.misfit


def skeleton(arch, num_classes, channels):
    """{name: tensor} of a new network's state dict, without memory for it where it can be built so."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build(arch, num_classes, channels).state_dict()
        except UserError:  # it cannot be built, or it computes with its weights while it is
            return build(arch, num_classes, channels).state_dict()


def attempt(arch, weights, said, which="", classes=None, channels=3):
    """The Attempt of an architecture at `weights`. classes, channels: what to suppose where the weights do not tell.

    The numbers of classes and channels are read off where networks of other numbers differ from the file, so that the
    order of its names is of no matter.
    """
    if said:
        classes, channels = said["num_classes"], said["channels"]
    else:
        classes, channels = numbers_in(arch, weights, which, classes, channels)
    if channels not in (1, 3):
        return Attempt(arch, classes, channels, Fitted(), {})
    wanted = skeleton(arch, classes, channels)
    return Attempt(arch, classes, channels, fit_names(weights, wanted, which), wanted)


def numbers_in(arch, weights, which, classes, channels):
    """(num_classes, channels) of the network of this architecture that `weights` are of."""
    try:
        one = skeleton(arch, 10, channels)
    except UserError:  # for grey or for colour images alone
        channels = 4 - channels
        one = skeleton(arch, 10, channels)
    other, given = skeleton(arch, 11, channels), fit_names(weights, one, which).weights
    stem = next((name for name, value in one.items() if value.ndim == 4), None)
    sides = {}
    for name, value in given.items():
        if value.ndim == one[name].ndim and name in other and other[name].ndim == value.ndim:
            for own, a, b in zip(value.shape, one[name].shape, other[name].shape, strict=True):
                if (a, b) == (10, 11):
                    sides.setdefault(own, name)
    if stem in given and given[stem].ndim == 4 and one[stem].shape[1] == channels:
        channels = given[stem].shape[1]
    return next(iter(sides), classes or 10), channels


def named_by(hint):
    """The architectures that a name in a file of others may mean."""
    if is_own_code(hint):
        return []
    own = [hint] if hint in ARCHITECTURES else []
    return own + ([hint] if ":" in hint else [f"{library}:{hint}" for library in ("torchvision", "timm")])


def chosen_architecture(file, asked, classes, channels, path):
    """The Attempt of the architecture that is asked for, that the file names, or that alone fits.

    Raises UserError where there is none.
    """
    weights, said = file.weights, file.said
    if arch := asked.arch or said.get("arch", ""):
        tries = [attempt(name, weights, said, asked.weights, classes, channels) for name in alternatives(arch)]
        return next((made for made in tries if not made.problem), tries[0])
    tries = [attempt(name, weights, said, asked.weights, classes, channels) for name in ARCHITECTURES]
    fit = [made for made in tries if not made.problem]
    if len(fit) == 1:
        return fit[0]
    if not fit and (wrong := next((made for made in tries if made.channels not in (1, 3)), None)):
        return wrong
    hint = file.hints.get("arch", "")
    for name in named_by(hint) if hint and not fit else ():
        try:
            made = attempt(name, weights, said, asked.weights, classes, channels)
        except UserError:  # a name that means something else
            continue
        if not made.problem:
            file.notes.append(f"taken for a {name}: the file names '{hint}', and the weights of that fit")
            return made
    advice = f" The file names '{hint}'." if hint else ""
    found = " and ".join(made.arch for made in fit) or "none"
    raise UserError(f"{path} does not name its architecture, and {found} of the registered ones fits its weights; give "
                    f"{asked.flag('arch')} one of: {', '.join(ARCHITECTURES)}, {OTHERS}.{advice}")


def load_model(file, asked, classes, channels, path):
    """(model, Attempt) of a ClassifierFile that holds weights. Says in file.notes what was taken and passed over."""
    if not any(value.ndim >= 2 for value in file.weights.values()):
        raise UserError(f"{path} holds no convolution and no linear layer; it is not an image classifier.")
    made = chosen_architecture(file, asked, classes, channels, path)
    place = next(iter(file.others), "")
    for other, weights in file.others.items() if made.problem and not asked.weights else ():
        again = attempt(made.arch, weights, {}, "", classes, channels)
        if not again.problem:
            made, place, file.weights = again, other, weights
            break
    fitted = made.fitted
    if made.problem:
        named = f"the file names '{file.said['arch']}'" if file.said else f"known are {', '.join(ARCHITECTURES)}"
        raise UserError(f"the classifier {path} is not a '{made.arch}' for {made.num_classes} classes and "
                        f"{made.channels} channel(s): {made.problem}; give the right {asked.flag('arch')} ({named}).")
    chosen = [place, fitted.prefix.rstrip(".")]
    also = [other for other in [*file.others, *fitted.elsewhere] if other.rstrip(".") not in chosen]
    if asked.weights and not any(f".{name}".endswith(f".{asked.weights.rstrip('.')}") for name in chosen):
        raise UserError(f"{asked.flag('weights')} '{asked.weights}' is not in {path}; it holds the weights "
                        f"{', '.join(filter(None, [*chosen, *also])) or 'without a name'}.")
    if also:
        file.notes.append(f"taken are the weights {' of '.join(filter(None, reversed(chosen))) or 'at the top'}; "
                          f"{asked.flag('weights')} takes others: {', '.join(also)}")
    elif fitted.prefix and not file.said:
        file.notes.append(f"their names lose the prefix '{fitted.prefix}'")
    if fitted.strays and not file.said:
        file.notes.append(f"passed over beside the network's weights: {', '.join(list(fitted.strays)[:4])}"
                          + (f" and {len(fitted.strays) - 4} more" if len(fitted.strays) > 4 else ""))
    if fitted.dropped:
        file.notes.append("the file has no auxiliary head, which only training needs")
    model = build(made.arch, made.num_classes, made.channels)
    for head in {name.partition(".")[0] for name in fitted.dropped}:
        setattr(model, head, None)
        model.aux_logits = False
    fits = OrderedDict(fitted.weights)
    # safetensors keep no versions of layers, which some networks ask for: the names fit this one's
    fits._metadata = model.state_dict()._metadata
    model.load_state_dict(fits, strict=False)
    return model, made


# --------------------------------------------------------------------------------------------- whole


def usual_of(arch):
    """What networks of an architecture are usually given: any of mean, std and resolution."""
    return find(arch)[1] if arch else {}


def sized(model, asked, usual, channels, data, classes, path):
    """(Trial, resolution, note) of a network, of which nobody has said what it takes: images of one size or of any."""
    if asked.size:
        trial = try_out(model, channels, [asked.size], classes, path, asked.flag("size"), only=True)
        return trial, asked.size, ""
    given = data.resolution if data else 32
    wanted = usual.get("resolution", 0)
    trial = try_out(model, channels, [wanted or given], classes, path, asked.flag("size"))
    if wanted:
        note = "" if trial.size == wanted else f"it does not take its usual {wanted} x {wanted} pixels"
        return trial, trial.size, note
    other = next(size for size in (48, 80) if size != trial.size)
    if not trial.flat and takes(model, trial.channels, other, False) is None:
        return trial, 0, ""
    return trial, trial.size, f"it takes images of {trial.size} x {trial.size} pixels alone" + (
        ", flattened" if trial.flat else "")


def load(asked, device="cpu", data=None, num_classes=None):
    """The FrozenClassifier that is Asked for.

    data: the DatasetSpec that it is to see, whose size, channels and classes are tried first where nothing else says
    them. num_classes: the number that it must have, or None. Raises UserError for a file that is missing, unreadable,
    of another architecture, class count or channel count, or with weights that are not finite.
    """
    if asked.path in IN_MEMORY:
        path, file = asked.path, ClassifierFile(model=copy.deepcopy(IN_MEMORY[asked.path]))
    else:
        path = found_file(asked)
        file = read_classifier(path, asked.trust, asked.weights, asked.role)
        require_asked(asked.arch or file.said.get("arch", ""), asked.arch, path, asked.flag("arch"))
    said, classes = file.said, num_classes or (len(data.classes) if data else None)
    likely = [data.channels, 4 - data.channels] if data else [3, 1]
    if file.model is None:
        model, made = load_model(file, asked, classes, likely[0], path)
        arch, stray = made.arch, normaliser_in(made.fitted.strays, made.channels)
        convolves = any(value.ndim == 4 for value in made.fitted.weights.values())
        likely = [made.channels] if convolves else [made.channels, 4 - made.channels]
    else:
        model, arch, stray = file.model, asked.arch, None
        stem = next((value.shape[1] for value in model.state_dict().values() if value.ndim == 4), 0)
        likely = [stem] if stem in (1, 3) else likely
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise UserError(f"the classifier {path} holds NaN or infinite weights in {name}; train it again.")
    usual = usual_of(arch)
    if said and file.model is None:  # written here, and known to answer with logits
        trial = Trial(made.channels, 0, False, Answers(), made.num_classes)
        resolution = asked.size or said["resolution"]
    else:
        trial, resolution, note = sized(model, asked, usual, likely, data, classes, path)
        file.notes += [note] if note else []
        if trial.answers != Answers():
            file.notes.append(f"it answers with {trial.answers}")
    channels = trial.channels
    if num_classes is not None and trial.num_classes != num_classes:
        raise UserError(f"the classifier {path} knows {trial.num_classes} classes but the data set has {num_classes}; "
                        "give one that was trained on this data set, or say by "
                        f"{asked.flag('class_map')} which of its labels stands for each class.")
    own = {"mean": [0.0] * channels, "std": [1.0] * channels} | usual | said
    if stray:
        scale = 255 if max(map(abs, stray[0] + stray[1])) > 4 else 1  # of pixels from 0 to 255, or to 1
        own |= {"mean": [value / scale for value in stray[0]], "std": [value / scale for value in stray[1]]}
        file.notes.append(f"its normaliser is taken from {' and '.join(stray[2])} in the file")
    own_mean, own_std = (of_channels(own[key], channels) for key in ("mean", "std"))
    normalisation = in_unit_range(asked.mean or own_mean, asked.std or own_std, asked, channels, path)
    frozen = FrozenClassifier(model, trial.num_classes, channels, resolution, *normalisation, arch,
                              said.get("classes", ()), said.get("card"), said.get("role", ""), asked.bgr, trial.answers,
                              trial.flat)
    if (said or stray) and (asked.mean or asked.std or asked.size or asked.bgr or tuple(asked.range) != (0.0, 1.0)):
        frozen.own = {"mean": own_mean, "std": own_std, "resolution": said.get("resolution", 0), "bgr": False}
    frozen.hinted, frozen.notes = file.hints, file.notes
    return frozen.to(device, memory_format=torch.channels_last)


def load_classifier(path, arch="", num_classes=None, device="cpu", *, value_range=(0.0, 1.0), data=None, **settings):
    """The FrozenClassifier stored at `path`, in any format of classifiers.files.

    What is given here goes before what the file says, and that before what is usual for the architecture
    (torchvision, timm and robustness): arch, mean and std (one number a channel), size (pixels a side, 0 for any).
    Without all of them the classifier is taken to want images in [0, 1]. value_range: what black and white are for
    it before mean and std apply, as (0, 255). trust: unpickle a file that needs it. `settings`: further fields of
    Asked; data and num_classes: as of `load`, which says what is raised.
    """
    return load(Asked(str(path), arch, range=value_range, **settings), device, data, num_classes)


def of_channels(values, channels):
    """Three numbers for a colour image, or their mean for a grey one; others as they are."""
    return [sum(values) / 3] if channels == 1 and len(values) == 3 else list(values)


def in_unit_range(mean, std, asked, channels, path):
    """mean and std, given for pixels in `asked.range`, for the same pixels in [0, 1]."""
    low, high = asked.range
    if not len(mean) == len(std) == channels or min(std) <= 0 or low == high \
            or not all(map(math.isfinite, (*mean, *std, low, high))):
        raise UserError(f"the classifier {path} is given mean {list(mean)}, std {list(std)} and range {low} {high}; "
                        f"mean and std must hold {channels} finite number(s) each, those of std above 0, and the ends "
                        "of the range must differ.")
    return [(m - low) / (high - low) for m in mean], [s / (high - low) for s in std]


# -------------------------------------------------------------------------------------- labels


def class_labels(entries, dataset_classes, frozen, role="C"):
    """Which label of a classifier stands for each class of a data set, -1 for none: a tuple, one a class.

    entries: one a class, in the data set's order, each a label, a class name of the classifier or 'none'; without
    entries the classes are matched by name where the classifier names them all, else by position. Raises
    UserError where that leaves a class without a label, or an entry is none.
    """
    given, names, map_flag = list(entries), list(frozen.classes), flag(role, "class_map")
    if not given:
        if set(dataset_classes) <= set(names):
            return tuple(names.index(name) for name in dataset_classes)
        if names or frozen.num_classes != len(dataset_classes):
            hinted = frozen.hinted.get("classes", [])
            its = ", ".join(names) if names else f"{frozen.num_classes} classes without names"
            its += f" (its file may mean {', '.join(hinted[:12])})" if hinted and not names else ""
            raise UserError(f"the classifier knows {its}; the data set has {', '.join(dataset_classes)}. Give another "
                            f"classifier, or say by {map_flag} which of its labels or names stands for each class, "
                            "'none' where it has none.")
        return tuple(range(frozen.num_classes))
    if len(given) != len(dataset_classes):
        raise UserError(f"{map_flag} has {len(given)} entries; the data set has {len(dataset_classes)} classes "
                        f"({', '.join(dataset_classes)}): give one for each, in this order.")
    # the user who gives a name that the file was only supposed to mean knows what it means
    names = names or frozen.hinted.get("classes", [])
    return tuple(_label(str(entry), names, frozen.num_classes, map_flag) for entry in given)


def _label(entry, names, num_classes, map_flag):
    if entry in names:
        return names.index(entry)
    if entry == "none":
        return -1
    if entry.isdecimal() and int(entry) < num_classes:
        return int(entry)
    raise UserError(f"{map_flag} entry '{entry}' is no class of the classifier; give a label from 0 to "
                    f"{num_classes - 1}, 'none'" + (f", or a name ({nearest(entry, names)})." if names else "."))


def data_of(config):
    """The DatasetSpec that a Config names, or None where it is not registered here."""
    try:
        return DATASETS[find_dataset(config.dataset)[0]]
    except UserError:
        return None


def probed_classifier(config, classes, device):
    """The classifier that a Config names with its C_* settings, its `labels` those of the data set's `classes`.

    Raises UserError as `load` and class_labels do, where none is named, and where an unseen class has no label, or
    that of another class.
    """
    if not config.C_path:
        raise UserError("no classifier to probe was given; name its checkpoint with --C_path. "
                        "One is made by: python -m classifiers.train --help")
    asked = Asked.of(config)
    frozen = load(asked, device, data_of(config))
    frozen.labels = class_labels(asked.class_map, classes, frozen)
    for y in config.new_class:
        if frozen.labels[y] < 0:
            raise UserError(f"--C_class_map gives the unseen class {classes[y]} no label of the classifier, which then "
                            "remembers nothing of it; give its label or its name.")
        same = [name for k, name in enumerate(classes) if k != y and frozen.labels[k] == frozen.labels[y]]
        if same:
            raise UserError(f"--C_class_map gives the unseen class {classes[y]} the label {frozen.labels[y]}, which is "
                            f"that of {same[0]} too; give each its own.")
    return frozen


def judging_classifier(asked, classes, device, data=None):
    """The evaluator that is Asked for: its logits are those of `classes`, in this order.

    Raises UserError as `load` and class_labels do, and where it does not know every class.
    """
    if not asked.path:
        raise UserError("no evaluator was given; name an independent classifier with --evaluator. One is made by: "
                        "python -m classifiers.train --role evaluator --help")
    frozen = load(asked, device, data)
    labels = class_labels(asked.class_map, classes, frozen, asked.role)
    if min(labels) < 0 or len(set(labels)) < len(labels):
        raise UserError(f"{asked.flag('class_map')} gives a class no label of the evaluator, or two the same; a judge "
                        "must know every class: give each its own label.")
    if labels != tuple(range(frozen.num_classes)):
        frozen.answers = replace(frozen.answers, columns=labels)
    frozen.num_classes, frozen.classes, frozen.labels = len(classes), tuple(classes), tuple(range(len(classes)))
    return frozen


# ------------------------------------------------------------------------------------- independence


def fixed_images(n=64, side=32):
    """Images (n, 3, side, side) in [-1, 1] that never change: noise of several grains and contrasts."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for i in range(n):
        grain = (side, side // 2, side // 4, side // 8)[i % 4]
        noise = torch.randn(1, 3, grain, grain, generator=generator) * (0.3 + 0.2 * (i % 3))
        level = torch.rand(1, 3, 1, 1, generator=generator) * 1.6 - 0.8
        images.append(torch.nn.functional.interpolate(level + noise, (side, side), mode="bilinear"))
    return torch.cat(images).clamp(-1, 1)


@torch.no_grad()
def same_classifier(a, b, images=None):
    """Whether two FrozenClassifiers are one network, perhaps in another format, precision or wrapper.

    Their weights are equal, or their answers to fixed images, and to `images` (N, C, H, W) in [-1, 1] where given,
    correlate by more than SAME, each class about its mean. Networks of other seeds stay far below (tests).
    """
    if fingerprint(a.model) == fingerprint(b.model):
        return True
    both = [(own, other) for own, other in zip(a.labels, b.labels, strict=False) if min(own, other) >= 0]
    if len(a.labels) != len(b.labels) or len(both) < 2:
        return False
    for shown in filter(lambda part: part is not None, (fixed_images(), images)):
        answers = []
        for frozen, columns in ((a, [own for own, _ in both]), (b, [other for _, other in both])):
            device = frozen.mean.device
            logits = torch.cat([frozen(part.to(device)).cpu() for part in shown.split(32)])[:, columns].double()
            logits = logits - logits.mean(1, keepdim=True)
            answers.append((logits - logits.mean(0)).flatten())
        if not torch.nn.functional.cosine_similarity(*answers, dim=0, eps=1e-12) > SAME:
            return False
    return True


def refuse_evaluator(frozen, path, evaluator_path="", evaluator=None):
    """Raise UserError where the probed classifier at `path` is a judge: by its role, or as the run's evaluator."""
    if frozen.role == "evaluator":
        raise UserError(f"{path} was trained to be an evaluator, which judges images and may not be probed; "
                        "give another classifier as --C_path.")
    if evaluator and same_classifier(frozen, evaluator):
        raise UserError(f"{path} and the evaluator {evaluator_path} are the same classifier; one that was probed "
                        "cannot judge. Give an independent one: another architecture and seed.")
