"""metrics.images: files of generated images that are healthy, and those whose pixels or labels would be misread."""

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.images import file_images, npz_images, read_image
from utils import DATASETS, DatasetSpec, UserError

DIGITS = DATASETS["digits"]


def pixels(n=4, channels=1, top=256):
    return np.random.default_rng(0).integers(0, top, (n, channels, 16, 16)).astype(np.uint8)


def test_uint8_that_holds_0_and_1_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=pixels(top=2), y=np.array([7] * 4))
    with pytest.raises(UserError, match="holds nothing above 1; its pixels go from 0 for black to 255 for white"):
        npz_images(tmp_path / "x.npz", DIGITS, [7], 2)


def test_labels_that_may_be_names_need_the_names(tmp_path):
    """Classes 0 to 10 sorted as text: y = 2 is either the class '2' or the third one, which is '10'."""
    spec = DatasetSpec("own", 16, 1, ("0", "1", "10", *map(str, range(2, 10))))
    x, y = pixels(), np.array([2, 2, 10, 10])
    np.savez(tmp_path / "x.npz", x=x, y=y)
    with pytest.raises(UserError, match="may hold the names of the classes, which are numbers, or their places"):
        npz_images(tmp_path / "x.npz", spec, [3], 2)
    np.savez(tmp_path / "x.npz", x=x, y=y, classes=np.array([str(k) for k in range(11)]))
    images = npz_images(tmp_path / "x.npz", spec, [3], 2)
    assert images.drawn == [2, 3] and spec.classes[2] == "10" and spec.classes[3] == "2"
    assert torch.equal(images.read(3, 0, 2), torch.from_numpy(x[:2]))
    for classes, words in ((["0", "x"], "has 'x', which is no class of own"),
                           (["0", "1"], "must hold numbers from 0 to 1, one for each name")):
        np.savez(tmp_path / "x.npz", x=x, y=y, classes=np.array(classes))
        with pytest.raises(UserError, match=words):
            npz_images(tmp_path / "x.npz", spec, [3], 2)
    # where names and places agree nothing is asked
    np.savez(tmp_path / "x.npz", x=x, y=np.array([7] * 4))
    assert npz_images(tmp_path / "x.npz", DIGITS, [7], 2).drawn == [7]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA"])
def test_grey_images_as_programs_write_them(tmp_path, mode):
    grey = Image.fromarray(pixels()[0, 0])
    grey.convert(mode).save(tmp_path / "0.png")
    assert np.array_equal(read_image(tmp_path / "0.png", DIGITS), np.asarray(grey)[None])


def test_colours_for_a_grey_set_are_refused(tmp_path):
    Image.fromarray(pixels(1, 3)[0].transpose(1, 2, 0)).save(tmp_path / "0.png")
    with pytest.raises(UserError, match="has 3 channels of 16x16 uint8 pixels; data set digits needs one channel"):
        read_image(tmp_path / "0.png", DIGITS)


def test_folders_of_file_servers_are_no_classes(tmp_path):
    for name in ("7", "@eaDir", "lost+found"):
        (tmp_path / name).mkdir()
    for i in range(2):
        Image.fromarray(pixels()[i, 0]).save(tmp_path / f"7/{i}.png")
    assert file_images(tmp_path, DIGITS, [7], 2).drawn == [7]
