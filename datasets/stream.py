"""Batches of real images: from device memory where the set fits, else read ahead by threads."""

import hashlib
import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch

from datasets.sources import read_all
from utils import UserError, to_unit_range


def derived_seed(*numbers):
    """A 64-bit seed that depends on all these integers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")


def augmented(images, flip, down, right):
    """Shift and mirror images (B, C, H, W); what leaves the frame on one side is reflected in on the other.

    flip (0 or 1), down and right (pixels): int64 (B,). Row y of the result is row y + down of the image.
    """
    batch, channels, height, width = images.shape
    device = images.device
    rows = reflected(torch.arange(height, device=device) + down[:, None], height)  # (B, H)
    columns = reflected(torch.arange(width, device=device) + right[:, None], width)  # (B, W)
    columns = torch.where(flip[:, None] == 1, width - 1 - columns, columns)
    places = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, height * width)
    return images.flatten(2).gather(2, places.expand(-1, channels, -1)).view_as(images)


def reflected(places, size):
    """Places outside 0..size-1, by less than size, mirrored at the first and the last place."""
    return size - 1 - (size - 1 - places.abs()).abs()


class ImageStream:
    """Endless shuffled batches of the images `indices` of a source; each epoch visits an image at most once.

    The set is kept on the device as uint8 if it takes at most max_resident_gb GiB (`resident` is then
    True), else `num_workers` threads (at least one) read ahead. Both give the same batches. The order
    and the augmentation of an epoch depend on seed and epoch alone, so that the state is two integers.
    The images that do not fill the last batch of an epoch are dropped.

    augment: 'none'; 'flip' mirrors half of the images left to right; 'crop' shifts each by up to an
    eighth of its size, reflecting at the border; 'flip_crop' does both.
    rank and size: of `size` processes that draw the same batches this one is given the slice number `rank` of each;
    batch_size is that of the whole batch.
    guard.check(images, labels) sees every image before augmentation: all at once when resident, else
    batch by batch. Raises AbsenceError from there, and UserError for a batch larger than the set.
    """

    def __init__(self, source, indices, guard, batch_size, device, augment="none", seed=0, max_resident_gb=4.0,
                 num_workers=2, rank=0, size=1):
        if batch_size > len(indices):
            raise UserError(f"--batch_size {batch_size} is larger than the image set of {len(indices)} images; "
                            f"give at most {len(indices)}.")
        self.source, self.indices, self.guard = source, indices, guard
        self.batch_size, self.device, self.augment, self.seed = batch_size, torch.device(device), augment, seed
        self.resident = len(indices) * math.prod(source.image_shape) <= max_resident_gb * 2**30
        self.own = slice(batch_size // size * rank, batch_size // size * (rank + 1))
        self.plans = {}
        self.load_state_dict({"epoch": 0, "position": 0})
        if self.resident:
            images, labels = read_all(source, indices), source.labels[indices]
            guard.check(images, labels)
            self.images, self.labels = images.to(self.device), labels.to(self.device)
        else:
            self.depth = 2 + max(1, num_workers)
            self.pool = ThreadPoolExecutor(max(1, num_workers), thread_name_prefix="images")

    def state_dict(self):
        """The place of the next batch: epoch, and position in the epoch's order in images."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        """Go on from `state` with exactly the batches that would have followed it."""
        self.epoch, self.position = state["epoch"], state["position"]
        self.ahead, self.ahead_place = deque(), (self.epoch, self.position)
        self.plans.clear()

    def next_batch(self):
        """This process's part of the next batch, (images uint8 (B, C, H, W), labels int64 (B,)) on the device."""
        if self.resident:
            images, labels = self.take(self.images, self.labels, self.plan(self.epoch, self.position))
        else:
            while len(self.ahead) < self.depth:
                plan = self.plan(*self.ahead_place)
                self.ahead_place = self.after(*self.ahead_place)
                self.ahead.append(self.pool.submit(self.read, plan))
            images, labels = (part.to(self.device, non_blocking=True) for part in self.ahead.popleft().result())
        self.epoch, self.position = self.after(self.epoch, self.position)
        return images, labels

    def after(self, epoch, position):
        """The place that follows a batch at this place."""
        position += self.batch_size
        return (epoch, position) if position + self.batch_size <= len(self.indices) else (epoch + 1, 0)

    def plan(self, epoch, position):
        """int64 (4, B): place in `indices`, flip, down and right of each own image of the batch at this place."""
        if epoch not in self.plans:
            self.plans = {e: plan for e, plan in self.plans.items() if e >= self.epoch}
            generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
            count, reach = len(self.indices), self.source.image_shape[-1] // 8
            order = torch.randperm(count, generator=generator)
            flip = torch.randint(2, (1, count), generator=generator) * ("flip" in self.augment)
            shift = torch.randint(-reach, reach + 1, (2, count), generator=generator) * ("crop" in self.augment)
            plan = torch.cat([order[None], flip, shift])
            if self.resident:
                # one copy an epoch, so that no batch waits for the device
                plan = self.pinned(plan).to(self.device, non_blocking=True)
            self.plans[epoch] = plan
        return self.plans[epoch][:, position:position + self.batch_size][:, self.own]

    def read(self, plan):
        """Read one batch of a streamed set, in a thread."""
        chosen = self.indices[plan[0]]
        images, labels = self.source.read(chosen), self.source.labels[chosen]
        self.guard.check(images, labels)
        plan = torch.stack([torch.arange(len(chosen)), *plan[1:]])
        return [self.pinned(part) for part in self.take(images, labels, plan)]

    def take(self, images, labels, plan):
        """The batch that `plan` (4, B) takes from these images, augmented."""
        images, labels = images.index_select(0, plan[0]), labels.index_select(0, plan[0])
        return images if self.augment == "none" else augmented(images, *plan[1:]), labels

    def pinned(self, tensor):
        return tensor.pin_memory() if self.device.type == "cuda" else tensor


def seen_images(stream, unseen, per_class):
    """Up to `per_class` images of each seen class of an ImageStream, spread evenly over the set: {label: images}.

    Images are float (n, C, H, W) in [-1, 1] on the CPU. No image with a label in `unseen` is read; the stream's
    guard checks those that are.
    """
    labels = stream.source.labels[stream.indices]
    images = {}
    for label in sorted(set(labels.tolist()) - set(unseen)):
        rows = stream.indices[labels == label]
        rows = rows[torch.linspace(0, len(rows) - 1, min(per_class, len(rows))).round().long()]
        pixels = stream.source.read(rows)
        stream.guard.check(pixels, torch.full((len(rows),), label))
        images[label] = to_unit_range(pixels)
    return images
