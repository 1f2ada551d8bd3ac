"""The networks at every resolution: shapes, attention, gradients, and a training step."""

import h5py
import numpy as np
import pytest
import torch

from BigGAN import WIDTHS, Discriminator, Generator, load_weights, widths_at
from datasets.prepare import RESOLUTIONS
from layers import Attention, SpectralNorm
from methods import make_config, start
from utils import DATASETS, DatasetSpec, UserError


def test_the_resolutions_are_four_to_seven_times_a_power_of_two():
    def has_network(resolution):
        try:
            return bool(widths_at(resolution))
        except UserError as error:
            assert f"no network for {resolution}x{resolution} images" in str(error)
            return False

    valid = {side * 2**k for side in (4, 5, 6, 7) for k in range(2, 7)} & set(range(257))
    assert {resolution for resolution in range(600) if has_network(resolution)} == valid == set(RESOLUTIONS)


@pytest.mark.parametrize("resolution, row, bottom", [
    (16, 16, 4), (28, 16, 7), (32, 32, 4), (40, 32, 5), (48, 32, 6), (56, 32, 7), (64, 64, 4), (96, 64, 6),
    (128, 128, 4), (192, 128, 6), (224, 128, 7), (256, 256, 4)])
def test_a_resolution_takes_the_row_of_as_many_halvings(resolution, row, bottom):
    assert widths_at(resolution) == (WIDTHS[row], bottom)


@pytest.mark.parametrize("resolution, channels", [(side, 1 + i % 2 * 2) for i, side in enumerate(RESOLUTIONS)])
def test_networks_of_every_size(resolution, channels):
    attention = str(2 * widths_at(resolution)[1])  # a side that both have
    G = Generator(resolution, channels, 4, ch=2, dim_z=14, shared_dim=4, attention=attention)
    D = Discriminator(resolution, channels, 4, ch=2, attention=attention)
    y = torch.tensor([0, 3])
    images = G(torch.randn(2, G.dim_z), y)
    assert images.shape == (2, channels, resolution, resolution) and images.abs().max() <= 1
    G.eval()
    z = torch.zeros(2, G.dim_z)
    assert torch.equal(G(z, y), G(z, G.shared(y)))
    d_c, d_u = D(images, y)
    assert d_c.shape == d_u.shape == (2,) and D(images)[0] is None
    assert all(isinstance(m, SpectralNorm) for m in D.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    for network in (G, D):
        assert sum(isinstance(module, Attention) for module in network.modules()) == 1
    G.train()
    D(G(torch.randn(2, G.dim_z), y), y)[0].sum().backward()
    without = [name for network in (G, D) for name, weight in network.named_parameters()
               if weight.grad is None or not weight.grad.isfinite().all()]
    assert without == ["linear2.weight", "linear2.bias"]  # D_u, which was not asked


@pytest.mark.parametrize("resolution, of_G, of_D", [(28, "14, 28", "7, 14"), (48, "12, 24, 48", "12, 24"),
                                                    (256, "8, 16, 32, 64, 128, 256", "4, 8, 16, 32, 64, 128")])
def test_attention_at_other_sides_is_refused(resolution, of_G, of_D):
    for network, sides in ((Generator, of_G), (Discriminator, of_D)):
        with pytest.raises(UserError, match=f"joined by _ out of {sides}\\."):
            network(resolution, 1, 4, ch=1, attention="10")


@pytest.mark.parametrize("resolution", [28, 48])
def test_a_training_step(noise_world, tmp_path, monkeypatch, resolution):
    """Noise images with a translation before D; the classifier resizes what it gets."""
    (tmp_path / "digits").mkdir()
    for split in ("train", "test"):
        with h5py.File(tmp_path / "digits" / f"{split}.h5", "w") as file:
            file["images"] = np.random.default_rng(0).integers(0, 256, (60, 1, resolution, resolution), np.uint8)
            file["labels"] = np.arange(60) % 10
            file.attrs["classes"] = list("0123456789")
    spec = DatasetSpec("digits", resolution, 1, tuple("0123456789"))
    monkeypatch.setitem(DATASETS, "digits", spec)
    config = make_config(dataset="digits", data_root=str(tmp_path), new_class=["7"], C_path=str(noise_world / "C.pt"),
                         G_ch=1, D_ch=1, batch_size=8, num_D_steps=1, diffaug=("translation",))
    run = start(config, spec, torch.device("cpu"))
    before = [weight.clone() for weight in run.G.parameters()]
    assert all(torch.isfinite(term) for term in run.advance().values())
    changed = [not torch.equal(a, b) for a, b in zip(run.G.parameters(), before, strict=True)]
    assert sum(changed) > len(changed) / 2


# ------------------------------------------------------------------------ weights of other projects


def without_shared_embedding(G, tables):
    """The state dict of a generator that was trained without --G_shared: a table of each norm for its layer."""
    state = {name: value for name, value in G.state_dict().items() if name != "shared.weight"}
    for name, table in tables.items():
        for part in ("weight", "u0", "sv0"):
            state.pop(name.removesuffix("weight") + part)
        state[name] = table
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_class_tables_become_a_shared_embedding_with_the_same_outputs(tmp_path, prefix):
    torch.manual_seed(0)
    G = Generator(32, 3, 10, ch=8, dim_z=16, shared_dim=20, hier=False).eval()
    layers = dict(G.named_modules())
    names = [name for name in G.state_dict() if name.endswith((".gain.weight", ".bias.weight"))]
    tables = {name: 0.3 * torch.randn(10, len(G.state_dict()[name])) for name in names}
    assert len(names) == 12  # gain and bias of two norms in each of three blocks
    state = without_shared_embedding(G, tables)
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "G.pth")
    load_weights(G, tmp_path / "G.pth")
    y = torch.arange(10)
    for training in (False, True, False):  # the spectral norm stays 1 when its iteration goes on
        G.train(training)
        for name, table in tables.items():
            torch.testing.assert_close(layers[name.removesuffix(".weight")](G.shared(y)), table, atol=1e-5, rtol=1e-5)
    # all else is as in the file
    assert torch.equal(G.linear.weight, state["linear.weight"])


@pytest.mark.parametrize("settings", [{"hier": True, "shared_dim": 20}, {"hier": False, "shared_dim": 10},
                                      {"hier": False, "shared_dim": 20, "ch": 2}])
def test_where_they_have_no_room_a_sentence_says_so(tmp_path, settings):
    G = Generator(32, 3, 10, **{"ch": 8, "dim_z": 16} | settings)
    names = [name for name in G.state_dict() if name.endswith((".gain.weight", ".bias.weight"))]
    tables = {name: torch.randn(10, len(G.state_dict()[name])) for name in names}
    torch.save(without_shared_embedding(G, tables), tmp_path / "G.pth")
    with pytest.raises(UserError, match="without a shared class embedding; it needs --no-hier, a --shared_dim above"):
        load_weights(G, tmp_path / "G.pth")
