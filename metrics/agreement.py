"""What people's answers say: reading them, recognition a method and class, agreement, careless raters.

The paper's figure 6 gives the share of raters' answers that name the class an image was drawn for. Answers here
are a dict {(rater, item): answer}; a key is what `metrics.raters make` writes beside its page.
"""

import csv
import io
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from metrics.recognition import rate
from utils import UserError, nearest

REAL = "real"  # the method of the control images
NONE = "none of these"
COLUMNS = ("page", "rater", "item", "answer", "time")
HIT_IMAGES = 10  # images in one MTurk task


# ----------------------------------------------------------------------------------------- reading


def key_path(page):
    """Where the key of page.html lies: page.key.json."""
    return page.with_suffix(".key.json")


def read_key(path):
    """The key that `make` wrote. Raises UserError where it is missing or something else."""
    try:
        key = json.loads(path.read_text())
        if {"page", "classes", "unseen", "methods", "items"} <= key.keys():
            return key
    except FileNotFoundError as error:
        raise UserError(f"the key {path} does not exist; make wrote it beside the page, as "
                        f"{key_path(Path('PAGE.html'))}.") from error
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not the key of a raters' page ({error}).") from error
    raise UserError(f"{path} is not the key of a raters' page: it lacks its entries.")


def rows_of(path):
    """The answers in one CSV of the page or of MTurk, as dicts of COLUMNS. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a text file ({error}).") from error
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=";" if ";" in header and "," not in header else ",")
    names = reader.fieldnames or ()
    if set(COLUMNS) <= set(names):
        rows = [{name: row[name] or "" for name in COLUMNS} for row in reader]
    elif {"WorkerId", "Input.page"} <= set(names):
        rows = [answer for row in reader if row.get("AssignmentStatus") != "Rejected" for answer in of_task(row)]
    elif not names:
        raise UserError(f"{path} is empty.")
    else:
        raise UserError(f"{path} has the columns {', '.join(names)[:200]}; answers have {', '.join(COLUMNS)}, and "
                        "MTurk's results WorkerId, Input.page and more.")
    if not rows:
        raise UserError(f"{path} holds no answer.")
    return rows


def of_task(row):
    """The answers in one row of MTurk's results; radio buttons are one column with the answer, or one an answer."""
    for k in range(1, HIT_IMAGES + 1):
        name = f"Answer.answer_{k}"
        marked = [column.removeprefix(name + ".") for column, value in row.items()
                  if column and column.startswith(name + ".") and str(value).lower() == "true"]
        for answer in [row[name]] if row.get(name) else marked:
            yield {"page": row["Input.page"], "rater": row["WorkerId"], "item": row.get(f"Input.item_{k}"),
                   "answer": answer, "time": ""}


def read_answers(paths, key):
    """{(rater, item): answer} of all files; where a rater answered an item twice, the later answer counts."""
    rows = [(path, row) for path in paths for row in rows_of(path)]
    valid = [*key["classes"], NONE]
    for path, row in rows:
        if row["page"] != key["page"]:
            raise UserError(f"{path} answers page '{row['page']}'; the key is of page '{key['page']}'. "
                            "Give the key written beside that page.")
        if row["item"] not in key["items"]:
            raise UserError(f"{path} names the item '{row['item']}', which the page does not have.")
        if row["answer"] not in valid:
            raise UserError(f"{path} has the answer '{row['answer']}' ({nearest(row['answer'], valid)}).")
        if not row["rater"].strip():
            raise UserError(f"{path} has an answer without a rater's name.")
    # times are UTC in ISO format, so their order is that of their text; the sort keeps the files' order otherwise
    return {(row["rater"].strip(), row["item"]): row["answer"] for _, row in sorted(rows, key=lambda r: r[1]["time"])}


# ----------------------------------------------------------------------------------------- figures


def krippendorff_alpha(units):
    """Krippendorff's alpha for nominal data ("Computing Krippendorff's Alpha-Reliability", 2011, section C).

    units: an iterable of lists, the answers that one item got; any number of raters, each may miss items. 1 is
    full agreement, 0 what chance gives, below 0 systematic disagreement. None where it is undefined: no item
    has two answers, or all answers are the same.
    """
    pairable = [Counter(unit) for unit in units if len(unit) > 1]
    totals = sum(pairable, Counter())
    n = sum(totals.values())
    # coincidences off the diagonal: each ordered pair of an item's m answers weighs 1 / (m - 1)
    observed = sum(count * (unit.total() - count) / (unit.total() - 1) for unit in pairable for count in unit.values())
    expected = sum(count * (n - count) for count in totals.values())
    return 1 - (n - 1) * observed / expected if expected else None


def over_raters(hits, counts, draws=2000):
    """The 95 % percentile interval of sum(hits) / sum(counts) when raters are drawn again, as clusters.

    hits, counts: (raters,) right answers and answers. The answers of one rater are not independent, which the Wilson
    interval takes them to be. (None, None) for fewer than two raters.
    """
    if len(counts) < 2:
        return None, None
    times = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), draws)
    low, high = np.percentile(times @ hits / (times @ counts), [2.5, 97.5])
    return float(low), float(high)


def summary(answers, key):
    """Recognition a method and class, confusion and alpha of `answers`, repeats of an item left out."""
    items = key["items"]
    groups, confusion, units = defaultdict(list), defaultdict(Counter), defaultdict(list)
    for (rater, item), answer in answers.items():
        method, name = items[item]["method"], items[item]["class"]
        if "repeats" in items[item]:
            continue
        groups[method, name].append((rater, answer == name))
        confusion[method, name][answer] += 1
        units[item].append(answer)
    result = {"raters": len({rater for rater, _ in answers}), "recognised": {}, "answers": {}, "alpha": {}}
    for method in key["methods"]:
        alpha = krippendorff_alpha(unit for item, unit in units.items() if items[item]["method"] == method)
        result["alpha"][method] = alpha
        shown = [name for name in key["classes"] if (method, name) in groups]
        recognised = {"per_class": {name: pooled(groups[method, name]) for name in shown}}
        for group, members in (("unseen", [name for name in shown if name in key["unseen"]]),
                               ("seen", [name for name in shown if name not in key["unseen"]])):
            if members:
                recognised[group] = pooled([mark for name in members for mark in groups[method, name]])
        result["recognised"][method] = recognised
        result["answers"][method] = {name: dict(confusion[method, name].most_common()) for name in shown}
    result["alpha"]["all"] = krippendorff_alpha(units.values())
    return result


def pooled(marks):
    """A rate of metrics.recognition over marks (rater, right or wrong), with its interval over raters."""
    raters = sorted({rater for rater, _ in marks})
    hits, counts = np.zeros(len(raters)), np.zeros(len(raters))
    for rater, right in marks:
        hits[raters.index(rater)] += right
        counts[raters.index(rater)] += 1
    low, high = over_raters(hits, counts)
    return {**rate(hits.sum(), counts.sum()), "raters": len(raters), "raters_low": low, "raters_high": high}


def score(answers, key, min_control):
    """All figures of the answers to one page, with and without careless raters.

    min_control: a rater who names fewer than this share of the real images he saw is careless, and left out of
    'kept'; one who saw none cannot be judged and stays. Returns a dict that JSON takes.
    """
    items, raters = key["items"], {}
    for rater in sorted({rater for rater, _ in answers}):
        own = {item: answer for (who, item), answer in answers.items() if who == rater}
        # a repeated control is a control too
        controls = [answer == items[item]["class"] for item, answer in own.items() if items[item]["method"] == REAL]
        repeats = [answer == own[items[item]["repeats"]] for item, answer in own.items()
                   if items[item].get("repeats") in own]
        raters[rater] = {"answers": len(own), "controls": rate(sum(controls), len(controls)) if controls else None,
                         "same_again": rate(sum(repeats), len(repeats)) if repeats else None,
                         "kept": not controls or sum(controls) >= min_control * len(controls)}
    kept = {pair: answer for pair, answer in answers.items() if raters[pair[0]]["kept"]}
    return {"page": key["page"], "unseen": key["unseen"], "min_control": min_control,
            "careless": [rater for rater, facts in raters.items() if not facts["kept"]],
            "kept": summary(kept, key), "everyone": summary(answers, key), "raters": raters}
