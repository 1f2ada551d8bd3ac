"""Every kind of file that a classifier comes in, and every kind of architecture by name."""

import importlib.util
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from classifiers import build, class_labels, load_classifier
from classifiers.architectures import find
from classifiers.files import save_classifier
from classifiers.frozen import FrozenClassifier, fingerprint
from utils import UserError, save_torch


def images(channels=3, size=16):
    return torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def expected(model, x, mean=0.0, std=1.0):
    """Logits of a network on images in [-1, 1], computed apart from the wrapper."""
    with torch.no_grad():
        return model.eval()(((x + 1) / 2 - mean) / std)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 5)).eval()


# -------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("arch, millions", [
    ("wrn-28-10", 36.5), ("wrn-40-4", 8.9), ("densenet-bc-100-12", 0.8), ("densenet-bc-250-24", 15.3),
    ("densenet-bc-190-40", 25.6)])
def test_published_parameter_counts(arch, millions):
    """Zagoruyko & Komodakis (2016), table 1; Huang et al. (2017), table 2."""
    with torch.device("meta"):
        counted = sum(p.numel() for p in build(arch, 10, 3).parameters())
    assert round(counted / 1e6, 1) == millions


@pytest.mark.parametrize("arch", ["wrn-10-2", "densenet-bc-10-4", "resnet9", "vgg7"])
@pytest.mark.parametrize("channels, size", [(1, 16), (3, 32)])
def test_built_architectures_give_logits_and_gradients(arch, channels, size):
    frozen = FrozenClassifier(build(arch, 7, channels), 7, channels, 0, [0.5] * channels, [0.25] * channels)
    x = images(channels, size).requires_grad_()
    frozen(x)[:, 3].sum().backward()
    assert frozen(x).shape == (4, 7) and x.grad.flatten(1).norm(dim=1).min() > 0


def test_the_names_of_published_checkpoints():
    with torch.device("meta"):
        wrn, dense = (set(build(arch, 10, 3).state_dict()) for arch in ("wrn-16-2", "densenet-bc-16-4"))
    assert {"conv1.weight", "block1.layer.0.bn1.weight", "block1.layer.0.convShortcut.weight",
            "block3.layer.1.conv2.weight", "bn1.running_mean", "fc.bias"} <= wrn
    assert {"conv1.weight", "dense1.0.bn1.weight", "dense1.1.conv2.weight", "trans2.conv1.weight", "bn.weight",
            "fc.weight"} <= dense
    assert "block1.layer.1.convShortcut.weight" not in wrn


def test_torchvision_and_its_usual_preprocessing():
    assert find("torchvision:resnet18")[1] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
                                               "resolution": 224}
    assert build("torchvision:squeezenet1_1", 6, 3)(torch.zeros(1, 3, 64, 64)).shape == (1, 6)
    with pytest.raises(UserError, match="takes images of 3 channels, not 1"):
        build("torchvision:resnet18", 6, 1)


def test_a_torchvision_network_by_name(tmp_path):
    model = build("torchvision:mobilenet_v3_small", 6, 3)
    save_torch(tmp_path / "c.pt", model.state_dict())
    frozen = load_classifier(tmp_path / "c.pt", "torchvision:mobilenet_v3_small", size=32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = images(size=32)
    torch.testing.assert_close(frozen(x), expected(model, x, mean, std))
    assert load_classifier(tmp_path / "c.pt", "torchvision:mobilenet_v3_small").resolution == 224


def test_a_timm_network_by_name(tmp_path):
    pytest.importorskip("timm", reason="the optional package timm is not installed")
    model = build("timm:resnet10t", 6, 1)
    save_torch(tmp_path / "c.pt", model.state_dict())
    frozen = load_classifier(tmp_path / "c.pt", "timm:resnet10t", size=32, mean=[0.5], std=[0.5])
    x = images(1, 32)
    torch.testing.assert_close(frozen(x), expected(model, x, 0.5, 0.5))
    assert (frozen.num_classes, frozen.channels) == (6, 1)


def test_a_users_own_code(tmp_path, monkeypatch):
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds/nets.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, num_classes))\n"
        "def no_network(num_classes, channels):\n"
        "    return num_classes\n"
        "def broken(num_classes):\n"
        "    raise OSError('no such thing')\n")
    monkeypatch.chdir(tmp_path)
    model = build("birds.nets:tiny", 5, 3)
    save_torch("c.pt", {"state_dict": model.state_dict()})
    x = images()
    torch.testing.assert_close(load_classifier("c.pt", "birds.nets:tiny")(x), expected(model, x))
    for name, said in (("no_network", "made a int"), ("broken", "OSError: no such"), ("gone", "has no attribute")):
        with pytest.raises(UserError, match=said):
            build(f"birds.nets:{name}", 5, 3)


@pytest.mark.parametrize("arch, said", [
    ("wrn-12-2", "the depth is 10, 16, 22"), ("densenet-bc-12-2", "the depth is 10, 16, 22"),
    ("wrn-16", "'wrn-16' is unknown .*Also valid: wrn-D-K"), ("torchvision:resnet", "torchvision has no classifier"),
    ("torchvision:fcn_resnet50", "torchvision has no classifier"), ("nowhere.at_all:net", "No module named 'nowhere'")])
def test_unknown_architectures_get_a_sentence(arch, said):
    with pytest.raises(UserError, match=said):
        build(arch, 10, 3)


# ------------------------------------------------------------------------------------- formats


def test_safetensors_round_trip_in_half_precision(tmp_path):
    frozen = FrozenClassifier(build("vgg7", 4, 3), 4, 3, 16, [0.4] * 3, [0.2] * 3, "vgg7", list("abcd"), {"seed": 3},
                              role="evaluator")
    save_classifier(tmp_path / "c.safetensors", frozen)
    again = load_classifier(tmp_path / "c.safetensors", num_classes=4)
    x = images()
    torch.testing.assert_close(again(x), frozen(x), atol=0.02, rtol=0.02)
    assert (again.arch, again.classes, again.card, again.role) == ("vgg7", tuple("abcd"), {"seed": 3}, "evaluator")
    assert again.mean.flatten().tolist() == pytest.approx([0.4] * 3)
    size = (tmp_path / "c.safetensors").stat().st_size
    assert size < 2.1 * sum(value.numel() for value in frozen.state_dict().values())
    # a copy in another format is the same classifier
    save_classifier(tmp_path / "c.pt", again)
    assert fingerprint(load_classifier(tmp_path / "c.pt").model) == fingerprint(again.model)


def test_a_running_variance_beyond_half_precision_is_kept(tmp_path):
    model = build("vgg7", 4, 1)
    model.blocks[0][2].running_var.fill_(1e6)
    frozen = FrozenClassifier(model, 4, 1, 16, [0.4], [0.2], "vgg7", list("abcd"))
    save_classifier(tmp_path / "c.safetensors", frozen)
    again = load_classifier(tmp_path / "c.safetensors", num_classes=4).model
    assert torch.equal(again.blocks[0][2].running_var, model.blocks[0][2].running_var)


def test_plain_safetensors_of_others(tmp_path):
    model = build("resnet8", 5, 1)
    # sorted by name, as other programs write them
    save_file({name: value for name, value in sorted(model.state_dict().items())}, tmp_path / "c.safetensors")
    frozen = load_classifier(tmp_path / "c.safetensors", "resnet8", num_classes=5)
    x = images(1)
    torch.testing.assert_close(frozen(x), expected(model, x))


@pytest.mark.parametrize("wrap", [
    lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}, "epoch": 3},
    lambda w: {"model_state_dict": w}, lambda w: {"net": {f"_orig_mod.module.{k}": v for k, v in w.items()}},
    lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()}, "pytorch-lightning_version": "2"}])
def test_state_dicts_as_others_wrap_them(tmp_path, wrap):
    model = build("resnet8", 5, 3)
    save_torch(tmp_path / "c.pt", wrap(model.state_dict()))
    frozen = load_classifier(tmp_path / "c.pt")
    x = images()
    torch.testing.assert_close(frozen(x), expected(model, x))
    assert frozen.arch == "resnet8"


def test_what_a_checkpoint_says_yields_to_the_flags(tmp_path):
    model = build("resnet8", 5, 3)
    save_torch(tmp_path / "c.pt", {"state_dict": model.state_dict(), "mean": [0.5] * 3, "std": [0.5] * 3,
                                   "resolution": 16, "arch": "resnet8", "num_classes": 5, "channels": 3})
    x = images()
    path = tmp_path / "c.pt"
    torch.testing.assert_close(load_classifier(path)(x), expected(model, x, 0.5, 0.5))
    torch.testing.assert_close(load_classifier(path, mean=[0.0] * 3, std=[2.0] * 3)(x), expected(model, x, 0.0, 2.0))
    # 0 to 255 before the mean and the divisor
    wide = load_classifier(path, mean=[100.0] * 3, std=[50.0] * 3, value_range=(0, 255))
    torch.testing.assert_close(wide(x), expected(model, x, 100 / 255, 50 / 255), atol=1e-4, rtol=1e-4)
    inverted = load_classifier(path, mean=[0.0] * 3, std=[1.0] * 3, value_range=(1, 0))
    torch.testing.assert_close(inverted(x), expected(model, -x), atol=1e-5, rtol=1e-5)
    blue_first = load_classifier(path, mean=[0.0, 0.1, 0.2], std=[1.0] * 3, bgr=True)
    torch.testing.assert_close(blue_first(x), expected(model, x.flip(1), torch.tensor([0.0, 0.1, 0.2]).view(3, 1, 1)))
    assert load_classifier(path, size=24).resolution == 24


def test_torchscript(tmp_path):
    model = network()
    torch.jit.trace(model, torch.zeros(2, 3, 16, 16)).save(tmp_path / "c.pt")
    frozen = load_classifier(tmp_path / "c.pt", num_classes=5)
    x = images().requires_grad_()
    torch.testing.assert_close(frozen(x).detach(), expected(model, x))
    frozen.train()
    frozen(x).sum().backward()
    assert x.grad.norm() > 0


def test_an_exported_program(tmp_path):
    model = network()
    batch = {0: torch.export.Dim("batch", min=1, max=1024)}
    program = torch.export.export(model, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=(batch,))
    torch.export.save(program, tmp_path / "c.pt2")
    frozen = load_classifier(tmp_path / "c.pt2", num_classes=5, size=16)
    x = images().requires_grad_()
    torch.testing.assert_close(frozen(x).detach(), expected(model, x))
    frozen.train()
    frozen(x).sum().backward()
    assert x.grad.norm() > 0
    # without its size the sizes that are usual are tried
    found = load_classifier(tmp_path / "c.pt2")
    assert found.resolution == 16 and found.notes == ["it takes images of 16 x 16 pixels alone"]
    with pytest.raises(UserError, match="does not take 2 images of 3 channels and 20 x 20 pixels .*--C_size"):
        load_classifier(tmp_path / "c.pt2", size=20)


class Planted:
    """An object whose unpickling leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_is_unpickled_unless_trusted(tmp_path):
    torch.save({"state_dict": network().state_dict(), "extra": Planted(tmp_path / "executed")}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"names .*open.*could execute what it holds. .*--C_trust"):
        load_classifier(tmp_path / "c.pt")
    assert not (tmp_path / "executed").exists()
    with pytest.raises(UserError, match="does not name its architecture"):
        load_classifier(tmp_path / "c.pt", trust=True)
    assert (tmp_path / "executed").exists()


def test_a_whole_pickled_network_where_trusted(tmp_path):
    model = network()
    torch.save(model, tmp_path / "c.pt")
    with pytest.raises(UserError, match="names torch.nn.modules.container.Sequential"):
        load_classifier(tmp_path / "c.pt")
    x = images()
    torch.testing.assert_close(load_classifier(tmp_path / "c.pt", trust=True)(x), expected(model, x))


@pytest.mark.parametrize("name, make", [
    ("c.safetensors", lambda path: save_file(network().state_dict(), path)),
    ("c.pt", lambda path: torch.jit.trace(network(), torch.zeros(1, 3, 16, 16)).save(path))])
def test_truncated_files_get_a_sentence(tmp_path, name, make):
    path = tmp_path / name
    make(path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UserError, match="is truncated"):
        load_classifier(path)


@pytest.mark.parametrize("head, said", [
    (nn.Unflatten(1, (2, 2)), r"answers 8 images with \(8, 2, 2\)"), (nn.Linear(9, 2), "does not take 2 images")])
def test_a_program_that_is_no_classifier(tmp_path, head, said):
    torch.save(nn.Sequential(*network()[:5], head), tmp_path / "c.pt")
    with pytest.raises(UserError, match=said):
        load_classifier(tmp_path / "c.pt", trust=True)


# -------------------------------------------------------------------------------- robustness


@pytest.fixture
def robustness(monkeypatch):
    """The robustness package on a CPU, with a tiny data set of its own kind; skips where it is not installed."""
    for name in ("robustness", "cox", "dill", "pandas", "tensorboardX"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the optional package {name} is not installed")
    shim = types.ModuleType("torchvision.models.utils")
    shim.load_state_dict_from_url = torch.hub.load_state_dict_from_url
    monkeypatch.setitem(sys.modules, "torchvision.models.utils", shim)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: self)
    monkeypatch.setattr(nn.Module, "cuda", lambda self, *_, **__: self)
    import robustness.attacker
    import robustness.datasets
    import robustness.model_utils
    return robustness


def test_a_checkpoint_made_by_robustness(tmp_path, robustness):
    import dill
    torch.manual_seed(0)
    model, _ = robustness.model_utils.make_and_restore_model(
        arch="resnet18", dataset=robustness.datasets.CIFAR("unused"), resume_path=None)
    model.train()
    model(torch.rand(8, 3, 32, 32))  # moves the running statistics from their start
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    # as robustness.train writes it, behind DataParallel
    torch.save({"model": nn.DataParallel(model).state_dict(), "optimizer": optimizer.state_dict(), "schedule": None,
                "epoch": 1, "amp": None}, tmp_path / "c.pt", pickle_module=dill)
    frozen = load_classifier(tmp_path / "c.pt", num_classes=10)
    assert frozen.arch == "resnet18"
    assert frozen.mean.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
    x = images(size=32)
    with torch.no_grad():
        its, _ = model.eval()((x + 1) / 2)
    torch.testing.assert_close(frozen(x), its, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm, constraint, eps", [("l2", "2", 0.8), ("linf", "inf", 0.06)])
def test_pgd_equals_the_attacker_of_robustness(robustness, norm, constraint, eps):
    from classifiers.attacks import pgd
    model, labels = network(), torch.arange(8) % 5
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)).mul(1.4).sub(0.2).clamp(0, 1)
    attacker = robustness.attacker.Attacker(model, robustness.datasets.CIFAR("unused"))
    theirs = attacker(x, labels, constraint=constraint, eps=eps, step_size=eps / 4, iterations=10, random_start=False,
                      use_best=False, should_normalize=False)
    ours = pgd(model, x, labels, norm, eps, steps=10, step_size=eps / 4, random_start=False)
    assert (theirs - x).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm, eps", [("l2", 0.8), ("linf", 0.06)])
def test_pgd_equals_that_of_foolbox(norm, eps):
    foolbox = pytest.importorskip("foolbox", reason="the optional package foolbox is not installed")
    from classifiers.attacks import pgd
    model, labels = network(), torch.arange(8) % 5
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)).mul(1.4).sub(0.2).clamp(0, 1)
    attack = {"l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
              "linf": foolbox.attacks.LinfProjectedGradientDescentAttack}[norm]
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = attack(abs_stepsize=eps / 4, steps=10, random_start=False).run(wrapped, x, labels, epsilon=eps)
    ours = pgd(model, x, labels, norm, eps, steps=10, step_size=eps / 4, random_start=False)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


# --------------------------------------------------------------------------------- class labels


def test_class_labels():
    frozen = FrozenClassifier(nn.Identity(), 4, 1, 0, [0.0], [1.0], classes=["cat", "dog", "cow", "hen"])
    assert class_labels((), ["dog", "hen"], frozen) == (1, 3)
    assert class_labels(["3", "dog", "none"], ["bird", "wolf", "fish"], frozen) == (3, 1, -1)
    with pytest.raises(UserError, match="knows cat, dog, cow, hen; the data set has dog, wolf"):
        class_labels((), ["dog", "wolf"], frozen)
    with pytest.raises(UserError, match="entry 'caw' is no class .* 0 to 3, 'none', or a name .did you mean 'cow'"):
        class_labels(["caw", "1"], ["a", "b"], frozen)
    with pytest.raises(UserError, match="entry '4'"):
        class_labels(["4", "1"], ["a", "b"], frozen)
    nameless = FrozenClassifier(nn.Identity(), 4, 1, 0, [0.0], [1.0])
    assert class_labels((), list("abcd"), nameless) == (0, 1, 2, 3)
    with pytest.raises(UserError, match="4 classes without names; the data set has a, b"):
        class_labels((), ["a", "b"], nameless)
