"""The losses of drawing from features, against values computed by hand."""

import math

import pytest
import torch

from feature_losses import ccc, ccc_loss, ignored_condition, masked_l1, mse_loss


def test_ccc_by_hand():
    found, asked = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[2.0, 5.0], [6.0, 7.0]])
    # first: means 2 and 4, variances 1 and 4, covariance 2: 4 / (1 + 4 + 4); second: no covariance
    assert ccc(found, asked).tolist() == pytest.approx([4 / 9, 0], abs=1e-6)
    assert ccc_loss(found, asked).item() == pytest.approx((5 / 9 + 1) / 2, abs=1e-6)
    assert ccc_loss(found, asked, summed=True).item() == pytest.approx(5 / 9 + 1, abs=1e-6)


def test_ccc_has_its_ends():
    f = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    assert ccc(f, f).tolist() == pytest.approx([1] * 5)  # not 15/16: moments of one kind
    centred = f - f.mean(0)
    assert ccc(centred, -centred).tolist() == pytest.approx([-1] * 5, abs=1e-5)
    assert ccc(centred, torch.zeros_like(f)).abs().max() < 1e-5


def test_ccc_of_one_row_or_constants_is_a_number_with_a_gradient():
    for found, asked, value in ((torch.ones(1, 3), torch.ones(1, 3), 1), (torch.ones(1, 3), torch.zeros(1, 3), 0),
                                (torch.full((4, 3), 2.0), torch.full((4, 3), 2.0), 1)):
        found.requires_grad_()
        assert ccc(found, asked).tolist() == pytest.approx([value] * 3, abs=1e-5)
        ccc_loss(found, asked).backward()
        assert found.grad.isfinite().all()


def test_ccc_refuses_other_shapes():
    with pytest.raises(AssertionError):
        ccc(torch.zeros(4), torch.zeros(4, 1))


def test_mse_is_ccc_with_the_moments_of_the_training_set():
    generator = torch.Generator().manual_seed(0)
    asked, noise = torch.randn(2, 100_000, 3, generator=generator)
    found = 0.8 * asked + 0.6 * noise  # of variance 1 too, so that 1 - CCC is 0.2
    assert mse_loss(found, asked).item() == pytest.approx(0.2, abs=0.01)
    assert ccc_loss(found, asked).item() == pytest.approx(0.2, abs=0.01)


def test_descending_each_loss_lowers_it():
    asked = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    for loss in (ccc_loss, mse_loss):
        found = torch.zeros(8, 4).normal_(generator=torch.Generator().manual_seed(1)).requires_grad_()
        before = loss(found, asked)
        (gradient,) = torch.autograd.grad(before, found)
        assert loss(found - 0.1 * gradient, asked) < before


def test_masked_l1():
    x, y = torch.zeros(3, 1, 2, 2), torch.tensor([0.5, 1.0, 7.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    assert masked_l1(x, y, torch.tensor([1.0, 1.0, 0.0])).item() == pytest.approx(0.75)
    assert masked_l1(x, y, torch.zeros(3)).item() == 0


def test_ignored_condition_is_in_units_of_the_images():
    x = torch.zeros(2, 1, 2, 2)
    assert ignored_condition(x, x, torch.tensor(0.5)) == 0
    assert ignored_condition(x, x + 0.25, torch.tensor(0.5)) == pytest.approx(0.5)
    assert math.isfinite(ignored_condition(x, x + 1, torch.tensor(0.0)))
