"""What the rivals without a generator share: images of y* are made a batch at a time and kept in the checkpoint."""

import math
from dataclasses import dataclass

import torch

import probegan_losses as losses
from config import setting
from methods.registry import Settings
from step import acceptance
from training import Training
from utils import to_uint8


@dataclass(frozen=True)
class KeptImages(Settings):
    """Of a method without a conditional generator."""

    num_images: int = setting(1000, "images, or latents, of a class that are kept", least=50)


@dataclass(frozen=True)
class OwnSteps(Settings):
    """Of a method that trains no GAN."""

    synthesis_steps: int = setting(0, "steps on an embedding or on images; 0 is the method's own number", least=0)


@dataclass(frozen=True)
class SynthesisSettings(OwnSteps, KeptImages):
    """How many images, and how long a batch of them takes."""


class Synthesis(Training):
    """Makes num_images images of each unseen class; the interface of training.Training.

    A subclass gives synthesise(labels): labels (B,) of one unseen class -> images (B, C, H, W) in [-1, 1].
    """

    def __init__(self, method, config, spec, device, state=None):
        super().__init__(method, config, spec, device)
        self.images = {}  # {label: uint8 (n, C, H, W)} on the CPU
        self.batches = math.ceil(config.own.num_images / config.batch_size)  # of a class
        if state is not None:
            self.load_state(state)

    @property
    def num_steps(self):
        return self.batches * len(self.config.new_class)

    @property
    def drawable(self):
        return self.step == self.num_steps

    def advance(self):
        """Make the next batch. Returns detached terms."""
        label = self.config.new_class[self.step // self.batches]
        made = self.images.get(label)
        count = min(self.config.batch_size, self.config.own.num_images - (0 if made is None else len(made)))
        y = torch.full((count,), label, device=self.device)
        images = self.synthesise(y)
        with torch.no_grad():
            logits, y_C = self.C(images), self.task.C_labels[y]
        pixels = to_uint8(images).cpu()
        self.images[label] = pixels if made is None else torch.cat((made, pixels))
        self.step += 1
        return {"G_class": losses.classification(logits, y_C, self.task.C_weights),
                **acceptance(logits, y_C, torch.zeros(count, device=self.device))}

    def state(self):
        return super().state() | {"images": dict(self.images)}

    def load_state(self, state):
        super().load_state(state)
        self.images = dict(state["images"])
