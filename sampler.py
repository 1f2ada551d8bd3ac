"""Drawing from a checkpoint, which says itself what it draws; no method is known here by name.

A checkpoint's `draws` has the labels `fed` to its generator; `conditional`, whether a label says what is drawn; the
labels `new_class` that the run is about; `oracle`, whether the GAN saw images of them; and the run's `title`. It holds
a generator, G_ema; where that is not conditional, `latents` of each class; or `images` of each class alone.
"""

import torch

from BigGAN import make_generator
from config import networks_of
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
    images, give the same one.
    """

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

    state: what methods.load_run returns. truncation: bound of the latent's entries, None for none.
    """

    def __init__(self, state, device, truncation=None, batch_size=100):
        self.draws, self.classes, self.step = state["draws"], tuple(state["dataset"]["classes"]), state["step"]
        self.device, self.truncation, self.batch_size = device, truncation, batch_size
        self.fed = self.draws["fed"]  # labels that G was trained with
        self.chosen = state.get("latents")  # {label: latents} of an unconditional generator
        self.drawn = sorted(self.chosen) if self.chosen else self.fed
        # different images of a class, where bounded
        self.most = min(map(len, self.chosen.values())) if self.chosen else None
        self.unseen = () if self.draws["oracle"] else tuple(y for y in self.draws["new_class"] if y in self.drawn)
        # the weights that are drawn here and replaced at once must not move a training's random stream
        with torch.random.fork_rng(devices=[]):
            self.G = make_generator(networks_of(state["config"]), state["dataset"]["resolution"],
                                    state["dataset"]["channels"], len(self.classes))
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


def make_sampler(state, device, truncation=None, batch_size=100):
    """The Sampler of a checkpoint, or its ImageBank where it holds images instead of a generator."""
    return ImageBank(state) if "images" in state else Sampler(state, device, truncation, batch_size)
