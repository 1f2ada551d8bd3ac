"""What the audit says beside copies: images that a classifier takes for y*, and weights that a run starts from."""

import json

import pytest
import torch
from test_near import SPEC, Source, pictures, removed

from datasets import AbsenceError, leave_out
from datasets.absence import fingerprint, starting_weights
from utils import UserError, save_torch, write_json


def mislabelled():
    """60 images of ants and bees; a judge that knows which three of them are cats."""
    source = Source(pictures(60), torch.arange(60) % 2)
    cats = source.images[[4, 9, 30]]

    def judge(images):
        return (images[:, None] == cats[None]).flatten(2).all(2).any(1).float() * 0.875 + 0.0625

    return source, judge


def test_images_that_a_classifier_takes_for_the_class_are_named_and_kept():
    source, judge = mislabelled()
    indices, audit, _ = leave_out(source, SPEC, [2], judges={"the probed classifier": judge})
    assert len(indices) == 60 and audit["mistaken"]["suspects_found"] == 3
    assert audit["mistaken"]["suspects"][1] == {"image": "image 9", "index": 9, "label": 1,
                                                "probability": {"the probed classifier": 0.938}}
    assert "3 images under other labels that the probed classifier takes for cat were used" in audit["statement"]
    assert "--drop_suspects" in audit["statement"]


def test_suspects_are_dropped_where_that_is_asked_for():
    source, judge = mislabelled()
    indices, audit, guard = leave_out(source, SPEC, [2], judges={"a": lambda images: torch.zeros(len(images)),
                                                                 "b": judge}, drop_suspects=True)
    assert indices.tolist() == [i for i in range(60) if i not in (4, 9, 30)] and audit["images_used"] == 57
    assert audit["sha256"] == fingerprint(source, indices)
    assert "3 images under other labels that a or b takes for cat were left out" in audit["statement"]
    with pytest.raises(AbsenceError, match="image 9"):
        guard.check(source.images[9:10], torch.tensor([1]))
    assert audit == json.loads(json.dumps(audit))


def test_no_suspect_is_said_too():
    source, _ = mislabelled()
    _, audit, _ = leave_out(source, SPEC, [2], judges={"C": lambda images: torch.full((len(images),), 0.5)})
    assert audit["mistaken"]["suspects"] == [] and "C takes no image under another label for cat" in audit["statement"]


def test_an_oracle_is_screened_for_nothing():
    source = Source(pictures(60), torch.arange(60) % 3)
    indices, audit, _ = leave_out(source, SPEC, [0], keep_unseen=True, judges={"C": pytest.fail})
    assert len(indices) == 60 and audit["near_copies"] is None and audit["mistaken"] is None
    assert audit["statement"] == "ORACLE: images of ant WERE used (20 images)."


def test_a_set_in_chunks_is_judged_as_a_whole(monkeypatch):
    source = Source(torch.cat((pictures(60), pictures(60).flip(3))), torch.cat((torch.arange(60) % 3,
                                                                               torch.zeros(60, dtype=torch.int64))))
    whole = leave_out(source, SPEC, [2])
    monkeypatch.setattr("datasets.sources.CHUNK", 7)
    monkeypatch.setattr("datasets.absence.SLAB", 45)
    monkeypatch.setattr("datasets.near.BLOCK", 15)
    monkeypatch.setattr("datasets.near.QUERIES", 20)
    parts = leave_out(source, SPEC, [2])
    assert len(removed(whole[1])) == 20 and parts[1] == whole[1] and torch.equal(parts[0], whole[0])


# -------------------------------------------------------------------------------------- starting weights


def audit_of(**changes):
    return {"statement": "No image of cat was used.", "oracle": False,
            "images_per_class": {"ant": 5, "bee": 5, "cat": 0}, **changes}


def test_unknown_weights_are_named_as_such(tmp_path):
    save_torch(tmp_path / "G.pth", {"linear.weight": torch.zeros(2)})
    (found,) = starting_weights({"init_G": str(tmp_path / "G.pth"), "init_D": ""}, SPEC, [2])
    assert found["flag"] == "init_G" and len(found["sha256"]) == 64
    _, audit, _ = leave_out(Source(pictures(60), torch.arange(60) % 3), SPEC, [2], weights=[found])
    assert audit["starting_weights"] == [found]
    assert f"Training started from {tmp_path / 'G.pth'}: it is not known what" in audit["statement"]


@pytest.mark.parametrize("where", ["in the file", "beside it", "in the folder above", "a run folder"])
@pytest.mark.parametrize("changes", [{"oracle": True}, {"images_per_class": {"bee": 5, "Cat ": 1}}],
                         ids=["an oracle", "of a run that saw the class"])
def test_weights_that_saw_the_class_are_refused(tmp_path, where, changes):
    weights = {"linear.weight": torch.zeros(2)}
    folder = tmp_path / "checkpoints"
    save_torch(folder / "G.pth", {**weights, "audit": audit_of(**changes)} if where == "in the file" else weights)
    path = tmp_path if where == "a run folder" else folder / "G.pth"
    if where != "in the file":
        write_json((folder if where == "beside it" else tmp_path) / "audit.json", audit_of(**changes))
    with pytest.raises(UserError, match="--gan .* was trained on images of .*left out cat"):
        starting_weights({"gan": str(path)}, SPEC, [2])


def test_weights_of_a_run_without_the_class_say_so(tmp_path):
    write_json(tmp_path / "audit.json", audit_of())
    (found,) = starting_weights({"gan": str(tmp_path)}, SPEC, [2])
    assert found["trained_on"] == "No image of cat was used." and found["sha256"] == ""
