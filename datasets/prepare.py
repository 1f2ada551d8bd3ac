"""Preparing an image set: from a download, a zip or a folder to train.h5 and test.h5."""

import gzip
import hashlib
import http.client
import io
import math
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from tqdm import tqdm

from datasets.attributes import (
    Columns,
    attributes_from,
    group_names,
    groups_of,
    read_table,
    waterbirds_table,
    write_attributes,
)
from datasets.safety import require_small_member
from datasets.sources import BUILT_IN, MODES, SUFFIXES, image_files, load_image, to_array
from utils import DATASETS, DatasetSpec, UserError, nearest, replacing

RESOLUTIONS = (16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)  # BigGAN.widths_at


@dataclass(frozen=True)
class Split:
    """Images on their way into a file: labels, int64 (N,), and read(i) -> uint8 (C, H, W).

    attributes: {name: datasets.attributes.Attribute}; note: what the split lacks, in words.
    """

    labels: np.ndarray
    read: Callable
    attributes: dict = field(default_factory=dict)
    note: str = ""

    def only(self, rows):
        """The images with these row numbers."""
        return Split(self.labels[rows], lambda i: self.read(rows[i]),
                     {name: attribute.only(rows) for name, attribute in self.attributes.items()}, self.note)


def prepare(name, data_root, source=None, resolution=None, channels=None, test_share=0.1, attributes=(),
            csv="metadata.csv", drop_mislabelled=False):
    """Write <data_root>/<name>/train.h5 and test.h5, both or neither.

    name: 'cifar10' or 'mnist' (downloaded, or taken from `source`), 'digits' (from scikit-learn), or
    any other name for the images in `source`, a zip or a folder of <split>/<class>/<file> or
    <class>/<file>, with or without a folder around it. Of sounds instead of images datasets.voices makes
    spectrograms, and evaluator.h5 too. resolution in pixels and channels are those of
    utils.DATASETS where <name> is registered there. A source without a test (or val) split gives the
    share `test_share` of each class to it, evenly spaced in the sorted file names.
    attributes: columns of `csv`, a file of the source, that are stored beside the labels; that CSV then says each
    image's class and split. 'waterbirds' and 'waterbirds32' are read by their own CSV; drop_mislabelled: without the
    species that are labelled wrongly there.
    Returns (DatasetSpec, {split: Split}). Raises UserError for a source that cannot be used.
    """
    from datasets import voices as sounds  # here, since that module writes what this one describes

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"'{name}' cannot name a data set: use letters, digits, - and _.")
    if not 0 <= test_share < 1:
        raise UserError(f"--test_share is {test_share}; it must be at least 0 and below 1.")
    spec = next((spec for spec in DATASETS.values() if spec.folder == name), None)
    if spec is None:
        if source is None or resolution is None or channels is None:
            raise UserError(f"data set '{name}' is not known ({nearest(name, BUILT_IN)}); for your own images give "
                            "--source ZIP_OR_DIR --resolution R --channels C.")
        if resolution not in RESOLUTIONS or channels not in MODES:
            raise UserError(f"--resolution {resolution} --channels {channels} cannot be drawn; valid are "
                            f"{', '.join(map(str, RESOLUTIONS))} pixels and 1 or 3 channels.")
        spec = DatasetSpec(name, resolution, channels, ())
    elif (resolution or spec.resolution, channels or spec.channels) != (spec.resolution, spec.channels):
        raise UserError(f"data set {name} is registered with {spec.resolution} pixels and {spec.channels} channels; "
                        "leave --resolution and --channels out, or correct utils.DATASETS.")
    if source is not None:
        source = Path(source)
        if not source.exists():
            raise UserError(f"--source {source} does not exist; give a zip file or a folder.")

    if name == "digits":
        if source is not None:
            raise UserError("digits come with scikit-learn; leave --source out.")
        splits = digits()
    elif name == "cifar10" and (source is None or cifar10_archive(source)):
        splits = cifar10(source)
    elif name == "mnist" and (source is None or idx_folder(source)):
        splits = mnist(source)
    elif source is not None and (attributes or name.startswith("waterbirds")):
        spec, splits = from_csv(source, spec, csv, attributes, drop_mislabelled, test_share)
    elif source is None:
        raise UserError(f"data set {name} cannot be downloaded; give its images as --source ZIP_OR_DIR.")
    elif sounds.found_in(source):
        spec, splits = sounds.prepare_sounds(source, spec)
    else:
        spec, splits = from_tree(source, spec, test_share)
    write(Path(data_root) / name, spec, splits)
    return spec, splits


def write(folder, spec, splits):
    """Write each split as <folder>/<split>.h5; all are put in place together at the end."""
    shape, made = (spec.channels, spec.resolution, spec.resolution), hashlib.sha256()
    try:
        with ExitStack() as stack:
            paths = {split: stack.enter_context(replacing(folder / f"{split}.h5")) for split in splits}
            needed = sum(len(part.labels) for part in splits.values()) * math.prod(shape)
            free = shutil.disk_usage(folder).free
            if needed > free:
                # found out half-way, a full disk crashes HDF5 at exit
                raise OSError(f"it takes {needed / 1e6:.2f} MB, {free / 1e6:.2f} MB are free")
            for split, part in splits.items():
                with h5py.File(paths[split], "w") as file:
                    file.attrs["classes"] = list(spec.classes)
                    file["labels"] = part.labels.astype(np.int64)
                    write_attributes(file, part.attributes, part.note)
                    images = file.create_dataset("images", (len(part.labels), *shape), np.uint8)
                    with tqdm(total=len(images), desc=f"{spec.folder} {split}", unit="image", disable=None) as bar:
                        for start in range(0, len(images), 256):
                            rows = range(start, min(start + 256, len(images)))
                            images[start:rows.stop] = block = np.stack([part.read(i) for i in rows])
                            made.update(block)
                            bar.update(len(rows))
            for path in paths.values():  # by which datasets.safety tells files that belong together
                with h5py.File(path, "a") as file:
                    file.attrs["id"] = made.hexdigest()
    except (OSError, RuntimeError) as error:
        # HDF5 reports a full disk as either
        raise UserError(f"{folder} could not be written ({error}); make room or choose another --data_root.") from error


def summary(spec, splits, data_root):
    """What was written, as text: images per class, group and split, the folder, and how to register it."""
    counts = {name: [(part.labels == label).sum() for part in splits.values()]
              for label, name in enumerate(spec.classes)}
    for name, attribute in next(iter(splits.values())).attributes.items():
        for group, text in enumerate(group_names(spec.classes, name, attribute.values)):
            counts[text] = [(groups_of(torch.from_numpy(part.labels), part.attributes[name]) == group).sum().item()
                            for part in splits.values()]
    width, columns = max(map(len, counts)), [max(8, len(split) + 2) for split in splits]
    lines = [f"{'class':{width}}" + "".join(f"{split:>{wide}}" for split, wide in zip(splits, columns, strict=True))]
    for name, numbers in counts.items():
        lines.append(f"{name:{width}}" + "".join(f"{n:{wide}d}" for n, wide in zip(numbers, columns, strict=True)))
    lines += [part.note for part in splits.values() if part.note][:1]
    lines.append(f"written to {Path(data_root) / spec.folder}: {', '.join(f'{split}.h5' for split in splits)}")
    if spec not in DATASETS.values():
        name = spec.folder
        classes = ", ".join(map(repr, spec.classes)) + ("," if len(spec.classes) == 1 else "")
        lines.append("To use it, add this entry to DATASETS in utils.py:")
        sound = ", sound=True" if spec.sound else ""
        lines.append(f'    {name!r}: DatasetSpec({name!r}, {spec.resolution}, {spec.channels}, ({classes}){sound}),')
    return "\n".join(lines)


# ------------------------------------------------------------------------------- the known sets


def digits():
    """scikit-learn's 1,797 digits: 8x8 in 0..16 -> uint8 (1, 16, 16); a fifth of each class is test.

    The strokes touch all four borders; enlarged to 12x12 within a black margin they may be shifted.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)  # (N, 1, 8, 8)
    pixels = torch.nn.functional.interpolate(pixels, size=(12, 12), mode="bicubic", align_corners=False)
    pixels = torch.nn.functional.pad(pixels, (2, 2, 2, 2)).round().clamp(0, 255).to(torch.uint8).numpy()
    labels = bunch.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    whole = Split(labels, pixels.__getitem__)
    return {"train": whole.only(np.sort(train)), "test": whole.only(np.sort(test))}


def download(dataset, root):
    """Have torchvision download `dataset` into `root`. Raises UserError where the network fails."""
    try:
        dataset(root, download=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UserError(f"the download of {dataset.__name__} failed ({error}); fetch it on a machine with a network "
                        "and give it as --source FILE_OR_DIR.") from error


def cifar10_archive(source):
    """Whether `source` is CIFAR-10 as its authors pack it for Python."""
    base = torchvision.datasets.CIFAR10.base_folder
    return source.name.endswith(".tar.gz") or source.name == base or (source / base).is_dir()


def cifar10(source):
    """CIFAR-10 from its authors' archive or folder, or from the download.

    The batches in it are pickles: torchvision opens them only if their MD5 is the publisher's.
    """
    dataset = torchvision.datasets.CIFAR10
    with tempfile.TemporaryDirectory() as root:
        if source is None:
            download(dataset, root)
        elif source.is_file():
            if not torchvision.datasets.utils.check_integrity(source, dataset.tgz_md5):
                raise UserError(f"--source {source} is not the published {dataset.filename}: its MD5 should be "
                                f"{dataset.tgz_md5}. Fetch it again.")
            shutil.copy(source, Path(root) / dataset.filename)
            download(dataset, root)  # unpacks the copy
        else:
            root = source if (source / dataset.base_folder).is_dir() else source.parent
        splits = {}
        for split in ("train", "test"):
            try:
                part = dataset(root, train=split == "train")
            except RuntimeError as error:
                raise UserError(f"--source {source} is not CIFAR-10 as published ({error}). Fetch it again.") from error
            pixels = part.data.transpose(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
            splits[split] = Split(np.array(part.targets, np.int64), pixels.__getitem__)
    return splits


def idx_folder(source):
    """The folder at or below `source` that holds MNIST's own idx files, or None."""
    return next((path.parent for path in sorted(source.rglob("train-images-idx3-ubyte*"))), None)


def mnist(source):
    """MNIST from a folder of its idx files, or from the download; 28x28 in a border of zeros to 32x32."""
    with tempfile.TemporaryDirectory() as root:
        if source is None:
            download(torchvision.datasets.MNIST, root)
        folder = idx_folder(Path(root) if source is None else source)
        splits = {}
        for split, prefix in (("train", "train"), ("test", "t10k")):
            images = read_idx(folder / f"{prefix}-images-idx3-ubyte")
            labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte").astype(np.int64)
            if images.shape != (len(labels), 28, 28):
                raise UserError(f"{folder} is not MNIST: {len(labels)} {split} labels, images of shape {images.shape}.")
            pixels = np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None]  # (N, 1, 32, 32)
            splits[split] = Split(labels, pixels.__getitem__)
    return splits


def read_idx(path):
    """The uint8 array in an idx file, `path` or `path`.gz. Raises UserError where it is damaged."""
    packed = path.with_name(path.name + ".gz")
    try:
        data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
        if data[:3] != b"\0\0\x08":
            raise ValueError("not an idx file of bytes")
        shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape.astype(int))
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise UserError(f"{path if path.exists() else packed} cannot be read ({error}); fetch it again.") from error


# ---------------------------------------------------------------------- images with a CSV of columns


def from_csv(source, spec, csv, attributes, drop_mislabelled, test_share):
    """(spec, {split: Split}) of a zip or a folder whose images a CSV in it describes.

    Images of Waterbirds are squeezed to a square, as its authors do; others are cropped to one. Without a test split
    `test_share` of each class is held out.
    """
    files, _, opened = list_zip(source) if source.is_file() else list_folder(source)
    where, waterbirds = f"{csv} of {source}", spec.folder.startswith("waterbirds")
    text = read_text(source, csv)
    if waterbirds:
        table, note = waterbirds_table(text, files, where, drop_mislabelled)
    else:
        table, note = read_table(text, files, Columns(attributes=tuple(attributes)), where), ""
    members = [member for part in table.values() for member in part]
    classes = spec.classes or tuple(sorted({member.label for member in members}))
    for name in sorted({member.label for member in members} - set(classes)):
        raise UserError(f"{where} has the class '{name}', which is none of data set {spec.folder} "
                        f"({nearest(name, classes)}); correct the CSV, or utils.DATASETS.")
    spec = spec if spec.classes else DatasetSpec(spec.folder, spec.resolution, spec.channels, classes)

    def split(part):
        def image(i):
            opened_image = load_image(opened(part[i].file), f"{source}/{part[i].file}", spec.channels)
            if waterbirds:
                opened_image = opened_image.resize((spec.resolution,) * 2, Image.Resampling.BICUBIC)
            return to_array(opened_image, spec.resolution)

        labels = np.array([classes.index(member.label) for member in part], np.int64)
        return Split(labels, image, attributes_from(part, members), note)

    splits = {name: split(part) for name, part in table.items()}
    if "test" not in splits and "train" in splits:
        held_out = hold_out(splits["train"].labels, test_share)
        whole = splits["train"]
        splits |= {"train": whole.only(np.flatnonzero(~held_out)), "test": whole.only(np.flatnonzero(held_out))}
    return spec, splits


def read_text(source, name):
    """The text of the file `name` in a zip or a folder, at its top or in the one folder around everything."""
    try:
        if source.is_file():
            with zipfile.ZipFile(source) as archive:
                found = min((n for n in archive.namelist() if n == name or n.endswith("/" + name)), key=len)
                return archive.read(found).decode("utf-8-sig")
        found = min(source.rglob(name), key=lambda path: len(path.parts))
        return found.read_text(encoding="utf-8-sig")
    except ValueError as error:  # min() of nothing, or text that is none
        raise UserError(f"--source {source} holds no {name} that can be read; it should name each image's file, class "
                        "and attributes.") from error


# ------------------------------------------------------------------------- any tree of images


def from_tree(source, spec, test_share):
    """(spec, {split: Split}) of a zip or a folder; a spec without classes gets the folders' names."""
    files, folders, opened = list_zip(source) if source.is_file() else list_folder(source)
    splits, classes = layout(source, files, folders)
    if not spec.classes:
        spec = DatasetSpec(spec.folder, spec.resolution, spec.channels, tuple(sorted(classes)))
    for name in sorted(classes):
        if name not in spec.classes:
            raise UserError(f"{source}: '{name}' is not a class of data set {spec.folder} "
                            f"({nearest(name, spec.classes)}); rename or remove the folder, or correct utils.DATASETS.")

    def split(members):
        members = sorted((spec.classes.index(name), file) for name, file in members)

        def image(i):
            file = members[i][1]
            image = load_image(opened(file), f"{source}/{file}", spec.channels)
            if spec.folder == "mnist" and image.size == (28, 28):
                image = ImageOps.expand(image, 2)
            return to_array(image, spec.resolution)

        return Split(np.array([label for label, _ in members], np.int64), image)

    parts = {name: split(members) for name, members in splits.items()}
    if "test" not in parts:
        held_out = hold_out(parts["train"].labels, test_share)
        whole = parts["train"]
        parts = {"train": whole.only(np.flatnonzero(~held_out)), "test": whole.only(np.flatnonzero(held_out))}
    return spec, parts


def is_hidden(path):
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def list_folder(source, suffixes=SUFFIXES):
    """(files of these suffixes, folders, what opens a file) of a folder; paths relative to it, '/' between parts."""
    folders = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_dir()]
    return image_files(source, suffixes), [path for path in folders if not is_hidden(path)], lambda file: source / file


def list_zip(source, suffixes=SUFFIXES):
    """(files of these suffixes, folders, what opens a file) of a zip, read in memory; nothing is unpacked to disk."""
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"--source {source} is not a zip that can be read ({error}); fetch it again.") from error
    names = [name for name in archive.namelist() if not is_hidden(name)]

    def opened(file):
        require_small_member(archive.getinfo(file), file)
        try:
            return io.BytesIO(archive.read(file))
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{file} in {source} cannot be unpacked ({error}); fetch the zip again.") from error

    files = [name for name in names if Path(name).suffix.lower() in suffixes]
    return files, [name.rstrip("/") for name in names if name.endswith("/")], opened


def layout(source, files, folders):
    """({split: [(class, file)]}, class names); empty class folders count among the names."""
    if not files:
        raise UserError(f"--source {source} holds no images ({', '.join(sorted(SUFFIXES))}).")
    paths = [file.split("/") for file in files]
    known = {"train", "test", "val"}
    depth = 0  # of the folders around the tree, as cifar10/ in cifar10/train/horse/0001.png
    while all(len(p) > depth + 2 and p[depth] == paths[0][depth] for p in paths) and paths[0][depth] not in known:
        depth += 1
    around, tops = paths[0][:depth], {p[depth] for p in paths}
    has_splits = bool(tops & known)
    if has_splits and ("train" not in tops or tops - known):
        raise UserError(f"--source {source} has the folders {', '.join(sorted(tops))}; a tree with splits has train, "
                        "and test or val, and nothing beside them.")
    at = depth + has_splits
    splits, classes = {}, set()
    for path, file in zip(paths, files, strict=True):
        if len(path) <= at + 1:
            raise UserError(f"{file} in {source} lies in no class folder; the tree is <split>/<class>/<file> or "
                            "<class>/<file>.")
        splits.setdefault(path[depth] if has_splits else "train", []).append((path[at], file))
        classes.add(path[at])
    for folder in folders:
        path = folder.split("/")
        if path[:depth] == around and len(path) > at and (not has_splits or path[depth] in known):
            classes.add(path[at])
    val = splits.pop("val", None)
    if val and "test" not in splits:
        splits["test"] = val
    return {split: splits[split] for split in ("train", "test") if split in splits}, classes


def hold_out(labels, share):
    """A mask (N,) that is true for `share` of each class, evenly spaced in its order."""
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        mask[rows] = [math.floor((j + 1) * share) > math.floor(j * share) for j in range(len(rows))]
    return mask
