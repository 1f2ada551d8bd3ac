#!/usr/bin/env python3
"""Draw images from one checkpoint; nothing else of the run is needed.

    python sample.py --checkpoint RUN                               a grid, one row a class
    python sample.py --checkpoint RUN --mode class --classes horse  many images of one class
    python sample.py --checkpoint RUN --mode z --classes horse      walks between latents
    python sample.py --checkpoint RUN --mode y --classes deer horse walks between two classes
    python sample.py --checkpoint RUN --mode npz --num 5000         arrays of 5000 images a class: x uint8 (N, C, H, W),
                                                                    y labels, classes their names, seed of each
    python sample.py --checkpoint RUN --mode features               of --method features: other images' features, and
                                                                    walks along --components at --quantiles of them
    python sample.py --checkpoint RUN --sound                       spectrograms with axes, and a wav file of each

RUN is a run folder (its newest checkpoint) or a checkpoint file. Image i depends on seed --seed + i
alone, whatever the batch size.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from BigGAN import load_weights, make_generator
from classifiers.frozen import fingerprint
from classifiers.loading import probed_classifier
from classifiers.strangers import from_a_file
from config import Config, Parser, add_flags, make_config
from datasets.sources import Decoder, image_files, to_array
from machine import told_of_memory
from methods import load_run
from sampler import make_sampler
from sound import save_spectrograms, save_wav, to_waves
from utils import (
    DATASETS,
    UserError,
    choose_device,
    is_sound,
    replacing,
    require_writable,
    run_main,
    save_grid,
    to_uint8,
    to_unit_range,
)

COLUMNS = 100  # of a picture, at most
TRUSTED = ("C_arch", "C_trust")
NETWORK_FLAGS = ("init_G", "dataset", "G_ch", "dim_z", "shared_dim", "hier", "G_attn")


def row_label(sampler, y):
    """The name of class y, with its label where they differ, and whether it was unseen."""
    name = sampler.classes[y] if sampler.classes[y] == str(y) else f"{y} {sampler.classes[y]}"
    return f"{name} (unseen)" if y in sampler.unseen else name


def class_grid(sampler, labels=None, columns=10, seed=0):
    """(rows, labels, marked) of utils.grid_image: a row a class, the unseen ones marked; the same latents in every row.
    """
    labels = sampler.drawn if labels is None else labels
    rows = torch.stack([sampler.class_images(y, range(seed, seed + columns)) for y in labels])
    marked = [r for r, y in enumerate(labels) if y in sampler.unseen]
    return rows, [row_label(sampler, y) for y in labels], marked


def save_one_class(path, sampler, label, columns, seed):
    """Write columns x columns images of one class."""
    images = sampler.class_images(label, range(seed, seed + columns**2))
    names = [f"seed {seed + r * columns}" for r in range(columns)]
    save_grid(path, images.unflatten(0, (columns, columns)), names, caption=row_label(sampler, label))


def save_sounds(path, sampler, labels, columns, seed):
    """Write spectrograms with axes, a row a class, and below the folder `path` without its suffix what each of them
    sounds like: <class>_<seed>.wav."""
    rows, names, marked = class_grid(sampler, labels, columns, seed)
    save_spectrograms(path, rows, names, marked)
    for row, y in zip(rows, labels, strict=True):
        for i, samples in enumerate(to_waves(row)):
            save_wav(path.with_suffix("") / f"{sampler.classes[y].replace('/', '-')}_{seed + i}.wav", samples)


def save_latent_walk(path, sampler, labels, columns, seed):
    """Write four walks a class between two latents each, on the sphere that latents lie near."""
    z = sampler.latents(range(seed, seed + 8)).unflatten(0, (4, 2))  # (walks, ends, dim_z)
    start, end = z[:, 0, None], z[:, 1, None]  # (4, 1, dim_z)
    angle = torch.acos(torch.cosine_similarity(start, end, dim=2).clamp(-1, 1))[..., None]  # (4, 1, 1)
    t = torch.linspace(0, 1, columns)[None, :, None]
    walk = (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)  # (4, columns, dim_z)
    walk = walk.flatten(0, 1)
    rows = [sampler.images(walk, torch.full((len(walk),), y)).unflatten(0, (4, columns)) for y in labels]
    save_grid(path, torch.cat(rows), [row_label(sampler, y) for y in labels for _ in range(4)])


def save_class_walk(path, sampler, labels, columns, seed):
    """Write walks between the embeddings of two classes, a row a latent."""
    start, end = sampler.G.shared(torch.tensor(labels, device=sampler.device)).cpu()
    embeddings = torch.lerp(start, end, torch.linspace(0, 1, columns)[:, None])  # (columns, shared_dim)
    z = sampler.latents(range(seed, seed + 8))
    images = sampler.images(z.repeat_interleave(columns, 0), embeddings.repeat(8, 1))
    caption = " to ".join(row_label(sampler, y) for y in labels)
    save_grid(path, images.unflatten(0, (8, columns)), [f"seed {seed + r}" for r in range(8)], caption=caption)


def save_feature_rows(path, sampler, faces, components, quantiles, seed):
    """Write a row an image: itself, and what FeatureSampler.rows draws of it; the first row shows whose features."""
    images, others, walks = sampler.rows(faces, components, quantiles, seed)
    blank = torch.ones_like(sampler.faces[:1])
    first = torch.cat((blank, blank, sampler.faces[others], blank.expand(len(walks), -1, -1, -1)))
    rows = torch.cat((first[None], torch.cat((faces[0][:, None], images), 1)))
    heads = ["image", "own", *(sampler.classes[y][:8] for y in sampler.drawn),
             *(f"c{c}: {q:.0%}" for c in components for q in quantiles)]
    save_grid(path, rows, ["asked of", *faces[3]], heads=heads)


def given_faces(folder, sampler, state, device, trusted):
    """The images of a folder, as FeatureSampler.kept_faces gives its own.

    Their features are asked of the classifier that the run was made with; trusted: what the command line says of it.
    Raises UserError where there are none, or where that classifier is another.
    """
    _, channels, side = sampler.faces.shape[:3]
    files = image_files(Path(folder))
    if not files:
        raise UserError(f"--faces {folder} holds no image; give a folder of image files.")
    settings = from_a_file(state["config"], trusted, state["config"]["C_path"])
    C = probed_classifier(Config.from_dict(settings | trusted), sampler.classes, device)
    if fingerprint(C.model) != sampler.classifier_sha256:
        raise UserError(f"the classifier {state['config']['C_path']} is not the one that this run was made with, and "
                        "its features mean other things; restore it.")
    paths = [f"{folder}/{file}" for file in files]
    decoder = Decoder(channels, paths)
    images = [decoder.load(path, path) for path in paths]
    other = {f"{image.width}x{image.height}" for image in images} - {f"{side}x{side}"}
    if other:
        print(f"faces of {', '.join(sorted(other))} pixels are cropped to a square and resized to {side}x{side}")
    x = to_unit_range(torch.stack([torch.from_numpy(to_array(image, side).copy()) for image in images]))
    with torch.no_grad():
        f, logits = sampler.space.to(device).of(C, x.to(device))
    return x, f.cpu(), logits.argmax(1).cpu(), files


def save_npz(path, sampler, labels, num, seed):
    """Write x (N, C, H, W) uint8, y (N,) labels, classes, the names that these stand for, and seed (N,) for `num`
    images a class; image i has seed + i."""
    x, y = [], []
    for k, label in enumerate(tqdm(labels, unit="class")):
        first = seed + k * num
        x.append(to_uint8(sampler.class_images(label, range(first, first + num))).numpy())
        y.append(np.full(num, label))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, x=np.concatenate(x), y=np.concatenate(y), classes=np.array(sampler.classes),
                            seed=seed + np.arange(num * len(labels)))


def released_weights(flags):
    """A checkpoint-like state around the bare weights in --init_G. Raises UserError where they do not fit."""
    config = make_config(**flags, oracle=True)
    spec = DATASETS[config.dataset]
    G = make_generator(config, spec.resolution, spec.channels, len(spec.classes))
    load_weights(G, config.init_G)
    return {"config": config.as_dict(), "step": 0, "G_ema": G.state_dict(),
            "dataset": {"resolution": spec.resolution, "channels": spec.channels, "classes": list(spec.classes)},
            "draws": {"title": config.init_G, "fed": list(range(len(spec.classes))), "conditional": True,
                      "new_class": list(config.new_class), "oracle": True}}


@told_of_memory("--batch_size")
def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="run folder or checkpoint file of train.py")
    parser.add_argument("--mode", choices=("grid", "class", "z", "y", "npz", "features"), default="grid",
                        help="what to draw")
    parser.add_argument("--classes", nargs="+", default=[], help="labels or names (default: all, or the unseen ones)")
    parser.add_argument("--columns", type=int, default=10, help="images in a row, or rows of features (default: 10)")
    parser.add_argument("--num", type=int, default=1000, help="images a class in the npz (default: 1000)")
    parser.add_argument("--faces", type=Path, help="folder of images to give other features (default: kept ones)")
    parser.add_argument("--components", type=int, nargs="+",
                        help="principal components to walk along, from 0 (default: the first three)")
    parser.add_argument("--quantiles", type=float, nargs="+", default=[0.05, 0.5, 0.95],
                        help="of the training images, where a walk stops (default: 0.05 0.5 0.95)")
    parser.add_argument("--truncation", type=float, help="bound of the latent's entries (default: none)")
    parser.add_argument("--seed", type=int, default=0, help="seed of image 0; image i has seed + i (default: 0)")
    parser.add_argument("--batch_size", type=int, default=100, help="images at a time (default: 100)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--sound", action="store_true", help="with --mode grid, of spectrograms: write their sound too")
    parser.add_argument("--out", type=Path, help="file or folder to write (default: samples_<mode>.png or .npz in RUN)")
    add_flags(parser.add_argument_group("--faces: what may be run of the classifier's file"), names=TRUSTED)
    group = parser.add_argument_group("weights of BigGAN-PyTorch or ProbeGAN, instead of --checkpoint")
    add_flags(group, names=NETWORK_FLAGS)
    flags = vars(parser.parse_args())
    trusted = {name: flags.pop(name) for name in TRUSTED if name in flags}
    network_flags = {name: flags.pop(name) for name in NETWORK_FLAGS if name in flags}
    checkpoint, mode, columns, seed = flags["checkpoint"], flags["mode"], flags["columns"], flags["seed"]
    if (checkpoint is None) == ("init_G" not in network_flags):
        raise UserError("give either --checkpoint RUN, or --init_G G_ema.pth with the flags of its network.")
    for name in ("columns", "num", "batch_size"):
        if flags[name] < 1:
            raise UserError(f"--{name} is {flags[name]}; it must be at least 1.")
    if columns > COLUMNS:
        raise UserError(f"--columns is {columns}; a picture has {COLUMNS} at most. Give --mode npz for more images.")
    if not 0 <= seed < 2**62:
        raise UserError(f"--seed is {seed}; it must be at least 0 and less than {2**62}.")
    if flags["truncation"] is not None and not flags["truncation"] > 0:
        raise UserError(f"--truncation is {flags['truncation']}; it must be positive, such as 0.5, or left out.")
    state = released_weights(network_flags) if checkpoint is None else load_run(checkpoint)
    sampler = make_sampler(state, choose_device(flags["device"]), flags["truncation"], flags["batch_size"])
    labels = [sampler.label(name) for name in flags["classes"]]
    if set(labels) - set(sampler.drawn):
        drawn = ", ".join(sampler.classes[y] for y in sampler.drawn)
        raise UserError(f"this checkpoint of --method {state['config']['method']} draws {drawn} alone; leave --classes "
                        "out.")
    if ("features" in sampler.draws) != (mode == "features") and mode in ("z", "y", "features"):
        raise UserError(f"--mode {mode} does not fit what --method {state['config']['method']} draws from; "
                        + ("--mode features walks through its features." if "features" in sampler.draws else
                           "the mode features is that of --method features."))
    if not sampler.draws["conditional"] and mode in ("z", "y"):
        raise UserError(f"--mode {mode} walks through a generator of classes, and --method "
                        f"{state['config']['method']} has none; the modes grid, class and npz draw what it made.")

    if flags["sound"] and not is_sound(state["config"]["dataset"]):
        raise UserError(f"--sound plays spectrograms, and the images of data set {state['config']['dataset']} are "
                        "none; leave it out.")
    if flags["sound"] and mode != "grid":
        raise UserError(f"--sound writes the sound of a grid; leave out --mode {mode}, and name classes with "
                        "--classes.")

    home = Path(".") if checkpoint is None else checkpoint if checkpoint.is_dir() else checkpoint.parent
    name = Path("samples.npz" if mode == "npz" else f"samples_{mode}.png")
    out = flags["out"] or home
    out = out / name if out.is_dir() else out
    if out.suffix.lower() != name.suffix:
        raise UserError(f"--out {out} is no folder, and --mode {mode} writes a {name.suffix} file; give a name that "
                        "ends so, or a folder.")
    require_writable(out)
    if flags["sound"]:
        save_sounds(out, sampler, labels or sampler.drawn, columns, seed)
    elif mode == "grid":
        save_grid(out, *class_grid(sampler, labels or None, columns, seed))
    elif mode == "class":
        if len(labels or sampler.unseen) != 1:
            raise UserError("--mode class draws one class; name it with --classes.")
        save_one_class(out, sampler, (labels or sampler.unseen)[0], columns, seed)
    elif mode == "z":
        save_latent_walk(out, sampler, labels or sampler.unseen or sampler.drawn, columns, seed)
    elif mode == "y":
        if len(labels) != 2:
            raise UserError("--mode y walks between two classes; name both with --classes.")
        save_class_walk(out, sampler, labels, columns, seed)
    elif mode == "features":
        faces = sampler.kept_faces(columns, seed) if flags["faces"] is None else \
            given_faces(flags["faces"], sampler, state, sampler.device, trusted)
        components = flags["components"] or range(min(3, len(sampler.space)))
        save_feature_rows(out, sampler, faces, components, flags["quantiles"], seed)
    else:
        save_npz(out, sampler, labels or sampler.drawn, flags["num"], seed)
    print(out)


if __name__ == "__main__":
    run_main(main)
