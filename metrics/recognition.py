"""Recognition: the share of images that a classifier takes for the class they were drawn for.

With the evaluator as judge it stands in for the human raters of the paper's figure 6; with the probed
classifier it is that classifier's acceptance, which the training itself maximised.
"""

import torch
from scipy.stats import binomtest


@torch.no_grad()
def confusion(sampler, classifier, labels, num, seed=0):
    """Counts (len(labels), classifier's classes): how `num` images of each class are classified, on the CPU."""
    rows = []
    for k, label in enumerate(labels):
        images = sampler.class_images(label, range(seed + k * num, seed + (k + 1) * num))
        predicted = torch.cat([classifier(part.to(sampler.device)).argmax(1) for part in images.split(500)])
        rows.append(torch.bincount(predicted, minlength=classifier.num_classes).cpu())
    return torch.stack(rows)


def rate(hits, total):
    """A share as {'rate', 'low', 'high', 'of'}: its value, its 95 % Wilson interval and its base."""
    interval = binomtest(int(hits), int(total)).proportion_ci(0.95, method="wilson")
    return {"rate": int(hits) / int(total), "low": float(interval.low), "high": float(interval.high), "of": int(total)}


def recognition(sampler, classifier, num, seed=0):
    """Rates of the unseen classes, of the seen ones together and of each class, and the confusion matrix.

    classifier: a FrozenClassifier whose labels are those of the sampler's classes. num: images a class.
    """
    labels = sampler.drawn
    counts = confusion(sampler, classifier, labels, num, seed)
    hits = {y: int(counts[k, y]) for k, y in enumerate(labels)}
    groups = {"unseen": [y for y in labels if y in sampler.config.new_class],
              "seen": [y for y in labels if y not in sampler.config.new_class]}
    result = {name: rate(sum(hits[y] for y in members), num * len(members))
              for name, members in groups.items() if members}
    result["per_class"] = {sampler.classes[y]: rate(hits[y], num) for y in labels}
    result["confusion"] = {sampler.classes[y]: counts[k].tolist() for k, y in enumerate(labels)}
    return result
