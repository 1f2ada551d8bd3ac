"""Copies that are not exact: re-encoded, shifted, mirrored, cropped, brightened or greyed ones, by correlation.

Images are compared as grey ones of at most 32 x 32 pixels. Each is looked for among the left-out ones in many views
(mirrored or not, shifted, cropped) by one matrix product of averages over cells; the few best are then compared pixel
by pixel. What counts as a copy is measured on the set itself: images of two seen classes are no copies of each other.
"""

import io
import itertools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
CELLS = 6  # a side, of an image's middle, which a shift by an eighth of the side does not push out of the picture
TOP = 3  # left-out images that each image is compared with pixel by pixel
BLOCK, QUERIES, COLUMNS = 512, 128, 8  # left-out images at a time, and the sides of a product that a cache holds
FLOOR, PROMISING, CLOSE = 0.85, 0.8, 0.88  # least correlation of cells, and of pixels before each fine search
# range of the threshold; other classes may be more alike with y* than the seen ones among each other, so that a lower
# one than 0.97 left out images for nothing on digits (results/audit.md)
LEAST, MOST = 0.97, 0.99
SUSPECTED = 0.05  # how far below the threshold an image is shown as a suspect
FALSE_SHARE = 0.001  # share of the images that the threshold may leave out for nothing
REFERENCES = 512  # images of seen classes that the threshold is measured with
PLANTED = 50  # most copies of each kind that are planted to measure what is found; else of every tenth image
DIM = 1.0  # grey levels: an image that varies less has nothing to compare


class View(NamedTuple):
    """How a copy may show an image: enlarged to `side` pixels, then a window moved by (down, right) from the middle."""

    mirrored: bool
    side: int
    down: int
    right: int


def views(size):
    """The Views that images of `size` x `size` pixels are looked for in, a shift of a pixel of 32 apart or two."""
    found = []
    for extra, reach, step in ((0, 4, 1), (size // 8, 2, 1), (size // 4, 4, 2)):
        reach, step = reach * size // 32, max(1, step * size // 32)
        shifts = range(-reach, reach + 1, step)
        found += [View(mirrored, size + extra, down, right) for mirrored in (False, True) for down in shifts
                  for right in shifts]
    return found


def grey(images):
    """uint8 (n, C, H, W) -> float32 (n, S, S) grey levels, S = 32, or 16 for images below 32 pixels."""
    images = images.float()
    if images.shape[1] == 3:
        images = (images * torch.tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True)
    size = 32 if images.shape[-1] >= 32 else 16
    return F.adaptive_avg_pool2d(images, size)[:, 0] if images.shape[-1] != size else images[:, 0]


def standardised(cells):
    """Vectors (..., d) with mean 0 and length 1: their products are correlations. One without contrast becomes 0."""
    cells = cells - cells.mean(-1, keepdim=True)
    length = cells.norm(dim=-1, keepdim=True)
    return torch.where(length > DIM * CELLS, cells / length.clamp(min=1e-6), 0.0)


def middles(images):
    """Grey images (n, S, S) -> their middles' cells, standardised (n, CELLS^2)."""
    cell = images.shape[-1] // 8
    return standardised(F.avg_pool2d(images[:, None, cell:-cell, cell:-cell], cell).flatten(1))


def in_views(images):
    """Grey images (n, S, S) -> what the middle of a copy of each would hold in each of views(S): (n, V, CELLS^2)."""
    size, cell = images.shape[-1], images.shape[-1] // 8
    averages, found = {}, []
    for view in views(size):
        key = view.mirrored, view.side
        if key not in averages:
            shown = images.flip(2) if view.mirrored else images
            shown = F.interpolate(shown[:, None], (view.side, view.side), mode="bilinear", align_corners=False)
            averages[key] = F.avg_pool2d(shown, cell, stride=1)[:, 0]
        first = (view.side - CELLS * cell) // 2
        top, left, span = first + view.down, first + view.right, cell * CELLS
        found.append(averages[key][:, top:top + span:cell, left:left + span:cell].flatten(1))
    return standardised(torch.stack(found, 1))


def candidates(images, labels, others, other_labels):
    """The TOP others that each grey image (m, S, S) resembles most in any view: correlations and places (m, TOP).

    An other of the same label does not count: its correlation is -1.
    """
    queries = middles(images)
    scores, places = torch.full((len(images), TOP), -1.0), torch.zeros(len(images), TOP, dtype=torch.int64)
    for start in range(0, len(others), BLOCK):
        shown = in_views(others[start:start + BLOCK])
        found = torch.empty(len(queries), len(shown))
        for column in range(0, len(shown), COLUMNS):
            part = shown[column:column + COLUMNS]
            across = part.flatten(0, 1).T.contiguous()  # a tenth faster
            for row in range(0, len(queries), QUERIES):
                products = queries[row:row + QUERIES] @ across
                found[row:row + QUERIES, column:column + len(part)] = products.unflatten(1, part.shape[:2]).amax(2)
        found[labels[:, None] == other_labels[None, start:start + BLOCK]] = -1.0
        best = torch.cat((scores, found), 1).topk(TOP, 1)
        numbers = torch.arange(start, start + len(shown)).expand(len(images), -1)
        scores, places = best.values, torch.cat((places, numbers), 1).gather(1, best.indices)
    return scores, places


def sampled(images, mirrored, zoom, down, right):
    """What copies show of grey images (n, S, S), and the mask of what lies within them, each (n, S, S).

    All others (n,): pixel p of a copy, from its middle, is pixel zoom * (p + down) of the image, mirrored
    where that is 1.
    """
    n, size, _ = images.shape
    middle = (torch.arange(size) + 0.5) - size / 2
    rows, columns = (zoom[:, None] * (middle + shift[:, None]) * 2 / size for shift in (down, right))  # (n, S)
    inside = (rows.abs() <= 1)[:, :, None] & (columns.abs() <= 1)[:, None, :]
    columns = torch.where(mirrored[:, None] == 1, -columns, columns)
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), -1)
    return F.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0], inside


def correlation(a, b, mask):
    """Pearson's correlation (n,) of images (n, S, S) over the pixels in the mask; 0 where one has no contrast."""
    count = mask.sum((1, 2), keepdim=True)
    a, b = ((x - (x * mask).sum((1, 2), keepdim=True) / count) * mask for x in (a, b))
    spread = [x.square().sum((1, 2)) for x in (a, b)]
    flat = torch.minimum(*spread) <= DIM ** 2 * count[:, 0, 0]
    return torch.where(flat, 0.0, (a * b).sum((1, 2)) / (spread[0] * spread[1]).sqrt().clamp(min=1e-6))


def compared(images, others, shown):
    """The correlation (n,) of each grey image with its own other, in the view and the zoom in which it is greatest.

    shown: in_views of the others, (n, V, CELLS^2).
    """
    size = images.shape[-1]
    best = torch.einsum("nd,nvd->nv", middles(images), shown).argmax(1)
    mirrored, side, down, right = torch.tensor(views(size)).float()[best].T
    zoom = size / side
    found = correlation(images, *sampled(others, mirrored, zoom, down, right))
    place = torch.stack((zoom, down, right), 1)  # (n, 3), refined twice
    for step, least in ((1.0, PROMISING), (0.5, CLOSE)):
        rows = (found >= least).nonzero().flatten()
        start, pair = place[rows], (images[rows], others[rows], mirrored[rows])
        for way in itertools.product((-1, 0, 1), repeat=3):
            tried = start + step * torch.tensor(way) * torch.tensor((1 / 16, size / 32, size / 32))
            reached = correlation(pair[0], *sampled(pair[1], pair[2], *tried.T))
            better = reached > found[rows]
            place[rows[better]], found[rows[better]] = tried[better], reached[better]
    return found


def nearest_copies(images, labels, others, other_labels):
    """(correlation, place) (m,) of the other, of another label, that each grey image (m, S, S) most looks a copy of.

    others: grey (n, S, S). Correlations are rounded to three digits, and 0 for an image that resembles none.
    """
    scores, places = candidates(images, labels, others, other_labels)
    rows, ranks = (scores >= FLOOR).nonzero(as_tuple=True)
    found = torch.zeros(len(images), TOP)
    # pairs of the same other together, whose views are then made once
    for part in places[rows, ranks].argsort(stable=True).split(1024):
        r, k = rows[part], ranks[part]
        numbers, own = places[r, k].unique(return_inverse=True)
        found[r, k] = compared(images[r], others[places[r, k]], in_views(others[numbers])[own])
    best = found.max(1)
    return (best.values * 1000).round() / 1000, places.gather(1, best.indices[:, None])[:, 0]


# ---------------------------------------------------------------------------------- what counts as a copy


def threshold(correlations, scale):
    """(threshold, most false finds to expect) from the correlations (m,) of images with references of other classes.

    scale: left-out images for each reference. The threshold is the least from LEAST to MOST above which no more than
    FALSE_SHARE of the images, or one, are expected for nothing. Pairs above MOST are taken for copies, which sets hold
    under two seen classes too, and do not count.
    """
    unlike = correlations[correlations < MOST]
    allowed = max(1.0, FALSE_SHARE * len(correlations))
    for value in (LEAST + k / 200 for k in range(round((MOST - LEAST) * 200) + 1)):
        count = (unlike >= value).sum().item()
        if scale * count <= allowed:
            break
    return value, scale * max(count, 1)  # one in so many comparisons is the least that can be told from none


def encoded(images, kind, quality):
    """uint8 (n, C, H, W) after a lossy file format of Pillow."""
    return each(images, lambda image: reopened(image, kind, quality))


def reopened(image, kind, quality):
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return Image.open(file).convert(image.mode)


def cropped(images):
    """uint8 images (n, C, S, S), seven eighths of each side, off the middle, at the old size."""
    size = images.shape[-1]
    low, side = size // 16 - size // 32, size - size // 8
    return each(images, lambda image: image.crop((low, low, low + side, low + side)).resize((size, size),
                                                                                         Image.Resampling.BICUBIC))


def each(images, change):
    """uint8 images (n, C, H, W), each changed as a Pillow image."""
    made = []
    for image in images.numpy():
        image = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        pixels = np.asarray(change(image))
        made.append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
    return torch.from_numpy(np.stack(made))


def shifted(images):
    """uint8 images moved down and right by a pixel of 32, the border repeated."""
    by = max(1, images.shape[-1] // 32)
    return F.pad(images.float(), (by, 0, by, 0), mode="replicate")[:, :, :-by, :-by].to(torch.uint8)


def greyed(images):
    weights = torch.tensor(GREY).view(3, 1, 1) if images.shape[1] == 3 else torch.ones(1, 1, 1)
    return (images.float() * weights).sum(1, keepdim=True).round().to(torch.uint8).expand_as(images)


# kinds of copies: uint8 (n, C, S, S) -> uint8 (n, C, S, S)
KINDS = {
    "JPEG, quality 75": lambda images: encoded(images, "JPEG", 75),
    "JPEG, quality 30": lambda images: encoded(images, "JPEG", 30),
    "WebP, quality 80": lambda images: encoded(images, "WEBP", 80),
    "shifted by a pixel": shifted,
    "mirrored": lambda images: images.flip(3),
    "brightened by a fifth": lambda images: (images.float() * 1.2).clamp(0, 255).to(torch.uint8),
    "grey": greyed,
    "cropped to seven eighths": cropped,
}


def found_of_planted(images, others, limit):
    """{kind: share of copies of that kind of uint8 images (n, C, H, W) that are found among grey others at `limit`}."""
    copies = torch.cat([grey(plant(images)) for plant in KINDS.values()])
    found, _ = nearest_copies(copies, torch.zeros(len(copies)), others, torch.ones(len(others)))
    return dict(zip(KINDS, (found >= limit).float().view(len(KINDS), -1).mean(1).tolist(), strict=True))
