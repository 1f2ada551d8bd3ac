"""The losses of GANs with class labels (Zhou et al., "Activation Maximization Generative Adversarial Nets", ICLR 2018).

Symbols: l_1..l_K the logits of the real classes, l_r that of being real, l_F that of being fake, fixed at 0: one
constant added to all of them changes nothing. D_r = sigmoid(l_r), D_F = 1 - D_r, C = softmax(l_1..l_K); u(y) is one-hot
over the K classes, v(y) over them and the fake one, U is uniform, H(p, q) = -sum p log q. LabelGAN and AM-GAN have no
l_r of their own but l_r = log sum_k exp l_k, so that D_k = D_r C_k is a softmax over K + 1 classes.

Every loss of the paper is a sum of two of these functions (Lemma 2: H(v(y), D) = H(u(y), C) - log D_r):

    loss        D, real             D, fake                              G
    gan         gan_real            gan_fake                             gan_generator
    gan_star    + class_entropy     gan_fake                             gan_generator
    label       + class_entropy     gan_fake                             gan_generator
    acgan       + class_entropy     gan_fake + class_entropy             + class_entropy
    acgan_star  + class_entropy     gan_fake                             + class_entropy
    acgan_plus  + class_entropy     gan_fake + uniform_entropy           + class_entropy
    am          + class_entropy     gan_fake                             + class_entropy

Each function returns one value a row, (B,), to be averaged and minimised. The losses of G are the non-saturating ones.
"""

import math

import torch
import torch.nn.functional as F

CLASS_LOSSES = ("gan", "gan_star", "label", "acgan", "acgan_star", "acgan_plus", "am")
OF_THE_CLASSES = ("label", "am")  # l_r is the logsumexp of the class logits
G_KNOWS = ("acgan", "acgan_star", "acgan_plus", "am")  # G's loss has a class term


def head_outputs(class_loss, n_classes):
    """How many outputs a loss asks D for: l_r alone, the class logits alone, or the class logits and then l_r."""
    return 1 if class_loss == "gan" else n_classes + (class_loss not in OF_THE_CLASSES)


def split_outputs(outputs, class_loss, unseen):
    """(class logits (B, K), l_r (B,)) of D's outputs (B, `head_outputs`), of classes without `unseen` (n,).

    The logits of unseen classes are -inf: no softmax, logsumexp or argmax finds them, and D is that of the other
    classes. For `gan` the class logits are None.
    """
    if class_loss == "gan":
        return None, outputs.squeeze(1)
    if class_loss in OF_THE_CLASSES:
        logits = outputs.index_fill(1, unseen, -math.inf)
        return logits, logits.logsumexp(1)
    return outputs[:, :-1].index_fill(1, unseen, -math.inf), outputs[:, -1]


def gan_real(l_r, smooth=1.0):
    """Eq. (1), D: -a log D_r - (1 - a) log D_F of real rows; a = `smooth` < 1 is one-sided label smoothing."""
    return smooth * F.softplus(-l_r) + (1 - smooth) * F.softplus(l_r)


def gan_fake(l_r):
    """Eq. (1), D: -log D_F of fake rows."""
    return F.softplus(l_r)


def gan_generator(l_r):
    """Eqs. (1) and (5), G: -log D_r."""
    return F.softplus(-l_r)


def class_entropy(logits, y):
    """Eqs. (7) to (9): H(u(y), C) = -log C_y; y (B,) the label of a real row, or the target of a fake one.

    Infinite where y is a masked class.
    """
    return -F.log_softmax(logits, 1).gather(1, y[:, None]).squeeze(1)


def uniform_entropy(logits):
    """Eq. (20), AC-GAN*+: H(U, C), the mean of -log C_k over the classes that are not masked; log K at least."""
    log_c = F.log_softmax(logits, 1)
    known = log_c > -math.inf
    return -log_c.masked_fill(~known, 0.0).sum(1) / known.sum(1)


def dynamic_labels(logits):
    """The dynamic target of each row (B,): argmax_k D_k by the D at hand. No gradient passes an argmax."""
    return logits.detach().argmax(1)


def seen_only(values, rows):
    """`values` (B,) where rows (B,) is 1, and 0 where it is 0, whatever they are there: infinite for a masked class."""
    return torch.where(rows > 0, values, 0.0)
