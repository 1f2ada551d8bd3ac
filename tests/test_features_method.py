"""Drawing from features, trained in seconds on a classifier whose two features are known: brightness and slope."""

import copy
import json
import sys

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import evaluate
import sample
import train
from classifiers import build
from datasets import load_split
from methods import make_config
from methods import start as start_run
from metrics.feature_agreement import Seen, measure_pairs, measure_walks
from sampler import make_sampler
from training import WARM_UP, Recorded, set_random_state
from utils import DATASETS, UserError, load_checkpoint, save_torch, to_unit_range

CPU = torch.device("cpu")

TWO = "test_features_method:two_features"


def two_features(num_classes, channels):
    """A network of 16x16 images whose last linear layer is given their brightness, and how much brighter their right
    half is than their left."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 2, bias=False), nn.Linear(2, num_classes))
    side = torch.ones(16, 16)
    side[:, :8] = -1
    model[1].weight.data = torch.stack((torch.ones(256), side.flatten())) / 256
    return model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data root of smooth 'digits', each of random brightness and slope with a blob, and the classifier C.pt."""
    root = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    (root / "digits").mkdir()
    y, x = np.mgrid[-1:1:16j, -1:1:16j]
    for split, n in (("train", 600), ("test", 200)):
        light, slope, up, right = rng.uniform(-1, 1, (4, n, 1, 1))
        blob = np.exp(-((y - up) ** 2 + (x - right) ** 2) * 8)
        images = 127 + 40 * light + 40 * slope * x + 50 * blob
        with h5py.File(root / "digits" / f"{split}.h5", "w") as file:
            file["images"] = images.clip(0, 255).astype(np.uint8)[:, None]
            file["labels"] = np.arange(n) % 10
            file.attrs["classes"] = list("0123456789")
    torch.manual_seed(0)
    C = two_features(10, 1)
    save_torch(root / "C.pt", {"arch": "test_features_method:two_features", "num_classes": 10, "channels": 1,
                               "resolution": 16, "mean": [0.5], "std": [0.5], "state_dict": C.state_dict()})
    return root


def start(world, state=None, **settings):
    device = torch.device(settings.get("device", "cpu"))
    config = make_config(**{"dataset": "digits", "method": "features", "data_root": str(world),
                            "C_path": str(world / "C.pt"), "C_arch": TWO, "device": "cpu", "precision": "fp32",
                            "G_ch": 4, "D_ch": 4,
                            "batch_size": 32, "G_lr": 4e-3, "D_lr": 1e-3, "num_D_steps": 1, "ema_decay": 0.95,
                            **settings})
    return start_run(config, DATASETS["digits"], device, state)


KINDS = ({}, {"mode": "draw"}, {"enforce": ("head",), "condition": "label"},
         {"inject": "tiled", "enforce": ("head",), "adversary": "wgan-gp"})


@pytest.mark.parametrize("settings", KINDS)
def test_an_iteration_waits_for_no_value(world, settings, waits):
    run = start(world, **settings)
    with waits:
        run.iterate([run.stream.next_batch()])
    assert not waits.found


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device on this machine"))])
@pytest.mark.parametrize("settings", [*KINDS, {"precision": "bf16"}])
def test_a_recorded_iteration_computes_what_an_eager_one_does(world, settings, device, capsys):
    """From one state: rounding alone drives two runs of this learning rate apart by a hundredth in eight steps. The
    recording of a CPU is the function itself."""
    run = start(world, device=device, **settings)
    if device == "cpu":
        run.run_iteration = Recorded(run.iterate, lambda function: function)
    for _ in range(WARM_UP + 1):
        run.advance()
    assert "eagerly" not in capsys.readouterr().out
    state = copy.deepcopy(run.state())
    terms = {}
    for one in (run, start(world, state, device=device, cuda_graph=False, **settings)):
        set_random_state(state["random"])
        terms[one is run] = one.advance()
    for name, value in terms[False].items():
        assert terms[True][name].item() == pytest.approx(value.item(), rel=2e-2 if "precision" in settings else 1e-3,
                                                    abs=1e-3), name


def figures(run, world, draw):
    images = to_unit_range(load_split("digits", world, "test")[0])
    seen = [Seen.of(name, run.C, run.bank, images) for name in ("", "itself")]
    records, _ = measure_pairs(draw, images, *seen, 200, torch.Generator().manual_seed(0))
    records += measure_walks(draw, images, *seen, 30, torch.Generator().manual_seed(0))
    return {r["metric"].removeprefix("feature_"): r["value"] for r in records}


def drawer(run):
    G = run.G_ema.eval()
    return lambda x, f, labels, seeds: G(x, run.tell(f, labels))


def test_brightness_and_slope_are_drawn_as_asked(world):
    run = start(world)
    for _ in range(90):
        terms = run.advance()
    assert all(value.isfinite() for value in terms.values())
    found = figures(run, world, drawer(run))
    print(found)
    assert found["ccc"] > 0.95 and found["ccc_within"] > 0.9
    assert found["walk_correlation"] > 0.95 and found["walk_monotone"] > 0.9 and found["walk_leakage"] < 0.15
    assert run.warnings() == []
    shuffled = figures(run, world, lambda x, f, labels, seeds: drawer(run)(x, f.roll(7, 0), labels, seeds))
    assert abs(shuffled["ccc"]) < 0.15
    copy = figures(run, world, lambda x, f, labels, seeds: x)
    assert abs(copy["ccc"]) < 0.15 and copy["both_at_10"] < found["both_at_10"]


def test_a_generator_that_ignores_the_features_is_warned_of(world):
    run = start(world)
    run.G_ema.output_layer[2].bias.data[0] = -30  # the mask is shut: every image comes back
    (warning,) = run.warnings()
    assert "hardly hears what it is asked for" in warning


def test_a_generator_that_ignores_its_latents_is_warned_of(world):
    run = start(world, mode="draw")
    assert run.warnings() == []
    draw = run.G_ema.forward
    run.G_ema.forward = lambda z, f: draw(torch.zeros_like(z), f)
    (warning,) = run.warnings()
    assert "hardly hears its latents" in warning
    run.G_ema.forward = lambda z, f: draw(z, torch.zeros_like(f))
    (warning,) = run.warnings()
    assert "hardly hears what it is asked for" in warning


def test_a_resumed_run_is_an_uninterrupted_one(world):
    whole = start(world)
    for _ in range(2):
        whole.advance()
    state = copy.deepcopy(whole.state())
    whole.advance()
    resumed = start(world, state=state)
    resumed.advance()
    for name, value in whole.state()["G_ema"].items():
        assert torch.equal(value, resumed.state()["G_ema"][name]), name


@pytest.mark.parametrize("own", [
    {"enforce": ("head",), "adversary": "wgan-gp", "feature_loss": "ccc_sum", "inject": "tiled", "own_share": 0.0},
    {"enforce": ("head", "projection", "classifier"), "inject": "flat", "feature_loss": "mse"},
    {"mode": "draw"}, {"condition": "label"}, {"condition": "label", "mode": "draw", "enforce": ("classifier",)}])
def test_every_form_trains_a_step(world, own):
    run = start(world, num_D_steps=2, **own)
    before = {name: value.clone() for name, value in run.G.named_parameters()}
    terms = run.advance()
    assert all(value.isfinite() for value in terms.values())
    heard = ("G_head" in terms, "G_features" in terms, "G_cycle" in terms)
    settings = run.config.own
    assert heard == ("head" in settings.enforce, "classifier" in settings.enforce, settings.mode == "edit")
    assert any(not torch.equal(value, before[name]) for name, value in run.G.named_parameters())


def test_a_label_is_all_that_the_label_only_rival_is_told(world):
    run = start(world, condition="label")
    f, labels = run.bank.f[:50], run.bank.predicted[:50]
    assert torch.equal(run.tell(f, labels).argmax(1), labels) and run.tell(f, labels).sum() == 50
    asked, told, _ = run.draw(f, labels)
    # what is asked for is an image's features, of the label that is told
    place = torch.cdist(asked, run.bank.f, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(run.bank.predicted[place], told.argmax(1))


@pytest.mark.parametrize("own, message", [
    ({"enforce": ("heads",)}, "--enforce 'heads' is not valid"), ({"enforce": ()}, "names nothing"),
    ({"mode": "edits"}, "did you mean 'edit'"), ({"cycle_coeff": -1.0}, "--cycle_coeff is -1.0"),
    ({"mode": "draw", "inject": "flat"}, "--inject flat lays features beside the image"),
    ({"own_share": 0.7, "changed_share": 0.7}, "at most 1")])
def test_bad_settings(own, message):
    with pytest.raises(UserError, match=message):
        make_config(dataset="digits", method="features", **own)


def call(monkeypatch, program, *flags):
    monkeypatch.setattr(sys, "argv", [f"{program.__name__}.py", *map(str, flags)])
    program.main()


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A run folder of the command line, after few steps, judged by a network of another seed."""
    torch.manual_seed(1)
    judge = build("smallcnn", 10, 1)
    save_torch(world / "E.pt", {"arch": "smallcnn", "num_classes": 10, "channels": 1, "resolution": 16, "mean": [0.5],
                                "std": [0.5], "state_dict": judge.state_dict()})
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("run")
        call(patch, train, "--dataset", "digits", "--method", "features", "--data_root", world, "--C_path",
             world / "C.pt", "--C_arch", TWO, "--evaluator", world / "E.pt", "--skip_classifier_check", "--device",
             "cpu", "--precision", "fp32", "--G_ch", 4, "--D_ch", 4, "--batch_size", 32, "--num_D_steps", 1,
             "--num_steps", 3,
             "--run", folder)
    return folder


def test_a_checkpoint_draws_without_data_or_classifier(run):
    state = load_checkpoint(run)
    assert state["draws"]["features"] == {"mode": "edit", "condition": "features", "inject": "norms", "told": 2}
    sampler = make_sampler(state, CPU, batch_size=7)
    images = sampler.class_images(3, range(20))
    assert images.shape == (20, 1, 16, 16)
    assert torch.allclose(images[5:6], sampler.class_images(3, [5]), atol=1e-5)  # of its seed alone
    assert (images[0] - images[1]).abs().max() > 0


def test_sample_draws_features(run, world, tmp_path, monkeypatch, capsys):
    call(monkeypatch, sample, "--checkpoint", run, "--mode", "features", "--columns", 3, "--components", 0, 1,
         "--quantiles", 0.1, 0.9, "--device", "cpu", "--out", tmp_path / "kept.png")
    kept = Image.open(tmp_path / "kept.png")
    faces = tmp_path / "faces"
    faces.mkdir()
    for name, size in (("a.png", (16, 16)), ("b.png", (40, 30))):
        Image.fromarray(np.full(size, 90, np.uint8)).save(faces / name)
    call(monkeypatch, sample, "--checkpoint", run, "--mode", "features", "--faces", faces, "--device", "cpu", "--out",
         tmp_path / "given.png", "--C_arch", TWO)
    assert capsys.readouterr().out.count("faces of 30x40 pixels are cropped to a square and resized to 16x16") == 1
    assert kept.width > 14 * 64 and Image.open(tmp_path / "given.png").width > 18 * 64
    for flags, message in ((["--components", 2], "principal component 2 does not exist.* 0 to 1"),
                           (["--quantiles", 90], "quantile 90.0 is no share"),
                           (["--faces", world], "holds no image")):
        with pytest.raises(UserError, match=message):
            call(monkeypatch, sample, "--checkpoint", run, "--mode", "features", "--device", "cpu", *flags)
    with pytest.raises(UserError, match="--mode z does not fit.* --mode features"):
        call(monkeypatch, sample, "--checkpoint", run, "--mode", "z", "--device", "cpu")


def test_evaluate_measures_agreement_and_walks(run, world, monkeypatch):
    call(monkeypatch, evaluate, "--run", run, "--data_root", world, "--num", 50, "--device", "cpu", "--C_arch", TWO,
         "--skip_classifier_check", "--metrics", "feature_agreement", "feature_walks", "recognition", "--report")
    records = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    found = {record["metric"]: record for record in records}
    assert {"feature_ccc", "judged_feature_ccc@digits_E", "walk_leakage"} <= found.keys()
    page = (run / "report.html").read_text()
    assert "Drawn with other features" in page and page.count("component 1: asked") == 4 * 3
    assert found["feature_mrr"]["n"] == 500 and "real" in found["judged_feature_class@digits_E"]


def test_features_are_measured_of_runs_that_draw_from_them_alone(run, world, tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).integers(0, 256, (100, 1, 16, 16), np.uint8),
             y=np.arange(100) % 10, seed=np.arange(100))
    with pytest.raises(UserError, match="not drawn from features"):
        call(monkeypatch, evaluate, "--images", tmp_path / "x.npz", "--dataset", "digits", "--new_class", 7,
             "--data_root", world, "--C_path", world / "C.pt", "--C_arch", TWO, "--evaluator",
             world / "E.pt", "--num", 10, "--device",
             "cpu", "--skip_classifier_check", "--metrics", "feature_agreement")


def test_a_classifier_without_a_linear_last_layer(world):
    class Pooled(nn.Module):
        """Logits by a convolution."""

        def __init__(self, num_classes, channels):
            super().__init__()
            self.conv = nn.Conv2d(channels, num_classes, 3)

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    sys.modules[__name__].pooled = Pooled
    save_torch(world / "P.pt", {"arch": "test_features_method:pooled", "num_classes": 10, "channels": 1, "mean": [0.5],
                                "resolution": 16, "std": [0.5], "state_dict": Pooled(10, 1).state_dict()})
    with pytest.raises(UserError, match="no linear last layer"):
        start(world, C_path=str(world / "P.pt"), C_arch="test_features_method:pooled")
