#!/usr/bin/env python3
"""Time of measuring images: through the evaluator, and all distances, as a share of what the machine can do.

    python benchmarks/evaluate_time.py                      50,000 random 32x32 images, ten classes
    python benchmarks/evaluate_time.py --num 500            500 of them, as a try

Random images stand for generated and for real ones, since no time depends on what they show. Prints seconds of each
phase, images a second, and the evaluator's arithmetic (2 operations a multiply-add) as a share of the rate of its own
largest 3x3 convolution, measured in the same run. Statistics of real images are computed, not read from a cache.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.step_time import CountArithmetic, seconds  # noqa: E402
from classifiers import ARCHITECTURES, FrozenClassifier, build  # noqa: E402
from config import Parser  # noqa: E402
from metrics import protocols  # noqa: E402, F401  registers the measurements
from metrics.features import ClassifierFeatures  # noqa: E402
from metrics.measured import Measured  # noqa: E402
from metrics.registry import METRICS  # noqa: E402
from utils import DATASETS, choose_device, run_main  # noqa: E402

BATCH = 500


def random_set(folder, count, spec):
    """Write `count` random images with labels in turn as the training split below `folder`."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, spec.channels, spec.resolution, spec.resolution), dtype=torch.uint8,
                           generator=generator)
    path = folder / spec.folder / "train.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = images.numpy(), torch.arange(count).numpy() % len(spec.classes)
        file.attrs["classes"] = list(spec.classes)


def source(num, spec, unseen):
    """Random images as metrics.images gives generated ones."""
    def read(label, start, stop):
        generator = torch.Generator().manual_seed(1 + label * num + start)
        return torch.randint(0, 256, (stop - start, spec.channels, spec.resolution, spec.resolution),
                             dtype=torch.uint8, generator=generator)

    drawn = list(range(len(spec.classes)))
    return SimpleNamespace(num=num, classes=spec.classes, drawn=drawn, new_class=[unseen], left_out=[unseen],
                           shares=None, different={}, read=read)


def convolution_rate(classifier, images, device):
    """Floating-point operations a second of the evaluator's 3x3 convolution of most arithmetic, by itself."""
    found = []

    def note(module, inputs, output):
        if module.kernel_size == (3, 3):
            flops = 2 * output.numel() * module.in_channels // module.groups * 9
            found.append((flops, module, inputs[0].detach().clone()))

    handles = [module.register_forward_hook(note) for module in classifier.modules()
               if isinstance(module, torch.nn.Conv2d)]
    with torch.no_grad():
        classifier(images)
        for handle in handles:
            handle.remove()
        flops, module, given = max(found, key=lambda entry: entry[0])
        module(given)
        return max(flops / seconds(lambda: module(given), device) for _ in range(5))


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--num", type=int, default=50_000, help="images of each kind (default: 50000)")
    parser.add_argument("--arch", choices=tuple(ARCHITECTURES), default="resnet9", help="(default: resnet9)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    flags = parser.parse_args()
    device, spec = choose_device(flags.device), DATASETS["C10"]
    torch.manual_seed(0)
    classifier = FrozenClassifier(build(flags.arch, 10, 3), 10, 3, 32, [0.5] * 3, [0.5] * 3).to(
        device, memory_format=torch.channels_last)
    judge = ClassifierFeatures(classifier, "random")
    batch = torch.rand(min(BATCH, flags.num), 3, 32, 32, device=device) * 2 - 1
    with CountArithmetic() as counter:
        judge(batch)
    rate = convolution_rate(classifier, batch, device)
    print(f"{flags.num} images of 32x32 of each kind, {flags.arch}, {judge.dim} features, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")

    def phase(name, work):
        start = time.perf_counter()
        result = work()
        taken = time.perf_counter() - start
        print(f"  {name:38} {taken:9.2f} s", flush=True)
        return result, taken

    with tempfile.TemporaryDirectory() as folder:
        random_set(Path(folder), flags.num, spec)
        images = source(flags.num // len(spec.classes), spec, unseen=7)
        measured, forward = phase("generated images, evaluator", lambda: Measured(
            images, judge, judge, None, (), "C10", folder, device, BATCH))
        _, real = phase("real images, evaluator (then cached)", lambda: measured.real)
        metrics = [metric for metric in METRICS.values() if "probed" not in metric.needs]
        rest = sum(phase(metric.name, lambda metric=metric: metric.measure(measured))[1] for metric in metrics)
    speed = counter.flops / len(batch) * flags.num / forward
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  evaluator and all distances            {forward + rest:9.2f} s   ({forward + rest + real:.2f} s with the "
          "real images)")
    print(f"  evaluator                              {flags.num / forward:9.0f} images/s, {speed / 1e9:.1f} GFLOP/s, "
          f"{speed / rate:.0%} of its largest convolution's {rate / 1e9:.1f} GFLOP/s")
    print(f"  peak memory                            {peak:9.2f} GiB")


if __name__ == "__main__":
    run_main(main)
