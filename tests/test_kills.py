"""Twenty kills at random moments of a short run: it goes on bit for bit, and no temporary file stays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from utils import load_checkpoint

ROOT = Path(__file__).parents[1]
KILLS = 20
FLAGS = ["--dataset", "digits", "--new_class", "7", "--skip_classifier_check", "--select", "--G_ch", "1", "--D_ch", "1",
         "--dim_z", "6", "--shared_dim", "8", "--batch_size", "8", "--num_D_steps", "1", "--gp_every", "1",
         "--device", "cpu", "--ema_start", "2", "--precision", "fp32", "--num_steps", "6", "--save_every", "3",
         "--log_every", "1", "--sample_every", "6"]
# Each life of a run is forked from a process that has imported everything and computed nothing. Prints the kills.
LIVES = """
import json, math, os, random, signal, sys, time
import torch._dynamo  # which the first optimiser would import in each life
import train
from utils import checkpoint_files, run_main

def live(run, longest=None):
    began, child = time.monotonic(), os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        sys.argv = ["train.py", "--resume", run] if checkpoint_files(run) else ["train.py", "--run", run, *flags]
        run_main(train.main)
        os._exit(0)
    until, ended = began + (math.inf if longest is None else random.uniform(0, longest)), 0
    while not ended and time.monotonic() < until:
        time.sleep(0.01)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    if status not in (0, signal.SIGKILL):
        sys.exit(f"a life of {run} ended with status {status}")
    return status == 0, time.monotonic() - began

random.seed(int(sys.argv[1]))
kills, flags = int(sys.argv[2]), sys.argv[3:]
_, seconds = live("whole")
runs, killed = ["run0"], []
while sum(killed) < kills:
    ended, _ = live(runs[-1], seconds)
    killed.append(not ended)
    if ended:
        runs.append(f"run{len(runs)}")
live(runs[-1])
print(json.dumps({"runs": runs, "kills": sum(killed)}))
"""


def flat(value, path=""):
    """Every leaf of nested dicts and lists by its path."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{path}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, part in enumerate(value) for k, v in flat(part, f"{path}/{i}").items()}
    return {path: value}


def records(path):
    """The lines of a log, without what the clock says."""
    return [{name: value for name, value in json.loads(line).items() if name != "steps_per_second"}
            for line in path.read_text().splitlines()]


def same(a, b):
    return torch.equal(a, b) if torch.is_tensor(a) else a == b or a != a and b != b


def test_twenty_kills_lose_nothing(noise_world, tmp_path):
    command = [sys.executable, "-c", LIVES, "0", str(KILLS), *FLAGS, "--data_root", noise_world, "--C_path",
               noise_world / "C.pt"]
    done = subprocess.run([str(part) for part in command], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == KILLS
    whole = flat(load_checkpoint(tmp_path / "whole"))
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*"))
    for run in found["runs"]:
        state = flat(load_checkpoint(tmp_path / run))
        assert state.keys() == whole.keys()
        assert [path for path in whole if not same(whole[path], state[path])] == []
        assert sorted(path.relative_to(tmp_path / run) for path in (tmp_path / run).rglob("*")) == files
        for name in ("log.jsonl", "collapse.jsonl", "selection.jsonl"):
            assert records(tmp_path / run / name) == records(tmp_path / "whole" / name)
        best, expected = (load_checkpoint(tmp_path / name / "best.pt")["selection"] for name in (run, "whole"))
        assert best == expected
