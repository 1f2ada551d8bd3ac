"""Image sets: reading, preparing, leaving classes out with an audit, and streams of batches."""

import torch

from datasets.absence import AbsenceError, AbsenceGuard, leave_out
from datasets.sources import open_source, read_all
from datasets.stream import ImageStream
from utils import DATASETS, UserError, find_dataset

__all__ = ["AbsenceError", "AbsenceGuard", "ImageStream", "leave_out", "load_split", "open_source", "read_all"]


def load_split(dataset_name, data_root, split):
    """All images of one split, for classifiers: (uint8 (N, C, H, W), int64 (N,)) on the CPU.

    Raises UserError for a name that leaves classes out, and as open_source does.
    """
    name, left_out = find_dataset(dataset_name)
    if left_out:
        raise UserError(f"'{dataset_name}' leaves classes out; a classifier is trained and tested on all classes: "
                        f"give '{name}'.")
    source = open_source(DATASETS[name], data_root, split)
    return read_all(source, torch.arange(len(source))), source.labels
