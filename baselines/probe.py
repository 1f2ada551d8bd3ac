"""What ProbeGAN and its rivals share: the frozen classifier, the image set without y*, the classes and the draws."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

import probegan_losses as losses
from classifiers import load_classifier
from classifiers.frozen import fingerprint
from classifiers.loading import probed_classifier, refuse_evaluator
from datasets import ImageStream, leave_out, open_source
from layers import diff_augment
from sample import fake_classes
from utils import UserError, random_state, set_random_state, to_unit_range


@dataclass(frozen=True)
class Task:
    """What the steps need to know of the classes, as tensors on the training device."""

    fake_classes: torch.Tensor  # (M,) labels that fakes are drawn for, uniformly
    unseen: torch.Tensor  # (K,) labels of y*; empty for the oracle
    C_labels: torch.Tensor  # (n_classes,) classifier label of each generator label, -1 where it has none
    C_weights: torch.Tensor  # (classifier's n_classes,) weights in eq. (4)
    u_weights: torch.Tensor  # (n_classes,) row weights in G's part of eq. (3)
    C_coeff: torch.Tensor  # (), lambda_g of eq. (1), which may move with time
    balanced: bool  # draw each class equally often in a batch


def make_task(config, C_labels, C_classes, device):
    """The Task of a Config. C_labels: the classifier's label of each class, -1 for none; C_classes: how many it has."""
    unseen = [] if config.oracle else list(config.new_class)
    C_weights, u_weights = torch.ones(C_classes), torch.ones(len(C_labels))
    for y in unseen:
        C_weights[C_labels[y]] = config.C_new_coeff
        u_weights[y] = config.G_new_coeff
    tensors = (torch.tensor(fake_classes(config, len(C_labels))), torch.tensor(unseen, dtype=torch.long),
               torch.tensor(C_labels), C_weights, u_weights, torch.tensor(config.C_coeff))
    return Task(*(tensor.to(device) for tensor in tensors), config.balanced_y)


def draw_latents(G, task, batch_size, device):
    """z (B, dim_z) ~ N(0, 1) and labels y (B,), uniform over the classes that fakes are drawn for."""
    z = torch.randn(batch_size, G.dim_z, device=device)
    n = len(task.fake_classes)
    if task.balanced:  # in turn, from a class drawn at random
        places = (torch.randint(n, (1,), device=device) + torch.arange(batch_size, device=device)) % n
    else:
        places = torch.randint(n, (batch_size,), device=device)
    return z, task.fake_classes[places]


def draw_images(G, images, task, config):
    """What D is shown in one step: (fake, real, y), images (B, C, H, W) in [-1, 1] after DiffAugment, y of the fakes.

    images: uint8 (B, C, H, W). No gradient reaches G.
    """
    real = to_unit_range(images).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        z, y = draw_latents(G, task, len(images), images.device)
        fake = diff_augment(G(z, y), config.diffaug)
        real = diff_augment(real, config.diffaug)
    return fake, real, y


def critic_loss(D, d_u, fake, real, config):
    """D's part of eq. (3) with the authors' penalty of its outputs: (terms, total).

    d_u: D_u (2B,) of fakes and reals; fake, real: images (B, C, H, W), for the gradient penalty.
    """
    d_u_fake, d_u_real = d_u.split(len(fake))
    if config.penalty == "r1":
        x_hat = real.detach().requires_grad_()
    else:
        e = torch.rand(len(fake), 1, 1, 1, device=fake.device)
        x_hat = losses.interpolate(real, fake, e).requires_grad_()
    penalty = losses.gradient_penalty(D(x_hat)[1], x_hat, norm=1.0 if config.penalty == "wgan-gp" else 0.0)
    terms = {"D_wasserstein": losses.wasserstein(d_u_real, d_u_fake), "D_penalty": penalty}
    total = terms["D_wasserstein"] + config.gp_coeff * penalty
    if config.D2_reg_coeff > 0:
        terms["D_reg"] = losses.output_penalty(d_u_real) + losses.output_penalty(d_u_fake)
        total = total + config.D2_reg_coeff * terms["D_reg"]
    elif config.drift > 0:
        terms["D_reg"] = losses.output_penalty(d_u_real)
        total = total + config.drift * terms["D_reg"]
    return terms, total


@contextmanager
def frozen_weights(D):
    """A graph that is built inside passes a gradient through D and keeps none for it."""
    D.requires_grad_(False)
    try:
        yield
    finally:
        D.requires_grad_(True)


def descend(optimiser, total, terms):
    """One step of an optimiser down the scalar `total`; returns the terms detached."""
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    optimiser.step()
    return {name: term.detach() for name, term in terms.items()}


def acceptance(logits, y_C, seen):
    """Terms: the share of fakes that C accepts as their class, of seen classes and of y*.

    logits (B, K); y_C (B,) the classifier's labels, -1 for none; seen (B,) as losses.seen_rows gives it.
    """
    accepted = (logits.detach().argmax(1) == y_C).float()
    return {"C_accepts_seen": losses.mean_over(accepted, seen * (y_C >= 0)),
            "C_accepts_unseen": losses.mean_over(accepted, 1 - seen)}


class Probe:
    """A run of one method: what every method has. `state()` is all that a checkpoint holds.

    A subclass adds num_steps (how many times train.py calls advance), advance() -> detached terms, and to state()
    and load_state() what it draws from: G_ema, or images. `D` is None where there is no discriminator. Raises
    UserError for a classifier or an image set that do not fit, before anything is written.
    """

    D = None

    def __init__(self, config, spec, device):
        self.config, self.spec, self.device = config, spec, device
        n_classes = len(spec.classes)
        evaluator = load_classifier(config.evaluator, num_classes=n_classes) if config.evaluator else None
        torch.manual_seed(config.seed)
        self.C = probed_classifier(config, spec.classes, device)
        refuse_evaluator(self.C, config.C_path, config.evaluator, evaluator)
        self.C_sha256 = fingerprint(self.C.model)
        source = open_source(spec, config.data_root, "train")
        indices, self.audit, guard = leave_out(source, spec, config.new_class, keep_unseen=config.oracle)
        self.stream = ImageStream(source, indices, guard, config.batch_size, device, config.augment, config.seed,
                                  config.max_resident_gb, config.num_workers)
        self.task = make_task(config, self.C.labels, self.C.num_classes, device)
        self.step = 0

    @property
    def num_steps(self):
        return self.config.num_steps

    def networks(self):
        """{name: network in training}, whose weights must stay finite."""
        return {}

    def state(self):
        return {
            "config": self.config.as_dict(),
            "dataset": {"resolution": self.spec.resolution, "channels": self.spec.channels,
                        "classes": list(self.spec.classes)},
            "step": self.step, "random": random_state(), "audit": self.audit, "classifier_sha256": self.C_sha256,
        }

    def load_state(self, state):
        if state["audit"]["sha256"] != self.audit["sha256"]:
            raise UserError(f"the image set in {self.config.data_root} is not the one this run was started on (SHA-256 "
                            f"{self.audit['sha256'][:12]}, was {state['audit']['sha256'][:12]}); restore it, or start "
                            "a new run.")
        if state["classifier_sha256"] != self.C_sha256:
            raise UserError(f"the classifier {self.config.C_path} is not the one this run was started on (SHA-256 "
                            f"of its weights {self.C_sha256[:12]}, was {state['classifier_sha256'][:12]}); give that "
                            "one as --C_path, or start a new run.")
        self.step = state["step"]
        set_random_state(state["random"])
