"""What every other module leans on: the registry of data sets, errors, seeds, checkpoints, grids.

A user adds a data set by adding one entry to `DATASETS` below; nothing else has to be edited.
"""

import difflib
import errno
import json
import pickle
import re
import signal
import sys
import tempfile
import zipfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from files import Printable, replacing

ROOT = Path(__file__).resolve().parent
# why a disk does not take a file, or a path is none
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR,
           errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


class UserError(Exception):
    """Something the user gave is wrong; the text says what was given, what is valid and what to do."""


LISTED = 40  # names at most


def nearest(name, valid):
    """A clause for brackets that names the valid name closest to `name`, or lists all of them, or the first."""
    valid = [str(v) for v in valid]
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    more = f" and {len(valid) - LISTED} more" if len(valid) > LISTED else ""
    return f"did you mean '{close[0]}'?" if close else f"valid names: {', '.join(valid[:LISTED])}{more}"


def run_main(main):
    """Run a command's `main()`; a UserError, or a disk that refuses, becomes one sentence and exit code 2.

    What is printed reaches the terminal without the escape sequences that names out of files may hold.
    """
    with redirect_stdout(Printable(sys.stdout)), redirect_stderr(Printable(sys.stderr)):
        try:
            main()
        except UserError as error:
            sentence = str(error)
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            sentence = (f"{error.filename or 'a file'} could not be opened or written ({error.strerror}); checkpoints "
                        "saved before are intact. Make room or choose another folder, then run the command again.")
        else:
            return
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)


# ------------------------------------------------------------------------------------- data sets


@dataclass(frozen=True)
class DatasetSpec:
    """One image set, prepared below datasets/<folder>/ as train.h5 and test.h5 or as ImageFolder trees.

    `classes` fixes the label order (label k is classes[k]), so that an absent or empty class folder
    cannot shift the labels of the others. `settings` override the defaults of config.Config for
    runs on this data set; flags override both. `mirror` says that a mirrored image keeps its class, so
    that classifiers are trained on mirrored images too. `sound` says that the images are spectrograms as sound.py makes
    them: moved up or down one is of another pitch, so that classifiers are trained on images moved in time alone.
    """

    folder: str
    resolution: int
    channels: int
    classes: tuple[str, ...]
    settings: dict = field(default_factory=dict)
    mirror: bool = False
    sound: bool = False


# for small grey images and short runs, by results/variety_findings.md; voices differ by results/sound_findings.md
_SMALL = {"G_ch": 12, "D_ch": 12, "batch_size": 32, "num_D_steps": 2, "G_lr": 5e-4, "D_lr": 1e-3, "init": "ortho",
          "ema_decay": 0.98, "ema_start": 50, "balanced_y": True, "one_G_pass": True, "penalty": "zero",
          "gp_coeff": 1.0, "gp_every": 2, "C_bound": 0.5, "C_bound_new": 1.0, "spread_coeff": 2.0, "level_unseen": True}
_MNIST = {**_SMALL, "num_steps": 1200}
_DIGITS = {**_SMALL, "num_steps": 1500, "ema_decay": 0.998, "ema_start": 0, "ema_rampup": 0.4}
# the release's, scripts/launch_waterbird_zerogan.sh; its D has no attention at 64 pixels, where it has no such layer
_WATERBIRDS = {"G_ch": 96, "D_ch": 96, "num_D_steps": 2, "G_lr": 5e-5, "D_lr": 2e-4, "adam_eps": 1e-6, "SN_eps": 1e-6,
               "init": "ortho", "G_attn": "64", "ema_start": 20_000}

DATASETS = {
    "C10": DatasetSpec(
        "cifar10", 32, 3,
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"), mirror=True),
    "MNIST": DatasetSpec("mnist", 32, 1, tuple("0123456789"), _MNIST),
    "digits": DatasetSpec("digits", 16, 1, tuple("0123456789"), _DIGITS),
    # made by experiments/hue.py
    "MNIST_colour": DatasetSpec("mnist_colour", 32, 3, tuple("0123456789"), _MNIST),
    "digits_colour": DatasetSpec("digits_colour", 16, 3, tuple("0123456789"), _DIGITS),
    "fer2013": DatasetSpec(
        "fer2013", 48, 1, ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"), mirror=True),
    "waterbirds": DatasetSpec("waterbirds", 64, 3, ("landbird", "waterbird"), _WATERBIRDS, mirror=True),
    "waterbirds32": DatasetSpec("waterbirds32", 32, 3, ("landbird", "waterbird"), mirror=True),
    "voices": DatasetSpec("voices", 64, 1, ("men", "women", "nonhuman"), sound=True, settings={
        **_SMALL, "num_steps": 750, "diffaug": ("time",), "C_coeff": 2.0, "C_new_coeff": 4.0,
        "C_bound_new": 2.0, "level_unseen": False}),
}


def ways_to_split(text, known):
    """All lists of names in `known` that '_' joins to `text`; names may hold one themselves."""
    found, parts = [[text]] if text in known else [], text.split("_")
    for i in range(1, len(parts)):
        if (first := "_".join(parts[:i])) in known:
            found += [[first, *rest] for rest in ways_to_split("_".join(parts[i:]), known)]
    return found


def find_dataset(name):
    """Split `name` into a registered name and the classes it leaves out: 'C10_wo_7' -> ('C10', ['7']).

    Returns (name, left-out classes as strings); what is made of no classes comes back whole. Raises UserError for an
    unknown data set, and for a name that says two things.
    """
    if name in DATASETS:
        return name, []
    named = {base: name.removeprefix(f"{base}_wo_") for base in DATASETS
             if name.startswith(f"{base}_wo_") and not name.endswith("_wo_")}
    if not named:
        raise UserError(f"data set '{name}' is not registered ({nearest(name.partition('_wo_')[0], DATASETS)}). "
                        "A data set is registered by one entry in utils.DATASETS.")
    found = {}
    for base, text in named.items():
        spec = DATASETS[base]
        for classes in ways_to_split(text, {*spec.classes, *map(str, range(len(spec.classes)))}):
            found.setdefault((base, frozenset(class_label(spec, c) for c in classes)), (base, classes))
    if len(found) > 1:
        readings = " or ".join(f"--dataset {base} --new_class {' '.join(classes)}" for base, classes in found.values())
        raise UserError(f"data set '{name}' may be any of several; say which: {readings}.")
    return next(iter(found.values()), (base, [text]))


def is_sound(name):
    """Whether the images of the data set `name` are spectrograms; those of one that is not registered are not."""
    return name in DATASETS and DATASETS[name].sound


def class_label(spec, name):
    """The label of a class given by label ('7') or by name ('horse'). Raises UserError."""
    name = str(name)
    if name in spec.classes:
        return spec.classes.index(name)
    if name.isdecimal() and int(name) < len(spec.classes):
        return int(name)
    raise UserError(f"class '{name}' is not in this data set: give a label from 0 to {len(spec.classes) - 1} "
                    f"or a name ({nearest(name, spec.classes)}).")


# ----------------------------------------------------------------------------- device and seeds


def choose_device(name="auto"):
    """The torch.device for 'auto' (CUDA, else MPS, else CPU) or for a name that torch knows."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.split(":")[0]
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in present:
        raise UserError(f"device '{name}' is unknown; give auto, cpu, cuda, cuda:N or mps.")
    if not present[kind]:
        raise UserError(f"device '{name}' is not available on this machine; leave --device out to choose one.")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device '{name}' is unknown; give auto, cpu, cuda, cuda:N or mps.") from error


def seeded_latents(seeds, dim_z, truncation=None):
    """Latents (len(seeds), dim_z) ~ N(0, 1); row i depends on seeds[i] alone.

    With `truncation` t > 0 each entry is drawn from N(0, 1) restricted to [-t, t].
    """
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(int(seed))
        if truncation is None:
            rows.append(torch.randn(dim_z, generator=generator))
        else:
            rows.append(torch.nn.init.trunc_normal_(torch.empty(dim_z), a=-truncation, b=truncation,
                                                    generator=generator))
    return torch.stack(rows)


# ------------------------------------------------------------------------------- files that last


def require_writable(path):
    """Raise UserError where `path` cannot be written, before any time is spent on what it is to hold. Its folder is
    made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder has its name")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); make room for it, or give a folder in which you "
                        "may write by --out.") from error


def write_json(path, value):
    """Write `value` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def save_torch(path, value):
    """Write a dict of plain values and tensors, atomically. Raises UserError when the disk refuses."""
    try:
        with replacing(path) as temporary:
            torch.save(value, temporary)
    except (OSError, RuntimeError) as error:
        # torch's zip writer reports a full disk as a RuntimeError
        raise UserError(f"{path} could not be written ({error}); the files saved before it are intact. "
                        "Make room on the disk and run the command again (train.py: with --resume).") from error


def damaged(path):
    """What is wrong with the archive that torch.save wrote at `path`, by its checksums, in words; '' where nothing is.

    A file that is no such archive has no checksums, and passes.
    """
    if not zipfile.is_zipfile(path):
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return "it is compressed, as torch.save never writes it"
            broken = archive.testzip()
            return f"the checksum of {broken} in it is wrong" if broken else ""
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        return f"its archive cannot be read: {error}"


def load_torch(path, advice=""):
    """Read a dict of plain values and tensors onto the CPU; nothing in the file is executed.

    Raises UserError when the file is missing, truncated, damaged or, with the `advice`, when it holds anything that
    needs unpickling.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    if problem := damaged(path):
        raise UserError(f"{path} is damaged ({problem}); restore it from a copy.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        needs = f" (it names {named[1]})" if named else ""
        raise UserError(f"{path} is not a plain file of tensors{needs}; it is not read, since reading anything else "
                        f"could execute what it holds. {advice}".rstrip()) from error
    except Exception as error:  # torch raises many kinds for a file that ends early
        raise UserError(f"{path} is truncated or no file of torch.save.") from error


def checkpoint_files(run):
    """The checkpoints of a run folder, newest first."""
    return sorted(Path(run).glob("checkpoints/step_*.pt"), reverse=True)


def save_checkpoint(run, state, keep):
    """Write `state` as the checkpoint of state['step'] and delete all but the newest `keep`."""
    save_torch(Path(run) / "checkpoints" / f"step_{state['step']:08d}.pt", state)
    for old in checkpoint_files(run)[keep:]:
        old.unlink()


def load_checkpoint(path):
    """The state dict of a checkpoint file, or of the newest readable checkpoint of a run folder.

    An unreadable newest file is named on stderr and the one before it is taken.
    """
    path = Path(path)
    files = [path] if path.is_file() else checkpoint_files(path)
    if not files:
        raise UserError(f"no checkpoint at {path}: give a checkpoint file, or a run folder that holds checkpoints/.")
    for file in files:
        try:
            state = load_torch(file)
        except UserError as error:
            if file is files[-1]:
                raise
            print(f"warning: {error} Falling back to the checkpoint before it.", file=sys.stderr)
            continue
        if not isinstance(state, dict) or not {"config", "dataset"} <= state.keys():
            raise UserError(f"{file} is not a checkpoint of train.py; to start from the weights of another "
                            "project's G or D use --init_G and --init_D.")
        return state


# what batch systems and closing terminals send, besides Ctrl-C
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@contextmanager
def stop_on_signal():
    """Yield a function that tells whether one of STOPPING has arrived; a second Ctrl-C interrupts."""
    received = []

    def note(number, _frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in STOPPING}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# --------------------------------------------------------------------------------- image grids


def to_uint8(images):
    """Images in [-1, 1] (any shape) -> uint8 in [0, 255]."""
    return images.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def to_unit_range(images):
    """uint8 images -> float32 in [-1, 1], the range that every module speaks."""
    return images.float().div_(127.5).sub_(1)


def grid_image(rows, labels, marked=(), caption=None, heads=()):
    """Images as one picture, a PIL image: one labelled row each.

    rows: float images in [-1, 1], (rows, columns, C, H, W). labels: a string a row.
    marked: the row numbers drawn with a red frame and a red label (the unseen classes). heads: a short string a column.
    """
    pixels = to_uint8(rows).cpu()
    n_rows, n_columns, channels, height, width = pixels.shape
    scale = max(1, 64 // height)
    cell_h, cell_w, gap, margin = height * scale, width * scale, 2, 8
    font = ImageFont.load_default(size=16)
    left = margin + int(max(font.getlength(text) for text in labels)) + margin
    above = margin if caption is None else margin + 24
    top = above + 14 * bool(heads)
    canvas = Image.new("RGB", (left + n_columns * (cell_w + gap) + margin, top + n_rows * (cell_h + gap + 4) + margin),
                       "white")
    draw = ImageDraw.Draw(canvas)
    if caption is not None:
        draw.text((margin, margin), caption, "black", font=font)
    for c, head in enumerate(heads):
        draw.text((left + c * (cell_w + gap) + cell_w / 2, above), head, "black", ImageFont.load_default(size=10), "ma")
    for r in range(n_rows):
        y = top + r * (cell_h + gap + 4) + 2
        colour = "#c81e1e" if r in marked else "black"
        draw.text((margin, y + cell_h // 2), labels[r], colour, font=font, anchor="lm")
        if r in marked:
            draw.rectangle((left - 4, y - 3, left + n_columns * (cell_w + gap) + 1, y + cell_h + 2),
                           outline=colour, width=2)
        for c in range(n_columns):
            image = pixels[r, c].permute(1, 2, 0).numpy()  # (H, W, C)
            image = Image.fromarray(np.repeat(image, 3, axis=2) if channels == 1 else image)
            canvas.paste(image.resize((cell_w, cell_h), Image.NEAREST), (left + c * (cell_w + gap), y))
    return canvas


def save_grid(path, *grid, **options):
    """Write what `grid_image` makes as a PNG, atomically."""
    with replacing(path) as temporary:
        grid_image(*grid, **options).save(temporary, format="PNG")
