"""Several processes, as torchrun starts them, compute what one computes; they stop together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from datasets import ImageStream
from utils import load_checkpoint

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
SMALL = ["--G_ch", "1", "--D_ch", "1", "--dim_z", "6", "--shared_dim", "8", "--batch_size", "12", "--num_D_steps", "2",
         "--device", "cpu", "--precision", "fp32", "--ema_start", "2", "--skip_classifier_check", "--dataset", "digits",
         "--new_class", "7"]
# a few steps in float64, whose terms and weights each process writes down
WORKER = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
import processes
from methods import make_config
from train import start
from utils import DATASETS
settings = eval(sys.argv[4])
with processes.joined("cpu") as device:
    run = start(make_config(**settings), DATASETS["digits"], device)
    for network in (run.C, run.G, run.D, run.G_ema):
        network.double()
    run.C.model.double()
    terms = [run.advance() for _ in range(3)]
    for step in terms:
        processes.average(list(step.values()))
    if sys.argv[3] == "fails" and processes.rank() == 1:
        raise ValueError("a planted error")
    if sys.argv[3] == "fails":
        run.advance()
    torch.save({"terms": terms, "weights": run.state()["G"] | {"D." + k: v for k, v in run.state()["D"].items()}},
               f"{sys.argv[2]}/{sys.argv[3]}_{processes.rank()}.pt")
"""


@pytest.fixture(scope="module")
def world(noise_world):
    (noise_world / "worker.py").write_text(WORKER)
    return noise_world


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def steps(world, name, launcher, **changes):
    settings = {"dataset": "digits", "data_root": str(world), "new_class": ["7"], "C_path": str(world / "C.pt"),
                "G_ch": 1, "D_ch": 1, "dim_z": 6, "shared_dim": 8, "batch_size": 12, "num_D_steps": 2, "device": "cpu",
                "diffaug": (), "G_attn": "16", "precision": "fp32", **changes}
    return subprocess.run([*launcher, str(world / "worker.py"), str(ROOT), str(world), name, repr(settings)],
                          capture_output=True, text=True, env=environment(), timeout=300)


@pytest.mark.parametrize("changes", [
    # the spread of a class, and the level of the seen ones, are those of one process's rows
    {"D2_reg_coeff": 0.0, "C_new_coeff": 2.0, "G_new_coeff": 3.0, "spread_coeff": 0.0, "level_unseen": False},
    {"method": "naive", "num_D_accumulations": 2, "num_G_accumulations": 3, "augment": "flip_crop"},
], ids=["probegan", "naive, accumulated"])
def test_two_processes_take_the_steps_of_one(world, changes):
    """In float64: terms within 1e-9 of the single process, and weights equal on both ranks, batch norms included."""
    if "num_G_accumulations" in changes:  # parts see other batch norms: the same parts, then, in one process
        alone = steps(world, "two", TORCHRUN, **changes)
        assert alone.returncode == 0, alone.stderr[-2000:]
        one = None
    else:
        done = steps(world, "one", [sys.executable], **changes)
        assert done.returncode == 0, done.stderr[-2000:]
        done = steps(world, "two", TORCHRUN, **changes)
        assert done.returncode == 0, done.stderr[-2000:]
        one = torch.load(world / "one_0.pt")
    first, second = (torch.load(world / f"two_{rank}.pt") for rank in range(2))
    assert len(first["weights"]) > 50
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    assert any(not torch.equal(first["terms"][0][name], first["terms"][1][name]) for name in first["terms"][0])
    if one:
        for ours, expected in zip(first["terms"], one["terms"], strict=True):
            for name, value in expected.items():
                parts = 2 if name.startswith(("fakes_", "accepted_")) else 1  # numbers, of each process's own fakes
                assert ours[name].item() == pytest.approx(value.item() / parts, rel=1e-9, abs=1e-9), name
        for name, value in one["weights"].items():
            assert torch.allclose(first["weights"][name], value, atol=1e-9), name


def test_an_error_in_one_process_ends_the_other_with_a_sentence_or_a_signal(world):
    done = steps(world, "fails", TORCHRUN)
    assert done.returncode != 0
    assert "a planted error" in done.stderr
    assert not list(world.glob("fails_*.pt"))


def test_a_run_by_torchrun_writes_one_run_folder_stops_as_one_and_goes_on(world, tmp_path):
    run = tmp_path / "run"
    flags = [*SMALL, "--data_root", str(world), "--C_path", str(world / "C.pt"), "--run", str(run)]
    process = subprocess.Popen([*TORCHRUN, str(ROOT / "train.py"), *flags, "--num_steps", "100000", "--log_every", "1"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    log = run / "log.jsonl"
    deadline = time.monotonic() + 240
    while not (log.exists() and len(log.read_text().splitlines()) >= 3):
        assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    workers = [int(pid) for pid in children.stdout.split()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGTERM)  # one process alone is told
    _, said = process.communicate(timeout=240)
    assert process.returncode != 0 and said.count("go on with: python train.py --resume") == 1
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    state = load_checkpoint(run)
    assert state["step"] == lines[-1]["step"] == len(lines)
    done = subprocess.run([*TORCHRUN, str(ROOT / "train.py"), "--resume", str(run), "--num_steps",
                           str(state["step"] + 2)], capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert load_checkpoint(run)["step"] == state["step"] + 2
    assert {path.name for path in run.iterdir()} == {"config.json", "audit.json", "classifier_check.json", "log.jsonl",
                                                     "collapse.jsonl", "teachers.jsonl", "samples.png", "checkpoints"}


@pytest.mark.parametrize("flags, words", [
    (["--batch_size", "13"], "--batch_size 13 cannot be shared by 2 processes; give a multiple of their number"),
    (["--method", "deep_inversion"], "--method deep_inversion trains no GAN, and runs in one process"),
    (["--device", "mps"], "torchrun starts a process for each; give --device cuda or|device 'mps' is not available"),
])
def test_what_two_processes_cannot_share_gets_a_sentence(world, tmp_path, flags, words):
    done = subprocess.run([*TORCHRUN, str(ROOT / "train.py"), *SMALL, "--data_root", str(world), "--C_path",
                           str(world / "C.pt"), "--run", str(tmp_path / "run"), *flags],
                          capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode != 0 and any(part in done.stderr for part in words.split("|"))


class Whole:
    """Ten numbered images."""

    image_shape = (1, 16, 16)
    labels = torch.arange(10)

    def read(self, indices):
        return indices.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, *self.image_shape).contiguous()

    def check(self, images, labels):
        pass


@pytest.mark.parametrize("max_resident_gb", [1.0, 0.0])
def test_the_slices_of_two_processes_make_the_batch_of_one(max_resident_gb):
    def stream(rank, size):
        return ImageStream(Whole(), torch.arange(10), Whole(), 4, "cpu", "flip_crop", seed=3,
                           max_resident_gb=max_resident_gb, rank=rank, size=size)

    whole, parts = stream(0, 1), [stream(rank, 2) for rank in range(2)]
    for _ in range(5):
        images, labels = whole.next_batch()
        slices = [part.next_batch() for part in parts]
        assert torch.equal(torch.cat([part[0] for part in slices]), images)
        assert torch.equal(torch.cat([part[1] for part in slices]), labels)
