"""Images from the classifier alone (Santurkar et al., "Image synthesis with a single (robust) classifier", 2019).

A seed drawn from a Gaussian over coarse images follows the classifier's gradient towards y* within an L2 ball. The
paper fits a Gaussian to each class; y* has no images here, so it is fitted to all seen classes together.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from classifiers.attacks import pgd
from config import setting
from datasets.sources import read_all
from methods.registry import Method, Row, unseen_classes
from methods.synthesis import Synthesis, SynthesisSettings

STEPS = 60  # the paper's, for CIFAR-10
COARSE = 8  # height and width of the images that the Gaussian is fitted to
MOST = 10_000  # images that it is fitted to


@dataclass(frozen=True)
class RobustSynthesisSettings(SynthesisSettings):
    """The ball."""

    PGD_eps: float = setting(30.0, "L2 distance that an image may go from its seed, on [0,1] pixels", above=0)


class RobustSynthesis(Synthesis):
    """Targeted L2 PGD from seeds of no class; the interface of Synthesis."""

    def __init__(self, method, config, spec, device, state=None):
        super().__init__(method, config, spec, device, state)
        indices = self.stream.indices
        chosen = indices[torch.linspace(0, len(indices) - 1, min(MOST, len(indices))).long()]
        images = read_all(self.stream.source, chosen)
        self.stream.guard.check(images, self.stream.source.labels[chosen])
        coarse = F.adaptive_avg_pool2d(images.float() / 255, COARSE).flatten(1).double()  # (N, C * 8 * 8)
        self.mean = coarse.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(coarse.T))
        self.root = vectors * values.clamp(min=0).sqrt()

    def seeds(self, count):
        """Images (count, C, H, W) in [0, 1] of the seen classes' coarse look."""
        noise = torch.randn(count, len(self.mean), dtype=torch.float64)
        coarse = (self.mean + noise @ self.root.T).float().view(count, self.spec.channels, COARSE, COARSE)
        size = (self.spec.resolution, self.spec.resolution)
        return F.interpolate(coarse, size, mode="bilinear").clamp(0, 1).to(self.device)

    def synthesise(self, labels):
        own = self.config.own
        images = pgd(self.C.logits01, self.seeds(len(labels)), self.task.C_labels[labels], "l2", own.PGD_eps,
                     own.synthesis_steps or STEPS, random_start=False, targeted=True)
        return 2 * images - 1


METHOD = Method("robust_synthesis", "classifier synthesis", __doc__, RobustSynthesisSettings, training=RobustSynthesis,
                fed=unseen_classes, conditional=False, rows=(Row(
                    "robust_synthesis", "classifier synthesis",
                    "--method robust_synthesis --num_images {num} --save_every 1"),))
