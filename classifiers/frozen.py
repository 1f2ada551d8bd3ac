"""The classifier as ProbeGAN sees it: frozen, in eval mode, fed with images in [-1, 1]."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from classifiers.architectures import ARCHITECTURES, build
from utils import UserError, load_torch

# ITU-R BT.601 luma, as in Pillow's convert("L")
LUMINANCE = (0.299, 0.587, 0.114)


class FrozenClassifier(nn.Module):
    """Images in [-1, 1] (B, 1 or 3, H, W) of any size -> float32 logits (B, num_classes).

    `model` takes images (B, channels, resolution, resolution) in [0, 1], normalised by `mean` and `std`
    (one number a channel); resolution 0 means any. Stays in eval mode; no parameter takes a gradient,
    the images do. `arch`, `classes` (names in label order) and `card` (how it was trained) are for reports.
    """

    def __init__(self, model, num_classes, channels, resolution, mean, std, arch="", classes=(), card=None):
        super().__init__()
        self.model = model
        self.num_classes, self.channels, self.resolution = num_classes, channels, resolution
        self.arch, self.classes, self.card = arch, tuple(classes), card or {}
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode=True):
        """Eval mode whatever `mode` says: a training loop's train() must not move the batch statistics."""
        return super().train(False)

    def forward(self, images):
        return self.logits01((images.float() + 1) / 2)

    def logits01(self, images01):
        """Logits (B, num_classes) of images in [0, 1], the range in which attacks are measured."""
        x = self.resized(self.with_own_channels(images01))
        return self.model((x - self.mean) / self.std).float()

    def features_and_logits(self, images):
        """Images in [-1, 1] (B, 1 or 3, H, W) -> (features (B, F), logits (B, num_classes)), both float32.

        The features are what the model's last linear layer is given, flattened; the logits where there is no
        such layer (a compiled file).
        """
        layers = [module for module in self.model.modules() if isinstance(module, nn.Linear)]
        if not layers:
            logits = self(images)
            return logits, logits
        seen = []
        handle = layers[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = self(images)
        finally:
            handle.remove()
        return seen[-1].float().flatten(1), logits

    def with_own_channels(self, x):
        """(B, 1 or 3, H, W) -> (B, channels, H, W): grey is repeated, colour becomes luminance."""
        given = x.shape[1]
        if given == self.channels:
            return x
        if given == 1 and self.channels == 3:
            return x.expand(-1, 3, -1, -1)
        if given == 3 and self.channels == 1:
            return sum(weight * x[:, i:i + 1] for i, weight in enumerate(LUMINANCE))
        raise UserError(f"images of {given} channels cannot be shown to a classifier of {self.channels}; "
                        "give images of 1 or 3 channels.")

    def resized(self, x):
        """(B, C, H, W) -> (B, C, resolution, resolution), bilinear; untouched where the size is right."""
        size = (self.resolution, self.resolution)
        if not self.resolution or x.shape[2:] == size:
            return x
        return F.interpolate(x, size, mode="bilinear", antialias=max(x.shape[2:]) > self.resolution)


def plain_weights(file, path):
    """The state dict of a checkpoint dict or of a bare state dict, without the prefix of DataParallel."""
    weights = file.get("state_dict", file) if isinstance(file, dict) else {}
    if not weights or not all(torch.is_tensor(value) for value in weights.values()):
        raise UserError(f"{path} holds no state dict: give a checkpoint of classifiers.train, a state dict, "
                        "or a dict with a state dict under 'state_dict'.")
    return {name.removeprefix("module."): value for name, value in weights.items()}


def sizes_of(weights, path):
    """(num_classes, channels) as the last matrix and the first convolution of a state dict show them."""
    matrices = [value for value in weights.values() if value.ndim == 2]
    convolutions = [value for value in weights.values() if value.ndim == 4]
    if not matrices or not convolutions:
        raise UserError(f"{path} holds no convolution or no linear layer; it is not an image classifier.")
    return matrices[-1].shape[0], convolutions[0].shape[1]


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


def check_weights(weights, model, arch, file_arch, path):
    """Raise UserError where the weights do not fit the architecture `arch`, or are not finite."""
    problem = misfit(weights, model.state_dict())
    if problem:
        named = f"the file names '{file_arch}'" if file_arch else f"known are {', '.join(ARCHITECTURES)}"
        raise UserError(f"the classifier {path} is not a '{arch}': {problem}; give the right --C_arch ({named}).")
    for name, value in weights.items():
        if not value.isfinite().all():
            raise UserError(f"the classifier {path} holds NaN or infinite weights in {name}; train it again.")


def load_classifier(path, arch="", num_classes=None, device="cpu"):
    """The FrozenClassifier stored at `path`, by classifiers.train or as a plain state dict.

    A plain state dict, or one under 'state_dict' (with or without 'module.' before each name), needs
    `arch`; it is taken to want images in [0, 1] of any size unless the file says 'mean', 'std' or
    'resolution'. num_classes, where given, is the data set's.
    Raises UserError for a file that is missing, unreadable, of another architecture, class count or
    channel count, or with weights that are not finite.
    """
    if not Path(path).is_file():
        raise UserError(f"classifier '{path}' does not exist; make one: python -m classifiers.train --dataset NAME "
                        f"--robust l2 --eps 1.5 --out {path or 'runs/classifiers/robust.pt'}")
    file = load_torch(path)
    weights = plain_weights(file, path)
    said = file if "state_dict" in file else {}
    file_arch = said.get("arch", "")
    if not arch and not file_arch:
        raise UserError(f"{path} does not name its architecture; give --C_arch one of: {', '.join(ARCHITECTURES)}.")
    classes_found, channels = sizes_of(weights, path)
    if channels not in (1, 3):
        raise UserError(f"the classifier {path} takes images of {channels} channels; only 1 and 3 are supported.")
    if said.get("channels", channels) != channels:
        raise UserError(f"the classifier {path} says {said['channels']} channels but its weights take {channels}; "
                        "train it again.")
    mean, std = said.get("mean", [0.0] * channels), said.get("std", [1.0] * channels)
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise UserError(f"the classifier {path} says mean {mean} and std {std}; each must hold {channels} numbers, "
                        "those of std above 0.")
    if num_classes is not None and classes_found != num_classes:
        raise UserError(f"the classifier {path} knows {classes_found} classes but the data set has {num_classes}; "
                        "give one that was trained on this data set.")
    model = build(arch or file_arch, classes_found, channels)
    check_weights(weights, model, arch or file_arch, file_arch, path)
    model.load_state_dict(weights)
    frozen = FrozenClassifier(model, classes_found, channels, said.get("resolution", 0),
                              mean, std, arch or file_arch, said.get("classes", ()), said.get("card"))
    return frozen.to(device, memory_format=torch.channels_last)
