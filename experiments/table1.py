"""Table 1 of the ProbeGAN paper: every method, classifier and seed trained and measured alike, in one table.

    python -m experiments.table1 --dataset MNIST --unseen 7 9                    all methods, small networks
    python -m experiments.table1 --dataset C10 --unseen horse --scale paper      the paper's settings; needs a GPU
    python -m experiments.table1 --dataset C10 --unseen horse --scale paper --executor slurm --slurm_partition gpu

Writes table1_<data set>.md, .json and .png. Stopped at any point, the same command goes on; runs that failed are
tried again. The same command may run in several processes at once: each takes runs that no other holds.
"""

import re
import shlex

from config import Parser
from experiments.engine import (
    BOUNDED,
    SMALL,
    Run,
    add_engine_flags,
    check_flags,
    chosen,
    classifier_path,
    from_root,
    plain_config,
)
from experiments.table import Column, Experiment, Row, carry_out, evaluation
from methods import METHODS
from utils import DATASETS, ROOT, class_label, run_main

# num: images a class; all: flags of train.py for every run; a row's name: for its runs too, probegan: its variants' too
SCALES = {
    "MNIST": {"small": {"num": 500, "all": "--batch_size 32 --num_steps 1200 --save_every 300 --sample_every 1200",
                        "deep_inversion": "--synthesis_steps 100"},
              "paper": {"num": 5000, "all": ""}},
    "C10": {"small": {"num": 500, "all": f"{SMALL} --balanced_y --num_steps 5000 --sample_every 500",
                      "probegan": BOUNDED, "oracle": BOUNDED, "deep_inversion": "--synthesis_steps 300"},
            "paper": {"num": 5000, "all": ""}},
    "digits": {"small": {"num": 100, "all": "--num_steps 40 --save_every 20 --sample_every 40",
                         "deep_inversion": "--synthesis_steps 100"},
               "paper": {"num": 5000, "all": ""}},
}
VARIANTS = {
    "no DiffAugment": "--diffaug", "DiffAugment translation": "--diffaug translation",
    "DiffAugment colour, translation, cutout": "--diffaug color translation cutout",
    "class weight rising": "--C_coeff 0.1 --C_coeff_end 1", "class weight falling": "--C_coeff 1 --C_coeff_end 0.1",
    "R1 penalty": "--penalty r1", "zero-centred penalty": "--penalty zero", "balanced classes": "--balanced_y",
    "WGAN-GP's penalty": "--penalty wgan-gp --gp_coeff 10", "classes as they come": "--no-balanced_y",
    "classifier unbounded": "--C_bound 0 --C_bound_new 0", "no spread term": "--spread_coeff 0",
    "D_u learns y* apart": "--no-level_unseen",
    "diversity term": "--diversity_coeff 1", "k = 2": "", "k = 3": "",
}
# intra-FD: the paper's Table 1, where NAIVE on a robust classifier goes before ProbeGAN on a regular one
EXPECTED = {"recognised": ("oracle", "probegan robust", "probegan regular", "naive robust", ...),
            "intra_fd": ("oracle", "probegan robust", "naive robust", "probegan regular", ...)}
COLUMNS = {
    "recognised": Column("recognised", "recognition"),
    "accepted": Column("accepted", "adversarial_gap", count="accepted", probed=True),
    "intra_fd": Column("intra-FD", "intra_fd", "number", lower=True),
    "fd": Column("FD of all", "fd", "number", of="all", lower=True),
    **{name: Column(name, name) for name in ("precision", "recall", "coverage")},
}
MEASURED = ("recognition", "adversarial_gap", "intra_fd", "fd", "precision_recall_density_coverage")
TEXT = ("{num} images a class, features of the evaluator (SHA-256 {evaluator_sha256:.12}). In brackets the 95 % "
        "interval over seeds by Student's t, cut where no figure can be, or, where one seed is finished, over its "
        "images. Recognised: by each of {judges} at once; accepted: by the probed classifier; all but FD of all are of "
        "the unseen class.")


def method_rows():
    """{key: methods.Row} of all methods, the bounds first."""
    rows = (row for method in METHODS.values() for row in method.rows)
    return {row.key: row for row in sorted(rows, key=lambda row: row.classifier == "each")}


def judges_of(dataset, given):
    """The paths of the judges: those given, or the evaluator of pretrained/ and its robust one, where there is one."""
    robust = from_root(ROOT / "pretrained" / f"{DATASETS[dataset].folder}_robust_evaluator.safetensors")
    more = [robust] if not given and (ROOT / robust).is_file() else []
    return [*(classifier_path(dataset, "evaluator", path) for path in given or [""]), *more]


def plan(flags, classifiers, judges):
    """(rows, notes) of what was asked for. classifiers: {name: path}. Raises UserError as train.py would."""
    spec, scale = DATASETS[flags.dataset], SCALES[flags.dataset][flags.scale]
    home = from_root(flags.runs) / f"{flags.dataset}_{flags.scale}"
    unseen = list(dict.fromkeys(class_label(spec, name) for name in flags.unseen))
    first, known = next(iter(classifiers)), method_rows()
    rows, notes = [], []

    def make_run(name, classifier, y, seed, own, k=1, needs=(), measured=True):
        labels = [str((y + i) % len(spec.classes)) for i in range(k)]
        words = ("--dataset", flags.dataset, "--new_class", *labels, "--seed", str(seed), "--C_path",
                 str(classifiers[classifier or first]), "--evaluator", str(judges[0]), "--data_root",
                 str(from_root(flags.data_root)), *shlex.split(f"{scale['all']} {own}"))
        config = plain_config(words)
        path = home / "_".join(filter(None, (name, classifier, "wo", spec.classes[y], f"seed{seed}")))
        judge = evaluation(COLUMNS, spec.classes[y], judges, len(spec.classes), flags.num, MEASURED)
        return Run("table1", path, words, config, bool(classifier), judge if measured else None, needs,
                   flags.processes if METHODS[config["method"]].losses else 1)

    def row_run(row, classifier, y, seed):
        own, needs = f"{row.flags.format(num=flags.num)} {scale.get(row.key, '')}", ()
        if row.needs:
            needs = (make_run("gan", "", y, seed, row.needs, measured=False),)
            own += f" --gan {shlex.quote(str(needs[0].path))}"
        return make_run(row.key, classifier, y, seed, own, needs=needs)

    for y in unseen:
        for row in (known[key] for key in chosen("methods", flags.methods, known)):
            for classifier in {"first": [first], "none": [""]}.get(row.classifier, classifiers):
                key = {"first": row.key, "none": ""}.get(row.classifier, f"{row.key} {classifier}")
                runs = tuple(row_run(row, classifier, y, seed) for seed in range(flags.seeds))
                rows.append(Row(spec.classes[y], (row.title, classifier), key, runs))
        classifier = "robust" if "robust" in classifiers else first
        for variant in chosen("variants", flags.variants, VARIANTS):
            slug = re.sub(r"\W+", "_", variant.lower())
            k = int(variant[4:]) if variant.startswith("k = ") else 1
            usual = scale.get("probegan", "")
            runs = tuple(make_run(slug, classifier, y, seed, f"{usual} {VARIANTS[variant]}", k)
                         for seed in range(flags.seeds))
            if runs[0].config == make_run("", classifier, y, 0, usual).config:
                notes.append(f"The variant '{variant}' has no row: it is ProbeGAN's own setting on {flags.dataset}.")
            else:
                rows.append(Row(spec.classes[y], (f"ProbeGAN, {variant}", classifier), "", runs))
    return rows, list(dict.fromkeys(notes))


def main():
    parser = Parser(prog="python -m experiments.table1", description=__doc__)
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(SCALES)}")
    parser.add_argument("--unseen", nargs="+", required=True, help="classes by label or name, a table each")
    parser.add_argument("--classifiers", nargs="+", default=["robust", "regular"], metavar="NAME",
                        help="probed ones: names in pretrained/, or NAME=PATH (default: robust regular)")
    parser.add_argument("--evaluator", nargs="+", default=[], metavar="PATH", help="judges: recognised is what "
                        "all recognise, features are the first's (default: those of pretrained/)")
    parser.add_argument("--methods", nargs="+", default=["all"], metavar="NAME",
                        help=f"rows: {', '.join(method_rows())} or all; oracle and biggan are trained with the unseen "
                        "class present (default: all)")
    parser.add_argument("--variants", nargs="+", default=[], metavar="NAME",
                        help="ProbeGAN on the robust classifier with one setting changed: "
                        f"{', '.join(repr(name) for name in VARIANTS)} or all (default: none)")
    parser.add_argument("--scale", default="small", help="small: two CPU cores; paper: full size (default: small)")
    parser.add_argument("--num", type=int, help="images a class (default: 500 small, 100 for digits; 5000 paper)")
    add_engine_flags(parser, "table1")
    flags = parser.parse_args()
    check_flags(flags, {"dataset": SCALES, "scale": ("small", "paper")}, num=50)
    scale = SCALES[flags.dataset][flags.scale]
    flags.num = scale["num"] if flags.num is None else flags.num
    given = dict(item.partition("=")[::2] for item in flags.classifiers)
    classifiers = {name: classifier_path(flags.dataset, name, path) for name, path in given.items()}
    judges = judges_of(flags.dataset, flags.evaluator)
    rows, notes = plan(flags, classifiers, judges)
    experiment = Experiment(f"table1_{flags.dataset}", "experiments.table1",
                            f"Table 1 on {flags.dataset}, scale {flags.scale}", TEXT, COLUMNS, expected=EXPECTED)
    protocol = {"dataset": flags.dataset, "scale": flags.scale, "settings": scale,
                "judges": " and ".join(path.stem for path in judges)}
    carry_out(experiment, rows, flags, protocol, notes, gpus=int(flags.scale == "paper"))


if __name__ == "__main__":
    run_main(main)
