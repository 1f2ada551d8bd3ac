"""The experiment on features: its plan, and the rivals without a GAN."""

from argparse import Namespace
from pathlib import Path

import pytest

from experiments.features import COLUMNS, MEASURED, RECONSTRUCT, ROWS, columns_of, known_rivals, plan, rival_lines
from experiments.table import Row
from metrics import feature_rivals
from metrics.registry import METRICS
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


def test_rivals_without_a_gan(noise_world, tmp_path, monkeypatch, capsys):
    for name in ("DECODER_STEPS", "DESCENT_STEPS", "RECONSTRUCTED"):
        monkeypatch.setattr(feature_rivals, name, 20)

    def known(num=60):
        return known_rivals("digits", {"robust": noise_world / "C.pt"}, noise_world / "E.pt", noise_world, num,
                            tmp_path / "digits")

    found = known()
    figures = found["robust"]["figures"]
    assert figures["copy of x"]["cycle"] == 0 and figures["copy of x"]["ccc"] < 0.3
    assert figures["copy of x"]["fd"] == pytest.approx(figures["other real images"]["fd"])
    assert figures["gradient descent on pixels"]["ccc"] > figures["nearest training image"]["ccc"]
    assert set(figures["class mean"]) <= set(columns_of("digits"))
    lines = rival_lines(found)
    table = [line for line in lines[:lines.index("", 3)] if line.startswith("|")]
    assert len(table) == 2 + len(figures) and len({line.count("|") for line in table}) == 1
    assert [line.split(" | ")[:2] for line in lines[-2:]] == [[f"| {rival}", "robust"] for rival in RECONSTRUCT]

    assert "measuring" in capsys.readouterr().out
    assert known() == found and "measuring" not in capsys.readouterr().out
    assert known(50) != found and "measuring" in capsys.readouterr().out


def test_the_columns_are_those_of_the_mode():
    assert "cycle" in columns_of("fer2013") and "diversity" not in columns_of("fer2013")
    assert "diversity" in columns_of("C10") and not {"cycle", "identity", "both"} & set(columns_of("C10"))
    assert {column.metric for column in COLUMNS.values()} <= {part for name in MEASURED for part in METRICS[name].parts}


def test_the_launchers_name_what_the_table_needs():
    text = (Path(__file__).parents[1] / "scripts/launch_train_fer2013_classifiers.sh").read_text()
    assert all(f"make fer2013_{name}" in text for name in ("regular", "robust", "evaluator"))
