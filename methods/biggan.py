"""BigGAN (Brock et al., ICLR 2019): the conditional hinge alone, without a classifier.

With --oracle on all classes: what the networks can do without a probe. Without, on the seen classes alone: the
frozen generator that methods/biggan_am.py searches.
"""

import torch

import probegan_losses as losses
from layers import diff_augment
from machine import autocast
from methods.registry import Method, Row
from step import shown_to_D


def given_classes(config, n_classes):
    """The labels of the classes that there are images of."""
    return [y for y in range(n_classes) if config.oracle or y not in config.new_class]


def discriminator_loss(G, D, images, y_real, fakes, task, config):
    """D_c alone. The interface of methods.probegan.discriminator_loss."""
    with autocast(images.device, config.precision):
        fake, real = shown_to_D(G, images, fakes, config)
        d_c_fake, d_c_real = D(torch.cat((fake, real)), torch.cat((fakes.y, y_real)))[0].split(len(images))
    every = torch.ones_like(d_c_real)
    terms = {"D_hinge_fake": losses.hinge_fake(d_c_fake, every), "D_hinge_real": losses.hinge_real(d_c_real, every)}
    return sum(terms.values()), terms


def generator_loss(G, D, C, fakes, task, config):
    """D_c alone. The interface of methods.probegan.generator_loss; C is not used."""
    with autocast(fakes.z.device, config.precision):
        d_c, _ = D(diff_augment(G(fakes.z, fakes.y), config.diffaug), fakes.y)
    loss = losses.hinge_generator(d_c, torch.ones_like(d_c))
    return loss, {"G_hinge": loss}


METHOD = Method("biggan", "BigGAN", __doc__, losses=(discriminator_loss, generator_loss), fed=given_classes,
                rows=(Row("biggan", "BigGAN, all classes", "--method biggan --oracle", "none"),),
                oracle_title="BigGAN, all classes")
