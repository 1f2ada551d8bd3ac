"""The table of an experiment: rows of runs that differ in their seed alone, as Markdown, JSON and a picture."""

import functools
import json
import math
import re
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType

import torch

from classifiers import load_classifier
from classifiers.frozen import fingerprint
from classifiers.train import commit
from experiments import engine
from experiments.engine import Measurement, Run, finished, machine, read_state
from methods import load_run
from metrics.intervals import combine_seeds
from metrics.recognition import rate
from sampler import make_sampler
from utils import (
    DATASETS,
    ROOT,
    checkpoint_files,
    choose_device,
    class_label,
    replacing,
    save_grid,
    stop_on_signal,
    write_json,
)

SHOWN = 10  # images in a row of the picture
# kinds of numbers: the least and the most that one can be; a share is shown in per cent
KINDS = {"share": (0.0, 1.0), "index": (0.0, 1.0), "number": (0.0, math.inf), "correlation": (-1.0, 1.0)}


@dataclass(frozen=True)
class Column:
    """One figure of a run. metric: of results.jsonl, without the number and the features in its name. kind: of KINDS.

    of: 'unseen', the class that the run is measured on; 'all', all classes together, of runs that draw seen ones too
    (as the metric recognition tells); 'each', the mean of the classes drawn; or a class's name. count: not '' where a
    record's value under that name is meant, a share of its n images. probed: only for runs that probe a classifier.
    lower: lower is better.
    """

    heading: str
    metric: str
    kind: str = "share"
    of: str = "unseen"
    count: str = ""
    probed: bool = False
    lower: bool = False


@dataclass(frozen=True)
class Row:
    """A line of the table: its runs differ in their seed alone.

    group: the table that it stands in, such as the unseen class. labels: its words below the experiment's heads, '' for
    none. key: its name in the experiment's expected orders; '' where it has no place in them.
    """

    group: str
    labels: tuple[str, ...]
    key: str
    runs: tuple[Run, ...]

    @property
    def name(self):
        return ", ".join(filter(None, self.labels))


@dataclass(frozen=True)
class Experiment:
    """What a table says beside its rows.

    stem: of the names of its files. command: the module that made it. text: the paragraph under the title, in which
    {name} stands for a value of the protocol. groups: what the groups of rows are. heads: of the columns that name a
    row, the first of which is also that of the seconds. expected: {column: keys of rows, better first}, a tuple of keys
    where none of them is better, and `...` at the end for all other rows; without it they have no place. images(row,
    run): the (SHOWN, C, H, W) in [-1, 1] of the picture; by default of the group's class. save: what writes the
    picture, with the parameters of utils.save_grid.
    """

    stem: str
    command: str
    title: str
    text: str
    columns: dict[str, Column]
    groups: str = "Unseen"
    heads: tuple[str, ...] = ("method", "classifier")
    expected: dict[str, tuple[str | tuple[str, ...] | EllipsisType, ...]] = field(default_factory=dict)
    images: Callable | None = None
    save: Callable = save_grid


# ------------------------------------------------------------------------------------------ figures


def figures_of(records, columns, unseen):
    """{column: {value, low, high}} of one measurement's records, the interval over its images.

    Of several judges' records of a metric the last counts, that of all of them together.
    """
    found = {}
    draws_seen = any(record.get("group") == "all seen" for record in records)
    for name, column in columns.items():
        of_metric = [record for record in records if re.sub(r"(\d+k?)?@.*", "", record["metric"]) == column.metric]
        if column.of == "each":
            values = [record["value"] for record in of_metric if record["class"] is not None]
            value = None if None in values or not values else sum(values) / len(values)
            found[name] = {"value": value, "low": None, "high": None}
            continue
        for record in of_metric:
            wanted = unseen if column.of == "unseen" else column.of
            if record["class"] != wanted and not (column.of == "all" and record["class"] is None and draws_seen):
                continue
            found[name] = {key: record[key] for key in ("value", "low", "high")}
            if column.count:
                share = rate(round(record[column.count] * record["n"]), record["n"])
                found[name] = {"value": share["rate"], "low": share["low"], "high": share["high"]}
    return found


@functools.lru_cache
def weights_sha256(path, num_classes, _changed):
    return fingerprint(load_classifier(path, num_classes=num_classes).model)


def judged_by(judges, num_classes, num, more=()):
    """{num, evaluator_sha256, judges_sha256, flags}: the protocol of a measurement by judges, of which the first gives
    the features, with further flags; without what is not made yet, and where one judge or no flag is all."""
    made = [weights_sha256(ROOT / path, num_classes, (ROOT / path).stat().st_mtime_ns) for path in judges
            if (ROOT / path).is_file()]
    known = {"evaluator_sha256": made[0]} if made else {}
    known |= {"judges_sha256": " ".join(made[1:])} if len(made) > 1 else {}
    return {"num": num} | known | ({"flags": " ".join(more)} if more else {})


def evaluation(columns, unseen, judges, num_classes, num, metrics, more=()):
    """The Measurement by evaluate.py: `metrics` on `num` images a class, columns of the class `unseen`; what counts as
    recognised is what all judges recognise. more: further flags."""
    make = (engine.EVALUATE, "--run", "{run}", "--evaluator", *map(str, judges), "--num", str(num), *more,
            "--metrics", *metrics)
    return Measurement(make, functools.partial(figures_of, columns=columns, unseen=unseen),
                       functools.partial(judged_by, judges, num_classes, num, more))


def combined(row, columns):
    """{column: {value, low, high, seeds}} of a row: over seeds, or over the images of a single run."""
    done = [read_state(run)["measured"]["figures"] for run in row.runs if finished(run)]
    result = {}
    for name, column in columns.items():
        found = [figures[name] for figures in done if name in figures and (row.runs[0].probes or not column.probed)]
        finite = [figure for figure in found if figure["value"] is not None]
        if len(finite) > 1:
            value, low, high = combine_seeds([figure["value"] for figure in finite])
            least, most = KINDS[column.kind]
            result[name] = {"value": value, "low": max(low, least), "high": min(high, most), "seeds": len(finite)}
        elif found:
            result[name] = {**(finite or found)[0], "seeds": len(finite)}
    return result


def number(column, value):
    """A value in its column's unit: '97.3 %' for a share, else three significant digits."""
    return f"{100 * value:.1f} %" if column.kind == "share" else f"{value:.3g}"


def cell(column, figures, name):
    """A figure with its interval, as text."""
    if not figures:
        return "missing"
    if name not in figures:
        return "-"
    value, low, high = (figures[name][key] for key in ("value", "low", "high"))
    if value is None:
        return "not finite"
    return number(column, value) + (f" ({number(column, low)} to {number(column, high)})" if low is not None else "")


def order_sentences(experiment, rows, figures):
    """A sentence for each row whose mean is behind rows that it was expected before. figures: combined, a row each."""
    def relation(x, y):
        if None in (x["low"], y["low"]):
            return ", no interval"
        return "" if x["low"] <= y["high"] and y["low"] <= x["high"] else ", intervals apart"

    sentences = []
    for name, order in experiment.expected.items():
        column = experiment.columns[name]
        sign = -1 if column.lower else 1

        places = {key: i for i, keys in enumerate(order) for key in (keys if isinstance(keys, tuple) else (keys,))}
        placed = [(places.get(row.key, places.get(...)), row, found[name])
                  for row, found in zip(rows, figures, strict=True)
                  if row.key and found.get(name, {}).get("value") is not None]
        placed = [entry for entry in placed if entry[0] is not None]
        for i, a, x in placed:
            ahead = [f"{b.name} ({number(column, y['value'])}{relation(x, y)})" for j, b, y in placed
                     if a.group == b.group and i < j and sign * x["value"] < sign * y["value"]]
            if ahead:
                sentences.append(f"{experiment.groups} {a.group}, {column.heading}: {a.name} "
                                 f"({number(column, x['value'])}) was expected before, and comes after: "
                                 f"{'; '.join(ahead)}.")
    return sentences


# ---------------------------------------------------------------------------------------- the files


def markdown(experiment, table, rows):
    """The table as Markdown; table: what the .json holds."""
    hardware, heads, columns = table["machine"], experiment.heads, experiment.columns
    lines = [f"# {experiment.title}", "", experiment.text.format(**table["protocol"]), ""]
    for group in dict.fromkeys(row.group for row in rows):
        words = [*heads, *(column.heading for column in columns.values()), "seeds"]
        lines += [f"## {experiment.groups}: {group}", "", f"| {' | '.join(words)} |", "|" + "---|" * len(words)]
        for row, entry in zip(rows, table["rows"], strict=True):
            if row.group == group:
                cells = [cell(column, entry["figures"], name) for name, column in columns.items()]
                done = sum(run["finished"] for run in entry["runs"])
                over = ", interval over images" if done == 1 else ""
                lines.append(f"| {' | '.join([*(label or '-' for label in row.labels), *cells])} | {done} of "
                             f"{len(row.runs)}{over} |")
        lines.append("")
    failed = {run["folder"]: run["error"] for entry in table["rows"] for run in entry["runs"] if run["error"]}
    if failed:
        lines += ["## Failed", "", *(f"- {folder}: {error}" for folder, error in failed.items()), "",
                  f"The whole output of a run is in its {rows[0].runs[0].file('.log').name}.", ""]
    if experiment.expected:
        lines += ["## The expected order", "", *(f"- {sentence}" for sentence in table["order"]), "",
                  "Intervals overlap where nothing else is said." if table["order"] else
                  "No two finished rows are in another order than expected.", ""]
    lines += ["## Seconds", "", f"| {heads[0]} | training, mean of a run | measuring, mean of a run |", "|---|---|---|"]
    spent = {}
    for row, entry in zip(rows, table["rows"], strict=True):
        spent.setdefault(row.labels[0], []).extend(run for run in entry["runs"] if run["finished"])
    for label, runs in spent.items():
        if runs:
            means = [sum(run[key] for run in runs) / len(runs) for key in ("train_seconds", "measure_seconds")]
            lines.append(f"| {label} | {means[0]:.0f} | {means[1]:.0f} |")
    places = dict.fromkeys(run["trained_on"] for entry in table["rows"] for run in entry["runs"] if run["trained_on"])
    trained = f"; trained on {', '.join(places)}" if places else ""
    lines += ["", f"In all {table['seconds']:.0f} s, what the runs need included{trained}. Table made on "
              f"{hardware['cpu']}, {hardware['cores']} cores, "
              f"{hardware['gpu'] or 'no GPU'}, torch {hardware['torch']}, at commit "
              f"{table['commit'] or 'unknown'}, by", "", "```", table["command"], "```", "", *table["notes"]]
    return "\n".join(lines).rstrip() + "\n"


def draw(row, run):
    """The first images (SHOWN, C, H, W) in [-1, 1] that a run draws of the class of its row's group."""
    label = class_label(DATASETS[run.config["dataset"]], row.group)
    return make_sampler(load_run(ROOT / run.path), choose_device()).class_images(label, range(SHOWN))


def save_picture(path, experiment, rows):
    """A row of images for each row of the table, of its first finished seed with a checkpoint; white for none."""
    parts, labels = [], []
    for row in rows:
        drawable = (run for run in row.runs if finished(run) and checkpoint_files(ROOT / run.path))
        run, spec = next(drawable, None), DATASETS[row.runs[0].config["dataset"]]
        blank = torch.ones(SHOWN, spec.channels, spec.resolution, spec.resolution)
        parts.append((experiment.images or draw)(row, run) if run else blank)
        labels.append(f"{row.group}: {row.name}" + ("" if run else " (no checkpoint)"))
    unbroken = "\N{NO-BREAK SPACE}"  # of percentages; the font of pictures has none
    experiment.save(path, torch.stack(parts), [label.replace(unbroken, " ") for label in labels])


def nodes_of(runs):
    """{path: node} of the runs and all that they need."""
    return {path: node for run in runs for path, node in (*nodes_of(run.needs).items(), (run.path, run))}


def write_table(experiment, rows, stem, protocol, notes):
    """Write the .json, .md and .png; returns whether every run is finished."""
    entries, figures, seconds = [], [combined(row, experiment.columns) for row in rows], {}
    for row, found in zip(rows, figures, strict=True):
        runs = []
        for run in row.runs:
            state = read_state(run)
            runs.append({"folder": str(run.path), "seed": run.config["seed"], "finished": finished(run),
                         "train_seconds": state.get("train_seconds", 0), "trained_on": state.get("trained_on", ""),
                         "measure_seconds": state.get("measured", {}).get("seconds", 0),
                         "error": state.get("error", ""), "figures": state.get("measured", {}).get("figures", {})})
        for node in nodes_of(row.runs).values():
            state = read_state(node)
            seconds[node.path] = state.get("train_seconds", 0) + state.get("measured", {}).get("seconds", 0)
        entries.append({experiment.groups.lower(): row.group, **dict(zip(experiment.heads, row.labels, strict=True)),
                        "figures": found, "runs": runs})
    table = {"protocol": protocol, "rows": entries, "order": order_sentences(experiment, rows, figures),
             "notes": notes, "seconds": sum(seconds.values()), "machine": machine(), "commit": commit(),
             "command": shlex.join(["python", "-m", experiment.command, *sys.argv[1:]])}
    write_json(f"{stem}.json", table)
    with replacing(f"{stem}.md") as temporary:
        temporary.write_text(markdown(experiment, table, rows))
    save_picture(f"{stem}.png", experiment, rows)
    print(f"{stem}.md, .json and .png")
    return all(run["finished"] for entry in entries for run in entry["runs"])


def require_same_table(stem, protocol):
    """Raise UserError where {stem}.json was made by another protocol; `protocol` may be a part of it, and what an older
    table does not say is not compared."""
    path = Path(f"{stem}.json")
    if path.exists():
        was = json.loads(path.read_text())["protocol"]
        engine.refuse_differences(was, {key: protocol[key] for key in protocol.keys() & was.keys()},
                                  f"the table {path}", "give another --out, or delete it.")


def carry_out(experiment, rows, flags, protocol, notes=(), gpus=0):
    """Complete the runs and write the table; ends with exit code 0 where every run is finished, else with 1.

    flags: with those of engine.add_engine_flags. protocol: plain values that hold for the whole table, to which that of
    the measurement is added. gpus: that a process of a Slurm job asks for. Raises UserError, before anything is
    trained, where another table or other runs are in the place.
    """
    # a whole table of one seed first
    runs = [row.runs[seed] for seed in range(max(len(row.runs) for row in rows)) for row in rows
            if seed < len(row.runs)]
    for run in runs:
        engine.require_same(run)

    def whole_protocol():
        measured = runs[0].measurement.protocol()
        assert not protocol.keys() & measured.keys(), "one of two values would hide the other"
        return protocol | measured

    stem = flags.out / experiment.stem
    require_same_table(stem, whole_protocol())
    with stop_on_signal() as stopped:
        if flags.executor == "here":
            engine.complete_here(runs, time.time(), stopped)
        else:
            engine.complete_by_submitit(runs, time.time(), stopped, flags, gpus)
    whole = write_table(experiment, rows, stem, whole_protocol(), list(notes))
    if stopped():
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(128 + stopped())
    sys.exit(0 if whole else 1)
