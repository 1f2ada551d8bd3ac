"""NAIVE (Zhang et al., AAAI 2022, section 4.2): an unconditional GAN whose fakes are all of y*.

WGAN-GP (eq. 3) and the classifier (eq. 4) without class dilution and without the conditional head: D_u can tell
fakes from reals by their class alone, and pushes against what the classifier asks for.
"""

import torch

import probegan_losses as losses
from layers import diff_augment
from machine import autocast
from methods.registry import Method, Row, unseen_classes
from step import class_terms, critic_loss, shown_to_D
from utils import UserError


def check(config):
    """Raise UserError for other than one unseen class."""
    if len(config.new_class) != 1:
        raise UserError(f"--method naive draws one unseen class; {len(config.new_class)} were given.")


def discriminator_loss(G, D, images, y_real, fakes, task, config):
    """D_u alone. The interface of methods.probegan.discriminator_loss; y_real is not used."""
    with autocast(images.device, config.precision):
        fake, real = shown_to_D(G, images, fakes, config)
        return critic_loss(D, D(torch.cat((fake, real)))[1], fake, real, config)


def generator_loss(G, D, C, fakes, task, config):
    """D_u and C, fakes of y* alone. The interface of methods.probegan.generator_loss."""
    with autocast(fakes.z.device, config.precision):
        fake = G(fakes.z, fakes.y)
        d_u, logits = D(diff_augment(fake, config.diffaug))[1], C(fake)
    class_loss, accepted = class_terms(logits, fakes, task, config)
    terms = {"G_wasserstein": -d_u.mean(), "G_class": class_loss}
    total = terms["G_wasserstein"] + task.C_coeff * class_loss
    if config.D2_reg_coeff > 0:
        total = total + config.D2_reg_coeff * losses.output_penalty(d_u)
    return total, terms | accepted


METHOD = Method("naive", "NAIVE", __doc__, losses=(discriminator_loss, generator_loss), fed=unseen_classes, check=check,
                rows=(Row("naive", "NAIVE", "--method naive"),), selects=True,
                weights=lambda training: {"G_class": training.task.C_coeff.item()})
