"""A GAN in the manner of DeGAN (Addepalli et al., AAAI 2020): unconditional, with two terms of the classifier.

The paper enriches images of other classes for knowledge distillation: the classifier is to be sure of each image
(entropy term) and to see each class equally often (diversity term). Nothing says which image is of which class, so
that the images of a class are those that the classifier is surest of, among ten times as many.

Unlike the paper's, the networks and the adversarial loss are ProbeGAN's (D_u, eq. 3), so that the terms alone differ.
"""

import math

import torch

from baselines.naive import discriminator_loss  # noqa: F401  an unconditional D learns alike
from layers import diff_augment
from sample import Sampler
from utils import autocast, seeded_latents

FIRST_SEED = 2**42  # far from the seeds of all other draws
POOL = 10  # latents judged for each one kept


def generator_loss(G, D, C, fakes, task, config):
    """D_u and C. The interface of train.generator_loss.

    total = -E D_u + DG_entropy * E H(p_C(. | G(z))) - DG_balance * H(E p_C(. | G(z))).
    """
    with autocast(fakes.z.device, config.precision):
        fake = G(fakes.z, fakes.y)
        d_u, logits = D(diff_augment(fake, config.diffaug))[1], C(fake)
    # from logarithms: where a probability is too small for a float, p log p has no gradient
    log_p = logits.float().log_softmax(1)  # (B, K)
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))  # (K,), of the batch's mean probabilities
    terms = {"G_wasserstein": -d_u.mean(), "G_entropy": -(log_p.exp() * log_p).sum(1).mean(),
             "G_balance": (log_mean.exp() * log_mean).sum()}
    total = terms["G_wasserstein"] + config.DG_entropy * terms["G_entropy"] + config.DG_balance * terms["G_balance"]
    return total, terms


@torch.no_grad()
def chosen_latents(state, C, C_labels, device):
    """{label: latents (num_images, dim_z)}: of a pool, those whose images C gives the class the highest probability.

    state: of train.Training. Empty for a class that the classifier does not know. The choice favours this rival: what
    the classifier is less sure of is never shown.
    """
    sampler = Sampler(state, device)
    num = sampler.config.num_images
    z = seeded_latents(range(FIRST_SEED, FIRST_SEED + POOL * num), sampler.G.dim_z)
    y = torch.zeros(sampler.batch_size, dtype=torch.long)
    p = torch.cat([C(sampler.images(part, y[:len(part)]).to(device)).softmax(1).cpu()
                   for part in z.split(sampler.batch_size)])  # (pool, K)
    return {label: z[p[:, k].topk(num).indices] for label, k in enumerate(C_labels) if k >= 0}
