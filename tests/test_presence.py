"""metrics/presence.py: the correction by hand, and a planted value that the scorers must find, and find absent."""

import h5py
import numpy as np
import pytest
import torch

import metrics.presence as presence
from classifiers.groups import rate
from datasets.attributes import Attribute, write_attributes
from metrics.presence import Presence, degraded, greyed, histogram, rogan_gladen
from utils import DATASETS, DatasetSpec, UserError


def exact(value, n=10**9):
    return {"rate": value, "of": n}


def test_rogan_gladen_by_hand():
    # of 40 % true, a scorer of sensitivity 0.9 and specificity 0.8 finds 0.36 + 0.12
    found = rogan_gladen(exact(0.48), exact(0.9), exact(0.8))
    assert found["rate"] == pytest.approx(0.4) and found["high"] - found["low"] < 1e-3
    assert rogan_gladen(exact(0.1), exact(0.9), exact(0.8))["rate"] == 0  # below the false alarms
    assert rogan_gladen(exact(0.95), exact(0.9), exact(0.8))["rate"] == 1
    assert rogan_gladen(exact(0.5), exact(0.5), exact(0.5))["rate"] is None


def test_the_corrected_interval_covers_the_truth():
    """Of 400 draws of all three counts, at a true rate of 0.3, the interval holds it in about 95 %."""
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        found = rogan_gladen(rate(random.binomial(500, 0.3 * 0.88 + 0.7 * 0.15), 500),
                             rate(random.binomial(194, 0.88), 194), rate(random.binomial(194, 0.85), 194))
        held += found["low"] <= 0.3 <= found["high"]
    assert 0.92 <= held / 400 <= 0.99


def test_histogram_counts_colours():
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, 0, 0] = 255  # two red pixels, two black ones
    shares = histogram(image)[0].square()
    assert shares.nonzero()[:, 0].tolist() == [0, 3] and shares[[0, 3]].tolist() == pytest.approx([0.5] * 2)


def test_the_ring_hides_the_centre_alone():
    x = torch.ones(1, 3, 64, 64)
    hidden = greyed(x)
    assert hidden[:, :, 12:52, 12:52].abs().max() == 0 and hidden.sum() == 3 * (64**2 - 40**2)
    assert x.min() == 1  # the image given is as it was


def test_degraded_images_stay_near_and_follow_their_seed():
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.avg_pool2d(images.float(), 5, 1, 2).to(torch.uint8)
    one, two = (degraded(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert one.equal(two) and one.shape == images.shape and one.isfinite().all()
    assert not one.equal(degraded(images, torch.Generator().manual_seed(4)))
    assert (one.mean((1, 2, 3)) - (images / 127.5 - 1).mean((1, 2, 3))).abs().max() < 0.3


def world_images(n, seed):
    """Classes are a bright or a dark square in the centre, water is blue around it: images, labels, water."""
    generator = torch.Generator().manual_seed(seed)
    labels, water = (torch.randint(2, (n,), generator=generator) for _ in range(2))
    images = 90 + 25 * torch.randn(n, 3, 16, 16, generator=generator)
    images[:, 2] += 60 * water[:, None, None]
    images[:, :, 5:11, 5:11] = 60 + 120 * labels[:, None, None, None].float()
    return images.clamp(0, 255).to(torch.uint8), labels, water


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    root = tmp_path_factory.mktemp("ponds")
    (root / "ponds").mkdir()
    for seed, split in enumerate(("scorer", "calibration")):
        images, labels, water = world_images(300, seed)
        with h5py.File(root / "ponds" / f"{split}.h5", "w") as file:
            file["images"], file["labels"] = images.numpy(), labels.numpy()
            file.attrs["classes"] = ["dark", "bright"]
            write_attributes(file, {"place": Attribute(("land", "water"), water),
                                    "class": Attribute(("dark", "bright"), labels)})
    DATASETS["ponds"] = DatasetSpec("ponds", 16, 3, ("dark", "bright"))
    yield root
    del DATASETS["ponds"]


def test_a_planted_value_is_found_in_its_share(birds, monkeypatch):
    monkeypatch.setattr(presence, "STEPS", 40)
    measured = Presence("place=water", "ponds", birds)
    for name in presence.SCORERS:
        for label in (0, 1):
            known = measured.calibration[name][label]
            assert min(known["sensitivity"]["rate"], known["specificity"]["rate"]) > 0.9, (name, label)
    images, labels, water = world_images(2000, 9)
    wet, dry = (images[(labels == 1) & (water == k)] for k in (1, 0))
    mixed = torch.cat([wet[:90], dry[:210]])
    for name, found in measured.rates(mixed, 1).items():
        assert found["corrected"]["low"] <= 0.3 <= found["corrected"]["high"], name
        assert found["found"]["of"] == 300 and found["corrected"]["high"] - found["corrected"]["low"] < 0.2
    # the second time nothing is trained
    monkeypatch.setattr(presence, "train_network", None)
    again = Presence("place=water", "ponds", birds)
    assert again.calibration == measured.calibration and len(list((birds / "ponds/statistics").iterdir())) == 1


class Fakes:
    """A run's images, in the place of metrics.images.RunImages: of each class `num`, with water or without."""

    left_out, num = [], 100

    def __init__(self, wet, drawn=(0, 1)):
        self.drawn, (images, labels, water) = drawn, world_images(1000, 4)
        self.images = {y: images[(labels == y) & (water == wet)] for y in drawn}

    def read(self, label, start, stop):
        return self.images[label][start:stop]


def test_fakes_of_known_value_calibrate_too(birds, monkeypatch):
    """Runs that were called by the wrong value: a scorer that is right on real images is always wrong on theirs."""
    monkeypatch.setattr(presence, "STEPS", 40)
    wet, dry = ({"dataset": "ponds", "only": (f"place={value}",)} for value in ("water", "land"))
    right, wrong = (Presence("place=water", "ponds", birds, runs=runs) for runs in (
        {"a": (wet, Fakes(1)), "b": (dry, Fakes(0)), "c": (dry, Fakes(0))},
        {"a": (wet, Fakes(0)), "b": (dry, Fakes(1))}))
    for name in presence.SCORERS:
        assert right.calibration[name] == wrong.calibration[name]  # that of real images
        for label in (0, 1):
            known, inverted = (of.calibration[f"{name}_by_fakes"][label] for of in (right, wrong))
            assert (known["sensitivity"]["of"], known["specificity"]["of"]) == (100, 200)
            assert min(share["rate"] for share in known.values()) > 0.9 > 0.1 > inverted["sensitivity"]["rate"]
    images, labels, water = world_images(500, 9)
    found = right.rates(images[labels == 1], 1), wrong.rates(images[labels == 1], 1)
    truth = water[labels == 1].float().mean().item()
    assert found[0]["whole"] == found[1]["whole"] and found[1]["whole_by_fakes"]["corrected"]["rate"] is None
    assert found[0]["whole_by_fakes"]["corrected"]["rate"] == pytest.approx(truth, abs=0.05)


@pytest.mark.parametrize("config, drawn, message", [
    ({"dataset": "lakes", "only": ()}, (0, 1), "draws lakes, not ponds"),
    ({"dataset": "ponds"}, (0, 1), "RUN was shown images of every place, so that what its fakes hold is not known"),
    ({"dataset": "ponds", "only": ("place=water",)}, (0, 1), "no fakes of dark without place water"),
    ({"dataset": "ponds", "only": ("place=land",)}, (1,), "no fakes of dark with place water; give a run"),
])
def test_fakes_of_unknown_value_are_refused(birds, config, drawn, message):
    with pytest.raises(UserError, match=message):
        presence.known_fakes({"RUN": (config, Fakes(0, drawn))}, "ponds", "place", "water")


@pytest.mark.parametrize("text, message", [
    ("place", "names no attribute and value"), ("plac=water", "did you mean 'place'"),
    ("place=watr", "no value 'watr' .did you mean 'water'"),
    ("class=dark", "every image of dark in the scorer split of ponds is of class dark"),
])
def test_what_cannot_be_measured(birds, text, message):
    with pytest.raises(UserError, match=message):
        Presence(text, "ponds", birds)
