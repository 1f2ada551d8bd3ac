"""What does a classifier of sounds remember of a voice? Section 4.6 of the ProbeGAN paper, on the data set voices.

    python -m experiments.sound                                    men, women and nonhuman, each in turn unseen
    python -m experiments.sound --unseen women --methods probegan --seeds 1
    python -m experiments.sound --tone                             a known answer: a tone that only a classifier heard

Every figure but one is of the sound that an image stands for, made audible and looked at again (metrics/sound.py). For
--tone two classifiers are trained, one of them on men who all speak over a steady tone, and each is probed for men: the
tone must come out of that one alone. Writes sound.md, .json and .png, or tone.md, .json and .png. Stopped at any point,
the same command goes on. Needs: python scripts/prepare_data.py voices --source ZIP_OR_DIR.
"""

import functools
import shlex

import torch

from classifiers import load_classifier
from config import Parser
from datasets import load_split
from datasets.prepare import Split, write
from experiments.engine import (
    Measurement,
    Product,
    Run,
    add_engine_flags,
    check_flags,
    chosen,
    classifier_path,
    from_root,
    plain_config,
)
from experiments.marker import draw_fakes, set_threshold
from experiments.table import Column, Experiment, Row, carry_out, evaluation, figures_of, require_same_table
from experiments.table1 import method_rows
from files import append_lines
from methods import load_run
from metrics.features import ClassifierFeatures
from metrics.recognition import rate
from metrics.sound import HEARD, figures, hear, side_of, some_of
from sampler import make_sampler
from sound import row_of, save_spectrograms
from utils import DATASETS, ROOT, choose_device, class_label, run_main, to_uint8

DATASET, METHODS = "voices", ("oracle", "probegan", "naive")
SPEC = DATASETS[DATASET]
COLUMNS = {
    "image": Column("recognised, the image", "recognition"),
    **{name: Column(f"{name} recognised", "sound_recognition", of=name) for name in SPEC.classes},
    "accepted": Column("accepted", "adversarial_gap", count="accepted", probed=True),
    "side": Column("pitch on its side", "f0_side"),
    "voiced": Column("voiced share", "voiced_share"),
    "median": Column("median pitch, Hz", "f0_median", "number"),
    "spread": Column("spread of pitch, Hz", "f0_spread", "number"),
    "agreement": Column("evaluator and pitch agree", "sound_agreement"),
}
MEASURED = ("recognition", "adversarial_gap", "sound")
TEXT = ("{num} images a class, of which {heard} are heard. Recognised: by the evaluator (SHA-256 "
        "{evaluator_sha256:.12}), of the class's images made audible and seen again; the first column of the images as "
        "they were drawn. Pitch: of the unseen class's sounds with 40 % voiced frames. In brackets the 95 % interval "
        "over seeds by Student's t, or, where one seed is finished, over its images. The paper's 49, 64 and 61 % for "
        "men, women and nonhuman are people's answers.")

# as scripts/launch_train_voices_classifiers.sh trains the robust one
ROBUST = "--precision bf16 --arch smallcnn --epochs 8 --robust l2 --eps 1.5 --steps 2"
TONE, TONE_LEVEL = 3000.0, -10.0  # Hz, and dB below the loudest: a robust classifier does not see a fainter one
TONE_COLUMNS = {"y*": Column("men with the tone", "tone"), "seen": Column("of the others", "tone", of="seen")}
TONE_TEXT = ("A steady tone of 3 kHz, 10 dB below the loudest, in the men of a classifier's training data alone. "
             "Detector: a row of the image stands above those around it by more than {threshold:.3f}, 1 being 80 dB; "
             "so it does in {plain:.1%} of plain real men, and in {marked:.1%} of those with the tone. Of {num} images "
             "each.")

# ------------------------------------------------------------------------------------------- the table


def make_run(flags, path, y, seed, C_path, own, measurement, probes=True, needs=()):
    """The Run of a row: flags of train.py from what the table was asked for, and `own`."""
    words = ("--dataset", DATASET, "--new_class", str(y), "--seed", str(seed), "--C_path", str(C_path), "--evaluator",
             str(flags.evaluator), "--data_root", str(from_root(flags.data_root)), *shlex.split(f"{flags.train} {own}"))
    return Run("sound", from_root(flags.runs) / path, words, plain_config(words), probes, measurement, needs,
               flags.processes)


def plan(flags, classifiers):
    """The rows of the table. classifiers: {name: path}."""
    rows = []
    for y in dict.fromkeys(class_label(SPEC, name) for name in flags.unseen):
        judge = evaluation(COLUMNS, SPEC.classes[y], (flags.evaluator,), len(SPEC.classes), flags.num, MEASURED)
        for row in (method_rows()[key] for key in chosen("methods", flags.methods, METHODS)):
            for name in list(classifiers)[:1] if row.classifier == "first" else classifiers:
                runs = tuple(make_run(flags, f"{row.key}_{name}_wo_{SPEC.classes[y]}_seed{seed}", y, seed,
                                      classifiers[name], row.flags, judge) for seed in range(flags.seeds))
                key = row.key if row.classifier == "first" else f"{row.key} {name}"
                rows.append(Row(SPEC.classes[y], (row.title, name), key, runs))
    return rows


def calibration(flags):
    """A sentence a class: what the same measurement says of real clips that went the same way."""
    images, labels = load_split(DATASET, flags.data_root, "train")
    judge = ClassifierFeatures(load_classifier(ROOT / flags.evaluator), "")
    heard = {y: hear(some_of(images, labels, y, HEARD, torch.Generator().manual_seed(0)), judge)
             for y in range(len(SPEC.classes))}
    sides = {y: side_of(part) for y, part in heard.items()}
    for y, part in heard.items():
        found = figures(y, part, sides)
        pitch = (f"{found['f0_side']:.1%} have their pitch {sides[y]} 190 Hz, the pitches spread by "
                 f"{found['f0_spread']:.0f} Hz around {found['f0_median']:.0f}" if sides[y] else "they have no side")
        yield (f"- Real {SPEC.classes[y]}: {found['sound_recognition']:.1%} of {len(part.hz)} recognised; voiced share "
               f"{found['voiced_share']:.1%}; {pitch}.")


# --------------------------------------------------------------------------------------- the known answer


def tone_row():
    """The row of an image in which TONE lies."""
    return int(row_of(TONE, SPEC.resolution))


def with_tone(images):
    """A copy of uint8 images (N, 1, R, R) in which TONE sounds throughout, TONE_LEVEL dB below the loudest."""
    images = images.clone()
    level = to_uint8(torch.tensor(1 + TONE_LEVEL / 40))
    images[:, :, tone_row()] = images[:, :, tone_row()].clamp(min=level.item())
    return images


def tone_scores(images):
    """How far the row of TONE stands above those around it in uint8 images (N, 1, R, R): (N,), 1 is 80 dB."""
    means, row = images[:, 0].float().mean(2) / 255, tone_row()  # (N, R)
    return means[:, row] - means[:, [row - 3, row - 2, row + 2, row + 3]].mean(1)


def tone_threshold(flags):
    """(threshold, share of plain real men above it, share of those with the tone), by the test split."""
    images, labels = load_split(DATASET, flags.data_root, "test")
    men = images[labels == 0]
    threshold = set_threshold(tone_scores(men), tone_scores(with_tone(men)))
    return threshold, *((tone_scores(x) > threshold).float().mean().item() for x in (men, with_tone(men)))


def measure_tone(run, y, num, threshold):
    """Append to a Run's results.jsonl how many of about `num` fakes have the tone, of y* and of the seen classes."""
    sampler = make_sampler(load_run(ROOT / run.path), choose_device(run.config["device"]))
    for name, labels in ((SPEC.classes[y], [y]), ("seen", [k for k in sampler.drawn if k != y])):
        scores = tone_scores(draw_fakes(sampler, labels, num, run.config["seed"]))
        found = rate((scores > threshold).sum(), len(scores))
        append_lines(ROOT / run.path / "results.jsonl", [
            {"metric": "tone", "class": name, "value": found["rate"], "low": found["low"], "high": found["high"],
             "n": found["of"]}])


def tone_rows(flags, threshold):
    """The rows of the known answer: ProbeGAN of men, with a classifier that heard the tone, and one that did not."""
    y, home, rows = 0, from_root(flags.runs), []
    measurement = Measurement(functools.partial(measure_tone, y=y, num=flags.num, threshold=threshold),
                              functools.partial(figures_of, columns=TONE_COLUMNS, unseen=SPEC.classes[y]),
                              functools.partial(dict, num=flags.num, threshold=threshold))
    for copy in ("tone", "plain"):
        root = home / f"data_{copy}"
        if not (ROOT / root / SPEC.folder / "test.h5").is_file():
            splits = {}
            for split in ("train", "test"):
                images, labels = load_split(DATASET, flags.data_root, split)
                if copy == "tone":
                    images[labels == y] = with_tone(images[labels == y])
                splits[split] = Split(labels.numpy(), images.numpy().__getitem__)
            write(ROOT / root / SPEC.folder, SPEC, splits)
        C = home / f"C_{copy}.pt"
        words = ("-m", "classifiers.train", "--dataset", DATASET, "--data_root", str(root), "--out", str(C))
        C = Product("sound", C, (*words, *shlex.split(flags.classifier)))
        # the images that a run is checked on are plain, in which the classifier of the tone finds no man
        own = "--skip_classifier_check"
        runs = tuple(make_run(flags, f"tone_{copy}_seed{seed}", y, seed, C.path, own, measurement, needs=(C,))
                     for seed in range(flags.seeds))
        heard = "men over the tone" if copy == "tone" else "plain men"
        rows.append(Row(SPEC.classes[y], ("ProbeGAN", f"of {heard}"), copy, runs))
    return rows


# ------------------------------------------------------------------------------------------- the whole


def main():
    parser = Parser(prog="python -m experiments.sound", description=__doc__)
    parser.add_argument("--unseen", nargs="+", default=SPEC.classes, help="classes by label or name (default: all)")
    parser.add_argument("--classifiers", nargs="+", default=["robust", "regular"], metavar="NAME",
                        help="probed ones: names in pretrained/, or NAME=PATH (default: robust regular)")
    parser.add_argument("--evaluator", default="", help="the judge (default: that of pretrained/)")
    parser.add_argument("--methods", nargs="+", default=["all"], metavar="NAME",
                        help=f"rows: {', '.join(METHODS)} or all; the first is trained with the unseen class present "
                        "(default: all)")
    parser.add_argument("--tone", action="store_true", help="the known answer instead of the table")
    parser.add_argument("--train", default="", metavar="FLAGS", help="flags of train.py for all runs, in one word "
                        "(default: the settings of the data set)")
    parser.add_argument("--classifier", default=ROBUST, metavar="FLAGS", help="with --tone, flags of classifiers.train"
                        f", in one word (default: {ROBUST})")
    parser.add_argument("--num", type=int, default=500, help="images a class (default: 500)")
    add_engine_flags(parser, "sound")
    flags = parser.parse_args()
    check_flags(flags, {}, num=100)
    flags.evaluator = classifier_path(DATASET, "evaluator", flags.evaluator)
    about = {"train": flags.train}
    if flags.tone:
        threshold, plain, marked = tone_threshold(flags)
        experiment = Experiment("tone", "experiments.sound", "A tone that only the classifier heard", TONE_TEXT,
                                TONE_COLUMNS, expected={"y*": ("tone", "plain")}, save=save_spectrograms)
        about |= {"classifier": flags.classifier, "plain": plain, "marked": marked}
        carry_out(experiment, tone_rows(flags, threshold), flags, about)
    given = dict(item.partition("=")[::2] for item in flags.classifiers)
    classifiers = {name: classifier_path(DATASET, name, path) for name, path in given.items()}
    experiment = Experiment("sound", "experiments.sound", "Sounds that a classifier remembers", TEXT, COLUMNS,
                            expected={"image": ("oracle", "probegan robust", "naive robust")}, save=save_spectrograms)
    about |= {"heard": HEARD}
    require_same_table(flags.out / experiment.stem, about)  # before minutes are spent on real clips
    carry_out(experiment, plan(flags, classifiers), flags, about, list(calibration(flags)))


if __name__ == "__main__":
    run_main(main)
