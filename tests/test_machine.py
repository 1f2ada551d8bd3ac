"""The number of threads and the arithmetic are chosen by what measures fastest."""

import re
import time

import pytest
import torch

import machine
from machine import choose_precision
from utils import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("error, said", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), "not enough memory (CUDA out of memory. Tried)"),
    (MemoryError(), "not enough memory (of the CPU)"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory of the CPU"),
])
def test_out_of_memory_names_the_flag_that_helps(error, said):
    with pytest.raises(UserError, match=re.escape(said) + ".*; give a smaller --batch_size"), \
            machine.told_of_memory("--batch_size"):
        raise error
    with pytest.raises(RuntimeError, match="another"), machine.told_of_memory("--batch_size"):
        raise RuntimeError("another")


@pytest.mark.parametrize("cost, taken, said", [
    ({4: 3, 2: 1, 1: 2}, 2, "computing with 2 of 4 threads, measured [23]"), ({4: 3, 2: 3, 1: 3}, 4, "$"),
    ({4: 1, 2: 2, 1: 4}, 4, "$"),
])
def test_as_many_threads_as_measure_fastest(monkeypatch, capsys, cost, taken, said):
    usual = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine.F, "conv2d", lambda *_, **__: time.sleep(cost[torch.get_num_threads()] / 500))
    try:
        torch.set_num_threads(4)
        machine.tune(torch.device("cpu"))
        assert torch.get_num_threads() == taken
    finally:
        torch.set_num_threads(usual)
    assert re.match(said, capsys.readouterr().out)


def test_the_environment_decides_on_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail("the number was changed"))
    machine.tune(torch.device("cpu"))


@pytest.mark.parametrize("asked, cost, chosen, said", [
    ("auto", {torch.float32: 4, torch.bfloat16: 1}, "bf16", "$"),
    ("auto", {torch.float32: 1, torch.bfloat16: 4}, "fp32", "$"),
    ("auto", {torch.float32: 1, torch.bfloat16: 1}, "fp32", "$"),
    ("bf16", {torch.float32: 1, torch.bfloat16: 4}, "bf16", "--precision bf16: a convolution in bfloat16 takes [34]"),
    ("bf16", {torch.float32: 4, torch.bfloat16: 1}, "bf16", "$"),
    ("fp32", {torch.float32: 4, torch.bfloat16: 1}, "fp32", "$"),
])
def test_the_arithmetic_that_measures_faster(monkeypatch, capsys, asked, cost, chosen, said):
    monkeypatch.setattr(machine.F, "conv2d", lambda x, *_, **__: time.sleep(cost[x.dtype] / 200))
    assert choose_precision(asked, CPU) == chosen
    assert re.match(said, capsys.readouterr().out)


def test_a_gpu_takes_bfloat16_unmeasured(monkeypatch):
    monkeypatch.setattr(machine, "bfloat16_speed", lambda: pytest.fail("measured"))
    assert [choose_precision(name, torch.device("cuda")) for name in ("auto", "bf16", "fp32")] == [
        "bf16", "bf16", "fp32"]
