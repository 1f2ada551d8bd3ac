"""The registry of classifier architectures; to add one, write its file and register it below.

Beside the registered names there are families, `wrn-28-10` and `densenet-bc-190-40` of any size, the
networks of three libraries, `torchvision:vit_b_16`, `timm:NAME` and `robustness:resnet50`, and a user's own code,
`package.module:factory` or `FILE.py:factory`.
"""

import re
import sys
import types
from functools import partial

import torch
from torch import nn

from classifiers.densenet import DenseNetBC
from classifiers.efficientnet_lite import USUAL, EfficientNetLite0
from classifiers.foreign import own_factory, their_traceback
from classifiers.narrow import NarrowResNet, NarrowVGG
from classifiers.resnet import resnet8, resnet18, resnet50
from classifiers.resnet9 import ResNet9
from classifiers.smallcnn import SmallCNN
from classifiers.vgg7 import VGG7
from classifiers.wideresnet import WideResNet
from utils import UserError, nearest

ARCHITECTURES = {}
USUAL_OF = {"efficientnet-lite0": USUAL}  # what `find` says of registered ones, where it is anything
FAMILIES = {"wrn": WideResNet, "densenet-bc": DenseNetBC}  # <name>-<depth>-<width>
OTHERS = "wrn-D-K, densenet-bc-D-K, torchvision:NAME, timm:NAME, robustness:NAME, package.module:factory or " \
         "FILE.py:factory"
# what the robustness package normalises by, and the size of its images, for each of its two groups of networks
ROBUSTNESS = {"cifar": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010], "resolution": 32},
              "imagenet": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resolution": 224}}


def register(name, builder):
    """Add an architecture: `builder(num_classes, channels)` -> nn.Module from normalised images to logits.

    Raises ValueError where the name is taken.
    """
    if name in ARCHITECTURES:
        raise ValueError(f"classifier architecture '{name}' is registered twice")
    ARCHITECTURES[name] = builder


def find(arch):
    """(builder, defaults) of an architecture's name.

    builder(num_classes, channels) -> nn.Module; defaults: what its networks are usually given, any of 'mean',
    'std' (a number a channel, for colour images in [0, 1]) and 'resolution'. Raises UserError for a name that
    is unknown, or whose library or module cannot be imported.
    """
    if arch in ARCHITECTURES:
        return ARCHITECTURES[arch], USUAL_OF.get(arch, {})
    family = re.fullmatch(r"(.+?)-(\d+)-(\d+)", arch)
    if family and family[1] in FAMILIES:
        return partial(FAMILIES[family[1]], int(family[2]), int(family[3])), {}
    library, colon, name = arch.partition(":")
    if not colon:
        raise UserError(f"classifier architecture '{arch}' is unknown ({nearest(arch, ARCHITECTURES)}). Also "
                        f"valid: {OTHERS}.")
    libraries = {"torchvision": _torchvision, "timm": _timm, "robustness": _robustness}
    return libraries[library](name) if library in libraries else (own_factory(library, name), {})


def alternatives(arch):
    """The architectures that a name may stand for, the likeliest first: one, but for the robustness package's."""
    if arch.startswith("robustness:") and "." not in arch:
        name = arch.partition(":")[2]
        groups = [group for group in ROBUSTNESS if name in _robustness_models(group)]
        return [f"robustness:{group}.{name}" for group in groups] or [arch]
    return [arch]


def build(arch, num_classes, channels):
    """A new network of architecture `arch`: normalised images (B, channels, H, W) -> logits (B, num_classes).

    H and W are at least 16. Raises UserError as `find` does, and where the network cannot be built.
    """
    builder, _ = find(arch)
    try:
        model = builder(num_classes, channels)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # foreign code fails in many ways
        raise UserError(f"classifier architecture '{arch}' could not be built for {num_classes} classes and {channels} "
                        f"channels. This is where it fails:\n{their_traceback(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"classifier architecture '{arch}' made a {type(model).__name__}; it must return an nn.Module "
                        "that maps normalised images to logits.")
    return model


def _torchvision(name):
    import torchvision  # here, since it takes a second that other architectures need not wait

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(f"torchvision has no classifier '{name}' ({nearest(name, known)}).")
    usual = torchvision.models.get_model_weights(name).DEFAULT.transforms()

    def builder(num_classes, channels):
        if channels != 3:
            raise UserError(f"torchvision:{name} takes images of 3 channels, not {channels}.")
        return torchvision.models.get_model(name, num_classes=num_classes)

    return builder, {"mean": list(usual.mean), "std": list(usual.std), "resolution": usual.crop_size[0]}


def _timm(name):
    try:
        import timm
    except ImportError as error:
        raise UserError(f"timm:{name} needs the package timm; install it with: pip install timm") from error
    if not timm.is_model(name):
        raise UserError(f"timm has no classifier '{name}' ({nearest(name, timm.list_models())}).")
    usual = timm.get_pretrained_cfg(name)
    return (lambda num_classes, channels: timm.create_model(name, num_classes=num_classes, in_chans=channels),
            {"mean": list(usual.mean), "std": list(usual.std), "resolution": usual.input_size[-1]})


def _robustness_models(group):
    """{name: what builds it} of the `robustness` package's networks for CIFAR or for ImageNet."""
    # a module of torchvision that is gone; the package wants one function of it
    old = types.ModuleType("torchvision.models.utils")
    old.load_state_dict_from_url = torch.hub.load_state_dict_from_url
    sys.modules.setdefault(old.__name__, old)
    try:
        from robustness import cifar_models, imagenet_models
    except ImportError as error:
        raise UserError(f"robustness:NAME needs the package robustness ({error}); install it with: pip install "
                        "--no-deps -r requirements_robustness.txt. Its checkpoints of resnet18 and resnet50 load "
                        "without it.") from error
    module = {"cifar": cifar_models, "imagenet": imagenet_models}[group]
    return {name: value for name, value in vars(module).items()
            if callable(value) and name.islower() and not isinstance(value, types.ModuleType) and name != "test"}


def _robustness(name):
    wanted, _, plain = name.rpartition(".")
    groups = [wanted] if wanted in ROBUSTNESS else list(ROBUSTNESS)
    models = {group: _robustness_models(group) for group in groups}
    group = next((group for group in groups if plain in models[group]), None)
    if group is None or wanted not in ("", group):
        known = [f"{group}.{name}" for group in groups for name in models[group]]
        raise UserError(f"robustness has no classifier '{name}' ({nearest(name, known)}).")

    def builder(num_classes, channels):
        if channels != 3:
            raise UserError(f"robustness:{name} takes images of 3 channels, not {channels}.")
        return models[group][plain](num_classes=num_classes)

    return builder, ROBUSTNESS[group]


register("smallcnn", SmallCNN)
register("resnet8", resnet8)
register("resnet9", ResNet9)
register("resnet18", resnet18)
register("resnet50", resnet50)
register("vgg7", VGG7)
register("narrow_resnet", NarrowResNet)
register("narrow_vgg", NarrowVGG)
register("efficientnet-lite0", EfficientNetLite0)
