#!/usr/bin/env python3
"""Seconds that the audit of a training's images takes, beside those of the matrix products that it cannot do without.

    python benchmarks/audit_time.py                  50,000 random images of 32x32 with structure at all scales
    python benchmarks/audit_time.py --dataset C10 --new_class horse --C_path pretrained/cifar10_regular.safetensors

The audit hashes, looks for near copies of the tenth that is left out and, with --C_path, for images that the classifier
takes for y*. The bar is two minutes on two cores for the first. The products are timed here, at the size that
the search uses and without anything around them, and scaled to the number of pairs; the ratio, of processor seconds, is
what the search adds. The audit is then made again with what the first has kept, as the next start of a training makes
it.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from classifiers import load_classifier  # noqa: E402
from config import Parser  # noqa: E402
from datasets import leave_out, near, open_source  # noqa: E402
from datasets.absence import test_source  # noqa: E402
from training import Judge  # noqa: E402
from utils import DATASETS, DatasetSpec, class_label, find_dataset, run_main  # noqa: E402


class Part:
    """`count` images of a source, drawn at random, in its order."""

    def __init__(self, source, count):
        rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:count]
        self.source, self.rows, self.image_shape = source, rows.sort().values, source.image_shape
        self.labels = source.labels[self.rows]

    def __len__(self):
        return len(self.rows)

    def name(self, i):
        return self.source.name(self.rows[int(i)])

    def read(self, indices):
        return self.source.read(self.rows[indices])


class Pictures:
    """A source of random images in memory, uint8 (count, 3, 32, 32), with ten labels in turn."""

    def __init__(self, count):
        self.labels, self.image_shape = torch.arange(count) % 10, (3, 32, 32)
        self.images = torch.empty(count, 3, 32, 32, dtype=torch.uint8)
        draw = torch.Generator().manual_seed(0)
        for part in self.images.split(1000):
            levels = [F.interpolate(torch.randn(len(part), 3, side, side, generator=draw), 32, mode="bilinear")
                      / side ** 0.7 for side in (2, 4, 8, 16, 32)]
            part.copy_((sum(levels) * 60 + 128).clamp(0, 255))

    def __len__(self):
        return len(self.labels)

    def name(self, i):
        return f"image {int(i)}"

    def read(self, indices):
        return self.images[indices]


def timed(function, *given, **options):
    """(what a call gives, seconds by the clock, seconds of the processor)."""
    began, cpu = time.perf_counter(), time.process_time()
    found = function(*given, **options)
    return found, time.perf_counter() - began, time.process_time() - cpu


def seconds_a_pair(size):
    """Seconds in which the cells of an image are multiplied with those of one left-out image in all views."""
    columns = near.COLUMNS * len(near.views(size))
    queries, across = torch.randn(near.QUERIES, near.CELLS ** 2), torch.randn(near.CELLS ** 2, columns)
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(10):
            queries @ across
        best = min(best, (time.perf_counter() - began) / 10)
    return best / (near.QUERIES * near.COLUMNS)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000, help="images, at most (default: 50000)")
    parser.add_argument("--dataset", help="images of a prepared data set, drawn at random, in place of random ones")
    parser.add_argument("--new_class", default="7", help="the class that is left out (default: 7)")
    parser.add_argument("--data_root", default="datasets", help="(default: datasets)")
    parser.add_argument("--C_path", help="also screen with this classifier")
    flags = parser.parse_args()
    test = None
    if flags.dataset:
        spec = DATASETS[find_dataset(flags.dataset)[0]]
        source, test = open_source(spec, flags.data_root, "train"), test_source(spec, flags.data_root)
        source = Part(source, flags.images) if flags.images < len(source) else source
    else:
        spec = DatasetSpec("random", 32, 3, tuple("0123456789"))
        source = Pictures(flags.images)
    label = class_label(spec, flags.new_class)
    judges = {"the classifier": Judge(load_classifier(flags.C_path), [label])} if flags.C_path else {}
    with tempfile.TemporaryDirectory() as cache:
        first, again = (timed(leave_out, source, spec, [label], test=test, judges=judges, cache=cache)
                        for _ in range(2))
    (indices, audit, _), seconds, cpu = first
    assert again[0][1] == audit
    copies = audit["near_copies"]
    kept = len(indices) + len(copies["removed"])
    pairs = kept * (copies["compared_with"] + min(near.REFERENCES, kept))
    products = pairs * seconds_a_pair(32 if spec.resolution >= 32 else 16) * torch.get_num_threads()
    print(f"{flags.dataset or 'random images'} without {spec.classes[label]}")
    print(f"{len(source)} images of {spec.resolution}x{spec.resolution}, {torch.get_num_threads()} threads: audited in "
          f"{seconds:.1f} s, {cpu:.1f} s of the processor; the products alone {products:.1f} s of it, ratio "
          f"{cpu / products:.1f}")
    print(f"audited again, with what was kept: {again[1]:.1f} s, {again[2]:.1f} s of the processor")
    print(f"threshold {copies['threshold']}, {copies['compared_with']} images of the class, "
          f"{len(copies['removed'])} near copies left out, {copies['suspects_found']} "
          "more shown; left out: " + ", ".join(f"{one['image']} ({one['correlation']})" for one in copies["removed"]))
    print("would find: " + ", ".join(f"{kind} {share:.0%}" for kind, share in copies["would_find"].items()))
    if audit["mistaken"]:
        print(f"{audit['mistaken']['suspects_found']} images of other classes taken for {spec.classes[label]}")


if __name__ == "__main__":
    run_main(main)
