"""Wide residual networks of CIFAR size (Zagoruyko & Komodakis, "Wide residual networks", 2016).

The names in the state dict are those that the literature on adversarial training shares: conv1,
block1.layer.0.bn1, ..., block3.layer.N.convShortcut, bn1, fc.
"""

from torch import nn
from torch.nn import functional as F

from utils import UserError


class PreactBlock(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice, beside a shortcut: (B, c_in, H, W) -> (B, c_out, H/stride, W/stride)."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.convShortcut = None if c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)

    def forward(self, x):
        h = F.relu(self.bn1(x))
        # a shortcut that changes the width starts behind the first norm
        kept = x if self.convShortcut is None else self.convShortcut(h)
        return kept + self.conv2(F.relu(self.bn2(self.conv1(h))))


class Stage(nn.Module):
    """Blocks of one width, the first of them strided, under the name `layer`."""

    def __init__(self, c_in, c_out, blocks, stride):
        super().__init__()
        self.layer = nn.Sequential(PreactBlock(c_in, c_out, stride),
                                   *(PreactBlock(c_out, c_out, 1) for _ in range(blocks - 1)))

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    """Normalised images (B, channels, H, W) -> logits (B, num_classes). `depth` layers, `widen` times as wide.

    Raises UserError for a depth that is not 6 n + 4.
    """

    def __init__(self, depth, widen, num_classes, channels):
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or widen < 1:
            raise UserError(f"wrn-{depth}-{widen} cannot be built; the depth is 10, 16, 22, 28, ... (6 n + 4) and the "
                            "width factor at least 1.")
        blocks, widths = (depth - 4) // 6, (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.block1 = Stage(widths[0], widths[1], blocks, 1)
        self.block2 = Stage(widths[1], widths[2], blocks, 2)
        self.block3 = Stage(widths[2], widths[3], blocks, 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))  # (B, width) -> (B, num_classes)
