"""The registry of classifier architectures; to add one, write its file and register it below.

Beside the registered names there are families, `wrn-28-10` and `densenet-bc-190-40` of any size, the
networks of two libraries, `torchvision:vit_b_16` and `timm:NAME`, and a user's own code,
`package.module:factory`.
"""

import importlib
import inspect
import re
import sys
from functools import partial
from pathlib import Path

from torch import nn

from classifiers.densenet import DenseNetBC
from classifiers.efficientnet_lite import USUAL, EfficientNetLite0
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
OTHERS = "wrn-D-K, densenet-bc-D-K, torchvision:NAME, timm:NAME or package.module:factory"


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
    if library == "torchvision":
        return _torchvision(name)
    if library == "timm":
        return _timm(name)
    return _factory(library, name), {}


def build(arch, num_classes, channels):
    """A new network of architecture `arch`: normalised images (B, channels, H, W) -> logits (B, num_classes).

    H and W are at least 16. Raises UserError as `find` does, and where the network cannot be built.
    """
    builder, _ = find(arch)
    try:
        model = builder(num_classes, channels)
    except UserError:
        raise
    except Exception as error:  # foreign code fails in many ways
        raise UserError(f"classifier architecture '{arch}' could not be built for {num_classes} classes and {channels} "
                        f"channels ({type(error).__name__}: {error}).") from error
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


def _factory(module, name):
    # the user's code lies where the command is run, which is not always on the path
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"classifier architecture '{module}:{name}' cannot be imported ({error}); give "
                        "package.module:factory, found from the folder that the command is run in.") from error
    parameters = inspect.signature(found).parameters.values()
    takes = {p.name for p in parameters}
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def builder(num_classes, channels):
        given = {"num_classes": num_classes, "channels": channels}
        return found(**{key: value for key, value in given.items() if anything or key in takes})

    return builder


register("smallcnn", SmallCNN)
register("resnet8", resnet8)
register("resnet9", ResNet9)
register("resnet18", resnet18)
register("resnet50", resnet50)
register("vgg7", VGG7)
register("narrow_resnet", NarrowResNet)
register("narrow_vgg", NarrowVGG)
register("efficientnet-lite0", EfficientNetLite0)
