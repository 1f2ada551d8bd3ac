"""The table of class labels: its rows and their flags, and a tiny one from end to end."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import utils
from experiments import amgan, table
from label_losses import CLASS_LOSSES

SMALL = ("--dim_z 6 --batch_size 20 --num_D_steps 1 --gp_every 1 --num_steps 2 --ema_start 1 --device cpu "
         "--skip_classifier_check")
TINY = {"num": 50, "labelled": f"--networks dcgan --G_ch 2 --D_ch 2 {SMALL}",
        "probegan": f"--G_ch 1 --D_ch 1 --shared_dim 8 {SMALL}"}


def rows(dataset, scale, **changes):
    flags = Namespace(**{"dataset": dataset, "scale": scale, "unseen": "7", "num": 200, "rows": ["all"], "seeds": 3,
                         "classifier": "C.pt", "data_root": "data", "runs": "runs", "processes": 1, **changes})
    return {row.runs[0].path.name.removesuffix("_seed0"): row for row in amgan.plan(flags, "E.pt")}


@pytest.mark.parametrize("scale", ["small", "dcgan", "paper"])
@pytest.mark.parametrize("dataset", amgan.SCALES)
def test_every_loss_has_a_row_and_labels_that_g_is_not_told_have_none(dataset, scale):
    found = rows(dataset, scale)
    assert list(found) == [*(f"{loss}_dynamic" for loss in CLASS_LOSSES), "acgan_predefined", "acgan_star_predefined",
                           "acgan_plus_predefined", "am_predefined",
                           *([] if scale == "dcgan" else ["probegan", "probegan_labels"])]
    assert all([run.config["seed"] for run in row.runs] == [0, 1, 2] for row in found.values())
    for name, row in found.items():
        config, probed = row.runs[0].config, name in amgan.PROBES
        assert config["oracle"] != probed and config["new_class"] == ([7] if probed else [])
        assert (config["networks"] == "dcgan") == (scale != "small" and not probed)
        assert config["method"] == (name if probed else "labelled")
        assert probed or f"{config['class_loss']}_{config['labelling']}" == name
    for order in amgan.EXPECTED.values():
        named = [key for keys in order for key in ((keys,) if isinstance(keys, str) else keys)]
        assert sorted(named) == sorted(row.key for name, row in found.items()
                                       if name in amgan.FAMILY and amgan.FAMILY[name][0] != "acgan")


def test_the_rows_of_a_loss_differ_in_it_alone():
    found = rows("MNIST", "paper")
    am, plus = (found[f"{loss}_predefined"].runs[0].config for loss in ("am", "acgan_plus"))
    assert {name for name in am if am[name] != plus[name]} == {"class_loss"}
    hinge, logits = (found[name].runs[0].config for name in amgan.PROBES)
    assert all(hinge[name] == logits[name] for name in hinge.keys() & logits.keys() - {"method"})


@pytest.mark.usefixtures("fewer_processes")
def test_a_table_from_nothing(noise_world, tmp_path, monkeypatch):
    monkeypatch.setitem(amgan.SCALES, "digits", {"small": TINY})
    words = ["--dataset", "digits", "--rows", "am_dynamic", "am_predefined", "probegan_labels", "--seeds", 1,
             "--classifier", noise_world / "C.pt", "--evaluator", noise_world / "E.pt", "--data_root", noise_world,
             "--runs", tmp_path / "runs", "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", ["amgan.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        utils.run_main(amgan.main)
    assert end.value.code == 0, "".join(path.read_text() for path in tmp_path.rglob("amgan.log"))
    made = json.loads((tmp_path / "amgan_digits.json").read_text())
    assert [(row["classes"], row["loss"], row["labels"]) for row in made["rows"]] == [
        ("all", "AM-GAN", "dynamic"), ("all", "AM-GAN", "predefined"), ("all but 7", "ProbeGAN", "class logits")]
    of_unseen = {"recognised", "intra_fd_unseen"}
    for row in made["rows"]:
        assert row["figures"].keys() == amgan.COLUMNS.keys() - (of_unseen if row["classes"] == "all" else set())
        values = {name: figure["value"] for name, figure in row["figures"].items()}
        assert values["am_score"] == pytest.approx(values["am_divergence"] + values["am_doubt"])
    results = map(json.loads, (tmp_path / "runs/digits_small/am_predefined_seed0/results.jsonl").open())
    each = [record["value"] for record in results if record["metric"].startswith("intra_fd")]
    assert len(each) == 10
    assert made["rows"][1]["figures"]["intra_fd"]["value"] == pytest.approx(sum(each) / 10)
    assert Path(tmp_path / "amgan_digits.png").is_file()


@pytest.mark.parametrize(("others", "behind"), [((), ""), ((...,), "; d (0, no interval)")])
def test_rows_of_one_place_and_of_none_are_not_compared(others, behind):
    columns = {"score": table.Column("score", "score", "number", lower=True)}
    experiment = table.Experiment("t", "t", "", "", columns, "Classes", expected={"score": (("a", "b"), "c", *others)})
    four = [table.Row("all", (name, ""), name, ()) for name in ("a", "b", "c", "d")]
    figures = [{"score": {"value": value, "low": None, "high": None}} for value in (3.0, 1.0, 2.0, 0.0)]
    said = table.order_sentences(experiment, four, figures)
    assert said[0] == f"Classes all, score: a (3) was expected before, and comes after: c (2, no interval){behind}."
    assert len(said) == (3 if others else 1)  # b and c, too


def test_a_column_of_each_class_is_their_mean():
    column = {"mean": table.Column("mean", "ccc", "number", of="each")}
    records = [{"metric": "ccc50@e", "class": label, "value": value, "low": 0.0, "high": 9.0}
               for label, value in (("3", 1.0), ("7", 2.0), (None, 5.0))]
    assert table.figures_of(records, column, "7") == {"mean": {"value": 1.5, "low": None, "high": None}}
    assert table.figures_of([{**records[0], "value": None}, records[1]], column, "7")["mean"]["value"] is None
