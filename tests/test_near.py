"""Near copies: each kind of planted leak is found under another label, and nothing on clean sets."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasets import AbsenceError, leave_out, near
from datasets.near import KINDS, View, correlation, grey, in_views, middles, nearest_copies, sampled, threshold, views
from datasets.prepare import digits
from utils import DatasetSpec

SPEC = DatasetSpec("toy", 32, 3, ("ant", "bee", "cat"))


class Source:
    """An image set in memory: uint8 images (N, C, H, W) and labels (N,)."""

    def __init__(self, images, labels):
        self.images, self.labels, self.image_shape = images, torch.as_tensor(labels), tuple(images.shape[1:])

    def __len__(self):
        return len(self.labels)

    def name(self, i):
        return f"image {int(i)}"

    def read(self, indices):
        return self.images[torch.as_tensor(indices)]


def pictures(count, channels=3, size=32, seed=0):
    """Images (count, channels, size, size) uint8 with structure at all scales, as photographs have."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, channels, size, size)
    for side in (2, 4, 8, 16, 32):
        noise = torch.randn(count, channels, side, side, generator=generator)
        shared = torch.randn(count, 1, side, side, generator=generator)
        total += F.interpolate(noise + 2 * shared, (size, size), mode="bicubic") / side ** 0.7
    low, high = (edge(total.flatten(1), dim=1).view(-1, 1, 1, 1) for edge in (torch.amin, torch.amax))
    return ((total - low) / (high - low) * 220 + 15).to(torch.uint8)


def noisy(images):
    draw = torch.Generator().manual_seed(3)
    return (images.float() + 6 * torch.randn(images.shape, generator=draw)).clamp(0, 255).to(torch.uint8)


# those that the audit tries itself, and others
PLANTED = {
    **KINDS,
    "mirrored JPEG": lambda images: near.encoded(images.flip(3), "JPEG", 60),
    "darker": lambda images: (images.float() * 0.6).to(torch.uint8),
    "paler": lambda images: 255 - (255 - images.float()).mul(0.8).to(torch.uint8),
    "smaller and back": lambda images: F.interpolate(F.interpolate(images.float(), 24, mode="area"), 32,
                                                     mode="bilinear").to(torch.uint8),
    "shifted by 3": lambda images: F.pad(images.float(), (4, 4, 4, 4), mode="reflect")[:, :, 1:33, 7:39].to(
        torch.uint8),
    "black border": lambda images: F.pad(images.float(), (4, 4, 4, 4))[:, :, 6:38, 5:37].to(torch.uint8),
    "noise": noisy,
}
EACH = 20  # copies of a kind


def leaky(kinds, size=32, channels=3):
    """A set of 180 images of three classes, and at its end EACH copies of images of class 2 under label 0 a kind."""
    images = pictures(180, channels, size)
    labels = torch.arange(180) % 3
    copies = torch.cat([PLANTED[kind](images[labels == 2][:EACH]) for kind in kinds])
    return Source(torch.cat((images, copies)), torch.cat((labels, torch.zeros(len(copies), dtype=torch.int64))))


def removed(audit):
    return [entry["index"] for entry in audit["near_copies"]["removed"]]


@pytest.fixture(scope="module")
def audited():
    """A set with copies of each kind, and what leave_out makes of it."""
    source = leaky(PLANTED)
    return source, *leave_out(source, SPEC, [2])


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_copies_are_left_out(audited, kind):
    _, indices, audit, _ = audited
    first = 180 + EACH * list(PLANTED).index(kind)
    found = set(removed(audit)) & set(range(first, first + EACH))
    assert len(found) >= EACH - 1 and not found & set(indices.tolist())


def test_nothing_else_is_left_out_and_each_copy_is_named(audited):
    source, indices, audit, guard = audited
    assert min(removed(audit)) >= 180 and set(indices.tolist()) >= {i for i in range(180) if i % 3 != 2}
    entry = audit["near_copies"]["removed"][0]
    assert (entry["image"], entry["label"], entry["like"], entry["like_split"], entry["like_index"]) == \
        ("image 180", 0, "image 2", "train", 2)
    assert entry["correlation"] >= audit["near_copies"]["threshold"] >= near.LEAST
    with pytest.raises(AbsenceError, match="left-out image image 180"):
        guard.check(source.images[180:181], torch.tensor([0]))
    guard.check(source.read(indices), source.labels[indices])
    again = Source(source.images[indices], source.labels[indices])
    assert leave_out(again, SPEC, [2])[1]["sha256"] == audit["sha256"]


@pytest.mark.parametrize("size, channels", [(16, 1), (16, 3), (64, 3)])
def test_other_sizes_and_grey_sets(size, channels):
    spec = DatasetSpec("toy", size, channels, SPEC.classes)
    _, audit, _ = leave_out(leaky(("JPEG, quality 75", "shifted by a pixel", "mirrored"), size, channels), spec, [2])
    assert len(removed(audit)) >= 3 * EACH - 3 and min(removed(audit)) >= 180


def test_a_clean_set_loses_nothing_and_the_audit_says_what_it_would_have_found():
    indices, audit, _ = leave_out(Source(pictures(180), torch.arange(180) % 3), SPEC, [2])
    assert len(indices) == 120 and removed(audit) == []
    would = audit["near_copies"]["would_find"]
    assert list(would) == list(KINDS) and min(would.values()) > 0.9
    assert "left-out images, planted to try this, it found: 100% (JPEG, quality 75)" in audit["statement"]
    assert audit["statement"].startswith("No image of cat was used: 60 images were left out by label")


def test_the_digits_hold_no_near_copy_of_a_seven():
    train = digits()["train"]
    images = torch.from_numpy(np.stack([train.read(i) for i in range(len(train.labels))]))
    spec = DatasetSpec("digits", 16, 1, tuple("0123456789"))
    indices, audit, _ = leave_out(Source(images, train.labels), spec, [7])
    assert removed(audit) == [] and len(indices) == len(images) - (train.labels == 7).sum()
    assert audit["near_copies"]["would_find"]["mirrored"] == 1


def test_copies_of_test_images_are_found():
    images = pictures(60)
    test = Source(pictures(30, seed=5), torch.full((30,), 2))
    leaked = torch.cat((test.images[:1], near.encoded(test.images[1:4], "JPEG", 75)))
    source = Source(torch.cat((images, leaked)), torch.cat((torch.arange(60) % 3, torch.tensor([0, 0, 1, 1]))))
    indices, audit, _ = leave_out(source, SPEC, [2], test=test)
    assert audit["duplicates_removed"] == [{"image": "image 60", "equals": "image 0"}]
    assert removed(audit) == [61, 62, 63] and audit["near_copies"]["removed"][0]["like_split"] == "test"
    assert audit["test_images_compared"] == 30 and audit["unseen_images_left_out"] == 20 and len(indices) == 40
    assert removed(leave_out(source, SPEC, [2])[1]) == []


def test_a_set_without_any_image_of_the_class_says_that_nothing_could_be_compared():
    _, audit, _ = leave_out(Source(pictures(60), torch.arange(60) % 2), SPEC, [2])
    assert audit["near_copies"] is None and "copies under other labels could not be looked for" in audit["statement"]


def test_one_seen_class_is_its_own_measure():
    _, audit, _ = leave_out(Source(pictures(90), 1 + torch.arange(90) % 2), SPEC, [0, 2])
    assert near.LEAST <= audit["near_copies"]["threshold"] <= near.MOST and removed(audit) == []


# ------------------------------------------------------------------------------------------- the parts


def test_correlation_by_hand():
    a = torch.tensor([[[0.0, 10.0], [20.0, 30.0]]])
    mask = torch.tensor([[[True, True], [True, False]]])
    # over 0, 10, 20 and 5, 5, 35: deviations -10, 0, 10 and -10, -10, 20; 300 / sqrt(200 * 600)
    assert correlation(a, torch.tensor([[[5.0, 5.0], [35.0, 9.0]]]), mask).item() == pytest.approx(300 / 120000 ** 0.5)
    assert correlation(a, torch.full((1, 2, 2), 7.0), mask).item() == 0


def test_grey_levels_by_hand():
    image = torch.tensor([100, 50, 200], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    assert grey(image).shape == (1, 32, 32)
    assert grey(image)[0, 3, 4].item() == pytest.approx(0.299 * 100 + 0.587 * 50 + 0.114 * 200, abs=1e-3)


@pytest.mark.parametrize("size", [16, 32])
def test_a_view_shows_what_a_copy_in_it_holds(size):
    images = grey(pictures(3, size=size))
    at = {view: place for place, view in enumerate(views(size))}
    assert torch.allclose(in_views(images)[:, at[View(False, size, 0, 0)]], middles(images), atol=1e-5)
    assert torch.allclose(in_views(images)[:, at[View(True, size, 0, 0)]], middles(images.flip(2)), atol=1e-5)
    moved = images.roll((-1, 2), (1, 2))  # what it shows lies a pixel lower and two to the left
    wide = torch.tensor([1.0]).expand(3)
    if size == 32:
        assert torch.allclose(in_views(images)[:, at[View(False, 32, 1, -2)]], middles(moved), atol=1e-5)
    shown, inside = sampled(images, 0 * wide, wide, wide, -2 * wide)
    assert torch.allclose(shown[inside], moved[inside], atol=1e-3)
    assert inside[0].sum() == (size - 1) * (size - 2)


def test_the_threshold_rises_where_unlike_images_are_alike():
    unlike = torch.linspace(0, 0.9, 1000)
    assert threshold(unlike, 10) == (near.LEAST, 10)
    alike = torch.cat((unlike, torch.full((30,), 0.977), torch.full((50,), 0.995)))  # the last are copies
    limit, expected = threshold(alike, 1)
    assert limit == pytest.approx(0.98) and expected == 1
    limit, expected = threshold(torch.full((100,), 0.9899), 2)
    assert limit == pytest.approx(near.MOST) and expected == 2


def test_images_without_contrast_resemble_nothing():
    flat = torch.full((4, 32, 32), 90.0)
    found, _ = nearest_copies(flat, torch.zeros(4), flat, torch.ones(4))
    assert found.tolist() == [0] * 4


def test_an_image_is_no_copy_of_one_of_its_own_label():
    images = grey(pictures(6))
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    same, _ = nearest_copies(images, labels, images, labels)
    other, places = nearest_copies(images, labels, images, 1 - labels)
    assert same.max() < 0.9 and other.min() > 0.99 and places.tolist() == list(range(6))
