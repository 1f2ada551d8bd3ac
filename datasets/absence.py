"""Absence enforced: the images of the unseen classes, and copies of them, are left out, and a guard refuses any.

What is looked for under other labels: exact copies of y*'s training and test images, near copies (datasets.near), and
images that a classifier takes for y*. The audit says what was found and what would have been.
"""

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from datasets import near
from datasets.attributes import attributes_of, filter_audit, kept_rows, parse_only, require_classes
from datasets.safety import require_current, stray_links
from datasets.sources import in_chunks, open_source
from files import from_cache
from utils import ROOT, UserError, checkpoint_files, load_checkpoint, load_torch

CHANGED = "the image set has changed since it was audited. Start the run again."
SHOWN = 50  # suspects of a kind that the audit lists
MISTAKEN = 0.5  # least probability of y* at which a classifier makes an image a suspect
SLAB = 8192  # images compared at a time
SCREEN = 1  # version of the two screens: raised when they find otherwise, so that what was kept is not taken
TRIED, AGREES = 64, 0.01  # images on which a judge must still say, within this, what is kept of it


class AbsenceError(UserError):
    """An image of an unseen class was about to reach the discriminator."""


def image_hashes(images):
    """SHA-256 of the pixels of each image of a uint8 tensor (n, C, H, W): a list of n bytes objects."""
    return [hashlib.sha256(image).digest() for image in images.cpu().contiguous().numpy()]


@dataclass(frozen=True)
class AbsenceGuard:
    """Refuses unseen labels and the exact pixels of left-out images; empty (for an oracle) it passes all.

    unseen: class name of each unseen label. left_out: name of each left-out image by its hash.
    """

    unseen: dict[int, str]
    left_out: dict[bytes, str]

    def check(self, images, labels):
        """Check images, uint8 (n, C, H, W) as the source reads them, and labels (n,), on any device.

        Raises AbsenceError that names what was found.
        """
        for label, name in self.unseen.items():
            count = int((labels == label).sum())
            if count:
                raise AbsenceError(f"{count} images labelled {label} ({name}), an unseen class, were about to reach "
                                   f"the discriminator; {CHANGED}")
        if self.left_out:
            for row, digest in enumerate(image_hashes(images)):
                if digest in self.left_out:
                    raise AbsenceError(f"the left-out image {self.left_out[digest]} was about to reach the "
                                       f"discriminator under the label {int(labels[row])}; {CHANGED}")


# ------------------------------------------------------------------------------------ what is known of y*


def folded(name):
    """A class name without what the eye passes over: case, spaces, hyphens, invisible characters, Unicode form."""
    name = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c)[0] not in "ZC" and c
                   not in "_-")


def require_distinct(classes, unseen):
    """Raise UserError where a class that is seen has the name of an unseen one but for case, spaces or Unicode form."""
    for label, name in enumerate(classes):
        for y in unseen:
            if label not in unseen and folded(name) == folded(classes[y]):
                raise UserError(f"the classes {classes[y]!r}, which is unseen, and {name!r}, which is not, differ by "
                                "case, spaces or Unicode form alone: are they one class? Put their images into one "
                                f"folder and correct utils.DATASETS, or name both: --new_class {y} {label}.")


def test_source(spec, data_root):
    """The test split of a data set, or None where it has none. Raises UserError for a damaged one."""
    folder = Path(data_root) / spec.folder
    folder = folder if folder.exists() else ROOT / folder
    return open_source(spec, data_root, "test") if (folder / "test.h5").is_file() or (folder / "test").is_dir() \
        else None


def has_values(source, only):
    """Which images of a source have the values {attribute: value} that it knows of: bool (N,)."""
    attributes = attributes_of(source)[0]
    known = {name: value for name, value in only.items() if name in attributes and value in attributes[name].values}
    return kept_rows(attributes, known, len(source), "the image set")


class LeftOut:
    """The images that copies are looked for of: `names` (n) in the order of `greys`, uint8 (n, S, S), places (split,
    index), and `hashes`: the name by the hash. sha256: over the split and the pixels of each.

    sources: {split: source}; of each those with a label in `unseen`, and those without the values `only`.
    """

    def __init__(self, sources, unseen, only):
        self.names, self.places, self.hashes, greys, all_of_them = [], [], {}, [], hashlib.sha256()
        for split, source in sources.items():
            is_unseen = torch.isin(source.labels, torch.tensor(unseen, dtype=torch.int64))
            rows = (is_unseen | ~has_values(source, only)).nonzero().flatten()
            for chunk in in_chunks(rows, "hashing left-out images"):
                images = source.read(chunk)
                for i, digest in zip(chunk.tolist(), image_hashes(images), strict=True):
                    self.names.append(source.name(i))
                    self.places.append((split, i))
                    self.hashes.setdefault(digest, self.names[-1])
                    all_of_them.update(split.encode() + digest)
                greys.append(near.grey(images).round().to(torch.uint8))
        self.greys = torch.cat(greys) if greys else torch.empty(0, 16, 16, dtype=torch.uint8)
        self.sha256 = all_of_them.hexdigest()

    def __len__(self):
        return len(self.names)

    def count(self, split):
        return sum(where == split for where, _ in self.places)


def starting_weights(files, spec, unseen):
    """What the weights that a run starts from were trained on, for the audit: a list, a dict for each.

    files: {flag: path of a checkpoint, or of a run folder}; '' for none. Where a file holds no audit itself, the
    audit.json of the run folder that it lies in is taken. unseen: labels; none for an oracle. Raises UserError where an
    audit says that images of an unseen class were used.
    """
    found = []
    for flag, path in files.items():
        if not path:
            continue
        path = Path(path)
        audit, digest = declared(path)
        used = audit.get("images_per_class", {})
        seen = [spec.classes[y] for y in unseen if any(folded(name) == folded(spec.classes[y]) and count
                                                       for name, count in used.items())]
        if seen or unseen and audit.get("oracle"):
            raise UserError(f"--{flag} {path} was trained on images of {', '.join(seen) or 'every class'}, so what is "
                            "drawn would not come out of the classifier; give weights of a run that left out "
                            f"{', '.join(spec.classes[y] for y in unseen)}.")
        trained_on = audit.get("statement") or "it is not known what that was trained on, and anything it saw is drawn."
        found.append({"flag": flag, "path": str(path), "sha256": digest, "trained_on": trained_on})
    return found


def declared(path):
    """(the audit of what made a file or a run folder, {} for none; SHA-256 of the file, '' for a folder)."""
    folders = [path, path.parent] if path.is_dir() else [path.parent, path.parent.parent]
    state, digest = {}, ""
    if path.is_dir() and checkpoint_files(path):
        state = load_checkpoint(path)
    elif path.is_file():
        state = load_torch(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if isinstance(state, dict) and isinstance(state.get("audit"), dict):
        return state["audit"], digest
    for folder in folders:
        if (folder / "audit.json").is_file():
            try:
                return json.loads((folder / "audit.json").read_text()), digest
            except ValueError as error:
                raise UserError(f"{folder / 'audit.json'} cannot be read ({error}); restore it, or move the weights "
                                "out of that folder.") from error
    return {}, digest


# ------------------------------------------------------------------------------------------ the two screens


def nearest_of(greys, labels, others, other_labels, text):
    """near.nearest_copies of uint8 images (m, S, S) among uint8 others, in slabs, with a progress bar."""
    found, others = [], others.float()
    with tqdm(total=len(greys), desc=text, unit="image", delay=2, leave=False, disable=None) as bar:
        for images, y in zip(greys.split(SLAB), labels.split(SLAB), strict=True):
            found.append(near.nearest_copies(images.float(), y, others, other_labels))
            bar.update(len(images))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def search(labels, greys, left, sources):
    """What the screen for near copies of LeftOut finds among images with these labels, int64 (n,), and greys, uint8
    (n, S, S): plain values.

    removed and suspects, the likest SHOWN of `suspects_found`: [row, place in left, correlation] of each. threshold,
    expected_for_nothing. would_find: {kind: share found} of copies of `planted` left-out images, evenly spaced.
    """
    draw = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(labels), generator=draw)[:near.REFERENCES]
    # where one class alone is seen, its own images have to stand for unlike ones
    groups = labels if len(labels.unique()) > 1 else torch.arange(len(labels))
    unlike, _ = nearest_of(greys, groups, greys[chosen], groups[chosen], "measuring the threshold")
    references = (groups[:, None] != groups[None, chosen]).sum(1).float().mean().item()
    limit, expected = near.threshold(unlike, len(left) / max(references, 1))

    found, like = nearest_of(greys, labels, left.greys, torch.full((len(left),), -1), "looking for near copies")
    rows = (found >= limit).nonzero().flatten()
    suspects = ((found < limit) & (found >= limit - near.SUSPECTED)).nonzero().flatten()
    suspects = suspects[found[suspects].argsort(descending=True, stable=True)]

    number = min(near.PLANTED, -(-len(left) // 10))
    places = left.places[::len(left) // number][:number]
    images = torch.cat([sources[split].read(torch.tensor([i])) for split, i in places])
    return {"threshold": round(limit, 3), "expected_for_nothing": round(expected, 2),
            "removed": [[row, like[row].item(), round(found[row].item(), 3)] for row in rows.tolist()],
            "suspects": [[row, like[row].item(), round(found[row].item(), 3)] for row in suspects[:SHOWN].tolist()],
            "suspects_found": len(suspects), "planted": number,
            "would_find": near.found_of_planted(images, left.greys.float(), limit)}


def near_copies(source, rows, left, found):
    """(places in `rows` of the images to leave out, entry of the audit) of what `search` found among these images."""
    def described(pairs):
        return [{"image": source.name(rows[place]), "index": int(rows[place]), "label": int(source.labels[rows[place]]),
                 "like": left.names[like], "like_split": left.places[like][0], "like_index": left.places[like][1],
                 "correlation": correlation} for place, like, correlation in pairs]

    return [place for place, _, _ in found["removed"]], {
        "compared_with": len(left), **found, "removed": described(found["removed"]),
        "suspects": described(found["suspects"])}


def asked(source, rows, judges):
    """{judge: probability of y*, to three digits, of each of these images}, as lists."""
    said = {name: [] for name in judges}
    for chunk in in_chunks(rows, "asking the classifiers"):
        images = source.read(chunk)
        for name, judge in judges.items():
            said[name] += [round(share, 3) for share in judge(images).tolist()]
    return said


def mistaken(source, rows, said):
    """(places in `rows` of the images to suspect, entry of the audit) of what `asked` gave."""
    judges = list(said)
    said = {name: torch.tensor(shares, dtype=torch.float64) for name, shares in said.items()}
    highest = torch.stack(list(said.values())).amax(0)
    found = (highest > MISTAKEN).nonzero().flatten()
    found = found[highest[found].argsort(descending=True, stable=True)]
    suspects = [{"image": source.name(rows[place]), "index": int(rows[place]), "label": int(source.labels[rows[place]]),
                 "probability": {name: said[name][place].item() for name in judges}}
                for place in found[:SHOWN].tolist()]
    return found, {"judges": judges, "above": MISTAKEN, "suspects_found": len(found), "suspects": suspects}


class Screens:
    """The two screens over the images of `source` with these indices `rows`, labels and digests; what they find is kept
    in the folder `cache`, by all that it depends on, and nowhere where that is None."""

    def __init__(self, source, rows, digests, cache):
        self.source, self.rows, self.cache = source, rows, cache
        self.labels = source.labels[rows]
        self.images = hashlib.sha256(b"".join(digests) + self.labels.numpy().tobytes()).hexdigest()

    def kept(self, name, depends_on, compute, **options):
        """compute(), or what it gave before for the same images and for an equal list of plain values, `depends_on`."""
        if self.cache is None:
            return compute()
        key = hashlib.sha256(json.dumps([SCREEN, self.images, *depends_on]).encode()).hexdigest()
        return from_cache(Path(self.cache) / "audits" / f"{name}_{key[:16]}.json", key, compute, **options)

    def near_copies(self, greys, left, sources):
        """As near_copies gives it. greys: uint8 (n, S, S)."""
        numbers = {name: value for name, value in vars(near).items() if isinstance(value, (int, float, tuple))}
        found = self.kept("near", [left.sha256, SHOWN, numbers, list(near.KINDS)],
                          lambda: search(self.labels, greys, left, sources))
        return near_copies(self.source, self.rows, left, found)

    def mistaken(self, judges):
        """As mistaken gives it."""
        first = self.source.read(self.rows[:TRIED])

        def holds(said):  # the weights of a program do not tell all that it does
            return all((judge(first) - torch.tensor(said[name][:TRIED])).abs().max() <= AGREES
                       for name, judge in judges.items())

        said = self.kept("mistaken", [[name, getattr(judge, "sha256", "")] for name, judge in judges.items()],
                         lambda: asked(self.source, self.rows, judges), holds=holds)
        return mistaken(self.source, self.rows, said)


# ------------------------------------------------------------------------------------------------ the audit


def fingerprint(source, indices):
    """SHA-256 over the pixels (uint8, C, H, W) and then the label (int64, little-endian) of each image, in hex."""
    used = hashlib.sha256()
    for chunk in in_chunks(indices, "auditing images"):
        for i, image in zip(chunk.tolist(), source.read(chunk).numpy(), strict=True):
            used.update(image)
            used.update(int(source.labels[i]).to_bytes(8, "little"))
    return used.hexdigest()


def leave_out(source, spec, unseen, keep_unseen=False, only=(), *, test=None, judges=None, drop_suspects=False,
              weights=(), cache=None):
    """Choose the images of `source` that training may use, and say which.

    unseen: labels of the unseen classes. Their images are left out, and so is any image of another class that is a
    copy of one of theirs, here or in the source `test`: exact, or near (datasets.near). With keep_unseen (the oracle)
    the unseen classes are kept, and exact copies alone are looked for. only: filters such as 'place=land'; images of
    other values are left out as those of an unseen class are, copies of them too.
    judges: {name: function from uint8 images (n, C, H, W) to the probability (n,) that each is of an unseen class};
    images above MISTAKEN are suspects, and left out with drop_suspects. weights: what starting_weights found.
    cache: a folder in which what the screens find is kept; each judge then has a `sha256` of what it depends on.
    Returns (indices int64 (n,) in the source's order, audit, AbsenceGuard); `audit` holds plain values
    for JSON. Its sha256 is the `fingerprint` of the used images. Raises UserError where a class that should be seen
    has no image, where one bears the name of an unseen one, and where the set is not in order (datasets.safety).
    """
    unseen = sorted(set(unseen))
    absent = [] if keep_unseen else unseen
    require_distinct(spec.classes, absent)
    sources = {"train": source} if test is None else {"train": source, "test": test}
    for part in sources.values():
        require_current(part)
    links = sorted(link for part in sources.values() for link in stray_links(part))
    is_unseen = torch.isin(source.labels, torch.tensor(absent, dtype=torch.int64))
    attributes, only = attributes_of(source)[0], parse_only(only)
    kept_by_filter = kept_rows(attributes, only, len(source), f"the image set of {spec.folder}")
    require_classes(source.labels, kept_by_filter, spec.classes, set(range(len(spec.classes))) - set(absent), only)
    left = LeftOut(sources, absent, only)

    kept, digests, duplicates, greys, used = [], [], [], [], hashlib.sha256()
    for chunk in in_chunks((~is_unseen & kept_by_filter).nonzero().flatten(), "auditing images"):
        images, rows = source.read(chunk), []
        for row, (image, digest) in enumerate(zip(images.numpy(), image_hashes(images), strict=True)):
            i = int(chunk[row])
            if digest in left.hashes:
                duplicates.append({"image": source.name(i), "equals": left.hashes[digest]})
            else:
                rows.append(row)
                digests.append(digest)
                used.update(image)
                used.update(int(source.labels[i]).to_bytes(8, "little"))
        kept.append(chunk[rows])
        if absent:
            greys.append(near.grey(images[rows]).round().to(torch.uint8))
    indices = torch.cat([torch.empty(0, dtype=torch.int64), *kept])
    sha256, dropped = used.hexdigest(), torch.zeros(len(indices), dtype=torch.bool)

    copies = suspected = None
    if absent and len(indices):
        screens = Screens(source, indices, digests, cache)
        if len(left):
            rows, copies = screens.near_copies(torch.cat(greys), left, sources)
            dropped[rows] = True
        if judges:
            rows, suspected = screens.mistaken(judges)
            suspected["dropped"] = drop_suspects
            dropped[rows] |= drop_suspects
    if dropped.any():
        for row in dropped.nonzero().flatten().tolist():
            left.hashes[digests[row]] = source.name(indices[row])
        # an image that equals a dropped one goes with it
        indices = indices[torch.tensor([digest not in left.hashes for digest in digests])]
        sha256 = fingerprint(source, indices)

    counts = torch.bincount(source.labels[indices], minlength=len(spec.classes)).tolist()
    empty = [name for label, name in enumerate(spec.classes) if label not in absent and not counts[label]]
    if empty:
        raise UserError(f"the image set has no image of {', '.join(empty)}, which should be seen; add images, or name "
                        "the class in --new_class to leave it out.")
    audit = {
        "statement": "",
        "oracle": keep_unseen,
        "dataset": spec.folder,
        "classes": list(spec.classes),
        "unseen_labels": unseen,
        "unseen_classes": [spec.classes[label] for label in unseen],
        "images_per_class": dict(zip(spec.classes, counts, strict=True)),
        "images_used": len(indices),
        "sha256": sha256,
        "unseen_images_left_out": int(is_unseen.sum()),
        "test_images_compared": left.count("test"),
        "duplicates_removed": duplicates,
        "near_copies": copies,
        "mistaken": suspected,
        "links_out": links,
        "starting_weights": list(weights),
        **(filter_audit(source.labels, attributes, only, kept_by_filter, indices, spec.classes) if attributes else {}),
    }
    audit["statement"] = statement(audit)
    return indices, audit, AbsenceGuard({label: spec.classes[label] for label in absent}, left.hashes)


def statement(audit):
    """What an audit says, in sentences."""
    names, only, copies, suspected = (", ".join(audit["unseen_classes"]), audit.get("only"), audit["near_copies"],
                                      audit["mistaken"])
    if audit["oracle"]:
        used = sum(audit["images_per_class"][name] for name in audit["unseen_classes"])
        sentences = [f"ORACLE: images of {names} WERE used ({used} images)." if names else
                     "ORACLE: no class was left out; images of every class were used."]
    else:
        of, where = ("those left out", "labels or values") if only else ("them", "labels")
        sentences = [f"No image of {names} was used: {audit['unseen_images_left_out']} images were left out by label, "
                     f"and {len(audit['duplicates_removed'])} exact duplicates of {of} under other {where}."]
        if not copies:
            sentences.append(f"No image of {names} is at hand, so copies under other labels could not be looked for.")
    if copies:
        rates = ", ".join(f"{share:.0%} ({kind})" for kind, share in copies["would_find"].items())
        left_out = "1 near copy was" if len(copies["removed"]) == 1 else f"{len(copies['removed'])} near copies were"
        sentences.append(f"{left_out} left out too (correlation of at least "
                         f"{copies['threshold']:g}; no more than about {copies['expected_for_nothing']:.0f} are to be "
                         f"expected for nothing). Of copies of {copies['planted']} left-out images, planted to try "
                         f"this, it found: {rates}. Rotated, strongly cropped or redrawn copies, and y* within other "
                         "images, are not looked for.")
    if suspected and suspected["suspects_found"]:
        done = "left out" if suspected["dropped"] else "used; look, and give --drop_suspects to leave such out"
        count, judges = suspected["suspects_found"], " or ".join(suspected["judges"])
        several, were = (f"{count} images under other labels", "were") if count > 1 else ("1 image under another label",
                                                                                          "was")
        sentences.append(f"{several} that {judges} takes for {names} {were} {done}.")
    elif suspected:
        sentences.append(f"No image under another label is taken for {names} by {' or by '.join(suspected['judges'])}.")
    if audit["links_out"]:
        sentences.append(f"{len(audit['links_out'])} links in the set lead out of it.")
    for weights in audit["starting_weights"]:
        sentences.append(f"Training started from {weights['path']}: {weights['trained_on']}")
    if only:
        values = " and ".join(f"{name} {value}" for name, value in only.items())
        sentences.append(f"Of the others only those with {values} were used.")
    return " ".join(sentences)
