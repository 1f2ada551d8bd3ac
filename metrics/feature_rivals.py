"""What images drawn from features have to pass: drawers without a GAN, each easy to beat on some figure alone.

A drawer is a function (x, f, labels, seeds) -> images, as metrics.feature_agreement asks for, all on the CPU.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from metrics.feature_agreement import in_batches, l1, mean_record
from utils import to_unit_range

DESCENT_STEPS, DESCENT_LR = 60, 0.03
DECODER_STEPS, DECODER_BATCH, DECODER_LR = 600, 64, 3e-3
DECODER_WIDTHS = (64, 32, 16)  # at an eighth of the side, a quarter and a half
RECONSTRUCTED = 200  # images that are drawn from their own features alone, at most


def decoder(n_features, channels, side):
    """A network from features (B, n_features) to images (B, channels, side', side') in [-1, 1], side' at least `side`:
    the up-convolutional one of Dosovitskiy and Brox (CVPR 2016), smaller."""
    base = math.ceil(side / 8)
    layers = [nn.Linear(n_features, DECODER_WIDTHS[0] * base**2), nn.Unflatten(1, (DECODER_WIDTHS[0], base, base))]
    for width, next_width in zip(DECODER_WIDTHS, (*DECODER_WIDTHS[1:], channels), strict=True):
        layers += [nn.LeakyReLU(0.2), nn.ConvTranspose2d(width, next_width, 4, stride=2, padding=1)]
    return nn.Sequential(*layers, nn.Tanh())


def trained_decoder(bank, pixels):
    """A drawer by a decoder that was trained to lower the squared error of the pixels (N, C, H, W) in [-1, 1] of the
    Bank's images: the mean image of all that share some features. Moves no random stream but its own."""
    _, channels, height, width = pixels.shape
    device, generator = bank.f.device, torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        network = decoder(bank.f.shape[1], channels, max(height, width)).to(device)
        optimiser = torch.optim.Adam(network.parameters(), DECODER_LR)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, DECODER_STEPS)
        for _ in range(DECODER_STEPS):
            rows = torch.randint(len(pixels), (DECODER_BATCH,), generator=generator)
            optimiser.zero_grad()
            drawn = network(bank.f[rows.to(device)])[..., :height, :width]
            F.mse_loss(drawn, pixels[rows].to(device)).backward()
            optimiser.step()
            schedule.step()

    def draw(x, f, labels, seeds):
        """The image that lies least far, on average, from all with these features."""
        with torch.no_grad():
            return network(f.to(device))[..., :height, :width].cpu()

    return draw


def rivals(C, bank, images):
    """{name: drawer} from the frozen classifier, the Bank of its training images and these, uint8 (N, C, H, W)."""
    device, known = bank.f.device, F.normalize(bank.f, dim=1)
    pixels, predicted = to_unit_range(images), bank.predicted.cpu()
    means = torch.stack([pixels[predicted == y].mean(0) if (predicted == y).any() else pixels.mean(0)
                         for y in range(int(predicted.max()) + 1)])

    @functools.cache
    def decoder_of_bank():
        return trained_decoder(bank, pixels)

    def nearest(x, f, labels, seeds):
        """The training image whose features point most nearly where they should: real, but another face."""
        return pixels[(F.normalize(f.to(device), dim=1) @ known.T).argmax(1).cpu()]

    def descent(x, f, labels, seeds):
        """x after steps of Adam on its pixels towards f: the bound of agreement, by noise unless C is robust."""
        with torch.enable_grad():
            drawn, asked = x.to(device, copy=True).requires_grad_(), f.to(device)
            optimiser = torch.optim.Adam([drawn], DESCENT_LR)
            for _ in range(DESCENT_STEPS):
                optimiser.zero_grad()
                (bank.space.of(C, drawn)[0] - asked).square().mean(1).sum().backward()
                optimiser.step()
                with torch.no_grad():
                    drawn.clamp_(-1, 1)
        return drawn.detach().cpu()

    return {"copy of x": lambda x, f, labels, seeds: x, "nearest training image": nearest,
            "class mean": lambda x, f, labels, seeds: means[labels],
            "cross-fade with the nearest": lambda x, f, labels, seeds: (x + nearest(x, f, labels, seeds)) / 2,
            "MSE decoder": lambda *given: decoder_of_bank()(*given), "gradient descent on pixels": descent}


def reconstruction(draw, seen, images, start, generator):
    """Record of mean |drawn - x|, in units of the range of a pixel, of images x (M, C, H, W) drawn from their own
    features alone; key `start`: of the image that is drawn over.

    draw: a drawer; seen: metrics.feature_agreement.Seen of the images by the probed network; start (C, H, W): what a
    drawer that edits is given, such as the mean image. A network whose features keep more of an image, as a robust one,
    is expected to lie nearer.
    """
    rows = torch.randperm(len(images), generator=generator)[:RECONSTRUCTED]
    x, over = images[rows], start.expand(len(rows), -1, -1, -1)
    drawn = in_batches(draw, over, seen.f[rows], seen.predicted[rows], torch.arange(len(rows)))
    return mean_record("reconstruction_l1", l1(drawn, x), generator) | {"start": l1(over, x).mean().item()}
