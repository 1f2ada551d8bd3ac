"""experiments/waterbirds.py: the arms differ in what they should alone; and the launcher, at 64 pixels."""

import functools
import json
import subprocess
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

import train
from classifiers import FrozenClassifier, build
from classifiers.files import save_classifier
from datasets.attributes import Attribute, write_attributes
from experiments.table import Column, Experiment, order_sentences
from experiments.waterbirds import (
    ARMS,
    DOSES,
    EXPECTED,
    NONE,
    ORDER,
    SCALES,
    classifiers_of,
    following,
    plan,
    real_ones,
)
from methods import load_run
from sampler import make_sampler
from utils import ROOT


def flags_of(tmp_path, **changes):
    return SimpleNamespace(**{"scale": "small", "runs": tmp_path / "runs", "data_root": tmp_path, "num": 50, "seeds": 2,
                              "unseen": ["waterbird", "landbird"], "arms": [*ARMS, NONE], "processes": 1, **changes})


def test_runs_of_the_arms_differ_in_classifier_and_seed_alone(tmp_path):
    flags = flags_of(tmp_path)
    rows = plan(flags, classifiers_of(flags, [*ARMS, "evaluator"]), {"dro": "40 %"})
    assert [row.labels for row in rows if row.group == "waterbird"] == [
        (arm, "40 %" if arm == "dro" else "") for arm in [*ARMS, NONE]]
    for group, place, label in (("waterbird", "land", 1), ("landbird", "water", 0)):
        configs = {(row.labels[0], run.config["seed"]): dict(run.config) for row in rows if row.group == group
                   for run in row.runs}
        assert set(configs) == {(arm, seed) for arm in [*ARMS, NONE] for seed in (0, 1)}
        for (arm, seed), config in configs.items():
            assert config["only"] == [f"place={place}"] and config["new_class"] == [label]
            assert config.pop("seed") == seed
            name = "balanced" if arm == NONE else arm
            assert config.pop("C_path").endswith(f"waterbirds32/{name}.safetensors")
            assert config.pop("C_coeff") == (0.0 if arm == NONE else 1.6)
        assert len({json.dumps(config) for config in configs.values()}) == 1
    assert len({run.path for row in rows for run in row.runs}) == 24
    known = {run.config["only"][0]: run for row in rows for runs in row.runs for run in runs.needs[2:]}
    assert set(known) == {"place=land", "place=water"}
    for run in known.values():  # they draw both birds, and the classifier says nothing
        assert run.config["oracle"] and not run.config["new_class"] and not run.probes and run.config["C_coeff"] == 0
        assert all(str(run.path) in row.runs[0].measurement.make for row in rows)


def test_classifiers_differ_in_their_arm_alone(tmp_path):
    products = classifiers_of(flags_of(tmp_path), [*ARMS, *DOSES, "evaluator"])
    for name, own in (ARMS | DOSES).items():
        command = products[name].about["command"]
        assert command.endswith(own) and f"/{name}.safetensors" in command
        others = command.replace(own, "").replace(f"{name}.safetensors", "")
        assert others == products["dro"].about["command"].replace(ARMS["dro"], "").replace("dro.safetensors", "")
    assert "--role evaluator" in products["evaluator"].about["command"]
    assert "resnet9" not in products["evaluator"].about["command"]


def test_the_expected_order_has_every_row():
    """More water the more of a classifier's birds were in their usual place."""
    named = [key for keys in ORDER for key in ((keys,) if isinstance(keys, str) else keys)]
    assert sorted(named) == sorted([*ARMS, *DOSES, NONE])
    places = [next(i for i, keys in enumerate(ORDER) if name in keys) for name in DOSES]
    assert places == sorted(set(places))


def test_the_other_direction_is_expected_the_other_way(tmp_path):
    flags = flags_of(tmp_path, arms=["place", "balanced"], unseen=["landbird"])
    rows = plan(flags, classifiers_of(flags, [*ARMS, "evaluator"]), {})
    experiment = Experiment("", "", "", "", {"water": Column("water", "presence")}, groups="Unseen",
                            heads=("classifier", "follows place"), expected={"water": EXPECTED})
    water = [{"water": {"value": value, "low": value, "high": value}} for value in (0.0, 1.0)]
    assert order_sentences(experiment, rows, water) == [] and len(order_sentences(experiment, rows, water[::-1])) == 1


def test_following_is_of_the_place_in_every_arm():
    card = {"groups": {"following": {"rate": 0.25, "low": 0.2, "high": 0.3}}}
    space = "\N{NO-BREAK SPACE}"
    assert following(card, "dro").replace(space, " ") == "25.0 % (20.0 % to 30.0 %)"
    assert following(card, "place").replace(space, " ") == "75.0 % (70.0 % to 80.0 %)"


def test_the_notes_say_what_is_seen_in_real_images(tmp_path, monkeypatch):
    shares = {y: {"sensitivity": {"rate": 0.9 - y / 10}, "specificity": {"rate": 0.875 + y / 10}} for y in (0, 1)}
    monkeypatch.setattr("experiments.waterbirds.Presence", lambda *_: SimpleNamespace(calibration={"ring": shares}))
    line, = real_ones(flags_of(tmp_path))
    assert line.replace("\N{NO-BREAK SPACE}", " ") == (
        "- Real images in which the scorer 'ring' sees water, not corrected: 12.5 % of landbirds on land and 90.0 % on "
        "water, 2.5 % of waterbirds on land and 80.0 % on water.")


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """A data root with a few noise Waterbirds of 64 pixels, and an untrained classifier of them."""
    root = tmp_path_factory.mktemp("birds")
    (root / "waterbirds").mkdir()
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        with h5py.File(root / "waterbirds" / f"{split}.h5", "w") as file:
            file["images"] = random.integers(0, 256, (40, 3, 64, 64), dtype=np.uint8)
            file["labels"] = np.arange(40) % 2
            file.attrs["classes"] = ["landbird", "waterbird"]
            write_attributes(file, {"place": Attribute(("land", "water"), torch.arange(40) // 2 % 2)})
    torch.manual_seed(0)
    save_classifier(root / "C.pt", FrozenClassifier(build("smallcnn", 2, 3), 2, 3, 64, [0.5] * 3, [0.5] * 3, "smallcnn",
                                                    ("landbird", "waterbird")))
    return root


def launch(root, *words):
    return subprocess.run([root / "scripts/launch_waterbird_zerogan.sh", *map(str, words)], capture_output=True,
                          text=True, timeout=60)


@pytest.fixture
def launched(tmp_path):
    """A function of the launcher's words that gives those of train.py: of a checkout whose python only says them."""
    script = ROOT / "scripts/launch_waterbird_zerogan.sh"
    for name, text in ((f"scripts/{script.name}", script.read_text()),
                       (".venv/bin/python", "#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def words_of(*words):
        done = launch(tmp_path, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()
    return words_of


def test_the_launcher_runs_the_releases_settings_at_64_pixels(birds, launched, tmp_path, monkeypatch):
    """Twenty steps of them, with narrow networks and small batches."""
    words = launched("waterbird", 64, "erm", "--run", tmp_path / "run", "--data_root", birds, "--C_path",
                     birds / "C.pt", "--skip_classifier_check", "--num_steps", 20, "--G_ch", 1, "--D_ch", 1,
                     "--batch_size", 2, "--dim_z", 20, "--shared_dim", 8, "--save_every", 20, "--device", "cpu",
                     "--precision", "fp32")
    # of 100 images at once, attention over 64 x 64 positions takes gigabytes
    monkeypatch.setattr(train, "make_sampler", functools.partial(make_sampler, batch_size=4))
    monkeypatch.setattr(sys, "argv", words)
    train.main()
    state = load_run(tmp_path / "run")
    assert words[0] == "train.py" and state["step"] == 20
    wanted = {"num_D_steps": 2, "G_lr": 5e-5, "D_lr": 2e-4, "beta1": 0.0, "beta2": 0.999, "adam_eps": 1e-6,
              "SN_eps": 1e-6, "BN_eps": 1e-5, "init": "ortho", "G_attn": "64", "ema_decay": 0.9999,
              "ema_start": 20_000, "D2_reg_coeff": 1e-4, "C_coeff": 1.0, "only": ["place=land"]}
    assert {name: state["config"][name] for name in wanted} == wanted
    audit = state["audit"]
    assert audit["images_per_class"] == {"landbird": 10, "waterbird": 0} and audit["images_used"] == 10
    assert audit["images_per_group"]["place"] == {"landbird, place land": 10, "landbird, place water": 0,
                                                  "waterbird, place land": 0, "waterbird, place water": 0}
    assert audit["only"] == {"place": "land"} and audit["images_filtered_out"] == 20
    assert audit["statement"].endswith("Of the others only those with place land were used.")
    assert SCALES["paper"]["dataset"] == "waterbirds" and SCALES["paper"]["all"] == ""


@pytest.mark.parametrize("words, message", [(["waterbird", 64], "give the unseen class"),
                                            (["duck", 64, "erm"], "'duck' is neither"),
                                            (["waterbird", 48, "erm"], "'48' is not prepared")])
def test_what_the_launcher_cannot_start(words, message):
    done = launch(ROOT, *words)
    assert done.returncode == 2 and message in done.stderr
