"""Measurements of images drawn from features: hand-computed, and drawers whose answer is known."""

import pytest
import torch
from torch import nn

from classifiers.frozen import FrozenClassifier
from features import Bank
from metrics.feature_agreement import (
    STEPS,
    Seen,
    agreement,
    companions,
    measure_pairs,
    measure_walks,
    nearest,
    pixel_ranks,
    ranks,
    walk_figures,
    walk_targets,
    within,
)
from utils import to_unit_range


def linear_C(seed, features=6):
    """A FrozenClassifier of 8x8 images with `features` random linear features and 3 classes."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, features), nn.Linear(features, 3))
    return FrozenClassifier(model, 3, 1, 8, [0.5], [0.5])


@pytest.fixture(scope="module")
def world():
    """(images in [-1, 1], Seen by the probed network, Seen by the judge)."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (400, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images = to_unit_range(pixels)
    networks = {"": linear_C(0), "judge": linear_C(1)}
    return images, *(Seen.of(name, C, Bank.of_images(C, [pixels]), images) for name, C in networks.items())


def figures(records):
    return {r["metric"]: r["value"] for r in records}


def test_ranks_by_hand():
    references = torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0]])
    found = torch.tensor([[2.0, 0.1], [2.0, 0.1], [0.0, -1.0]])
    assert ranks(found, references, torch.tensor([0, 1, 3])).tolist() == [1, 3, 2]  # of equal cosines the worse place
    assert ranks(torch.ones(1, 2), torch.ones(5, 2), torch.tensor([2])).tolist() == [5]


def test_knowing_the_class_alone_is_nothing_within_it():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1000) % 4
    means = 3 * torch.randn(4, 5, generator=generator)
    asked = means[labels] + torch.randn(1000, 5, generator=generator)
    found = means[labels]
    between, inside = means.var(0, correction=0), torch.ones(5)
    # a G that draws the class's mean gets 2 B / (B + T)
    expected = (2 * between / (2 * between + inside)).mean().item()
    assert agreement(found, asked) == pytest.approx(expected, abs=0.03)
    assert agreement(within(found, labels, means), within(asked, labels, means)) == pytest.approx(0, abs=1e-3)


def test_walk_figures_by_hand():
    asked = torch.tensor([[0.0, 1, 2], [0, 1, 2], [0, 1, 2]])
    obtained = torch.tensor([[1.0, 2, 3], [2, 1, 0], [5, 5, 5]])
    others = torch.stack((0.5 * asked, torch.zeros(3, 3)), 2)
    found = walk_figures(asked, obtained, others)
    assert found["correlation"].tolist() == pytest.approx([1, -1, 0], abs=1e-6)
    assert found["monotone"].tolist() == [1, 0, 0]
    assert found["leakage"].tolist() == pytest.approx([0.25] * 3)


def test_pixel_ranks(world):
    images = world[0]
    sources = torch.arange(10)
    assert pixel_ranks(images[:10] + 0.3, images, sources).tolist() == [1] * 10  # brighter is still the same
    assert pixel_ranks(images[1:11], images, sources).min() > 1


def test_walk_targets(world):
    space = world[1].space
    targets, asked = walk_targets(space, world[1].f[:3], 1)
    assert targets.shape == (3, STEPS, len(space)) and (asked.diff() > 0).all()
    assert torch.allclose(targets @ space.axes[:, 1], asked.expand(3, -1), atol=1e-4)


def copy_of(x, f, labels, seeds):
    return x


def test_a_perfect_drawer_and_those_that_know_nothing(world):
    """Images that solve for the features agree wholly; a copy keeps the source and none of the target's features."""
    images, seen, judge = world
    weight = seen.C.model[1].weight  # raw features = weight @ (2 x - 1 in [0, 1] units), that is weight @ x
    inverse = torch.linalg.pinv(weight)

    def perfect(x, f, labels, seeds):
        raw = f * seen.space.std + seen.space.mean
        change = raw - (x.flatten(1) @ weight.T + seen.C.model[1].bias)
        return x + (change @ inverse.T).view_as(x)

    def measured(draw):
        return figures(measure_pairs(draw, images, seen, judge, 200, torch.Generator().manual_seed(0))[0])

    found = measured(perfect)
    assert found["feature_ccc"] > 0.999 and found["feature_ccc_within"] > 0.999
    assert found["feature_mrr"] == 1
    assert found["feature_cycle_l1"] == pytest.approx(0, abs=1e-5) == found["feature_self_l1"]
    copy = measured(copy_of)
    assert abs(copy["feature_ccc"]) < 0.1 and copy["feature_mrr"] < 0.1
    assert copy["feature_identity_top1"] == 1 and copy["feature_both_at_10"] < 0.1
    records, _ = measure_pairs(copy_of, images, seen, judge, 100, torch.Generator().manual_seed(0))
    distance = next(r for r in records if r["metric"] == "judged_feature_fd@judge")
    # a copy is a real image: its distance is that of real images to others, which is not 0
    assert distance["value"] == pytest.approx(distance["real"]) and distance["real"] > 0.01
    shuffled = measured(lambda x, f, labels, seeds: perfect(x, f.roll(1, 0), labels, seeds))
    assert abs(shuffled["feature_ccc"]) < 0.1
    walks = figures(measure_walks(perfect, images, seen, judge, 20, torch.Generator().manual_seed(0)))
    assert walks["walk_correlation"] > 0.999 and walks["walk_monotone"] == 1
    assert walks["walk_leakage"] < 1e-3
    still = figures(measure_walks(copy_of, images, seen, judge, 20, torch.Generator().manual_seed(0)))
    assert abs(still["walk_correlation"]) < 1e-3 and still["walk_monotone"] == 0


def test_intervals_hold_their_value(world):
    images, seen, judge = world
    records, fakes = measure_pairs(copy_of, images, seen, judge, 50, torch.Generator().manual_seed(0))
    assert fakes.shape == (50, 1, 8, 8)
    for r in records:
        assert r["low"] is None or r["low"] <= r["value"] + 0.05
        assert r["high"] is None or r["high"] >= r["value"] - 0.05
    assert next(r["real"] for r in records if r["metric"] == "judged_feature_class@judge") > 0


def test_companions_are_of_the_same_label_and_another():
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    rows = torch.tensor([0, 1, 2, 4, 5, 3, 0, 0, 0])
    found = companions(labels, rows, torch.Generator().manual_seed(0))
    assert torch.equal(labels[found], labels[rows])
    assert (found != rows).tolist() == [True, True, True, True, True, False, True, True, True]  # 3 is alone
    assert len(set(found[[0, 6, 7, 8]].tolist())) == 2


def test_variety_of_images_that_are_drawn(world):
    """A drawer that hears its latents differs from itself by what they add, one that ignores them by nothing."""
    images, seen, judge = world

    def noisy(scale):
        def draw(x, f, labels, seeds):
            noise = [torch.randint(2, (1, 8, 8), generator=torch.Generator().manual_seed(i)) for i in seeds.tolist()]
            return images[:1] / 2 + scale * torch.stack(noise)
        return draw

    def measured(draw, known):
        records, _ = measure_pairs(draw, images, seen, judge, 60, torch.Generator().manual_seed(0), known)
        return {r["metric"]: r for r in records}

    found = measured(noisy(0.5), images)
    # two of 0 and 0.5 differ in half of the pixels, by a quarter of the range
    assert found["feature_diversity"]["value"] == pytest.approx(0.125, abs=0.01)
    assert found["feature_diversity"]["real"] == pytest.approx(1 / 3, abs=0.02)  # of uniform pixels
    assert found["judged_feature_diversity@judge"]["value"] > 0.1
    assert not any(name.startswith(("feature_identity", "feature_cycle", "feature_both")) for name in found)
    ignores = measured(noisy(0.0), images[:1] / 2)
    assert ignores["feature_diversity"]["value"] == ignores["judged_feature_diversity@judge"]["value"] == 0
    assert ignores["feature_nearest"]["value"] < 1e-3 < ignores["feature_nearest"]["real"]


def test_nearest_by_hand():
    black, white = torch.full((1, 1, 12, 24), -1.0), torch.full((1, 1, 12, 24), 1.0)
    halves = torch.cat((black[..., :12], white[..., :12]), 3)
    # less their means black and white are the same; half of the range lies between either and the halves
    assert nearest(torch.cat((halves, white)), black).tolist() == pytest.approx([0.5, 0], abs=1e-6)
    assert nearest(halves, torch.cat((black, halves))).tolist() == pytest.approx([0], abs=1e-6)
