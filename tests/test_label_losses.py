"""The identities of AM-GAN (T1 to T9 below) in float64, each loss by hand, and what a masked class leaves behind."""

import math

import pytest
import torch
from torch.autograd import grad
from torch.autograd.functional import hessian, jacobian

import label_losses as losses

K, ROWS = 5, 7
NONE = torch.tensor([], dtype=torch.long)


def close(found, wanted, atol=1e-10):
    torch.testing.assert_close(found, wanted, atol=atol, rtol=0)


@pytest.fixture
def logits():
    """(ROWS, K + 1): those of the classes, and of being fake."""
    return torch.randn(ROWS, K + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()


@pytest.fixture
def y():
    return torch.arange(ROWS) % K


def one_hot(y, n):
    return torch.nn.functional.one_hot(y, n).double()


def parts(logits):
    """(class logits, l_r) of a softmax over K + 1, once its fake logit is moved to 0."""
    return losses.split_outputs(logits[:, :-1] - logits[:, -1:], "am", NONE)


def descent(loss, at):
    """-d loss / d at, row by row."""
    return -grad(loss.sum(), at, retain_graph=True)[0]


# ------------------------------------------------------------------------------------- identities


def test_T1_the_gradient_of_a_cross_entropy_is_target_less_softmax(logits, y):
    classes = logits[:, :K]
    C = classes.softmax(1)
    close(descent(losses.class_entropy(classes, y), logits)[:, :K], one_hot(y, K) - C)
    close(descent(losses.uniform_entropy(classes), logits)[:, :K], 1 / K - C)
    two = logits[:, :2]  # of being real and of being fake
    for a in (1.0, 0.9, 0.3):
        wanted = torch.tensor([a, 1 - a], dtype=torch.float64) - two.softmax(1)
        close(descent(losses.gan_real(two[:, 0] - two[:, 1], a), logits)[:, :2], wanted)
    wanted = one_hot(torch.ones_like(y), 2) - two.softmax(1)
    close(descent(losses.gan_fake(two[:, 0] - two[:, 1]), logits)[:, :2], wanted)


def test_T2_the_class_aware_gradient_of_LabelGAN(logits):
    D = logits.softmax(1)
    D_r = 1 - D[:, -1:]
    found = descent(losses.gan_generator(parts(logits)[1]), logits)
    close(found[:, :K], (1 - D_r) * D[:, :K] / D_r)
    close(found[:, K:], -(1 - D_r))
    close(found.sum(1), torch.zeros(ROWS, dtype=torch.float64))
    close(found.abs().sum(1) / 2, 1 - D_r[:, 0])


def test_T3_the_gradient_of_AMGAN_is_that_of_LabelGAN_and_of_an_auxiliary_classifier(logits, y):
    classes, l_r = parts(logits)
    D, C = logits.softmax(1), logits[:, :K].softmax(1)
    of_label, of_class = descent(losses.gan_generator(l_r), logits), descent(losses.class_entropy(classes, y), logits)
    close(of_class, torch.cat((one_hot(y, K) - C, torch.zeros(ROWS, 1)), 1))
    whole = descent(losses.gan_generator(l_r) + losses.class_entropy(classes, y), logits)
    close(whole, of_label + of_class)
    close(whole, one_hot(y, K + 1) - D)
    norm = whole.abs().sum(1)
    close(norm, 2 * (1 - D.gather(1, y[:, None])[:, 0]))
    assert norm.max() <= 2


def test_T4_a_cross_entropy_over_K_plus_1_falls_into_one_of_the_classes_and_one_of_real_and_fake(logits, y):
    classes, l_r = parts(logits)
    log_D = logits.log_softmax(1)
    close(losses.class_entropy(classes, y) + losses.gan_generator(l_r), -log_D.gather(1, y[:, None])[:, 0])
    for a in (1.0, 0.8):  # the one-sided target [a u(y), 1 - a]
        target = torch.cat((a * one_hot(y, K), torch.full((ROWS, 1), 1 - a, dtype=torch.float64)), 1)
        close(losses.gan_real(l_r, a) + a * losses.class_entropy(classes, y), -(target * log_D).sum(1))
    p = torch.rand(ROWS, K + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    p = p / p.sum(1, keepdim=True)  # any target
    of_classes = sum(p[:, k] * losses.class_entropy(classes, torch.full((ROWS,), k)) for k in range(K))
    of_real = (1 - p[:, K]) * losses.gan_real(l_r) + p[:, K] * losses.gan_fake(l_r)
    close(of_classes + of_real, -(p * log_D).sum(1))


def test_T5_ACGAN_star_is_a_hierarchical_model_of_K_plus_1_classes(logits, y):
    classes, l_r = losses.split_outputs(logits, "acgan_star", NONE)
    D_r, C = l_r.sigmoid()[:, None], classes.softmax(1)
    D = torch.cat((D_r * C, 1 - D_r), 1)
    close(D.sum(1), torch.ones(ROWS, dtype=torch.float64))
    close(losses.gan_generator(l_r) + losses.class_entropy(classes, y), -(one_hot(y, K + 1) * D.log()).sum(1))


def test_T6_the_saturating_loss_has_the_same_direction_and_vanishes_with_D_r(logits):
    l_r = parts(logits)[1]
    D_r = l_r.sigmoid()[:, None]
    saturating = descent(-losses.gan_fake(l_r), logits)  # of log(1 - D_r)
    close(saturating, descent(losses.gan_generator(l_r), logits) * D_r / (1 - D_r))


def test_T7_dynamic_AMGAN_adds_at_most_log_K_and_the_fake_logit_may_be_fixed(logits):
    classes, l_r = parts(logits)
    extra = losses.class_entropy(classes, losses.dynamic_labels(classes))
    close(extra, -logits[:, :K].softmax(1).max(1).values.log())
    assert (extra >= 0).all() and (extra <= math.log(K)).all()
    assert losses.class_entropy(torch.zeros(1, K), torch.tensor([0])).item() == pytest.approx(math.log(K))
    close(l_r.sigmoid(), 1 - logits.softmax(1)[:, -1])  # D_r by a fake logit of 0 is that by a free one
    moved = logits + torch.arange(ROWS, dtype=torch.float64)[:, None]
    close(parts(moved)[1], l_r)


def minimise(objective, shape):
    """The values (float64, of this shape) at which a convex objective(values) is least, by Newton's method from 0."""
    values, n = torch.zeros(shape, dtype=torch.float64), math.prod(shape)
    for _ in range(12):
        slope, curvature = jacobian(objective, values).flatten(), hessian(objective, values).reshape(n, n)
        # a constant added to the class logits may change nothing: no step that way
        values = values - (torch.linalg.pinv(curvature, rtol=1e-9, hermitian=True) @ slope).reshape(shape)
    assert jacobian(objective, values).abs().max() < 1e-14
    return values


@pytest.mark.parametrize("class_loss", losses.CLASS_LOSSES)
def test_T8_the_best_D_on_four_points(class_loss):
    generator = torch.Generator().manual_seed(5)
    real, fake = (torch.rand(4, 3, dtype=torch.float64, generator=generator) + 0.1 for _ in range(2))
    real, fake = real / real.sum(), fake / fake.sum()  # p(x, k), q(x, k)
    p, q = real.sum(1), fake.sum(1)

    def objective(outputs):
        logits, l_r = losses.split_outputs(outputs, class_loss, NONE)
        loss = (p * losses.gan_real(l_r) + q * losses.gan_fake(l_r)).sum()
        if logits is None:
            return loss
        of_class = [losses.class_entropy(logits, torch.full((4,), k)) for k in range(3)]
        loss = loss + sum((real[:, k] * of_class[k]).sum() for k in range(3))
        if class_loss == "acgan":
            loss = loss + sum((fake[:, k] * of_class[k]).sum() for k in range(3))
        if class_loss == "acgan_plus":
            loss = loss + (q * losses.uniform_entropy(logits)).sum()
        return loss

    outputs = minimise(objective, (4, losses.head_outputs(class_loss, 3)))
    logits, l_r = losses.split_outputs(outputs, class_loss, NONE)
    close(l_r.sigmoid(), p / (p + q))
    if class_loss in ("label", "am"):
        D = torch.cat((logits, torch.zeros(4, 1)), 1).softmax(1)
        close(D, torch.cat((real, q[:, None]), 1) / (p + q)[:, None])
    elif logits is not None:
        shares = {"acgan": (real + fake) / (p + q)[:, None], "acgan_plus": (real + q[:, None] / 3) / (p + q)[:, None]}
        close(logits.softmax(1), shares.get(class_loss, real / p[:, None]))


def test_T9_what_is_left_of_each_field_where_fakes_are_real_and_D_is_the_best():
    """Two unit Gaussians at -1 and 1, equally likely."""
    x = torch.linspace(-3, 3, 13, dtype=torch.float64).requires_grad_()
    means = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    log_p = -(x[:, None] - means).square() / 2 - math.log(2 * math.sqrt(2 * math.pi))  # of (x, k)
    log_q = log_p.logsumexp(1)  # of the fakes, and of the reals
    classes, l_r = losses.split_outputs(log_p - log_q[:, None], "am", NONE)
    posterior = log_p.softmax(1)
    nothing = torch.zeros(13, dtype=torch.float64)
    close(descent(losses.gan_generator(log_q - log_q), x), nothing)
    close(descent(losses.gan_generator(l_r), x), nothing)  # LabelGAN

    def field(classes, y):  # of AM-GAN and, with C = p(k | x), AC-GAN*
        return descent(losses.gan_generator(l_r) + losses.class_entropy(classes, y), x)

    middle = (x == 0).nonzero().item()
    predefined = [field(classes, torch.full((13,), k)) for k in range(2)]
    for k in range(2):
        close(predefined[k], grad(posterior[:, k].log().sum(), x, retain_graph=True)[0])
    close(predefined[0][middle], torch.tensor(-1.0, dtype=torch.float64))
    close((posterior * torch.stack(predefined, 1)).sum(1), nothing)  # the marginal flux, divided by p(x)
    # AC-GAN*+: C = (p(k | x) + 1 / 2) / 2
    close(field(((posterior + 0.5) / 2).log(), torch.zeros(13, dtype=torch.long))[middle],
          torch.tensor(-0.5, dtype=torch.float64))
    dynamic = field(classes, losses.dynamic_labels(classes))
    wanted = grad(posterior.max(1).values.log().sum(), x, retain_graph=True)[0]
    off = x != 0  # where the best class changes there is no gradient
    close(dynamic[off], wanted[off])
    assert (dynamic[off] * x[off].sign() > 0).all()  # away from the boundary, on both sides


# ----------------------------------------------------------------------------------------- by hand


def test_losses_by_hand():
    l_r = torch.tensor([math.log(3.0)], dtype=torch.float64)  # D_r = 3/4
    assert losses.gan_real(l_r).item() == pytest.approx(-math.log(0.75))
    assert losses.gan_fake(l_r).item() == pytest.approx(-math.log(0.25))
    assert losses.gan_generator(l_r).item() == pytest.approx(-math.log(0.75))
    assert losses.gan_real(l_r, 0.9).item() == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25))
    classes = torch.tensor([[0.0, math.log(2.0), math.log(5.0)]], dtype=torch.float64)  # C = 1/8, 2/8, 5/8
    assert losses.class_entropy(classes, torch.tensor([1])).item() == pytest.approx(math.log(4))
    assert losses.uniform_entropy(classes).item() == pytest.approx((math.log(8) + math.log(4) + math.log(1.6)) / 3)
    assert losses.split_outputs(classes, "am", NONE)[1].item() == pytest.approx(math.log(8))
    assert losses.dynamic_labels(classes).item() == 2


def test_smoothing_of_one_is_the_plain_loss_bit_for_bit(logits):
    l_r = logits[:, 0]
    assert torch.equal(losses.gan_real(l_r, 1.0), torch.nn.functional.softplus(-l_r))


def test_the_uniform_term_is_log_K_where_C_is_uniform_and_more_elsewhere(logits):
    assert losses.uniform_entropy(torch.full((1, K), 2.0)).item() == pytest.approx(math.log(K))
    assert (losses.uniform_entropy(logits[:, :K]) > math.log(K)).all()


def test_AMGAN_of_one_class_is_a_GAN():
    outputs = torch.randn(9, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    logits, l_r = losses.split_outputs(outputs, "am", NONE)
    close(l_r, losses.split_outputs(outputs, "gan", NONE)[1], 1e-15)
    assert not losses.class_entropy(logits, torch.zeros(9, dtype=torch.long)).any()


def test_outputs_that_each_loss_asks_for():
    assert {name: losses.head_outputs(name, 10) for name in losses.CLASS_LOSSES} == {
        "gan": 1, "gan_star": 11, "label": 10, "acgan": 11, "acgan_star": 11, "acgan_plus": 11, "am": 10}


# ------------------------------------------------------------------------------- classes left out


@pytest.mark.parametrize("class_loss", losses.CLASS_LOSSES)
def test_masking_a_class_gives_the_model_of_the_others(class_loss, y):
    n, gone = losses.head_outputs(class_loss, K), 2
    outputs = torch.randn(ROWS, n, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).requires_grad_()
    kept = [i for i in range(n) if i != gone] if n > 1 else [0]
    logits, l_r = losses.split_outputs(outputs, class_loss, torch.tensor([gone]))
    less, less_r = losses.split_outputs(outputs[:, kept], class_loss, NONE)
    close(l_r, less_r, 0)
    if logits is None:
        return
    places = torch.tensor([0, 1, -1, 2, 3])  # of a label among the others
    y = y[y != gone]
    rows = slice(len(y))
    for found, wanted in ((losses.class_entropy(logits[rows], y), losses.class_entropy(less[rows], places[y])),
                          (losses.uniform_entropy(logits), losses.uniform_entropy(less))):
        close(found, wanted)
        gradient = grad(found.sum(), outputs, retain_graph=True)[0]
        assert gradient.isfinite().all() and not gradient[:, gone].any()
        close(gradient, grad(wanted.sum(), outputs, retain_graph=True)[0])
    assert torch.equal(places[losses.dynamic_labels(logits)], losses.dynamic_labels(less))


def test_rows_of_a_masked_class_are_left_out_with_their_infinite_loss():
    outputs = torch.randn(3, K, dtype=torch.float64).requires_grad_()
    logits, _ = losses.split_outputs(outputs, "am", torch.tensor([2]))
    values = losses.class_entropy(logits, torch.tensor([0, 2, 1]))
    assert values[1] == math.inf
    kept = losses.seen_only(values, torch.tensor([1.0, 0.0, 1.0]))
    assert kept[1] == 0 and torch.equal(kept[[0, 2]], values[[0, 2]])
    gradient = grad(kept.sum(), outputs)[0]
    assert gradient.isfinite().all() and not gradient[1].any() and gradient[0].any()


@pytest.mark.parametrize("objective", [
    lambda x: losses.gan_real(x[:, 0]), lambda x: losses.gan_real(x[:, 0], 0.9), lambda x: losses.gan_fake(x[:, 0]),
    lambda x: losses.gan_generator(x[:, 0]), lambda x: losses.class_entropy(x, torch.tensor([0, 1, 1, 0])),
    losses.uniform_entropy, lambda x: losses.gan_generator(losses.split_outputs(x, "label", NONE)[1]),
])
def test_descending_a_loss_lowers_it(objective):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(8)).requires_grad_()
    before = objective(x).sum()
    (gradient,) = grad(before, x)
    assert gradient.norm() > 0
    assert objective(x - 0.01 * gradient).sum() < before
