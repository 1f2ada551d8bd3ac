"""scripts/prepare_data.py on small sources made here, and on real ones where they are at hand."""

import gzip
import io
import re
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from datasets import open_source, read_all
from datasets.prepare import Split, hold_out, prepare, summary
from utils import DATASETS, ROOT, DatasetSpec, UserError

C10 = DATASETS["C10"]


def png(value, size=32):
    """The bytes of a PNG of one grey."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def cifar_members(train=3, test=1):
    """Members of a zip laid out as <name>/<split>/<class>/<file>; the image of class k, number i is grey 10 k + i."""
    return {f"cifar10/{split}/{name}/{i}.png": png(10 * k + i)
            for split, count in (("train", train), ("test", test))
            for k, name in enumerate(C10.classes) for i in range(count)}


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_folder(path, members):
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def command(*arguments, **options):
    return subprocess.run([sys.executable, ROOT / "scripts" / "prepare_data.py", *map(str, arguments)],
                          capture_output=True, text=True, timeout=120, **options)


def test_digits_by_command_from_another_folder(tmp_path):
    done = command("digits", "--data_root", "sets", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "written to sets/digits: train.h5, test.h5" in done.stdout and "DatasetSpec" not in done.stdout
    train, test = (open_source(DATASETS["digits"], tmp_path / "sets", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert (torch.bincount(test.labels) - torch.bincount(train.labels) / 4).abs().max() <= 1  # a fifth of each class
    pixels = read_all(train, torch.arange(len(train)))
    assert pixels.shape == (1437, 1, 16, 16) and pixels.min() == 0 and pixels.max() == 255
    assert pixels[:, :, [0, 1, 14, 15]].max() == 0 and pixels[:, :, :, [0, 1, 14, 15]].max() == 0  # the margin
    smaller = torch.nn.functional.adaptive_avg_pool2d(pixels[:, :, 2:14, 2:14].float(), 8) / 255 * 16
    from sklearn.datasets import load_digits
    nearest = torch.cdist(smaller[:50].flatten(1), torch.from_numpy(load_digits().data).float()).min(1)
    assert nearest.values.max() < 20  # of a norm of about 55
    assert (load_digits().target[nearest.indices] == train.labels[:50].numpy()).all()


def test_preparing_twice_gives_the_same_bytes(tmp_path):
    for root in ("a", "b"):
        prepare("digits", tmp_path / root)
    for file in ("train.h5", "test.h5"):
        assert (tmp_path / "a/digits" / file).read_bytes() == (tmp_path / "b/digits" / file).read_bytes()


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_cifar10_from_a_zip_or_folder(tmp_path, write):
    source = write(tmp_path / "source", {**cifar_members(), "__MACOSX/cifar10/train/._0.png": b"x", "README.md": b"x"})
    spec, splits = prepare("cifar10", tmp_path / "data", source)
    assert spec == C10 and [len(part.labels) for part in splits.values()] == [30, 10]
    train = open_source(C10, tmp_path / "data", "train")
    assert train.labels.tolist() == [k for k in range(10) for _ in range(3)]
    assert train.read([4, 29])[:, :, 0, 0].tolist() == [[11, 11, 11], [92, 92, 92]]


def test_cifar10_zip_without_one_class_keeps_the_labels(tmp_path):
    members = {name: data for name, data in cifar_members().items() if "airplane" not in name}
    prepare("cifar10", tmp_path, write_zip(tmp_path / "c.zip", members))
    assert open_source(C10, tmp_path, "train").labels.unique().tolist() == list(range(1, 10))


def test_cifar10_from_the_publishers_batches(tmp_path, monkeypatch):
    # the published MD5s belong to 170 MB; here torchvision's class stands in for them
    class Published:
        base_folder = torchvision.datasets.CIFAR10.base_folder

        def __init__(self, root, train):
            assert (root / self.base_folder).is_dir()
            self.data = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
            self.targets = [7, 1] if train else [0, 2]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Published)
    folder = tmp_path / Published.base_folder
    folder.mkdir()
    for source in (folder, tmp_path):
        prepare("cifar10", tmp_path / "data", source)
        train = open_source(C10, tmp_path / "data", "train")
        assert train.labels.tolist() == [7, 1]
        assert train.read([0])[0, :, 0, 1].tolist() == [3, 4, 5]  # channels of the second pixel


def test_an_archive_that_is_not_the_published_one_is_not_opened(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"anything")
    with pytest.raises(UserError, match="is not the published cifar-10-python.tar.gz: its MD5"):
        prepare("cifar10", tmp_path, tmp_path / "cifar-10-python.tar.gz")
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UserError, match="not CIFAR-10 as published"):
        prepare("cifar10", tmp_path, tmp_path / "cifar-10-batches-py")


@pytest.mark.parametrize("name, dataset", [("cifar10", "CIFAR10"), ("mnist", "MNIST")])
def test_failed_download_names_the_other_way(tmp_path, monkeypatch, name, dataset):
    def refuse(self):
        raise OSError("no route to host")

    monkeypatch.setattr(getattr(torchvision.datasets, dataset), "download", refuse)
    with pytest.raises(UserError, match=rf"download of {dataset} failed \(no route to host\).*--source"):
        prepare(name, tmp_path)
    assert not list(tmp_path.iterdir())


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def idx_files(folder, count=4):
    """MNIST's four files with `count` random images in each split; returns the training images."""
    folder.mkdir()
    for prefix in ("t10k", "train"):
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(count)))
    return images


def test_mnist_idx_files_are_padded_to_32(tmp_path):
    images = idx_files(tmp_path / "raw")
    prepare("mnist", tmp_path, tmp_path / "raw")
    train = open_source(DATASETS["MNIST"], tmp_path, "train")
    assert train.labels.tolist() == [0, 1, 2, 3]
    read = train.read(range(4)).numpy()
    assert np.array_equal(read[:, 0, 2:30, 2:30], images) and read.sum(dtype=int) == images.sum(dtype=int)


def test_mnist_from_a_tree_is_padded_too(tmp_path):
    members = {f"{split}/{k}/0.png": png(100, 28) for split in ("train", "test") for k in range(10)}
    prepare("mnist", tmp_path, write_folder(tmp_path / "tree", members))
    image = open_source(DATASETS["MNIST"], tmp_path, "train").read([0])[0, 0]
    assert (image[2:30, 2:30] == 100).all() and int(image.sum()) == 100 * 28 * 28


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"\x1f\x8b", lambda data: b"text",
                                    lambda data: gzip.compress(b"text"), lambda data: gzip.compress(b"")])
def test_damaged_mnist_file_is_named(tmp_path, damage):
    idx_files(tmp_path / "raw")
    path = tmp_path / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="train-images-idx3-ubyte.gz cannot be read"):
        prepare("mnist", tmp_path, tmp_path / "raw")


def test_real_mnist(tmp_path, shared_file):
    _, splits = prepare("mnist", tmp_path, shared_file("data/mnist"))
    assert [len(part.labels) for part in splits.values()] == [60000, 10000]
    assert np.bincount(splits["train"].labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_own_images_without_splits_hold_out_a_share(tmp_path):
    members = {f"pets/{name}/{i:02}.png": png(i, 20) for name in ("cat", "dog") for i in range(20)}
    source = write_folder(tmp_path / "source", members)
    (source / "pets" / "emu").mkdir()  # an empty class folder is a class
    done = command("pets", "--source", source, "--resolution", 16, "--channels", 1, "--data_root", tmp_path)
    assert done.returncode == 0, done.stderr
    entry = re.search(r"'pets': (DatasetSpec\(.*\)),$", done.stdout, re.M)[1]
    spec = eval(entry, {"DatasetSpec": DatasetSpec})
    assert spec == DatasetSpec("pets", 16, 1, ("cat", "dog", "emu"))
    assert open_source(spec, tmp_path, "test").read(range(4))[:, 0, 0, 0].tolist() == [9, 19, 9, 19]
    train = open_source(spec, tmp_path, "train")
    assert train.labels.tolist() == [0] * 18 + [1] * 18


def test_val_stands_in_for_test(tmp_path):
    members = {f"{split}/{name}/0.png": png(value) for split, value in (("train", 1), ("val", 2)) for name in "ab"}
    spec, _ = prepare("own", tmp_path, write_zip(tmp_path / "own.zip", members), 32, 3)
    assert open_source(spec, tmp_path, "test").read([0]).unique().tolist() == [2]


def test_hold_out_takes_an_even_share_of_each_class():
    labels = np.array([0] * 10 + [1] * 25)
    assert np.flatnonzero(hold_out(labels, 0.2)).tolist() == [4, 9, 14, 19, 24, 29, 34]
    assert not hold_out(labels, 0).any()


def test_entry_of_a_set_with_one_class_is_a_tuple():
    text = summary(DatasetSpec("own", 16, 1, ("a",)), {"train": Split(np.zeros(2, int), None)}, "datasets")
    assert text.endswith("'own': DatasetSpec('own', 16, 1, ('a',)),")


@pytest.mark.parametrize("arguments, words", [
    (["cifar1"], "did you mean 'cifar10'"),
    (["own", "--source", "."], "--resolution R --channels C"),
    (["own", "--source", ".", "--resolution", "36", "--channels", "3"], "valid are 16, 20, 24, 28, 32"),
    (["cifar10", "--source", "nowhere.zip"], "nowhere.zip does not exist"),
    (["cifar10", "--source", ".", "--resolution", "64"], "registered with 32 pixels"),
    (["digits", "--source", "."], "leave --source out"),
    (["../up", "--source", "."], "cannot name a data set"),
    (["digits", "--test_share", "1"], "--test_share is 1"),
    (["digits", "--sorce", "."], "did you mean '--source'"),
])
def test_bad_arguments_give_one_sentence_and_code_2(tmp_path, arguments, words, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments, "--data_root", "data"])
    import prepare_data

    from utils import run_main
    with pytest.raises(SystemExit) as stopped:
        run_main(prepare_data.main)
    assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("members, words", [
    ({"cifar10/train/horze/0.png": b"x"}, "'horze' is not a class of data set cifar10 (did you mean 'horse'"),
    ({"train/horse/0.png": b"no image", "test/horse/0.png": b"x"}, "train/horse/0.png does not decode"),
    ({"readme.txt": b"x"}, "holds no images"),
    ({"train/horse/0.png": b"x", "more/horse/0.png": b"x"}, "has the folders more, train"),
    ({"train/0.png": b"x", "test/0.png": b"x"}, "lies in no class folder"),
])
@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_bad_trees(tmp_path, write, members, words):
    with pytest.raises(UserError, match=re.escape(words)):
        prepare("cifar10", tmp_path / "data", write(tmp_path / "source", members))
    assert not list((tmp_path / "data").rglob("*.h5*"))


def test_corrupt_zips(tmp_path):
    path = write_zip(tmp_path / "c.zip", cifar_members())
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match="c.zip is not a zip that can be read"):
        prepare("cifar10", tmp_path, path)
    at = whole.index(b"\x89PNG") + 40
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1:])
    with pytest.raises(UserError, match="cifar10/train/airplane/0.png in .*c.zip cannot be unpacked"):
        prepare("cifar10", tmp_path, path)


def test_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.prepare.shutil.disk_usage", lambda folder: SimpleNamespace(free=400_000))
    with pytest.raises(UserError, match="digits could not be written .it takes 0.46 MB, 0.40 MB are free.; make room"):
        prepare("digits", tmp_path)
    assert not list((tmp_path / "digits").iterdir())


def test_a_failure_leaves_the_prepared_set_as_it_was(tmp_path):
    good = write_zip(tmp_path / "good.zip", cifar_members())
    prepare("cifar10", tmp_path, good)
    before = {path.name: path.read_bytes() for path in (tmp_path / "cifar10").iterdir()}
    members = cifar_members(train=5)
    members["cifar10/test/truck/0.png"] = b"no image"
    with pytest.raises(UserError, match="test/truck/0.png does not decode"):
        prepare("cifar10", tmp_path, write_zip(tmp_path / "bad.zip", members))
    assert {path.name: path.read_bytes() for path in (tmp_path / "cifar10").iterdir()} == before
