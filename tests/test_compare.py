"""metrics/compare.py: which figures a row shows, nothing fetched, nothing unescaped; and the page in a real browser."""

import re

import numpy as np
import pytest

from metrics.compare import figures_of, headings, text_table, write_comparison
from utils import UserError

HOSTILE = '<script>alert(1)</script>"onload="x'
SEEDS = list(range(40, 48))


def record(metric, value, label="waterbird", low=None, high=None, **more):
    return {"metric": metric, "value": value, "low": low, "high": high, "class": label, "n": 100, "warning": "", **more}


RECORDS = [record("recognition@e", 0.1), record("recognition@e", 0.75, low=0.7, high=0.8),
           record("recognition@e", 0.99, "landbird"),
           record("presence_ring@place=water", 0.5, low=0.4, high=0.6),
           record("presence_whole@place=water", 0.625, low=0.5, high=0.7),
           record("presence_whole@place=water", 0.1, "landbird", 0, 0.2),
           record("presence_whole@place=water", 0.3, "gull"),
           record("presence_whole_false_alarms@place=water", 0.0625, low=0.05, high=0.08),
           record("vendi@e", 12.5), record("adversarial_gap@e", 0.2, low=0.1, high=0.3, accepted=0.95)]


def make_comparison(**changes):
    random = np.random.default_rng(0)
    rows = [{"run": run, "classifier": "classifiers/dro.pt", "step": 2000, "warnings": warnings, "figures": figures,
             "images": [random.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in SEEDS]}
            for run, figures, warnings in (("place", figures_of(RECORDS, "waterbird"), []),
                                           (HOSTILE, figures_of(RECORDS[:2], "waterbird"), ["class is an icon."]))]
    return {"unseen": "waterbird", "seeds": SEEDS, "rows": rows, **changes}


def test_a_row_shows_the_last_record_of_each_protocol():
    figures = figures_of(RECORDS, "waterbird")
    assert {name: figure["value"] for name, figure in figures.items()} == {
        "recognised": 0.75, "accepted": 0.95, "presence": 0.625, "presence, seen classes": 0.2, "false alarms": 0.0625,
        "presence, border alone": 0.5, "variety": 12.5}
    assert (figures["recognised"]["low"], figures["recognised"]["high"]) == (0.7, 0.8)
    assert figures["accepted"]["low"] is None  # the record's interval is that of the gap
    assert figures["presence, seen classes"]["low"] is None  # a mean of two
    alone = figures_of([each for each in RECORDS if each["class"] != "gull"], "waterbird")["presence, seen classes"]
    assert (alone["value"], alone["low"], alone["high"]) == (0.1, 0, 0.2)
    assert list(figures_of(RECORDS, "nobird")) == ["presence, seen classes"]
    assert headings([{"figures": {"variety": 0}}, {"figures": {"presence": 0, "recognised": 0}}]) == [
        "recognised", "presence", "variety"]
    text = text_table([{"run": "a", "figures": figures}, {"run": "b", "figures": {}}])
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    assert "75.0 % (70.0 % to 80.0 %)" in text and text.splitlines()[2].split() == ["b", *["-"] * 7]


def test_the_page_says_what_was_measured_and_escapes_what_it_is_given(tmp_path):
    write_comparison(tmp_path / "c.html", make_comparison())
    html = (tmp_path / "c.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.partition("<main>")[2]))
    assert "62.5 %" in text and "50.0 % to 70.0 %" in text
    assert text.count("not measured") == 6  # all but one figure of the second row
    assert html.count('src="data:image/png') == 16
    assert HOSTILE not in html and "<script>alert" not in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)


def test_one_row_and_rows_of_other_lengths_are_refused(tmp_path):
    rows = make_comparison()["rows"]
    with pytest.raises(UserError, match="two or more"):
        write_comparison(tmp_path / "c.html", make_comparison(rows=rows[:1]))
    with pytest.raises(UserError, match="7 images for 8 seeds"):
        write_comparison(tmp_path / "c.html", make_comparison(rows=[rows[0], {**rows[1], "images": [0] * 7}]))
    with pytest.raises(UserError, match="could not be written"):
        (tmp_path / "file").touch()
        write_comparison(tmp_path / "file" / "c.html", make_comparison())
    assert not (tmp_path / "c.html").exists()


@pytest.fixture
def page(browser, tmp_path):
    """The page of make_comparison() on a wide screen; at the end nothing may have been logged, raised or fetched."""
    troubles = []
    write_comparison(tmp_path / "c.html", make_comparison())
    with browser.new_context(viewport={"width": 1300, "height": 800}) as context:
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(f"alert {dialog.message}") or dialog.dismiss())
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or troubles.append(request.url))
        page.goto((tmp_path / "c.html").as_uri())
        yield page
    assert troubles == []


def test_the_same_latents_stand_in_the_same_columns(page):
    loaded = page.evaluate("[...document.querySelectorAll('main img')].map(i => i.complete && i.naturalWidth)")
    assert loaded == [16] * 16
    places = [[image.bounding_box()["x"] for image in row.locator("img").all()]
              for row in page.locator(".pictures tbody tr").all()]
    assert places[0] == places[1] == sorted(places[0])
    assert page.locator(".pictures th.seed").all_inner_texts() == [f"seed {seed}" for seed in SEEDS]


def test_a_column_is_enlarged_and_closed(page):
    shots, dialog = page.locator(".shot"), page.get_by_role("dialog")
    shots.nth(10).click()  # the third of the second row
    assert dialog.is_visible()
    assert dialog.locator("figcaption").all_inner_texts() == ["waterbird by place, seed 42",
                                                              f"waterbird by {HOSTILE}, seed 42"]
    sources = dialog.locator("img").evaluate_all("images => images.map(i => i.src)")
    assert sources == [shots.nth(k).locator("img").get_attribute("src") for k in (2, 10)]
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert shots.nth(10).evaluate("shot => shot === document.activeElement")


def test_a_phone_scrolls_the_tables_and_not_the_page(browser, tmp_path):
    write_comparison(tmp_path / "c.html", make_comparison())
    with browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True) as context:
        page = context.new_page()
        page.goto((tmp_path / "c.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.locator(".scroll").first.evaluate("part => part.scrollWidth > part.clientWidth")
