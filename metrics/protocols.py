"""The protocols: what each named measurement compares with what. Each makes records of a Measured.

A record is a dict: metric, value, low and high (its 95 % interval), class (name, or None for all classes drawn), n
(generated images that it rests on), warning (a sentence, or ''). Real images are those of the training split, of the
unseen class too: it is measured against them, never trained on them.
"""

import math

import torch

from metrics import distances
from metrics.intervals import bootstrap, bootstrap_means, kid_interval, largest_mean
from metrics.measured import KEPT
from metrics.presence import BY_FAKES, SCORERS
from metrics.recognition import confusion, rate, rate_difference
from metrics.registry import register, short_number
from utils import to_unit_range

SUBSETS = 100  # of KID
PAIRS = 200  # of MS-SSIM, a class
MOST = 5000  # images whose neighbours are counted for precision and recall
SPACES = ("features", "pixels")


def record(metric, value, interval, n, label=None, warning="", **more):
    """A record; interval: (low, high) or None. A value that is not finite is None, and a warning says so."""
    low, high = (None, None) if interval is None or interval[0] is None else map(float, interval)
    if not math.isfinite(value):
        warning = f"{warning} {metric} is {value:f}.".strip()
        return {"metric": metric, "value": None, "low": None, "high": None, "class": label, "n": int(n),
                "warning": warning, **more}
    return {"metric": metric, "value": float(value), "low": low, "high": high, "class": label, "n": int(n),
            "warning": warning, **more}


def share_record(metric, share, label=None, **more):
    """A record of what metrics.recognition.rate gives."""
    return record(metric, share["rate"], (share["low"], share["high"]), more.pop("n", share["of"]), label, **more)


def mean_record(metric, terms, m, label=None, n=None, **more):
    """A record of the mean of one value a row; n: the generated images behind them, where those are not the rows."""
    return record(metric, terms.mean(), bootstrap_means(terms, m.generator()), n or len(terms), label, **more)


def fd_name(m, name, fid_name):
    """The name of a figure, by whose features are used: only the FID network's make an FID."""
    return fid_name if m.extractor.name == "inception" else name


def named(m, name, fid_name=""):
    """'fd@cifar10_evaluator', or 'fid@inception' where the features are the FID network's."""
    return f"{fd_name(m, name, fid_name or name)}@{m.extractor.name}"


def groups(m):
    """(label or None, rows of generated images, labels of the real ones): all classes first, then each unseen one."""
    if len(m.images.drawn) > 1:
        yield None, slice(None), m.images.drawn
    for label in m.images.new_class:
        yield label, m.rows(label), [label]


def class_name(m, label):
    return None if label is None else m.classes[label]


def flaw(m, label):
    """What is suspicious of the images of a class, or of any class for None."""
    return m.flaws.get(label, "") if label is not None else " ".join([*m.flaws.values(), *sorted_images(m)])


def sorted_images(m):
    """A sentence where a generator without classes was measured on as many images of each."""
    if m.images.shares is not None:
        yield ("The generator has no classes to be asked for: its images were sorted by the probed classifier, and as "
               "many of each class are measured, however often it makes them.")


def probed_classes(m):
    """The drawn labels that the probed classifier has a label for."""
    return [label for label in m.images.drawn if m.probed_labels[label] >= 0]


def row_weights(m):
    """How often each generated image counts (N,), mean 1, where a generator has no classes to draw equally often.

    Its images are sorted into classes and as many of each are measured; `shares` says how often it makes them.
    """
    shares = m.images.shares
    if shares is None:
        return torch.ones(len(m.labels), dtype=torch.float64)
    weights = torch.tensor([shares[label] for label in m.labels.tolist()], dtype=torch.float64)
    return weights / weights.mean()


# ---------------------------------------------------------------------------- what classifiers say


@register("recognition", "Share of images that the evaluator takes for the class they were drawn for; of several "
          "evaluators, that each does, and all of them (@all); higher is better.")
def recognition(m):
    # the joint one last: it is what a report's headline says
    verdicts = m.verdicts | ({"all": m.agreed} if m.others else {})
    return [record for judge, predicted in verdicts.items() for record in recognition_by(m, judge, predicted)]


def recognition_by(m, judge, predicted):
    """The records of one evaluator, which takes the images for the classes `predicted` (N,), -1 for none."""
    name = f"recognition@{judge}"
    counts = confusion(predicted, m.labels, len(m.classes))
    records = [share_record(name, rate(counts[label][label], m.num), m.classes[label], warning=flaw(m, label),
                            confusion=dict(zip(m.classes, (counts[label] / m.num).tolist(), strict=True)))
               for label in m.images.drawn]
    seen = [label for label in m.images.drawn if label not in m.images.new_class]
    if seen:
        hits = sum(counts[label][label] for label in seen)
        records.append(share_record(name, rate(hits, m.num * len(seen)), group="all seen"))
    return records


@register("activation", "The probed classifier's mean probability of the class drawn; training maximised it.",
          needs=("probed",))
def activation(m):
    return [mean_record("activation", m.accepted[m.rows(label), m.probed_labels[label]], m, m.classes[label])
            for label in probed_classes(m)]


@register("adversarial_gap", "Share that the probed classifier accepts less the share that the evaluator recognises; "
          "high means adversarial texture, not semantics.", needs=("probed",))
def adversarial_gap(m):
    records = []
    for label in probed_classes(m):
        accepted = m.accepted[m.rows(label)].argmax(1) == m.probed_labels[label]
        recognised = m.agreed[m.rows(label)] == label
        gap = rate_difference(accepted.sum(), recognised.sum(), (accepted & recognised).sum(), m.num)
        records.append(share_record(f"adversarial_gap@{m.judges}", gap, m.classes[label],
                                    accepted=float(accepted.mean()), recognised=float(recognised.mean())))
    return records


@register("classifier_score", "exp(H(E p) - E H(p)) of the feature network's classes; higher is better. Its terms are "
          "kept apart: variety H(E p), doubt E H(p).", fid_name="inception_score")
def classifier_score(m):
    score, variety, doubt = distances.inception_score_terms(m.probabilities)
    p = torch.as_tensor(m.probabilities).double()
    # the log of the score as a mean over rows, to first order
    terms = -torch.special.xlogy(p, p.mean(0)).sum(1) - torch.special.entr(p).sum(1)
    interval = bootstrap_means(terms, m.generator(), figure=lambda mean: mean[0].exp())
    return [record(named(m, "classifier_score", "inception_score"), score, interval, len(p), variety=variety,
                   doubt=doubt)]


@register("am_score", "KL(mean p of training images || mean p of generated ones) + mean entropy of p, by the "
          "evaluator, and the two apart: am_divergence and am_doubt; lower is better, 0 the least.", needs=("real",),
          parts=("am_score", "am_divergence", "am_doubt"))
def am_score(m):
    wanted = m.real_judged.probabilities_of(m.images.drawn)
    p, weights = torch.as_tensor(m.judged).double(), row_weights(m)
    values = distances.am_score_terms(p, wanted, weights)
    # to first order as well; the divergence moves by -wanted / mean where the mean of p moves
    doubts = weights * torch.special.entr(p).sum(1)
    divergences = -weights * (p @ (wanted / (weights @ p / len(p))))
    records = []
    for name, value, terms in zip(("am_score", "am_divergence", "am_doubt"), values,
                                  (divergences + doubts, divergences, doubts), strict=True):
        interval = bootstrap_means(terms - terms.mean() + value, m.generator()) if math.isfinite(value) else None
        records.append(record(f"{name}@{m.judge.name}", value, interval, len(p)))
    return records


# ------------------------------------------------------------------------- distances to real images


def frechet_record(m, name, label, rows, real_labels):
    """The record of a Frechet distance, with a warning that says the bias where the images are few."""
    fake, moments = m.features[rows], m.real.moments_of(real_labels)
    terms = distances.frechet_terms(fake, moments)
    value, warning, (n, dim) = terms.mean().item(), flaw(m, label), fake.shape
    if n < dim:
        bias = f" by about {value - distances.fid_infinity(fake, moments, m.generator()):.3g}" if n >= 8 else ""
        warning += (f" {n} generated images are fewer than the {dim} features: the Frechet distance is too large{bias}"
                    f"; compare equal numbers only, or use kid or {fd_name(m, 'fd_infinity', 'fid_infinity')}.")
    if moments.count < dim:
        warning += (f" {moments.count} real images are fewer than the {dim} features: every Frechet distance to them "
                    "is too large.")
    return record(name, value, bootstrap_means(terms, m.generator()), n, class_name(m, label), warning.strip(),
                  n_real=moments.count, real="train split")


@register("fd", "Frechet distance of all generated images to the training images of their classes; lower is better.",
          needs=("real",), fid_name="fid")
def fd(m):
    return [frechet_record(m, named(m, "fd", "fid"), None, slice(None), m.images.drawn)]


@register("intra_fd", "Frechet distance of each class to the training images of that class, those of the unseen class "
          "included; lower is better. The number in its name is that of generated images a class.",
          needs=("real",), fid_name="intra_fid")
def intra_fd(m):
    name = named(m, f"intra_fd{short_number(m.num)}", f"intra_fid{short_number(m.num)}")
    return [frechet_record(m, name, label, m.rows(label), [label]) for label in m.images.drawn]


@register("fd_infinity", "The Frechet distance extrapolated to infinitely many generated images; lower is better.",
          needs=("real",), fid_name="fid_infinity")
def fd_infinity(m):
    records = []
    for label, rows, real_labels in groups(m):
        fake, moments = m.features[rows], m.real.moments_of(real_labels)
        value = distances.fid_infinity(fake, moments, m.generator())
        # the extrapolation moves the distance, not its first-order luck
        terms = distances.frechet_terms(fake, moments)
        records.append(record(named(m, "fd_infinity", "fid_infinity"), value,
                              bootstrap_means(terms - terms.mean() + value, m.generator()), len(fake),
                              class_name(m, label), flaw(m, label), n_real=moments.count))
    return records


@register("kid", "Squared maximum mean discrepancy to the training images, cubic kernel, unbiased at any number of "
          "images; lower is better, 0 for equal sets.", needs=("real",))
def kid(m):
    records = []
    for label, rows, real_labels in groups(m):
        fake, (real, _) = m.features[rows], m.real.features_of(real_labels)
        least = min(len(fake), len(real))
        size = max(2, min(1000, least // 2))
        mean, spread = distances.kid(fake, real, SUBSETS, size, m.generator())
        records.append(record(named(m, "kid"), mean, kid_interval(mean, spread, SUBSETS, size, least), len(fake),
                              class_name(m, label), flaw(m, label), subsets=SUBSETS, subset_size=size))
    return records


def held_out_terms(m, real, labels, most):
    """What held-out real images of `labels` reach in the fakes' place, at equal counts; None without enough of them."""
    if m.held_out is None or not set(labels) <= set(m.held_out.labels.tolist()):
        return None
    held, _ = m.held_out.features_of(labels)
    most = min(most, len(held))
    return distances.prdc_terms(real, held, k=5, max_rows=most) if most > 5 else None


@register("precision_recall_density_coverage", "Precision and density: are the images like training images; recall and "
          "coverage: are the training images covered; higher is better. Equal counts of both; beside it (key real) "
          "what held-out real images reach in the fakes' place.", needs=("real",),
          parts=("precision", "recall", "density", "coverage"))
def precision_recall_density_coverage(m):
    records = []
    for label, rows, real_labels in groups(m):
        real, _ = m.real.features_of(real_labels)
        # coverage grows with the number of fakes and falls with that of real images: equal counts
        most = min(MOST, len(real), len(m.features[rows]))
        terms = distances.prdc_terms(real, m.features[rows], k=5, max_rows=most)
        ceiling = held_out_terms(m, real, real_labels, most)
        for name, values in terms.items():
            about = {"n": most, "n_real": most, "warning": flaw(m, label),
                     **({"real": ceiling[name].mean().item()} if ceiling else {})}
            if name == "density":
                records.append(mean_record(named(m, name), values, m, class_name(m, label), **about))
            else:
                share = rate(values.sum(), len(values))
                records.append(share_record(named(m, name), share, class_name(m, label), **about))
    return records


# ------------------------------------------------------------------------------------------ variety


@register("ms_ssim", "Mean structural similarity of pairs of generated images of a class, beside the same of real ones "
          "(key real); lower is more varied.", needs=("real",))
def ms_ssim(m):
    records = []
    for label in m.images.drawn:
        images, labels = m.training_set
        real = images[labels == label][:KEPT]
        like, real_like = (distances.ms_ssim(to_unit_range(images), PAIRS, m.generator())
                           for images in (m.pixels[label], real))
        records.append(mean_record("ms_ssim", like["terms"], m, m.classes[label], len(m.pixels[label]),
                                   warning=flaw(m, label), real=real_like["value"], settings=like["settings"]))
    return records


@register("ms_ssim_max", "The largest of the classes' mean structural similarities of pairs, with five scales as AM-GAN"
          " takes it, and what the luck of the pairs adds to it (key bias), beside the same of real images (key real); "
          "lower is more varied.", needs=("real",))
def ms_ssim_max(m):
    images, labels = m.training_set
    compare, generator = distances.ms_ssim_pairs_of_five_scales, m.generator()
    like, real_like = {}, {}
    for label in m.images.drawn:
        real = images[labels == label][:KEPT]
        like[label], real_like[label] = (distances.random_pairs(to_unit_range(shown), PAIRS, generator, compare)
                                         for shown in (m.pixels[label], real))
    label, value, luck = largest_mean(like, generator)
    _, real, real_luck = largest_mean(real_like, generator)
    _, _, luck_of_5 = largest_mean(like, generator, 5)  # as many as the authors'
    return [record("ms_ssim_max", value, (luck["low"], luck["high"]), len(m.labels), warning=flaw(m, None),
                   largest=m.classes[label], noise=luck["noise"], bias=luck["bias"],
                   noise_of_5_pairs=luck_of_5["noise"], bias_of_5_pairs=luck_of_5["bias"], real=real,
                   real_noise=real_luck["noise"],
                   by_class={m.classes[k]: terms.mean().item() for k, terms in like.items()},
                   settings={"window": distances.WINDOW, "sigma": distances.SIGMA, "betas": distances.BETAS,
                             "pairs": PAIRS})]


def of_real(m, label, most):
    """The Vendi terms of as many real images of a class, or of all where they are fewer."""
    return distances.vendi_terms(distances.thinned(m.real.features_of([label])[0], most))


@register("vendi", "Effective number of different images of a class (Vendi score), and the effective rank of its "
          "features; higher is more varied. Beside it that of real images (key real).",
          parts=("vendi", "effective_rank"))
def vendi(m):
    records = []
    for label in m.images.drawn:
        features, name = m.features[m.rows(label)], m.classes[label]
        for metric, terms in (("vendi", distances.vendi_terms(features)),
                              ("effective_rank", distances.effective_rank_terms(features))):
            interval = bootstrap_means(terms, m.generator(), figure=lambda mean: mean[0].exp())
            real = {}
            if metric == "vendi" and m.has_real:
                real["real"] = of_real(m, label, len(terms)).mean().exp().item()
            records.append(record(named(m, metric), terms.mean().exp(), interval, len(terms), name, flaw(m, label),
                                  **real))
    return records


# --------------------------------------------------------------------------------- copies and morphs


@register("nearest_seen", "Median distance of unseen-class images to the nearest image of the run's own image set; 1 "
          "is the typical distance between neighbours in that set, 0 a copy of an image of another class.",
          needs=("real",))
def nearest_seen(m):
    records = []
    for space in SPACES:
        for label in m.images.new_class:
            far, places = m.nearest_seen(space, label)
            of_class = m.training_set[1][places].bincount(minlength=len(m.classes)) / len(places)
            interval = bootstrap(lambda rows, far=far: far[rows].median(), len(far), m.generator())
            name = in_space(m, "nearest_seen", space)
            records.append(record(name, far.median(), interval, len(far), m.classes[label], flaw(m, label),
                                  references=len(m.neighbourhood(space)[1]),
                                  nearest_classes=dict(zip(m.classes, of_class.tolist(), strict=True)),
                                  to_real_of_its_class=m.nearest_of_class(space, label)))
    return records


@register("memorization", "Share of images that lie nearer to an image of the run's own image set than 99 % of that "
          "set lie to each other: copies; real images have 0.01. Of unseen-class images it counts copies of other "
          "classes: likeness to real images of the unseen class is no copy, the run had none of them.", needs=("real",))
def memorization(m):
    records = []
    for space in SPACES:
        for label in m.images.drawn:
            # fewer of a seen class: the comparison in pixels is the slowest of all measurements
            far, _ = m.nearest_seen(space, label, KEPT if label in m.images.new_class else KEPT // 5)
            copies = m.neighbourhood(space)[0].copies(far)
            records.append(share_record(in_space(m, "memorization", space), rate(copies.sum(), len(copies)),
                                        m.classes[label], warning=flaw(m, label)))
    return records


def in_space(m, name, space):
    """'nearest_seen@cifar10_evaluator' or 'nearest_seen@pixels'."""
    return f"{name}@{m.extractor.name if space == 'features' else 'pixels'}"


# ------------------------------------------------------------------------------ a second attribute


@register("presence", "Share of images in which the value of --presence is seen, by three scorers (the whole image, "
          "its border, its colours), corrected for their errors on real images, or on fakes (by_fakes); beside it the "
          "share of those without the value in which it is seen (false_alarms); neither way is better.",
          needs=("presence",), parts=tuple(f"presence_{name}{of}{more}" for name in SCORERS for of in ("", BY_FAKES)
                                           for more in ("", "_false_alarms")))
def presence(m):
    records, of = [], m.presence
    for label in m.images.drawn:
        for name, known in of.rates(m.pixels[label], label).items():
            share, right, found = known["corrected"], known["specificity"], known["found"]["rate"]
            warning = "" if share["rate"] is not None else "The scorer is no better than chance."
            if share["high"] == 0 or share["low"] == 1:
                warning = (f"Seen in {found:.1%} of {m.classes[label]}: more or fewer than the scorer's known errors "
                           "explain, so that it errs otherwise on these images.")
            records += [
                record(f"presence_{name}@{of.name}={of.value}", math.nan if share["rate"] is None else share["rate"],
                       (share["low"], share["high"]), share["of"], m.classes[label], warning, found=found,
                       sensitivity=known["sensitivity"]["rate"], specificity=right["rate"]),
                record(f"presence_{name}_false_alarms@{of.name}={of.value}", 1 - right["rate"],
                       (1 - right["high"], 1 - right["low"]), right["of"], m.classes[label])]
    return records
