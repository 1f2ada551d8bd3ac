"""The networks: BigGAN's generator, and a discriminator with a conditional and an unconditional head.

BigGAN: Brock et al., ICLR 2019, appendix B. The second head: ProbeGAN (AAAI 2022), section 3. State-dict
keys are those of BigGAN-PyTorch's and ProbeGAN's released checkpoints.
"""

from collections import namedtuple

import torch
import torch.nn.functional as F
from torch import nn

import dcgan
from layers import Attention, BatchNorm, DBlock, GBlock, SNConv2d, SNEmbedding, SNLinear, init_weights
from utils import UserError, load_torch

# G: channels entering each up-block and after the last. D: channels after each block, and how many of the
# blocks, from the first, halve the side. All in units of the width `ch`.
Widths = namedtuple("Widths", "G D D_downs")
WIDTHS = {
    16: Widths((4, 4, 4), (4, 4, 4), 2),
    32: Widths((4, 4, 4, 4), (4, 4, 4, 4), 2),
    64: Widths((16, 16, 8, 4, 2), (1, 2, 4, 8, 16), 4),
    128: Widths((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5),
    256: Widths((16, 16, 8, 8, 4, 2, 1), (1, 2, 4, 8, 8, 16, 16), 6),
}


def widths_at(resolution):
    """(Widths, side at the bottom of G) for a resolution in pixels that is 4 to 7 times a power of two, from 16 to 256.

    A row of WIDTHS, made for a bottom of 4x4, serves as many halvings of a side that ends at 5, 6 or 7 too: up to the
    next row. So 28 = 7 * 4 has the row of 16, and 48 = 6 * 8 that of 32. Raises UserError for another resolution.
    """
    row = 2 ** (resolution.bit_length() - 1)
    if row not in WIDTHS or resolution > max(WIDTHS) or resolution % (row // 4):
        raise UserError(f"there is no network for {resolution}x{resolution} images; prepare the data set at 4 to 7 "
                        "times a power of two, from 16 to 256 pixels, such as 28, 32, 48, 64, 96 or 128.")
    return WIDTHS[row], resolution // (row // 4)


def attention_sides(names, sides):
    """Parse '32_64' into a set of sides, each one of `sides`; '0' is none. Raises UserError."""
    wanted = {int(name) for name in names.split("_") if name.isdecimal()} - {0}
    if not all(name.isdecimal() for name in names.split("_")) or wanted - set(sides):
        raise UserError(f"attention at '{names}' cannot be; give 0 for none, or resolutions joined by _ out of "
                        + ", ".join(map(str, sides)) + ".")
    return wanted


class Generator(nn.Module):
    """G(z, y): images (B, channels, resolution, resolution) in [-1, 1].

    z: (B, dim_z). y: labels (B,) int64, or class embeddings (B, shared_dim) as `shared` makes them, so
    that one can walk between classes. With `hier`, z falls into equal chunks: the first feeds the first
    layer, chunk i joins the class embedding that drives block i. dim_z is rounded down to whole chunks.
    """

    def __init__(self, resolution, channels, n_classes, ch=64, dim_z=120, shared_dim=128, hier=True, attention="0",
                 init="N02", BN_eps=1e-5, SN_eps=1e-8):
        super().__init__()
        shape, self.bottom = widths_at(resolution)
        widths = [ch * w for w in shape.G]
        sides = [self.bottom * 2 ** (i + 1) for i in range(len(widths) - 1)]
        attended = attention_sides(attention, sides)
        n_chunks = len(widths) if hier else 1
        self.chunk = dim_z // n_chunks
        if self.chunk == 0:
            raise UserError(f"dim_z {dim_z} is too small for {n_chunks} chunks; give at least {n_chunks}.")
        self.dim_z = self.chunk * n_chunks
        self.hier = hier
        condition = shared_dim + self.chunk if hier else shared_dim

        self.shared = nn.Embedding(n_classes, shared_dim)
        self.linear = SNLinear(self.chunk, widths[0] * self.bottom**2, eps=SN_eps)
        self.blocks = nn.ModuleList()
        for side, n_in, n_out in zip(sides, widths[:-1], widths[1:], strict=True):
            block = [GBlock(n_in, n_out, condition, BN_eps, SN_eps)]
            if side in attended:
                block.append(Attention(n_out, SN_eps))
            self.blocks.append(nn.ModuleList(block))
        self.output_layer = nn.Sequential(BatchNorm(widths[-1], BN_eps), nn.ReLU(),
                                          SNConv2d(widths[-1], channels, 3, eps=SN_eps))
        init_weights(self, init)

    def forward(self, z, y):
        embedding = y if y.is_floating_point() else self.shared(y)  # (B, shared_dim)
        chunks = z.split(self.chunk, 1) if self.hier else (z,)
        h = self.linear(chunks[0]).unflatten(1, (-1, self.bottom, self.bottom))  # (B, width, bottom, bottom)
        h = h.contiguous(memory_format=torch.channels_last)
        for i, block in enumerate(self.blocks):
            condition = torch.cat((embedding, chunks[i + 1]), 1) if self.hier else embedding
            h = block[0](h, condition)
            for attention in block[1:]:
                h = attention(h)
        return torch.tanh(self.output_layer(h).float())


class Discriminator(nn.Module):
    """D(x, y): a shared trunk with two heads, each (B,), unbounded.

    The conditional head D_c(x, y) is BigGAN's: linear plus projection on the class embedding. The
    unconditional head D_u(x) is a second linear layer on the same features. Without y the first
    result is None. With label_outputs a third linear layer takes the place of the conditional head: the first
    result is its outputs (B, label_outputs), the logits of label_losses, and y is not looked at.
    """

    def __init__(self, resolution, channels, n_classes, ch=64, attention="0", init="N02", SN_eps=1e-8,
                 label_outputs=0):
        super().__init__()
        shape, _ = widths_at(resolution)
        widths = [ch * w for w in shape.D]
        sides = [resolution // 2 ** min(i + 1, shape.D_downs) for i in range(len(widths))]
        attended = attention_sides(attention, sorted(set(sides)))
        self.blocks = nn.ModuleList()
        for i, (n_in, n_out) in enumerate(zip([channels, *widths[:-1]], widths, strict=True)):
            block = [DBlock(n_in, n_out, preactivation=i > 0, downsample=i < shape.D_downs, SN_eps=SN_eps)]
            if sides[i] in attended:
                block.append(Attention(n_out, SN_eps))
                attended.discard(sides[i])  # once, after the first block of that side
            self.blocks.append(nn.ModuleList(block))
        self.linear = SNLinear(widths[-1], 1, eps=SN_eps)
        self.embed = SNEmbedding(n_classes, widths[-1], eps=SN_eps)
        self.linear2 = SNLinear(widths[-1], 1, eps=SN_eps)
        self.linear3 = SNLinear(widths[-1], label_outputs, eps=SN_eps) if label_outputs else None
        init_weights(self, init)

    def trunk(self, x):
        """What all heads are given: images (B, C, H, W) -> (B, width), float32."""
        h = x
        for block in self.blocks:
            for layer in block:
                h = layer(h)
        return F.relu(h).float().sum((2, 3))

    def forward(self, x, y=None):
        h = self.trunk(x)  # (B, width)
        with torch.autocast(h.device.type, enabled=False):  # the heads are cheap and their scale matters
            unconditional = self.linear2(h).squeeze(1)
            if self.linear3 is not None:
                return self.linear3(h), unconditional
            if y is None:
                return None, unconditional
            return self.linear(h).squeeze(1) + (self.embed(y) * h).sum(1), unconditional


def make_generator(config, resolution, channels, n_classes, conditional=True):
    """The generator that a Config asks for, on the CPU. Where it is not conditional, BigGAN's is always asked for the
    same class, and the DCGAN has none."""
    if config.networks == "dcgan":
        return dcgan.Generator(resolution, channels, n_classes if conditional else 0, config.G_ch, config.dim_z)
    return Generator(resolution, channels, n_classes, config.G_ch, config.dim_z, config.shared_dim, config.hier,
                     config.G_attn, config.init, config.BN_eps, config.SN_eps)


def make_discriminator(config, resolution, channels, n_classes, label_outputs=0, conditional=True):
    """The discriminator that a Config asks for, on the CPU; conditional: whether its G is. Raises UserError."""
    if config.networks == "dcgan":
        if not label_outputs:
            raise UserError("--networks dcgan has a head of class logits alone, and this method has another; leave it "
                            "out.")
        return dcgan.Discriminator(resolution, channels, label_outputs, config.D_ch, deep=conditional)
    return Discriminator(resolution, channels, n_classes, config.D_ch, config.D_attn, config.init, config.SN_eps,
                         label_outputs)


def share_tables(state, own, path):
    """Turn the class tables of each norm of a generator's state dict into a shared embedding and layers, in place.

    Without a shared embedding a norm's gains and biases are tables (n_classes, C). The embedding is made one-hot, times
    t, and the layer's weight the table over t, whose product is the same. A column of length 1, which no class uses and
    which is orthogonal to the others, makes its spectral norm 1, t being such that all others are smaller.
    Raises UserError where the network has no room for that column.
    """
    n_classes, dim = own["shared.weight"].shape
    tables = [key for key, value in state.items() if key in own and len(value) == n_classes
              and key.endswith((".gain.weight", ".bias.weight")) and key.removesuffix("weight") + "u0" not in state]
    if not tables:
        return
    if dim <= n_classes or any(own[key].shape[1] != dim or len(own[key]) <= n_classes for key in tables):
        raise UserError(f"{path} was trained without a shared class embedding; it needs --no-hier, a --shared_dim "
                        f"above the {n_classes} classes, and a network wider than that.")
    t = 2 * max(torch.linalg.matrix_norm(state[key], 2).item() for key in tables)
    state["shared.weight"] = t * torch.eye(n_classes, dim)
    for key in tables:
        table = state[key].T / t  # (C, n_classes), of norm 1/2 at most
        beside = torch.linalg.qr(torch.cat((table, torch.eye(len(table))), 1))[0][:, n_classes]
        rest = torch.zeros(len(table), dim - n_classes - 1)
        state[key] = torch.cat((table, beside[:, None], rest), 1)
        state[key.removesuffix("weight") + "u0"] = beside[None]
        state[key.removesuffix("weight") + "sv0"] = torch.ones(1)


def load_weights(network, path):
    """Load a state dict written by BigGAN-PyTorch or ProbeGAN (G.pth, G_ema.pth, D.pth), or exported here.

    A `module.` prefix is dropped. Raises UserError that names the first key that is missing, unexpected or
    of another shape. A D.pth of BigGAN-PyTorch has no unconditional head: `linear2` keeps its fresh weights. A G of it
    trained without --G_shared, as by its CIFAR script, is given a shared embedding that computes the same.
    """
    state = load_torch(path)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} is not a state dict (a plain dict of tensors).")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    own = network.state_dict()
    if "shared.weight" in own and "shared.weight" not in state:
        share_tables(state, own, path)
    for head in ("linear2.", "linear3."):
        if not any(key.startswith(head) for key in state):
            state |= {key: value for key, value in own.items() if key.startswith(head)}
    for key in dict.fromkeys([*own, *state]):
        if key not in state or key not in own or state[key].shape != own[key].shape:
            shapes = [tuple(weights[key].shape) if key in weights else "absent" for weights in (state, own)]
            raise UserError(f"{path} does not fit {type(network).__name__}: its '{key}' is {shapes[0]}, the network's "
                            f"{shapes[1]}. Set the data set and the width, dim_z, shared_dim, attention and hier flags "
                            "to those it was trained with.")
    network.load_state_dict(state)
