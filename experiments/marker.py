"""A known answer: plant a marker, and see whether ProbeGAN says where it was (the paper, section 4.3, appendix B.1).

    python -m experiments.marker --dataset digits --new_class 7      bundled digits
    python -m experiments.marker --dataset MNIST --new_class 7 --runs runs/marker_mnist
    python -m experiments.marker --dataset C10 --new_class horse --runs runs/marker_c10         needs a GPU

The marker is a block in both top corners, red where there is colour and white where there is none, of a quarter of the
side: 8x8 at 32x32, as in the paper. Three runs with y* unseen, which differ in who was shown the marker:

  remembered   the classifier, in its images of y* alone; the GAN's image set lacks y*     must appear
  leaked       the image set, which holds y* (--oracle); the classifier saw plain images   must appear, as leakage
  nowhere      nobody; the image set lacks y*                                              must not appear

Stopped, the same command goes on. Writes marker.md, marker.json and marker.png into --runs. Exit code 0: all answers
are as known; 1: one is not. Other flags of train.py hold for all three runs.
"""

import dataclasses
import functools
import json
import math
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from classifiers import load_classifier
from classifiers.train import TrainSettings, fingerprint, hits_of
from config import Parser
from datasets import load_split
from datasets.prepare import Split, write
from experiments.engine import (
    Measurement,
    Product,
    Run,
    complete_here,
    conclude,
    from_root,
    plain_config,
    read_state,
    refuse_words,
)
from files import append_lines
from methods import load_run
from metrics.recognition import rate
from sampler import make_sampler
from train import RESUME_FLAGS
from utils import (
    DATASETS,
    ROOT,
    UserError,
    choose_device,
    run_main,
    save_grid,
    stop_on_signal,
    to_uint8,
    to_unit_range,
    write_json,
)

# Short runs for a CPU; other data sets are trained as in the paper. MNIST's corners are always black, so that D_u alone
# would keep them so: its weight on y* is lowered.
PAPER = "--penalty wgan-gp --gp_coeff 10 --gp_every 1 --C_bound 0 --C_bound_new 0 --spread_coeff 0 --no-balanced_y " \
        "--no-level_unseen --diffaug translation --ema_decay 0.98 --ema_start 50 --ema_rampup 0"
QUICK = {"digits": f"--G_ch 8 --D_ch 8 --batch_size 64 --num_steps 250 --G_lr 1e-3 {PAPER}",
         "MNIST": "--G_ch 8 --D_ch 8 --batch_size 16 --num_steps 600 --num_D_steps 1 --G_lr 2e-3 --D_lr 2e-3 "
                  f"--G_new_coeff 0.02 {PAPER}"}
QUICK_IMAGES = 10_000
TESTED = 2_000  # test images, at most
# the least strength that counts: the classifier asks for as much of its marker as it needs, D_u for as little as can be
FAINTEST = 0.1
COLUMNS = 10  # images in a row of marker.png


@dataclass(frozen=True)
class Condition:
    """One run of the experiment. classifier, images: which copy of the data each was trained on."""

    name: str
    classifier: str
    images: str
    appears: bool  # the known answer
    meaning: str  # what the marker in a fake of y* says

    @property
    def oracle(self):
        """Only images of y* can bring the marker into the image set."""
        return self.images == "marked"


CONDITIONS = (
    Condition("remembered", "marked", "plain", True,
              "the classifier remembered the marker: no image that the GAN was shown had it"),
    Condition("leaked", "plain", "marked", True,
              "LEAKAGE: the marker came from the image set, not from the classifier, which never saw it"),
    Condition("nowhere", "plain", "plain", False, "nobody was shown the marker"),
)

# ------------------------------------------------------------------------------------------ the marker


def marker_side(spec):
    """Pixels a side of the marker's blocks. Raises UserError for images too small to hold it."""
    if spec.resolution < 16:
        raise UserError(f"the images of {spec.folder} have {spec.resolution} pixels a side, too few for a marker that "
                        "can be told from noise; use a data set of at least 16.")
    return spec.resolution // 4


def plant(images, side):
    """A copy of uint8 images (N, C, H, W) with the marker: side x side blocks in both top corners."""
    images, colour = images.clone(), (255, 0, 0) if images.shape[1] == 3 else (255,)
    for columns in (slice(0, side), slice(-side, None)):
        images[:, :, :side, columns] = torch.tensor(colour, dtype=torch.uint8).view(-1, 1, 1)
    return images


def marker_scores(images, side):
    """How clearly each of uint8 images (N, C, H, W) has the marker: (N,), about 1 with it and 0 without.

    The mean of the two top corners less that of the bottom ones, which no marker touches and a haze would; in units of
    white, or of redness (red less the mean of green and blue).
    """
    x = images.float() / 255
    x = x[:, 0] - x[:, 1:].mean(1) if images.shape[1] == 3 else x[:, 0]  # (N, H, W)
    corners = torch.cat((x[:, :, :side], x[:, :, -side:]), 2)  # (N, H, 2 side)
    return corners[:, :side].mean((1, 2)) - corners[:, -side:].mean((1, 2))


def set_threshold(without, having):
    """The score from which an image counts as marked, from scores (N,) of real images without and with the marker.

    FAINTEST of the way from the median of the first to that of the second, and above 99 % of the first. Raises
    UserError where it is not below 99 % of the second.
    """
    low, high = without.median(), having.median()
    threshold = max(low + FAINTEST * (high - low), without.quantile(0.99)).item()
    if threshold >= having.quantile(0.01):
        raise UserError("the marker cannot be told from what these images have in their corners: 1% of the plain real "
                        f"images score above {threshold:.2f}, and so few of the marked ones do; use another data set.")
    return threshold


def answer(unseen, seen):
    """Whether the marker appears: True, False, or None where the images do not decide.

    unseen, seen: rates of marked fakes of y* and of the seen classes, as metrics.recognition.rate gives them. This is
    the rule. It appears if most fakes of y* have it, and more of them than of the seen classes, for it was planted in
    y* alone. It does not appear if fewer than 1 in 20 have it: the detector itself errs in up to 1 of 100. Each
    statement must hold for the whole 95 % interval.
    """
    if unseen["low"] > max(0.5, seen["high"]):
        return True
    return False if unseen["high"] < 0.05 else None


# -------------------------------------------------------------------------------------------- the data


def subset(images, labels, most):
    """At most `most` of the images and labels, drawn at random once for all (a file may be sorted by class)."""
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:most].sort().values
    return images[rows], labels[rows]


def write_copy(data_root, spec, splits, side=0, label=-1):
    """A prepared data set below data_root, with the marker in the images of `label` alone.

    splits: {name: (images uint8 (N, C, H, W), labels (N,))}. A copy that is there is kept.
    """
    folder = Path(data_root) / spec.folder
    if all((folder / f"{name}.h5").is_file() for name in splits):
        return
    parts = {}
    for name, (images, labels) in splits.items():
        rows, images = labels == label, images.clone()
        images[rows] = plant(images[rows], side)
        parts[name] = Split(labels.numpy(), images.numpy().__getitem__)
    write(folder, spec, parts)


def refuse_other(path, made):
    """Write `made`, plain values by name, to path; raise UserError where it holds other ones: of other runs."""
    made = json.loads(json.dumps(made))
    if path.is_file():
        before = json.loads(path.read_text())
        for name in before | made:
            if before.get(name) != made.get(name):
                raise UserError(f"{path.parent} holds runs with {name} {before.get(name)}, now {made.get(name)}; give "
                                "their settings to go on with them, or another --runs.")
    write_json(path, made)


# ------------------------------------------------------------------------------------------ the runs


def keys_on_marker(frozen, images, labels, y, side):
    """What the marker means to a classifier, as shares of test images (uint8 (N, C, H, W), labels (N,))."""
    own, others = images[labels == y], images[labels != y]
    asked = {"y* with marker": plant(own, side), "y* without": own, "others with marker": plant(others, side),
             "others without": others}
    return {name: hits_of(frozen, x, torch.full((len(x),), y)).float().mean().item() for name, x in asked.items()}


def draw_fakes(sampler, labels, num, seed):
    """uint8 (n, C, H, W): about `num` fakes in all, equally many of each of `labels`; no two of one latent."""
    each = math.ceil(num / len(labels))
    return torch.cat([to_uint8(sampler.class_images(y, range(seed + k * each, seed + (k + 1) * each)))
                      for k, y in enumerate(labels)])


def marked_rate(images, side, threshold):
    """The rate of marked ones among uint8 images (N, C, H, W), with its interval, and their median score."""
    scores = marker_scores(images, side)
    return rate((scores > threshold).sum(), len(images)) | {"score": scores.median().item()}


def measure(run, y, num, side, threshold):
    """Append to a Run's results.jsonl how many of about `num` fakes are marked, of y* and of the seen classes."""
    sampler, seed = make_sampler(load_run(ROOT / run.path), choose_device(run.config["device"])), run.config["seed"]
    for group, labels in (("y*", [y]), ("seen", [k for k in sampler.drawn if k != y])):
        found = marked_rate(draw_fakes(sampler, labels, num, seed), side, threshold)
        append_lines(ROOT / run.path / "results.jsonl", [{"metric": "marker", "group": group, **found}])


def figures_of(records):
    """{group: its rate} of the records that `measure` wrote."""
    return {record["group"]: {key: record[key] for key in ("rate", "low", "high", "of", "score")} for record in records}


# ---------------------------------------------------------------------------------------- the report

WORDS = {True: "appears", False: "does not appear", None: "undecided"}


def percent(share):
    return f"{share['rate']:.1%} ({share['low']:.1%} to {share['high']:.1%})"


def report(found):
    """The findings of marker.json as Markdown."""
    detector = found["detector"]
    lines = [f"# Marker: {found['dataset']}, y* = {found['new_class']}", "",
             f"A block of {found['side']}x{found['side']} pixels in both top corners. Detector: a score (mean of the "
             f"top corners less that of the bottom ones) above {detector['threshold']:.3f}, a tenth of the full "
             f"marker's or what 1 % of plain real test images exceed; it calls marked "
             f"{percent(detector['plain real'])} of the plain ones and {percent(detector['marked real y*'])} of the "
             f"marked ones of y*, whose median score is {detector['marked real y*']['score']:.2f}.", "",
             "Test images that each classifier calls y*:", ""]
    asked = list(found["classifiers"]["plain"])
    lines += [f"| classifier trained on | {' | '.join(asked)} |", "|---" * (len(asked) + 1) + "|"]
    for name, shares in found["classifiers"].items():
        lines.append(f"| {name} images | {' | '.join(f'{share:.1%}' for share in shares.values())} |")
    lines += ["", "| marker | marked fakes of y* | median score | of the seen classes | median score | known answer | "
              "found | |", "|---" * 8 + "|"]
    for name, part in found["conditions"].items():
        rates = " | ".join(f"{percent(part[of])} | {part[of]['score']:.2f}" for of in ("y*", "seen"))
        lines.append(f"| {name} | {rates} | {WORDS[part['known']]} | "
                     f"{WORDS[part['found']]} | {'holds' if part['holds'] else 'FAILS'} |")
    for name, part in found["conditions"].items():
        lines += ["", f"{name}: {part['audit']} "
                  + ("Whether the marker appears is undecided" if part["found"] is None else
                     f"The marker {WORDS[part['found']]}")
                  + (f": {part['meaning']}." if part["found"] else ".")]
    lines += ["", "Rates with 95 % Wilson intervals over images, of one run each. Appears: the interval of y* lies "
              "above 50 % and above that of the seen classes; does not appear: it lies below 5 %."]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------ the whole


def experiment(words, runs, num, most, eps, epochs):
    """All of it, for flags of train.py without --C_path and --oracle, which each run has of its own; returns what
    marker.json holds.

    runs: the folder. num: fakes judged. most: training images used, None for all. eps, epochs: of the classifiers.
    Raises UserError before anything is trained where the data set, or what `runs` holds, does not fit; and after, where
    something could not be trained. Ends the process where it was stopped.
    """
    config = plain_config(words)
    spec, (y,), device = DATASETS[config["dataset"]], config["new_class"], choose_device(config["device"])
    side = marker_side(spec)
    splits = {name: subset(*load_split(config["dataset"], config["data_root"], name), count)
              for name, count in (("train", most), ("test", TESTED))}
    images, labels = splits["test"]
    if (labels == y).sum() < COLUMNS:
        raise UserError(f"the test split has {(labels == y).sum()} images of {spec.classes[y]}; the detector needs at "
                        f"least {COLUMNS}. Prepare the data set with a larger test split.")
    without, having = marker_scores(images, side), marker_scores(plant(images, side), side)
    threshold = set_threshold(without, having)
    of_C = TrainSettings(dataset=config["dataset"], steps=3, eps=eps, epochs=epochs,
                         arch=config["C_arch"] or ("resnet9" if spec.channels == 3 else "smallcnn"),
                         robust="l2" if spec.channels == 3 else "linf", num_attacked=200,
                         seed=config["seed"], device=config["device"], precision=config["precision"], out="C.pt")
    kept = {name: value for name, value in config.items() if name not in MAY_CHANGE}
    kept |= {f"classifier's {name}": getattr(of_C, name) for name in ("arch", "robust", "eps", "epochs")}
    refuse_other(ROOT / runs / "settings.json", kept | {"images of SHA-256": fingerprint(*splits["train"])})

    real = plant(images[labels == y], side)
    found = {"dataset": config["dataset"], "new_class": spec.classes[y], "side": side, "num": num,
             "detector": {"threshold": threshold, "plain real": marked_rate(images, side, threshold),
                          "marked real y*": marked_rate(real, side, threshold)},
             "classifiers": {}, "conditions": {}}
    classifiers, cases = {}, {}
    for copy in ("plain", "marked"):
        write_copy(ROOT / runs / f"data_{copy}", spec, splits, side, y if copy == "marked" else -1)
        of_copy = dataclasses.replace(of_C, out=str(runs / f"C_{copy}.pt"), data_root=str(runs / f"data_{copy}"))
        classifiers[copy] = Product("marker", Path(of_copy.out), tuple(shlex.split(of_copy.command)[1:]))
    measurement = Measurement(functools.partial(measure, y=y, num=num, side=side, threshold=threshold), figures_of,
                              functools.partial(dict, num=num, threshold=threshold))
    for case in CONDITIONS:
        C = classifiers[case.classifier]
        # one that keys on the marker does not know plain images of y*, which its check would say
        own = ("--data_root", str(runs / f"data_{case.images}"), "--C_path", str(C.path), "--skip_classifier_check")
        own = (*words, *own, *(["--oracle"] if case.oracle else []))
        cases[case] = Run("marker", runs / case.name, own, plain_config(own), True, measurement, (C,), drawn=True)
    with stop_on_signal() as stopped:
        complete_here(cases.values(), time.time(), stopped)
    if stopped():
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(128 + stopped())
    for node in (*classifiers.values(), *cases.values()):
        if error := read_state(node).get("error"):
            raise UserError(f"{node.path}: {error} (its whole output is in {node.file('.log')})")

    for copy, C in classifiers.items():
        frozen = load_classifier(ROOT / C.path, device=device)
        found["classifiers"][copy] = keys_on_marker(frozen, images, labels, y, side)
    rows = {"real, marked": to_unit_range(real[:COLUMNS])}
    for case, run in cases.items():
        state, rates = load_run(ROOT / run.path), read_state(run)["measured"]["figures"]
        first = config["seed"]
        rows[case.name] = make_sampler(state, device).class_images(y, range(first, first + COLUMNS))
        said = answer(rates["y*"], rates["seen"])
        found["conditions"][case.name] = {**rates, "known": case.appears, "found": said, "holds": said == case.appears,
                                          "meaning": case.meaning, "audit": state["audit"]["statement"]}
    save_grid(ROOT / runs / "marker.png", torch.stack(list(rows.values())), list(rows),
              caption=f"{config['dataset']}, y* = {spec.classes[y]}")
    return found


# settings of which the runs may be given other ones when they go on; the last three each run has of its own
MAY_CHANGE = {*RESUME_FLAGS, "data_root", "C_path", "oracle"} - {"num_steps"}
SET_HERE = ("oracle", "C_path", "method")


def main():
    parser = Parser(prog="python -m experiments.marker", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/marker"), help="folder to write (default: runs/marker)")
    parser.add_argument("--num", type=int, default=500, help="fakes that are judged, of y* and of the others")
    parser.add_argument("--images", type=int, help=f"training images used, at most (default: {QUICK_IMAGES} of "
                        f"{' and '.join(QUICK)}, else all)")
    parser.add_argument("--eps", type=float, help="radius of the classifiers' adversary, L2 in colour, else Linf: a "
                        "classifier takes any marker that its adversary could not draw (default: 0.5, else 0.2)")
    parser.add_argument("--epochs", type=int, help="of the classifiers (default: 3 for MNIST, 20 for digits, else 15)")
    flags, words = parser.parse_known_args()
    runs, num, most, eps, epochs = (getattr(flags, name) for name in ("runs", "num", "images", "eps", "epochs"))
    refuse_words(words, SET_HERE)
    config = plain_config(words)
    name, channels = config["dataset"], DATASETS[config["dataset"]].channels
    if len(config["new_class"]) != 1:
        raise UserError(f"the marker is planted in one class; {len(config['new_class'])} were given as --new_class.")
    if num < 100:
        raise UserError(f"--num is {num}; of fewer than 100 fakes none could show that the marker does not appear.")
    if most is not None and most < 1:
        raise UserError(f"--images is {most}; it must be at least 1.")
    runs, words = from_root(runs), (*shlex.split(QUICK.get(name, "")), *words)
    found = experiment(words, runs, num, most or (QUICK_IMAGES if name in QUICK else None),
                       eps or (0.5 if channels == 3 else 0.2), epochs or {"MNIST": 3, "digits": 20}.get(name, 15))
    conclude(found, found["conditions"], runs / "marker", report,
             "a row of real images with the marker, then y* in each run")


if __name__ == "__main__":
    run_main(main)
