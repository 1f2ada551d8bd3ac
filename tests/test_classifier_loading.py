"""Strangers' classifiers: what they take and answer, their names and metadata, their files and their own code."""

import argparse
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from classifiers import FrozenClassifier, build, load_classifier
from classifiers.answers import Answers
from classifiers.architectures import find
from classifiers.files import hints_of, networks_in, own_words, save_classifier
from classifiers.loading import Asked, judging_classifier, load, probed_classifier, refuse_evaluator, same_classifier
from classifiers.names import fit_names
from config import Config
from utils import DATASETS, ROOT, DatasetSpec, UserError, save_torch

SPEC = DatasetSpec("own", 32, 3, tuple("abcde"))


def images(channels=3, size=32, n=6):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def seeded(make, *arguments):
    torch.manual_seed(0)
    return make(*arguments).eval()


def expected(model, x, mean=0.0, std=1.0):
    """What a network answers to images in [-1, 1], computed apart from the wrapper."""
    with torch.no_grad():
        return model(((x + 1) / 2 - mean) / std)


# --------------------------------------------------------------------- what they take and answer


class Net(nn.Module):
    """A small network for 5 classes that answers as `answer` makes it, and has 16 features."""

    def __init__(self, answer=lambda logits, features: logits, classes=5):
        super().__init__()
        self.conv, self.fc, self.answer = nn.Conv2d(3, 16, 3, stride=2), nn.Linear(16, classes), answer

    def logits(self, x):
        features = F.relu(self.conv(x)).mean((2, 3))
        return 8 * self.fc(features), features

    def forward(self, x):
        return self.answer(*self.logits(x))


FORMS = {
    "tuple": (lambda z, h: (z, h), "logits"), "features first": (lambda z, h: (h, z), "logits"),
    "dict": (lambda z, h: {"features": h, "logits": z}, "logits"), "list": (lambda z, h: [z], "logits"),
    "object": (lambda z, h: SimpleNamespace(hidden=h, logits=z, loss=None), "logits"),
    "auxiliary heads": (lambda z, h: {"aux": z + 1, "out": z}, "logits"),
    "nested": (lambda z, h: ({"features": h}, (z, None)), "logits"),
    "1x1": (lambda z, h: z[:, :, None, None], "logits"),
    "sigmoid": (lambda z, h: z.sigmoid(), "sigmoid"), "softmax": (lambda z, h: z.softmax(1), "softmax"),
    "log-softmax": (lambda z, h: z.log_softmax(1), "log-softmax"),
}


@pytest.mark.parametrize("name", FORMS)
def test_answers_of_every_form_become_logits(tmp_path, name):
    answer, form = FORMS[name]
    torch.save(seeded(Net).state_dict(), tmp_path / "c.pt")
    (tmp_path / "nets.py").write_text("")
    model = seeded(Net, answer)
    frozen = loaded(tmp_path, model)
    assert frozen.num_classes == 5 and frozen.answers.form == form
    found, right = frozen(images()), expected(model.logits, images())[0]
    if form in ("softmax", "log-softmax"):  # known up to a constant an image
        found, right = found.log_softmax(1), right.log_softmax(1)
    torch.testing.assert_close(found, right, atol=1e-3, rtol=1e-3)
    if name != "list":
        assert not frozen.notes or "answers with" in frozen.notes[-1]


def loaded(folder, model, spec=SPEC, **settings):
    """A whole network, given as a program would be, loaded. It is not pickled: its class may be any."""
    from classifiers import loading
    from classifiers.files import ClassifierFile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "read_classifier", lambda *_: ClassifierFile(model=model))
        return load(Asked(str(folder), **settings), data=spec)


@pytest.mark.parametrize("answer, form", [(lambda z, h: z, "one logit"), (lambda z, h: z[:, 0], "one logit"),
                                          (lambda z, h: z.sigmoid(), "one sigmoid")])
def test_a_single_answer_becomes_two_classes(tmp_path, answer, form):
    model = seeded(Net, answer, 1)
    frozen = loaded(tmp_path, model, DatasetSpec("own", 32, 3, ("no", "yes")))
    logit = expected(model.logits, images())[0]
    assert frozen.num_classes == 2 and frozen.answers.form == form
    torch.testing.assert_close(frozen(images()).softmax(1)[:, 1], logit.sigmoid()[:, 0], atol=1e-4, rtol=1e-4)
    assert "one" in frozen.notes[-1] and "label 1 against 0" in frozen.notes[-1]


def test_logits_that_happen_to_lie_between_0_and_1_stay_logits(tmp_path):
    """An untrained network's answers may do so on ordinary images; far out of range they leave it."""
    model = seeded(Net)
    with torch.no_grad():
        model.fc.bias.fill_(0.05)
        model.fc.weight.mul_(0.01)
    assert loaded(tmp_path, model).answers == Answers()


class LeNet(nn.Module):
    """Takes images of 28 x 28 alone."""

    def __init__(self, num_classes=5):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 5), nn.Linear(4 * 12 * 12, num_classes)

    def forward(self, x):
        h = F.max_pool2d(self.conv(x), 2)
        assert h.shape[-1] == 12, "wrong size"
        return self.fc(h.flatten(1))


class MLP(nn.Module):
    """Takes flattened grey images of 28 x 28."""

    def __init__(self, num_classes=5):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, num_classes))

    def forward(self, x):
        return self.layers(x)


class Flattening(MLP):
    """Takes images, but of 28 x 28 alone."""

    def forward(self, x):
        return self.layers(x.view(-1, 784))


@pytest.mark.parametrize("kind, flat", [(LeNet, False), (MLP, True), (Flattening, False)])
def test_networks_of_one_size_are_found_out_from_a_state_dict(tmp_path, monkeypatch, kind, flat):
    monkeypatch.setattr("classifiers.architectures.own_factory", lambda *_: lambda num_classes, channels:
                        kind(num_classes))
    model = seeded(kind)
    save_torch(tmp_path / "c.pt", model.state_dict())
    frozen = load_classifier(tmp_path / "c.pt", "nets:Net", data=DatasetSpec("own", 32, 1, tuple("abcde")))
    assert (frozen.channels, frozen.resolution, frozen.flat) == (1, 28, flat)
    x = images(1, 28)
    shown = (x + 1) / 2
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), model(shown.flatten(1) if flat else shown))
    assert "takes images of 28 x 28 pixels alone" in frozen.notes[0]
    assert frozen(images(3, 32)).shape == (6, 5)  # other images are made so
    with pytest.raises(UserError, match=r"does not take 2 images of .* 20 x 20 pixels .*--C_size(?s:.)*Error"):
        load_classifier(tmp_path / "c.pt", "nets:Net", size=20)


def test_a_vision_transformer_of_torchvision_needs_no_size(tmp_path, monkeypatch):
    from torchvision.models import VisionTransformer
    small = {"image_size": 96, "patch_size": 32, "num_layers": 1, "num_heads": 1, "hidden_dim": 8, "mlp_dim": 8}
    monkeypatch.setattr("classifiers.architectures.own_factory", lambda *_: lambda num_classes, channels:
                        VisionTransformer(**small, num_classes=num_classes))
    model = seeded(lambda: VisionTransformer(**small, num_classes=5))
    save_torch(tmp_path / "c.pt", model.state_dict())
    assert load_classifier(tmp_path / "c.pt", "nets:Net", data=SPEC).resolution == 96


# ----------------------------------------------------------------------------------------- names


def wrapped(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


STRAY = {
    "n_averaged": lambda w: wrapped("module.", w) | {"n_averaged": torch.tensor(3)},
    "no counters": lambda w: {n: v for n, v in w.items() if "num_batches" not in n},
    "loss weights": lambda w: wrapped("model.", w) | {"criterion.weight": torch.ones(5), "acc.total": torch.ones(1)},
    "net": lambda w: wrapped("net.", w), "backbone": lambda w: wrapped("backbone.", w),
    "deep": lambda w: wrapped("a.b.module.c.", w) | {"a.x": torch.ones(2)},
    "compiled inside": lambda w: {n.replace("layer1.", "layer1._orig_mod.").replace("layer2.", "layer2.module."): v
                                  for n, v in w.items()},
    "student": lambda w: wrapped("student.", w) | wrapped("teacher.", {n: v + 1 for n, v in w.items()
                                                                      if v.is_floating_point()}),
    "sorted": lambda w: dict(sorted(w.items())), "reversed": lambda w: dict(reversed(w.items())),
    "profiled": lambda w: w | {"layer1.0.total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
    "epoch": lambda w: dict(w) | {"epoch": 3, "name": "x"},
    "projector": lambda w: wrapped("encoder.", w) | {"projector.0.weight": torch.ones(4, 4)},
    "1x1 head": lambda w: dict(w) | {"linear.weight": w["linear.weight"][:, :, None, None]},
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", STRAY)
def test_stray_missing_and_prefixed_names(tmp_path, kind, suffix):
    model = seeded(build, "resnet8", 5, 3)
    weights, path = STRAY[kind](model.state_dict()), tmp_path / f"c{suffix}"
    if suffix == ".pt":
        torch.save(weights, path)
    else:
        save_file({name: value.clone() for name, value in weights.items() if torch.is_tensor(value)}, path)
    for arch in ("resnet8", ""):  # named, or found since it alone fits
        frozen = load_classifier(path, arch)
        torch.testing.assert_close(frozen(images()), expected(model, images()))
        assert (frozen.arch, frozen.num_classes, frozen.channels) == ("resnet8", 5, 3)
    if kind in ("loss weights", "projector"):
        assert "passed over beside the network's weights" in frozen.notes[1]


def test_other_networks_are_not_taken_for_this_one():
    """A deeper one holds all weights of a shallower, and one with biases all of one without."""
    with torch.device("meta"):
        own, deeper = (build(arch, 5, 3).state_dict() for arch in ("wrn-16-2", "wrn-22-2"))
    assert "block1.layer.2.bn1.weight is unexpected" in fit_names(deeper, own).misfit
    assert "is missing" in fit_names(own, deeper).misfit
    assert "conv1.bias is unexpected" in fit_names(own | {"conv1.bias": torch.ones(16)}, own).misfit
    plain = {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)}
    assert fit_names(plain | {"2.weight": torch.ones(2, 2)}, plain).misfit == "2.weight is unexpected (with 0 more)"
    assert fit_names(plain | {"loss.weight": torch.ones(2, 2)}, plain).misfit == ""
    assert "is (3, 2) and should be (2, 2)" in fit_names(plain | {"0.weight": torch.ones(3, 2)}, plain).misfit


def test_auxiliary_heads_that_the_file_lacks_are_left_out(tmp_path):
    pytest.importorskip("torchvision")
    model = seeded(build, "torchvision:googlenet", 5, 3)
    save_torch(tmp_path / "c.pt", {name: value for name, value in model.state_dict().items()
                                   if not name.startswith("aux")})
    frozen = load_classifier(tmp_path / "c.pt", "torchvision:googlenet", size=32, mean=[0.0] * 3, std=[1.0] * 3)
    torch.testing.assert_close(frozen(images()), expected(model, images()), atol=1e-5, rtol=1e-4)
    assert frozen.model.aux1 is None and "no auxiliary head" in " ".join(frozen.notes)


@pytest.mark.parametrize("names, scale", [(("mu", "sigma"), 1), (("0.mean", "0.std"), 1),
                                          (("normalizer.new_mean", "normalizer.new_std"), 255)])
def test_a_normaliser_in_the_file_is_used(tmp_path, names, scale):
    model = seeded(build, "resnet8", 5, 3)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])
    save_torch(tmp_path / "c.pt", wrapped("1.", model.state_dict()) | {
        names[0]: scale * mean.view(1, 3, 1, 1), names[1]: scale * std.view(1, 3, 1, 1)})
    frozen = load_classifier(tmp_path / "c.pt")
    torch.testing.assert_close(frozen(images()), expected(model, images(), mean.view(3, 1, 1), std.view(3, 1, 1)))
    assert f"normaliser is taken from {names[0]} and {names[1]}" in " ".join(frozen.notes)
    plain = load_classifier(tmp_path / "c.pt", mean=[0.0] * 3, std=[1.0] * 3)
    torch.testing.assert_close(plain(images()), expected(model, images()))


LIBRARIES = ["torchvision:mobilenet_v3_small", "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1",
             "torchvision:mnasnet0_5", "timm:lcnet_035", "timm:starnet_s050", "timm:mnasnet_small",
             "timm:resnet10t", "timm:mobilenetv4_conv_small_035", "timm:test_vit", "timm:test_convnext",
             "timm:test_efficientnet", "timm:test_nfnet", "timm:test_mambaout"]


@pytest.mark.parametrize("arch", LIBRARIES)
def test_networks_of_the_libraries_from_both_kinds_of_file(tmp_path, arch):
    """Safetensors are sorted by name: neither the first convolution nor the last layer is where it stands."""
    if arch.startswith("timm"):
        pytest.importorskip("timm", reason="the optional package timm is not installed")
    model = seeded(build, arch, 5, 3)
    weights = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    torch.save(weights, tmp_path / "c.pt")
    save_file(weights, tmp_path / "c.safetensors")
    usual = find(arch)[1]
    x = images(size=usual["resolution"], n=2)
    mean, std = (torch.tensor(usual[key]).view(3, 1, 1) for key in ("mean", "std"))
    right = expected(model, x, mean, std)
    for name in ("c.pt", "c.safetensors"):
        frozen = load_classifier(tmp_path / name, arch)
        assert (frozen.num_classes, frozen.channels, frozen.resolution) == (5, 3, usual["resolution"])
        with torch.no_grad():
            torch.testing.assert_close(frozen(x), right, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------ which weights, whose words


def test_which_of_several_weights_is_said_and_can_be_chosen(tmp_path):
    weights = seeded(build, "resnet8", 5, 3).state_dict()
    other = {name: value + 1 for name, value in weights.items()}
    save_torch(tmp_path / "c.pt", {"state_dict": other, "state_dict_ema": weights, "optimizer": {"a": torch.ones(2, 2)},
                                   "args": {"lr": 0.1}})
    frozen = load_classifier(tmp_path / "c.pt")
    assert torch.equal(frozen.model.linear.weight, weights["linear.weight"])
    assert frozen.notes == ["taken are the weights state_dict_ema; --C_weights takes others: state_dict"]
    frozen = load_classifier(tmp_path / "c.pt", weights="state_dict")
    assert torch.equal(frozen.model.linear.weight, other["linear.weight"])
    with pytest.raises(UserError, match="--C_weights 'emma' is not in .*c.pt; it holds .*state_dict_ema, .*state_dict"):
        load_classifier(tmp_path / "c.pt", weights="emma")
    save_torch(tmp_path / "d.pt", wrapped("student.", weights) | wrapped("teacher.", other))
    frozen = load_classifier(tmp_path / "d.pt")
    assert torch.equal(frozen.model.linear.weight, weights["linear.weight"])
    assert "taken are the weights student; --C_weights takes others: teacher" in frozen.notes[0]
    frozen = load_classifier(tmp_path / "d.pt", weights="teacher")
    assert torch.equal(frozen.model.linear.weight, other["linear.weight"])


def test_other_weights_are_taken_where_the_first_do_not_fit(tmp_path):
    weights = seeded(build, "resnet8", 5, 3).state_dict()
    save_torch(tmp_path / "c.pt", {"ema": {"x.weight": torch.ones(2, 2)}, "nested": {"model": weights}})
    frozen = load_classifier(tmp_path / "c.pt", "resnet8")
    assert torch.equal(frozen.model.linear.weight, weights["linear.weight"])
    assert "taken are the weights nested.model" in frozen.notes[0]
    assert list(networks_in({"a": {"b": {"c": {"d": weights}}}, "optimizer": weights})) == []


@pytest.mark.parametrize("value", [3, "text", {"a": 1}, torch.ones(3), [1, "x"], None, [torch.ones(1)], 0.5, [[1]],
                                   ("a", "b"), True])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_metadata_of_strangers_is_never_believed_and_never_fatal(tmp_path, value, suffix):
    model = seeded(build, "resnet8", 5, 3)
    keys = ("arch", "num_classes", "channels", "resolution", "mean", "std", "classes", "role", "card", "id2label",
            "input_size", "args", "model")
    path = tmp_path / f"c{suffix}"
    if suffix == ".pt":
        torch.save(dict.fromkeys(keys, value) | {"state_dict": model.state_dict()}, path)
    else:
        said = repr(value) if torch.is_tensor(value) or isinstance(value, list) else value
        save_file(model.state_dict(), path, metadata={"classifier": json.dumps(said)} | dict.fromkeys(keys, str(value)))
    frozen = load_classifier(path)
    assert frozen.arch == "resnet8" and frozen.classes == () and frozen.card == {} and frozen.role == ""
    assert frozen.mean.tolist() == [[[0.0]]] * 3 and frozen.std.tolist() == [[[1.0]]] * 3
    torch.testing.assert_close(frozen(images()), expected(model, images()))


def test_hints_of_strangers_are_offered_and_not_applied(tmp_path):
    model = seeded(build, "resnet8", 5, 3)
    save_torch(tmp_path / "c.pt", {"state_dict": model.state_dict(), "mean": [0.5] * 3, "std": torch.full((3,), 0.2),
                                   "class_to_idx": {"bee": 1, "ant": 0, "cat": 2, "dog": 3, "emu": 4}, "img_size": 48})
    frozen = load_classifier(tmp_path / "c.pt")
    assert frozen.mean.flatten().tolist() == [0.0] * 3 and frozen.resolution == 0
    assert frozen.hinted == {"mean": [0.5] * 3, "std": pytest.approx([0.2] * 3), "resolution": 48,
                             "classes": ["ant", "bee", "cat", "dog", "emu"]}
    assert hints_of({"args": argparse.Namespace(model="resnet18", mean=0.5)}) == {"arch": "resnet18", "mean": [0.5]}


def test_a_name_of_theirs_is_taken_for_what_fits(tmp_path):
    """torchvision's resnet18 is not the one of CIFAR size, which has that name here."""
    model = seeded(build, "torchvision:resnet18", 5, 3)
    torch.save({"state_dict": model.state_dict(), "arch": "resnet18", "args": argparse.Namespace(lr=1)},
               tmp_path / "c.pt")
    frozen = load_classifier(tmp_path / "c.pt")
    assert frozen.arch == "torchvision:resnet18" and "names 'resnet18', and the weights of that fit" in frozen.notes[0]
    torch.save({"state_dict": {"x.weight": torch.ones(3, 3)}, "arch": "resnet18"}, tmp_path / "d.pt")
    with pytest.raises(UserError, match="none of the registered ones fits its weights; .* The file names 'resnet18'"):
        load_classifier(tmp_path / "d.pt")


def test_this_projects_own_words_are_believed(tmp_path):
    frozen = FrozenClassifier(build("resnet8", 5, 3), 5, 3, 32, [0.4] * 3, [0.2] * 3, "resnet8", "abcde", {"seed": 3})
    for name in ("c.pt", "c.safetensors"):
        save_classifier(tmp_path / name, frozen)
        again = load_classifier(tmp_path / name)
        assert (again.classes, again.card, again.resolution) == (tuple("abcde"), {"seed": 3}, 32)
        assert again.mean.flatten().tolist() == pytest.approx([0.4] * 3) and not again.hinted and not again.notes
    said = {"arch": "resnet8", "num_classes": 5, "channels": 3, "resolution": 0, "mean": [0.4] * 3, "std": [0.2] * 3}
    assert own_words(said) == said
    for broken in ({"num_classes": "5"}, {"classes": ["a"]}, {"classes": [1] * 5},
                   {"mean": [[1]] * 3}):
        assert own_words(said | broken) == {}


# ------------------------------------------------------------------------------ files of other kinds


NO_CLASSIFIER = {
    "page": (b"<!DOCTYPE html><html>Sign in</html>", "a web page"), "spaces": (b"\n <html><body>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of Git LFS"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:" + bytes(40), "ONNX"), "hdf5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "json": (b'{"architectures": ["x"]}', "JSON file and holds no weights"), "text": (b"hello there", "text file"),
    "gzip": (b"\x1f\x8b\x08\x00abc", "compressed archive"), "tar": (bytes(257) + b"ustar" + bytes(200), "tar archive"),
    "empty": (b"", "is empty"), "noise": (bytes(range(200, 256)) * 4, "no kind that is known"),
    "gguf": (b"GGUF\x03\0\0\0", "GGUF")}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", NO_CLASSIFIER)
def test_what_is_no_classifier_is_named_and_no_trust_is_asked_for(tmp_path, kind, suffix):
    content, words = NO_CLASSIFIER[kind]
    path = tmp_path / f"c{suffix}"
    path.write_bytes(content)
    for trust in (False, True):
        with pytest.raises(UserError, match=words) as refused:
            load_classifier(path, trust=trust)
        assert "trust" not in str(refused.value)


def test_a_zip_of_other_things(tmp_path):
    import zipfile
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("best.pth", b"x")
    with pytest.raises(UserError, match="is a zip of best.pth, and no file of torch.save; unpack it"):
        load_classifier(tmp_path / "c.pt")


def test_folders_shards_and_indexes_of_hugging_face(tmp_path):
    model = seeded(build, "resnet8", 5, 3)
    weights = model.state_dict()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for shard, part in shards.items():
        save_file({name: weights[name] for name in part}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: shard for shard, part in shards.items() for name in part}}))
    (tmp_path / "config.json").write_text(json.dumps({
        "architectures": ["ResNetForImageClassification"], "image_size": 32,
        "id2label": {str(i): f"kind {i}" for i in range(5)}}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    for path in (tmp_path, index, tmp_path / "model-00002-of-00002.safetensors"):
        frozen = load_classifier(path)
        torch.testing.assert_close(frozen(images()), expected(model, images()))
        assert "joined from the shards" in frozen.notes[0]
    frozen = load_classifier(tmp_path)
    assert frozen.hinted["mean"] == [0.5] * 3 and frozen.hinted["classes"][2] == "kind 2"
    assert "ResNetForImageClassification of the package transformers" in frozen.notes[1]
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="names the shard model-00001-of-00002.safetensors, which is not beside it"):
        load_classifier(tmp_path)
    index.unlink()
    with pytest.raises(UserError, match="is one shard of several, and the index model.safetensors.index.json is not"):
        load_classifier(tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match="is a folder without model.safetensors or pytorch_model.bin; .*which may be"):
        load_classifier(tmp_path)


def test_a_folder_as_timm_pushes_it(tmp_path):
    pytest.importorskip("timm", reason="the optional package timm is not installed")
    model = seeded(build, "timm:test_efficientnet", 5, 3)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    config = {"architecture": "test_efficientnet", "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    frozen = load_classifier(tmp_path)
    assert frozen.arch == "timm:test_efficientnet" and frozen.hinted["mean"] == [0.1] * 3


# -------------------------------------------------------------------------------- the user's own code


OWN_CODE = {
    "utils.py": "SCALE = 3.0\n",
    "layers.py": "from torch import nn\nfrom utils import SCALE\n\nclass Scale(nn.Module):\n"
                 "    def forward(self, x):\n        return SCALE * x\n",
    "datasets/__init__.py": "NAME = 'mine'\n", "datasets/birds.py": "from datasets import NAME\nCLASSES = 5\n",
    "nets.py": "from torch import nn\nimport layers\nfrom datasets.birds import CLASSES\n\n"
               "class Mine(nn.Sequential):\n    pass\n\n"
               "def mine(n_classes=CLASSES, in_chans=3):\n"
               "    import utils  # when it is called\n"
               "    assert utils.SCALE == 3.0\n"
               "    return Mine(nn.Conv2d(in_chans, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
               "                nn.Linear(4, n_classes), layers.Scale())\n"
               "def broken(num_classes):\n    return nn.Linear(4, wrong_name)\n"
               "def loose(**kwargs):\n    return mine(**kwargs)\n"
               "def strict(**kwargs):\n    return mine(n_classes=kwargs.pop('num_classes'), **kwargs)\n"
               "def needy(depth, num_classes):\n    return None\n",
    "script.py": "import argparse\nargparse.ArgumentParser().parse_args(['--no'])\n",
    "failing.py": "from torch import nn\nimport layers\nraise RuntimeError('the file is old')\n"}


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    for name, text in OWN_CODE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.setattr("classifiers.foreign._FOLDERS", {})
    for name in ("nets", "failing", "script"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("nets", "failing", "script"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("arch", ["nets:mine", "nets:loose", "nets:strict", "{}/nets.py:mine"])
def test_their_modules_and_ours_keep_their_names(own_code, arch):
    import layers
    import utils
    model = build(arch.format(own_code), 5, 3)
    assert model(torch.ones(1, 3, 8, 8)).shape == (1, 5) and type(model[-1]).__name__ == "Scale"
    assert sys.modules["utils"] is utils and sys.modules["layers"] is layers
    import datasets
    assert datasets.__file__ == str(ROOT / "datasets/__init__.py")
    # a second network is of the same classes
    assert type(build(arch.format(own_code), 5, 3)[-1]) is type(model[-1])


def test_their_errors_are_shown_as_theirs(own_code):
    for arch, words in (("nets:broken", ["nets.py", "wrong_name", "NameError"]),
                        ("failing:net", ["failing.py", "RuntimeError: the file is old", "its own code fails"]),
                        ("script:net", ["SystemExit"]), ("nets:needy", ["needs depth; give a function"]),
                        ("nets:gone", ["has no attribute 'gone'", "it defines: Mine, mine, broken"]),
                        ("nowhere:net", ["No module named 'nowhere'", "found from the folder"])):
        with pytest.raises(UserError) as refused:
            build(arch, 5, 3)
        assert all(word in str(refused.value) for word in words), str(refused.value)
        assert "classifiers/architectures.py" not in str(refused.value)


def test_pickled_networks_find_their_code_beside_the_file(own_code, monkeypatch, tmp_path_factory):
    subprocess.run([sys.executable, "-c", "import torch, nets; torch.save({'model': nets.mine(), 'ema': nets.mine()}, "
                    "'c.pt'); torch.save(nets.mine(), 'd.pt')"], check=True, cwd=own_code)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    for name in ("c.pt", "d.pt"):
        frozen = load_classifier(own_code / name, trust=True)
        assert frozen(images()).shape == (6, 5)
    (own_code / "nets.py").unlink()
    sys.modules.pop("nets")
    with pytest.raises(UserError, match="needs the module nets, which is neither installed nor in"):
        load_classifier(own_code / "c.pt", trust=True)


# -------------------------------------------------------------------------------- robustness


@pytest.mark.parametrize("name, arch, side", [
    ("vgg11", "cifar.vgg11", 32), ("squeezenet1_1", "imagenet.squeezenet1_1", 224),
    ("imagenet.resnet18", "imagenet.resnet18", 224)])
def test_architectures_of_the_robustness_package(tmp_path, name, arch, side):
    pytest.importorskip("robustness", reason="the optional package robustness is not installed")
    model = seeded(build, f"robustness:{name}", 5, 3)
    save_torch(tmp_path / "c.pt", {"model": wrapped("module.model.", model.state_dict())})
    frozen = load_classifier(tmp_path / "c.pt", f"robustness:{name}")
    assert frozen.arch == f"robustness:{arch}" and frozen.resolution == side and frozen.num_classes == 5
    mean, std = (frozen.mean, frozen.std)
    x = images(size=side, n=2)
    torch.testing.assert_close(frozen(x), expected(model, x, mean, std), atol=1e-4, rtol=1e-4)


def test_one_name_of_robustness_stands_for_the_group_that_fits(tmp_path):
    pytest.importorskip("robustness", reason="the optional package robustness is not installed")
    for group in ("cifar", "imagenet"):
        model = seeded(build, f"robustness:{group}.resnet18", 5, 3)
        save_torch(tmp_path / "c.pt", model.state_dict())
        assert load_classifier(tmp_path / "c.pt", "robustness:resnet18").arch == f"robustness:{group}.resnet18"
    with pytest.raises(UserError, match="robustness has no classifier 'resnet19' .did you mean"):
        build("robustness:resnet19", 5, 3)
    listed = (ROOT / "requirements_robustness.txt").read_text()
    assert "robustness>=" in listed and "--no-deps -r requirements_robustness.txt" in listed


# ------------------------------------------------------------------- judges, labels and independence


def test_a_judge_is_loaded_by_its_own_flags_and_its_classes_are_put_in_order(tmp_path):
    model = seeded(build, "resnet8", 5, 3)
    save_torch(tmp_path / "e.pt", {"state_dict": model.state_dict()})
    asked = Asked(str(tmp_path / "e.pt"), mean=(0.5,) * 3, std=(0.2,) * 3, class_map=("3", "1", "4"), role="evaluator")
    frozen = judging_classifier(asked, ("x", "y", "z"), "cpu")
    torch.testing.assert_close(frozen(images()), expected(model, images(), 0.5, 0.2)[:, [3, 1, 4]])
    assert frozen.num_classes == 3 and frozen.classes == ("x", "y", "z") and frozen.labels == (0, 1, 2)
    for changes, words in (({"class_map": ("1", "1", "2")}, "--evaluator_map gives a class no label"),
                           ({"class_map": ()}, "say by --evaluator_map which"),
                           ({"path": ""}, "no evaluator was given"),
                           ({"arch": "resnet18"}, "give the right --evaluator_arch"),
                           ({"path": "gone.pt"}, "classifiers.train --dataset NAME --role evaluator")):
        with pytest.raises(UserError, match=words):
            judging_classifier(Asked(**vars(asked) | changes), ("x", "y", "z"), "cpu")


def test_one_network_in_another_format_precision_or_wrapper_is_known_again(tmp_path):
    model = seeded(build, "resnet9", 5, 3)
    judge = FrozenClassifier(model, 5, 3, 0, [0.4] * 3, [0.3] * 3)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):  # normalises itself, and is as sure as it likes
            return self.inner((x - 0.4) / 0.3) / 2

    halved = build("resnet9", 5, 3)
    halved.load_state_dict({name: value.bfloat16() for name, value in model.state_dict().items()})
    for copy, settings in ((halved, ([0.4] * 3, [0.3] * 3)), (Wrapped(), ([0.0] * 3, [1.0] * 3))):
        same = FrozenClassifier(copy, 5, 3, 0, *settings)
        assert same_classifier(same, judge)
        with pytest.raises(UserError, match="are the same classifier; one that was probed cannot judge"):
            refuse_evaluator(same, "c.pt", "e.pt", judge)
    reordered = FrozenClassifier(Wrapped(), 5, 3, 0, [0.0] * 3, [1.0] * 3, answers=Answers(columns=(4, 3, 2, 1, 0)))
    reordered.labels = (4, 3, 2, 1, 0)
    assert same_classifier(reordered, judge)
    torch.manual_seed(1)
    other = FrozenClassifier(build("resnet9", 5, 3), 5, 3, 0, [0.4] * 3, [0.3] * 3)
    assert not same_classifier(other, judge) and refuse_evaluator(other, "c.pt", "e.pt", judge) is None


def test_no_two_of_the_pretrained_classifiers_are_the_same():
    found = [load_classifier(ROOT / f"pretrained/mnist_{name}.safetensors")
             for name in ("regular", "robust", "evaluator")]
    assert not any(same_classifier(a, b) for a in found for b in found if a is not b)


def test_the_label_of_the_unseen_class_is_its_own(tmp_path):
    save_torch(tmp_path / "c.pt", seeded(build, "resnet8", 10, 1).state_dict())
    labels = [str(k) for k in range(10)]
    settings = {"dataset": "digits", "C_path": str(tmp_path / "c.pt"), "new_class": (7,)}
    for entry, words in (("3", "the unseen class 7 the label 3, which is that of 3 too"), ("none", "no label")):
        config = Config(**settings, C_class_map=(*labels[:7], entry, *labels[8:]))
        with pytest.raises(UserError, match=words):
            probed_classifier(config, DATASETS["digits"].classes, "cpu")
    # two seen classes may share one
    config = Config(**settings, C_class_map=("1", *labels[1:]))
    assert probed_classifier(config, DATASETS["digits"].classes, "cpu").labels[:2] == (1, 1)


def test_paths_are_looked_for_from_the_repository_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_classifier("pretrained/mnist_robust.safetensors").num_classes == 10
    with pytest.raises(UserError, match=f"looked for: {tmp_path}/gone.pt, {ROOT}/gone.pt"):
        load_classifier("gone.pt")
