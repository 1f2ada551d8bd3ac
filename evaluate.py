#!/usr/bin/env python3
"""Measure generated images: how good, and how sure.

    python evaluate.py --run RUN --evaluator evaluator.pt               all measurements of a run, as a table
    python evaluate.py --run RUN --evaluator evaluator.pt --report      and RUN/report.html
    python evaluate.py --run R1 R2 R3 --evaluator evaluator.pt          several seeds, each and together
    python evaluate.py --compare R1 R2 R3 --report                      their unseen class side by side: compare.html
    python evaluate.py --images PATH --dataset C10 --new_class horse --evaluator evaluator.pt
                              images made elsewhere: a folder of <class>/<file>, or an npz of sample.py

Results are appended to results.jsonl, one JSON object a line, in the run folder or beside the images. The evaluator
must be independent of the probed classifier: another seed and another architecture, and never used in training
the GAN. Image i of a run depends on seed --seed + i alone. Measurements, for --metrics (default: all):

"""

import hashlib
import sys
import time
from dataclasses import replace
from pathlib import Path

from classifiers.check import C_FLAGS, kept_preflight, require_passed
from classifiers.frozen import fingerprint
from classifiers.loading import (
    Asked,
    data_of,
    judging_classifier,
    probed_classifier,
    refuse_evaluator,
    same_classifier,
)
from classifiers.strangers import from_a_file
from config import Config, Parser, add_flags, located, make_config
from datasets import open_source
from datasets.sources import sample_sha256
from files import append_lines, read_lines
from machine import told_of_memory
from methods import load_run
from metrics import feature_agreement, protocols, sound  # noqa: F401  they register the measurements
from metrics.compare import figures_of, text_table, write_comparison
from metrics.features import ClassifierFeatures, InceptionFeatures
from metrics.images import RunImages, file_images
from metrics.intervals import combine_seeds
from metrics.measured import Measured
from metrics.presence import Presence
from metrics.registry import METRICS, find_metric
from metrics.report import write_report
from metrics.shown import as_pixels, report_of
from metrics.variety import sentence
from sampler import make_sampler
from utils import (
    DATASETS,
    UserError,
    checkpoint_files,
    choose_device,
    find_dataset,
    is_sound,
    require_writable,
    run_main,
    to_uint8,
)

NEWEST, GIVEN, TARGET_FREE = "newest checkpoint", "given checkpoint", "target-free selection"
COMPARED = 16  # images of each run in the comparison
ORACLE = "oracle selection (uses real images of the unseen class)"

JUDGE = tuple(name for name in Config.__dataclass_fields__ if name.startswith("evaluator"))
SETTINGS = ("dataset", "new_class", "data_root", *C_FLAGS, *JUDGE[1:], "skip_classifier_check")

# ------------------------------------------------------------------------------------------- the judges


def load_evaluator(settings, classes, probed, device, home):
    """The evaluator of a Config, checked as the probed classifier is; what the check found is kept in the folder
    `home`. Raises UserError where it does not know the classes, fails its check, or is the probed classifier."""
    spec = data_of(settings)
    evaluator = judging_classifier(Asked.of(settings, "evaluator"), classes, device, spec)
    if probed:
        refuse_evaluator(probed, settings.C_path, settings.evaluator, evaluator)
    if spec:
        # a judge knows all classes: none is unseen to it
        try:
            check = kept_preflight(evaluator, replace(settings, new_class=(), oracle=True, only=()), spec, home)
        except UserError as error:
            print(f"warning: the evaluator {settings.evaluator} is believed unchecked: {error}", file=sys.stderr)
        else:
            for note in check.notes:
                print(f"the evaluator {settings.evaluator}: {note}")
            require_passed(check, settings, "evaluator")
    return evaluator


def load_evaluators(settings, others, classes, probed, device, home):
    """[the evaluator of a Config, further ones with the settings `others`], no two the same classifier."""
    judges, paths = [load_evaluator(settings, classes, probed, device, home)], [settings.evaluator]
    plain = {name: Config.__dataclass_fields__[name].default for name in JUDGE}
    for own in others:
        path = own["evaluator"]
        judge = load_evaluator(replace(settings, **(plain | own)), classes, probed, device, home)
        for known, place in zip(judges, paths, strict=True):
            if same_classifier(judge, known):
                raise UserError(f"the evaluators {place} and {path} are the same classifier; two that agree prove "
                                "something only where they are independent: leave one out.")
        judges.append(judge)
        paths.append(path)
    return judges


def judges_in(arguments):
    """[settings of a judge, by the names of JUDGE] of a command line; flags --evaluator_* are of the --evaluator before
    them, those before the first of that one. Raises UserError where it names several."""
    parser = Parser(add_help=False)
    parser.add_argument("--evaluator", nargs="+", default=[])
    add_flags(parser, names=JUDGE[1:])
    places = [i for i, word in enumerate(arguments) if word.partition("=")[0] == "--evaluator"][1:]
    found = []
    for start, stop in zip([0, *places], [*places, len(arguments)], strict=True):
        own = vars(parser.parse_known_args(arguments[start:stop])[0])
        paths = own.pop("evaluator")
        if own and len(paths) > 1:
            flag = f"--{next(iter(own))}"
            raise UserError(f"{flag} is of one judge, and --evaluator names {len(paths)}; give each with its own "
                            f"flags: --evaluator {paths[0]} {flag} ... --evaluator {paths[1]} ...")
        found += [{"evaluator": path, **own} for path in paths] or [own]
    return found


def require_own(state, settings, probed, needs_real):
    """Raise UserError where classifier or image set are not those that a checkpoint was made with.

    Of a set, only what D was shown is asked: images of an unseen class may have been added to measure with.
    """
    was, now = state.get("classifier_sha256"), probed and fingerprint(probed.model)
    if now and was not in (None, now):
        raise UserError(f"the classifier {settings.C_path} is not the one that this run probed (SHA-256 of its weights "
                        f"{now[:12]}, was {was[:12]}); give that one as --C_path.")
    if needs_real and state.get("seen_sha256"):
        source = open_source(DATASETS[find_dataset(settings.dataset)[0]], settings.data_root, "train")
        if sample_sha256(source, [] if settings.oracle else settings.new_class) != state["seen_sha256"]:
            raise UserError(f"the images of {settings.dataset} in {settings.data_root} are not those that this run was "
                            "trained on; give the folder that holds those as --data_root.")


def chosen_metrics(flags, probed, draws, audible):
    """The metrics to measure. Raises UserError for a name that is unknown, or that needs what is not there.

    draws: what a checkpoint says of what it draws; empty for images made elsewhere. audible: whether the images are
    spectrograms.
    """
    inception = flags.features == "inception"
    given = {"probed": probed, "presence": flags.presence, "sound": audible}
    there = {"real", *draws, *(name for name, value in given.items() if value)}
    if not flags.metrics:
        return [metric for metric in METRICS.values() if set(metric.needs) <= there]
    metrics = [find_metric(name, inception, flags.num) for name in flags.metrics]
    for metric in metrics:
        if "probed" in metric.needs and not probed:
            raise UserError(f"metric '{metric.name}' looks at the probed classifier; give it with --C_path.")
        if "presence" in metric.needs and not flags.presence:
            raise UserError(f"metric '{metric.name}' needs to know of what; give an attribute and its value, as in "
                            "--presence place=water.")
        if "sound" in metric.needs and not audible:
            raise UserError(f"metric '{metric.name}' is of spectrograms, and the images of this data set are none; "
                            "leave it out.")
    return metrics


def judge_names(dataset, paths):
    """The names of judges in figures: the data set's folder and the file's name, as in 'cifar10_robust_evaluator', with
    a number where several files have one name."""
    folder = DATASETS[dataset].folder if dataset in DATASETS else dataset
    names = []
    for path in paths:
        stem = Path(path).stem
        name = stem if stem.startswith(f"{folder}_") else f"{folder}_{stem}"
        names.append(name if name not in names else f"{name}_{len(names) + 1}")
    return names


# -------------------------------------------------------------------------------------- one measurement


class Evaluation:
    """The networks and the metrics for one source of images after another; `measured` and `records` are of one.

    settings: the Config of the run, or one that names data set, classes and classifier of images made elsewhere. home:
    a folder for what the check of the judge found. state: of the run's checkpoint.
    """

    def __init__(self, flags, settings, classes, device, home, state=None):
        state = state or {}
        self.flags, self.device = flags, device
        self.dataset, self.data_root = settings.dataset, settings.data_root
        self.probed = probed_classifier(settings, classes, device) if settings.C_path else None
        self.probed_labels = self.probed.labels if self.probed else ()
        evaluator, *others = load_evaluators(settings, flags.others, classes, self.probed, device, home)
        self.metrics = chosen_metrics(flags, self.probed, state.get("draws", ()), is_sound(self.dataset))
        self.digest, self.interrupted = fingerprint(evaluator.model), False
        names = judge_names(self.dataset, [settings.evaluator, *(own["evaluator"] for own in flags.others)])
        self.judge, *self.others = map(ClassifierFeatures, (evaluator, *others), names)
        self.extractor = self.judge
        if flags.features == "inception":
            self.extractor = InceptionFeatures(flags.inception_weights, device)
        self.presence = self.make_presence() if flags.presence else None
        needs_real = flags.report or any("real" in metric.needs for metric in self.metrics)
        if needs_real:
            self.require_real()
        require_own(state, settings, self.probed, needs_real)

    def make_presence(self):
        """The Presence that the flags ask for, calibrated on fakes too where they name runs for that."""
        states = {run: load_run(run) for run in self.flags.presence_calibration}
        runs = {run: (state["config"], run_images(state, self.flags, self.device)) for run, state in states.items()}
        return Presence(self.flags.presence, self.dataset, self.data_root, self.flags.out, runs)

    def require_real(self):
        """Raise UserError where the training images are missing, before the time to generate any is spent."""
        needless = [metric.name for metric in METRICS.values() if "real" not in metric.needs]
        try:
            open_source(DATASETS[find_dataset(self.dataset)[0]], self.data_root, "train")
        except UserError as error:
            raise UserError(f"{error} Without them you can measure: --metrics {' '.join(needless)}") from error

    def measure(self, images, metrics, selection):
        """(Measured, records) of a source of images. selection: how its checkpoint was chosen, or ''."""
        measured = Measured(images, self.extractor, self.judge, self.probed, self.probed_labels, self.dataset,
                            self.data_root, self.device, self.flags.batch_size, presence=self.presence,
                            others=self.others, out=self.flags.out)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        about = {"step": images.step, "first_seed": images.first_seed, "time": now, "selection": selection,
                 "evaluator_sha256": self.digest}
        records, errors = [], []
        for metric in metrics:
            try:
                records += metric.measure(measured)
            except KeyboardInterrupt:
                self.interrupted = True
                print("stopped; what was measured until now is kept", file=sys.stderr)
                break
            except Exception as error:  # of one metric: the others are measured and kept
                errors.append(error)
                why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                if not isinstance(error, UserError):
                    self.flags.faults.append(f"{metric.name} ({why})")
                records.append({"metric": metric.name, "value": None, "low": None, "high": None, "class": None,
                                "n": 0, "warning": f"{metric.name} could not be measured: {why}"})
        if len(errors) == len(metrics):
            raise errors[0]
        return measured, [{**record, **about} for record in records]


def run_images(state, flags, device):
    """The images of a checkpoint's state."""
    data = state["dataset"]
    return RunImages(make_sampler(state, device), data["resolution"], data["channels"], flags.num, flags.seed)


def target_free(run):
    """(checkpoint, how it was chosen): RUN/best.pt of train.py --select where it can be read, else the newest one."""
    if (run / "best.pt").is_file():
        try:
            return load_run(run / "best.pt"), TARGET_FREE
        except UserError as error:
            print(f"warning: {error} The newest checkpoint is taken.", file=sys.stderr)
    return load_run(run), NEWEST


def oracle_select(evaluation, run, flags):
    """(checkpoint of least intra-FD of y*, what write_report takes as `selection`).

    Real images of the unseen class decide here, which a probe must not know: the result bounds what another choice of
    checkpoint could give, and is not the run's own figure. Raises UserError where there is no y*.
    """
    own, _ = target_free(run)
    states = [own] + [load_run(file) for file in checkpoint_files(run)]
    found = {}
    for state in states:
        if state["step"] in found:
            continue
        images = run_images(state, flags, evaluation.device)
        images.drawn = images.new_class
        if not images.drawn:
            raise UserError("--oracle_select chooses by the unseen class, and this run has none.")
        _, records = evaluation.measure(images, [METRICS["intra_fd"]], ORACLE)
        found[state["step"]] = sum(record["value"] for record in records) / len(records)
    step = min(found, key=found.get)
    chosen = next(state for state in states if state["step"] == step)
    return chosen, {"metric": records[0]["metric"], "target_free": {"step": own["step"], "value": found[own["step"]]},
                    "oracle": {"step": step, "value": found[step]}}


# ------------------------------------------------------------------------------------ files and tables


def figure(value):
    """Four significant digits."""
    return "not finite" if value is None else f"{value:.4g}"


def table_rows(records, new_class):
    """(metric, class, value, interval, n) as strings: of each metric the unseen classes, all, and the seen in one."""
    groups = {}
    for record in records:
        if not record["n"]:
            continue  # of what could not be measured
        label = record["class"]
        place = 0 if label in new_class else 1 if label is None else 2
        groups.setdefault(record["metric"], {}).setdefault((place, label if place < 2 else ""), []).append(record)
    for metric, parts in groups.items():
        for (place, label), members in sorted(parts.items(), key=lambda part: part[0][0]):
            first, values = members[0], [record["value"] for record in members if record["value"] is not None]
            value, interval = first["value"], ""
            name = (f"{label} (unseen)", first.get("group", "all"), f"{len(members)} seen, mean")[place]
            if place == 2:
                value = sum(values) / len(values) if values else None
                interval = f"(each: {figure(min(values))} to {figure(max(values))})" if values else ""
            elif first["low"] is not None:
                interval = f"{figure(first['low'])} to {figure(first['high'])}"
            yield metric, name, figure(value), interval, str(sum(record["n"] for record in members))


def print_table(title, records, new_class):
    """The table and the warnings, those of seen classes as a number."""
    print(title)
    rows = [("metric", "class", "value", "95 % interval", "n"), *table_rows(records, new_class)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for metric, label, value, interval, n in rows:
        print(f"  {metric:{widths[0]}}  {label:{widths[1]}}  {value:>{widths[2]}}  {interval:{widths[3]}}  "
              f"{n:>{widths[4]}}")
    for label in new_class:
        print(f"  {sentence(records, label)}")
    for record in records:
        if not record["n"]:
            print(f"  {record['metric']:{widths[0]}}  -  {record['warning']}")
    warned = [record for record in records if record["warning"] and record["n"]]
    for warning in dict.fromkeys(r["warning"] for r in warned if r["class"] in {None, *new_class}):
        print(f"  warning: {warning}")
    more = sum(record["class"] not in {None, *new_class} for record in warned)
    if more:
        print(f"  {more} figures of seen classes have warnings too; they stand with the results.")


# -------------------------------------------------------------------------------------- command line


class Outputs:
    """The files that a measurement writes: results.jsonl and report.html in a folder, or with a file's name before.

    They lie in the folder `out` where one is given, as for a run in which one may not write; then nothing else is
    written anywhere.
    """

    def __init__(self, home, report, out=None):
        stem = "" if home.is_dir() else f"{home.stem}."
        folder = self.folder = out or (home if home.is_dir() else home.parent)
        folder.mkdir(parents=True, exist_ok=True)
        self.results, self.report = folder / f"{stem}results.jsonl", folder / f"{stem}report.html" if report else None
        for path in filter(None, (self.results, self.report)):
            require_writable(path)

    def write(self, title, measured, records, state, home, selection=None, interrupted=False):
        """Append the records, print them, and write the report where one was asked for."""
        new_class = [measured.classes[label] for label in measured.images.new_class]
        append_lines(self.results, records)
        print_table(title, records, new_class)
        print(f"  written to {self.results}")
        if interrupted:
            sys.exit(130)
        if self.report:
            write_report(self.report, report_of(measured, records, state, home, selection))
            print(f"  the report: {self.report}")


def home_of(run):
    """The run folder of a run folder or a checkpoint file."""
    home = run if run.is_dir() else run.parent
    return home.parent if home.name == "checkpoints" else home


def out_of(run, flags):
    """The folder that --out gives a run: of several each has one of its own name. None without --out."""
    if flags.out is None or len(flags.run or flags.compare) == 1:
        return flags.out
    names = [home_of(other).resolve().name for other in flags.run or flags.compare]
    name = home_of(run).resolve().name
    if names.count(name) > 1:
        raise UserError(f"--out gives each run a folder of its name, and {names.count(name)} of these are called "
                        f"{name}; measure each by itself, with an --out of its own.")
    return flags.out / name


def evaluate_run(run, flags, overrides, device):
    """Measure one run (a folder or a checkpoint file). Returns its records, and the names of its unseen classes."""
    home = home_of(run)
    state, chosen = target_free(run) if run.is_dir() else (load_run(run), GIVEN)
    outputs = Outputs(home, flags.report, out_of(run, flags))
    # who made the checkpoint does not decide whether a classifier's code is run
    settings = replace(located(Config.from_dict(from_a_file(state["config"], overrides, run)), home), **overrides)
    evaluation = Evaluation(flags, settings, state["dataset"]["classes"], device, outputs.folder, state)
    selection = None
    if flags.oracle_select:
        state, selection = oracle_select(evaluation, home, flags)
        chosen = ORACLE
    measured, records = evaluation.measure(run_images(state, flags, device), evaluation.metrics, chosen)
    title = f"{run}, step {state['step']} ({chosen}), {flags.num} images a class from seed {flags.seed}"
    outputs.write(title, measured, records, state, home, selection, evaluation.interrupted)
    if selection:
        free, best = selection["target_free"], selection["oracle"]
        print(f"  {selection['metric']}: {figure(free['value'])} at step {free['step']} without and "
              f"{figure(best['value'])} at step {best['step']} with real images of the unseen class to choose by")
    return records, {measured.classes[label] for label in measured.images.new_class}


def require_no_faults(faults):
    """Raise UserError where metrics broke; one that the images do not allow has said so itself."""
    if faults:
        raise UserError(f"{' and '.join(dict.fromkeys(faults))} broke down, through a mistake in the program; report "
                        "it. All else was measured and is kept.")


def evaluate_images(flags, overrides, device):
    """Measure images that were made elsewhere."""
    settings = make_config(**overrides)
    spec = DATASETS[settings.dataset]
    images = file_images(flags.images, spec, settings.new_class, flags.num)
    outputs = Outputs(flags.images, flags.report, flags.out)
    evaluation = Evaluation(flags, settings, spec.classes, device, outputs.folder)
    measured, records = evaluation.measure(images, evaluation.metrics, "")
    outputs.write(f"{flags.images}, {flags.num} images a class", measured, records, {}, flags.images,
                  interrupted=evaluation.interrupted)


def require_together(runs):
    """Raise UserError where runs are not repetitions of one another: other classifiers, classes or methods, or one
    run twice."""
    first, digests = None, {}
    for run in runs:
        state = target_free(run)[0] if run.is_dir() else load_run(run)
        own = {name: state["config"].get(name) for name in ("dataset", "new_class", "oracle", "method", "only")}
        own |= {"classes": state["dataset"]["classes"], "classifier": state.get("classifier_sha256")}
        first = first or own
        for name, value in own.items():
            if value != first[name]:
                raise UserError(f"{runs[0]} and {run} differ in their {name} ({first[name]} and {value}), and a mean "
                                "over both would be of nothing; give runs that differ in their seed alone.")
        digest = hashlib.sha256()
        for part in state.get("G_ema", {}).values():
            digest.update(part.numpy().tobytes())
        name = digest.hexdigest() if state.get("G_ema") else str(run.resolve())
        if name in digests:
            raise UserError(f"{digests[name]} and {run} are one run, or of one seed; give each once.")
        digests[name] = run


def combine(runs, found):
    """The records of several runs together: each figure's mean over the runs, and its 95 % interval by Student's t."""
    values = {}
    for record in (record for records in found for record in records):
        values.setdefault((record["metric"], record["class"], record.get("group")), []).append(record)
    combined = []
    for (metric, label, group), records in values.items():
        if len(records) < len(runs) or any(record["value"] is None for record in records):
            continue  # of a class that is not in each of them, or not finite
        value, low, high = combine_seeds([record["value"] for record in records])
        combined.append({"metric": metric, "value": value, "low": low, "high": high, "class": label,
                         **({"group": group} if group else {}), "n": sum(record["n"] for record in records),
                         "first_seed": records[0]["first_seed"], "time": records[-1]["time"], "warning": "",
                         "runs": [str(run) for run in runs], "values": [record["value"] for record in records]})
    return combined


def compare_runs(flags, device):
    """Print the figures of runs, as they stand in their results.jsonl, side by side; with --report the page, too.

    Raises UserError for runs of other classes, or with other unseen ones.
    """
    rows, unseen = [], None
    for run in flags.compare:
        state, _ = target_free(run) if run.is_dir() else (load_run(run), GIVEN)
        home, sampler = home_of(run), make_sampler(state, device)
        places = [folder / "results.jsonl" for folder in (out_of(run, flags), home) if folder]
        records = next(filter(None, map(read_lines, places)), [])
        own = tuple(state["draws"]["new_class"]), sampler.classes
        if unseen not in (None, own) or len(own[0]) != 1:
            raise UserError(f"{run} draws another unseen class than {flags.compare[0]}, or several; runs of one unseen "
                            "class can be compared.")
        unseen, label = own, own[0][0]
        images = to_uint8(sampler.class_images(label, range(flags.seed, flags.seed + COMPARED))) if flags.report else []
        figures = figures_of([record for record in records if {"metric", "class", "low", "high"} <= record.keys()
                              and record.get("step") == state["step"]], sampler.classes[label])
        rows.append({"run": home.name, "classifier": state["config"]["C_path"], "step": state["step"],
                     "images": [as_pixels(image) for image in images], "figures": figures,
                     "warnings": [] if figures else ["nothing was measured at this step; measure it with --run."]})
    print(text_table(rows))
    if flags.report:
        path = (flags.out or flags.compare[0].resolve().parent) / "compare.html"
        write_comparison(path, {"unseen": sampler.classes[label], "rows": rows,
                                "seeds": list(range(flags.seed, flags.seed + COMPARED))})
        print(f"  the comparison: {path}")


def check_flags(flags, overrides):
    """Raise UserError for flags that do not go together."""
    if bool(flags.run) + bool(flags.images) + bool(flags.compare) != 1:
        raise UserError("give either --run RUN, or --images PATH with --dataset and --new_class, or --compare RUN RUN.")
    if len(flags.compare) == 1:
        raise UserError("--compare was given one run; give two or more.")
    for name in ("num", "batch_size"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} is {getattr(flags, name)}; it must be at least 1.")
    if not 0 <= flags.seed < 2**62:
        raise UserError(f"--seed is {flags.seed}; it must be at least 0 and less than {2**62}.")
    if flags.features == "inception" and not flags.inception_weights:
        raise UserError("--features inception needs the weights of the FID network, with --inception_weights PATH.")
    if flags.inception_weights and flags.features != "inception":
        raise UserError("--inception_weights was given without --features inception.")
    if flags.presence_calibration and not flags.presence:
        raise UserError("--presence_calibration is of fakes whose value is known, and --presence names none; give it "
                        "too, as in --presence place=water.")
    if flags.images:
        if "dataset" not in overrides:
            raise UserError("--images needs --dataset, so that it is known what the images are compared with.")
        if flags.oracle_select:
            raise UserError("--oracle_select chooses a checkpoint of a --run; leave it out with --images.")
        return
    for name in ("dataset", "new_class"):
        if name in overrides:
            raise UserError(f"--{name} is for --images; a run knows its own.")
    for run in flags.run:
        if flags.oracle_select and not run.is_dir():
            raise UserError(f"--oracle_select chooses among the checkpoints of a run folder; {run} is none.")


@told_of_memory("--batch_size or --num")
def main():
    width = max(len(name) for name in METRICS)
    parser = Parser(description=__doc__ + "\n".join(f"  {name:{width}}  {metric.description}"
                                                    for name, metric in METRICS.items()))
    parser.add_argument("--run", type=Path, nargs="+", default=[], help="run folders: best.pt of each where there is "
                        "one, else its newest checkpoint; or checkpoint files")
    parser.add_argument("--compare", type=Path, nargs="+", default=[], metavar="RUN",
                        help="runs of one unseen class, measured before, to be set side by side")
    parser.add_argument("--evaluator", nargs="+", default=[], metavar="PATH", help="the judge, or several, by as many "
                        "of these flags: what all recognise counts as recognised. Flags --evaluator_* are of the one "
                        "before them")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write, and to keep statistics; of several "
                        "runs each has a folder of its name in it, where --compare looks, too (default: into the run, "
                        "or beside the images; statistics beside the data)")
    parser.add_argument("--images", type=Path, help="images made elsewhere, instead of --run")
    parser.add_argument("--metrics", nargs="+", default=[], metavar="NAME", help="what to measure (default: all)")
    parser.add_argument("--num", type=int, default=5000, help="images a class (default: 5000)")
    parser.add_argument("--seed", type=int, default=10_000, help="seed of a run's first image (default: 10000)")
    parser.add_argument("--features", choices=("evaluator", "inception"), default="evaluator",
                        help="network whose features are compared (default: evaluator)")
    parser.add_argument("--inception_weights", type=Path, help="weights of the FID network, for --features inception")
    parser.add_argument("--oracle_select", action="store_true",
                        help="measure the checkpoint that real images of the unseen class prefer, and say so")
    parser.add_argument("--presence", default="", metavar="NAME=VALUE",
                        help="value of an attribute of the data set to look for in the images, as place=water")
    parser.add_argument("--presence_calibration", type=Path, nargs="+", default=[], metavar="RUN",
                        help="runs with --oracle --only NAME=VALUE, of each value: a second figure is corrected for "
                        "what the scorers miss in their fakes")
    parser.add_argument("--report", action="store_true", help="also write report.html, or compare.html")
    parser.add_argument("--batch_size", type=int, default=100, help="images at a time (default: 100)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add_flags(parser.add_argument_group("the judge, and what --images are of (a run knows its own)"), names=SETTINGS)
    flags = parser.parse_args()
    judge, *flags.others = judges_in(sys.argv[1:])
    overrides = {name: value for name, value in vars(flags).items() if name in SETTINGS and name not in JUDGE} | judge
    check_flags(flags, overrides)
    device, flags.faults = choose_device(flags.device), []
    if flags.images:
        evaluate_images(flags, overrides, device)
        require_no_faults(flags.faults)
        return
    if flags.compare:
        compare_runs(flags, device)
        return
    if len(flags.run) > 1:
        require_together(flags.run)
    found = [evaluate_run(run, flags, overrides, device) for run in flags.run]
    if len(found) > 1:
        combined, new_class = combine(flags.run, [records for records, _ in found]), found[0][1]
        path = (flags.out or flags.run[0].resolve().parent) / "combined.jsonl"
        append_lines(path, combined)
        print_table(f"{len(found)} runs together, mean and 95 % interval over runs", combined, new_class)
        print(f"  written to {path}")
    require_no_faults(flags.faults)


if __name__ == "__main__":
    run_main(main)
