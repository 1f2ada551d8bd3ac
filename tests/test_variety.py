"""Recognition never stands alone: the sentence beside it says how varied a class is, and calls an icon one."""

import pytest
import torch

from metrics.variety import kind, sentence, share_of_real, variety


def record(name, value, real=None, label="7"):
    return {"metric": f"{name}@judge", "value": value, "class": label, **({"real": real} if real is not None else {})}


@pytest.mark.parametrize("recall, coverage, expected", [
    (0.01, 0.2, "icon"), (0.01, 0.5, "narrow"), (0.4, 0.2, "narrow"), (0.7, 0.2, "varied"), (0.0, 0.66, "varied")])
def test_the_kind_is_that_of_the_better_of_recall_and_coverage_beside_real_images(recall, coverage, expected):
    records = [record("recall", recall, 0.9), record("coverage", coverage, 0.95)]
    assert kind(records, "7") == expected
    assert kind(records, "8") == ""


def test_a_figure_without_its_ceiling_says_nothing():
    assert share_of_real(record("recall", 0.5)) is None and share_of_real(None) is None
    assert share_of_real(record("recall", None, 0.5)) is None
    assert share_of_real(record("recall", 0.5, 0.8)) == pytest.approx(0.625)


def test_the_sentence_says_both():
    records = [record("recognition", 0.997), record("recall", 0.01, 0.9), record("coverage", 0.2, 0.95),
               record("vendi", 1.4, 2.6)]
    said = sentence(records, "7")
    assert said.startswith("7: 99.7% recognised; variety an ICON")
    assert said.endswith("recall 1% (real images: 90%), coverage 20% (real images: 95%), 1.4 different images by Vendi "
                         "(real images: 2.6)")
    assert "not measured" in variety([], "7")


def test_icons_and_real_images_are_told_apart():
    """One picture with a little noise against a class with real variety, by the figures that evaluate.py takes."""
    from metrics.distances import prdc_terms
    torch.manual_seed(0)
    real, held, icon = torch.randn(200, 8), torch.randn(200, 8), 0.1 * torch.randn(200, 8)

    def records(fake):
        found, ceiling = prdc_terms(real, fake), prdc_terms(real, held)
        return [record(name, found[name].mean().item(), ceiling[name].mean().item()) for name in ("recall", "coverage")]

    assert kind(records(icon), "7") == "icon"
    assert kind(records(torch.randn(200, 8)), "7") == "varied"
