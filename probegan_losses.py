"""The losses of ProbeGAN (Zhang et al., AAAI 2022), one pure function an equation.

Symbols: y* the unseen classes; d_c, d_u (B,) the outputs of the conditional and the unconditional head;
`rows` (B,) floats, 1 where a row counts and 0 where it does not. Each function returns a scalar
tensor, to be minimised. Signs are those of the text and of the authors' runs, not of the printed (2), (3).
`total` () is what a masked mean divides by where the rows are one of several equal parts of a batch: the sum of the
whole batch's rows by the number of parts, so that the mean over the parts is that of the batch; not given, it is that
of the rows at hand.
"""

import torch
import torch.nn.functional as F


def seen_rows(y, unseen):
    """1.0 for the labels in y (B,) that are not among `unseen` (K,), 0.0 for those of y*."""
    return 1.0 - (y[:, None] == unseen[None, :]).any(1).float()


def mean_over(values, rows, total=None):
    """Mean of values (B,) over the counted rows (B,); 0 where no row counts."""
    assert values.shape == rows.shape, (values.shape, rows.shape)
    return (values * rows).sum() / (rows.sum() if total is None else total).clamp(min=1e-12)


def hinge_real(d_c, rows, total=None):
    """Eq. (2), D: E relu(1 - D_c(x, y)) over the counted real rows."""
    return mean_over(F.relu(1 - d_c), rows, total)


def hinge_fake(d_c, rows, total=None):
    """Eq. (2), D: E relu(1 + D_c(G(z, y), y)), y != y*."""
    return mean_over(F.relu(1 + d_c), rows, total)


def hinge_generator(d_c, rows, total=None):
    """Eq. (2), G: -E D_c(G(z, y), y), y != y*."""
    return mean_over(-d_c, rows, total)


def wasserstein(d_u_real, d_u_fake):
    """Eq. (3), D: E D_u(G(z, y)) - E D_u(x), fakes of all classes (class dilution)."""
    return d_u_fake.mean() - d_u_real.mean()


def levelled(d_u_fake, seen):
    """D_u (B,) of fakes, where those of y* below the mean of the seen classes' (seen (B,) is 1) are lifted to it.

    In eq. (3), D is then not taught to tell y* from the others, which is what diluting it is for: the mean of a batch
    that holds a few fakes of y* still moves D against them once it knows the class. Not part of ProbeGAN.
    """
    return torch.where(seen > 0, d_u_fake, torch.maximum(d_u_fake, mean_over(d_u_fake, seen)))


def wasserstein_generator(d_u, weights, total=None):
    """Eq. (3), G: -E D_u(G(z, y)) over all classes, rows weighted by `weights` (B,)."""
    return mean_over(-d_u, weights, total)


def interpolate(real, fake, e):
    """Eq. (3): x_hat = e x + (1 - e) G(z, y); images (B, C, H, W), e (B, 1, 1, 1) in [0, 1]."""
    return torch.lerp(fake, real, e)


def gradient_penalty(d_u, x_hat, norm=1.0):
    """Eq. (3): E (||grad_x D_u(x_hat)||_2 - norm)^2, unweighted; d_u (B,) must come from x_hat (B, C, H, W).

    norm 1 is the paper's; 0 is the zero-centred penalty, R1 where x_hat is real (Mescheder et al., ICML 2018).
    """
    (gradient,) = torch.autograd.grad(d_u.sum(), x_hat, create_graph=True)
    gradient = gradient.flatten(1).float()
    if norm == 0:  # the square of the norm, whose root has no gradient at 0
        return gradient.square().sum(1).mean()
    return (torch.linalg.vector_norm(gradient, dim=1) - norm).square().mean()


def output_penalty(d_u):
    """E[D_u^2], which keeps D_u near 0: the authors' D2_reg and drift terms, unweighted."""
    return d_u.square().mean()


def classification_rows(y, class_weights):
    """The weight of each row in eq. (4): class_weights (K,) of the classifier's labels y (B,), 0 for -1."""
    return class_weights[y.clamp(min=0)] * (y >= 0)


def classification(logits, y, class_weights, prob_clip=1.0, total=None):
    """Eq. (4): -E log p_C(y | G(z, y)) over all classes.

    logits (B, K) of the frozen classifier, y (B,) its labels for the fakes, -1 for a class that it has none
    for. class_weights (K,) weigh the rows (the authors' C_new_coeff). Rows without a label, and those with
    p_C(y) > prob_clip, add nothing.
    """
    log_p = F.log_softmax(logits.float(), 1).gather(1, y.clamp(min=0)[:, None]).squeeze(1)  # (B,)
    kept = (log_p.detach().exp() <= prob_clip).float() if prob_clip < 1 else torch.ones_like(log_p)
    return mean_over(-log_p * kept, classification_rows(y, class_weights), total)


def diversity(x, z, rows):
    """Mean of |x_i - x_j| / |z_i - z_j| over pairs of counted rows, to be maximised; 0 where there is no pair.

    x (B, ...): images G(z, y) or features of them; z (B, dim_z); rows (B,). Distances are means of absolute
    differences. Diversity-sensitive GAN (Yang et al., ICLR 2019, eq. 2); not part of ProbeGAN.
    """
    def apart(x):  # (B, ...) -> (B, B)
        x = x.float().flatten(1)
        return (x[:, None] - x[None]).abs().mean(2)

    pairs = rows[:, None] * rows[None] * (1 - torch.eye(len(rows), device=rows.device))
    return (apart(x) / apart(z).clamp(min=1e-6) * pairs).sum() / pairs.sum().clamp(min=1.0)


def spread_shortfall(images, y, wanted):
    """Mean over the rows of relu(1 - s / wanted)^2, s the spread of the images of a row's class in the batch.

    images (B, ...); y (B,) labels; wanted (B,) the spread that each row's class should have. The spread of a class is
    the root of the mean over pixels of the unbiased variance. A row whose class has no other row adds nothing. Not part
    of ProbeGAN.
    """
    flat = images.float().flatten(1)
    same = (y[:, None] == y[None]).to(flat.dtype)  # (B, B)
    n = same.sum(1, keepdim=True)
    # distances to the class's own mean, so that no two large numbers are subtracted
    variance = same @ (flat - same @ flat / n).square() / (n - 1).clamp(min=1)  # (B, pixels)
    spread = (variance.mean(1) + 1e-12).sqrt()
    return mean_over(F.relu(1 - spread / wanted).square(), (n.squeeze(1) > 1).to(flat.dtype))


def bounded(gradient, guide, most):
    """`gradient` (B, ...) with the L2 norm of each row at most `most` (B,) times that of the same row of `guide`."""
    norm, allowed = (torch.linalg.vector_norm(x.float().flatten(1), dim=1) for x in (gradient, guide))
    scale = (most * allowed / norm.clamp(min=1e-12)).clamp(max=1)
    return gradient * scale.view(-1, *[1] * (gradient.dim() - 1))


def with_gradient(value, x, gradient):
    """A scalar of the value () whose gradient on x (B, ...) is `gradient` (B, ...)."""
    pull = (x * gradient.detach()).sum()
    return value.detach() + pull - pull.detach()


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
