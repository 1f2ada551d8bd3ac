"""What the report of a measurement shows: samples with what the classifiers say, neighbours, the rest of the run."""

import torch

from datasets import load_split
from files import read_lines
from metrics.registry import METRICS
from metrics.sound import some_of
from sound import coloured, to_waves, wav_uri
from utils import is_sound, to_uint8, to_unit_range


def said_of(probabilities, names):
    """{'class', 'confidence'} of the first choice of each row (n, K)."""
    best = probabilities.argmax(1)
    return [{"class": names[k], "confidence": float(row[k])} for k, row in zip(best, probabilities, strict=True)]


def as_pixels(image):
    """uint8 (C, H, W) -> (H, W) or (H, W, 3), as Pillow takes it."""
    return (image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy()


def played(images):
    """What a page shows and plays of spectrograms, uint8 (n, 1, R, R): n dicts of pixels and sound."""
    return [{"pixels": coloured(image[0].numpy()), "sound": wav_uri(wave)}
            for image, wave in zip(images, to_waves(to_unit_range(images)), strict=True)]


def shown_samples(measured, per_class=(30, 10), real=8):
    """The first images of each class with what the classifiers say of each: `samples` of write_report.

    per_class: how many of an unseen class, and of a seen one. Spectrograms come with their sound, and `real` training
    images of each class beside them, so that one hears what is lost on the way back from any image.
    """
    audible = is_sound(measured.dataset)
    images, groups = measured.images, []
    probed_names = dict(zip(measured.probed_labels, measured.classes, strict=True))
    for label in images.drawn:
        unseen = label in images.new_class
        pixels = measured.pixels[label][:per_class[0] if unseen else per_class[1]]
        rows, shown = measured.rows(label), len(pixels)
        judged = said_of(measured.judged[rows][:shown], measured.classes)
        probed = [None] * shown
        if measured.accepted is not None:
            names = [probed_names.get(k, f"label {k}") for k in range(measured.accepted.shape[1])]
            probed = said_of(measured.accepted[rows][:shown], names)
        shots = played(pixels) if audible else [{"pixels": as_pixels(image)} for image in pixels]
        groups.append({"class": measured.classes[label], "unseen": unseen, "images": [
            {**shot, "seed": images.seed(label, i), "probed": probed[i], "evaluator": judged[i]}
            for i, shot in enumerate(shots)]})
        if audible:
            pixels = to_uint8(some_of(*measured.training_set, label, real, measured.generator()))
            groups.append({"class": measured.classes[label], "unseen": unseen, "real": True, "images": [
                {**shot, "seed": None, "probed": None, "evaluator": None} for shot in played(pixels)]})
    return groups


def shown_neighbours(measured, count=10):
    """The nearest seen training images of the first images of each unseen class: `nearest` of write_report."""
    shown, (real, real_labels) = [], measured.training_set
    for label in measured.images.new_class:
        near = {}
        for space in ("features", "pixels"):
            distances, places = measured.nearest_seen(space, label, count)
            near[space] = [{"pixels": as_pixels(real[i]), "class": measured.classes[real_labels[i]],
                            "distance": distance} for distance, i in zip(distances.tolist(), places, strict=True)]
        shown += [{"class": measured.classes[label], "pixels": as_pixels(image), "seed": measured.images.seed(label, i),
                   "feature_neighbour": near["features"][i], "pixel_neighbour": near["pixels"][i]}
                  for i, image in enumerate(measured.pixels[label][:count])]
    return shown


@torch.no_grad()
def shown_walks(measured, count=4, quantiles=(0.05, 0.5, 0.95)):
    """Kept images drawn with other features, where the images are drawn from features: `walks` of write_report."""
    sampler = getattr(measured.images, "sampler", None)
    if sampler is None or "features" not in sampler.draws or measured.probed is None:
        return []
    faces = sampler.kept_faces(count, seed=0)
    images, others, walks = sampler.rows(faces, range(min(3, len(sampler.space))), quantiles, seed=0)
    shown = []
    for x, row, name in zip(faces[0], images, faces[3], strict=True):
        found, _ = sampler.space.to(measured.device).of(measured.probed, row.to(measured.device))
        coordinates = found.cpu() @ sampler.space.axes
        cells = [{"pixels": as_pixels(to_uint8(x)), "asked": "the image itself", "value": None, "obtained": None}]
        titles = ["its own features", *(f"features of a {measured.classes[y]}" for y in sampler.drawn)]
        cells += [{"pixels": as_pixels(to_uint8(image)), "asked": title, "value": None, "obtained": None}
                  for title, image in zip(titles, row, strict=False)]
        moved = zip(walks, row[len(titles):], coordinates[len(titles):], strict=True)
        cells += [{"pixels": as_pixels(to_uint8(image)), "asked": f"component {c}", "value": value.item(),
                   "obtained": along[c].item()} for (c, value), image, along in moved]
        shown.append({"class": name, "images": cells})
    return shown


def shown_suspects(measured, audit, count=30):
    """The images that an audit suspects, with what they resemble: `suspects` of write_report."""
    copies, mistaken = audit.get("near_copies") or {}, audit.get("mistaken") or {}
    fate = "left out" if mistaken.get("dropped") else "used"
    kinds = [("Near copies, left out", copies.get("removed", ())),
             ("Less near to a left-out image, used", copies.get("suspects", ())),
             (f"Taken for {', '.join(audit.get('unseen_classes', ()))} by a classifier, {fate}",
              mistaken.get("suspects", ()))]
    splits = {"train": measured.training_set[0]} if any(found for _, found in kinds) else {}
    if any(entry.get("like_split") == "test" for _, found in kinds for entry in found[:count]):
        splits["test"] = load_split(measured.dataset, measured.data_root, "test")[0]
    groups = []
    for title, found in kinds:
        images = [{"pixels": as_pixels(splits["train"][entry["index"]]), "class": measured.classes[entry["label"]],
                   "name": entry["image"], "like": as_pixels(splits[entry["like_split"]][entry["like_index"]])
                   if "like" in entry else None, "like_name": entry.get("like", ""),
                   "said": {"correlation": entry["correlation"]} if "like" in entry else entry["probability"]}
                  for entry in found[:count]]
        if images:
            groups.append({"title": title, "images": images})
    return groups


def report_of(measured, records, state, home, selection):
    """The dict that metrics.report.write_report takes. state: the checkpoint, {} for images made elsewhere."""
    unseen = [measured.classes[label] for label in measured.images.new_class]
    recognised = [record for record in records if record["metric"].startswith("recognition@")]
    taught = read_lines(home / "teachers.jsonl")
    warnings = [f"Step {line.get('step')}: {warning}" for line in [*read_lines(home / "collapse.jsonl"), *taught]
                for warning in line.get("warnings", ())]
    return {"run": home.name, "step": measured.images.step, "settings": state.get("config", {}),
            "audit": state.get("audit", {}), "records": records,
            "log": read_lines(home / "log.jsonl") + taught if state else [],
            "samples": shown_samples(measured), "walks": shown_walks(measured),
            "nearest": shown_neighbours(measured), "suspects": shown_suspects(measured, state.get("audit", {})),
            "confusion": {record["class"]: record["confusion"] for record in recognised if record["class"] in unseen},
            "warnings": warnings + list(dict.fromkeys(r["warning"] for r in records if r["warning"])),
            "meanings": {name: metric.description for metric in METRICS.values()
                         for name in (metric.name, metric.fid_name, *metric.parts)},
            "selection": selection}
