"""evaluate.py and metrics: rates and intervals against hand-computed values, the judge kept independent."""

import json
import math
import sys

import pytest
import torch
from test_sample import make_state
from torch import nn

import evaluate
import utils
from classifiers import build
from metrics.recognition import rate, recognition
from sample import Sampler
from utils import save_checkpoint, save_torch


class Always(nn.Module):
    """A judge that sees class 1 in everything but dark images, where it sees class 0."""

    num_classes = 3

    def forward(self, images):
        dark = (images.mean((1, 2, 3)) < 0).float()
        return torch.stack([dark, 1 - dark, torch.zeros_like(dark)], 1)


def test_rate_is_the_wilson_interval():
    share = rate(8, 10)
    z, p, n = 1.959964, 0.8, 10
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert share["rate"] == 0.8 and share["of"] == 10
    assert share["low"] == pytest.approx((centre - half) / (1 + z * z / n), abs=1e-6)
    assert share["high"] == pytest.approx((centre + half) / (1 + z * z / n), abs=1e-6)


def test_recognition_counts_what_the_judge_says():
    sampler = Sampler(make_state(), torch.device("cpu"))
    result = recognition(sampler, Always(), num=30, seed=4)
    for label, name in enumerate(sampler.classes):
        images = sampler.class_images(label, range(4 + 30 * label, 34 + 30 * label))
        dark = int((images.mean((1, 2, 3)) < 0).sum())
        assert result["confusion"][name] == [dark, 30 - dark, 0]
    assert result["unseen"]["rate"] == 0 and result["unseen"]["of"] == 30  # the judge knows no horse
    hits = result["confusion"]["cat"][0] + result["confusion"]["dog"][1]
    assert result["seen"]["rate"] == hits / 60


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    for name, arch in (("probed", "smallcnn"), ("evaluator", "resnet8")):
        save_torch(tmp_path / f"{name}.pt", {"arch": arch, "num_classes": 3, "channels": 3, "resolution": 16,
                                             "mean": [0.5] * 3, "std": [0.5] * 3,
                                             "state_dict": build(arch, 3, 3).state_dict()})
    save_checkpoint(tmp_path / "run", make_state(C_path=str(tmp_path / "probed.pt")), keep=1)
    return tmp_path / "run"


def call(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, flags), "--device", "cpu"])
    utils.run_main(evaluate.main)


def test_result_json_and_the_printed_lines(run, monkeypatch, capsys):
    call(monkeypatch, "--run", run, "--evaluator", run.parent / "evaluator.pt", "--num", 20)
    result = json.loads((run / "result.json").read_text())
    assert result["unseen_classes"] == ["horse"] and result["step"] == 5
    assert result["evaluator"]["arch"] == "resnet8" and result["probed"]["arch"] == "smallcnn"
    assert sum(result["evaluator"]["confusion"]["cat"]) == 20
    said = capsys.readouterr().out
    assert "unseen (horse)" in said and f"{result['evaluator']['unseen']['rate']:.1%}" in said


@pytest.mark.parametrize("evaluator, extra, words", [
    ("probed.pt", [], "cannot judge its own images"),
    ("missing.pt", [], "missing.pt' does not exist"),
    ("evaluator.pt", ["--num", "0"], "--num is 0"),
    ("evaluator.pt", ["--run", "nowhere"], "no checkpoint at nowhere"),
])
def test_wrong_input_gets_a_sentence(run, monkeypatch, capsys, evaluator, extra, words):
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, "--run", run, "--evaluator", run.parent / evaluator, *extra)
    assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert not (run / "result.json").exists()
