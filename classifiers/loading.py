"""From a file to a FrozenClassifier, and from its labels to those of a data set."""

import copy
from pathlib import Path

import torch

from classifiers.architectures import ARCHITECTURES, OTHERS, build, find
from classifiers.files import last_line, read_classifier, wrapper_of
from classifiers.frozen import FrozenClassifier, fingerprint
from classifiers.strangers import require_asked
from utils import UserError, nearest


def misfit(weights, wanted):
    """What keeps the state dict `weights` from being loaded as `wanted`, in words; '' where nothing does."""
    missing = [name for name in wanted if name not in weights]
    unexpected = [name for name in weights if name not in wanted]
    if missing or unexpected:
        kinds = (("missing", missing), ("unexpected", unexpected))
        return " and ".join(f"{names[0]} is {kind} (with {len(names) - 1} more)" for kind, names in kinds if names)
    for name, value in wanted.items():
        if weights[name].shape != value.shape:
            return f"{name} is {tuple(weights[name].shape)} and should be {tuple(value.shape)}"
    return ""


def sizes_to_try(weights, said, hint, path):
    """Pairs (num_classes, channels) that a state dict may have been made for, the likeliest first."""
    rows = list(dict.fromkeys(value.shape[0] for value in reversed(weights.values()) if value.ndim == 2))
    convolutions = [value for value in weights.values() if value.ndim == 4]
    if not rows and not convolutions:
        raise UserError(f"{path} holds no convolution and no linear layer; it is not an image classifier.")
    if "num_classes" in said:
        rows = [said["num_classes"]]
    elif hint in rows or not rows:  # a network may end in a convolution
        rows.insert(0, hint or convolutions[-1].shape[0])
    channels = said.get("channels", convolutions[0].shape[1] if convolutions else 3)
    if channels not in (1, 3):
        raise UserError(f"the classifier {path} takes images of {channels} channels; only 1 and 3 are supported.")
    return [(classes, channels) for classes in rows]


def fitting(arch, weights, num_classes, channels):
    """(model, misfit) of an architecture built to take `weights`; the misfit is '' where it does."""
    model = build(arch, num_classes, channels)
    wanted = model.state_dict()
    prefix = wrapper_of(wanted)
    return model, misfit({prefix + name: value for name, value in weights.items()}, wanted)


def fits(arch, weights, sizes):
    """Whether an architecture takes `weights` with these (num_classes, channels); draws no random number of others."""
    with torch.random.fork_rng(devices=[]):
        try:
            return not fitting(arch, weights, *sizes)[1]
        except UserError:
            return False


def load_model(file, arch, hint, path):
    """(model, arch, num_classes, channels) of a ClassifierFile that holds weights; hint: the data set's classes."""
    said, weights = file.said, file.weights
    tries = sizes_to_try(weights, said, hint, path)
    arch = arch or said.get("arch", "")
    if not arch:
        found = [name for name in ARCHITECTURES if fits(name, weights, tries[0])]
        if len(found) != 1:
            raise UserError(f"{path} does not name its architecture, and {' and '.join(found) or 'none'} of the "
                            f"registered ones fits its weights; give --C_arch one of: {', '.join(ARCHITECTURES)}, "
                            f"{OTHERS}.")
        arch = found[0]
    sizes = tries[0] if len(tries) == 1 else next((pair for pair in tries if fits(arch, weights, pair)), tries[0])
    model, problem = fitting(arch, weights, *sizes)
    if problem:
        named = f"the file names '{said['arch']}'" if said.get("arch") else f"known are {', '.join(ARCHITECTURES)}"
        raise UserError(f"the classifier {path} is not a '{arch}' for {sizes[0]} classes and {sizes[1]} channel(s): "
                        f"{problem}; give the right --C_arch ({named}).")
    prefix = wrapper_of(model.state_dict())
    model.load_state_dict({prefix + name: value for name, value in weights.items()})
    return model, arch, *sizes


def answers_of(model, channels, resolution, path):
    """The number of logits that a whole network gives. Raises UserError where it gives none."""
    size = resolution or 32
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, channels, size, size))
        shape = tuple(logits.shape)
    except Exception as error:  # foreign code fails in many ways
        raise UserError(f"the classifier {path} does not take 2 images of {channels} channels and {size} x {size} "
                        f"pixels ({last_line(error)}); give its size by --C_size, and export it for any number of "
                        "images.") from error
    if len(shape) != 2 or shape[0] != 2:
        raise UserError(f"the classifier {path} answers 2 images with {shape}; it must give logits, (2, classes).")
    return shape[1]


IN_MEMORY = {}  # {name: FrozenClassifier} of classifiers that are in no file


def remember(module, channels, resolution, num_classes, mean=(), std=(), size=0, value_range=(0.0, 1.0), bgr=False):
    """Let a module of this process be found by load_classifier, under the name that is returned.

    module: takes images (B, channels, size or any, ...) as load_classifier says of mean, std, value_range and bgr, and
    gives logits (B, num_classes). It is copied. Raises UserError where it does not answer so.
    """
    model = copy.deepcopy(module).cpu().eval()
    found = answers_of(model, channels, size or resolution, type(module).__name__)
    if found != num_classes:
        raise UserError(f"the classifier {type(module).__name__} gives {found} logits and there are {num_classes} "
                        "classes; name them all, as in classes=('cat', 'dog').")
    normalisation = in_unit_range(mean or [0.0] * channels, std or [1.0] * channels, value_range, channels,
                                  type(module).__name__)
    frozen = FrozenClassifier(model, num_classes, channels, size, *normalisation, type(module).__name__, bgr=bgr)
    name = f"memory:{fingerprint(model)[:12]}"
    IN_MEMORY[name] = frozen
    return name


def load_classifier(path, arch="", num_classes=None, device="cpu", *, mean=(), std=(), size=0, value_range=(0.0, 1.0),
                    bgr=False, trust=False):
    """The FrozenClassifier stored at `path`, in any format of classifiers.files.

    What is given here goes before what the file says, and that before what is usual for the architecture
    (torchvision and timm): arch, mean and std (one number a channel), size (pixels a side, 0 for any). Without all of
    them the classifier is taken to want images in [0, 1] of any size. value_range: what black and white are for
    it before mean and std apply, as (0, 255). num_classes, where given, is the data set's and must be its own.
    trust: unpickle a file that needs it.
    Raises UserError for a file that is missing, unreadable, of another architecture, class count or
    channel count, or with weights that are not finite.
    """
    if str(path) in IN_MEMORY:
        return copy.deepcopy(IN_MEMORY[str(path)]).to(device, memory_format=torch.channels_last)
    if not Path(path).is_file():
        raise UserError(f"classifier '{path}' does not exist; make one: python -m classifiers.train --dataset NAME "
                        f"--robust l2 --eps 1.5 --out {path or 'runs/classifiers/robust.pt'}")
    file = read_classifier(path, trust)
    given, arch = arch, arch or file.said.get("arch", "")
    require_asked(arch, given, path)
    usual = find(arch)[1] if arch else {}
    said = {**usual, **file.said}
    resolution = size or said.get("resolution", 0)
    if file.model is None:
        model, arch, found_classes, channels = load_model(file, arch, num_classes, path)
    else:
        shown = [value for value in file.model.state_dict().values() if value.ndim == 4]
        model, channels = file.model, shown[0].shape[1] if shown and shown[0].shape[1] in (1, 3) else 3
        found_classes = answers_of(model, channels, resolution, path)
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise UserError(f"the classifier {path} holds NaN or infinite weights in {name}; train it again.")
    if num_classes is not None and found_classes != num_classes:
        raise UserError(f"the classifier {path} knows {found_classes} classes but the data set has {num_classes}; "
                        "give one that was trained on this data set, or say by --C_class_map which of its labels "
                        "stands for each class.")
    own_mean, own_std = said.get("mean", [0.0] * channels), said.get("std", [1.0] * channels)
    normalisation = in_unit_range(mean or own_mean, std or own_std, value_range, channels, path)
    frozen = FrozenClassifier(model, found_classes, channels, resolution, *normalisation, arch, said.get("classes", ()),
                              said.get("card"), said.get("role", ""), bgr)
    if "mean" in file.said and (mean or std or size or bgr or tuple(value_range) != (0.0, 1.0)):
        frozen.own = {"mean": own_mean, "std": own_std, "resolution": said.get("resolution", 0), "bgr": False}
    return frozen.to(device, memory_format=torch.channels_last)


def in_unit_range(mean, std, value_range, channels, path):
    """mean and std, given for pixels in `value_range`, for the same pixels in [0, 1]."""
    low, high = value_range
    if not len(mean) == len(std) == channels or min(std) <= 0 or low == high:
        raise UserError(f"the classifier {path} is given mean {list(mean)}, std {list(std)} and range {low} {high}; "
                        f"mean and std must hold {channels} number(s) each, those of std above 0, and the ends of the "
                        "range must differ.")
    return [(m - low) / (high - low) for m in mean], [s / (high - low) for s in std]


def class_labels(entries, dataset_classes, frozen):
    """Which label of a classifier stands for each class of a data set, -1 for none: a tuple, one a class.

    entries: one a class, in the data set's order, each a label, a class name of the classifier or 'none'; without
    entries the classes are matched by name where the classifier names them all, else by position. Raises
    UserError where that leaves a class without a label, or an entry is none.
    """
    given, names = list(entries), list(frozen.classes)
    if not given:
        if set(dataset_classes) <= set(names):
            return tuple(names.index(name) for name in dataset_classes)
        if names or frozen.num_classes != len(dataset_classes):
            its = ", ".join(names) if names else f"{frozen.num_classes} classes without names"
            raise UserError(f"the classifier knows {its}; the data set has {', '.join(dataset_classes)}. Give another "
                            "classifier, or say by --C_class_map which of its labels or names stands for each class, "
                            "'none' where it has none.")
        return tuple(range(frozen.num_classes))
    if len(given) != len(dataset_classes):
        raise UserError(f"--C_class_map has {len(given)} entries; the data set has {len(dataset_classes)} classes "
                        f"({', '.join(dataset_classes)}): give one for each, in this order.")
    return tuple(_label(str(entry), names, frozen.num_classes) for entry in given)


def _label(entry, names, num_classes):
    if entry in names:
        return names.index(entry)
    if entry == "none":
        return -1
    if entry.isdecimal() and int(entry) < num_classes:
        return int(entry)
    raise UserError(f"--C_class_map entry '{entry}' is no class of the classifier; give a label from 0 to "
                    f"{num_classes - 1}, 'none'" + (f", or a name ({nearest(entry, names)})." if names else "."))


def probed_classifier(config, classes, device):
    """The classifier that a Config names with its C_* settings, its `labels` those of the data set's `classes`.

    Raises UserError as load_classifier and class_labels do, where none is named, and where an unseen class has no
    label.
    """
    if not config.C_path:
        raise UserError("no classifier to probe was given; name its checkpoint with --C_path. "
                        "One is made by: python -m classifiers.train --help")
    frozen = load_classifier(config.C_path, config.C_arch, device=device, mean=config.C_mean, std=config.C_std,
                             size=config.C_size, value_range=config.C_range, bgr=config.C_bgr, trust=config.C_trust)
    frozen.labels = class_labels(config.C_class_map, classes, frozen)
    for y in config.new_class:
        if frozen.labels[y] < 0:
            raise UserError(f"--C_class_map gives the unseen class {classes[y]} no label of the classifier, which then "
                            "remembers nothing of it; give its label or its name.")
    return frozen


def refuse_evaluator(frozen, path, evaluator_path="", evaluator=None):
    """Raise UserError where the probed classifier at `path` is a judge: by its role, or as the run's evaluator."""
    if frozen.role == "evaluator":
        raise UserError(f"{path} was trained to be an evaluator, which judges images and may not be probed; "
                        "give another classifier as --C_path.")
    if evaluator and fingerprint(evaluator.model) == fingerprint(frozen.model):
        raise UserError(f"{path} and the evaluator {evaluator_path} are the same classifier; one that was probed "
                        "cannot judge. Give an independent one: another architecture and seed.")
