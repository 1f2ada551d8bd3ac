"""Architectures, the frozen wrapper, reading checkpoints, and training one."""

import hashlib
import json
from pathlib import Path

import h5py
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from classifiers import ARCHITECTURES, FrozenClassifier, build, load_classifier, register
from classifiers.files import save_classifier
from classifiers.train import TrainSettings, augmented, channel_statistics, main, report, train_classifier
from classifiers.whitening import Whitening
from datasets.prepare import prepare
from layers import shift
from utils import UserError, load_torch, save_torch

# -------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("arch", ["smallcnn", "resnet8", "resnet18"])
@pytest.mark.parametrize("channels, size", [(1, 16), (3, 32), (3, 64)])
def test_any_size_and_channels(arch, channels, size):
    with torch.no_grad():
        assert build(arch, 7, channels).eval()(torch.randn(2, channels, size, size)).shape == (2, 7)


def test_resnets_have_the_names_and_sizes_of_robustness():
    names = build("resnet18", 10, 3).state_dict()
    assert len(names) == 122
    assert names["conv1.weight"].shape == (64, 3, 3, 3)
    assert names["layer1.0.conv1.weight"].shape == (64, 64, 3, 3)
    assert names["layer4.1.bn2.running_var"].shape == (512,)
    assert names["layer2.0.shortcut.0.weight"].shape == (128, 64, 1, 1)
    assert names["layer2.0.shortcut.1.bias"].shape == (128,)
    assert names["linear.weight"].shape == (10, 512)
    names = build("resnet50", 10, 3).state_dict()
    assert len(names) == 320
    assert names["layer1.0.shortcut.0.weight"].shape == (256, 64, 1, 1)
    assert names["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert names["linear.weight"].shape == (10, 2048)


def test_registry_refuses_duplicates_and_names_the_nearest():
    with pytest.raises(ValueError, match="twice"):
        register("resnet18", ARCHITECTURES["resnet18"])
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        build("resnet5", 10, 3)


def test_whitening_makes_patches_uncorrelated_and_of_variance_one():
    noise = torch.randn(200, 3, 17, 17, generator=torch.Generator().manual_seed(0))
    images = 30 * F.avg_pool2d(noise, 2, stride=1) + torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1)  # neighbours alike
    layer = Whitening(3)
    layer.fit(images)
    out = layer(images).transpose(0, 1).flatten(1)  # (24, images * places)
    covariance = torch.cov(out[:12])
    assert torch.allclose(covariance, torch.eye(12), atol=2e-3)
    assert torch.equal(out[:12], -out[12:])


def test_whitening_of_a_channel_that_never_varies_stays_finite():
    layer = Whitening(1)
    layer.fit(torch.zeros(4, 1, 16, 16))
    assert layer(torch.ones(1, 1, 16, 16)).isfinite().all()


# ------------------------------------------------------------------------------- frozen wrapper


class Echo(nn.Module):
    """Keeps the images it was given and answers with their channel means."""

    def forward(self, x):
        self.seen = x
        return x.mean((2, 3))


def echo(channels=1, resolution=0, mean=(0.0,), std=(1.0,)):
    return FrozenClassifier(Echo(), channels, channels, resolution, mean, std)


def test_range_and_normalisation():
    frozen = echo(3, mean=[0.5, 0.25, 0.0], std=[0.5, 0.25, 2.0])
    logits = frozen(torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4))
    # [0,1] pixels 0, 0.5, 1
    torch.testing.assert_close(logits, torch.tensor([[-1.0, 1.0, 0.5]]))


def test_channels_are_converted():
    grey, colour = torch.full((1, 1, 4, 4), 0.5), torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(echo(3, mean=[0.0] * 3, std=[1.0] * 3)(grey), torch.full((1, 3), 0.75))
    torch.testing.assert_close(echo(1)(colour), torch.tensor([[0.299 + 0.5 * 0.114]]))
    with pytest.raises(UserError, match="2 channels"):
        echo(3, mean=[0.0] * 3, std=[1.0] * 3)(torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize("arch, width", [("smallcnn", 128), ("resnet9", 320), ("vgg7", 256)])
def test_features_are_what_the_last_layer_is_given(arch, width):
    frozen = FrozenClassifier(build(arch, 4, 3), 4, 3, 0, [0.5] * 3, [0.25] * 3)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    features, logits = frozen.features_and_logits(images)
    assert features.shape == (3, width)
    torch.testing.assert_close(frozen.model.linear(features), logits)
    torch.testing.assert_close(frozen(images), logits)


def test_features_are_the_logits_where_there_is_no_last_layer():
    features, logits = echo(3, mean=[0.0] * 3, std=[1.0] * 3).features_and_logits(torch.zeros(2, 3, 4, 4))
    assert features is logits


def test_size_is_changed_only_where_it_differs():
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    same = echo(resolution=8)
    same(images)
    torch.testing.assert_close(same.model.seen, (images + 1) / 2)
    larger = echo(resolution=16)
    larger(images)
    assert larger.model.seen.shape == (2, 1, 16, 16)
    # a checkerboard of single pixels: antialiasing turns it grey, picking pixels would not
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8).view(1, 1, 16, 16)
    smaller = echo(resolution=4)
    smaller(board)
    torch.testing.assert_close(smaller.model.seen, torch.full((1, 1, 4, 4), 0.5), atol=0.06, rtol=0)


def test_frozen_in_eval_mode_with_gradients_to_the_images():
    frozen = FrozenClassifier(build("smallcnn", 10, 1), 10, 1, 16, [0.1], [0.3])
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    frozen.train()
    assert not any(module.training for module in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    images = torch.randn(4, 1, 16, 16, requires_grad=True)
    frozen(images)[:, 3].sum().backward()
    assert images.grad.flatten(1).norm(dim=1).min() > 0
    for name, value in frozen.state_dict().items():
        assert torch.equal(value, before[name])


def with_statistics(model):
    """The model in eval mode, its batch norms with statistics as of a training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("arch, left", [("smallcnn", 0), ("resnet18", 0), ("wrn-16-2", 6), ("vgg7", 3)])
def test_folded_batch_norms_leave_logits_features_and_gradients(arch, left):
    frozen = FrozenClassifier(with_statistics(build(arch, 10, 3)), 10, 3, 32, [0.5] * 3, [0.25] * 3)
    images = (torch.rand(4, 3, 32, 32) * 2 - 1).requires_grad_()

    def found():
        features, logits = frozen.features_and_logits(images)
        return features, logits, torch.autograd.grad(logits.square().sum(), images)[0]

    before = found()
    frozen.fold_batch_norms(32)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in frozen.modules()) == left
    for was, now in zip(before, found(), strict=True):
        assert torch.allclose(was, now, rtol=1e-3, atol=1e-5 * was.abs().max().item())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


class Branching(nn.Sequential):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Shared(nn.Sequential):
    """One convolution used with the batch norm and without it: folding would change both."""

    def forward(self, x):
        conv, norm, *rest = self
        return nn.Sequential(*rest)(conv(x) + norm(conv(x)))


@pytest.mark.parametrize("kind", [Branching, Shared])
def test_a_model_that_cannot_be_folded_is_left_as_it_is(kind):
    model = with_statistics(kind(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 14 * 14, 10)))
    frozen = FrozenClassifier(model, 10, 3, 16, [0.5] * 3, [0.5] * 3)
    frozen.fold_batch_norms(16)
    assert frozen.model is model


def test_twice_inside_autocast():
    frozen = FrozenClassifier(build("smallcnn", 10, 1), 10, 1, 16, [0.1], [0.3])
    images = torch.rand(4, 1, 32, 32) * 2 - 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = images.bfloat16().requires_grad_()
        logits = frozen(low)
        (frozen(low) + logits).sum().backward()
    assert logits.dtype == torch.float32 and low.grad.float().norm() > 0
    torch.testing.assert_close(logits, frozen(images), atol=0.05, rtol=0.05)


# ----------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def checkpoint():
    """The dict of a valid checkpoint."""
    torch.manual_seed(0)
    return {"arch": "smallcnn", "num_classes": 10, "channels": 1, "resolution": 16, "mean": [0.2], "std": [0.4],
            "classes": list("0123456789"), "state_dict": build("smallcnn", 10, 1).state_dict(), "card": {"seed": 0}}


def test_checkpoint_round_trip(tmp_path, checkpoint):
    save_torch(tmp_path / "c.pt", checkpoint)
    frozen = load_classifier(tmp_path / "c.pt", num_classes=10)
    model = build("smallcnn", 10, 1).eval()
    model.load_state_dict(checkpoint["state_dict"])
    images = torch.rand(4, 1, 16, 16) * 2 - 1
    torch.testing.assert_close(frozen(images), model(((images + 1) / 2 - 0.2) / 0.4))
    assert (frozen.arch, frozen.num_classes, frozen.channels, frozen.resolution) == ("smallcnn", 10, 1, 16)
    assert frozen.classes == tuple("0123456789") and frozen.card == {"seed": 0}


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w},
                                  lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}}])
def test_plain_state_dict(tmp_path, wrap):
    model = build("resnet8", 4, 3).eval()
    save_torch(tmp_path / "c.pt", wrap(model.state_dict()))
    frozen = load_classifier(tmp_path / "c.pt", "resnet8")
    images = torch.rand(2, 3, 20, 20) * 2 - 1
    torch.testing.assert_close(frozen(images), model((images + 1) / 2))
    assert (frozen.num_classes, frozen.channels) == (4, 3)
    assert load_classifier(tmp_path / "c.pt").arch == "resnet8"  # the one that fits


def with_nan(file):
    file["state_dict"]["linear.bias"][3] = float("nan")


@pytest.mark.parametrize("spoil, arch, said", [
    (lambda file: None, "resnet18", r"conv1.weight is missing .*convs.0.weight is unexpected .*names 'smallcnn'"),
    (lambda file: None, "smalcnn", "did you mean 'smallcnn'"),
    (lambda file: file["state_dict"].pop("linear.bias"), "", r"linear.bias is missing \(with 0 more\)"),
    (lambda file: file["state_dict"].update({"norms.1.bias": torch.zeros(3)}), "", r"norms.1.bias is \(3,\)"),
    (with_nan, "", "NaN or infinite weights in linear.bias"),
    (lambda file: file.update(channels=3), "", r"convs.0.weight is \(32, 1, 3, 3\) and should be \(32, 3, 3, 3\)"),
    (lambda file: file.update(mean=[0.0, 0.0]), "", r"mean \[0.0, 0.0\].* must hold 1 finite number"),
    (lambda file: file.update(std=[0.0]), "", "above 0"),
    (lambda file: file.update(channels=4, state_dict=build("smallcnn", 10, 4).state_dict()), "",
     "images of 4 channels"),
    (lambda file: file.update(num_classes=5, state_dict=build("smallcnn", 5, 1).state_dict()), "",
     "knows 5 classes but .* has 10.*--C_class_map"),
    (lambda file: file.update(state_dict={}), "", "holds no state dict"),
    (lambda file: file.update(state_dict={"a": torch.zeros(2)}), "", "holds no state dict"),
])
def test_a_bad_checkpoint_gets_a_sentence(tmp_path, checkpoint, spoil, arch, said):
    spoil(checkpoint)
    save_torch(tmp_path / "c.pt", checkpoint)
    with pytest.raises(UserError, match=said):
        load_classifier(tmp_path / "c.pt", arch, num_classes=10)


def test_a_missing_or_truncated_file_gets_a_sentence(tmp_path, checkpoint):
    path = tmp_path / "c.pt"
    with pytest.raises(UserError, match=r"python -m classifiers.train .*--out .*c.pt"):
        load_classifier(path)
    with pytest.raises(UserError, match="does not exist"):
        load_classifier("")
    save_torch(path, checkpoint)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="truncated"):
        load_classifier(path)


# -------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def digits_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    prepare("digits", root)
    return str(root)


def test_sideways_alone_each_row_stays_in_its_place():
    """A spectrogram moved up is of a higher pitch: the classifiers of a data set of sounds are not shown that."""
    rows = torch.arange(1, 33, dtype=torch.uint8)[:, None].expand(50, 1, 32, 32)
    moved = augmented(rows, False, torch.Generator().manual_seed(0), vertical=False) * 255
    assert torch.equal(moved.amax(3), rows.amax(3).float()) and (moved == 0).any((1, 2, 3)).float().mean() > 0.5
    assert (augmented(rows, False, torch.Generator().manual_seed(0)).amax(3) * 255 != rows.amax(3)).any()


def test_shift_moves_whole_images():
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5)
    seen = set()
    for moved in shift(image.expand(200, -1, -1, -1), 1, fill=0, generator=torch.Generator().manual_seed(0)):
        row, column = divmod(int((moved[0] == 13).nonzero()[0] @ torch.tensor([5, 1])), 5)
        expected = torch.zeros(7, 7, dtype=torch.uint8)
        expected[row - 1:row + 4, column - 1:column + 4] = image[0, 0]
        assert torch.equal(moved[0], expected[1:6, 1:6])
        seen.add((row - 2, column - 2))
    assert len(seen) == 9


def test_flip_mirrors_about_half_of_the_images():
    images = torch.arange(8, dtype=torch.uint8).expand(100, 3, 8, 8)
    plain, flipped = (augmented(images, flip, torch.Generator().manual_seed(0)) for flip in (False, True))
    torch.testing.assert_close(plain, images.float() / 255)
    assert 30 < (flipped[:, 0, 0, 0] == 7 / 255).sum() < 70


def test_statistics_per_channel():
    images = torch.stack([torch.tensor([0, 255]).repeat(8), torch.full((16,), 51)]).view(1, 2, 4, 4).to(torch.uint8)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx([0.5, 0.2]) and std == pytest.approx([(4 / 15) ** 0.5, 1 / 255])


def test_training_learns_and_leaves_a_checkpoint_with_its_card(tmp_path, digits_root):
    settings = TrainSettings(dataset="digits", epochs=3, seed=5, data_root=digits_root, out=str(tmp_path / "c.pt"))
    frozen, card = train_classifier(settings)
    assert card["clean_accuracy"]["overall"] > 0.9 and len(card["clean_accuracy"]["per_class"]) == 10
    assert card["pgd_accuracy"]["overall"] < card["clean_accuracy"]["overall"]
    assert card["attack"]["images"] == card["test_images"] == 360
    assert "--dataset digits --out" in card["command"] and "--seed 5" in card["command"]
    assert card == json.loads((tmp_path / "c.pt.json").read_text()) == load_torch(tmp_path / "c.pt")["card"]
    images = torch.rand(4, 1, 16, 16) * 2 - 1
    assert torch.equal(load_classifier(tmp_path / "c.pt", num_classes=10)(images), frozen(images))


def test_robust_training_repeats_exactly(tmp_path, digits_root):
    def weights(name, seed):
        train_classifier(TrainSettings(dataset="digits", robust="l2", eps=1.0, steps=1, epochs=1, batch_size=256,
                                       precision="bf16", seed=seed, data_root=digits_root, out=str(tmp_path / name)))
        return load_torch(tmp_path / name)["state_dict"]

    first, again, other = weights("a.pt", 0), weights("b.pt", 0), weights("c.pt", 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


def test_training_begins_with_the_weights_of_another_but_for_the_last_layer(tmp_path, digits_root):
    torch.manual_seed(5)
    start = FrozenClassifier(build("smallcnn", 3, 1), 3, 1, 16, [0.3], [0.7], "smallcnn")
    save_classifier(tmp_path / "start.pt", start)
    given = {"dataset": "digits", "epochs": 1, "batch_size": 256, "data_root": digits_root, "num_attacked": 10}
    frozen, card = train_classifier(TrainSettings(**given, lr=1e-9, init=str(tmp_path / "start.pt"),
                                                  out=str(tmp_path / "c.pt")))
    assert frozen.mean.item() == pytest.approx(0.3) and frozen.std.item() == pytest.approx(0.7)
    weights, begun = frozen.model.state_dict(), start.model.state_dict()
    same = {name for name, value in weights.items() if value.shape == begun[name].shape
            and torch.allclose(value.cpu(), begun[name], atol=1e-3)}
    assert {name for name in weights if "running" not in name and "num_batches" not in name} - same == \
        {"linear.weight", "linear.bias"}
    assert card["init_sha256"] == hashlib.sha256((tmp_path / "start.pt").read_bytes()).hexdigest()
    with pytest.raises(UserError, match="is a 'smallcnn' for images of 1 channels; give a file of --arch resnet8 for"):
        train_classifier(TrainSettings(**given, arch="resnet8", init=str(tmp_path / "start.pt"),
                                       out=str(tmp_path / "d.pt")))


def test_a_loss_that_is_not_finite_stops_and_writes_nothing(tmp_path, digits_root):
    with pytest.raises(UserError, match="lower --lr"):
        train_classifier(TrainSettings(dataset="digits", epochs=1, lr=1e30, data_root=digits_root,
                                       out=str(tmp_path / "c.pt")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change, said", [
    ({"arch": "smallnn"}, "did you mean 'smallcnn'"), ({"robust": "l1", "eps": 1.0}, "--robust 'l1'"),
    ({"robust": "l2"}, "give both"), ({"eps": 1.0}, "give both"), ({"out": ""}, "--out"), ({"out": "/"}, "--out"),
    ({"epochs": 0}, "--epochs is 0"), ({"lr": 0.0}, "--lr is 0.0; it must be positive"),
    ({"precision": "fp16"}, "--precision"),
    ({"label_smoothing": 1.0}, "label_smoothing"), ({"batch_size": 1438}, "1437 training images"),
    ({"dataset": "digit"}, "did you mean 'digits'"), ({"dataset": "digits_wo_7"}, "leaves classes out"),
    ({"dataset": "MNIST"}, "prepare_data"),
])
def test_bad_settings_get_a_sentence(tmp_path, digits_root, change, said):
    with pytest.raises(UserError, match=said):
        train_classifier(TrainSettings(**{"dataset": "digits", "data_root": digits_root, "out": str(tmp_path / "c.pt"),
                                          **change}))


def test_the_command_line(tmp_path, digits_root, monkeypatch, capsys):
    words = ["train", "--dataset", "digits", "--epochs", "1", "--batch_size", "1437", "--data_root", digits_root]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path / "c.pt")])
    main()
    assert "overall" in capsys.readouterr().out and (tmp_path / "c.pt.json").exists()
    monkeypatch.setattr("sys.argv", [*words, "--epoch", "1"])
    with pytest.raises(UserError, match="did you mean '--epochs'"):
        main()


def test_an_evaluator_can_be_trained_on_a_split_of_its_own(digits_root, tmp_path):
    folder = tmp_path / "data" / "digits"
    folder.mkdir(parents=True)
    for file in ("train.h5", "test.h5"):
        (folder / file).symlink_to(Path(digits_root) / "digits" / file)
    with h5py.File(folder / "train.h5") as whole, h5py.File(folder / "extra.h5", "w") as extra:
        extra["images"], extra["labels"] = whole["images"][:300], whole["labels"][:300]
        extra.attrs["classes"] = whole.attrs["classes"]
    common = {"dataset": "digits", "epochs": 1, "data_root": str(tmp_path / "data"), "num_attacked": 1}
    _, card = train_classifier(TrainSettings(**common, split="extra", role="evaluator", out=str(tmp_path / "e.pt")))
    _, other = train_classifier(TrainSettings(**common, out=str(tmp_path / "c.pt")))
    assert card["train_images"] == 300 and card["split"] == "extra" and "--split extra" in card["command"]
    assert card["data_sha256"] != other["data_sha256"] and card["test_sha256"] == other["test_sha256"]
    for split, words in (("test", "--split test is what the card"), ("more", "the more images of digits are missing")):
        with pytest.raises(UserError, match=words):
            train_classifier(TrainSettings(**common, split=split, out=str(tmp_path / "d.pt")))


def test_labels_that_leak_through_the_adversary_are_warned_of():
    card = {"clean_accuracy": {"overall": 0.31, "per_class": {}}, "pgd_accuracy": {"overall": 0.09, "per_class": {}},
            "attack": {"norm": "l2", "eps": 0.5, "steps": 20}, "steps": 1, "own_adversary_accuracy": 0.95}
    assert "of 1 step(s), it knows 95.0%, more than of clean ones" in report(card)
    assert "warning" not in report(card | {"own_adversary_accuracy": 0.3})


def test_a_card_without_test_images_has_no_figures_and_no_nan(tmp_path, capsys):
    (tmp_path / "digits").mkdir()
    for split, count in (("train", 40), ("test", 0)):
        with h5py.File(tmp_path / "digits" / f"{split}.h5", "w") as file:
            file["images"] = torch.randint(256, (count, 1, 16, 16), dtype=torch.uint8).numpy()
            file["labels"] = torch.arange(count).numpy() % 10
            file.attrs["classes"] = list("0123456789")
    _, card = train_classifier(TrainSettings(dataset="digits", epochs=1, batch_size=20, out=str(tmp_path / "c.pt"),
                                             data_root=str(tmp_path)))
    assert card["clean_accuracy"]["overall"] is None and card["pgd_accuracy"]["overall"] is None
    assert "NaN" not in (tmp_path / "c.pt.json").read_text()
    assert report(card).splitlines()[1].split() == ["overall", "-", "-"]
