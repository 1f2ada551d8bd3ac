"""Preparing an image set: from a download, a zip or a folder to train.h5 and test.h5."""

import hashlib
import http.client
import math
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
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
from datasets.layouts import LAYOUTS, images_of, layout, tree_of
from datasets.safety import inflated
from datasets.sources import BUILT_IN, MODES, Decoder, content_of, to_array
from utils import DATASETS, DatasetSpec, UserError, nearest, replacing

RESOLUTIONS = (16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)  # BigGAN.widths_at
LISTED = 5  # bad images that an error names
NAMES_BYTES = 60_000  # of class names that an HDF5 attribute, which ends at 64 kB, is given


@dataclass(frozen=True)
class Split:
    """Images on their way into a file: labels, int64 (N,), and read(i) -> uint8 (C, H, W).

    attributes: {name: datasets.attributes.Attribute}; note: what the split lacks, in words; left_out: how many more
    images there were, which do not decode.
    """

    labels: np.ndarray
    read: Callable
    attributes: dict = field(default_factory=dict)
    note: str = ""
    left_out: int = 0

    def only(self, rows):
        """The images with these row numbers."""
        return Split(self.labels[rows], lambda i: self.read(rows[i]),
                     {name: attribute.only(rows) for name, attribute in self.attributes.items()}, self.note)


def prepare(name, data_root, source=None, resolution=None, channels=None, test_share=0.1, attributes=(),
            csv="metadata.csv", drop_mislabelled=False, how="", skip_bad=False, say=lambda line: None):
    """Write <data_root>/<name>/train.h5 and test.h5, both or neither.

    name: 'cifar10' or 'mnist' (downloaded, or taken from `source`), 'digits' (from scikit-learn), or
    any other name for the images in `source`, a zip or a folder in one of the layouts of datasets.layouts, or in the
    one that `how` names. Of sounds instead of images datasets.voices makes
    spectrograms, and evaluator.h5 too. resolution in pixels and channels are those of
    utils.DATASETS where <name> is registered there. A source without a test (or val) split gives the
    share `test_share` of each class to it, evenly spaced in the sorted file names.
    attributes: columns of `csv`, a file of the source, that are stored beside the labels; that CSV then says each
    image's class and split. 'waterbirds' and 'waterbirds32' are read by their own CSV; drop_mislabelled: without the
    species that are labelled wrongly there. skip_bad: leave images out that do not decode. say(line) is told what was
    read as what.
    Returns (DatasetSpec, {split: Split}). Raises UserError for a source that cannot be used.
    """
    from datasets import voices as sounds  # here, since that module writes what this one describes

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"'{name}' cannot name a data set: use letters, digits, - and _.")
    if how and how not in LAYOUTS:
        raise UserError(f"--layout {how} is unknown ({nearest(how, LAYOUTS)}).")
    if attributes and source is None:
        raise UserError(f"--attributes {' '.join(attributes)} are columns of a CSV in --source; give the source, too.")
    if drop_mislabelled and not name.startswith("waterbirds"):
        raise UserError(f"--drop_mislabelled is of waterbirds, whose species are known, not of {name}; leave it out.")
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
    elif name == "mnist" and (source is None or idx_files(source)):
        splits = mnist(source)
    elif source is not None and (attributes or name.startswith("waterbirds")):
        spec, splits = from_csv(source, spec, csv, attributes, drop_mislabelled, say)
    elif source is None:
        raise UserError(f"data set {name} cannot be downloaded; give its images as --source ZIP_OR_DIR.")
    elif sounds.found_in(source):
        spec, splits = sounds.prepare_sounds(source, spec, how, say)
    else:
        spec, splits = from_tree(source, spec, how, say)
    folder, whole = Path(data_root) / name, splits
    try:
        splits = with_test(whole, test_share)
        write(folder, spec, splits)
    except BadImage:
        splits = with_test(without_bad(whole, source, skip_bad, say), test_share)
        write(folder, spec, splits)
    return spec, splits


class BadImage(UserError):
    """An image does not decode."""


def without_bad(splits, source, skip_bad, say):
    """The splits without the images that do not decode. Raises UserError, which names the first, unless skip_bad."""
    found, kept = [], {}
    for split, part in splits.items():
        good = []
        for i in tqdm(range(len(part.labels)), desc=f"looking for bad {split} images", unit="image", disable=None):
            try:
                part.read(i)
                good.append(i)
            except UserError as error:
                found.append(str(error))
        kept[split] = replace(part.only(np.array(good, int)), left_out=len(part.labels) - len(good))
    if not skip_bad:
        more = f"; and {len(found) - LISTED} more" if len(found) > LISTED else ""
        raise UserError(f"{len(found)} image(s) of {source} cannot be used: {' '.join(found[:LISTED])}{more} "
                        "--skip_bad leaves them out, and counts them.")
    say(f"left out, since they do not decode: {len(found)} images, as: {' '.join(found[:LISTED])}")
    return kept


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
                    if sum(len(name.encode()) + 16 for name in spec.classes) < NAMES_BYTES:
                        file.attrs["classes"] = list(spec.classes)
                    else:
                        file.create_dataset("classes", data=list(spec.classes), dtype=h5py.string_dtype())
                    if part.left_out:
                        file.attrs["left_out"] = part.left_out
                    file["labels"] = part.labels.astype(np.int64)
                    write_attributes(file, part.attributes, part.note)
                    images = file.create_dataset("images", (len(part.labels), *shape), np.uint8)
                    with tqdm(total=len(images), desc=f"{spec.folder} {split}", unit="image", disable=None) as bar:
                        for start in range(0, len(images), 256):
                            rows = range(start, min(start + 256, len(images)))
                            images[start:rows.stop] = block = np.stack([part.read(i) for i in rows])
                            made.update(block.tobytes())
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


IDX = re.compile(r"(train|t10k)-(images|labels)[-.]idx([13])-ubyte(\.gz)?$")


def idx_files(source):
    """{(split, images or labels): what reads it} of MNIST's own idx files in a folder or zip; {} where there are none.

    Their names are written with a dash or a dot before `idx`, packed by gzip or not.
    """
    if source.is_file() and not zipfile.is_zipfile(source):
        return {}
    tree = tree_of(source)
    found = {}
    for file in sorted(tree.files, reverse=True):  # the unpacked one last, so that it is taken
        if match := IDX.search(file):
            found["train" if match[1] == "train" else "test", match[2]] = file, tree.opened
    return found


def mnist(source):
    """MNIST from its idx files in a folder or zip, or from the download; 28x28 in a border of zeros to 32x32."""
    with tempfile.TemporaryDirectory() as root:
        if source is None:
            download(torchvision.datasets.MNIST, root)
        found = idx_files(Path(root) if source is None else source)
        splits = {}
        for split in ("train", "test"):
            for kind in ("images", "labels"):
                if (split, kind) not in found:
                    raise UserError(f"--source {source} has no {split} {kind} of MNIST as an idx file; add it.")
            images, labels = (read_idx(*found[split, kind], source) for kind in ("images", "labels"))
            labels = labels.astype(np.int64)
            if images.shape != (len(labels), 28, 28):
                raise UserError(f"{source} is not MNIST: {len(labels)} {split} labels, images of shape {images.shape}.")
            pixels = np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None]  # (N, 1, 32, 32)
            splits[split] = Split(labels, pixels.__getitem__)
    return splits


def read_idx(file, opened, source):
    """The uint8 array in an idx file, which may be packed by gzip. Raises UserError where it is damaged."""
    try:
        data = content_of(opened(file))
        data = inflated(data, f"{source}/{file}") if data[:2] == b"\x1f\x8b" else data
        if data[:3] != b"\0\0\x08":
            raise ValueError("not an idx file of bytes")
        shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape.astype(int))
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise UserError(f"{source}/{file} cannot be read ({error}); fetch it again.") from error


# ---------------------------------------------------------------------- images with a CSV of columns


def from_csv(source, spec, csv, attributes, drop_mislabelled, say):
    """(spec, {split: Split}) of a zip or a folder whose images a CSV in it describes.

    Images of Waterbirds are squeezed to a square, as its authors do; others are cropped to one.
    """
    tree = tree_of(source)
    files, where, waterbirds = images_of(tree), f"{csv} of {source}", spec.folder.startswith("waterbirds")
    text = read_text(source, tree, csv)
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
    decoder = Decoder(spec.channels, [member.file for member in members], tree.opened, say)

    def split(part):
        def image(i):
            opened_image = decoded(decoder, tree, part[i].file, source)
            if waterbirds:
                opened_image = opened_image.resize((spec.resolution,) * 2, Image.Resampling.BICUBIC)
            return to_array(opened_image, spec.resolution)

        labels = np.array([classes.index(member.label) for member in part], np.int64)
        return Split(labels, image, attributes_from(part, members), note)

    splits = {name: split(part) for name, part in table.items()}
    return spec, splits


def read_text(source, tree, name):
    """The text of the file `name` in a Tree, at its top or in the one folder around everything."""
    try:
        found = min((file for file in tree.files if f"/{file}".endswith(f"/{name}")), key=lambda file: file.count("/"))
        return content_of(tree.opened(found)).decode("utf-8-sig")
    except ValueError as error:  # min() of nothing, or text that is none
        raise UserError(f"--source {source} holds no {name} that can be read; it should name each image's file, class "
                        "and attributes.") from error


# ------------------------------------------------------------------------------- any tree of images


def in_order(names):
    """Class names sorted as text, but numbers by their value, so that 10 comes after 9."""
    return tuple(sorted(names, key=(lambda name: (int(name), name)) if all(n.isdecimal() for n in names) else None))


def decoded(decoder, tree, file, source):
    """The PIL image in a file of a Tree. Raises BadImage where it does not decode."""
    try:
        return decoder.load(tree.opened(file), f"{source}/{file}")
    except UserError as error:
        raise BadImage(str(error)) from error


def from_tree(source, spec, how, say):
    """(spec, {split: Split}) of a zip or a folder; a spec without classes gets the folders' names."""
    tree = tree_of(source)
    splits, classes = layout(source, tree, how, say, spec.classes)
    if not spec.classes:
        spec = DatasetSpec(spec.folder, spec.resolution, spec.channels, in_order(classes))
    for name in sorted(classes):
        if name not in spec.classes:
            raise UserError(f"{source}: '{name}' is not a class of data set {spec.folder} "
                            f"({nearest(name, spec.classes)}); rename or remove the folder, or correct utils.DATASETS.")
    decoder = Decoder(spec.channels, [file for members in splits.values() for _, file in members], tree.opened,
                      say)

    def split(members):
        members = sorted((spec.classes.index(name), file) for name, file in members)

        def image(i):
            image = decoded(decoder, tree, members[i][1], source)
            if spec.folder == "mnist" and image.size == (28, 28):
                image = ImageOps.expand(image, 2)
            return to_array(image, spec.resolution)

        return Split(np.array([label for label, _ in members], np.int64), image)

    return spec, {name: split(members) for name, members in splits.items()}


def with_test(splits, share):
    """The splits with a test split: where there is none, `share` of each training class."""
    if "test" in splits or "train" not in splits:
        return splits
    whole, mask = splits["train"], hold_out(splits["train"].labels, share)
    train = replace(whole.only(np.flatnonzero(~mask)), left_out=whole.left_out)
    return splits | {"train": train, "test": whole.only(np.flatnonzero(mask))}


def hold_out(labels, share):
    """A mask (N,) that is true for `share` of each class, evenly spaced in its order; of a class of two or more, for
    one at least."""
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        own = [math.floor((j + 1) * share) > math.floor(j * share) for j in range(len(rows))]
        if share and len(rows) > 1 and not any(own):
            own[-1] = True
        mask[rows] = own
    return mask
