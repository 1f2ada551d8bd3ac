"""What the audit says beside copies: images that a classifier takes for y*, and weights that a run starts from."""

import json

import pytest
import torch
from test_near import SPEC, Source, pictures, removed

from datasets import AbsenceError, absence, leave_out, near
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
    assert audit["mistaken"]["suspects"] == []
    assert "No image under another label is taken for cat by C." in audit["statement"]


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


# --------------------------------------------------------------------------------- what is found is kept


class Told:
    """A judge that counts how often it is asked: `shares` (n,) of the images in their order, by their first pixel."""

    def __init__(self, sha256="C"):
        self.sha256, self.asked = sha256, 0

    def __call__(self, images):
        self.asked += len(images)
        return (images[:, 0, 0, 0] > 250).float() * 0.75


@pytest.fixture
def searched(monkeypatch):
    """How many images each search for near copies was given."""
    found, search = [], absence.search
    monkeypatch.setattr(absence, "search", lambda labels, *rest: found.append(len(labels)) or search(labels, *rest))
    return found


def leaky():
    """100 images: cats, of which four are left out anew as ants under another label, mirrored; and two bright ones."""
    images = torch.cat((pictures(96), pictures(96)[2:14:3].flip(3)))
    images[[0, 4], 0, 0, 0] = 255
    return Source(images, torch.cat((torch.arange(96) % 3, torch.zeros(4, dtype=torch.int64))))


def audit(cache, source=None, judge=None, unseen=2, test=None, **options):
    """(audit, how often the judge was asked)."""
    judge = judge or Told()
    found = leave_out(source or leaky(), SPEC, [unseen], test=test, judges={"C": judge}, cache=cache, **options)
    return found[1], judge.asked


def test_a_second_audit_is_the_first_and_searches_nothing(tmp_path, searched):
    first, asked = audit(tmp_path)
    assert removed(first) == [96, 97, 98, 99] and first["mistaken"]["suspects_found"] == 2 and asked == 68
    assert audit(tmp_path) == (first, 64)  # the first of them alone, to see that it is the same judge
    assert searched == [68] and audit(None) == (first, 68) and searched == [68, 68]
    # what is left out by a flag is no part of what was found
    dropped, asked = audit(tmp_path, drop_suspects=True)
    assert dropped["images_used"] == first["images_used"] - 2 and asked == 64 and len(searched) == 2


def brighter(source, row):
    source.images[row, 0, 5, 5] ^= 1
    return source


def relabelled(source):
    source.labels[[3, 4]] = source.labels[[4, 3]]
    return source


@pytest.mark.parametrize("change", ["a seen image", "an unseen image", "a test image", "a label", "the class"])
def test_another_image_label_or_class_voids_what_was_kept(tmp_path, searched, change):
    test = Source(pictures(30, seed=5), torch.arange(30) % 3)
    audit(tmp_path, test=test)
    source = {"a seen image": lambda: brighter(leaky(), 4), "an unseen image": lambda: brighter(leaky(), 5),
              "a label": lambda: relabelled(leaky())}.get(change, leaky)()
    if change == "a test image":
        brighter(test, 2)
    _, asked = audit(tmp_path, source, test=test, unseen=1 if change == "the class" else 2)
    assert len(searched) == 2
    # left-out images decide nothing of what a classifier says
    assert asked == (64 if change in ("an unseen image", "a test image") else 68)


@pytest.mark.parametrize("name, value", [("LEAST", 0.98), ("SUSPECTED", 0.04), ("FALSE_SHARE", 0.002), ("FLOOR", 0.86)])
def test_another_threshold_voids_what_was_kept(tmp_path, monkeypatch, searched, name, value):
    audit(tmp_path)
    monkeypatch.setattr(near, name, value)
    audit(tmp_path)
    assert len(searched) == 2


def test_another_version_voids_what_was_kept(tmp_path, monkeypatch, searched):
    audit(tmp_path)
    monkeypatch.setattr(absence, "SCREEN", absence.SCREEN + 1)
    assert audit(tmp_path)[1] == 68 and len(searched) == 2


def test_another_classifier_voids_what_was_kept_of_the_old_one(tmp_path, searched):
    audit(tmp_path)
    assert audit(tmp_path, judge=Told("another"))[1] == 68

    class Otherwise(Told):  # code of the same weights
        def __call__(self, images):
            return super().__call__(images) * 0.9

    found, asked = audit(tmp_path, judge=Otherwise())
    assert asked == 64 + 68 and found["mistaken"]["suspects"][0]["probability"] == {"C": 0.675}
    assert searched == [68]


def test_what_does_not_fit_its_hash_is_not_believed(tmp_path, searched):
    whole = audit(tmp_path)
    kept = {path: path.read_text() for path in (tmp_path / "audits").iterdir()}
    near_path = next(path for path in kept if path.name.startswith("near_"))
    other = json.loads(kept[near_path])
    other["value"]["removed"] = []
    for text in ("", "{", "[]", "null", "\x00", kept[near_path][:-40], json.dumps({**other, "key": "0"}),
                 json.dumps(other)):
        near_path.write_text(text)
        assert audit(tmp_path)[0] == whole[0] and near_path.read_text() == kept[near_path]
    assert len(searched) == 9


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path, capsys):
    (tmp_path / "audits").write_text("no folder")
    assert audit(tmp_path)[0] == audit(None)[0]
    assert "could not be written (File exists); what it should keep is computed again" in capsys.readouterr().err


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
