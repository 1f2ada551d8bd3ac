"""Target-free selection: the best checkpoint of a run by figures that no real image of the unseen class enters.

The authors' release keeps the checkpoint of least FID against real images of the class that is meant to be absent.
Here a candidate's score is

    log activation + log min(1, diversity) - log seen_fd - log (1 + seen_gap)

    activation   the probed classifier's mean probability of y* on fakes of y*
    diversity    the mean feature distance between fakes of y*, as a share of that between real images of a seen class
    seen_fd      the Frechet distance between real and generated images of the seen classes, in the probed features
    seen_gap     the distance between mean D_u of real and of generated images of the seen classes, over their spread

A product of figures, not a weighted sum: what a figure's unit is then shifts all scores alike, so that no weight has
to be chosen. Nor is it a rank among the candidates: a score is the candidate's own, so that neither later candidates
nor a resume can turn a comparison around. The gap is divided by the spread since D_u's scale drifts in training, and
enters as 1 + gap since it may come near 0, where it would decide alone. With several unseen classes the worst of them
counts. A NAIVE run draws no seen class; its fakes of y* are compared with the seen classes' images, as its D does.
"""

import math
import sys
from pathlib import Path

import torch

from datasets.stream import seen_images
from files import JsonLines
from metrics.collapse import classified, naturalness, plain
from metrics.distances import Moments, frechet_from, half_root
from utils import UserError, load_torch, save_torch

IMAGES = 1000  # about as many of each kind, an equal number of each class
FIRST_SEED = 2**41 + 2**40  # far from the collapse watch's


def score(figures):
    """The score of a dict with activation, diversity, seen_fd and seen_gap; higher is better."""
    least = 1e-9  # of what a logarithm is taken of
    return (math.log(max(figures["activation"], least)) + math.log(min(1.0, max(figures["diversity"], least)))
            - math.log(max(figures["seen_fd"], least)) - math.log1p(figures["seen_gap"]))


def standardised_gap(real, fake):
    """|difference of the means| over the root of the mean variance of two samples (n,) and (m,)."""
    spread = ((real.var() + fake.var()) / 2).sqrt()
    return ((real.mean() - fake.mean()).abs() / spread.clamp(min=1e-12)).item()


class Selection:
    """Keeps RUN/best.pt, a checkpoint whose 'selection' holds its figures, and RUN/selection.jsonl, a line a candidate.

    best.pt is replaced atomically, and by its equal or better alone: what it holds itself is what a new candidate has
    to reach, whether the run was resumed, fell back to an older checkpoint, or died between two files. One that cannot
    be read holds nothing that has to be reached.
    classifier: the probed FrozenClassifier. stream: the run's ImageStream. classes: names; unseen: labels of y*, at
    least one. step: where the run goes on; 0 for a new one.
    """

    def __init__(self, classifier, stream, classes, unseen, device, run, step):
        self.classifier, self.classes, self.unseen, self.device = classifier, classes, unseen, device
        self.per_class = math.ceil(IMAGES / (len(classes) - len(unseen)))
        self.real_images = torch.cat(list(seen_images(stream, unseen, self.per_class).values()))
        real = self.moments(self.real_images)
        self.real_mean, self.real_half = real.mean, half_root(real.covariance)
        self.lines = JsonLines(Path(run) / "selection.jsonl", step)
        self.path = Path(run) / "best.pt"
        self.best = -math.inf
        if step and self.path.exists():
            try:
                self.best = load_torch(self.path)["selection"]["score"]
            except UserError as error:
                print(f"warning: {error} The next candidate takes its place.", file=sys.stderr)

    def moments(self, images):
        features, _ = classified(self.classifier, images, self.device)
        return Moments(features.shape[1]).update(features)

    def figures(self, sampler, D, watched):
        """The four figures and the score of what `sampler` draws; `watched`: the collapse watch's record of it."""
        judged = [y for y in sampler.drawn if y not in self.unseen] or sampler.drawn
        fakes = torch.cat([sampler.class_images(y, range(FIRST_SEED, FIRST_SEED + self.per_class)) for y in judged])
        fake = self.moments(fakes)
        of_unseen = [watched["classes"][self.classes[y]] for y in self.unseen]
        diversity = [figures["feature_distance"] for figures in of_unseen]
        figures = {"activation": min(figures["activation"] for figures in of_unseen),
                   "diversity": 1.0 if None in diversity else min(diversity),  # None: no real images differ
                   "seen_fd": frechet_from(self.real_half, self.real_mean, fake.mean, fake.covariance),
                   "seen_gap": standardised_gap(naturalness(D, self.real_images, self.device),
                                                naturalness(D, fakes, self.device))}
        figures = {name: plain(value) for name, value in figures.items()}
        return {**figures, "score": plain(score(figures))}

    def consider(self, state, sampler, D, watched):
        """Judge the checkpoint `state` (of Training.state) and keep it as best.pt if none was better.

        Call before the checkpoint itself is written: a resume from it then finds its candidate judged.
        Raises UserError when the disk refuses; the older best.pt then stands.
        """
        figures = self.figures(sampler, D, watched)
        is_best = figures["score"] >= self.best
        record = {"step": state["step"], **figures, "best": is_best}
        if is_best:
            save_torch(self.path, {**state, "selection": record})
            self.best = figures["score"]
        self.lines.write(record)
