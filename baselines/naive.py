"""NAIVE (Zhang et al., AAAI 2022, section 4.2): an unconditional GAN whose fakes are all of y*.

WGAN-GP (eq. 3) and the classifier (eq. 4) without class dilution and without the conditional head: D_u can tell
fakes from reals by their class alone, and pushes against what the classifier asks for.
"""

import torch

import probegan_losses as losses
from baselines.probe import acceptance, critic_loss, descend, draw_images, draw_latents, frozen_weights
from layers import diff_augment
from utils import autocast


def discriminator_step(G, D, optimiser, images, y_real, task, config):
    """One step of D_u. The interface of train.discriminator_step; y_real is not used."""
    with autocast(images.device, config.precision):
        fake, real, _ = draw_images(G, images, task, config)
        terms, total = critic_loss(D, D(torch.cat((fake, real)))[1], fake, real, config)
    return descend(optimiser, total, terms)


def generator_step(G, D, C, optimiser, task, config, batch_size, device):
    """One step of G through D_u and C, fakes of y* alone. The interface of train.generator_step."""
    with autocast(device, config.precision), frozen_weights(D):
        z, y = draw_latents(G, task, batch_size, device)
        fake = G(z, y)
        d_u, logits = D(diff_augment(fake, config.diffaug))[1], C(fake)
    y_C, seen = task.C_labels[y], losses.seen_rows(y, task.unseen)
    terms = {"G_wasserstein": losses.wasserstein_generator(d_u, task.u_weights[y]),
             "G_class": losses.classification(logits, y_C, task.C_weights, config.prob_clip)}
    total = terms["G_wasserstein"] + task.C_coeff * terms["G_class"]
    if config.D2_reg_coeff > 0:
        total = total + config.D2_reg_coeff * losses.output_penalty(d_u)
    return descend(optimiser, total, terms | acceptance(logits, y_C, seen))
