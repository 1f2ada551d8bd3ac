"""Image sets as people download them: which layout is read as what, what is passed over, and the pixels of each."""

import io
import json
import os
import struct
import unicodedata
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from datasets import open_source, read_all
from datasets.layouts import layout, split_called, tree_of
from datasets.prepare import in_order, prepare
from datasets.sources import Decoder
from utils import DATASETS, DatasetSpec, UserError


def png(value=7, size=16, mode="L", suffix="PNG"):
    file = io.BytesIO()
    Image.new(mode, (size, size), value if mode in ("L", "RGBA") else (value,) * 3).save(file, suffix)
    return file.getvalue()


def folder(path, members):
    for name, data in members.items():
        if name.endswith("/"):
            (path / name).mkdir(parents=True, exist_ok=True)
            continue
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def read(source, how="", names=()):
    """(splits as {split: {class: number}}, class names, what was said) of a source."""
    told = []
    splits, classes = layout(source, tree_of(source), how, told.append, names)
    return {split: {name: sum(name == own for own, _ in files) for name in sorted({own for own, _ in files})}
            for split, files in splits.items()}, classes, told


def members(tops, classes=("ant", "bee"), between="", count=2):
    return {f"{top}/{between}{name}/{i}.png": png() for top in tops for name in classes for i in range(count)}


SPLIT_NAMES = [("Training", "Testing"), ("Train", "Test"), ("train", "valid"), ("TRAIN", "Validation"),
               ("seg_train", "seg_test"), ("training_set", "test_set")]


@pytest.mark.parametrize("train, test", SPLIT_NAMES)
@pytest.mark.parametrize("make", [folder, zipped])
def test_splits_under_their_many_names(tmp_path, train, test, make):
    splits, classes, told = read(make(tmp_path / "source", members((f"set/{train}", f"set/{test}"))))
    assert splits == {"train": {"ant": 2, "bee": 2}, "test": {"ant": 2, "bee": 2}} and classes == {"ant", "bee"}
    assert told[0].startswith("read: ") and f"train from set/{train}/<class>" in told[0]
    assert f"from set/{test}/<class>" in told[0]


def test_nested_splits_and_images_to_predict(tmp_path):
    """As the scenes of Intel are packed."""
    files = {name.replace("seg_train/", "seg_train/seg_train/").replace("seg_test/", "seg_test/seg_test/"): data
             for name, data in members(("seg_train", "seg_test")).items()} | {"seg_pred/seg_pred/1.png": png()}
    splits, classes, told = read(folder(tmp_path, files))
    assert splits == {"train": {"ant": 2, "bee": 2}, "test": {"ant": 2, "bee": 2}} and classes == {"ant", "bee"}
    assert told[1] == "passed over: 1 images without a label"


def test_tiny_imagenet(tmp_path):
    files = {f"t/train/{name}/images/{name}_{i}.JPEG": png() for name in ("n01", "n02") for i in range(3)}
    files |= {f"t/train/{name}/{name}_boxes.txt": "x" for name in ("n01", "n02")}
    files |= {f"t/val/images/val_{i}.JPEG": png() for i in range(3)} | {"t/test/images/test_0.JPEG": png()}
    files |= {"t/val/val_annotations.txt": "val_0.JPEG\tn02\t0\t0\nval_1.JPEG\tn01\t0\t0\nval_2.JPEG\tn02\t1\t1\n",
              "t/wnids.txt": "n01\nn02\n"}
    splits, classes, told = read(folder(tmp_path, files))
    assert splits == {"train": {"n01": 3, "n02": 3}, "test": {"n01": 1, "n02": 2}} and classes == {"n01", "n02"}
    assert "named by its annotations" in told[0]
    assert told[1] == "passed over: 4 .txt files (no image), 1 images without a label"


def test_stylegans_zip(tmp_path):
    files = {f"00000/img{i:08}.png": png(i) for i in range(4)}
    files["dataset.json"] = json.dumps({"labels": [[name, i % 2] for i, name in enumerate(files)]})
    path = zipped(tmp_path / "s.zip", files)
    assert read(path)[0] == {"train": {"0": 2, "1": 2}}
    assert read(path, names=("ant", "bee"))[0] == {"train": {"ant": 2, "bee": 2}}
    # without labels it is a folder like others, and names no class
    files["dataset.json"] = json.dumps({"labels": None})
    assert read(zipped(tmp_path / "t.zip", files))[0] == {"train": {"00000": 4}}


def test_what_is_passed_over_is_counted_and_is_no_class(tmp_path):
    files = members(("train", "test")) | {
        "train/labels/a.txt": "0 0.5", "train/ant/@eaDir/0.png": png(), "train/.thumbs/1.png": png(),
        "train/bee/Thumbs.db": "x", "train/ant/a.svg": "x", "lost+found/": "", "train/cat/": "", "README": "x",
        "$RECYCLE.BIN/x.png": png(), "__MACOSX/train/ant/._0.png": "x"}
    splits, classes, told = read(folder(tmp_path, files))
    assert splits["train"] == {"ant": 2, "bee": 2} and classes == {"ant", "bee", "cat"}  # an empty folder is a class
    assert sorted(told[1].removeprefix("passed over: ").split(", ")) == [
        "1 .db files (no image)", "1 .svg files (no image)", "1 .txt files (no image)", "1 no suffix files (no image)",
        "4 files that are hidden or of a file server"]


def test_further_suffixes(tmp_path):
    files = {f"ant/0{suffix}": png(9, mode="RGB", suffix=kind) for suffix, kind in (
        (".jfif", "JPEG"), (".jpe", "JPEG"), (".JPEG", "JPEG"), (".avif", "AVIF"), (".webp", "WEBP"))}
    spec, splits = prepare("own", tmp_path / "data", folder(tmp_path / "s", files), 16, 3, 0)
    assert len(splits["train"].labels) == 5
    assert (open_source(spec, tmp_path / "data", "train").read(range(5)).float() - 9).abs().max() <= 2


def test_a_doubtful_layout_asks(tmp_path):
    files = members(("train", "car"), ("x",))
    with pytest.raises(UserError, match="has the folders car, train; .*nothing beside them.*--layout: 'classes' takes"):
        read(folder(tmp_path, files))
    assert read(tmp_path, "classes")[0] == {"train": {"car": 2, "train": 2}}
    splits, _, told = read(tmp_path, "splits")
    assert splits == {"train": {"x": 2}} and told[1] == "passed over: 2 images without a label"
    with pytest.raises(UserError, match="--layout spilts is unknown .did you mean 'splits'"):
        prepare("own", tmp_path / "data", tmp_path, 16, 1, how="spilts")
    with pytest.raises(UserError, match="class folders that differ from 'Ant' in small and capital letters alone"):
        read(folder(tmp_path / "case", members(("train",), ("Ant",)) | members(("test",), ("ant",))))
    with pytest.raises(UserError, match="has no folders of classes"):
        read(folder(tmp_path / "flat", {"images/0.png": png(), "labels/0.txt": "x"}))


def test_validation_beside_test_is_passed_over_and_said(tmp_path):
    splits, _, told = read(folder(tmp_path, members(("train", "val", "test"))))
    assert set(splits) == {"train", "test"} and "4 images of the val split, since there is a test split" in told[-1]
    assert split_called("bee") is None and split_called("seg_pred") == ""


# ----------------------------------------------------------------------------------------- names


def test_numbers_are_sorted_by_value():
    assert in_order({"10", "9", "0", "2"}) == ("0", "2", "9", "10") and in_order({"b", "a", "10"}) == ("10", "a", "b")


def test_names_in_zips_and_in_two_forms(tmp_path):
    """UTF-8 without its flag, backslashes, and umlauts as one sign or as two."""
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(2):
            archive.writestr(zipfile.ZipInfo(f"K0fer/{i}.png"), png())
            archive.writestr(zipfile.ZipInfo(f"m?we/{i}.png"), png())
    data = path.read_bytes().replace(b"K0fer", "Kä".encode() + b"er").replace(b"m?we", b"m\\we")
    path.write_bytes(data)
    splits, _, _ = read(path)
    assert splits == {"train": {"Käer": 2, "m": 2}}
    decomposed = unicodedata.normalize("NFD", "Käfer")
    assert decomposed != "Käfer"
    spec = DatasetSpec("own", 16, 1, ("Käfer",))
    folder(tmp_path / "data/own/train", {f"{decomposed}/0.png": png()})
    assert open_source(spec, tmp_path / "data", "train").labels.tolist() == [0]
    folder(tmp_path / "src", {f"{decomposed}/{i}.png": png() for i in range(2)})
    made, _ = prepare("more", tmp_path / "data", tmp_path / "src", 16, 1)
    assert made.classes == ("Käfer",)


def test_a_class_whose_name_is_no_text_is_named(tmp_path):
    made = folder(tmp_path / "a", {"cat/1.png": png(), "dog/1.png": png()})
    try:
        os.rename(made / "dog", os.fsencode(made) + b"/d\xffg")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    with pytest.raises(UserError, match="class folder whose name .* is no text in UTF-8.*rename it"):
        read(made)
    os.rename(os.fsencode(made) + b"/d\xffg", made / "dog")
    os.rename(made / "dog/1.png", os.fsencode(made) + b"/dog/\xff.png")  # of a file it is of no matter
    assert read(made)[0] == {"train": {"cat": 1, "dog": 1}}


def test_lost_and_found_beside_the_classes(tmp_path):
    folder(tmp_path / "own/train", {"ant/0.png": png(), "lost+found/": "", "@eaDir/x.png": png()})
    assert len(open_source(DatasetSpec("own", 16, 1, ("ant",)), tmp_path, "train")) == 1


def test_more_classes_than_an_attribute_holds(tmp_path):
    classes = [f"a_rather_long_class_name_{i:05}" for i in range(4200)]
    from datasets.prepare import Split, write
    spec = DatasetSpec("own", 16, 1, tuple(classes))
    pixels = np.zeros((4200, 1, 16, 16), np.uint8)
    write(tmp_path / "own", spec, {"train": Split(np.arange(4200), pixels.__getitem__)})
    assert open_source(spec, tmp_path, "train").labels.tolist() == list(range(4200))


# ---------------------------------------------------------------------------------------- archives


@pytest.mark.parametrize("head, words", [
    (b"\x1f\x8b\x08\0", "packed by gzip, as a .tgz is, and no zip; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"), (b"Rar!\x1a", "a RAR archive"), (bytes(257) + b"ustar\0", "a tar archive"),
    (b"nothing", "not a zip that can be read")])
def test_archives_that_are_no_zip_are_named(tmp_path, head, words):
    (tmp_path / "s.zip").write_bytes(head + bytes(100))
    with pytest.raises(UserError, match=words):
        prepare("own", tmp_path / "data", tmp_path / "s.zip", 16, 1)


def test_an_encrypted_zip_is_named(tmp_path):
    path = zipped(tmp_path / "s.zip", members(("train",)))
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1  # of the first entry of the directory
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="is encrypted .train/ant/0.png.; unpack it with its password"):
        prepare("own", tmp_path / "data", path, 16, 1)


@pytest.mark.parametrize("make", [folder, zipped])
@pytest.mark.parametrize("dot", "-.")
def test_idx_files_with_dots_and_in_zips(tmp_path, make, dot):
    def idx(array):
        return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()

    files = {}
    for split in ("train", "t10k"):
        files[f"raw/{split}-images{dot}idx3-ubyte"] = idx(np.full((3, 28, 28), 9, np.uint8))
        files[f"raw/{split}-labels{dot}idx1-ubyte"] = idx(np.array([4, 5, 6], np.uint8))
    prepare("mnist", tmp_path / "data", make(tmp_path / "source", files))
    train = open_source(DATASETS["MNIST"], tmp_path / "data", "train")
    assert train.labels.tolist() == [4, 5, 6] and train.read([0])[0, 0, 16, 16] == 9
    del files[f"raw/t10k-labels{dot}idx1-ubyte"]
    with pytest.raises(UserError, match="has no test labels of MNIST as an idx file"):
        prepare("mnist", tmp_path / "data", make(tmp_path / "less", files))


def test_a_locked_file_is_not_called_damaged(tmp_path):
    (tmp_path / "own").mkdir()
    with h5py.File(tmp_path / "own/train.h5", "w") as file:
        file["labels"] = np.zeros(1)
        file.flush()
        import subprocess
        import sys
        code = ("import sys; sys.path.insert(0, '.'); from datasets import open_source; from utils import DatasetSpec\n"
                f"open_source(DatasetSpec('own', 16, 1, ('a',)), {str(tmp_path)!r}, 'train')")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is locked: another program has it open for writing" in done.stderr


# ------------------------------------------------------------------------------------------ pixels


def png16(array):
    """The bytes of a 16-bit RGB PNG, by hand: Pillow does not write such."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("largest", [255, 4095, 65535])
@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_fewer_bits_inside_16_are_scaled_by_the_sets_own_maximum(tmp_path, largest, kind):
    levels = np.linspace(0, largest, 256).round().astype(np.uint16).reshape(16, 16)

    def encoded(array):
        if kind == "colour":
            return png16(array[:, :, None].repeat(3, 2))
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        return file.getvalue()

    files = {"ant/0.png": encoded(levels // 2), "ant/1.png": encoded(levels)}
    told = []
    spec, _ = prepare("own", tmp_path / "data", folder(tmp_path / "s", files), 16, 3, 0, say=told.append)
    pixels = open_source(spec, tmp_path / "data", "train").read([0, 1])
    assert pixels[1, 1].flatten().tolist() == list(range(256))
    assert pixels[0].max() in (127, 128)  # on the scale of the set, not its own
    assert f"images of more than 8 bits: {largest}, the largest value of the set, is taken for white" in told
    tree = folder(tmp_path / "data/tree/train", files).parent.parent
    assert torch.equal(open_source(DatasetSpec("tree", 16, 3, ("ant",)), tree, "train").read([0, 1]), pixels)


def test_hidden_colours_are_shown_on_white_and_cameras_turned(tmp_path):
    hidden = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    hidden.putpixel((3, 3), (0, 0, 90, 255))
    upright = Image.new("RGB", (16, 16), "black")
    upright.paste((250, 250, 250), (0, 0, 16, 4))  # the top is bright
    turned = upright.rotate(90, expand=True)  # as a camera stores it
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.webp")]
    hidden.save(paths[0])
    turned.save(paths[1], exif=exif)
    hidden.quantize(8).save(paths[2].with_suffix(".gif"), transparency=0)
    told = []
    decoder = Decoder(3, say=told.append)
    shown = np.asarray(decoder.load(paths[0], "a"))
    assert shown[3, 3].tolist() == [0, 0, 90] and shown[0, 0].tolist() == [255, 255, 255]
    assert told == ["transparent pixels are shown on white"]
    shown = np.asarray(decoder.load(paths[1], "b"))
    assert shown[:4].min() == 250 and shown[4:].max() == 0
    with pytest.raises(UserError, match="pixels, of mode F, have no fixed range"):
        Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "f.tiff")
        decoder.load(tmp_path / "f.tiff", "f")


# ---------------------------------------------------------------------------- bad images, small sets


def test_bad_images_are_listed_together_and_can_be_left_out(tmp_path):
    files = {f"{name}/{i}.png": png() for name in ("ant", "bee") for i in range(10)}
    for i in (0, 1, 2, 3, 4, 5, 9):  # at a share of 0.2 the tenth would be held out
        files[f"bee/{i}.png"] = b"no image"
    source = folder(tmp_path / "s", files)
    with pytest.raises(UserError, match=r"7 image\(s\) of .* cannot be used: .*bee/0.png does not decode .*and 2 more "
                                        "--skip_bad leaves them out") as refused:
        prepare("own", tmp_path / "data", source, 16, 1, 0.2)
    assert str(refused.value).count("does not decode") == 5 and not list((tmp_path / "data/own").iterdir())
    told = []
    spec, splits = prepare("own", tmp_path / "data", source, 16, 1, 0.2, skip_bad=True, say=told.append)
    assert np.bincount(splits["train"].labels).tolist() == [8, 2]
    assert np.bincount(splits["test"].labels).tolist() == [2, 1]
    assert "left out, since they do not decode: 7" in told[-1]
    counted = [open_source(spec, tmp_path / "data", split) for split in ("train", "test")]
    assert sum(source.left_out for source in counted) == 7
    assert len(read_all(counted[0], torch.arange(len(counted[0])))) == len(counted[0])


def test_a_small_set_has_a_test_split(tmp_path):
    files = {f"{name}/{i}.png": png() for name in ("ant", "bee", "cat") for i in range(8)} | {"dog/0.png": png()}
    _, splits = prepare("own", tmp_path / "data", folder(tmp_path / "s", files), 16, 1)
    assert np.bincount(splits["test"].labels, minlength=4).tolist() == [1, 1, 1, 0]
    assert np.bincount(splits["train"].labels).tolist() == [7, 7, 7, 1]
