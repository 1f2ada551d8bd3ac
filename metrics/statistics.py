"""What the real images of a data set look like to an extractor, computed once and kept beside the data."""

import hashlib
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from metrics.distances import Moments, thinned
from metrics.features import stream
from utils import UserError, replacing, to_unit_range

LAYOUT = 2  # of the cache file: raised when its content changes
MAX_KEPT = 40_000_000  # numbers of the features that are kept: 160 MB, 50,000 images of up to 800 features
BATCH = 500


@dataclass(frozen=True)
class RealStatistics:
    """Statistics of labelled real images; every method takes a list of labels, or None for all.

    labels: the labels that occur, int64 (L,). counts: of images a label, int64 (L,). moments: a Moments a label, or the
    features (n, F) of its images, which take less room where they are few. mean_probabilities: float64 (L, K).
    rows: the images of which features are kept, int64 (M,), places in the data set, spread evenly over each label;
    row_labels (M,) and features float32 (M, F) belong to them.
    """

    labels: torch.Tensor
    counts: torch.Tensor
    moments: tuple
    mean_probabilities: torch.Tensor
    rows: torch.Tensor
    row_labels: torch.Tensor
    features: torch.Tensor

    def _places(self, labels):
        """The places in self.labels of `labels`. Raises UserError for a label without images."""
        known = self.labels.tolist()
        wanted = known if labels is None else [int(label) for label in labels]
        for label in wanted:
            if label not in known:
                raise UserError(f"the real images hold none of class {label}; it cannot be compared with them.")
        return [known.index(label) for label in wanted]

    def moments_of(self, labels=None):
        """The Moments of all images of `labels`."""
        merged = Moments(self.features.shape[1])
        for place in self._places(labels):
            own = self.moments[place]
            merged.merge(own) if isinstance(own, Moments) else merged.update(own)
        return merged

    def features_of(self, labels=None):
        """The kept features (m, F) of `labels`, and which images they are: int64 (m,)."""
        chosen = torch.isin(self.row_labels, self.labels[self._places(labels)])
        return self.features[chosen], self.rows[chosen]

    def probabilities_of(self, labels=None):
        """The mean class probabilities (K,) over all images of `labels`."""
        places = self._places(labels)
        counts = self.counts[places].double()
        return counts @ self.mean_probabilities[places] / counts.sum()


def fingerprint(images_uint8, labels):
    """SHA-256 over the shape and pixels of uint8 images (N, C, H, W) and their labels (N,), in hexadecimal."""
    digest = hashlib.sha256(repr(tuple(images_uint8.shape)).encode())
    digest.update(images_uint8.cpu().contiguous().numpy())
    digest.update(labels.cpu().to(torch.int64).contiguous().numpy())
    return digest.hexdigest()


class Gathered:
    """The rows of features of one label: as they are, float32 (n, F), until a covariance would take less room."""

    def __init__(self):
        self.parts, self.count, self.moments = [], 0, None

    def update(self, features):
        """Add the rows of `features` (n, F)."""
        self.parts.append(features)
        self.count += len(features)
        dim = features.shape[1]
        if self.moments is not None or self.count > 2 * dim:  # n x F of 4 bytes against F x F of 8
            self.moments = self.moments or Moments(dim)
            for part in self.parts:
                self.moments.update(part)
            self.parts = []

    def kept(self):
        return self.moments or torch.cat(self.parts)


def compute(images_uint8, labels, extractor):
    """The RealStatistics of uint8 images (N, C, H, W) with labels (N,), streamed in batches.

    At most min(4 n F, 8 F^2) bytes a label of n images and F features are kept, and MAX_KEPT features beside them.
    """
    order = labels.argsort(stable=True)  # so that a batch touches few labels
    rows = thinned(order, MAX_KEPT // extractor.dim)
    kept = torch.zeros(len(labels), dtype=torch.bool)
    kept[rows] = True
    found, counts = labels.unique(return_counts=True)
    gathered, sums, features = {int(label): Gathered() for label in found}, {}, []
    batches = stream((to_unit_range(images_uint8[part]) for part in order.split(BATCH)), extractor, extractor.device,
                     len(order), f"real images, {extractor.name}")
    for part, (batch, probabilities) in zip(order.split(BATCH), batches, strict=True):
        for label in labels[part].unique().tolist():
            own = labels[part] == label
            gathered[label].update(batch[own])
            sums[label] = sums.get(label, 0) + probabilities[own].double().sum(0)
        features.append(batch[kept[part]])
    means = torch.stack([sums[label] for label in gathered]) / counts[:, None]
    return RealStatistics(found, counts, tuple(own.kept() for own in gathered.values()), means, rows, labels[rows],
                          torch.cat(features))


def write(path, key, real):
    """Store RealStatistics as an npz of plain arrays, atomically. A label's moments are its features, or mean and
    scatter."""
    arrays = {name: getattr(real, name).numpy()
              for name in ("labels", "counts", "mean_probabilities", "rows", "row_labels", "features")}
    for place, own in enumerate(real.moments):
        if isinstance(own, Moments):
            arrays |= {f"mean_{place}": own.mean.numpy(), f"scatter_{place}": own.scatter.numpy()}
        else:
            arrays[f"features_{place}"] = own.numpy()
    with replacing(path) as temporary:
        np.savez(temporary, key=np.array(key), **arrays)


def read(path, key):
    """The RealStatistics stored at `path`; None where there are none, or not those of `key`, or damaged ones."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "key"}
        moments = []
        for place, count in enumerate(arrays["counts"].tolist()):
            own = arrays.pop(f"features_{place}", None)
            if own is None:
                own = Moments(0)
                own.count, own.mean = count, arrays.pop(f"mean_{place}")
                own.scatter = arrays.pop(f"scatter_{place}")
            moments.append(own)
        return RealStatistics(moments=tuple(moments), **arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        print(f"warning: {path} is damaged; it is computed again.", file=sys.stderr)
        return None


def kept_at(folder, name, out=None):
    """The path of what is kept of a data set: <folder>/statistics/<name> or, where that does not exist, in the folder
    `out` where one is given."""
    path = Path(folder) / "statistics" / name
    return path if out is None or path.is_file() else Path(out) / "statistics" / name


def real_statistics(images_uint8, labels, extractor, folder, out=None):
    """The RealStatistics of uint8 images (N, C, H, W) with labels (N,), from the cache or else computed and stored.

    folder: the data set's, <data_root>/<spec.folder>; the file is
    <folder>/statistics/<data's hash>_<extractor's name>-<weights' hash>.npz, or `kept_at` has it in `out`. Other data
    or other weights have another file; a damaged one is computed again; where none can be written, a warning says so.
    Raises UserError as metrics.features.extract does.
    """
    images_uint8, labels = torch.as_tensor(images_uint8), torch.as_tensor(labels).to(torch.int64)
    data = fingerprint(images_uint8, labels)
    key = f"{LAYOUT} {data} {extractor.name} {extractor.weights_hash}"
    path = kept_at(folder, f"{data[:16]}_{extractor.name}-{extractor.weights_hash[:16]}.npz", out)
    real = read(path, key)
    if real is None:
        real = compute(images_uint8, labels, extractor)
        try:
            write(path, key, real)
        except OSError as error:
            print(f"warning: {path} could not be written ({error.strerror}); the statistics of the real images will "
                  "be computed again next time.", file=sys.stderr)
    return real
