"""Images from feature vectors, in numbers: what is told, what enforces it, and what drawers without a GAN reach.

    python -m experiments.features --dataset fer2013                 faces edited, on two CPU cores
    python -m experiments.features --dataset C10 --rows all          images drawn from latents

A row a way of making images have the features that they were asked for, with the robust and the regular classifier. A
generator that is told the label alone stands in every table: an agreement that is not above its own says nothing.
Stopped, the same command goes on; several processes of it share the runs. Writes features_<data set>.md, .json and
.png into --out.
"""

import json
import shlex

import torch

from classifiers import load_classifier
from config import Parser
from datasets import load_split
from experiments.engine import (
    Run,
    add_engine_flags,
    check_flags,
    chosen,
    classifier_path,
    file_sha256,
    from_root,
    plain_config,
)
from experiments.table import SHOWN, Column, Experiment, Row, carry_out, evaluation, number, require_same_table
from features import Bank
from methods import load_run
from metrics.distances import thinned
from metrics.feature_agreement import BATCH, Seen, measure_pairs
from metrics.feature_rivals import reconstruction, rivals
from metrics.statistics import fingerprint
from sampler import make_sampler
from utils import DATASETS, ROOT, choose_device, run_main, to_unit_range, write_json

# all: flags of train.py for every run of a data set
SCALES = {
    "fer2013": "--G_ch 24 --D_ch 12 --batch_size 32 --num_D_steps 1 --num_steps 2000 --G_lr 4e-4 --D_lr 4e-4 "
               "--init ortho --ema_decay 0.99 --ema_start 50 --augment flip --save_every 500 --sample_every 500",
    "C10": "--mode draw --G_ch 16 --D_ch 16 --batch_size 32 --num_D_steps 2 --num_steps 2000 --G_lr 4e-4 --D_lr 4e-4 "
           "--init ortho --ema_decay 0.99 --ema_start 50 --augment flip --save_every 500 --sample_every 500",
    "digits": "--G_ch 4 --D_ch 4 --batch_size 32 --num_D_steps 1 --num_steps 20 --save_every 10 --sample_every 20",
}
# the form of the StarGAN conditioned on features, whose loss is a sum over components and whose targets are real ones
STARGAN = ("--enforce head --adversary wgan-gp --feature_loss ccc_sum --head_coeff 10 --self_coeff 0 --own_share 0 "
           "--changed_share 0 --num_D_steps 5 --beta1 0.5 --G_lr 1e-4 --D_lr 1e-4")
ROWS = {
    "white": ("projection and classifier", ""),
    "black": ("projection and head, black box", "--enforce projection head"),
    "projection": ("projection, black box", "--enforce projection"),
    "classifier": ("classifier", "--enforce classifier"),
    "label": ("label only, with the classifier", "--condition label"),
    "label_black": ("label only, black box", "--condition label --enforce projection head"),
    "tiled": ("StarGAN on features, tiled", f"{STARGAN} --inject tiled"),
    "flat": ("StarGAN on features, flat", f"{STARGAN} --inject flat"),
}
RIVAL_PAIRS, RIVAL_IMAGES = 1000, 12_000  # pairs, and training images to draw from, at most
RECONSTRUCT = ("MSE decoder", "gradient descent on pixels")  # rivals that are told an image's own features alone
EDITING = ("tiled", "flat")  # rows of an editing generator alone
COLUMNS = {
    "ccc": Column("CCC", "feature_ccc", "correlation", of="all"),
    "within": Column("CCC within classes", "feature_ccc_within", "correlation", of="all"),
    "mrr": Column("MRR", "feature_mrr", "index", of="all"),
    "judged_within": Column("CCC within classes, judge", "judged_feature_ccc_within", "correlation", of="all"),
    "judged_mrr": Column("MRR, judge", "judged_feature_mrr", "index", of="all"),
    "judged_class": Column("judge's class", "judged_feature_class", of="all"),
    "both": Column("both@10", "feature_both_at_10", of="all"),
    "identity": Column("x by pixels", "feature_identity_top1", of="all"),
    "cycle": Column("cycle L1", "feature_cycle_l1", "number", of="all", lower=True),
    "diversity": Column("diversity", "feature_diversity", "number", of="all"),
    "judged_diversity": Column("diversity, judge", "judged_feature_diversity", "number", of="all"),
    "nearest": Column("to the nearest training image", "feature_nearest", "number", of="all"),
    "walk": Column("walk r", "walk_correlation", "correlation", of="all"),
    "monotone": Column("monotone", "walk_monotone", of="all"),
    "leakage": Column("leakage", "walk_leakage", "number", of="all", lower=True),
    "judged_walk": Column("walk r, judge", "judged_walk_correlation", "correlation", of="all"),
    "fd": Column("FD, judge", "judged_feature_fd", "number", of="all", lower=True),
}
OF_EDITS, OF_DRAWS = ("both", "identity", "cycle"), ("diversity", "judged_diversity", "nearest")
MEASURED = ("recognition", "feature_agreement", "feature_walks")
EXPECTED = {"within": ("white", "black", "label"), "mrr": ("white", "black", "label")}
TEXT = ("{num} times the classes pairs of test images, 2,000 at most: one gives the features, the other is edited. "
        "Judge: the evaluator (SHA-256 {evaluator_sha256:.12}). What other real images reach in the place of those "
        "drawn is the last of the rivals: a Frechet distance means nothing without it. In brackets the 95 % interval "
        "over seeds by Student's t, or over images where one seed is finished.")


def edits(dataset):
    """Whether the generators of a data set edit images."""
    return "draw" not in SCALES[dataset]


def columns_of(dataset):
    """The columns of a data set's table."""
    other = OF_DRAWS if edits(dataset) else OF_EDITS
    return {key: column for key, column in COLUMNS.items() if key not in other}


def measure_rivals(dataset, classifier, evaluator, train, images, num):
    """What drawers without a GAN reach on `num` pairs of test images, of the features of the classifier of a path:
    {"figures": {rival: {column: value}}, the last rival being other real images, "reconstructed": {rival: record of
    metrics.feature_rivals.reconstruction}}. train, images: uint8 (N, C, H, W), training and test images.
    """
    device = choose_device()
    train, images = thinned(train, RIVAL_IMAGES), to_unit_range(images)
    known = to_unit_range(train)
    C, judge = (load_classifier(path, device=device) for path in (classifier, evaluator))
    bank = Bank.of_images(C, train.split(BATCH))
    seen = Seen.of("", C, bank, images)
    judge = Seen.of("judge", judge, Bank.of_images(judge, train.split(BATCH)), images)
    figures, reconstructed = {}, {}
    for rival, draw in rivals(C, bank, train).items():
        records, _ = measure_pairs(draw, images, seen, judge, num, torch.Generator().manual_seed(0),
                                   None if edits(dataset) else known)
        by_metric = {record["metric"].partition("@")[0]: record for record in records}
        figures[rival] = {key: by_metric[column.metric]["value"] for key, column in COLUMNS.items()
                          if column.metric in by_metric}
        if rival in RECONSTRUCT:
            reconstructed[rival] = reconstruction(draw, seen, images, known.mean(0), torch.Generator().manual_seed(0))
    figures["other real images"] = {key: by_metric[column.metric]["real"] for key, column in COLUMNS.items()
                                    if "real" in by_metric.get(column.metric, {})}
    return {"figures": figures, "reconstructed": reconstructed}


def known_rivals(dataset, classifiers, evaluator, data_root, num, home):
    """{name: measure_rivals of the classifier of a path}; what was measured before is read from the folder `home`."""
    (train, labels), (images, _), found = *(load_split(dataset, data_root, split) for split in ("train", "test")), {}
    for name, path in classifiers.items():
        of = {role: file_sha256(its) for role, its in (("C", path), ("judge", evaluator))}
        of |= {"num": num, "train": fingerprint(train, labels)}
        file = home / f"rivals_{name}.json"
        found[name] = json.loads(file.read_text()) if file.exists() else {}
        if found[name].get("of") != of:
            print(f"measuring the rivals without a GAN, of the features of {path.name}: minutes", flush=True)
            found[name] = {"of": of, **measure_rivals(dataset, path, evaluator, train, images, num)}
            home.mkdir(parents=True, exist_ok=True)
            write_json(file, found[name])
    return found


def rival_lines(found):
    """The rivals' table and what features alone keep of an image, as lines of Markdown. found: of known_rivals."""
    shown = [key for key in COLUMNS if any(key in row for part in found.values() for row in part["figures"].values())]
    heads = ["drawer", "classifier", *(COLUMNS[key].heading for key in shown)]
    lines = ["", "## Rivals without a GAN", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {rival} | {name} | " + " | ".join(number(COLUMNS[key], figures[key]) if key in figures else "-"
                                                    for key in shown) + " |"
              for name, part in found.items() for rival, figures in part["figures"].items()]
    lines += ["", "## Test images drawn from their own features alone", "",
              "Mean distance of a pixel from the source, range 0 to 1, with its 95 % interval over images, beside that "
              "of the mean training image, which the descent starts from. Features of a robust classifier are expected "
              "to keep more.", "", "| drawer | classifier | distance | mean image |", "|---|---|---|---|"]
    return lines + [f"| {rival} | {name} | {r['value']:.4f} ({r['low']:.4f} to {r['high']:.4f}) | {r['start']:.4f} |"
                    for name, part in found.items() for rival, r in part["reconstructed"].items()]


def draw(row, run):
    """The picture's images of a run: faces drawn with the features of others, one of each class in turn."""
    sampler = make_sampler(load_run(ROOT / run.path), choose_device())
    return torch.cat([sampler.class_images(sampler.drawn[k % len(sampler.drawn)], [k]) for k in range(SHOWN)])


def plan(flags, classifiers, evaluator):
    """The rows that were asked for. classifiers: {name: path}. Raises UserError as train.py would."""
    spec, home = DATASETS[flags.dataset], from_root(flags.runs) / flags.dataset
    judge = evaluation(columns_of(flags.dataset), "", (evaluator,), len(spec.classes), flags.num, MEASURED)
    rows = []
    for key in chosen("rows", flags.rows, ROWS):
        title, own = ROWS[key]
        if key in EDITING and not edits(flags.dataset):
            continue
        for name, path in classifiers.items():
            runs = []
            for seed in range(flags.seeds):
                words = ("--dataset", flags.dataset, "--method", "features", "--seed", str(seed), "--C_path", str(path),
                         "--evaluator", str(evaluator), "--data_root", str(from_root(flags.data_root)),
                         *shlex.split(f"{SCALES[flags.dataset]} {own}"))
                runs.append(Run("features", home / f"{key}_{name}_seed{seed}", words, plain_config(words), True, judge))
            rows.append(Row(name, (title,), key, tuple(runs)))
    return rows


def main():
    parser = Parser(prog="python -m experiments.features", description=__doc__)
    parser.add_argument("--dataset", default="fer2013", help=f"one of {', '.join(SCALES)} (default: fer2013)")
    parser.add_argument("--rows", nargs="+", default=["all"], help=f"{', '.join(ROWS)}, or all (default: all)")
    parser.add_argument("--classifiers", nargs="+", default=["robust", "regular"], metavar="NAME",
                        help="probed ones: names in pretrained/, or NAME=PATH (default: robust regular)")
    parser.add_argument("--evaluator", default="", help="the judge (default: that of pretrained/)")
    parser.add_argument("--num", type=int, default=300, help="images a class (default: 300)")
    add_engine_flags(parser, "features")
    flags = parser.parse_args()
    check_flags(flags, {"dataset": SCALES}, num=50)
    given = dict(item.partition("=")[::2] for item in flags.classifiers)
    classifiers = {name: classifier_path(flags.dataset, name, path) for name, path in given.items()}
    evaluator = classifier_path(flags.dataset, "evaluator", flags.evaluator)
    rows = plan(flags, classifiers, evaluator)
    protocol = {"dataset": flags.dataset, "settings": SCALES[flags.dataset]}
    require_same_table(flags.out / f"features_{flags.dataset}", protocol)  # before the rivals are measured
    num = min(RIVAL_PAIRS, flags.num * len(DATASETS[flags.dataset].classes))
    notes = rival_lines(known_rivals(flags.dataset, {name: ROOT / path for name, path in classifiers.items()},
                                     ROOT / evaluator, flags.data_root, num,
                                     ROOT / from_root(flags.runs) / flags.dataset))
    experiment = Experiment(f"features_{flags.dataset}", "experiments.features",
                            f"Images from features on {flags.dataset}", TEXT, columns_of(flags.dataset),
                            groups="Classifier", heads=("enforced by",), expected=EXPECTED, images=draw)
    carry_out(experiment, rows, flags, protocol, notes)


if __name__ == "__main__":
    run_main(main)
