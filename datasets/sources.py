"""Reading a prepared image set: one HDF5 file a split, or an ImageFolder tree a split."""

import io
import os
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from datasets.safety import FORMATS, require_own_storage, require_small_image
from utils import ROOT, UserError, nearest

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"}
MODES = {1: "L", 3: "RGB"}
CHUNK = 1024
BUILT_IN = ("cifar10", "mnist", "digits")


def prepare_command(folder, data_root):
    """The command that prepares the data set datasets/<folder>/."""
    command = f"python scripts/prepare_data.py {folder}"
    if folder not in BUILT_IN:
        command += " --source ZIP_OR_DIR"
    if Path(data_root) not in (Path("datasets"), ROOT / "datasets"):
        command += f" --data_root {data_root}"
    return command


def open_source(spec, data_root, split):
    """The images of one split ('train' or 'test') of the data set described by `spec`.

    They are read from <data_root>/<spec.folder>/, as <split>.h5 or else as <split>/<class>/<file>; a
    relative data_root that is not found from the working directory is taken from the repository.
    The result has `labels`, int64 (N,); `len()`; `image_shape`, (C, H, W); `read(indices)`, uint8
    (n, C, H, W) on the CPU, safe to call from several threads; and `name(i)`, what to call image i in
    a message.
    Raises UserError where the split is missing, damaged, or not what `spec` says.
    """
    if spec.channels not in MODES:
        raise UserError(f"data set {spec.folder} is registered with {spec.channels} channels; valid are 1 and 3.")
    folder = Path(data_root) / spec.folder
    if not folder.exists():
        folder = ROOT / folder
    command = prepare_command(spec.folder, data_root)
    if (folder / f"{split}.h5").is_file():
        return HDF5Source(folder / f"{split}.h5", spec, command)
    if (folder / split).is_dir():
        return FolderSource(folder / split, spec)
    raise UserError(f"the {split} images of {spec.folder} are missing: {folder} holds neither {split}.h5 nor "
                    f"{split}/<class>/. Make them with: {command}")


class HDF5Source:
    """A split in one HDF5 file: `images` uint8 (N, C, H, W), `labels` (N,), attribute `classes`."""

    def __init__(self, path, spec, command):
        self.path, self.image_shape = path, (spec.channels, spec.resolution, spec.resolution)
        try:
            file = h5py.File(path, "r")
            require_own_storage(file, path)
            images, labels = file["images"], file["labels"][:]
            classes = [c.decode() if isinstance(c, bytes) else str(c) for c in file.attrs["classes"]]
        except (OSError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged or is not a prepared image set ({error}). "
                            f"Make it again with: {command}") from error
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise UserError(f"{path} holds {images.dtype} images of shape {images.shape[1:]}; data set {spec.folder} "
                            f"is registered as uint8 {self.image_shape}. Correct utils.DATASETS, or make it with: "
                            f"{command}")
        if classes != list(spec.classes):
            raise UserError(f"{path} has the classes {', '.join(classes)}; data set {spec.folder} is registered with "
                            f"{', '.join(spec.classes)}. Correct utils.DATASETS, or make the file with: {command}")
        if labels.shape != images.shape[:1] or labels.size and not 0 <= labels.min() <= labels.max() < len(classes):
            raise UserError(f"{path} does not hold one label from 0 to {len(classes) - 1} for each of its "
                            f"{len(images)} images. Make it again with: {command}")
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.images = images

    def __len__(self):
        return len(self.labels)

    def name(self, i):
        return f"{self.path}[{int(i)}]"

    def read(self, indices):
        # HDF5 wants each row once, in rising order
        rows, places = np.unique(np.asarray(indices), return_inverse=True)
        return torch.from_numpy(self.images[rows][places])


class FolderSource:
    """A split as <class>/<file>. The label is the place of the folder's name in spec.classes."""

    def __init__(self, folder, spec):
        self.folder, self.image_shape = folder, (spec.channels, spec.resolution, spec.resolution)
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and not entry.name.startswith(".") and entry.name not in spec.classes:
                raise UserError(f"{entry} is not a class of data set {spec.folder} "
                                f"({nearest(entry.name, spec.classes)}); rename or remove the folder, or correct "
                                "utils.DATASETS.")
        self.files, labels = [], []
        for label, name in enumerate(spec.classes):
            files = [f"{name}/{file}" for file in image_files(folder / name)]
            self.files += files
            labels += [label] * len(files)
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def __len__(self):
        return len(self.files)

    def name(self, i):
        return str(self.folder / self.files[i])

    def read(self, indices):
        channels, _, resolution = self.image_shape
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        for row, i in enumerate(indices):
            path = f"{self.folder}/{self.files[i]}"  # joining with pathlib would take a tenth of the time
            images[row] = to_array(load_image(path, path, channels), resolution)
        return torch.from_numpy(images)


def image_files(folder, suffixes=SUFFIXES):
    """Paths of the files of these suffixes below `folder`, relative to it, '/' between parts, sorted, none hidden."""
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [(Path(where) / name).relative_to(folder).as_posix() for name in files
                  if Path(name).suffix.lower() in suffixes and not name.startswith(".")]
    return sorted(found)


def load_image(file, name, channels):
    """Decode `file` (a path or a binary file) to a PIL image of 1 (L) or 3 (RGB) channels.

    Raises UserError with `name` if it does not decode.
    """
    try:
        if not hasattr(file, "read"):
            with open(file, "rb") as opened:
                # at once: in Pillow's many small reads the threads would wait for each other
                file = io.BytesIO(opened.read())
        with Image.open(file, formats=FORMATS) as image:
            require_small_image(image, name)
            if image.mode.startswith("I;16"):
                # Pillow would clip 16 bits at 255
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(MODES[channels])
            if image.mode in ("I", "F"):
                raise ValueError(f"its pixels, of mode {image.mode}, have no fixed range")
            return image.convert(MODES[channels])
    except UserError:
        raise
    except Exception as error:  # the decoders raise errors of many kinds
        raise UserError(f"image {name} does not decode ({error}); repair it or remove it from the set.") from error


def to_array(image, resolution):
    """A PIL image -> uint8 (C, resolution, resolution).

    An image of another size is cropped to its central square and resized, antialiased.
    """
    if image.size != (resolution, resolution):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((resolution, resolution), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def in_chunks(indices, text):
    """Split indices (N,) into runs of bounded length; a progress bar appears if it takes seconds."""
    with tqdm(total=len(indices), desc=text, unit="image", delay=2, leave=False, disable=None) as progress:
        for chunk in indices.split(CHUNK):
            yield chunk
            progress.update(len(chunk))


def read_all(source, indices):
    """The images with these indices (int64, (n,)): uint8 (n, C, H, W) on the CPU."""
    images, done = torch.empty((len(indices), *source.image_shape), dtype=torch.uint8), 0
    for chunk in in_chunks(indices, "reading images"):
        part = source.read(chunk)
        images[done:done + len(part)] = part
        done += len(part)
    return images
