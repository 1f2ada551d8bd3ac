"""What a file may not decide: the code that is run, and how much is expected of a classifier."""

import pytest

from classifiers.strangers import from_a_file, is_own_code, least_expected, require_asked
from utils import UserError


def test_code_is_what_is_imported():
    assert is_own_code("evil:factory") and is_own_code("runs.x.y:f") and is_own_code(":f")
    assert not any(map(is_own_code, ("", "smallcnn", "wrn-28-10", "torchvision:vit_b_16", "timm:resnet18")))


def test_a_file_cannot_ask_for_code():
    with pytest.raises(UserError, match="C.pt asks for the code 'evil:factory'.*--C_arch evil:factory"):
        require_asked("evil:factory", "", "C.pt")
    with pytest.raises(UserError):
        require_asked("evil:factory", "mine:factory", "C.pt")
    require_asked("evil:factory", "evil:factory", "C.pt")
    require_asked("resnet18", "", "C.pt")


def test_a_checkpoint_cannot_ask_for_trust():
    settings = {"C_path": "C.pt", "C_trust": True, "C_arch": ""}
    assert not from_a_file(settings, {}, "run")["C_trust"]
    assert from_a_file(settings, {"C_trust": True}, "run") == settings
    with pytest.raises(UserError, match="step_1.pt asks for the code 'evil:factory'"):
        from_a_file({"C_arch": "evil:factory"}, {"C_trust": True}, "step_1.pt")


@pytest.mark.parametrize("said, least, words", [
    (None, 0.37, "no model card, chance is 10.0%"), (0.93, 0.88, "its model card says 93.0%"),
    (0.42, 0.37, "its model card says 42.0%"), (0.10, 0.37, "says 10.0%, which is not taken for less than chance of"),
])
def test_a_card_cannot_disarm_the_check(said, least, words):
    found, why = least_expected(said, 0.05, 10)
    assert found == pytest.approx(least) and words in why
