"""classifiers/groups.py and what classifiers/train.py does with it: group DRO literally, draws, last layers, cards."""

import json
import math

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from classifiers import FrozenClassifier, load_classifier
from classifiers.groups import (
    GroupDRO,
    Objective,
    balanced_rows,
    correlated_rows,
    following,
    group_accuracies,
    rate,
    retrain_last_layer,
    set_confidence,
    worst_group,
)
from classifiers.train import TrainSettings, load_images, train_classifier
from datasets.attributes import Attribute, groups_of, write_attributes
from utils import DATASETS, DatasetSpec, UserError, load_torch

# ------------------------------------------------------------------------------------- the objectives


def test_group_dro_is_the_literal_computation():
    """Three steps on numbers in plain Python: a group that is absent from a batch has a loss of 0."""
    counts = [3498, 184, 56, 1057]
    dro = GroupDRO(torch.tensor(counts), step_size=0.01, adjustment=2.0)
    batches = [([0.5, 1.5, 3.0, 0.25], [0, 0, 2, 3]), ([2.0, 4.0, 1.0, 1.0], [1, 2, 2, 0]), ([0.0, 9.0, 1.0, 2.0],
                                                                                           [3, 1, 1, 2])]
    q = [0.25] * 4
    for losses, groups in batches:
        means = []
        for g in range(4):
            own = [loss for loss, k in zip(losses, groups, strict=True) if k == g]
            means.append(sum(own) / len(own) if own else 0.0)
        q = [weight * math.exp(0.01 * (mean + 2.0 / math.sqrt(n)))
             for weight, mean, n in zip(q, means, counts, strict=True)]
        q = [weight / sum(q) for weight in q]
        wanted = sum(weight * mean for weight, mean in zip(q, means, strict=True))
        given = torch.tensor(losses, requires_grad=True)
        loss = dro.loss(given, torch.tensor(groups))
        assert loss.item() == pytest.approx(wanted, rel=1e-6)
        assert dro.q.tolist() == pytest.approx(q, rel=1e-6)
        loss.backward()  # each image pulls with its group's weight over its group's images; no gradient through q
        assert given.grad.tolist() == pytest.approx([q[g] / groups.count(g) for g in groups], rel=1e-6)


def test_group_dro_of_equal_groups_is_their_mean_and_follows_the_worst():
    dro = GroupDRO(torch.tensor([5, 5]), step_size=1.0)
    assert dro.loss(torch.tensor([2.0, 2.0]), torch.tensor([0, 1])).item() == pytest.approx(2.0)
    for _ in range(20):
        dro.loss(torch.tensor([0.0, 1.0]), torch.tensor([0, 1]))
    assert dro.q[1] > 0.999


GROUPS = torch.tensor([0] * 90 + [1] * 6 + [2] * 4)


@pytest.mark.parametrize("name", ["reweight", "dro"])
def test_each_group_is_drawn_equally_often(name):
    order = Objective(name, 100, GROUPS, 3).order(torch.Generator().manual_seed(0))
    assert len(order) == 100
    many = torch.cat([Objective(name, 100, GROUPS, 3).order(torch.Generator().manual_seed(s)) for s in range(60)])
    shares = torch.bincount(GROUPS[many]) / len(many)
    assert (shares - 1 / 3).abs().max() < 0.03  # 5 standard deviations
    assert len(set(many.tolist())) == 100  # and every image


def test_subgroup_sees_as_many_of_each_group_and_the_same_in_each_epoch():
    objective = Objective("subgroup", 100, GROUPS, 3)
    epochs = [objective.order(torch.Generator().manual_seed(s)) for s in range(2)]
    assert objective.length == 12 and sorted(epochs[0].tolist()) == sorted(epochs[1].tolist())
    assert torch.bincount(GROUPS[epochs[0]]).tolist() == [4, 4, 4] and not epochs[0].equal(epochs[1])


def test_erm_draws_every_image_once():
    assert Objective("erm", 7).order(torch.Generator().manual_seed(0)).sort().values.tolist() == list(range(7))


def test_balanced_rows_are_without_replacement():
    rows = balanced_rows(GROUPS, 4, torch.Generator().manual_seed(0))
    assert len(set(rows.tolist())) == 12 and torch.bincount(GROUPS[rows]).tolist() == [4, 4, 4]


# --------------------------------------------------------------------------------------- measuring


def test_a_correlation_takes_as_many_images_for_each_share():
    """Class 0: 5 with its own value and 3 without; class 1: 2 and 8. So 3 and 2 of them, whatever the share."""
    labels = torch.tensor([0] * 8 + [1] * 10)
    values = torch.tensor([0] * 5 + [1] * 3 + [1] * 2 + [0] * 8)
    usual = {}
    for share, counts in ((0.5, [2, 1, 1, 1]), (0.7, [2, 1, 1, 1]), (0.9, [3, 0, 2, 0]), (1.0, [3, 0, 2, 0])):
        rows = correlated_rows(labels, values, share)
        assert len(rows.unique()) == len(rows) == 5 and rows.equal(correlated_rows(labels, values, share))
        own = labels[rows] == values[rows]
        assert [int(((labels[rows] == y) & (own == fits)).sum()) for y in (0, 1) for fits in (True, False)] == counts
        usual[share] = set(rows[own].tolist())
    assert usual[0.5] < usual[0.9]


def test_rates_by_group_and_the_worst():
    hits, groups = torch.tensor([True, True, False, True, False]), torch.tensor([0, 0, 0, 2, 2])
    found = group_accuracies(hits, groups, ("a", "b", "c"))
    assert {name: (share["rate"], share["of"]) for name, share in found.items()} == {"a": (2 / 3, 3), "c": (0.5, 2)}
    assert worst_group(hits, groups) == 0.5
    share = rate(321, 642)  # Wilson's interval at a half, by its formula
    half = 1.959964 * math.sqrt(0.25 / 642 + 1.959964**2 / (4 * 642**2)) / (1 + 1.959964**2 / 642)
    assert (share["low"], share["high"]) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_following_counts_only_where_class_and_value_disagree():
    labels, values = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 0, 0])
    predicted = torch.tensor([1, 1, 0, 1, 0, 0])  # of the four that disagree three follow the value
    assert following(predicted, labels, values)["rate"] == 0.75 and following(predicted, labels, values)["of"] == 4
    assert following(labels, labels, labels) is None


# ------------------------------------------------------------------------------------ the last layer


class Linear(nn.Module):
    """The mean of each channel, and a linear layer."""

    def __init__(self, channels=3, classes=2):
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, x):
        return self.linear(x.mean((2, 3)))


def colour_world(n=400, seed=0, share=0.5):
    """Images whose red tells the class weakly and whose blue is the place: uint8 (n, 3, 4, 4), labels, places."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, generator=generator) < 0.5).long()
    places = torch.where(torch.rand(n, generator=generator) < share, labels, 1 - labels)
    colour = torch.stack([100 + 40 * labels, torch.full((n,), 90), 60 + 120 * places], 1).float()
    colour = colour + 22 * torch.randn(n, 3, generator=generator)
    images = colour.round().clamp(0, 255).to(torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4).contiguous()
    return images, labels, places


def test_a_retrained_last_layer_drops_the_place():
    images, labels, places = colour_world()
    frozen = FrozenClassifier(Linear(), 2, 3, 0, [0.0] * 3, [1.0] * 3)
    with torch.no_grad():
        frozen.model.linear.weight.copy_(torch.tensor([[0.0, 0, -9], [0.0, 0, 9]]))
        frozen.model.linear.bias.copy_(torch.tensor([4.0, -4.0]))
    groups = 2 * labels + places
    before = (frozen(images / 127.5 - 1).argmax(1) == labels)
    assert worst_group(before, groups) < 0.2  # it follows the place
    C = retrain_last_layer(frozen, images, labels, groups)
    after = (frozen(images / 127.5 - 1).argmax(1) == labels)
    assert C in (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
    assert worst_group(after, groups) > 0.7  # Phi(40 / 2 / 22) = 0.82 is the most
    weight = frozen.model.linear.weight[1] - frozen.model.linear.weight[0]
    assert weight[0] > 5 * weight[2].abs()


def test_three_classes_are_fitted_one_against_the_rest():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    colour = 60 + 130 * torch.eye(3)[labels] + 20 * torch.randn(300, 3, generator=generator)
    images = colour.clamp(0, 255).to(torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4).contiguous()
    frozen = FrozenClassifier(Linear(classes=3), 3, 3, 0, [0.0] * 3, [1.0] * 3)
    retrain_last_layer(frozen, images, labels, labels)
    assert (frozen(images / 127.5 - 1).argmax(1) == labels).float().mean() > 0.95


@pytest.mark.parametrize("wanted", [0.6, 0.95])
def test_confidence_is_set_and_no_answer_changes(wanted):
    images, _, _ = colour_world()
    torch.manual_seed(0)
    frozen = FrozenClassifier(Linear(), 2, 3, 0, [0.5] * 3, [0.1] * 3)
    before = frozen(images / 127.5 - 1)
    temperature = set_confidence(frozen, images, wanted)
    after = frozen(images / 127.5 - 1)
    assert after.softmax(1).amax(1).mean().item() == pytest.approx(wanted, abs=1e-4)
    torch.testing.assert_close(after, before / temperature, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="--confidence 0.4 is no confidence of 2 classes"):
        set_confidence(frozen, images, 0.4)


# ----------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The spec and the data root of colour images: in train the place agrees with the class in 95 of 100."""
    root = tmp_path_factory.mktemp("colours")
    (root / "colours").mkdir()
    for seed, (split, share) in enumerate((("train", 0.95), ("val", 0.5), ("test", 0.5))):
        images, labels, places = colour_world(400, seed, share)
        images = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
        with h5py.File(root / "colours" / f"{split}.h5", "w") as file:
            file["images"], file["labels"] = images.numpy(), labels.numpy()
            file.attrs["classes"] = ["low", "high"]
            write_attributes(file, {"place": Attribute(("low", "high"), places),
                                    "three": Attribute(("a", "b", "c"), torch.arange(400) % 3),
                                    "fits": Attribute(("yes", "no"), (labels != places).long())}, "half of them")
    DATASETS["colours"] = DatasetSpec("colours", 16, 3, ("low", "high"))
    yield root
    del DATASETS["colours"]


def settings(root, **changes):
    return TrainSettings(**{"dataset": "colours", "data_root": str(root), "out": str(root / "c.pt"), "epochs": 6,
                            "lr": 0.05, "num_attacked": 50, "device": "cpu", "groups": "place", **changes})


def test_erm_follows_the_place_and_balanced_draws_do_not(world):
    found = {}
    for objective in ("erm", "reweight", "dro"):
        frozen, card = train_classifier(settings(world, objective=objective, select=objective == "dro"))
        found[objective] = card["groups"]
    assert found["erm"]["following"]["rate"] > found["reweight"]["following"]["rate"] + 0.2
    assert found["erm"]["following"]["rate"] > found["dro"]["following"]["rate"] + 0.2
    worst = {name: groups["accuracy"][groups["worst"]]["rate"] for name, groups in found.items()}
    assert worst["erm"] < worst["reweight"] - 0.15 and worst["erm"] < worst["dro"] - 0.15
    assert found["erm"]["chosen"] == {} and 1 <= found["dro"]["chosen"]["epoch"] <= 6
    # the card stands in the file, and counts what it was trained on
    card = json.loads((world / "c.pt.json").read_text())
    assert card["groups"] == found["dro"] and card["images_missing"] == "half of them"
    assert sum(card["groups"]["train_images"].values()) == 400
    assert sum(share["of"] for share in card["groups"]["accuracy"].values()) == 400


def test_the_epoch_is_the_best_for_the_worst_group(world, monkeypatch):
    """Worst groups of 0.5, 0.7, 0.6: the second epoch's weights are written."""
    kept, worsts = [], iter([0.5, 0.7, 0.6])

    def keep(path, state):
        kept.append(state["averaged"]["linear.bias"].clone())

    monkeypatch.setattr("classifiers.train.worst_group", lambda *a: next(worsts))
    monkeypatch.setattr("classifiers.train.save_torch", keep)
    frozen, card = train_classifier(settings(world, epochs=3))
    assert card["groups"]["chosen"] == {"epoch": 2, "worst_group_accuracy": 0.7}
    away = [(frozen.model.linear.bias - bias).abs().max().item() for bias in kept]
    assert away[1] < 1e-3 < min(away[0], away[2])  # the file holds half floats


def test_labels_can_be_the_place_and_the_confidence_is_written(world):
    frozen, card = train_classifier(settings(world, labels="place", groups="fits", confidence=0.8, select=False))
    assert card["clean_accuracy"]["overall"] > 0.9  # blue tells the place well
    assert card["temperature"] > 0
    stored = load_classifier(world / "c.pt", num_classes=2)
    with h5py.File(world / "colours" / "val.h5") as file:
        images = torch.from_numpy(file["images"][:])
    assert stored(images / 127.5 - 1).softmax(1).amax(1).mean().item() == pytest.approx(0.8, abs=0.03)


def test_dfr_and_subgroup_by_card(world):
    _, card = train_classifier(settings(world, objective="dfr"))
    assert card["dfr_C"] in (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01) and card["groups"]["chosen"] == {}
    groups = card["groups"]
    assert groups["accuracy"][groups["worst"]]["rate"] > 0.6
    with pytest.raises(UserError, match="larger than the [0-9]+ training images"):
        train_classifier(settings(world, objective="subgroup"))
    _, card = train_classifier(settings(world, objective="subgroup", batch_size=8, epochs=20))
    assert card["objective"] == "subgroup"


def test_only_filters_the_training_images_alone(world):
    _, card = train_classifier(settings(world, only=("fits=yes",), epochs=1, select=False))
    counts = card["groups"]["train_images"]
    assert counts["low, place high"] == counts["high, place low"] == 0 and card["train_images"] == sum(counts.values())
    assert card["test_images"] == 400 and "--only fits=yes" in card["command"] and "--no-select" in card["command"]


def test_a_correlation_is_of_the_training_images_alone(world):
    own = settings(world, correlation=1.0, epochs=1, select=False, batch_size=8, num_attacked=1)
    _, card = train_classifier(own)
    all_usual = list(card["groups"]["train_images"].values())
    half = torch.bincount(load_images(own, "train", (), 0.5).groups, minlength=4).tolist()
    assert all_usual == [half[0] + half[1], 0, 0, half[2] + half[3]] and card["train_images"] == sum(half)
    assert all(abs(half[k] - half[k + 1]) <= 1 for k in (0, 2))
    assert card["test_images"] == 400 and "--correlation 1.0" in card["command"]


def test_a_stopped_training_goes_on_with_the_groups_weights(world, monkeypatch):
    """Stopped in the second epoch and started again, dro ends in the weights of a training that was not."""
    whole, _ = train_classifier(settings(world, objective="dro", epochs=3))
    wanted = {name: value.clone() for name, value in whole.model.state_dict().items()}

    class Stopped(Exception):
        pass

    from classifiers import train
    advance, steps = train.Fit.advance, []

    def counted(self):
        if len(steps) == 8:
            train.save_torch(f"{self.settings.out}.progress", self.state())
            raise Stopped
        steps.append(1)
        return advance(self)

    monkeypatch.setattr(train.Fit, "advance", counted)
    with pytest.raises(Stopped):
        train_classifier(settings(world, objective="dro", epochs=3))
    assert load_torch(world / "c.pt.progress")["objective"]["q"].sum().item() == pytest.approx(1)
    monkeypatch.setattr(train.Fit, "advance", advance)
    resumed, _ = train_classifier(settings(world, objective="dro", epochs=3))
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, wanted[name]), name


@pytest.mark.parametrize("changes, message", [
    ({"objective": "dro", "groups": ""}, "--objective dro treats groups of images; name the attribute"),
    ({"objective": "drow"}, "did you mean 'dro'"),
    ({"groups": "plac"}, "no attribute 'plac' .did you mean 'place'"),
    ({"labels": "three"}, "values a, b, c, and colours has 2 classes"),
    ({"objective": "dro", "only": ("fits=yes",)}, "train images have none of the group low, place high; high, place"),
    ({"correlation": 0.9, "groups": ""}, "--correlation 0.9 is a share, at most 1"),
    ({"correlation": 1.1}, "--correlation 1.1 is a share, at most 1"),
    ({"correlation": 0.9, "groups": "three"}, "--correlation with --groups three: the attribute has the values a, b"),
    ({"correlation": 0.9, "only": ("fits=yes",)}, "low, place high; high, place low, which --correlation draws from"),
    ({"only": ("fits=maybe",)}, "no value 'maybe'"),
    ({"only": ("fits",)}, "is no filter"),
    ({"split": "val"}, "--split val is what --validation names"),
    ({"validation": "other"}, "the other images of colours are missing"),
    ({"init": "imagenet"}, "--init imagenet is for --arch efficientnet-lite0"),
    ({"dro_step_size": 0.0}, "--dro_step_size is 0.0; it must be positive"),
])
def test_settings_that_do_not_go_together(world, changes, message):
    with pytest.raises(UserError, match=message):
        train_classifier(settings(world, **changes))


def test_what_was_trained_on_is_not_measured_on(world):
    with h5py.File(world / "colours" / "train.h5") as file, h5py.File(world / "colours" / "again.h5", "w") as again:
        for name in ("images", "labels", "attributes"):
            file.copy(name, again)
        again.attrs["classes"] = file.attrs["classes"]
    with pytest.raises(UserError, match="400 of the 400 images of --split train and of --test again are the same"):
        train_classifier(settings(world, test="again"))


def test_the_groups_of_a_class_and_a_value():
    assert np.array_equal(groups_of(torch.tensor([0, 1, 1]), Attribute(("a", "b", "c"), torch.tensor([2, 0, 2]))),
                          [2, 3, 5])
