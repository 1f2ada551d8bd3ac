"""Who teaches G: gradients of known norms, what a D of known scores tells apart, and the warnings of planted cases."""

import json

import pytest
import torch
from torch import nn

import train
from methods import find_method, make_config
from metrics.teachers import Teachers, alone, blind, pulls, told_apart
from step import make_task
from utils import DATASETS

SETTINGS = {"dataset": "C10", "new_class": ["2"], "diffaug": (), "precision": "fp32", "D2_reg_coeff": 0.0}


class Heads(nn.Module):
    """D_c = 3 * sum of pixels, D_u = 5 * the first pixel."""

    def forward(self, x, y=None):
        return 3 * x.flatten(1).sum(1), 5 * x.flatten(1)[:, 0]


def test_the_pull_of_each_term_is_its_gradient_on_the_image():
    config, method = make_config(**SETTINGS, C_coeff=0.5), find_method("probegan")
    x, y = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 2])
    task = make_task(config, [0, 1, 2], (0, 1, 2), 3, "cpu")
    weight = torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    seen = torch.tensor([1.0, 1.0, 0.0, 0.0])
    found = pulls(method.losses[1], Heads(), lambda x: x.flatten(1) @ weight.T, x, torch.zeros(4, 2), y, seen, task,
                  config, {"G_class": 0.5})
    # the hinge is a mean over the two seen rows, each pixel with 3: 4/2 * sqrt(4 * 9)
    assert found["G_hinge"].tolist() == pytest.approx([12, 12, 0, 0])
    assert found["G_wasserstein"].tolist() == pytest.approx([5, 5, 5, 5])
    # softmax of equal logits: the first pixel moves log p of class 0 by 2 * (1 - 1/3), of the others by -2/3
    assert found["G_class"].tolist() == pytest.approx([0.5 * 4 / 3, 0.5 * 2 / 3, 0.5 * 2 / 3, 0.5 * 2 / 3])


def test_told_apart():
    low, high = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])
    assert told_apart(high, low) == 1 and told_apart(low, high) == 0 and told_apart(low, low) == 0.5


@pytest.mark.parametrize("record, words", [
    ({"pull_unseen_G_class": 30.0, "pull_unseen_G_wasserstein": 1.0}, "the classifier alone moves G on the unseen"),
    ({"pull_seen_G_class": 0.1, "pull_seen_G_wasserstein": 1.0, "pull_seen_G_hinge": 30.0}, "D_c alone moves G on the"),
    ({"pull_seen_G_class": 9.0, "pull_seen_G_wasserstein": 1.0}, None),
    ({"pull_seen_G_hinge": 9.0}, None),
])
def test_a_term_that_moves_g_alone_is_warned_of(record, words):
    said = list(alone(record))
    assert (words is None and not said) or (len(said) == 1 and words in said[0])


def test_icons_that_d_does_not_see_are_warned_of():
    chance = {"D_c_right": 0.5, "D_u_seen": 0.55, "D_u_unseen": 0.5}
    (said,) = blind(chance, ["7"])
    assert "the fakes of 7 are nearly one picture each, and D does not see it (it tells 55% of the images right" in said
    assert not list(blind(chance, [])) and not list(blind({**chance, "D_u_unseen": 0.9}, ["7"]))


def test_a_run_writes_it_at_each_save_and_its_course_is_not_moved(noise_world, tmp_path, monkeypatch):
    def run(name):
        config = make_config(**{**SETTINGS, "dataset": "digits", "new_class": ["7"]}, save_every=1,
                             data_root=str(noise_world), C_path=str(noise_world / "C.pt"), G_ch=2, D_ch=2,
                             batch_size=8, num_steps=2, device="cpu")
        training = train.start(config, DATASETS["digits"], torch.device("cpu"))
        train.train(training, tmp_path / name)
        return training

    watched = run("watched")
    lines = [json.loads(line) for line in (tmp_path / "watched" / "teachers.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"pull_seen_G_hinge", "pull_unseen_G_class", "D_c_right", "D_u_unseen", "D_u_gap_seen"} <= lines[0].keys()
    assert 0 <= lines[0]["D_u_seen"] <= 1 and lines[0]["pull_unseen_G_hinge"] == 0 < lines[0]["pull_seen_G_hinge"]
    monkeypatch.setattr(Teachers, "look", lambda self, sampler, collapsed: ({"step": sampler.step}, []))
    unwatched = run("unwatched")
    assert all(torch.equal(value, unwatched.D.state_dict()[name]) for name, value in watched.D.state_dict().items())
