"""Groups of images, a class with a value of a second attribute, and how a training may treat them alike.

erm is plain training. reweight draws each group equally often. subgroup draws from equally many images of each group.
dro is group distributionally robust optimisation (Sagawa, Koh, Hashimoto and Liang, "Distributionally robust neural
networks for group shifts", ICLR 2020): groups drawn equally often, their losses weighted by q, which moves towards the
group that fares worst. dfr trains as erm does and then fits the last layer anew on validation images, as many of each
group (Kirichenko, Izmailov and Wilson, "Last layer re-training is sufficient for robustness to spurious correlations",
ICLR 2023).
"""

import math

import numpy as np
import torch
from scipy.stats import binomtest
from torch import nn
from torch.nn import functional as F

from utils import UserError, to_unit_range

OBJECTIVES = ("erm", "reweight", "subgroup", "dro", "dfr")
BALANCED = ("reweight", "subgroup", "dro")  # those that need an image of every group in the training set
BATCH = 256  # of images whose features or answers are collected
DFR_C = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)  # inverse strengths of the L1 penalty that are tried
DFR_DRAWS = 20  # balanced subsets whose last layers are averaged


class GroupDRO:
    """The weights q (groups,) of group DRO, and the loss that they make of a batch.

    counts (groups,): training images of each group. step_size: eta; adjustment: C, which adds C / sqrt(n_g) to the
    loss of group g where q moves.
    """

    def __init__(self, counts, step_size=0.01, adjustment=0.0):
        self.q = torch.ones(len(counts), device=counts.device) / len(counts)
        self.step_size, self.margin = step_size, adjustment / counts.sqrt()

    def loss(self, losses, groups):
        """sum_g q_g l_g, after q_g was multiplied by exp(eta (l_g + C / sqrt(n_g))) and q normalised.

        losses (B,): of each image; groups (B,) int64. l_g is the mean over the batch's images of group g, 0 where
        there is none. No gradient passes q.
        """
        members = F.one_hot(groups, len(self.q)).to(losses.dtype)  # (B, groups)
        means = losses @ members / members.sum(0).clamp(min=1)
        q = self.q * (self.step_size * (means.detach() + self.margin)).exp()
        self.q = q / q.sum()
        return self.q @ means


class Objective:
    """How a training draws its images and weighs their losses.

    name: one of OBJECTIVES; groups: int64 (N,) of the training images, on the CPU, None where they have none; number:
    of groups. `length`: images of an epoch. `state()` is all that a training goes on with.
    """

    def __init__(self, name, count, groups=None, number=0, step_size=0.01, adjustment=0.0, device="cpu"):
        self.name, self.count, self.groups, self.dro = name, count, groups, None
        if name in BALANCED:
            self.counts = torch.bincount(groups, minlength=number)
            self.length = number * int(self.counts.min()) if name == "subgroup" else count
            self.device_groups = groups.to(device)
        else:
            self.length = count
        if name == "dro":
            self.dro = GroupDRO(self.counts.float().to(device), step_size, adjustment)

    def subset(self, generator):
        """As many random images of each group as the smallest group has: int64 rows."""
        return balanced_rows(self.groups, int(self.counts.min()), generator)

    def order(self, generator):
        """The rows of one epoch in the order in which they are drawn, int64 (length,)."""
        if self.name == "subgroup":
            # the subset is the same in every epoch, else the training would see more images than it is said to
            rows = self.subset(torch.Generator().manual_seed(0))
            return rows[torch.randperm(len(rows), generator=generator)]
        if self.name in ("reweight", "dro"):
            weights = 1 / self.counts[self.groups].double()
            return torch.multinomial(weights, self.length, replacement=True, generator=generator)
        return torch.randperm(self.count, generator=generator)

    def loss(self, logits, labels, rows, label_smoothing=0.0):
        """The loss of a batch: logits (B, classes), labels (B,), rows (B,) of the training images."""
        if self.dro is None:
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        losses = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
        return self.dro.loss(losses, self.device_groups[rows])

    def state(self):
        return {} if self.dro is None else {"q": self.dro.q}

    def load_state(self, state):
        if self.dro is not None:
            self.dro.q = state["q"].to(self.dro.q.device)


def balanced_rows(groups, each, generator):
    """`each` random rows of every group that there is, drawn without replacement, int64."""
    return torch.cat([members[torch.randperm(len(members), generator=generator)[:each]]
                      for members in ((groups == g).nonzero()[:, 0] for g in groups.unique())])


def correlated_rows(labels, values, share):
    """Rows (int64) of images, a `share` of each class with the value that goes with the class, as water with the
    waterbird, and the others with another.

    labels, values: (N,) int64; value k goes with class k. For each share a class has the same number of images, the
    most that all shares allow, and the images with its value at a lower share are among those at a higher one.
    """
    generator, rows = torch.Generator().manual_seed(0), []
    for y in labels.unique():
        own, other = (((labels == y) & fits).nonzero()[:, 0] for fits in (values == y, values != y))
        count = min(len(own), len(other))
        usual = round(share * count)
        for members, n in ((own, usual), (other, count - usual)):
            rows.append(members[torch.randperm(len(members), generator=generator)[:n]])
    return torch.cat(rows)


def groups_of_two(labels, present):
    """The group, class x presence, of each image, int64 (N,): labels (N,), present bool (N,)."""
    return 2 * labels + present.long()


def require_groups(groups, names, split, purpose):
    """Raise UserError where a group has no image in a split. groups (N,); names: of all groups."""
    counts = torch.bincount(groups, minlength=len(names))
    empty = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
    if empty:
        raise UserError(f"the {split} images have none of the group {'; '.join(empty)}, which {purpose}; give another "
                        "split or --only, or another objective.")


# ---------------------------------------------------------------------------------------- measuring


def rate(hits, total):
    """A share as {'rate', 'low', 'high', 'of'}: its value, its 95 % Wilson interval and its base."""
    interval = binomtest(int(hits), int(total)).proportion_ci(0.95, method="wilson")
    return {"rate": int(hits) / int(total), "low": float(interval.low), "high": float(interval.high), "of": int(total)}


@torch.no_grad()
def answers(frozen, images):
    """The classifier's probabilities (N, classes) of uint8 images, float32 on the CPU."""
    device = frozen.mean.device
    return torch.cat([frozen(to_unit_range(part.to(device))).softmax(1).cpu() for part in images.split(BATCH)])


def group_accuracies(hits, groups, names):
    """{group: rate} of hits (N,) bool, in the order of `names`; groups without images are left out."""
    return {name: rate(hits[groups == g].sum(), (groups == g).sum()) for g, name in enumerate(names)
            if (groups == g).any()}


def worst_group(hits, groups):
    """The least share of hits of any group that there is, as a float."""
    return min(hits[groups == g].float().mean().item() for g in groups.unique())


def following(predicted, labels, values):
    """The rate at which predictions follow an attribute against the class: P(prediction = value | label != value).

    All (N,) int64; value k of the attribute goes with class k, as water with the waterbird. None where no image has a
    value that goes with another class.
    """
    against = labels != values
    return rate((predicted == values)[against].sum(), against.sum()) if against.any() else None


# ------------------------------------------------------------------------------------ the last layer


def last_layer(model):
    """The last linear layer of a network. Raises UserError where it has none."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UserError("the classifier has no linear layer at its end to be fitted anew or scaled; take another "
                        "--arch.")
    return layers[-1]


@torch.no_grad()
def features_of(frozen, images):
    """What the last linear layer is given, for uint8 images (N, C, H, W): float64 (N, F), as numpy."""
    device = frozen.mean.device
    return np.concatenate([frozen.features_and_logits(to_unit_range(part.to(device)))[0].double().cpu().numpy()
                           for part in images.split(BATCH)])


def fit_l1(features, labels, C):
    """(weight (K, F), bias (K,)) of L1-penalised logistic regression; two classes get opposite logits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    model = LogisticRegression(C=C, l1_ratio=1.0, solver="liblinear", random_state=0)
    if len(np.unique(labels)) > 2:
        parts = OneVsRestClassifier(model).fit(features, labels).estimators_
        return np.concatenate([p.coef_ for p in parts]), np.concatenate([p.intercept_ for p in parts])
    model.fit(features, labels)
    return np.concatenate([-model.coef_, model.coef_]) / 2, np.concatenate([-model.intercept_, model.intercept_]) / 2


@torch.no_grad()
def retrain_last_layer(frozen, images, labels, groups, seed=0):
    """Fit the last layer anew on held-out images (DFR): features standardised, L1 logistic regression on balanced
    subsets, the weights averaged over DFR_DRAWS of them. Returns the C that half of the images chose.

    images uint8 (N, C, H, W); labels and groups int64 (N,).
    """
    generator = torch.Generator().manual_seed(seed)
    layer, features = last_layer(frozen.model), features_of(frozen, images)
    half = torch.zeros(len(images), dtype=torch.bool)
    for g in groups.unique():  # half of each group
        members = (groups == g).nonzero()[:, 0]
        half[members[torch.randperm(len(members), generator=generator)[:math.ceil(len(members) / 2)]]] = True

    def draw(among):
        places = among.nonzero()[:, 0]
        smallest = int(groups[among].unique(return_counts=True)[1].min())
        return places[balanced_rows(groups[among], smallest, generator)].numpy()

    def averaged(C, draws, among):
        """(weight, bias) for raw features, and their mean over draws."""
        found = []
        for _ in range(draws):
            rows = draw(among)
            mean, std = features[rows].mean(0), features[rows].std(0) + 1e-8
            weight, bias = fit_l1((features[rows] - mean) / std, labels[rows].numpy(), C)
            found.append((weight / std, bias - weight @ (mean / std)))
        return tuple(np.mean(part, 0) for part in zip(*found, strict=True))

    worst = {}
    for C in DFR_C:
        weight, bias = averaged(C, 1, half)
        predicted = torch.from_numpy((features @ weight.T + bias).argmax(1))
        worst[C] = worst_group((predicted == labels)[~half], groups[~half])
    best = max(worst, key=worst.get)
    weight, bias = averaged(best, DFR_DRAWS, torch.ones_like(half))
    layer.weight.copy_(torch.from_numpy(weight))
    layer.bias.copy_(torch.from_numpy(bias))
    return best


@torch.no_grad()
def set_confidence(frozen, images, wanted):
    """Scale the last layer so that the mean probability of the likeliest class is `wanted` on uint8 images.

    Classifiers that are to be compared as memories must pull equally at a generator; this is temperature scaling,
    written into the weights. Returns the temperature. Raises UserError for a confidence that none can have.
    """
    if not 1 / frozen.num_classes < wanted < 1:
        raise UserError(f"--confidence {wanted} is no confidence of {frozen.num_classes} classes; give a value between "
                        f"{1 / frozen.num_classes:.3g} and 1, as 0.85.")
    layer, device = last_layer(frozen.model), frozen.mean.device
    logits = torch.cat([frozen(to_unit_range(part.to(device))).double() for part in images.split(BATCH)])
    low, high = -12.0, 12.0  # of the temperature's logarithm: the confidence falls as it rises
    for _ in range(60):
        middle = (low + high) / 2
        confident = (logits / math.exp(middle)).softmax(1).amax(1).mean() > wanted
        low, high = (middle, high) if confident else (low, middle)
    temperature = math.exp((low + high) / 2)
    for parameter in (layer.weight, layer.bias):
        if parameter is not None:
            parameter.div_(temperature)
    return temperature
