"""What a frozen classifier's last layer says of images, as vectors that images can be drawn from.

The features are what its last linear layer is given. A FeatureSpace standardises them on the training images and
leaves out the components that never vary; its principal components are the axes that are walked along. A bank holds the
vectors of all training images; the targets that a generator is trained for are drawn from it.
"""

from dataclasses import dataclass

import torch
from torch import nn

from datasets import open_source, read_all
from utils import UserError, to_unit_range

BATCH = 500
DEAD = 1e-3  # share of the median standard deviation below which a component counts as dead
LEVELS = 101  # quantiles of each principal coordinate that are kept, at 0, 1, ..., 100 %


@torch.no_grad()
def require_linear(C, path, side):
    """Raise UserError for a classifier whose logits no linear layer gives, and so without features but its logits.

    side: of the images that it is shown, to see which of its layers runs last.
    """
    ran = []
    handles = [module.register_forward_hook(lambda layer, *_: ran.append(layer.out_features))
               for module in C.model.modules() if isinstance(module, nn.Linear)]
    try:
        C(torch.zeros(1, C.channels, side, side, device=C.mean.device))
    finally:
        for handle in handles:
            handle.remove()
    columns = C.answers.columns
    # one logit stands for two classes, and of many only the columns are kept
    if not ran or (ran[-1] <= max(columns) if columns else ran[-1] not in (1, C.num_classes)):
        raise UserError(f"the classifier {path} has no linear last layer whose inputs could be drawn from; give one "
                        "that ends in torch.nn.Linear, and not as a compiled program.")


@torch.no_grad()
def raw_features(C, batches):
    """(features (N, F), logits (N, K)), float32 on the CPU, of batches of uint8 images (B, C, H, W)."""
    found = [C.features_and_logits(to_unit_range(part.to(C.mean.device))) for part in batches]
    return tuple(torch.cat([said[k].cpu() for said in found]) for k in range(2))


class FeatureSpace:
    """Standardised features of one classifier, as plain tensors; `state()` is all that a checkpoint keeps of it.

    alive (f,): places of the components that vary, of the classifier's F; mean, std (f,): of those on the training
    images; axes (f, f): principal components in columns, the one of largest variance first; quantiles (LEVELS, f): of
    the training images' coordinates along each.
    """

    def __init__(self, alive, mean, std, axes, quantiles):
        self.alive, self.mean, self.std, self.axes, self.quantiles = alive, mean, std, axes, quantiles
        self.least = int(alive.max()) + 1  # components that a classifier has, known here so that no step waits for it

    @classmethod
    def fitted(cls, raw):
        """The space of training images with features `raw` (N, F). Raises UserError where no component varies."""
        spread = raw.double().std(0, correction=0)
        varying = spread[spread > 0]
        if not len(varying):
            raise UserError(f"none of the classifier's {raw.shape[1]} features varies over {len(raw)} images; nothing "
                            "can be drawn from them. Is it trained?")
        alive = (spread > DEAD * varying.median()).nonzero()[:, 0]
        mean, std = raw.double().mean(0)[alive], spread[alive]
        rows = (raw.double()[:, alive] - mean) / std
        variances, axes = torch.linalg.eigh(rows.T @ rows / len(rows))
        axes = axes[:, variances.argsort(descending=True)]
        axes = axes * axes.sum(0).sign().where(axes.sum(0) != 0, 1.0)  # a sign that does not depend on the library
        quantiles = torch.quantile(rows @ axes, torch.linspace(0, 1, LEVELS, dtype=torch.float64), dim=0)
        return cls(alive, *(value.float() for value in (mean, std, axes, quantiles)))

    NAMES = ("alive", "mean", "std", "axes", "quantiles")

    def state(self):
        return {name: getattr(self, name) for name in self.NAMES}

    @classmethod
    def of_state(cls, state):
        return cls(*(state[name] for name in cls.NAMES))

    def to(self, device):
        return FeatureSpace(*(getattr(self, name).to(device) for name in self.NAMES))

    def __len__(self):
        return len(self.alive)

    def standardised(self, raw):
        """Features (B, F) of the classifier -> (B, f), of mean 0 and variance 1 on the training images."""
        if raw.shape[1] < self.least:
            raise UserError(f"features of {raw.shape[1]} components were given, and these were fitted on at least "
                            f"{self.least}; give the classifier that the checkpoint was made with.")
        return (raw[:, self.alive] - self.mean) / self.std

    def of(self, C, images):
        """(features (B, f), logits (B, K)) of images (B, C, H, W) in [-1, 1]; a gradient reaches the images."""
        raw, logits = C.features_and_logits(images)
        return self.standardised(raw), logits

    def coordinates(self, f, count):
        """Features (..., f) -> coordinates (..., count) along the first principal components."""
        return f @ self.axes[:, :count]

    def require_component(self, component):
        if not 0 <= component < len(self):
            raise UserError(f"principal component {component} does not exist; the classifier's features have "
                            f"components 0 to {len(self) - 1}.")

    def quantile(self, component, share):
        """The training images' quantile (a share in [0, 1]) of a principal coordinate. Raises UserError."""
        self.require_component(component)
        if not 0 <= share <= 1:
            raise UserError(f"quantile {share} is no share; give one from 0 to 1, such as 0.9.")
        place = share * (LEVELS - 1)
        low = min(int(place), LEVELS - 2)
        return torch.lerp(self.quantiles[low, component], self.quantiles[low + 1, component], place - low)

    def moved(self, f, component, value):
        """Copies of features (B, f) with one principal coordinate set to `value`, a number or (B,); all else is kept.

        What lies outside of the other components is kept too: nothing is projected.
        """
        self.require_component(component)
        axis = self.axes[:, component]
        return f + (value - f @ axis)[:, None] * axis


@dataclass(frozen=True)
class Bank:
    """All training images as vectors: f (N, f) standardised, predicted (N,) the classifier's labels, on one device."""

    space: FeatureSpace
    f: torch.Tensor
    predicted: torch.Tensor

    @classmethod
    def of(cls, C, stream):
        """The Bank of the images of an ImageStream, as they are without augmentation, on the classifier's device."""
        return cls.of_images(C, stream.images.split(BATCH) if stream.resident else
                             (stream.source.read(rows) for rows in stream.indices.split(BATCH)))

    @classmethod
    def of_images(cls, C, batches):
        """The Bank of batches of uint8 images (B, C, H, W), on the classifier's device."""
        raw, logits = raw_features(C, batches)
        space, device = FeatureSpace.fitted(raw), C.mean.device
        return cls(space.to(device), space.standardised(raw).to(device), logits.argmax(1).to(device))

    def class_means(self):
        """Mean features (K, f) of the images of each predicted label, the mean of all, 0, for one never predicted."""
        K = int(self.predicted.max()) + 1
        sums = torch.zeros(K, len(self.space), device=self.f.device).index_add_(0, self.predicted, self.f)
        return sums / torch.bincount(self.predicted, minlength=K).clamp(min=1)[:, None]


def kept_features(C, space, spec, data_root, labels, per_class):
    """What a checkpoint keeps to draw from: held-out images of each label, with what the classifier says of them.

    {"images": uint8 (n, C, H, W), "labels" (n,) the data set's, "predicted" (n,) the classifier's, "f": (n, f)}, at
    most per_class of a label, chosen at random, of the test split where there is one.
    """
    try:
        source = open_source(spec, data_root, "test")
    except UserError:
        source = open_source(spec, data_root, "train")
    order = torch.randperm(len(source.labels), generator=torch.Generator().manual_seed(0))
    rows = torch.cat([order[source.labels[order] == y][:per_class] for y in labels])
    images = read_all(source, rows)
    raw, logits = raw_features(C, images.split(BATCH))
    return {"images": images, "labels": source.labels[rows], "predicted": logits.argmax(1),
            "f": space.to("cpu").standardised(raw)}


def draw_targets(bank, own, own_share, changed_share, components=10):
    """Targets for a batch: (features (B, f), is_own (B,) floats).

    own (B, f): the images' own features, which a share `own_share` of the rows keeps. The others get those of training
    images; in a share `changed_share` of all rows these are changed: half become a mixture of two images, half get the
    coordinate of a third along one of the first principal components, so that walks are trained for.
    """
    n, device, space = len(own), own.device, bank.space
    f, mate = bank.f[torch.randint(len(bank.f), (2, n), device=device)]
    kind = torch.rand(n, device=device)[:, None]
    weight = torch.rand(n, 1, device=device)
    axis = space.axes[:, torch.randint(min(components, len(space)), (n,), device=device)].T  # (B, f)
    moved = f + ((mate - f) * axis).sum(1, keepdim=True) * axis
    is_own = kind < own_share
    f = torch.where(kind > 1 - changed_share / 2, torch.lerp(f, mate, weight), f)
    f = torch.where((kind > 1 - changed_share) & (kind <= 1 - changed_share / 2), moved, f)
    return torch.where(is_own, own, f), is_own[:, 0].float()
