"""A method is one file: a toy one, which no other file knows, is trained, resumed, drawn, measured and tabled."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import evaluate
import methods.registry
import sample
import train
from classifiers import build
from config import GROUPS, setting
from experiments import table1
from methods import METHODS, Method, Row, RunParser, Settings, load_run, make_config, read_config, register, start
from utils import DATASETS, UserError, load_checkpoint, save_torch

ROOT = Path(__file__).parents[1]
OLD = Path(__file__).parent / "data" / "flat_config_run"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ToySettings(Settings):
    """What the toy has of its own."""

    toy_pull: float = setting(1.0, "weight of the pull towards grey", least=0)
    toy_words: tuple[str, ...] = setting((), "any words")


def discriminator_loss(G, D, images, y_real, fakes, task, config):
    d_u = D(images.float() / 127.5 - 1)[1]
    return d_u.square().mean(), {"D_toy": d_u.square().mean()}


def generator_loss(G, D, C, fakes, task, config):
    grey = G(fakes.z, fakes.y).square().mean()
    return config.own.toy_pull * grey, {"G_toy": grey}


TOY = Method("toy", "Toy", "Draws grey.", ToySettings, (discriminator_loss, generator_loss),
             fed=lambda config, n_classes: [*config.new_class, 0], rows=(Row("toy", "Toy", "--method toy"),))


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(methods.registry, "METHODS", METHODS)
    register(TOY)
    yield TOY
    del METHODS["toy"]


def call(monkeypatch, program, *flags):
    monkeypatch.setattr(sys, "argv", [f"{program.__name__}.py", *map(str, flags)])
    program.main()


def test_a_toy_method_trains_resumes_draws_and_is_measured(toy, noise_world, tmp_path, monkeypatch):
    flags = ["--dataset", "digits", "--new_class", 7, "--data_root", noise_world, "--C_path", noise_world / "C.pt",
             "--evaluator", noise_world / "E.pt", "--skip_classifier_check", "--method", "toy", "--toy_pull", 2,
             "--toy_words", "a", "b", "--G_ch", 2, "--D_ch", 1, "--batch_size", 8, "--num_D_steps", 1, "--device",
             "cpu"]
    call(monkeypatch, train, *flags, "--num_steps", 4, "--run", tmp_path / "whole")
    call(monkeypatch, train, *flags, "--num_steps", 2, "--run", tmp_path / "parts")
    call(monkeypatch, train, "--resume", tmp_path / "parts", "--num_steps", 4)
    whole, parts = (load_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(value, parts["G"][name]) for name, value in whole["G"].items())
    assert whole["config"]["own"] == {"toy_pull": 2.0, "toy_words": ["a", "b"]}
    assert whole["draws"] == {"title": "Toy", "fed": [7, 0], "conditional": True, "new_class": [7], "oracle": False}

    del METHODS["toy"]  # a stranger's checkpoint: it says itself what it draws
    run = tmp_path / "whole"
    call(monkeypatch, sample, "--checkpoint", run, "--device", "cpu")
    call(monkeypatch, sample, "--checkpoint", run, "--mode", "npz", "--num", 3, "--device", "cpu")
    with np.load(run / "samples.npz") as arrays:
        assert sorted(set(arrays["y"].tolist())) == [0, 7]
    call(monkeypatch, evaluate, "--run", run, "--metrics", "recognition", "fd", "--num", 50, "--device", "cpu")
    assert (run / "samples_grid.png").is_file() and (run / "results.jsonl").read_text().count("recognition") >= 1
    with pytest.raises(UserError, match="--method 'toy' is not valid"):
        call(monkeypatch, train, "--resume", run)
    METHODS["toy"] = TOY


@pytest.mark.usefixtures("no_processes")
def test_a_toy_method_has_a_row_in_the_table(toy, noise_world, tmp_path, monkeypatch):
    monkeypatch.setitem(table1.SCALES["digits"], "small", {
        "num": 50, "all": "--G_ch 1 --D_ch 1 --dim_z 6 --shared_dim 8 --batch_size 8 --num_D_steps 1 --num_steps 2 "
                          "--ema_start 1 --device cpu --skip_classifier_check", "toy": "--toy_pull 2"})
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, table1, "--dataset", "digits", "--unseen", 7, "--methods", "toy", "--classifiers",
             f"robust={noise_world / 'C.pt'}", "--evaluator", noise_world / "E.pt", "--data_root", noise_world,
             "--seeds", 1, "--runs", tmp_path / "runs", "--out", tmp_path)
    assert ended.value.code == 0, "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert "| Toy | robust | " in (tmp_path / "table1_digits.md").read_text()
    run = tmp_path / "runs/digits_small/toy_robust_wo_7_seed0"
    assert load_checkpoint(run)["config"]["own"] == {"toy_pull": 2.0, "toy_words": []}


def test_the_registry_refuses_a_second_of_a_name_and_a_setting_with_two_meanings(toy):
    with pytest.raises(ValueError, match="two methods are called 'toy'"):
        register(TOY)

    @dataclass(frozen=True)
    class Clashing(Settings):
        toy_pull: int = setting(1, "another thing")

    @dataclass(frozen=True)
    class Shared(Settings):
        G_lr: float = setting(1.0, "another thing")

    for name, settings in (("toy_pull", Clashing), ("G_lr", Shared)):
        with pytest.raises(ValueError, match=f"the setting '{name}' of 'second' has another meaning already"):
            register(replace(TOY, name="second", settings=settings))
    assert "second" not in METHODS


def test_own_settings_are_nested_checked_and_read_back(toy):
    config = make_config(dataset="digits", new_class=["7"], method="toy", toy_pull=3.0)
    assert read_config(config.as_dict()) == config
    with pytest.raises(UserError, match="--toy_pull is -1.0; it must not be negative"):
        make_config(dataset="digits", new_class=["7"], method="toy", toy_pull=-1.0)
    with pytest.raises(UserError, match="--toy_pull is a setting of --method toy, and this run is of --method p"):
        make_config(dataset="digits", new_class=["7"], toy_pull=1.0)
    with pytest.raises(UserError, match="setting 'toy_pul' is unknown .did you mean 'toy_pull'"):
        read_config({**config.as_dict(), "own": {"toy_pul": 1.0}})


def test_settings_of_a_data_set_that_are_another_methods_are_passed_over(toy, monkeypatch):
    monkeypatch.setitem(DATASETS, "digits", replace(DATASETS["digits"], settings={"toy_pull": 5.0, "G_lr": 0.5}))
    assert make_config(dataset="digits", new_class=["7"], method="toy").own.toy_pull == 5.0
    assert make_config(dataset="digits", new_class=["7"]).G_lr == 0.5


# ------------------------------------------------------------------------------------------- --help


def helped(capsys, monkeypatch, *flags):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        RunParser("Trains.").parse_args([*flags])
    assert not ended.value.code
    return capsys.readouterr().out


def test_help_fits_a_screen_and_the_rest_is_a_word_away(toy, capsys, monkeypatch):
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), "--help"], capture_output=True, text=True,
                          env={"PATH": "", "COLUMNS": "80"})
    assert done.returncode == 0 and 20 < len(done.stdout.splitlines()) <= 45
    assert all(name in done.stdout for name in (*GROUPS, "--resume", "--new_class", "--help all"))
    whole = helped(capsys, monkeypatch, "--help", "all")
    assert all(f"--{name}" in whole for name in ("beta2", "toy_pull", "C_std", "keep", "G_attn"))
    own = helped(capsys, monkeypatch, "--method", "toy", "--help")
    assert "Draws grey." in own and "--toy_pull" in own and "--beta2" not in own
    losses = helped(capsys, monkeypatch, "--help", "losses")
    assert "--gp_coeff" in losses and "--G_ch" not in losses
    with pytest.raises(UserError, match="--help 'loses' is no group of settings .did you mean 'losses'"):
        helped(capsys, monkeypatch, "--help", "loses")


# -------------------------------------------------------------------- a run from before methods/


@pytest.fixture
def old_world(tmp_path):
    """The images and the classifier that the run in tests/data was made on."""
    (tmp_path / "digits").mkdir()
    draws = np.random.default_rng(0)
    for split in ("train", "test"):
        with h5py.File(tmp_path / "digits" / f"{split}.h5", "w") as file:
            file["images"] = draws.integers(0, 256, (200, 1, 16, 16), dtype=np.uint8)
            file["labels"] = np.arange(200) % 10
            file.attrs["classes"] = list("0123456789")
    draws, weights = np.random.default_rng(1), build("smallcnn", 10, 1).state_dict()
    for name, value in weights.items():
        if name.endswith("running_var"):
            weights[name] = torch.ones_like(value)
        elif value.is_floating_point():
            weights[name] = torch.from_numpy(draws.standard_normal(tuple(value.shape)).astype(np.float32)) * 0.1
    save_torch(tmp_path / "C.pt", {"arch": "smallcnn", "num_classes": 10, "channels": 1, "resolution": 16,
                                   "mean": [0.5], "std": [0.5], "state_dict": weights})
    torch.manual_seed(0)
    save_torch(tmp_path / "E.pt", {"arch": "resnet8", "num_classes": 10, "channels": 1, "resolution": 16,
                                   "mean": [0.5], "std": [0.5], "state_dict": build("resnet8", 10, 1).state_dict()})
    return tmp_path


def test_a_run_with_a_flat_config_resumes_is_drawn_and_measured(old_world, tmp_path, monkeypatch):
    early, late = (OLD / "checkpoints" / f"step_{step:08d}.pt" for step in (2, 4))
    assert "own" not in load_checkpoint(early)["config"]
    state = load_run(early)
    config = replace(read_config(state["config"]), data_root=str(old_world), C_path=str(old_world / "C.pt"))
    assert config.own.diversity_coeff == 0.5 and config.own.mask_real_by_fake and config.precision == "fp32"
    run = start(config, DATASETS["digits"], CPU, state)
    # the terms that the run itself logged after these steps; another processor rounds otherwise
    for penalty, hinge in ((0.0625877, 2.73768), (0.095171, 2.07851)):
        terms = run.advance()
        assert terms["D_penalty"].item() == pytest.approx(penalty, rel=0.05)
        assert terms["D_hinge_fake"].item() == pytest.approx(hinge, rel=0.01)
    assert run.step == 4
    call(monkeypatch, sample, "--checkpoint", late, "--out", tmp_path / "grid.png", "--device", "cpu")
    (tmp_path / "old.pt").write_bytes(late.read_bytes())
    call(monkeypatch, evaluate, "--run", tmp_path / "old.pt", "--data_root", old_world, "--C_path", old_world / "C.pt",
         "--evaluator", old_world / "E.pt", "--metrics", "recognition", "--num", 50, "--device", "cpu")
    assert (tmp_path / "grid.png").is_file() and (tmp_path / "results.jsonl").is_file()
