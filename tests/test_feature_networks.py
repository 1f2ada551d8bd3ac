"""The networks that draw from features: shapes, what reaches them, and how the features enter."""

import pytest
import torch

from feature_networks import Editor, FeatureDiscriminator, FeatureGenerator, condition_channels


def editor(way="norms"):
    torch.manual_seed(0)
    return Editor(1, 6, ch=4, way=way)


@pytest.mark.parametrize("way", ["norms", "tiled", "flat"])
@pytest.mark.parametrize("side", [16, 48])
def test_an_editor_keeps_the_shape_and_hears_the_features(way, side):
    G, x = editor(way), torch.rand(4, 1, side, side) * 2 - 1
    f = torch.randn(4, 6)
    G(x, f)
    G.eval()
    fake = G(x, f)
    assert fake.shape == x.shape and fake.abs().max() <= 1
    assert (fake - G(x, -f)).abs().max() > 1e-4
    assert G(x, torch.zeros(4, 6)).isfinite().all()


def test_an_editor_hands_its_input_through_where_the_mask_is_shut():
    G = editor().eval()
    G.output_layer[2].bias.data[0] = -30
    x = torch.rand(2, 1, 16, 16) * 2 - 1
    assert torch.allclose(G(x, torch.randn(2, 6)), x, atol=1e-6)


def test_condition_channels():
    f = torch.tensor([[1.0, 2, 3, 4, 5]])
    tiled = condition_channels(f, "tiled", 4, 4)
    assert tiled.shape == (1, 5, 4, 4) and torch.equal(tiled[0, 2], torch.full((4, 4), 3.0))
    flat = condition_channels(f, "flat", 4, 4)  # a 3x3 patch, zeros after its end, repeated and cut
    assert flat[0, 0].tolist() == [[1, 2, 3, 1], [4, 5, 0, 4], [0, 0, 0, 0], [1, 2, 3, 1]]


def test_a_generator_of_features_and_its_discriminator():
    torch.manual_seed(0)
    G = FeatureGenerator(16, 1, 6, ch=4, dim_z=16, shared_dim=8, hier=True, attention="0", init="ortho", BN_eps=1e-5,
                         SN_eps=1e-8)
    D = FeatureDiscriminator(16, 1, 6, 5, ch=4, attention="0", init="ortho", SN_eps=1e-8)
    z, f = torch.randn(3, G.dim_z), torch.randn(3, 6)
    fake = G(z, f)
    assert fake.shape == (3, 1, 16, 16) and (fake - G(z, -f)).abs().max() > 1e-4
    projection, realness, head = D(fake, f)
    assert projection.shape == realness.shape == (3,) and head.shape == (3, 5)
    assert D(fake)[0] is None
    sum(part.sum() for part in (projection, realness, head)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for network in (G, D) for p in network.parameters())
    D.eval()
    # twice the features are twice the projection's own part
    parts = [D(fake, scale * f)[0] for scale in (0.0, 1.0, 2.0)]
    assert torch.allclose(parts[2] - parts[0], 2 * (parts[1] - parts[0]), atol=1e-5)
