"""An image set of others runs nothing, reads nothing else, fills no memory, and is not out of date."""

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


@pytest.mark.parametrize("kind", ["link", "external", "virtual"])
def test_storage_in_other_files_is_refused(tmp_path, kind):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["images"] = np.zeros((2, 3, 16, 16), np.uint8)
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["labels"] = np.zeros(2, np.int64)
        if kind == "link":
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
        safety.require_own_storage(file, tmp_path / "own.h5")


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


def test_the_pixels_of_an_image_are_bounded():
    safety.require_small_image(Image.new("1", (8192, 8192)), "large.png")
    with pytest.raises(UserError, match="huge.png has 8193 x 8192 pixels; at most 67 million"):
        safety.require_small_image(Image.new("1", (8193, 8192)), "huge.png")
