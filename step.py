"""What one step of training is made of: the classes, the draws, D's step, G's step, and the terms that methods share.

The losses of a method (methods/) compose these; training.py holds the networks that take the steps.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

import probegan_losses as losses
import processes
from layers import diff_augment
from utils import UserError, to_unit_range


@dataclass(frozen=True)
class Task:
    """What the steps need to know of the classes, as tensors on the training device."""

    fake_classes: torch.Tensor  # (M,) labels that fakes are drawn for, uniformly
    unseen: torch.Tensor  # (K,) labels of y*; empty for the oracle
    C_labels: torch.Tensor  # (n_classes,) classifier label of each generator label, -1 where it has none
    C_weights: torch.Tensor  # (classifier's n_classes,) weights in eq. (4)
    C_coeff: torch.Tensor  # (), lambda_g of eq. (1), which may move with time
    balanced: bool  # draw each class equally often in a batch
    unseen_share: float = 0.0  # of y* among the fakes; 0: as each class comes
    sides: tuple[torch.Tensor, ...] = ()  # with a share, the seen and the unseen ones of fake_classes
    spreads: torch.Tensor | None = None  # (n_classes,) how far apart the images of each class are to lie


def make_task(config, fed, C_labels, C_classes, device):
    """The Task of a Config. fed: the labels that fakes are drawn for. C_labels: the classifier's label of each class,
    -1 for none; C_classes: how many it has. Raises UserError for a share of y* among fakes of no other class."""
    unseen = [] if config.oracle else list(config.new_class)
    C_weights = torch.ones(C_classes)
    for y in unseen:
        C_weights[C_labels[y]] = config.C_new_coeff
    tensors = (torch.tensor(fed), torch.tensor(unseen, dtype=torch.long), torch.tensor(C_labels), C_weights,
               torch.tensor(config.C_coeff))
    sides = ()
    if config.unseen_share:
        sides = tuple(torch.tensor([y for y in fed if (y in unseen) == side], device=device) for side in (False, True))
        if not all(len(side) for side in sides):
            raise UserError(f"--unseen_share {config.unseen_share} shares the fakes among y* and seen classes; leave "
                            "it out with a method, or an oracle, that does not draw both.")
    return Task(*(tensor.to(device) for tensor in tensors), config.balanced_y, config.unseen_share, sides)


def draw_latents(G, task, batch_size, device):
    """z (B, dim_z) ~ N(0, 1) and labels y (B,), uniform over the classes that fakes are drawn for.

    With an unseen_share a label is one of y* with that probability, and uniform on either side.
    """
    z = torch.randn(batch_size, G.dim_z, device=device)
    n = len(task.fake_classes)
    if task.unseen_share:
        seen_labels, unseen_labels = (side[torch.randint(len(side), (batch_size,), device=device)]
                                      for side in task.sides)
        return z, torch.where(torch.rand(batch_size, device=device) < task.unseen_share, unseen_labels, seen_labels)
    if task.balanced:  # in turn, from a class drawn at random
        places = (torch.randint(n, (1,), device=device) + torch.arange(batch_size, device=device)) % n
    else:
        places = torch.randint(n, (batch_size,), device=device)
    return z, task.fake_classes[places]


@dataclass(frozen=True)
class Fakes:
    """What the fakes of one step are made from: this process's rows of a batch, or a part of them.

    The masked means of a loss divide by sums over the whole batch, which all processes know.
    """

    z: torch.Tensor  # (B, dim_z)
    y: torch.Tensor  # (B,) labels
    seen: torch.Tensor  # (B,) 1.0 for the rows of seen classes
    y_batch: torch.Tensor  # labels of the whole batch
    seen_batch: torch.Tensor
    parts: int  # the equal parts that the whole batch is computed in
    images: torch.Tensor | None = None  # (B, C, H, W), where they were made before

    def split(self, n):
        """The n equal parts of these rows, as a list."""
        columns = [column.chunk(n) if column is not None else [None] * n
                   for column in (self.z, self.y, self.seen, self.images)]
        return [replace(self, z=z, y=y, seen=seen, images=images, parts=n * self.parts)
                for z, y, seen, images in zip(*columns, strict=True)]

    def share(self, rows_of_batch):
        """The `total` of a masked mean over one part."""
        return rows_of_batch.sum() / self.parts

    @property
    def n_seen(self):
        """`share` of the rows of seen classes."""
        return self.share(self.seen_batch)


def draw_fakes(G, task, batch_size, device):
    """The Fakes of a step with `batch_size` rows in this process."""
    z, y = draw_latents(G, task, batch_size * processes.size(), device)
    seen = losses.seen_rows(y, task.unseen)
    return Fakes(processes.own(z), processes.own(y), processes.own(seen), y, seen, processes.size())


def shown_to_D(G, images, fakes, config):
    """What D is shown: (fake, real), images (B, C, H, W) in [-1, 1] after DiffAugment.

    images: uint8 (B, C, H, W). No gradient reaches G.
    """
    real = to_unit_range(images).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        fake = G(fakes.z, fakes.y) if fakes.images is None else fakes.images
        return diff_augment(fake, config.diffaug), diff_augment(real, config.diffaug)


def critic_loss(D, d_u, fake, real, config):
    """D's part of eq. (3) with the authors' penalty of its outputs: (total, terms).

    d_u: D_u (2B,) of fakes and reals; fake, real: images (B, C, H, W), for the gradient penalty.
    """
    d_u_fake, d_u_real = d_u.split(len(fake))
    terms = {"D_wasserstein": losses.wasserstein(d_u_real, d_u_fake)}
    if config.gp_coeff == 0:
        x_hat = None
    elif config.penalty == "r1":
        x_hat = real.detach().requires_grad_()
    else:
        e = processes.own(torch.rand(len(fake) * processes.size(), 1, 1, 1, device=fake.device))
        x_hat = losses.interpolate(real, fake, e).requires_grad_()
    total = terms["D_wasserstein"]
    if x_hat is not None:
        terms["D_penalty"] = losses.gradient_penalty(D(x_hat)[1], x_hat, norm=float(config.penalty == "wgan-gp"))
        total = total + config.gp_coeff * terms["D_penalty"]
    if config.D2_reg_coeff > 0:
        terms["D_reg"] = losses.output_penalty(d_u_real) + losses.output_penalty(d_u_fake)
        total = total + config.D2_reg_coeff * terms["D_reg"]
    elif config.drift > 0:
        terms["D_reg"] = losses.output_penalty(d_u_real)
        total = total + config.drift * terms["D_reg"]
    return total, terms


@contextmanager
def frozen_weights(D):
    """A graph that is built inside passes a gradient through D and keeps none for it."""
    D.requires_grad_(False)
    try:
        yield
    finally:
        D.requires_grad_(True)


def descend(optimiser, loss, parts):
    """One step of an optimiser down the mean of loss(*part) = (total, terms) over parts; returns the mean terms.

    Each part's graph is gone before the next is built. The terms are detached, and of this process alone.
    """
    optimiser.zero_grad(set_to_none=True)
    found = []
    for part in parts:
        total, terms = loss(*part)
        (total / len(parts)).backward()
        found.append({name: term.detach() for name, term in terms.items()})
    processes.average([p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None])
    optimiser.step()
    return {name: torch.stack([terms[name] for terms in found]).mean() for name in found[0]}


def discriminator_step(loss, G, D, optimiser, images, y_real, fakes, task, config):
    """One D step of eq. (1) in num_D_accumulations parts. Returns the unweighted terms as detached scalars.

    loss: a method's discriminator_loss. images: uint8 (B, C, H, W) of seen classes, y_real: (B,); fakes: Fakes of B.
    """
    n = config.num_D_accumulations
    parts = list(zip(images.chunk(n), y_real.chunk(n), fakes.split(n), strict=True))
    return descend(optimiser, lambda *part: loss(G, D, *part, task, config), parts)


def generator_step(loss, G, D, C, optimiser, fakes, task, config):
    """One G step of eq. (1) in num_G_accumulations parts. Returns the unweighted terms as detached scalars.

    loss: a method's generator_loss.
    """
    with frozen_weights(D):
        return descend(optimiser, lambda part: loss(G, D, C, part, task, config),
                       [(part,) for part in fakes.split(config.num_G_accumulations)])


def class_terms(logits, fakes, task, config):
    """(eq. (4), the terms of `acceptance`)."""
    y_C = task.C_labels[fakes.y]
    rows = losses.classification_rows(task.C_labels[fakes.y_batch], task.C_weights)
    loss = losses.classification(logits, y_C, task.C_weights, config.prob_clip, fakes.share(rows))
    return loss, acceptance(logits, y_C, fakes.seen)


def acceptance(logits, y_C, seen):
    """Terms: how many fakes of seen classes there are and C accepts as their class, and how many of y*.

    logits (B, K); y_C (B,) the classifier's labels, -1 for none; seen (B,) as losses.seen_rows gives it. Numbers and
    not shares, since a batch may hold no fake of y*: see `shares`.
    """
    accepted = (logits.detach().argmax(1) == y_C).float()
    rows = {"seen": seen * (y_C >= 0), "unseen": 1 - seen}
    return {f"fakes_{name}": counted.sum() for name, counted in rows.items()} | \
        {f"accepted_{name}": (accepted * counted).sum() for name, counted in rows.items()}


def shares(means):
    """The means {name: float} of terms over steps, with C_accepts_seen and C_accepts_unseen, the shares of fakes that
    C accepts, in place of the numbers; a share is left out where there was no such fake."""
    found = {name: value for name, value in means.items() if not name.startswith(("fakes_", "accepted_"))}
    for name in ("seen", "unseen"):
        if means.get(f"fakes_{name}"):
            found[f"C_accepts_{name}"] = means[f"accepted_{name}"] / means[f"fakes_{name}"]
    return found
