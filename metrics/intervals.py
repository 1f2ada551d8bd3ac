"""95 % intervals: the bootstrap over images, and the t interval over seeds.

The percentile bootstrap (Efron, 1979) recomputes a figure on rows drawn with replacement. Where a figure is the mean
of one value a row, exactly or to first order (the `..._terms` of metrics.distances: Frechet distance, Vendi score,
precision and recall), only those values are drawn again, which costs nothing beside the figure (the linear bootstrap,
Efron and Tibshirani 1993, chapter 22): a Frechet distance of 2048 features is decomposed once, not 200 times. Drawn
again as a whole it would also be too large, since copies among the rows add to the bias that a finite N has anyway.
All intervals are of the generated images' luck at this N, with classifiers, training run and real images fixed.
"""

import math

import torch
from scipy.stats import t as student

from metrics.distances import rows64

LEVEL = 0.95


def percentiles(values):
    """(low, high): the central 95 % of resampled figures (repeats,)."""
    low, high = torch.quantile(rows64(values), torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64))
    return low.item(), high.item()


def bootstrap(statistic, n, generator, repeats=200):
    """(low, high) of any figure. statistic: rows, int64 (n,) from 0 to n - 1 with repetitions -> float.

    Not for figures that copies among the rows distort (KID, nearest neighbours, Vendi score).
    """
    return percentiles([statistic(torch.randint(n, (n,), generator=generator)) for _ in range(repeats)])


def resampled_means(values, generator, repeats=400):
    """Means of rows drawn with replacement from `values` (N,) or (N, D): float64 (repeats, D), D = 1 for (N,)."""
    values = rows64(values)
    values = values.reshape(len(values), -1)
    n, means = len(values), []
    for part in torch.arange(repeats).split(20):
        rows = torch.randint(n, (len(part), n), generator=generator)
        # how often each row was drawn, (20, N), times the rows: no wide row is copied
        counts = torch.bincount((rows + n * torch.arange(len(part))[:, None]).flatten(), minlength=len(part) * n)
        means.append(counts.view(len(part), n).double() @ values / n)
    return torch.cat(means)


def bootstrap_means(values, generator, figure=None, repeats=400):
    """(low, high) of the mean of `values` (N,), or of figure(means): (D,) -> number, for rows (N, D).

    The inception score, for one, is a figure of the means of the rows [p, H(p)].
    """
    means = resampled_means(values, generator, repeats)
    return percentiles(means[:, 0] if figure is None else [float(figure(row)) for row in means])


def largest_mean(terms, generator, size=None, repeats=400):
    """The largest of several classes' means, and what luck does to it: (class, value, {low, high, noise, bias}).

    terms: {class: float64 (n,)}. Each class's values are drawn again, `size` of them (all by default), and the largest
    mean is taken again: noise is its standard deviation, bias how much it exceeds the value on average, since the
    largest of noisy means is too large.
    """
    means = {label: values.mean().item() for label, values in terms.items()}
    label = max(means, key=means.get)
    again = torch.stack([values[torch.randint(len(values), (repeats, size or len(values)), generator=generator)].mean(1)
                         for values in terms.values()]).max(0).values
    low, high = percentiles(again)
    return label, means[label], {"low": low, "high": high, "noise": again.std().item(),
                                 "bias": again.mean().item() - means[label]}


def kid_interval(mean, std, subsets, subset_size, n):
    """(low, high) of metrics.distances.kid, by the normal approximation; n: rows of the smaller set.

    Subsets of m out of n rows share rows: their spread shows only 1 - m/n of the variance of one subset, and their
    mean keeps m/n of it (Hoeffding's theorem for U-statistics, to first order). (None, None) for m = n.
    """
    if subset_size >= n:
        return None, None
    share = subset_size / n
    half = student.ppf((1 + LEVEL) / 2, math.inf) * std * math.sqrt(share / (1 - share) + 1 / subsets)
    return mean - half, mean + half


def combine_seeds(values):
    """(mean, low, high) of one figure over training seeds, by Student's t; low and high are None for a single seed."""
    values = rows64(values)
    mean = values.mean().item()
    if len(values) < 2:
        return mean, None, None
    half = student.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std().item() / math.sqrt(len(values))
    return mean, mean - half, mean + half
