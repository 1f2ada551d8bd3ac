"""A known answer: what only the images can teach must be spread over y* as over them (common features, section 3.3).

    python -m experiments.hue --dataset MNIST --new_class 7
    python -m experiments.hue --dataset digits --new_class 7 --classifier runs/quickstart_classifiers/probed.pt

Every image of the set is given a random hue, independent of its class, and of one luminance; the probed classifier is
of grey images and sees luminance alone. So the hue of a drawn y* comes from D, which has it from the seen classes:
class dilution carries it over where it does its work. Measured over 12 bins as the total variation to the seen classes'
real images, of hue, and for comparison of thickness and slant, in which classes differ by nature; and how far an image
is of one hue, as every real one is. Known answers: ProbeGAN's y* is within 0.15 in hue and at 0.85 or more of one hue,
and NAIVE's, whose D sees y* apart, is not.

Stopped, the same command goes on. Writes hue.md, hue.json and hue.png into --runs. Exit code 0: the answers are as
known; 1: one is not. Other flags of train.py hold for both runs.
"""

import functools
import math
import sys
import time
from pathlib import Path

import torch

from classifiers import load_classifier
from classifiers.train import fingerprint
from config import Parser
from datasets import load_split
from datasets.prepare import Split, write
from experiments.engine import (
    Measurement,
    Run,
    classifier_path,
    complete_here,
    conclude,
    from_root,
    plain_config,
    read_state,
    refuse_words,
)
from experiments.marker import MAY_CHANGE, draw_fakes, refuse_other, subset
from files import append_lines
from methods import load_run
from sampler import make_sampler
from utils import (
    DATASETS,
    ROOT,
    UserError,
    choose_device,
    run_main,
    save_grid,
    stop_on_signal,
    to_unit_range,
)

LUMINANCE = 0.45  # of a coloured image, as a share of the grey one's: as bright as blue can be
SATURATION = 0.6
BINS, MOST = 12, 0.15  # of the hue circle; the total variation up to which a hue is spread as in the set
LEAST = 0.85  # of `unity_of`, from which an image has one hue
IMAGES = {"digits": None, "MNIST": 10_000}  # training images used, at most
METHODS = {"probegan": True, "naive": False}  # whether the hue is to be spread, and one an image
COLUMNS = 10

# ------------------------------------------------------------------------------------------ the colours


def colours(hues):
    """RGB (n, 3) of hues (n,) in turns, all of luminance LUMINANCE (ITU-R BT.601) and saturation SATURATION."""
    offsets = torch.tensor([0.0, 2 / 3, 1 / 3])
    pure = ((hues[:, None] + offsets) % 1 * 6 - 3).abs().sub(1).clamp(0, 1)
    rgb = 1 - SATURATION * (1 - pure)
    return rgb * LUMINANCE / (rgb @ torch.tensor([0.299, 0.587, 0.114]))[:, None]


def coloured(images, seed):
    """uint8 (n, 3, S, S) of grey uint8 (n, 1, S, S), each with a hue of its own, drawn uniformly."""
    hues = torch.rand(len(images), generator=torch.Generator().manual_seed(seed))
    return (images * colours(hues)[:, :, None, None]).round().to(torch.uint8)


def chroma(images):
    """Colour of each pixel of (n, 3, ...) without its brightness: (n, ...) complex, whose angle is the hue."""
    r, g, b = images.double().unbind(1)
    return torch.complex(r - (g + b) / 2, math.sqrt(3) / 2 * (g - b))


def hue_of(images):
    """Hue (n,) in turns, [0, 1), of uint8 images (n, 3, S, S): the direction of the sum of all pixels' colours."""
    return chroma(images).sum((1, 2)).angle() / (2 * math.pi) % 1


def unity_of(images):
    """How far uint8 images (n, 3, S, S) are of one hue (n,): 1 where all pixels have the same, 0 where they cancel."""
    pixels = chroma(images)
    return pixels.sum((1, 2)).abs() / pixels.abs().sum((1, 2)).clamp(min=1e-9)


def thickness_of(images):
    """Mean brightness (n,) of uint8 images (n, 3, S, S): how much ink there is."""
    return images.double().mean((1, 2, 3))


def slant_of(images):
    """Columns moved to the right a row upwards (n,) of uint8 images (n, 3, S, S), by the ink's moments."""
    ink = images.double().mean(1)
    ink = ink / ink.sum((1, 2), keepdim=True).clamp(min=1e-9)
    up, right = -torch.arange(ink.shape[1]).double()[:, None], torch.arange(ink.shape[2]).double()[None]
    up, right = (x - (ink * x).sum((1, 2), keepdim=True) for x in (up, right))
    return (ink * up * right).sum((1, 2)) / (ink * up * up).sum((1, 2)).clamp(min=1e-9)


MEASURES = {"hue": hue_of, "thickness": thickness_of, "slant": slant_of}
UNITY = "one hue"


def edges_of(values, name):
    """The BINS - 1 inner edges of the bins: equal parts of the circle for the hue, else equal shares of `values`."""
    parts = torch.arange(1, BINS).double() / BINS
    return parts if name == "hue" else values.quantile(parts)


def total_variation(values, others, edges):
    """Half the sum of absolute differences of the shares in each bin, 0 to 1, of values (n,) and others (m,)."""
    shares = [torch.bucketize(part, edges).bincount(minlength=BINS).double() / len(part) for part in (values, others)]
    return ((shares[0] - shares[1]).abs().sum() / 2).item()


def values_of(images):
    """{measure: values (n,)} of images."""
    return {name: of(images) for name, of in MEASURES.items()}


def compared(images, known):
    """{measure: total variation} of images to real ones with the values `known`, and the images' mean unity."""
    variations = {name: total_variation(found, known[name], edges_of(known[name], name))
                  for name, found in values_of(images).items()}
    return variations | {UNITY: unity_of(images).mean().item()}


# --------------------------------------------------------------------------------------------- the runs


def write_coloured(data_root, spec, splits):
    """The coloured copy of a data set below data_root; one that is there is kept."""
    folder = Path(data_root) / spec.folder
    if not all((folder / f"{name}.h5").is_file() for name in splits):
        write(folder, spec, {name: Split(labels.numpy(), coloured(images, seed).numpy().__getitem__)
                             for seed, (name, (images, labels)) in enumerate(splits.items())})


def seen_and_own(config):
    """(images of the seen classes, images of y*) of the coloured training split: uint8 (n, 3, S, S)."""
    images, labels = load_split(config["dataset"], ROOT / config["data_root"], "train")
    own = labels == config["new_class"][0]
    return images[~own], images[own]


def measure(run, num):
    """Append to a Run's results.jsonl, for `num` fakes of each class, their total variations to the seen classes' real
    images and their mean unity."""
    sampler = make_sampler(load_run(ROOT / run.path), choose_device(run.config["device"]))
    known = values_of(seen_and_own(run.config)[0])
    append_lines(ROOT / run.path / "results.jsonl", [
        {"metric": "total_variation" if name in MEASURES else "mean", "group": name, "class": sampler.classes[y],
         "value": value, "n": num}
        for y in sampler.drawn
        for name, value in compared(draw_fakes(sampler, [y], num, run.config["seed"]), known).items()])


def figures_of(records):
    """{class: {measure: value}} of the records that `measure` wrote."""
    found = {}
    for record in records:
        found.setdefault(record["class"], {})[record["group"]] = record["value"]
    return found


def report(found):
    """The findings of hue.json as Markdown."""
    lines = [f"# Hue: {found['dataset']}, y* = {found['new_class']}", "",
             f"Each image has a random hue; the classifier sees luminance. Total variation over {BINS} bins between "
             f"{found['num']} fakes of a class and the real images of the seen classes, at the end of each run; up to "
             f"{MOST} the hue is spread as in the set ({found['chance']:.3f} is what as many draws of the set itself "
             "have). One hue: the mean length of the sum of an image's pixels as colours, as a share of the most; from "
             f"{LEAST} on an image has one.", "",
             f"| | {' | '.join(found['real'])} | spread, and one an image | |", "|---" * (len(found["real"]) + 3) + "|"]

    def line(name, figures, *said):
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in figures.values())} | "
                     f"{' | '.join(said or ('', ''))} |")

    line("real images of y*", found["real"])
    for name, part in found["runs"].items():
        line(f"y* by {name}", part["figures"], "yes" if part["known"] else "no", "holds" if part["holds"] else "FAILS")
        for label, figures in part["seen"].items():
            line(f"seen {label} by {name}", figures)
    return "\n".join([*lines, "", f"One run each, seed {found['seed']}: {found['command']}"]) + "\n"


def experiment(dataset, classifier, words, runs, num):
    """All of it, for a grey classifier's file, '' for that of pretrained/, and flags of train.py; returns what hue.json
    holds. Raises UserError where the settings or what `runs` holds do not fit.
    """
    C = classifier_path(dataset, "robust", classifier)
    grey = load_classifier(ROOT / C, num_classes=10)
    scaled = {name: " ".join(f"{LUMINANCE * value:.6g}" for value in getattr(grey, name).flatten().tolist())
              for name in ("mean", "std")}
    words = ("--dataset", f"{dataset}_colour", *words, "--data_root", str(runs / "data"), "--C_path", str(C),
             "--C_mean", scaled["mean"], "--C_std", scaled["std"])
    config = plain_config(words)
    spec, (y,) = DATASETS[config["dataset"]], config["new_class"]
    splits = {name: subset(*load_split(dataset, ROOT / "datasets", name), IMAGES[dataset] or 10**9)
              for name in ("train", "test")}
    kept = {name: value for name, value in config.items() if name not in MAY_CHANGE}
    refuse_other(ROOT / runs / "settings.json", kept | {"images of SHA-256": fingerprint(*splits["train"])})
    write_coloured(ROOT / runs / "data", spec, splits)

    measurement = Measurement(functools.partial(measure, num=num), figures_of,
                              functools.partial(dict, num=num, of=[*MEASURES, UNITY], classes="each"))
    cases = {}
    for method in METHODS:
        own = (*words, "--method", method)
        cases[method] = Run("hue", runs / method, own, plain_config(own), True, measurement, drawn=True)
    with stop_on_signal() as stopped:
        complete_here(cases.values(), time.time(), stopped)
    if stopped():
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(128 + stopped())
    for run in cases.values():
        if error := read_state(run).get("error"):
            raise UserError(f"{run.path}: {error} (its whole output is in {run.file('.log')})")

    seen, own = seen_and_own(config)
    known = values_of(seen)
    draw = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:num]
    found = {"dataset": dataset, "new_class": spec.classes[y], "num": num, "seed": config["seed"],
             "chance": compared(seen[draw], known)["hue"], "real": compared(own, known), "runs": {}}
    rows = {"real, seen": to_unit_range(seen[draw[:COLUMNS]]), "real y*": to_unit_range(own[:COLUMNS])}
    for method, run in cases.items():
        sampler = make_sampler(load_run(ROOT / run.path), choose_device(config["device"]))
        rows[f"y* by {method}"] = sampler.class_images(y, range(COLUMNS))
        by_class = dict(read_state(run)["measured"]["figures"])
        figures = by_class.pop(spec.classes[y])
        taught = figures["hue"] <= MOST and figures[UNITY] >= LEAST
        found["runs"][method] = {"figures": figures, "seen": by_class, "known": METHODS[method],
                                 "holds": taught == METHODS[method]}
    save_grid(ROOT / runs / "hue.png", torch.stack(list(rows.values())), list(rows))
    return found


def main():
    parser = Parser(prog="python -m experiments.hue", description=__doc__)
    parser.add_argument("--dataset", required=True, help=f"grey images: {' or '.join(IMAGES)}")
    parser.add_argument("--classifier", default="", help="the grey classifier (default: that of pretrained/)")
    parser.add_argument("--runs", type=Path, help="folder to write (default: runs/hue_<data set>)")
    parser.add_argument("--num", type=int, default=1000, help="fakes of each class that are measured (default: 1000)")
    flags, words = parser.parse_known_args()
    if flags.dataset not in IMAGES:
        raise UserError(f"--dataset '{flags.dataset}' is not valid; give one of {', '.join(IMAGES)}.")
    if flags.num < 100:
        raise UserError(f"--num is {flags.num}; fewer than 100 fakes cannot show how hues are spread over {BINS} bins.")
    refuse_words(words, ("method", "C_path", "C_mean", "C_std", "data_root", "oracle"))
    runs = from_root(flags.runs or f"runs/hue_{flags.dataset}")
    found = experiment(flags.dataset, flags.classifier, words, runs, flags.num)
    found["command"] = " ".join(["python -m experiments.hue", *sys.argv[1:]])
    conclude(found, found["runs"], runs / "hue", report, "real images, then y* in each run")


if __name__ == "__main__":
    run_main(main)
