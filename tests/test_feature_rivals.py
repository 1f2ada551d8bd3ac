"""Rivals without a GAN, on images and features whose answers are known."""

import pytest
import torch
from torch import nn

from classifiers.frozen import FrozenClassifier
from features import Bank
from metrics import feature_rivals
from metrics.feature_agreement import Seen
from metrics.feature_rivals import decoder, reconstruction, rivals, trained_decoder
from utils import to_unit_range


def smooth_images(n=600, side=16):
    """uint8 (n, 1, side, side): a brightness and a slope to the right, each uniform, and nothing else."""
    light, slope = torch.rand(2, n, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ramp = torch.linspace(-1, 1, side).expand(1, side, side)
    return (127.5 + 60 * light + 60 * slope * ramp).round().to(torch.uint8)


def linear_C(rows):
    """A FrozenClassifier of two labels, the features of which are rows (f, side * side) times the pixels."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(rows.shape[1], len(rows), bias=False), nn.Linear(len(rows), 2))
    model[1].weight.data = rows
    return FrozenClassifier(model, 2, 1, 16, [0.5], [0.5])


@pytest.fixture(scope="module")
def found():
    """{name: (drawers, Seen, images)} of a network that sees brightness and slope, and of one that sees a pattern that
    the eye does not, of which the images have a trace."""
    pixels, ramp = smooth_images(), torch.linspace(-1, 1, 16).expand(16, 16)
    board = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2) * 2.0 - 1
    trace = torch.stack((board.flatten() + 0.01, (board * ramp).flatten() + 0.01 * ramp.flatten())) / 16
    kinds = {"robust": torch.stack((torch.ones(256), ramp.flatten())) / 16, "regular": trace}
    images, made = to_unit_range(pixels), {}
    for name, rows in kinds.items():
        torch.manual_seed(0)
        C = linear_C(rows)
        bank = Bank.of_images(C, [pixels])
        made[name] = rivals(C, bank, pixels), Seen.of("", C, bank, images), images
    return made


def kept(found, name, rival):
    drawers, seen, images = found[name]
    return reconstruction(drawers[rival], seen, images, images.mean(0), torch.Generator().manual_seed(0))


def test_features_that_an_eye_sees_bring_the_image_back(found):
    """Descent from the mean image finds an image by its brightness and slope, and none by a checkerboard."""
    robust, regular = (kept(found, name, "gradient descent on pixels") for name in ("robust", "regular"))
    assert robust["start"] == regular["start"] > 0.1
    assert robust["high"] < 0.5 * robust["start"] and regular["low"] > 0.8 * regular["start"]


def test_a_decoder_gives_the_image_back_where_features_tell_it(found, monkeypatch):
    monkeypatch.setattr(feature_rivals, "DECODER_STEPS", 150)
    record = kept(found, "robust", "MSE decoder")
    assert record["high"] < 0.2 * record["start"] and record["n"] == 200


def test_a_decoder_is_trained_alike_and_leaves_the_random_stream_where_it_was(found, monkeypatch):
    monkeypatch.setattr(feature_rivals, "DECODER_STEPS", 3)
    _, seen, images = found["robust"]
    bank, drawn = Bank(seen.space, seen.f, seen.predicted), []
    for seed in (5, 6):
        torch.manual_seed(seed)
        expected = torch.rand(3)
        torch.manual_seed(seed)
        drawn.append(trained_decoder(bank, images)(images[:2], seen.f[:2], None, None))
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(*drawn) and drawn[0].shape == images[:2].shape


@pytest.mark.parametrize("side", [16, 28, 48])
def test_a_decoder_covers_the_side(side):
    drawn = decoder(5, 3, side)(torch.zeros(2, 5))
    assert drawn.shape[:2] == (2, 3) and drawn.shape[2] >= side and drawn.shape[2] - side < 8
