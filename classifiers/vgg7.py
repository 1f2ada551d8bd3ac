"""A plain network of seven layers without shortcuts, after the one that Jordan trains on CIFAR-10 in seconds
("94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024); built unlike the residual networks, to judge them."""

from torch import nn
from torch.nn import functional as F

from classifiers.whitening import Whitening

WIDTHS = (64, 256, 256)


class PoolBlock(nn.Sequential):
    """Two 3x3 convolutions, the first pooled: (B, c_in, H, W) -> (B, c_out, H/2, W/2)."""

    def __init__(self, c_in, c_out):
        super().__init__(
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(c_out), nn.GELU(),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.GELU())
        # without shortcuts, each layer begins as the identity on its first c_in channels
        for conv in (self[0], self[4]):
            nn.init.dirac_(conv.weight.data[:conv.in_channels])


class VGG7(nn.Module):
    """Normalised images (B, channels, H, W), H and W at least 16 -> logits (B, num_classes). 2.0 M parameters."""

    def __init__(self, num_classes, channels):
        super().__init__()
        self.stem = Whitening(channels)
        self.blocks = nn.Sequential(*(PoolBlock(c_in, c_out)
                                      for c_in, c_out in zip((self.stem.width, *WIDTHS), WIDTHS, strict=False)))
        self.linear = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, x):
        return self.linear(self.blocks(F.gelu(self.stem(x))).amax((2, 3)))  # (B, width) -> (B, num_classes)
