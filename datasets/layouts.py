"""Which image of a zip or a folder is of which split and class: the layouts that people download.

    classes      <class>/<file>
    splits       <split>/<class>/<file>, the split called train, Training, seg_train, test, Testing, val, valid, ...
    annotations  a split whose classes stand in a text file beside its images, as in Tiny ImageNet
    stylegan     labels in a dataset.json

With or without a folder around it, and at any depth below a class. What is hidden, of a file server, or no image is
passed over, and counted.
"""

import io
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from datasets.safety import require_small_member
from datasets.sources import SUFFIXES, composed, is_not_the_users
from utils import UserError

LAYOUTS = ("classes", "splits")  # what --layout may say; the others are never in doubt
SPLITS = {"train": ("train", "training", "trainset", "trainingset", "segtrain", "trainimages", "trainingimages"),
          "test": ("test", "testing", "testset", "segtest", "testimages"),
          "val": ("val", "valid", "validation", "dev", "valset", "validationset", "valimages")}
WITHOUT_LABELS = ("segpred", "pred", "predict", "unlabeled", "unlabelled")
PLAIN = ("images", "image", "imgs", "img", "jpegimages")  # folders of images that name no class
ARCHIVES = {b"\x1f\x8b": "packed by gzip, as a .tgz is", b"BZh": "packed by bzip2", b"\xfd7zXZ": "packed by xz",
            b"7z\xbc\xaf": "a 7z archive", b"Rar!": "a RAR archive"}


@dataclass
class Tree:
    """The files of a source. files: paths from its top, '/' between parts, none hidden; folders: those that hold no
    file at all. opened(file): a path or a binary file. hidden: how many files are hidden or of a file server."""

    files: list[str]
    folders: list[str]
    opened: Callable
    hidden: int


def tree_of(source):
    """The Tree of a zip or a folder. Raises UserError for a file that is no zip that can be read."""
    return _zip(source) if source.is_file() else _folder(source)


def _tree(files, folders, opened):
    """The Tree of all these paths, those that are not the user's left out."""
    def own(path):
        return not any(is_not_the_users(part) for part in path.split("/"))

    filled = {"/".join(file.split("/")[:i]) for file in files for i in range(1, file.count("/") + 1)}
    return Tree(sorted(filter(own, files)), [path for path in folders if own(path) and path not in filled], opened,
                sum(not own(file) for file in files))


def _folder(source):
    paths = [(path, path.relative_to(source).as_posix()) for path in source.rglob("*")]
    return _tree([name for path, name in paths if path.is_file()], [name for path, name in paths if path.is_dir()],
                 lambda file: source / file)


def member_name(info):
    """The name of a zip's member. Without its flag for UTF-8 a name is often UTF-8 all the same; some programs write
    backslashes."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def _zip(source):
    """Read in memory; nothing is unpacked to disk."""
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError) as error:
        with source.open("rb") as file:
            head = file.read(300)
        kind = next((kind for start, kind in ARCHIVES.items() if head.startswith(start)),
                    "a tar archive" if head[257:262] == b"ustar" else "")
        if kind:
            raise UserError(f"--source {source} is {kind}, and no zip; unpack it and give the folder.") from error
        raise UserError(f"--source {source} is not a zip that can be read ({error}); fetch it again.") from error
    members = {member_name(info): info for info in archive.infolist()}
    locked = [name for name, info in members.items() if info.flag_bits & 1]
    if locked:
        raise UserError(f"--source {source} is encrypted ({locked[0]}); unpack it with its password and give the "
                        "folder.")

    def opened(file):
        require_small_member(members[file], file)
        try:
            return io.BytesIO(archive.read(members[file]))
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{file} in {source} cannot be unpacked ({error}); fetch the zip again.") from error

    return _tree([name for name in members if not name.endswith("/")],
                 [name.rstrip("/") for name in members if name.endswith("/")], opened)


# ------------------------------------------------------------------------------------ the layouts


def split_called(folder):
    """'train', 'test' or 'val' where a folder has the name of a split, '' where it has that of one without labels,
    else None."""
    name = re.sub("[-_ ]", "", folder.lower())
    if name in WITHOUT_LABELS:
        return ""
    return next((split for split, names in SPLITS.items() if name in names), None)


def text_of(tree, file):
    opened = tree.opened(file)
    data = opened.read() if hasattr(opened, "read") else opened.read_bytes()
    return data.decode(errors="replace")


def labelled_by_json(tree, names):
    """[(class, file)] of StyleGAN's dataset.json; None where there is none, or none with labels."""
    listing = next((file for file in tree.files if file.rpartition("/")[2] == "dataset.json"), None)
    if listing is None:
        return None
    try:
        labels = json.loads(text_of(tree, listing))["labels"]
        above = listing.rpartition("dataset.json")[0]
        pairs = [(above + file, int(label)) for file, label in labels]
    except (ValueError, KeyError, TypeError):
        return None
    there = set(tree.files)
    return [(names[label] if label < len(names) else str(label), file) for file, label in pairs if file in there]


def annotations(tree, below):
    """{file name: class} of the text file of a split that says of each image which class it is; {} without one."""
    found = {}
    for file in tree.files:
        if file.startswith(below) and file.endswith("annotations.txt"):
            for line in text_of(tree, file).splitlines():
                parts = line.split("\t")
                if len(parts) > 1:
                    found[parts[0]] = parts[1]
    return found


def images_of(tree, suffixes=SUFFIXES):
    """The image files of a Tree, or those of other suffixes."""
    return [file for file in tree.files if Path(file).suffix.lower() in suffixes]


def layout(source, tree, how, say, names=(), suffixes=SUFFIXES, what="image"):
    """({split: [(class, file)]}, class names); empty class folders count among the names.

    how: 'classes' or 'splits' where the user says it. names: of the data set's classes, where it is registered.
    say(line) is told what was read as what, and what was passed over. suffixes, what: of other files, such as sounds,
    and one of them in a word. Raises UserError where there are no images, or
    the layout is in doubt.
    """
    images = images_of(tree, suffixes)
    if not images:
        raise UserError(f"--source {source} holds no {what}s ({', '.join(sorted(suffixes))}).")
    members = labelled_by_json(tree, names)
    if members is not None:
        splits, empty, text = {"train": members}, [], "classes by the labels in dataset.json"
    else:
        splits, empty, text = in_folders(source, tree, images, how)
    splits = {split: [(composed(name), file) for name, file in files] for split, files in splits.items() if files}
    classes = {name for files in splits.values() for name, _ in files} | {composed(name) for name in empty}
    for name in sorted(classes):
        if not name.isprintable():
            raise UserError(f"--source {source} has a class folder whose name '{name}' is no text in UTF-8, or holds "
                            "signs that do not show; rename it.")
    folded = Counter(name.casefold() for name in classes)
    for name in sorted(classes):
        if folded[name.casefold()] > 1:
            raise UserError(f"--source {source} has class folders that differ from '{name}' in small and capital "
                            "letters alone; give them one name.")
    say(f"read: {text}")
    passed = Counter(Path(file).suffix.lower() or "no suffix" for file in tree.files if file not in set(images))
    used = {file for files in splits.values() for _, file in files}
    reasons = [f"{count} {suffix} files (no {what})" for suffix, count in passed.most_common()]
    unused = sum(file not in used for file in images)
    reasons += [f"{unused} {what}s without a label"] if unused else []
    reasons += [f"{tree.hidden} files that are hidden or of a file server"] if tree.hidden else []
    if reasons:
        say(f"passed over: {', '.join(reasons)}")
    val = splits.pop("val", None)
    if val and "test" not in splits:
        splits["test"] = val
    elif val:
        say(f"passed over: {len(val)} {what}s of the val split, since there is a test split")
    return {split: splits[split] for split in ("train", "test") if split in splits}, classes


def in_folders(source, tree, images, how):
    """({split: [(class, file)]}, names of empty class folders, what was read as what) of a tree of folders."""
    paths = [file.split("/") for file in images]
    depth = 0  # of the folders around the tree, as cifar10/ in cifar10/train/horse/0001.png
    while all(len(p) > depth + 2 and p[depth] == paths[0][depth] for p in paths) \
            and split_called(paths[0][depth]) is None:
        depth += 1
    around, tops = paths[0][:depth], sorted({p[depth] for p in paths})
    kinds = {top: split_called(top) for top in tops}
    of_splits = [top for top in tops if kinds[top] is not None]
    has_splits = how == "splits" or how != "classes" and bool(of_splits)
    if has_splits:
        beside = [top for top in tops if kinds[top] is None and how != "splits"]
        if "train" not in kinds.values() or beside:
            raise UserError(f"--source {source} has the folders {', '.join(tops)}; a tree with splits has train, and "
                            "test or val, and nothing beside them. Say what it is by --layout: 'classes' takes each "
                            "folder for a class, 'splits' passes over what is no split.")
    splits, empty, told = {}, [], {}
    for path, file in zip(paths, images, strict=True):
        split, at = ("train", depth) if not has_splits else (kinds[path[depth]], depth + 1)
        if not split:
            continue
        if has_splits and len(path) > at + 2 and split_called(path[at]) == split:
            at += 1  # seg_train/seg_train/<class>
        if len(path) <= at + 1:
            raise UserError(f"{file} in {source} lies in no class folder; the tree is <split>/<class>/<file> or "
                            "<class>/<file>.")
        splits.setdefault(split, []).append((path[at], file))
        told.setdefault(split, "/".join(path[:at]))
    by_text = {}
    for split, files in splits.items():
        if {name.lower() for name, _ in files} <= set(PLAIN):
            # one folder of images is no class: a text file names them, or nobody does
            classes = annotations(tree, told[split])
            files[:] = [(classes[file.rpartition("/")[2]], file) for _, file in files
                        if file.rpartition("/")[2] in classes]
            by_text[split] = bool(files)
    if not any(splits.values()):
        raise UserError(f"--source {source} has no folders of classes; the tree is <split>/<class>/<file> or "
                        "<class>/<file>.")
    for folder in tree.folders:
        path = folder.split("/")
        at = depth + has_splits
        if path[:depth] == around and len(path) == at + 1 and (not has_splits or kinds.get(path[depth])):
            empty.append(path[at])
    text = ", ".join(f"{split} from {told[split] or 'the top'}/" + ("<file>, named by its annotations"
                     if by_text.get(split) else "<class>") for split in splits if splits[split])
    return splits, empty, text
