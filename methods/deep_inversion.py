"""DeepInversion (Yin et al., CVPR 2020): images from the classifier and its batch-norm statistics, no images at all.

Pixels descend the cross-entropy of y*, the distance between the statistics of their features and those that the
classifier's batch norms stored, total variation and an L2 term, under random shifts. The stored statistics are
of all classes; half of a batch is therefore of the other classes, thrown away in the end, and the two halves are
weighted as if each class came equally often.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

import probegan_losses as losses
from config import setting
from methods.registry import Method, Row, unseen_classes
from methods.synthesis import Synthesis, SynthesisSettings
from utils import UserError

STEPS = 2000  # the paper's, for CIFAR-10


@dataclass(frozen=True)
class DeepInversionSettings(SynthesisSettings):
    """The weights of eq. (2) and (4), and the step."""

    DI_lr: float = setting(0.1, "Adam's learning rate on the pixels", above=0)
    DI_bn: float = setting(1.0, "weight of the distance to the classifier's batch-norm statistics", least=0)
    DI_tv: float = setting(1e-3, "weight of the total variation", least=0)
    DI_l2: float = setting(1e-4, "weight of the pixels' square", least=0)


def total_variation(images):
    """Mean squared difference between neighbouring pixels of images (B, C, H, W)."""
    return (images[:, :, 1:] - images[:, :, :-1]).square().mean() + (images[..., 1:] - images[..., :-1]).square().mean()


class StatisticsGap:
    """Sum over batch norms of |mean - stored mean| + |variance - stored variance| of what enters them (eq. 4).

    A context: inside, each forward pass of `model` leaves its gaps in `terms`. weights (B,): of the images, sum 1.
    """

    def __init__(self, model, weights):
        self.norms = [module for module in model.modules()
                      if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None]
        self.weights, self.terms = weights, []

    def __enter__(self):
        self.handles = [norm.register_forward_pre_hook(self.note) for norm in self.norms]
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def note(self, norm, inputs):
        x = inputs[0].float().flatten(2) if inputs[0].dim() > 2 else inputs[0].float()[..., None]  # (B, C, places)
        mean = self.weights @ x.mean(2)  # (C,)
        variance = self.weights @ (x - mean[:, None]).square().mean(2)
        self.terms.append((mean - norm.running_mean).norm() + (variance - norm.running_var).norm())


class DeepInversion(Synthesis):
    """The interface of Synthesis. Raises UserError for a classifier without batch norms."""

    def __init__(self, method, config, spec, device, state=None):
        super().__init__(method, config, spec, device, state)
        if not StatisticsGap(self.C.model, None).norms:
            raise UserError(f"--method deep_inversion needs the batch-norm statistics of the classifier, and "
                            f"{config.C_path} has no batch norm; choose another --method or another classifier.")
        self.others = torch.tensor([y for y in range(len(spec.classes)) if self.C.labels[y] >= 0], device=device)

    def synthesise(self, labels):
        own, n = self.config.own, len(labels)
        others = self.others[self.others != labels[0]]
        y = torch.cat((labels, others[torch.arange(n, device=self.device) % len(others)]))
        share = 1 / (len(others) + 1)
        weights = torch.cat((torch.full((n,), share / n), torch.full((n,), (1 - share) / n))).to(self.device)
        shape = (2 * n, self.spec.channels, self.spec.resolution, self.spec.resolution)
        x = torch.randn(shape, device=self.device).clamp_(-1, 1).requires_grad_()
        optimiser = torch.optim.Adam([x], own.DI_lr)
        reach = self.spec.resolution // 16
        with StatisticsGap(self.C.model, weights) as gap:
            for _ in range(own.synthesis_steps or STEPS):
                shift = torch.randint(-reach, reach + 1, (2,)).tolist()
                shown = x.roll(shift, (2, 3))
                if self.spec.mirror and torch.rand(()) < 0.5:
                    shown = shown.flip(3)
                gap.terms.clear()
                total = F.cross_entropy(self.C(shown), self.task.C_labels[y]) + own.DI_bn * sum(gap.terms)
                total = total + own.DI_tv * total_variation(x) + own.DI_l2 * losses.output_penalty(x)
                optimiser.zero_grad()
                total.backward()
                optimiser.step()
                with torch.no_grad():
                    x.clamp_(-1, 1)
        return x.detach()[:n]


METHOD = Method("deep_inversion", "DeepInversion", __doc__, DeepInversionSettings, training=DeepInversion,
                fed=unseen_classes, conditional=False, rows=(Row(
                    "deep_inversion", "DeepInversion", "--method deep_inversion --num_images {num} --save_every 1"),))
