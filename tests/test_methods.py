"""The rivals: each trains, stops, goes on, draws and is measured as ProbeGAN is, and does what its paper says."""

import sys

import pytest
import torch
from torch import nn

import evaluate
import sample
import train
from classifiers.attacks import pgd
from classifiers.train import TrainSettings, train_classifier
from datasets.absence import AbsenceGuard
from datasets.prepare import prepare
from methods import METHODS, degan, make_config, start
from methods.deep_inversion import StatisticsGap, total_variation
from sampler import Sampler, make_sampler
from utils import DATASETS, UserError, load_checkpoint

CPU = torch.device("cpu")
SMALL = {"G_ch": 2, "D_ch": 2, "dim_z": 6, "shared_dim": 8, "batch_size": 20, "num_D_steps": 1, "gp_every": 1,
         "device": "cpu", "ema_start": 1, "num_steps": 3}
SYNTHESES = ("robust_synthesis", "deep_inversion")


def call(program, *flags):
    """Run a command's main() in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program.__name__, *map(str, flags)])
        program.main()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Digits, a small probed classifier and an evaluator trained for an epoch, and a BigGAN of the seen classes."""
    root = tmp_path_factory.mktemp("world")
    prepare("digits", str(root))
    shared = {"dataset": "digits", "data_root": str(root), "device": "cpu", "num_attacked": 10, "epochs": 2}
    train_classifier(TrainSettings(**shared, out=str(root / "C.pt")))
    train_classifier(TrainSettings(**shared, out=str(root / "E.pt"), arch="resnet8", role="evaluator", seed=1))
    call(train, *flags(root, "biggan"), "--run", root / "gan")
    return root


def settings(world, method, **changes):
    own = {"gan": str(world / "gan"), "num_images": 50, "synthesis_steps": 3}
    return {"dataset": "digits", "data_root": str(world), "new_class": ["7"], "C_path": str(world / "C.pt"),
            "evaluator": str(world / "E.pt"), "skip_classifier_check": True, "method": method, **SMALL,
            **{name: value for name, value in own.items() if method in METHODS and name in METHODS[method].own},
            **changes}


def flags(world, method, **changes):
    """The same as flags of train.py."""
    for name, value in settings(world, method, **changes).items():
        if value is True or value == "":
            yield from [f"--{name}"] if value else []
        else:
            yield from [f"--{name}", *(value if isinstance(value, list) else [value])]


def run_of(world, method, **changes):
    """The run in this process, before its first step."""
    return start(make_config(**settings(world, method, **changes)), DATASETS["digits"], CPU)


def assert_same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# ----------------------------------------------------------------------------- run as ProbeGAN is


@pytest.mark.parametrize("method", METHODS)
def test_a_method_stops_goes_on_draws_and_is_measured(world, tmp_path, method):
    whole = run_of(world, method)
    assert whole.num_steps == 3
    for _ in range(3):
        assert all(term.isfinite() and not term.requires_grad for term in whole.advance().values())
    first = run_of(world, method)
    first.advance()
    again = start(first.config, first.spec, CPU, first.state())
    for _ in range(2):
        again.advance()
    assert_same(whole.state(), again.state())

    run = tmp_path / "run"
    call(train, *flags(world, method), "--run", run)
    assert_same(load_checkpoint(run), {**whole.state(), "config": load_checkpoint(run)["config"]})
    call(sample, "--checkpoint", run, "--device", "cpu")
    call(evaluate, "--run", run, "--metrics", "recognition", "memorization", "--num", 50, "--device", "cpu")
    assert (run / "samples_grid.png").is_file() and (run / "results.jsonl").is_file()
    drawn = make_sampler(load_checkpoint(run), CPU).drawn
    seen = [y for y in range(10) if y != 7]
    expected = {"naive": [7], "robust_synthesis": [7], "deep_inversion": [7], "biggan": seen, "labelled": seen,
                "features": seen}.get(method, list(range(10)))
    assert drawn == expected


@pytest.mark.parametrize("method", ["degan", *SYNTHESES])
def test_no_more_images_are_drawn_than_a_rival_made(world, tmp_path, method):
    call(train, *flags(world, method), "--run", tmp_path)
    drawn = make_sampler(load_checkpoint(tmp_path), CPU)
    images = drawn.class_images(7, range(1000, 1050))
    assert images.shape == (50, 1, 16, 16) and len(images.flatten(1).unique(dim=0)) > 40
    assert torch.allclose(drawn.class_images(7, [1003]), images[3:4], atol=1e-5)
    with pytest.raises(UserError, match="holds 50 images of class 7, and 51 are asked for; ask for at most 50"):
        drawn.class_images(7, range(51))
    with pytest.raises(UserError, match="holds 50 images a class and --num asks for 60; give --num 50"):
        call(evaluate, "--run", tmp_path, "--metrics", "recognition", "--num", 60, "--device", "cpu")
    with pytest.raises(UserError, match=f"--mode z walks through a generator of classes, and --method {method} has"):
        call(sample, "--checkpoint", tmp_path, "--mode", "z", "--device", "cpu")


def test_syntheses_make_images_of_each_unseen_class(world):
    run = run_of(world, "robust_synthesis", new_class=["2", "7"])
    assert run.num_steps == 6
    for _ in range(6):
        run.advance()
    assert {label: len(images) for label, images in run.state()["images"].items()} == {2: 50, 7: 50}


@pytest.mark.parametrize("changes, words", [
    ({"method": "bigan"}, "--method 'bigan' is not valid .did you mean 'biggan'"),
    ({"method": "degan", "oracle": True}, "--oracle trains on images of y., which --method degan is to do without"),
    ({"method": "degan", "select": True}, "--select chooses among the checkpoints of probegan or naive or"),
    ({"method": "naive", "new_class": ["2", "7"]}, "--method naive draws one unseen class; 2 were given"),
    ({"method": "naive", "gan": "somewhere"}, "--gan is a setting of --method biggan_am, and this run is of --method"),
    ({"method": "biggan", "num_images": 60}, "a setting of --method robust_synthesis and deep_inversion and degan and"),
    ({"G_new_coef": 2.0}, "setting 'G_new_coef' is unknown .did you mean 'G_new_coeff'"),
    ({"method": "biggan_am", "gan": ""}, "That run is made by train.py --method biggan"),
    ({"method": "deep_inversion", "num_images": 49}, "--num_images is 49; it must be at least 50"),
    ({"method": "robust_synthesis", "PGD_eps": 0.0}, "--PGD_eps is 0.0; it must be positive"),
])
def test_wrong_settings_get_a_sentence(world, changes, words):
    with pytest.raises(UserError, match=words):
        make_config(**settings(world, **{"method": "probegan", **changes}))


# ------------------------------------------------------------------------------------ ProbeGAN


def test_the_spread_of_the_seen_classes_is_measured_and_stands_for_the_unseen_one(world):
    run = run_of(world, "probegan", spread_coeff=1.0, C_bound=0.5, C_bound_new=2.0, num_D_steps=2, gp_every=2)
    threes = run.stream.images[run.stream.source.labels[run.stream.indices] == 3].float() / 127.5 - 1
    assert run.task.spreads[3].item() == pytest.approx(threes.flatten(1).var(0).mean().sqrt().item(), rel=1e-3)
    seen = torch.cat((run.task.spreads[:7], run.task.spreads[8:]))
    assert run.task.spreads[7].item() == pytest.approx(seen.mean().item())
    terms = run.advance()
    assert {"D_penalty", "G_spread", "G_class"} <= terms.keys()


# ---------------------------------------------------------------------------------- BigGAN-AM


def test_the_search_raises_the_probability_and_touches_the_embedding_of_y_alone(world):
    run = run_of(world, "biggan_am", synthesis_steps=30, AM_lr=0.2)
    before = run.state()["G_ema"]
    losses = [run.advance()["G_class"].item() for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])
    after, gan = run.state()["G_ema"], Sampler(load_checkpoint(world / "gan"), CPU).G.state_dict()
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert changed == ["shared.weight"]
    rows = (after["shared.weight"] != gan["shared.weight"]).any(1)
    assert rows.nonzero().flatten().tolist() == [7]
    assert run.low <= run.embeddings.min() and run.embeddings.max() <= run.high


@pytest.mark.parametrize("space", ["pixels", "features"])
def test_the_published_options_of_the_search_change_it(world, space):
    plain, diverse, decayed = (run_of(world, "biggan_am", **changes) for changes in (
        {}, {"AM_diversity": 5.0, "AM_diversity_space": space}, {"AM_weight_decay": 1.0}))
    for run in (plain, diverse, decayed):
        run.advance()
        run.advance()
    assert not torch.equal(diverse.embeddings, plain.embeddings)
    assert decayed.embeddings.norm() < plain.embeddings.norm()


@pytest.mark.parametrize("changes, words", [
    ({"new_class": ["2"]}, r"made with --new_class \(7,\), where \(2,\) is needed"),
    ({"gan": "probegan"}, "made with --method probegan, where biggan is needed"),
])
def test_the_search_wants_a_biggan_of_the_same_seen_classes(world, tmp_path, changes, words):
    if "gan" in changes:
        call(train, *flags(world, "probegan"), "--run", tmp_path)
        changes = {"gan": str(tmp_path)}
    with pytest.raises(UserError, match=words):
        run_of(world, "biggan_am", **changes)


# -------------------------------------------------------------------------- classifier synthesis


def test_targeted_pgd_lowers_the_loss_within_its_ball():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), torch.rand(6, 3, 4, 4), torch.arange(6) % 5
    found = pgd(model, x, y, "l2", 0.5, 10, random_start=False, targeted=True)
    before, after = (nn.functional.cross_entropy(model(images), y) for images in (x, found))
    assert after < before
    assert (found - x).flatten(1).norm(dim=1).max() <= 0.5 + 1e-5 and found.min() >= 0 and found.max() <= 1


def test_seeds_have_the_coarse_look_of_seen_images_and_none_of_the_unseen(world, monkeypatch):
    looked_at = []
    check = AbsenceGuard.check
    monkeypatch.setattr(AbsenceGuard, "check", lambda self, images, labels: looked_at.append(labels) or check(
        self, images, labels))
    run = run_of(world, "robust_synthesis")
    assert len(looked_at) >= 2 and not any(7 in labels for labels in looked_at)
    real = nn.functional.adaptive_avg_pool2d(run.stream.images.float() / 255, 8).flatten(1).double()
    assert torch.allclose(run.mean, real.mean(0), atol=1e-6)
    assert torch.allclose(run.root @ run.root.T, torch.cov(real.T), atol=1e-6)
    seeds = run.seeds(100)
    assert seeds.shape == (100, 1, 16, 16) and seeds.min() >= 0 and seeds.max() <= 1
    assert seeds.mean().item() == pytest.approx(real.mean().item(), abs=0.05)


# --------------------------------------------------------------------------------- DeepInversion


def test_the_statistics_gap_is_the_distance_to_the_stored_ones():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    norm.running_var.copy_(torch.tensor([4.0, 5.0, 6.0]))
    x = torch.randn(4, 3, 5, 5)
    with StatisticsGap(norm.eval(), torch.full((4,), 0.25)) as gap:
        norm(x)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    expected = (mean - norm.running_mean).norm() + (variance - norm.running_var).norm()
    assert gap.terms[0].item() == pytest.approx(expected.item(), rel=1e-5)
    norm(x)
    assert len(gap.terms) == 1  # outside, nothing is noted


def test_weights_stand_for_the_balance_of_classes():
    """Half of a batch of one class, weighted as a tenth, has the statistics of a batch with each class once."""
    norm, images = nn.BatchNorm2d(1).eval(), torch.randn(10, 1, 4, 4)
    half = torch.cat((images[:1].repeat(9, 1, 1, 1), images[1:]))
    weights = torch.tensor([0.1 / 9] * 9 + [0.9 / 9] * 9)

    def gap_of(batch, weights):
        with StatisticsGap(norm, weights) as gap:
            norm(batch)
        return gap.terms[0].item()

    assert gap_of(half, weights) == pytest.approx(gap_of(images, torch.full((10,), 0.1)), rel=1e-4)
    assert gap_of(half, torch.full((18,), 1 / 18)) != pytest.approx(gap_of(half, weights), rel=1e-2)


def test_inversion_lowers_its_loss(world):
    quick, long = (run_of(world, "deep_inversion", synthesis_steps=steps) for steps in (1, 40))
    assert long.advance()["G_class"] < quick.advance()["G_class"]


def test_total_variation():
    flat = torch.ones(2, 3, 4, 4)
    assert total_variation(flat) == 0
    flat[:, :, 2:] = 3.0  # one of three steps downwards is 2
    assert total_variation(flat).item() == pytest.approx(4 / 3)


def test_inversion_wants_batch_norms(world, monkeypatch):
    monkeypatch.setattr(nn.modules.batchnorm, "_BatchNorm", nn.Conv3d)
    with pytest.raises(UserError, match="needs the batch-norm statistics of the classifier, and .*C.pt has no batch"):
        run_of(world, "deep_inversion")


# ----------------------------------------------------------------------------------------- DeGAN


def test_the_latents_of_a_class_are_those_that_the_classifier_is_surest_of(world):
    run = run_of(world, "degan")
    run.advance()
    state = run.state()
    sampler = Sampler({**state, "latents": None}, CPU)
    pool = sampler.latents(range(degan.FIRST_SEED, degan.FIRST_SEED + 500))
    with torch.no_grad():
        p = run.C(sampler.images(pool, torch.zeros(500, dtype=torch.long))).softmax(1)[:, 7]
        kept = run.C(sampler.images(state["latents"][7], torch.zeros(50, dtype=torch.long))).softmax(1)[:, 7]
    assert kept.min() >= p.topk(50).values.min() - 1e-5


def test_entropy_and_balance_have_their_signs(world):
    """A sure and balanced classifier gives the least of both terms."""
    run = run_of(world, "degan", DG_entropy=1.0, DG_balance=1.0)
    terms = run.advance()
    assert 0 <= terms["G_entropy"] <= torch.tensor(10.0).log() and -torch.tensor(10.0).log() <= terms["G_balance"] <= 0


def test_a_classifier_that_is_certain_leaves_finite_gradients(world):
    """Probabilities that underflow to 0, as a regular classifier's do."""
    run = run_of(world, "degan")
    C = run.C
    run.C = lambda images: 1e4 * C(images)
    terms = run.advance()
    assert terms["G_entropy"] == pytest.approx(0, abs=1e-3) and terms["G_balance"] <= 0
    assert all(torch.isfinite(weight).all() for weight in run.G.parameters())


def test_a_synthesis_is_saved_before_there_is_enough_to_draw(world, tmp_path):
    call(train, *flags(world, "robust_synthesis", batch_size=10), "--save_every", 1, "--run", tmp_path)
    assert len(load_checkpoint(tmp_path)["images"][7]) == 50
    assert len((tmp_path / "collapse.jsonl").read_text().splitlines()) == 1
