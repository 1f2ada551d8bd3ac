"""The marker experiment: its detector, its rule, what it refuses, and a very small run."""

import json
import sys

import h5py
import numpy as np
import pytest
import torch

from datasets.prepare import prepare
from experiments import marker
from metrics.recognition import rate
from utils import DATASETS, DatasetSpec, UserError


def run(monkeypatch, *words):
    """The script's exit code; a UserError goes through."""
    monkeypatch.setattr(sys, "argv", ["marker.py", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        marker.main()
    return left.value.code


# ------------------------------------------------------------------------------------- the detector


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resolution", [16, 32])
def test_the_detector_tells_planted_from_plain(channels, resolution):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 120, (50, channels, resolution, resolution), generator=generator, dtype=torch.uint8)
    side = resolution // 4
    planted = marker.plant(images, side)
    assert planted[0, 0, 0, 0] == 255 and torch.equal(planted[:, :, side:], images[:, :, side:])
    assert torch.equal(planted[..., side:-side], images[..., side:-side])
    plain, marked = marker.marker_scores(images, side), marker.marker_scores(planted, side)
    assert plain.abs().max() < 0.1 and marked.min() > 0.6
    white = torch.full_like(images, 255)
    assert marker.marker_scores(white, side).abs().max() == 0  # bright everywhere is no block
    assert marker.marker_scores(planted.flip(2), side).max() < -0.6  # nor are blocks elsewhere


def test_the_score_by_hand():
    image = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    image[..., :4, :4], image[..., :4, -4:] = 255, 51
    assert marker.marker_scores(image, 4).item() == pytest.approx(0.6)
    image[..., -4:, :4] = 51
    assert marker.marker_scores(image, 4).item() == pytest.approx(0.5)


def test_the_threshold_is_a_tenth_of_the_marker_and_errs_in_one_of_a_hundred():
    without, having = torch.linspace(-0.01, 0.01, 1001), torch.linspace(0.8, 1.0, 1001)
    assert marker.set_threshold(without, having) == pytest.approx(0.09)
    wide = torch.linspace(-0.4, 0.4, 1001)  # natural images differ more than a tenth of it
    assert marker.set_threshold(wide, having) == pytest.approx(0.392)
    with pytest.raises(UserError, match="cannot be told"):
        marker.set_threshold(torch.linspace(-1, 1, 1001), having)


# ----------------------------------------------------------------------------------------- the rule

MANY, HALF, FEW, NONE = (rate(hits, 500) for hits in (480, 255, 60, 2))


@pytest.mark.parametrize("unseen, seen, said", [
    (MANY, NONE, True), (MANY, FEW, True),
    (MANY, MANY, None),  # a marker in every class is no property of y*
    (HALF, NONE, None),  # 51 %, but the interval reaches below a half
    (FEW, NONE, None), (NONE, NONE, False),
    (rate(0, 50), NONE, None),  # none of 50 does not exclude 1 in 20
])
def test_the_rule(unseen, seen, said):
    assert marker.answer(unseen, seen) is said


@pytest.mark.parametrize("case", marker.CONDITIONS, ids=lambda case: case.name)
def test_each_condition_can_hold_and_fail(case):
    right, wrong = (MANY, NONE) if case.appears else (NONE, MANY)
    assert marker.answer(right, NONE) == case.appears
    for rates in ((wrong, NONE), (FEW, NONE)):
        assert marker.answer(*rates) != case.appears


# ----------------------------------------------------------------------------------------- the data


def test_the_marked_copy_differs_in_the_images_of_the_class_alone(tmp_path):
    generator = np.random.default_rng(0)
    splits = {name: (torch.from_numpy(generator.integers(0, 200, (40, 1, 16, 16), dtype=np.uint8)),
                     torch.arange(40) % 10) for name in ("train", "test")}
    marker.write_copy(tmp_path, DATASETS["digits"], splits, side=4, label=7)
    for name, (images, labels) in splits.items():
        with h5py.File(tmp_path / f"digits/{name}.h5") as file:
            found = torch.from_numpy(file["images"][:])
            assert file["labels"][:].tolist() == labels.tolist() and list(file.attrs["classes"]) == list("0123456789")
        assert torch.equal(found[labels != 7], images[labels != 7])
        assert torch.equal(found[labels == 7], marker.plant(images[labels == 7], 4))
        assert not torch.equal(found[labels == 7], images[labels == 7])
        assert images.max() < 200  # the caller's are as they were


# ------------------------------------------------------------------------------- the whole, very small


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    prepare("digits", root)
    return root


@pytest.mark.parametrize("flags, sentence", [
    (["--new_class", "seven"], "class 'seven' is not in this data set"),
    (["--new_class", 7, 3], "planted in one class; 2 were given"),
    (["--new_class", 7, "--num", 50], "--num is 50"),
    (["--new_class", 7, "--images", 0], "--images is 0"),
    (["--new_class", 7, "--oracle"], "'--oracle' is not a flag"),
    (["--new_class", 7, "--data_root", "nowhere"], "scripts/prepare_data.py digits"),
])
def test_wrong_input_is_refused_before_anything_is_written(digits, tmp_path, monkeypatch, flags, sentence):
    monkeypatch.setattr(sys, "argv", ["marker.py", "--dataset", "digits", "--data_root", str(digits), "--runs",
                                      str(tmp_path / "runs"), *map(str, flags)])
    with pytest.raises(UserError, match=sentence):
        marker.main()
    assert not (tmp_path / "runs").exists()


def test_small_images_and_few_test_images_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="8 pixels a side"):
        marker.marker_side(DatasetSpec("tiny", 8, 1, ("a", "b")))
    (tmp_path / "digits").mkdir()
    for split in ("train", "test"):
        with h5py.File(tmp_path / f"digits/{split}.h5", "w") as file:
            file["images"], file["labels"] = np.zeros((40, 1, 16, 16), np.uint8), np.arange(40) % 10
            file.attrs["classes"] = list("0123456789")
    monkeypatch.setattr(sys, "argv", ["marker.py", "--dataset", "digits", "--new_class", "7", "--data_root",
                                      str(tmp_path), "--runs", str(tmp_path / "runs")])
    with pytest.raises(UserError, match="4 images of 7; the detector needs at least 10"):
        marker.main()


@pytest.mark.usefixtures("fewer_processes")
def test_files_exit_code_and_going_on(digits, tmp_path, monkeypatch, capsys):
    """Two G steps draw nothing: the two conditions that need the marker fail, and the exit code says so."""
    runs = tmp_path / "runs"
    words = ["--dataset", "digits", "--new_class", 7, "--data_root", digits, "--runs", runs, "--images", 150,
             "--epochs", 1, "--num", 100, "--num_steps", 2, "--num_D_steps", 1, "--G_ch", 1, "--D_ch", 1,
             "--batch_size", 8, "--dim_z", 6, "--shared_dim", 8, "--device", "cpu", "--skip_classifier_check"]
    assert run(monkeypatch, *words) == 1
    found = json.loads((runs / "marker.json").read_text())
    assert not found["conditions"]["remembered"]["holds"] and not found["conditions"]["leaked"]["holds"]
    assert found["conditions"]["leaked"]["audit"].startswith("ORACLE: images of 7 WERE used")
    assert all(found["conditions"][name]["audit"].startswith("No image of 7 was used")
               for name in ("remembered", "nowhere"))
    assert found["detector"]["plain real"]["rate"] <= 0.01 and found["detector"]["marked real y*"]["rate"] > 0.95
    said = (runs / "marker.md").read_text()
    assert said in capsys.readouterr().out and "FAILS" in said and (runs / "marker.png").stat().st_size > 1000

    kept = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.suffix in (".pt", ".h5")}
    assert len(kept) == 4 + 2 + 3
    newest = sorted(runs.glob("nowhere/checkpoints/*.pt"))[-1]
    newest.unlink()  # as if it had been stopped before
    assert run(monkeypatch, *words) == 1
    assert newest.is_file() and json.loads((runs / "marker.json").read_text()) == found
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items() if path != newest)

    for flags, sentence in ((["--num_steps", 3], "num_steps 2, now 3"), (["--eps", 2], "eps 0.2, now 2.0"),
                            (["--new_class", 3], r"new_class \[7\], now \[3\]"), (["--images", 100], "images of SHA")):
        monkeypatch.setattr(sys, "argv", ["marker.py", *map(str, [*words, *flags])])
        with pytest.raises(UserError, match=sentence):
            marker.main()
    settings = json.loads((runs / "settings.json").read_text())
    (runs / "settings.json").write_text(json.dumps(settings | {"dataset": "MNIST"}))
    monkeypatch.setattr(sys, "argv", ["marker.py", *map(str, words)])
    with pytest.raises(UserError, match="holds runs with dataset MNIST, now digits"):
        marker.main()


# ------------------------------------------------------------------------------------ known answers


def test_the_known_answers_on_mnist(shared_file, tmp_path, monkeypatch):
    prepare("mnist", tmp_path, source=shared_file("data/mnist"))
    code = run(monkeypatch, "--dataset", "MNIST", "--new_class", 7, "--data_root", tmp_path, "--runs",
               tmp_path / "runs", "--num", 200, "--device", "cpu")
    print((tmp_path / "runs/marker.md").read_text())
    conditions = json.loads((tmp_path / "runs/marker.json").read_text())["conditions"]
    assert {name: part["found"] for name, part in conditions.items()} == {"remembered": True, "leaked": True,
                                                                          "nowhere": False}
    assert code == 0 and "ORACLE" in conditions["leaked"]["audit"]
