#!/usr/bin/env python3
"""Time of one training iteration (all D steps, the G step, the moving average), as a share of what the machine can do.

    python benchmarks/step_time.py                                            the paper's size
    python benchmarks/step_time.py --width 64 --batch_size 16 --num_D_steps 1 --precision fp32 bf16
    python benchmarks/step_time.py --sweep width batch_size --json sweep.json --plot sweep.png

Each row is the training loop's own iteration on random images, once for each --precision, --C_arch and, on a GPU,
eagerly and as a CUDA graph. It gives seconds, images of the discriminator a second, the arithmetic counted (2
operations a multiply-add, convolutions and matrix products alone), and its rate as a share of two ceilings measured in
the same run between the iterations: the network's own 3x3 convolution, the faster of its two largest sizes, and a
square matrix product; and the peak memory. Medians, since machines are noisy. A second table splits the first row's
iteration into phases, run apart.
"""

import itertools
import platform
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import h5py
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import probegan_losses as losses  # noqa: E402
from classifiers import FrozenClassifier, build  # noqa: E402
from classifiers.files import save_classifier  # noqa: E402
from config import Parser  # noqa: E402
from layers import SpectralNorm  # noqa: E402
from machine import autocast  # noqa: E402
from methods import make_config, start  # noqa: E402
from step import discriminator_step, draw_fakes, frozen_weights, generator_step  # noqa: E402
from utils import DatasetSpec, UserError, choose_device, replacing, run_main, write_json  # noqa: E402

IMAGES = 2048  # random ones, in memory
SWEEPS = {"batch_size": (8, 16, 32, 64, 128), "width": (16, 32, 64, 96), "resolution": (16, 32, 64, 128),
          "classes": (2, 10, 100, 1000)}


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


# ---------------------------------------------------------------------------------- what the machine can do


def dtype_of(precision):
    return torch.bfloat16 if precision == "bf16" else torch.float32


def convolution(width, batch_size, side, precision, device):
    """The trunk's own convolution, 4*width channels at this side: (work, floating-point operations)."""
    channels = 4 * width
    shapes = (batch_size, channels, side, side), (channels, channels, 3, 3)
    x, weight = (torch.randn(shape, device=device, dtype=dtype_of(precision)).to(memory_format=torch.channels_last)
                 for shape in shapes)
    repeats = 2048 // side**2 * (20 if device.type == "cuda" else 1)
    flops = repeats * 2 * batch_size * side * side * channels * channels * 9

    @torch.no_grad()
    def work():
        for _ in range(repeats):
            F.conv2d(x, weight, padding=1)

    return work, flops


def product(precision, device):
    """A square matrix product: (work, floating-point operations)."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype_of(precision)) for _ in range(2))
    return lambda: a @ b, 2 * side**3


# ------------------------------------------------------------------------------------------ one training


def random_training(folder, settings, resolution, channels, n_classes, C_arch, device):
    """A train.Training on random images and a random classifier, all files below `folder`."""
    classes = tuple(map(str, range(n_classes)))
    spec = DatasetSpec("random", resolution, channels, classes)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, channels, resolution, resolution), dtype=torch.uint8, generator=generator)
    (folder / "random").mkdir()
    with h5py.File(folder / "random" / "train.h5", "w") as file:
        file["images"], file["labels"] = images.numpy(), torch.arange(IMAGES).numpy() % n_classes
        file.attrs["classes"] = list(classes)
    C = FrozenClassifier(build(C_arch, n_classes, channels), n_classes, channels, resolution, [0.5] * channels,
                         [0.5] * channels, C_arch, classes)
    save_classifier(folder / "C.pt", C)
    config = replace(make_config(dataset="C10", new_class=["0"]), new_class=(n_classes - 1,), data_root=str(folder),
                     C_path=str(folder / "C.pt"), **settings)
    return start(config, spec, device)


def phases(training):
    """{phase: work} of one iteration, each run apart: times and arithmetic add up to about the whole."""
    config, device, G, D = training.config, training.device, training.G, training.D
    images, labels = training.stream.next_batch()
    fakes = draw_fakes(G, training.task, training.rows, device)
    n = config.num_D_steps

    def make_fakes():
        with torch.no_grad(), autocast(device, config.precision):
            for _ in range(n):
                G(fakes.z, fakes.y)

    with torch.no_grad(), autocast(device, config.precision):
        made = G(fakes.z, fakes.y)

    def D_steps():
        for _ in range(n):
            discriminator_step(training.D_loss, G, D, training.D_optim, images, labels, fakes, training.task, config)

    def penalties():
        for _ in range(n):
            x_hat = made.clone().requires_grad_()
            with autocast(device, config.precision):
                penalty = losses.gradient_penalty(D(x_hat)[1], x_hat)
            penalty.backward()

    def G_step():
        generator_step(training.G_loss, G, D, training.C, training.G_optim, fakes, training.task, config)

    def classifier():
        x = made.clone().requires_grad_()
        with autocast(device, config.precision), frozen_weights(D):
            logits = training.C(x)
        logits.sum().backward()

    normalised = {network: [module for module in network.modules() if isinstance(module, SpectralNorm)]
                  for network in (G, D)}

    def spectral_norms():
        # as often as the networks run: D once for the losses and once for the penalty
        for network in [G, D, D] * n + [G, D]:
            for module in normalised[network]:
                module.normalised_weight()

    return {"G makes fakes for D": make_fakes, "D steps": D_steps, "of which the penalty": penalties, "G step": G_step,
            "of which the classifier": classifier, "spectral norms in all, forward": spectral_norms}


def counted(work):
    with CountArithmetic() as counter:
        work()
    return counter.flops


def measure(flags, precision, C_arch, graph, device):
    """The figures of one row, and of its phases where it is eager: (dict, {phase: dict})."""
    settings = {"G_ch": flags.width, "D_ch": flags.width, "batch_size": flags.batch_size, "precision": precision,
                "num_D_steps": flags.num_D_steps, "one_G_pass": flags.one_G_pass, "cuda_graph": graph, "ema_start": 0}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak of the rows before
    with tempfile.TemporaryDirectory() as folder:
        training = random_training(Path(folder), settings, flags.resolution, flags.channels, flags.classes, C_arch,
                                   device)
    convolutions = [convolution(flags.width, 2 * flags.batch_size, side, precision, device) for side in (16, 32)]
    ceilings = {"convolution": convolutions, "product": [product(precision, device)]}
    batches = [training.stream.next_batch() for _ in range(flags.num_D_steps)]
    flops = counted(lambda: training.iterate(batches))
    for _ in range(5 if graph else 1):  # a graph is captured at the fourth
        training.advance()
    rates = {name: [[] for _ in works] for name, works in ceilings.items()}
    times = []
    for _ in range(flags.repeats):
        for name, works in ceilings.items():
            for found, (work, count) in zip(rates[name], works, strict=True):
                found.append(count / seconds(work, device))
        times.append(seconds(training.advance, device))
    rate = flops / statistics.median(times)
    best = {name: max(statistics.median(part) for part in found) for name, found in rates.items()}
    memory = (torch.cuda.max_memory_allocated(device) if device.type == "cuda"
              else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    row = {"precision": precision, "C_arch": C_arch, "mode": "graph" if graph else "eager", "width": flags.width,
           "batch_size": flags.batch_size, "num_D_steps": flags.num_D_steps, "resolution": flags.resolution,
           "classes": flags.classes, "one_G_pass": flags.one_G_pass, "seconds": statistics.median(times),
           "fastest": min(times), "slowest": max(times), "GFLOP": flops / 1e9, "GFLOP_per_s": rate / 1e9,
           **{f"{name}_GFLOP_per_s": value / 1e9 for name, value in best.items()},
           **{f"share_of_{name}": rate / value for name, value in best.items()}, "peak_GiB": memory / 2**30}
    parts = {}
    if not graph and not flags.sweep:
        for name, work in phases(training).items():
            count = counted(work)
            took = statistics.median(seconds(work, device) for _ in range(flags.repeats))
            parts[name] = {"seconds": took, "GFLOP": count / 1e9, "share_of_convolution": count / took
                           / best["convolution"]}
    return row, parts


# ------------------------------------------------------------------------------------------- tables, plots

COLUMNS = {"resolution": "{} px", "classes": "{} classes", "width": "width {}", "batch_size": "batch {}",
           "precision": "{}", "C_arch": "{}", "mode": "{}", "seconds": "{:.4g} s", "GFLOP": "{:.5g} GFLOP",
           "GFLOP_per_s": "{:.4g} GFLOP/s", "share_of_convolution": "{:.1%} of conv",
           "share_of_product": "{:.1%} of product", "peak_GiB": "{:.2f} GiB"}


def print_rows(rows):
    """A line a row, in columns."""
    lines = [[form.format(row[name]) for name, form in COLUMNS.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  " + "  ".join(f"{text:>{width}}" for text, width in zip(line, widths, strict=True)))


def plot(path, rows, sweeps):
    """Seconds an iteration and share of the convolution's rate against each swept quantity, as a picture."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--plot needs the package matplotlib; install it with: pip install matplotlib") from error
    figure = Figure(figsize=(5 * len(sweeps), 7), layout="constrained")
    axes = figure.subplots(2, len(sweeps), squeeze=False)
    for column, name in enumerate(sweeps):
        curves = {}
        for row in rows:
            if row["swept"] == name:
                curves.setdefault((row["precision"], row["C_arch"], row["mode"]), []).append(row)
        for label, points in curves.items():
            for place, figure_of in enumerate(("seconds", "share_of_convolution")):
                axes[place, column].plot([p[name] for p in points], [p[figure_of] for p in points], "o-",
                                         label=", ".join(label))
        axes[0, column].set(xscale="log", yscale="log", ylabel="seconds an iteration")
        axes[1, column].set(xscale="log", ylim=(0, 1), xlabel=name, ylabel="share of the convolution's rate")
        axes[0, column].legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--width", type=int, default=64, help="G_ch and D_ch (default: 64, the paper's)")
    parser.add_argument("--batch_size", type=int, default=64, help="(default: 64, the paper's)")
    parser.add_argument("--num_D_steps", type=int, default=4, help="(default: 4, the paper's)")
    parser.add_argument("--resolution", type=int, default=32, help="(default: 32)")
    parser.add_argument("--channels", type=int, default=3, help="(default: 3)")
    parser.add_argument("--classes", type=int, default=10, help="(default: 10)")
    parser.add_argument("--precision", nargs="+", default=["fp32"], help="fp32, bf16 (default: fp32)")
    parser.add_argument("--C_arch", nargs="+", default=["smallcnn"], help="classifiers, such as smallcnn resnet50")
    parser.add_argument("--one_G_pass", action="store_true", help="the fakes of all D steps at once")
    parser.add_argument("--sweep", nargs="+", default=[], choices=tuple(SWEEPS), help="vary these, one after the other")
    parser.add_argument("--repeats", type=int, default=5, help="iterations timed (default: 5)")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--plot", type=Path, help="with --sweep, also draw them there")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    flags = parser.parse_args()
    if flags.plot and not flags.sweep:
        raise UserError("--plot draws a --sweep; give both, or neither.")
    device = choose_device(flags.device)
    for precision in flags.precision:
        make_config(new_class=["0"], precision=precision)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{where}, torch {torch.__version__}, {flags.num_D_steps} D steps")
    rows, parts = [], {}
    usual = {name: getattr(flags, name) for name in SWEEPS}
    points = [(name, value) for name in flags.sweep for value in SWEEPS[name]] or [("", None)]
    modes = (False, True) if device.type == "cuda" else (False,)
    for (name, value), precision, C_arch, graph in itertools.product(points, flags.precision, flags.C_arch, modes):
        for key, start_value in usual.items():
            setattr(flags, key, value if key == name else start_value)
        row, of_phases = measure(flags, precision, C_arch, graph, device)
        rows.append({"swept": name, **row})
        parts = parts or of_phases
        print_rows(rows[-1:])
    if len(rows) > 1:
        print("together:")
        print_rows(rows)
    if parts:
        print(f"phases of an iteration, {rows[0]['precision']}, run apart:")
        for name, part in parts.items():
            print(f"  {name:31}{part['seconds']:9.4f} s{part['GFLOP']:11.1f} GFLOP  "
                  f"{part['share_of_convolution']:6.1%} of conv")
    if flags.json:
        write_json(flags.json, {"device": where, "torch": str(torch.__version__), "machine": platform.machine(),
                                "command": " ".join(sys.argv), "rows": rows, "phases": parts})
    if flags.plot:
        plot(flags.plot, rows, flags.sweep)


if __name__ == "__main__":
    run_main(main)
