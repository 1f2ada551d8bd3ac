"""DenseNet-BC of CIFAR size (Huang et al., "Densely connected convolutional networks", 2017).

The names in the state dict are those of the usual PyTorch CIFAR collection: conv1, dense1.0.bn1, ...,
trans1.conv1, ..., bn, fc.
"""

import torch
from torch import nn
from torch.nn import functional as F

from utils import UserError


class DenseLayer(nn.Module):
    """Appends `growth` maps, through a 1x1 convolution of 4 growth: (B, c_in, H, W) -> (B, c_in + growth, H, W)."""

    def __init__(self, c_in, growth):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c_in), nn.Conv2d(c_in, 4 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        h = self.conv1(F.relu(self.bn1(x)))
        return torch.cat((x, self.conv2(F.relu(self.bn2(h)))), 1)


class Transition(nn.Module):
    """Halves the maps and the sides: (B, c_in, H, W) -> (B, c_in // 2, H/2, W/2)."""

    def __init__(self, c_in):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c_in), nn.Conv2d(c_in, c_in // 2, 1, bias=False)

    def forward(self, x):
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class DenseNetBC(nn.Module):
    """Normalised images (B, channels, H, W) -> logits (B, num_classes); three dense blocks, compression 1/2.

    Raises UserError for a depth that is not 6 n + 4.
    """

    def __init__(self, depth, growth, num_classes, channels):
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or growth < 1:
            raise UserError(f"densenet-bc-{depth}-{growth} cannot be built; the depth is 10, 16, 22, ..., 190, ... "
                            "(6 n + 4) and the growth at least 1.")
        layers, width = (depth - 4) // 6, 2 * growth
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        for stage in (1, 2, 3):
            setattr(self, f"dense{stage}", nn.Sequential(*(DenseLayer(width + i * growth, growth)
                                                          for i in range(layers))))
            width += layers * growth
            if stage < 3:
                setattr(self, f"trans{stage}", Transition(width))
                width //= 2
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.dense3(self.trans2(self.dense2(x)))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))  # (B, width) -> (B, num_classes)
