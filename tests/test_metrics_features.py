"""metrics.features and metrics.statistics: FID's Inception against torch-fidelity, refusals, the cache."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from classifiers import build
from classifiers.frozen import FrozenClassifier
from metrics.distances import Moments
from metrics.features import ClassifierFeatures, InceptionFeatures, extract, hash_of, inception_network, resized
from metrics.statistics import real_statistics
from utils import UserError, to_unit_range


def evaluator(seed=0):
    torch.manual_seed(seed)
    return ClassifierFeatures(FrozenClassifier(build("resnet8", 4, 1), 4, 1, 16, [0.5], [0.5]), "toy_evaluator")


def toy_images(count=60, channels=1, size=16):
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------- extraction


def test_classifier_features_are_what_the_last_layer_is_given():
    extractor, images = evaluator(), to_unit_range(toy_images(5))
    features, probabilities = extractor(images)
    assert features.shape == (5, extractor.dim)
    last = [module for module in extractor.classifier.model.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(last(features).softmax(1), probabilities)
    torch.testing.assert_close(extractor.classifier(images).softmax(1), probabilities)
    assert not features.requires_grad


def test_extract_does_not_depend_on_the_batches():
    extractor, images = evaluator(), to_unit_range(toy_images())
    whole = extract([images], extractor)
    parts = extract(images.split(7), extractor, "cpu", 60, "fakes")
    for one, two in zip(whole, parts, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    one, two = (Moments(extractor.dim).update(features) for features, _ in (whole, parts))
    torch.testing.assert_close(one.covariance, two.covariance, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("batches", "words"), [
    ([torch.zeros(2, 1, 16, 16), torch.full((1, 1, 16, 16), torch.nan)], "NaN or infinite pixels"),
    ([torch.full((2, 1, 16, 16), torch.inf)], "NaN or infinite pixels"),
    ([torch.arange(256.0).view(1, 1, 16, 16).repeat(3, 1, 1, 1)] * 3, "all 9 images of 'fakes' are identical"),
    ([torch.rand(1, 1, 16, 16)], "'fakes' has 1 images; statistics need at least 2"),
    ([], "'fakes' has 0 images"),
])
def test_extract_refuses(batches, words):
    with pytest.raises(UserError, match=words):
        extract(batches, evaluator(), "cpu", None, "fakes")


def test_extract_takes_constant_batches_that_differ():
    features, _ = extract([torch.full((3, 1, 16, 16), value) for value in (0.0, 0.5)], evaluator())
    assert len(features) == 6


def test_extract_refuses_a_damaged_network():
    extractor = evaluator()
    next(extractor.classifier.model.parameters()).data.fill_(torch.nan)
    with pytest.raises(UserError, match="features 'toy_evaluator' of 'fakes' are NaN"):
        extract([to_unit_range(toy_images(4))], extractor, "cpu", 4, "fakes")


# -------------------------------------------------------------------------------- FID's Inception-v3


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """Random weights of the right shapes, such that activations keep their size through the layers."""
    torch.manual_seed(0)
    network = inception_network()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
    nn.init.normal_(network.fc.weight, 0, 0.02)
    nn.init.normal_(network.fc.bias)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("size", [32, 400])
def test_inception_agrees_with_torch_fidelity(weights_file, size):
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3",
                                 reason="torch-fidelity is not installed")
    network = theirs.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"],
                                                 feature_extractor_weights_path=str(weights_file))
    images = toy_images(2, 3, size)
    pool, logits = network(images)
    features, probabilities = InceptionFeatures(weights_file)(to_unit_range(images))
    assert features.shape == (2, 2048)
    assert probabilities.shape == (2, 1008)
    assert pool.std() > 0.1
    torch.testing.assert_close(features, pool, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(probabilities, logits.softmax(1), rtol=1e-3, atol=1e-6)
    assert (pool[0] - pool[1]).abs().max() > 0.01


def test_inception_shows_grey_images_as_colour(weights_file):
    extractor, images = InceptionFeatures(weights_file), to_unit_range(toy_images(1, 1, 16))
    torch.testing.assert_close(extractor(images)[0], extractor(images.repeat(1, 3, 1, 1))[0])
    assert extractor.dim == extractor(images)[0].shape[1]
    with pytest.raises(UserError, match="2 channels cannot be shown to Inception"):
        extractor(torch.zeros(1, 2, 16, 16))


def test_resize_is_that_of_tensorflow():
    row = torch.tensor([0.0, 4.0, 8.0]).expand(1, 1, 2, 3)
    # 3 pixels to 6: output i lies at i / 2, and past the last pixel it stays
    found = resized(row, 6)
    assert found.shape == (1, 1, 6, 6)
    torch.testing.assert_close(found[0, 0, 3], torch.tensor([0.0, 2, 4, 6, 8, 8]))
    column = torch.tensor([0.0, 3.0]).view(1, 1, 2, 1).expand(1, 1, 2, 3)
    torch.testing.assert_close(resized(column, 6)[0, 0, :, 0], torch.tensor([0.0, 1, 2, 3, 3, 3]))
    assert not torch.allclose(found, functional.interpolate(row, (6, 6), mode="bilinear"))


def test_wrong_inception_weights_are_refused(tmp_path, weights_file):
    with pytest.raises(UserError, match="do not exist. Give the file pt_inception-2015-12-05-6726825d.pth"):
        InceptionFeatures(tmp_path / "none.pth")
    weights = torch.load(weights_file, weights_only=True)
    for change, words in (({"fc.weight": torch.zeros(1000, 2048)}, r"fc.weight is \(1000, 2048\) and should be \(1008"),
                          ({"AuxLogits.fc.bias": torch.zeros(3)}, r"AuxLogits.fc.bias is \(3,\) and should be absent"),
                          (None, "Conv2d_1a_3x3.bn.bias is missing")):
        torch.save({"fc.bias": torch.zeros(1008)} if change is None else weights | change, tmp_path / "wrong.pth")
        with pytest.raises(UserError, match=words):
            InceptionFeatures(tmp_path / "wrong.pth")
    torch.save(["no", "weights"], tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="does not hold the Inception-v3 of FID"):
        InceptionFeatures(tmp_path / "wrong.pth")
    counts = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    torch.save(counts, tmp_path / "old.pth")  # torch before 0.4.1 kept no counts
    assert InceptionFeatures(tmp_path / "old.pth").weights_hash == InceptionFeatures(weights_file).weights_hash


# ------------------------------------------------------------------------- statistics of real images


def toy_set():
    """Images and labels 0, 1 and 3: 30, 20 and 10 images in mixed order."""
    labels = torch.tensor([0, 1, 0, 3, 0, 1] * 10)
    return toy_images(60), labels


def test_real_statistics_are_those_of_each_label(tmp_path, monkeypatch):
    extractor, (images, labels) = evaluator(), toy_set()
    monkeypatch.setattr("metrics.statistics.MAX_KEPT", 30 * extractor.dim)
    monkeypatch.setattr("metrics.statistics.BATCH", 7)
    real = real_statistics(images, labels, extractor, tmp_path)
    features, probabilities = extractor(to_unit_range(images))
    for chosen in (None, [0], [3, 1]):
        rows = torch.isin(labels, torch.tensor(chosen or [0, 1, 3]))
        moments, kept = real.moments_of(chosen), real.features_of(chosen)
        assert moments.count == rows.sum()
        torch.testing.assert_close(moments.mean, features[rows].double().mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(moments.covariance, features[rows].double().T.cov(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(real.probabilities_of(chosen), probabilities[rows].double().mean(0), rtol=1e-5,
                                   atol=1e-6)
        torch.testing.assert_close(kept[0], features[kept[1]], rtol=1e-5, atol=1e-6)
        assert rows[kept[1]].all()
    assert real.row_labels.bincount().tolist() == [15, 10, 0, 5]  # 30 of 60, each label its share
    with pytest.raises(UserError, match="none of class 2"):
        real.moments_of([0, 2])


def test_few_images_of_many_classes_are_kept_as_they_are(tmp_path, monkeypatch):
    """Of n images with F features a label, min(n F numbers of 4 bytes, F x F of 8) are kept, not F x F for all."""
    extractor = evaluator()
    dim = extractor.dim
    images, labels = toy_images(40 + 2 * dim + 8), torch.tensor([0] * 20 + [1] * 20 + [2] * (2 * dim + 8))
    real = real_statistics(images, labels, extractor, tmp_path)
    assert [tuple(own.shape) for own in real.moments[:2]] == [(20, dim)] * 2
    assert isinstance(real.moments[2], Moments) and real.moments[2].count == 2 * dim + 8
    again = real_statistics(images, labels, extractor, tmp_path)
    features, _ = extractor(to_unit_range(images))
    for own in (real, again):
        torch.testing.assert_close(own.moments_of([0, 2]).covariance, features[labels != 1].double().T.cov(), rtol=1e-4,
                                   atol=1e-6)
        assert own.moments_of([1]).count == 20


def test_real_statistics_come_from_the_cache(tmp_path, monkeypatch):
    extractor, (images, labels) = evaluator(), toy_set()
    first = real_statistics(images, labels, extractor, tmp_path)
    (path,) = (tmp_path / "statistics").iterdir()
    assert path.name.endswith(f"_toy_evaluator-{hash_of(extractor.classifier)[:16]}.npz")
    calls = []
    monkeypatch.setattr(ClassifierFeatures, "__call__", lambda self, x: calls.append(x) or 1 / 0)
    again = real_statistics(images.numpy(), labels.numpy(), evaluator(), tmp_path)
    assert not calls
    for name in ("labels", "mean_probabilities", "rows", "row_labels", "features"):
        assert torch.equal(getattr(again, name), getattr(first, name))
    assert torch.equal(again.moments_of([1]).covariance, first.moments_of([1]).covariance)
    changed = images.clone()
    changed[0, 0, 0, 0] ^= 1
    for other in ((changed, labels, extractor), (images, labels.flip(0), extractor), (images, labels, evaluator(1))):
        with pytest.raises(ZeroDivisionError):  # other pixels, labels or weights are computed
            real_statistics(*other, tmp_path)


def planted(path, fault):
    """Damage a cache file."""
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif fault == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "pickle":
        np.savez(path, key=np.array([{"a": 1}], dtype=object))
    elif fault == "other key":
        np.savez(path, key=np.array("1 other data"))
    else:
        with np.load(path) as file:
            np.savez(path, **{name: file[name] for name in file.files if name != "features"})


@pytest.mark.parametrize("fault", ["cut", "flipped", "empty", "pickle", "other key", "missing array"])
def test_a_damaged_cache_is_computed_again(tmp_path, capsys, fault):
    extractor, (images, labels) = evaluator(), toy_set()
    first = real_statistics(images, labels, extractor, tmp_path)
    (path,) = (tmp_path / "statistics").iterdir()
    good = path.stat().st_size
    planted(path, fault)
    again = real_statistics(images, labels, extractor, tmp_path)
    assert torch.equal(again.features, first.features)
    assert ("is damaged; it is computed again" in capsys.readouterr().err) == (fault != "other key")
    assert path.stat().st_size == good
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    (tmp_path / "statistics").write_text("a file where the folder should be")
    images, labels = toy_set()
    real = real_statistics(images, labels, evaluator(), tmp_path)
    assert real.moments_of().count == 60
    assert "could not be written" in capsys.readouterr().err
