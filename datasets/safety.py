"""What an image set that others made may not do: run a program, fill memory, read other files, be out of date."""

import gzip
import io
import os
import zipfile
from pathlib import Path

import h5py

from utils import UserError

# Pillow's other formats include programs (EPS) and readers of other files
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
PACKED = 256 * 2**20  # bytes of one image file
TEXT = 64 * 2**20  # bytes of one table or listing, which takes many times as much when it is read
TEXTS = (".csv", ".json", ".tsv", ".txt")
RATIO = 100  # times as large as packed: more than any picture or label gains
PIXELS = 2**26  # of one image: 8192 x 8192; and samples of one sound: 25 minutes


def require_small_member(member, name):
    """Raise UserError where a zipfile.ZipInfo says that it unpacks to more than an image file or a table may hold."""
    bound, kind = (TEXT, "a table or listing") if name.lower().endswith(TEXTS) else (PACKED, "an image file")
    if member.file_size > bound:
        raise UserError(f"{name} unpacks to {member.file_size / 1e6:.0f} MB; {kind} may have {bound / 1e6:.0f} MB. "
                        "Remove it from the set, or make it smaller.")


def inflated(data, name):
    """What gzip has packed into bytes. Raises UserError with `name` for more than an image file may hold, and OSError,
    EOFError or zlib.error for what is damaged."""
    found = gzip.GzipFile(fileobj=io.BytesIO(data)).read(PACKED + 1)
    if len(found) > PACKED:
        raise UserError(f"{name} unpacks to more than {PACKED / 1e6:.0f} MB, and no more are read. Unpack it yourself, "
                        "or fetch it again.")
    return found


def require_small_array(name, unpacked, packed):
    """Raise UserError where an array takes far more memory (bytes) than room in its file (bytes)."""
    bound = max(PACKED, RATIO * packed)
    if unpacked > bound:
        raise UserError(f"{name} unpacks from {packed / 1e6:.2f} MB to {unpacked / 1e6:.0f} MB; at most "
                        f"{bound / 1e6:.0f} MB are read, or {RATIO} times what it takes in the file. Store it without "
                        "compression.")


def require_small_arrays(path):
    """Raise UserError where an array of an npz unpacks to far more than it takes; zipfile.BadZipFile for no npz."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            require_small_array(f"{member.filename} in {path}", member.file_size, member.compress_size)


def require_small_image(image, name):
    """Raise UserError where a Pillow image, opened and not yet decoded, has more pixels than memory should be given."""
    width, height = image.size
    if width * height > PIXELS:
        raise UserError(f"image {name} has {width} x {height} pixels; at most {PIXELS / 1e6:.0f} million are read. "
                        "Remove it from the set, or make it smaller.")


def require_short_sound(frames, name):
    """Raise UserError where a sound says that it has more samples than memory should be given."""
    if frames > PIXELS:
        raise UserError(f"sound {name} has {frames / 1e6:.0f} million samples; at most {PIXELS / 1e6:.0f} million are "
                        "read. Cut it into clips.")


def require_own_storage(file, path):
    """Raise UserError where an open h5py.File keeps anything in other files, or more than it seems to hold."""
    links, arrays = [], []
    # an error in what visits is lost in HDF5
    file.visititems_links(lambda *found: links.append(found))
    file.visititems(lambda *found: arrays.append(found))
    for name, link in links:
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{path} holds a link in place of its {name}; a prepared image set keeps them itself. Make "
                            "it again with scripts/prepare_data.py.")
    for name, array in arrays:
        if isinstance(array, h5py.Dataset):
            if array.external or array.is_virtual:
                raise UserError(f"{path} keeps its {name} in other files; a prepared image set keeps them itself. Make "
                                "it again with scripts/prepare_data.py.")
            require_small_array(f"{name} in {path}", array.nbytes, array.id.get_storage_size())


def require_current(source):
    """Raise UserError where a source is an HDF5 file beside a newer folder of the same split, or beside a split of
    another preparation, so that it is not clear which images are meant."""
    path = getattr(source, "path", None)
    if path is None:
        return
    path = Path(path)
    folder, other = path.with_suffix(""), path.with_name("test.h5" if path.name == "train.h5" else "train.h5")
    newest = max((entry.stat().st_mtime for entry in [folder, *folder.rglob("*")] if entry.exists()), default=0.0) \
        if folder.is_dir() else 0.0
    if newest > path.stat().st_mtime:
        raise UserError(f"{path} is older than the folder {folder} beside it, and would be read instead of it; prepare "
                        "the set again, or remove one of the two.")
    ids = [identity(file) for file in (path, other)]
    if None not in ids and ids[0] != ids[1]:
        raise UserError(f"{path} and {other.name} beside it were not prepared together: the command was stopped, or "
                        "one was copied. Prepare the set again with scripts/prepare_data.py.")


def identity(path):
    """The id that one run of prepare_data gives to both its files; None where there is none."""
    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get("id")
    except OSError:
        return None


def stray_links(source):
    """The symbolic links in a source's folder that lead out of it, as 'link -> target'. Raises UserError for one that
    leads into itself."""
    folder = getattr(source, "folder", None)
    if folder is None:
        return []
    top, found = Path(folder).resolve(), []
    for where, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(where) / name
            if not path.is_symlink():
                continue
            target = Path(os.path.realpath(path))
            if target.is_dir() and Path(where).resolve().is_relative_to(target):
                raise UserError(f"the link {path} leads to a folder that it lies in, {target}: its images would be "
                                "read again and again. Remove it.")
            if not target.is_relative_to(top):
                found.append(f"{path} -> {target}")
    return found
