"""What this machine does fastest: the number of threads, and the arithmetic."""

import os
import statistics
import time
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F

from utils import UserError

TRIES = 7
WORTH = 1.2  # times as fast as float32, from which bfloat16 is chosen on a CPU


def medians(works):
    """{name: median seconds of work()} of {name: work}, run in turn, so that a change of speed hits all."""
    seconds = {name: [] for name in works}
    for _ in range(TRIES):
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found) for name, found in seconds.items()}


def tune(device, threads=0):
    """Let torch train as fast as this machine can: TF32 on a GPU; on a CPU as many threads as measure fastest.

    The threads of a convolution wait for each other, so that on cores that are busy or lent in part fewer are faster.
    Torch's own number, then half of it and so on, are tried; OMP_NUM_THREADS decides where it is set, else `threads`,
    those of a run that is gone on with: rounding depends on them.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    if device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return
    usual = torch.get_num_threads()
    if 0 < threads <= usual:
        torch.set_num_threads(threads)
        return
    x, weight = torch.zeros(32, 64, 32, 32), torch.zeros(64, 64, 3, 3)

    def with_threads(threads):
        torch.set_num_threads(threads)
        F.conv2d(x, weight, padding=1)

    found = medians({usual >> i: lambda threads=usual >> i: with_threads(threads) for i in range(usual.bit_length())})
    best = min(found, key=found.get)
    # rounding depends on the number of threads: another than usual only where it matters
    torch.set_num_threads(best if found[best] < 0.8 * found[usual] else usual)
    if torch.get_num_threads() != usual:
        print(f"computing with {best} of {usual} threads, measured {found[usual] / found[best]:.1f} times as fast; "
              "OMP_NUM_THREADS sets another number")


def bfloat16_speed():
    """How many times as fast as in float32 this CPU convolves in bfloat16: 64 channels of 32x32."""
    works = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = (torch.zeros(shape, dtype=dtype).to(memory_format=torch.channels_last)
                     for shape in ((32, 64, 32, 32), (64, 64, 3, 3)))
        works[dtype] = lambda x=x, weight=weight: F.conv2d(x, weight, padding=1)
    found = medians(works)
    return found[torch.float32] / found[torch.bfloat16]


@contextmanager
def told_of_memory(flags):
    """Turn running out of memory into a UserError that names the flags that need less."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(f"there is not enough memory ({str(error).splitlines()[0] if str(error) else 'of the CPU'}); "
                        f"give a smaller {flags}.") from error
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise UserError(f"there is not enough memory of the CPU; give a smaller {flags}.") from error


def choose_precision(name, device):
    """'fp32' or 'bf16' for a setting 'auto', 'fp32' or 'bf16'.

    auto is bf16 on a GPU, and on a CPU where a convolution measures faster in it (with avx512_bf16 or AMX; without
    them it is several times slower). A bf16 that was asked for and measures slower is said.
    """
    if name == "fp32" or device.type != "cpu":
        return "fp32" if name == "fp32" or device.type == "mps" and name == "auto" else "bf16"
    speed = bfloat16_speed()
    if name == "bf16" and speed < 1:
        print(f"--precision bf16: a convolution in bfloat16 takes {1 / speed:.1f} times as long as in float32 on this "
              "CPU; --precision auto or fp32 is faster")
    return "bf16" if name == "bf16" or speed > WORTH else "fp32"


def autocast(device, precision):
    """The context a forward pass runs in: bfloat16 autocast for 'bf16', nothing for 'fp32'."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
