"""Distances between sets of features, and scores of class probabilities: pure functions in float64.

Features are (N, F) and probabilities (N, K), one row an image, as tensors or arrays of any real type. The figures
named `..._terms` have one value a row whose mean is the figure, exactly or to first order, so that
metrics.intervals can resample rows without computing the figure again.
"""

import torch
from torch.nn import functional

from utils import UserError

BLOCK = 1000  # rows that are compared with a whole set at a time


def rows64(values):
    """(N, F) of any real type, tensor or array, as float64 on the CPU."""
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


def thinned(values, most):
    """At most `most` rows, spread evenly, so that rows sorted by class keep their shares."""
    values = torch.as_tensor(values)
    if len(values) <= most:
        return values
    return values[torch.linspace(0, len(values) - 1, most).round().long()]


class Moments:
    """Mean (F,) and covariance (F, F) of feature rows, gathered over batches of any size.

    Sums of squares are kept about the running mean (Chan, Golub and LeVeque, 1983), so that a large mean costs no
    digits and the batches' sizes do not matter. `count` is the number of rows.
    """

    def __init__(self, dim):
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features):
        """Add the rows of `features` (n, F); returns self."""
        for part in torch.as_tensor(features).split(4096):
            if len(part):
                part = rows64(part)
                mean = part.mean(0)
                centred = part - mean
                self._add(len(part), mean, centred.T @ centred)
        return self

    def merge(self, other):
        """Add all rows that another Moments has seen; returns self."""
        if other.count:
            self._add(other.count, other.mean, other.scatter)
        return self

    def _add(self, count, mean, scatter):
        total = self.count + count
        apart = mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(apart, apart, alpha=self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total

    @property
    def covariance(self):
        """The unbiased covariance (F, F), divided by count - 1. Raises UserError for fewer than 2 rows."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, {self.count} given; draw more.")
        return self.scatter / (self.count - 1)


# -------------------------------------------------------------------------------- Frechet distance


def half_root(covariance):
    """A matrix A (F, F) with A A^T = covariance, symmetric and positive semi-definite up to rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()


def frechet_from(half1, mean1, mean2, cov2):
    """The Frechet distance, given A1 = half_root(S1): tr (S1 S2)^1/2 is the sum of the roots of A1^T S2 A1."""
    roots = torch.linalg.eigvalsh(half1.T @ cov2 @ half1).clamp(min=0).sqrt()
    distance = (mean1 - mean2).square().sum() + half1.square().sum() + cov2.trace() - 2 * roots.sum()
    return max(distance.item(), 0.0)


def frechet_distance(mean1, cov1, mean2, cov2):
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) of two Gaussians: the square of their Wasserstein-2 distance.

    Dowson and Landau 1982; between Inception features it is the FID (Heusel et al., NeurIPS 2017). Means are (F,),
    covariances (F, F). (S1 S2)^1/2 is taken from eigenvalues of the symmetric S1^1/2 S2 S1^1/2, which stay real where
    a covariance is singular.
    """
    mean1, cov1, mean2, cov2 = (rows64(value) for value in (mean1, cov1, mean2, cov2))
    return frechet_from(half_root(cov1), mean1, mean2, cov2)


def frechet_terms(features_fake, moments_real):
    """One value a fake, (N,) float64, with the Frechet distance as mean: the distance plus the row's influence on it.

    The influence of x is 2 (m1 - m2)(x - m1) + (x - m1)^T (I - T) (x - m1), less its mean, where
    T = S1^-1/2 (S1^1/2 S2 S1^1/2)^1/2 S1^-1/2 is the optimal transport map from the fakes' Gaussian to the real one
    (I - T is the gradient of the distance by S1). Real moments are taken as fixed.
    """
    fake = Moments(len(moments_real.mean)).update(features_fake)
    values, vectors = torch.linalg.eigh(fake.covariance)
    roots = values.clamp(min=0).sqrt()
    half = vectors * roots
    inverse = torch.where(values > 1e-12 * values[-1], 1 / roots, 0.0)  # in directions that no fake takes T is not used
    inner, turned = torch.linalg.eigh(half.T @ moments_real.covariance @ half)
    inner = inner.clamp(min=0).sqrt()
    root_map = (vectors * inverse) @ (turned * inner.sqrt())  # (F, F), its square by its transpose is T
    apart = fake.mean - moments_real.mean
    distance = apart.square().sum() + values.sum() + moments_real.covariance.trace() - 2 * inner.sum()
    terms = []
    for part in torch.as_tensor(features_fake).split(4096):
        centred = rows64(part) - fake.mean
        terms.append(2 * centred @ apart + centred.square().sum(1) - (centred @ root_map).square().sum(1))
    terms = torch.cat(terms)
    return terms - terms.mean() + distance.clamp(min=0)


def fid_infinity(features_fake, moments_real, generator):
    """The Frechet distance extrapolated to infinitely many fakes (Chong and Forsyth, CVPR 2020).

    The distance of N fakes is too large by about a constant over N; a line through its values at several N is read
    off at 1/N = 0. Where the paper draws 15 random subsets, the shuffled fakes are cut here into 1, 2, 4 and 8 equal
    blocks and the distances of the blocks are averaged: each size then uses all fakes alike, and their common error
    does not tilt the line. A block holds at least as many rows as features have dimensions where N allows it.
    Still biased by the finite number of real images. Raises UserError for fewer than 8 fakes.
    """
    features_fake = torch.as_tensor(features_fake)
    dim, count = len(moments_real.mean), len(features_fake)
    if count < 8:
        raise UserError(f"the extrapolation to infinitely many images needs at least 8, {count} given; draw more.")
    cuts = 8 if count // 8 >= dim else 4
    size = count // cuts
    order = torch.randperm(count, generator=generator)
    blocks = [Moments(dim).update(features_fake[order[i * size:(i + 1) * size]]) for i in range(cuts)]
    half = half_root(moments_real.covariance)
    inverse_sizes, distances = [], []
    while True:
        values = [frechet_from(half, moments_real.mean, block.mean, block.covariance) for block in blocks]
        inverse_sizes.append(1 / blocks[0].count)
        distances.append(sum(values) / len(values))
        if len(blocks) == 1:
            break
        blocks = [left.merge(right) for left, right in zip(blocks[::2], blocks[1::2], strict=True)]
    x, y = torch.tensor(inverse_sizes, dtype=torch.float64), torch.tensor(distances, dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return (y.mean() - slope * x.mean()).item()


# ------------------------------------------------------------------------- kernel and neighbours


def cubic_kernel(a, b):
    """k(x, y) = (x . y / F + 1)^3 of rows (n, F) and (m, F): (n, m)."""
    products = torch.mm(a, b.T).div_(a.shape[1]).add_(1)
    return products.square().mul_(products)


def kid(fake, real, subsets=100, subset_size=1000, generator=None):
    """Kernel Inception Distance (Binkowski et al., ICLR 2018): (mean, standard deviation) over random subsets.

    The unbiased estimate of the squared maximum mean discrepancy under the cubic polynomial kernel, between
    `subset_size` rows of each set drawn without replacement; it may be negative.
    Raises UserError where a set holds fewer rows than that.
    """
    least = min(len(fake), len(real))
    if not 2 <= subset_size <= least:
        raise UserError(f"KID subsets of {subset_size} images were asked for and the smaller set holds {least}; "
                        "give from 2 to that many.")
    fake, real, values = torch.as_tensor(fake), torch.as_tensor(real), []
    for _ in range(subsets):
        x = rows64(fake[torch.randperm(len(fake), generator=generator)[:subset_size]])
        y = rows64(real[torch.randperm(len(real), generator=generator)[:subset_size]])
        k_xx, k_yy, k_xy = cubic_kernel(x, x), cubic_kernel(y, y), cubic_kernel(x, y)
        within = k_xx.sum() - k_xx.trace() + k_yy.sum() - k_yy.trace()
        values.append(within / (subset_size * (subset_size - 1)) - 2 * k_xy.mean())
    values = torch.stack(values)
    return values.mean().item(), values.std(correction=0).item()


def squared_distances(a, b):
    """Squared Euclidean distances (n, m) of float64 rows (n, F) and (m, F)."""
    return torch.addmm(b.square().sum(1)[None], a, b.T, alpha=-2).add_(a.square().sum(1)[:, None]).clamp_(min=0)


def neighbour_radii(rows, k):
    """The squared distance of each row (n, F) to its k-th nearest other row: (n,)."""
    radii = []
    for start in range(0, len(rows), BLOCK):
        apart = squared_distances(rows[start:start + BLOCK], rows)
        places = torch.arange(len(apart))
        apart[places, places + start] = torch.inf
        radii.append(apart.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(radii)


def prdc_terms(real, fake, k=5, max_rows=10_000):
    """What `precision_recall_density_coverage` averages: {name: float64 (rows,)}.

    Precision and density have one value a fake, recall and coverage one a real image.
    """
    real, fake = rows64(thinned(real, max_rows)), rows64(thinned(fake, max_rows))
    if min(len(real), len(fake)) <= k:
        raise UserError(f"precision and recall with {k} neighbours need more than {k} images of each kind; "
                        f"{len(real)} real and {len(fake)} generated were given.")
    centre = real.mean(0)
    real, fake = real - centre, fake - centre
    real_radii, fake_radii = neighbour_radii(real, k), neighbour_radii(fake, k)
    precision, density = [], []
    recall, coverage = torch.zeros(len(real), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    for start in range(0, len(fake), BLOCK):
        apart = squared_distances(fake[start:start + BLOCK], real)  # (fakes of the block, real images)
        near_real = apart <= real_radii
        precision.append(near_real.any(1))
        density.append(near_real.sum(1) / k)
        coverage |= near_real.any(0)
        recall |= (apart <= fake_radii[start:start + BLOCK, None]).any(0)
    terms = {"precision": torch.cat(precision), "recall": recall, "density": torch.cat(density), "coverage": coverage}
    return {name: value.double() for name, value in terms.items()}


def precision_recall_density_coverage(real, fake, k=5, max_rows=10_000):
    """Fidelity and variety by balls around each image that reach to its k-th neighbour: {name: float}.

    Precision is the share of fakes in a ball of a real image, recall the share of real images in a ball of a fake
    (Kynkaanniemi et al., NeurIPS 2019); density is the number of real balls around a fake over k, which may exceed 1,
    coverage the share of real balls that hold a fake (Naeem et al., ICML 2020). Recall and coverage grow with the
    number of images: compare values of equal numbers. Sets above `max_rows` are thinned evenly to it, memory is
    bounded by blocks of rows. Raises UserError for sets of k rows or fewer.
    """
    return {name: value.mean().item() for name, value in prdc_terms(real, fake, k, max_rows).items()}


# ------------------------------------------------------------------- variety without a reference


def spectral_terms(rows):
    """One value a row, (n,) float64, with mean H: the entropy of the normalised eigenvalues of the mean of x x^T.

    To first order the mean over resampled rows is the H of those rows. The eigenvalues are those of the n by n matrix
    of products as well, which is used where it is smaller.
    """
    n, dim = rows.shape
    if n > dim:
        values, vectors = torch.linalg.eigh(rows.T @ rows / n)
        parts = (rows @ vectors).square()  # (n, F): each row's part in each eigenvalue
    else:
        values, vectors = torch.linalg.eigh(rows @ rows.T / n)
        parts = vectors.square() * values.clamp(min=0) * n  # (n, n), without the directions of no row
    total = values.sum()
    shares = values / total
    logs = torch.where(shares > 1e-14, shares, 1.0).log()  # below the rounding of the largest there is none
    entropy = -(shares * logs).sum()
    return entropy - parts @ (logs + entropy) / total


def vendi_terms(features, max_n=10_000):
    """`spectral_terms` of features divided by their length; the Vendi score is exp of their mean."""
    return spectral_terms(functional.normalize(rows64(thinned(features, max_n)), dim=1))


def vendi_score(features, max_n=10_000):
    """The effective number of different images (Friedman and Dieng, TMLR 2023), from 1 to min(N, F), cosine kernel.

    exp of the entropy of the eigenvalues of K / n, K the cosines of all pairs of rows. More than `max_n` rows are
    thinned evenly. Grows with the number of rows: compare values of equal numbers.
    """
    return vendi_terms(features, max_n).mean().exp().item()


def effective_rank_terms(features, max_n=10_000):
    """`spectral_terms` of centred features; the effective rank is exp of their mean."""
    features = rows64(thinned(features, max_n))
    centred = features - features.mean(0)
    if centred.square().mean() <= 1e-12 * features.square().mean():  # nothing but the rounding of float32
        return torch.zeros(len(features), dtype=torch.float64)
    return spectral_terms(centred)


def effective_rank(features, max_n=10_000):
    """exp of the entropy of the normalised eigenvalues of the covariance (Roy and Vetterli, EUSIPCO 2007).

    features (N, F). From 1, for rows along one line and for equal rows, to min(N - 1, F). More than `max_n` rows are
    thinned evenly.
    """
    return effective_rank_terms(features, max_n).mean().exp().item()


BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al.'s weights of the scales, finest first
WINDOW, SIGMA = 11, 1.5


def ms_ssim_betas(size):
    """Weights of the scales for images of `size` pixels: as many, up to 5, as leave 8 pixels; they sum to 1."""
    scales = min(len(BETAS), max(1, int(size).bit_length() - 3))
    return [beta / sum(BETAS[:scales]) for beta in BETAS[:scales]]


def ms_ssim_pairs(a, b):
    """Multi-scale structural similarity (Wang et al., 2003) of images a[i] and b[i] in [-1, 1]: (B,) float64.

    a, b: (B, C, H, W), at least 6 pixels wide and high. An 11x11 Gaussian window of sigma 1.5, reflected edges,
    contrast measured where the window lies inside, negative terms taken as 0: as torchmetrics does.
    """
    a, b = (rows64(images).add(1).div(2) for images in (a, b))
    channels, margin = a.shape[1], WINDOW // 2
    taps = torch.exp(-(torch.arange(WINDOW, dtype=torch.float64) - margin).square() / (2 * SIGMA**2))
    taps = taps / taps.sum()
    column, row = (taps.view(shape).expand(channels, 1, *shape[2:]) for shape in ((1, 1, -1, 1), (1, 1, 1, -1)))

    def blurred(images):
        padded = functional.pad(images, (margin,) * 4, mode="reflect")
        return functional.conv2d(functional.conv2d(padded, column, groups=channels), row, groups=channels)

    result, c1, c2 = 1.0, 0.01**2, 0.03**2
    betas = ms_ssim_betas(min(a.shape[2:]))
    for scale, beta in enumerate(betas):
        mean_a, mean_b = blurred(a), blurred(b)
        var_a, var_b = (blurred(a * a) - mean_a**2).clamp(min=0), (blurred(b * b) - mean_b**2).clamp(min=0)
        term = (2 * (blurred(a * b) - mean_a * mean_b) + c2) / (var_a + var_b + c2)  # contrast and structure
        if scale == len(betas) - 1:
            term = term * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)  # luminance, coarsest scale only
        else:
            term = term[..., margin:-margin, margin:-margin]
        result = result * term.mean((1, 2, 3)).clamp(min=0) ** beta
        a, b = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)
    return result


def ms_ssim_pairs_of_five_scales(a, b):
    """`ms_ssim_pairs` as AM-GAN's code takes it, on a scale of its own: (B,) float64.

    Always five scales: where an image has become smaller than the window, the window shrinks to it, and its sigma in
    proportion. No padding, covariances by their absolute value. On CIFAR-10 real pairs of a class have about 0.3.
    """
    a, b = (rows64(images).add(1).div(2) for images in (a, b))
    result, c1, c2 = 1.0, 0.01**2, 0.03**2
    for scale, beta in enumerate(BETAS):
        channels, size = a.shape[1], min(WINDOW, *a.shape[2:])
        taps = torch.exp(-(torch.arange(size, dtype=torch.float64) - (size - 1) / 2).square()
                         / (2 * (SIGMA * size / WINDOW) ** 2))
        column, row = (taps.div(taps.sum()).view(shape).expand(channels, 1, *shape[2:])
                       for shape in ((1, 1, -1, 1), (1, 1, 1, -1)))
        mean_a, mean_b, square_a, square_b, product = (
            functional.conv2d(functional.conv2d(images, column, groups=channels), row, groups=channels)
            for images in (a, b, a * a, b * b, a * b))
        variances = (square_a - mean_a**2 + square_b - mean_b**2).clamp(min=0)
        term = (2 * (product - mean_a * mean_b).abs() + c2) / (variances + c2)
        if scale == len(BETAS) - 1:
            term = term * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        result = result * term.mean((1, 2, 3)) ** beta
        a, b = (functional.avg_pool2d(images, 2, ceil_mode=True, count_include_pad=False) for images in (a, b))
    return result


def random_pairs(images, pairs, generator, compare):
    """compare(a, b) of `pairs` random pairs of different images (N, C, H, W) in [-1, 1]: float64 (pairs,).

    Raises UserError for fewer than 2 images or for images below 8 pixels.
    """
    if len(images) < 2 or min(images.shape[2:]) < 8:
        raise UserError(f"MS-SSIM was given {len(images)} images of {images.shape[2]}x{images.shape[3]} pixels; "
                        "it needs at least 2 images of at least 8x8.")
    first = torch.randint(len(images), (pairs,), generator=generator)
    second = (first + torch.randint(1, len(images), (pairs,), generator=generator)) % len(images)
    return torch.cat([compare(images[i], images[j]) for i, j in zip(first.split(100), second.split(100), strict=True)])


def ms_ssim(images, pairs=1000, generator=None):
    """Likeness of random pairs of one class's images (Odena et al., ICML 2017): {"value", "terms", "settings"}.

    images (N, C, H, W) in [-1, 1]. value: the mean, 1 for equal images, lower for varied ones; terms: float64
    (pairs,), one value a pair; settings: window, sigma, betas and pairs, part of the figure's meaning.
    Raises UserError as `random_pairs` does.
    """
    terms = random_pairs(images, pairs, generator, ms_ssim_pairs)
    settings = {"window": WINDOW, "sigma": SIGMA, "betas": ms_ssim_betas(min(images.shape[2:])), "pairs": pairs}
    return {"value": terms.mean().item(), "terms": terms, "settings": settings}


# -------------------------------------------------------------------------- class probabilities


def inception_score_terms(probabilities):
    """(score, H(E p), E H(p)), entropies in nats; score = exp(H(E p) - E H(p)) (Salimans et al., NeurIPS 2016).

    probabilities (N, K): a classifier's, for N generated images. H(E p) is high for varied images, E H(p) low for
    clear ones. Taken over all images at once, not as a mean over 10 parts.
    """
    probabilities = rows64(probabilities)
    variety = torch.special.entr(probabilities.mean(0)).sum()
    doubt = torch.special.entr(probabilities).sum(1).mean()
    return (variety - doubt).exp().item(), variety.item(), doubt.item()


def am_score_terms(p_generated, p_train, weights=None):
    """(score, KL(mean of p_train || mean of p_generated), mean H(p_generated)) in nats; the score is their sum.

    Zhou et al., ICLR 2018 ("Activation Maximization Generative Adversarial Nets"), eq. (27); 0 is the least and best.
    Probabilities (N, K) of a classifier of the data's own classes, for generated and for training images (or the
    latter's mean, (K,)). weights (N,), of mean 1: how often each generated row counts; once by default.
    Infinite where a class of the training images never appears in a generated one's probabilities.
    """
    p_generated = rows64(p_generated)
    weights = torch.ones(len(p_generated), dtype=torch.float64) if weights is None else rows64(weights)
    wanted = rows64(p_train).reshape(-1, p_generated.shape[1]).mean(0)
    found = weights @ p_generated / len(p_generated)
    divergence = (torch.special.xlogy(wanted, wanted) - torch.special.xlogy(wanted, found)).sum()
    doubt = (weights * torch.special.entr(p_generated).sum(1)).mean()
    return (divergence + doubt).item(), divergence.item(), doubt.item()
