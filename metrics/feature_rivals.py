"""What images drawn from features have to pass: drawers that train nothing, each easy to beat on some figure alone.

A drawer is a function (x, f, labels, seeds) -> images, as metrics.feature_agreement asks for.
"""

import torch
import torch.nn.functional as F

from utils import to_unit_range

DESCENT_STEPS, DESCENT_LR = 60, 0.03


def rivals(C, bank, images):
    """{name: drawer} from the frozen classifier, the Bank of its training images and these, uint8 (N, C, H, W)."""
    known = F.normalize(bank.f, dim=1)
    pixels, predicted = to_unit_range(images), bank.predicted.cpu()
    means = torch.stack([pixels[predicted == y].mean(0) if (predicted == y).any() else pixels.mean(0)
                         for y in range(int(predicted.max()) + 1)])

    def nearest(x, f, labels, seeds):
        """The training image whose features point most nearly where they should: real, but another face."""
        return pixels[(F.normalize(f, dim=1) @ known.T).argmax(1).cpu()].to(x.device)

    def descent(x, f, labels, seeds):
        """x after steps of Adam on its pixels towards f: the bound of agreement, by noise unless C is robust."""
        with torch.enable_grad():
            drawn = x.clone().requires_grad_()
            optimiser = torch.optim.Adam([drawn], DESCENT_LR)
            for _ in range(DESCENT_STEPS):
                optimiser.zero_grad()
                (bank.space.of(C, drawn)[0] - f).square().mean(1).sum().backward()
                optimiser.step()
                with torch.no_grad():
                    drawn.clamp_(-1, 1)
        return drawn.detach()

    return {"copy of x": lambda x, f, labels, seeds: x, "nearest training image": nearest,
            "class mean": lambda x, f, labels, seeds: means[labels.cpu()].to(x.device),
            "cross-fade with the nearest": lambda x, f, labels, seeds: (x + nearest(x, f, labels, seeds)) / 2,
            "gradient descent on pixels": descent}
