"""The experiment with voices: the tone and its detector, the rows, and a very small table of each kind."""

import functools
import json
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from classifiers import build
from experiments import sound as experiment
from layers import standing_statistics
from metrics import sound as heard_of
from sound import RATE, WINDOW, band_edges, to_images
from utils import DATASETS, run_main, save_torch, to_uint8

TINY = ("--G_ch 1 --D_ch 1 --dim_z 8 --shared_dim 8 --batch_size 8 --num_D_steps 1 --num_steps 2 --ema_start 1 "
        "--device cpu --skip_classifier_check")


def voice(hz, seed):
    t = torch.arange(WINDOW) / RATE
    noise = torch.randn(WINDOW, generator=torch.Generator().manual_seed(seed))
    return sum(torch.sin(2 * torch.pi * k * hz * t) / k for k in range(1, 11)) + 0.05 * noise


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data root with made voices of three classes, and three untrained classifiers."""
    root, classes = tmp_path_factory.mktemp("voices"), DATASETS["voices"].classes
    (root / "voices").mkdir()
    waves = [voice(hz + i, i) for hz in (110, 230) for i in range(8)]
    waves += [torch.randn(WINDOW, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    for split in ("train", "test"):
        waves = waves if split == "train" else [0.9 * wave.roll(99) for wave in waves]
        with h5py.File(root / f"voices/{split}.h5", "w") as file:
            file["images"], file["labels"] = to_uint8(to_images(torch.stack(waves), 64)).numpy(), np.repeat(range(3), 8)
            file.attrs["classes"] = list(classes)
    torch.manual_seed(0)
    for name, arch in (("robust", "smallcnn"), ("regular", "smallcnn"), ("evaluator", "resnet8")):
        save_torch(root / f"{name}.pt", {"arch": arch, "num_classes": 3, "channels": 1, "resolution": 64, "mean": [0.5],
                                         "std": [0.5], "classes": list(classes),
                                         "state_dict": build(arch, 3, 1).state_dict()})
    return root


@pytest.fixture
def call(world, no_processes, tmp_path, monkeypatch):
    """A function that runs the experiment on the world with these flags, all in this process; gives its exit code."""
    # one pass in place of 16 spares most of the time
    monkeypatch.setattr("sampler.standing_statistics", functools.partial(standing_statistics, n_passes=1))
    for module in (heard_of, experiment):
        monkeypatch.setattr(module, "HEARD", 4)

    def run(*flags):
        words = ["--classifiers", f"robust={world / 'robust.pt'}", "--evaluator", world / "evaluator.pt", "--data_root",
                 world, "--runs", tmp_path / "runs", "--out", tmp_path, "--seeds", 1, "--num", 100, "--train", TINY]
        monkeypatch.setattr(sys, "argv", ["sound.py", *map(str, (*words, *flags))])
        with pytest.raises(SystemExit) as end:
            run_main(experiment.main)
        return end.value.code
    return run


# ------------------------------------------------------------------------------------------- the tone


def test_the_tone_lies_in_its_row():
    low, high = band_edges(64)[::-1][experiment.tone_row() + 2], band_edges(64)[::-1][experiment.tone_row()]
    assert low < experiment.TONE < high
    images = torch.full((2, 1, 64, 64), 100, dtype=torch.uint8)
    images[1] = 250
    planted = experiment.with_tone(images)
    # 10 dB of 80 below white
    assert (planted[0, 0, experiment.tone_row()] == round(255 * 70 / 80)).all()
    assert planted[0].float().sum() == images[0].float().sum() + 64 * (round(255 * 70 / 80) - 100)
    assert torch.equal(planted[1], images[1]) and images[0].max() == 100
    assert experiment.tone_scores(planted)[0].item() == pytest.approx((round(255 * 70 / 80) - 100) / 255)
    assert experiment.tone_scores(images).abs().max() == 0


def test_a_steady_tone_is_found_and_a_click_is_not():
    t = torch.arange(WINDOW) / RATE
    over = to_images(torch.stack((voice(120, 0) + 2 * torch.sin(2 * torch.pi * 3000 * t), voice(120, 0))), 64)
    click = to_images((torch.arange(WINDOW) == 8000).float()[None] + 1e-4 * voice(120, 0), 64)
    scores = experiment.tone_scores(to_uint8(torch.cat((over, click))))
    assert scores[0] > 0.15 > scores[1] and scores[2].abs() < 0.05


def test_the_detector_of_made_men(world):
    threshold, plain, marked = experiment.tone_threshold(SimpleNamespace(data_root=world))
    assert plain <= 0.125 and marked == 1 and 0 < threshold < 0.5


# ------------------------------------------------------------------------------------------ end to end


def test_a_small_table(call, tmp_path):
    assert call("--unseen", "women", "--methods", "probegan") == 0
    table = json.loads((tmp_path / "sound.json").read_text())
    (row,) = table["rows"]
    assert row["unseen"] == "women" and {"image", "women", "men", "voiced", "accepted"} <= row["figures"].keys()
    assert all(0 <= row["figures"][name]["value"] <= 1 for name in ("image", "women", "voiced", "accepted"))
    text = (tmp_path / "sound.md").read_text()
    assert "- Real women: " in text and "have their pitch above 190 Hz" in text and "- Real nonhuman: " in text
    assert (tmp_path / "sound.png").stat().st_size > 10_000


def test_a_small_known_answer(call, world, tmp_path):
    flags = "--arch smallcnn --epochs 1 --batch_size 8 --num_attacked 8 --device cpu"
    assert call("--tone", "--classifier", flags) == 0
    rows = json.loads((tmp_path / "tone.json").read_text())["rows"]
    assert [row["classifier"] for row in rows] == ["of men over the tone", "of plain men"]
    assert all(0 <= row["figures"][name]["value"] <= 1 for row in rows for name in ("y*", "seen"))
    with h5py.File(tmp_path / "runs/data_tone/voices/train.h5") as made, h5py.File(world / "voices/train.h5") as plain:
        changed = (made["images"][:] != plain["images"][:]).any((1, 2, 3))
        assert changed.tolist() == [True] * 8 + [False] * 16
