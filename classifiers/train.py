"""Train a classifier, regular or adversarially robust, and write it with a card of what it can do.

    python -m classifiers.train --dataset digits --arch smallcnn --robust l2 --eps 1.5 --steps 3 --out robust.pt

Adversarial training follows Madry et al. (2018): each batch is replaced by its PGD adversary, computed in
eval mode. SGD with Nesterov momentum; one cycle of the learning rate, as in Smith & Topin (2018).
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
from torch.nn import functional as F
from tqdm import tqdm

from classifiers.architectures import ARCHITECTURES, OTHERS, build, find
from classifiers.attacks import NORMS, pgd
from classifiers.files import round_to_file, save_classifier
from classifiers.frozen import FrozenClassifier
from classifiers.whitening import SAMPLE, Whitening
from config import Parser, add_flags, check_choices, setting
from datasets import load_split
from layers import shift
from utils import (
    DATASETS,
    EMA,
    UserError,
    autocast,
    choose_device,
    load_torch,
    run_main,
    save_torch,
    stop_on_signal,
    tune,
    write_json,
)

WARM_UP = 0.2  # share of training in which the learning rate rises
TEST_STEPS = 20  # PGD steps of the reported accuracy
TEST_BATCH = 256
MAY_CHANGE = ("device", "data_root", "num_attacked")  # settings that a resumed training may be given anew


@dataclass(frozen=True)
class TrainSettings:
    """What decides a trained classifier. Raises UserError for a value that cannot be."""

    dataset: str = setting("C10", "registered data set (utils.DATASETS), prepared by scripts/prepare_data.py")
    split: str = setting("train", "split to train on; a set with a further one, as extra.h5, gives an evaluator that "
                         "saw other images")
    arch: str = setting("smallcnn", f"architecture: {', '.join(ARCHITECTURES)}, {OTHERS}")
    role: str = setting("", "evaluator: a classifier that judges images and may never be probed", ("evaluator",))
    out: str = setting("", "file to write; its card goes beside it as <out>.json")
    robust: str = setting("", "norm of the adversary to train against; not given: a regular classifier", NORMS)
    eps: float = setting(0.0, "radius of the adversary on [0,1] pixels: l2 0.5 suits C10, 1.5 MNIST; linf 0.03")
    steps: int = setting(5, "PGD steps of the adversary while training")
    epochs: int = setting(15, "passes over the training images")
    batch_size: int = setting(64, "images a step")
    lr: float = setting(0.1, "peak of the one-cycle learning rate")
    weight_decay: float = setting(5e-4, "L2 penalty on the weights")
    label_smoothing: float = setting(0.0, "probability spread over the wrong classes in the target")
    ema_decay: float = setting(0.0, "decay a step of the moving average of the weights that is written; 0 is off")
    num_attacked: int = setting(1000, "test images attacked for the card; 1000 give a standard error of 1.6 points")
    seed: int = setting(0, "seed of the initial weights and of all draws")
    data_root: str = setting("datasets", "folder that holds the prepared data sets")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting("fp32", "arithmetic of the forward passes", ("fp32", "bf16"))

    def __post_init__(self):
        check_choices(self)
        find(self.arch)
        if self.split == "test":
            raise UserError("--split test is what the card's accuracy is measured on; train on another split.")
        if not self.out or Path(self.out).is_dir():
            raise UserError(f"--out '{self.out}' is not a file name; give one, as in --out runs/classifiers/robust.pt.")
        if bool(self.robust) != (self.eps > 0):
            raise UserError(f"--robust '{self.robust}' with --eps {self.eps} is no adversary: give both, as in "
                            "--robust l2 --eps 1.5, or neither for a regular classifier.")
        for name in ("steps", "epochs", "batch_size", "num_attacked"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.lr > 0 or not self.weight_decay >= 0 or not 0 <= self.label_smoothing < 1 or \
                not 0 <= self.ema_decay < 1:
            raise UserError(f"--lr {self.lr}, --weight_decay {self.weight_decay}, --label_smoothing "
                            f"{self.label_smoothing}, --ema_decay {self.ema_decay}: lr must be positive, weight_decay "
                            "not negative, label_smoothing and ema_decay in [0, 1).")

    @property
    def attack(self):
        """(norm, eps) of the reported attack: the one trained against, else L2 0.5 as in the Madry lab's tables."""
        return (self.robust, self.eps) if self.robust else ("l2", 0.5)

    @property
    def command(self):
        """The command line that makes this classifier."""
        words = ["python", "-m", "classifiers.train"]
        for field in dataclasses.fields(self):
            if getattr(self, field.name) != field.default:
                words += [f"--{field.name}", str(getattr(self, field.name))]
        return shlex.join(words)


# ------------------------------------------------------------------------------------------ data


def fingerprint(images, labels):
    """SHA-256 of the bytes of images (uint8) and labels (int64), in their order."""
    return hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()


def channel_statistics(images):
    """(mean, std) of each channel of uint8 images (N, C, H, W), in units of [0, 1], as lists of C floats."""
    pixels = [images[:, c].float() / 255 for c in range(images.shape[1])]
    # a channel of one value still needs a divisor
    return [p.mean().item() for p in pixels], [max(p.std().item(), 1 / 255) for p in pixels]


def augmented(images, flip, generator):
    """uint8 (B, C, H, W) -> float in [0, 1]: shifted by up to a sixteenth of the height, mirrored at random."""
    images = shift(images, images.shape[2] // 16, fill=0, generator=generator)
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
    labels (N,), both on the device.
    """

    def __init__(self, frozen, images, labels, settings, flip):
        self.frozen, self.images, self.labels, self.settings, self.flip = frozen, images, labels, settings, flip
        self.data_sha256 = fingerprint(images.cpu(), labels.cpu())
        self.model = frozen.model.requires_grad_()
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.steps_per_epoch = len(images) // settings.batch_size
        self.total = settings.epochs * self.steps_per_epoch
        self.average = EMA(self.model, self.averaged, settings.ema_decay, start=self.steps_per_epoch)
        self.optimizer = torch.optim.SGD(self.model.parameters(), settings.lr, momentum=0.9, nesterov=True,
                                         weight_decay=settings.weight_decay)
        self.draws = torch.Generator().manual_seed(settings.seed)
        self.attack_draws = torch.Generator(images.device).manual_seed(settings.seed)
        self.step, self.order, self.seconds = 0, None, 0.0

    def advance(self):
        """One step of SGD on the next batch. Returns (loss, share classified rightly), detached."""
        settings, device = self.settings, self.images.device
        place = self.step % self.steps_per_epoch
        if place == 0:
            self.order = torch.randperm(len(self.images), generator=self.draws)
        rows = self.order[place * settings.batch_size:(place + 1) * settings.batch_size].to(device)
        x, y = augmented(self.images[rows], self.flip, self.draws), self.labels[rows]
        with autocast(device, settings.precision):
            if settings.robust:
                self.model.eval()
                x = pgd(self.frozen.logits01, x, y, settings.robust, settings.eps, settings.steps,
                        generator=self.attack_draws)
            self.model.train()
            logits = self.frozen.logits01(x)
        loss = F.cross_entropy(logits, y, label_smoothing=settings.label_smoothing)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * one_cycle((self.step + 1) / self.total)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self.average.update(self.step)
        return loss.detach(), (logits.detach().argmax(1) == y).float().mean()

    def state(self):
        return {"settings": dataclasses.asdict(self.settings), "data_sha256": self.data_sha256, "step": self.step,
                "order": self.order, "seconds": self.seconds, "model": self.model.state_dict(),
                "averaged": self.averaged.state_dict(), "optimizer": self.optimizer.state_dict(),
                "draws": self.draws.get_state(), "attack_draws": self.attack_draws.get_state()}

    def load_state(self, state):
        self.step, self.order, self.seconds = state["step"], state["order"], state["seconds"]
        for name in ("model", "averaged", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.draws.set_state(state["draws"].cpu())
        self.attack_draws.set_state(state["attack_draws"].cpu())


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
    """Clean accuracy on all test images and accuracy under PGD on some of them, for the card."""
    device, (norm, eps) = frozen.mean.device, settings.attack
    # a test file may be sorted by class
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:settings.num_attacked]
    start = torch.Generator(device).manual_seed(0)
    attacked = hits_of(frozen, images[rows], labels[rows],
                       lambda x, y: pgd(frozen.logits01, x, y, norm, eps, TEST_STEPS, generator=start))
    attack = {"norm": norm, "eps": eps, "steps": TEST_STEPS, "step_size": 2.5 * eps / TEST_STEPS,
              "random_start": True, "images": len(rows)}
    return {"clean_accuracy": accuracies(hits_of(frozen, images, labels), labels, classes),
            "pgd_accuracy": accuracies(attacked, labels[rows], classes), "attack": attack}


def report(card):
    """The card's accuracies as text: overall and a line a class."""
    clean, robust, attack = card["clean_accuracy"], card["pgd_accuracy"], card["attack"]
    lines = [f"{'class':>12}  clean    PGD-{attack['steps']} {attack['norm']} {attack['eps']}"]
    for name in ("overall", *clean["per_class"]):
        values = [part["overall"] if name == "overall" else part["per_class"][name] for part in (clean, robust)]
        lines.append(f"{name:>12}  " + "  ".join("     -" if v is None else f"{v:6.1%}" for v in values))
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------- whole


def train_classifier(settings):
    """Train as `settings` (TrainSettings) say; write settings.out and its card, settings.out + '.json'.

    Returns (FrozenClassifier on the device, card). The same settings and threads on the same machine give the same
    weights. Raises UserError for missing data, a batch larger than the set, or a loss that is not finite.
    """
    device, code = choose_device(settings.device), commit()
    images, labels = load_split(settings.dataset, settings.data_root, settings.split)
    test_images, test_labels = load_split(settings.dataset, settings.data_root, "test")
    spec = DATASETS[settings.dataset]
    if settings.batch_size > len(images):
        raise UserError(f"--batch_size {settings.batch_size} is larger than the {len(images)} training images of "
                        f"{settings.dataset}; give at most {len(images)}.")
    channels, resolution = images.shape[1:3]
    # the caller's random state is not this function's to move
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = build(settings.arch, len(spec.classes), channels)
    frozen = FrozenClassifier(model, len(spec.classes), channels, resolution, *channel_statistics(images),
                              settings.arch, spec.classes, role=settings.role)
    for module in model.modules():
        if isinstance(module, Whitening):
            module.fit((images[:SAMPLE].float() / 255 - frozen.mean) / frozen.std)
    frozen.to(device, memory_format=torch.channels_last)
    training = Fit(frozen, images.to(device), labels.to(device), settings, flip=spec.mirror)
    fit(training)

    frozen.model = training.averaged
    round_to_file(frozen, settings.out)
    card = {"command": settings.command, "commit": code, **dataclasses.asdict(settings),
            "parameters": sum(value.numel() for value in model.parameters()), "train_images": len(images),
            "data_sha256": training.data_sha256, "test_images": len(test_images),
            "test_sha256": fingerprint(test_images, test_labels),
            **measure(frozen, test_images, test_labels, spec.classes, settings),
            "seconds": round(training.seconds, 1), "torch": str(torch.__version__)}
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
    print(f"{card['seconds']:.0f} s; written to {settings.out} and {settings.out}.json")


if __name__ == "__main__":
    run_main(main)
