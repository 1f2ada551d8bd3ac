"""The pre-flight check: is this classifier loaded as it was trained? Run by train.py and evaluate.py, or by hand:

    python -m classifiers.check --dataset C10 --C_path robust.pt --C_arch resnet50

It says in five lines what was found: which weights were taken; the size, range and normalisation of the images; what
the network answers with; how much of the images of seen classes it gets right, with an interval; and whether images of
the unseen class in the test split, where there are any, bear the label of that class. These are shown to the classifier
alone and never reach the GAN.

Where the accuracy is far below what the model card or the number of classes suggests, other ranges, normalisations,
channel orders, sizes and class orders are tried, and the change that explains it is named. A wrong one of these is
silent in training: the images only get worse. Where there is too little evidence to tell, the check does not pass.
"""

import hashlib
import json
import sys
from dataclasses import asdict, dataclass, field, replace

import torch
from torch.nn import functional as F

from classifiers.diagnosis import BATCH, batch_size, chance, interval, likeliest_cause, logits_of, numbers
from classifiers.files import flag
from classifiers.frozen import fingerprint
from classifiers.loading import probed_classifier
from classifiers.strangers import least_expected
from config import Config, Parser, add_flags, make_config
from datasets import open_source
from datasets.attributes import attributes_of, kept_rows, parse_only
from datasets.sources import read_all
from machine import told_of_memory
from utils import DATASETS, UserError, choose_device, run_main, to_unit_range, write_json

KINDS = {"test": "held-out images", "train": "training images (for want of a test split)",
         "test and train": "held-out and training images"}
ENOUGH = 200  # images, to which those of a small test split are filled up with training images
SECONDS = 60.0  # after which no further image is classified
C_FLAGS = tuple(name for name in Config.__dataclass_fields__ if name.startswith("C_") and "coeff" not in name)
NEAR_CARD = 0.05  # how far below its model card the accuracy may lie, beside chance
HARDER = 0.5  # least share of the accuracy on seen classes that an unseen one may have
LAYOUT = 2  # of a kept check: raised when its content changes


class NoImages(UserError):
    """There is nothing that the classifier could be checked on."""


@dataclass(frozen=True)
class Check:
    """What the check found. Accuracies and confidences are shares in [0, 1]; low and high are 95 % intervals."""

    images: int  # images of seen classes that were classified
    split: str  # 'test', 'train' where there is no test split, or 'test and train' where it is small
    accuracy: float
    low: float
    high: float
    chance: float  # accuracy of always giving the commonest answer
    least: float  # accuracy below which the check fails
    least_from: str  # what suggests it
    confidence: float  # mean probability of the predicted class
    calibration_error: float  # expected calibration error, 15 bins (Guo et al., 2017)
    noise_confidence: float  # mean probability of the predicted class on images of uniform noise
    gradient_norm: float  # median L2 norm of the gradient of -log p(another class), to an image in [-1, 1]
    commonest: float = 0.0  # share of the commonest answer among all
    unseen: list[dict] = field(default_factory=list)  # of each unseen class: class, label, images, accuracy, low, high
    notes: list[str] = field(default_factory=list)  # sentences on what was not as one might think, and on what is open
    problems: list[str] = field(default_factory=list)  # sentences; none: the check passed

    def __str__(self):
        lines = [f"classifier check: {self.accuracy:.1%} (95% interval {self.low:.1%} to {self.high:.1%}) of "
                 f"{self.images} {KINDS[self.split]} of seen classes classified rightly (at least {self.least:.1%} "
                 f"expected: {self.least_from}); mean confidence {self.confidence:.1%}, calibration error "
                 f"{self.calibration_error:.1%}, confidence on noise {self.noise_confidence:.1%}, gradient norm "
                 f"{self.gradient_norm:.2g}"]
        for part in self.unseen:
            found = "not verified, since the test split holds no image of it" if not part["images"] else \
                f"given to {part['accuracy']:.1%} ({part['low']:.1%} to {part['high']:.1%}) of {part['images']} test " \
                "images of it"
            lines.append(f"unseen class {part['class']}: label {part['label']}, {found}")
        return "\n".join(lines + self.notes)

    def as_dict(self):
        return asdict(self) | {"passed": not self.problems}


# ------------------------------------------------------------------------------------ measuring


def calibration_error(confidence, hits, bins=15):
    """Expected calibration error (Guo et al., 2017): |accuracy - confidence|, averaged over bins of confidence (N,)."""
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins).index_add_(0, place, hits.float() - confidence)
    return gaps.abs().sum().item() / len(hits)


def gradient_norms(frozen, images):
    """L2 norm (N,) of the gradient with which each image would become another class; zeros where none reaches it.

    Of the class after the one predicted: towards its own, a confident classifier has no gradient left.
    """
    norms = []
    for part in images.split(max(1, batch_size(frozen, images) // 4)):  # a gradient keeps all layers in memory
        labels = (logits_of(frozen, part).argmax(1) + 1) % frozen.num_classes
        x = to_unit_range(part.to(frozen.mean.device)).requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(frozen(x), labels.to(x.device), reduction="sum")
        gradient = torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None
        norms.append(torch.zeros(len(part)) if gradient is None else gradient.flatten(1).norm(dim=1).cpu())
    return torch.cat(norms)


def standard_error(share, n):
    """Of a share in [0, 1] of n images."""
    return max(share * (1 - share), 0) ** 0.5 / n ** 0.5


def least_accuracy(frozen, dataset, labels):
    """(least, what suggests it) for held-out images with these labels (N,) of the data set."""
    card = frozen.card if frozen.card.get("dataset") == dataset else {}
    per_class = list(card.get("clean_accuracy", {}).get("per_class", {}).values())
    shown = [per_class[y] for y in labels.tolist()] if len(per_class) > labels.max() else []
    said = sum(shown) / len(shown) if shown and None not in shown else None
    margin = 0.0 if said is None else max(NEAR_CARD, 4 * standard_error(said, len(labels)))
    return least_expected(said, margin, frozen.num_classes)


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
    shares = (together.sum(1) - 1).abs().max() < 1e-3
    if together.min() >= 0 and together.max() <= 1 and (shares or together.max() - together.min() > 0.3):
        problems.append(f"it gives {'probabilities' if shares else 'a sigmoid of each'} instead of logits, through "
                        "which the gradient vanishes; give it without its last layer.")
    norms = gradient_norms(frozen, images)
    if not norms.isfinite().all() or norms.max() == 0:
        problems.append("no usable gradient of its cross-entropy reaches the image, so nothing could be learned from "
                        "it; give a network that is differentiable from pixels to logits.")
    return problems


# ------------------------------------------------------------------------------ the unseen class


def unseen_records(frozen, unseen, images, labels, names):
    """(records for Check.unseen, answers (n,) to the images) for images (n, C, H, W) of the unseen classes."""
    answers = logits_of(frozen, images, SECONDS, "images of the unseen class").argmax(1) if len(images) else labels[:0]
    labels, records = labels[:len(answers)], []
    for y in unseen:
        own, label = answers[labels == y], frozen.labels[y]
        hits = int((own == label).sum())
        low, high = interval(hits, len(own)) if len(own) else (0.0, 1.0)
        records.append({"class": names[y], "label": label, "images": len(own), "low": low, "high": high,
                        "accuracy": hits / len(own) if len(own) else None})
    return records, answers


def unseen_problem(record, answers, accuracy, frozen, names, role):
    """A sentence where images of an unseen class, with these answers (n,), do not bear its label; else ''."""
    if not record["images"] or record["high"] >= HARDER * accuracy:
        return ""
    counts = answers.bincount(minlength=frozen.num_classes)
    likeliest = counts.argmax().item()
    low, _ = interval(counts[likeliest], len(answers))
    said = f"of {record['images']} test images of the unseen class {record['class']}, {record['accuracy']:.1%} get " \
           f"its label {record['label']}"
    taken = next((names[k] for k, label in enumerate(frozen.labels) if label == likeliest), "")
    if low > 0.5 and not taken:
        order = [likeliest if name == record["class"] else label if label >= 0 else "none"
                 for name, label in zip(names, frozen.labels, strict=True)]
        return f"{said} and {counts[likeliest] / len(answers):.1%} get {likeliest}, which is likely the right one: " \
               f"{flag(role, 'class_map')} {' '.join(map(str, order))}."
    its = f"the commonest answer is {likeliest}" + (f", that of {taken}" if taken else "")
    return f"{said}, and {its}: it was trained without that class, or on other images, or its label is wrong."


# ---------------------------------------------------------------------------------------- whole


def balanced(labels, num, seed=0):
    """Places (n,) of at most `num` of labels (N,): of each class alike, drawn at random, in random order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels[order]
    ranks = torch.zeros(len(labels), dtype=torch.long)  # how many of its class come before each
    for label in shuffled.unique():
        own = shuffled == label
        ranks[own] = torch.arange(int(own.sum()))
    return order[ranks.argsort(stable=True)[:num]]


def split_of(spec, data_root, split):
    """The source of a split, or None where it is missing or empty."""
    try:
        source = open_source(spec, data_root, split)
    except UserError:
        return None
    return source if len(source) else None


def held_out_images(spec, data_root, unseen, num, only=()):
    """(images uint8 (n, C, H, W), labels (n,), split): at most `num`, of the seen classes alike, none of an unseen one,
    and those alone that the filters `only` keep.

    Of the test split; where that holds fewer than ENOUGH, training images are added. What a classifier makes of images
    that it was trained on says, too, whether it is loaded rightly.
    """
    parts, splits = [], []
    for split in ("test", "train"):
        # the training split's own error, where neither is there
        source = split_of(spec, data_root, split) if split == "test" or parts else open_source(spec, data_root, split)
        wanted = num if not parts else min(num, ENOUGH) - len(parts[0][1])
        if source is None or wanted <= 0:
            continue
        kept = kept_rows(attributes_of(source)[0], parse_only(only), len(source), f"the {split} split of {spec.folder}")
        rows = (kept & ~torch.isin(source.labels, torch.tensor(unseen, dtype=torch.long))).nonzero().flatten()
        rows = rows[balanced(source.labels[rows], wanted)]
        if len(rows):
            parts.append((read_all(source, rows), source.labels[rows]))
            splits.append(split)
    if not parts:
        raise NoImages(f"data set {spec.folder} holds no image of a seen class, on which the classifier could be "
                       "checked; add images, or give --skip_classifier_check.")
    images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return images, labels, " and ".join(splits)


def unseen_images(spec, data_root, unseen, num=200):
    """(images uint8 (n, C, H, W), labels (n,)) of the unseen classes in the test split, at most `num`; maybe none."""
    source = split_of(spec, data_root, "test")
    if source is None or not unseen:
        return torch.zeros((0, spec.channels, spec.resolution, spec.resolution), dtype=torch.uint8), \
            torch.zeros(0, dtype=torch.long)
    rows = torch.isin(source.labels, torch.tensor(unseen, dtype=torch.long)).nonzero().flatten()
    rows = rows[balanced(source.labels[rows], num)]
    return read_all(source, rows), source.labels[rows]


def check_classifier(frozen, images, labels, dataset="", split="test", unseen=(), unseen_shown=None, names=(),
                     role="C"):
    """The Check of a FrozenClassifier on uint8 images (N, C, H, W) with labels (N,) of the data set.

    unseen: labels of the unseen classes; unseen_shown: (images, labels) of those, where there are any. names: of the
    data set's classes. role: whose flags the advice names. Classes that frozen.labels gives no label are left out.
    Raises UserError where no image is left.
    """
    names = names or tuple(map(str, range(len(frozen.labels))))
    stands_for = torch.tensor(frozen.labels)[labels]
    images, labels, stands_for = (values[stands_for >= 0] for values in (images, labels, stands_for))
    if not len(images):
        raise NoImages(f"there is no image to check the classifier on: {flag(role, 'class_map')} leaves every seen "
                       f"class 'none', or the {split} split is empty. Map at least one seen class, or give "
                       "--skip_classifier_check.")
    # in random order: the first of them stand for all
    order = balanced(labels, len(labels), seed=1)
    images, labels, stands_for = images[order], labels[order], stands_for[order]
    notes, given = list(frozen.notes), len(images)  # what was found on loading is said wherever the check is
    logits = logits_of(frozen, images, SECONDS, "classifier check")
    if len(logits) < given:
        images, labels, stands_for = (values[:len(logits)] for values in (images, labels, stands_for))
        notes.append(f"{len(images)} of {given} images were classified in the {SECONDS:.0f} s that the check takes")
    confidence, predicted = logits.softmax(1).nan_to_num(0).max(1)
    hits, by_chance = predicted == stands_for, chance(labels)
    accuracy, (least, least_from) = hits.float().mean().item(), least_accuracy(frozen, dataset, labels)
    low, high = interval(hits.sum(), len(hits))
    noise = torch.randint(0, 256, (min(BATCH, 2 * batch_size(frozen, images)), *images.shape[1:]),
                          generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    unseen_x, unseen_y = unseen_shown if unseen_shown is not None else (images[:0], labels[:0])
    records, answers = unseen_records(frozen, unseen, unseen_x, unseen_y, names)
    unseen_x, unseen_y = unseen_x[:len(answers)], unseen_y[:len(answers)]
    result = Check(
        images=len(images), split=split, accuracy=accuracy, low=low, high=high, chance=by_chance, least=least,
        least_from=least_from, confidence=confidence.mean().item(),
        calibration_error=calibration_error(confidence, hits),
        noise_confidence=logits_of(frozen, noise).softmax(1).max(1).values.mean().item(),
        gradient_norm=gradient_norms(frozen, images[:64]).median().item(),
        commonest=predicted.bincount().max().item() / len(predicted), unseen=records, notes=notes)
    problems = behaviour_problems(frozen, images[:8])
    if problems:
        return replace(result, problems=problems)

    carded = least_from.startswith("its model card")
    # with images of the unseen class the evidence is of both
    both, right = torch.cat((labels, unseen_y)), hits.sum() + sum(
        int((answers[unseen_y == y] == frozen.labels[y]).sum()) for y in unseen)
    shown = interval(right, len(both))[0] > chance(both)
    shuffled = torch.randperm(len(both), generator=torch.Generator().manual_seed(3))
    pool = torch.cat((images, unseen_x))[shuffled], both[shuffled]
    found = f"it classifies {accuracy:.1%} ({low:.1%} to {high:.1%}) of {len(images)} {KINDS[split]} of seen classes " \
            "rightly"
    sentence, wrong = "", []
    if accuracy >= least:
        found_out = [unseen_problem(record, answers[unseen_y == y], accuracy, frozen, names, role)
                     for y, record in zip(unseen, records, strict=True)]
        wrong = [problem for problem in found_out if problem]
    if not wrong and (accuracy < least or not carded):
        # without a card, a wrong normalisation may cost too little to show but for the comparison
        sentence, better = likeliest_cause(frozen, *pool, names, role)
        present, floor = right.item() / len(both), least_expected(None, 0.0, frozen.num_classes)[0]
        # an untrained network, too, does a little better with some flags, which lead nowhere
        if sentence and better < max(floor, present + max(NEAR_CARD, 4 * standard_error(better, len(both)))):
            sentence = ""
    common = f" It gives one answer to {result.commonest:.1%} of them." if result.commonest > 2 * by_chance else ""
    if accuracy < least and (high < least or sentence or shown):
        why = sentence or "no other range, normalisation, channel order, size or class order is shown to do better: " \
                          "is it trained, and on these classes"
        problems.append(f"{found}; at least {least:.1%} was expected ({least_from}), and {why}.{common}")
    elif wrong:
        problems += wrong
    elif sentence:
        problems.append(f"{found}, but {sentence}.")
    elif accuracy < least or not (shown or carded):
        problems.append(f"there is too little evidence to tell: {found}, and a network that always gives one answer "
                        f"has {chance(both):.1%}. Give more images, of more of its classes: those of the unseen class "
                        f"in the test split count, too, and never reach the GAN.{common}")
    else:
        for y, record in zip(unseen, records, strict=True):
            if not record["images"] and frozen.labels[y] >= 0:
                most = logits.softmax(1)[:, frozen.labels[y]].max().item()
                if most < 1e-3:
                    notes.append(f"no image made the label of {names[y]} likelier than {most:.1g}: was it trained on "
                                 "it?")
    return replace(result, problems=problems)


def preflight(frozen, config, spec, num=2000, role="C"):
    """The Check of a run's classifier: on at most `num` held-out images of its seen classes, and on test images of the
    unseen ones."""
    try:
        images, labels, split = held_out_images(spec, config.data_root, config.new_class, num, config.only)
        shown = unseen_images(spec, config.data_root, config.new_class)
        return check_classifier(frozen, images, labels, config.dataset, split, config.new_class, shown, spec.classes,
                                role)
    except NoImages as error:
        if not config.skip_classifier_check:
            raise
        return Check(images=0, split="test", accuracy=0.0, low=0.0, high=1.0, chance=1.0, least=0.0,
                     least_from="there is nothing to go by", confidence=0.0, calibration_error=0.0,
                     noise_confidence=0.0, gradient_norm=0.0, problems=[str(error)])


def kept_preflight(frozen, config, spec, folder, num=2000, role="evaluator"):
    """`preflight`, from <folder>/check_<hash>.json where the same network was checked on the same images before."""
    images, labels, split = held_out_images(spec, config.data_root, config.new_class, num, config.only)
    shown = unseen_images(spec, config.data_root, config.new_class)
    digest = hashlib.sha256(repr((
        LAYOUT, fingerprint(frozen.model), numbers(frozen.mean.flatten()), numbers(frozen.std.flatten()),
        frozen.resolution, frozen.bgr, frozen.flat, frozen.answers, frozen.labels, frozen.card.get("dataset"),
        config.dataset, list(config.new_class), split, role)).encode())
    for values in (images, labels, *shown):
        digest.update(values.contiguous().numpy())
    path = folder / f"check_{digest.hexdigest()[:16]}.json"
    try:
        kept = json.loads(path.read_text())
        kept.pop("passed")
        return Check(**kept)
    except (OSError, ValueError, TypeError, KeyError):
        pass  # never made, or damaged
    check = check_classifier(frozen, images, labels, config.dataset, split, config.new_class, shown, spec.classes, role)
    try:
        write_json(path, check.as_dict())
    except OSError as error:
        print(f"warning: {path} could not be written ({error.strerror}); the check is made again next time.",
              file=sys.stderr)
    return check


def require_passed(check, config, role="C"):
    """Raise UserError with what a Check found wrong with the classifier of a Config; print it where that is skipped."""
    if not check.problems:
        return
    which, path = ("classifier", config.C_path) if role == "C" else ("evaluator", config.evaluator)
    found = f"the {which} {path} fails its check: {' Also, '.join(check.problems)}"
    if not config.skip_classifier_check:
        raise UserError(f"{found} --skip_classifier_check takes it as it is.")
    print(f"warning: {found}", file=sys.stderr)


def description(frozen, path):
    """What was found on loading, in four lines: network, weights, images, answers."""
    size = f"{frozen.resolution} x {frozen.resolution}" if frozen.resolution else "any size"
    images = f"{frozen.channels} channel(s), {size}{', flattened' if frozen.flat else ''}, from 0 to 1, less mean " \
             f"{numbers(frozen.mean.flatten().tolist())}, by std {numbers(frozen.std.flatten().tolist())}" \
             f"{', blue first' if frozen.bgr else ''}"
    hinted = [f"{key} {value}" for key, value in frozen.hinted.items() if key != "classes"]
    # those of size and answers stand in lines of their own
    notes = "; ".join(note for note in frozen.notes if not note.startswith("it ")) or "as the file has them"
    return "\n".join([f"{path}: {frozen.arch or 'a program'}, {frozen.num_classes} classes", f"weights: {notes}",
                      f"images: {images}", f"answers: {frozen.answers}"]
                     + ([f"its file also says, and is not believed: {', '.join(hinted)}"] if hinted else []))


@told_of_memory("--C_size or --num")
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
    print(description(frozen, config.C_path), flush=True)
    check = preflight(frozen, config, spec, num)
    print(replace(check, notes=[note for note in check.notes if note not in frozen.notes]))
    require_passed(check, config)
    print("passed")


if __name__ == "__main__":
    run_main(main)
