"""The PGD attack against closed forms and its own constraints."""

import pytest
import torch
from torch.nn import functional as F

from classifiers.attacks import pgd
from utils import UserError


@pytest.fixture
def problem():
    """A small random network, images in [0, 1] of which some pixels are saturated, and labels."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    images = torch.rand(8, 1, 8, 8).mul(1.4).sub(0.2).clamp(0, 1)
    return model, images, torch.arange(8) % 3


def loss_of(model, images, labels):
    return F.cross_entropy(model(images), labels).item()


@pytest.mark.parametrize("norm, order, eps", [("l2", 2, 0.7), ("linf", float("inf"), 0.05)])
@pytest.mark.parametrize("random_start", [True, False])
def test_stays_in_the_ball_and_in_the_range_and_raises_the_loss(problem, norm, order, eps, random_start):
    model, images, labels = problem
    attacked = pgd(model, images, labels, norm, eps, steps=7, random_start=random_start)
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert torch.linalg.vector_norm((attacked - images).flatten(1), order, dim=1).max() <= eps * (1 + 1e-5)
    assert loss_of(model, attacked, labels) > loss_of(model, images, labels)
    assert not attacked.requires_grad and not images.requires_grad and all(p.grad is None for p in model.parameters())


def test_more_steps_raise_the_loss_more(problem):
    model, images, labels = problem
    losses = [loss_of(model, pgd(model, images, labels, "l2", 0.7, steps, random_start=False), labels)
              for steps in (1, 20)]
    assert losses[1] > losses[0]


def linear_problem():
    """Logits w.x of two classes, images far from the bounds of the range."""
    weights = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    return (lambda x: x.flatten(1) @ weights.T), torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1]), weights


def test_l2_reaches_the_optimum_of_a_linear_model():
    model, images, labels, weights = linear_problem()
    downhill = (weights[1] - weights[0]) / (weights[1] - weights[0]).norm()
    expected = 0.3 * torch.stack([downhill, -downhill])
    delta = (pgd(model, images, labels, "l2", 0.3, steps=10, random_start=False) - images).flatten(1)
    torch.testing.assert_close(delta, expected, rtol=1e-5, atol=1e-6)


def test_linf_reaches_the_optimum_of_a_linear_model():
    model, images, labels, weights = linear_problem()
    downhill = (weights[1] - weights[0]).sign()
    delta = (pgd(model, images, labels, "linf", 0.1, steps=10) - images).flatten(1)
    torch.testing.assert_close(delta, 0.1 * torch.stack([downhill, -downhill]))


def test_one_step_has_the_default_length(problem):
    model, images, labels, _ = linear_problem()
    delta = pgd(model, images, labels, "l2", 0.3, steps=10, random_start=False, step_size=0.02) - images
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((2,), 0.2))
    # 2.5 * eps / steps passes the border of the ball within half of the steps
    delta = pgd(model, images, labels, "l2", 0.3, steps=10, random_start=False) - images
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((2,), 0.3))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_generator_decides_the_start(problem, norm):
    model, images, labels = problem

    def attack(seed):
        return pgd(model, images, labels, norm, 0.5, 2, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(attack(3), attack(3))
    assert not torch.equal(attack(3), attack(4))


def test_works_where_gradients_are_off(problem):
    model, images, labels = problem
    with torch.no_grad():
        attacked = pgd(model, images, labels, "l2", 0.5, 3)
    assert loss_of(model, attacked, labels) > loss_of(model, images, labels)


@pytest.mark.parametrize("norm, eps, steps, said", [("l3", 1.0, 5, "did you mean 'l2'"), ("l2", -1.0, 5, "eps >= 0"),
                                                    ("l2", float("nan"), 5, "eps >= 0"), ("l2", 1.0, 0, "one step")])
def test_bad_settings_get_a_sentence(problem, norm, eps, steps, said):
    with pytest.raises(UserError, match=said):
        pgd(*problem, norm, eps, steps)
