"""Recognition: the share of images that a classifier takes for the class they were drawn for.

With the evaluator as judge it stands in for the human raters of the paper's figure 6; with the probed
classifier it is that classifier's acceptance, which the training itself maximised.
"""

import numpy as np
from scipy.stats import binomtest


def confusion(predicted, drawn, num_classes):
    """Counts {drawn label: int64 (num_classes,)}: how the images drawn for each label are classified.

    predicted, drawn: labels (N,); a prediction of -1 is of no class, and counted for none.
    """
    return {int(label): np.bincount(predicted[(drawn == label) & (predicted >= 0)], minlength=num_classes)
            for label in np.unique(drawn)}


def rate(hits, total):
    """A share as {'rate', 'low', 'high', 'of'}: its value, its 95 % Wilson interval and its base."""
    interval = binomtest(int(hits), int(total)).proportion_ci(0.95, method="wilson")
    return {"rate": int(hits) / int(total), "low": float(interval.low), "high": float(interval.high), "of": int(total)}


def rate_difference(hits1, hits2, both, total):
    """hits1/total - hits2/total for two yes-or-no judgements of the same images, with its 95 % interval.

    both: the images that both say yes to. Returns {'rate', 'low', 'high', 'of'}. Interval: Newcombe 1998,
    "Improved confidence intervals for the difference between binomial proportions based on paired data",
    method 8 (each share's Wilson interval, and the correlation of the two judgements).
    """
    first, second = rate(hits1, total), rate(hits2, total)
    p1, p2 = first["rate"], second["rate"]
    spread = np.sqrt(p1 * (1 - p1) * p2 * (1 - p2))
    phi = (both / total - p1 * p2) / spread if spread > 0 else 0.0

    def half(a, b):
        return np.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    down = half(p1 - first["low"], second["high"] - p2)
    up = half(first["high"] - p1, p2 - second["low"])
    return {"rate": p1 - p2, "low": float(max(-1, p1 - p2 - down)), "high": float(min(1, p1 - p2 + up)), "of": total}
