#!/usr/bin/env python3
"""Time of one training iteration (all D steps and the G step), as a share of what the machine can do.

    python benchmarks/step_time.py --width 64 --batch_size 16 --num_D_steps 1 --precision bf16

Prints seconds an iteration, the arithmetic counted in it (2 operations a multiply-add, convolutions and
matrix products alone), GFLOP/s, and that rate as a share of the network's own 3x3 convolution, the faster of
its two largest sizes, measured in the same run between the iterations; and the peak memory. Medians,
since machines are noisy.
"""

import resource
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from baselines.probe import make_task  # noqa: E402
from BigGAN import make_discriminator, make_generator  # noqa: E402
from classifiers import ARCHITECTURES, FrozenClassifier, build  # noqa: E402
from config import Config, Parser  # noqa: E402
from train import discriminator_step, generator_step, make_adam  # noqa: E402
from utils import choose_device, run_main  # noqa: E402


class CountArithmetic(TorchDispatchMode):
    """Adds up the floating-point operations of every convolution and matrix product that runs inside."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        out = function(*arguments, **keywords)
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.flops += count(*arguments, **keywords, out_val=out)
        return out


def seconds(work, device):
    """Wall-clock seconds of work(), the device's own included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def convolution(config, batch_size, side, device):
    """The trunk's own convolution, 4*width channels at this side: (work, floating-point operations)."""
    channels = 4 * config.D_ch
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    x, weight = (torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
                 for shape in ((batch_size, channels, side, side), (channels, channels, 3, 3)))
    repeats = 2048 // side**2
    flops = repeats * 2 * batch_size * side * side * channels * channels * 9

    @torch.no_grad()
    def work():
        for _ in range(repeats):
            F.conv2d(x, weight, padding=1)

    return work, flops


def iteration(config, C_arch, resolution, channels, n_classes, device):
    """A function that runs one whole training iteration on random images."""
    torch.manual_seed(config.seed)
    G, D = (make(config, resolution, channels, n_classes).to(device, memory_format=torch.channels_last)
            for make in (make_generator, make_discriminator))
    C = FrozenClassifier(build(C_arch, n_classes, channels), n_classes, channels, resolution, [0.5] * channels,
                         [0.5] * channels).to(device, memory_format=torch.channels_last)
    G_optim, D_optim = make_adam(G, config.G_lr, config), make_adam(D, config.D_lr, config)
    task = make_task(config, range(n_classes), n_classes, device)
    images = torch.randint(0, 256, (config.batch_size, channels, resolution, resolution), dtype=torch.uint8,
                           device=device)
    labels = torch.randint(n_classes - 1, (config.batch_size,), device=device)

    def work():
        for _ in range(config.num_D_steps):
            discriminator_step(G, D, D_optim, images, labels, task, config)
        generator_step(G, D, C, G_optim, task, config, config.batch_size, device)

    return work


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--width", type=int, default=64, help="G_ch and D_ch (default: 64, the paper's)")
    parser.add_argument("--batch_size", type=int, default=64, help="(default: 64, the paper's)")
    parser.add_argument("--num_D_steps", type=int, default=4, help="(default: 4, the paper's)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(default: fp32)")
    parser.add_argument("--C_arch", choices=tuple(ARCHITECTURES), default="smallcnn", help="(default: smallcnn)")
    parser.add_argument("--repeats", type=int, default=5, help="iterations timed (default: 5)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    flags = parser.parse_args()
    device = choose_device(flags.device)
    config = Config(new_class=(9,), G_ch=flags.width, D_ch=flags.width, batch_size=flags.batch_size,
                    num_D_steps=flags.num_D_steps, precision=flags.precision)
    work = iteration(config, flags.C_arch, 32, 3, 10, device)
    convolutions = [convolution(config, 2 * flags.batch_size, side, device) for side in (16, 32)]
    work()
    for convolve, _ in convolutions:
        convolve()
    with CountArithmetic() as counter:
        work()
    times, conv_rates = [], [[] for _ in convolutions]
    for _ in range(flags.repeats):
        for rates, (convolve, flops) in zip(conv_rates, convolutions, strict=True):
            rates.append(flops / seconds(convolve, device))
        times.append(seconds(work, device))
    rate = counter.flops / statistics.median(times)
    conv_rate = max(statistics.median(rates) for rates in conv_rates)
    memory = (torch.cuda.max_memory_allocated(device) if device.type == "cuda"
              else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"32x32, 10 classes, width {flags.width}, batch {flags.batch_size}, {flags.num_D_steps} D steps, "
          f"{flags.precision}, {flags.C_arch}, {where}, torch {torch.__version__}")
    print(f"  an iteration   {statistics.median(times):9.3f} s   ({min(times):.3f} to {max(times):.3f}, "
          f"{flags.repeats} timed)")
    print(f"  arithmetic     {counter.flops / 1e9:9.1f} GFLOP an iteration")
    print(f"  rate           {rate / 1e9:9.1f} GFLOP/s")
    print(f"  convolution    {conv_rate / 1e9:9.1f} GFLOP/s   ({4 * flags.width} channels, 3x3, batch "
          f"{2 * flags.batch_size}, the faster of 16x16 and 32x32)")
    print(f"  share          {rate / conv_rate:9.1%} of the convolution's rate")
    print(f"  peak memory    {memory / 2**30:9.2f} GiB")


if __name__ == "__main__":
    run_main(main)
