"""The tool from Python: tensors, a Dataset or a folder in, pictures and figures out, by the loop that train.py runs."""

import dataclasses
import re
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from classifiers.loading import probed_classifier
from config import Config
from metrics.registry import METRICS
from probe import Found, probe
from training import GAN
from utils import UserError, load_checkpoint

SMALL = {"G_ch": 2, "D_ch": 2, "dim_z": 6, "shared_dim": 8, "batch_size": 20, "num_D_steps": 1, "device": "cpu",
         "skip_classifier_check": True, "precision": "fp32"}


@pytest.fixture(scope="module")
def digits():
    """Digits of 16 pixels, uint8 (N, 1, 16, 16) and labels."""
    data = load_digits()
    return (torch.from_numpy(data.images).repeat_interleave(2, 1).repeat_interleave(2, 2) * 15.9).byte()[:, None], \
        torch.from_numpy(data.target)


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 10))


def test_tensors_in_pictures_and_figures_out(digits, tmp_path, monkeypatch):
    model = linear().train()
    before = [value.clone() for value in model.state_dict().values()]
    found = probe(model, *digits, unseen=3, steps=2, run=tmp_path / "run", **SMALL)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert found.images(3, 5).shape == (5, 1, 16, 16) and found.images("3", 5).dtype == torch.uint8
    assert torch.equal(found.images(3, 1, seed=4), found.images(3, 5)[4:])
    assert isinstance(found.grid(), Image.Image) and found._repr_png_().startswith(b"\x89PNG")
    assert "3, unseen, after 2 steps" in repr(found)
    assert found.state["audit"]["images_per_class"]["3"] == 0
    records = found.measure(linear(1), metrics=["recognition"], num=50)
    assert {record["class"] for record in records} >= {"3", "7"}
    page = found.report(tmp_path / "three.html", linear(1), metrics=["recognition"], num=50)
    assert page.read_text().lstrip().lower().startswith("<!doctype html")
    broken = dataclasses.replace(METRICS["activation"], measure=lambda m: 1 / 0)
    monkeypatch.setitem(METRICS, "activation", broken)
    with pytest.raises(UserError, match="activation .ZeroDivisionError: division by zero. broke down"):
        found.measure(linear(1), metrics=["recognition", "activation"], num=50)


def test_a_run_is_gone_on_with_and_equals_an_uninterrupted_one(digits, tmp_path):
    dataset = TensorDataset(digits[0].float() / 127.5 - 1, digits[1])
    whole = probe(linear(), dataset, value_range=(-1, 1), unseen=["3"], steps=4, run=tmp_path / "whole", **SMALL)
    probe(linear(), *digits, unseen=3, steps=2, run=tmp_path / "parts", **SMALL)
    parts = probe(linear(), unseen=3, steps=4, run=tmp_path / "parts")
    assert all(torch.equal(value, parts.state["G"][name]) for name, value in whole.state["G"].items())
    with pytest.raises(UserError, match="is not the one this run was started on"):
        probe(linear(1), unseen=3, steps=6, run=tmp_path / "parts")


def test_an_interrupted_run_is_saved_and_returned(digits, tmp_path, monkeypatch):
    step = GAN.advance

    def interrupted(self):
        terms = step(self)
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return terms

    monkeypatch.setattr(GAN, "advance", interrupted)
    found = probe(linear(), *digits, unseen=3, steps=1000, run=tmp_path / "run", **SMALL)
    assert found.state["step"] == 2 and load_checkpoint(tmp_path / "run")["step"] == 2
    assert Found(tmp_path / "run").images(3, 1).shape == (1, 1, 16, 16)


class Named(nn.Module):
    """Normalises by itself in no way, and answers with probabilities in a dict."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return {"features": images.flatten(1), "probs": self.network(images).softmax(1)}


def test_a_module_in_memory_is_loaded_as_a_file_would_be(digits, tmp_path):
    """What it answers is found out, and mean and std hold: both are those of the run."""
    found = probe(Named(linear()), *digits, unseen=3, steps=1, run=tmp_path / "run", C_mean=(0.5,), C_std=(0.25,),
                  **SMALL)
    C = probed_classifier(Config.from_dict(found.state["config"]), found.sampler.classes, "cpu")
    images = digits[0][:8].float() / 127.5 - 1
    assert C.answers.form == "softmax" and C.answers.pick == ("probs",)
    torch.testing.assert_close(C(images).softmax(1), linear()(((images + 1) / 2 - 0.5) / 0.25).softmax(1))


def test_a_folder_of_images(digits, tmp_path):
    for i in range(60):
        path = tmp_path / "images" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits[0][i, 0].numpy()).convert("RGB").save(path)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 3))
    found = probe(model, tmp_path / "images", unseen="b", steps=1, resolution=16, run=tmp_path / "run", **SMALL)
    assert found.sampler.classes == ("a", "b", "c") and found.images("b", 2).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("changes, words", [
    ({"images": torch.rand(30, 1, 16, 16) * 3}, r"outside value_range 0 to 1; name the range"),
    ({"images": torch.zeros(30, 1, 16, 12)}, "they must be square, of 1 or 3 channels"),
    ({"images": torch.zeros(30, 1, 16, 16, dtype=torch.int32)}, "give uint8, or floats in value_range"),
    ({"labels": torch.zeros(7)}, "there are 30 images and 7 labels"),
    ({"classes": ["a", "b"]}, "with 2 classes they must lie between 0 and 1"),
    ({"classifier": nn.Sequential(nn.Flatten(), nn.Linear(256, 4))}, "the classifier knows 4 classes without names"),
    ({"unseen": "horse"}, "class 'horse' is not in this data set"),
    ({"images": torch.zeros(30, 1, 18, 18)}, "there is no network for 18x18 images"),
])
def test_wrong_input_gets_a_sentence(tmp_path, changes, words):
    given = {"classifier": linear(), "images": torch.zeros(30, 1, 16, 16), "labels": torch.arange(30) % 10,
             "unseen": 3, "steps": 1, "run": tmp_path / "run", **SMALL, **changes}
    with pytest.raises(UserError, match=words):
        probe(**given)


def test_the_readmes_example_runs(tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    example = re.search(r"```python\n(import torch.*?)```", text, re.DOTALL)[1]
    for shorter, count in ((r"\1=3", r"(steps|G_ch|D_ch)=\d+"), ("num=50", r"num=\d+")):
        example, found = re.subn(count, shorter, example)
        assert found
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "seven.html").is_file() and (tmp_path / "seven.png").is_file()
