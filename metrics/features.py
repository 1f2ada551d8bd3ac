"""What images are compared in: features and class probabilities, by a classifier of this project or by Inception-v3.

An extractor has `name` (part of every figure's name), `dim` (features an image), `device` and `weights_hash`; it
turns images in [-1, 1] (B, C, H, W) into features (B, dim) and probabilities (B, K), float32. Published FID figures
are of images stored with 8 bits: a caller that compares with such gives images rounded to k / 127.5 - 1.
"""

import hashlib
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import inception
from tqdm import tqdm

from utils import UserError, load_torch

WEIGHTS_FILE = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_PAGE = "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"


def hash_of(network):
    """SHA-256 over the names, types, shapes and bytes of a network's state, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class ClassifierFeatures:
    """A FrozenClassifier as extractor: what its last linear layer is given, and the softmax of its logits."""

    def __init__(self, classifier, name):
        self.classifier, self.name = classifier, name
        self.device = classifier.mean.device
        side = classifier.resolution or 32
        with torch.no_grad():
            image = torch.zeros(1, classifier.channels, side, side, device=self.device)
            self.dim = classifier.features_and_logits(image)[0].shape[1]
        self.weights_hash = hash_of(classifier)

    @torch.no_grad()
    def __call__(self, images):
        features, logits = self.classifier.features_and_logits(images.to(self.device))
        return features, logits.softmax(1)


# ------------------------------------------------------------------------------- FID's Inception-v3

# TensorFlow's average over a window at the edge leaves the padding out
average = partial(functional.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
maximum = partial(functional.max_pool2d, kernel_size=3, stride=1, padding=1)


class BlockA(inception.InceptionA):
    """torchvision's block at 35x35 with TensorFlow's average pooling."""

    def forward(self, x):
        return torch.cat((self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)),
                          self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                          self.branch_pool(average(x))), 1)


class BlockC(inception.InceptionC):
    """torchvision's block at 17x17 with TensorFlow's average pooling."""

    def forward(self, x):
        single, double = self.branch7x7_1(x), self.branch7x7dbl_1(x)
        for layer in (self.branch7x7_2, self.branch7x7_3):
            single = layer(single)
        for layer in (self.branch7x7dbl_2, self.branch7x7dbl_3, self.branch7x7dbl_4, self.branch7x7dbl_5):
            double = layer(double)
        return torch.cat((self.branch1x1(x), single, double, self.branch_pool(average(x))), 1)


class BlockE(inception.InceptionE):
    """torchvision's block at 8x8; `pool` is the average, but the maximum in the network's last block."""

    pool = staticmethod(average)

    def forward(self, x):
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat((self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single),
                          self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double),
                          self.branch_pool(self.pool(x))), 1)


def inception_network():
    """The Inception-v3 of 2015-12-05 that FID is defined by, with 1008 classes and untrained weights."""
    blocks = [inception.BasicConv2d, BlockA, inception.InceptionB, BlockC, inception.InceptionD, BlockE,
              inception.InceptionAux]
    network = inception.Inception3(1008, aux_logits=False, inception_blocks=blocks, init_weights=False)
    network.Mixed_7c.pool = maximum
    return network.eval().requires_grad_(False)


def resized(images, size=299):
    """(B, C, H, W) -> (B, C, size, size) as TensorFlow 1 resizes: bilinear between pixel floor(s) and the next.

    Pixel i of the output lies at s = i * H / size of the input, without the half-pixel shift of torch's interpolate.
    """
    for dim in (2, 3):
        given = images.shape[dim]
        source = torch.arange(size, device=images.device, dtype=torch.float32) * (given / size)
        low = source.long()
        share = (source - low).view(-1, 1) if dim == 2 else source - low
        high = (low + 1).clamp(max=given - 1)
        images = torch.lerp(images.index_select(dim, low), images.index_select(dim, high), share)
    return images


class InceptionFeatures:
    """The extractor of FID, KID and the Inception Score: 2048 pooled features, 1008 class probabilities.

    The original TensorFlow network as converted for PyTorch (its differences from torchvision's: pooling, resize,
    value range, classes). Probabilities leave out the last layer's bias, as Salimans et al.'s code does. `path` is a
    state dict under pytorch-fid's names; raises UserError where it is missing or holds other weights.
    Images: (B, 1 or 3, H, W) in [-1, 1].
    """

    name, dim = "inception", 2048

    def __init__(self, path, device="cpu"):
        wanted = f"Give the file {WEIGHTS_FILE} from {WEIGHTS_PAGE}."
        if not Path(path).is_file():
            raise UserError(f"the Inception weights {path} do not exist. {wanted}")
        weights, network = load_torch(path), inception_network()
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        given = {name: tuple(value.shape) for name, value in weights.items()
                 if torch.is_tensor(value)} if isinstance(weights, dict) else {}
        # a count of batches is no weight; older files have none
        wrong = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name)
                       and not (name.endswith("num_batches_tracked") and name not in given))
        if wrong:
            name = wrong[0]
            raise UserError(f"{path} does not hold the Inception-v3 of FID: {name} is {given.get(name, 'missing')} "
                            f"and should be {shapes.get(name, 'absent')} ({len(wrong)} such names). {wanted}")
        network.load_state_dict(weights, strict=False)
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.layers = nn.Sequential(*(layer for name, layer in network.named_children() if name != "fc"))
        self.weights_hash = hash_of(network)

    @torch.no_grad()
    def __call__(self, images):
        if images.shape[1] not in (1, 3):
            raise UserError(f"images of {images.shape[1]} channels cannot be shown to Inception-v3; give 1 or 3.")
        features = []
        for part in images.split(50):  # 500 at once would take 8 GB
            pixels = (part.to(self.device).float() + 1) * 127.5  # 0 to 255
            pixels = resized(pixels.expand(-1, 3, -1, -1))
            features.append(self.layers((pixels - 128) / 128).flatten(1))
        features = torch.cat(features)
        return features, (features @ self.network.fc.weight.T).softmax(1)


# --------------------------------------------------------------------------------------- extraction


def stream(images_iterable, extractor, device, total, desc):
    """Yield (features (B, F), probabilities (B, K)) on the CPU for each batch of images, with a progress bar.

    Raises UserError as `extract` does.
    """
    first, count, varied = None, 0, False
    with tqdm(total=total, desc=desc, unit="image", disable=None, leave=False) as bar:
        for images in images_iterable:
            if not images.isfinite().all():
                raise UserError(f"the images of '{desc}' hold NaN or infinite pixels; they cannot be measured. A "
                                "generator that draws such has diverged: take an earlier checkpoint.")
            first = images[:1].clone() if first is None else first
            varied = varied or bool((images != first).any())
            count += len(images)
            features, probabilities = extractor(images.to(device))
            if not features.isfinite().all():
                raise UserError(f"the features '{extractor.name}' of '{desc}' are NaN or infinite; the classifier is "
                                "damaged, give another one.")
            yield features.cpu(), probabilities.cpu()
            bar.update(len(images))
    if count < 2:
        raise UserError(f"'{desc}' has {count} images; statistics need at least 2.")
    if not varied:
        raise UserError(f"all {count} images of '{desc}' are identical; nothing can be measured on them. A generator "
                        "that draws such has collapsed: take an earlier checkpoint.")


def extract(images_iterable, extractor, device="cpu", total=None, desc="features"):
    """Features float32 (N, F) and probabilities float32 (N, K), on the CPU, of batches (B, C, H, W) in [-1, 1].

    device: where the extractor's network is. total: the number of images, for the bar; desc: what they are, for the
    bar and for messages. Raises UserError for NaN or infinite pixels, for images that are all equal, and for fewer
    than 2 images.
    """
    batches = list(stream(images_iterable, extractor, device, total, desc))
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
