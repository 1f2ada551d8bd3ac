"""The shell launchers and the benchmark: what they refuse, and the command that they run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.label_noise import found, mislabelled
from benchmarks.time_to_quality import seconds_at
from classifiers.train import TrainSettings, train_classifier
from datasets.prepare import prepare
from experiments import table1
from experiments.engine import plain_config

ROOT = Path(__file__).parents[1]


def shell(script, *arguments, cwd=ROOT):
    return subprocess.run(["bash", str(cwd / "scripts" / script), *arguments], capture_output=True, text=True, cwd="/")


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose .venv/bin/python only says how it was called."""
    (tmp_path / "scripts").mkdir()
    for script in (ROOT / "scripts").glob("*.sh"):
        (tmp_path / "scripts" / script.name).write_text(script.read_text())
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/usr/bin/env bash\necho \"$@\"\n")
    python.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.sh")))
def test_scripts_parse(script):
    done = subprocess.run(["bash", "-n", str(ROOT / "scripts" / script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("digit", ["12", "seven", "-1"])
def test_the_quickstart_refuses_what_is_no_digit_before_it_installs(checkout, digit):
    done = shell("quickstart.sh", digit, cwd=checkout)
    assert done.returncode == 2 and "give one of 0 to 9" in done.stderr and not done.stdout


@pytest.mark.parametrize("name, option", [("zerogan", ""), ("naive", "--method naive"), ("oracle", "--oracle"),
                                          ("small", "--C_bound 0.5")])
def test_cifar_launchers_start_and_resume(checkout, name, option):
    script = f"launch_cifar_{name}.sh"
    assert os.access(ROOT / "scripts" / script, os.X_OK)
    done = shell(script, "horse", cwd=checkout)
    assert done.returncode == 2 and f"launch_cifar_{name}.sh horse 64" in done.stderr
    done = shell(script, "horse", "64", "--seed", "3", cwd=checkout)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[:9] == ["train.py", "--dataset", "C10", "--new_class", "horse", "--batch_size", "64", "--run",
                         f"runs/C10_{name}_horse"]
    assert words[-2:] == ["--seed", "3"] and option in done.stdout
    run = checkout / f"runs/C10_{name}_horse/checkpoints"
    run.mkdir(parents=True)
    (run / "step_00000001.pt").touch()
    done = shell(script, "horse", "64", cwd=checkout)
    assert done.stdout.splitlines()[1].split() == ["train.py", "--resume", f"runs/C10_{name}_horse"]


def test_the_small_launcher_has_the_settings_of_the_table(checkout):
    words = shell("launch_cifar_small.sh", "horse", "32", cwd=checkout).stdout.split()[1:]
    small = table1.SCALES["C10"]["small"]
    given = ["--dataset", "C10", "--new_class", "horse", *small["all"].split(), *small["probegan"].split()]
    one, other = (plain_config(flags) | dict.fromkeys(("num_steps", "C_path", "evaluator", "sample_every"))
                  for flags in ([word for word in words if not word.startswith("runs/") and word != "--run"], given))
    assert one == other


@pytest.mark.parametrize("dataset, stem", [("C10", "cifar"), ("MNIST", "mnist")])
def test_classifier_launchers_make_what_is_missing(checkout, dataset, stem):
    script = f"launch_train_{stem}_classifiers.sh"
    assert os.access(ROOT / "scripts" / script, os.X_OK)
    prefix = f"pretrained/{'cifar10' if stem == 'cifar' else stem}"
    (checkout / "pretrained").mkdir()
    (checkout / f"{prefix}_robust.safetensors").touch()
    done = shell(script, "--device", "cuda", cwd=checkout)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1] == f"{prefix}_robust.safetensors is there"
    for line, name in ((lines[0], "regular"), (lines[2], "evaluator")):
        assert line.startswith(f"-m classifiers.train --out {prefix}_{name}.safetensors --dataset {dataset} ")
        assert line.endswith("--device cuda") and ("--role evaluator" in line) == (name == "evaluator")


def benchmark(tmp_path, *flags):
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/step_time.py"), "--width", "2", "--batch_size", "2",
                           "--num_D_steps", "2", "--repeats", "1", "--device", "cpu", "--json",
                           str(tmp_path / "t.json"), *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "t.json").read_text())


def test_the_benchmark_counts_arithmetic_and_gives_shares(tmp_path):
    found = benchmark(tmp_path, "--precision", "fp32", "bf16", "--C_arch", "smallcnn", "resnet8")
    assert [(row["precision"], row["C_arch"]) for row in found["rows"]] == [
        ("fp32", "smallcnn"), ("fp32", "resnet8"), ("bf16", "smallcnn"), ("bf16", "resnet8")]
    for row in found["rows"]:
        assert row["GFLOP_per_s"] == pytest.approx(row["GFLOP"] / row["seconds"])
        for ceiling in ("convolution", "product"):
            assert row[f"share_of_{ceiling}"] == pytest.approx(row["GFLOP_per_s"] / row[f"{ceiling}_GFLOP_per_s"])
    parts = {name: part["GFLOP"] for name, part in found["phases"].items()}
    # D's steps make their fakes themselves
    assert parts["D steps"] + parts["G step"] == pytest.approx(found["rows"][0]["GFLOP"], rel=1e-6)
    assert parts["D steps"] > parts["G makes fakes for D"] + parts["of which the penalty"]
    assert 0 < parts["of which the classifier"] < parts["G step"]


def test_the_benchmark_sweeps_and_plots(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (tests/requirements.txt)")
    found = benchmark(tmp_path, "--sweep", "classes", "--plot", str(tmp_path / "t.png"))
    assert [row["classes"] for row in found["rows"]] == [2, 10, 100, 1000]
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_the_data_benchmark_reads_both_kinds_of_set():
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/data_time.py"), "--images", "200", "--num", "300",
                           "--resolution", "16", "--batch_size", "32"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rates = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}
    assert rates.keys() == {"hdf5", "folder"} and min(rates.values()) > 0


def test_seconds_of_training_are_those_of_the_log():
    log = [{"step": 10, "steps_per_second": 5.0}, {"step": 30, "steps_per_second": 4.0}]
    assert seconds_at(log) == {10: 2.0, 30: 7.0}


def test_wrong_labels_are_planted_and_counted():
    right = torch.arange(1000) % 5
    wrong = mislabelled(right, 5, 0.1)
    assert (wrong != right).sum() == 100 and wrong.min() == 0 and wrong.max() == 4
    assert set(((wrong - right) % 5).tolist()) == {0, 1, 2, 3, 4} and torch.equal(wrong, mislabelled(right, 5, 0.1))
    # three classes: image 1 is a 0 under the label 1 and is missed, image 3 a 2 under 0 and is found, image 2 is
    # suspected of being a 1 for nothing; for y* = 0, 1, 2 there are 2, 3 and 3 images under other labels
    shares = torch.tensor([[0.9, 0.05, 0.05], [0.45, 0.5, 0.05], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    assert found(shares, torch.tensor([0, 0, 2, 2]), torch.tensor([0, 1, 2, 0])) == [2, 1, 8, 1]


def test_quality_is_measured_once_for_each_checkpoint(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (tests/requirements.txt)")
    prepare("digits", str(tmp_path))
    common = {"dataset": "digits", "data_root": str(tmp_path), "device": "cpu", "num_attacked": 1, "epochs": 1}
    train_classifier(TrainSettings(**common, out=str(tmp_path / "C.pt")))
    train_classifier(TrainSettings(**common, out=str(tmp_path / "E.pt"), arch="resnet8", role="evaluator", seed=1))
    run = tmp_path / "run"

    def python(*words):
        done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    python("train.py", "--dataset", "digits", "--new_class", 7, "--data_root", tmp_path, "--C_path", tmp_path / "C.pt",
           "--evaluator", tmp_path / "E.pt", "--run", run, "--num_steps", 4, "--save_every", 2, "--G_ch", 2, "--D_ch",
           2, "--keep", 9, "--skip_classifier_check", "--device", "cpu")
    said = python("benchmarks/time_to_quality.py", "--run", run, "--num", 50)
    points = json.loads((run / "quality.json").read_text())
    assert [(p["step"], p["metric"]) for p in points] == [(2, "intra_fd"), (2, "recognition"), (4, "intra_fd"),
                                                          (4, "recognition")]
    assert 0 < points[0]["seconds"] < points[2]["seconds"] and "quality.png" in said
    lines = (run / "results.jsonl").read_text()
    python("benchmarks/time_to_quality.py", "--run", run, "--num", 50)
    assert (run / "results.jsonl").read_text() == lines
