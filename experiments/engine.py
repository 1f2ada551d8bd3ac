"""What every experiment does alike: runs are made and measured once, however often its command is started.

An experiment lists its runs (Run: a folder, the flags of train.py, a Measurement) and what they need before (another
Run, or a Product such as a classifier). Stopped at any point, the same command goes on; what failed is tried again.
The same command may run in several processes at once: each takes what no other holds.
"""

import fcntl
import functools
import hashlib
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from files import read_lines
from methods import RunParser, make_config, read_config
from utils import DATASETS, ROOT, UserError, checkpoint_files, nearest, replacing, stop_on_signal, write_json

# settings that do not decide what a run computes
INDIFFERENT = {"evaluator", "device", "num_workers", "max_resident_gb", "log_every", "sample_every", "save_every",
               "keep"}
# flags of what may be run of others' files: no checkpoint decides it, so that each start says it again
ASKED = ("C_arch", "C_trust", "evaluator_arch", "evaluator_trust")
TRAIN, EVALUATE = str(ROOT / "train.py"), str(ROOT / "evaluate.py")
LAUNCHERS = {"C10": "cifar", "MNIST": "mnist", "voices": "voices"}
DIGITS = {"robust": "--arch smallcnn --robust l2 --eps 1.25 --steps 3 --epochs 20", "regular":
          "--arch smallcnn --epochs 20", "evaluator": "--arch resnet8 --role evaluator --epochs 12 --seed 1"}
# flags of train.py for colour images of 32 pixels on a CPU, without the number of steps; BOUNDED: of ProbeGAN alone,
# what keeps an unseen class varied (results/variety_findings.md)
SMALL = "--G_ch 16 --D_ch 16 --batch_size 32 --num_D_steps 2 --penalty zero --gp_coeff 1 --gp_every 2 --one_G_pass " \
        "--init ortho --G_lr 2e-4 --D_lr 4e-4 --ema_decay 0.999 --ema_start 500 --diffaug translation --save_every 500"
BOUNDED = "--C_bound 0.5 --C_bound_new 1 --spread_coeff 2"
LOCAL_JOBS = 2  # of submitit's local executor at a time

# ------------------------------------------------------------------------------------- what there is to do


@dataclass(frozen=True)
class Measurement:
    """What is measured of a run. Its functions stand at the top of a module, or are functools.partial of such.

    make: a program and its flags, in which {run} stands for the run's folder and to which its `asked` are added, or a
    function of the Run; both append records to the folder's results.jsonl. figures: those records -> {name: figure},
    plain values. protocol() -> plain values; figures that were measured by another protocol do not count.
    """

    make: tuple[str, ...] | Callable
    figures: Callable
    protocol: Callable

    def done(self, state):
        """Whether the state of a run says that it was measured by this protocol."""
        return self.protocol().items() <= state.get("measured", {}).items()

    def take(self, run, lock, stopped):
        """Measure a run: (error, seconds) as `call` gives them."""
        if not callable(self.make):
            words = [str(run.path) if word == "{run}" else word for word in self.make]
            return call([*words, *run.asked], run.file(".log"), lock, stopped)
        begin, error = time.perf_counter(), ""
        try:
            self.make(run)
        except Exception as problem:  # one that fails must not end the others
            with run.file(".log").open("a") as log:
                traceback.print_exc(file=log)
            error = f"it could not be measured: {problem!r}"
        return error, time.perf_counter() - begin


@dataclass(frozen=True)
class Product:
    """A file that a program makes, such as a classifier; the same command goes on where it was stopped.

    experiment: the name of the files that say what is known of it. path: seen from ROOT, where every command runs.
    words: the program, a file or -m and a module, and its flags.
    """

    experiment: str
    path: Path
    words: tuple[str, ...]
    needs: tuple["Run | Product", ...] = ()

    verb, measurement, drawn = "making", None, False

    @property
    def about(self):
        """What must not change while it is kept: the command, and by its SHA-256 the file that it begins with."""
        about = {"command": shlex.join(self.words)}
        for flag, word in itertools.pairwise(self.words):
            if flag == "--init" and (path := ROOT / word).is_file():
                about["init"] = file_sha256(path)
        return about

    def file(self, ending):
        """The file beside it that holds its state (.json) or its output (.log)."""
        return ROOT / f"{self.path}.{self.experiment}{ending}"

    def made(self, state):
        """Whether it is there, and whole; without a state somebody else made it."""
        return state.get("trained", True) and (ROOT / self.path).is_file()

    def command(self):
        return list(self.words)


@dataclass(frozen=True)
class Run:
    """One training. experiment, path, needs: as for a Product; path is a folder.

    words: flags of train.py. config: the same as plain values. probes: whether it uses the classifier of its C_path.
    processes: of torchrun. drawn: whether the experiment draws from it at its end, for which it keeps its checkpoints.
    """

    experiment: str
    path: Path
    words: tuple[str, ...]
    config: dict
    probes: bool
    measurement: Measurement | None
    needs: tuple["Run | Product", ...] = ()
    processes: int = 1
    drawn: bool = False

    verb = "training"

    @property
    def about(self):
        """SHA-256 of the files that it begins with: {probed: of the classifier, '' for none, init_G, init_D}, of those
        that are there."""
        settings = {"init_G": "init_G", "init_D": "init_D"} | ({"probed": "C_path"} if self.probes else {})
        paths = {name: ROOT / self.config[key] for name, key in settings.items() if self.config[key]}
        about = {name: file_sha256(path) for name, path in paths.items() if path.is_file()}
        return about if self.probes else about | {"probed": ""}

    @property
    def asked(self):
        """The flags of ASKED that the run is started with."""
        values = {name: self.config[name] for name in ASKED if self.config[name]}
        return [word for name, value in values.items() for word in ([f"--{name}"] if value is True else
                                                                    [f"--{name}", value])]

    def file(self, ending):
        return ROOT / self.path / f"{self.experiment}{ending}"

    def made(self, state):
        return bool(state.get("trained") and checkpoint_files(ROOT / self.path))

    def command(self):
        begin = ["--resume", self.path, *self.asked] if checkpoint_files(ROOT / self.path) else \
            ["--run", self.path, *self.words]
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", self.processes, "--"]
        return [*(several if self.processes > 1 else []), TRAIN, *begin]


def file_sha256(path):
    """SHA-256 of a file's bytes, read again when it has changed."""
    return hash_as_of(path, path.stat().st_mtime_ns)


@functools.lru_cache
def hash_as_of(path, _changed):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plain_config(words):
    """The settings that flags of train.py make, as flat plain values. Raises UserError as train.py would."""
    return flat(make_config(**vars(RunParser("").parse_args(words))).as_dict())


def flat(config):
    """The plain values of a Config with the method's own ones among the shared."""
    return {key: value for key, value in config.items() if key != "own"} | config.get("own", {})


def from_root(path):
    """The Path seen from ROOT where it lies below, else absolute: the same from wherever the command is started."""
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


# ------------------------------------------------------------------------------------- what is known


def read_state(node):
    """What is known of a Run or Product: its `about`, trained, train_seconds, trained_on, measured, error, error_at; {}
    at first.

    measured: the protocol's values, seconds and figures.
    """
    path = node.file(".json")
    return json.loads(path.read_text()) if path.exists() else {}


def finished(node):
    """Whether all is done: a Run is measured by its protocol, what is drawn or has no measurement is made."""
    state, measurement = read_state(node), node.measurement
    kept = node.drawn or not measurement
    return (not measurement or measurement.done(state)) and (not kept or node.made(state))


def refuse_differences(was, now, what, advice):
    """Raise UserError where two dicts of plain values differ."""
    different = [key for key in now if was.get(key) != now[key]]
    if different:
        listed = "; ".join(f"{key} was {was.get(key)}, is {now[key]}" for key in different)
        raise UserError(f"{what} was made with other settings ({listed}); {advice}")


def require_same(node):
    """Raise UserError where a node's place, or that of one it needs, holds another than the one that is wanted."""
    for need in node.needs:
        require_same(need)
    what, advice = str(node.path), "give another --runs, or delete that file."
    if isinstance(node, Run):
        what, advice = f"the run {node.path}", "give another --runs, or delete that folder."
    state = read_state(node)
    if state:
        refuse_differences(state, node.about, what, advice)
    path = ROOT / node.path / "config.json"
    if not path.exists():
        return
    # a run that uses no classifier may stand in tables of different ones; what is auto, the machine decides
    indifferent = INDIFFERENT | (set() if node.probes else {"C_path"})
    was = flat(read_config(json.loads(path.read_text())).as_dict())
    now = {key: value for key, value in node.config.items() if key not in indifferent and value != "auto"}
    refuse_differences(was, now, what, advice)


# ------------------------------------------------------------------------------------------ doing it


def machine():
    """{cpu, cores, torch, gpu} of this machine; gpu is '' for none."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "torch": torch.__version__,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else ""}


@contextmanager
def locked(path, wait):
    """Yield the open lock file beside a node, or None where another process holds it and wait() is false.

    The kernel releases it when the last process that has it open ends, however it ends.
    """
    path = ROOT / f"{path}.lock"
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

    Once stopped() it is told to end, too. It holds the lock as well, so that no other process takes its place if this
    one is killed before it.
    """
    begin, told = time.perf_counter(), False
    with log.open("a") as output:
        before = output.tell()
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
    lines = re.split(r"[\r\n]+", log.read_bytes()[before:].decode(errors="replace").strip())
    said = [line for line in lines if line.startswith("error: ")] or lines  # torchrun says more after it
    name = command[1] if command[0] == "-m" else Path(command[0]).name
    return f"{name} ended with code {process.returncode}: {said[-1]}", seconds


def say(text, **options):
    print(time.strftime("%H:%M:%S"), text, flush=True, **options)


def complete(node, started, stopped, wait):
    """Make and measure what is missing of a node and of what it needs; False where another process holds it, and wait
    is False. One that has failed since `started` (seconds since 1970) is left as it is, and one that is measured, and
    not `drawn`, needs its checkpoints no longer.
    """
    if finished(node):
        return True
    if not all(complete(need, started, stopped, wait) for need in node.needs):
        return False
    with locked(node.path, lambda: wait and not stopped()) as lock:
        if lock is None:
            return False
        state, measurement = read_state(node), node.measurement
        made = node.made(state)
        if stopped() or finished(node) or state.get("error_at", 0) >= started:
            return True
        node.file(".json").parent.mkdir(exist_ok=True)
        state |= {**node.about, "error": ""}
        missing = [need.path for need in node.needs if not need.made(read_state(need))]
        if missing:
            state["error"] = f"it needs {missing[0]}, which failed"
        elif not made:
            say(f"{node.verb} {node.path}")
            write_json(node.file(".json"), state | {"trained": False})
            state["error"], seconds = call(node.command(), node.file(".log"), lock, stopped)
            state["train_seconds"] = state.get("train_seconds", 0) + seconds
            state["trained"] = made = not state["error"]
            hardware = machine()
            state["trained_on"] = hardware["gpu"] or hardware["cpu"]
        if made and measurement and not stopped():
            say(f"measuring {node.path}")
            results = ROOT / node.path / "results.jsonl"
            before = len(read_lines(results))
            state["error"], seconds = measurement.take(node, lock, stopped)
            if not state["error"]:
                records = read_lines(results)[before:]
                state["measured"] = {**measurement.protocol(), "seconds": seconds,
                                     "figures": measurement.figures(records)}
        if stopped():
            state["error"] = ""
        if state["error"]:
            state["error_at"] = time.time()
            say(f"failed: {node.path}: {state['error']}", file=sys.stderr)
        write_json(node.file(".json"), state)
    return True


def complete_here(nodes, started, stopped):
    """Complete the nodes one after another; those of other processes at the end."""
    left = [node for node in nodes if not complete(node, started, stopped, wait=False)]
    for node in left:
        if not stopped():
            print(f"waiting for {node.path}, which another process holds", flush=True)
            complete(node, started, stopped, wait=True)


def complete_job(node, started):
    """Complete one node in a process of submitit's."""
    with stop_on_signal() as stopped:
        complete(node, started, stopped, wait=True)


def complete_by_submitit(nodes, started, stopped, flags, gpus):
    """Hand each node to submitit and wait for all of them; a stop cancels them, upon which they save themselves.

    gpus: of each process of a Slurm job.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError(f"--executor {flags.executor} needs submitit; install it: pip install submitit") from error
    if flags.executor == "slurm" and not shutil.which("sbatch"):
        raise UserError("--executor slurm needs Slurm's sbatch, which this machine has not; leave --executor out.")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    executor = submitit.AutoExecutor(ROOT / nodes[0].path.parent / "submitit", cluster=flags.executor)
    gpus = torch.cuda.device_count() if flags.executor == "local" else gpus * flags.processes
    more = {"slurm_partition": flags.slurm_partition} if flags.slurm_partition else {}
    executor.update_parameters(timeout_min=flags.slurm_time_min, gpus_per_node=gpus, name=nodes[0].experiment, **more)
    waiting, active = list(nodes), []
    while (waiting or active) and not stopped():
        while waiting and (flags.executor == "slurm" or len(active) < LOCAL_JOBS):
            node = waiting.pop(0)
            active.append((node, executor.submit(complete_job, node, started)))
        time.sleep(0.5)
        for node, job in [pair for pair in active if pair[1].done()]:
            active.remove((node, job))
            if job.exception() is not None:
                error = f"submitit job {job.job_id}: {str(job.exception()).strip().splitlines()[-1]}"
                node.file(".json").parent.mkdir(exist_ok=True)
                write_json(node.file(".json"), {**read_state(node), "error": error})
    for _, job in active:
        job.cancel()


def add_engine_flags(parser, name):
    """The flags that every table has. name: of the experiment."""
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row (default: 3)")
    parser.add_argument("--data_root", default=ROOT / "datasets", help="folder of the data sets (default: datasets)")
    parser.add_argument("--runs", default=ROOT / "runs" / name, help=f"folder of the runs (default: runs/{name})")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the table (default: results)")
    parser.add_argument("--executor", default="here", help="here: one run after another; slurm or local: by submitit")
    parser.add_argument("--slurm_partition", default="", help="Slurm's partition (default: the cluster's)")
    parser.add_argument("--slurm_time_min", type=int, default=1440, help="minutes a job may take (default: 1440)")
    parser.add_argument("--processes", type=int, default=1, help="of torchrun, for each training of a GAN (default: 1)")


def check_flags(flags, choices, **least):
    """Raise UserError for values that cannot be. choices: {flag: valid values} and least: {flag: least value} of the
    experiment's own flags."""
    for name, valid in {**choices, "executor": ("here", "slurm", "local")}.items():
        if getattr(flags, name) not in valid:
            raise UserError(f"--{name} '{getattr(flags, name)}' is not valid ({nearest(getattr(flags, name), valid)}).")
    for name, lowest in {"seeds": 1, "slurm_time_min": 1, "processes": 1, **least}.items():
        if getattr(flags, name) is not None and getattr(flags, name) < lowest:
            raise UserError(f"--{name} is {getattr(flags, name)}; it must be at least {lowest}.")


# ------------------------------------------------------------------- experiments of which the answer is known


def refuse_words(words, names):
    """Raise UserError where flags of train.py hold a setting that each run has of its own."""
    for name in names:
        if f"--{name}" in words:
            raise UserError(f"'--{name}' is not a flag of this command; each run has its own.")


def conclude(found, parts, stem, report, shows):
    """Write {stem}.json and {stem}.md of what was found and print it; ends with 0 where each of `parts` holds, else 1.

    found: plain values, the command included. stem: seen from ROOT. report(found) -> Markdown. shows: what {stem}.png
    shows.
    """
    write_json(ROOT / f"{stem}.json", found)
    with replacing(ROOT / f"{stem}.md") as temporary:
        temporary.write_text(report(found))
    print(report(found))
    print(f"look at {stem}.png: {shows}")
    sys.exit(0 if all(part["holds"] for part in parts.values()) else 1)
