"""Presence: in how many images is the value of an attribute to be seen, as water behind a bird.

Three scorers are trained on real images in which the attribute is as frequent in each class, so that the class is no
cue: `whole`, a small network; `ring`, the same with the centre of the image greyed, which hides most of the object;
`histogram`, logistic regression on coarse colours. Their sensitivity and specificity, by class, are counted on other
real images, and the rate that they find among generated ones is corrected for both (Rogan and Gladen, "Estimating
prevalence from the results of a screening test", 1978). Where the three disagree in order, none is to be believed.

A scorer may err otherwise on generated images than on real ones. So both rates may be counted on fakes too: of runs
that were shown images of one value alone, and so can have drawn no other.
"""

import hashlib
import io
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import norm
from torch.nn import functional as F

from classifiers import build
from classifiers.groups import BATCH, Objective, groups_of_two, rate
from classifiers.train import one_cycle
from datasets import open_source, read_all
from datasets.attributes import attributes_of, find_attribute, parse_only
from layers import shift
from metrics.intervals import LEVEL
from metrics.statistics import kept_at
from utils import DATASETS, ROOT, UserError, find_dataset, load_torch, nearest, save_torch, to_unit_range

SCORERS = ("whole", "ring", "histogram")
BY_FAKES = "_by_fakes"  # after a scorer's name: calibrated on fakes
TRAINED_ON, CALIBRATED_ON = "scorer", "calibration"  # splits of real images that no probed classifier was trained on
CENTRE = 5 / 8  # of the side, greyed for `ring`
STEPS, BATCH_SIZE, LR = 1200, 64, 0.05
BINS = 4  # of each colour in the histogram
LAYOUT = 1  # of the stored scorers


@dataclass(frozen=True)
class Labelled:
    """Images uint8 (N, C, H, W), their classes (N,), and whether each has the value, bool (N,)."""

    images: torch.Tensor
    labels: torch.Tensor
    present: torch.Tensor


def load_labelled(dataset, data_root, split, name, value):
    """The Labelled images of a split by the attribute `name`. Raises UserError for an attribute, or a value, that is
    unknown, and where a class has no image with it or none without."""
    spec = DATASETS[find_dataset(dataset)[0]]
    source = open_source(spec, data_root, split)
    where = f"the {split} split of {dataset}"
    attribute = find_attribute(attributes_of(source)[0], name, where)
    if value not in attribute.values:
        raise UserError(f"the attribute '{name}' of {where} has no value '{value}' "
                        f"({nearest(value, attribute.values)}).")
    present = attribute.mask(value)
    for label in source.labels.unique().tolist():
        own = present[source.labels == label]
        if own.all() or not own.any():
            raise UserError(f"every image of {spec.classes[label]} in {where} is {'' if own.all() else 'not '}of "
                            f"{name} {value}, so that a scorer could not tell the value from the class; give images "
                            "with and without it.")
    return Labelled(read_all(source, torch.arange(len(source))), source.labels, present)


def known_fakes(runs, dataset, name, value):
    """The Labelled fakes of runs that were shown images of one value of the attribute `name` alone.

    runs: {path: (the run's settings as plain values, its metrics.images.RunImages)}. Raises UserError for runs whose
    fakes' value is not known, and where a class that they were shown is missing with the value, or without it.
    """
    spec, parts = DATASETS[find_dataset(dataset)[0]], {}
    for path, (config, images) in runs.items():
        if config["dataset"] != dataset:
            raise UserError(f"--presence_calibration {path} draws {config['dataset']}, not {dataset}; give runs of one "
                            "data set.")
        only = parse_only(config.get("only", ()))
        if name not in only:
            raise UserError(f"--presence_calibration {path} was shown images of every {name}, so that what its fakes "
                            f"hold is not known; give runs with --oracle --only {name}=VALUE.")
        for label in images.drawn:
            if label not in images.left_out:
                parts.setdefault((label, only[name] == value), []).append(images.read(label, 0, images.num))
    for label, of in enumerate(spec.classes):
        for present in (True, False):
            if (label, present) not in parts:
                raise UserError(f"--presence_calibration has no fakes of {of} {'with' if present else 'without'} "
                                f"{name} {value}; give a run with --oracle --only {name}="
                                f"{value if present else 'ANOTHER'} for them.")
    counts = [sum(map(len, part)) for part in parts.values()]
    labels, present = (torch.tensor(column).repeat_interleave(torch.tensor(counts))
                       for column in zip(*parts, strict=True))
    return Labelled(torch.cat([images for part in parts.values() for images in part]), labels, present)


# --------------------------------------------------------------------------------------- the scorers


def greyed(x):
    """Images (B, C, H, W) in [-1, 1] with the centre, CENTRE of each side, mid-grey."""
    side = x.shape[-1]
    edge = round(side * (1 - CENTRE) / 2)
    x = x.clone()
    x[:, :, edge:side - edge, edge:side - edge] = 0
    return x


def histogram(images):
    """Shares of the BINS^C colours of each uint8 image (N, C, H, W): float32 (N, BINS^C), square roots of them."""
    levels = images.long() * BINS // 256  # (N, C, H, W)
    codes = sum(levels[:, c] * BINS**c for c in range(images.shape[1])).flatten(1)  # (N, H * W)
    counts = torch.zeros(len(images), BINS**images.shape[1]).scatter_add_(1, codes, torch.ones(codes.shape))
    return (counts / codes.shape[1]).sqrt()


def recompressed(image, quality):
    """A uint8 image (C, H, W) after JPEG."""
    file, pixels = io.BytesIO(), image.permute(1, 2, 0).squeeze(2).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    pixels = np.array(Image.open(file))
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def degraded(images, generator):
    """uint8 images (B, C, H, W) as a generator might draw them, in [-1, 1]: shifted and mirrored, and each fifth of
    them blurred, noisy, of half the resolution, recompressed, or as it is."""
    images = shift(images, images.shape[2] // 16, fill=0, generator=generator)
    mirror = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirror[:, None, None, None], images.flip(3), images)
    kind = torch.randint(5, (len(images),), generator=generator)
    qualities = torch.randint(30, 95, (len(images),), generator=generator).tolist()
    images = torch.stack([recompressed(image, quality) if k == 3 else image
                          for image, k, quality in zip(images, kind.tolist(), qualities, strict=True)])
    x = to_unit_range(images)
    versions = (F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1),
                x + 0.15 * torch.randn(x.shape, generator=generator),
                F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear"))
    for k, version in enumerate(versions):
        x = torch.where((kind == k)[:, None, None, None], version, x)
    return x


def train_network(data, hide_centre, seed):
    """A smallcnn that tells whether the value is present, trained with each class x presence equally often."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build("smallcnn", 2, data.images.shape[1])
    groups = groups_of_two(data.labels, data.present)
    objective = Objective("reweight", len(groups), groups, int(groups.max()) + 1)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64)
    targets = data.present.long()
    for step in range(STEPS):
        if len(order) < BATCH_SIZE:
            order = torch.cat([order, objective.order(generator)])
        rows, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        x = degraded(data.images[rows], generator)
        loss = F.cross_entropy(model(greyed(x) if hide_centre else x), targets[rows], label_smoothing=0.05)
        for group in optimizer.param_groups:
            group["lr"] = LR * one_cycle((step + 1) / STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def train_histogram(data):
    """(weight (F,), bias) of logistic regression on `histogram`, each class x presence of equal weight."""
    from sklearn.linear_model import LogisticRegression

    groups = groups_of_two(data.labels, data.present)
    weights = 1 / torch.bincount(groups)[groups].double()
    model = LogisticRegression(C=10, max_iter=1000)
    model.fit(histogram(data.images).numpy(), data.present.numpy(), sample_weight=weights.numpy() * len(groups))
    return torch.from_numpy(model.coef_[0]).float(), float(model.intercept_[0])


class Scorers:
    """The three scorers of one value of an attribute, trained on Labelled images; on the CPU."""

    def __init__(self, state):
        self.state = state
        self.networks = {}
        for name in ("whole", "ring"):
            self.networks[name] = build("smallcnn", 2, state["channels"])
            self.networks[name].load_state_dict(state[name])
            self.networks[name].eval()

    @classmethod
    def trained(cls, data, seed=0):
        weight, bias = train_histogram(data)
        return cls({"whole": train_network(data, False, seed).state_dict(), "weight": weight, "bias": bias,
                    "ring": train_network(data, True, seed + 1).state_dict(), "channels": data.images.shape[1]})

    @torch.no_grad()
    def says(self, images):
        """{scorer: whether the value is seen in each uint8 image (N, C, H, W), bool (N,)}."""
        found = {name: [] for name in SCORERS}
        for part in images.split(BATCH):
            x = to_unit_range(part)
            found["whole"].append(self.networks["whole"](x).argmax(1) == 1)
            found["ring"].append(self.networks["ring"](greyed(x)).argmax(1) == 1)
            found["histogram"].append(histogram(part) @ self.state["weight"] + self.state["bias"] > 0)
        return {name: torch.cat(parts) for name, parts in found.items()}


# ---------------------------------------------------------------------------------- rates, corrected


def rogan_gladen(found, sensitivity, specificity):
    """The share of images that have the value, {'rate', 'low', 'high', 'of'}, from the share in which it is found.

    found, sensitivity, specificity: rates as classifiers.groups.rate gives them. (r + sp - 1) / (se + sp - 1) within
    [0, 1]; interval by the delta method, over the luck of all three counts. Rate and ends are None where the scorer
    is no better than chance.
    """
    r, se, sp = (share["rate"] for share in (found, sensitivity, specificity))
    gain = se + sp - 1
    if gain <= 0:
        return {"rate": None, "low": None, "high": None, "of": found["of"]}
    value = (r + sp - 1) / gain
    p = min(1.0, max(0.0, value))

    def variance(share):
        # of a rate with two successes and two failures more (Agresti and Coull), so that 0 and 1 have one too
        count = share["of"] + 4
        smoothed = (share["rate"] * share["of"] + 2) / count
        return smoothed * (1 - smoothed) / count

    spread = variance(found) + p**2 * variance(sensitivity) + (1 - p)**2 * variance(specificity)
    half = norm.ppf((1 + LEVEL) / 2) * math.sqrt(spread) / gain
    low, high = (min(1.0, max(0.0, end)) for end in (value - half, value + half))
    return {"rate": p, "low": low, "high": high, "of": found["of"]}


def calibrate(scorers, data):
    """{scorer: {label: {'sensitivity', 'specificity'}}} on Labelled images, each a rate."""
    found = {}
    for name, seen in scorers.says(data.images).items():
        found[name] = {}
        for label in data.labels.unique().tolist():
            own, present = seen[data.labels == label], data.present[data.labels == label]
            found[name][label] = {"sensitivity": rate(own[present].sum(), present.sum()),
                                  "specificity": rate((~own[~present]).sum(), (~present).sum())}
    return found


class Presence:
    """Measures in how many images the value of an attribute is seen: trained scorers, calibrated by class.

    text: 'place=water'. The scorers are kept beside the data set, or in the folder `out`, by the data and the settings
    that made them. runs: as known_fakes takes them, to calibrate on fakes too. Raises UserError as load_labelled and
    known_fakes do.
    """

    def __init__(self, text, dataset, data_root, out=None, runs=None):
        self.name, _, self.value = text.partition("=")
        if not self.name or not self.value:
            raise UserError(f"--presence '{text}' names no attribute and value; give both, as in place=water.")
        train = load_labelled(dataset, data_root, TRAINED_ON, self.name, self.value)
        self.scorers = stored_scorers(train, dataset, data_root, out)
        self.calibration = calibrate(
            self.scorers, load_labelled(dataset, data_root, CALIBRATED_ON, self.name, self.value))
        if runs:
            by_fakes = calibrate(self.scorers, known_fakes(runs, dataset, self.name, self.value))
            self.calibration |= {name + BY_FAKES: known for name, known in by_fakes.items()}

    def rates(self, images, label):
        """{scorer: {'found', 'corrected', 'sensitivity', 'specificity'}} of uint8 images of one class; calibrated on
        fakes, where there are any, under '<scorer>_by_fakes'."""
        result, says = {}, self.scorers.says(images)
        for name, known in self.calibration.items():
            seen = says[name.removesuffix(BY_FAKES)]
            found, known = rate(seen.sum(), len(seen)), known[label]
            result[name] = {"found": found, "corrected": rogan_gladen(found, **known), **known}
        return result


def stored_scorers(train, dataset, data_root, out=None):
    """The Scorers trained on these Labelled images, from the file that holds them or else trained and stored."""
    digest = hashlib.sha256(repr((LAYOUT, STEPS, BATCH_SIZE, LR, CENTRE, BINS, train.images.shape)).encode())
    for part in (train.images, train.labels, train.present):
        digest.update(part.contiguous().numpy())
    folder = Path(data_root) / DATASETS[find_dataset(dataset)[0]].folder
    path = kept_at(folder if folder.exists() else ROOT / folder, f"presence_{digest.hexdigest()[:16]}.pt", out)
    if path.is_file():
        return Scorers(load_torch(path))
    scorers = Scorers.trained(train)
    try:
        save_torch(path, scorers.state)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
    return scorers
