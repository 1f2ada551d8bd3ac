"""Generated images under one interface, whoever made them: a run, a folder, or an npz; checked as they are read."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.safety import FORMATS, require_small_arrays, require_small_image
from datasets.sources import image_files, is_not_the_users, plain
from utils import UserError, class_label, nearest, to_uint8

BANDS = {1: "one channel", 3: "three channels"}


class RunImages:
    """The images that a run's sampler draws, rounded to 8 bits as any file of them would be.

    classes: names in label order. drawn: the labels that there are images of. new_class: labels y*. left_out: labels
    whose real images were not in the image set (none for an oracle run). shape: (C, H, W). shares, different: those of
    the sampler. The k-th drawn class has the seeds first_seed + k*num to first_seed + (k+1)*num - 1, as in sample.py
    --mode npz.
    """

    def __init__(self, sampler, resolution, channels, num, first_seed):
        if sampler.most and num > sampler.most:
            raise UserError(f"the checkpoint holds {sampler.most} images a class and --num asks for {num}; give --num "
                            f"{sampler.most}, or train with a larger --num_images.")
        self.sampler, self.num, self.first_seed = sampler, num, first_seed
        self.classes, self.drawn = sampler.classes, list(sampler.drawn)
        self.new_class = [y for y in sampler.draws["new_class"] if y in sampler.drawn]
        self.left_out = [] if sampler.draws["oracle"] else list(sampler.draws["new_class"])
        self.shape, self.step = (channels, resolution, resolution), sampler.step
        self.shares, self.different = sampler.shares, sampler.different

    def seed(self, label, i):
        """The seed of image i of a class."""
        return self.first_seed + self.sampler.drawn.index(label) * self.num + i

    def read(self, label, start, stop):
        """Images `start` to `stop` of a class: uint8 (stop - start, C, H, W) on the CPU. Raises UserError for NaN."""
        images = self.sampler.class_images(label, range(self.seed(label, start), self.seed(label, stop)))
        if not images.isfinite().all():
            raise UserError(f"the generator drew NaN or infinite pixels for class {self.classes[label]} at step "
                            f"{self.step}; its weights are damaged: measure an earlier checkpoint.")
        return to_uint8(images)


class FileImages:
    """Images that somebody else made; the interface of RunImages.

    rows: {label: what `load` takes}, at least `num` a class. load: rows -> uint8 (n, C, H, W).
    """

    first_seed = step = shares = None
    different = {}

    def __init__(self, path, spec, new_class, num, rows, load):
        self.classes, self.shape = spec.classes, (spec.channels, spec.resolution, spec.resolution)
        self.new_class = self.left_out = list(new_class)
        self.num, self.drawn, self.rows, self.load = num, sorted(rows), rows, load
        for label in sorted({*rows, *new_class}):
            found, name = len(rows.get(label, ())), spec.classes[label]
            if not found:
                raise UserError(f"{path} holds no image of class {name}; add some, or "
                                + ("name another --new_class." if label in new_class else "remove its folder."))
            if found < num:
                raise UserError(f"{path} holds {found} images of class {name} and --num asks for {num} a class; "
                                f"make more, or give --num {min(map(len, rows.values()))}.")

    def seed(self, label, i):
        """The place of image i in its class; how it was drawn is not known."""
        return i

    def read(self, label, start, stop):
        """Images `start` to `stop` of a class: uint8 (stop - start, C, H, W) on the CPU."""
        return self.load(self.rows[label][start:stop])


def folder_images(path, spec, new_class, num):
    """The FileImages of <path>/<class>/<file>, in the order of the file names; a class is a name or a label.

    Raises UserError for a folder that is empty, a class that is unknown or has too few images, and, as they are
    read, for an image that does not decode or has not the data set's size and channels.
    """
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_not_the_users(entry.name))
    if not folders:
        raise UserError(f"{path} holds no images as <class>/<file>; make a folder for each class of {spec.folder}, "
                        f"such as {path / spec.classes[(new_class or [0])[0]]}.")
    rows = {class_label(spec, folder.name): [folder / file for file in image_files(folder)] for folder in folders}

    def load(files):
        return torch.from_numpy(np.stack([read_image(file, spec) for file in files]))

    return FileImages(path, spec, new_class, num, rows, load)


def read_image(path, spec):
    """The pixels of one file, uint8 (C, H, W). Raises UserError where they are not what the data set needs."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            require_small_image(image, path)
            shown = image if image.mode.startswith(("I", "F")) else plain(image)
            pixels = np.asarray(shown.convert("RGB") if shown.mode in ("P", "1", "LA") else shown)
    except UserError:
        raise
    except Exception as error:  # the decoders raise errors of many kinds
        raise UserError(f"image {path} does not decode ({error}); repair it or remove it.") from error
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if spec.channels == 1 and len(pixels) == 3 and (pixels == pixels[:1]).all():
        pixels = pixels[:1]  # grey, as many programs write it
    wanted = (spec.channels, spec.resolution, spec.resolution)
    if pixels.shape != wanted or pixels.dtype != np.uint8:
        raise UserError(f"image {path} has {pixels.shape[0]} channels of {pixels.shape[2]}x{pixels.shape[1]} "
                        f"{pixels.dtype} pixels; data set {spec.folder} needs {BANDS[spec.channels]} of "
                        f"{spec.resolution}x{spec.resolution} 8-bit pixels: convert it.")
    return pixels


def npz_images(path, spec, new_class, num):
    """The FileImages of an npz with x, uint8 (N, C, H, W), and y, labels (N,), as sample.py --mode npz writes it.

    It may also hold `classes`, the names that the numbers in y stand for, in their order. Raises UserError for a file
    that is damaged, or has not the data set's size, channels and labels.
    """
    try:
        require_small_arrays(path)
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
            classes = [str(name) for name in arrays["classes"]] if "classes" in arrays else None
    except (OSError, ValueError, KeyError, EOFError, TypeError, MemoryError,
            zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no npz with the arrays x and y ({error}); write it as sample.py --mode npz "
                        "does.") from error
    wanted = (spec.channels, spec.resolution, spec.resolution)
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise UserError(f"{path} holds NaN or infinite pixels; x must be uint8 (N, {', '.join(map(str, wanted))}).")
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1:] != wanted:
        raise UserError(f"x in {path} is {x.dtype} {x.shape}; data set {spec.folder} needs uint8 (N, "
                        f"{', '.join(map(str, wanted))}).")
    if not len(x):
        raise UserError(f"{path} holds no image.")
    if x.max() <= 1:
        raise UserError(f"x in {path} holds nothing above 1; its pixels go from 0 for black to 255 for white: store "
                        "round(255 * x).")
    if classes is not None:
        y = named_labels(path, y, classes, spec)
    elif all(name.isdecimal() for name in spec.classes) and spec.classes != tuple(map(str, range(len(spec.classes)))):
        raise UserError(f"y in {path} may hold the names of the classes, which are numbers, or their places in "
                        f"{', '.join(spec.classes[:4])}, ...: store `classes` beside it, the names that 0, 1, ... in y "
                        "stand for.")
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu" or not 0 <= y.min() <= y.max() < len(spec.classes):
        raise UserError(f"y in {path} must hold one label from 0 to {len(spec.classes) - 1} for each of the {len(x)} "
                        "images of x.")
    rows = {int(label): np.flatnonzero(y == label) for label in np.unique(y)}
    return FileImages(path, spec, new_class, num, rows, lambda chosen: torch.from_numpy(x[chosen]))


def named_labels(path, y, classes, spec):
    """The data set's labels for numbers y (N,) that stand for the names `classes`. Raises UserError for other names."""
    for name in classes:
        if name not in spec.classes:
            raise UserError(f"classes in {path} has '{name}', which is no class of {spec.folder} "
                            f"({nearest(name, spec.classes)}).")
    if y.dtype.kind not in "iu" or len(y) and not 0 <= y.min() <= y.max() < len(classes):
        raise UserError(f"y in {path} must hold numbers from 0 to {len(classes) - 1}, one for each name in classes.")
    return np.array([spec.classes.index(name) for name in classes])[y]


def file_images(path, spec, new_class, num):
    """The images in a folder or an npz. Raises UserError as folder_images and npz_images do."""
    path = Path(path)
    if path.is_dir():
        return folder_images(path, spec, new_class, num)
    if path.is_file():
        return npz_images(path, spec, new_class, num)
    raise UserError(f"{path} does not exist; give a folder of <class>/<file> or an npz of sample.py --mode npz.")


def count_flat(images):
    """How many of the images (n, C, H, W) are of one colour."""
    rows = images.flatten(2)
    return int((rows == rows[:, :, :1]).all(2).all(1).sum())
