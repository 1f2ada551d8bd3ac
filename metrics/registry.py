"""The measurements by name. A name is a protocol: what is compared with what, and how many images of each."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from utils import UserError, nearest


@dataclass(frozen=True)
class Metric:
    """One protocol. measure: Measured -> list of records, dicts with 'value', 'low', 'high', 'class' and 'n'.

    name: as printed with an evaluator's features; fid_name: as printed with the FID network's, where the field has a
    name of its own for that. description: one sentence, and which way is better. needs: what has to be there besides
    the evaluator, of 'real' (the data set's training images), 'probed' (the classifier that was probed), 'presence'
    (the scorers of --presence), 'features' (a checkpoint that draws from them) and 'sound' (images that are
    spectrograms).
    parts: the names of its records, where those are not the metric's own.
    """

    name: str
    measure: Callable
    description: str
    needs: tuple[str, ...] = ()
    fid_name: str = ""
    parts: tuple[str, ...] = ()


METRICS = {}


def register(name, description, needs=(), fid_name="", parts=()):
    """Decorator that adds measure(Measured) to METRICS. Raises ValueError where the name is taken."""
    def add(measure):
        metric = Metric(name, measure, description, tuple(needs), fid_name or name, tuple(parts))
        taken = {known for other in METRICS.values() for known in (other.name, other.fid_name)}
        if taken & {name, metric.fid_name}:
            raise ValueError(f"the metric '{name}' or its other name '{metric.fid_name}' is registered already")
        METRICS[name] = metric
        return measure
    return add


def find_metric(name, inception=False, num=None):
    """The Metric that a user calls `name`, which may carry the number of images, as in intra_fid5k.

    inception: whether the FID network's features are used; names that only those may bear are refused otherwise.
    Raises UserError for an unknown name, and for a number that is not `num`, images a class.
    """
    names = {metric.fid_name if inception else metric.name: metric for metric in METRICS.values()}
    others = {metric.name if inception else metric.fid_name: metric for metric in METRICS.values()}
    base, number = re.fullmatch(r"(.*?)(\d+k?)?", name).groups()
    if base in names:
        if number is not None and int(number.replace("k", "000")) != num:
            raise UserError(f"metric '{name}' is measured on {number} images a class, and --num is {num}; make them "
                            "agree.")
        return names[base]
    if base in others:
        features = "an evaluator's features" if inception else "the FID network's features (--features inception)"
        right = others[base].fid_name if inception else others[base].name
        raise UserError(f"metric '{name}' is the name with {features}; with those given it is called '{right}'.")
    raise UserError(f"metric '{name}' is unknown ({nearest(base, names)}). Known: {', '.join(names)}.")


def short_number(num):
    """5000 -> '5k', 200 -> '200'."""
    return f"{num // 1000}k" if num % 1000 == 0 else str(num)
