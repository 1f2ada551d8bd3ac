"""Absence enforced: the images of the unseen classes are left out, and a guard refuses any that returns."""

import hashlib
from dataclasses import dataclass

import torch

from datasets.attributes import attributes_of, filter_audit, kept_rows, parse_only, require_classes
from datasets.sources import in_chunks
from utils import UserError

CHANGED = "the image set has changed since it was audited. Start the run again."


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


def leave_out(source, spec, unseen, keep_unseen=False, only=()):
    """Choose the images of `source` that training may use, and say which.

    unseen: labels of the unseen classes. Their images are left out, and so is any image of another
    class whose pixels equal theirs. With keep_unseen (the oracle) every image is kept. only: filters such as
    'place=land'; images of other values are left out as those of an unseen class are, copies of them too.
    Returns (indices int64 (n,) in the source's order, audit, AbsenceGuard); `audit` holds plain values
    for JSON. Its sha256 runs over the pixels (uint8, C, H, W) and then the label (int64, little-endian)
    of each used image in order. Raises UserError where a class that should be seen has no image.
    """
    unseen = sorted(set(unseen))
    absent = [] if keep_unseen else unseen
    is_unseen = torch.isin(source.labels, torch.tensor(absent, dtype=torch.int64))
    attributes, only = attributes_of(source)[0], parse_only(only)
    kept_by_filter = kept_rows(attributes, only, len(source), f"the image set of {spec.folder}")
    require_classes(source.labels, kept_by_filter, spec.classes, set(range(len(spec.classes))) - set(absent), only)
    is_absent = is_unseen | ~kept_by_filter
    left_out = {}
    for chunk in in_chunks(is_absent.nonzero().flatten(), "hashing left-out images"):
        for i, digest in zip(chunk, image_hashes(source.read(chunk)), strict=True):
            left_out[digest] = source.name(i)

    kept, duplicates, used = [], [], hashlib.sha256()
    for chunk in in_chunks((~is_absent).nonzero().flatten(), "auditing images"):
        images = source.read(chunk)
        for i, image, digest in zip(chunk.tolist(), images.numpy(), image_hashes(images), strict=True):
            if digest in left_out:
                duplicates.append({"image": source.name(i), "equals": left_out[digest]})
            else:
                kept.append(i)
                used.update(image)
                used.update(int(source.labels[i]).to_bytes(8, "little"))
    indices = torch.tensor(kept, dtype=torch.int64)

    counts = torch.bincount(source.labels[indices], minlength=len(spec.classes)).tolist()
    empty = [name for label, name in enumerate(spec.classes) if label not in absent and not counts[label]]
    if empty:
        raise UserError(f"the image set has no image of {', '.join(empty)}, which should be seen; add images, or name "
                        "the class in --new_class to leave it out.")

    names = ", ".join(spec.classes[label] for label in unseen)
    if not keep_unseen:
        statement = f"No image of {names} was used: {int(is_unseen.sum())} images were left out by label"
        statement += f", and {len(duplicates)} exact duplicates of {'those left out' if only else 'them'} under other "
        statement += "labels or values." if only else "labels."
    elif unseen:
        statement = f"ORACLE: images of {names} WERE used ({sum(counts[label] for label in unseen)} images)."
    else:
        statement = "ORACLE: no class was left out; images of every class were used."
    if only:
        values = " and ".join(f"{name} {value}" for name, value in only.items())
        statement += f" Of the others only those with {values} were used."
    audit = {
        "statement": statement,
        "oracle": keep_unseen,
        "dataset": spec.folder,
        "classes": list(spec.classes),
        "unseen_labels": unseen,
        "unseen_classes": [spec.classes[label] for label in unseen],
        "images_per_class": dict(zip(spec.classes, counts, strict=True)),
        "images_used": len(kept),
        "sha256": used.hexdigest(),
        "unseen_images_left_out": int(is_unseen.sum()),
        "duplicates_removed": duplicates,
        **(filter_audit(source.labels, attributes, only, kept_by_filter, indices, spec.classes) if attributes else {}),
    }
    return indices, audit, AbsenceGuard({label: spec.classes[label] for label in absent}, left_out)
