"""Do images drawn from feature vectors have those features? By the network they were drawn from, and by a judge.

An agreement with the probed network may come from the class alone, or from noise that no eye sees. So each figure is
also taken within classes, where a generator that knows the class alone gets 0, and by a judge, a classifier of another
architecture and seed, that is asked about the target's image and never about the features. Images are (N, C, H, W) in
[-1, 1]; features are standardised on the training images (features.FeatureSpace).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from datasets import load_split
from feature_losses import ccc
from features import Bank, raw_features
from metrics.distances import Moments, frechet_distance, thinned
from metrics.intervals import bootstrap, bootstrap_means
from metrics.protocols import record
from metrics.registry import register
from utils import UserError, to_unit_range

BATCH = 250
PAIRS, WALKS = 2000, 100  # fakes, and images walked from, at most
KNOWN = 5000  # training images that class means are taken of, at most
TOP = 10
STEPS, LOW, HIGH = 7, 0.05, 0.95  # of a walk, and the training images' quantiles that it goes between
WALKED = 3  # principal components that are walked along
WATCHED = 10  # principal components in which leakage is looked for
SIDE = 12  # pixels a side that identity is looked for in


# ------------------------------------------------------------------------------------ pure figures


def agreement(found, asked):
    """Mean over components of the CCC of features (N, f), in [-1, 1]."""
    return ccc(found, asked).mean().item()


def within(f, labels, means):
    """Features (N, f) less the mean of their class: labels (N,), means (K, f)."""
    return f - means[labels]


def ranks(found, references, targets):
    """Rank of each target among the references (M, f) by the cosine to `found` (N, f): int64 (N,), 1 is first.

    targets (N,): places of the right references. Equal cosines count against it.
    """
    references = F.normalize(references, dim=1)
    right = references[targets]
    found_ranks = []
    for part, own, target in zip(found.split(BATCH), right.split(BATCH), targets.split(BATCH), strict=True):
        cosines = F.normalize(part, dim=1) @ references.T  # (n, M)
        hit = (F.normalize(part, dim=1) * own).sum(1, keepdim=True)
        others = torch.ones_like(cosines, dtype=torch.bool).scatter_(1, target[:, None], False)
        found_ranks.append(1 + ((cosines >= hit - 1e-6) & others).sum(1))
    return torch.cat(found_ranks)


def blurred(images):
    """(N, C, H, W) -> (N, d): SIDE x SIDE mean pixels, less the mean of each image: no light, no detail."""
    small = F.adaptive_avg_pool2d(images, SIDE).flatten(1)
    return small - small.mean(1, keepdim=True)


def walk_figures(asked, obtained, others):
    """What walks gave: {"correlation", "monotone", "leakage"}, a value a walk each, tensors (walks,).

    asked, obtained (walks, steps): the coordinate walked along, in standard deviations; others (walks, steps, k):
    coordinates along other components, in theirs. correlation: of asked and obtained over the steps, 0 where nothing
    moves; monotone: 1.0 where obtained rises at every step; leakage: the mean |slope| of the others over asked.
    """
    a = asked - asked.mean(1, keepdim=True)
    o = obtained - obtained.mean(1, keepdim=True)
    norms = (a.square().sum(1) * o.square().sum(1)).sqrt()
    correlation = torch.where(norms > 1e-9, (a * o).sum(1) / norms.clamp(min=1e-9), 0.0)
    slopes = torch.einsum("ws,wsk->wk", a, others) / a.square().sum(1, keepdim=True)
    return {"correlation": correlation, "monotone": (obtained.diff(dim=1) > 0).all(1).float(),
            "leakage": slopes.abs().mean(1)}


# ----------------------------------------------------------------------------------- the real images


@dataclass(frozen=True)
class Seen:
    """What a network C says of the real images that targets are taken from: f (M, f), in its space, and predicted (M,).

    name: of a judge, '' of the probed network. class_means (K, f) are of the training images. All but C is on the CPU.
    """

    name: str
    C: object
    space: object
    f: torch.Tensor
    predicted: torch.Tensor
    class_means: torch.Tensor

    @classmethod
    def of(cls, name, C, bank, images):
        """Of images (M, C, H, W) in [-1, 1], with the Bank of the training images by the same network."""
        space = bank.space.to("cpu")
        return cls(name, C, space, *said(C, space, images), bank.class_means().cpu())

    def named(self, figure):
        """The name of a figure by this network: feature_ccc, or judged_feature_ccc@NAME."""
        return f"judged_{figure}@{self.name}" if self.name else figure

    def found(self, images):
        """(features (N, f), labels (N,)) of images (N, C, H, W)."""
        return said(self.C, self.space, images)


@torch.no_grad()
def said(C, space, images):
    """(features (N, f), labels (N,)) of images (N, C, H, W) in [-1, 1], all but C on the CPU."""
    found = [C.features_and_logits(part.to(C.mean.device)) for part in images.split(BATCH)]
    raw, logits = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return space.standardised(raw), logits.argmax(1)


def mean_record(name, values, generator):
    return record(name, values.float().mean(), bootstrap_means(values, generator), len(values))


def agreement_records(found, seen, targets, generator):
    """(records of CCC, within-class CCC, cosine and rank, ranks (N,)) of features `found` (N, f) against those of the
    target images (N,), by one network."""
    asked, labels = seen.f[targets], seen.predicted[targets]
    records = []
    for name, a, b in (("feature_ccc", found, asked), ("feature_ccc_within", within(found, labels, seen.class_means),
                                              within(asked, labels, seen.class_means))):
        interval = bootstrap(lambda rows, a=a, b=b: agreement(a[rows], b[rows]), len(a), generator)
        records.append(record(seen.named(name), agreement(a, b), interval, len(a)))
    place = ranks(found, seen.f, targets)
    return [*records, mean_record(seen.named("feature_cosine"), F.cosine_similarity(found, asked), generator),
            mean_record(seen.named("feature_mrr"), 1 / place, generator),
            record(seen.named("feature_median_rank"), place.float().median().item(), None, len(place))], place


# ------------------------------------------------------------------------------------------- whole


@torch.no_grad()
def in_batches(draw, *columns):
    return torch.cat([draw(*parts) for parts in zip(*(column.split(BATCH) for column in columns), strict=True)])


def measure_pairs(draw, images, seen, judge, num, generator, known=None):
    """Records of `num` images drawn for the features of other real ones: agreement, judge, realness, and more.

    draw(x, f, labels, seeds): images x (B, C, H, W) in [-1, 1], features f (B, f), the labels (B,) that the probed
    network gives them, and seeds (B,) of whatever else is drawn -> images. images (M, C, H, W): real ones that neither
    network nor draw was trained on; one half is edited and gives the features, the other is what realness is measured
    against. seen, judge: Seen by the probed network and by the judge. known: None where x is edited, and is asked to be
    kept; else training images (K, C, H, W), with which copies and variety are measured.
    """
    order = torch.randperm(len(images), generator=generator)
    half = len(order) // 2
    place = torch.arange(num) % half
    sources = order[place]
    targets = order[(place + torch.randint(1, half, (num,), generator=generator)) % half]
    x, f, labels = images[sources], seen.f[targets], seen.predicted[targets]
    seeds = torch.arange(num)
    fakes = in_batches(draw, x, f, labels, seeds)
    found, _ = seen.found(fakes)
    judged, judged_labels = judge.found(fakes)
    records, rank = agreement_records(found, seen, targets, generator)
    records += agreement_records(judged, judge, targets, generator)[0]
    hits = (judged_labels == judge.predicted[targets]).float()
    ceiling = (seen.predicted == judge.predicted).float().mean().item()
    records.append(mean_record(judge.named("feature_class"), hits, generator) | {"real": ceiling})
    count, reference = min(num, half), judge.f[order[half:]]
    distances = [distance_of(f, reference) for f in (judged[:count], judge.f[sources[:count]])]
    records.append(record(judge.named("feature_fd"), distances[0], None, count) | {"real": distances[1]})
    if known is None:
        own_rank = pixel_ranks(fakes, images, sources)
        records.append(mean_record("feature_both_at_10", ((own_rank <= TOP) & (rank <= TOP)).float(), generator))
        records.append(mean_record("feature_identity_top1", (own_rank == 1).float(), generator))
        own = seen.f[sources], seen.predicted[sources]
        for name, given in (("feature_cycle_l1", fakes), ("feature_self_l1", x)):
            records.append(mean_record(name, l1(in_batches(draw, given, *own, seeds), x), generator))
        return records, fakes
    again = in_batches(draw, x, f, labels, seeds + num)
    mates = companions(seen.predicted, targets, generator)
    judged_again = judge.found(again)[0]
    for name, drawn, real in (
            ("feature_diversity", l1(fakes, again), l1(images[targets], images[mates])),
            (judge.named("feature_diversity"), rms(judged, judged_again), rms(judge.f[targets], judge.f[mates])),
            ("feature_nearest", nearest(fakes, known), nearest(images[targets], known))):
        records.append(mean_record(name, drawn, generator) | {"real": real.mean().item()})
    return records, fakes


def l1(images, others):
    """Mean |images - others| (N,) of (N, C, H, W), in units of the range of a pixel."""
    return (images - others).abs().mean((1, 2, 3)) / 2


def rms(f, others):
    """Root mean square difference (N,) of features (N, f), in their standard deviations."""
    return (f - others).square().mean(1).sqrt()


def distance_of(f, reference):
    """Frechet distance of features (n, f) to (M, f)."""
    a, b = (Moments(f.shape[1]).update(part) for part in (f, reference))
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def companions(labels, rows, generator):
    """The place of another image of the same label, for each of `rows` (N,) of labels (M,); its own where it is alone.
    """
    found = rows.clone()
    for y in labels[rows].unique():
        of_label, asked = (labels == y).nonzero()[:, 0], labels[rows] == y
        steps = torch.randint(1, max(len(of_label), 2), (int(asked.sum()),), generator=generator)
        found[asked] = of_label[(torch.searchsorted(of_label, rows[asked]) + steps) % len(of_label)]
    return found


def nearest(images, known):
    """Distance (N,) of images to the nearest of `known` (K, C, H, W), root mean square of blurred pixels, 0: a copy."""
    references = blurred(known)
    return torch.cat([torch.cdist(blurred(part), references).min(1).values for part in images.split(BATCH)]) \
        / references.shape[1] ** 0.5 / 2


def pixel_ranks(fakes, images, sources):
    """Rank of each fake's source (N,) among real images (M, C, H, W) by the distance of blurred pixels: int64 (N,)."""
    references, found = blurred(images), []
    for part, source in zip(fakes.split(BATCH), sources.split(BATCH), strict=True):
        apart = torch.cdist(blurred(part), references)
        own = apart.gather(1, source[:, None])
        found.append(1 + (apart < own).sum(1))
    return torch.cat(found)


def walk_targets(space, f, component, steps=STEPS):
    """(features (n, steps, f), asked (steps,)): one principal coordinate moved from its LOW to its HIGH quantile."""
    shares = torch.linspace(LOW, HIGH, steps).tolist()
    asked = torch.stack([space.quantile(component, share) for share in shares])
    return torch.stack([space.moved(f, component, value) for value in asked], 1), asked


def readout(judge, coordinates):
    """A linear map (f' + 1, k) from the judge's features to coordinates (M, k) of the same real images, by ridge."""
    ones = torch.cat((judge.f, torch.ones(len(judge.f), 1)), 1).double()
    ridge = 1e-3 * len(ones) * torch.eye(ones.shape[1], dtype=torch.float64)
    return torch.linalg.solve(ones.T @ ones + ridge, ones.T @ coordinates.double()).float()


def measure_walks(draw, images, seen, judge, num, generator):
    """Records of walks along the first principal components from `num` of the images' own features."""
    space = seen.space
    rows = torch.randperm(len(images), generator=generator)[:num]
    x, f, labels = images[rows], seen.f[rows], seen.predicted[rows]
    watched = min(WATCHED, len(space))
    real = space.coordinates(seen.f, watched)
    sd, mapped = real.std(0), readout(judge, real)
    figures = [], []
    for component in range(min(WALKED, len(space))):
        targets, asked = walk_targets(space, f, component)
        n, steps = targets.shape[:2]
        walked = in_batches(draw, x.repeat_interleave(steps, 0), targets.flatten(0, 1),
                            *(column.repeat_interleave(steps) for column in (labels, torch.arange(n))))
        judged = torch.cat((judge.found(walked)[0], torch.ones(len(walked), 1)), 1) @ mapped
        probed = space.coordinates(seen.found(walked)[0], watched)
        for found, coordinates in zip(figures, (probed, judged), strict=True):
            coordinates = (coordinates / sd).unflatten(0, (n, steps))
            others = torch.cat((coordinates[..., :component], coordinates[..., component + 1:]), 2)
            found.append(walk_figures((asked / sd[component]).expand(n, -1), coordinates[..., component], others))
    return [mean_record(by.named(f"walk_{name}"), torch.cat([part[name] for part in found]), generator)
            for by, found in zip((seen, judge), figures, strict=True) for name in found[0]]


# ------------------------------------------------------------------------------------- the protocols


def both_seen(m):
    """(test images (M, C, H, W), Seen by the probed network, Seen by the judge, drawer, training images uint8) of a
    Measured.

    Raises UserError where the images were not drawn from features, or where the two number their classes otherwise.
    """
    sampler = getattr(m.images, "sampler", None)
    if sampler is None or "features" not in sampler.draws:
        raise UserError("these images were not drawn from features, so that no agreement with any can be measured; "
                        "give a run of --method features, or other --metrics.")
    judge = m.judge.classifier
    if tuple(m.probed_labels) != tuple(range(judge.num_classes)):
        raise UserError("the probed classifier and the evaluator number their classes otherwise; give an evaluator of "
                        "the same classes in the same order.")
    images = to_unit_range(load_split(m.dataset, m.data_root, "test")[0])
    known = thinned(m.training_set[0], KNOWN)
    raw, logits = raw_features(m.probed, known.split(BATCH))
    probed_bank = Bank(sampler.space, sampler.space.standardised(raw), logits.argmax(1))
    seen = Seen.of("", m.probed, probed_bank, images)
    judge_seen = Seen.of(m.judge.name, judge, Bank.of_images(judge, known.split(BATCH)), images)

    def draw(x, f, labels, seeds):
        return sampler.draw(x, f, labels, seeds.tolist())

    return images, seen, judge_seen, draw, known


@register("feature_agreement", "How far images drawn for the features of other test images have them, by the probed "
          "classifier and by the evaluator: CCC (1 is the best), within classes too, cosine, rank of the target's "
          "image (mrr), the class, the Frechet distance (key real: of other real images, as many), and what is kept of "
          "the image that was edited; of images that are drawn, how far two of the same features lie apart (key real: "
          "two of a class), and how far the nearest training image lies.", needs=("probed", "features"),
          parts=tuple(f"{by}feature_{name}" for by in ("", "judged_")
                      for name in ("ccc", "ccc_within", "cosine", "mrr", "median_rank", "class", "fd", "both_at_10",
                                   "identity_top1", "cycle_l1", "self_l1", "diversity", "nearest")))
def feature_agreement(m):
    images, seen, judge, draw, known = both_seen(m)
    known = None if m.images.sampler.kind["mode"] == "edit" else to_unit_range(known)
    num = min(PAIRS, m.num * len(m.images.drawn))
    return measure_pairs(draw, images, seen, judge, num, m.generator(), known)[0]


@register("feature_walks", "Of walks along principal components of the features: correlation of asked and obtained, "
          "share that rises at each step, and leakage into other components (0 is the best).",
          needs=("probed", "features"), parts=tuple(f"{by}walk_{name}" for by in ("", "judged_")
                                                     for name in ("correlation", "monotone", "leakage")))
def feature_walks(m):
    images, seen, judge, draw, _ = both_seen(m)
    return measure_walks(draw, images, seen, judge, min(WALKS, m.num), m.generator())
