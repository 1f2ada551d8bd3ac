"""ProbeGAN with a head of class logits in place of the conditional hinge head; all else is methods/probegan.py.

The losses of the head are those of methods/labelled.py, AM-GAN's by default: D has no real row of y*, so the logits
of y* are masked and fakes of y* add nothing. The gradient of a row with respect to the logits has an L1 norm of 2 at
most, where that of the hinge is 1 on one output.
"""

from dataclasses import dataclass
from functools import partial

import torch

import probegan_losses as losses
from label_losses import seen_only
from methods import probegan
from methods.labelled import LabelGAN, LabelSettings, discriminator_terms, generator_terms
from methods.registry import Method
from utils import UserError


@dataclass(frozen=True)
class ProbeGANLabelsSettings(LabelSettings, probegan.ProbeGANSettings):
    """Those of ProbeGAN, and those of the head."""


def check(config):
    """Raise UserError for networks without D_u, and as ProbeGAN does."""
    probegan.check(config)
    if config.networks == "dcgan":
        raise UserError("--networks dcgan has no unconditional head, which --method probegan_labels needs; leave it "
                        "out, or give --method labelled.")


def mean_of(rows, total):
    """The mean over the rows (B,) that are 1, as losses.mean_over takes it: (B,) -> ()."""
    return lambda values: losses.mean_over(seen_only(values, rows), rows, total)


def discriminator_labels(fake, real, y_real, fakes, task, own):
    """The head's part of D's loss. The interface of methods.probegan.discriminator_hinge; fake, real (B, outputs)."""
    of_fake = mean_of(fakes.seen, fakes.n_seen)
    of_real = of_fake if own.mask_real_by_fake else torch.mean
    return discriminator_terms(fake, real, y_real, lambda logits: fakes.y, task.unseen, own, of_fake, of_real)


def generator_labels(outputs, fakes, task, own):
    """The head's part of G's loss. The interface of methods.probegan.generator_hinge; outputs (B, n)."""
    return generator_terms(outputs, lambda logits: fakes.y, task.unseen, own, mean_of(fakes.seen, fakes.n_seen))


class ProbeGANLabels(LabelGAN, probegan.ProbeGAN):
    """ProbeGAN, of which D has the other head."""


METHOD = Method("probegan_labels", "ProbeGAN, class logits", __doc__, ProbeGANLabelsSettings,
                (partial(probegan.discriminator_loss, conditional=discriminator_labels),
                 partial(probegan.generator_loss, conditional=generator_labels)), ProbeGANLabels,
                check=check, oracle_title="oracle, class logits", selects=True,
                weights=lambda training: {**probegan.METHOD.weights(training),
                                          "G_label": training.config.own.G_class_coeff})
