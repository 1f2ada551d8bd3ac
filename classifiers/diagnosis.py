"""Why a classifier does badly: other ways of loading it, tried on images, and the smallest change that explains it.

Ranges, normalisations, channel orders, sizes and class orders are tried, alone and together. A change is named only
where the images show it: its accuracy, at a level of confidence that allows for the number of ways tried, must lie
above the present one and above what a network that always gives one answer would reach.
"""

import time
from itertools import product

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from tqdm import tqdm

from classifiers.files import flag
from classifiers.frozen import FrozenClassifier
from utils import to_unit_range

PIXELS = 2**20  # shown to a network at once: 250 images of 64 x 64, 20 of 224 x 224
BATCH = 250
TRIED = 500  # images that the most promising ways are tried on
FIRST = 100  # and that all ways are
PROMISING = 4
EXPLAINED = 0.8  # accuracy from which other sizes are no longer tried
FEWEST = 20  # images, below which nothing is advised
SECONDS = 60.0  # after which no further way is tried
# usual (mean, std) of colour and of grey images in [0, 1]
USUAL = {3: [([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),  # ImageNet
             ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])],  # CIFAR-10
         1: [([0.1307], [0.3081])]}  # MNIST
SIDES = {3: (32, 64, 128, 224), 1: (28, 32)}


# ---------------------------------------------------------------------------------- evidence


def interval(hits, n, level=0.95):
    """(low, high) of a share, `hits` of n: Wilson's interval (1927)."""
    found = binomtest(int(hits), int(n)).proportion_ci(level, "wilson")
    return float(found.low), float(found.high)


def chance(labels):
    """The share that a network would have right that always gives the answer which is commonest among labels (N,)."""
    return labels.bincount().max().item() / len(labels)


def batch_size(frozen, images):
    """How many images (N, C, H, W) to show at once."""
    side = max(frozen.resolution, 0 if frozen.resolution else images.shape[2])
    return max(1, min(BATCH, PIXELS // side**2))


@torch.no_grad()
def logits_of(frozen, images, seconds=float("inf"), text=""):
    """float32 logits (n, K) of uint8 images (N, C, H, W), on the CPU.

    n is N, unless that takes longer than `seconds`: then of as many of the first as were done by then. A bar with
    `text` appears if it takes seconds.
    """
    device, found, began = frozen.mean.device, [], time.monotonic()
    with tqdm(total=len(images), desc=text, unit="image", delay=2, leave=False, disable=None if text else True) as bar:
        for part in images.split(batch_size(frozen, images)):
            found.append(frozen(to_unit_range(part.to(device))).cpu())
            bar.update(len(part))
            if time.monotonic() - began > seconds:
                break
    return torch.cat(found)


# ------------------------------------------------------------------------------- ways of loading


def rewrapped(frozen, **changes):
    """The same network behind other settings of the wrapper."""
    own = {"channels": frozen.channels, "resolution": frozen.resolution, "mean": frozen.mean.flatten().tolist(),
           "std": frozen.std.flatten().tolist(), "bgr": frozen.bgr, "answers": frozen.answers, "flat": frozen.flat}
    other = FrozenClassifier(frozen.model, frozen.num_classes, **(own | changes)).to(frozen.mean.device)
    other.labels = frozen.labels
    return other


def numbers(values):
    return " ".join(f"{value:.4g}" for value in values)


def normalisations(frozen, images, role):
    """(cause, flags, changes of the wrapper) for each other range and normalisation that a network may want."""
    channels, mean, std = frozen.channels, frozen.mean.flatten(), frozen.std.flatten()

    def given(means, stds):
        return f"{flag(role, 'mean')} {numbers(means)} {flag(role, 'std')} {numbers(stds)} {flag(role, 'range')}"

    if {"mean", "std"} <= frozen.hinted.keys() and len(frozen.hinted["mean"]) == len(frozen.hinted["std"]) == channels:
        hinted = frozen.hinted["mean"], frozen.hinted["std"]
        yield ("normalisation, which its file names", f"{given(*hinted)} 0 1", {"mean": hinted[0], "std": hinted[1]})
    plain = [0] * channels, [1] * channels
    yield "normalisation", f"{given(*plain)} 0 1", {"mean": [0.0] * channels, "std": [1.0] * channels}
    yield "range", f"{given(*plain)} -1 1", {"mean": [0.5] * channels, "std": [0.5] * channels}
    yield "range", f"{given(*plain)} 0 255", {"mean": [0.0] * channels, "std": [1 / 255] * channels}
    yield ("range, black for white", f"{given(mean, std)} 1 0", {"mean": (1 - mean).tolist(), "std": (-std).tolist()})
    pixels = images.float().transpose(0, 1).flatten(1) / 255
    own = [(pixels.mean(1).tolist(), pixels.std(1).tolist())] if len(pixels) == channels else []
    for usual in USUAL[channels] + own:
        yield "normalisation", f"{given(*usual)} 0 1", {"mean": usual[0], "std": usual[1]}


def ways_of(frozen, images, role="C"):
    """(ways of the present size, ways of other sizes): (causes, flags, changes) of each in which a network may want its
    images, the cheap ones first.

    causes: a tuple of words, one a change. Without causes: as it is. With another size the order of channels stays.
    """
    usual = [((cause,), flags, changes) for cause, flags, changes in normalisations(frozen, images, role)]
    if frozen.own:
        left_out = ", ".join(flag(role, name) for name in ("mean", "std", "size", "range"))
        usual.insert(0, (("flags given",), f"{left_out} and {flag(role, 'bgr')} left out", frozen.own))
    usual.insert(0, ((), "", {}))
    sides = sorted({images.shape[2], *SIDES[frozen.channels]} - {frozen.resolution or images.shape[2]})
    sizes = [(("image size",), f"{flag(role, 'size')} {side}", {"resolution": side}) for side in sides
             if not frozen.flat]
    bgr_flag = flag(role, "bgr").replace("--", "--no-") if frozen.bgr else flag(role, "bgr")
    orders = [((), "", {})]
    if frozen.channels == 3:
        orders.append((("channel order",), bgr_flag, {"bgr": not frozen.bgr}))

    def together(*groups):
        found = []
        for parts in product(*groups):
            causes = tuple(cause for part in parts for cause in part[0])
            if "flags given" not in causes or len(causes) == 1:  # those hold a size and an order of their own
                changes = {key: value for part in parts for key, value in part[2].items()}
                found.append((causes, " ".join(part[1] for part in parts if part[1]), changes))
        return sorted(found, key=lambda way: way[2].get("resolution", 0)) if groups[1] is sizes else found

    return together(usual, orders), together(usual, sizes)


def best_order(predicted, labels, frozen):
    """The classifier's label of each class, in the one-to-one map that fits predictions (N,) to labels (N,) best."""
    classes = len(frozen.labels)
    counts = np.zeros((classes, frozen.num_classes))
    np.add.at(counts, (labels.numpy(), predicted.numpy()), 1)
    # the classes without images keep their label where they can
    counts[np.arange(classes), np.clip(frozen.labels, 0, None)] += 1e-6
    return torch.from_numpy(linear_sum_assignment(-counts)[1])


def reordered_hits(predicted, labels, frozen):
    """Which predictions (N,) are right under the class order that fits the other half of them best; bool (N,)."""
    hits, first = torch.zeros(len(labels), dtype=torch.bool), torch.arange(len(labels)) % 2 == 0
    for half in (first, ~first):
        hits[half] = best_order(predicted[~half], labels[~half], frozen)[labels[half]] == predicted[half]
    return hits


class Way:
    """One way of loading a network, and which of the images it classified rightly, with and without another order."""

    def __init__(self, frozen, causes, flags, changes):
        self.frozen, self.causes, self.flags, self.changes = frozen, causes, flags, changes
        self.hits, self.reordered, self.predicted, self.labels = None, None, None, None

    def try_on(self, images, labels, seconds):
        """Classify uint8 images (N, C, H, W), or as many as these seconds allow. Returns whether it takes them."""
        try:
            self.predicted = logits_of(rewrapped(self.frozen, **self.changes), images, seconds).argmax(1)
        except Exception:  # foreign code refuses in many ways
            return False
        self.labels = labels[:len(self.predicted)]
        self.hits = self.predicted == torch.tensor(self.frozen.labels)[self.labels]
        if len(self.frozen.labels) <= self.frozen.num_classes:
            self.reordered = reordered_hits(self.predicted, self.labels, self.frozen)
        return True

    def found(self, role):
        """(hits, number of changes, cause, flags, labels) without and with another class order."""
        yield self.hits, len(self.causes), " and ".join(self.causes), self.flags, self.labels
        if self.reordered is not None:
            order = best_order(self.predicted, self.labels, self.frozen).tolist()
            map_flag = f"{flag(role, 'class_map')} {' '.join(map(str, order))}"
            yield (self.reordered, len(self.causes) + 1, " and ".join((*self.causes, "class order")),
                   f"{self.flags} {map_flag}".strip(), self.labels)

    def best(self):
        return max(part.float().mean().item() for part in (self.hits, self.reordered) if part is not None)


def likeliest_cause(frozen, images, labels, names=(), role="C"):
    """(sentence, accuracy) of the smallest change of loading that explains uint8 images (N, C, H, W), labels (N,) best.

    names: of the data set's classes. ('', accuracy as it is) where no change is shown to be better.
    """
    images, labels = images[:TRIED], labels[:TRIED]
    ways, began, left = [], time.monotonic(), 0
    for group in ways_of(frozen, images, role):
        if any(way.best() >= EXPLAINED for way in ways):
            break
        for way in tqdm(group, desc="other ways of loading", unit="way", delay=2, leave=False, disable=None):
            tried = Way(frozen, *way)
            if ways and time.monotonic() - began > SECONDS:
                left += 1
            elif tried.try_on(images[:FIRST], labels[:FIRST], SECONDS / len(group)):
                ways.append(tried)
    if not ways:
        return "", 0.0
    present = next((way for way in ways if not way.causes), None)
    promising = sorted(ways, key=lambda way: (-way.best(), len(way.causes)))[:PROMISING]
    promising += [present] if present and present not in promising else []
    if len(images) > FIRST:
        promising = [way for way in promising if way.try_on(images, labels, SECONDS / len(promising))]
    accuracy = present.hits.float().mean().item() if present and present in promising else 0.0
    found = [part for way in promising for part in way.found(role) if part[1] and len(part[0]) >= FEWEST]
    if not found:
        return "", accuracy
    # of the ways that come within 2 points of the best, the one with the fewest changes
    best = max(hits.float().mean().item() for hits, *_ in found)
    near = [part for part in found if part[0].float().mean().item() >= best - 0.02]
    hits, _, cause, flags, labels = min(near, key=lambda part: (part[1], -part[0].float().mean().item()))
    better = hits.float().mean().item()
    low, _ = interval(hits.sum(), len(hits), 1 - 0.05 / (2 * len(ways)))
    if low <= max(accuracy, chance(labels)):
        return "", accuracy
    unshown = [name for k, name in enumerate(names) if k not in labels] if "class order" in cause else []
    guess = f" (its label of {', '.join(unshown)} is a guess, since no image of that was at hand)" if unshown else ""
    more = f"; {left} further ways were not tried for want of time" if left else ""
    return f"the likeliest cause is the {cause}: with {flags} it is {better:.1%}{guess}{more}", better
