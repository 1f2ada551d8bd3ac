"""An image set of others runs nothing, reads nothing else, fills no memory, and is not out of date."""

import gzip
import io
import os
import zipfile

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from test_datasets import SPEC, make_h5, make_tree
from test_near import Source, pictures

from datasets import leave_out, open_source, safety
from datasets.absence import require_distinct
from datasets.sources import Decoder
from metrics.images import npz_images, read_image
from utils import DatasetSpec, UserError


@pytest.mark.parametrize("other", ["Dog", "dog ", " dog", "do\u200bg", "d-og", "\uff24\uff2f\uff27"])
def test_a_class_named_like_an_unseen_one_is_refused(other):
    classes = ("ant", "bee", "dog", other)
    with pytest.raises(UserError, match="'dog', which is unseen, and .*--new_class 2 3"):
        leave_out(Source(pictures(8), torch.arange(8) % 4), DatasetSpec("toy", 32, 3, classes), [2])
    require_distinct(classes, [2, 3])
    require_distinct(classes, [0])


def test_unicode_forms_are_one_name():
    with pytest.raises(UserError, match="Unicode form alone"):
        require_distinct(("ko\u0308nig", "k\u00f6nig", "ant"), [0])
    require_distinct(("ant", "aunt", "an"), [0])


def test_links_out_of_the_set_are_named(tmp_path):
    folder, elsewhere = make_tree(tmp_path, SPEC.classes), make_tree(tmp_path / "other", ("dog",))
    (folder / "ant" / "9.png").symlink_to(elsewhere / "dog" / "0.png")
    (folder / "bee" / "inside").symlink_to(folder / "cat")
    _, audit, _ = leave_out(open_source(SPEC, tmp_path, "train"), SPEC, [3])
    assert audit["links_out"] == [f"{folder / 'ant' / '9.png'} -> {elsewhere / 'dog' / '0.png'}"]
    assert "1 links in the set lead out of it" in audit["statement"]


def test_a_linked_set_is_no_stray(tmp_path):
    make_tree(tmp_path / "real", SPEC.classes)
    (tmp_path / "tiny").symlink_to(tmp_path / "real" / "tiny")
    assert safety.stray_links(open_source(SPEC, tmp_path, "train")) == []


@pytest.mark.parametrize("to", [".", "..", "../.."])
def test_a_loop_of_links_is_refused(tmp_path, to):
    folder = make_tree(tmp_path, ("ant",))
    (folder / "ant" / "again").symlink_to(to)
    with pytest.raises(UserError, match="again leads to a folder that it lies in"):
        safety.stray_links(open_source(SPEC, tmp_path, "train"))


def test_a_stale_file_beside_a_newer_folder_is_refused(tmp_path):
    make_h5(tmp_path, [0, 1, 2, 3])
    folder = make_tree(tmp_path, SPEC.classes)
    with pytest.raises(UserError, match="train.h5 is older than the folder"):
        safety.require_current(open_source(SPEC, tmp_path, "train"))
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (1, 1))
    safety.require_current(open_source(SPEC, tmp_path, "train"))


def test_splits_of_two_preparations_are_refused(tmp_path):
    for split in ("train", "test"):
        make_h5(tmp_path, [0, 1, 2, 3], split=split)
    safety.require_current(open_source(SPEC, tmp_path, "train"))  # of before there were ids
    for split, made in (("train", "a"), ("test", "b")):
        with h5py.File(tmp_path / "tiny" / f"{split}.h5", "a") as file:
            file.attrs["id"] = made
    with pytest.raises(UserError, match="train.h5 and test.h5 beside it were not prepared together"):
        safety.require_current(open_source(SPEC, tmp_path, "train"))


@pytest.mark.parametrize("kind", ["link", "external", "virtual", "link to an attribute", "link to the classes"])
def test_storage_in_other_files_is_refused(tmp_path, kind):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["images"] = np.zeros((2, 3, 16, 16), np.uint8)
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["labels"] = np.zeros(2, np.int64)
        if kind.startswith("link "):
            file["images"] = np.zeros((2, 3, 16, 16), np.uint8)
            name = "classes" if kind.endswith("classes") else "attributes/place"
            file[name] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "images")
        elif kind == "link":
            file["images"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "images")
        elif kind == "external":
            file.create_dataset("images", (2, 3, 16, 16), np.uint8,
                                external=[(str(tmp_path / "secret.h5"), 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout((2, 3, 16, 16), np.uint8)
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "images", (2, 3, 16, 16))
            file.create_virtual_dataset("images", layout)
    with h5py.File(tmp_path / "set.h5") as file, pytest.raises(UserError, match="set.h5 (keeps|holds)"):
        safety.require_own_storage(file, tmp_path / "set.h5")
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["images"], file["labels"] = np.zeros((2, 3, 16, 16), np.uint8), np.zeros(2)
        file.create_group("attributes")["above"] = file["/"]
        safety.require_own_storage(file, tmp_path / "own.h5")


@pytest.mark.parametrize("name", ["images", "labels", "attributes/place"])
def test_an_array_of_nothing_is_no_image_set(tmp_path, name):
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.create_dataset(name, (10**12,), np.uint8, chunks=(1000,))
        with pytest.raises(UserError, match=f"{name} in .*empty.h5 unpacks from 0.00 MB to 1000000 MB; at most 268 MB"):
            safety.require_own_storage(file, tmp_path / "empty.h5")


def test_what_is_unpacked_is_bounded():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/ant/0.png", bytes(safety.PACKED + 1))
        archive.writestr("train/ant/1.png", b"small")
    assert len(packed.getvalue()) < 1e6
    with zipfile.ZipFile(packed) as archive:
        safety.require_small_member(archive.getinfo("train/ant/1.png"), "1.png")
        with pytest.raises(UserError, match="bomb.png unpacks to 268 MB"):
            safety.require_small_member(archive.getinfo("train/ant/0.png"), "bomb.png")
        table = archive.getinfo("train/ant/0.png")
        table.file_size = safety.TEXT
        safety.require_small_member(table, "metadata.csv")
        table.file_size += 1
        with pytest.raises(UserError, match="data/METADATA.CSV unpacks to 67 MB; a table or listing may have 67 MB"):
            safety.require_small_member(table, "data/METADATA.CSV")


def test_what_gzip_unpacks_is_bounded(monkeypatch):
    monkeypatch.setattr(safety, "PACKED", 1000)
    assert safety.inflated(gzip.compress(bytes(1000)), "labels.gz") == bytes(1000)
    with pytest.raises(UserError, match="labels.gz unpacks to more than 0 MB"):
        safety.inflated(gzip.compress(bytes(1001)), "labels.gz")
    damaged = bytearray(gzip.compress(b"labels"))
    damaged[-5] ^= 1  # of the checksum
    with pytest.raises(OSError):
        safety.inflated(bytes(damaged), "labels.gz")


def test_what_an_npz_unpacks_is_bounded(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "images.npz", x=draw.integers(0, 256, (9, 3, 16, 16), np.uint8), y=np.zeros(9))
    monkeypatch.setattr(safety, "PACKED", 1000)
    safety.require_small_arrays(tmp_path / "images.npz")
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((1000, 3, 16, 16), np.uint8), y=np.zeros(9))
    with pytest.raises(UserError, match="x.npy in .*bomb.npz unpacks from 0.00 MB to 1 MB; at most .* without compres"):
        npz_images(tmp_path / "bomb.npz", DatasetSpec("toy", 16, 3, ("ant",)), [0], 1)


def test_the_samples_of_a_sound_are_bounded():
    safety.require_short_sound(2**26, "long.flac")
    with pytest.raises(UserError, match="longer.flac has 67 million samples; at most 67 million are read"):
        safety.require_short_sound(2**26 + 1, "longer.flac")


def test_images_made_elsewhere_are_read_as_those_of_a_set_are(tmp_path):
    """A program in PostScript by the name of a picture is no picture, whichever reader meets it."""
    (tmp_path / "0.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n")
    for read, why in ((lambda path: Decoder(3).load(path, path), "it is of no kind that is known"),
                      (lambda path: read_image(path, SPEC), "cannot identify image file")):
        with pytest.raises(UserError, match=f"0.png does not decode .{why}"):
            read(tmp_path / "0.png")
    Image.new("L", (8193, 8192)).save(tmp_path / "1.png")
    with pytest.raises(UserError, match="1.png has 8193 x 8192 pixels"):
        read_image(tmp_path / "1.png", SPEC)


def test_the_pixels_of_an_image_are_bounded():
    safety.require_small_image(Image.new("1", (8192, 8192)), "large.png")
    with pytest.raises(UserError, match="huge.png has 8193 x 8192 pixels; at most 67 million"):
        safety.require_small_image(Image.new("1", (8193, 8192)), "huge.png")
