"""The pre-flight check: is this classifier loaded as it was trained? Run by train.py, or by hand:

    python -m classifiers.check --dataset C10 --C_path robust.pt --C_arch resnet50

It classifies held-out images of the seen classes. Where the accuracy is far below what the model card or
the number of classes suggests, it tries other ranges, normalisations, channel orders, sizes and class orders
and names the change that explains it. A wrong one of these is silent in training: the images only get worse.
"""

import sys
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from classifiers.frozen import FrozenClassifier
from classifiers.loading import probed_classifier
from config import Config, Parser, add_flags, make_config
from datasets import open_source
from datasets.attributes import attributes_of, kept_rows, parse_only
from datasets.sources import read_all
from utils import DATASETS, UserError, choose_device, run_main, to_unit_range

KINDS = {"test": "held-out images", "train": "training images (for want of a test split)"}
BATCH = 250
TRIED = 500  # images that each other way of loading is tried on
C_FLAGS = ("C_path", "C_arch", "C_mean", "C_std", "C_size", "C_range", "C_bgr", "C_class_map", "C_trust")
ABOVE_CHANCE = 0.3  # least share of the way from chance to certainty, where no model card says more
NEAR_CARD = 0.05  # how far below its model card the accuracy may lie, beside chance
# usual (mean, std) of colour and of grey images in [0, 1]
USUAL = {3: [([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),  # ImageNet
             ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])],  # CIFAR-10
         1: [([0.1307], [0.3081])]}  # MNIST


@dataclass(frozen=True)
class Check:
    """What the check found. Accuracies and confidences are shares in [0, 1]."""

    images: int  # images of seen classes that were classified
    split: str  # 'test', or 'train' where there is no test split
    accuracy: float
    least: float  # accuracy below which the check fails
    least_from: str  # what suggests it
    confidence: float  # mean probability of the predicted class
    calibration_error: float  # expected calibration error, 15 bins (Guo et al., 2017)
    noise_confidence: float  # mean probability of the predicted class on images of uniform noise
    gradient_norm: float  # median L2 norm of the gradient of -log p(another class), to an image in [-1, 1]
    problems: list[str] = field(default_factory=list)  # sentences; none: the check passed

    def __str__(self):
        return (f"classifier check: {self.accuracy:.1%} of {self.images} {KINDS[self.split]} of seen classes "
                f"classified rightly (at least {self.least:.1%} expected: {self.least_from}); mean confidence "
                f"{self.confidence:.1%}, calibration error {self.calibration_error:.1%}, confidence on noise "
                f"{self.noise_confidence:.1%}, gradient norm {self.gradient_norm:.2g}")

    def as_dict(self):
        return asdict(self) | {"passed": not self.problems}


# ------------------------------------------------------------------------------------ measuring


@torch.no_grad()
def logits_of(frozen, images):
    """float32 logits (N, K) of uint8 images (N, C, H, W), on the CPU."""
    device = frozen.mean.device
    return torch.cat([frozen(to_unit_range(part.to(device))).cpu() for part in images.split(BATCH)])


def calibration_error(confidence, hits, bins=15):
    """Expected calibration error (Guo et al., 2017): |accuracy - confidence|, averaged over bins of confidence (N,)."""
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins).index_add_(0, place, hits.float() - confidence)
    return gaps.abs().sum().item() / len(hits)


def gradient_norms(frozen, images):
    """L2 norm (N,) of the gradient with which each image would become another class; zeros where none reaches it.

    Of the class after the one predicted: towards its own, a confident classifier has no gradient left.
    """
    labels = (logits_of(frozen, images).argmax(1) + 1) % frozen.num_classes
    x = to_unit_range(images.to(frozen.mean.device)).requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(frozen(x), labels.to(x.device), reduction="sum")
    if not loss.requires_grad:
        return torch.zeros(len(images))
    (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    return torch.zeros(len(images)) if gradient is None else gradient.flatten(1).norm(dim=1).cpu()


def standard_error(share, n):
    """Of a share in [0, 1] of n images."""
    return max(share * (1 - share), 0) ** 0.5 / n ** 0.5


def least_accuracy(frozen, dataset, labels):
    """(least, what suggests it) for held-out images with these labels (N,) of the data set."""
    card = frozen.card if frozen.card.get("dataset") == dataset else {}
    per_class = list(card.get("clean_accuracy", {}).get("per_class", {}).values())
    shown = [per_class[y] for y in labels.tolist()] if len(per_class) > labels.max() else []
    if shown and None not in shown:
        expected = sum(shown) / len(shown)
        margin = max(NEAR_CARD, 4 * standard_error(expected, len(labels)))
        return expected - margin, f"its model card says {expected:.1%}"
    chance = 1 / frozen.num_classes
    return chance + ABOVE_CHANCE * (1 - chance), f"no model card, chance is {chance:.1%}"


# ------------------------------------------------------------------------------------ diagnosing


def rewrapped(frozen, **changes):
    """The same network behind other settings of the wrapper."""
    own = {"channels": frozen.channels, "resolution": frozen.resolution, "mean": frozen.mean.flatten().tolist(),
           "std": frozen.std.flatten().tolist(), "bgr": frozen.bgr}
    other = FrozenClassifier(frozen.model, frozen.num_classes, **(own | changes)).to(frozen.mean.device)
    other.labels = frozen.labels
    return other


def numbers(values):
    return " ".join(f"{value:.4g}" for value in values)


def other_ways(frozen, images):
    """(cause, flags, changes of the wrapper) for each other way in which the network may want its images."""
    channels, mean, std = frozen.channels, frozen.mean.flatten(), frozen.std.flatten()
    if frozen.own:
        yield "flags given", "--C_mean, --C_std, --C_size, --C_range and --C_bgr left out", frozen.own
    plain = f"--C_mean {numbers([0] * channels)} --C_std {numbers([1] * channels)} --C_range"
    yield "normalisation", f"{plain} 0 1", {"mean": [0.0] * channels, "std": [1.0] * channels}
    yield "range", f"{plain} -1 1", {"mean": [0.5] * channels, "std": [0.5] * channels}
    yield "range", f"{plain} 0 255", {"mean": [0.0] * channels, "std": [1 / 255] * channels}
    yield ("range, black for white", f"--C_mean {numbers(mean)} --C_std {numbers(std)} --C_range 1 0",
           {"mean": (1 - mean).tolist(), "std": (-std).tolist()})
    pixels = images.float().transpose(0, 1).flatten(1) / 255
    usual = USUAL[channels] + ([(pixels.mean(1).tolist(), pixels.std(1).tolist())] if len(pixels) == channels else [])
    for usual_mean, usual_std in usual:
        yield ("normalisation", f"--C_mean {numbers(usual_mean)} --C_std {numbers(usual_std)} --C_range 0 1",
               {"mean": usual_mean, "std": usual_std})
    for size in {images.shape[2], 224 if channels == 3 else 28} - {frozen.resolution}:
        if frozen.resolution or size != images.shape[2]:
            yield "image size", f"--C_size {size}", {"resolution": size}


def best_order(predicted, labels, frozen):
    """(accuracy, classifier label of each class): the one-to-one map of classes that fits the predictions best."""
    classes = len(frozen.labels)
    counts = np.zeros((classes, frozen.num_classes))
    np.add.at(counts, (labels.numpy(), predicted.numpy()), 1)
    # the classes without images keep their label where they can
    counts[np.arange(classes), np.clip(frozen.labels, 0, None)] += 1e-6
    rows, columns = linear_sum_assignment(-counts)
    return counts[rows, columns].sum() / len(labels), dict(zip(rows.tolist(), columns.tolist(), strict=True))


def likeliest_cause(frozen, images, labels):
    """(sentence, accuracy) of the smallest change of loading that classifies uint8 images (N, C, H, W) best."""
    images, labels = images[:TRIED], labels[:TRIED]
    ways = [("", "", {})] + list(other_ways(frozen, images))
    if frozen.channels == 3:
        flag = "--no-C_bgr" if frozen.bgr else "--C_bgr"
        ways += [(f"{cause} and channel order" if cause else "channel order", f"{flags} {flag}".strip(),
                  changes | {"bgr": not frozen.bgr})
                 for cause, flags, changes in ways if cause not in ("image size", "flags given")]
    found = []
    stands_for = torch.tensor(frozen.labels)[labels]
    for cause, flags, changes in ways:
        try:
            predicted = logits_of(rewrapped(frozen, **changes), images).argmax(1)
        except RuntimeError:  # a size that the network does not take
            continue
        if cause:
            found.append(((predicted == stands_for).float().mean().item(), -len(cause.split(" and ")), cause, flags))
        if len(frozen.labels) <= frozen.num_classes:
            accuracy, order = best_order(predicted, labels, frozen)
            order_flag = "--C_class_map " + " ".join(str(order[y]) for y in sorted(order))
            found.append((accuracy, -len(cause.split(" and ")) - bool(cause),
                          f"{cause} and class order" if cause else "class order", f"{flags} {order_flag}".strip()))
    # of the ways that come within 2 points of the best, the one with the fewest changes
    best = max(accuracy for accuracy, *_ in found)
    accuracy, _, cause, flags = max((way for way in found if way[0] >= best - 0.02), key=lambda way: (way[1], way[0]))
    return f"the likeliest cause is the {cause}: with {flags} it is {accuracy:.1%}", accuracy


def behaviour_problems(frozen, images):
    """Sentences on what no classifier to probe should do. images uint8 (n, C, H, W), a few."""
    problems = []
    together, again = logits_of(frozen, images), logits_of(frozen, images)
    alone = torch.cat([logits_of(frozen, image[None]) for image in images])
    scale = together.abs().max().clamp(min=1e-6)
    if not together.isfinite().all():
        return ["its answers are not finite numbers; train it again, or give the --C_range it was trained for."]
    if (together - again).abs().max() > 0.01 * scale:
        problems.append("it answers the same images differently each time; export it in eval mode, without dropout.")
    elif (together - alone).abs().max() > 0.01 * scale:
        problems.append("its answer for an image depends on the others in the batch; export it in eval mode, in which "
                        "batch norm uses its running statistics.")
    if together.min() >= 0 and (together.sum(1) - 1).abs().max() < 1e-3:
        problems.append("it gives probabilities instead of logits, through which the gradient vanishes; give it "
                        "without its softmax.")
    norms = gradient_norms(frozen, images)
    if not norms.isfinite().all() or norms.max() == 0:
        problems.append("no usable gradient of its cross-entropy reaches the image, so nothing could be learned from "
                        "it; give a network that is differentiable from pixels to logits.")
    return problems


# ---------------------------------------------------------------------------------------- whole


def held_out_images(spec, data_root, unseen, num, only=()):
    """(images uint8 (n, C, H, W), labels (n,), split): at most `num` of the test split, none of an unseen class, and
    those alone that the filters `only` keep."""
    split = "test"
    try:
        source = open_source(spec, data_root, split)
    except UserError:
        split = "train"  # a data set may have no test split; its images are then not held out, and the check says so
        source = open_source(spec, data_root, split)
    kept = kept_rows(attributes_of(source)[0], parse_only(only), len(source), f"the {split} split of {spec.folder}")
    rows = (kept & ~torch.isin(source.labels, torch.tensor(unseen, dtype=torch.long))).nonzero().flatten()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:num]].sort().values
    return read_all(source, rows), source.labels[rows], split


def check_classifier(frozen, images, labels, dataset="", split="test"):
    """The Check of a FrozenClassifier on uint8 images (N, C, H, W) with labels (N,) of the data set.

    Classes that frozen.labels gives no label are left out. Raises UserError where no image is left.
    """
    stands_for = torch.tensor(frozen.labels)[labels]
    images, labels, stands_for = (values[stands_for >= 0] for values in (images, labels, stands_for))
    if not len(images):
        raise UserError("there is no image to check the classifier on: --C_class_map leaves every seen class 'none', "
                        f"or the {split} split is empty. Map at least one seen class, or give --skip_classifier_check.")
    # in random order: the first of them stand for all
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    images, labels, stands_for = images[order], labels[order], stands_for[order]
    confidence, predicted = logits_of(frozen, images).softmax(1).nan_to_num(0).max(1)
    hits = predicted == stands_for
    accuracy, (least, least_from) = hits.float().mean().item(), least_accuracy(frozen, dataset, labels)
    noise = torch.randint(0, 256, (BATCH, *images.shape[1:]), generator=torch.Generator().manual_seed(2))
    result = Check(
        images=len(images), split=split, accuracy=accuracy, least=least, least_from=least_from,
        confidence=confidence.mean().item(), calibration_error=calibration_error(confidence, hits),
        noise_confidence=logits_of(frozen, noise.to(torch.uint8)).softmax(1).max(1).values.mean().item(),
        gradient_norm=gradient_norms(frozen, images[:BATCH]).median().item())
    problems = behaviour_problems(frozen, images[:8])
    if not problems and (accuracy < least or not least_from.startswith("its model card")):
        sentence, better = likeliest_cause(frozen, images, labels)
        # without a card, a wrong normalisation may cost too little to show but for the comparison
        margin = max(NEAR_CARD, 4 * standard_error(better, min(TRIED, len(images))))
        if better < accuracy + margin:
            sentence = "no other range, normalisation, channel order, size or class order does better by much: is it " \
                       "trained, and on these classes"
        if accuracy < least or better >= accuracy + margin:
            problems.append(f"it classifies {accuracy:.1%} of {len(images)} {KINDS[split]} of seen classes rightly; "
                            f"at least {least:.1%} was expected ({least_from}), and {sentence}.")
    return replace(result, problems=problems)


def preflight(frozen, config, spec, num=2000):
    """The Check of a run's probed classifier, on at most `num` held-out images of its seen classes."""
    images, labels, split = held_out_images(spec, config.data_root, config.new_class, num, config.only)
    return check_classifier(frozen, images, labels, config.dataset, split)


def require_passed(check, config):
    """Raise UserError with what a Check found wrong with the classifier of a Config; print it where that is skipped."""
    if not check.problems:
        return
    found = f"the classifier {config.C_path} fails its check: {' Also, '.join(check.problems)}"
    if not config.skip_classifier_check:
        raise UserError(f"{found} --skip_classifier_check probes it as it is.")
    print(f"warning: {found}", file=sys.stderr)


def main():
    parser = Parser(prog="python -m classifiers.check", description=__doc__)
    add_flags(parser, Config, ("dataset", "new_class", "data_root", "device", *C_FLAGS))
    parser.add_argument("--num", type=int, default=2000, help="held-out images, at most (default: 2000)")
    flags = vars(parser.parse_args())
    num = flags.pop("num")
    if num < 1:
        raise UserError(f"--num is {num}; it must be at least 1.")
    # no class need be unseen to check a classifier
    config = make_config(**flags, oracle=True)
    spec = DATASETS[config.dataset]
    frozen = probed_classifier(config, spec.classes, choose_device(config.device))
    check = preflight(frozen, config, spec, num)
    print(f"{config.C_path}: {frozen.arch or 'a program'}, {frozen.num_classes} classes, {frozen.channels} channel(s), "
          f"size {frozen.resolution or 'any'}, mean {numbers(frozen.mean.flatten().tolist())}, "
          f"std {numbers(frozen.std.flatten().tolist())}")
    print(check)
    require_passed(check, config)
    print("passed")


if __name__ == "__main__":
    run_main(main)
