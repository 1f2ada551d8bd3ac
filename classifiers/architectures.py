"""The registry of classifier architectures; to add one, write its file and register it below."""

from classifiers.resnet import resnet8, resnet18, resnet50
from classifiers.resnet9 import ResNet9
from classifiers.smallcnn import SmallCNN
from classifiers.vgg7 import VGG7
from utils import UserError, nearest

ARCHITECTURES = {}


def register(name, builder):
    """Add an architecture: `builder(num_classes, channels)` -> nn.Module from normalised images to logits.

    Raises ValueError where the name is taken.
    """
    if name in ARCHITECTURES:
        raise ValueError(f"classifier architecture '{name}' is registered twice")
    ARCHITECTURES[name] = builder


def build(arch, num_classes, channels):
    """A new network of architecture `arch`: normalised images (B, channels, H, W) -> logits (B, num_classes).

    H and W are at least 16. Raises UserError for a name that is not registered.
    """
    if arch not in ARCHITECTURES:
        raise UserError(f"classifier architecture '{arch}' is unknown ({nearest(arch, ARCHITECTURES)}).")
    return ARCHITECTURES[arch](num_classes, channels)


register("smallcnn", SmallCNN)
register("resnet8", resnet8)
register("resnet9", ResNet9)
register("resnet18", resnet18)
register("resnet50", resnet50)
register("vgg7", VGG7)
