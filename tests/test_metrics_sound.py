"""metrics/sound.py on made tones, whose pitch and class are known, with a judge made for them."""

from types import SimpleNamespace

import pytest
import torch

from metrics import sound as heard_of
from metrics.registry import METRICS
from metrics.sound import Heard, agreement, figures, hear, side_of, spread
from sound import RATE, WINDOW, to_images
from utils import to_uint8

LOW, HIGH, NONE = 0, 1, 2  # classes of the made sounds: low voices, high voices, noise
SIDES = {LOW: "below", HIGH: "above", NONE: None}


def voice(hz):
    t = torch.arange(WINDOW) / RATE
    return sum(torch.sin(2 * torch.pi * k * hz * t) / k for k in range(1, 11))


def spectrograms(pitches, noises=0):
    generator = torch.Generator().manual_seed(0)
    waves = [voice(hz) for hz in pitches] + [torch.randn(WINDOW, generator=generator) for _ in range(noises)]
    return to_images(torch.stack(waves), 64)


def judge(images):
    """Takes all for low voices."""
    return None, torch.tensor([[0.8, 0.1, 0.1]]).expand(len(images), 3)


def made(hz, share, labels):
    return Heard(torch.tensor(hz), torch.tensor(share), torch.eye(3)[labels])


def test_what_is_heard_of_tones_and_noise():
    heard = hear(spectrograms((120, 240, 330), noises=2), judge)
    assert torch.allclose(heard.hz[:3], torch.tensor([120.0, 240, 330]), rtol=0.03)
    assert heard.voiced.tolist() == [True, True, True, False, False] and heard.share[3:].max() < 0.1
    assert heard.on_side("below").tolist() == [True, False, False]
    assert heard.judged.shape == (5, 3)


def test_the_judge_is_shown_the_sounds_own_image():
    """A pattern that no sound has is gone when it is judged."""
    pattern = torch.where(torch.arange(64)[:, None] % 2 == torch.arange(64) % 2, 1.0, -1.0)[None, None]
    shown = []
    hear(pattern, lambda images: (shown.append(images), judge(images))[1])
    assert (shown[0] - pattern).abs().mean() > 0.3
    assert torch.equal(shown[0], to_uint8(shown[0]).float() / 127.5 - 1)


def test_the_figures_by_hand():
    #            hz, voiced share, what the evaluator says
    heard = made([100.0, 150.0, 240.0, 110.0], [0.9, 0.5, 0.4, 0.3], [LOW, HIGH, LOW, LOW])
    found = figures(LOW, heard, SIDES)
    assert found["sound_recognition"] == pytest.approx(3 / 4)
    assert found["voiced_share"] == pytest.approx((0.9 + 0.5 + 0.4 + 0.3) / 4)
    # the last has too few voiced frames for its pitch to count
    assert found["f0_median"] == pytest.approx(150) and found["f0_side"] == pytest.approx(2 / 3)
    assert found["f0_spread"] == pytest.approx(torch.tensor([100.0, 150, 240]).std().item())
    # 100 Hz as low: agrees; 150 Hz as high and 240 Hz as low: do not
    assert found["sound_agreement"] == pytest.approx(1 / 3)
    assert agreement(heard, SIDES).tolist() == [True, False, False]


def test_a_class_without_a_side_has_none():
    noises = made([300.0, 100.0], [0.1, 0.5], [NONE, NONE])
    assert side_of(made([300.0, 100.0, 120.0], [0.1, 0.2, 0.5], [NONE] * 3)) is None
    assert side_of(made([100.0, 120.0, 250.0], [0.9] * 3, [LOW] * 3)) == "below"
    assert side_of(made([200.0, 220.0, 150.0], [0.9] * 3, [LOW] * 3)) == "above"
    found = figures(NONE, noises, SIDES)
    assert "f0_side" not in found and found["sound_agreement"] != found["sound_agreement"]
    assert spread(torch.tensor([100.0])) != spread(torch.tensor([100.0]))


@pytest.fixture
def measured(monkeypatch):
    """What evaluate.py would hand over: one unseen class of voices of one pitch, real ones of many."""
    monkeypatch.setattr(heard_of, "HEARD", 4)
    real = torch.cat([spectrograms(hz) for hz in ((100, 120, 140, 160), (210, 240, 270, 300))]
                     + [spectrograms((), noises=4)])
    judge.name = "judge"
    return SimpleNamespace(
        classes=("low", "high", "none"), judge=judge, device="cpu", flaws={},
        training_set=(to_uint8(real), torch.arange(3).repeat_interleave(4)),
        images=SimpleNamespace(drawn=[LOW], new_class=(LOW,)),
        pixels={LOW: to_uint8(spectrograms((120, 121, 121, 122)))},
        generator=lambda: torch.Generator().manual_seed(0))


def test_the_records(measured):
    records = {record["metric"]: record for record in METRICS["sound"].measure(measured)}
    assert set(records) == {"sound_recognition@judge", "sound_agreement@judge", "voiced_share", "f0_median", "f0_side",
                            "f0_spread"}
    assert all(record["class"] == "low" and record["n"] == 4 for record in records.values())
    assert records["f0_median"]["value"] == pytest.approx(121, abs=2)
    assert records["f0_median"]["real"] == pytest.approx(120, abs=2)  # the lower of the two in the middle
    assert records["f0_side"]["value"] == records["f0_side"]["real"] == 1
    assert records["f0_side"]["low"] < 1 and records["sound_recognition@judge"]["value"] == 1
    assert records["f0_spread"]["value"] < 3 < 20 < records["f0_spread"]["real"]
    assert "one voice again and again" in records["f0_spread"]["warning"]
