"""The collapse watch: figures by hand, planted collapse found in one save, a healthy run left alone and unmoved."""

import copy
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_train import assert_same_state

import train as train_module
from classifiers.train import TrainSettings, train_classifier
from datasets.prepare import prepare
from methods import make_config, start
from methods.registry import with_own
from metrics.collapse import (
    FIRST_SEED,
    PER_CLASS,
    CollapseWatch,
    Spread,
    distances,
    has_collapsed,
    naturalness,
    seen_images,
)
from sampler import Sampler
from train import train
from training import random_state
from utils import DATASETS, UserError, load_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """40 steps on the digits without 7, saved every 10: (Training, run folder, its last checkpoint)."""
    root = tmp_path_factory.mktemp("collapse")
    prepare("digits", root)
    train_classifier(TrainSettings(dataset="digits", epochs=2, num_attacked=10, batch_size=128, data_root=str(root),
                                   out=str(root / "C.pt"), device="cpu"))
    config = make_config(dataset="digits", new_class=["7"], data_root=str(root), C_path=str(root / "C.pt"), G_ch=6,
                         D_ch=6, batch_size=32, num_D_steps=1, num_steps=40, save_every=10, ema_start=5, ema_decay=0.8,
                         device="cpu")
    training = start(config, DATASETS["digits"], CPU)
    train(training, root / "run")
    return training, root / "run", load_checkpoint(root / "run")


def more_steps(healthy, run, steps, **settings):
    """Train a copy of the healthy run for a few steps more, saving at the last; returns its Training."""
    config = replace(healthy[0].config, num_steps=40 + steps, **settings)
    training = start(config, DATASETS["digits"], CPU, copy.deepcopy(healthy[2]))
    train(training, run)
    return training


def records(run):
    return [json.loads(line) for line in (run / "collapse.jsonl").read_text().splitlines()]


def watch_of(training):
    return CollapseWatch(training.C, training.stream, training.spec.classes, training.task.unseen.tolist(),
                         training.task.C_labels.tolist(), CPU)


# ------------------------------------------------------------------------------- figures by hand


def test_spread_of_four_points():
    """The corners 0, 3, 3 + 4i, 4i of a rectangle: pairs 3, 3, 4, 4, 5, 5; every nearest is 3."""
    corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0], [0.0, 4.0]])
    figures = Spread(corners.view(4, 1, 1, 2), 2 * corners).by_name
    assert figures["pixel_distance"] == pytest.approx(4) and figures["pixel_nearest"] == pytest.approx(3)
    assert figures["feature_distance"] == pytest.approx(8) and figures["feature_nearest"] == pytest.approx(6)
    # variances 9 and 16 a direction: shares 0.36 and 0.64
    assert figures["effective_rank"] == pytest.approx(math.exp(-0.36 * math.log(0.36) - 0.64 * math.log(0.64)))


def test_equal_rows_are_at_distance_zero_exactly():
    apart = distances(torch.full((40, 1, 16, 16), 1 / 3))
    assert (apart[~torch.eye(40, dtype=torch.bool)] == 0).all() and apart.diagonal().isinf().all()


def test_a_duplicate_is_near_in_pixels_and_in_features():
    points = torch.tensor([0.0, 0.05, 10.0, 10.05, 30.0])[:, None]
    far = torch.arange(5.0)[:, None] * 100
    real = {"pixel_nearest": 1.0, "feature_nearest": 1.0}
    assert Spread(points, points).duplicates(real) == pytest.approx(4 / 5)
    assert Spread(points, far).duplicates(real) == Spread(far, points).duplicates(real) == 0
    assert Spread(points, points).duplicates({"pixel_nearest": math.nan, "feature_nearest": 1.0}) == 0


@pytest.mark.parametrize("feature, pixel, duplicates, collapsed", [
    (0.7, 0.75, 0.0, False), (0.58, 0.67, 0.0, False), (0.3, 0.36, 0.0, True), (0.49, 0.49, 0.0, True),
    (0.4, 0.6, 0.0, False), (0.6, 0.4, 0.0, False), (0.8, 0.8, 0.51, True), (0.8, 0.8, 0.5, False),
    (math.nan, 0.0, 0.0, False)])
def test_the_rule(feature, pixel, duplicates, collapsed):
    figures = {"feature_distance": feature, "pixel_distance": pixel, "duplicates": duplicates}
    assert has_collapsed(figures) is collapsed


# ------------------------------------------------------------------------------------ on one run


def test_a_healthy_run_has_a_line_a_save_and_no_warning(healthy):
    lines = records(healthy[1])
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    for line in lines:
        assert line["warnings"] == [] and line["images_per_class"] == PER_CLASS
        assert list(line["classes"]) == list("0123456789")
        for figures in line["classes"].values():
            assert set(figures) == {"feature_distance", "pixel_distance", "effective_rank", "duplicates", "D_gap",
                                    "activation"}
            assert figures["feature_distance"] > 0.1 and figures["duplicates"] < 0.5 and 0 <= figures["activation"] <= 1


def test_real_images_drawn_as_fakes_have_the_ratios_of_real_images(healthy):
    """The closed form of the ratios; the gap and the activation against what the networks say directly."""
    training = healthy[0]
    watch = watch_of(training)
    real = seen_images(training.stream, [7], PER_CLASS)
    sampler = SimpleNamespace(drawn=sorted(real), step=3, class_images=lambda y, seeds: real[y])
    training.D.eval()
    D_real = {y: training.D(images)[1].double().mean().item() for y, images in real.items()}
    training.D.train()
    record = watch.look(sampler, training.D)
    assert record["step"] == 3 and record["warnings"] == []
    for y, images in real.items():
        figures = record["classes"][str(y)]
        assert [figures[name] for name in ("feature_distance", "pixel_distance", "effective_rank")] == [1, 1, 1]
        assert figures["duplicates"] == 0
        gap = sum(D_real.values()) / len(D_real) - D_real[y]
        assert figures["D_gap"] == pytest.approx(gap, rel=1e-3, abs=1e-4)
        assert figures["activation"] == pytest.approx(training.C(images).softmax(1)[:, y].mean().item(), rel=1e-3)


def planted(monkeypatch, change):
    """Let every Sampler of train.py draw change(label, images)."""
    class Planted(Sampler):
        def class_images(self, label, seeds):
            return change(label, super().class_images(label, seeds))

    monkeypatch.setattr(train_module, "make_sampler", Planted)


def one_image(images, noise=0.0):
    """The first image for all, with Gaussian noise of standard deviation `noise` from a stream of its own."""
    generator = torch.Generator().manual_seed(0)
    return images[:1] + noise * torch.randn(images.shape, generator=generator)


@pytest.mark.parametrize("change, collapsed", [
    (lambda y, x: one_image(x) if y == 7 else x, ["7 (unseen)"]),
    (lambda y, x: one_image(x) if y == 3 else x, ["3"]),
    (lambda y, x: one_image(x, 0.005) if y == 7 else x, ["7 (unseen)"]),
    (lambda y, x: x[:2].repeat(len(x) // 2, 1, 1, 1) if y == 7 else x, ["7 (unseen)"]),  # two images, not one
    (lambda y, x: one_image(x), [*"0123456", "7 (unseen)", "8", "9"]),
    (lambda y, x: -torch.ones_like(x), [*"0123456", "7 (unseen)", "8", "9"]),
])
def test_a_planted_collapse_is_reported_in_one_save(healthy, tmp_path, monkeypatch, capsys, change, collapsed):
    planted(monkeypatch, change)
    more_steps(healthy, tmp_path, 1)
    line, = records(tmp_path)
    assert [warning.split(" has collapsed")[0] for warning in line["warnings"]] == [f"class {y}" for y in collapsed]
    said = capsys.readouterr().err
    assert all(f"warning: step 41: class {y} has collapsed: its images lie " in said for y in collapsed)


def test_weights_that_ignore_z_are_reported(healthy):
    """The averaged generator itself: z reaches the image as a thousandth of a constant, the class as before."""
    training = healthy[0]
    ignoring = copy.deepcopy(training.G_ema)
    with torch.no_grad():
        ignoring.linear.bias.copy_(1e3 * torch.randn(ignoring.linear.bias.shape, generator=torch.manual_seed(0)))
        for block, in ignoring.blocks:
            for norm in (block.bn1, block.bn2):
                for layer in (norm.gain, norm.bias):
                    layer.weight[:, training.config.shared_dim:] = 0
    state = {**training.state(), "G_ema": ignoring.state_dict()}
    sampler = Sampler(state, CPU)
    images = sampler.class_images(7, range(2))
    assert not torch.equal(images[0], images[1]) and not torch.equal(images, sampler.class_images(6, range(2)))
    assert len(watch_of(training).look(sampler, training.D)["warnings"]) == 10


def test_a_naive_run_is_watched_at_its_one_class(healthy, tmp_path):
    config = with_own(replace(healthy[0].config, method="naive", num_steps=1), {})
    train(start(config, DATASETS["digits"], CPU), tmp_path)
    assert list(records(tmp_path)[0]["classes"]) == ["7"]


# ------------------------------------------------------------------------- what it must not touch


def test_the_watch_moves_nothing(healthy):
    training = healthy[0]
    before = copy.deepcopy(training.state())
    for network in (training.G, training.D):
        network.train()
    watch_of(training).look(Sampler(training.state(), CPU), training.D)
    assert_same_state(before, training.state())
    assert torch.equal(before["random"]["cpu"], random_state()["cpu"]) and training.D.training


def test_a_run_that_is_watched_more_often_is_the_same_run(healthy, tmp_path):
    often, once = (more_steps(healthy, tmp_path / str(every), 3, save_every=every) for every in (1, 100))
    assert [line["step"] for line in records(tmp_path / "1")] == [41, 42, 43]
    assert_same_state(often.state(), once.state(), but="/config/save_every")


def test_a_resume_drops_the_lines_that_it_will_write_again(healthy, tmp_path):
    (tmp_path / "collapse.jsonl").write_text("".join(f'{{"step": {step}, "warnings": []}}\n' for step in (30, 40, 50)))
    more_steps(healthy, tmp_path, 1)
    assert [line["step"] for line in records(tmp_path)] == [30, 40, 41]


class Poisoned:
    """A source that refuses where an image of the unseen class is asked for."""

    def __init__(self, source, unseen):
        self.source, self.labels, self.unseen = source, source.labels, unseen

    def read(self, indices):
        assert self.unseen not in self.labels[indices], "an image of the unseen class was read"
        return self.source.read(indices)


def test_no_real_image_of_the_unseen_class_is_read(healthy):
    training = healthy[0]
    stream = copy.copy(training.stream)
    stream.source = Poisoned(stream.source, 7)
    assert 7 not in seen_images(stream, [7], 1000)
    stream.indices = torch.arange(len(stream.source.labels))  # an oracle's
    assert sorted(seen_images(stream, [7], 5)) == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    with pytest.raises(UserError, match="unseen class, were about to reach"):
        seen_images(SimpleNamespace(source=training.stream.source, indices=stream.indices,
                                    guard=training.stream.guard), [], 5)


def test_real_images_are_spread_over_the_set_and_in_range(healthy):
    stream = healthy[0].stream
    chosen = seen_images(stream, [7], 4)[2]
    of_two = stream.source.read(stream.indices[stream.source.labels[stream.indices] == 2])
    places = [round(i * (len(of_two) - 1) / 3) for i in range(4)]
    assert torch.equal(chosen, of_two[places].float() / 127.5 - 1)


def test_a_class_whose_real_images_are_all_alike_borrows_from_the_others(healthy):
    training = healthy[0]

    def stream_of(labels, pixels):
        source = SimpleNamespace(labels=torch.tensor(labels), read=lambda rows: pixels[rows])
        return SimpleNamespace(source=source, indices=torch.arange(len(labels)),
                               guard=SimpleNamespace(check=lambda images, labels: None))

    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (9, 1, 16, 16), generator=generator, dtype=torch.uint8)
    noise[4:8] = noise[4]
    watch = CollapseWatch(training.C, stream_of([0] * 4 + [1] * 4 + [2], noise), list("0123456789"), [7],
                          list(range(10)), CPU)
    assert list(watch.real) == [0] and watch.typical == watch.real[0]

    alike = CollapseWatch(training.C, stream_of([0] * 5, noise[:5] * 0), list("0123456789"), [7], list(range(10)), CPU)
    record = alike.look(Sampler(training.state(), CPU), training.D)
    assert record["warnings"] == [] and record["classes"]["0"]["feature_distance"] is None
    assert "NaN" not in json.dumps(record)


def test_the_activation_is_that_of_the_classifiers_own_label(healthy):
    training = healthy[0]
    swapped = CollapseWatch(training.C, training.stream, training.spec.classes, [7], [9, 8, -1, *range(6, -1, -1)], CPU)
    sampler = Sampler(training.state(), CPU)
    images = sampler.class_images(7, range(FIRST_SEED, FIRST_SEED + PER_CLASS))
    wanted = training.C(images).softmax(1)[:, 2].mean().item()
    found = swapped.look(sampler, training.D)["classes"]
    assert found["7"]["activation"] == pytest.approx(wanted, rel=1e-3) and found["2"]["activation"] is None


def test_naturalness_is_D_u_in_eval_mode(healthy):
    training = healthy[0]
    D, images = copy.deepcopy(training.D), torch.rand(130, 1, 16, 16) * 2 - 1
    u0 = [value.clone() for name, value in D.state_dict().items() if name.endswith("u0")]
    scores = naturalness(D, images, CPU)
    assert D.training and scores.dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in
               zip(u0, [value for name, value in D.state_dict().items() if name.endswith("u0")], strict=True))
    with torch.no_grad():
        assert torch.allclose(scores.float(), D.eval()(images)[1], atol=1e-5)
