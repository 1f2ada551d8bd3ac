#!/usr/bin/env python3
"""Table 1 of the ProbeGAN paper: every method, classifier and seed trained and measured alike, in one table.

    python scripts/table1.py --dataset MNIST --unseen 7 9                    all methods, small networks
    python scripts/table1.py --dataset C10 --unseen horse --scale paper      the paper's settings; needs a GPU
    python scripts/table1.py --dataset C10 --unseen horse --scale paper --executor slurm --slurm_partition gpu

Writes table1_<data set>.md, .json and .png. Stopped at any point, the same command goes on; runs that failed are
tried again. The same command may run in several processes at once: each takes runs that no other holds.
"""

import fcntl
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from classifiers import load_classifier  # noqa: E402
from classifiers.frozen import fingerprint  # noqa: E402
from classifiers.train import commit  # noqa: E402
from config import METHODS, Config, Parser, add_flags, make_config  # noqa: E402
from metrics.intervals import combine_seeds  # noqa: E402
from metrics.recognition import rate  # noqa: E402
from sample import make_sampler  # noqa: E402
from utils import (  # noqa: E402
    DATASETS,
    ROOT,
    UserError,
    checkpoint_files,
    choose_device,
    class_label,
    load_checkpoint,
    nearest,
    replacing,
    run_main,
    save_grid,
    stop_on_signal,
    write_json,
)

# num: images a class; all: flags of train.py for every run; a method's name: for its runs too
SCALES = {
    "MNIST": {"small": {"num": 500, "all": "--G_ch 8 --D_ch 8 --batch_size 32 --num_steps 400 --num_D_steps 1 "
                                           "--precision bf16 --save_every 100 --sample_every 400",
                        "deep_inversion": "--synthesis_steps 100"},
              "paper": {"num": 5000, "all": ""}},
    "C10": {"small": {"num": 500, "all": "--G_ch 16 --D_ch 16 --batch_size 32 --num_steps 500 --num_D_steps 2 "
                                         "--G_lr 4e-4 --D_lr 4e-4 --init ortho --ema_decay 0.99 --ema_start 50 "
                                         "--diffaug translation --precision bf16 --save_every 100 --sample_every 500",
                      "deep_inversion": "--synthesis_steps 300"},
            "paper": {"num": 5000, "all": ""}},
    "digits": {"small": {"num": 100, "all": "--num_steps 40 --save_every 20 --sample_every 40",
                         "deep_inversion": "--synthesis_steps 100"},
               "paper": {"num": 5000, "all": ""}},
}
# a rival that keeps images keeps as many as are measured; a step of a synthesis is a batch, and may take minutes
OWN_FLAGS = {"oracle": "--oracle", "biggan": "--method biggan --oracle", "degan": "--num_images {num}",
             "robust_synthesis": "--num_images {num} --save_every 1",
             "deep_inversion": "--num_images {num} --save_every 1"}
ROWS = ("oracle", *sorted(METHODS, key=lambda name: name != "biggan"))  # the bounds first
VARIANTS = {
    "no DiffAugment": "--diffaug", "DiffAugment colour, translation, cutout": "--diffaug color translation cutout",
    "class weight rising": "--C_coeff 0.1 --C_coeff_end 1", "class weight falling": "--C_coeff 1 --C_coeff_end 0.1",
    "R1 penalty": "--penalty r1", "zero-centred penalty": "--penalty zero", "balanced classes": "--balanced_y",
    "diversity term": "--diversity_coeff 1", "k = 2": "", "k = 3": "",
}
# better first; a row that is not named comes last. Intra-FD: the paper's Table 1, where NAIVE on a robust classifier
# goes before ProbeGAN on a regular one
EXPECTED = {"recognised": ("oracle", "probegan robust", "probegan regular", "naive robust"),
            "intra_fd": ("oracle", "probegan robust", "naive robust", "probegan regular")}
COLUMNS = {  # heading, metric of evaluate.py, whether it is a share
    "recognised": ("recognised", "recognition", True), "accepted": ("accepted", "adversarial_gap", True),
    "intra_fd": ("intra-FD", "intra_fd", False), "fd": ("FD of all", "fd", False),
    **{name: (name, name, True) for name in ("precision", "recall", "coverage")},
}
MEASURED = ("recognition", "adversarial_gap", "intra_fd", "fd", "precision_recall_density_coverage")
# settings that do not decide what a run computes
INDIFFERENT = {"evaluator", "device", "num_workers", "max_resident_gb", "log_every", "sample_every", "save_every",
               "keep"}
TRAIN, EVALUATE = str(ROOT / "train.py"), str(ROOT / "evaluate.py")
LAUNCHERS = {"C10": "cifar", "MNIST": "mnist"}
DIGITS = {"robust": "--arch smallcnn --robust l2 --eps 1.25 --steps 3 --epochs 20", "regular":
          "--arch smallcnn --epochs 20", "evaluator": "--arch resnet8 --role evaluator --epochs 12 --seed 1"}
SHOWN = 10  # images in a row of the picture
LOCAL_JOBS = 2  # of submitit's local executor at a time

# ------------------------------------------------------------------------------------------- what to run


@dataclass(frozen=True)
class Run:
    """One training. Paths are seen from ROOT, where every command runs.

    words: flags of train.py. config: the same as plain values. probed: SHA-256 of the classifier's file. unseen: name
    of the class that it is measured on, '' for none. needs: the run whose generator it searches.
    """

    folder: Path
    words: tuple[str, ...]
    config: dict
    probed: str
    seed: int
    unseen: str
    needs: "Run | None" = None


@dataclass(frozen=True)
class Row:
    """A line of the table: its runs differ in their seed alone. classifier: '' where none is probed."""

    unseen: str
    title: str
    method: str
    classifier: str
    runs: tuple[Run, ...]

    @property
    def name(self):
        return ", ".join(filter(None, (self.title, self.classifier)))


def from_root(path):
    """The Path seen from ROOT where it lies below, else absolute: the same from wherever the script is started."""
    path = Path(os.path.abspath(path))
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def classifier_path(dataset, name, given):
    """The file of a classifier, seen from ROOT. given: a path, or '' for that of pretrained/. Raises UserError."""
    path = from_root(given or ROOT / "pretrained" / f"{DATASETS[dataset].folder}_{name}.safetensors")
    if (ROOT / path).is_file():
        return path
    if given:
        raise UserError(f"the classifier {name}, {path}, does not exist; give another path, or none for pretrained/.")
    if name not in DIGITS:
        raise UserError(f"classifier '{name}' is unknown ({nearest(name, ['robust', 'regular'])}), and there is no "
                        f"{path}; give one of your own as NAME=PATH.")
    command = f"scripts/launch_train_{LAUNCHERS[dataset]}_classifiers.sh" if dataset in LAUNCHERS else \
        f"python -m classifiers.train --dataset {dataset} {DIGITS[name]} --out {path}"
    raise UserError(f"the classifier {path} does not exist; make it: {command}")


def chosen(flag, names, valid):
    """The names, or all of them for 'all'. Raises UserError for one that is not valid."""
    for name in names:
        if name not in (*valid, "all"):
            raise UserError(f"--{flag} '{name}' is unknown ({nearest(name, (*valid, 'all'))}).")
    return list(valid) if "all" in names else list(dict.fromkeys(names))


def plan(flags, classifiers, evaluator):
    """(rows, notes) of what was asked for. classifiers: {name: path}. Raises UserError as train.py would."""
    spec, scale = DATASETS[flags.dataset], SCALES[flags.dataset][flags.scale]
    home = from_root(flags.runs) / f"{flags.dataset}_{flags.scale}"
    digests = {name: hashlib.sha256((ROOT / path).read_bytes()).hexdigest() for name, path in classifiers.items()}
    unseen = list(dict.fromkeys(class_label(spec, name) for name in flags.unseen))
    first = next(iter(classifiers))
    rows, notes = [], []

    def make_run(name, classifier, y, seed, own, k=1, needs=None, measured=True):
        labels = [str((y + i) % len(spec.classes)) for i in range(k)]
        words = ("--dataset", flags.dataset, "--new_class", *labels, "--seed", str(seed), "--C_path",
                 str(classifiers[classifier or first]), "--evaluator", str(evaluator), "--data_root",
                 str(from_root(flags.data_root)), *shlex.split(f"{scale['all']} {own}"))
        parser = Parser()
        add_flags(parser)
        config = make_config(**vars(parser.parse_args(words))).as_dict()
        folder = home / "_".join(filter(None, (name, classifier, "wo", spec.classes[y], f"seed{seed}")))
        return Run(folder, words, config, digests[classifier] if classifier else "", seed,
                   spec.classes[y] if measured else "", needs)

    def method_run(method, classifier, y, seed):
        own = " ".join(("" if method in ("oracle", "biggan") else f"--method {method}",
                        OWN_FLAGS.get(method, "").format(num=flags.num), scale.get(method, "")))
        needs = None
        if method == "biggan_am":
            needs = make_run("gan", "", y, seed, "--method biggan", measured=False)
            own += f" --gan {shlex.quote(str(needs.folder))}"
        return make_run(method, classifier, y, seed, own, needs=needs)

    for y in unseen:
        for method in chosen("methods", flags.methods, ROWS):
            for classifier in {"oracle": [first], "biggan": [""]}.get(method, classifiers):
                runs = tuple(method_run(method, classifier, y, seed) for seed in range(flags.seeds))
                title = Config.from_dict(runs[0].config).method_name
                rows.append(Row(spec.classes[y], title, method, classifier, runs))
        classifier = "robust" if "robust" in classifiers else first
        for variant in chosen("variants", flags.variants, VARIANTS):
            slug = re.sub(r"\W+", "_", variant.lower())
            k = int(variant[4:]) if variant.startswith("k = ") else 1
            runs = tuple(make_run(slug, classifier, y, seed, VARIANTS[variant], k) for seed in range(flags.seeds))
            if runs[0].config == make_run("", classifier, y, 0, "").config:
                notes.append(f"The variant '{variant}' has no row: it is ProbeGAN's own setting on {flags.dataset}.")
            else:
                rows.append(Row(spec.classes[y], f"ProbeGAN, {variant}", "variant", classifier, runs))
    return rows, list(dict.fromkeys(notes))


def read_state(folder):
    """What is known of a run: probed, trained, train_seconds, measured, error, error_at; {} before its first start."""
    path = ROOT / folder / "table1.json"
    return json.loads(path.read_text()) if path.exists() else {}


def refuse_differences(was, now, what, advice):
    """Raise UserError where two dicts of plain values differ."""
    different = [key for key in now if was.get(key) != now[key]]
    if different:
        listed = "; ".join(f"{key} was {was.get(key)}, is {now[key]}" for key in different)
        raise UserError(f"{what} was made with other settings ({listed}); {advice}")


def require_same(run):
    """Raise UserError where the run's folder holds another training than the one that is wanted."""
    path, state = ROOT / run.folder / "config.json", read_state(run.folder)
    what, advice = f"the run {run.folder}", "give another --runs, or delete that folder."
    if state:
        refuse_differences(state, {"probed": run.probed}, what, advice)
    if not path.exists():
        return
    # BigGAN uses no classifier, and may stand in tables of different ones
    indifferent = INDIFFERENT | ({"C_path"} if run.config["method"] == "biggan" else set())
    was = Config.from_dict(json.loads(path.read_text())).as_dict()
    now = {key: value for key, value in run.config.items() if key not in indifferent}
    refuse_differences(was, now, what, advice)


# ------------------------------------------------------------------------------------------ doing it


@contextmanager
def locked(folder, wait):
    """Yield the open lock file beside a run's folder, or None where another process holds it and wait() is false.

    The kernel releases it when the last process that has it open ends, however it ends.
    """
    path = ROOT / f"{folder}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait():
                    file = None
                    break
                time.sleep(0.5)
        yield file


def call(command, log, lock, stopped):
    """Run a Python program to its end, its output into `log`: (error, seconds), error '' where it did well.

    Once stopped() it is told to end, too. It holds the lock as well, so that no other process takes its folder if this
    one is killed before it.
    """
    begin, told = time.perf_counter(), False
    with log.open("a") as output:
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=output, stderr=output,
                                   pass_fds=[lock.fileno()], env={**os.environ, "TQDM_MININTERVAL": "60"})
        while process.poll() is None:
            if stopped() and not told:
                process.terminate()
                told = True
            time.sleep(0.1)
    seconds = time.perf_counter() - begin
    if process.returncode == 0:
        return "", seconds
    lines = re.split(r"[\r\n]+", log.read_text(errors="replace").strip())
    return f"{Path(command[0]).name} ended with code {process.returncode}: {lines[-1]}", seconds


def figures_of(records, unseen):
    """{column: {value, low, high}} of one measurement's records, the interval over its images."""
    found = {}
    draws_seen = any(record.get("group") == "all seen" for record in records)
    for name, (_, metric, _) in COLUMNS.items():
        for record in records:
            if re.sub(r"(\d+k?)?@.*", "", record["metric"]) != metric:
                continue
            if name == "fd" and record["class"] is None and draws_seen or name != "fd" and record["class"] == unseen:
                found[name] = {key: record[key] for key in ("value", "low", "high")}
                if name == "accepted":
                    share = rate(round(record["accepted"] * record["n"]), record["n"])
                    found[name] = {"value": share["rate"], "low": share["low"], "high": share["high"]}
    return found


def complete(run, judge, started, stopped, wait):
    """Train and measure what is missing of a run; False where another process holds it, and wait is False.

    judge: {num, evaluator_sha256}. A run that has failed since `started` (seconds since 1970) is left as it is.
    """
    if run.needs and not complete(run.needs, judge, started, stopped, wait):
        return False
    with locked(run.folder, lambda: wait and not stopped()) as lock:
        if lock is None:
            return False
        folder, state = ROOT / run.folder, read_state(run.folder)
        folder.mkdir(exist_ok=True)
        log, results = folder / "table1.log", folder / "results.jsonl"
        trained = bool(state.get("trained") and checkpoint_files(folder))
        measured = not run.unseen or trained and judge.items() <= state.get("measured", {}).items()
        if stopped() or trained and measured or state.get("error_at", 0) >= started:
            return True
        state = {"probed": run.probed, **state, "error": ""}
        if run.needs and not read_state(run.needs.folder).get("trained"):
            state["error"] = f"it needs {run.needs.folder}, which failed"
        elif not trained:
            print(f"{time.strftime('%H:%M:%S')} training {run.folder}", flush=True)
            write_json(folder / "table1.json", state)
            begin = ["--resume", run.folder] if checkpoint_files(folder) else ["--run", run.folder, *run.words]
            state["error"], seconds = call([TRAIN, *begin], log, lock, stopped)
            state["train_seconds"] = state.get("train_seconds", 0) + seconds
            state["trained"] = trained = not state["error"]
        if trained and not measured and not stopped():
            print(f"{time.strftime('%H:%M:%S')} measuring {run.folder}", flush=True)
            before = results.read_text().count("\n") if results.exists() else 0
            state["error"], seconds = call([EVALUATE, "--run", run.folder, "--evaluator", run.config["evaluator"],
                                            "--num", judge["num"], "--metrics", *MEASURED], log, lock, stopped)
            if not state["error"]:
                records = [json.loads(line) for line in results.read_text().splitlines()[before:]]
                state["measured"] = {"num": judge["num"], "evaluator_sha256": records[0]["evaluator_sha256"],
                                     "seconds": seconds, "figures": figures_of(records, run.unseen)}
        if stopped():
            state["error"] = ""
        if state["error"]:
            state["error_at"] = time.time()
            print(f"{time.strftime('%H:%M:%S')} failed: {run.folder}: {state['error']}", file=sys.stderr, flush=True)
        write_json(folder / "table1.json", state)
    return True


def complete_here(runs, judge, started, stopped):
    """Complete the runs one after another; those of other processes at the end."""
    left = [run for run in runs if not complete(run, judge, started, stopped, wait=False)]
    for run in left:
        if not stopped():
            print(f"waiting for {run.folder}, which another process holds", flush=True)
            complete(run, judge, started, stopped, wait=True)


def complete_job(run, judge, started):
    """Complete one run in a process of submitit's."""
    with stop_on_signal() as stopped:
        complete(run, judge, started, stopped, wait=True)


def complete_by_submitit(runs, judge, started, stopped, flags):
    """Hand each run to submitit and wait for all of them; a stop cancels them, upon which they save themselves."""
    try:
        import submitit
    except ImportError as error:
        raise UserError(f"--executor {flags.executor} needs submitit; install it: pip install submitit") from error
    if flags.executor == "slurm" and not shutil.which("sbatch"):
        raise UserError("--executor slurm needs Slurm's sbatch, which this machine has not; leave --executor out.")
    here = Path(__file__).resolve().parent
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), str(here), os.environ.get("PYTHONPATH"))))
    executor = submitit.AutoExecutor(ROOT / runs[0].folder.parent / "submitit", cluster=flags.executor)
    gpus = torch.cuda.device_count() if flags.executor == "local" else int(flags.scale == "paper")
    more = {"slurm_partition": flags.slurm_partition} if flags.slurm_partition else {}
    executor.update_parameters(timeout_min=flags.slurm_time_min, gpus_per_node=gpus, name="table1", **more)
    waiting, active = list(runs), []
    while (waiting or active) and not stopped():
        while waiting and (flags.executor == "slurm" or len(active) < LOCAL_JOBS):
            run = waiting.pop(0)
            active.append((run, executor.submit(complete_job, run, judge, started)))
        time.sleep(0.5)
        for run, job in [pair for pair in active if pair[1].done()]:
            active.remove((run, job))
            if job.exception() is not None:
                error = f"submitit job {job.job_id}: {str(job.exception()).strip().splitlines()[-1]}"
                (ROOT / run.folder).mkdir(exist_ok=True)
                write_json(ROOT / run.folder / "table1.json", {**read_state(run.folder), "error": error})
    for _, job in active:
        job.cancel()


# ---------------------------------------------------------------------------------------- the table


def finished(run, judge):
    """Whether a run is trained and measured by this protocol."""
    return judge.items() <= read_state(run.folder).get("measured", {}).items()


def combined(row, judge):
    """{column: {value, low, high, seeds}} of a row: over seeds, or over the images of a single run."""
    done = [read_state(run.folder)["measured"]["figures"] for run in row.runs if finished(run, judge)]
    result = {}
    for name in COLUMNS:
        found = [figures[name] for figures in done if name in figures and (name != "accepted" or row.classifier)]
        finite = [figure for figure in found if figure["value"] is not None]
        if len(finite) > 1:
            value, low, high = combine_seeds([figure["value"] for figure in finite])
            most = 1.0 if COLUMNS[name][2] else math.inf
            result[name] = {"value": value, "low": max(low, 0.0), "high": min(high, most), "seeds": len(finite)}
        elif found:
            result[name] = {**(finite or found)[0], "seeds": len(finite)}
    return result


def number(name, value):
    """A value in its column's unit: '97.3 %' for a share, else three significant digits."""
    return f"{100 * value:.1f} %" if COLUMNS[name][2] else f"{value:.3g}"


def cell(name, figures):
    """A figure with its interval, as text."""
    if not figures:
        return "missing"
    if name not in figures:
        return "-"
    figure = figures[name]
    if figure["value"] is None:
        return "not finite"
    if figure["low"] is None:
        return number(name, figure["value"])
    return f"{number(name, figure['value'])} ({number(name, figure['low'])} to {number(name, figure['high'])})"


def order_sentences(rows, figures):
    """A sentence for each row whose mean is behind rows that it was EXPECTED before. figures: combined, a row each.

    Variants and BigGAN on all classes have no place in it.
    """
    def relation(x, y):
        if None in (x["low"], y["low"]):
            return ", no interval"
        return "" if x["low"] <= y["high"] and y["low"] <= x["high"] else ", intervals apart"

    sentences = []
    for name, order in EXPECTED.items():
        sign = -1 if name == "intra_fd" else 1

        def place(row, order=order):
            key = row.method if row.method == "oracle" else f"{row.method} {row.classifier}"
            return order.index(key) if key in order else len(order)

        placed = [(row, found[name]) for row, found in zip(rows, figures, strict=True)
                  if row.method not in ("variant", "biggan") and found.get(name, {}).get("value") is not None]
        for a, x in placed:
            ahead = [f"{b.name} ({number(name, y['value'])}{relation(x, y)})" for b, y in placed if a.unseen == b.unseen
                     and place(a) < place(b) and sign * x["value"] < sign * y["value"]]
            if ahead:
                sentences.append(f"Unseen {a.unseen}, {COLUMNS[name][0]}: {a.name} ({number(name, x['value'])}) was "
                                 f"expected before, and comes after: {'; '.join(ahead)}.")
    return sentences


def machine():
    """{cpu, cores, torch, gpu} of this machine; gpu is '' for none."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "torch": torch.__version__,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else ""}


def markdown(table, rows):
    """The table as Markdown; table: what the .json holds."""
    protocol, hardware = table["protocol"], table["machine"]
    lines = [f"# Table 1 on {protocol['dataset']}, scale {protocol['scale']}", "",
             f"{protocol['num']} images a class, features of the evaluator (SHA-256 "
             f"{protocol['evaluator_sha256'][:12]}). In brackets the 95 % interval over seeds by Student's t, cut "
             "where no figure can be, or, where one seed is finished, over its images. Recognised: by the evaluator; "
             "accepted: by the probed classifier; all but FD of all are of the unseen class.", ""]
    for unseen in dict.fromkeys(row.unseen for row in rows):
        heads = ["method", "classifier", *(heading for heading, _, _ in COLUMNS.values()), "seeds"]
        lines += [f"## Unseen: {unseen}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for row, entry in zip(rows, table["rows"], strict=True):
            if row.unseen == unseen:
                cells = [cell(name, entry["figures"]) for name in COLUMNS]
                done = sum(run["finished"] for run in entry["runs"])
                over = ", interval over images" if done == 1 else ""
                lines.append(f"| {' | '.join([row.title, row.classifier or '-', *cells])} | {done} of {len(row.runs)}"
                             f"{over} |")
        lines.append("")
    failed = {run["folder"]: run["error"] for entry in table["rows"] for run in entry["runs"] if run["error"]}
    if failed:
        lines += ["## Failed", "", *(f"- {folder}: {error}" for folder, error in failed.items()), "",
                  "The whole output of a run is in its table1.log.", ""]
    lines += ["## The expected order", "", *(f"- {sentence}" for sentence in table["order"]), "",
              "Intervals overlap where nothing else is said." if table["order"] else
              "No two finished rows are in another order than expected.",
              "", "## Seconds", "", "| method | training, mean of a run | measuring, mean of a run |", "|---|---|---|"]
    spent = {}
    for row, entry in zip(rows, table["rows"], strict=True):
        spent.setdefault(row.title, []).extend(entry["runs"])
    for title, runs in spent.items():
        runs = [run for run in runs if run["finished"]]
        if runs:
            means = [sum(run[key] for run in runs) / len(runs) for key in ("train_seconds", "measure_seconds")]
            lines.append(f"| {title} | {means[0]:.0f} | {means[1]:.0f} |")
    lines += ["", f"In all {table['seconds']:.0f} s, the generators that BigGAN-AM searches included. Table made on "
              f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['gpu'] or 'no GPU'}, torch "
              f"{hardware['torch']}, at commit {table['commit'] or 'unknown'}, by", "", "```", table["command"], "```",
              "", *table["notes"]]
    return "\n".join(lines).rstrip() + "\n"


def draw(run, label):
    """The first images (SHOWN, C, H, W) in [-1, 1] that a run draws of a class."""
    return make_sampler(load_checkpoint(ROOT / run.folder), choose_device()).class_images(label, range(SHOWN))


def save_picture(path, rows, judge, spec):
    """A row of images of the unseen class for each row of the table, of its first finished seed; white for none."""
    parts, labels = [], []
    for row in rows:
        run = next((run for run in row.runs if finished(run, judge)), None)
        blank = torch.ones(SHOWN, spec.channels, spec.resolution, spec.resolution)
        parts.append(draw(run, class_label(spec, row.unseen)) if run else blank)
        labels.append(f"{row.unseen}: {row.name}" + ("" if run else " (missing)"))
    save_grid(path, torch.stack(parts), labels)


def write_table(flags, rows, notes, protocol, judge):
    """Write the .json, .md and .png; returns whether every run is finished."""
    entries, figures, seconds = [], [combined(row, judge) for row in rows], {}
    for row, found in zip(rows, figures, strict=True):
        runs = []
        for run in row.runs:
            state = read_state(run.folder)
            runs.append({"folder": str(run.folder), "seed": run.seed, "finished": finished(run, judge),
                         "train_seconds": state.get("train_seconds", 0),
                         "measure_seconds": state.get("measured", {}).get("seconds", 0),
                         "error": state.get("error", ""), "figures": state.get("measured", {}).get("figures", {})})
            for part in filter(None, (run, run.needs)):
                spent = read_state(part.folder)
                seconds[part.folder] = spent.get("train_seconds", 0) + spent.get("measured", {}).get("seconds", 0)
        entries.append({"unseen": row.unseen, "method": row.title, "classifier": row.classifier, "figures": found,
                        "runs": runs})
    table = {"protocol": protocol, "rows": entries, "order": order_sentences(rows, figures), "notes": notes,
             "seconds": sum(seconds.values()), "machine": machine(), "commit": commit(),
             "command": shlex.join(["python", "scripts/table1.py", *sys.argv[1:]])}
    stem = flags.out / f"table1_{flags.dataset}"
    write_json(f"{stem}.json", table)
    with replacing(f"{stem}.md") as temporary:
        temporary.write_text(markdown(table, rows))
    save_picture(f"{stem}.png", rows, judge, DATASETS[flags.dataset])
    print(f"{stem}.md, .json and .png")
    return all(run["finished"] for entry in entries for run in entry["runs"])


def check_flags(flags):
    """Raise UserError for values that cannot be, and set --num where it was left out."""
    for name, valid in (("dataset", SCALES), ("scale", ("small", "paper")), ("executor", ("here", "slurm", "local"))):
        if getattr(flags, name) not in valid:
            raise UserError(f"--{name} '{getattr(flags, name)}' is not valid ({nearest(getattr(flags, name), valid)}).")
    flags.num = SCALES[flags.dataset][flags.scale]["num"] if flags.num is None else flags.num
    for name, least in (("seeds", 1), ("num", 50), ("slurm_time_min", 1)):
        if getattr(flags, name) < least:
            raise UserError(f"--{name} is {getattr(flags, name)}; it must be at least {least}.")


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(SCALES)}")
    parser.add_argument("--unseen", nargs="+", required=True, help="classes by label or name, a table each")
    parser.add_argument("--classifiers", nargs="+", default=["robust", "regular"], metavar="NAME",
                        help="probed ones: names in pretrained/, or NAME=PATH (default: robust regular)")
    parser.add_argument("--evaluator", default="", help="the judge (default: that of pretrained/)")
    parser.add_argument("--methods", nargs="+", default=["all"], metavar="NAME",
                        help=f"rows: {', '.join(ROWS)} or all; oracle and biggan are trained with the unseen class "
                        "present (default: all)")
    parser.add_argument("--variants", nargs="+", default=[], metavar="NAME",
                        help="ProbeGAN on the robust classifier with one setting changed: "
                        f"{', '.join(repr(name) for name in VARIANTS)} or all (default: none)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row (default: 3)")
    parser.add_argument("--scale", default="small", help="small: two CPU cores; paper: full size (default: small)")
    parser.add_argument("--num", type=int, help="images a class (default: 500 small, 100 for digits; 5000 paper)")
    parser.add_argument("--data_root", default=ROOT / "datasets", help="folder of the data sets (default: datasets)")
    parser.add_argument("--runs", default=ROOT / "runs/table1", help="folder of the runs (default: runs/table1)")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the table (default: results)")
    parser.add_argument("--executor", default="here", help="here: one run after another; slurm or local: by submitit")
    parser.add_argument("--slurm_partition", default="", help="Slurm's partition (default: the cluster's)")
    parser.add_argument("--slurm_time_min", type=int, default=1440, help="minutes a job may take (default: 1440)")
    flags = parser.parse_args()
    check_flags(flags)
    spec = DATASETS[flags.dataset]
    given = dict(item.partition("=")[::2] for item in flags.classifiers)
    classifiers = {name: classifier_path(flags.dataset, name, path) for name, path in given.items()}
    evaluator = classifier_path(flags.dataset, "evaluator", flags.evaluator)
    rows, notes = plan(flags, classifiers, evaluator)
    runs = [row.runs[seed] for seed in range(flags.seeds) for row in rows]  # a whole table of one seed first
    for run in runs:
        for part in filter(None, (run, run.needs)):
            require_same(part)
    digest = fingerprint(load_classifier(ROOT / evaluator, num_classes=len(spec.classes)).model)
    judge = {"num": flags.num, "evaluator_sha256": digest}
    protocol = {"dataset": flags.dataset, "scale": flags.scale, **judge,
                "flags": SCALES[flags.dataset][flags.scale]}
    written = flags.out / f"table1_{flags.dataset}.json"
    if written.exists():
        refuse_differences(json.loads(written.read_text())["protocol"], protocol, f"the table {written}",
                           "give another --out, or delete it.")
    with stop_on_signal() as stopped:
        if flags.executor == "here":
            complete_here(runs, judge, time.time(), stopped)
        else:
            complete_by_submitit(runs, judge, time.time(), stopped, flags)
    whole = write_table(flags, rows, notes, protocol, judge)
    if stopped():
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(128 + stopped())
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    import table1  # by this name a job of submitit's can import what it is handed

    run_main(table1.main)
