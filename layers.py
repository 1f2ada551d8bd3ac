"""Building blocks of BigGAN (Brock et al., ICLR 2019): spectral norm, batch norms, attention, residual blocks;
the moving average of weights, and DiffAugment.

State-dict keys follow BigGAN-PyTorch, so that its checkpoints and ProbeGAN's load.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.distributed.nn.functional import all_reduce

# ----------------------------------------------------------------------------------- spectral norm


class SpectralNorm:
    """Mixin that divides `weight`, seen as (outputs, rest), by its largest singular value.

    One power iteration a forward pass (Miyato et al., ICLR 2018). The singular vectors are constants
    of the gradient, which flows through sigma = u' W v. Only training mode stores the iterate.
    Buffers: u0 (1, outputs), the left singular vector; sv0 (1,), the singular value.
    """

    def init_spectral_norm(self, eps):
        self.sn_eps = eps
        self.register_buffer("u0", torch.randn(1, self.weight.shape[0]))
        self.register_buffer("sv0", torch.ones(1))

    def normalised_weight(self):
        """weight / sigma, in the shape of `weight`."""
        # autocast would run the power iteration in bfloat16
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1)  # (outputs, rest)
            with torch.no_grad():
                v = F.normalize(self.u0 @ matrix, eps=self.sn_eps).squeeze(0)  # (rest,)
            product = matrix @ v  # (outputs,)
            with torch.no_grad():
                u = F.normalize(product, dim=0, eps=self.sn_eps)
            sigma = product @ u
            if self.training:
                with torch.no_grad():
                    self.u0.copy_(u.unsqueeze(0))
                    self.sv0.copy_(sigma)
            return self.weight / sigma


def convolution_gradients(gradient, x, weight, padding, wanted):
    """Gradients of conv2d with respect to (x, weight, bias), None for what is not wanted (three bools)."""
    return torch.ops.aten.convolution_backward(gradient, x, weight, [len(weight)], [1, 1], [padding] * 2, [1, 1], False,
                                               [0, 0], 1, wanted)


class Convolution(torch.autograd.Function):
    """conv2d (x, weight, bias, padding) whose gradient with respect to x can be differentiated once more, and fast.

    For the gradient penalty. Torch's own convolution computes the second gradients of the weight as a convolution with
    kernels as large as the image, from transposed copies; this one as it does the first. Nor are gradients of the
    weight computed where a pass asks for those of x alone. On two CPU cores the penalty of two layers takes 0.85 of
    the time.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, padding):
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx, gradient):
        def wanted(i):
            if not ctx.needs_input_grad[i]:  # in any pass
                return False
            try:
                return torch._C._will_engine_execute_node(ctx.next_functions[i][0])  # in this one
            except RuntimeError:  # not said of a leaf in torch.autograd.grad
                return True

        x, weight = ctx.saved_tensors
        of_x = ConvolutionInputGradient.apply(gradient, x, weight, ctx.padding) if ctx.needs_input_grad[0] else None
        others = wanted(1), wanted(2)
        of_others = convolution_gradients(gradient, x, weight, ctx.padding, [False, *others])[1:] if any(others) \
            else (None, None)
        return of_x, *of_others, None


class ConvolutionInputGradient(torch.autograd.Function):
    """Convolution's gradient with respect to x: linear in `gradient` and weight; of x the shape alone matters."""

    @staticmethod
    def forward(ctx, gradient, x, weight, padding):
        ctx.save_for_backward(gradient, weight)
        ctx.padding = padding
        return convolution_gradients(gradient, x, weight, padding, [True, False, False])[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, second):
        gradient, weight = ctx.saved_tensors
        of_gradient = F.conv2d(second, weight, padding=ctx.padding) if ctx.needs_input_grad[0] else None
        of_weight = convolution_gradients(gradient, second, weight, ctx.padding, [False, True, False])[1] \
            if ctx.needs_input_grad[2] else None
        return of_gradient, None, of_weight, None


class SNConv2d(SpectralNorm, nn.Conv2d):
    """nn.Conv2d with a spectrally normalised weight."""

    def __init__(self, n_in, n_out, kernel_size, bias=True, eps=1e-8):
        super().__init__(n_in, n_out, kernel_size, padding=kernel_size // 2, bias=bias)
        self.init_spectral_norm(eps)

    def forward(self, x):
        given, device = (x, self.normalised_weight(), self.bias), x.device.type
        if torch.is_autocast_enabled(device):  # which knows torch's own functions alone
            given = [None if part is None else part.to(torch.get_autocast_dtype(device)) for part in given]
        return Convolution.apply(*given, self.padding[0])


class SNLinear(SpectralNorm, nn.Linear):
    """nn.Linear with a spectrally normalised weight."""

    def __init__(self, n_in, n_out, bias=True, eps=1e-8):
        super().__init__(n_in, n_out, bias=bias)
        self.init_spectral_norm(eps)

    def forward(self, x):
        return F.linear(x, self.normalised_weight(), self.bias)


class SNEmbedding(SpectralNorm, nn.Embedding):
    """nn.Embedding with a spectrally normalised weight."""

    def __init__(self, n_classes, n_features, eps=1e-8):
        super().__init__(n_classes, n_features)
        self.init_spectral_norm(eps)

    def forward(self, y):
        return F.embedding(y, self.normalised_weight())


# -------------------------------------------------------------------------------------- batch norm


class StoredBatchNorm(nn.Module):
    """Batch norm without gain and bias; statistics in `stored_mean` and `stored_var`, both (C,)."""

    def __init__(self, n_channels, eps):
        super().__init__()
        self.eps = eps
        self.momentum = 0.1
        self.synchronised = False  # statistics over the processes of torchrun
        self.register_buffer("stored_mean", torch.zeros(n_channels))
        self.register_buffer("stored_var", torch.ones(n_channels))

    def normalise(self, x):
        """Normalise (B, C, H, W) by the batch's statistics in training mode, by the stored ones in eval mode."""
        if self.synchronised and self.training:
            return self._normalise_over_processes(x)
        return F.batch_norm(x, self.stored_mean, self.stored_var, training=self.training, momentum=self.momentum,
                            eps=self.eps)


    def _normalise_over_processes(self, x):
        def mean_of(values):  # (B, C, H, W) -> (C, 1, 1), with the gradient of every process's loss
            return all_reduce(values.mean((0, 2, 3))).div(dist.get_world_size())[:, None, None]

        x = x.to(self.stored_mean.dtype)
        mean = mean_of(x)
        variance = mean_of((x - mean).square())
        n = x.numel() // x.shape[1] * dist.get_world_size()
        with torch.no_grad():
            self.stored_mean.lerp_(mean.flatten(), self.momentum)
            self.stored_var.lerp_(variance.flatten() * (n / (n - 1)), self.momentum)
        return (x - mean) * (variance + self.eps).rsqrt()


def synchronise_batch_norms(network):
    """Let a network's batch norms take their statistics over the processes of torchrun, where there are several."""
    for module in network.modules():
        if isinstance(module, StoredBatchNorm):
            module.synchronised = dist.is_initialized() and dist.get_world_size() > 1


class BatchNorm(StoredBatchNorm):
    """Batch norm with a learnt gain and bias."""

    def __init__(self, n_channels, eps=1e-5):
        super().__init__(n_channels, eps)
        self.gain = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))

    def forward(self, x):
        return torch.addcmul(self.bias.view(1, -1, 1, 1), self.normalise(x), self.gain.view(1, -1, 1, 1)).to(x.dtype)


class ClassConditionalBatchNorm(StoredBatchNorm):
    """Batch norm whose gain and bias are linear in a condition (B, n_condition), such as a class embedding."""

    def __init__(self, n_channels, n_condition, BN_eps=1e-5, SN_eps=1e-8):
        super().__init__(n_channels, BN_eps)
        self.gain = SNLinear(n_condition, n_channels, bias=False, eps=SN_eps)
        self.bias = SNLinear(n_condition, n_channels, bias=False, eps=SN_eps)

    def forward(self, x, condition):
        gain = (1 + self.gain(condition))[:, :, None, None]  # (B, C, 1, 1)
        bias = self.bias(condition)[:, :, None, None]  # (B, C, 1, 1)
        return torch.addcmul(bias, self.normalise(x), gain)


@torch.no_grad()
def standing_statistics(G, draw_batch, n_passes=16):
    """Re-estimate G's batch-norm statistics as the mean over `n_passes` forward passes (BigGAN, section 4.1).

    draw_batch(k) returns the arguments (z, y) of pass k. G is left in eval mode; its spectral norm
    is not advanced.
    """
    G.eval()
    norms = [module for module in G.modules() if isinstance(module, StoredBatchNorm)]
    for norm in norms:
        norm.training = True
    for k in range(n_passes):
        for norm in norms:
            norm.momentum = 1 / (k + 1)  # a running mean of the passes
        G(*draw_batch(k))
    for norm in norms:
        norm.momentum, norm.training = 0.1, False


# ------------------------------------------------------------------------- attention and residual blocks


class Attention(nn.Module):
    """Self-attention over positions (Zhang et al., SAGAN, ICML 2019), as BigGAN places it."""

    def __init__(self, n_channels, SN_eps=1e-8):
        super().__init__()
        n_keys = max(1, n_channels // 8)
        self.theta = SNConv2d(n_channels, n_keys, 1, bias=False, eps=SN_eps)
        self.phi = SNConv2d(n_channels, n_keys, 1, bias=False, eps=SN_eps)
        self.g = SNConv2d(n_channels, n_channels // 2, 1, bias=False, eps=SN_eps)
        self.o = SNConv2d(n_channels // 2, n_channels, 1, bias=False, eps=SN_eps)
        self.gamma = nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        """(B, C, H, W) -> (B, C, H, W)."""
        theta = self.theta(x).flatten(2)  # (B, C/8, HW)
        phi = F.max_pool2d(self.phi(x), 2).flatten(2)  # (B, C/8, HW/4)
        g = F.max_pool2d(self.g(x), 2).flatten(2)  # (B, C/2, HW/4)
        weights = torch.softmax((theta.transpose(1, 2) @ phi).float(), dim=-1).to(g.dtype)  # (B, HW, HW/4)
        out = (g @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])  # (B, C/2, H, W)
        return x + self.gamma * self.o(out)


class GBlock(nn.Module):
    """Residual up-sampling block of G: batch norm, ReLU, x2 nearest, conv, batch norm, ReLU, conv; 1x1 shortcut."""

    def __init__(self, n_in, n_out, n_condition, BN_eps, SN_eps):
        super().__init__()
        self.conv1 = SNConv2d(n_in, n_out, 3, eps=SN_eps)
        self.conv2 = SNConv2d(n_out, n_out, 3, eps=SN_eps)
        self.conv_sc = SNConv2d(n_in, n_out, 1, eps=SN_eps)
        self.bn1 = ClassConditionalBatchNorm(n_in, n_condition, BN_eps, SN_eps)
        self.bn2 = ClassConditionalBatchNorm(n_out, n_condition, BN_eps, SN_eps)

    def forward(self, x, condition):
        """(B, n_in, H, W), (B, n_condition) -> (B, n_out, 2H, 2W)."""
        h = F.interpolate(F.relu(self.bn1(x, condition)), scale_factor=2)
        h = self.conv1(h)
        h = self.conv2(F.relu(self.bn2(h, condition)))
        # a 1x1 convolution commutes with nearest up-sampling, and costs a quarter before it
        return h + F.interpolate(self.conv_sc(x), scale_factor=2)


class DBlock(nn.Module):
    """Residual block of D: (ReLU,) conv, ReLU, conv, (average pooling); 1x1 shortcut where the shape changes."""

    def __init__(self, n_in, n_out, preactivation, downsample, SN_eps):
        super().__init__()
        self.preactivation, self.downsample = preactivation, downsample
        self.conv1 = SNConv2d(n_in, n_out, 3, eps=SN_eps)
        self.conv2 = SNConv2d(n_out, n_out, 3, eps=SN_eps)
        self.conv_sc = SNConv2d(n_in, n_out, 1, eps=SN_eps) if n_in != n_out or downsample else None

    def forward(self, x):
        """(B, n_in, H, W) -> (B, n_out, H, W), or half the height and width where it down-samples."""
        h = self.conv1(F.relu(x) if self.preactivation else x)
        h = self.conv2(F.relu(h))
        # average pooling commutes with a 1x1 convolution: the shortcut pools first
        if self.downsample:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (x if self.conv_sc is None else self.conv_sc(x))


def init_weights(network, init):
    """Draw the weights of every conv, linear and embedding layer: 'N02' N(0, 0.02), 'ortho' or 'xavier'."""
    draw = {"N02": lambda w: nn.init.normal_(w, 0, 0.02), "ortho": nn.init.orthogonal_,
            "xavier": nn.init.xavier_uniform_}[init]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            draw(module.weight)


class EMA:
    """Exponential moving average of a network's parameters and buffers (BigGAN, appendix C).

    Until `start` steps have been taken the average is a plain copy. rampup: the steps that it reaches back over,
    1 / (1 - decay), are at most this share of those taken (StyleGAN2-ADA); 0: no such bound.
    """

    def __init__(self, source, target, decay, start, rampup=0.0):
        self.decay, self.start, self.rampup = decay, start, rampup
        # the counts of batches that some norms keep have no average
        self.target, self.source = ([value for value in network.state_dict().values() if value.is_floating_point()]
                                    for network in (target, source))

    @torch.no_grad()
    def update(self, step):
        """Move the average towards the source; call once after G's optimiser step number `step`."""
        new = 1.0 - self.decay if step >= self.start else 1.0
        if self.rampup:
            new = min(1.0, max(new, 1 / (self.rampup * step)))
        torch._foreach_lerp_(self.target, self.source, new)


# ------------------------------------------------------------------------- differentiable augmentation


def diff_augment(images, parts):
    """DiffAugment (Zhao et al., NeurIPS 2020): a random, differentiable change of each image, of one law for
    real and fake.

    images: (B, C, H, W) in [-1, 1]. parts: any of 'color' (brightness, saturation, contrast),
    'translation' (by up to an eighth of the side, filled with -1), 'time' (the same sideways alone, which keeps the
    pitch of a spectrogram) and 'cutout' (a square of half the side becomes 0).
    """
    for part in parts:
        images = {"color": _color, "translation": _translation, "time": _time, "cutout": _cutout}[part](images)
    return images


def shift(images, reach, fill, generator=None, vertical=True):
    """Move each image of (B, C, H, W) by up to `reach` pixels in each direction; what comes in has the value `fill`.

    vertical: whether up and down too, or sideways alone. The moves are drawn on the generator's device, without one on
    the images'.
    """
    b, _, height, width = images.shape
    drawn_on = images.device if generator is None else generator.device
    down, right = torch.randint(0, 2 * reach + 1, (2, b, 1), generator=generator, device=drawn_on).to(images.device)
    down = down if vertical else torch.full_like(down, reach)
    rows = down + torch.arange(height, device=images.device)  # (B, H)
    columns = right + torch.arange(width, device=images.device)  # (B, W)
    padded = F.pad(images, (reach,) * 4, value=fill).permute(0, 2, 3, 1)  # (B, H + 2 reach, W + 2 reach, C)
    batch = torch.arange(b, device=images.device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _uniform(images):
    return torch.rand(images.shape[0], 1, 1, 1, device=images.device, dtype=images.dtype)


def _color(images):
    images = images + (_uniform(images) - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * _uniform(images))
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (0.5 + _uniform(images))


def _translation(images):
    return shift(images, images.shape[2] // 8, fill=-1)


def _time(images):
    return shift(images, images.shape[2] // 8, fill=-1, vertical=False)


def _cutout(images):
    b, _, height, width = images.shape
    centre = torch.rand(2, b, 1, device=images.device)
    in_rows = (torch.arange(height, device=images.device) - centre[0] * height).abs() < height / 4  # (B, H)
    in_columns = (torch.arange(width, device=images.device) - centre[1] * width).abs() < width / 4  # (B, W)
    hole = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return images.masked_fill(hole, 0.0)
