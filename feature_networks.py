"""Networks that draw from feature vectors: an editor of images, BigGAN's generator with features for classes, and D.

The conditions enter by scale and shift in every block, as in all work since IC-GAN (Casanova et al., NeurIPS 2021) and
RCDM (Bordes et al., TMLR 2022); the form of the StarGAN conditioned on features, constant or tiled channels beside the
image, is there to be compared with.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from BigGAN import Discriminator, Generator
from layers import BatchNorm, ClassConditionalBatchNorm, GBlock, SNConv2d, SNLinear, init_weights

CONDITION = 128  # width of what the blocks are told
BLOCKS = 3  # residual blocks at a quarter of the side
WAYS = ("norms", "tiled", "flat")  # how features enter an Editor


class EditBlock(nn.Module):
    """Residual block: conditional norm, ReLU, conv, (average pooling), conditional norm, ReLU, conv; 1x1 shortcut."""

    def __init__(self, n_in, n_out, n_condition, downsample, BN_eps, SN_eps):
        super().__init__()
        self.downsample = downsample
        self.conv1 = SNConv2d(n_in, n_in, 3, eps=SN_eps)
        self.conv2 = SNConv2d(n_in, n_out, 3, eps=SN_eps)
        self.conv_sc = SNConv2d(n_in, n_out, 1, eps=SN_eps) if n_in != n_out else None
        self.bn1 = ClassConditionalBatchNorm(n_in, n_condition, BN_eps, SN_eps)
        self.bn2 = ClassConditionalBatchNorm(n_in, n_condition, BN_eps, SN_eps)

    def forward(self, x, condition):
        """(B, n_in, H, W), (B, n_condition) -> (B, n_out, H, W), or half the height and width where it down-samples."""
        h = self.conv1(F.relu(self.bn1(x, condition)))
        if self.downsample:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = self.conv2(F.relu(self.bn2(h, condition)))
        return h + (x if self.conv_sc is None else self.conv_sc(x))


def condition_channels(f, way, height, width):
    """Features (B, f) as channels beside an image: 'tiled' (B, f, H, W), a constant channel each; 'flat' (B, 1, H, W),
    the vector laid out as a square patch, zeros after its end, that is repeated over the image."""
    if way == "tiled":
        return f[:, :, None, None].expand(-1, -1, height, width)
    side = math.ceil(math.sqrt(f.shape[1]))
    patch = F.pad(f, (0, side * side - f.shape[1])).view(-1, 1, side, side)
    return patch.repeat(1, 1, math.ceil(height / side), math.ceil(width / side))[:, :, :height, :width]


class Editor(nn.Module):
    """G(x, f): images (B, channels, H, W) in [-1, 1] and features (B, n_features) -> images of the same shape.

    H and W are multiples of 4. An encoder to a quarter of the side, residual blocks, a decoder, widths 2, 4, 4, 2 and 1
    times ch. What is drawn is laid over the input through a mask that is drawn too (GANimation, Pumarola et al., ECCV
    2018), so that whatever need not change is handed through. way: how f enters: 'norms', the scale and shift of every
    norm, from a small network; 'tiled' or 'flat', as channels of the input alone (condition_channels).
    """

    def __init__(self, channels, n_features, ch=24, way="norms", init="ortho", BN_eps=1e-5, SN_eps=1e-8):
        super().__init__()
        self.way = way
        beside = {"norms": 0, "tiled": n_features, "flat": 1}[way]
        self.told = nn.Sequential(nn.Linear(n_features, CONDITION), nn.ReLU(), nn.Linear(CONDITION, CONDITION))
        # half the side and four times the channels: convolutions at the full side cost most and see least
        self.stem = SNConv2d(4 * (channels + beside), 2 * ch, 3, eps=SN_eps)
        eps = BN_eps, SN_eps
        self.blocks = nn.ModuleList([EditBlock(2 * ch, 4 * ch, CONDITION, True, *eps)])
        self.blocks += [EditBlock(4 * ch, 4 * ch, CONDITION, False, *eps) for _ in range(BLOCKS)]
        self.blocks += [GBlock(4 * ch, 2 * ch, CONDITION, *eps), GBlock(2 * ch, ch, CONDITION, *eps)]
        self.output_layer = nn.Sequential(BatchNorm(ch, BN_eps), nn.ReLU(), SNConv2d(ch, channels + 1, 3, eps=SN_eps))
        init_weights(self, init)

    def forward(self, x, f):
        condition, shown = self.told(f), x
        if self.way != "norms":  # the norms are told nothing
            condition = torch.zeros_like(condition)
            shown = torch.cat((x, condition_channels(f, self.way, *x.shape[2:])), 1)
        h = self.stem(F.pixel_unshuffle(shown, 2))  # (B, 2 ch, H/2, W/2)
        for block in self.blocks:
            h = block(h, condition)
        drawn = self.output_layer(h).float()
        return torch.lerp(x, torch.tanh(drawn[:, 1:]), torch.sigmoid(drawn[:, :1]))


class FeatureGenerator(Generator):
    """G(z, f): BigGAN's Generator whose class embedding is a linear map of features (B, n_features).

    dim_z and the rest as there.
    """

    def __init__(self, resolution, channels, n_features, **settings):
        super().__init__(resolution, channels, 1, **settings)
        self.shared = SNLinear(n_features, self.shared.embedding_dim, eps=settings["SN_eps"])
        init_weights(self.shared, settings["init"])

    def forward(self, z, f):
        return super().forward(z, self.shared(f))


def make_drawer(kind, networks, resolution, channels):
    """The G of a run, on the CPU. kind: what its checkpoint says in draws["features"]; networks: config.Networks."""
    if kind["mode"] == "edit":
        return Editor(channels, kind["told"], networks.G_ch, kind["inject"], networks.init, networks.BN_eps,
                      networks.SN_eps)
    return FeatureGenerator(resolution, channels, kind["told"], ch=networks.G_ch, dim_z=networks.dim_z,
                            shared_dim=networks.shared_dim, hier=networks.hier, attention=networks.G_attn,
                            init=networks.init, BN_eps=networks.BN_eps, SN_eps=networks.SN_eps)


class FeatureDiscriminator(Discriminator):
    """D(x, f) -> (projection (B,), realness (B,), head (B, n_heads)), unbounded.

    projection: BigGAN's conditional head with a linear map of f for its class embedding (IC-GAN), None without f;
    realness: of the image alone; head: what a third linear layer reads of the features, standardised.
    """

    def __init__(self, resolution, channels, n_features, n_heads, **settings):
        super().__init__(resolution, channels, 1, **settings)
        width, eps = self.linear.in_features, settings["SN_eps"]
        self.embed = SNLinear(n_features, width, bias=False, eps=eps)
        self.head = nn.Linear(width, n_heads)  # a regression, whose scale no norm should bound
        init_weights(self.embed, settings["init"])
        nn.init.normal_(self.head.weight, 0, 0.02)

    def forward(self, x, f=None):
        h = self.trunk(x)  # (B, width)
        with torch.autocast(h.device.type, enabled=False):
            # of length about 1, as an embedding's
            projection = None if f is None else \
                self.linear(h).squeeze(1) + (self.embed(f / math.sqrt(f.shape[1])) * h).sum(1)
            # the head reads h whatever its scale, which grows with the image
            return projection, self.linear2(h).squeeze(1), self.head(F.layer_norm(h, h.shape[1:]))
