"""Reading, leaving out, guarding and streaming image sets, on tiny hand-made ones."""

import json

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import datasets
from datasets import AbsenceError, AbsenceGuard, ImageStream, leave_out, load_split, open_source, read_all
from datasets.stream import augmented
from utils import DATASETS, DatasetSpec, UserError

SPEC = DatasetSpec("tiny", 16, 3, ("ant", "bee", "cat", "dog"))
NO_GUARD = AbsenceGuard({}, {})


def random_pixels(count, channels=3, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), np.uint8)


def save_image(path, pixels):
    """Write pixels (C, H, W) as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(path)


def make_tree(root, classes, count=3, split="train"):
    """<root>/tiny/<split>/<class>/<i>.png with distinct random images."""
    for k, name in enumerate(classes):
        for i, pixels in enumerate(random_pixels(count, seed=k)):
            save_image(root / "tiny" / split / name / f"{i}.png", pixels)
    return root / "tiny" / split


def make_h5(root, labels, spec=SPEC, pixels=None, split="train", **options):
    """<root>/tiny/<split>.h5 with these labels and random images; `options` go to the pixels' h5py dataset."""
    pixels = random_pixels(len(labels), spec.channels, spec.resolution) if pixels is None else pixels
    path = root / "tiny" / f"{split}.h5"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)  # HDF5 refuses to overwrite a file that a source has open
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=pixels, **options)
        file["labels"] = np.array(labels, np.int64)
        file.attrs["classes"] = list(spec.classes)
    return pixels


# ------------------------------------------------------------------------------------- reading


def test_missing_and_empty_class_folders_do_not_shift_labels(tmp_path):
    folder = make_tree(tmp_path, ("ant", "dog"))
    (folder / "bee").mkdir()
    source = open_source(SPEC, tmp_path, "train")
    assert source.labels.tolist() == [0, 0, 0, 3, 3, 3]
    assert source.name(4) == str(folder / "dog" / "1.png")
    assert torch.equal(source.read(torch.tensor([4, 0])),
                       torch.from_numpy(np.stack([random_pixels(3, seed=1)[1], random_pixels(3, seed=0)[0]])))


def test_folder_files_are_sorted_and_other_files_ignored(tmp_path):
    folder = make_tree(tmp_path, ("ant",), count=12)
    (folder / "ant" / "notes.txt").write_text("no image")
    (folder / "ant" / ".hidden.png").write_text("no image")
    names = [open_source(SPEC, tmp_path, "train").name(i) for i in range(12)]
    assert names == sorted(names)


def test_other_sizes_and_modes_are_cropped_resized_and_converted(tmp_path):
    folder = tmp_path / "tiny" / "train" / "ant"
    wide = np.zeros((3, 32, 96), np.uint8)
    wide[:, :, 32:64] = 200  # the central square
    save_image(folder / "0.png", wide)
    Image.new("L", (16, 16), 7).save(folder / "1.png")
    Image.new("RGBA", (40, 40), (1, 2, 3, 255)).save(folder / "2.webp", lossless=True)
    images = open_source(SPEC, tmp_path, "train").read(range(3))
    assert images.shape == (3, 3, 16, 16) and images.dtype == torch.uint8
    assert (images[0] == 200).all() and (images[1] == 7).all()
    assert images[2, :, 5, 5].tolist() == [1, 2, 3]
    deep = (np.arange(256, dtype=np.uint16) * 256 + 7).reshape(16, 16)
    Image.fromarray(deep).save(folder / "3.png")
    assert open_source(SPEC, tmp_path, "train").read([3])[0, 1].flatten().tolist() == list(range(256))
    grey = open_source(DatasetSpec("tiny", 16, 1, SPEC.classes), tmp_path, "train").read([0])
    assert grey.shape == (1, 1, 16, 16) and (grey == 200).all()


@pytest.mark.parametrize("options", [{}, {"chunks": (2, 3, 16, 16), "compression": "gzip"}])
def test_h5_reads_rows_in_any_order(tmp_path, options):
    pixels = make_h5(tmp_path, [0, 1, 2, 3, 3], **options)
    source = open_source(SPEC, tmp_path, "train")
    assert source.labels.tolist() == [0, 1, 2, 3, 3] and source.labels.dtype == torch.int64 and len(source) == 5
    for indices in ([4, 0, 0, 2], []):
        assert np.array_equal(source.read(torch.tensor(indices, dtype=torch.int64)).numpy(), pixels[indices])
    assert source.name(2).endswith("train.h5[2]")


def test_relative_data_root_is_found_from_elsewhere(tmp_path, monkeypatch):
    make_h5(tmp_path, [0])
    monkeypatch.setattr("datasets.sources.ROOT", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(open_source(SPEC, ".", "train")) == 1


def test_missing_data_names_the_command(tmp_path):
    with pytest.raises(UserError, match=r"test images of cifar10 are missing.*python scripts/prepare_data.py cifar10"):
        open_source(DATASETS["C10"], tmp_path, "test")
    with pytest.raises(UserError, match="prepare_data.py tiny --source ZIP_OR_DIR --data_root"):
        open_source(SPEC, tmp_path, "train")


def test_default_command_is_short(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.sources.ROOT", tmp_path)
    with pytest.raises(UserError, match="python scripts/prepare_data.py mnist$"):
        open_source(DATASETS["MNIST"], "datasets", "train")


def test_unknown_class_folder_is_named(tmp_path):
    make_tree(tmp_path, ("ant", "caat"))
    with pytest.raises(UserError, match="caat is not a class.*did you mean 'cat'"):
        open_source(SPEC, tmp_path, "train")


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_image_that_does_not_decode_is_named(tmp_path, damage):
    path = make_tree(tmp_path, ("ant",)) / "ant" / "1.png"
    path.write_bytes(b"no image" if damage == "text" else path.read_bytes()[:200])
    with pytest.raises(UserError, match="1.png does not decode"):
        open_source(SPEC, tmp_path, "train").read([0, 1])


@pytest.mark.parametrize("size", [0, 1000, 3000])
def test_truncated_h5_names_the_command(tmp_path, size):
    make_h5(tmp_path, [0, 1, 2, 3, 3])
    path = tmp_path / "tiny" / "train.h5"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="train.h5 is damaged.*prepare_data.py tiny"):
        open_source(SPEC, tmp_path, "train")


@pytest.mark.parametrize("spec, words", [
    (DatasetSpec("tiny", 32, 3, SPEC.classes), "shape"),
    (DatasetSpec("tiny", 16, 1, SPEC.classes), "shape"),
    (DatasetSpec("tiny", 16, 3, ("ant", "bee", "cat")), "has the classes ant, bee, cat, dog"),
    (DatasetSpec("tiny", 16, 2, SPEC.classes), "valid are 1 and 3"),
])
def test_h5_that_is_not_what_is_registered(tmp_path, spec, words):
    make_h5(tmp_path, [0, 1, 2, 3])
    with pytest.raises(UserError, match=words):
        open_source(spec, tmp_path, "train")


def test_h5_label_out_of_range(tmp_path):
    make_h5(tmp_path, [0, 1, 2, 4])
    with pytest.raises(UserError, match="one label from 0 to 3"):
        open_source(SPEC, tmp_path, "train")


def test_load_split(tmp_path, monkeypatch):
    monkeypatch.setitem(datasets.DATASETS, "tiny", SPEC)
    pixels = make_h5(tmp_path, [3, 1], split="test")
    images, labels = load_split("tiny", tmp_path, "test")
    assert np.array_equal(images.numpy(), pixels) and labels.tolist() == [3, 1]
    with pytest.raises(UserError, match="leaves classes out"):
        load_split("tiny_wo_1", tmp_path, "test")


# ------------------------------------------------------------------------------------- absence


def planted(root):
    """A set of 4 classes with 3 images each, one of `dog` repeated under `ant`; the unseen class is dog (3)."""
    labels = [0, 1, 2, 3] * 3 + [0]
    pixels = random_pixels(13)
    pixels[12] = pixels[7]
    make_h5(root, labels, pixels=pixels)
    return open_source(SPEC, root, "train")


def test_unseen_images_and_their_duplicates_are_left_out(tmp_path):
    source = planted(tmp_path)
    indices, audit, guard = leave_out(source, SPEC, [3])
    assert indices.tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert audit["images_per_class"] == {"ant": 3, "bee": 3, "cat": 3, "dog": 0}
    assert audit["images_used"] == 9 and audit["unseen_images_left_out"] == 3 and not audit["oracle"]
    assert audit["duplicates_removed"] == [{"image": source.name(12), "equals": source.name(7)}]
    assert audit["statement"].startswith("No image of dog was used: 3 images were left out by label, and 1 exact")
    assert audit == json.loads(json.dumps(audit))
    guard.check(source.read(indices), source.labels[indices])


def test_folder_with_a_full_unseen_class(tmp_path):
    make_tree(tmp_path, SPEC.classes)
    source = open_source(SPEC, tmp_path, "train")
    indices, audit, _ = leave_out(source, SPEC, [1, 2])
    assert set(source.labels[indices].tolist()) == {0, 3}
    assert audit["unseen_classes"] == ["bee", "cat"] and audit["unseen_images_left_out"] == 6


def test_audit_is_the_same_whether_the_unseen_folder_is_full_or_empty(tmp_path):
    for name in ("full", "empty"):
        make_tree(tmp_path / name, SPEC.classes[:3] if name == "empty" else SPEC.classes)
    (tmp_path / "empty" / "tiny" / "train" / "dog").mkdir()
    audits = [leave_out(open_source(SPEC, tmp_path / name, "train"), SPEC, [3])[1] for name in ("full", "empty")]
    assert audits[0]["sha256"] == audits[1]["sha256"]
    assert [audit["unseen_images_left_out"] for audit in audits] == [3, 0]


def test_sha256_follows_pixels_and_labels(tmp_path):
    def digest(labels, pixels):
        make_h5(tmp_path, labels, pixels=pixels)
        return leave_out(open_source(SPEC, tmp_path, "train"), SPEC, [3])[1]["sha256"]

    pixels = random_pixels(6)
    changed = pixels.copy()
    changed[5, 0, 0, 0] ^= 1
    digests = [digest([0, 1, 2, 0, 1, 2], pixels), digest([0, 1, 2, 0, 2, 1], pixels),
               digest([0, 1, 2, 0, 1, 2], changed)]
    assert len(set(digests)) == 3
    assert digest([0, 1, 2, 0, 1, 2], pixels) == digests[0]


def test_oracle_keeps_the_class_and_says_so(tmp_path):
    source = planted(tmp_path)
    indices, audit, guard = leave_out(source, SPEC, [3], keep_unseen=True)
    assert len(indices) == 13 and audit["oracle"] and audit["images_per_class"]["dog"] == 3
    assert audit["statement"] == "ORACLE: images of dog WERE used (3 images)."
    assert "no class was left out" in leave_out(source, SPEC, [], keep_unseen=True)[1]["statement"]
    guard.check(source.read(indices), source.labels)


def test_empty_seen_class_is_named(tmp_path):
    make_tree(tmp_path, ("ant", "bee"))
    source = open_source(SPEC, tmp_path, "train")
    with pytest.raises(UserError, match="no image of cat,"):
        leave_out(source, SPEC, [3])
    with pytest.raises(UserError, match="no image of cat, dog,"):
        leave_out(source, SPEC, [3], keep_unseen=True)


@pytest.mark.parametrize("max_resident_gb", [1.0, 0.0])
@pytest.mark.parametrize("plant, words", [(3, r"1 images labelled 3 \(dog\)"), (12, r"left-out image .*train.h5\[7\]")])
def test_guard_stops_a_planted_image(tmp_path, max_resident_gb, plant, words):
    source = planted(tmp_path)
    indices, _, guard = leave_out(source, SPEC, [3])
    with pytest.raises(AbsenceError, match=words):
        stream = ImageStream(source, torch.cat([indices, torch.tensor([plant])]), guard, 5, "cpu", "flip_crop",
                             max_resident_gb=max_resident_gb)
        for _ in range(2):  # one epoch
            stream.next_batch()


# ------------------------------------------------------------------------------------- streams


def make_stream(root, max_resident_gb=1.0, count=23, batch_size=5, **options):
    make_h5(root, [i % 4 for i in range(count)])
    return ImageStream(open_source(SPEC, root, "train"), torch.arange(count), NO_GUARD, batch_size, "cpu",
                       max_resident_gb=max_resident_gb, **options)


def same(batches, others):
    return all(torch.equal(a, b) for pair in zip(batches, others, strict=True) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("augment", ["none", "flip", "crop", "flip_crop"])
def test_resident_and_streamed_batches_are_equal(tmp_path, augment):
    resident = make_stream(tmp_path, 1.0, augment=augment, seed=3)
    expected = [resident.next_batch() for _ in range(11)]
    assert resident.resident
    for num_workers in (0, 3):
        streamed = make_stream(tmp_path, 0.0, augment=augment, seed=3, num_workers=num_workers)
        assert not streamed.resident
        assert same(expected, [streamed.next_batch() for _ in range(11)])
        assert streamed.state_dict() == resident.state_dict()


@pytest.mark.parametrize("max_resident_gb", [1.0, 0.0])
def test_resume_is_exact(tmp_path, max_resident_gb):
    whole = make_stream(tmp_path, max_resident_gb, augment="flip_crop")
    batches, states = [], []
    for _ in range(10):
        states.append(whole.state_dict())
        batches.append(whole.next_batch())
    for start in (0, 3, 4, 7):
        state = json.loads(json.dumps(states[start]))
        fresh = make_stream(tmp_path, max_resident_gb, augment="flip_crop")
        fresh.next_batch()  # what was read ahead before the load must not be served after it
        fresh.load_state_dict(state)
        assert same(batches[start:], [fresh.next_batch() for _ in range(10 - start)])


def test_an_epoch_shows_each_image_once_and_the_next_in_another_order(tmp_path):
    stream = make_stream(tmp_path, count=20)
    pixels = read_all(stream.source, stream.indices)
    orders = []
    for epoch in range(2):
        images = torch.cat([stream.next_batch()[0] for _ in range(4)])
        orders.append([int((pixels == image).flatten(1).all(1).nonzero()) for image in images])
        assert sorted(orders[-1]) == list(range(20))
        assert stream.state_dict() == {"epoch": epoch + 1, "position": 0}
    assert orders[0] != orders[1]


def test_batches_hold_images_with_their_own_labels(tmp_path):
    make_h5(tmp_path, [0, 1, 2, 3] * 4)
    source = open_source(SPEC, tmp_path, "train")
    chosen = torch.tensor([1, 2, 5, 8, 12])
    images, labels = ImageStream(source, chosen, NO_GUARD, 5, "cpu").next_batch()
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    got = {(image.numpy().tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}
    assert got == {(source.read([i])[0].numpy().tobytes(), int(source.labels[i])) for i in chosen}


def test_the_seed_decides_the_order(tmp_path):
    first, again, other = (make_stream(tmp_path, seed=seed).next_batch() for seed in (1, 1, 2))
    assert same([first], [again]) and not same([first], [other])


def test_flip_alone_mirrors_about_half_of_the_images(tmp_path):
    plain = make_stream(tmp_path, count=200, batch_size=200).next_batch()[0]
    flipped = make_stream(tmp_path, count=200, batch_size=200, augment="flip").next_batch()[0]
    is_same = (flipped == plain).flatten(1).all(1)
    is_mirrored = (flipped == plain.flip(3)).flatten(1).all(1)
    assert (is_same ^ is_mirrored).all() and 60 < int(is_mirrored.sum()) < 140


def test_crop_alone_shifts_by_at_most_an_eighth(tmp_path):
    plain = make_stream(tmp_path, count=60, batch_size=60).next_batch()[0]
    cropped = make_stream(tmp_path, count=60, batch_size=60, augment="crop").next_batch()[0]
    padded = torch.nn.functional.pad(plain.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    found = set()
    for image, wide in zip(cropped, padded, strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(image, wide[:, y:y + 16, x:x + 16])]
        assert len(places) == 1
        found.update(places)
    assert {y for y, _ in found} == {x for _, x in found} == set(range(5))


def test_augmented_against_a_hand_made_image():
    image = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    one, zero = torch.tensor([1]), torch.tensor([0])
    assert augmented(image, one, zero, zero)[0, 0].tolist() == [[2, 1, 0], [5, 4, 3], [8, 7, 6]]
    assert augmented(image, zero, one, zero)[0, 0].tolist() == [[3, 4, 5], [6, 7, 8], [3, 4, 5]]
    assert augmented(image, zero, zero, -one)[0, 0].tolist() == [[1, 0, 1], [4, 3, 4], [7, 6, 7]]


def test_batch_larger_than_the_set(tmp_path):
    with pytest.raises(UserError, match="--batch_size 24 is larger than the image set of 23 images"):
        make_stream(tmp_path, batch_size=24)


def test_broken_image_in_a_streamed_folder_is_named(tmp_path):
    path = make_tree(tmp_path, ("ant", "bee")) / "ant" / "1.png"
    source = open_source(SPEC, tmp_path, "train")
    path.write_bytes(b"no image")
    stream = ImageStream(source, torch.arange(6), NO_GUARD, 6, "cpu", max_resident_gb=0)
    with pytest.raises(UserError, match="1.png does not decode"):
        stream.next_batch()
