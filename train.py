#!/usr/bin/env python3
"""Train ProbeGAN: draw the classes that an image set lacks from a frozen classifier's memory alone.

    python train.py --dataset C10 --new_class horse --C_path robust.pt     a new run
    python train.py --resume runs/C10_wo_horse                             go on with it
    torchrun --nproc_per_node 4 -- train.py ...                            either, on several GPUs
"""

import fcntl
import os
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

import processes
from classifiers.check import preflight, require_passed
from classifiers.strangers import from_a_file
from config import FIELDS, located
from files import JsonLines, clear_abandoned
from machine import told_of_memory, tune
from methods import RunParser, find_method, load_run, make_config, read_config, start
from metrics.collapse import CollapseWatch
from metrics.selection import Selection
from metrics.teachers import Teachers
from sample import class_grid
from sampler import make_sampler
from step import shares
from utils import (
    DATASETS,
    UserError,
    checkpoint_files,
    find_dataset,
    run_main,
    save_checkpoint,
    save_grid,
    stop_on_signal,
    write_json,
)

ADVICE = "The last checkpoint is from before it; try a lower learning rate, or --precision fp32."


def require_finite(training, terms, first_step):
    """Raise UserError if a term or a weight is not finite. terms: {name: (steps,)}."""
    for name, values in terms.items():
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            step = first_step + bad[0, 0].item()
            raise UserError(f"the loss term {name} is {values[bad[0, 0]].item()} at step {step}. {ADVICE}")
    for name, network in training.networks().items():
        for key, value in network.state_dict().items():
            if not torch.isfinite(value).all():
                raise UserError(f"the weight {key} of {name} is not finite at step {training.step}. {ADVICE}")


class Keeper:
    """Judges what a run draws and keeps its checkpoints. Moves neither weights nor random stream of the run."""

    def __init__(self, training, run):
        self.training, self.run = training, run
        shared = training.C, training.stream, training.spec.classes, training.task.unseen.tolist()
        self.watch = CollapseWatch(*shared, training.task.C_labels.tolist(), training.device)
        self.watched = JsonLines(run / "collapse.jsonl", training.step)
        self.teachers = Teachers(training) if training.method.losses else None
        self.taught = JsonLines(run / "teachers.jsonl", training.step) if self.teachers else None
        self.selection = Selection(*shared, training.device, run, training.step) if training.config.select else None

    def judge(self, sampler, state):
        """Look at what the averaged generator of a checkpoint's `state` draws; returns the warnings."""
        record = self.watch.look(sampler, self.training.critic)
        self.watched.write(record)
        if self.selection:
            self.selection.consider(state, sampler, self.training.critic, record)
        if not self.teachers:
            return record["warnings"] + self.training.warnings()
        taught, warnings = self.teachers.look(sampler, record["collapsed"])
        self.taught.write({**taught, "warnings": warnings})
        return record["warnings"] + warnings + self.training.warnings()

    def save(self, state):
        save_checkpoint(self.run, state, self.training.config.keep)


SHOWN = {"D": "D_wasserstein", "G": "G_wasserstein", "class": "G_class", "unseen": "C_accepts_unseen"}


def train(training, run):
    """The loop: steps, then what looks after them. Process 0 writes everything into the run folder."""
    config, leads = training.config, processes.rank() == 0
    if leads:
        keeper, log = Keeper(training, run), JsonLines(run / "log.jsonl", training.step)
    window, window_start, lines_wait = [], time.perf_counter(), False

    def flush():
        """Write a line of the log. Returns whether the disk has refused it, and took the one before."""
        nonlocal window_start, lines_wait
        if not window:
            return False
        terms = {name: torch.stack([step[name] for step in window]).float().cpu() for name in window[0]}
        processes.average(list(terms.values()))
        require_finite(training, terms, training.step - len(window) + 1)
        means = shares({name: values.mean().item() for name, values in terms.items()})
        rate = len(window) / (time.perf_counter() - window_start)
        waited, lines_wait = lines_wait, leads and not log.write({"step": training.step, **means,
                                                                  "steps_per_second": rate})
        bar.set_postfix({short: f"{means[name]:.2f}" for short, name in SHOWN.items() if name in means})
        window.clear()
        window_start = time.perf_counter()
        return lines_wait and not waited

    def look(state, drawing, judging):
        sampler = make_sampler(state, training.device)
        if drawing:
            save_grid(run / "samples.png", *class_grid(sampler))
        if judging:
            for warning in keeper.judge(sampler, state):
                bar.write(f"warning: step {training.step}: {warning}", file=sys.stderr)

    def save_while_one_can():
        """Save at once on a disk that fills up; where that is refused too, go on, for somebody may make room."""
        try:
            keeper.save(training.state())
        except UserError as error:
            bar.write(f"warning: {error} The run goes on.", file=sys.stderr)

    with stop_on_signal() as stopped, tqdm(total=training.num_steps, initial=training.step, unit="step",
                                           disable=not leads) as bar:
        while training.step < training.num_steps:
            window.append(training.advance())
            bar.update()
            last = training.step == training.num_steps
            if training.step % config.log_every == 0 and flush():
                save_while_one_can()
            drawing = training.step % config.sample_every == 0 or last
            saving = training.step % config.save_every == 0 or last
            stop = processes.largest(stopped() or 0) if not last else 0
            if drawing or saving or stop:
                flush()
            if leads and (drawing or saving or stop):
                state = training.state()  # once: a rival may choose what it draws in it
                if (drawing or saving) and training.drawable:
                    look(state, drawing, saving)
                # the checkpoint last: a run whose last checkpoint stands has its last grid and judgement
                if saving or stop:
                    keeper.save(state)
            if stop:
                bar.close()
                if leads:
                    print(f"stopped at step {training.step}; go on with: python train.py --resume {run}",
                          file=sys.stderr)
                sys.exit(128 + stop)


@contextmanager
def locked(run):
    """Keep other runs out of a folder, which is made, as long as the block lasts. Raises UserError where one is in.

    A folder that was made for it and in which nothing was written is taken away again.
    """
    made = not Path(run).exists()
    Path(run).mkdir(parents=True, exist_ok=True)
    handle = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process trains in {run}; wait for it, or give another --run.") from error
        yield
    finally:
        os.close(handle)  # and with it the lock
        if made:
            with suppress(OSError):  # it is not empty
                os.rmdir(run)


def checked_run(training, run):
    """The run, once its folder is its own."""
    config = training.config
    check = preflight(training.C, config, training.spec)
    if processes.rank() == 0:
        print(check)
    require_passed(check, config)
    if processes.rank() == 0:
        for folder in (run, run / "checkpoints"):
            clear_abandoned(folder)
        write_json(run / "config.json", config.as_dict())
        write_json(run / "audit.json", training.audit)
        write_json(run / "classifier_check.json", check.as_dict())
        print(training.audit["statement"])
    train(training, run)


def carry_out(training, run):
    """Check the classifier, write down what the run is, and train it to its end. Raises UserError where another
    process is at work in the folder."""
    with locked(run) if processes.rank() == 0 else nullcontext():
        checked_run(training, run)


# -------------------------------------------------------------------------------------- command line

RESUME_FLAGS = ("num_steps", "device", "data_root", "C_path", "C_arch", "C_trust", "skip_classifier_check",
                "num_workers", "max_resident_gb", "log_every", "sample_every", "save_every", "keep", "select",
                *(name for name in FIELDS if name.startswith("evaluator")))


def default_run(config, spec):
    """runs/<data set>_wo_<classes>, with the method and the seed where they are not the usual ones."""
    names = "_".join(spec.classes[y] for y in config.new_class).replace("/", "-") or "none"
    method = "" if config.method == find_method("").name else config.method
    seed = f"seed{config.seed}" if config.seed else ""
    parts = [config.dataset, "with" if config.oracle else "wo", names, method, seed]
    return Path("runs") / "_".join(part for part in parts if part)


def main():
    parser = RunParser(__doc__)
    parser.run.add_argument("--run", type=Path, help="folder to make (default: runs/<data set>_wo_<class>)")
    parser.run.add_argument("--resume", type=Path, metavar="RUN",
                        help="folder of a run to go on with, its settings included")
    flags = vars(parser.parse_args())
    run, resume = flags.pop("run"), flags.pop("resume")
    if resume:
        for name in flags:
            if name not in RESUME_FLAGS:
                raise UserError(f"--{name} cannot change in a resumed run; leave it out, or start a new run.")
        if run:
            raise UserError(f"--run {run} was given with --resume {resume}; a resumed run stays in its folder: "
                            "leave --run out.")
        state = load_run(resume)
        folder = resume if resume.is_dir() else resume.parent
        run = folder.parent if folder.name == "checkpoints" and not resume.is_dir() else folder
        config = replace(located(read_config(from_a_file(state["config"], flags, resume)), run), **flags)
        spec = DATASETS[find_dataset(config.dataset)[0]]
    else:
        state, config = None, make_config(**flags)
        spec = DATASETS[config.dataset]
        run = run or default_run(config, spec)
        if run.is_file():
            raise UserError(f"--run {run} is a file; give a folder, which is made where there is none.")
        if checkpoint_files(run):
            raise UserError(f"{run} already holds a run, of the classifier {load_run(run)['config']['C_path']}; go on "
                            f"with it by --resume {run}, or give another --run.")
    with processes.joined(config.device) as device, told_of_memory("--batch_size with more --num_D_accumulations and "
                                                                   "--num_G_accumulations, or --max_resident_gb"):
        tune(device, state["threads"] if state and "threads" in state else 0)
        carry_out(start(config, spec, device, state), run)


if __name__ == "__main__":
    run_main(main)
