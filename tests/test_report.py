"""metrics/report.py: the page's figures by hand, nothing fetched, nothing unescaped; and in a real browser."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.report import (
    BOTTOM,
    HEIGHT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    charts,
    number,
    percent,
    png_uri,
    ticks,
    write_report,
)
from sound import wav_uri
from utils import UserError

HOSTILE = '<script>alert(1)</script>"onload="x'
CLASSES = ("cat", "dog", "horse", HOSTILE)


def record(metric, value, label=None, low=None, high=None, **more):
    return {"metric": metric, "value": value, "low": low, "high": high, "class": label, "n": 1200, "step": 4000,
            "first_seed": 7, "time": "", "warning": "", **more}


def make_report(channels=3, **changes):
    """A report of a run that left out the horse; the hostile name is a seen class."""
    random = np.random.default_rng(0)

    def pixels():
        return random.integers(0, 256, (16, 16, 3) if channels == 3 else (16, 16), dtype=np.uint8)

    def said(label, confidence=0.875):
        return {"class": label, "confidence": confidence}

    samples = [{"class": label, "unseen": label == "horse", "images": [
        {"pixels": pixels(), "seed": 40 + i, "probed": said(label), "evaluator": said("dog" if i == 2 else label, 0.25)}
        for i in range(6)]} for label in CLASSES]
    near = {"pixels": pixels(), "class": HOSTILE, "distance": 1.5}
    records = [record("vendi", None, "dog"),
               record("recognition@toy_evaluator", 0.625, "horse", 0.61, 0.64, warning="Too few images."),
               record("activation", 0.93, "horse", 0.92, 0.94), record("kid@toy_evaluator", 0.5),
               record("kid@toy_evaluator", -0.02), record("fd@toy_evaluator", 12.5),
               record("fd@toy_evaluator", 3.0, "cat"), record("fd@toy_evaluator", 100.0, HOSTILE),
               record("ms_ssim", 0.75, "horse", real=0.25),
               record("adversarial_gap@toy_evaluator", 0.355, "horse", accepted=0.98),
               record("recognition@toy_evaluator", 0.9, group="all seen")]
    log = [{"step": step, "D_wasserstein": -1.0 / step, "G_wasserstein": 1.0 / step, "C_accepts_seen": 0.0,
            "C_accepts_unseen": 0.5, "my_term": float("nan") if step == 20 else float(step)} for step in (10, 20, 30)]
    audit = {"statement": "No image of horse was used.", "oracle": False, "dataset": "toy", "classes": CLASSES,
             "unseen_classes": ["horse"], "images_per_class": dict(zip(CLASSES, (10, 20, 0, 5), strict=True)),
             "images_used": 35, "sha256": "ab" * 32, "unseen_images_left_out": 9, "duplicates_removed": []}
    report = {"run": "toy & co", "step": 4000, "audit": audit,
              "settings": {"new_class": [2], "C_path": "a/very/long/path" * 8, "hier": True},
              "records": records, "log": log, "samples": samples,
              "nearest": [{"class": "horse", "pixels": pixels(), "seed": 40 + i, "feature_neighbour": near,
                           "pixel_neighbour": near} for i in range(2)],
              "confusion": {"horse": {"cat": 0.0, "dog": 0.375, "horse": 0.625, HOSTILE: 0.0}},
              "warnings": [f"class {HOSTILE} has collapsed."]}
    return {**report, **changes}


def page_of(tmp_path, report):
    write_report(tmp_path / "report.html", report)
    return (tmp_path / "report.html").read_text()


# ------------------------------------------------------------------------------------------- the words


def test_the_page_fetches_nothing(tmp_path):
    html = page_of(tmp_path, make_report())
    found = re.findall(r"""(?:src=|href=|url\(|@import|srcset=|action=)\s*["']?([^"'\s>)]*)""", html)
    assert len(found) > 30
    assert all(target.startswith(("data:", "#")) for target in found)
    assert "http:" not in html and "https:" not in html


def test_sounds_are_played_beside_real_ones(tmp_path):
    report, uri = make_report(), wav_uri(torch.zeros(100))
    own = report["samples"][2]
    for image in own["images"]:
        image["sound"] = uri
    shots = [{"pixels": image["pixels"], "sound": uri, "seed": None, "probed": None, "evaluator": None}
             for image in own["images"][:2]]
    report["samples"].append({"class": "horse", "unseen": True, "real": True, "images": shots})
    html = page_of(tmp_path, report)
    assert html.count("<audio controls") == 6 + 2 and html.count(uri) == 8 and "media-src data:" in html
    assert "Real image of class horse" in html and html.count('<span class="mark">unseen</span>') == 1
    assert html.index("Image drawn for class horse") < html.index("Real image of class horse")
    assert html.index("Real image of class horse") < html.index("Image drawn for class cat")


def test_names_are_escaped(tmp_path):
    html = page_of(tmp_path, make_report())
    assert "<script>alert" not in html and '"onload="' not in html
    assert html.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;onload=&#34;x" in html
    assert "toy &amp; co" in html


def test_the_verdict_quotes_the_evaluator_with_its_interval(tmp_path):
    html = re.sub("[ \n]+", " ", page_of(tmp_path, make_report()))
    assert "<title>toy &amp; co: horse recognised in 62.5\xa0%, variety not measured</title>" in html
    assert "of 1,200 images drawn for the unseen class horse are recognised by the evaluator</strong> "\
           "(95&nbsp;% interval 61.0\xa0% to 64.0\xa0%), and their variety is <strong>not measured" in html
    assert "a mean probability of 93.0\xa0% and accepts 98.0\xa0% of the images" in html
    assert "not above chance" not in html


@pytest.mark.parametrize("low, by_chance", [(0.25, True), (0.2501, False)])
def test_chance_is_one_in_the_number_of_classes(tmp_path, low, by_chance):
    report = make_report(records=[record("recognition@toy_evaluator", 0.3, "horse", low, 0.4)])
    assert ("not above chance" in page_of(tmp_path, report)) == by_chance


def test_what_was_not_measured_is_said(tmp_path):
    assert "are recognised was not measured" in page_of(tmp_path, make_report(records=[]))
    oracle = make_report(samples=[], audit={**make_report()["audit"], "oracle": True})
    assert "No class was unseen" in page_of(tmp_path, oracle)


def test_what_the_audit_found_and_would_have_found_is_shown(tmp_path):
    report = make_report()
    assert 'id="suspects"' not in page_of(tmp_path, report)
    report["audit"] |= {"near_copies": {"removed": [{}, {}], "threshold": 0.955, "would_find": {"JPEG <75>": 0.98}},
                        "starting_weights": [{"path": HOSTILE, "trained_on": "it is not known."}]}
    pixels = report["samples"][0]["images"][0]["pixels"]
    report["suspects"] = [
        {"title": "Near copies, left out", "images": [{"pixels": pixels, "class": HOSTILE, "name": "3.png",
                                                       "like": pixels, "like_name": HOSTILE,
                                                       "said": {"correlation": 0.981}}]},
        {"title": "Taken for horse by a classifier, used", "images": [{"pixels": pixels, "class": "cat",
                                                                       "name": "4.png", "like": None, "like_name": "",
                                                                       "said": {"evaluator": 0.75}}]}]
    html = re.sub("[ \n]+", " ", page_of(tmp_path, report))
    assert "<dt>near copies removed</dt><dd>2</dd>" in html and "<script>alert" not in html
    assert "planted copies found: JPEG &lt;75&gt;</dt><dd>98\xa0%</dd>" in html
    section = html[html.index('id="suspects"'):html.index('id="settings"')]
    assert section.count("<img") == 3 and "correlation 0.9810" in section and "cat, evaluator 0.7500" in section


def test_the_unseen_class_comes_first_and_is_marked(tmp_path):
    html = page_of(tmp_path, make_report())
    groups = re.findall(r'<div class="class( unseen)?">\s*<h3>(\w+)', html)
    assert groups[:3] == [(" unseen", "horse"), ("", "cat"), ("", "dog")]


def test_the_last_of_several_records_is_shown(tmp_path):
    html = page_of(tmp_path, make_report())
    assert html.count("kid<wbr>") == 1 and "\N{MINUS SIGN}0.0200" in html
    assert "not defined" in html and "all seen" in html
    assert re.search(r'id="note-1">Too few images\.', html)


def test_meanings_are_given_once_for_the_metrics_shown(tmp_path):
    records = [record("precision@a", 0.5), record("recall@a", 0.5), record("intra_fd5k@a", 9.0, "horse")]
    meanings = {"precision": "How much fits.", "recall": "How much fits.", "intra_fd": "A distance.", "kid": "Unused."}
    html = page_of(tmp_path, make_report(records=records, meanings=meanings))
    assert re.findall(r"<dt>([^<]*)</dt><dd>(How much fits|A distance|Unused)", html) == [
        ("precision, recall", "How much fits"), ("intra_fd5k", "A distance")]


def test_a_report_of_images_made_elsewhere_needs_no_run(tmp_path):
    elsewhere = [{**r, "step": None, "first_seed": None} for r in make_report()["records"]]
    html = page_of(tmp_path, make_report(step=None, audit={}, settings={}, log=[], nearest=[], records=elsewhere))
    for section in ("audit", "settings", "curves", "nearest"):
        assert f'id="{section}"' not in html and f'href="#{section}"' not in html
    assert "None" not in re.sub(r"None is an FID|no image", "", html)


def test_a_pixel_is_what_it_was():
    for shape in ((5, 7), (5, 7, 3)):
        pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        file = io.BytesIO(base64.b64decode(png_uri(pixels).split(",")[1]))
        assert np.array_equal(np.asarray(Image.open(file)), pixels)


@pytest.mark.parametrize("value, text", [(0, "0"), (1.0, "1.000"), (0.9995, "0.9995"), (-0.02, "\N{MINUS SIGN}0.0200"),
                                         (41.2337, "41.23"), (123456.7, "123,457"), (0.00123, "0.00123"),
                                         (float("nan"), "not defined"), (None, "not defined")])
def test_numbers_have_four_digits(value, text):
    assert number(value) == text


def test_percent():
    assert (percent(-0.0033), percent(1, 0)) == ("\N{MINUS SIGN}0.3\xa0%", "100\xa0%")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="report could not be written to .*report.html"):
        write_report(tmp_path / "file" / "report.html", make_report())


# ------------------------------------------------------------------------------------------ the curves


@pytest.mark.parametrize("low, high, wanted", [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-2.5, 0.9, [-3, -2, -1, 0, 1]), (0, 250, [0, 50, 100, 150, 200, 250]),
    (0, 99_999, [0, 20_000, 40_000, 60_000, 80_000, 100_000])])
def test_ticks_are_round_and_enclose(low, high, wanted):
    assert ticks(low, high) == pytest.approx(wanted)


def test_a_long_curve_is_its_means_in_a_band_of_its_extremes(tmp_path):
    log = [{"step": step, "term": 3.0 * (step % 3)} for step in range(1, 3 * MOST_POINTS + 1)]  # 3, 6, 0, 3, 6, 0, ...
    line = charts(log)[0]["lines"][0]
    assert len(line["points"]) == MOST_POINTS
    low, middle, high = HEIGHT - BOTTOM, (HEIGHT - BOTTOM + TOP) / 2, TOP
    assert {y for _, y in line["points"]} == {middle} and line["points"][-1][0] == WIDTH - RIGHT
    assert [y for _, y in line["band"]] == [high] * MOST_POINTS + [low] * MOST_POINTS
    assert "mean of 3 lines of the log" in page_of(tmp_path, make_report(log=log))
    short = charts(log[:MOST_POINTS])[0]["lines"][0]
    assert len(short["points"]) == MOST_POINTS and short["band"] == []


def test_charts_of_a_log():
    drawn = {chart["title"]: chart for chart in charts(make_report()["log"])}
    # a column of zeros is a group of classes that the run does not draw
    assert [line["name"] for line in drawn["Fakes that the probed classifier accepts"]["lines"]] == ["unseen"]
    assert [line["name"] for line in drawn["Unconditional head, eq. (3)"]["lines"]] == ["discriminator", "generator"]
    own = drawn["my_term"]["lines"][0]
    assert (own["first"], own["last"], len(own["points"])) == ("10.00", "30.00", 2)  # NaN is no point
    # the axis runs from step 0 to 30 and from 10 to 30: the last point lies in the upper right corner
    assert own["points"][-1] == (WIDTH - RIGHT, TOP)
    assert charts([]) == []


def test_a_constant_curve_has_an_axis():
    chart = charts([{"step": 5, "flat": 2.0}])[0]
    assert len(chart["y_ticks"]) > 2


def luminance(colour):
    """Relative luminance of '#rrggbb' (WCAG 2.2)."""
    levels = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_of_both_colour_schemes(tmp_path):
    schemes = re.findall(r":root \{(.*?)\}", page_of(tmp_path, make_report()), re.S)
    assert len(schemes) == 2
    for scheme in schemes:
        light = {name: luminance(colour) for name, colour in re.findall(r"--(\w+): (#\w{6})", scheme)}

        def contrast(a, b, light=light):
            return (max(light[a], light[b]) + 0.05) / (min(light[a], light[b]) + 0.05)

        assert all(contrast(ink, paper) >= 4.5 for ink in ("text", "muted", "unseen", "link")
                   for paper in ("page", "panel", "wash"))
        assert all(contrast(line, "page") >= 3 for line in ("s0", "s1", "s2"))


# ----------------------------------------------------------------------------------------- the browser


@pytest.fixture
def open_page(browser, tmp_path):
    """A function that opens the page of a report; at the end nothing may have been logged, raised or fetched."""
    contexts, troubles = [], []

    def opened(report=None, **settings):
        write_report(tmp_path / "report.html", report or make_report())
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(f"alert {dialog.message}") or dialog.dismiss())
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or troubles.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


def test_the_page_renders(open_page):
    page = open_page()
    assert page.locator("h1").inner_text() == "toy & co"
    assert page.get_by_role("navigation").get_by_role("link").count() == 8
    loaded = page.evaluate("[...document.querySelectorAll('main img')].map(i => i.complete && i.naturalWidth)")
    assert loaded == [16] * (4 * 6 + 2 * 3)
    assert page.locator("main img:not([alt]), main img[alt='']").count() == 0
    assert page.locator("figure.chart svg polyline").first.evaluate("line => line.getBoundingClientRect().width") > 50
    assert page.evaluate("[...document.links].every(link => document.querySelector(link.hash))")
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))


def column(page, index):
    return page.locator(f".sortable tbody tr:visible > :nth-child({index})").all_inner_texts()


def test_the_table_sorts_by_click_and_by_key(open_page):
    page = open_page()
    page.get_by_label("each seen class too").check()
    values = page.get_by_role("button", name="value")
    head = page.locator(".sortable th", has=values)
    values.click()
    assert head.get_attribute("aria-sort") == "ascending"
    numbers = ["\N{MINUS SIGN}0.0200", "0.3550", "0.6250", "0.7500\nreal 0.2500",
               "0.9000", "0.9300", "3.000", "12.50", "100.0"]
    assert column(page, 3) == [*numbers, "not defined"]
    values.focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, 3) == [*numbers[::-1], "not defined"]  # what has no value stays last
    page.get_by_role("button", name="class", exact=True).click()
    assert head.get_attribute("aria-sort") is None
    assert page.locator("[aria-sort]").count() == 1
    names = column(page, 2)
    assert [name for name in names if name in ("cat", "dog", "horse")] == ["cat", "dog", *["horse"] * 4]


def test_rows_of_seen_classes_are_shown_on_demand(open_page):
    page = open_page()
    assert set(column(page, 2)) == {"horse", "all", "all seen"}
    page.get_by_label("each seen class too (3 more rows)").check()
    assert len(column(page, 2)) == 10


def test_a_picture_is_enlarged_and_closed(open_page):
    page = open_page()
    dialog, shots = page.get_by_role("dialog"), page.locator("button.shot")
    shots.nth(2).click()
    assert dialog.is_visible()
    assert dialog.locator("img").evaluate("image => image.getBoundingClientRect().width") > 300
    assert dialog.locator("img").evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    details = ["horse", "42", "dog, confidence 0.2500", "horse, confidence 0.8750"]
    assert dialog.locator("dd").all_inner_texts() == details
    page.keyboard.press("ArrowRight")
    assert dialog.locator("dd").nth(1).inner_text() == "43"
    dialog.get_by_role("button", name="Previous").click()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert shots.nth(2).evaluate("shot => shot === document.activeElement")
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()
    shots.nth(shots.count() - 1).click()
    assert dialog.locator("dd").all_inner_texts() == ["pixels", HOSTILE, "1.500"]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_phone_shows_the_page_without_scrolling_sideways(open_page, channels):
    names = {"a" * 90: 0.5, "horse": 0.5}
    report = make_report(channels, confusion={"horse": names}, run="run_" * 40)
    page = open_page(report, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator("button.shot").first.tap()
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_paper_has_no_controls_and_a_white_ground(open_page):
    page = open_page(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(21, 23, 26)"
    controls = page.locator("nav, label.control, .hint")
    assert controls.count() == 3 and all(control.is_visible() for control in controls.all())
    page.emulate_media(media="print")
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    assert not any(control.is_visible() for control in controls.all())
    arrow = "getComputedStyle(document.querySelector('thead button'), '::after').display"
    assert page.evaluate(arrow) == "none"
    assert page.pdf(format="A4").startswith(b"%PDF")
