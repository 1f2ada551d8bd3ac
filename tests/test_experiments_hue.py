"""Hues of one luminance, the measures on images whose answer is known, and the whole in little."""

import json
import sys

import pytest
import torch

from experiments import hue
from experiments.hue import (
    BINS,
    LUMINANCE,
    coloured,
    colours,
    edges_of,
    hue_of,
    slant_of,
    thickness_of,
    total_variation,
    unity_of,
)
from utils import UserError


def test_colours_have_one_luminance_and_can_be_shown():
    found = colours(torch.linspace(0, 1, 50))
    assert torch.allclose(found @ torch.tensor([0.299, 0.587, 0.114]), torch.full((50,), LUMINANCE), atol=1e-6)
    assert found.min() >= 0 and found.max() <= 1
    # red, green and blue have the largest share of their own channel
    assert colours(torch.tensor([0.0, 1 / 3, 2 / 3])).argmax(1).tolist() == [0, 1, 2]


def test_the_hue_of_an_image_is_the_one_it_was_given():
    hues = torch.linspace(0, 0.99, 40)
    images = (255 * colours(hues)[:, :, None, None]).expand(-1, -1, 4, 4).round().to(torch.uint8)
    apart = (hue_of(images) - hues).abs()
    assert torch.minimum(apart, 1 - apart).max() < 0.02


def test_unity_by_hand():
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    images[0, 0] = 200  # red throughout
    images[1, 0, 0], images[1, 1, 1] = 200, 200  # half red, half green: a third of a turn apart
    images[2, 0, 0, 0], images[2, 1, 0, 1], images[2, 2, 1, 0] = 200, 200, 200  # red, green, blue cancel
    images[3, 0, 0, 0], images[3, 0, 1, 1] = 240, 20  # red, bright and dark
    assert unity_of(images).tolist() == pytest.approx([1, 0.5, 0, 1], abs=1e-6)
    assert unity_of(coloured(torch.full((50, 1, 4, 4), 200, dtype=torch.uint8), seed=0)).min() > 0.999


def test_hues_are_drawn_for_each_image_whatever_its_class():
    found = hue_of(coloured(torch.full((3000, 1, 4, 4), 200, dtype=torch.uint8), seed=0))
    uniform = (torch.arange(3000).double() + 0.5) / 3000
    assert total_variation(found, uniform, edges_of(found, "hue")) < 0.06


def test_total_variation_by_hand():
    edges = edges_of(torch.zeros(1), "hue")
    assert len(edges) == BINS - 1
    one = torch.full((10,), 0.01).double()
    assert total_variation(one, one, edges) == 0
    assert total_variation(one, torch.full((7,), 0.99).double(), edges) == pytest.approx(1)
    half = torch.cat((one, torch.full((10,), 0.5).double()))
    assert total_variation(one, half, edges) == pytest.approx(0.5)


def test_thickness_and_slant_by_hand():
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    for row in range(8):
        images[0, :, row, 3] = 240  # upright
        images[1, :, row, 7 - row] = 240  # to the right upwards, a column a row
        images[2, :, row, row] = 120  # to the left upwards
    assert slant_of(images).tolist() == pytest.approx([0, 1, -1], abs=1e-6)
    assert thickness_of(images).tolist() == pytest.approx([30, 30, 15])


def test_the_whole_in_little_writes_its_files_and_goes_on(noise_world, tmp_path, monkeypatch):
    monkeypatch.setattr(hue, "ROOT", tmp_path)
    monkeypatch.setitem(hue.IMAGES, "digits", 190)
    (tmp_path / "datasets").symlink_to(noise_world)
    runs = tmp_path / "runs"
    monkeypatch.setattr(hue, "from_root", lambda path: runs)
    flags = ["--dataset", "digits", "--new_class", "7", "--classifier", str(noise_world / "C.pt"), "--num", "100",
             "--skip_classifier_check", "--num_steps", "2", "--G_ch", "1", "--D_ch", "1", "--device", "cpu"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["hue", *flags])
        with pytest.raises(SystemExit) as ended:
            hue.main()
        assert ended.value.code in (0, 1)
    found = json.loads((runs / "hue.json").read_text())
    assert set(found["runs"]) == {"probegan", "naive"} and 0 <= found["runs"]["naive"]["figures"]["hue"] <= 1
    assert 0 <= found["runs"]["naive"]["figures"]["one hue"] <= 1 < 1.01 * found["real"]["one hue"]
    assert set(found["runs"]["probegan"]["seen"]) == set("012345689") and not found["runs"]["naive"]["seen"]
    assert found["chance"] < 0.3 and (runs / "hue.png").is_file()
    said = (runs / "hue.md").read_text()
    assert "| real images of y* |" in said and "| y* by naive |" in said and "| seen 3 by probegan |" in said


def test_wrong_flags_get_a_sentence(monkeypatch):
    for flags, words in ((["--dataset", "C10"], "give one of digits, MNIST"),
                         (["--dataset", "digits", "--num", "9"], "fewer than 100 fakes"),
                         (["--dataset", "digits", "--method", "naive"], "each run has its own")):
        monkeypatch.setattr(sys, "argv", ["hue", *flags])
        with pytest.raises(UserError, match=words):
            hue.main()
