#!/usr/bin/env python3
"""How many mislabelled images the audit's second screen finds, and how many it suspects for nothing.

    python benchmarks/label_noise.py --dataset MNIST --images 10000 --epochs 3 8 \\
        --C_path pretrained/mnist_regular.safetensors pretrained/mnist_robust.safetensors
    python benchmarks/label_noise.py --dataset C10 --C_path pretrained/cifar10_regular.safetensors --share 0

A share of the images is given another label, drawn at random. Each class in turn is y*: the images under other labels
are asked for, found are those of y* that the classifier gives more than absence.MISTAKEN, and suspected for nothing are
the others that it does. --epochs trains a smallcnn for so many passes on the set with the wrong labels, each anew; the
files of --C_path learnt what they were trained on, which for pretrained/ are the right labels.
"""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from classifiers import load_classifier  # noqa: E402
from classifiers.check import logits_of  # noqa: E402
from classifiers.train import TrainSettings, train_classifier  # noqa: E402
from config import Parser  # noqa: E402
from datasets import open_source  # noqa: E402
from datasets.absence import MISTAKEN  # noqa: E402
from datasets.prepare import Split, write  # noqa: E402
from datasets.sources import read_all  # noqa: E402
from utils import DATASETS, find_dataset, run_main  # noqa: E402


def mislabelled(labels, classes, share):
    """Labels (n,), of which `share` are replaced by another of `classes`, drawn at random."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(labels), generator=draw)[:round(share * len(labels))]
    wrong = labels.clone()
    wrong[rows] = (labels[rows] + torch.randint(1, classes, (len(rows),), generator=draw)) % classes
    return wrong


def found(probabilities, right, wrong):
    """(planted, found, asked, suspected for nothing), each class in turn being y*, added up.

    probabilities (n, K) of images with the right labels and the wrong ones, both (n,).
    """
    counts = torch.zeros(4, dtype=torch.int64)
    for y in range(probabilities.shape[1]):
        asked, own, suspect = wrong != y, right == y, probabilities[:, y] > MISTAKEN
        counts += torch.stack([(asked & own).sum(), (asked & own & suspect).sum(), asked.sum(),
                               (asked & ~own & suspect).sum()])
    return counts.tolist()


def train(dataset, images, labels, epochs, folder):
    """A FrozenClassifier trained for so many epochs on uint8 images (n, C, H, W) with these labels (n,)."""
    spec = DATASETS[dataset]
    parts = {"train": slice(len(images) // 50, None), "test": slice(len(images) // 50)}  # a card wants a test split
    write(folder / spec.folder, spec, {name: Split(labels[rows].numpy(), images[rows].numpy().__getitem__)
                                       for name, rows in parts.items()})
    return train_classifier(TrainSettings(dataset=dataset, data_root=str(folder), out=str(folder / "C.pt"),
                                          epochs=epochs, num_attacked=1))[0]


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--dataset", default="MNIST", help="a prepared data set (default: MNIST)")
    parser.add_argument("--images", type=int, default=10_000, help="of its training split, at random (default: 10000)")
    parser.add_argument("--share", type=float, default=0.05, help="of wrong labels (default: 0.05)")
    parser.add_argument("--epochs", type=int, nargs="+", default=[], help="of classifiers trained on the wrong labels")
    parser.add_argument("--C_path", nargs="+", default=[], help="files of classifiers")
    parser.add_argument("--data_root", default="datasets", help="(default: datasets)")
    flags = parser.parse_args()
    name = find_dataset(flags.dataset)[0]
    source = open_source(DATASETS[name], flags.data_root, "train")
    rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(1))[:flags.images]
    images, right = read_all(source, rows), source.labels[rows]
    wrong = mislabelled(right, len(DATASETS[name].classes), flags.share)
    print(f"{name}, {len(images)} images, {(right != wrong).sum()} of them under a wrong label")
    with tempfile.TemporaryDirectory() as root:
        judges = [(path, lambda path=path: load_classifier(path)) for path in flags.C_path]
        judges += [(f"smallcnn, {epochs} epochs on them", lambda epochs=epochs: train(
            name, images, wrong, epochs, Path(root) / str(epochs))) for epochs in flags.epochs]
        for title, judge in judges:
            probabilities = logits_of(judge(), images, text=title).softmax(1)
            planted, hits, asked, others = found(probabilities, right, wrong)
            shown = f"{hits} of {planted} found ({hits / planted:.1%}), " if planted else ""
            print(f"{title}: {shown}{others} of {asked - planted} others suspected "
                  f"({10_000 * others / (asked - planted):.1f} in 10,000)", flush=True)


if __name__ == "__main__":
    run_main(main)
