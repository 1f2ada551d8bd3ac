#!/usr/bin/env python3
"""How good the unseen class is after how much training: its recognition and intra-FD against wall-clock seconds.

    python train.py ... --run RUN --save_every 200 --keep 1000               a run that keeps all its checkpoints
    python benchmarks/time_to_quality.py --run RUN --evaluator evaluator.pt  measures those not measured yet

Appends to RUN/results.jsonl as evaluate.py does, and writes RUN/quality.json and RUN/quality.png. The seconds are
those of the training's own log, its saving and drawing included; a pause between a stop and a resume is not.
Stopped, or after more training, the same command goes on.
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from classifiers import load_classifier  # noqa: E402
from classifiers.frozen import fingerprint  # noqa: E402
from config import Parser  # noqa: E402
from files import read_lines  # noqa: E402
from utils import ROOT, UserError, checkpoint_files, load_checkpoint, replacing, run_main, write_json  # noqa: E402

METRICS = {"recognition": "recognised by the evaluator", "intra_fd": "intra-FD"}


def seconds_at(log):
    """{step: seconds of training until then} from the records of log.jsonl."""
    found, seconds, before = {}, 0.0, 0
    for record in log:
        seconds += (record["step"] - before) / record["steps_per_second"]
        before = record["step"]
        found[before] = seconds
    return found


def kind(record):
    """Which of METRICS a record is of, '' for none."""
    return next((name for name in METRICS if record["metric"].split("@")[0].rstrip("0123456789k") == name), "")


def curve(run, unseen, num, digest):
    """[{step, seconds, class, metric, value, low, high}] of what has been measured with `num` images, in order."""
    when, found = seconds_at(read_lines(run / "log.jsonl")), {}
    for record in read_lines(run / "results.jsonl"):
        wanted = record["n"] == num and record["evaluator_sha256"] == digest and record["class"] in unseen
        if wanted and kind(record) and record["step"] in when:
            point = {"step": record["step"], "seconds": when[record["step"]], "metric": kind(record),
                     **{name: record[name] for name in ("class", "value", "low", "high")}}
            found[point["step"], point["class"], point["metric"]] = point
    return [found[key] for key in sorted(found)]


def plot(path, points):
    """A picture with an axis a metric and a line a class."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("the picture needs the package matplotlib; install it with: pip install matplotlib") from error
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axis, (metric, label) in zip(figure.subplots(1, 2), METRICS.items(), strict=True):
        for name in dict.fromkeys(point["class"] for point in points):
            line = [p for p in points if p["metric"] == metric and p["class"] == name and p["value"] is not None]
            seconds = [p["seconds"] for p in line]
            axis.plot(seconds, [p["value"] for p in line], "o-", label=f"{name} (unseen)")
            axis.fill_between(seconds, [p["low"] for p in line], [p["high"] for p in line], alpha=0.2)
        axis.set(xlabel="seconds of training", ylabel=label, ylim=(0, 1) if metric == "recognition" else (0, None))
        axis.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder of train.py with its checkpoints")
    parser.add_argument("--evaluator", default="", help="the judge (default: the run's)")
    parser.add_argument("--num", type=int, default=1000, help="images a class (default: 1000)")
    flags = parser.parse_args()
    state = load_checkpoint(flags.run)
    evaluator = flags.evaluator or state["config"]["evaluator"]
    if not evaluator:
        raise UserError(f"the run {flags.run} names no evaluator; give one with --evaluator.")
    classes = state["dataset"]["classes"]
    unseen = [classes[y] for y in state["config"]["new_class"]]
    digest = fingerprint(load_classifier(evaluator, num_classes=len(classes)).model)
    for file in reversed(checkpoint_files(flags.run)):
        measured = {point["step"] for point in curve(flags.run, unseen, flags.num, digest)}
        if int(file.stem.removeprefix("step_")) in measured:
            continue
        done = subprocess.run([sys.executable, str(ROOT / "evaluate.py"), "--run", str(file), "--evaluator", evaluator,
                               "--metrics", *METRICS, "--num", str(flags.num)], stdout=subprocess.DEVNULL)
        if done.returncode:
            raise UserError(f"{file} could not be measured; evaluate.py says why above. The same command goes on.")
    points = curve(flags.run, unseen, flags.num, digest)
    write_json(flags.run / "quality.json", points)
    for point in points:
        low, high = (f"{point[name]:.4g}" if point[name] is not None else "?" for name in ("low", "high"))
        print(f"{point['seconds']:8.0f} s  step {point['step']:6}  {point['class']:12} {point['metric']:12} "
              f"{point['value']:.4g} ({low} to {high})")
    plot(flags.run / "quality.png", points)
    print(flags.run / "quality.png")


if __name__ == "__main__":
    run_main(main)
