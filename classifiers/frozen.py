"""The classifier as ProbeGAN sees it: frozen, in eval mode, fed with images in [-1, 1]."""

import hashlib

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from classifiers.answers import Answers, flat_if
from utils import UserError

# ITU-R BT.601 luma, as in Pillow's convert("L")
LUMINANCE = (0.299, 0.587, 0.114)


class FrozenClassifier(nn.Module):
    """Images in [-1, 1] (B, 1 or 3, H, W) of any size -> float32 logits (B, num_classes).

    `model` takes images (B, channels, resolution, resolution) in [0, 1], normalised by `mean` and `std`
    (one number a channel, in the order of its channels); resolution 0 means any; bgr: it takes blue first.
    Stays in eval mode; no parameter takes a gradient, the images do. `arch`, `classes` (names in label order),
    `role` ('evaluator' or '') and `card` (how it was trained) are for checks and reports. `labels` says which
    of its labels stands for each class of a data set, -1 for none; the identity unless class_labels set it. `own` is
    what its file says of mean, std, resolution and bgr, where it was loaded with others. `answers` makes logits of
    what the model returns; flat: it takes images flattened, (B, channels * resolution^2). `notes` are sentences on how
    its file was read, `hinted` what that says and was not believed: any of mean, std, resolution, classes.
    """

    def __init__(self, model, num_classes, channels, resolution, mean, std, arch="", classes=(), card=None, role="",
                 bgr=False, answers=None, flat=False):
        super().__init__()
        self.model = model
        self.num_classes, self.channels, self.resolution = num_classes, channels, resolution
        self.arch, self.classes, self.card, self.role, self.bgr = arch, tuple(classes), card or {}, role, bgr
        self.labels = tuple(range(num_classes))
        self.answers, self.flat = answers or Answers(), flat
        self.own, self.notes, self.hinted = {}, [], {}
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode=True):
        """Eval mode whatever `mode` says: a training loop's train() must not move the batch statistics."""
        return super().train(False)

    @torch.no_grad()
    def fold_batch_norms(self, side):
        """Fold each batch norm into the convolution before it: less work, the same logits. side: of the images to come.

        The model stays as it is where torch.fx cannot follow it, as a compiled one or code that branches on its input,
        or where what it says of random images changes by more than rounding.
        """
        shape = (2, self.channels, *[self.resolution or side] * 2)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.mean.device)
        try:
            folded = fuse(self.model).requires_grad_(False)
            given, found = (self.answers(model(flat_if(self.flat, images))) for model in (self.model, folded))
        except Exception:  # the user's code may raise anything when it is traced
            return
        if (given - found).abs().max() <= 1e-3 * given.abs().max():
            self.model = folded

    def forward(self, images):
        return self.logits01((images.float() + 1) / 2)

    def logits01(self, images01):
        """Logits (B, num_classes) of images in [0, 1], the range in which attacks are measured."""
        x = self.resized(self.with_own_channels(images01))
        if self.bgr:
            x = x.flip(1)
        return self.answers(self.model(flat_if(self.flat, (x - self.mean) / self.std)))

    def features_and_logits(self, images):
        """Images in [-1, 1] (B, 1 or 3, H, W) -> (features (B, F), logits (B, num_classes)), both float32.

        The features are what the last linear layer that the model runs is given, flattened; the logits where it runs
        none (a compiled file).
        """
        seen = []
        handles = [module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
                   for module in self.model.modules() if isinstance(module, nn.Linear)]
        try:
            logits = self(images)
        finally:
            for handle in handles:
                handle.remove()
        return seen[-1].float().flatten(1) if seen else logits, logits

    def with_own_channels(self, x):
        """(B, 1 or 3, H, W) -> (B, channels, H, W): grey is repeated, colour becomes luminance."""
        given = x.shape[1]
        if given == self.channels:
            return x
        if given == 1 and self.channels == 3:
            return x.expand(-1, 3, -1, -1)
        if given == 3 and self.channels == 1:
            return sum(weight * x[:, i:i + 1] for i, weight in enumerate(LUMINANCE))
        raise UserError(f"images of {given} channels cannot be shown to a classifier of {self.channels}; "
                        "give images of 1 or 3 channels.")

    def resized(self, x):
        """(B, C, H, W) -> (B, C, resolution, resolution), bilinear; untouched where the size is right."""
        size = (self.resolution, self.resolution)
        if not self.resolution or x.shape[2:] == size:
            return x
        return F.interpolate(x, size, mode="bilinear", antialias=max(x.shape[2:]) > self.resolution)


def fingerprint(model):
    """SHA-256 of a network's weights, in their order, as float16: a copy in another format has the same."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        value = value.detach().cpu().contiguous()
        digest.update((value.half() if value.is_floating_point() else value).numpy().tobytes())
    return digest.hexdigest()
