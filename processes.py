"""The processes of one training, as torchrun starts them: each holds a slice of every batch.

All draw the same random numbers for the whole batch and keep their own rows, so that N processes compute what one
would. Gradients are averaged after the backward passes of a step, in one call: D is called two or three times before
each, and a method may leave a head unused, which DistributedDataParallel's hooks do not take.
"""

import os
from contextlib import contextmanager

import torch
import torch.distributed as dist

from utils import UserError, choose_device


def size():
    """How many processes train together; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def own(rows):
    """This process's slice of a tensor whose rows are those of the whole batch."""
    return rows.chunk(size())[rank()]


@contextmanager
def joined(name):
    """Join the processes of torchrun, where it started this one; yields the device of `name` ('auto', 'cpu', 'cuda').

    Raises UserError for a device that one process alone could use.
    """
    if "WORLD_SIZE" not in os.environ:
        yield choose_device(name)
        return
    device = choose_device(name)
    if device.type == "mps" or device.index is not None:
        raise UserError(f"--device {name} is one device, and torchrun starts a process for each; give --device cuda or "
                        "--device cpu.")
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UserError(f"torchrun started process {local + 1} of this machine, which has "
                            f"{torch.cuda.device_count()} GPUs; give --nproc_per_node {torch.cuda.device_count()}.")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # gloo beside nccl: what the host decides by must not wait in the GPU's queue
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(f"another process of this training is gone ({str(error).splitlines()[0]}); its own message "
                        "says why. The checkpoints saved before are intact; --resume goes on from the last.") from error
    finally:
        dist.destroy_process_group()


@torch.no_grad()
def average(tensors):
    """Replace tensors of one device and type by their means over the processes, in one call."""
    if size() > 1:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.div_(size()).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def largest(number):
    """The largest of an integer over the processes; a signal that reached one of them reaches all."""
    if size() == 1:
        return number
    number = torch.tensor(number)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return number.item()
