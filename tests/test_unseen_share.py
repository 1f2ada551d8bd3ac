"""The share of y* among the fakes: how often the draws hold it, and that without a share nothing changes."""

from types import SimpleNamespace

import pytest
import torch

from config import make_config
from step import draw_latents, make_task
from utils import UserError

G = SimpleNamespace(dim_z=4)


def task(fed=range(10), **settings):
    return make_task(make_config(dataset="C10", **settings), list(fed), range(10), 10, "cpu")


def test_labels_come_in_their_shares():
    torch.manual_seed(0)
    _, y = draw_latents(G, task(new_class=["7", "2"], unseen_share=0.2), 40_000, "cpu")
    shares = torch.bincount(y, minlength=10) / len(y)
    assert (shares[[2, 7]] - 0.1).abs().max() < 0.01  # 6 standard deviations
    assert (shares[[0, 1, 3, 4, 5, 6, 8, 9]] - 0.1).abs().max() < 0.01
    _, y = draw_latents(G, task(new_class=["7"], unseen_share=0.6), 40_000, "cpu")
    shares = torch.bincount(y, minlength=10) / len(y)
    assert (shares[7] - 0.6).abs() < 0.015 and (shares[torch.arange(10) != 7] - 0.4 / 9).abs().max() < 0.008


def test_no_share_draws_what_was_drawn_before():
    torch.manual_seed(0)
    z, y = draw_latents(G, task(new_class=["7"]), 50, "cpu")
    torch.manual_seed(0)
    assert torch.equal(z, torch.randn(50, 4)) and torch.equal(y, torch.randint(10, (50,)))


@pytest.mark.parametrize("settings", [{"unseen_share": 1.0}, {"unseen_share": -0.1},
                                      {"unseen_share": 0.2, "balanced_y": True},
                                      {"unseen_share": 0.2, "oracle": True},
                                      {"unseen_share": 0.2, "fed": [7]}, {"unseen_share": 0.2, "fed": [1, 2]}])
def test_a_share_that_cannot_be_is_a_sentence(settings):
    with pytest.raises(UserError, match="--unseen_share"):
        task(new_class=["7"], **settings)
