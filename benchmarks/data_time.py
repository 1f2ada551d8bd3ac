#!/usr/bin/env python3
"""Images a second that a set too large for memory streams at, shuffled, checked and augmented, as a training reads it.

    python benchmarks/data_time.py                               60,000 images of 64x64 in HDF5 and in a folder of PNG

Random images are written first, below --root (the system's folder for such, if not given). Nothing is kept in memory
(--max_resident_gb 0); the operating system may keep the file there, so a disk's own speed is measured only with a set
larger than memory. Prints a line a kind of file; --num images are read of each.
"""

import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import Parser  # noqa: E402
from datasets import ImageStream, leave_out, open_source  # noqa: E402
from utils import DatasetSpec, run_main  # noqa: E402

CHUNK = 1000


def smooth(rng, count, side):
    """Images (count, 3, side, side) uint8 that compress about as photographs do: a coarse pattern with some noise."""
    coarse = rng.integers(0, 200, (count, 3, side // 8, side // 8))
    return (coarse.repeat(8, 2).repeat(8, 3) + rng.integers(0, 32, (count, 3, side, side))).astype(np.uint8)


def write(root, kind, count, side):
    """Write `count` images of ten classes below root/<kind>, as HDF5 or as PNG files."""
    rng, folder = np.random.default_rng(0), root / kind
    folder.mkdir()
    if kind == "hdf5":
        with h5py.File(folder / "train.h5", "w") as file:
            images = file.create_dataset("images", (count, 3, side, side), np.uint8)
            file["labels"] = np.arange(count) % 10
            file.attrs["classes"] = list("0123456789")
            for start in range(0, count, CHUNK):
                images[start:start + CHUNK] = smooth(rng, min(CHUNK, count - start), side)
        return
    for label in range(10):
        (folder / "train" / str(label)).mkdir(parents=True)
    for start in range(0, count, CHUNK):
        for i, image in enumerate(smooth(rng, min(CHUNK, count - start), side), start):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / "train" / str(i % 10) / f"{i:08d}.png")


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--images", type=int, default=60_000, help="in the set (default: 60000)")
    parser.add_argument("--num", type=int, default=50_000, help="images read (default: 50000)")
    parser.add_argument("--resolution", type=int, default=64, help="(default: 64)")
    parser.add_argument("--batch_size", type=int, default=64, help="(default: 64)")
    parser.add_argument("--num_workers", type=int, default=2, help="threads that read (default: 2)")
    parser.add_argument("--root", type=Path, help="folder to write the images to")
    flags = parser.parse_args()
    for kind in ("hdf5", "folder"):
        with tempfile.TemporaryDirectory(dir=flags.root) as root:
            write(Path(root), kind, flags.images, flags.resolution)
            spec = DatasetSpec(kind, flags.resolution, 3, tuple("0123456789"))
            source = open_source(spec, root, "train")
            indices, _, guard = leave_out(source, spec, [7])
            stream = ImageStream(source, indices, guard, flags.batch_size, "cpu", "flip_crop", max_resident_gb=0.0,
                                 num_workers=flags.num_workers)
            stream.next_batch()
            start, count = time.perf_counter(), 0
            while count < flags.num:
                count += len(stream.next_batch()[0])
            rate = count / (time.perf_counter() - start)
            side = flags.resolution
            print(f"{kind:7} {rate:8.0f} images/s of {side}x{side}, {flags.num_workers} threads, batch "
                  f"{flags.batch_size}", flush=True)


if __name__ == "__main__":
    run_main(main)
