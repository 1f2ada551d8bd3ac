"""Real data, where it lies beside the repository: MNIST with a digit unseen, and the CIFAR-10 pipeline."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import torch

import evaluate
from datasets.prepare import prepare
from experiments.marker import QUICK
from methods import RunParser, make_config, start
from train import train
from utils import DATASETS, load_checkpoint

ROOT = Path(__file__).parents[1]


def keep_first(path, count):
    """Cut a prepared file down to its first `count` images."""
    with h5py.File(path, "r") as file:
        images, labels, classes = file["images"][:count], file["labels"][:count], list(file.attrs["classes"])
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = images, labels
        file.attrs["classes"] = classes


def test_mnist_with_a_digit_unseen(shared_file, tmp_path, monkeypatch):
    """The robust classifier gives back the digit that the image set lacks, well above chance (0.1)."""
    prepare("mnist", tmp_path, source=shared_file("data/mnist"))
    keep_first(tmp_path / "mnist/train.h5", 10_000)
    keep_first(tmp_path / "mnist/test.h5", 1_000)
    evaluator = str(ROOT / "pretrained/mnist_evaluator.safetensors")
    config = make_config(**vars(RunParser("").parse_args([
        "--dataset", "MNIST", "--new_class", "7", "--data_root", str(tmp_path), "--device", "cpu", "--C_path",
        str(ROOT / "pretrained/mnist_robust.safetensors"), *QUICK["MNIST"].split(), "--G_new_coeff", "1",
        "--num_steps", "400"])))
    run = start(config, DATASETS["MNIST"], torch.device("cpu"))
    assert run.audit["images_per_class"]["7"] == 0 and run.audit["unseen_images_left_out"] > 900
    train(run, tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--run", str(tmp_path / "run"), "--num", "200", "--evaluator",
                                      evaluator, "--metrics", "recognition", "--device", "cpu"])
    evaluate.main()
    records = [json.loads(line) for line in (tmp_path / "run/results.jsonl").read_text().splitlines()]
    low = {record["class"] or record["group"]: record["low"] for record in records}
    print(low)
    assert low["7"] > 0.7
    assert low["all seen"] > 0.7


def test_twenty_steps_of_the_cifar10_pipeline(tenth_of_cifar10, tmp_path):
    """The user's commands on the real images: prepare, train, stop, resume, sample."""
    def command(program, *flags):
        done = subprocess.run([sys.executable, str(ROOT / program), *map(str, flags)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command("scripts/prepare_data.py", "cifar10", "--source", tenth_of_cifar10, "--data_root", tmp_path)
    run = tmp_path / "run"
    said = command("train.py", "--dataset", "C10_wo_horse", "--data_root", tmp_path, "--run", run, "--C_path",
                   ROOT / "pretrained/cifar10_robust.safetensors", "--G_ch", 8, "--D_ch", 8, "--batch_size", 16,
                   "--num_D_steps", 2, "--num_steps", 10, "--device", "cpu")
    assert "No image of horse was used: 500 images were left out" in said
    command("train.py", "--resume", run, "--num_steps", 20)
    state = load_checkpoint(run)
    assert state["step"] == 20 and state["audit"]["images_used"] == 4_500
    assert all(torch.isfinite(value).all() for name in ("G", "D", "G_ema") for value in state[name].values())
    command("sample.py", "--checkpoint", run, "--device", "cpu", "--columns", 4)
    assert (run / "samples_grid.png").stat().st_size > 10_000
