"""Classifiers: the registry of architectures, the frozen wrapper that ProbeGAN probes, attacks, training."""

from classifiers import resnet, smallcnn
from utils import UserError, nearest

ARCHITECTURES = {}


def register(name, builder):
    """Add an architecture: `builder(num_classes, channels)` -> nn.Module from normalised images to logits."""
    if name in ARCHITECTURES:
        raise ValueError(f"architecture '{name}' is registered twice")
    ARCHITECTURES[name] = builder


def build(arch, num_classes, channels):
    """A new network of architecture `arch`: normalised images (B, channels, H, W) -> logits (B, num_classes).

    H and W are at least 16. Raises UserError for a name that is not registered.
    """
    if arch not in ARCHITECTURES:
        raise UserError(f"classifier architecture '{arch}' is unknown; {nearest(arch, ARCHITECTURES)}")
    return ARCHITECTURES[arch](num_classes, channels)


register("smallcnn", smallcnn.SmallCNN)
register("resnet8", resnet.resnet8)
register("resnet18", resnet.resnet18)
register("resnet50", resnet.resnet50)

# after the registry, which frozen.py reads
from classifiers.attacks import pgd  # noqa: E402
from classifiers.frozen import FrozenClassifier, load_classifier  # noqa: E402

__all__ = ["ARCHITECTURES", "FrozenClassifier", "build", "load_classifier", "pgd", "register"]
