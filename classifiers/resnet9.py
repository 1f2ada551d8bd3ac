"""A residual network of nine layers for 32x32 images and two CPU cores, after the one that Page tuned for
training CIFAR-10 within minutes ("How to train your ResNet", 2018), here with a whitened first layer."""

from torch import nn
from torch.nn import functional as F

from classifiers.whitening import Whitening

WIDTHS = (64, 128, 320)


class ConvNorm(nn.Sequential):
    """3x3 convolution, max pool by `pool`, batch norm, SiLU (smooth, as smallcnn's).

    (B, c_in, H, W) -> (B, c_out, H // pool, W // pool).
    """

    def __init__(self, c_in, c_out, pool=1):
        super().__init__(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.MaxPool2d(pool), nn.BatchNorm2d(c_out),
                         nn.SiLU())


class ResNet9(nn.Module):
    """Normalised images (B, channels, H, W), H and W at least 16 -> logits (B, num_classes). 2.7 M parameters."""

    def __init__(self, num_classes, channels):
        super().__init__()
        self.stem = Whitening(channels)
        self.down = nn.ModuleList(ConvNorm(c_in, c_out, pool=2)
                                  for c_in, c_out in zip((self.stem.width, *WIDTHS), WIDTHS, strict=False))
        self.residual = nn.ModuleList(nn.Sequential(ConvNorm(width, width), ConvNorm(width, width))
                                      for width in WIDTHS)
        self.linear = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, x):
        x = F.silu(self.stem(x))
        for down, residual in zip(self.down, self.residual, strict=True):
            x = down(x)
            x = x + residual(x)
        return self.linear(x.mean((2, 3)))  # (B, width) -> (B, num_classes)
