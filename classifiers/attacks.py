"""Adversarial attacks by projected gradient descent (Madry et al., "Towards deep learning models resistant
to adversarial attacks", 2018), in the pixel units of the Madry lab: images in [0, 1]."""

import torch
from torch.nn import functional as F

from utils import UserError, nearest

NORMS = ("l2", "linf")


def norms_of(x):
    """L2 norm of each image, (B, C, H, W) -> (B, 1, 1, 1)."""
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def ascend(gradient, norm, step_size):
    """The step of length `step_size` in `norm` along which the loss rises fastest."""
    if norm == "l2":
        return step_size * gradient / (norms_of(gradient) + 1e-10)
    return step_size * gradient.sign()


def project(delta, norm, eps):
    """The nearest perturbation to `delta` (B, C, H, W) with norm at most `eps`."""
    if norm == "l2":
        return delta.renorm(p=2, dim=0, maxnorm=eps)
    return delta.clamp(-eps, eps)


def random_delta(images, norm, eps, generator):
    """A random perturbation: for L2 of length eps in a random direction, for Linf uniform in the box."""
    if norm == "l2":
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        return eps * noise / norms_of(noise)
    return (2 * torch.rand(images.shape, generator=generator, device=images.device) - 1) * eps


def pgd(model_fn, images01, labels, norm, eps, steps, step_size=None, random_start=True, generator=None,
        targeted=False):
    """Images that raise the cross-entropy of `labels`, or lower it if `targeted`, within `eps` of `images01` in `norm`.

    model_fn maps images in [0, 1] to logits and should be in eval mode; images01 (B, C, H, W) float in
    [0, 1]; labels (B,) int64; norm 'l2' or 'linf'; eps and step_size in pixel units of [0, 1], step_size
    2.5 * eps / steps when None; generator draws the start, on the device of the images.
    Returns (B, C, H, W) in [0, 1], detached; no gradient of a parameter is computed.
    Raises UserError for an unknown norm, a negative eps or fewer than one step.
    """
    if norm not in NORMS:
        raise UserError(f"attack norm '{norm}' is unknown ({nearest(norm, NORMS)}).")
    if not eps >= 0 or steps < 1:
        raise UserError(f"attack with eps {eps} and {steps} steps cannot be run; give eps >= 0 and at least one step.")
    step_size = 2.5 * eps / steps if step_size is None else step_size
    sign, images01 = -1.0 if targeted else 1.0, images01.detach()
    x = images01
    if random_start:
        x = (x + random_delta(x, norm, eps, generator)).clamp(0, 1)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            # a sum: no image's gradient depends on the size of the batch
            loss = sign * F.cross_entropy(model_fn(x).float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        delta = project(x.detach() + ascend(gradient, norm, step_size) - images01, norm, eps)
        x = (images01 + delta).clamp(0, 1)
    return x
