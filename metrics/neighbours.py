"""Nearest training images: is a fake a copy, or a morph, of an image that the run was given?

Distances mean little as such. Each is therefore divided by the typical distance of a training image to the
training image nearest to it (the median over a sample, itself left out): 0 is a copy, 1 is as far as two neighbouring
training images lie. Close to real images of the unseen class is another matter: the run had none of them to copy.
"""

import torch

from utils import UserError

SAMPLE = 1000  # training images from which the typical distance is taken
BLOCK = 4096  # references compared at a time


def nearest(queries, references, own=None, candidates=4):
    """The nearest reference of each query: (Euclidean distances float64 (n,), places in `references` int64 (n,)).

    queries (n, d) and references (m, d): of any real type; references are compared blockwise. own (n,): the place of
    each query among the references, which is passed over. The products of large vectors round in float32, so the
    best few `candidates` by them are measured again by their differences in float64: a copy is at distance 0.
    """
    count = len(queries)
    scores, places = torch.full((count, 0), torch.inf), torch.zeros((count, 0), dtype=torch.int64)
    wanted = queries.float()
    for start in range(0, len(references), BLOCK):
        block = references[start:start + BLOCK].float()
        # (n, BLOCK): squared distance less the query's own norm
        part = torch.addmm(block.square().sum(1)[None], wanted, block.T, alpha=-2)
        if own is not None:
            here = ((own >= start) & (own < start + len(block))).nonzero()[:, 0]
            part[here, own[here] - start] = torch.inf
        part, columns = part.topk(min(candidates, len(block)), largest=False)
        scores, places = torch.cat((scores, part), 1), torch.cat((places, columns + start), 1)
        scores, kept = scores.topk(min(candidates, scores.shape[1]), largest=False)
        places = places.gather(1, kept)
    exact = torch.stack([(references[column].double() - queries.double()).norm(dim=1) for column in places.T], 1)
    exact[scores == torch.inf] = torch.inf
    distances, column = exact.min(1, keepdim=True)
    return distances[:, 0], places.gather(1, column)[:, 0]


class Neighbourhood:
    """Training images (m, d) in one space; `typical` is the unit of its distances.

    spread: distances float64 (min(SAMPLE, m),), in that unit, of random training images to the other one nearest to
    each. Raises UserError for fewer than 2 training images, or where every one of the sample has a double.
    """

    def __init__(self, references, generator):
        if len(references) < 2:
            raise UserError(f"nearest neighbours need at least 2 training images; {len(references)} were given.")
        self.references = references
        own = torch.randperm(len(references), generator=generator)[:SAMPLE]
        distances, _ = nearest(references[own], references, own)
        self.typical = distances.median()
        if self.typical == 0:
            raise UserError("most training images have an exact double, so that distances to them have no unit; remove "
                            "the doubles from the image set.")
        self.spread = distances / self.typical

    def nearest(self, queries):
        """(distances float64 (n,) in typical ones, places int64 (n,)) of the images nearest to queries (n, d)."""
        distances, places = nearest(queries, self.references)
        return distances / self.typical, places

    def copies(self, distances):
        """Which images lie nearer to a training image than 99 % of training images do to each other: bool (n,).

        An exact copy always counts, also where training images have doubles.
        """
        return (distances < self.spread.quantile(0.01)) | (distances == 0)
