"""The collapse watch: does the generator still draw different images of each class?

Cheap enough for every save: a few images a class from fixed seeds, seen through the probed classifier, which a run
holds anyway. A figure is given as its ratio to that of as many real images of the class, so that it has no unit. For
a class without real images in the set (the unseen one), and for one whose real images are alike, the mean over the
other classes stands in for them.
"""

import math

import torch

from datasets.stream import seen_images
from metrics.distances import effective_rank

PER_CLASS = 32
FIRST_SEED = 2**41  # far from the seeds of grids, of measurements and of standing statistics
BATCH = 100
# Two images are duplicates where both their distances, in pixels and in features, are below this share of the median
# distance from a real image to its nearest neighbour.
NEAR = 0.1
# A class has collapsed where both mean distances, in pixels and in features, are below this share of the real ones,
# or where more than that share of its images have a duplicate. Classes that a person calls one picture had 0.30 to
# 0.52 on digits. Real classes, beside the mean of the others (as y* stands): at least 0.70 and 0.75 on digits (the 0),
# 0.58 and 0.67 on MNIST (the 1), 0.81 and 0.86 on CIFAR-10; a class beside another draw of itself: at least 0.78. The
# effective rank and D's gap are shown, not judged: noise has a high rank, and D's scale is its own.
LEAST_DISTANCE, MOST_DUPLICATES = 0.5, 0.5


@torch.no_grad()
def classified(classifier, images, device):
    """Features (N, F) and logits (N, K) of images on the CPU, in batches; both on the CPU."""
    parts = [classifier.features_and_logits(part.to(device)) for part in images.split(BATCH)]
    return tuple(torch.cat(part).cpu() for part in zip(*parts, strict=True))


@torch.no_grad()
def naturalness(D, images, device):
    """D_u (N,) of images on the CPU, in float64; D's singular vectors are not advanced."""
    was_training = D.training
    D.eval()
    scores = torch.cat([D(part.to(device))[1].cpu() for part in images.split(BATCH)]).double()
    D.train(was_training)
    return scores


def distances(vectors):
    """Euclidean distances (n, n) in float64 between the rows of (n, ...); infinite from a row to itself."""
    flat = vectors.flatten(1).double()
    # the faster way by matrix products does not give 0 for equal rows
    apart = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.fill_diagonal_(math.inf)


class Spread:
    """How different images (n, C, H, W) with features (n, F) are from each other.

    by_name: the mean distance and the median distance to the nearest other image, in pixels and in features,
    and the effective rank of the features. NaN for a single image.
    """

    def __init__(self, images, features):
        self.pixels, self.features = distances(images), distances(features)
        self.by_name = {"effective_rank": effective_rank(features)}
        for name, apart in (("pixel", self.pixels), ("feature", self.features)):
            self.by_name[f"{name}_distance"] = apart[apart.isfinite()].mean().item()
            nearest = apart.min(1).values.median().item()
            self.by_name[f"{name}_nearest"] = nearest if math.isfinite(nearest) else math.nan

    def duplicates(self, real):
        """The share of images with a duplicate among the others; `real`: by_name of real images."""
        near = (self.pixels < NEAR * real["pixel_nearest"]) & (self.features < NEAR * real["feature_nearest"])
        return near.any(1).double().mean().item()


def plain(value):
    """A float with four significant digits, as JSON takes it: None for NaN."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


class CollapseWatch:
    """Looks at the classes that a generator draws.

    classifier: the probed FrozenClassifier, never the evaluator. stream: the run's ImageStream. classes: names;
    unseen: labels of y*; C_labels: the classifier's label of each class, negative where it has none. The real images
    are read once.
    """

    def __init__(self, classifier, stream, classes, unseen, C_labels, device):
        self.classifier, self.classes, self.unseen, self.C_labels = classifier, classes, unseen, C_labels
        self.device = device
        images = seen_images(stream, unseen, PER_CLASS)
        self.real_images = torch.cat(list(images.values()))
        real = {y: Spread(x, classified(classifier, x, device)[0]).by_name for y, x in images.items()}
        self.real = {y: figures for y, figures in real.items() if all(value > 0 for value in figures.values())}
        self.typical = {name: sum(figures[name] for figures in self.real.values()) / len(self.real) if self.real
                        else math.nan for name in next(iter(real.values()))}

    def look(self, sampler, D):
        """The record of one save, for a line of collapse.jsonl.

        sampler: a sample.Sampler or ImageBank; D: the discriminator, None where there is none. Nothing random is drawn.
        'classes' holds, for each class drawn, feature_distance, pixel_distance and effective_rank as ratios to the
        real ones, 'duplicates' (a share), D_gap = mean D_u(real seen images) - mean D_u(fakes of the class), and
        'activation', the probed classifier's mean probability of the class; None where there is none.
        'warnings' holds a sentence for each class that has collapsed, 'collapsed' their names.
        """
        D_real = naturalness(D, self.real_images, self.device).mean() if D else None
        record = {"step": sampler.step, "images_per_class": PER_CLASS, "classes": {}, "collapsed": [], "warnings": []}
        for y in sampler.drawn:
            images = sampler.class_images(y, range(FIRST_SEED, FIRST_SEED + PER_CLASS))
            features, logits = classified(self.classifier, images, self.device)
            spread, real = Spread(images, features), self.real.get(y, self.typical)
            figures = {name: spread.by_name[name] / real[name]
                       for name in ("feature_distance", "pixel_distance", "effective_rank")}
            known = logits.double().softmax(1)[:, self.C_labels[y]] if self.C_labels[y] >= 0 else torch.tensor(math.nan)
            figures |= {"duplicates": spread.duplicates(real), "activation": known.mean().item(),
                        "D_gap": (D_real - naturalness(D, images, self.device).mean()).item() if D else math.nan}
            record["classes"][self.classes[y]] = {name: plain(value) for name, value in figures.items()}
            if has_collapsed(figures):
                record["collapsed"].append(self.classes[y])
                record["warnings"].append(self.sentence(y, figures))
        return record

    def sentence(self, y, figures):
        name = f"{self.classes[y]} (unseen)" if y in self.unseen else self.classes[y]
        return (f"class {name} has collapsed: its images lie {figures['feature_distance']:.1%} (features) and "
                f"{figures['pixel_distance']:.1%} (pixels) as far apart as real ones, and "
                f"{figures['duplicates']:.0%} of them are near-duplicates.")


def has_collapsed(figures):
    """The rule of LEAST_DISTANCE and MOST_DUPLICATES; False where there is nothing to compare with (NaN)."""
    alike = figures["feature_distance"] < LEAST_DISTANCE and figures["pixel_distance"] < LEAST_DISTANCE
    return alike or figures["duplicates"] > MOST_DUPLICATES
