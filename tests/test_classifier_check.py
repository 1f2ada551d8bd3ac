"""The pre-flight check: each wrong way of loading a good classifier is found and named."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from classifiers import FrozenClassifier, build, load_classifier
from classifiers.check import (
    calibration_error,
    check_classifier,
    description,
    held_out_images,
    kept_preflight,
    main,
    preflight,
    unseen_images,
)
from classifiers.diagnosis import batch_size, interval, logits_of, rewrapped
from classifiers.train import Fit, TrainSettings, train_classifier
from config import make_config
from utils import DATASETS, UserError, load_torch, run_main, save_torch

ROOT = Path(__file__).parents[1]
COLOURS = torch.tensor([[0.9, 0.2, 0.1], [0.2, 0.8, 0.3], [0.1, 0.3, 0.9], [0.7, 0.7, 0.1]])


class Nearest(nn.Module):
    """Logits by the distance of the mean colour from four colours: right only on images loaded as it wants them."""

    def __init__(self, mean=0.45, std=0.25):
        super().__init__()
        self.register_buffer("colours", (COLOURS - mean) / std)
        self.scale = 5 * std

    def forward(self, x):
        return -((x.mean((2, 3))[:, None] - self.colours) * self.scale).square().sum(2) * 10


@pytest.fixture(scope="module")
def coloured():
    """uint8 images (200, 3, 16, 16) of four colours under noise, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    images = COLOURS[labels][:, :, None, None] + 0.1 * torch.randn(200, 3, 16, 16, generator=generator)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), labels


def good(model=None):
    return FrozenClassifier(model or Nearest(), 4, 3, 0, [0.45] * 3, [0.25] * 3)


def test_a_good_classifier_passes(coloured):
    check = check_classifier(good(), *coloured)
    assert check.problems == [] and check.accuracy == 1.0 and check.images == 200
    assert check.least == pytest.approx(0.25 + 0.3 * 0.75)
    assert 0.25 < check.noise_confidence < 1 and check.gradient_norm > 0
    assert "100.0% (95% interval 98.1% to 100.0%) of 200 held-out images" in str(check) and check.as_dict()["passed"]


def test_what_was_found_on_loading_is_said_by_the_check(coloured):
    frozen = good()
    frozen.notes = ["taken are the weights ema"]
    assert str(check_classifier(frozen, *coloured)).splitlines()[-1] == "taken are the weights ema"


def test_a_wrong_channel_order_is_named(coloured):
    check = check_classifier(rewrapped(good(), bgr=True), *coloured)
    assert check.accuracy < 0.8 and len(check.problems) == 1
    assert "likeliest cause is the channel order: with --no-C_bgr it is 100.0%" in check.problems[0]


def test_a_network_for_the_other_range(coloured):
    """A network trained on [-1, 1] and given [0, 1]: the flags that are named mend it."""
    wrong = FrozenClassifier(Nearest(mean=0.5, std=0.5), 4, 3, 0, [0.0] * 3, [1.0] * 3)
    check = check_classifier(wrong, *coloured)
    assert "likeliest cause is the range: with --C_mean 0 0 0 --C_std 1 1 1 --C_range -1 1" in check.problems[0]


def test_a_wrong_class_order_is_named_with_its_map(coloured):
    frozen = good()
    frozen.labels = (1, 0, 2, 3)
    check = check_classifier(frozen, *coloured)
    assert check.accuracy == 0.5
    assert "the class order: with --C_class_map 0 1 2 3 it is 100.0%" in check.problems[0]


def test_two_faults_at_once(coloured):
    frozen = rewrapped(good(), bgr=True)
    frozen.labels = (1, 0, 2, 3)
    check = check_classifier(frozen, *coloured)
    assert "channel order and class order: with --no-C_bgr --C_class_map 0 1 2 3" in check.problems[0]


def test_classes_that_the_classifier_has_not_are_left_out(coloured):
    frozen = good()
    frozen.labels = (0, 1, -1, 3)
    check = check_classifier(frozen, *coloured)
    assert check.images == 150 and check.accuracy == 1.0
    frozen.labels = (-1,) * 4
    with pytest.raises(UserError, match="no image to check the classifier on"):
        check_classifier(frozen, *coloured)


def test_an_untrained_classifier_is_not_explained_away(coloured, monkeypatch):
    monkeypatch.setattr("classifiers.diagnosis.SIDES", {3: (32,)})
    torch.manual_seed(0)
    frozen = good(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)))
    check = check_classifier(frozen, torch.randint(0, 256, (200, 3, 16, 16), dtype=torch.uint8), coloured[1])
    assert "is it trained, and on these classes" in check.problems[0]


@pytest.mark.parametrize("better, advised", [(0.45, False), (0.5, True)])
def test_flags_that_would_not_pass_either_are_not_advised(coloured, monkeypatch, better, advised):
    """Of four classes 47.5% must be right."""
    monkeypatch.setattr("classifiers.check.likeliest_cause", lambda *_: (f"with --C_bgr it is {better:.1%}", better))
    frozen = rewrapped(good(), bgr=True)
    frozen.labels = (1, 2, 3, 0)
    check = check_classifier(frozen, *coloured)
    assert check.accuracy < 0.25 and ("--C_bgr" in check.problems[0]) == advised


class Spoilt(nn.Module):
    """The good network with one fault in how it behaves."""

    def __init__(self, fault):
        super().__init__()
        self.good, self.fault = Nearest(), fault

    def forward(self, x):
        logits = self.good(x)
        return {"random": lambda: logits + 20 * torch.randn_like(logits),
                "batch": lambda: logits - 3 * logits.mean(0),
                "softmax": lambda: (logits / 100).softmax(1),
                "steps": lambda: logits.detach().clone(),
                "nan": lambda: logits * float("nan")}[self.fault]()


@pytest.mark.parametrize("fault, said", [
    ("random", "differently each time"), ("batch", "depends on the others in the batch"),
    ("softmax", "probabilities instead of logits"), ("steps", "no usable gradient"), ("nan", "not finite numbers")])
def test_what_no_classifier_to_probe_may_do(coloured, fault, said):
    check = check_classifier(good(Spoilt(fault)), *coloured)
    assert len(check.problems) == 1 and said in check.problems[0]


def test_the_model_card_sets_the_bar(coloured, monkeypatch):
    """70 % right is enough for four classes, but not where the card says 99 %."""
    monkeypatch.setattr("classifiers.diagnosis.SIDES", {3: (32,)})
    images, labels = coloured
    shown = labels.clone()
    shown[:60] = (shown[:60] + 1) % 4
    assert check_classifier(good(), images, shown).problems == []
    frozen = good()
    frozen.card = {"dataset": "colours", "clean_accuracy": {"per_class": dict.fromkeys("abcd", 0.99)}}
    check = check_classifier(frozen, images, shown, "colours")
    assert check.least == pytest.approx(0.94) and "its model card says 99.0%" in check.problems[0]
    # a card for other data says nothing of this
    assert check_classifier(frozen, images, shown, "other").problems == []


def test_calibration_error_by_hand():
    """Two bins: 0.9 confident and always right, 0.6 confident and right half of the time."""
    confidence = torch.tensor([0.9, 0.9, 0.6, 0.6])
    assert calibration_error(confidence, torch.tensor([True, True, True, False])) == pytest.approx(0.1, abs=1e-6)


def test_no_image_of_the_unseen_class_is_used(tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    with h5py.File(folder / "train.h5", "w") as file:
        file["images"] = np.arange(100, dtype=np.uint8).repeat(256).reshape(100, 1, 16, 16)
        file["labels"] = np.arange(100) % 10
        file.attrs["classes"] = list("0123456789")
    images, labels, split = held_out_images(DATASETS["digits"], tmp_path, [7, 2], 50)
    assert split == "train" and len(images) == 50 and not {2, 7} & set(labels.tolist())
    assert (images[:, 0, 0, 0].long() % 10 == labels).all()


# ------------------------------------------------------------------------------- how much evidence


def some(coloured, n, classes=(0, 1, 2, 3)):
    """The first n images of these classes, and their labels."""
    images, labels = coloured
    rows = torch.isin(labels, torch.tensor(classes)).nonzero().flatten()[:n]
    return images[rows], labels[rows]


class Always(nn.Module):
    """Gives label 1 whatever it is shown, with a gradient all the same."""

    def forward(self, x):
        return 0.1 * Nearest()(x).tanh() + torch.tensor([0.0, 50.0, 0.0, 0.0])


def test_the_interval_is_wilsons():
    """Wilson (1927): (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), for 8 of 10."""
    z, n, p = 1.959964, 10, 0.8
    half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert interval(8, 10) == pytest.approx([(p + z**2 / (2 * n) + sign * half) / (1 + z**2 / n) for sign in (-1, 1)])


@pytest.mark.parametrize("n, labels_off", [(4, 1), (1, 0), (2, 0)])
def test_a_few_images_are_no_evidence(coloured, n, labels_off):
    images, labels = some(coloured, n)
    check = check_classifier(good(), images, (labels + labels_off) % 4)
    assert len(check.problems) == 1 and "there is too little evidence to tell" in check.problems[0]
    assert "--C_class_map" not in check.problems[0]


def test_one_answer_to_all_is_no_evidence(coloured):
    """With one class seen of two, a network that always answers it is right each time."""
    frozen = FrozenClassifier(Always(), 4, 3, 0, [0.45] * 3, [0.25] * 3)
    seen = some(coloured, 50, [1])
    check = check_classifier(frozen, *seen)
    assert check.accuracy == 1.0 and check.commonest == 1.0 and check.chance == 1.0
    assert "too little evidence to tell" in check.problems[0]
    # images of the unseen classes in the test split are evidence: against this network, and for a good one
    for network, said in ((frozen, "of 50 test images of the unseen class c, 0.0% get its label 2"), (good(), "")):
        check = check_classifier(network, *seen, unseen=[2], unseen_shown=some(coloured, 50, [2]), names="abcd")
        assert said in " ".join(check.problems) and bool(check.problems) == bool(said)


@pytest.mark.parametrize("seen", range(4))
@pytest.mark.parametrize("shift", [0.1, 0.4])
def test_no_advice_from_one_seen_class(coloured, seen, shift):
    """A wrongly loaded one may be right on one class by chance, and any class map would explain that it is not."""
    wrong = FrozenClassifier(Nearest(), 4, 3, 0, [shift] * 3, [0.25] * 3, bgr=True)
    check = check_classifier(wrong, *some(coloured, 50, [seen]))
    assert check.problems and not any("--C_" in problem for problem in check.problems)


def test_a_card_is_evidence(coloured):
    frozen = good()
    frozen.card = {"dataset": "colours", "clean_accuracy": {"per_class": dict.fromkeys("abcd", 0.99)}}
    assert check_classifier(frozen, *some(coloured, 30, [1]), "colours").problems == []


# --------------------------------------------------------------------------- the label of the unseen class


def test_a_wrong_label_of_the_unseen_class_is_found_by_its_test_images(coloured):
    frozen = FrozenClassifier(Nearest(), 4, 3, 0, [0.45] * 3, [0.25] * 3)
    seen, shown = some(coloured, 100, [0, 1]), some(coloured, 40, [2])
    frozen.labels = (0, 1, 3)
    check = check_classifier(frozen, *seen, unseen=[2], unseen_shown=shown, names=("a", "b", "y"))
    assert check.accuracy == 1.0 and check.unseen[0]["accuracy"] == 0.0
    assert "0.0% get its label 3 and 100.0% get 2, which is likely the right one: --C_class_map 0 1 2." in \
        check.problems[0]
    frozen.labels = (0, 1, 2)
    check = check_classifier(frozen, *seen, unseen=[2], unseen_shown=shown, names=("a", "b", "y"))
    assert check.problems == []
    assert "unseen class y: label 2, given to 100.0% (91.2% to 100.0%) of 40 test images" in str(check)


class Ignorant(Nearest):
    """Was trained without class 2, which it takes for class 3."""

    def forward(self, x):
        logits = super().forward(x)
        return torch.stack((logits[:, 0], logits[:, 1], logits[:, 2] - 1e4, logits[:, 2:].max(1).values), 1)


def test_a_classifier_that_was_trained_without_the_unseen_class(coloured):
    frozen = FrozenClassifier(Ignorant(), 4, 3, 0, [0.45] * 3, [0.25] * 3)
    seen = some(coloured, 120, [0, 1, 3])
    check = check_classifier(frozen, *seen, unseen=[2], unseen_shown=some(coloured, 40, [2]), names="abcd")
    assert "trained without that class, or on other images, or its label is wrong" in check.problems[0]
    # without images of it there is no saying, and the check says that
    check = check_classifier(frozen, *seen, unseen=[2], names="abcd")
    assert check.problems == [] and "unseen class c: label 2, not verified, since the test split holds no" in str(check)
    assert "no image made the label of c likelier than" in check.notes[0]


def test_the_advised_map_says_which_label_is_a_guess(coloured):
    frozen = good()
    frozen.labels = (1, 2, 3, 0)  # off by one
    seen = some(coloured, 150, [0, 1, 2])
    check = check_classifier(frozen, *seen, unseen=[3], names="abcd")
    assert "--C_class_map 0 1 2 3 it is 100.0% (its label of d is a guess, since no image of that" in check.problems[0]
    check = check_classifier(frozen, *seen, unseen=[3], unseen_shown=some(coloured, 50, [3]), names="abcd")
    assert "--C_class_map 0 1 2 3 it is 100.0%" in check.problems[0] and "a guess" not in check.problems[0]


# ---------------------------------------------------------------------- two causes, foreign code, bounds


class Sized(nn.Module):
    """Right on images of 32 x 32 that are normalised its own way alone, as a network trained small is."""

    def __init__(self):
        super().__init__()
        self.good = Nearest(0.485, 0.225)

    def forward(self, x):
        assert x.shape[-1] != 128, "foreign code may refuse in any way"
        logits = self.good(x)
        # at other sizes it cannot tell the classes of a pair apart
        return logits if x.shape[-1] == 32 else logits.view(-1, 2, 2).mean(2).repeat_interleave(2, 1)


def test_two_causes_are_found_together(coloured):
    frozen = FrozenClassifier(Sized(), 4, 3, 224, [0.0] * 3, [1.0] * 3)
    images, labels = coloured
    check = check_classifier(frozen, images[:120], labels[:120])
    said = check.problems[0]
    assert " and image size: with --C_mean" in said and "--C_size 32 it is 100.0%" in said
    assert check_classifier(rewrapped(frozen, resolution=32), images[:120], labels[:120]).accuracy < 0.9


def test_the_hints_of_the_file_are_tried(coloured):
    frozen = FrozenClassifier(Nearest(0.8, 0.1), 4, 3, 0, [0.0] * 3, [1.0] * 3)
    frozen.hinted = {"mean": [0.8] * 3, "std": [0.1] * 3}
    check = check_classifier(frozen, *coloured)
    assert "the normalisation, which its file names: with --C_mean 0.8 0.8 0.8 --C_std 0.1 0.1 0.1" in check.problems[0]


def test_advice_names_the_flags_of_the_judge(coloured):
    check = check_classifier(rewrapped(good(), bgr=True), *coloured, role="evaluator")
    assert "with --no-evaluator_bgr it is 100.0%" in check.problems[0]


def test_time_and_memory_are_bounded_and_told(coloured, monkeypatch):
    assert batch_size(good(), coloured[0]) == 250 and batch_size(rewrapped(good(), resolution=224), coloured[0]) == 20
    sizes = []
    frozen = rewrapped(good(), resolution=224)
    frozen.model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    assert len(logits_of(frozen, coloured[0][:50])) == 50 and sizes == [20, 20, 10]
    assert len(logits_of(frozen, coloured[0][:50], seconds=0)) == 20
    monkeypatch.setattr("classifiers.check.SECONDS", 0.0)
    check = check_classifier(rewrapped(good(), resolution=96), *coloured)
    assert check.images == 113 and "113 of 200 images were classified in the 0 s that the check takes" in str(check)


def test_a_sigmoid_that_was_not_undone_is_named(coloured):
    class Sigmoid(Nearest):
        def forward(self, x):
            return super().forward(x).sigmoid()

    assert "a sigmoid of each instead of logits" in check_classifier(good(Sigmoid()), *coloured).problems[0]


def test_what_was_found_in_four_lines():
    frozen = FrozenClassifier(Nearest(), 4, 3, 28, [0.5] * 3, [0.25] * 3, "resnet8")
    frozen.notes, frozen.hinted = ["taken are the weights ema", "it answers with logits", "passed over: x"], \
        {"mean": [1.0]}
    assert description(frozen, "c.pt").splitlines() == [
        "c.pt: resnet8, 4 classes", "weights: taken are the weights ema; passed over: x",
        "images: 3 channel(s), 28 x 28, from 0 to 1, less mean 0.5 0.5 0.5, by std 0.25 0.25 0.25", "answers: logits",
        "its file also says, and is not believed: mean [1.0]"]


# ----------------------------------------------------------------------------- which images are shown


def coloured_set(root, labels, test_labels, pixels=None):
    """A data root with 'digits' of these labels; the image of place i is grey i."""
    (root / "digits").mkdir()
    for split, part in (("train", labels), ("test", test_labels)):
        with h5py.File(root / "digits" / f"{split}.h5", "w") as file:
            file["images"] = np.arange(len(part), dtype=np.uint8).repeat(256).reshape(len(part), 1, 16, 16)
            file["labels"] = np.array(part, dtype=np.int64)
            file.attrs["classes"] = list("0123456789")
    return root


def test_a_small_or_empty_test_split_is_filled_up_with_training_images(tmp_path):
    spec = DATASETS["digits"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    coloured_set(tmp_path / "a", [0, 1, 2] * 8, [])
    images, labels, split = held_out_images(spec, tmp_path / "a", [2], 100)
    assert split == "train" and labels.bincount().tolist() == [8, 8]
    coloured_set(tmp_path / "b", [0, 1, 2] * 80, [0, 1, 2] * 2)
    images, labels, split = held_out_images(spec, tmp_path / "b", [2], 100)
    assert split == "test and train" and len(images) == 100 and labels.bincount().tolist() == [50, 50]
    shown, shown_labels = unseen_images(spec, tmp_path / "b", [2])
    assert shown_labels.tolist() == [2, 2] and sorted(shown[:, 0, 0, 0].tolist()) == [2, 5]
    assert len(unseen_images(spec, tmp_path / "a", [2])[0]) == len(unseen_images(spec, tmp_path / "b", [])[0]) == 0


def test_classes_are_shown_alike(tmp_path):
    coloured_set(tmp_path, [0], [0] * 200 + [1] * 30 + [2] * 20)
    _, labels, _ = held_out_images(DATASETS["digits"], tmp_path, [2], 50)
    assert labels.bincount().tolist() == [25, 25]


def test_the_check_of_a_judge_is_kept_by_hash(tmp_path, monkeypatch):
    coloured_set(tmp_path, [0], list(range(10)) * 20)
    config = make_config(dataset="digits", new_class=[7], data_root=str(tmp_path), evaluator="e.pt")
    torch.manual_seed(0)
    judge = FrozenClassifier(build("smallcnn", 10, 1), 10, 1, 16, [0.5], [0.5])
    first = kept_preflight(judge, config, DATASETS["digits"], tmp_path)
    assert first == preflight(judge, config, DATASETS["digits"], role="evaluator") and first.problems
    monkeypatch.setattr("classifiers.check.check_classifier", lambda *_: 1 / 0)
    assert kept_preflight(judge, config, DATASETS["digits"], tmp_path) == first
    for other in (rewrapped(judge, mean=[0.4]), FrozenClassifier(build("smallcnn", 10, 1), 10, 1, 16, [0.5], [0.5])):
        with pytest.raises(ZeroDivisionError):
            kept_preflight(other, config, DATASETS["digits"], tmp_path)


# ------------------------------------------------------------------------------ the real commands


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with the real digits, a classifier trained on them in seconds, and its bare weights."""
    root = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, str(ROOT / "scripts/prepare_data.py"), "digits", "--data_root", str(root)],
                   check=True, capture_output=True)
    frozen, _ = train_classifier(TrainSettings(dataset="digits", epochs=4, out=str(root / "c.pt"), num_attacked=50,
                                               data_root=str(root)))
    save_torch(root / "bare.pt", frozen.model.state_dict())
    return root


def command(digits, *flags):
    return subprocess.run([sys.executable, "-m", "classifiers.check", "--dataset", "digits", "--data_root", str(digits),
                           *flags], capture_output=True, text=True, cwd=ROOT)


def test_the_command_passes_a_checkpoint_and_names_what_bare_weights_lack(digits):
    done = command(digits, "--C_path", str(digits / "c.pt"))
    assert done.returncode == 0 and done.stdout.endswith("passed\n"), done.stderr
    refused = command(digits, "--C_path", str(digits / "bare.pt"), "--C_range", "0", "255")
    assert refused.returncode == 2 and "likeliest cause is the normalisation: with --C_mean 0.17" in refused.stderr
    # the flags that it names mend it
    flags = refused.stderr.split(" with ")[1].split(" it is ")[0].split()
    assert command(digits, "--C_path", str(digits / "bare.pt"), *flags).returncode == 0


@pytest.mark.parametrize("mean, std, cause", [
    (0.0, 1.0, "the normalisation: with --C_mean 0.17"),
    (0.824, -0.309, "the range, black for white: with --C_mean 0.8"),
    (0.1757 / 255, 0.3086 / 255, "the normalisation: with --C_mean 0.17")])
def test_a_wrong_normalisation_is_named(digits, mean, std, cause):
    images, labels, _ = held_out_images(DATASETS["digits"], digits, [7], 200)
    frozen = load_classifier(digits / "c.pt")
    frozen.card = {}
    check = check_classifier(rewrapped(frozen, mean=[mean], std=[std]), images, labels, "digits")
    assert len(check.problems) == 1 and cause in check.problems[0], check.problems
    assert check_classifier(frozen, images, labels, "digits").problems == []


def test_flags_against_what_the_file_says(digits):
    refused = command(digits, "--C_path", str(digits / "c.pt"), "--C_range", "1", "0")
    assert refused.returncode == 2 and "the flags given: with --C_mean" in refused.stderr


@pytest.mark.parametrize("flags, said", [
    (["--num", "0"], "--num is 0"), (["--C_path", "gone.pt"], "does not exist"), (["--C_sise", "8"], "did you mean"),
    (["--C_size", "-1"], "--C_size is -1"), ([], "no classifier to probe was given")])
def test_bad_flags_get_a_sentence(digits, flags, said):
    done = command(digits, *flags)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and said in done.stderr
    assert done.stderr.count("\n") == 1


def spoil(name, path):
    """Damage the checkpoint at `path` in one way."""
    file = load_torch(path)
    weights = file["state_dict"]
    if name == "nan":
        weights["linear.bias"][3] = float("nan")
    elif name == "keys":
        weights["head.bias"] = weights.pop("linear.bias")
    elif name == "channels":
        weights["convs.0.weight"], file["channels"] = torch.zeros(32, 4, 3, 3), 4
    elif name == "code":
        file["card"] = Path("a")
    save_torch(path, file)
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize("name, said", [
    ("nan", "holds NaN or infinite weights in linear.bias; train it again"),
    ("keys", "linear.bias is missing (with 0 more) and head.bias is unexpected (with 0 more)"),
    ("channels", "takes images of 4 channels; only 1 and 3 are supported"),
    ("truncated", "is truncated or no file of torch.save"),
    ("code", "could execute what it holds. If you trust where it came from, give --C_trust")])
def test_a_damaged_checkpoint_gets_a_sentence_and_exit_code_2(digits, tmp_path, monkeypatch, capsys, name, said):
    path = tmp_path / "c.pt"
    path.write_bytes((digits / "c.pt").read_bytes())
    spoil(name, path)
    flags = ["--dataset", "digits", "--data_root", str(digits), "--C_path", str(path)]
    monkeypatch.setattr(sys, "argv", ["check", *flags])
    with pytest.raises(SystemExit) as stopped:
        run_main(main)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1
    assert said in message, message


# ---------------------------------------------------------------- training one, stopped and resumed


def test_training_goes_on_where_it_was_stopped(digits, tmp_path, monkeypatch):
    settings = TrainSettings(dataset="digits", arch="smallcnn", epochs=3, robust="l2", eps=0.5, steps=1, ema_decay=0.9,
                             out=str(tmp_path / "whole.pt"), num_attacked=20, data_root=str(digits))
    whole, card = train_classifier(settings)
    assert card["ema_decay"] == 0.9 and card["parameters"] == sum(p.numel() for p in whole.model.parameters())
    parts = replace(settings, out=str(tmp_path / "parts.pt"))
    advance, taken = Fit.advance, []

    def stop_in_the_second_epoch(self):
        if len(taken) == 30:
            os.kill(os.getpid(), signal.SIGTERM)
        taken.append(1)
        return advance(self)

    monkeypatch.setattr(Fit, "advance", stop_in_the_second_epoch)
    with pytest.raises(SystemExit) as stopped:
        train_classifier(parts)
    assert stopped.value.code == 143 and not (tmp_path / "parts.pt").exists()
    with pytest.raises(UserError, match="unfinished training with --lr 0.1, now 0.2"):
        train_classifier(replace(parts, lr=0.2))
    resumed, _ = train_classifier(parts)
    assert len(taken) == 3 * (1437 // 64) and not (tmp_path / "parts.pt.progress").exists()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
