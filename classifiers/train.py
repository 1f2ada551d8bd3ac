"""Train a classifier, regular or adversarially robust, and write it with a card of what it can do.

    python -m classifiers.train --dataset digits --arch smallcnn --robust l2 --eps 1.5 --steps 3 --out robust.pt

Adversarial training follows Madry et al. (2018): each batch is replaced by its PGD adversary, computed in
eval mode. SGD with Nesterov momentum; one cycle of the learning rate, as in Smith & Topin (2018).
"""

import dataclasses
import hashlib
import math
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from classifiers.architectures import ARCHITECTURES, build
from classifiers.attacks import NORMS, pgd
from classifiers.frozen import FrozenClassifier
from config import Parser, add_flags, check_choices, setting
from datasets import load_split
from layers import shift
from utils import DATASETS, UserError, autocast, choose_device, run_main, save_torch, write_json

WARM_UP = 0.2  # share of training in which the learning rate rises
TEST_STEPS = 20  # PGD steps of the reported accuracy
TEST_IMAGES = 1000  # test images attacked: a standard error of 1.6 points at most
TEST_BATCH = 256


@dataclass(frozen=True)
class TrainSettings:
    """What decides a trained classifier. Raises UserError for a value that cannot be."""

    dataset: str = setting("C10", "registered data set (utils.DATASETS), prepared by scripts/prepare_data.py")
    arch: str = setting("smallcnn", "architecture", tuple(ARCHITECTURES))
    out: str = setting("", "file to write; its card goes beside it as <out>.json")
    robust: str = setting("", "norm of the adversary to train against; not given: a regular classifier", NORMS)
    eps: float = setting(0.0, "radius of the adversary on [0,1] pixels: l2 0.5 suits C10, 1.5 MNIST; linf 0.03")
    steps: int = setting(5, "PGD steps of the adversary while training")
    epochs: int = setting(15, "passes over the training images")
    batch_size: int = setting(64, "images a step")
    lr: float = setting(0.1, "peak of the one-cycle learning rate")
    weight_decay: float = setting(5e-4, "L2 penalty on the weights")
    label_smoothing: float = setting(0.0, "probability spread over the wrong classes in the target")
    seed: int = setting(0, "seed of the initial weights and of all draws")
    data_root: str = setting("datasets", "folder that holds the prepared data sets")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting("fp32", "arithmetic of the forward passes", ("fp32", "bf16"))

    def __post_init__(self):
        check_choices(self)
        if not self.out or Path(self.out).is_dir():
            raise UserError(f"--out '{self.out}' is not a file name; give one, as in --out runs/classifiers/robust.pt.")
        if bool(self.robust) != (self.eps > 0):
            raise UserError(f"--robust '{self.robust}' with --eps {self.eps} is no adversary: give both, as in "
                            "--robust l2 --eps 1.5, or neither for a regular classifier.")
        for name in ("steps", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.lr > 0 or not self.weight_decay >= 0 or not 0 <= self.label_smoothing < 1:
            raise UserError(f"--lr {self.lr}, --weight_decay {self.weight_decay}, --label_smoothing "
                            f"{self.label_smoothing}: lr must be positive, weight_decay not negative, "
                            "label_smoothing in [0, 1).")

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


def fit(model, normalised, images, labels, settings, flip):
    """Train `model` in place. normalised: images in [0, 1] -> logits of the model; images uint8, on the device."""
    count, device = len(images), images.device
    draws = torch.Generator().manual_seed(settings.seed)
    attack_draws = torch.Generator(device).manual_seed(settings.seed)
    steps_per_epoch = count // settings.batch_size
    optimizer = torch.optim.SGD(model.parameters(), settings.lr, momentum=0.9, nesterov=True,
                                weight_decay=settings.weight_decay)
    total = settings.epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle((step + 1) / total))
    with tqdm(total=total, desc=f"{settings.dataset} {settings.arch}", unit="step",
              disable=None) as bar:
        for epoch in range(settings.epochs):
            order = torch.randperm(count, generator=draws).to(device)
            for i in range(steps_per_epoch):
                rows = order[i * settings.batch_size:(i + 1) * settings.batch_size]
                x, y = augmented(images[rows], flip, draws), labels[rows]
                with autocast(device, settings.precision):
                    if settings.robust:
                        model.eval()
                        x = pgd(normalised, x, y, settings.robust, settings.eps, settings.steps, generator=attack_draws)
                    model.train()
                    logits = normalised(x).float()
                loss = F.cross_entropy(logits, y, label_smoothing=settings.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                if i % 20 == 0:
                    accuracy = (logits.argmax(1) == y).float().mean().item()
                    bar.set_postfix(epoch=epoch + 1, loss=f"{loss.item():.3f}", acc=f"{accuracy:.3f}")
            if not loss.isfinite():
                raise UserError(f"the loss became {loss.item()} in epoch {epoch + 1} and nothing was written; "
                                f"lower --lr (it is {settings.lr}).")


# ------------------------------------------------------------------------------------- measuring


def accuracies(hits, labels, classes):
    """Share of `hits` (N,) bool, overall and per class name; None for a class without images."""
    per_class = {name: hits[labels == k].float().mean().item() if (labels == k).any() else None
                 for k, name in enumerate(classes)}
    return {"overall": hits.float().mean().item(), "per_class": per_class}


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


def measure(frozen, images, labels, classes, norm, eps):
    """Clean accuracy on all test images and accuracy under PGD on at most TEST_IMAGES of them, for the card."""
    device = frozen.mean.device
    # a test file may be sorted by class
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:TEST_IMAGES]
    start = torch.Generator(device).manual_seed(0)
    attacked = hits_of(frozen, images[rows], labels[rows],
                       lambda x, y: pgd(frozen.logits01, x, y, norm, eps, TEST_STEPS, generator=start))
    settings = {"norm": norm, "eps": eps, "steps": TEST_STEPS, "step_size": 2.5 * eps / TEST_STEPS,
                "random_start": True, "images": len(rows)}
    return {"clean_accuracy": accuracies(hits_of(frozen, images, labels), labels, classes),
            "pgd_accuracy": accuracies(attacked, labels[rows], classes), "attack": settings}


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

    Returns (FrozenClassifier on the device, card). The same settings on the same machine give the same
    weights. Raises UserError for missing data, a batch larger than the set, or a loss that is not finite.
    """
    began = time.monotonic()
    device = choose_device(settings.device)
    images, labels = load_split(settings.dataset, settings.data_root, "train")
    test_images, test_labels = load_split(settings.dataset, settings.data_root, "test")
    spec = DATASETS[settings.dataset]
    if settings.batch_size > len(images):
        raise UserError(f"--batch_size {settings.batch_size} is larger than the {len(images)} training images of "
                        f"{settings.dataset}; give at most {len(images)}.")
    channels, resolution = images.shape[1:3]
    mean, std = channel_statistics(images)
    # the caller's random state is not this function's to move
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = build(settings.arch, len(spec.classes), channels)
    model = model.to(device, memory_format=torch.channels_last)
    shape = (1, channels, 1, 1)
    mean_on, std_on = (torch.tensor(v, device=device).view(shape) for v in (mean, std))
    fit(model, lambda x: model((x - mean_on) / std_on), images.to(device), labels.to(device), settings,
        flip=spec.mirror)

    frozen = FrozenClassifier(model, len(spec.classes), channels, resolution, mean, std, settings.arch, spec.classes)
    frozen = frozen.to(device)
    card = {"command": settings.command, **dataclasses.asdict(settings), "train_images": len(images),
            "data_sha256": fingerprint(images, labels), "test_images": len(test_images),
            "test_sha256": fingerprint(test_images, test_labels),
            **measure(frozen, test_images, test_labels, spec.classes, *settings.attack),
            "seconds": round(time.monotonic() - began, 1), "torch": str(torch.__version__)}
    frozen.card = card
    save_torch(settings.out, {"arch": settings.arch, "num_classes": len(spec.classes), "channels": channels,
                              "resolution": resolution, "mean": mean, "std": std, "classes": list(spec.classes),
                              "state_dict": {k: v.cpu().contiguous() for k, v in model.state_dict().items()},
                              "card": card})
    write_json(f"{settings.out}.json", card)
    return frozen, card


def main():
    parser = Parser(prog="python -m classifiers.train", description=__doc__)
    add_flags(parser, TrainSettings)
    settings = TrainSettings(**vars(parser.parse_args()))
    _, card = train_classifier(settings)
    print(report(card))
    print(f"{card['seconds']:.0f} s; written to {settings.out} and {settings.out}.json")


if __name__ == "__main__":
    run_main(main)
