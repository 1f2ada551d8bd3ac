"""evaluate.py and its protocols: closed forms, planted faults, the same numbers whoever drew the images."""

import dataclasses
import json
import math
import re
import shutil
import sys

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

import evaluate
import utils
from BigGAN import make_generator
from classifiers import build, load_classifier
from classifiers.check import require_passed
from datasets.attributes import Attribute, write_attributes
from datasets.sources import sample_sha256
from evaluate import judges_in
from methods import find_method, make_config
from metrics import presence, protocols, statistics
from metrics.recognition import confusion, rate, rate_difference
from metrics.registry import METRICS, find_metric, register
from metrics.report import number
from sample import save_npz
from sampler import Sampler
from utils import DATASETS, UserError, load_checkpoint, save_checkpoint, save_torch

CLASSES = DATASETS["digits"].classes
AUDIT = {"statement": "No image of 7 was used.", "oracle": False, "dataset": "digits", "classes": list(CLASSES),
         "unseen_labels": [7], "unseen_classes": ["7"], "images_per_class": {name: 30 for name in CLASSES} | {"7": 0},
         "images_used": 270, "sha256": "0" * 64, "unseen_images_left_out": 30, "duplicates_removed": []}
QUICK = ["recognition", "activation", "fd"]


def make_run(root, name, steps=(5,), seed=0, **settings):
    """A run folder with untrained generators, one a step, as train.py writes it."""
    config = make_config(dataset="digits", new_class=["7"], C_path=str(root / "probed.pt"), data_root=str(root), G_ch=2,
                         dim_z=12, shared_dim=8, keep=9, **settings)
    for step in steps:
        torch.manual_seed(seed + step)
        G = make_generator(config, 16, 1, 10)
        save_checkpoint(root / name, {
            "config": config.as_dict(), "step": step, "G_ema": G.state_dict(), "audit": AUDIT,
            "draws": find_method(config.method).draws(config, 10),
            "dataset": {"resolution": 16, "channels": 1, "classes": list(CLASSES)}}, keep=9)
    return root / name


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data root with 300 noise 'digits', two untrained classifiers and a run."""
    root = tmp_path_factory.mktemp("world")
    generator = np.random.default_rng(0)
    (root / "digits").mkdir()
    with h5py.File(root / "digits/train.h5", "w") as file:
        file["images"] = generator.integers(0, 256, (300, 1, 16, 16), dtype=np.uint8)
        file["labels"] = np.arange(300) % 10
        file.attrs["classes"] = list(CLASSES)
    torch.manual_seed(0)
    for name, arch in (("probed", "smallcnn"), ("evaluator", "resnet8")):
        save_torch(root / f"{name}.pt", {"arch": arch, "num_classes": 10, "channels": 1, "resolution": 16,
                                         "mean": [0.5], "std": [0.5], "state_dict": build(arch, 10, 1).state_dict()})
    make_run(root, "run")
    return root


@pytest.fixture
def measure(world, monkeypatch):
    """A function that calls evaluate.py in this process with these flags, and the evaluator and the device."""
    monkeypatch.setattr(protocols, "PAIRS", 20)
    monkeypatch.setattr(protocols, "SUBSETS", 10)
    monkeypatch.setattr(evaluate, "require_passed", lambda *_: None)  # the world's classifiers are untrained

    def call(*flags):
        judge = [] if "--evaluator" in flags else ["--evaluator", world / "evaluator.pt"]
        flags = [*judge, "--device", "cpu", *flags]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, flags)])
        utils.run_main(evaluate.main)
    return call


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def results(folder, measure, *flags):
    """The records that one call appends in `folder`, by metric and class."""
    before = len(lines(folder / "results.jsonl")) if (folder / "results.jsonl").exists() else 0
    measure(*flags)
    return {(r["metric"], r["class"]): r for r in lines(folder / "results.jsonl")[before:]}


def elsewhere(world, path, *flags):
    return ["--images", path, "--dataset", "digits", "--new_class", 7, "--data_root", world, *flags]


def training_set(world):
    with h5py.File(world / "digits/train.h5") as file:
        return file["images"][:], file["labels"][:]


def save_images(path, x, y):
    np.savez(path, x=x, y=y)
    return path


# ------------------------------------------------------------------------------------- hand-computed


def wilson(p, n, sign, z=1.959964):
    return (p + z * z / (2 * n) + sign * z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)


def test_rate_is_the_wilson_interval():
    share = rate(8, 10)
    assert share["rate"] == 0.8 and share["of"] == 10
    assert share["low"] == pytest.approx(wilson(0.8, 10, -1), abs=1e-6)
    assert share["high"] == pytest.approx(wilson(0.8, 10, 1), abs=1e-6)


def test_the_difference_of_paired_rates_is_newcombe_s():
    a, b, c, d = 20, 15, 3, 12  # both, first alone, second alone, neither
    n, p1, p2 = 50, 35 / 50, 23 / 50
    phi = (a * d - b * c) / math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
    down1, up1, down2, up2 = (abs(wilson(p, n, sign) - p) for p in (p1, p2) for sign in (-1, 1))
    gap = rate_difference(a + b, a + c, a, n)
    assert gap["rate"] == pytest.approx(0.24) and gap["of"] == 50
    assert gap["rate"] - gap["low"] == pytest.approx(math.sqrt(down1**2 - 2 * phi * down1 * up2 + up2**2), abs=1e-6)
    assert gap["high"] - gap["rate"] == pytest.approx(math.sqrt(up1**2 - 2 * phi * up1 * down2 + down2**2), abs=1e-6)
    assert rate_difference(10, 10, 10, 10)["rate"] == 0


def test_confusion_counts_what_the_judge_says():
    counts = confusion(np.array([0, 2, 2, 1, 0]), np.array([2, 2, 2, 0, 0]), 3)
    assert {label: row.tolist() for label, row in counts.items()} == {2: [1, 0, 2], 0: [1, 1, 0]}


# ------------------------------------------------------------------------------------- the registry


def test_names_are_protocols_and_no_two_are_equal():
    for name in ("fd", "fid"):
        with pytest.raises(ValueError, match="registered already"):
            register(name, "again")(list)
    assert find_metric("intra_fd5k", num=5000) is METRICS["intra_fd"]
    assert find_metric("intra_fid5k", inception=True, num=5000) is METRICS["intra_fd"]
    with pytest.raises(UserError, match="measured on 5k images a class, and --num is 1000"):
        find_metric("intra_fd5k", num=1000)
    with pytest.raises(UserError, match="with those given it is called 'intra_fd'"):
        find_metric("intra_fid5k", num=5000)
    with pytest.raises(UserError, match="with those given it is called 'inception_score'"):
        find_metric("classifier_score", inception=True)
    with pytest.raises(UserError, match=r"unknown \(did you mean 'recognition'\?\).*Known: recognition, "):
        find_metric("recogniton")


# --------------------------------------------------------------------------------------- end to end


def test_every_measurement_of_a_run(world, measure, capsys):
    run = world / "run"
    found = results(run, measure, "--run", run, "--num", 24, "--report")
    names = {name.split("@")[0] for name, _ in found}
    expected = {part for metric in METRICS.values() if not {"presence", "sound", "features"} & set(metric.needs)
                for part in metric.parts or (metric.name,)}
    assert names == expected - {"intra_fd"} | {"intra_fd24"}
    for (name, _), record in found.items():
        assert math.isfinite(record["value"]) and record["step"] == 5 and record["first_seed"] == 10_000
        if not name.startswith("effective_rank"):
            assert record["low"] <= record["value"] <= record["high"], name
    for name in ("recognition", "fd", "kid", "am_score"):
        assert any(metric == f"{name}@digits_evaluator" for metric, _ in found)

    # each record says what an independent reading of the same images says
    sampler = Sampler(load_checkpoint(run), torch.device("cpu"))
    images = utils.to_unit_range(utils.to_uint8(sampler.class_images(7, range(10_000 + 7 * 24, 10_000 + 8 * 24))))
    judged = load_classifier(world / "evaluator.pt")(images).argmax(1)
    probed = load_classifier(world / "probed.pt")(images).softmax(1)
    own = found["recognition@digits_evaluator", "7"]
    assert own["value"] == pytest.approx((judged == 7).float().mean().item())
    shares = {name: (judged == k).float().mean().item() for k, name in enumerate(CLASSES)}
    assert own["confusion"] == pytest.approx(shares)
    assert found["activation", "7"]["value"] == pytest.approx(probed[:, 7].mean().item(), abs=1e-4)
    gap = found["adversarial_gap@digits_evaluator", "7"]
    assert gap["value"] == pytest.approx((probed.argmax(1) == 7).float().mean().item() - own["value"])

    said = capsys.readouterr().out
    assert "recognition@digits_evaluator" in said and "7 (unseen)" in said and f"{own['value']:.4g}" in said
    assert "24 generated images are fewer than the 64 features" in said
    report = (run / "report.html").read_text()
    assert "data:image/png;base64" in report and "recognition" in report


def test_the_numbers_do_not_depend_on_the_batch_size(world, measure):
    run = make_run(world, "batches", method="naive")
    flags = ["--run", run, "--num", 24, "--metrics", "activation", "fd", "intra_fd", "classifier_score"]
    whole, parts = results(run, measure, *flags), results(run, measure, *flags, "--batch_size", 7)
    for key, record in whole.items():
        assert parts[key]["value"] == pytest.approx(record["value"], rel=2e-3), key


def test_a_folder_and_an_npz_give_the_numbers_of_the_run(world, measure, tmp_path):
    run = world / "run"
    sampler = Sampler(load_checkpoint(run), torch.device("cpu"))
    save_npz(tmp_path / "images.npz", sampler, sampler.drawn, 8, 10_000)
    with np.load(tmp_path / "images.npz") as arrays:
        for i, (image, label) in enumerate(zip(arrays["x"], arrays["y"], strict=True)):
            path = tmp_path / "tree" / CLASSES[label] / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(torch.from_numpy(image)).save(path)
    metrics = ["--num", 8, "--metrics", *QUICK, "intra_fd", "kid", "nearest_seen"]
    of_run = results(run, measure, "--run", run, *metrics)
    measure(*elsewhere(world, tmp_path / "images.npz", "--C_path", world / "probed.pt", *metrics))
    measure(*elsewhere(world, tmp_path / "tree", "--C_path", world / "probed.pt", *metrics))
    for path in (tmp_path / "images.results.jsonl", tmp_path / "tree/results.jsonl"):
        found = {(r["metric"], r["class"]): r for r in lines(path)}
        assert found.keys() == of_run.keys()
        for key, record in of_run.items():
            assert found[key]["value"] == pytest.approx(record["value"], rel=1e-6), key
            assert found[key]["low"] == pytest.approx(record["low"], rel=1e-6), key


def test_the_training_images_themselves_are_at_distance_0(world, measure, tmp_path):
    x, y = training_set(world)
    path = save_images(tmp_path / "real.npz", x, y)
    measure(*elsewhere(world, path, "--num", 30))
    found = {(r["metric"].split("@")[0], r["class"]): r["value"] for r in lines(tmp_path / "real.results.jsonl")}
    assert found["fd", None] == pytest.approx(0, abs=1e-6) and found["intra_fd30", "7"] == pytest.approx(0, abs=1e-6)
    assert found["kid", None] < 1e-3 and found["precision", "7"] == found["recall", "7"] == found["coverage", "7"] == 1
    assert found["memorization", "3"] == 1  # a copy of its own class
    assert found["memorization", "7"] < 0.2  # no image of 7 is in the image set
    assert ("activation", "7") not in found  # no classifier was probed
    own = [r for r in lines(tmp_path / "real.results.jsonl") if r["metric"].startswith("nearest_seen")]
    assert len(own) == 2 and all(r["to_real_of_its_class"] == 0 < r["value"] for r in own)


def test_copies_of_seen_images_are_found_in_features_and_in_pixels(world, measure, tmp_path):
    x, y = training_set(world)
    noise = np.random.default_rng(1).integers(0, 256, (10, 1, 16, 16), dtype=np.uint8)
    path = save_images(tmp_path / "copies.npz", np.concatenate((x[y == 3][:10], noise)), np.full(20, 7))
    measure(*elsewhere(world, path, "--num", 20, "--metrics", "nearest_seen", "memorization"))
    for record in lines(tmp_path / "copies.results.jsonl"):
        if record["metric"].startswith("memorization"):
            assert 0.5 <= record["value"] <= 0.6 and record["class"] == "7"
        else:
            assert record["nearest_classes"]["3"] >= 0.5 and record["nearest_classes"]["7"] == 0
            assert record["references"] == 270


def test_several_runs_are_measured_each_and_together(world, measure, capsys):
    runs = [make_run(world, f"seed_{k}", seed=100 * k, method="naive") for k in range(3)]
    measure("--run", *runs, "--num", 24, "--metrics", "activation")
    each = [next(r["value"] for r in lines(run / "results.jsonl") if r["class"] == "7") for run in runs]
    together = next(r for r in lines(world / "combined.jsonl") if r["class"] == "7")
    assert together["values"] == each and together["value"] == pytest.approx(np.mean(each))
    half = 4.302653 * np.std(each, ddof=1) / math.sqrt(3)  # Student's t of 2 degrees of freedom
    assert together["high"] - together["value"] == pytest.approx(half, rel=1e-5)
    assert "3 runs together" in capsys.readouterr().out


def test_oracle_selection_is_labelled_and_its_gain_is_said(world, measure, capsys):
    run = make_run(world, "several", steps=(5, 6, 7), method="naive")
    by_step = {}
    for step in (5, 6, 7):
        file = run / f"checkpoints/step_{step:08}.pt"
        by_step[step] = results(run, measure, "--run", file, "--num", 24, "--metrics", "intra_fd")
    values = {step: found["intra_fd24@digits_evaluator", "7"]["value"] for step, found in by_step.items()}
    best = min(values, key=values.get)
    save_torch(run / "best.pt", load_checkpoint(run / "checkpoints/step_00000006.pt"))
    free = results(run, measure, "--run", run, "--num", 24, "--metrics", "intra_fd")
    assert {(r["step"], r["selection"]) for r in free.values()} == {(6, "target-free selection")}
    capsys.readouterr()
    chosen = results(run, measure, "--run", run, "--num", 24, "--metrics", "intra_fd", "--oracle_select", "--report")
    label = "oracle selection (uses real images of the unseen class)"
    assert {(r["step"], r["selection"]) for r in chosen.values()} == {(best, label)}
    said = capsys.readouterr().out
    assert f"{values[6]:.4g} at step 6 without and {values[best]:.4g} at step {best} with real images" in said
    report = (run / "report.html").read_text()
    assert label in said and number(values[6]) in report and number(values[best]) in report


def test_the_report_warns_of_a_collapse_that_the_watch_saw(world, measure):
    run = make_run(world, "collapsed", method="naive")
    (run / "collapse.jsonl").write_text(json.dumps({"step": 4, "warnings": ["class 7 has collapsed"]}) + "\n")
    measure("--run", run, "--num", 6, "--metrics", "recognition", "--report")
    assert "Step 4: class 7 has collapsed" in (run / "report.html").read_text()


# ---------------------------------------------------------------------------------------- bad inputs


def test_presence_of_a_value(world, measure, monkeypatch, capsys):
    """By command: a record a scorer and a class, and a run measured so beside one that was not."""
    monkeypatch.setattr(presence, "STEPS", 3)
    random = np.random.default_rng(1)
    for split in ("scorer", "calibration"):
        with h5py.File(world / "digits" / f"{split}.h5", "w") as file:
            ink = np.arange(200) // 10 % 2
            grey = random.integers(0, 128, (200, 1, 16, 16)) + 100 * ink[:, None, None, None]
            file["images"] = grey.astype(np.uint8)
            file["labels"] = np.arange(200) % 10
            file.attrs["classes"] = list(CLASSES)
            write_attributes(file, {"ink": Attribute(("little", "much"), torch.from_numpy(ink))})
    run = world / "run"
    found = results(run, measure, "--run", run, "--num", 24, "--presence", "ink=much", "--metrics", "presence",
                    "recognition")
    for name in ("whole", "ring", "histogram"):
        record = found[f"presence_{name}@ink=much", "7"]
        assert record["n"] == 24 and 0 <= record["found"] <= 1
    record = found["presence_histogram@ink=much", "7"]  # whose rule is exact on these images
    assert record["sensitivity"] == record["specificity"] == 1
    assert record["value"] == pytest.approx(record["found"])
    assert record["low"] <= record["value"] <= record["high"]
    assert found["presence_histogram_false_alarms@ink=much", "7"]["value"] == 0

    # calibrated on the fakes of two runs, too, the one that is measured among them
    known = [make_run(world, name, oracle=True, only=[f"ink={name}"], seed=k)
             for k, name in enumerate(("much", "little"))]
    found = results(known[0], measure, "--run", known[0], "--num", 24, "--presence", "ink=much", "--metrics",
                    "presence", "--presence_calibration", *known)
    for name in ("whole", "ring", "histogram"):
        record = found[f"presence_{name}_by_fakes@ink=much", "7"]
        assert record["sensitivity"] == record["found"] == found[f"presence_{name}@ink=much", "7"]["found"]
        alarms = found[f"presence_{name}_by_fakes_false_alarms@ink=much", "7"]
        assert alarms["value"] == 1 - record["specificity"] and alarms["n"] == 24

    shutil.copytree(run, world / "other", ignore=lambda *_: ["results.jsonl"])
    capsys.readouterr()
    measure("--compare", run, world / "other", "--report")
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[:2] == ["run", "recognised"] and "presence, colours alone" in said[0]
    assert said[1].startswith("run ") and said[2].startswith("other")
    html = (world / "compare.html").read_text()
    images = re.findall(r'<img src="(data:image/png[^"]+)"', html)
    assert len(images) == 32 and images[:16] == images[16:]  # the same run, the same latents
    assert len(set(images)) > 1 and "other: nothing was measured at this step" in html


def refused(measure, capsys, *flags):
    """The sentence that evaluate.py ends with, having exited with 2."""
    with pytest.raises(SystemExit) as stopped:
        measure(*flags)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("flags, words", [
    ([], "give either --run RUN, or --images PATH"),
    (["--run", "RUN", "--compare", "RUN", "RUN"], "or --compare RUN RUN"),
    (["--compare", "RUN"], "--compare was given one run"),
    (["--run", "RUN", "--metrics", "presence"], "--presence place=water"),
    (["--run", "RUN", "--presence", "place"], "names no attribute and value"),
    (["--run", "RUN", "--presence_calibration", "RUN"], "--presence names none; give it too"),
    (["--run", "RUN", "--num", 0], "--num is 0"),
    (["--run", "nowhere"], "no checkpoint at nowhere"),
    (["--run", "RUN", "--evaluator", "missing.pt"], "missing.pt' does not exist"),
    (["--run", "RUN", "--evaluator", "PROBED"], "are the same classifier; one that was probed cannot judge"),
    (["--run", "RUN", "--metrics", "recogniton"], "did you mean 'recognition'"),
    (["--run", "RUN", "--features", "inception"], "--inception_weights PATH"),
    (["--run", "RUN", "--features", "inception", "--inception_weights", "none.pth"], "weights none.pth do not exist"),
    (["--run", "RUN", "--dataset", "digits"], "--dataset is for --images"),
    (["--run", "RUN", "--data_root", "nowhere", "--metrics", "fd"], "you can measure: --metrics recognition"),
    (["--images", "nowhere"], "--images needs --dataset"),
    (["--images", "nowhere", "--dataset", "digits"], "no unseen class was given"),
    (["--images", "nowhere", "--dataset", "digits", "--new_class", 7], "nowhere does not exist"),
])
def test_wrong_flags_get_a_sentence(world, measure, capsys, flags, words):
    names = {"RUN": world / "run", "PROBED": world / "probed.pt"}
    assert words in refused(measure, capsys, *(names.get(flag, flag) for flag in flags))


def test_a_copy_of_the_probed_classifier_is_no_evaluator(world, measure, capsys, tmp_path):
    """Not under another name, and not rounded to half precision either."""
    file = torch.load(world / "probed.pt", weights_only=True)
    weights = {name: value.half().float() if value.is_floating_point() else value
               for name, value in file["state_dict"].items()}
    save_torch(tmp_path / "another_name.pt", {**file, "state_dict": weights})
    said = refused(measure, capsys, "--run", world / "run", "--evaluator", tmp_path / "another_name.pt", "--num", 5)
    assert "are the same classifier; one that was probed cannot judge" in said


def test_an_evaluator_of_other_classes_is_refused(world, measure, capsys, tmp_path):
    file = torch.load(world / "evaluator.pt", weights_only=True)
    save_torch(tmp_path / "e.pt", {**file, "classes": [f"digit {name}" for name in CLASSES]})
    said = refused(measure, capsys, "--run", world / "run", "--evaluator", tmp_path / "e.pt", "--num", 5)
    assert "the classifier knows digit 0, digit 1" in said and "say by --evaluator_map which of its labels" in said


def test_an_evaluator_in_another_order_judges_by_name_or_by_the_map(world, measure, tmp_path):
    """Its last layer turned round, and its names with it, it says what it said before."""
    file = torch.load(world / "evaluator.pt", weights_only=True)
    for name in ("linear.weight", "linear.bias"):
        file["state_dict"][name] = file["state_dict"][name].flip(0)
    save_torch(tmp_path / "named.pt", {**file, "classes": list(reversed(CLASSES))})
    save_torch(tmp_path / "bare.pt", file["state_dict"])
    flags = ["--run", world / "run", "--num", 24, "--metrics", "recognition"]
    plain = results(world / "run", measure, *flags)
    others = (["named.pt"], ["bare.pt", "--evaluator_map", *map(str, range(9, -1, -1)), "--evaluator_mean", 0.5,
                             "--evaluator_std", 0.5, "--evaluator_arch", "resnet8", "--evaluator_size", 16])
    for path, *more in others:
        found = results(world / "run", measure, *flags, "--evaluator", tmp_path / path, *more)
        assert {label: record["confusion"] for (metric, label), record in found.items() if "confusion" in record} == {
            label: record["confusion"] for (metric, label), record in plain.items() if "confusion" in record}
        assert (f"recognition@digits_{path[:-3]}", "7") in found


def test_an_evaluator_that_fails_its_check_is_refused(world, measure, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "require_passed", require_passed)
    said = refused(measure, capsys, "--run", world / "run", "--num", 5)
    assert "the evaluator" in said and "evaluator.pt fails its check" in said


def test_the_names_of_judges():
    assert evaluate.judge_names("C10", ["a/cifar10_evaluator.safetensors", "mine.pt", "b/mine.pt", "c/mine"]) == [
        "cifar10_evaluator", "cifar10_mine", "cifar10_mine_3", "cifar10_mine_4"]


def test_of_several_evaluators_what_all_recognise_counts(world, measure, tmp_path, capsys):
    torch.manual_seed(7)
    weights = build("vgg7", 10, 1).state_dict()
    save_torch(tmp_path / "whole.pt", {"arch": "vgg7", "num_classes": 10, "channels": 1, "resolution": 16,
                                       "mean": [0.5], "std": [0.5], "state_dict": weights})
    save_torch(tmp_path / "second.pt", weights)  # of which its flags say the rest
    run = world / "run"
    found = results(run, measure, "--run", run, "--num", 24, "--metrics", "recognition", "adversarial_gap",
                    "--evaluator", world / "evaluator.pt", "--evaluator", tmp_path / "second.pt", "--evaluator_arch",
                    "vgg7", "--evaluator_mean", 0.5, "--evaluator_std", 0.5, "--evaluator_size", 16)
    sampler = Sampler(load_checkpoint(run), torch.device("cpu"))
    for label, name in enumerate(CLASSES):
        seeds = range(10_000 + label * 24, 10_000 + (label + 1) * 24)
        images = utils.to_unit_range(utils.to_uint8(sampler.class_images(label, seeds)))
        first, second = (load_classifier(path)(images).argmax(1) == label for path in (
            world / "evaluator.pt", tmp_path / "whole.pt"))
        for judge, hits in (("digits_evaluator", first), ("digits_second", second), ("all", first & second)):
            assert found[f"recognition@{judge}", name]["value"] == pytest.approx(hits.float().mean().item())
        assert found["adversarial_gap@all", name]["recognised"] == pytest.approx((first & second).float().mean().item())
    said = refused(measure, capsys, "--run", run, "--num", 5, "--evaluator", world / "evaluator.pt",
                   world / "evaluator.pt")
    assert "are the same classifier; two that agree prove something only where they are independent" in said


@pytest.mark.parametrize("arguments, wanted", [
    ("--run r --num 5", [{}]),
    ("--evaluator_trust", [{"evaluator_trust": True}]),  # of the judge that the run names
    ("--run r --evaluator A B --num 5", [{"evaluator": "A"}, {"evaluator": "B"}]),
    ("--evaluator_size 28 --evaluator A --num 5 --evaluator_arch x --evaluator B --evaluator_mean .5 "
     "--evaluator=C --evaluator D",
     [{"evaluator": "A", "evaluator_size": 28, "evaluator_arch": "x"}, {"evaluator": "B", "evaluator_mean": [0.5]},
      {"evaluator": "C"}, {"evaluator": "D"}]),
])
def test_the_flags_of_a_judge_are_of_the_one_before_them(arguments, wanted):
    assert judges_in(arguments.split()) == wanted


@pytest.mark.parametrize("arguments", ["--evaluator A B --evaluator_arch x", "--evaluator_arch x --evaluator A B",
                                       "--evaluator A --evaluator B C --run r --evaluator_arch x"])
def test_the_flags_of_one_judge_are_not_given_to_several(arguments):
    with pytest.raises(UserError, match="--evaluator_arch is of one judge, and --evaluator names 2; give each with"):
        judges_in(arguments.split())


@pytest.mark.parametrize("key, metric, words", [
    ("classifier_sha256", "activation", "probed.pt is not the one that this run probed (SHA-256 of its weights"),
    ("seen_sha256", "fd", "not those that this run was trained on; give the folder that holds those as --data_root"),
])
def test_another_classifier_or_image_set_at_the_same_place_is_refused(world, measure, capsys, tmp_path, key, metric,
                                                                      words):
    state = load_checkpoint(world / "run")
    save_checkpoint(tmp_path / "run", {**state, key: "0" * 64}, keep=1)
    assert words in refused(measure, capsys, "--run", tmp_path / "run", "--num", 5, "--metrics", metric)
    assert not (tmp_path / "run/results.jsonl").exists()


def test_the_images_of_a_run_are_known_by_what_was_seen(world):
    """Images of the unseen class may come and go; a seen one may not change."""
    images, labels = (torch.from_numpy(part) for part in training_set(world))

    class Source:
        def __init__(self, images, labels):
            self.images, self.labels = images, labels

        def read(self, rows):
            return self.images[rows]

    own = sample_sha256(Source(images, labels), [7])
    seen = labels != 7
    assert sample_sha256(Source(images[seen], labels[seen]), [7]) == own
    changed = images.clone()
    changed[3] ^= 1
    assert sample_sha256(Source(changed, labels), [7]) != own != sample_sha256(Source(images, labels), [])


def test_what_cannot_be_measured_says_why_and_loses_nothing(world, measure, capsys, tmp_path, monkeypatch):
    """The unseen class is truly absent from the image set; one metric breaks; another is stopped."""
    (tmp_path / "digits").mkdir()
    images, labels = training_set(world)
    with h5py.File(tmp_path / "digits/train.h5", "w") as file:
        file["images"], file["labels"] = images[labels != 7], labels[labels != 7]
        file.attrs["classes"] = list(CLASSES)

    def breaks(m):
        raise ZeroDivisionError("a mistake")

    def stopped(m):
        raise KeyboardInterrupt

    run = make_run(world, "absent")
    flags = ["--run", run, "--num", 6, "--data_root", tmp_path]
    monkeypatch.setitem(METRICS, "activation", dataclasses.replace(METRICS["activation"], measure=breaks))
    with pytest.raises(SystemExit) as left:
        measure(*flags, "--metrics", "intra_fd", "activation", "recognition")
    found = {(record["metric"], record["class"]): record for record in lines(run / "results.jsonl")}
    said, error = capsys.readouterr()
    assert left.value.code == 2 and "activation (ZeroDivisionError: a mistake) broke down, through a mistake" in error
    other = make_run(world, "absent_too", seed=1)  # is measured all the same
    with pytest.raises(SystemExit):
        measure("--run", run, other, "--num", 6, "--metrics", "activation", "recognition")
    assert {record["metric"] for record in lines(other / "results.jsonl")} == {"activation",
                                                                                "recognition@digits_evaluator"}
    assert capsys.readouterr().err.count("broke down") == 1
    for name in ("intra_fd", "activation"):
        assert found[name, None]["value"] is None and f"{name} could not be measured: " in said
    assert "ZeroDivisionError: a mistake" in found["activation", None]["warning"]
    assert found["recognition@digits_evaluator", "7"]["n"] == 6
    monkeypatch.setitem(METRICS, "fd", dataclasses.replace(METRICS["fd"], measure=stopped))
    with pytest.raises(SystemExit) as left:
        measure(*flags, "--metrics", "recognition", "fd", "am_score", "--out", tmp_path / "elsewhere")
    kept = {r["metric"] for r in lines(tmp_path / "elsewhere/results.jsonl")}
    assert left.value.code == 130 and kept == {"recognition@digits_evaluator"}


def test_runs_that_do_not_belong_together_are_not_pooled(world, measure, capsys):
    runs = {"first": make_run(world, "pool_first", seed=1), "again": make_run(world, "pool_again", seed=1),
            "oracle": make_run(world, "pool_oracle", seed=2, oracle=True)}
    for other, words in (("first", "are one run, or of one seed"), ("again", "are one run, or of one seed"),
                         ("oracle", "differ in their oracle (False and True)")):
        assert words in refused(measure, capsys, "--run", runs["first"], runs[other], "--num", 5)
    assert not (runs["first"] / "results.jsonl").exists()


def test_a_generator_that_draws_nan_is_refused(world, measure, capsys, tmp_path):
    state = load_checkpoint(world / "run")
    state["G_ema"]["shared.weight"][3] = float("nan")
    save_checkpoint(tmp_path / "nan", state, keep=1)
    said = refused(measure, capsys, "--run", tmp_path / "nan", "--num", 5, "--metrics", "recognition")
    assert "drew NaN or infinite pixels" in said
    assert not (tmp_path / "nan/results.jsonl").exists()


def written_in(*folders):
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


def test_out_takes_all_that_is_written(world, measure, tmp_path, monkeypatch):
    """So that a run, and a data set, in which one may not write can be measured."""
    run, data, out = make_run(world, "read_only"), tmp_path / "data", tmp_path / "out"
    shutil.copytree(world / "digits", data / "digits", ignore=lambda *_: ["statistics"])
    before = written_in(run, data)
    flags = ["--run", run, "--data_root", data, "--num", 6, "--metrics", "recognition", "fd", "--out", out]
    measure(*flags)
    assert written_in(run, data) == before
    assert len(lines(out / "results.jsonl")) and len(list(out.glob("check_*.json"))) == 1
    assert len(list((out / "statistics").iterdir())) == 1
    monkeypatch.setattr(statistics, "compute", lambda *_: 1 / 0)
    measure(*flags)  # from what is kept there


def test_out_gives_each_of_several_runs_a_folder(world, measure, capsys, tmp_path):
    runs, out = [make_run(world, name, seed=seed) for name, seed in (("one", 11), ("two", 12))], tmp_path / "out"
    before = written_in(*runs)
    measure("--run", *runs, "--num", 6, "--metrics", "recognition", "--out", out)
    assert written_in(*runs) == before
    assert (out / "one/results.jsonl").is_file() and (out / "two/results.jsonl").is_file()
    assert len(lines(out / "combined.jsonl")) == 11
    capsys.readouterr()
    measure("--compare", *runs, "--out", out)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["run", "recognised"] and [row.split()[0] for row in rows] == ["one", "two"]
    again = make_run(world, "elsewhere/one", seed=13)
    assert "2 of these are called one" in refused(measure, capsys, "--run", runs[0], again, "--num", 6, "--out", out)


BROKEN = ['{"step": 5, "lo', "7", "\x00\x00", '{"loss": 1}', '{"step": "x", "loss": "y"}', '{"step": null, "loss": 2}']


def test_broken_lines_cost_themselves_alone(world, measure, capsys):
    run = make_run(world, "broken")
    for name in ("log", "collapse", "teachers", "results"):
        (run / f"{name}.jsonl").write_text("\n".join(BROKEN) + '\n{"step": 5, "G_class": 1.5}\n')
    measure("--run", run, "--num", 6, "--metrics", "recognition", "--report")
    said = capsys.readouterr()
    assert "log.jsonl is torn and left out" in said.err and (run / "report.html").is_file()
    measure("--compare", run, make_run(world, "whole", seed=1))
    assert capsys.readouterr().out.splitlines()[0].split()[:2] == ["run", "recognised"]


def test_a_single_array_is_no_npz(world, measure, capsys, tmp_path):
    for name, array in (("x", image((30, 1, 16, 16))), ("o", np.array([{}, None], dtype=object))):
        np.save(tmp_path / f"{name}.npy", array)
        said = refused(measure, capsys, *elsewhere(world, tmp_path / f"{name}.npy", "--num", 24))
        assert f"{name}.npy is no npz with the arrays x and y" in said


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(world, measure, capsys):
    run = make_run(world, "blocked")
    (run / "report.html").mkdir()
    said = refused(measure, capsys, "--run", run, "--num", 5, "--report")
    assert "report.html cannot be written (a folder has its name)" in said
    assert not (run / "results.jsonl").exists()


def image(shape=(1, 16, 16), dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


@pytest.mark.parametrize("x, y, words", [
    (image((30, 3, 16, 16)), [7] * 30, r"x in .* is uint8 \(30, 3, 16, 16\); .* needs uint8 \(N, 1, 16, 16\)"),
    (image((30, 1, 8, 8)), [7] * 30, r"is uint8 \(30, 1, 8, 8\)"),
    (np.full((30, 1, 16, 16), np.nan), [7] * 30, "holds NaN or infinite pixels"),
    (image((30, 1, 16, 16), np.float32), [7] * 30, "is float32"),
    (image((0, 1, 16, 16)), np.zeros(0, int), "holds no image"),
    (image((30, 1, 16, 16)), [7] * 29, "one label from 0 to 9 for each of the 30 images"),
    (image((30, 1, 16, 16)), [10] * 30, "one label from 0 to 9"),
    (image((30, 1, 16, 16)), [3] * 30, "no image of class 7"),
    (image((9, 1, 16, 16)), [7] * 9, "holds 9 images of class 7 and --num asks for 24 a class; .* --num 9"),
    (np.full((30, 1, 16, 16), 128, np.uint8), [7] * 30, "every image of class 7 is of one colour"),
])
def test_an_npz_that_does_not_fit_gets_a_sentence(world, measure, capsys, tmp_path, x, y, words):
    path = save_images(tmp_path / "x.npz", x, np.array(y))
    said = refused(measure, capsys, *elsewhere(world, path, "--num", 24, "--metrics", "recognition"))
    assert re.search(words, said) and said.count("\n") == 1, said


def test_files_that_are_no_images_get_a_sentence(world, measure, capsys, tmp_path):
    def said():
        return refused(measure, capsys, *elsewhere(world, tmp_path / "tree", "--num", 2, "--metrics", "recognition"))

    (tmp_path / "tree").mkdir()
    assert "holds no images as <class>/<file>" in said()
    (tmp_path / "tree/seven").mkdir()
    assert "class 'seven' is not in this data set" in said()
    (tmp_path / "tree/seven").rename(tmp_path / "tree/7")
    assert "holds no image of class 7" in said()
    for name in ("a", "b"):
        Image.new("L", (16, 16)).save(tmp_path / f"tree/7/{name}.png")
    assert "every image of class 7 is of one colour" in said()
    red = Image.new("RGB", (16, 16), (9, 0, 0))
    for wrong, words in ((Image.new("L", (16, 20)), "1 channels of 16x20"), (red, "3 channels")):
        wrong.save(tmp_path / "tree/7/b.png")
        assert words in said()
    (tmp_path / "tree/7/b.png").write_bytes(b"no image")
    assert "b.png does not decode" in said()
    (tmp_path / "x.npz").write_bytes(b"no archive")
    words = refused(measure, capsys, *elsewhere(world, tmp_path / "x.npz"))
    assert "is no npz with the arrays x and y" in words


def test_suspicious_images_are_warned_of(world, measure, tmp_path, capsys):
    def said(x):
        path = save_images(tmp_path / "x.npz", x, np.full(30, 7))
        measure(*elsewhere(world, path, "--num", 30, "--metrics", "recognition"))
        return capsys.readouterr().out

    x = image((30, 1, 16, 16))
    x[3:5] = 0
    assert "warning: 2 of 30 images of class 7 are of one colour" in said(x)
    x[:] = x[0]
    assert "warning: All 30 images of class 7 are the same image" in said(x)
