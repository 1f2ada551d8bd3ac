"""Weights of other projects in the networks of BigGAN.py."""

import pytest
import torch

from BigGAN import Generator, load_weights
from utils import UserError


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
