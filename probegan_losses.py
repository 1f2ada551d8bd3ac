"""The losses of ProbeGAN (Zhang et al., AAAI 2022), one pure function an equation.

Symbols: y* the unseen classes; d_c, d_u (B,) the outputs of the conditional and the unconditional head;
`rows` (B,) floats, 1 where a row counts and 0 where it does not. Each function returns a scalar
tensor, to be minimised. Signs are those of the text and of the authors' runs, not of the printed (2), (3).
"""

import torch
import torch.nn.functional as F


def seen_rows(y, unseen):
    """1.0 for the labels in y (B,) that are not among `unseen` (K,), 0.0 for those of y*."""
    return 1.0 - (y[:, None] == unseen[None, :]).any(1).float()


def mean_over(values, rows):
    """Mean of values (B,) over the counted rows (B,); 0 where no row counts."""
    assert values.shape == rows.shape, (values.shape, rows.shape)
    return (values * rows).sum() / rows.sum().clamp(min=1.0)


def hinge_real(d_c, rows):
    """Eq. (2), D: E relu(1 - D_c(x, y)) over the counted real rows."""
    return mean_over(F.relu(1 - d_c), rows)


def hinge_fake(d_c, rows):
    """Eq. (2), D: E relu(1 + D_c(G(z, y), y)), y != y*."""
    return mean_over(F.relu(1 + d_c), rows)


def hinge_generator(d_c, rows):
    """Eq. (2), G: -E D_c(G(z, y), y), y != y*."""
    return mean_over(-d_c, rows)


def wasserstein(d_u_real, d_u_fake):
    """Eq. (3), D: E D_u(G(z, y)) - E D_u(x), fakes of all classes (class dilution)."""
    return d_u_fake.mean() - d_u_real.mean()


def wasserstein_generator(d_u, weights):
    """Eq. (3), G: -E D_u(G(z, y)) over all classes, rows weighted by `weights` (B,)."""
    assert d_u.shape == weights.shape, (d_u.shape, weights.shape)
    return -(d_u * weights).sum() / weights.sum().clamp(min=1e-12)


def interpolate(real, fake, e):
    """Eq. (3): x_hat = e x + (1 - e) G(z, y); images (B, C, H, W), e (B, 1, 1, 1) in [0, 1]."""
    return torch.lerp(fake, real, e)


def gradient_penalty(d_u, x_hat):
    """Eq. (3): E (||grad_x D_u(x_hat)||_2 - 1)^2, unweighted; d_u (B,) must come from x_hat (B, C, H, W)."""
    (gradient,) = torch.autograd.grad(d_u.sum(), x_hat, create_graph=True)
    return (torch.linalg.vector_norm(gradient.flatten(1).float(), dim=1) - 1).square().mean()


def output_penalty(d_u):
    """E[D_u^2], which keeps D_u near 0: the authors' D2_reg and drift terms, unweighted."""
    return d_u.square().mean()


def classification(logits, y, class_weights, prob_clip=1.0):
    """Eq. (4): -E log p_C(y | G(z, y)) over all classes.

    logits (B, K) of the frozen classifier, y (B,) its labels for the fakes, -1 for a class that it has none
    for. class_weights (K,) weigh the rows (the authors' C_new_coeff). Rows without a label, and those with
    p_C(y) > prob_clip, add nothing.
    """
    label = y.clamp(min=0)
    log_p = F.log_softmax(logits.float(), 1).gather(1, label[:, None]).squeeze(1)  # (B,)
    weights = class_weights[label] * (y >= 0)
    kept = (log_p.detach().exp() <= prob_clip).float() if prob_clip < 1 else torch.ones_like(log_p)
    return -(log_p * weights * kept).sum() / weights.sum().clamp(min=1e-12)


def tile_mix(images, n_grid):
    """Shuffle each tile of an n_grid x n_grid grid across the batch (the authors' D_tilemix).

    images (B, C, H, W), H and W divisible by n_grid; every tile keeps its place.
    """
    b, c, height, width = images.shape
    tiles = images.unflatten(3, (n_grid, width // n_grid)).unflatten(2, (n_grid, height // n_grid))
    tiles = tiles.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)  # (n_grid^2, B, C, h, w)
    order = torch.rand(n_grid * n_grid, b, device=images.device).argsort(1)
    tiles = tiles[torch.arange(n_grid * n_grid, device=images.device)[:, None], order]
    tiles = tiles.unflatten(0, (n_grid, n_grid)).permute(2, 3, 0, 4, 1, 5)  # (B, C, n, h, n, w)
    return tiles.reshape(b, c, height, width)
