"""The DCGAN pair: the authors' shapes and numbers, TensorFlow's padding, weight norm and its first batch."""

import copy

import pytest
import torch
import torch.nn.functional as F

from dcgan import (
    BN_EPS,
    INPUT_NOISE,
    Discriminator,
    Generator,
    WeightNorm,
    WNConv2d,
    WNConvTranspose2d,
    WNLinear,
    fit_to_batch,
)
from layers import standing_statistics
from utils import UserError

# each layer's weight in the authors' code (inputs and outputs, 3x3 kernels); gain and bias, and those of batch norm,
# have one number an output channel. The linear layer of G has gain and bias for each of its 4x4x768 outputs.
G_WEIGHTS = [(110, 4 * 4 * 768), (768, 384), (384, 192), (192, 96), (96, 3)]
D_WEIGHTS = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 12)]


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_the_generator_has_the_authors_parameters():
    linear, *deconvolutions = G_WEIGHTS
    wanted = linear[0] * linear[1] + 2 * linear[1] + 2 * 768
    wanted += sum(9 * n_in * n_out + 2 * n_out for n_in, n_out in deconvolutions)
    wanted += 2 * (384 + 192 + 96)  # no batch norm after the last
    G = Generator(32, 3, 10)
    assert count(G) == wanted == 4_866_726
    assert count(Generator(32, 3, 0)) == wanted - 10 * linear[1]  # labels found in the image: G sees z alone
    shapes = [(m.weight.shape[1 - m.outputs], m.weight.shape[m.outputs]) for m in G.modules()
              if isinstance(m, WeightNorm)]
    assert shapes == G_WEIGHTS


@pytest.mark.parametrize("deep", [False, True])
def test_the_discriminator_has_the_authors_parameters(deep):
    *convolutions, linear = D_WEIGHTS
    convolutions += [(512, 512)] if deep else []
    wanted = sum(9 * n_in * n_out + 4 * n_out for n_in, n_out in convolutions) + 512 * 12 + 2 * 12
    D = Discriminator(32, 3, 12, deep=deep)
    assert count(D) == wanted == (3_921_368 if deep else 1_560_024)
    shapes = [(m.weight.shape[1], m.weight.shape[0]) for m in D.modules() if isinstance(m, WeightNorm)]
    assert shapes == [*convolutions, linear]


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_sides_and_ranges(resolution):
    G, D = Generator(resolution, 1, 10, ch=4, dim_z=6), Discriminator(resolution, 1, 11, ch=4)
    images = G(torch.randn(3, 6), torch.tensor([0, 4, 9]))
    assert images.shape == (3, 1, resolution, resolution) and images.abs().max() <= 1
    outputs, unconditional = D(images)
    assert outputs.shape == (3, 11) and unconditional is None
    torch.testing.assert_close(G.eval()(torch.ones(1, 6), torch.tensor([4])),
                               G(torch.ones(1, 6), F.one_hot(torch.tensor([4]), 10).float()))


def test_a_side_that_does_not_double_is_refused():
    for side in (4, 24, 28):
        with pytest.raises(UserError, match="dcgan"):
            Generator(side, 1, 10)


def test_weight_norm_by_hand():
    layer = WNLinear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0]]))
        layer.gain.fill_(10)
        layer.bias.fill_(1)
    assert layer(torch.tensor([[1.0, 2.0]])).item() == pytest.approx(10 * (0.6 + 1.6) + 1)
    convolution, transposed = WNConv2d(2, 3), WNConvTranspose2d(2, 3)
    for m, others in ((convolution, (1, 2, 3)), (transposed, (0, 2, 3))):
        with torch.no_grad():
            m.gain.copy_(torch.tensor([1.0, 2.0, 5.0]))
        torch.testing.assert_close(m.normalised_weight().square().sum(others).sqrt(), m.gain)


def test_strides_pad_as_tensorflow_does():
    """SAME with stride 2 and an even side pads below and on the right: the first window begins at the first pixel."""
    x, layer = torch.randn(1, 1, 4, 4), WNConv2d(1, 1, 2)
    w = layer.normalised_weight()
    out = layer(x)
    assert out.shape == (1, 1, 2, 2)
    torch.testing.assert_close(out[0, 0, 0, 0], (x[0, 0, :3, :3] * w[0, 0]).sum())
    torch.testing.assert_close(out[0, 0, 1, 1], (x[0, 0, 2:, 2:] * w[0, 0, :2, :2]).sum())
    # the transposed layer is its gradient
    back = WNConvTranspose2d(1, 1)
    with torch.no_grad():
        back.weight.copy_(layer.weight)
        y = torch.randn(1, 1, 2, 2)
        torch.testing.assert_close((back(y) * x).sum(), (layer(x) * y).sum())


def test_the_first_batch_sets_mean_and_variance_of_every_layer():
    torch.manual_seed(0)
    G, D = Generator(16, 1, 10, ch=4, dim_z=6), Discriminator(16, 1, 10, ch=4, deep=True)
    z, y = torch.randn(64, 6), torch.arange(64) % 10
    before = copy.deepcopy(G.state_dict())
    found = {}
    for network, batch in ((G, (z, y)), (D, (G(z, y).detach(),))):
        hooks = [m.register_forward_hook(lambda m, given, out: found.update({m: out}))
                 for m in network.modules() if isinstance(m, WeightNorm)]
        torch.manual_seed(1)  # of D's noise
        fit_to_batch(network, *batch)
        for m in (m for m in network.modules() if isinstance(m, WeightNorm)):
            of_layer = found[m].detach().transpose(0, 1).flatten(1)
            torch.testing.assert_close(of_layer.mean(1), torch.zeros(len(of_layer)), atol=1e-4, rtol=0)
            torch.testing.assert_close(of_layer.var(1, correction=0), torch.ones(len(of_layer)), atol=1e-3, rtol=0)
        for hook in hooks:
            hook.remove()
        assert not any(m._forward_pre_hooks for m in network.modules())
    after = G.state_dict()
    assert torch.equal(before["linear.weight"], after["linear.weight"])
    assert not torch.equal(before["linear.gain"], after["linear.gain"])


def test_noise_and_dropout_are_of_training_alone():
    torch.manual_seed(0)
    D, x = Discriminator(16, 1, 10, ch=4), torch.zeros(2, 1, 16, 16)
    seen = []
    D.blocks[0][0].register_forward_hook(lambda m, given, out: seen.append(given[0]))
    D(x)
    assert 0 < seen[0].std() < INPUT_NOISE and seen[0].abs().max() <= 2 * INPUT_NOISE
    D.eval()
    assert torch.equal(D(x)[0], D(x)[0]) and not seen[1].any()


def test_images_in_eval_mode_do_not_depend_on_their_batch():
    G, z, y = Generator(16, 1, 10, ch=4, dim_z=6), torch.randn(8, 6), torch.arange(8)
    standing_statistics(G, lambda k: (z + k, y), n_passes=4)
    torch.testing.assert_close(G(z, y)[:2], G(z[:2], y[:2]))
    assert G.norm.eps == BN_EPS and G.norm.stored_mean.any()
