"""Target-free selection: planted figures rank rightly, y* is never read, best.pt outlives crashes and full disks."""

import copy
import errno
import json
import math
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import test_train
import torch
from test_collapse import Poisoned
from test_train import SMALL, assert_same_state, training

import sample
import train as train_module
from methods import read_config, start
from metrics import selection
from metrics.collapse import CollapseWatch, plain
from metrics.distances import frechet_distance
from metrics.selection import Selection, score, standardised_gap
from sampler import Sampler
from train import train
from utils import DATASETS, UserError, load_checkpoint, load_torch

CPU = torch.device("cpu")
world = test_train.world
GOOD = {"activation": 0.9, "diversity": 0.5, "seen_fd": 2.0, "seen_gap": 0.5}


def lines(run):
    return [json.loads(line) for line in (run / "selection.jsonl").read_text().splitlines()]


def go_on(run, **changes):
    """A Training from the newest checkpoint of a run folder, as --resume makes it."""
    state = load_checkpoint(run)
    config = replace(read_config(state["config"]), **changes)
    return start(config, DATASETS["digits"], CPU, state)


def selection_of(run, path, unseen=(7,)):
    return Selection(run.C, run.stream, run.spec.classes, list(unseen), CPU, path, run.step)


# ------------------------------------------------------------------------------------- the score


def test_the_score_by_hand():
    assert score(GOOD) == pytest.approx(math.log(0.9 * 0.5 / (2.0 * 1.5)))
    assert score({"activation": 1.0, "diversity": 1.0, "seen_fd": 1.0, "seen_gap": 0.0}) == 0
    assert math.isfinite(score({"activation": 0.0, "diversity": 0.0, "seen_fd": 0.0, "seen_gap": 9.0}))


@pytest.mark.parametrize("worse", [{"activation": 0.5}, {"diversity": 0.1}, {"seen_fd": 3.0}, {"seen_gap": 2.0},
                                   {"activation": 0.0}, {"diversity": 0.0}])
def test_each_figure_counts(worse):
    assert score({**GOOD, **worse}) < score(GOOD)


def test_more_variety_than_real_images_have_is_no_gain_and_units_do_not_matter():
    assert score({**GOOD, "diversity": 3.0}) == score({**GOOD, "diversity": 1.0})
    other = {**GOOD, "seen_fd": 3.0, "activation": 1.0, "diversity": 0.9}
    metres = score(other) - score(GOOD)
    feet = score({**other, "seen_fd": 300.0}) - score({**GOOD, "seen_fd": 200.0})
    assert metres == pytest.approx(feet)


def test_the_gap_by_hand():
    """Means 2 and 5, variances 1 and 9: 3 / sqrt(5), either way round and in any unit."""
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 5.0, 8.0])
    assert standardised_gap(a, b) == standardised_gap(b, a) == pytest.approx(3 / math.sqrt(5))
    assert standardised_gap(100 * a + 7, 100 * b + 7) == pytest.approx(3 / math.sqrt(5))
    assert standardised_gap(a, a) == 0


# ------------------------------------------------------------------------------ planted candidates


@pytest.fixture
def fewer(monkeypatch):
    """Fewer images a candidate, where the figures' values do not matter."""
    monkeypatch.setattr(selection, "IMAGES", 90)


@pytest.fixture
def planted(world, tmp_path, monkeypatch):
    """A function that shows candidates with given figures, steps 1, 2, ..., to a Selection; returns its lines."""
    run = training(world)

    def show(*candidates, after=0):
        run.step = after
        chosen = selection_of(run, tmp_path)
        for figures in candidates:
            run.step += 1
            monkeypatch.setattr(chosen, "figures", lambda *_, f=figures: {**f, "score": plain(score(f))})
            chosen.consider(run.state(), None, None, None)
        return lines(tmp_path)

    return show


def test_the_right_candidate_wins(planted, tmp_path):
    """A collapsed y*, one that C rejects, bad seen classes, a wide gap: each loses to the good one."""
    bad = [{**GOOD, "seen_fd": 9.0}, {**GOOD, "diversity": 0.01, "seen_fd": 1.8}]
    worse = [{**GOOD, "activation": 0.1}, {**GOOD, "seen_gap": 4.0}]
    found = planted(*bad, GOOD, *worse)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5]
    assert [line["best"] for line in found] == [True, False, True, False, False]
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["step"] == 3 and best["selection"] == found[2]


def test_a_later_start_keeps_the_older_best(planted, tmp_path):
    planted(GOOD, {**GOOD, "seen_fd": 5.0})
    found = planted({**GOOD, "seen_fd": 2.5}, after=2)
    assert [line["best"] for line in found] == [True, False, False]
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 1
    planted({**GOOD, "seen_fd": 1.5}, after=3)
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 4


def test_a_fall_back_behind_the_best_keeps_it_until_it_is_reached(planted, tmp_path):
    planted({**GOOD, "seen_fd": 5.0}, {**GOOD, "seen_fd": 4.0}, GOOD)
    found = planted({**GOOD, "seen_fd": 3.0}, after=1)
    assert [(line["step"], line["best"]) for line in found] == [(1, True), (2, False)]
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 3


def test_a_new_run_does_not_inherit_a_best(planted, tmp_path):
    planted(GOOD)
    planted({**GOOD, "seen_fd": 50.0})
    assert load_checkpoint(tmp_path / "best.pt")["selection"]["seen_fd"] == 50.0


def test_a_full_disk_leaves_the_older_best(planted, tmp_path, monkeypatch):
    planted(GOOD)
    save = torch.save

    def full(value, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="best.pt could not be written .*No space left"):
        planted({**GOOD, "seen_fd": 1.0}, after=1)
    assert {path.name for path in tmp_path.iterdir()} == {"best.pt", "selection.jsonl"}
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 1
    monkeypatch.setattr(torch, "save", save)
    assert [line["best"] for line in planted({**GOOD, "seen_fd": 1.0}, after=1)] == [True, True]


# ------------------------------------------------------------------------------------ the figures


def test_the_figures_against_the_networks_themselves(world, tmp_path):
    run = training(world)
    for _ in range(2):
        run.advance()
    chosen, sampler = selection_of(run, tmp_path), Sampler(run.state(), CPU)
    watched = {"classes": {"7": {"activation": 0.25, "feature_distance": 0.5}}}
    found = chosen.figures(sampler, run.D, watched)
    stream = run.stream
    real = stream.source.read(stream.indices).float() / 127.5 - 1  # 20 a class: fewer than asked for, so all of them
    first = 2**41 + 2**40
    fake = torch.cat([sampler.class_images(y, range(first, first + 112)) for y in range(10) if y != 7])
    with torch.no_grad():
        x, y = (run.C.features_and_logits(images)[0].double() for images in (real, fake))
        D_real, D_fake = (run.D.eval()(images)[1].double() for images in (real, fake))
    wanted = frechet_distance(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert found["seen_fd"] == pytest.approx(wanted, rel=1e-3)
    assert found["seen_gap"] == pytest.approx(standardised_gap(D_real, D_fake), rel=1e-3)
    assert found["activation"] == 0.25 and found["diversity"] == 0.5
    assert found["score"] == pytest.approx(score(found), rel=1e-3)


def test_real_images_drawn_as_fakes_are_at_distance_zero(world, tmp_path):
    run = training(world)
    chosen = selection_of(run, tmp_path)
    by_class = dict(zip([y for y in range(10) if y != 7], chosen.real_images.split(20), strict=True))
    perfect = SimpleNamespace(drawn=range(10), class_images=lambda y, seeds: by_class[y])
    found = chosen.figures(perfect, run.D, {"classes": {"7": {"activation": 1.0, "feature_distance": None}}})
    assert found["seen_fd"] == pytest.approx(0, abs=1e-6) and found["seen_gap"] == 0 and found["diversity"] == 1


def test_the_worst_of_several_unseen_classes_counts(world, tmp_path):
    run = training(world, new_class=["2", "7"])
    watched = {"classes": {"2": {"activation": 0.9, "feature_distance": 0.1},
                           "7": {"activation": 0.3, "feature_distance": 0.6}}}
    found = selection_of(run, tmp_path, (2, 7)).figures(Sampler(run.state(), CPU), run.D, watched)
    assert found["activation"] == 0.3 and found["diversity"] == 0.1


def test_no_real_image_of_the_unseen_class_is_touched(world, tmp_path, fewer):
    """The whole of it on a source that raises at the unseen class, and with other pixels of it: the same figures."""
    run = training(world)
    stream = copy.copy(run.stream)
    stream.source = Poisoned(stream.source, 7)
    stream.indices = torch.arange(len(stream.source.labels))  # even where the stream would hold it
    found = []
    for name, using in (("plain", run.stream), ("poisoned", stream)):
        watch = CollapseWatch(run.C, using, run.spec.classes, [7], list(range(10)), CPU)
        chosen = Selection(run.C, using, run.spec.classes, [7], CPU, tmp_path / name, 0)
        sampler = Sampler(run.state(), CPU)
        found.append(chosen.figures(sampler, run.D, watch.look(sampler, run.D)))
    assert found[0] == found[1]
    with pytest.raises(AssertionError, match="an image of the unseen class was read"):
        Selection(run.C, stream, run.spec.classes, [6], CPU, tmp_path / "wrong", 0)


# --------------------------------------------------------------------------------- in the loop


def test_selection_changes_nothing_in_the_run_and_its_best_can_be_drawn(world, tmp_path, fewer):
    states = []
    for select in (True, False):
        run = training(world, num_steps=4, save_every=1, keep=1, select=select)
        train(run, tmp_path / str(select))
        states.append(run.state())
    assert_same_state(*states, but="/config/select")
    assert not (tmp_path / "False/best.pt").exists() and not (tmp_path / "False/selection.jsonl").exists()
    found = lines(tmp_path / "True")
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    best = max(found, key=lambda line: (line["score"], line["step"]))
    state = load_checkpoint(tmp_path / "True/best.pt")
    assert state["step"] == best["step"] and state["selection"] == best and best["best"]
    assert Sampler(state, CPU).class_images(7, range(2)).shape == (2, 1, 16, 16)


def test_a_resumed_run_selects_as_an_uninterrupted_one(world, tmp_path, monkeypatch, fewer):
    """Also after a crash between best.pt and the checkpoint."""
    settings = {"save_every": 1, "select": True}
    whole = training(world, num_steps=4, **settings)
    train(whole, tmp_path / "whole")
    wanted = load_torch(tmp_path / "whole/best.pt"), lines(tmp_path / "whole")

    train(training(world, num_steps=2, **settings), tmp_path / "parts")
    with monkeypatch.context() as patch:
        def crash(*_):
            raise KeyboardInterrupt
        patch.setattr(train_module, "save_checkpoint", crash)
        with pytest.raises(KeyboardInterrupt):
            train(go_on(tmp_path / "parts", num_steps=4), tmp_path / "parts")
    assert [line["step"] for line in lines(tmp_path / "parts")] == [1, 2, 3]
    resumed = go_on(tmp_path / "parts", num_steps=4)
    assert resumed.step == 2
    train(resumed, tmp_path / "parts")
    assert_same_state(whole.state(), resumed.state())
    assert lines(tmp_path / "parts") == wanted[1]
    assert_same_state(load_torch(tmp_path / "parts/best.pt"), wanted[0], but="/config/num_steps")


def test_a_naive_run_selects_by_its_one_class(world, tmp_path, fewer):
    train(training(world, num_steps=1, method="naive", select=True), tmp_path)
    found, = lines(tmp_path)
    assert found["best"] and found["seen_fd"] > 0


def test_selection_and_oracle_exclude_each_other(world):
    with pytest.raises(UserError, match="--select chooses without images of y"):
        training(world, oracle=True, select=True)


def test_the_commands_take_best_pt_as_a_checkpoint(world, tmp_path, monkeypatch, fewer):
    def command(module, *flags):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, flags)])
        module.main()

    run = tmp_path / "run"
    command(train_module, "--dataset", "digits", "--new_class", 7, "--data_root", world, "--C_path", world / "C.pt",
            "--run", run, *SMALL, "--num_steps", 2, "--save_every", 1, "--select", "--skip_classifier_check")
    command(sample, "--checkpoint", run / "best.pt", "--columns", 2, "--device", "cpu")
    assert (run / "samples_grid.png").exists()
    command(train_module, "--resume", run / "best.pt", "--num_steps", 3)
    assert load_checkpoint(run)["step"] == 3 and [line["step"] for line in lines(run)][-1] == 3
