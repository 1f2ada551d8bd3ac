"""Feature spaces, banks and targets, on features made by hand."""

import pytest
import torch
from torch import nn

from classifiers.answers import Answers
from classifiers.frozen import FrozenClassifier
from features import LEVELS, Bank, FeatureSpace, draw_targets, raw_features, require_linear
from utils import UserError


def rows(n=400):
    """Features (n, 4): the second dead, the first and the third alike, the fourth of its own."""
    a, b = torch.randn(2, n, generator=torch.Generator().manual_seed(0))
    return torch.stack((3 * a + 1, torch.full_like(a, 2.0), a + 0.1 * b, 5 * b), 1)


def brightness():
    """A FrozenClassifier of 4x4 images whose two features are the mean of the left half and of the right, in [0, 1]."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False), nn.Linear(2, 2))
    left = torch.tensor([1.0, 1, 0, 0]).repeat(4) / 8
    model[1].weight.data = torch.stack((left, 1 / 8 - left))
    return FrozenClassifier(model, 2, 1, 4, [0.0], [1.0])


def test_a_space_standardises_and_leaves_dead_components_out():
    raw = rows()
    space = FeatureSpace.fitted(raw)
    assert space.alive.tolist() == [0, 2, 3] and len(space) == 3
    f = space.standardised(raw)
    assert f.mean(0).abs().max() < 1e-5 and f.std(0, correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-4)


def test_axes_are_orthonormal_and_sorted():
    space = FeatureSpace.fitted(rows())
    assert torch.allclose(space.axes.T @ space.axes, torch.eye(3), atol=1e-5)
    variances = space.standardised(rows()).matmul(space.axes).var(0, correction=0)
    assert variances.tolist() == sorted(variances.tolist(), reverse=True) and variances[0] > 1.9


def test_a_walk_moves_one_coordinate_and_nothing_else():
    raw = rows()
    space = FeatureSpace.fitted(raw)
    f = space.standardised(raw)[:5]
    before = f.clone()
    moved = space.moved(f, 1, 2.5)
    assert torch.equal(f, before)  # its input is left as it was
    coordinates, others = space.coordinates(moved, 3), space.coordinates(f, 3)
    assert coordinates[:, 1].tolist() == pytest.approx([2.5] * 5, abs=1e-4)
    assert torch.allclose(coordinates[:, [0, 2]], others[:, [0, 2]], atol=1e-4)


def test_quantiles_and_what_does_not_exist():
    space = FeatureSpace.fitted(rows())
    coordinate = space.standardised(rows()) @ space.axes[:, 0]
    assert space.quantile(0, 0.9).item() == pytest.approx(coordinate.quantile(0.9).item(), abs=1e-3)
    assert space.quantile(0, 1.0).item() == pytest.approx(coordinate.max().item(), abs=1e-4)
    assert space.quantiles.shape == (LEVELS, 3)
    with pytest.raises(UserError, match="component 3 does not exist.* 0 to 2"):
        space.moved(torch.zeros(1, 3), 3, 0.0)
    with pytest.raises(UserError, match="quantile 90"):
        space.quantile(0, 90)


def test_errors_of_features():
    with pytest.raises(UserError, match="none of the classifier's 3 features varies"):
        FeatureSpace.fitted(torch.ones(5, 3))
    with pytest.raises(UserError, match="features of 3 components .* at least 4"):
        FeatureSpace.fitted(rows()).standardised(torch.zeros(2, 3))
    require_linear(brightness(), "C.pt", 4)


@pytest.mark.parametrize("model", [
    nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten()),
    nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 2, 1), nn.Flatten()),
])
def test_a_classifier_without_a_linear_last_layer_is_refused(model):
    """None at all, or one that a convolution follows."""
    with pytest.raises(UserError, match="C.pt has no linear last layer"):
        require_linear(FrozenClassifier(model, 2, 1, 4, [0.0], [1.0]), "C.pt", 4)


@pytest.mark.parametrize("width, answers", [(1, Answers(form="one logit")), (5, Answers(columns=(4, 1)))])
def test_a_linear_last_layer_of_other_widths(width, answers):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, width))
    require_linear(FrozenClassifier(model, 2, 1, 4, [0.0], [1.0], answers=answers), "C.pt", 4)


def test_a_space_comes_back_from_its_state():
    space = FeatureSpace.fitted(rows())
    again = FeatureSpace.of_state(space.state())
    assert torch.equal(again.standardised(rows()), space.standardised(rows()))
    assert torch.equal(again.axes, space.axes)


def test_features_of_images_and_their_gradient():
    C = brightness()
    images = torch.randint(0, 256, (600, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    raw, logits = raw_features(C, images.split(100))
    halves = [images[7, ..., :2].float().mean().item() / 255, images[7, ..., 2:].float().mean().item() / 255]
    assert raw[7].tolist() == pytest.approx(halves)
    assert logits.shape == (600, 2)
    bank = Bank.of_images(C, images.split(100))
    x = images[:3].float().div(127.5).sub(1).requires_grad_()
    f, _ = bank.space.of(C, x)
    assert torch.allclose(f, bank.f[:3], atol=1e-4)
    (gradient,) = torch.autograd.grad(f[:, 0].sum(), x)
    assert gradient[..., :2].min() > 0 and gradient[..., 2:].abs().max() == 0
    means = bank.class_means()
    for label in range(len(means)):
        own = bank.f[bank.predicted == label]
        assert torch.allclose(means[label], own.mean(0) if len(own) else torch.zeros(2), atol=1e-4)


def test_targets_are_own_others_mixtures_and_moved():
    torch.manual_seed(0)
    f = torch.randn(300, 6)
    bank = Bank(FeatureSpace.fitted(f), f, torch.zeros(300, dtype=torch.long))
    own = 10 + torch.arange(4000.0)[:, None].expand(-1, 6)
    asked, is_own = draw_targets(bank, own, 0.2, 0.2, components=2)
    assert is_own.mean().item() == pytest.approx(0.2, abs=0.03)
    assert torch.equal(asked[is_own == 1], own[is_own == 1])
    others = asked[is_own == 0]

    def known(rows, of):
        """The share of rows that are among `of`."""
        distances = torch.cdist(rows, of, compute_mode="donot_use_mm_for_euclid_dist")
        return (distances.min(1).values < 1e-4).float().mean().item()

    real = known(others, f)  # images of the bank as they are
    assert real == pytest.approx(0.75, abs=0.03)
    # a moved one lies along an axis from an image of the bank: it keeps the coordinates along all others
    coordinates, of = others @ bank.space.axes, f @ bank.space.axes
    along = [known(coordinates[:, keep], of[:, keep]) for keep in ([1, 2, 3, 4, 5], [0, 2, 3, 4, 5])]
    assert [value - real for value in along] == pytest.approx([1 / 16, 1 / 16], abs=0.02)
    everything, is_own = draw_targets(bank, own, 0.0, 0.0)
    assert is_own.sum() == 0 and known(everything, f) == 1
