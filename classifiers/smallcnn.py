"""A small convolutional classifier, for small one-channel images and two CPU cores."""

from torch import nn
from torch.nn import functional as F

WIDTHS = (32, 64, 128, 128)


class SmallCNN(nn.Module):
    """Normalised images (B, channels, H, W), H and W at least 16 -> logits (B, num_classes).

    Four 3x3 convolutions, all but the first of stride 2, then the mean over positions. SiLU instead of
    ReLU: a smooth activation makes adversarial training stronger (Xie et al., "Smooth adversarial
    training", 2020), and the gradient that the generator follows is this network's.
    """

    def __init__(self, num_classes, channels):
        super().__init__()
        inputs = (channels, *WIDTHS[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, stride=1 if i == 0 else 2, padding=1, bias=False)
            for i, (c_in, c_out) in enumerate(zip(inputs, WIDTHS, strict=True)))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in WIDTHS)
        self.linear = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x)))
        return self.linear(x.mean((2, 3)))  # (B, width) -> (B, num_classes)
