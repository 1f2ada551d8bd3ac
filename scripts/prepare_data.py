#!/usr/bin/env python3
"""Prepare an image set: python scripts/prepare_data.py cifar10 [--source FILE_OR_DIR]

  cifar10, mnist   downloaded through torchvision, or taken from --source: the publisher's own files, or
                   a zip or folder of <split>/<class>/<file>
  digits           scikit-learn's bundled digits, no download
  waterbirds       --source the published folder, or a zip of it: 64 pixels; waterbirds32: the same at 32
  any other name   your own images: --source ZIP_OR_DIR --resolution 64 --channels 3

It prints what was read as what, and what was passed over. Images are turned as their EXIF orientation says, transparent
pixels are shown on white, and images of more than 8 bits are scaled by the largest value of the whole set.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import Parser  # noqa: E402
from datasets.layouts import LAYOUTS  # noqa: E402
from datasets.prepare import prepare, summary  # noqa: E402
from utils import ROOT, run_main  # noqa: E402


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("name", help="cifar10, mnist, digits, or a name of your own")
    parser.add_argument("--source", help="zip file or folder to read instead of the download")
    parser.add_argument("--resolution", type=int, help="pixels a side: 16 to 256, 4 to 7 times a power of two")
    parser.add_argument("--channels", type=int, help="1 (grey) or 3 (colour)")
    parser.add_argument("--test_share", type=float, default=0.1,
                        help="share of each class held out where the source has no test or val split (default: 0.1)")
    parser.add_argument("--layout", default="", choices=("", *LAYOUTS),
                        help="classes: each folder is a class; splits: folders such as train and test, of classes")
    parser.add_argument("--skip_bad", action="store_true", help="leave out images that do not decode, and count them")
    parser.add_argument("--attributes", nargs="+", default=[], metavar="COLUMN",
                        help="columns of the source's CSV to store beside the labels, such as place; the CSV then says "
                        "each image's file, class and, if it has the column, split")
    parser.add_argument("--csv", default="metadata.csv", help="that CSV, in the source (default: metadata.csv)")
    parser.add_argument("--drop_mislabelled", action="store_true",
                        help="waterbirds: without the three species of landbirds that are labelled waterbird")
    parser.add_argument("--data_root", default=str(ROOT / "datasets"), help="folder to write below (default: datasets)")
    args = parser.parse_args()
    spec, splits = prepare(args.name, args.data_root, args.source, args.resolution, args.channels, args.test_share,
                           args.attributes, args.csv, args.drop_mislabelled, args.layout, args.skip_bad, print)
    print(summary(spec, splits, args.data_root))


if __name__ == "__main__":
    run_main(main)
