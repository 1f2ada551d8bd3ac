"""A GAN in the manner of DeGAN (Addepalli et al., AAAI 2020): unconditional, with two terms of the classifier.

The paper enriches images of other classes for knowledge distillation: the classifier is to be sure of each image
(entropy term) and to see each class equally often (diversity term). Nothing says which image is of which class, so
that the images of a class are those that the classifier is surest of, among ten times as many.

Unlike the paper's, the networks and the adversarial loss are ProbeGAN's (D_u, eq. 3), so that the terms alone differ.
"""

import math
from dataclasses import dataclass

import torch

from config import setting
from layers import diff_augment
from machine import autocast
from methods.naive import discriminator_loss  # an unconditional D learns alike
from methods.registry import Method, Row
from methods.synthesis import KeptImages
from sampler import Sampler
from training import GAN
from utils import seeded_latents

FIRST_SEED = 2**42  # far from the seeds of all other draws
POOL = 10  # latents judged for each one kept


@dataclass(frozen=True)
class DeGANSettings(KeptImages):
    """The two terms."""

    DG_entropy: float = setting(1.0, "weight of the entropy of the classifier's answer to each image", least=0)
    DG_balance: float = setting(1.0, "weight of the entropy of its mean answer", least=0)


def generator_loss(G, D, C, fakes, task, config):
    """D_u and C. The interface of methods.probegan.generator_loss.

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
    own = config.own
    return terms["G_wasserstein"] + own.DG_entropy * terms["G_entropy"] + own.DG_balance * terms["G_balance"], terms


@torch.no_grad()
def chosen_latents(state, C, C_labels, num, device):
    """{label: latents (num_images, dim_z)}: of a pool, those whose images C gives the class the highest probability.

    state: of training.GAN. Empty for a class that the classifier does not know. The choice favours this rival: what
    the classifier is less sure of is never shown.
    """
    sampler = Sampler(state, device)
    z = seeded_latents(range(FIRST_SEED, FIRST_SEED + POOL * num), sampler.G.dim_z)
    y = torch.zeros(sampler.batch_size, dtype=torch.long)
    p = torch.cat([C(sampler.images(part, y[:len(part)]).to(device)).softmax(1).cpu()
                   for part in z.split(sampler.batch_size)])  # (pool, K)
    return {label: z[p[:, k].topk(num).indices] for label, k in enumerate(C_labels) if k >= 0}


class DeGAN(GAN):
    """A GAN whose checkpoints hold the chosen latents."""

    def state(self):
        state = super().state()
        return state | {"latents": chosen_latents(state, self.C, self.task.C_labels.tolist(),
                                                  self.config.own.num_images, self.device)}


METHOD = Method("degan", "DeGAN-like", __doc__, DeGANSettings, (discriminator_loss, generator_loss), DeGAN,
                fed=lambda config, n_classes: [0], conditional=False,
                weights=lambda training: {"G_entropy": training.config.own.DG_entropy,
                                          "G_balance": training.config.own.DG_balance},
                rows=(Row("degan", "DeGAN-like", "--method degan --num_images {num}"),))
