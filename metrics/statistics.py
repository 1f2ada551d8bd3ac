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

LAYOUT = 1  # of the cache file: raised when its content changes
MAX_KEPT = 40_000_000  # numbers of the features that are kept: 160 MB, 50,000 images of up to 800 features
BATCH = 500


@dataclass(frozen=True)
class RealStatistics:
    """Statistics of labelled real images; every method takes a list of labels, or None for all.

    labels: the labels that occur, int64 (L,). moments: a Moments a label. mean_probabilities: float64 (L, K).
    rows: the images of which features are kept, int64 (M,), places in the data set, spread evenly over each label;
    row_labels (M,) and features float32 (M, F) belong to them.
    """

    labels: torch.Tensor
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
            merged.merge(self.moments[place])
        return merged

    def features_of(self, labels=None):
        """The kept features (m, F) of `labels`, and which images they are: int64 (m,)."""
        chosen = torch.isin(self.row_labels, self.labels[self._places(labels)])
        return self.features[chosen], self.rows[chosen]

    def probabilities_of(self, labels=None):
        """The mean class probabilities (K,) over all images of `labels`."""
        places = self._places(labels)
        counts = torch.tensor([self.moments[place].count for place in places], dtype=torch.float64)
        return counts @ self.mean_probabilities[places] / counts.sum()


def fingerprint(images_uint8, labels):
    """SHA-256 over the shape and pixels of uint8 images (N, C, H, W) and their labels (N,), in hexadecimal."""
    digest = hashlib.sha256(repr(tuple(images_uint8.shape)).encode())
    digest.update(images_uint8.cpu().contiguous().numpy())
    digest.update(labels.cpu().to(torch.int64).contiguous().numpy())
    return digest.hexdigest()


def compute(images_uint8, labels, extractor):
    """The RealStatistics of uint8 images (N, C, H, W) with labels (N,), streamed in batches."""
    order = labels.argsort(stable=True)  # so that a batch touches few labels' moments
    rows = thinned(order, MAX_KEPT // extractor.dim)
    kept = torch.zeros(len(labels), dtype=torch.bool)
    kept[rows] = True
    found, counts = labels.unique(return_counts=True)
    moments, sums, features = {int(label): Moments(extractor.dim) for label in found}, {}, []
    batches = stream((to_unit_range(images_uint8[part]) for part in order.split(BATCH)), extractor, extractor.device,
                     len(order), f"real images, {extractor.name}")
    for part, (batch, probabilities) in zip(order.split(BATCH), batches, strict=True):
        for label in labels[part].unique().tolist():
            own = labels[part] == label
            moments[label].update(batch[own])
            sums[label] = sums.get(label, 0) + probabilities[own].double().sum(0)
        features.append(batch[kept[part]])
    means = torch.stack([sums[label] for label in moments]) / counts[:, None]
    return RealStatistics(found, tuple(moments.values()), means, rows, labels[rows], torch.cat(features))


def write(path, key, real):
    """Store RealStatistics as an npz of plain arrays, atomically."""
    arrays = {name: getattr(real, name).numpy()
              for name in ("labels", "mean_probabilities", "rows", "row_labels", "features")}
    with replacing(path) as temporary:
        np.savez(temporary, key=np.array(key), counts=np.array([m.count for m in real.moments]),
                 means=np.stack([m.mean.numpy() for m in real.moments]),
                 scatters=np.stack([m.scatter.numpy() for m in real.moments]), **arrays)


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
        for count, mean, scatter in zip(*(arrays.pop(name) for name in ("counts", "means", "scatters")), strict=True):
            moments.append(Moments(0))
            moments[-1].count, moments[-1].mean, moments[-1].scatter = int(count), mean, scatter
        return RealStatistics(moments=tuple(moments), **arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        print(f"warning: {path} is damaged; it is computed again.", file=sys.stderr)
        return None


def real_statistics(images_uint8, labels, extractor, folder):
    """The RealStatistics of uint8 images (N, C, H, W) with labels (N,), from the cache or else computed and stored.

    folder: the data set's, <data_root>/<spec.folder>; the file is
    <folder>/statistics/<data's hash>_<extractor's name>-<weights' hash>.npz. Other data or other weights have another
    file; a damaged one is computed again; where none can be written, a warning says so.
    Raises UserError as metrics.features.extract does.
    """
    images_uint8, labels = torch.as_tensor(images_uint8), torch.as_tensor(labels).to(torch.int64)
    data = fingerprint(images_uint8, labels)
    key = f"{LAYOUT} {data} {extractor.name} {extractor.weights_hash}"
    path = Path(folder) / "statistics" / f"{data[:16]}_{extractor.name}-{extractor.weights_hash[:16]}.npz"
    real = read(path, key)
    if real is None:
        real = compute(images_uint8, labels, extractor)
        try:
            write(path, key, real)
        except OSError as error:
            print(f"warning: {path} could not be written ({error.strerror}); the statistics of the real images will "
                  "be computed again next time.", file=sys.stderr)
    return real
