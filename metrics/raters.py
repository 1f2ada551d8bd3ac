#!/usr/bin/env python3
"""People as judges, the paper's figure 6: a page that asks what each image shows, and the score of the answers.

    python -m metrics.raters make --run RUN --rivals NAIVE=RUN2 --out page.html
    python -m metrics.raters score answers_*.csv --key page.key.json

`make` writes one page that works without a network, and beside it the key that says whose each image is. Send the
page alone. It shows images of every method, and real ones as controls, in another order to each rater.
"""

import base64
import csv
import hashlib
import io
import sys
from pathlib import Path

import jinja2
import numpy as np
import torch
from PIL import Image

from config import Config, Parser
from datasets import load_split
from methods import load_run
from metrics.agreement import COLUMNS, HIT_IMAGES, NONE, REAL, key_path, read_answers, read_key, score
from metrics.images import FileImages, RunImages, file_images
from sampler import make_sampler
from sound import to_waves, wav_uri
from utils import (
    DATASETS,
    DatasetSpec,
    UserError,
    choose_device,
    class_label,
    is_sound,
    replacing,
    run_main,
    to_unit_range,
    write_json,
)

TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                               undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


# ------------------------------------------------------------------------------------- making a page


def open_method(path, spec, num, seed, device):
    """The images of a method, as metrics.images has them: of a run or checkpoint, an npz, or <class>/<file>."""
    if path.is_dir() and not (path / "checkpoints").is_dir() or path.suffix == ".npz":
        return file_images(path, spec, (), num)
    state = load_run(path)
    facts = state["dataset"]
    if list(spec.classes) != facts["classes"] or (spec.resolution, spec.channels) != (facts["resolution"],
                                                                                      facts["channels"]):
        raise UserError(f"{path} draws {facts['resolution']} pixels, {facts['channels']} channels of "
                        f"{', '.join(facts['classes'])}; the run draws {spec.resolution} pixels, {spec.channels} "
                        f"channels of {', '.join(spec.classes)}. Raters compare methods on the same data set alone.")
    return RunImages(make_sampler(state, device), spec.resolution, spec.channels, num, seed)


def real_images(spec, dataset, data_root, labels, num, seed):
    """Real test images as controls, drawn at random; the interface of metrics.images."""
    images, targets = load_split(dataset, data_root, "test")
    registered = DATASETS[dataset]
    if (registered.classes, registered.resolution, registered.channels) != (spec.classes, spec.resolution,
                                                                             spec.channels):
        raise UserError(f"data set {dataset} is no longer registered as it was when the run was trained; put its entry "
                        "in utils.DATASETS back.")
    generator = np.random.default_rng(seed)
    rows = {label: generator.permutation(np.flatnonzero(targets == label)) for label in labels}
    return FileImages(f"the test split of {dataset}", spec, (), num, rows, lambda chosen: images[chosen])


def png(image):
    """A uint8 (C, H, W) image as PNG bytes."""
    array = np.asarray(image).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def shown(data, audible):
    """What the page shows of an item, the PNG bytes `data`: its picture, and the sound of one that is a spectrogram."""
    item = {"src": "data:image/png;base64," + base64.b64encode(data).decode()}
    if audible:
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data))))[None, None]  # (1, 1, R, R)
        item["sound"] = wav_uri(to_waves(to_unit_range(pixels))[0])
    return item


def collect(methods, labels, num, repeats, seed):
    """The page's items as (PNG bytes, facts) pairs, in an order that tells nothing.

    methods: {name: images as in metrics.images}. labels: the classes to show. repeats: how many items are shown
    twice; a repeat's facts hold the index of the first showing. Raises UserError for a method without these classes.
    """
    items = []
    for name, method in methods.items():
        shown = [label for label in labels if label in method.drawn]
        if not shown:
            raise UserError(f"{name} has no image of {', '.join(method.classes[y] for y in labels)}; name other "
                            "--classes.")
        for label in shown:
            items += [(png(image), {"method": name, "class": method.classes[label], "from": method.seed(label, i)})
                      for i, image in enumerate(method.read(label, 0, num))]
    # the order of the pixels' hashes cannot be undone by a rater who knows this code and the seed
    items.sort(key=lambda item: hashlib.sha256(item[0]).digest())
    again = np.random.default_rng(seed).permutation(len(items))[:repeats]
    return items + [(items[i][0], {**items[i][1], "repeats": int(i)}) for i in again]


def make(flags):
    """Write the page, its key and, if asked for, what MTurk needs."""
    for name, least in (("per_class", 1), ("repeats", 0), ("seed", 0)):
        if getattr(flags, name) < least:
            raise UserError(f"--{name} is {getattr(flags, name)}; it must be at least {least}.")
    if flags.out.suffix != ".html":
        raise UserError(f"--out is {flags.out}; it must end in .html.")
    if (flags.mturk is None) != (flags.base_url is None):
        raise UserError("--mturk FOLDER and --base_url URL go together: MTurk shows images by their URL, so say where "
                        "FOLDER/images will be served.")
    device = choose_device(flags.device)
    state = load_run(flags.run)
    config, facts = Config.from_dict(state["config"]), state["dataset"]
    spec = DatasetSpec(config.dataset, facts["resolution"], facts["channels"], tuple(facts["classes"]))
    audible = is_sound(config.dataset)
    if audible and flags.mturk is not None:
        raise UserError(f"--mturk writes pictures alone, and data set {config.dataset} is to be heard; leave it out.")
    labels = sorted({class_label(spec, name) for name in flags.classes}) or list(range(len(spec.classes)))
    if len(labels) < 2:
        raise UserError("--classes names one class, which raters would soon know to be the answer; name at least two.")
    own_name = state["draws"]["title"]
    rivals = {}
    for rival in flags.rivals:
        name, _, path = rival.partition("=")
        taken = (own_name, REAL, *rivals)
        if not (name and path) or name in taken:
            raise UserError(f"--rivals '{rival}' is not NAME=PATH with a name of its own (taken: {', '.join(taken)}).")
        rivals[name] = Path(path)
    num = flags.per_class
    # what is quickly found wrong comes before the networks are built
    real = real_images(spec, config.dataset, flags.data_root or config.data_root, labels, num, flags.seed)
    rivals = {name: open_method(path, spec, num, flags.seed, device) for name, path in rivals.items()}
    own = RunImages(make_sampler(state, device), spec.resolution, spec.channels, num, flags.seed)
    methods = {own_name: own, **rivals, REAL: real}

    items = collect(methods, labels, num, flags.repeats, flags.seed)
    ids = [f"i{i:04d}" for i in range(len(items))]
    page_id = "p" + hashlib.sha256(b"".join(data for data, _ in items)).hexdigest()[:10]
    owners = {i: {**fact, "repeats": ids[fact["repeats"]]} if "repeats" in fact else fact
             for i, (_, fact) in zip(ids, items, strict=True)}
    key = {"page": page_id, "classes": list(spec.classes), "unseen": [spec.classes[y] for y in config.new_class],
           "methods": list(methods), "run": str(flags.run), "step": state["step"], "per_class": num,
           "seed": flags.seed, "items": owners}
    key_file = key_path(flags.out)
    if key_file.is_file() and read_key(key_file)["page"] != page_id:
        raise UserError(f"{key_file} is the key of another page, whose answers need it; choose another --out, or "
                        "delete it.")
    page = {"id": page_id, "classes": list(spec.classes), "none": NONE, "columns": COLUMNS, "side": spec.resolution,
            "audible": audible,
            "items": [{"id": i, **shown(data, audible)} for i, (data, _) in zip(ids, items, strict=True)]}
    try:
        write_json(key_file, key)
        write_text(flags.out, TEMPLATES.get_template("raters_page.html.j2").render(page=page))
        if flags.mturk is not None:
            write_mturk(flags.mturk, flags.base_url, page_id, spec.classes,
                        {i: data for i, (data, _) in zip(ids, items, strict=True)})
    except OSError as error:
        raise UserError(f"{error.filename or flags.out} could not be written ({error.strerror}); choose another "
                        "place.") from error
    print(f"{flags.out}: {len(items)} images of {', '.join(methods)}; {len(labels)} classes, {num} images "
          f"a method and class.\nSend raters this file alone; {key_file} says whose each image is and scores answers.")


def write_text(path, text):
    """Write text, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_mturk(folder, base_url, page_id, classes, images):
    """Write what a batch of Mechanical Turk needs: batch.csv, a row a task; hit.html, its layout; images/.

    images: {item id: PNG bytes}. The last task is filled up with images of the first.
    """
    for i, data in images.items():
        with replacing(folder / "images" / f"{page_id}_{i}.png") as temporary:
            temporary.write_bytes(data)
    ids = list(images)
    ids += (ids * HIT_IMAGES)[:-len(ids) % HIT_IMAGES]
    text = io.StringIO()
    writer = csv.writer(text)
    numbers = range(1, HIT_IMAGES + 1)
    writer.writerow(["page", *(f"item_{k}" for k in numbers), *(f"image_{k}" for k in numbers)])
    for first in range(0, len(ids), HIT_IMAGES):
        task = ids[first:first + HIT_IMAGES]
        writer.writerow([page_id, *task, *(f"{base_url.rstrip('/')}/{page_id}_{i}.png" for i in task)])
    write_text(folder / "batch.csv", text.getvalue())
    write_text(folder / "hit.html", TEMPLATES.get_template("raters_hit.html.j2").render(
        numbers=numbers, answers=[*classes, NONE]))


# ----------------------------------------------------------------------------------------- scoring


def share(value):
    """'80.0% (49.0% to 94.3%) of 10' for a rate, with the wider of its two intervals; few raters make the one over
    raters too narrow."""
    if value is None:
        return "-"
    low = min(v for v in (value["low"], value["raters_low"]) if v is not None)
    high = max(v for v in (value["high"], value["raters_high"]) if v is not None)
    return f"{value['rate']:6.1%} ({low:.1%} to {high:.1%}) of {value['of']}"


def table(result):
    """The printed lines of a score."""
    kept, everyone = result["kept"], result["everyone"]
    yield f"page {result['page']}: recognised as the class drawn; unseen: {', '.join(result['unseen'])}"
    yield "95 % intervals: Wilson's, or that of a bootstrap over raters where it is wider"
    yield (f"{'method':12} {'class':14} {str(kept['raters']) + ' careful raters':40} "
           f"all {everyone['raters']} raters")
    for method, groups in everyone["recognised"].items():
        careful = kept["recognised"][method]
        for name in ("unseen", "seen"):
            if name in groups:
                yield f"{method:12} {name:14} {share(careful.get(name)):40} {share(groups[name])}"
        for name, value in groups["per_class"].items():
            yield f"{method:12} {'  ' + name:14} {share(careful['per_class'].get(name)):40} {share(value)}"
    for method, alpha in everyone["alpha"].items():
        both = ["undefined" if a is None else f"{a:.3f}" for a in (kept["alpha"][method], alpha)]
        yield f"{'alpha':12} {method:14} {both[0]:40} {both[1]}"
    for rater in result["careless"]:
        facts = result["raters"][rater]["controls"]
        yield (f"careless: {rater} named {facts['rate']:.0%} of {facts['of']} real images, less than "
               f"{result['min_control']:.0%}; left out on the left")
    if kept["raters"] == 0:
        yield "warning: every rater is careless by --min_control; there is nothing on the left."
    elif kept["raters"] == 1:
        yield "note: one rater; the intervals take his answers as independent, and agreement is undefined."


def score_command(flags):
    """Print the scores of all answers and write them as JSON."""
    if not 0 <= flags.min_control <= 1:
        raise UserError(f"--min_control is {flags.min_control}; it must be a share from 0 to 1.")
    key = read_key(flags.key)
    result = score(read_answers(flags.answers, key), key, flags.min_control)
    out = flags.out or flags.key.with_name(flags.key.name.removesuffix(".key.json") + ".scores.json")
    try:
        write_json(out, result)
    except OSError as error:
        raise UserError(f"{out} could not be written ({error.strerror}); choose another --out.") from error
    print(*table(result), f"written to {out}", sep="\n")


def main(arguments=None):
    """The command line: `make` or `score`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    parser = Parser(prog=f"python -m metrics.raters {command}", description=__doc__)
    if command == "make":
        parser.add_argument("--run", type=Path, required=True, help="run folder or checkpoint file of train.py")
        parser.add_argument("--rivals", nargs="+", default=[], metavar="NAME=PATH",
                            help="other methods: a run, an npz of sample.py, or a folder <class>/<file>")
        parser.add_argument("--classes", nargs="+", default=[],
                            help="classes to show, by label or name (default: all, so that none is expected)")
        parser.add_argument("--per_class", type=int, default=6, help="images a method and class (default: 6)")
        parser.add_argument("--repeats", type=int, default=6, help="images shown twice, for consistency (default: 6)")
        parser.add_argument("--seed", type=int, default=20_000, help="seed of the first image (default: 20000)")
        parser.add_argument("--data_root", help="where the real images are (default: the run's)")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
        parser.add_argument("--out", type=Path, required=True, help="page to write; its key is written beside it")
        parser.add_argument("--mturk", type=Path, metavar="FOLDER", help="write a batch for Mechanical Turk here too")
        parser.add_argument("--base_url", metavar="URL", help="where FOLDER/images will be served for Mechanical Turk")
        make(parser.parse_args(rest))
    elif command == "score":
        parser.add_argument("answers", type=Path, nargs="+", help="CSV files of raters, or MTurk's results")
        parser.add_argument("--key", type=Path, required=True, help="page.key.json, written beside the page")
        parser.add_argument("--min_control", type=float, default=0.7,
                            help="raters who name fewer of the real images are left out (default: 0.7)")
        parser.add_argument("--out", type=Path, help="JSON to write (default: page.scores.json beside the key)")
        score_command(parser.parse_args(rest))
    elif command in ("-h", "--help"):
        print(__doc__)
    else:
        raise UserError(f"'{command}' is not a command; give make or score, each with --help.")


if __name__ == "__main__":
    run_main(main)
