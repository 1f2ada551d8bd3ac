"""The tool from Python: what does this classifier remember of a class?

    from probe import probe
    found = probe(classifier, images, labels, unseen=3, steps=2000)
    found.grid(); found.images(3, 64); found.measure(judge); found.report("seven.html", judge)

The same loop, absence audit and classifier check as train.py's; everything is written into a run folder, which
sample.py draws from and probe(..., run=FOLDER) goes on with.
"""

import hashlib
import io
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import evaluate
from BigGAN import widths_at
from classifiers.loading import remember
from classifiers.strangers import from_a_file
from datasets.prepare import Split, prepare, write
from methods import load_run, make_config, read_config, start
from sample import class_grid
from sampler import make_sampler
from train import carry_out
from utils import DATASETS, DatasetSpec, UserError, checkpoint_files, choose_device, class_label, grid_image, to_uint8

TEST_SHARE = 0.1  # of each class, held out for the check of the classifier
LEAST_IMAGES = 20


class Found:
    """What a run drew: a run folder with a checkpoint. Shows itself as its grid in a notebook."""

    def __init__(self, run, device="auto"):
        self.run, self.device = Path(run), choose_device(device)
        self.state = load_run(self.run)
        self.sampler = make_sampler(self.state, self.device)

    def __repr__(self):
        names = ", ".join(self.sampler.classes[y] for y in self.state["draws"]["new_class"])
        return f"<{self.run}: {names}, unseen, after {self.state['step']} steps>"

    def images(self, label, num, seed=0):
        """`num` images of a class, by label or name: uint8 (num, C, H, W); image i depends on seed + i alone."""
        return to_uint8(self.sampler.class_images(class_label(self.sampler, label), range(seed, seed + num)))

    def grid(self, labels=None, columns=10, seed=0):
        """A PIL image: a row a class, by label or name (default: all), the unseen ones framed."""
        labels = None if labels is None else [class_label(self.sampler, label) for label in labels]
        return grid_image(*class_grid(self.sampler, labels, columns, seed))

    def _repr_png_(self):
        page = io.BytesIO()
        self.grid().save(page, format="PNG")
        return page.getvalue()

    def measure(self, judge, metrics=(), num=1000, seed=10_000):
        """The records that evaluate.py appends to results.jsonl, as a list of dicts; prints them as a table.

        judge: an independent classifier as `probe` takes the probed one, or the path of one. metrics: names of
        metrics.registry.METRICS (default: all). num: images a class.
        """
        return self._evaluated(judge, metrics, num, seed, report=False)

    def report(self, path, judge, metrics=(), num=1000, seed=10_000):
        """Measure, and write the report, one HTML file, to `path`. Returns the path."""
        self._evaluated(judge, metrics, num, seed, report=True)
        if (self.run / "report.html").resolve() != Path(path).resolve():
            shutil.copyfile(self.run / "report.html", path)
        return Path(path)

    def _evaluated(self, judge, metrics, num, seed, report):
        flags = Namespace(metrics=list(metrics), num=num, seed=seed, features="evaluator", inception_weights=None,
                          oracle_select=False, report=report, batch_size=100, presence="", out=None,
                          others=[], faults=[])
        register(self.state)
        records, _ = evaluate.evaluate_run(self.run, flags, {"evaluator": path_of(judge)}, self.device)
        evaluate.require_no_faults(flags.faults)
        return records


# ------------------------------------------------------------------------------------- what users bring


def path_of(classifier):
    """The path of a classifier: as given, or a name by which one in memory is found by this process."""
    return remember(classifier) if isinstance(classifier, nn.Module) else str(classifier)


def as_pixels(images, value_range):
    """uint8 (N, C, H, W) of an array or tensor, uint8 or float in value_range. Raises UserError for what is neither."""
    images = torch.as_tensor(images)
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4:
        raise UserError(f"images have the shape {tuple(images.shape)}; give (N, C, H, W), (N, H, W, C) or (N, H, W).")
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3]:
        raise UserError(f"images have the shape {tuple(images.shape)}; they must be square, of 1 or 3 channels.")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise UserError(f"images are {images.dtype}; give uint8, or floats in value_range.")
    low, high = value_range
    if images.min() < low or images.max() > high or not images.isfinite().all():
        raise UserError(f"images lie between {images.min():g} and {images.max():g}, outside value_range {low:g} to "
                        f"{high:g}; name the range that black and white have, as in value_range=(-1, 1).")
    return (255 * (images - low) / (high - low)).round().to(torch.uint8)


def read_all(dataset, value_range):
    """(images, labels) of a torch Dataset of (image, label), an image a tensor or a PIL image."""
    pairs = [dataset[i] for i in range(len(dataset))]
    images = [image if torch.is_tensor(image) else torch.from_numpy(np.array(image)) for image, _ in pairs]
    return as_pixels(torch.stack(images), value_range), torch.tensor([int(label) for _, label in pairs])


def held_out(labels):
    """Row numbers (training, test): TEST_SHARE of each class, evenly spaced, is for the check of the classifier."""
    test = torch.cat([rows[::round(1 / TEST_SHARE)] for rows in (
        (labels == y).nonzero()[:, 0] for y in labels.unique())]).sort().values
    return torch.from_numpy(np.setdiff1d(np.arange(len(labels)), test)), test


def register(state):
    """Let this process find the data set of a checkpoint; returns its DatasetSpec."""
    name, data = state["config"]["dataset"], state["dataset"]
    spec = DatasetSpec(name, data["resolution"], data["channels"], tuple(data["classes"]))
    return DATASETS.setdefault(name, spec)


def write_images(folder, name, images, labels, classes, value_range, resolution):
    """Prepare what `probe` was given below folder; returns its DatasetSpec."""
    if isinstance(images, (str, Path)):
        return prepare(name, folder, images, resolution or 32, 3)[0]
    if labels is None:
        images, labels = read_all(images, value_range)
    else:
        images, labels = as_pixels(images, value_range), torch.as_tensor(labels).long()
    if len(images) != len(labels) or len(labels) < LEAST_IMAGES:
        raise UserError(f"there are {len(images)} images and {len(labels)} labels; give a label for each of at least "
                        f"{LEAST_IMAGES} images.")
    names = tuple(map(str, classes)) if classes is not None else tuple(map(str, range(int(labels.max()) + 1)))
    if labels.min() < 0 or labels.max() >= len(names):
        raise UserError(f"labels lie between {labels.min()} and {labels.max()}; with {len(names)} classes they must "
                        f"lie between 0 and {len(names) - 1}.")
    widths_at(images.shape[2])
    spec = DatasetSpec(name, images.shape[2], images.shape[1], names)
    splits = {split: Split(labels[rows].numpy(), images[rows].numpy().__getitem__)
              for split, rows in zip(("train", "test"), held_out(labels), strict=True)}
    write(Path(folder) / name, spec, splits)
    return spec


def probe(classifier, images=None, labels=None, *, unseen, steps, run=None, classes=None, value_range=(0, 1),
          resolution=None, **settings):
    """Train ProbeGAN until `steps` G steps, and return what it drew.

    classifier: any nn.Module that takes images (B, C, H, W) in [0, 1], or as C_mean, C_std, C_size, C_range and C_bgr
    say, and answers as one in a file may; it is copied, not changed. Or the path of a checkpoint. images: uint8 or, in
    value_range, float (N, C, H, W), with labels (N,); a torch Dataset of (image, label); or a folder of
    <class>/<file>, drawn at `resolution`. unseen: a class or several, by label or name; its images never reach the GAN.
    classes: names in label order (default: the labels). run: the folder to write (default: runs/probe_<unseen>); where
    it holds a run already that is gone on with, its images included. settings: as train.py's flags.
    Interrupted (Ctrl-C, the notebook's stop button) it saves, and returns what is there.
    Raises UserError as train.py does.
    """
    unseen = list(unseen) if isinstance(unseen, (list, tuple)) else [unseen]
    run = Path(run or "runs/probe_" + "_".join(map(str, unseen)))
    data_root = run / "data"
    state = load_run(run) if checkpoint_files(run) else None
    if state is not None:
        spec = register(state)
    else:
        name = "probe_" + hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:12]
        DATASETS.pop(name, None)  # of an earlier try in this folder
        spec = write_images(data_root, name, images, labels, classes, value_range, resolution)
        DATASETS[name] = spec
    path = path_of(classifier)
    if state is None:
        config = make_config(dataset=spec.folder, new_class=unseen, data_root=str(data_root), C_path=path,
                             num_steps=steps, **settings)
    else:
        config = replace(read_config(from_a_file(state["config"], settings, run)), num_steps=steps, C_path=path,
                         data_root=str(data_root))
    try:
        carry_out(start(config, spec, choose_device(config.device), state), run)
    except SystemExit as stopped:
        if not stopped.code or stopped.code < 128:  # of a signal: the loop has saved
            raise
    return Found(run, config.device)
