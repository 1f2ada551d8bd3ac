"""Classifiers: architectures, the frozen wrapper that ProbeGAN probes, attacks; training is classifiers.train."""

from classifiers.architectures import ARCHITECTURES, build, register
from classifiers.attacks import pgd
from classifiers.frozen import FrozenClassifier
from classifiers.loading import class_labels, load_classifier

__all__ = ["ARCHITECTURES", "FrozenClassifier", "build", "class_labels", "load_classifier", "pgd", "register"]
