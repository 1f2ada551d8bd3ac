"""Residual networks of CIFAR size (He et al., "Deep residual learning", 2016).

The names in the state dict are those of the `robustness` package's cifar models: conv1, bn1,
layer1.0.conv1, ..., layer4.1.bn2, layerN.M.shortcut.0 and .1, linear.
"""

from torch import nn
from torch.nn import functional as F


def conv(c_in, c_out, kernel, stride=1):
    """A convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)


def shortcut(c_in, c_out, stride):
    """Identity where the shapes agree, else a 1x1 convolution and batch norm."""
    if stride == 1 and c_in == c_out:
        return nn.Sequential()
    return nn.Sequential(conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (B, c_in, H, W) -> (B, width, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, c_in, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(c_in, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.shortcut = shortcut(c_in, width, stride)

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut: (B, c_in, H, W) -> (B, 4 width, H/stride, W/stride)."""

    expansion = 4

    def __init__(self, c_in, width, stride):
        super().__init__()
        c_out = self.expansion * width
        self.conv1, self.bn1 = conv(c_in, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, c_out, 1), nn.BatchNorm2d(c_out)
        self.shortcut = shortcut(c_in, c_out, stride)

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(self.bn3(self.conv3(h)) + self.shortcut(x))


class ResNet(nn.Module):
    """Normalised images (B, channels, H, W), H and W at least 16 -> logits (B, num_classes).

    Stage i (layer1, layer2, ...) has depths[i] blocks of width * 2^i channels; all stages but the first
    halve the size. The stem is a 3x3 convolution of stride 1 without pooling.
    """

    def __init__(self, block, depths, width, num_classes, channels):
        super().__init__()
        self.conv1, self.bn1 = conv(channels, width, 3), nn.BatchNorm2d(width)
        c_in, stages = width, []
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(block(c_in, width * 2**i, stride=2 if i > 0 and j == 0 else 1))
                c_in = width * 2**i * block.expansion
            stages.append(f"layer{i + 1}")
            self.add_module(stages[-1], nn.Sequential(*blocks))
        self.linear = nn.Linear(c_in, num_classes)
        self.stages = stages

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.linear(x.mean((2, 3)))  # (B, c) -> (B, num_classes)


def resnet8(num_classes, channels):
    """ResNet-8: three stages of one basic block, widths 16, 32, 64; minutes on a CPU."""
    return ResNet(BasicBlock, (1, 1, 1), 16, num_classes, channels)


def resnet18(num_classes, channels):
    """ResNet-18 of CIFAR size, 11.2 M parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2), 64, num_classes, channels)


def resnet50(num_classes, channels):
    """ResNet-50 of CIFAR size, 23.5 M parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3), 64, num_classes, channels)
