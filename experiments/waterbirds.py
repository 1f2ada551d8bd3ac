"""What does a classifier see in a bird? Waterbirds, with answers known beforehand (the paper, section 4.4).

    python scripts/prepare_data.py waterbirds32 --source PUBLISHED_FOLDER_OR_ZIP
    python -m experiments.waterbirds                                  32 pixels, small networks
    python -m experiments.waterbirds --scale paper                    64 pixels, the release's settings; needs a GPU

The GAN sees landbirds on land alone and draws waterbirds from classifiers that differ in what they were taught, all
robust and equally confident (the arms). Water in what it draws came out of the classifier:

  place      told land from water, whatever the bird: the positive control
  erm100     the published training images whose background is the usual one
  erm95      the published training images, plain training: the paper's ERM
  dro        the same images, group DRO: the paper's DRO
  balanced   other images, in which the background says nothing of the bird: the negative control
  C_coeff 0  no classifier: what the GAN draws by itself
  dose50     and dose75, 90, 95, 100: equally many images, of which that share of each bird is in its usual place

With --unseen landbird it sees waterbirds on water alone, and land is what comes out. What the scorers of water miss in
fakes is told by two GANs without a classifier, one of all birds on land and one of all on water. Writes
waterbirds_<data set>.md, .json and .png; stopped, the same command goes on.
"""

import json
import shlex
import sys
import time
from pathlib import Path

from config import Parser
from experiments.engine import (
    SMALL,
    Product,
    Run,
    add_engine_flags,
    check_flags,
    chosen,
    complete_here,
    from_root,
    plain_config,
    read_state,
)
from experiments.table import Column, Experiment, Row, carry_out, evaluation, require_same_table
from metrics.presence import Presence
from metrics.report import percent
from utils import DATASETS, ROOT, UserError, run_main, stop_on_signal

# all classifiers are trained alike but for what each arm adds; their confidence is set on the same images
ALIKE = "--robust l2 --batch_size 64 --epochs 14 --ema_decay 0.99 --validation scorer --test calibration " \
        "--confidence 0.85 --num_attacked 300"
ARMS = {
    "place": "--split pool --labels place --objective reweight --groups bird --no-select",
    "erm100": "--only background=usual --groups place --no-select",
    "erm95": "--groups place",
    "dro": "--objective dro --groups place",
    "balanced": "--split pool --objective reweight --groups place",
}
DOSES = {f"dose{share}": f"--split pool --correlation {share / 100} --groups place --no-select"
         for share in (100, 95, 90, 75, 50)}
NONE = "C_coeff 0"
# in which a tuple stands for equals; of how many images of each bird are in their usual place
ORDER = ("place", ("erm100", "dose100"), ("erm95", "dose95"), "dose90", ("dose75", "dro"), ("dose50", "balanced"), NONE)
EVALUATOR = "--split pool --objective reweight --groups place --validation scorer --test calibration --arch vgg7 " \
            "--role evaluator --epochs 14 --ema_decay 0.99 --seed 1 --num_attacked 300"
# in the place of engine.BOUNDED: of two classes y* is more of what D_u sees than of ten, and needs a harder push
# (results/waterbirds_findings.md)
HARDER = "--C_bound 0.5 --C_bound_new 2 --spread_coeff 2 --C_coeff 1.6 --C_new_coeff 4"
# num: images a class; classifier: flags of classifiers.train for every arm; all: of train.py for every run. At 32
# pixels no robust classifier learns birds from 3500 images alone (results/waterbirds_findings.md)
SCALES = {"small": {"dataset": "waterbirds32", "num": 500,
                    "classifier": "--arch resnet9 --init pretrained/cifar10_robust.safetensors --lr 0.03 --eps 0.25 "
                                  "--steps 1",
                    "all": f"{SMALL} {HARDER} --unseen_share 0.2 --num_steps 1500 --sample_every 500"},
          "paper": {"dataset": "waterbirds", "num": 1000, "classifier": "--arch resnet18 --eps 0.5 --steps 2",
                    "all": ""}}
# with landbirds unseen, among waterbirds on water, it is land that comes out
OTHER = "{} of landbirds"  # an arm in that direction
EXPECTED = (*ORDER, *(tuple(OTHER.format(arm) for arm in ((arms,) if isinstance(arms, str) else arms))
                      for arms in reversed(ORDER)))
DIRECTIONS = {"waterbird": "land", "landbird": "water"}  # the unseen class, and the place of the seen one
METRICS = ("recognition", "adversarial_gap", "presence", "precision_recall_density_coverage", "vendi")
TEXT = ("Share of {num} fakes with water, corrected for the scorer's errors on real images of that class: by a scorer "
        "of the whole image, of its border alone, of its colours alone. Calibrated on fakes: by the first, corrected "
        "for its errors on fakes of two GANs, of which one saw land alone and one water. In brackets the 95 % interval "
        "over runs by Student's t or, where one run is finished, over its images. Seen class: fakes of the same runs. "
        "Follows place: how often the classifier's own answer is the place where bird and place disagree, on held-out "
        "images. Recognised: by an evaluator of another architecture and seed (SHA-256 {evaluator_sha256:.12}). A row "
        "whose unseen class the classifier does not accept says nothing of it.")


def columns_of(unseen):
    """The columns of runs that draw `unseen`."""
    seen = next(name for name in DIRECTIONS if name != unseen)
    return {"water": Column("water in y*", "presence_whole"),
            "by_fakes": Column("calibrated on fakes", "presence_whole_by_fakes"),
            "ring": Column("by the border", "presence_ring"), "colours": Column("by the colours", "presence_histogram"),
            "seen": Column("water in the seen class", "presence_whole", of=seen),
            "recognised": Column("recognised", "recognition"),
            "accepted": Column("accepted", "adversarial_gap", count="accepted", probed=True),
            "recall": Column("recall", "recall"), "variety": Column("Vendi", "vendi", "number")}


def classifiers_of(flags, names):
    """{arm or 'evaluator': Product} of these names."""
    scale, found = SCALES[flags.scale], {}
    for name in names:
        own = EVALUATOR if name == "evaluator" else f"{scale['classifier']} {ALIKE} {(ARMS | DOSES)[name]}"
        path = from_root(flags.runs) / scale["dataset"] / f"{name}.safetensors"
        words = ("-m", "classifiers.train", "--dataset", scale["dataset"], "--data_root",
                 str(from_root(flags.data_root)), "--out", str(path), *shlex.split(own))
        found[name] = Product("waterbirds", path, words)
    return found


def following(card, arm):
    """How often a classifier's answer is the place where bird and place disagree, as text, from its card."""
    share = card["groups"]["following"]
    ends = [share["rate"], share["low"], share["high"]]
    if arm == "place":  # its card counts the answers that are the bird
        ends = [1 - ends[0], 1 - ends[2], 1 - ends[1]]
    return f"{percent(ends[0])} ({percent(ends[1])} to {percent(ends[2])})"


def plan(flags, classifiers, said):
    """The rows of the table. classifiers: {arm or 'evaluator': Product}; said: {arm: what stands beside it}."""
    scale, evaluator, rows = SCALES[flags.scale], classifiers["evaluator"], []
    home = from_root(flags.runs) / scale["dataset"]

    def make_run(name, product, place, seed, own, measurement=None, needs=()):
        words = ("--dataset", scale["dataset"], "--only", f"place={place}", "--seed", str(seed), "--C_path",
                 str(product.path), "--evaluator", str(evaluator.path), "--data_root",
                 str(from_root(flags.data_root)), *shlex.split(scale["all"]), *own)
        return Run("waterbirds", home / f"{name}_seed{seed}", words, plain_config(words), bool(measurement),
                   measurement, (product, evaluator, *needs), flags.processes)

    # of both birds in one place, without the classifier: the place of their fakes is known
    known = tuple(make_run(f"known_{place}", next(iter(classifiers.values())), place, 0,
                           ("--oracle", "--C_coeff", "0", "--unseen_share", "0",
                            "--skip_classifier_check")) for place in DIRECTIONS.values())
    for unseen in flags.unseen:
        measurement = evaluation(columns_of(unseen), unseen, (evaluator.path,), 2, flags.num, METRICS,
                                 ("--presence", "place=water", "--presence_calibration",
                                  *(str(run.path) for run in known)))
        for arm in flags.arms:
            product, own = classifiers["balanced" if arm == NONE else arm], ("--new_class", unseen)
            own += ("--C_coeff", "0") if arm == NONE else ()
            runs = tuple(make_run(f"{arm.replace(' ', '_')}_wo_{unseen}", product, DIRECTIONS[unseen], seed, own,
                                  measurement, known) for seed in range(flags.seeds))
            key = arm if unseen == "waterbird" else OTHER.format(arm)
            rows.append(Row(unseen, (arm, said.get(arm, "")), key, runs))
    return rows


def real_ones(flags):
    """A sentence a scorer: in how many held-out real images it sees water."""
    dataset = SCALES[flags.scale]["dataset"]
    birds = DATASETS[dataset].classes
    for name, of in Presence("place=water", dataset, flags.data_root).calibration.items():
        shares = (f"{percent(1 - of[y]['specificity']['rate'])} of {bird}s on land and "
                  f"{percent(of[y]['sensitivity']['rate'])} on water" for y, bird in enumerate(birds))
        yield f"- Real images in which the scorer '{name}' sees water, not corrected: {', '.join(shares)}."


def make_classifiers(products):
    """Train the classifiers that are missing; returns their cards by name. Raises UserError where one fails."""
    with stop_on_signal() as stopped:
        complete_here(products.values(), time.time(), stopped)
    if stopped():
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(128 + stopped())
    for product in products.values():
        if error := read_state(product).get("error"):
            raise UserError(f"{product.path}: {error} (its whole output is in {product.file('.log')})")
    return {name: json.loads(Path(f"{ROOT / product.path}.json").read_text()) for name, product in products.items()}


def main():
    parser = Parser(prog="python -m experiments.waterbirds", description=__doc__)
    parser.add_argument("--unseen", nargs="+", default=["waterbird"], help="waterbird, landbird, or all "
                        "(default: waterbird)")
    parser.add_argument("--arms", nargs="+", default=[*ARMS, NONE], metavar="NAME", help=f"rows: {', '.join(ARMS)}, "
                        f"'{NONE}', {', '.join(DOSES)}, or all (default: all but the doses)")
    parser.add_argument("--scale", default="small", help="small: 32 pixels, two CPU cores; paper: 64 (default: small)")
    parser.add_argument("--num", type=int, help="images a class (default: 500 small, 1000 paper)")
    add_engine_flags(parser, "waterbirds")
    flags = parser.parse_args()
    check_flags(flags, {"scale": SCALES}, num=50)
    flags.unseen = chosen("unseen", flags.unseen, DIRECTIONS)
    flags.arms = chosen("arms", flags.arms, (*ARMS, NONE, *DOSES))
    flags.num = flags.num or SCALES[flags.scale]["num"]
    needed = [arm for arm in ARMS | DOSES if arm in flags.arms or arm == "balanced" and NONE in flags.arms]
    protocol = {"scale": flags.scale, "settings": SCALES[flags.scale], "classifiers": {"all": ALIKE, **ARMS, **DOSES}}
    dataset = SCALES[flags.scale]["dataset"]
    require_same_table(flags.out / f"waterbirds_{dataset}", protocol)
    classifiers = classifiers_of(flags, [*needed, "evaluator"])
    cards = make_classifiers(classifiers)
    said = {arm: following(cards[arm], arm) for arm in needed}
    rows = plan(flags, classifiers, said)
    experiment = Experiment(
        f"waterbirds_{dataset}", "experiments.waterbirds", f"Waterbirds at {DATASETS[dataset].resolution} pixels", TEXT,
        columns_of("waterbird"), heads=("classifier", "follows place"), expected={"water": EXPECTED})
    carry_out(experiment, rows, flags, protocol, list(real_ones(flags)), gpus=int(flags.scale == "paper"))


if __name__ == "__main__":
    run_main(main)
