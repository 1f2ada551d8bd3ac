"""Each loss against values computed by hand, and each falls when it is descended."""

import math

import pytest
import torch

import probegan_losses as losses


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_seen_rows():
    y = torch.tensor([0, 7, 3, 2])
    assert losses.seen_rows(y, torch.tensor([7])).tolist() == [1, 0, 1, 1]
    assert losses.seen_rows(y, torch.tensor([2, 7])).tolist() == [1, 0, 1, 0]
    assert losses.seen_rows(y, torch.tensor([], dtype=torch.long)).tolist() == [1, 1, 1, 1]


def test_hinge_by_hand():
    d_c, rows = tensor(-2.0, 0.5, 3.0), tensor(1.0, 1.0, 0.0)
    assert losses.hinge_real(d_c, rows).item() == pytest.approx((3.0 + 0.5) / 2)
    assert losses.hinge_fake(d_c, rows).item() == pytest.approx((0.0 + 1.5) / 2)
    assert losses.hinge_generator(d_c, rows).item() == pytest.approx((2.0 - 0.5) / 2)


def test_hinge_of_a_batch_without_seen_rows_is_zero_and_finite():
    d_c = tensor(-2.0, 0.5).requires_grad_()
    total = losses.hinge_real(d_c, torch.zeros(2)) + losses.hinge_fake(d_c, torch.zeros(2))
    total.backward()
    assert total.item() == 0 and d_c.grad.tolist() == [0, 0]


def test_rows_of_another_shape_are_refused():
    with pytest.raises(AssertionError):
        losses.hinge_real(torch.zeros(4, 1), torch.ones(4))


def test_wasserstein_by_hand():
    assert losses.wasserstein(tensor(1.0, 3.0), tensor(5.0, -1.0)).item() == pytest.approx(0.0)
    assert losses.wasserstein(tensor(4.0), tensor(1.0)).item() == pytest.approx(-3.0)
    assert losses.wasserstein_generator(tensor(2.0, 4.0), tensor(1.0, 3.0)).item() == pytest.approx(-14 / 4)


def test_a_fake_of_the_unseen_class_counts_as_no_less_real_than_the_seen_ones():
    """Rows 0 and 1 are seen, of mean 2; row 2 is below it, row 3 above."""
    d_u = tensor(1.0, 3.0, -5.0, 7.0).requires_grad_()
    found = losses.levelled(d_u, tensor(1.0, 1.0, 0.0, 0.0))
    assert found.tolist() == [1, 3, 2, 7]
    found.mean().backward()
    # the seen rows take the part of row 2, so that an offset of all outputs gains D nothing
    assert d_u.grad.tolist() == pytest.approx([0.375, 0.375, 0, 0.25])
    assert losses.levelled(d_u, torch.ones(4)).tolist() == d_u.tolist()


def test_gradient_penalty_of_a_linear_function_is_its_norm_minus_one_squared():
    w = torch.randn(2, 4, 4, dtype=torch.float64).requires_grad_()
    x_hat = torch.randn(5, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = losses.gradient_penalty((x_hat * w).sum((1, 2, 3)), x_hat)
    assert penalty.item() == pytest.approx((w.norm().item() - 1) ** 2)
    penalty.backward()
    assert torch.allclose(w.grad, 2 * (w.norm() - 1) * w / w.norm())


def test_zero_centred_penalty_of_a_linear_function_is_its_squared_norm():
    w = torch.randn(2, 4, 4, dtype=torch.float64).requires_grad_()
    x_hat = torch.randn(5, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = losses.gradient_penalty((x_hat * w).sum((1, 2, 3)), x_hat, norm=0)
    assert penalty.item() == pytest.approx(w.square().sum().item(), rel=1e-6)
    penalty.backward()
    assert torch.allclose(w.grad, 2 * w)


def test_diversity_is_the_mean_ratio_of_distances_between_counted_rows():
    x, z = torch.tensor([[0.0, 0.0], [1.0, 3.0], [9.0, 9.0], [2.0, 2.0]]), torch.tensor([[0.0], [4.0], [7.0], [1.0]])
    # pairs (0, 1), (0, 3) and (1, 3): 2/4, 2/1 and 1/3
    assert losses.diversity(x, z, torch.tensor([1.0, 1.0, 0.0, 1.0])).item() == pytest.approx((0.5 + 2 + 1 / 3) / 3)
    assert losses.diversity(x, z, torch.tensor([1.0, 0.0, 0.0, 0.0])) == 0


def test_interpolation_weighs_the_real_image_by_e():
    real, fake = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), -1.0)
    mixed = losses.interpolate(real, fake, torch.tensor([1.0, 0.25]).view(2, 1, 1, 1))
    assert mixed[0].eq(3).all() and mixed[1].eq(0).all()


def test_output_penalty():
    assert losses.output_penalty(tensor(1.0, -3.0)).item() == 5.0


def test_classification_by_hand():
    logits = tensor(0.0, math.log(3.0)).repeat(2, 1)  # p = (1/4, 3/4)
    y = torch.tensor([0, 1])
    ones = torch.ones(2, dtype=torch.float64)
    by_hand = [-math.log(0.25), -math.log(0.75)]
    assert losses.classification(logits, y, ones).item() == pytest.approx(sum(by_hand) / 2)
    weighted = losses.classification(logits, y, tensor(1.0, 4.0)).item()
    assert weighted == pytest.approx((by_hand[0] + 4 * by_hand[1]) / 5)
    assert losses.classification(logits, y, ones, prob_clip=0.7).item() == pytest.approx(by_hand[0] / 2)


def test_tile_mix_moves_tiles_between_images_but_not_within():
    images = torch.arange(6).view(6, 1, 1, 1) * 100 + torch.arange(64).view(1, 1, 8, 8)
    torch.manual_seed(0)
    mixed = losses.tile_mix(images.float(), 4)
    assert torch.equal(mixed % 100, images.float() % 100)  # every tile keeps its place
    origin = (mixed // 100).view(6, 4, 2, 4, 2)
    assert torch.equal(origin, origin[:, :, :1, :, :1].expand_as(origin))  # tiles move whole
    assert torch.equal(origin[:, :, 0, :, 0].sort(0).values, torch.arange(6.0).view(6, 1, 1).expand(6, 4, 4))
    assert not torch.equal(mixed, images.float())


@pytest.mark.parametrize("objective", [
    lambda x: losses.hinge_real(x, torch.ones(8)),
    lambda x: losses.hinge_fake(x, torch.ones(8)),
    lambda x: losses.hinge_generator(x, torch.ones(8)),
    lambda x: losses.wasserstein(x, torch.zeros(8)),
    lambda x: losses.wasserstein(torch.zeros(8), x),
    lambda x: losses.wasserstein_generator(x, torch.ones(8)),
    losses.output_penalty,
    lambda x: losses.classification(x.view(4, 2), torch.tensor([0, 1, 1, 0]), torch.ones(2)),
    lambda x: losses.gradient_penalty((x.view(8, 1, 1, 1) * IMAGES).sum((1, 2, 3)), IMAGES),
])
def test_descending_an_objective_lowers_it(objective):
    torch.manual_seed(1)
    x = torch.randn(8, requires_grad=True)
    before = objective(x)
    (gradient,) = torch.autograd.grad(before, x)
    assert gradient.norm() > 0
    after = objective((x - 0.01 * gradient).detach().requires_grad_())
    assert after < before


IMAGES = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()


def test_the_spread_that_a_class_lacks_by_hand():
    images = tensor(1.0, 5.0, 3.0, 7.0, 2.0).view(5, 1, 1, 1).expand(5, 1, 1, 4)
    y, root = torch.tensor([0, 1, 0, 1, 2]), math.sqrt(2)  # of (1 + 1) / (2 - 1), in both classes of two
    wanted = tensor(2 * root, root / 2, 2 * root, root / 2, 9.0)
    # class 0 lacks half of its spread, class 1 nothing, and class 2 has no other row
    assert losses.spread_shortfall(images, y, wanted).item() == pytest.approx(2 * 0.25 / 4)


def test_descending_the_lack_of_spread_moves_a_class_apart_about_its_mean():
    images, y = torch.randn(8, 3, requires_grad=True), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    loss = losses.spread_shortfall(images, y, torch.full((8,), 9.0))
    loss.backward()
    assert losses.spread_shortfall(images.detach() - 10 * images.grad, y, torch.full((8,), 9.0)) < loss
    assert torch.allclose(images.grad.unflatten(0, (2, 4)).sum(1), torch.zeros(2, 3), atol=1e-6)
    same = torch.ones(3, 2, requires_grad=True)
    losses.spread_shortfall(same, torch.zeros(3), torch.ones(3)).backward()
    assert same.grad.isfinite().all()


def test_a_bounded_gradient_keeps_its_direction_and_is_no_longer_than_its_share_of_the_guide():
    gradient, guide = tensor(3.0, 4.0, 0.3, 0.4, 6.0, 8.0).view(3, 2), tensor(2.0, 0.0, 2.0, 0.0, 0.0, 0.0).view(3, 2)
    found = losses.bounded(gradient, guide, tensor(0.5, 0.5, 0.5))
    assert found.flatten().tolist() == pytest.approx([0.6, 0.8, 0.3, 0.4, 0.0, 0.0])
    assert losses.bounded(gradient, guide, tensor(0.25, 1.0, 1.0)).norm(dim=1).tolist() == pytest.approx([0.5, 0.5, 0])


def test_a_value_with_a_given_gradient():
    x, gradient = tensor(1.0, 2.0).requires_grad_(), tensor(-3.0, 0.5)
    value = losses.with_gradient(x.square().sum(), x, gradient)
    value.backward()
    assert value.item() == 5 and torch.equal(x.grad, gradient)
