"""Losses of drawing images from feature vectors; imports torch only.

Features are (B, F): `found` what a network says of fakes, `asked` what they were asked to have, each component
standardised on the training images. Each loss returns a scalar tensor, to be minimised.
"""

import torch.nn.functional as F

EPS = 1e-6  # of unit variance: two constant and equal components agree


def ccc(found, asked):
    """Lin's concordance correlation coefficient of each component over the rows: (B, F), (B, F) -> (F,) in [-1, 1].

    2 cov / (var + var + (difference of the means)^2), all moments divided by B (Lin, Biometrics 1989). Equal inputs
    give 1 and different constants 0, so that a batch of one, or a component that does not vary, gives no NaN.
    """
    assert found.shape == asked.shape and found.dim() == 2, (found.shape, asked.shape)
    found, asked = found.float(), asked.float()
    mean_found, mean_asked = found.mean(0), asked.mean(0)
    away_found, away_asked = found - mean_found, asked - mean_asked
    covariance = (away_found * away_asked).mean(0)
    spread = away_found.square().mean(0) + away_asked.square().mean(0) + (mean_found - mean_asked).square()
    return (2 * covariance + EPS) / (spread + EPS)


def ccc_loss(found, asked, summed=False):
    """1 - CCC, the mean over components; their sum where `summed`, as the StarGAN conditioned on features has it."""
    loss = 1 - ccc(found, asked)
    return loss.sum() if summed else loss.mean()


def mse_loss(found, asked):
    """Half of the mean squared difference: 1 - CCC with the moments of the training set, 0 and 1, for the batch's.

    Those of a small batch are noise.
    """
    return F.mse_loss(found.float(), asked.float()) / 2


def masked_l1(images, others, rows):
    """Mean |images - others| over the counted rows (B,) of (B, C, H, W); 0 where no row counts."""
    distance = (images.float() - others.float()).abs().mean((1, 2, 3))
    return (distance * rows).sum() / rows.sum().clamp(min=1e-12)


def ignored_condition(images, others, noise):
    """Mean |G(x, f) - G(x, f')| in units of `noise`, the mean |x - x'| of different images; about 0: f is ignored."""
    return ((images - others).abs().mean() / noise.clamp(min=1e-12)).item()
