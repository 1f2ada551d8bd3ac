"""Two small networks whose last linear layer is given 64 features: few enough to draw images from, one by one.

The blocks are those of resnet9 and vgg7, narrower, and a hidden layer of 64 follows their pooling; 48x48 grey images
and two CPU cores are what they were sized for.
"""

from torch import nn
from torch.nn import functional as F

from classifiers.resnet9 import ConvNorm
from classifiers.vgg7 import PoolBlock
from classifiers.whitening import Whitening

FEATURES = 64
RESNET_WIDTHS = (32, 64, 128)
VGG_WIDTHS = (32, 96, 128)


class NarrowResNet(nn.Module):
    """Normalised images (B, channels, H, W), H and W at least 16 -> logits (B, num_classes). 0.5 M parameters."""

    def __init__(self, num_classes, channels):
        super().__init__()
        self.stem = Whitening(channels)
        inputs = (self.stem.width, *RESNET_WIDTHS[:-1])
        self.down = nn.ModuleList(ConvNorm(*widths, pool=2) for widths in zip(inputs, RESNET_WIDTHS, strict=True))
        self.residual = nn.ModuleList(nn.Sequential(ConvNorm(width, width), ConvNorm(width, width))
                                      for width in RESNET_WIDTHS)
        self.hidden = nn.Linear(RESNET_WIDTHS[-1], FEATURES)
        self.linear = nn.Linear(FEATURES, num_classes)

    def forward(self, x):
        x = F.silu(self.stem(x))
        for down, residual in zip(self.down, self.residual, strict=True):
            x = down(x)
            x = x + residual(x)
        return self.linear(F.silu(self.hidden(x.mean((2, 3)))))  # (B, width) -> (B, 64) -> (B, num_classes)


class NarrowVGG(nn.Module):
    """Normalised images (B, channels, H, W), H and W at least 16 -> logits (B, num_classes). 0.4 M parameters."""

    def __init__(self, num_classes, channels):
        super().__init__()
        self.stem = Whitening(channels)
        inputs = (self.stem.width, *VGG_WIDTHS[:-1])
        self.blocks = nn.Sequential(*(PoolBlock(*widths) for widths in zip(inputs, VGG_WIDTHS, strict=True)))
        self.hidden = nn.Linear(VGG_WIDTHS[-1], FEATURES)
        self.linear = nn.Linear(FEATURES, num_classes)

    def forward(self, x):
        x = self.blocks(F.gelu(self.stem(x))).amax((2, 3))  # (B, width)
        return self.linear(F.gelu(self.hidden(x)))  # (B, 64) -> (B, num_classes)
