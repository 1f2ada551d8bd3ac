"""metrics.distances and metrics.intervals: closed forms, hand-computed values, torchmetrics, planted faults."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from metrics.distances import (
    Moments,
    am_score_terms,
    effective_rank,
    effective_rank_terms,
    fid_infinity,
    frechet_distance,
    frechet_terms,
    inception_score_terms,
    kid,
    ms_ssim,
    ms_ssim_betas,
    ms_ssim_pairs,
    ms_ssim_pairs_of_five_scales,
    prdc_terms,
    precision_recall_density_coverage,
    vendi_score,
    vendi_terms,
)
from metrics.intervals import bootstrap, bootstrap_means, combine_seeds, kid_interval, largest_mean
from utils import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def known_moments(mean, covariance):
    """Moments of a distribution that is known exactly."""
    moments = Moments(len(mean))
    moments.count, moments.mean, moments.scatter = 10**9, mean, covariance * (10**9 - 1)
    return moments


# -------------------------------------------------------------------------------------- moments


@pytest.mark.parametrize("sizes", [[500], [1] * 500, [499, 1], [100, 0, 400]])
def test_moments_are_numpys_whatever_the_batches(sizes):
    features = normal(500, 6) @ normal(6, 6, seed=1) + 1e6  # a large mean costs no digits
    moments = Moments(6)
    for part in features.split(sizes):
        moments.update(part)
    assert moments.count == 500
    np.testing.assert_allclose(moments.mean, features.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-8)


def test_moments_merge_as_if_seen_together():
    features = normal(50, 3)
    merged = Moments(3).update(features[:20]).merge(Moments(3)).merge(Moments(3).update(features[20:]))
    together = Moments(3).update(features.float().numpy())  # arrays and float32 too
    np.testing.assert_allclose(merged.covariance, together.covariance, rtol=1e-6)
    with pytest.raises(UserError, match="at least 2 images, 1 given"):
        Moments(3).update(features[:1]).covariance  # noqa: B018


# ----------------------------------------------------------------------------- Frechet distance


def test_frechet_distance_of_commuting_gaussians():
    turn, _ = torch.linalg.qr(normal(5, 5))
    a, b = torch.tensor([4.0, 1, 9, 0, 1]).double(), torch.tensor([1.0, 1, 4, 4, 0]).double()
    mean = normal(5, seed=2)
    wanted = mean.square().sum() + (1 + 0 + 1 + 4 + 1)  # (sqrt a - sqrt b)^2
    found = frechet_distance(torch.zeros(5), turn * a @ turn.T, mean, turn * b @ turn.T)
    assert found == pytest.approx(wanted.item(), abs=1e-6)  # both covariances are singular
    assert frechet_distance(mean, turn * b @ turn.T, torch.zeros(5), turn * a @ turn.T) == pytest.approx(found)


def test_frechet_distance_of_two_by_two_matrices():
    # tr (S1 S2)^1/2 of 2x2 matrices is sqrt(tr S1 S2 + 2 sqrt(det S1 det S2))
    one, two = torch.tensor([[2.0, 0.5], [0.5, 1.0]]), torch.tensor([[1.0, -0.3], [-0.3, 3.0]])
    root = math.sqrt(float((one @ two).trace()) + 2 * math.sqrt(1.75 * 2.91))
    wanted = 1 + 4 + 3 + 4 - 2 * root
    assert frechet_distance([0, 0], one, [1, 2], two) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance([1, 2], two, [1, 2], two) < 1e-12


class Flatten(nn.Module):
    """A feature network for torchmetrics, which asks what size it gives."""

    num_features = 12

    def forward(self, images):
        return images.flatten(1).float()


@pytest.mark.parametrize("count", [300, 9])  # 9 images in 12 dimensions: singular covariances
def test_frechet_distance_agrees_with_torchmetrics(count):
    fid_module = pytest.importorskip("torchmetrics.image.fid")
    metric = fid_module.FrechetInceptionDistance(feature=Flatten(), normalize=True, input_img_size=(3, 2, 2))
    metric.set_dtype(torch.float64)
    real = torch.rand(count, 3, 2, 2, generator=generator())
    fake = torch.rand(count, 3, 2, 2, generator=generator(1)) ** 2
    metric.update(real, real=True)
    metric.update(fake, real=False)
    one, two = (Moments(12).update(images.flatten(1)) for images in (real, fake))
    ours = frechet_distance(one.mean, one.covariance, two.mean, two.covariance)
    assert ours == pytest.approx(metric.compute().item(), rel=1e-3)
    assert ours > 0.1


def gaussian_pair(dim, seed=0):
    """A root of S1, the true moments of the other Gaussian, and the distance between them."""
    one, two = (normal(dim, dim, seed=seed + i) / dim**0.5 + 0.3 * torch.eye(dim) for i in (0, 1))
    mean = torch.full((dim,), 0.2, dtype=torch.float64)
    real = known_moments(mean, two @ two.T)
    return one, real, frechet_distance(torch.zeros(dim), one @ one.T, mean, two @ two.T)


def test_frechet_terms_have_the_distance_as_mean_and_predict_new_samples():
    root, real, _ = gaussian_pair(6)
    fake = normal(2000, 6, seed=5) @ root.T
    moments = Moments(6).update(fake)
    value = frechet_distance(moments.mean, moments.covariance, real.mean, real.covariance)
    terms = frechet_terms(fake, real)
    assert terms.mean().item() == pytest.approx(value, rel=1e-9)
    # to first order dropping a row changes the distance as it changes the mean of the terms
    rest = torch.arange(2000) != (terms - value).abs().argmax()
    left = Moments(6).update(fake[rest])
    change = frechet_distance(left.mean, left.covariance, real.mean, real.covariance) - value
    assert terms[rest].mean().item() - value == pytest.approx(change, rel=0.02)


def test_fid_infinity_takes_the_bias_of_few_images_away():
    root, real, true = gaussian_pair(64)
    plain, extrapolated = [], []
    for seed in range(12):
        fake = normal(512, 64, seed=100 + seed) @ root.T
        moments = Moments(64).update(fake)
        plain.append(frechet_distance(moments.mean, moments.covariance, real.mean, real.covariance) - true)
        extrapolated.append(fid_infinity(fake, real, generator(seed)) - true)
    assert np.mean(plain) > 1
    assert abs(np.mean(extrapolated)) < 0.3 * np.mean(plain)
    with pytest.raises(UserError, match="at least 8, 7 given"):
        fid_infinity(fake[:7], real, generator())


def test_fid_infinity_shuffles_sorted_images():
    root, real, _ = gaussian_pair(4)
    fake = normal(800, 4) @ root.T
    by_size = fake[fake[:, 0].argsort()]  # sorted, as fakes sorted by class are
    assert fid_infinity(by_size, real, generator()) == pytest.approx(fid_infinity(fake, real, generator(1)), rel=0.005)


# ------------------------------------------------------------------------- kernel and neighbours


def test_kid_of_two_rows_by_hand():
    # F = 1, k(x, y) = (x y + 1)^3: k(1, 2) = 27, k(0, 3) = 1, cross 1, 64, 1, 343
    mean, std = kid(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [3.0]]), 3, 2, generator())
    assert mean == pytest.approx(27 + 1 - 2 * (1 + 64 + 1 + 343) / 4)
    assert std == pytest.approx(0)
    with pytest.raises(UserError, match="subsets of 3 images were asked for and the smaller set holds 2"):
        kid(torch.zeros(2, 1), torch.zeros(9, 1), 3, 3)


def test_kid_agrees_with_torchmetrics_for_one_full_subset():
    poly_mmd = pytest.importorskip("torchmetrics.image.kid").poly_mmd
    fake, real = normal(80, 7), normal(80, 7, seed=1) + 0.3
    assert kid(fake, real, 1, 80, generator())[0] == pytest.approx(poly_mmd(real, fake).item(), rel=1e-9)


def test_kid_is_unbiased_and_its_interval_covers():
    # x ~ N(0, I), y ~ N(1, I) in 3 dimensions: E (s / 3 + 1)^3 of s = x.x', y.y', x.y by the moments of s
    true = 2 + (1 + 3 + 6 + 126 / 27) - 2 * (1 + 2)
    hits, values = 0, []
    for seed in range(200):
        mean, std = kid(normal(120, 3, seed=seed), normal(120, 3, seed=1000 + seed) + 1, 40, 30, generator(seed))
        low, high = kid_interval(mean, std, 40, 30, 120)
        hits += low <= true <= high
        values.append(mean)
    assert np.mean(values) == pytest.approx(true, abs=3 * np.std(values) / math.sqrt(200))
    assert 180 <= hits <= 200
    assert kid_interval(1.0, 0.0, 40, 120, 120) == (None, None)


def test_precision_recall_density_coverage_by_hand():
    # k = 1: balls of the real 0, 1, 10 reach 1, 1, 9; those of the fakes 0.5, 1.5, 30 reach 1, 1, 28.5
    real, fake = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([[0.5], [1.5], [30.0]])
    found = precision_recall_density_coverage(real, fake, k=1)
    # 0.5 lies in the balls of 0 and 1, 1.5 in those of 1 and 10, 30 in none
    assert found == {"precision": pytest.approx(2 / 3), "density": pytest.approx(4 / 3),
                     "recall": pytest.approx(1), "coverage": pytest.approx(1)}
    found = precision_recall_density_coverage(real, torch.tensor([[0.5], [0.6], [0.7]]), k=1)
    assert found == {"precision": 1, "density": 2, "recall": 0, "coverage": pytest.approx(2 / 3)}
    with pytest.raises(UserError, match="need more than 3 images of each kind; 3 real"):
        precision_recall_density_coverage(real, fake, k=3)


def test_precision_and_the_rest_do_not_depend_on_blocks_or_order(monkeypatch):
    real, fake = normal(60, 4), 1.2 * normal(50, 4, seed=1)
    whole = precision_recall_density_coverage(real, fake)
    monkeypatch.setattr("metrics.distances.BLOCK", 7)
    assert precision_recall_density_coverage(real, fake) == whole
    assert precision_recall_density_coverage(real.flip(0) + 100, fake.flip(0) + 100) == whole
    assert prdc_terms(real, fake, max_rows=20)["precision"].shape == (20,)
    assert precision_recall_density_coverage(real, real + 1000) == dict.fromkeys(whole, 0)


# ------------------------------------------------------------------------------------------ variety


def test_vendi_score_counts_different_images():
    assert vendi_score(torch.eye(7)) == pytest.approx(7)  # 7 orthogonal rows, by the Gram matrix
    assert vendi_score(torch.eye(7).repeat(5, 1)) == pytest.approx(7)  # copies, by the covariance
    assert vendi_score(torch.ones(9, 4)) == pytest.approx(1)
    two = torch.tensor([[1.0, 0], [0.6, 0.8]])  # cosine 0.6: eigenvalues 0.8 and 0.2
    assert vendi_score(two) == pytest.approx(math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2)))
    rows = normal(40, 50)
    wide = torch.cat((rows, torch.zeros(40, 1)), 1)[:, :40]
    assert vendi_score(wide) == pytest.approx(vendi_score(wide.repeat(3, 1)))  # either matrix, the same eigenvalues


def test_effective_rank():
    turn, _ = torch.linalg.qr(normal(6, 6))
    line = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    assert effective_rank(line * turn[:1] + 5) == pytest.approx(1, abs=1e-6)
    plane = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)
    assert effective_rank(plane @ turn[:2] + 5) == pytest.approx(2)
    same = torch.rand(1, 300, generator=generator()).repeat(8, 1)
    assert effective_rank(same + 1e-7 * torch.rand(8, 300, generator=generator())) == 1
    assert effective_rank(normal(5000, 4)) == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("terms", [vendi_terms, effective_rank_terms])
def test_spectral_terms_predict_new_samples(terms):
    rows = normal(2000, 5) * torch.tensor([3.0, 2, 1, 1, 0.5]) + 0.5
    values = terms(rows)
    rest = torch.arange(2000) != (values - values.mean()).abs().argmax()
    change = terms(rows[rest]).mean() - values.mean()
    assert (values[rest].mean() - values.mean()).item() == pytest.approx(change.item(), rel=0.02)


@pytest.mark.parametrize(("channels", "size", "scales"), [(3, 32, 3), (1, 16, 2), (1, 28, 2), (3, 64, 4), (3, 128, 5)])
def test_ms_ssim_agrees_with_torchmetrics(channels, size, scales):
    functional = pytest.importorskip("torchmetrics.functional.image")
    a = torch.rand(4, channels, size, size, generator=generator())
    b = (a + 0.4 * torch.randn(a.shape, generator=generator(1))).clamp(0, 1)
    a[0], betas = 1 - b[0], ms_ssim_betas(size)  # a negative of the other: clamped at 0
    theirs = functional.multiscale_structural_similarity_index_measure(
        a.double(), b.double(), kernel_size=5, betas=tuple(betas), data_range=1.0, reduction="none", normalize="relu")
    assert len(betas) == scales
    assert sum(betas) == pytest.approx(1)
    torch.testing.assert_close(ms_ssim_pairs(a * 2 - 1, b * 2 - 1), theirs.double(), atol=1e-4, rtol=0)


def test_ms_ssim_pairs_are_of_different_images():
    images = torch.rand(2, 1, 16, 16, generator=generator()) * 2 - 1
    found = ms_ssim(images, 50, generator())
    pair = ms_ssim_pairs(images[:1], images[1:]).item()
    torch.testing.assert_close(found["terms"], torch.full((50,), pair, dtype=torch.float64))
    assert found["value"] == pytest.approx(pair)
    assert found["settings"]["pairs"] == 50
    assert ms_ssim(images[:1].repeat(5, 1, 1, 1), 10, generator())["value"] == pytest.approx(1)
    for wrong in (images[:1], images[..., :4]):
        with pytest.raises(UserError, match="at least 2 images of at least 8x8"):
            ms_ssim(wrong, 10, generator())


def test_ms_ssim_of_five_scales_by_hand():
    # images of one colour: contrast and structure are 1, luminance is left, to the last scale's power
    a, b = torch.full((1, 3, 32, 32), -0.2), torch.full((1, 3, 32, 32), 0.6)  # 0.4 and 0.8 of the range
    luminance = (2 * 0.4 * 0.8 + 1e-4) / (0.4**2 + 0.8**2 + 1e-4)
    assert ms_ssim_pairs_of_five_scales(a, b).item() == pytest.approx(luminance**0.1333, rel=1e-6)
    # a checkerboard of pixels is grey after the first scale, where the window takes whole tiles of it
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1
    taps = torch.exp(-(torch.arange(11.0).double() - 5).square() / (2 * 1.5**2))
    lean = ((-1.0) ** torch.arange(11) * taps / taps.sum()).sum().item() ** 2  # of the window to one colour
    variance = (1 - lean**2) / 4
    same, apart = (ms_ssim_pairs_of_five_scales(board[None, None], other[None, None]).item()
                   for other in (board, torch.zeros(32, 32)))
    assert same == pytest.approx(1)
    assert apart == pytest.approx((9e-4 / (variance + 9e-4)) ** 0.0448, rel=1e-6)
    # a negative has covariances of the other sign: their absolute value makes it alike
    assert ms_ssim_pairs_of_five_scales(board[None, None], -board[None, None]).item() == pytest.approx(1, abs=1e-3)


def test_ms_ssim_of_five_scales_takes_any_side():
    noise = torch.rand(2, 1, 64, 64, generator=generator()) * 2 - 1
    for side in (8, 16, 28, 64):
        found = ms_ssim_pairs_of_five_scales(noise[:1, :, :side, :side], noise[1:, :, :side, :side]).item()
        assert 0 < found < 1
        assert ms_ssim_pairs_of_five_scales(noise[..., :side, :side], noise[..., :side, :side]).tolist() == \
            pytest.approx([1, 1])


# ---------------------------------------------------------------------------- class probabilities


def test_inception_score_terms():
    score, variety, doubt = inception_score_terms(torch.eye(4))
    assert (score, variety, doubt) == (pytest.approx(4), pytest.approx(math.log(4)), 0)
    score, variety, doubt = inception_score_terms([[0.5, 0.5], [1, 0]])
    marginal = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert variety == pytest.approx(marginal)
    assert doubt == pytest.approx(math.log(2) / 2)
    assert score == pytest.approx(math.exp(marginal - math.log(2) / 2))


def test_am_score_terms():
    assert am_score_terms(torch.eye(5), torch.eye(5)) == (pytest.approx(0), pytest.approx(0), 0)
    train, made = [[1.0, 0], [0, 1], [0, 1], [0, 1]], [[0.8, 0.2], [0.2, 0.8]]
    doubt = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    wanted = (pytest.approx(divergence + doubt), pytest.approx(divergence), pytest.approx(doubt))
    assert am_score_terms(made, train) == wanted
    assert am_score_terms(made, [0.25, 0.75]) == wanted  # the mean will do
    assert am_score_terms([[1.0, 0]], train) == (math.inf, math.inf, 0)
    uniform = torch.full((3, 4), 0.25)
    assert am_score_terms(uniform, torch.eye(4)) == (pytest.approx(math.log(4)), 0, pytest.approx(math.log(4)))


def test_am_score_of_weighted_rows_is_that_of_as_many_copies():
    rows, train = [[0.8, 0.2], [0.1, 0.9]], [0.3, 0.7]
    assert am_score_terms(rows, train, [0.5, 1.5]) == pytest.approx(am_score_terms([rows[0], *[rows[1]] * 3], train))


# --------------------------------------------------------------------------------------- intervals


def test_the_largest_mean_and_its_luck():
    label, value, luck = largest_mean({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([0.0, 0.5])}, generator())
    assert (label, value) == ("a", 2)  # b's mean never exceeds 0.5, a's is 1, 2, 2 or 3
    assert luck["low"] == 1 and luck["high"] == 3 and abs(luck["bias"]) < 0.15
    assert luck["noise"] == pytest.approx(math.sqrt(0.5), rel=0.1)
    # of ten classes alike, the largest of means of n normal values exceeds their mean by 1.5388 / sqrt(n)
    alike = {k: (row - row.mean()) / row.std() for k, row in enumerate(normal(10, 400))}
    for size in (100, 25):
        assert largest_mean(alike, generator(), size)[2]["bias"] == pytest.approx(1.5388 / math.sqrt(size), rel=0.1)


def test_bootstrap_of_a_mean_is_the_normal_interval():
    values = normal(400)
    half = 1.96 * values.std().item() / 20
    for low, high in (bootstrap(lambda rows: values[rows].mean(), 400, generator(), 2000),
                      bootstrap_means(values, generator(), repeats=2000)):
        assert low == pytest.approx(values.mean().item() - half, abs=0.012)
        assert high == pytest.approx(values.mean().item() + half, abs=0.012)


def test_bootstrap_means_of_a_figure_is_the_full_bootstrap():
    p = torch.rand(60, 3, generator=generator())
    p = p / p.sum(1, keepdim=True)
    entropies = torch.special.entr(p).sum(1, keepdim=True)
    cheap = bootstrap_means(torch.cat((p, entropies), 1), generator(),
                            lambda mean: (torch.special.entr(mean[:-1]).sum() - mean[-1]).exp(), repeats=20)
    whole = bootstrap(lambda rows: inception_score_terms(p[rows])[0], 60, generator(), repeats=20)
    assert cheap == pytest.approx(whole)  # the same 20 draws


@pytest.mark.parametrize(("dim", "count"), [(4, 200), (24, 100)])
def test_frechet_intervals_cover_the_expected_distance(dim, count):
    root, real, _ = gaussian_pair(dim, seed=3)
    values, intervals = [], []
    for seed in range(300):
        fake = normal(count, dim, seed=5000 + seed) @ root.T
        intervals.append(bootstrap_means(frechet_terms(fake, real), generator(seed), repeats=200))
        values.append(frechet_terms(fake, real).mean().item())
    expected = np.mean(values)  # at this many images
    hits = sum(low <= expected <= high for low, high in intervals)
    assert 0.91 <= hits / 300 <= 0.985
    assert np.mean([high - low for low, high in intervals]) == pytest.approx(2 * 1.96 * np.std(values), rel=0.15)


def test_combine_seeds():
    mean, low, high = combine_seeds([1.0, 2.0, 4.0])
    half = 4.302653 * math.sqrt(7 / 3) / math.sqrt(3)  # t quantile of 2 degrees of freedom
    assert (mean, low, high) == (pytest.approx(7 / 3), pytest.approx(7 / 3 - half), pytest.approx(7 / 3 + half))
    assert combine_seeds([0.1]) == (0.1, None, None)
