"""BigGAN (Brock et al., ICLR 2019): the conditional hinge alone, without a classifier.

With --oracle on all classes: what the networks can do without a probe. Without, on the seen classes alone: the
frozen generator that baselines/biggan_am.py searches.
"""

import torch

import probegan_losses as losses
from baselines.probe import descend, draw_images, draw_latents, frozen_weights
from layers import diff_augment
from utils import autocast


def discriminator_step(G, D, optimiser, images, y_real, task, config):
    """One step of D_c. The interface of train.discriminator_step."""
    with autocast(images.device, config.precision):
        fake, real, y = draw_images(G, images, task, config)
        d_c_fake, d_c_real = D(torch.cat((fake, real)), torch.cat((y, y_real)))[0].split(len(images))
    every = torch.ones_like(d_c_real)
    terms = {"D_hinge_fake": losses.hinge_fake(d_c_fake, every), "D_hinge_real": losses.hinge_real(d_c_real, every)}
    return descend(optimiser, sum(terms.values()), terms)


def generator_step(G, D, C, optimiser, task, config, batch_size, device):
    """One step of G through D_c. The interface of train.generator_step; C is not used."""
    with autocast(device, config.precision), frozen_weights(D):
        z, y = draw_latents(G, task, batch_size, device)
        d_c, _ = D(diff_augment(G(z, y), config.diffaug), y)
    terms = {"G_hinge": losses.hinge_generator(d_c, torch.ones_like(d_c))}
    return descend(optimiser, terms["G_hinge"], terms)
