#!/usr/bin/env python3
"""Whether the ImageNet features of the optional package hold: a linear classifier on them, beside one on a random
network's and one on pixels, for land or water and for landbird or waterbird.

    python benchmarks/imagenet_features.py --dataset waterbirds32 --side 96
"""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from classifiers import build  # noqa: E402
from classifiers.groups import balanced_rows, rate  # noqa: E402
from config import Parser  # noqa: E402
from datasets import open_source, read_all  # noqa: E402
from datasets.attributes import attributes_of, groups_of  # noqa: E402
from machine import autocast  # noqa: E402
from utils import DATASETS, run_main, to_unit_range  # noqa: E402

EACH = {"pool": 200, "calibration": 190}  # images of each class and place that are fitted to, and tested on
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)


def balanced_images(dataset, data_root, split):
    """(images uint8 (n, 3, H, W), {what: labels (n,)}) of a split, as many of each class and place, shuffled."""
    source = open_source(DATASETS[dataset], data_root, split)
    place = attributes_of(source)[0]["place"]
    generator = torch.Generator().manual_seed(0)
    rows = balanced_rows(groups_of(source.labels, place), EACH[split], generator)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    return read_all(source, rows), {"place": place.of[rows], "bird": source.labels[rows]}


@torch.no_grad()
def features(network, images, side):
    """What the network's last layer is given, for images enlarged to `side` pixels; 16x16 pixels without a network."""
    if network is None:
        return F.adaptive_avg_pool2d(images.float(), 16).flatten(1)
    found = []
    for part in images.split(100):
        x = F.interpolate(to_unit_range(part), (side, side), mode="bilinear").contiguous(
            memory_format=torch.channels_last)
        with autocast(x.device, "bf16"):
            found.append(network(x).float())
    return torch.cat(found)


def main():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    parser = Parser(description=__doc__)
    parser.add_argument("--dataset", default="waterbirds32", help="waterbirds32 or waterbirds (default: waterbirds32)")
    parser.add_argument("--data_root", default="datasets", help="folder of the data sets (default: datasets)")
    parser.add_argument("--side", type=int, default=96, help="pixels at which the network is shown them (default: 96)")
    flags = parser.parse_args()
    fitted, tested = (balanced_images(flags.dataset, flags.data_root, split) for split in EACH)
    for kind in ("ImageNet", "random", "pixels"):
        torch.manual_seed(0)
        network = None if kind == "pixels" else build("efficientnet-lite0", 2, 3)
        if network is not None:
            network.linear = torch.nn.Identity()
            if kind == "random":
                for module in network.modules():
                    if isinstance(module, torch.nn.BatchNorm2d):
                        module.momentum = None  # a plain mean over the batches
                features(network.train(), fitted[0][:300], flags.side)
            else:
                network.load_imagenet()
            network.eval()
        x, held_out = (features(network, images, flags.side).numpy() for images, _ in (fitted, tested))
        scale = StandardScaler().fit(x)
        for what, labels in tested[1].items():
            hits = max((LogisticRegression(C=C, max_iter=300).fit(scale.transform(x), fitted[1][what])
                        .predict(scale.transform(held_out)) == labels.numpy()).sum() for C in PENALTIES)
            share = rate(hits, len(labels))
            print(f"{flags.dataset} {kind:8} {what:5} {share['rate']:.1%} ({share['low']:.1%} to {share['high']:.1%})",
                  flush=True)


if __name__ == "__main__":
    run_main(main)
