"""Reading a prepared image set: one HDF5 file a split, or an ImageFolder tree a split."""

import hashlib
import io
import os
import unicodedata
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from datasets.safety import FORMATS, require_own_storage, require_small_image
from utils import ROOT, UserError, nearest

SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"}
# folders that file servers and systems put beside the user's own, in small letters; and all that begin with a dot
NOT_THE_USERS = {"__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "lost+found", "thumbnails", "_thumbs",
                 "system volume information"}
BACKGROUND = "white"  # on which transparent pixels are shown
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


def sample_sha256(source, unseen, most=1000):
    """SHA-256 by which a split is known again: of at most `most` evenly spaced images, and all labels, of the classes
    that are not `unseen` (labels)."""
    rows = (~torch.isin(source.labels, torch.tensor(list(unseen), dtype=torch.int64))).nonzero().flatten()
    digest = hashlib.sha256(source.labels[rows].numpy().tobytes())
    for chunk in rows[::max(1, -(-len(rows) // most))].split(CHUNK):
        digest.update(source.read(chunk).numpy().tobytes())
    return digest.hexdigest()


class HDF5Source:
    """A split in one HDF5 file: `images` uint8 (N, C, H, W), `labels` (N,), attribute or dataset `classes`.

    left_out: how many images were left out, since they do not decode, when it was made.
    """

    def __init__(self, path, spec, command):
        self.path, self.image_shape = path, (spec.channels, spec.resolution, spec.resolution)
        try:
            file = h5py.File(path, "r")
            require_own_storage(file, path)
            images, labels = file["images"], file["labels"][:]
            # an attribute holds 64 kB: many names are a dataset
            classes = file.attrs["classes"] if "classes" in file.attrs else file["classes"][:]
            classes = [c.decode() if isinstance(c, bytes) else str(c) for c in classes]
            self.left_out = int(file.attrs.get("left_out", 0))
        except (OSError, KeyError, TypeError) as error:
            if isinstance(error, OSError) and "unable to lock" in str(error):
                raise UserError(f"{path} is locked: another program has it open for writing. Wait for that to end, or "
                                "close it.") from error
            raise UserError(f"{path} is damaged or is not a prepared image set ({error}). "
                            f"Make it again with: {command}") from error
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise UserError(f"{path} holds {images.dtype} images of shape {images.shape[1:]}; data set {spec.folder} "
                            f"is registered as uint8 {self.image_shape}. Correct utils.DATASETS, or make it with: "
                            f"{command}")
        if [composed(name) for name in classes] != [composed(name) for name in spec.classes]:
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

    left_out = 0

    def __init__(self, folder, spec):
        self.folder, self.image_shape = folder, (spec.channels, spec.resolution, spec.resolution)
        places = {composed(name): label for label, name in enumerate(spec.classes)}
        folders = {}
        for entry in sorted(folder.iterdir()):
            if not entry.is_dir() or is_not_the_users(entry.name):
                continue
            if composed(entry.name) not in places:
                raise UserError(f"{entry} is not a class of data set {spec.folder} "
                                f"({nearest(entry.name, spec.classes)}); rename or remove the folder, or correct "
                                "utils.DATASETS.")
            folders[places[composed(entry.name)]] = entry.name
        self.files, labels = [], []
        for label, name in sorted(folders.items()):
            files = [f"{name}/{file}" for file in image_files(folder / name)]
            self.files += files
            labels += [label] * len(files)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        # of all splits, so that they are scaled alike
        everything = [folder.parent / file for file in image_files(folder.parent)] if self.files else []
        self.decoder = Decoder(spec.channels, everything)

    def __len__(self):
        return len(self.files)

    def name(self, i):
        return str(self.folder / self.files[i])

    def read(self, indices):
        resolution = self.image_shape[1]
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        for row, i in enumerate(indices):
            path = f"{self.folder}/{self.files[i]}"  # joining with pathlib would take a tenth of the time
            images[row] = to_array(self.decoder.load(path, path), resolution)
        return torch.from_numpy(images)


def composed(name):
    """A name in the form NFC, in which an umlaut is one sign: some file systems give it as two."""
    return unicodedata.normalize("NFC", name)


def is_not_the_users(name):
    """Whether a file or folder is hidden, or one that a system or file server keeps beside the user's."""
    return name.startswith(".") or name.lower() in NOT_THE_USERS


def image_files(folder):
    """Paths of the image files below `folder`, relative to it, '/' between parts, sorted, none hidden."""
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not is_not_the_users(name)]
        found += [(Path(where) / name).relative_to(folder).as_posix() for name in files
                  if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")]
    return sorted(found)


def plain(image):
    """A PIL image as viewers show it: turned as its EXIF orientation says, transparent pixels on BACKGROUND."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
        image = image.convert("RGB")
    return image


def deep_png(data):
    """The pixels (H, W, 3), on white, of the bytes of a PNG of 16 bits and colours, which Pillow cuts to 8; else None.

    Pillow takes the first byte of each number; told that the bytes are in the other order, it takes the second.
    """
    if data[:4] != b"\x89PNG" or data[24:25] != b"\x10" or data[25:26] not in (b"\x02", b"\x06"):
        return None
    halves = []
    for order in "BL":
        with Image.open(io.BytesIO(data)) as image:
            image.tile = [tile._replace(args=f"{image.mode};16{order}") for tile in image.tile]
            halves.append(np.asarray(ImageOps.exif_transpose(image)).astype(np.float64))
    pixels = 256 * halves[0] + halves[1]
    opaque = pixels[:, :, 3:] / 65535 if pixels.shape[2] == 4 else 1.0
    return pixels[:, :, :3] * opaque + 65535 * (1 - opaque)


def deep_pixels(data, name="of the set"):
    """The pixels of an encoded image of more than 8 bits, (H, W) or (H, W, 3); None where it has 8 or fewer.

    Raises ValueError for pixels of a kind without a fixed range, and UserError with `name` for too many of them.
    """
    require_small_image(Image.open(io.BytesIO(data), formats=FORMATS), name)
    if (pixels := deep_png(data)) is not None:
        return pixels
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if not image.mode.startswith("I") and image.mode != "F":
            return None
        pixels = np.asarray(ImageOps.exif_transpose(image))
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"its pixels, of mode {image.mode}, have no fixed range")
    return pixels


class Decoder:
    """Decodes the images of one set to 8 bits and 1 (L) or 3 (RGB) channels.

    Images of more than 8 bits often hold fewer: the largest value in the whole set is taken for white. say(line) is
    told of it, once.
    """

    def __init__(self, channels, files=(), opened=lambda file: file, say=print):
        self.channels, self.files, self.opened, self.say = channels, files, opened, say
        self.told = False

    @cached_property
    def white(self):
        """The largest value of all images of more than 8 bits; 65535 where there is none to ask."""
        largest = 0
        for file in tqdm(self.files, desc="depth of the images", unit="image", delay=2, leave=False, disable=None):
            try:
                pixels = deep_pixels(content_of(self.opened(file)))
            except Exception:  # it is named when it is read
                continue
            largest = largest if pixels is None else max(largest, int(pixels.max()))
        if largest:
            self.say(f"images of more than 8 bits: {largest}, the largest value of the set, is taken for white")
        return largest or 65535

    def load(self, file, name):
        """Decode `file` (a path or a binary file) to a PIL image. Raises UserError with `name` where it does not."""
        try:
            # at once: in Pillow's many small reads the threads would wait for each other
            data = content_of(file)
            pixels = deep_pixels(data, name)
            if pixels is not None:
                pixels = (pixels * (255 / self.white)).round().clip(0, 255).astype(np.uint8)
                return Image.fromarray(pixels).convert(MODES[self.channels])
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.has_transparency_data and not self.told:
                    self.told = True
                    self.say(f"transparent pixels are shown on {BACKGROUND}")
                return plain(image).convert(MODES[self.channels])
        except UserError:
            raise
        except Exception as error:  # the decoders raise errors of many kinds
            why = "it is of no kind that is known" if isinstance(error, UnidentifiedImageError) else error
            raise UserError(f"image {name} does not decode ({why}); repair it or remove it from the set.") from error


def content_of(file):
    """The bytes of a path or of a binary file."""
    if hasattr(file, "read"):
        return file.read()
    with open(file, "rb") as opened:
        return opened.read()


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
