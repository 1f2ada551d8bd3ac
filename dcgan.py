"""The networks of AM-GAN: a DCGAN pair with weight norm and batch norm (Zhou et al., ICLR 2018, appendix E).

As in the authors' code: at 32 pixels and with its widths, G_ch 96 and D_ch 64, each layer has the shape of theirs. D
has no more outputs than the loss uses, where theirs has 12 for 10 classes. Weight norm: Salimans and Kingma (NeurIPS
2016). Unlike theirs, batch norms keep running averages: an image that is drawn must depend on its seed alone.
"""

import torch
import torch.nn.functional as F
from torch import nn

from layers import BatchNorm
from utils import UserError

SIDE = 4  # of G's first layer and of D's last
BN_EPS = 1e-3
LEAK, DROPOUT, INPUT_NOISE = 0.2, 0.3, 0.1


def doublings(resolution):
    """How many times the side doubles from SIDE to a resolution. Raises UserError where it never gets there."""
    n = (resolution // SIDE).bit_length() - 1
    if n < 1 or SIDE * 2**n != resolution:
        raise UserError(f"--networks dcgan has no network for {resolution}x{resolution} images; it doubles {SIDE} "
                        "pixels: prepare the data set at 16, 32, 64 or 128.")
    return n


class WeightNorm(nn.Module):
    """A layer whose weight has the length `gain` along each output: gain * weight / |weight|.

    A subclass is given its weight's shape, and the dimension of the outputs in it.
    """

    def __init__(self, shape, outputs):
        super().__init__()
        self.outputs = outputs
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), 0, 0.05, -0.1, 0.1))
        self.gain = nn.Parameter(torch.ones(shape[outputs]))
        self.bias = nn.Parameter(torch.zeros(shape[outputs]))

    def normalised_weight(self):
        """gain * weight / |weight|, in the shape of `weight`."""
        others = [d for d in range(self.weight.dim()) if d != self.outputs]
        gain = self.gain[(...,) + (None,) * (self.weight.dim() - 1 - self.outputs)]  # along the outputs' dimension
        return gain * self.weight / torch.linalg.vector_norm(self.weight, dim=others, keepdim=True)

    @torch.no_grad()
    def fit(self, x):
        """Set gain and bias so that each output has mean 0 and variance 1 on x."""
        self.gain.fill_(1)
        self.bias.zero_()
        out = self.forward(x).float().transpose(0, 1).flatten(1)  # (outputs, the rest)
        self.gain.copy_((out.var(1, correction=0) + 1e-12).rsqrt())
        self.bias.copy_(-out.mean(1) * self.gain)


class WNLinear(WeightNorm):
    """A linear layer: (B, n_in) -> (B, n_out)."""

    def __init__(self, n_in, n_out):
        super().__init__((n_out, n_in), 0)

    def forward(self, x):
        return F.linear(x, self.normalised_weight(), self.bias)


class WNConv2d(WeightNorm):
    """A 3x3 convolution, (B, n_in, H, W) -> (B, n_out, H / stride, W / stride); stride 1 or 2.

    With stride 2 the edge is padded below and on the right alone, as TensorFlow's SAME does.
    """

    def __init__(self, n_in, n_out, stride=1):
        super().__init__((n_out, n_in, 3, 3), 0)
        self.stride = stride

    def forward(self, x):
        if self.stride == 1:
            return F.conv2d(x, self.normalised_weight(), self.bias, padding=1)
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.normalised_weight(), self.bias, stride=2)


class WNConvTranspose2d(WeightNorm):
    """The transposed 3x3 convolution: (B, n_in, H, W) -> (B, n_out, H * stride, W * stride); stride 1 or 2."""

    def __init__(self, n_in, n_out, stride=2):
        super().__init__((n_in, n_out, 3, 3), 1)
        self.stride = stride

    def forward(self, x):
        if self.stride == 1:
            return F.conv_transpose2d(x, self.normalised_weight(), self.bias, padding=1)
        return F.conv_transpose2d(x, self.normalised_weight(), self.bias, stride=2)[..., :-1, :-1]


class OneHot(nn.Module):
    """Labels (B,) as rows (B, n_classes) of zeros with a one: the class embedding that G is fed."""

    def __init__(self, n_classes):
        super().__init__()
        self.n_classes = n_classes

    def forward(self, y):
        return F.one_hot(y, self.n_classes).float()


class Generator(nn.Module):
    """G(z, y): images (B, channels, resolution, resolution) in [-1, 1].

    z: (B, dim_z). y: labels (B,) int64, or rows (B, n_classes) as `shared` makes them; n_classes 0: y is not looked at.
    """

    def __init__(self, resolution, channels, n_classes, ch=96, dim_z=100):
        super().__init__()
        n = doublings(resolution)
        widths = [ch * 2 ** (n - i) for i in range(n + 1)]
        self.dim_z = dim_z
        self.shared = OneHot(n_classes) if n_classes else None
        self.linear = WNLinear(dim_z + n_classes, widths[0] * SIDE**2)
        self.norm = BatchNorm(widths[0], BN_EPS)
        self.blocks = nn.ModuleList(nn.ModuleList([WNConvTranspose2d(n_in, n_out), BatchNorm(n_out, BN_EPS)])
                                    for n_in, n_out in zip(widths[:-1], widths[1:], strict=True))
        self.output_layer = WNConvTranspose2d(ch, channels, stride=1)

    def forward(self, z, y):
        if self.shared is not None:
            z = torch.cat((z, y if y.is_floating_point() else self.shared(y)), 1)
        h = self.linear(z).unflatten(1, (-1, SIDE, SIDE)).contiguous(memory_format=torch.channels_last)
        h = F.leaky_relu(self.norm(h), LEAK)
        for layer, norm in self.blocks:
            h = F.leaky_relu(norm(layer(h)), LEAK)
        return torch.tanh(self.output_layer(h).float())


class Discriminator(nn.Module):
    """D(x): (outputs (B, label_outputs), None): the logits of label_losses, and no unconditional head beside them.

    The interface of BigGAN.Discriminator with label_outputs. In training mode the images get noise and the features
    dropout, and batch norms see the batch at hand: show it reals and fakes apart. deep: one more layer at the end, the
    authors' for labels that are drawn before the image.
    """

    def __init__(self, resolution, channels, label_outputs, ch=64, deep=False):
        super().__init__()
        widths = [ch * 2**i for i in range(doublings(resolution) + 1)]
        steps = [(channels, ch, 1), *((n_in, n_out, 2) for n_in, n_out in zip(widths[:-1], widths[1:], strict=True))]
        if deep:
            steps.append((widths[-1], widths[-1], 1))
        self.blocks = nn.ModuleList(nn.ModuleList([WNConv2d(*step), BatchNorm(step[1], BN_EPS)]) for step in steps)
        self.linear = WNLinear(widths[-1], label_outputs)

    def forward(self, x, y=None):
        h = x
        if self.training:
            h = h + nn.init.trunc_normal_(torch.empty_like(h), 0, INPUT_NOISE, -2 * INPUT_NOISE, 2 * INPUT_NOISE)
        for layer, norm in self.blocks:
            h = F.dropout(F.leaky_relu(norm(layer(h)), LEAK), DROPOUT, self.training)
        h = F.dropout(h.float().mean((2, 3)), DROPOUT, self.training)  # (B, width)
        with torch.autocast(h.device.type, enabled=False):
            return self.linear(h), None


@torch.no_grad()
def fit_to_batch(network, *batch):
    """Set every WeightNorm of a network by a first batch, each before what comes after it, and return the outputs."""
    def fit(layer, given):
        layer.fit(*given)

    hooks = [module.register_forward_pre_hook(fit) for module in network.modules() if isinstance(module, WeightNorm)]
    try:
        return network(*batch)
    finally:
        for hook in hooks:
            hook.remove()
