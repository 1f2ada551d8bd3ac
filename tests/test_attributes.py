"""datasets/attributes.py, and the preparation that leads to it: small sources made here, counts by hand."""

import io
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from datasets import open_source
from datasets.attributes import (
    Attribute,
    Columns,
    attributes_of,
    filter_audit,
    find_attribute,
    group_names,
    groups_of,
    kept_rows,
    parse_only,
    read_attributes,
    read_table,
    require_classes,
    waterbirds_table,
)
from datasets.prepare import prepare
from utils import DATASETS, ROOT, UserError

WB = DATASETS["waterbirds32"]


def jpeg(grey, size=(40, 24)):
    file = io.BytesIO()
    Image.new("RGB", size, (grey, grey, grey)).save(file, "JPEG", quality=95)
    return file.getvalue()


def waterbirds_rows():
    """(file, y, split, place, grey): every group in every split, and two mislabelled species."""
    rows = []
    for y in (0, 1):
        for place in (0, 1):
            for split, count in (("0", 3), ("1", 2), ("2", 6)):
                for i in range(count):
                    rows.append((f"{y + 1:03}.Bird_{y}/b{y}{place}{split}{i}.jpg", y, split, place, len(rows)))
    rows += [("021.Eastern_Towhee/t.jpg", 1, "0", 0, 200), ("103.Western_Wood_Pewee/w.jpg", 1, "2", 1, 201)]
    return rows


def waterbirds_zip(path, rows=None, header="img_id,img_filename,y,split,place,place_filename", around="waterbirds64/"):
    rows = waterbirds_rows() if rows is None else rows
    lines = [header] + [f"{k},{file},{y},{split},{place},/o/x.jpg" for k, (file, y, split, place, _) in enumerate(rows)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{around}metadata.csv", "\n".join(lines))
        for file, _, _, _, grey in rows:
            archive.writestr(around + file, jpeg(grey))
    return path


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """A data root with the small Waterbirds at 32 pixels."""
    root = tmp_path_factory.mktemp("birds")
    prepare("waterbirds32", root, waterbirds_zip(root / "birds.zip"))
    return root


# ------------------------------------------------------------------------------------- preparing


def test_waterbirds_are_prepared_with_their_place(birds):
    source = open_source(WB, birds, "train")
    attributes, note = attributes_of(source)
    assert note == "" and set(attributes) == {"place", "bird", "background"}
    place = attributes["place"]
    assert place.values == ("land", "water") and attributes["bird"].values == ("landbird", "waterbird")
    # sorted by class and file: 3 + 3 landbirds, the towhee, which was on land, 3 + 3 waterbirds
    assert source.labels.tolist() == [0] * 6 + [1] * 7
    assert place.of.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0]
    assert attributes["bird"].of.equal(source.labels)
    usual = attributes["background"].mask("usual")
    assert usual.equal(place.of == source.labels)
    greys = {grey for file, *_, grey in waterbirds_rows() if "/b" in file or "/t" in file}
    assert set(source.read(range(len(source))).float().mean((1, 2, 3)).round().int().tolist()) <= greys


def test_the_published_val_and_test_are_dealt_without_overlap(birds):
    parts = {split: open_source(WB, birds, split) for split in ("pool", "scorer", "calibration", "val", "test")}
    greys = {split: sorted(source.read(range(len(source))).float().mean((1, 2, 3)).round().int().tolist())
             for split, source in parts.items()}
    dealt = greys["pool"] + greys["scorer"] + greys["calibration"]
    assert sorted(dealt) == sorted(greys["val"] + greys["test"]) and len(set(dealt)) == len(dealt)
    # 8 of each group, 9 waterbirds on water: half, a quarter, a quarter
    for split, counts in (("pool", [4, 4, 4, 4]), ("scorer", [2, 2, 2, 3]), ("calibration", [2, 2, 2, 2])):
        place = attributes_of(parts[split])[0]["place"]
        assert torch.bincount(groups_of(parts[split].labels, place), minlength=4).tolist() == counts


def test_preparing_attributes_twice_gives_the_same_bytes(birds, tmp_path):
    prepare("waterbirds32", tmp_path, birds / "birds.zip")
    for file in ("train.h5", "pool.h5"):
        assert (tmp_path / "waterbirds32" / file).read_bytes() == (birds / "waterbirds32" / file).read_bytes()


def test_waterbirds_are_squeezed_not_cropped(tmp_path):
    """The published folder, unpacked: an image that is white at its left end alone keeps a white edge."""
    rows = waterbirds_rows()
    waterbirds_zip(tmp_path / "birds.zip", rows, around="")
    with zipfile.ZipFile(tmp_path / "birds.zip") as archive:
        archive.extractall(tmp_path / "published")
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[:, :20] = 255
    Image.fromarray(pixels).save(tmp_path / "published" / rows[0][0], quality=95)
    prepare("waterbirds32", tmp_path, tmp_path / "published")
    image = open_source(WB, tmp_path, "train").read([0])[0]
    assert image[:, :, :5].min() > 200 and image[:, :, 12:].max() < 60


def test_mislabelled_species_are_dropped_and_said(birds, tmp_path):
    _, splits = prepare("waterbirds32", tmp_path, birds / "birds.zip", drop_mislabelled=True)
    assert {split: len(part.labels) for split, part in splits.items()} == {
        "train": 12, "val": 8, "test": 24, "pool": 16, "scorer": 8, "calibration": 8}
    note = read_attributes(tmp_path / "waterbirds32" / "train.h5")[1]
    assert note.startswith("without 2 images of Eastern Towhee, Western Meadowlark, Western Wood Pewee")


def test_any_folder_with_a_csv_by_command(tmp_path):
    folder = tmp_path / "cars"
    folder.mkdir()
    lines = ["file,class,weather,camera"]
    for i in range(20):
        (folder / f"{i}.png").write_bytes(jpeg(10 * i))
        lines.append(f"{i}.png,{'car' if i % 2 else 'bus'},{'rain' if i < 8 else 'sun'},c{i}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, ROOT / "scripts/prepare_data.py", "cars", "--source", folder, "--resolution",
                           "16", "--channels", "3", "--attributes", "weather", "--test_share", "0.2", "--data_root",
                           tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "bus, weather rain" in done.stdout and "'cars': DatasetSpec('cars', 16, 3, ('bus', 'car'))" in done.stdout
    with h5py.File(tmp_path / "cars" / "train.h5") as file:
        assert len(file["labels"]) == 16 and list(file["attributes"]) == ["weather"]
        assert list(file["attributes/weather"].attrs["values"]) == ["rain", "sun"]
        greys = file["images"][:].mean((1, 2, 3)).round()
        assert ((greys >= 80) == file["attributes/weather"][:]).all()  # the columns stayed with their images


# ------------------------------------------------------------------------------------ bad sources


FILES = ["a/1.png", "a/2.png"]
COLUMNS = Columns(attributes=("place",))


@pytest.mark.parametrize("text, message", [
    ("file,class\n1.png,x\n2.png,x", "Missing: place"),
    ("", "has no rows"),
    ("file,class,place\n1.png,x,land\n3.png,x,land", "names 1 images that the source does not hold, such as 3.png"),
    ("file,class,place\n1.png,x,land", "lacks a line for 1 of the source's 2 images, such as 2.png"),
    ("file,class,place\n1.png,x,land\n2.png,x,", r"line 3 of m.csv \(2.png\) has no place"),
    ("file,class,place\n1.png,x,land\n2.png,x,land\n2.png,y,land", "3 lines for 2 images"),
    ("file,class,place,split\n1.png,x,land,train\n2.png,x,land,tset", "the split 'tset' .did you mean 'test'"),
])
def test_a_csv_that_does_not_fit_is_a_sentence(text, message):
    with pytest.raises(UserError, match=message):
        read_table(text, FILES, COLUMNS, "m.csv")


def test_a_column_of_names_is_no_attribute():
    files = [f"{i}.png" for i in range(70)]
    text = "file,class,place\n" + "\n".join(f"{file},x,{file}" for file in files)
    with pytest.raises(UserError, match="70 different values"):
        read_table(text, files, COLUMNS, "m.csv")


def test_sources_without_their_csv_and_with_other_classes(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "1.png").write_bytes(jpeg(3))
    with pytest.raises(UserError, match="holds no metadata.csv"):
        prepare("waterbirds32", tmp_path, tmp_path / "s")
    rows = [(file, y + 5, split, place, grey) for file, y, split, place, grey in waterbirds_rows()]
    with pytest.raises(UserError, match="the class '5', which is none of data set waterbirds32"):
        prepare("waterbirds32", tmp_path, waterbirds_zip(tmp_path / "other.zip", rows))
    assert not (tmp_path / "waterbirds32").exists()


def test_what_no_csv_can_say(tmp_path):
    text = "img_filename,y,split,place\na/1.jpg,0,0,0\na/2.jpg,1,0,2"
    with pytest.raises(UserError, match=r"line 3 of m.csv .a/2.jpg. has the place '2' .valid names: 0, 1"):
        waterbirds_table(text, ["a/1.jpg", "a/2.jpg"], "m.csv")
    with pytest.raises(UserError, match="--attributes ink are columns of a CSV in --source"):
        prepare("digits", tmp_path, attributes=["ink"])
    with pytest.raises(UserError, match="--drop_mislabelled is of waterbirds"):
        prepare("digits", tmp_path, drop_mislabelled=True)


def test_dealing_does_not_depend_on_the_order_of_lines():
    rows = [(file, y, split, place) for file, y, split, place, _ in waterbirds_rows()]
    tables = []
    for order in (rows, rows[::-1]):
        text = "img_filename,y,split,place\n" + "\n".join(",".join(map(str, row)) for row in order)
        tables.append(waterbirds_table(text, [row[0] for row in rows], "m.csv")[0])
    assert tables[0] == tables[1]


# ------------------------------------------------------------------------------------------- filters


LABELS = torch.tensor([0, 0, 0, 1, 1])
PLACE = Attribute(("land", "water"), torch.tensor([0, 1, 0, 1, 1]))


def test_groups_are_numbered_class_by_class():
    assert groups_of(LABELS, PLACE).tolist() == [0, 1, 0, 3, 3]
    assert group_names(("landbird", "waterbird"), "place", PLACE.values) == (
        "landbird, place land", "landbird, place water", "waterbird, place land", "waterbird, place water")


def test_a_filter_keeps_its_value_and_the_audit_counts_groups():
    only = parse_only(["place=land"])
    kept = kept_rows({"place": PLACE}, only, 5, "set")
    assert kept.tolist() == [True, False, True, False, False]
    used = torch.tensor([2])  # image 0 was a duplicate of one that was left out
    assert filter_audit(LABELS, {"place": PLACE}, only, kept, used, ("a", "b")) == {
        "only": {"place": "land"}, "images_filtered_out": 3, "images_per_group": {
            "place": {"a, place land": 1, "a, place water": 0, "b, place land": 0, "b, place water": 0}}}


def test_a_filter_that_empties_a_class_is_a_sentence():
    kept = kept_rows({"place": PLACE}, {"place": "land"}, 5, "set")
    require_classes(LABELS, kept, ("a", "b"), [0], {"place": "land"})  # b is unseen
    with pytest.raises(UserError, match="--only place=land leaves no image of b"):
        require_classes(LABELS, kept, ("a", "b"), [0, 1], {"place": "land"})


@pytest.mark.parametrize("texts, message", [
    (["place"], "'place' is no filter"), (["=land"], "is no filter"), (["place=land", "place=water"], "twice"),
    (["plac=land"], "set has no attribute 'plac' .did you mean 'place'"),
    (["place=lend"], "has no value 'lend' .did you mean 'land'"),
])
def test_filters_that_are_none(texts, message):
    with pytest.raises(UserError, match=message):
        kept_rows({"place": PLACE}, parse_only(texts), 5, "set")


def test_a_set_without_attributes_says_so(tmp_path):
    with pytest.raises(UserError, match="no attribute 'place': it was prepared without any"):
        find_attribute({}, "place", "set")
    assert read_attributes(tmp_path / "folder") == ({}, "")


def test_a_damaged_attribute_is_a_sentence(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["labels"] = np.arange(3)
        file["attributes/place"] = np.array([0, 1, 2])
        file["attributes/place"].attrs["values"] = ["land", "water"]
    with pytest.raises(UserError, match="land, water of the attribute 'place' for each of its 3 images"):
        read_attributes(tmp_path / "x.h5")


def test_real_waterbirds_have_the_published_groups(shared_file):
    path = shared_file("data/waterbirds64.zip")
    with zipfile.ZipFile(path) as archive:
        files = [name for name in archive.namelist() if name.endswith(".jpg")]
        text = archive.read("waterbirds64/metadata.csv").decode()
    table, note = waterbirds_table(text, files, "metadata.csv", drop_mislabelled=True)
    whole, _ = waterbirds_table(text, files, "metadata.csv")

    def counts(members):
        pairs = [(m.label, m.attributes["place"]) for m in members]
        return [pairs.count((bird, place)) for bird in WB.classes for place in ("land", "water")]

    assert {split: counts(members) for split, members in whole.items()} == {
        "train": [3498, 184, 56, 1057], "val": [467, 466, 133, 133], "test": [2255, 2255, 642, 642],
        "pool": [1361, 1360, 388, 388], "scorer": [681, 681, 193, 193], "calibration": [680, 680, 194, 194]}
    assert note.startswith("without 180 images")
    assert sum(len(table[split]) for split in ("train", "val", "test")) == 11_788 - 180
