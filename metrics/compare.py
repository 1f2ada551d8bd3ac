"""The page that compares runs: the same unseen class drawn from several classifiers, a single compare.html that opens
from a file and needs no network.

`write_comparison(path, comparison)` takes a plain dict:

    unseen       str, the class that every row draws
    seeds        list of int, one a column: the same latent in each row
    rows         list, a dict a run: {"run": str, "classifier": str, "step": int, "images": list of uint8 pixels
                 (H, W) or (H, W, 3), one a seed, "figures": as `figures_of` gives them, "warnings": list of sentences}
"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from metrics.report import css, number, percent, png_uri
from utils import UserError, replacing

# heading, metric (without "@features"), key of the record that holds the figure, whether it is a share, meaning
FIGURES = (
    ("recognised", "recognition", "value", True, "share that an independent evaluator takes for the class"),
    ("accepted", "adversarial_gap", "accepted", True, "share that the probed classifier takes for it: below a half, "
     "nothing was elicited, and the row says nothing of the classifier"),
    ("presence", "presence_whole", "value", True, "share in which the attribute's value is seen, corrected for the "
     "scorer's errors on real images"),
    ("presence, seen classes", "presence_whole", "value", True, "the same in the run's images of the other classes: "
     "the value is no memory of the class where it is as frequent there"),
    ("false alarms", "presence_whole_false_alarms", "value", True, "share of real images of the class without the "
     "value in which that scorer sees it"),
    ("presence, by fakes", "presence_whole_by_fakes", "value", True, "as presence, corrected for the scorer's errors "
     "on fakes of known value"),
    ("presence, border alone", "presence_ring", "value", True, "as presence, by a scorer that does not see the centre"),
    ("presence, colours alone", "presence_histogram", "value", True, "as presence, by the colours of the whole image"),
    ("recall", "recall", "value", True, "share of real images of the class that lie among the drawn ones"),
    ("coverage", "coverage", "value", True, "share of real images with a drawn one in their neighbourhood"),
    ("variety", "vendi", "value", False, "effective number of different images"),
)
OF_OTHERS = ("presence, seen classes",)  # headings of figures of the other classes, their mean
NOT_PROVED = (
    "A row is one run. Another seed is another generator: a difference between rows is one between classifiers only "
    "where several runs of each show it.",
    "What is not drawn may still be used by the classifier: absence proves nothing.",
    "Intervals cover the choice of images, not that of the run.",
)


def figures_of(records, label):
    """{heading: {'value', 'low', 'high', 'share'}} of a class, from lines of results.jsonl, the last of each metric."""
    found = {}
    for heading, metric, key, share, _ in FIGURES:
        last = {record["class"]: record for record in records if record["metric"].split("@")[0] == metric
                and record["class"] is not None and (record["class"] != label) == (heading in OF_OTHERS)}
        values = [record.get(key) for record in last.values()]
        if values and None not in values:
            own = len(last) == 1 and key == "value"  # the record's interval is that of the figure
            low, high = [(record["low"], record["high"]) for record in last.values()][0] if own else (None, None)
            found[heading] = {"value": sum(values) / len(values), "low": low, "high": high, "share": share}
    return found


def headings(rows):
    """The headings that any row has a figure for, in the order of FIGURES."""
    return [heading for heading, *_ in FIGURES if any(heading in row["figures"] for row in rows)]


def text_table(rows):
    """The figures of all rows as lines of text."""
    def cell(row, heading):
        figure = row["figures"].get(heading)
        if figure is None:
            return "-"
        show = percent if figure["share"] else number
        ends = f" ({show(figure['low'])} to {show(figure['high'])})" if figure["low"] is not None else ""
        return show(figure["value"]) + ends

    names = headings(rows)
    lines = [["run", *names], *([row["run"], *(cell(row, name) for name in names)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{text:{width}}" for text, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)


def write_comparison(path, comparison):
    """Write the compare.html of the dict that this module's docstring describes; atomically.

    Raises UserError for fewer than two rows, rows that do not draw one image a seed, and where the file cannot be
    written.
    """
    rows = comparison["rows"]
    if len(rows) < 2:
        raise UserError(f"{len(rows)} run was given to compare; give two or more.")
    for row in rows:
        if len(row["images"]) != len(comparison["seeds"]):
            raise UserError(f"{row['run']} has {len(row['images'])} images for {len(comparison['seeds'])} seeds; draw "
                            "one a seed.")
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters.update(percent=percent, css=css, number=number, png=png_uri)
    names = headings(rows)
    meanings = {heading: text for heading, *_, text in FIGURES if heading in names}
    html = environment.get_template("compare.html.j2").render(
        {**comparison, "headings": names, "meanings": meanings, "not_proved": NOT_PROVED})
    try:
        with replacing(path) as temporary:
            temporary.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the comparison could not be written to {path} ({error.strerror}); give a folder in which you "
                        "may write.") from error
