"""The report of one run: a single report.html that opens from a file, needs no network and prints.

`write_report(path, report)` takes a plain dict. Keys marked (optional) may be missing; a list or dict that is
empty leaves its section out.

    run          str, the run's name
    step         int, the checkpoint's step; None where the images were made elsewhere
    settings     dict, config.json: name -> number, str, bool or list
    audit        dict as in audit.json (statement, oracle, dataset, classes, unseen_classes, images_per_class,
                 images_used, sha256, unseen_images_left_out, duplicates_removed: list); {} where the images were
                 made elsewhere
    records      list of result records of this checkpoint, lines of results.jsonl: metric ("name" or
                 "name@features"), value, low, high (None: no interval), class (str or None), n, step, first_seed,
                 warning; optionally selection (how the checkpoint was chosen, in words), real (float: the same figure
                 of real images) and, with class None, group (what was measured together, in words). The last record
                 of each metric, class and group is shown. The verdict reads those of the unseen classes named
                 "recognition" (share that the evaluator recognises), "activation" (probed classifier's mean p(y*))
                 and "adversarial_gap" (optionally with accepted, the probed classifier's share), each with or without
                 "@features"
    log          list of rows of log.jsonl: {"step": int, name: number, ...}; entries that are not numbers are skipped
    samples      list, a dict a class (unseen ones are put first): {"class": str, "unseen": bool, "images": list of
                 {"pixels": uint8 (H, W) or (H, W, 3), "seed": int, "probed": said, "evaluator": said}}, where
                 said = {"class": str, "confidence": float in [0, 1]} is the classifier's first choice, or None;
                 optionally sound, the data URI of what an image sounds like, and of a group real, True where its images
                 are real ones to compare with, which have no seed
    nearest      list, a dict an unseen sample: {"class": str, "pixels": as above, "seed": int,
                 "feature_neighbour": near, "pixel_neighbour": near}, where
                 near = {"pixels": as above, "class": str, "distance": float} is the nearest seen training image; a
                 distance of 1 is the typical one between neighbouring training images
    walks        (optional) list, a dict an image drawn with other features: {"class": str, "images": list of {"pixels":
                 as above, "asked": str, "value": float, "obtained": float}}: the coordinate asked for and the one that
                 the probed classifier finds, both None where no single one was
    confusion    dict, unseen class -> {class name: share in [0, 1] that the evaluator takes for that class}, with
                 every class that the evaluator knows, those of share 0 too
    suspects     (optional) list, a dict a kind of image that the audit names: {"title": str, "images": list of
                 {"pixels": as above, "class": str, "name": str, "like": pixels or None, "like_name": str,
                 "said": {word: float}}}, where like is the left-out image that it resembles
    warnings     list of sentences: collapse watch, too few images
    meanings     (optional) dict, metric name without "@features" and without the number of images -> a sentence that
                 says what it measures and whether lower or higher is better; those of the records are shown
    selection    (optional) {"metric": str, "target_free": {"step": int, "value": float},
                 "oracle": {"step": int, "value": float}}: the value of `metric` at the checkpoint chosen without
                 and with real images of the unseen class
    not_proved   (optional) list of sentences in place of NOT_PROVED
"""

import base64
import io
import math
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from metrics.variety import WORDS, figure, kind, variety
from utils import UserError, replacing

NOT_PROVED = (
    "The evaluator is itself a classifier. Where it was trained on the same images as the probed one it may share "
    "its habits, and what it recognises a person may not. Look at the pictures.",
    "A feature that is missing from the pictures may still be used by the probed classifier: absence proves nothing.",
    "An interval covers the choice of images alone. Another training seed is another generator; repeat the run before "
    "you believe a difference.",
    "High recognition does not show variety. A generator that repeats one good image is recognised too.",
    "The audit finds exact copies of left-out images, and near ones at the rates that it gives. Rotated, strongly "
    "cropped or redrawn copies, and unseen objects within images of other classes, are not found.",
    "Figures in an evaluator's features compare runs measured with that evaluator. None is an FID of the literature.",
)

# title, unit of the y axis, {name in log.jsonl: name in the legend}; names of other charts are their own title
CHARTS = (
    ("Fakes that the probed classifier accepts", "share", {"C_accepts_seen": "seen", "C_accepts_unseen": "unseen"}),
    ("Classifier's loss on fakes, eq. (4)", "nats", {"G_class": "generator"}),
    ("Unconditional head, eq. (3)", "loss", {"D_wasserstein": "discriminator", "G_wasserstein": "generator"}),
    ("Conditional head, eq. (2)", "hinge loss", {"D_hinge_real": "D, real", "D_hinge_fake": "D, fake",
                                                 "G_hinge": "generator"}),
    ("Gradient penalty, eq. (3)", "unweighted", {"D_penalty": "discriminator"}),
    ("Size of the unconditional output", "mean square", {"D_reg": "discriminator"}),
    ("Pull at an image of a seen class", "gradient norm", {
        "pull_seen_G_hinge": "D_c", "pull_seen_G_wasserstein": "D_u", "pull_seen_G_class": "classifier"}),
    ("Pull at an image of the unseen class", "gradient norm", {
        "pull_unseen_G_wasserstein": "D_u", "pull_unseen_G_class": "classifier"}),
    ("Pull of the spread term", "gradient norm", {"pull_seen_G_spread": "seen", "pull_unseen_G_spread": "unseen"}),
    ("What D tells apart (chance is 0.5)", "share", {
        "D_c_right": "D_c", "D_u_seen": "D_u, seen", "D_u_unseen": "D_u, unseen"}),
    ("Gap of D_u over its spread", "deviations", {"D_u_gap_seen": "seen", "D_u_gap_unseen": "unseen"}),
    ("What a class lacks of the real spread", "mean square", {"G_spread": "generator"}),
    ("Speed", "steps a second", {"steps_per_second": "training"}),
)
MOST_POINTS = 100  # of a curve; a longer one is drawn as means, in a band of the extremes
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 210, 58, 12, 28, 36  # of a chart, in its own units


def percent(share, digits=1):
    """'99.7 %' for 0.997, with a space that does not break."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%".replace("-", "\N{MINUS SIGN}")


def css(share):
    """'99.7%' for 0.997, a length of a style sheet."""
    return f"{100 * share:.4g}%"


def number(value):
    """Four significant digits, thousands set apart; 'not defined' for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return "not defined"
    size = abs(value)
    if size >= 1000 or value == 0:
        text = f"{value:,.0f}"
    elif size >= 0.01:
        text = f"{value:.{3 - math.floor(math.log10(size)) if size >= 1 else 4}f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def png_uri(pixels):
    """The data URI of uint8 pixels (H, W) or (H, W, 3) as a PNG of the same size."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# -------------------------------------------------------------------------------------------- curves


def ticks(low, high, most=5):
    """At most `most` + 1 round numbers, a step of 1, 2 or 5 times a power of ten apart, that enclose [low, high]."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def stretches(points):
    """The points (x, y) in at most MOST_POINTS lists of equal length but for the last."""
    size = math.ceil(len(points) / MOST_POINTS)
    return [points[i:i + size] for i in range(0, len(points), size)]


def mean(points):
    """The mean of points (x, y), with the last x, so that a curve ends where the log does."""
    return points[-1][0], sum(y for _, y in points) / len(points)


def curve(rows, name):
    """The points (step, value) of one column of the log, without what is no finite number."""
    points = [(row.get("step"), row.get(name)) for row in rows]
    return [(x, float(y)) for x, y in points if all(isinstance(v, (int, float)) and math.isfinite(v) for v in (x, y))]


def chart(title, unit, curves):
    """The geometry of a line chart, for the template. curves: {legend: points (step, value)}, not empty."""
    values = [y for points in curves.values() for _, y in points]
    steps = [x for points in curves.values() for x, _ in points]
    low, high = (0, 1) if unit == "share" else (min(values), max(values))
    y_ticks = ticks(low, high) if high > low else ticks(low - (abs(low) or 1), high + (abs(high) or 1))
    # from step 0, and the last step ends the axis
    x_ticks = [x for x in ticks(0, max(steps)) if x <= max(steps)] if max(steps) > 0 else [0]
    x_span, y_span = max(max(steps), 1), y_ticks[-1] - y_ticks[0]

    def place(x, y):
        return (round(LEFT + x / x_span * (WIDTH - LEFT - RIGHT), 1),
                round(HEIGHT - BOTTOM - (y - y_ticks[0]) / y_span * (HEIGHT - TOP - BOTTOM), 1))

    lines, offset = [], LEFT
    for name, points in curves.items():
        parts = stretches(points)
        placed = [place(*mean(part)) for part in parts]
        band = [place(part[-1][0], max(y for _, y in part)) for part in parts]
        band += [place(part[-1][0], min(y for _, y in part)) for part in reversed(parts)]
        lines.append({"name": name, "legend": offset, "points": placed, "dots": placed if len(placed) <= 20 else [],
                      "band": band if len(parts) < len(points) else [],
                      "first": number(points[0][1]), "last": number(points[-1][1])})
        offset += 44 + 6.4 * len(name)
    return {"title": title, "unit": unit, "lines": lines,
            "x_ticks": [(place(x, y_ticks[0])[0], f"{x / 1000:g}k" if x_span >= 10_000 and x else f"{x:g}")
                        for x in x_ticks],
            "y_ticks": [(place(0, y)[1], f"{y:,.10g}".replace("-", "\N{MINUS SIGN}"), y == 0 > y_ticks[0])
                        for y in y_ticks]}


def charts(rows):
    """The charts of a log: CHARTS first, then one for each name they do not know."""
    known = {"step", *(name for _, _, names in CHARTS for name in names)}
    others = dict.fromkeys(name for row in rows for name in row if name not in known)
    found = []
    for title, unit, names in (*CHARTS, *((name, "", {name: name}) for name in others)):
        curves = {legend: curve(rows, name) for name, legend in names.items()}
        # the step logs 0 for a group of classes that the run does not draw
        curves = {legend: points for legend, points in curves.items() if any(y for _, y in points)}
        if curves:
            found.append(chart(title, unit, curves))
    return found


# ------------------------------------------------------------------------------------ figures and words


def latest(records):
    """The last record of each metric, class and group, in the order in which they first appear, each with a group."""
    found = [{"group": "all", **record} for record in records]
    return list({(record["metric"], record["class"], record["group"]): record for record in found}.values())


def meant(meanings, records):
    """{sentence: names of the metrics in the records that it describes}, in the order of the records."""
    found = {}
    for name in dict.fromkeys(record["metric"].split("@")[0] for record in records):
        sentence = meanings.get(name, meanings.get(re.sub(r"\d+k?$", "", name)))
        if sentence:
            found.setdefault(sentence, []).append(name)
    return found


def verdict(label, records, n_classes):
    """What the first lines of the report say of one unseen class; n_classes: of the evaluator, 0 where not known."""
    recognised, chance = figure(records, "recognition", label), 1 / n_classes if n_classes else None
    low = recognised["low"] if recognised else None
    return {"class": label, "recognised": recognised, "activation": figure(records, "activation", label),
            "gap": figure(records, "adversarial_gap", label), "chance": chance,
            "kind": kind(records, label), "variety": variety(records, label),
            "by_chance": low is not None and chance is not None and low <= chance}


def headline(verdicts):
    """The title's clause: what share of each unseen class the evaluator recognises, and how varied it is."""
    known = [v for v in verdicts if v["recognised"]]
    return ", ".join(f"{v['class']} recognised in {percent(v['recognised']['value'])}"
                     + (f", {WORDS[v['kind']]}" if v["kind"] else ", variety not measured") for v in known)


def write_report(path, report):
    """Write the report.html of `report`, the dict that this module's docstring describes; atomically.

    Raises UserError where the file cannot be written.
    """
    audit, records = report["audit"], latest(report["records"])
    samples = sorted(report["samples"], key=lambda group: not group["unseen"])
    unseen = list(dict.fromkeys(group["class"] for group in samples if group["unseen"]))
    if not unseen and not audit.get("oracle"):
        unseen = list(audit.get("unseen_classes", ()))
    verdicts = [verdict(label, records, len(report["confusion"].get(label, ()))) for label in unseen]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters.update(percent=percent, css=css, number=number, png=png_uri)
    html = environment.get_template("report.html.j2").render({
        "selection": None, "walks": [], "suspects": [], "not_proved": NOT_PROVED, **report, "records": records,
        "samples": samples, "unseen": unseen, "verdicts": verdicts, "headline": headline(verdicts),
        "meanings": meant(report.get("meanings", {}), records),
        "chosen": records[0].get("selection") if records else None,
        "charts": charts(report["log"]), "most_points": MOST_POINTS,
        "size": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP,
                 "bottom": HEIGHT - BOTTOM}})
    try:
        with replacing(path) as temporary:
            temporary.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"report could not be written to {path} ({error.strerror}); give a folder in which you may "
                        "write.") from error
