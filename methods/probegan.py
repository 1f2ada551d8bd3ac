"""ProbeGAN (Zhang et al., AAAI 2022): fakes of all classes, y* diluted among the others.

    (1)  min_G max_D  sum_{y != y*} L_c(y) + L_u + lambda_g * sum_{all y} L_class(y)

With --oracle the images of y* are in the set: the bound that no probe can pass.
"""

from dataclasses import dataclass, replace

import torch

import probegan_losses as losses
from config import setting
from datasets.stream import seen_images
from layers import diff_augment
from machine import autocast
from methods.registry import Method, Row, Settings
from step import class_terms, critic_loss, shown_to_D
from training import GAN
from utils import DATASETS, UserError

SPREAD_IMAGES = 200  # real images of a class whose spread is measured


@dataclass(frozen=True)
class ProbeGANSettings(Settings):
    """What the authors ran beyond the equations, and what keeps a class varied where runs are short."""

    mask_real_by_fake: bool = setting(True, "drop real rows whose fake partner is of y* from the hinge of D_c")
    G_new_coeff: float = setting(1.0, "weight of the rows of y* in G's loss from D_u; 1 is off", least=0)
    D_tilemix_ngrid: int = setting(1, "shuffle an n x n grid of tiles across the batch before D_u; 1 is off", least=1)
    level_unseen: bool = setting(False, "D_u learns to tell fakes of y* no better than those of seen classes, by their "
                                 "mean among the rows of one process; not the paper's")
    diversity_coeff: float = setting(0.0, "weight of the differences between fakes of y*; not the paper's; 0 is off",
                                     least=0)
    C_bound: float = setting(0.0, "most that the classifier may pull at a fake of a seen class, as a share of D's own "
                             "pull at it; not the paper's; 0 is no bound", least=0)
    C_bound_new: float = setting(0.0, "the same for y*, where C_bound is given", least=0)
    spread_coeff: float = setting(0.0, "weight of what a class lacks of the spread of real images of a class, among "
                                  "the rows of one process; not the paper's; 0 is off", least=0)


def check(config):
    """Raise UserError where the tiles do not fit the images or mix what is to be levelled, or one bound is given
    without the other."""
    own = config.own
    if (own.C_bound > 0) != (own.C_bound_new > 0):
        raise UserError(f"--C_bound is {own.C_bound} and --C_bound_new {own.C_bound_new}; give both, or neither.")
    n, side = own.D_tilemix_ngrid, DATASETS[config.dataset].resolution
    if side % n:
        raise UserError(f"--D_tilemix_ngrid {n} does not divide {side} pixels.")
    if n > 1 and own.level_unseen:
        raise UserError(f"--D_tilemix_ngrid {n} mixes the classes within an image, so that none is of y* alone, as "
                        "--level_unseen asks; add --no-level_unseen.")


def discriminator_hinge(fake, real, y_real, fakes, task, own):
    """D_c's part of D's loss, eq. (2): (total, terms). fake, real: D_c (B,)."""
    rows = fakes.seen if own.mask_real_by_fake else torch.ones_like(fakes.seen)
    terms = {"D_hinge_fake": losses.hinge_fake(fake, fakes.seen, fakes.n_seen),
             "D_hinge_real": losses.hinge_real(real, rows, fakes.n_seen if own.mask_real_by_fake else None)}
    return sum(terms.values()), terms


def generator_hinge(d_c, fakes, task, own):
    """D_c's part of G's loss, eq. (2): (total, terms)."""
    loss = losses.hinge_generator(d_c, fakes.seen, fakes.n_seen)
    return loss, {"G_hinge": loss}


def discriminator_loss(G, D, images, y_real, fakes, task, config, conditional=discriminator_hinge):
    """D's part of eq. (1): (total, unweighted terms).

    images: uint8 (B, C, H, W) of seen classes; y_real (B,); fakes: step.Fakes of B; task: step.Task. conditional: the
    part of the conditional head, with the parameters of discriminator_hinge.
    """
    own = config.own
    with autocast(images.device, config.precision):
        fake, real = shown_to_D(G, images, fakes, config)
        d_c, d_u = D(torch.cat((fake, real)), torch.cat((fakes.y, y_real)))
        if own.D_tilemix_ngrid > 1:
            fake, real = (losses.tile_mix(images, own.D_tilemix_ngrid) for images in (fake, real))
            d_u = D(torch.cat((fake, real)))[1]
        if own.level_unseen:
            of_fakes, of_reals = d_u.split(len(images))
            d_u = torch.cat((losses.levelled(of_fakes, fakes.seen), of_reals))
        total, terms = critic_loss(D, d_u, fake, real, config)  # eq. (3)
    of_head, head_terms = conditional(*d_c.split(len(images)), y_real, fakes, task, own)
    return total + of_head, terms | head_terms


def generator_loss(G, D, C, fakes, task, config, conditional=generator_hinge):
    """G's part of eq. (1), through D and the frozen classifier C: (total, unweighted terms).

    fakes: step.Fakes of all classes. Among the terms are those of step.acceptance. With C_bound the gradient of eq. (4)
    on each image is shortened where it is longer than that share of D's. conditional: as generator_hinge.
    """
    own = config.own
    with autocast(fakes.z.device, config.precision):
        fake = G(fakes.z, fakes.y)
        shown = diff_augment(fake, config.diffaug)
        d_c, d_u = D(shown, fakes.y)
        if own.D_tilemix_ngrid > 1:
            d_u = D(losses.tile_mix(shown, own.D_tilemix_ngrid))[1]
        logits = C(fake)
    class_loss, accepted = class_terms(logits, fakes, task, config)
    weights, weights_batch = (seen + own.G_new_coeff * (1 - seen) for seen in (fakes.seen, fakes.seen_batch))
    of_head, head_terms = conditional(d_c, fakes, task, own)
    terms = {"G_wasserstein": losses.wasserstein_generator(d_u, weights, fakes.share(weights_batch)),  # eq. (3)
             **head_terms, "G_class": class_loss}  # eq. (4)
    total = terms["G_wasserstein"] + of_head
    if config.D2_reg_coeff > 0:
        total = total + config.D2_reg_coeff * losses.output_penalty(d_u)
    if own.C_bound > 0:
        (of_D,), (of_C,) = (torch.autograd.grad(loss, fake, retain_graph=True) for loss in (total, class_loss))
        most = (own.C_bound * fakes.seen + own.C_bound_new * (1 - fakes.seen)) / task.C_coeff
        terms["G_class"] = losses.with_gradient(class_loss, fake, losses.bounded(of_C, of_D, most))
        total = losses.with_gradient(total, fake, of_D)
    total = total + task.C_coeff * terms["G_class"]
    if own.diversity_coeff > 0:
        terms["G_diversity"] = losses.diversity(fake, fakes.z, 1 - fakes.seen)
        total = total - own.diversity_coeff * terms["G_diversity"]
    if own.spread_coeff > 0:
        terms["G_spread"] = losses.spread_shortfall(fake, fakes.y, task.spreads[fakes.y])
        total = total + own.spread_coeff * terms["G_spread"]
    return total, terms | accepted


class ProbeGAN(GAN):
    """The GAN, and how far apart real images of a class lie."""

    def __init__(self, method, config, spec, device, state=None):
        super().__init__(method, config, spec, device, state)
        if config.own.spread_coeff > 0:
            self.task = replace(self.task, spreads=self.real_spreads().to(device))

    def real_spreads(self):
        """(n_classes,): the spread of each seen class's images, as losses.spread_shortfall takes it; their mean for y*.
        """
        found = {y: images.flatten(1).var(0).mean().sqrt()
                 for y, images in seen_images(self.stream, self.task.unseen.tolist(), SPREAD_IMAGES).items()}
        mean = torch.stack(list(found.values())).mean()
        return torch.stack([found.get(y, mean) for y in range(len(self.spec.classes))])


METHOD = Method("probegan", "ProbeGAN", __doc__, ProbeGANSettings, (discriminator_loss, generator_loss), ProbeGAN,
                check=check, rows=(Row("oracle", "oracle", "--oracle", "first"), Row("probegan", "ProbeGAN", "")),
                oracle_title="oracle", selects=True,
                weights=lambda training: {"G_class": training.task.C_coeff.item(),
                                          "G_diversity": training.config.own.diversity_coeff,
                                          "G_spread": training.config.own.spread_coeff})
