"""Drawing from a checkpoint, which says itself what it draws; no method is known here by name.

A checkpoint's `draws` has the labels `fed` to its generator; `conditional`, whether a label says what is drawn; the
labels `new_class` that the run is about; `oracle`, whether the GAN saw images of them; and the run's `title`. It holds
a generator, G_ema; where that is not conditional, `latents` of each class, and, where they are not the method's choice
but what the generator makes, the `shares` in which it makes the classes; or `images` of each class alone. One that
draws from a classifier's features has `features` in its `draws`, their `space`, and `kept` images to take them from.
"""

import torch
import torch.nn.functional as F

from BigGAN import make_generator
from config import networks_of
from feature_networks import make_drawer
from features import FeatureSpace
from layers import standing_statistics
from utils import UserError, class_label, seeded_latents, to_unit_range


def in_turn(kept, seeds, name):
    """The rows of `kept` (n, ...) that seeds stand for, n apart the same one. Raises UserError for more than n."""
    if len(seeds) > len(kept):
        raise UserError(f"this checkpoint holds {len(kept)} images of class {name}, and {len(seeds)} are asked for; "
                        f"ask for at most {len(kept)}, or train with a larger --num_images.")
    return kept[torch.tensor(seeds) % len(kept)]


class ImageBank:
    """The images that a checkpoint holds itself, of a method without a generator; drawn from as from a Sampler.

    state: what methods.load_run returns. The images of a class are taken in turn: seeds that are n apart, of n
    images, give the same one. The interface of Sampler.
    """

    shares, different = None, {}

    def __init__(self, state):
        self.draws, self.classes = state["draws"], tuple(state["dataset"]["classes"])
        self.unseen, self.step, self.bank = tuple(self.draws["new_class"]), state["step"], state["images"]
        self.drawn = sorted(self.bank)
        self.most = min(map(len, self.bank.values()))

    def class_images(self, label, seeds):
        """Images (len(seeds), C, H, W) in [-1, 1] of one class. Raises UserError where there are not so many."""
        return to_unit_range(in_turn(self.bank[label], seeds, self.classes[label]))

    def label(self, name):
        """The label of a class of this checkpoint, by label or name. Raises UserError."""
        return class_label(self, name)


class Sampler:
    """The averaged generator of a checkpoint, in eval mode with standing statistics.

    state: what methods.load_run returns. truncation: bound of the latent's entries, None for none. shares: {label: how
    often the generator makes the class}, where it has no classes and its images are sorted; else None. different:
    {label: different images of the class}, where they are bounded.
    """

    def __init__(self, state, device, truncation=None, batch_size=100):
        self.draws, self.classes, self.step = state["draws"], tuple(state["dataset"]["classes"]), state["step"]
        self.device, self.truncation, self.batch_size = device, truncation, batch_size
        self.fed = self.draws["fed"]  # labels that G was trained with
        self.chosen = state.get("latents")  # {label: latents} of an unconditional generator
        self.drawn = sorted(self.chosen) if self.chosen else self.fed
        self.shares = state.get("shares")
        self.different = {y: len(z.unique(dim=0)) for y, z in self.chosen.items()} if self.chosen else {}
        # images of a class, where bounded
        self.most = min(map(len, self.chosen.values())) if self.chosen else None
        self.unseen = () if self.draws["oracle"] else tuple(y for y in self.draws["new_class"] if y in self.drawn)
        # the weights that are drawn here and replaced at once must not move a training's random stream
        with torch.random.fork_rng(devices=[]):
            self.G = make_generator(networks_of(state["config"]), state["dataset"]["resolution"],
                                    state["dataset"]["channels"], len(self.classes), self.draws["conditional"])
        self.G.load_state_dict(state["G_ema"])
        self.G.to(device).requires_grad_(False)
        standing_statistics(self.G, self._standing_batch)

    def _standing_batch(self, k):
        # seeds of their own, far from those of the images
        seeds = range(2**40 + k * self.batch_size, 2**40 + (k + 1) * self.batch_size)
        y = torch.tensor([self.fed[i % len(self.fed)] for i in range(self.batch_size)])
        return self.latents(seeds).to(self.device), y.to(self.device)

    def latents(self, seeds):
        """Latents (len(seeds), dim_z) on the CPU; row i depends on seeds[i] alone."""
        return seeded_latents(seeds, self.G.dim_z, self.truncation)

    def images(self, z, y):
        """Images (N, C, H, W) in [-1, 1] on the CPU; z (N, dim_z); y labels (N,) or embeddings (N, shared_dim)."""
        parts = [self.G(z_part.to(self.device), y_part.to(self.device)).cpu()
                 for z_part, y_part in zip(z.split(self.batch_size), y.split(self.batch_size), strict=True)]
        return torch.cat(parts)

    def class_images(self, label, seeds):
        """Images (len(seeds), C, H, W) of one class; image i depends on seeds[i] alone.

        Raises UserError where an unconditional generator has fewer latents of the class.
        """
        if self.chosen:
            return self.images(in_turn(self.chosen[label], seeds, self.classes[label]),
                               torch.zeros(len(seeds), dtype=torch.long))
        return self.images(self.latents(seeds), torch.full((len(seeds),), label))

    def label(self, name):
        """The label of a class of this checkpoint, by label or name. Raises UserError."""
        return class_label(self, name)


class FeatureSampler:
    """The averaged generator of a checkpoint that draws from features; drawn from as from a Sampler.

    `class_images` asks for the features of kept images of a class; `draw` for any.
    """

    shares, different = None, {}

    def __init__(self, state, device, truncation=None, batch_size=100):
        self.draws, self.classes, self.step = state["draws"], tuple(state["dataset"]["classes"]), state["step"]
        self.device, self.truncation, self.batch_size = device, truncation, batch_size
        self.kind, self.space, self.kept = self.draws["features"], FeatureSpace.of_state(state["space"]), state["kept"]
        self.classifier_sha256 = state["classifier_sha256"]
        self.drawn, self.most, self.unseen = sorted(set(self.kept["labels"].tolist())), None, ()
        self.faces = to_unit_range(self.kept["images"])  # what is edited: (n, C, H, W)
        with torch.random.fork_rng(devices=[]):
            self.G = make_drawer(self.kind, networks_of(state["config"]), state["dataset"]["resolution"],
                                 state["dataset"]["channels"])
        self.G.load_state_dict(state["G_ema"])
        self.G.to(device).requires_grad_(False)
        standing_statistics(self.G, self._standing_batch)

    def told(self, f, labels):
        """What G is told of features (N, f) with the classifier's labels (N,)."""
        return f if self.kind["condition"] == "features" else F.one_hot(labels, self.kind["told"]).float()

    def given(self, x, seeds):
        """What G draws from beside the features: images x (N, C, H, W), or the latents of seeds."""
        return x if self.kind["mode"] == "edit" else seeded_latents(seeds, self.G.dim_z, self.truncation)

    def _standing_batch(self, k):
        seeds = range(2**40 + k * self.batch_size, 2**40 + (k + 1) * self.batch_size)
        # by a prime, so that the features of every kept image are asked for
        face, asked = torch.tensor(seeds) % len(self.faces), torch.tensor(seeds) * 7919 % len(self.faces)
        return (self.given(self.faces[face], seeds).to(self.device),
                self.told(self.kept["f"][asked], self.kept["predicted"][asked]).to(self.device))

    def draw(self, x, f, labels, seeds):
        """Images (N, C, H, W) in [-1, 1] on the CPU of features f (N, f), with the classifier's labels (N,) of them.

        x (N, C, H, W): the images that are edited; seeds (N): of the latents of a generator that edits none.
        """
        given, told = self.given(x, seeds), self.told(f, labels)
        parts = zip(given.split(self.batch_size), told.split(self.batch_size), strict=True)
        return torch.cat([self.G(a.to(self.device), b.to(self.device)).cpu() for a, b in parts])

    def class_images(self, label, seeds):
        """Images (len(seeds), C, H, W) with features of kept images of a class; image i depends on seeds[i] alone."""
        places, faces = torch.tensor(seeds), len(self.faces)
        targets = (self.kept["labels"] == label).nonzero()[:, 0]
        asked = targets[places % len(targets)]
        x = self.faces[(places * 7 + places // len(targets)) % faces]  # every face with every target, in some order
        return self.draw(x, self.kept["f"][asked], self.kept["predicted"][asked], seeds)

    def kept_faces(self, count, seed):
        """`count` of the kept images: (images (n, C, H, W), features (n, f), the classifier's labels (n,), names)."""
        rows = torch.randperm(len(self.faces), generator=torch.Generator().manual_seed(seed))[:count]
        names = [self.classes[y] for y in self.kept["labels"][rows].tolist()]
        return self.faces[rows], self.kept["f"][rows], self.kept["predicted"][rows], names

    def rows(self, faces, components, quantiles, seed):
        """A row a face of `kept_faces`, or of others like them: images (n, columns, C, H, W), and whose features.

        Columns are the face's own features, those of one kept image of each class, and its own with one principal
        coordinate moved to quantiles of the training images. Returns (images, places of the kept ones (classes,),
        walks: a (component, coordinate) a column of the last kind). Raises UserError for what does not exist.
        """
        of_class = [(self.kept["labels"] == y).nonzero()[:, 0] for y in self.drawn]
        others = torch.stack([places[seed % len(places)] for places in of_class])
        walks = [(c, self.space.quantile(c, q)) for c in components for q in quantiles]
        rows = []
        for k, (x, f, label) in enumerate(zip(*faces[:3], strict=True)):
            moved = [self.space.moved(f[None], *walk) for walk in walks]
            asked = torch.cat([f[None], self.kept["f"][others], *moved])
            labels = torch.cat([label[None], self.kept["predicted"][others], label.repeat(len(walks))])
            rows.append(self.draw(x.expand(len(asked), -1, -1, -1), asked, labels, [seed + k] * len(asked)))
        return torch.stack(rows), others, walks

    def label(self, name):
        """The label of a class of this checkpoint, by label or name. Raises UserError."""
        return class_label(self, name)


def make_sampler(state, device, truncation=None, batch_size=100):
    """What draws from a checkpoint: a Sampler, or an ImageBank where it holds images instead of a generator, or a
    FeatureSampler."""
    if "features" in state["draws"]:
        return FeatureSampler(state, device, truncation, batch_size)
    return ImageBank(state) if "images" in state else Sampler(state, device, truncation, batch_size)
