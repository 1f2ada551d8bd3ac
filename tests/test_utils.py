"""Files that last, errors as sentences, the registry, grids."""

import errno
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import utils
from config import Config, make_config
from files import JsonLines
from train import default_run
from utils import DATASETS, UserError, load_torch, replacing, save_torch


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.json"
    utils.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_a_replaced_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    utils.write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error, words", [
    (UserError("a sentence."), "error: a sentence.\n"),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "log.jsonl"), "log.jsonl could not be .* written .No space"),
    (NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "a.txt/x"), "a.txt/x could not .*Not a directory"),
])
def test_wrong_input_and_refusing_disks_exit_with_2(error, words, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        utils.run_main(main)
    assert stopped.value.code == 2
    assert re.search(words, capsys.readouterr().err)


def test_other_errors_keep_their_traceback():
    def main():
        raise FileNotFoundError(errno.ENOENT, "bug")

    with pytest.raises(FileNotFoundError):
        utils.run_main(main)


def test_a_log_drops_what_came_after_the_resumed_step(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 1 / 3})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut by a crash
    JsonLines(tmp_path / "log.jsonl", step=2)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "loss": 0.333333}\n{"step": 2, "loss": 0.333333}\n'


def test_data_set_names_with_left_out_classes():
    assert utils.find_dataset("C10_wo_7_horse") == ("C10", ["7", "horse"])
    assert make_config(dataset="C10_wo_horse") == make_config(dataset="C10", new_class=["7"])
    assert make_config(dataset="C10_wo_2", new_class=["horse"]).new_class == (2, 7)
    with pytest.raises(UserError, match="did you mean 'MNIST'"):
        utils.find_dataset("MNST_wo_7")


def test_names_with_underscores_in_the_name_of_a_data_set(monkeypatch):
    classes = ("red_panda", "giant_panda", "panda", "man_wo_hat", "7_up")
    monkeypatch.setitem(DATASETS, "zoo", utils.DatasetSpec("zoo", 32, 3, classes))
    monkeypatch.setitem(DATASETS, "zoo_wo_fish", utils.DatasetSpec("zoo_wo_fish", 32, 3, ("red", "red_panda")))
    for left_out in (["red_panda"], ["panda"], ["giant_panda", "red_panda"], ["man_wo_hat", "panda"], ["7_up", "2"]):
        assert utils.find_dataset(f"zoo_wo_{'_'.join(left_out)}") == ("zoo", left_out)
        config = make_config(dataset=f"zoo_wo_{'_'.join(left_out)}")
        assert default_run(replace(config, method="probegan"), DATASETS["zoo"]).name == "zoo_wo_" + "_".join(
            classes[y] for y in config.new_class)
    assert utils.find_dataset("zoo_wo_fish_wo_red_panda") == ("zoo_wo_fish", ["red_panda"])
    with pytest.raises(UserError, match="class 'red_pnda' is not in this data set.*did you mean 'red_panda'"):
        make_config(dataset="zoo_wo_red_pnda")


def test_a_name_that_says_two_things_is_refused(monkeypatch):
    monkeypatch.setitem(DATASETS, "zoo", utils.DatasetSpec("zoo", 32, 3, ("red", "panda", "red_panda", "fox")))
    with pytest.raises(UserError, match="--new_class red_panda fox or --dataset zoo --new_class red panda fox|"
                                        "--new_class red panda fox or --dataset zoo --new_class red_panda fox"):
        utils.find_dataset("zoo_wo_red_panda_fox")
    assert utils.find_dataset("zoo_wo_fox") == ("zoo", ["fox"])


@pytest.mark.parametrize("name", ["cpu:x", "gpu", "cuda:one", "meta", "", "cuda", "mps:0", "cuda:0"])
def test_devices_that_there_are_not(name, monkeypatch):
    for place in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(place, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"device '{name}' is (unknown; give|not available on this machine; leave)"):
        utils.choose_device(name)
    assert utils.choose_device("auto").type == "cpu"


def test_settings_of_the_data_set_lie_under_those_of_the_user():
    assert make_config(dataset="digits", new_class=["7"]).G_lr == DATASETS["digits"].settings["G_lr"]
    assert make_config(dataset="digits", new_class=["7"], G_lr=0.5).G_lr == 0.5
    assert make_config(dataset="C10", new_class=["7"]).G_lr == Config.G_lr == 2e-4
    with pytest.raises(UserError, match="setting 'G_lrr' is unknown .did you mean 'G_lr'"):
        make_config(dataset="digits", new_class=["7"], G_lrr=0.5)


def test_a_long_list_of_names_is_cut():
    assert utils.nearest("x", ["0", 1]) == "valid names: 0, 1"
    assert utils.nearest("x", range(1000)) == f"valid names: {', '.join(map(str, range(40)))} and 960 more"
    assert utils.nearest("99a", range(1000)) == "did you mean '99'?"


def test_a_class_is_found_by_name_before_label():
    spec = utils.DatasetSpec("x", 32, 3, ("1", "0", "horse"))
    assert [utils.class_label(spec, name) for name in ("1", "0", "2", "horse", 2)] == [0, 1, 2, 2, 2]


def test_uint8_and_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    floats = utils.to_unit_range(pixels)
    assert floats.min() == -1 and floats.max() == 1
    assert torch.equal(utils.to_uint8(floats), pixels)
    assert utils.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_its_images(tmp_path, channels):
    rows = torch.linspace(-1, 1, 6).view(2, 3, 1, 1, 1).expand(2, 3, channels, 64, 64)
    utils.save_grid(tmp_path / "g.png", rows, ["first", "second"], marked=[1])
    pixels = np.asarray(Image.open(tmp_path / "g.png"))
    for value in utils.to_uint8(rows[:, :, 0, 0, 0]).flatten():
        assert (pixels == value.item()).all(2).sum() >= 64 * 64


def test_a_flipped_bit_is_not_read(tmp_path):
    save_torch(tmp_path / "a.pt", {"weight": torch.full((1000,), 0.5)})
    data = bytearray((tmp_path / "a.pt").read_bytes())
    place = data.index(torch.full((1000,), 0.5).numpy().tobytes()) + 2000
    data[place] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(UserError, match="a.pt is damaged .*checksum of .* restore it"):
        load_torch(tmp_path / "a.pt")
