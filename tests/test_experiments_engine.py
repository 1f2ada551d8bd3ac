"""What the engine makes beside Table 1: classifiers that runs need, measurements of an experiment's own, torchrun."""

import dataclasses
import functools
import json
import time
from pathlib import Path

import pytest

from experiments import engine, table
from experiments.engine import Measurement, Product, Run, complete, complete_here, plain_config, read_state
from experiments.table import Column, Experiment, Row
from utils import UserError

# a classifier, or a run, in a moment; each call is noted
PROGRAM = """
import sys
from pathlib import Path
place = Path(sys.argv[2])
with (Path(__file__).parent / "calls").open("a") as calls:
    calls.write(place.name + "\\n")
if (Path(__file__).parent / "fail").exists():
    sys.exit("error: no luck.\\nand a line after it")
if sys.argv[1] == "--out":
    place.write_text("made")
else:
    (place / "checkpoints").mkdir()
    (place / "checkpoints/step_00000001.pt").touch()
"""


def count_letters(run):
    with (run.file(".json").parent / "results.jsonl").open("a") as file:
        file.write(json.dumps({"metric": "letters", "value": len(run.path.name)}) + "\n")


def fail(run):
    raise ValueError(f"nothing can be measured of {run.path.name}")


def values(records):
    (record,) = records
    return {"letters": {"value": record["value"], "low": None, "high": None}}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr(engine, "TRAIN", str(tmp_path / "program.py"))
    return tmp_path


def nodes(folder, measure=count_letters, version=1):
    """(classifier, run that probes it)."""
    C = Product("mine", folder / "C.pt", (str(folder / "program.py"), "--out", str(folder / "C.pt")))
    config = plain_config(["--dataset", "digits", "--new_class", "7", "--C_path", str(C.path)])
    measurement = Measurement(measure, values, functools.partial(dict, version=version))
    return C, Run("mine", folder / "run", (), config, True, measurement, (C,))


def go(*nodes):
    complete_here(nodes, time.time(), lambda: None)
    return [read_state(node) for node in nodes]


def calls(folder):
    return (folder / "calls").read_text().split()


def test_a_run_waits_for_the_classifier_that_it_needs(programs):
    C, run = nodes(programs)
    assert run.about == {}  # there is nothing yet to be the same
    (state,) = go(run)
    assert calls(programs) == ["C.pt", "run"] and state["probed"] == run.about["probed"] != ""
    assert state["measured"]["figures"]["letters"]["value"] == 3 and state["measured"]["version"] == 1
    assert engine.finished(run) and go(run) == [state] and calls(programs) == ["C.pt", "run"]
    assert state["trained_on"] in engine.machine().values()

    _, other = nodes(programs, version=2)  # another protocol measures again, and trains nothing
    assert not engine.finished(other) and go(other)[0]["measured"]["version"] == 2
    assert calls(programs) == ["C.pt", "run"]


def test_a_run_that_was_measured_needs_its_checkpoints_no_longer(programs, tmp_path):
    C, run = nodes(programs)
    state = go(run)
    for path in (C.path, *(run.path / "checkpoints").iterdir()):
        path.unlink()
    assert go(run) == state and calls(programs) == ["C.pt", "run"]
    row = Row("7", ("ProbeGAN", "robust"), "", (run,))
    shown = []
    experiment = Experiment("t", "m", "T", "", {}, save=lambda path, images, names: shown.append((names, images.min())))
    table.save_picture(tmp_path / "t.png", experiment, [row])
    assert shown == [(["7: ProbeGAN, robust (no checkpoint)"], 1.0)]


def test_a_classifier_that_fails_is_named_and_tried_again(programs, capsys):
    C, run = nodes(programs)
    (programs / "fail").touch()
    state, of_run = go(C, run)
    assert state["error"] == "program.py ended with code 1: error: no luck." and calls(programs) == ["C.pt"]
    assert of_run["error"] == f"it needs {C.path}, which failed" and "failed: " in capsys.readouterr().err
    (programs / "fail").unlink()
    assert [state["error"] for state in go(C, run)] == ["", ""] and calls(programs) == ["C.pt", "C.pt", "run"]


def test_a_file_that_somebody_made_is_taken_and_another_command_refused(programs):
    C, run = nodes(programs)
    C.path.write_text("given")
    go(run)
    assert calls(programs) == ["run"] and C.path.read_text() == "given"
    C.path.unlink()
    go(C)
    engine.require_same(run.needs[0])
    changed = Product("mine", C.path, (*C.words, "--epochs", "3"))
    with pytest.raises(UserError, match="C.pt was made with other settings .command was .*; give another --runs"):
        engine.require_same(changed)


def test_what_began_with_another_file_is_refused(programs):
    begin = programs / "begin.safetensors"
    begin.write_text("one")
    C, run = nodes(programs)
    C = Product("mine", C.path, (*C.words, "--init", str(begin)))
    run = dataclasses.replace(run, config={**run.config, "init_G": str(begin)}, needs=(C,))
    go(run)
    engine.require_same(run)
    begin.write_text("another")
    with pytest.raises(UserError, match="C.pt was made with other settings .init was "):
        engine.require_same(C)
    with pytest.raises(UserError, match="run was made with other settings .init_G was "):
        engine.require_same(dataclasses.replace(run, needs=()))


def test_a_run_on_another_classifier_is_refused(programs):
    C, run = nodes(programs)
    go(run)
    C.path.write_text("another")
    with pytest.raises(UserError, match="the run .*run was made with other settings .probed was "):
        engine.require_same(run)


def test_a_run_from_before_methods_had_their_own_settings_goes_on(programs):
    """Its config.json is flat, with the settings of all methods, and says which arithmetic was computed in."""
    _, run = nodes(programs)
    run.path.mkdir()
    assert run.config["precision"] == "auto" and "own" not in run.config
    (run.path / "config.json").write_text(json.dumps({**run.config, "precision": "bf16", "AM_lr": 0.05}))
    engine.require_same(run)
    (run.path / "config.json").write_text(json.dumps({**run.config, "prob_clip": 0.5, "num_steps": 3}))
    with pytest.raises(UserError, match="prob_clip was 0.5, is 1.0; num_steps was 3, is 1500.; give another"):
        engine.require_same(run)


def test_a_measurement_that_fails_ends_nothing_else(programs):
    _, run = nodes(programs, measure=fail)
    (state,) = go(run)
    assert state["trained"] and "ValueError('nothing can be measured of run')" in state["error"]
    assert "Traceback" in run.file(".log").read_text() and not engine.finished(run)


def test_what_has_failed_is_left_until_the_next_start(programs):
    (programs / "fail").touch()
    C, _ = nodes(programs)
    started = time.time()
    for _ in range(2):
        assert complete(C, started, lambda: None, wait=False)
    assert calls(programs) == ["C.pt"]


def test_torchrun_starts_several_processes(tmp_path):
    config = plain_config(["--dataset", "digits", "--new_class", "7", "--C_path", "C.pt"])
    run = Run("mine", tmp_path / "run", ("--seed", "1"), config, True, None, processes=4)
    assert run.command() == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 4, "--", engine.TRAIN,
                             "--run", tmp_path / "run", "--seed", "1"]
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/step_00000001.pt").touch()
    assert run.command()[-2:] == ["--resume", tmp_path / "run"]


def test_what_may_be_run_of_a_classifier_is_said_at_each_start(programs):
    words = ("--dataset", "digits", "--new_class", "7", "--C_path", "C.pt", "--C_arch", "mine:make", "--C_trust")
    judge = Measurement((str(programs / "measure.py"), "{run}"), values, dict)
    (programs / "measure.py").write_text("import sys; print('told', *sys.argv[2:])")
    run = Run("mine", programs / "run", words, plain_config(words), False, judge)
    assert run.command()[1:] == ["--run", programs / "run", *words]
    (programs / "run/checkpoints").mkdir(parents=True)
    (programs / "run/checkpoints/step_00000001.pt").touch()
    assert run.command()[1:] == ["--resume", programs / "run", "--C_arch", "mine:make", "--C_trust"]
    with (programs / "lock").open("a") as lock:
        assert judge.take(run, lock, lambda: None)[0] == ""
    assert run.file(".log").read_text() == "told --C_arch mine:make --C_trust\n"


def test_figures_by_class():
    records = [{"metric": name, "class": label, "value": value, "low": None, "high": None, **more}
               for name, label, value, more in (
                   ("ccc@e", "7", -0.5, {}), ("ccc@e", "3", 0.1, {}), ("ccc@e", None, 0.2, {}),
                   ("recognition@e", None, 0.9, {"group": "all seen"}), ("cccp@e", "7", 1.0, {}))]
    columns = {"own": Column("own", "ccc", "correlation"), "three": Column("of 3", "ccc", "correlation", of="3"),
               "all": Column("all", "ccc", "correlation", of="all"), "none": Column("none", "missing")}
    found = table.figures_of(records, columns, "7")
    assert {name: figure["value"] for name, figure in found.items()} == {"own": -0.5, "three": 0.1, "all": 0.2}
    assert "all" not in table.figures_of(records[:3], columns, "7")  # of a run that draws the unseen class alone


def test_a_table_of_other_heads_and_no_expected_order(programs):
    """Two seeds: by hand the mean of 3 and 5 letters is 4, and Student's t gives 4 +- 12.706, cut at 0."""
    _, run = nodes(programs)
    _, second = nodes(programs)
    second = Run("mine", programs / "run_b", (), second.config, True, second.measurement, second.needs)
    go(run, second)
    columns = {"letters": Column("letters", "letters", "number")}
    row = Row("small", ("am", "", "dynamic"), "", (run, second))
    experiment = Experiment("t", "experiments.mine", "Letters", "Version {version}.", columns, "Scale",
                            ("loss", "classifier", "labelling"))
    figures = table.combined(row, columns)
    assert figures["letters"] == {"value": 4, "low": 0, "high": pytest.approx(4 + 12.706, abs=1e-3), "seeds": 2}
    runs = [{"finished": True, "error": "", "train_seconds": 1, "trained_on": "", "measure_seconds": 2}] * 2
    made = {"protocol": {"version": 1}, "machine": table.machine(), "rows": [{"figures": figures, "runs": runs}],
            "order": [], "notes": ["A note."], "seconds": 6, "commit": "", "command": "python -m experiments.mine"}
    text = table.markdown(experiment, made, [row])
    assert "## Scale: small" in text and "| am | - | dynamic | 4 (0 to 16.7) | 2 of 2 |" in text
    assert "Version 1." in text and "expected order" not in text and text.endswith("A note.\n")
    assert set(table.nodes_of(row.runs)) == {Path(programs / name) for name in ("C.pt", "run", "run_b")}
