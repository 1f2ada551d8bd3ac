"""Preparing sounds as an image set: windows of clips as mel spectrograms, apart by who speaks.

A classifier could tell recordings of one studio from others by their level, noise floor or colour alone. So every
window is made as if it had been recorded elsewhere: its spectrum is bent at random, noise is added, and an image knows
no loudness (sound.py). The draws depend on the file's name alone.
"""

import io
import math
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.signal import resample_poly
from tqdm import tqdm

from datasets.layouts import images_of, layout, tree_of
from datasets.prepare import Split
from datasets.safety import require_short_sound
from sound import RATE, WINDOW, band_edges, to_images
from utils import UserError, nearest, to_uint8

SIDES = (64, 128)  # pixels of an image; a coarser one holds no pitch
SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".mp3", ".aif", ".aiff"}
HIGHEST_RATE = 384_000  # Hz
FRAME = 320  # samples, 20 ms, of which levels are taken
ACTIVE = 30.0  # dB below the loudest frame of a clip: what is quieter at its ends is no part of it
LOUD = 20.0  # dB below the loudest window of a clip: a quieter window is left out
STRIDE, MOST = 1600, 4  # samples between windows of a clip, and how many it gives
SILENCE = 1e-4  # the largest sample of a clip that counts as silent
BEND, POINTS = 6.0, 5  # dB, at this many frequencies equally far apart in mel: how the spectrum is bent at random
SNR = (20.0, 40.0)  # dB, of the noise that is added
# who, or where, a clip is of: 'actor07' of actor07_03-01.ogg, '3' of dog_bark_3-136288-A.ogg
GROUP = re.compile(r"(actor\d+)_|_(\d+)-")
EVALUATOR_SHARE, TEST_SHARE = 1 / 3, 1 / 6  # of the groups of a class; the rest is what is probed and trained on


def found_in(source):
    """Whether a zip or a folder holds sounds, and no images."""
    tree = tree_of(source)
    return bool(images_of(tree, SUFFIXES)) and not images_of(tree)


def prepare_sounds(source, spec, how, say):
    """(spec, {split: Split}) of sounds in a zip or a folder of <class>/<file> or <split>/<class>/<file>.

    spec: a DatasetSpec of one channel and 64 or 128 pixels; one without classes gets the folders' names. The splits are
    train, evaluator, for the classifier that judges, and test. A third of the groups of a class (speakers, folds) goes
    to evaluator and a sixth to test, so that nobody is in two; a tree with a test split keeps it.
    Raises UserError for a source that cannot be used, with the path of a file that cannot.
    """
    if spec.channels != 1 or spec.resolution not in SIDES:
        raise UserError(f"{source} holds sounds, whose spectrograms have one channel and {SIDES[0]} or {SIDES[1]} "
                        f"pixels a side; --resolution {spec.resolution} --channels {spec.channels} cannot be made.")
    tree = tree_of(source)
    members, classes = layout(source, tree, how, say, spec.classes, SUFFIXES, "sound")
    spec = replace(spec, classes=spec.classes or tuple(sorted(classes)), sound=True)
    for name in sorted(classes):
        if name not in spec.classes:
            raise UserError(f"{source}: '{name}' is not a class of data set {spec.folder} "
                            f"({nearest(name, spec.classes)}); rename or remove the folder, or correct utils.DATASETS.")
    parts, splits, said = {split: ([], []) for split in ("train", "evaluator", "test")}, split_of(members), set()
    with tqdm(total=len(splits), desc=spec.folder, unit="clip", disable=None) as bar:
        for (name, file), split in splits.items():
            clip, channels = read_sound(tree.opened(file), f"{source}/{file}")
            if channels > 1 and not said:
                said.add(channels)
                print(f"{source}/{file} has {channels} channels; those of such files are mixed to one")
            images, labels = parts[split]
            images.append(window_images(clip, f"{name}/{Path(file).name}", spec.resolution))
            labels += [spec.classes.index(name)] * len(images[-1])
            bar.update()
    return spec, {split: Split(np.array(labels, np.int64), np.concatenate(images).__getitem__)
                  for split, (images, labels) in parts.items() if images}


def split_of(members):
    """{(class, file): split} for `members`, {'train' and maybe 'test': [(class, file)]}; no group is in two splits.

    Raises UserError for a class with fewer groups than splits.
    """
    splits = {member: "test" for member in members.get("test", ())}
    groups = {}  # {class: {group: members}}
    for name, file in sorted(members["train"]):
        groups.setdefault(name, {}).setdefault(group_of(file), []).append((name, file))
    for label, parts in groups.items():
        names, n = sorted(parts, key=lambda group: (len(group), group)), len(parts)
        if n < (2 if "test" in members else 3):
            raise UserError(f"class {label} has clips of {n} speakers or folds alone ({', '.join(names)}), too few to "
                            "keep them apart in train, evaluator and test; add clips of others.")
        for_test = 0 if "test" in members else max(1, math.floor(n * TEST_SHARE))
        judged = max(1, math.floor(n * EVALUATOR_SHARE))
        for i, group in enumerate(names):
            split = "test" if i >= n - for_test else "evaluator" if i >= n - for_test - judged else "train"
            splits |= dict.fromkeys(parts[group], split)
    return splits


def group_of(file):
    """Whose clip a file is: the speaker or fold that its name tells, else the clip itself."""
    found = GROUP.search(Path(file).name)
    return (found[1] or found[2]) if found else Path(file).name


# ------------------------------------------------------------------------------------------- clips


def read_sound(file, name):
    """(samples at RATE, float32 (n,), channels of the file) of `file`, a path or a binary file; several are mixed.

    Raises UserError with `name` where it does not decode, is silent, shorter than a window, or of a rate that leaves
    the upper bands empty.
    """
    try:
        import soundfile
    except ImportError as error:
        raise UserError("sounds are read by the package soundfile; install it with: pip install soundfile") from error
    try:
        if not hasattr(file, "read"):
            file = io.BytesIO(Path(file).read_bytes())
        info = soundfile.info(file)
        require_short_sound(info.frames * info.channels, name)
        file.seek(0)
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except UserError:
        raise
    except Exception as error:  # the decoders raise errors of many kinds
        raise UserError(f"sound {name} does not decode ({error}); repair it or remove it from the set.") from error
    if not RATE <= rate <= HIGHEST_RATE:
        raise UserError(f"sound {name} has {rate} samples a second; from {RATE} to {HIGHEST_RATE} can be used, since a "
                        "lower rate leaves the upper bands empty. Remove it from the set.")
    channels, clip = samples.shape[1], samples.mean(1)
    if not np.isfinite(clip).all():
        raise UserError(f"sound {name} holds samples that are no finite numbers; repair it or remove it from the set.")
    if rate != RATE:
        common = math.gcd(rate, RATE)
        clip = resample_poly(clip, RATE // common, rate // common).astype(np.float32)
    if len(clip) < WINDOW:
        raise UserError(f"sound {name} lasts {len(clip) / RATE:.2f} s, and a window {WINDOW / RATE:.3f} s; remove it "
                        "from the set.")
    if np.abs(clip).max() < SILENCE:
        raise UserError(f"sound {name} is silent; remove it from the set.")
    return clip, channels


def window_starts(clip):
    """The first samples of at most MOST windows of a clip (n,), n at least WINDOW, in rising order.

    They lie in its active part, STRIDE or more apart, and none is much quieter than the loudest.
    """
    power = np.add.reduceat(clip.astype(np.float64) ** 2, np.arange(0, len(clip), FRAME))
    active = np.flatnonzero(power >= power.max() * 10 ** (-ACTIVE / 10))
    first, last = active[0] * FRAME, min(len(clip), (active[-1] + 1) * FRAME)
    if last - first < WINDOW:
        # as much before it as after it, within the clip
        first = min(max(0, (first + last - WINDOW) // 2), len(clip) - WINDOW)
        last = first + WINDOW
    count = 1 + (last - first - WINDOW) // STRIDE
    starts = np.linspace(first, last - WINDOW, count).astype(int)
    total = np.concatenate(([0], np.cumsum(clip.astype(np.float64) ** 2)))
    energy = total[starts + WINDOW] - total[starts]
    starts = starts[energy >= energy.max() * 10 ** (-LOUD / 10)]
    return starts[np.linspace(0, len(starts) - 1, min(MOST, len(starts))).round().astype(int)]


def elsewhere(windows, draws):
    """Windows (n, WINDOW) as if recorded elsewhere: each one's spectrum bent, and noise added. draws: a Generator.

    The bend is a piecewise linear gain over mel, within BEND dB at POINTS frequencies; the noise, from white to pink,
    lies between SNR dB below the window.
    """
    n, bins = len(windows), WINDOW // 2 + 1
    hz = np.linspace(0, RATE / 2, bins)
    at = band_edges(POINTS - 2)
    gains = np.stack([np.interp(hz, at, row) for row in draws.uniform(-BEND, BEND, (n, POINTS))])
    bent = np.fft.irfft(np.fft.rfft(windows) * 10 ** (gains / 20), WINDOW)
    slopes = np.maximum(hz, 20) ** -draws.uniform(0, 0.5, (n, 1))  # of amplitudes; pink: power as 1 / f
    noise = np.fft.irfft(np.fft.rfft(draws.standard_normal((n, WINDOW))) * slopes, WINDOW)
    below = 10 ** (-draws.uniform(*SNR, (n, 1)) / 20)

    def rms(x):
        return np.sqrt((x ** 2).mean(1, keepdims=True))

    return bent + noise * below * rms(bent) / rms(noise)


def window_waves(clip, name):
    """The windows of a clip (n,), (k, WINDOW) float32, as if recorded elsewhere; the draws depend on `name`."""
    windows = np.stack([clip[start:start + WINDOW] for start in window_starts(clip)])
    draws = np.random.default_rng(zlib.crc32(name.encode()))
    return torch.from_numpy(elsewhere(windows, draws).astype(np.float32))


def window_images(clip, name, resolution):
    """The windows of a clip as images, uint8 (k, 1, resolution, resolution)."""
    return to_uint8(to_images(window_waves(clip, name), resolution)).numpy()
