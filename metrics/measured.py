"""What the metrics look at: each generated image is drawn once and shown to every network once."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datasets import load_split
from metrics.images import count_flat
from metrics.neighbours import Neighbourhood, nearest
from metrics.statistics import real_statistics
from utils import DATASETS, ROOT, UserError, find_dataset, to_unit_range

KEPT = 1000  # images of a class of which the pixels are kept


class Measured:
    """The generated images of a source, as features and probabilities, and the real ones beside them.

    images: a source of metrics.images. extractor and judge: (images) -> (features (B, F), probabilities (B, K)), the
    network whose features are compared and the evaluator; they may be the same. probed: the classifier that was
    probed, or None; probed_labels: its label for each class, -1 for none. seed: of all that the metrics draw at random.
    presence: a metrics.presence.Presence, or None. others: further evaluators, as `judge`. out: the folder for
    statistics of the real images, or None for the data set's own.

    labels int64 (N,): the class each image was drawn for. features float32 (N, F); probabilities (N, J), the
    extractor's own; judged (N, K), the evaluator's; accepted (N, Kc), the probed classifier's, or None.
    pixels: {label: the first KEPT images, uint8 (n, C, H, W)}. flaws: {label: sentence} for suspicious images.
    Raises UserError where all images of a class are of one colour, and as the source does.
    """

    def __init__(self, images, extractor, judge, probed, probed_labels, dataset, data_root, device, batch_size=100,
                 seed=0, presence=None, others=(), out=None):
        self.images, self.extractor, self.judge, self.probed = images, extractor, judge, probed
        self.probed_labels, self.dataset, self.data_root = probed_labels, dataset, data_root
        self.device, self.batch_size, self.seed = device, batch_size, seed
        self.num, self.classes, self.presence = images.num, images.classes, presence
        self.others, self.out = others, out
        self.pixels, self.flaws, self.neighbourhoods, parts = {}, {}, {}, {}
        total = self.num * len(images.drawn)
        with tqdm(total=total, desc="generated images", unit="image", disable=None, leave=False) as bar:
            for label in images.drawn:
                for name, values in self.read_class(label, bar).items():
                    parts.setdefault(name, []).append(values)
        self.labels = np.repeat(images.drawn, self.num)
        self.features, self.probabilities, self.judged, self.accepted = (
            np.concatenate(parts[name]) if name in parts else None
            for name in ("features", "probabilities", "judged", "accepted"))
        # {evaluator: the class (N,) that it takes each image for}, and what all say: -1 where they do not agree
        self.verdicts = {judge.name: self.judged.argmax(1)}
        self.verdicts |= {other.name: np.concatenate(parts[f"by {other.name}"]).argmax(1) for other in others}
        first, *rest = self.verdicts.values()
        self.agreed = np.where(np.all([first == own for own in rest], 0), first, -1) if rest else first
        self.judges = judge.name if not rest else "all"

    def read_class(self, label, bar):
        """What the networks say of all images of a class: {name: (num, ...) float32}."""
        said, kept, flat, same, first = {}, [], 0, True, None
        for start in range(0, self.num, self.batch_size):
            pixels = self.images.read(label, start, min(start + self.batch_size, self.num))
            first = pixels[:1] if first is None else first
            flat, same = flat + count_flat(pixels), same and bool((pixels == first).all())
            if start < KEPT:
                kept.append(pixels)
            for name, values in self.show(to_unit_range(pixels).to(self.device)).items():
                said.setdefault(name, []).append(values.float().cpu().numpy())
            bar.update(len(pixels))
        self.pixels[label] = torch.cat(kept)[:KEPT]
        name = self.classes[label]
        if flat == self.num:
            raise UserError(f"every image of class {name} is of one colour; there is nothing to measure: look at the "
                            "images, and measure others.")
        if flat:
            self.flaws[label] = f"{flat} of {self.num} images of class {name} are of one colour."
        if same and self.num > 1:
            self.flaws[label] = f"All {self.num} images of class {name} are the same image."
        elif self.images.different.get(label, self.num) < self.num:
            self.flaws[label] = (f"{self.images.different[label]} different images of class {name}, all that were "
                                 f"found, stand for {self.num}.")
        return {name: np.concatenate(values) for name, values in said.items()}

    @torch.no_grad()
    def show(self, batch):
        """What each network says of a batch in [-1, 1]."""
        features, probabilities = self.extractor(batch)
        said = {"features": features, "probabilities": probabilities}
        said["judged"] = probabilities if self.judge is self.extractor else self.judge(batch)[1]
        said |= {f"by {other.name}": other(batch)[1] for other in self.others}
        if self.probed is not None:
            said["accepted"] = self.probed(batch).softmax(1)
        return said

    def rows(self, label):
        """The rows of a class, a slice."""
        first = self.images.drawn.index(label) * self.num
        return slice(first, first + self.num)

    def generator(self):
        """A fresh random stream, the same for each metric, whichever others are measured."""
        return torch.Generator().manual_seed(self.seed)

    # ------------------------------------------------------------------------------- the real images

    @cached_property
    def training_set(self):
        """The data set's training split, of all classes: images uint8 (M, C, H, W) and labels int64 (M,)."""
        return load_split(self.dataset, self.data_root, "train")

    def statistics(self, extractor, split=None):
        """The RealStatistics of a split (images, labels), by default the training split."""
        folder = Path(self.data_root) / DATASETS[find_dataset(self.dataset)[0]].folder
        return real_statistics(*(split or self.training_set), extractor, folder if folder.exists() else ROOT / folder,
                               self.out)

    @cached_property
    def real(self):
        """The training split's RealStatistics by the extractor."""
        return self.statistics(self.extractor)

    @cached_property
    def has_real(self):
        """Whether the training split is there."""
        try:
            return self.training_set is not None
        except UserError:
            return False

    @cached_property
    def held_out(self):
        """The test split's RealStatistics by the extractor; None where there is no test split."""
        try:
            return self.statistics(self.extractor, load_split(self.dataset, self.data_root, "test"))
        except UserError:
            return None

    @cached_property
    def real_judged(self):
        """The training split's RealStatistics by the evaluator."""
        return self.real if self.judge is self.extractor else self.statistics(self.judge)

    # ---------------------------------------------------------------------- nearest training images

    def vectors(self, space, label, count):
        """The first `count` images of a class as vectors (n, d), in the space 'features' or 'pixels'."""
        if space == "features":
            return torch.from_numpy(self.features[self.rows(label)][:count])
        return self.pixels[label][:count].flatten(1)

    def real_vectors(self, space, labels):
        """(vectors (m, d), places in the training set (m,)) of the training images of these classes."""
        if space == "features":
            return self.real.features_of(labels)
        images, given = self.training_set
        places = torch.isin(given, torch.tensor(labels)).nonzero()[:, 0]
        return images[places].flatten(1), places

    def neighbourhood(self, space):
        """(Neighbourhood, places in the training set) of the training images that the run was given."""
        if space not in self.neighbourhoods:
            seen = [label for label in self.real.labels.tolist() if label not in self.images.left_out]
            vectors, places = self.real_vectors(space, seen)
            self.neighbourhoods[space] = Neighbourhood(vectors, self.generator()), places
        return self.neighbourhoods[space]

    def nearest_seen(self, space, label, count=KEPT):
        """(distances in typical ones, places in the training set) of the images nearest to a class's first images."""
        neighbourhood, places = self.neighbourhood(space)
        distances, nearest_places = neighbourhood.nearest(self.vectors(space, label, count))
        return distances, places[nearest_places]

    def nearest_of_class(self, space, label, count=KEPT):
        """The median distance, in typical ones, of a class's first images to the nearest real one of that class."""
        distances, _ = nearest(self.vectors(space, label, count), self.real_vectors(space, [label])[0])
        return (distances.median() / self.neighbourhood(space)[0].typical).item()
