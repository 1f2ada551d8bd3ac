"""A second attribute of images beside their class, as the background of a bird: read, stored, filtered by, counted.

In a prepared file an attribute is `attributes/<name>`, int64 (N,), with the names of its values as the HDF5 attribute
`values`. It comes from a CSV with a line an image; that of Waterbirds (Sagawa et al., 2020) is known.
"""

import csv
import hashlib
import io
from dataclasses import dataclass, field

import h5py
import numpy as np
import torch

from utils import UserError, nearest

MOST_VALUES = 64  # of an attribute; a column with more is no group of images, but a number or a name
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Attribute:
    """What each image of a split is besides its class: values[of[i]] is that of image i. of: int64 (N,)."""

    values: tuple[str, ...]
    of: torch.Tensor

    def only(self, rows):
        """The attribute of the images with these row numbers."""
        return Attribute(self.values, self.of[torch.as_tensor(rows)])

    def mask(self, value):
        """Which images have `value`, bool (N,)."""
        return self.of == self.values.index(value)


# ------------------------------------------------------------------------------------------ in files


def write_attributes(file, attributes, note=""):
    """Store {name: Attribute}, and a note on what the split lacks, in an open h5py.File."""
    for name, attribute in attributes.items():
        stored = file.create_dataset(f"attributes/{name}", data=attribute.of.numpy())
        stored.attrs["values"] = list(attribute.values)
    if note:
        file.attrs["note"] = note


def read_attributes(path):
    """({name: Attribute}, note) of a prepared file; ({}, '') where it has none, or is a folder.

    Raises UserError where an attribute does not hold one value an image.
    """
    if not str(path).endswith(".h5"):
        return {}, ""
    found = {}
    with h5py.File(path, "r") as file:
        count, note = len(file["labels"]), str(file.attrs.get("note", ""))
        for name, stored in file.get("attributes", {}).items():
            values = tuple(str(value) for value in stored.attrs.get("values", ()))
            of = stored[:]
            if of.shape != (count,) or count and not 0 <= of.min() <= of.max() < len(values):
                raise UserError(f"{path} does not hold one of the values {', '.join(values) or '(none)'} of the "
                                f"attribute '{name}' for each of its {count} images; prepare the data set again.")
            found[name] = Attribute(values, torch.from_numpy(of.astype(np.int64)))
    return found, note


def attributes_of(source):
    """What `read_attributes` finds of an opened source (datasets.sources), read from a file or a folder."""
    return read_attributes(getattr(source, "path", ""))


def find_attribute(attributes, name, where):
    """The Attribute of this name. where: whose it is, for the message. Raises UserError where there is none."""
    if name not in attributes:
        known = f" ({nearest(name, attributes)})" if attributes else ": it was prepared without any"
        raise UserError(f"{where} has no attribute '{name}'{known}. Attributes come with the CSV that "
                        "scripts/prepare_data.py is given.")
    return attributes[name]


# ----------------------------------------------------------------------------------------- filters


def parse_only(texts):
    """{name: value} of filters such as 'place=land'. Raises UserError for one of another form, or given twice."""
    only = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise UserError(f"--only '{text}' is no filter; give an attribute and its value, as in --only place=land.")
        if name in only:
            raise UserError(f"--only names the attribute '{name}' twice; an image has one value of it.")
        only[name] = value
    return only


def kept_rows(attributes, only, count, where):
    """Which of `count` images have all the values of `only` {name: value}: bool (count,).

    Raises UserError for an attribute or a value that is unknown. An image that is not kept is to be treated as one
    of an unseen class is: exact duplicates of it under another value are left out too.
    """
    kept = torch.ones(count, dtype=torch.bool)
    for name, value in only.items():
        attribute = find_attribute(attributes, name, where)
        if value not in attribute.values:
            raise UserError(f"--only {name}={value}: the attribute '{name}' of {where} has no value '{value}' "
                            f"({nearest(value, attribute.values)}).")
        kept &= attribute.mask(value)
    return kept


def require_classes(labels, kept, classes, needed, only):
    """Raise UserError where a filter leaves a class in `needed` (labels) without images. labels, kept: (N,)."""
    for label in needed:
        if (labels == label).any() and not (kept & (labels == label)).any():
            filters = " ".join(f"{name}={value}" for name, value in only.items())
            raise UserError(f"--only {filters} leaves no image of {classes[label]}, which should be seen; leave the "
                            "filter out, or name the class in --new_class.")


def group_names(classes, name, values):
    """The names of the groups class x value, in the order of `groups_of`."""
    return tuple(f"{label}, {name} {value}" for label in classes for value in values)


def groups_of(labels, attribute):
    """The group of each image, int64 (N,): its label times the number of values, plus its value."""
    return labels * len(attribute.values) + attribute.of


def filter_audit(labels, attributes, only, kept, used, classes):
    """What audit.json says of a filter and of the groups, as plain values.

    kept: bool (N,) of `kept_rows`; used: int64 rows that training may use, after duplicates were removed.
    """
    counts = {}
    for name, attribute in attributes.items():
        groups = groups_of(labels[used], attribute.only(used))
        numbers = torch.bincount(groups, minlength=len(classes) * len(attribute.values)).tolist()
        counts[name] = dict(zip(group_names(classes, name, attribute.values), numbers, strict=True))
    return {"only": dict(only), "images_filtered_out": int((~kept).sum()), "images_per_group": counts}


# ------------------------------------------------------------------------------- from a CSV of columns


@dataclass
class Columns:
    """How a CSV names an image's file, class and split, and which further columns are attributes.

    names: {column: {what stands in it: what it is called}}, where it holds numbers.
    """

    file: str = "file"
    label: str = "class"
    split: str = "split"
    attributes: tuple[str, ...] = ()
    names: dict = field(default_factory=dict)

    def value(self, row, column):
        """What a row says in a column, by the name it is to be called; as it stands where it has none."""
        return self.names.get(column, {}).get(row[column], row[column])


WATERBIRDS = Columns("img_filename", "y", "split", ("place",), {
    "y": {"0": "landbird", "1": "waterbird"}, "place": {"0": "land", "1": "water"},
    "split": dict(zip("012", SPLITS, strict=True))})
# landbirds that are labelled waterbird: the authors' list of seabirds matches "tern" in Eastern and Western
MISLABELLED = ("Eastern_Towhee", "Western_Meadowlark", "Western_Wood_Pewee")
# the published validation and test images, whose background says nothing of the bird, dealt for three uses
DEALT = {"pool": 0.5, "scorer": 0.25, "calibration": 0.25}


@dataclass(frozen=True)
class Member:
    """A line of the CSV: the image's file in the source, its class, and {attribute: value}."""

    file: str
    label: str
    attributes: dict


def read_table(text, files, columns, where):
    """{split: [Member]} of a CSV, each split sorted by class and file. files: the paths of the source's images.

    A file is named in the CSV by the end of its path, from a folder on. Raises UserError for a CSV that lacks columns
    or rows, names missing files, or leaves values out; where: what to call the CSV.
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    found = set(rows[0]) if rows else set()
    needed = [columns.file, columns.label, *columns.attributes]
    missing = [name for name in needed if name not in found]
    if missing:
        has = "the columns " + ", ".join(map(str, rows[0])) if rows else "no rows"
        raise UserError(f"{where} has {has}; it needs the columns {', '.join(needed)}, and may have {columns.split}. "
                        f"Missing: {', '.join(missing)}.")
    prefix = common_folder(files, rows[0][columns.file])
    known = {file[len(prefix):]: file for file in files if file.startswith(prefix)}
    absent = [row[columns.file] for row in rows if row[columns.file] not in known]
    if absent:
        raise UserError(f"{where} names {len(absent)} images that the source does not hold, such as {absent[0]}; add "
                        "them, or remove their lines.")
    unnamed = set(known) - {row[columns.file] for row in rows}
    if unnamed:
        raise UserError(f"{where} lacks a line for {len(unnamed)} of the source's {len(known)} images, such as "
                        f"{min(unnamed)}; add the lines, or remove the images.")
    if len(rows) > len(known):
        raise UserError(f"{where} has {len(rows)} lines for {len(known)} images; name each image once.")
    splits = {}
    for line, row in enumerate(rows, 2):
        empty = [name for name in needed if not row[name]]
        if empty:
            raise UserError(f"line {line} of {where} ({row[columns.file]}) has no {', '.join(empty)}; fill it in.")
        for name in columns.attributes:
            valid = columns.names.get(name)
            if valid and row[name] not in valid:
                raise UserError(f"line {line} of {where} ({row[columns.file]}) has the {name} '{row[name]}' "
                                f"({nearest(row[name], valid)}).")
        split = columns.value(row, columns.split) if columns.split in found else "train"
        if split not in SPLITS:
            raise UserError(f"line {line} of {where} has the split '{split}' ({nearest(split, SPLITS)}).")
        attributes = {name: columns.value(row, name) for name in columns.attributes}
        splits.setdefault(split, []).append(Member(known[row[columns.file]], columns.value(row, columns.label),
                                                   attributes))
    for name in columns.attributes:
        values = {member.attributes[name] for members in splits.values() for member in members}
        if len(values) > MOST_VALUES:
            raise UserError(f"the column {name} of {where} has {len(values)} different values; an attribute has at "
                            f"most {MOST_VALUES}.")
    return {split: sorted(splits[split], key=lambda member: (member.label, member.file))
            for split in SPLITS if split in splits}


def common_folder(files, named):
    """What stands in the source's paths before the file that a CSV names `named`; '' where it is none of them."""
    return next((file[:-len(named)] for file in files if file == named or file.endswith("/" + named)), "")


def attributes_from(members, all_members):
    """{name: Attribute} of some members; the values, sorted, are those of all_members, so that splits agree."""
    found = {}
    for name in all_members[0].attributes:
        values = tuple(sorted({member.attributes[name] for member in all_members}))
        found[name] = Attribute(values, torch.tensor([values.index(m.attributes[name]) for m in members]))
    return found


def with_more(member):
    """A Member of Waterbirds with its class and the fit of its background as attributes."""
    usual = member.label == member.attributes["place"] + "bird"
    more = {"bird": member.label, "background": "usual" if usual else "unusual"}
    return Member(member.file, member.label, {**member.attributes, **more})


def waterbirds_table(text, files, where, drop_mislabelled=False):
    """({split: [Member]}, note) of Waterbirds' metadata.csv: the published splits, and three more dealt of them.

    Besides `place` an image has the attributes `bird`, its class, and `background`: usual where bird and place are of
    one kind, else unusual. pool, scorer and calibration share the published val and test images, half, a quarter and
    a quarter of each group, by the SHA-256 of their names. drop_mislabelled: without the species that the authors
    labelled wrongly, all of them landbirds called waterbirds; the note says so.
    """
    splits = read_table(text, files, WATERBIRDS, where)
    note, dropped = "", 0
    for split, members in splits.items():
        right = [m for m in members if not (drop_mislabelled and any(name in m.file for name in MISLABELLED))]
        dropped += len(members) - len(right)
        splits[split] = [with_more(member) for member in right]
    if drop_mislabelled:
        note = f"without {dropped} images of {', '.join(MISLABELLED).replace('_', ' ')}, landbirds labelled waterbird"
    groups = {}
    for member in splits.get("val", []) + splits.get("test", []):
        groups.setdefault((member.label, member.attributes["place"]), []).append(member)
    dealt = {name: [] for name in DEALT}
    for members in groups.values():
        members.sort(key=lambda m: hashlib.sha256(m.file.rpartition("/")[2].encode()).digest())
        start, share = 0, 0.0
        for name in DEALT:
            share += DEALT[name]
            stop = round(share * len(members))
            dealt[name] += members[start:stop]
            start = stop
    for name, members in dealt.items():
        if members:
            splits[name] = sorted(members, key=lambda member: (member.label, member.file))
    return splits, note
