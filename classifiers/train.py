"""Train a classifier, regular or adversarially robust, and write it with a card of what it can do.

    python -m classifiers.train --dataset digits --arch smallcnn --robust l2 --eps 1.5 --steps 3 --out robust.pt

    python -m classifiers.train --dataset waterbirds --objective dro --groups place --out dro.pt

Adversarial training follows Madry et al. (2018): each batch is replaced by its PGD adversary, computed in
eval mode. SGD with Nesterov momentum; one cycle of the learning rate, as in Smith & Topin (2018). With --groups, the
epoch is chosen by the accuracy of the worst group on the validation split.
"""

import copy
import dataclasses
import hashlib
import math
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from classifiers.architectures import ARCHITECTURES, OTHERS, build, find
from classifiers.attacks import NORMS, pgd
from classifiers.files import round_to_file, save_classifier
from classifiers.frozen import FrozenClassifier
from classifiers.groups import (
    BALANCED,
    OBJECTIVES,
    Objective,
    answers,
    correlated_rows,
    following,
    group_accuracies,
    last_layer,
    require_groups,
    retrain_last_layer,
    set_confidence,
    worst_group,
)
from classifiers.loading import load_classifier
from classifiers.whitening import SAMPLE, Whitening
from config import Parser, add_flags, check_settings, setting
from datasets import open_source, read_all
from datasets.absence import image_hashes
from datasets.attributes import (
    attributes_of,
    find_attribute,
    group_names,
    groups_of,
    kept_rows,
    parse_only,
    require_classes,
)
from layers import EMA, shift
from machine import autocast, choose_precision, tune
from utils import (
    DATASETS,
    UserError,
    choose_device,
    find_dataset,
    load_torch,
    run_main,
    save_torch,
    stop_on_signal,
    write_json,
)

WARM_UP = 0.2  # share of training in which the learning rate rises
TEST_STEPS = 20  # PGD steps of the reported accuracy
LEAK = 0.05  # by how much more adversaries than clean images are known where labels leak
TEST_BATCH = 256
MAY_CHANGE = ("device", "data_root", "num_attacked")  # settings that a resumed training may be given anew


@dataclass(frozen=True)
class TrainSettings:
    """What decides a trained classifier. Raises UserError for a value that cannot be."""

    dataset: str = setting("C10", "registered data set (utils.DATASETS), prepared by scripts/prepare_data.py")
    split: str = setting("train", "split to train on; a set with a further one, as extra.h5, gives an evaluator that "
                         "saw other images")
    validation: str = setting("val", "split that --groups, --objective dfr and --confidence look at")
    test: str = setting("test", "split that the card's accuracies are measured on")
    labels: str = setting("", "attribute whose values are to be told apart instead of the classes, as place")
    only: tuple[str, ...] = setting((), "train on the images alone that have these values, as background=usual")
    objective: str = setting("erm", "how groups of images are treated (classifiers/groups.py)", OBJECTIVES)
    groups: str = setting("", "attribute that, with the class, makes the groups; accuracies are told by group, and the "
                          "worst group on --validation chooses the epoch")
    correlation: float = setting(0.0, "share of each class's training images that have the class's own value of "
                                 "--groups, as waterbirds water; of equally many images for each share; 0 is off",
                                 least=0)
    select: bool = setting(True, "with --groups, write the epoch best for the worst group; --no-select: the last")
    dro_step_size: float = setting(0.01, "dro: step size of the groups' weights", above=0)
    dro_adjustment: float = setting(0.0, "dro: C of C / sqrt(n), added to a group's loss where the weights move",
                                    least=0)
    confidence: float = setting(0.0, "mean confidence on --validation to which the last layer is scaled; 0 is off")
    arch: str = setting("smallcnn", f"architecture: {', '.join(ARCHITECTURES)}, {OTHERS}")
    init: str = setting("", "start of the weights: the file of a classifier of the same --arch, all but its last "
                        "layer; or imagenet, of the optional package, for efficientnet-lite0; not given: random")
    role: str = setting("", "evaluator: a classifier that judges images and may never be probed", ("evaluator",))
    out: str = setting("", "file to write; its card goes beside it as <out>.json")
    robust: str = setting("", "norm of the adversary to train against; not given: a regular classifier", NORMS)
    eps: float = setting(0.0, "radius of the adversary on [0,1] pixels: l2 0.5 suits C10, 1.5 MNIST; linf 0.03")
    steps: int = setting(5, "PGD steps of the adversary while training", least=1)
    epochs: int = setting(15, "passes over the training images", least=1)
    batch_size: int = setting(64, "images a step", least=1)
    lr: float = setting(0.1, "peak of the one-cycle learning rate", above=0)
    weight_decay: float = setting(5e-4, "L2 penalty on the weights", least=0)
    label_smoothing: float = setting(0.0, "probability spread over the wrong classes in the target", least=0, below=1)
    ema_decay: float = setting(0.0, "decay a step of the moving average of the weights that is written; 0 is off",
                               least=0, below=1)
    num_attacked: int = setting(1000, "test images attacked for the card; 1000 give a standard error of 1.6 points",
                                least=1)
    seed: int = setting(0, "seed of the initial weights and of all draws")
    data_root: str = setting("datasets", "folder that holds the prepared data sets")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting("auto", "arithmetic of the forward passes; auto: bf16 where it is faster",
                             ("auto", "fp32", "bf16"))

    def __post_init__(self):
        check_settings(self)
        find(self.arch)
        if self.split in (self.test, self.validation):
            purpose = "the card's accuracy is measured on" if self.split == self.test else "--validation names"
            raise UserError(f"--split {self.split} is what {purpose}; train on another split.")
        if self.objective != "erm" and not self.groups:
            raise UserError(f"--objective {self.objective} treats groups of images; name the attribute that makes them "
                            "with --groups, as in --groups place.")
        parse_only(self.only)
        if self.correlation and not (self.groups and self.correlation <= 1):
            raise UserError(f"--correlation {self.correlation} is a share, at most 1, of images that have the value of "
                            "--groups that goes with their class; give both, as in --correlation 0.9 --groups place.")
        if self.init == "imagenet" and self.arch != "efficientnet-lite0":
            raise UserError(f"--init {self.init} is for --arch efficientnet-lite0, not {self.arch}.")
        if not self.out or Path(self.out).is_dir():
            raise UserError(f"--out '{self.out}' is not a file name; give one, as in --out runs/classifiers/robust.pt.")
        if bool(self.robust) != (self.eps > 0):
            raise UserError(f"--robust '{self.robust}' with --eps {self.eps} is no adversary: give both, as in "
                            "--robust l2 --eps 1.5, or neither for a regular classifier.")

    @property
    def attack(self):
        """(norm, eps) of the reported attack: the one trained against, else L2 0.5 as in the Madry lab's tables."""
        return (self.robust, self.eps) if self.robust else ("l2", 0.5)

    @property
    def command(self):
        """The command line that makes this classifier."""
        words = ["python", "-m", "classifiers.train"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if isinstance(value, bool):
                words.append(f"--{field.name}" if value else f"--no-{field.name}")
            else:
                words += [f"--{field.name}", *map(str, value if isinstance(value, tuple) else (value,))]
        return shlex.join(words)


# ------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Images:
    """The images of a split: uint8 (N, C, H, W); what they are to be taken for, int64 (N,); and their groups.

    values, groups: int64 (N,), of the attribute that makes groups, None where there is none; names: of all groups.
    note: what the split lacks.
    """

    images: torch.Tensor
    labels: torch.Tensor
    values: torch.Tensor | None = None
    groups: torch.Tensor | None = None
    names: tuple[str, ...] = ()
    note: str = ""


def load_images(settings, split, only=(), correlation=0.0):
    """The Images of one split that have the values `only` and, where given, the correlation, as TrainSettings say.
    Raises UserError as open_source does, and for an attribute or a value that the split does not have."""
    name, left_out = find_dataset(settings.dataset)
    if left_out:
        raise UserError(f"'{settings.dataset}' leaves classes out; a classifier is trained and tested on all classes: "
                        f"give '{name}'.")
    spec = DATASETS[name]
    source = open_source(spec, settings.data_root, split)
    (attributes, note), where = attributes_of(source), f"the {split} split of {name}"
    only, labels = parse_only(only), source.labels
    kept = kept_rows(attributes, only, len(labels), where)
    require_classes(labels, kept, spec.classes, range(len(spec.classes)), only)
    rows, values, groups, names = kept.nonzero()[:, 0], None, None, ()

    def paired(flag, attribute):
        if len(attribute.values) != len(spec.classes):
            raise UserError(f"{flag}: the attribute has the values {', '.join(attribute.values)}, and {name} has "
                            f"{len(spec.classes)} classes; name one with a value for each class.")

    if settings.labels:
        attribute = find_attribute(attributes, settings.labels, where)
        paired(f"--labels {settings.labels}", attribute)
        labels = attribute.of
    labels = labels[rows]
    if settings.groups:
        attribute = find_attribute(attributes, settings.groups, where).only(rows)
        values, groups = attribute.of, groups_of(labels, attribute)
        names = group_names(spec.classes, settings.groups, attribute.values)
        if correlation:
            paired(f"--correlation with --groups {settings.groups}", attribute)
            require_groups(groups, names, split, "--correlation draws from")
            chosen = correlated_rows(labels, values, correlation)
            rows, labels, values, groups = (part[chosen] for part in (rows, labels, values, groups))
    return Images(read_all(source, rows), labels, values, groups, names, note)


def require_apart(train, other, split, other_split):
    """Raise UserError where more than one in a hundred of the other split's images are among the training images."""
    known = set(image_hashes(train.images))
    shared = sum(digest in known for digest in image_hashes(other.images))
    if shared > len(other.images) / 100:
        raise UserError(f"{shared} of the {len(other.images)} images of --split {split} and of {other_split} are the "
                        "same; what was trained on cannot be measured on: name a split of other images.")


def fingerprint(images, labels):
    """SHA-256 of the bytes of images (uint8) and labels (int64), in their order."""
    return hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()


def channel_statistics(images):
    """(mean, std) of each channel of uint8 images (N, C, H, W), in units of [0, 1], as lists of C floats."""
    pixels = [images[:, c].float() / 255 for c in range(images.shape[1])]
    # a channel of one value still needs a divisor
    return [p.mean().item() for p in pixels], [max(p.std().item(), 1 / 255) for p in pixels]


def augmented(images, flip, generator, vertical=True):
    """uint8 (B, C, H, W) -> float in [0, 1]: shifted by up to a sixteenth of the height, mirrored at random.

    vertical: as in layers.shift.
    """
    images = shift(images, images.shape[2] // 16, fill=0, generator=generator, vertical=vertical)
    if flip:
        mirror = torch.rand(len(images), generator=generator).to(images.device) < 0.5
        images = torch.where(mirror[:, None, None, None], images.flip(3), images)
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


# -------------------------------------------------------------------------------------- training


def one_cycle(progress):
    """Learning rate as a share of its peak at `progress` in (0, 1]: up along a line for a fifth, down a cosine to 0."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


class Fit:
    """One training in progress; `state()` is all that going on with it needs.

    frozen: the network to train, wrapped with its mean and standard deviation; images uint8 (N, C, H, W) and
    labels (N,), both on the device; objective: how they are drawn and weighed; validation: Images by whose worst group
    an epoch is chosen, or None. `best`: that epoch, its worst group's accuracy and weights, {} for none.
    """

    def __init__(self, frozen, images, labels, settings, spec, objective=None, validation=None):
        self.frozen, self.images, self.labels, self.settings, self.spec = frozen, images, labels, settings, spec
        self.objective, self.validation, self.best = objective or Objective("erm", len(images)), validation, {}
        self.data_sha256 = fingerprint(images.cpu(), labels.cpu())
        self.model = frozen.model.requires_grad_()
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.steps_per_epoch = self.objective.length // settings.batch_size
        self.total = settings.epochs * self.steps_per_epoch
        self.average = EMA(self.model, self.averaged, settings.ema_decay, start=self.steps_per_epoch)
        self.optimizer = torch.optim.SGD(self.model.parameters(), settings.lr, momentum=0.9, nesterov=True,
                                         weight_decay=settings.weight_decay)
        self.draws = torch.Generator().manual_seed(settings.seed)
        self.attack_draws = torch.Generator(images.device).manual_seed(settings.seed)
        self.precision = choose_precision(settings.precision, images.device)
        self.step, self.order, self.seconds = 0, None, 0.0

    def advance(self):
        """One step of SGD on the next batch. Returns (loss, share classified rightly), detached."""
        settings, device = self.settings, self.images.device
        place = self.step % self.steps_per_epoch
        if place == 0:
            self.order = self.objective.order(self.draws)
        rows = self.order[place * settings.batch_size:(place + 1) * settings.batch_size].to(device)
        x = augmented(self.images[rows], self.spec.mirror, self.draws, vertical=not self.spec.sound)
        y = self.labels[rows]
        with autocast(device, self.precision):
            if settings.robust:
                self.model.eval()
                x = pgd(self.frozen.logits01, x, y, settings.robust, settings.eps, settings.steps,
                        generator=self.attack_draws)
            self.model.train()
            logits = self.frozen.logits01(x)
        loss = self.objective.loss(logits, y, rows, settings.label_smoothing)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * one_cycle((self.step + 1) / self.total)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self.average.update(self.step)
        return loss.detach(), (logits.detach().argmax(1) == y).float().mean()

    def consider(self):
        """Keep the weights of this epoch where the worst group of the validation images fares best so far."""
        if self.validation is None:
            return
        self.frozen.model = self.averaged.eval()
        predicted = answers(self.frozen, self.validation.images).argmax(1)
        self.frozen.model = self.model
        worst = worst_group(predicted == self.validation.labels, self.validation.groups)
        if worst >= self.best.get("worst_group_accuracy", 0.0):
            self.best = {"epoch": self.step // self.steps_per_epoch, "worst_group_accuracy": worst,
                         "weights": copy.deepcopy(self.averaged.state_dict())}

    def state(self):
        return {"settings": dataclasses.asdict(self.settings), "data_sha256": self.data_sha256, "step": self.step,
                "order": self.order, "seconds": self.seconds, "precision": self.precision,
                "model": self.model.state_dict(),
                "averaged": self.averaged.state_dict(), "optimizer": self.optimizer.state_dict(),
                "draws": self.draws.get_state(), "attack_draws": self.attack_draws.get_state(), "best": self.best,
                "objective": self.objective.state()}

    def load_state(self, state):
        self.step, self.order, self.seconds = state["step"], state["order"], state["seconds"]
        self.precision = state.get("precision", self.precision)
        for name in ("model", "averaged", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.draws.set_state(state["draws"].cpu())
        self.attack_draws.set_state(state["attack_draws"].cpu())
        self.best = state.get("best", {})
        self.objective.load_state(state.get("objective", {}))


def load_progress(path, training):
    """Let a Fit go on from the state that a stopped training left at `path`, where there is one."""
    if not path.is_file():
        return
    state = load_torch(path)
    # a setting that the file does not know was added since, and had then its default
    before = dataclasses.asdict(TrainSettings(out=training.settings.out)) | state["settings"]
    for name, value in dataclasses.asdict(training.settings).items():
        if before[name] != value and name not in MAY_CHANGE:
            raise UserError(f"{path} holds an unfinished training with --{name} {before[name]}, now {value}; give its "
                            "settings to go on, delete it, or give another --out.")
    if state["data_sha256"] != training.data_sha256:
        raise UserError(f"{path} holds an unfinished training on other images (SHA-256 {state['data_sha256'][:12]}, "
                        f"now {training.data_sha256[:12]}); restore them, delete it, or give another --out.")
    training.load_state(state)
    print(f"going on with {path} at step {training.step} of {training.total}")


def fit(training):
    """Take a Fit to its end. After each epoch and on SIGTERM or Ctrl-C its state is written beside `out`."""
    settings = training.settings
    progress = Path(f"{settings.out}.progress")
    load_progress(progress, training)
    before, began = training.seconds, time.monotonic()
    with stop_on_signal() as stopped, tqdm(total=training.total, initial=training.step, unit="step", disable=None,
                                           desc=f"{settings.dataset} {settings.arch}") as bar:
        while training.step < training.total:
            loss, accuracy = training.advance()
            bar.update()
            training.seconds = before + time.monotonic() - began
            epoch_ended = training.step % training.steps_per_epoch == 0
            if training.step % 20 == 0:
                bar.set_postfix(epoch=training.step // training.steps_per_epoch + 1, loss=f"{loss.item():.3f}",
                                acc=f"{accuracy.item():.3f}")
            if (epoch_ended or stopped()) and not loss.isfinite():
                raise UserError(f"the loss became {loss.item()} by step {training.step} and no classifier was written; "
                                f"lower --lr (it is {settings.lr}).")
            if epoch_ended:
                training.consider()
            if epoch_ended or stopped():
                save_torch(progress, training.state())
            if stopped():
                bar.close()
                print(f"stopped at step {training.step} of {training.total}; the same command goes on", file=sys.stderr)
                sys.exit(128 + stopped())


# ------------------------------------------------------------------------------------- measuring


def accuracies(hits, labels, classes):
    """Share of `hits` (N,) bool, overall and per class name; None where there are no images."""
    per_class = {name: hits[labels == k].float().mean().item() if (labels == k).any() else None
                 for k, name in enumerate(classes)}
    return {"overall": hits.float().mean().item() if len(hits) else None, "per_class": per_class}


def hits_of(frozen, images, labels, attack=None):
    """Which uint8 images (N, C, H, W) are classified rightly, after `attack` where given; bool (N,) on the CPU."""
    device, hits = frozen.mean.device, []
    for x, y in zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True):
        x, y = x.to(device).float() / 255, y.to(device)
        if attack is not None:
            x = attack(x, y)
        with torch.no_grad():
            hits.append((frozen.logits01(x).argmax(1) == y).cpu())
    return torch.cat(hits)


def commit():
    """The commit of this code, with '-dirty' after it where tracked files differ from it; '' outside of git."""
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=Path(__file__).parent,
                              capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def measure(frozen, images, labels, classes, settings):
    """Clean accuracy on all test images and accuracy under PGD on some of them, for the card; of a robust classifier
    also under the attack that it was trained against."""
    device, (norm, eps) = frozen.mean.device, settings.attack
    # a test file may be sorted by class
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:settings.num_attacked]
    start = torch.Generator(device).manual_seed(0)

    def hits(steps):
        return hits_of(frozen, images[rows], labels[rows],
                       lambda x, y: pgd(frozen.logits01, x, y, norm, eps, steps, generator=start))

    attacked = hits(TEST_STEPS)
    own = {"own_adversary_accuracy": hits(settings.steps).float().mean().item()} \
        if settings.robust and len(rows) else {}
    attack = {"norm": norm, "eps": eps, "steps": TEST_STEPS, "step_size": 2.5 * eps / TEST_STEPS,
              "random_start": True, "images": len(rows)}
    return {"clean_accuracy": accuracies(hits_of(frozen, images, labels), labels, classes),
            "pgd_accuracy": accuracies(attacked, labels[rows], classes), "attack": attack, **own}


def measure_groups(frozen, test, settings):
    """The card's `groups`: accuracy of each, the worst, and how the predictions follow the attribute.

    following: P(prediction = value | class != value), where each value goes with a class; else None.
    """
    predicted = answers(frozen, test.images).argmax(1)
    accuracy = group_accuracies(predicted == test.labels, test.groups, test.names)
    paired = len(test.names) == frozen.num_classes ** 2
    return {"attribute": settings.groups, "accuracy": accuracy,
            "worst": min(accuracy, key=lambda name: accuracy[name]["rate"]),
            "following": following(predicted, test.labels, test.values) if paired else None}


def report_groups(groups):
    """The card's `groups` as text."""
    lines = [f"{'group':>30}  accuracy"]
    for name, share in groups["accuracy"].items():
        worst = "  worst" if name == groups["worst"] else ""
        lines.append(f"{name:>30}  {share['rate']:6.1%} ({share['low']:.1%} to {share['high']:.1%}) of "
                     f"{share['of']}{worst}")
    if groups["following"]:
        share = groups["following"]
        lines.append(f"where class and {groups['attribute']} disagree, {share['rate']:.1%} ({share['low']:.1%} to "
                     f"{share['high']:.1%}) follow the {groups['attribute']}")
    return "\n".join(lines)


def report(card):
    """The card's accuracies as text: overall and a line a class."""
    clean, robust, attack = card["clean_accuracy"], card["pgd_accuracy"], card["attack"]
    lines = [f"{'class':>12}  clean    PGD-{attack['steps']} {attack['norm']} {attack['eps']}"]
    for name in ("overall", *clean["per_class"]):
        values = [part["overall"] if name == "overall" else part["per_class"][name] for part in (clean, robust)]
        lines.append(f"{name:>12}  " + "  ".join("     -" if v is None else f"{v:6.1%}" for v in values))
    own = card.get("own_adversary_accuracy", 0.0)
    if own > (clean["overall"] or 0.0) + LEAK:
        lines.append(f"warning: of images changed by the adversary that it was trained against, of {card['steps']} "
                     f"step(s), it knows {own:.1%}, more than of clean ones: it has learnt to read the change (label "
                     "leaking, Kurakin et al. 2017) and not to resist. Give more --steps, or a lower --lr.")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------- whole


def make_objective(settings, train, device):
    """The Objective that TrainSettings ask for. Raises UserError where a group that it needs has no image."""
    if settings.objective in BALANCED:
        require_groups(train.groups, train.names, settings.split, f"--objective {settings.objective} draws from")
    return Objective(settings.objective, len(train.images), train.groups, len(train.names), settings.dro_step_size,
                     settings.dro_adjustment, device)


def load_validation(settings, train):
    """The validation Images where the settings look at any, else None. Raises UserError for a group without images."""
    if not (settings.groups and (settings.select or settings.objective == "dfr") or settings.confidence):
        return None
    validation = load_images(settings, settings.validation)
    require_apart(train, validation, settings.split, f"--validation {settings.validation}")
    if settings.groups:
        require_groups(validation.groups, validation.names, settings.validation, "--groups judges by")
    return validation


def finish(frozen, validation, settings, seed):
    """Fit the last layer anew and scale it, where the settings say so; returns what the card says of it."""
    found = {}
    if settings.objective == "dfr":
        found["dfr_C"] = retrain_last_layer(frozen, validation.images, validation.labels, validation.groups, seed)
    if settings.confidence:
        usual = slice(None)
        if validation.groups is not None and len(validation.names) == frozen.num_classes ** 2:
            usual = validation.labels == validation.values  # images on which classifiers of all kinds agree
        found["temperature"] = set_confidence(frozen, validation.images[usual], settings.confidence)
    return found


def begin_with(model, init, arch, channels):
    """Give a new model the weights that --init names; returns what its networks are given: mean, std, resolution.

    Raises UserError for a file of another architecture or of images with other channels.
    """
    if init == "imagenet":
        model.load_imagenet()
        return find(arch)[1]
    start = load_classifier(init)
    if (start.arch, start.channels) != (arch, channels):
        raise UserError(f"--init {init} is a '{start.arch}' for images of {start.channels} channels; give a file of "
                        f"--arch {arch} for {channels}.")
    last = next(name for name, module in model.named_modules() if module is last_layer(model))
    own = {name: value for name, value in model.state_dict().items() if name.startswith(f"{last}.")}
    model.load_state_dict(start.model.state_dict() | own)
    return {"mean": start.mean.flatten().tolist(), "std": start.std.flatten().tolist(), "resolution": start.resolution}


def train_classifier(settings):
    """Train as `settings` (TrainSettings) say; write settings.out and its card, settings.out + '.json'.

    Returns (FrozenClassifier on the device, card). The same settings and threads on the same machine give the same
    weights. Raises UserError for missing data, a batch larger than the set, or a loss that is not finite.
    """
    device, code = choose_device(settings.device), commit()
    train = load_images(settings, settings.split, settings.only, settings.correlation)
    test = load_images(settings, settings.test)
    require_apart(train, test, settings.split, f"--test {settings.test}")
    validation, objective = load_validation(settings, train), make_objective(settings, train, device)
    images, spec = train.images, DATASETS[settings.dataset]
    if settings.batch_size > objective.length:
        raise UserError(f"--batch_size {settings.batch_size} is larger than the {objective.length} training images of "
                        f"{settings.dataset}; give at most {objective.length}.")
    channels, resolution = images.shape[1:3]
    # the caller's random state is not this function's to move
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = build(settings.arch, len(spec.classes), channels)
    usual = begin_with(model, settings.init, settings.arch, channels) if settings.init else {}
    begun = {"init_sha256": hashlib.sha256(Path(settings.init).read_bytes()).hexdigest()} \
        if Path(settings.init).is_file() else {}
    mean, std = (usual["mean"], usual["std"]) if usual else channel_statistics(images)
    frozen = FrozenClassifier(model, len(spec.classes), channels, usual.get("resolution", resolution), mean, std,
                              settings.arch, spec.classes, role=settings.role)
    if not settings.init:
        for module in model.modules():
            if isinstance(module, Whitening):
                module.fit((images[:SAMPLE].float() / 255 - frozen.mean) / frozen.std)
    frozen.to(device, memory_format=torch.channels_last)
    selecting = validation if settings.groups and settings.select and settings.objective != "dfr" else None
    training = Fit(frozen, images.to(device), train.labels.to(device), settings, spec, objective, selecting)
    fit(training)

    frozen.model = training.averaged
    chosen = {}
    if training.best:
        frozen.model.load_state_dict(training.best["weights"])
        chosen = {name: training.best[name] for name in ("epoch", "worst_group_accuracy")}
    finished = finish(frozen.eval(), validation, settings, settings.seed)
    round_to_file(frozen, settings.out)
    card = {"command": settings.command, "commit": code, **dataclasses.asdict(settings), "only": list(settings.only),
            "parameters": sum(value.numel() for value in model.parameters()), "train_images": len(images),
            "data_sha256": training.data_sha256, "test_images": len(test.images),
            "test_sha256": fingerprint(test.images, test.labels),
            **({"images_missing": train.note} if train.note else {}), **begun,
            **measure(frozen, test.images, test.labels, spec.classes, settings)}
    if settings.groups:
        counts = torch.bincount(train.groups, minlength=len(train.names)).tolist()
        card["groups"] = {**measure_groups(frozen, test, settings), "chosen": chosen,
                          "train_images": dict(zip(train.names, counts, strict=True))}
    card |= {**finished, "seconds": round(training.seconds, 1), "torch": str(torch.__version__)}
    frozen.card = card
    save_classifier(settings.out, frozen)
    write_json(f"{settings.out}.json", card)
    Path(f"{settings.out}.progress").unlink(missing_ok=True)
    return frozen, card


def main():
    parser = Parser(prog="python -m classifiers.train", description=__doc__)
    add_flags(parser, TrainSettings)
    settings = TrainSettings(**vars(parser.parse_args()))
    tune(choose_device(settings.device))
    _, card = train_classifier(settings)
    print(report(card))
    if settings.groups:
        print(report_groups(card["groups"]))
    print(f"{card['seconds']:.0f} s; written to {settings.out} and {settings.out}.json")


if __name__ == "__main__":
    run_main(main)
