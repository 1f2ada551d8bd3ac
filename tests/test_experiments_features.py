"""The experiment on features: its plan, and the drawers that train nothing."""

from argparse import Namespace
from pathlib import Path

import pytest

from experiments.features import COLUMNS, ROWS, measure_rivals, plan, rival_lines
from experiments.table import Row
from utils import UserError


def flags(world, **changes):
    return Namespace(**{"dataset": "digits", "rows": ["all"], "seeds": 2, "num": 50, "runs": world / "runs",
                        "data_root": world, **changes})


def planned(world, **changes):
    return plan(flags(world, **changes), {"robust": world / "C.pt"}, world / "E.pt")


def test_every_row_is_a_run_that_train_would_start(noise_world):
    rows = planned(noise_world)
    assert [row.key for row in rows] == list(ROWS) and all(isinstance(row, Row) for row in rows)
    runs = {row.key: row.runs for row in rows}
    assert len({run.path for row in rows for run in row.runs}) == 2 * len(ROWS)
    assert runs["label"][0].config["condition"] == "label" and runs["label"][0].config["oracle"]
    assert runs["tiled"][1].config["inject"] == "tiled" and runs["tiled"][1].config["seed"] == 1
    assert runs["black"][0].config["enforce"] == ["projection", "head"]


def test_rows_of_an_editing_generator_are_left_out_where_images_are_drawn(noise_world):
    with pytest.raises(UserError, match="--rows 'whit' is unknown"):
        planned(noise_world, rows=["whit"])
    keys = [row.key for row in planned(noise_world, dataset="C10", data_root="datasets")]
    assert keys and not {"tiled", "flat"} & set(keys)


def test_drawers_that_train_nothing(noise_world):
    found = measure_rivals("digits", {"robust": noise_world / "C.pt"}, noise_world / "E.pt", noise_world, 60)
    figures = found["robust"]
    assert figures["copy of x"]["cycle"] == 0 and figures["copy of x"]["ccc"] < 0.3
    assert figures["gradient descent on pixels"]["ccc"] > figures["nearest training image"]["ccc"]
    assert set(figures["class mean"]) <= set(COLUMNS)
    lines = rival_lines(found)
    assert len(lines) == 5 + len(figures) and all(line.count("|") == lines[3].count("|") for line in lines[4:])


def test_the_launchers_name_what_the_table_needs():
    text = (Path(__file__).parents[1] / "scripts/launch_train_fer2013_classifiers.sh").read_text()
    assert all(f"make fer2013_{name}" in text for name in ("regular", "robust", "evaluator"))
