"""What is drawn and measured on another device than the CPU is what is drawn and measured on the CPU."""

import json
import sys

import pytest
import torch
from elsewhere import ELSEWHERE, elsewhere

import evaluate
import experiments.features as feature_experiment
import sample
import train
from datasets import load_split
from metrics import feature_rivals
from metrics.registry import METRICS

RUNS = {"probegan": ["--new_class", "7"], "edit": ["--method", "features"],
        "draw": ["--method", "features", "--mode", "draw"],
        "dynamic": ["--method", "labelled", "--labelling", "dynamic", "--oracle", "--num_images", "50"]}
OTHERS = {"presence", "sound"}  # of images that are not at hand here


def assert_near(found, expected):
    """That nested plain values agree: strings as they are, numbers to rounding."""
    if isinstance(expected, dict | list):
        items = expected.keys() if isinstance(expected, dict) else range(len(expected))
        assert len(found) == len(expected)
        for item in items:
            assert_near(found[item], expected[item])
    else:
        assert found == (pytest.approx(expected, rel=1e-3, abs=1e-4) if isinstance(expected, float) else expected)


def program(monkeypatch, main, *words):
    monkeypatch.setattr(sys, "argv", ["a program", *map(str, words)])
    main()


@pytest.fixture(scope="module")
def runs(noise_world, tmp_path_factory):
    """{name: folder} of RUNS, trained for two steps on the CPU."""
    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for name, words in RUNS.items():
            program(patch, train.main, "--dataset", "digits", "--data_root", noise_world, "--C_path",
                    noise_world / "C.pt", "--evaluator", noise_world / "E.pt", "--G_ch", 4, "--D_ch", 4, "--batch_size",
                    16, "--num_D_steps", 1, "--num_steps", 2, "--precision", "fp32", "--device", "cpu",
                    "--skip_classifier_check", "--run", home / name, *words)
    return {name: home / name for name in RUNS}


def test_two_devices_do_not_mix(monkeypatch):
    with elsewhere(monkeypatch):
        there, here = torch.arange(3.0, device=ELSEWHERE), torch.arange(3.0)
        with pytest.raises(RuntimeError, match="add: expected all tensors to be on the same device"):
            there + here
        assert there[torch.tensor([2])].tolist() == [2]
        with pytest.raises(RuntimeError, match="index: expected"):
            here[there.long()]
        with pytest.raises(TypeError, match="copy it to the CPU"):
            there.numpy()
        layer = torch.nn.Linear(3, 1).to(ELSEWHERE)
        layer(there).backward()
        assert layer.weight.grad.cpu().tolist() == [[0, 1, 2]]
        assert torch.equal((there * 2).cpu(), here * 2) and there[1] * here[1] == 1


@pytest.mark.parametrize("name", RUNS)
def test_measurements(runs, noise_world, monkeypatch, tmp_path, name):
    of_features = {"feature_agreement", "feature_walks"}
    asked = [metric for metric in METRICS if metric not in OTHERS
             and (metric not in of_features or name in ("edit", "draw"))]
    words = ["--run", runs[name], "--evaluator", noise_world / "E.pt", "--num", 20, "--device", "cpu", "--metrics",
             *asked]
    found = {}
    program(monkeypatch, evaluate.main, *words, "--out", tmp_path / "here")
    with elsewhere(monkeypatch, evaluate):
        program(monkeypatch, evaluate.main, *words, "--out", tmp_path / "there")
    for place in ("here", "there"):
        records = map(json.loads, (tmp_path / place / "results.jsonl").read_text().splitlines())
        found[place] = [{key: value for key, value in record.items() if key != "time"} for record in records]
    assert_near(found["there"], found["here"])
    assert len(found["here"]) > len(asked)


@pytest.mark.parametrize("name, mode", [
    ("probegan", ["grid"]), ("probegan", ["class"]), ("probegan", ["z"]), ("probegan", ["y", "--classes", 3, 7]),
    ("probegan", ["npz", "--num", 20]), ("dynamic", ["grid"]), ("edit", ["grid"]), ("edit", ["features"]),
    ("draw", ["features"])])
def test_pictures(runs, monkeypatch, tmp_path, name, mode):
    places = [tmp_path / f"{place}.{'npz' if 'npz' in mode else 'png'}" for place in ("here", "there")]
    words = ["--checkpoint", runs[name], "--device", "cpu", "--mode", *mode, "--out"]
    program(monkeypatch, sample.main, *words, places[0])
    with elsewhere(monkeypatch, sample):
        program(monkeypatch, sample.main, *words, places[1])
    assert places[0].read_bytes() == places[1].read_bytes()


def test_rivals_of_features(noise_world, monkeypatch):
    for steps in ("DESCENT_STEPS", "DECODER_STEPS"):
        monkeypatch.setattr(feature_rivals, steps, 3)
    given = "digits", noise_world / "C.pt", noise_world / "E.pt", *(
        load_split("digits", noise_world, split)[0] for split in ("train", "test")), 20
    here = feature_experiment.measure_rivals(*given)
    with elsewhere(monkeypatch, feature_experiment):
        there = feature_experiment.measure_rivals(*given)
    assert_near(there, here)
