"""Preparing sounds, on small files made here: windows, splits by who speaks, bad input, and the same image twice."""

import builtins
import zipfile

import numpy as np
import pytest

from datasets import open_source, voices
from datasets.prepare import prepare, summary
from datasets.voices import (
    elsewhere,
    found_in,
    group_of,
    prepare_sounds,
    read_sound,
    split_of,
    window_images,
    window_starts,
)
from sound import RATE, WINDOW
from utils import DatasetSpec, UserError

SPEC = DatasetSpec("made", 64, 1, ())


def tone(seconds, hz=200.0, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)


def write_sound(path, samples, rate=RATE):
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return path


def made_tree(root):
    """Two classes of six actors and five folds, two clips each."""
    for actor in range(1, 7):
        for take in (1, 2):
            write_sound(root / f"men/actor{actor:02d}_0{take}.wav", tone(1.5, 100 + 10 * actor + take))
    for fold in range(1, 6):
        for take in (1, 2):
            write_sound(root / f"nonhuman/dog_bark_{fold}-10{take}-A.flac", tone(1.5, 1000 + 10 * fold + take))
    return root


def test_whose_clip_a_file_is():
    assert group_of("men/actor07_03-01-01.ogg") == "actor07"
    assert group_of("nonhuman/dog_bark_3-136288-A.ogg") == "3"
    assert group_of("mine/hello.wav") == "hello.wav"


def test_nobody_is_in_two_splits():
    members = [("men", f"men/actor{actor:02d}_{take}.ogg") for actor in range(1, 25, 2) for take in range(3)]
    members += [("nonhuman", f"nonhuman/rain_{fold}-{take}.ogg") for fold in range(1, 6) for take in range(3)]
    found = {}
    for (name, file), split in split_of({"train": members}).items():
        found.setdefault((name, split), set()).add(group_of(file))
    assert {key: len(groups) for key, groups in found.items()} == {
        ("men", "train"): 6, ("men", "evaluator"): 4, ("men", "test"): 2,
        ("nonhuman", "train"): 3, ("nonhuman", "evaluator"): 1, ("nonhuman", "test"): 1}
    assert found["nonhuman", "test"] == {"5"} and found["men", "test"] == {"actor21", "actor23"}


def test_a_split_of_the_source_is_kept():
    members = {"train": [("a", f"train/a/{i}.wav") for i in range(6)], "test": [("a", "test/a/9.wav")]}
    found = split_of(members)
    assert found["a", "test/a/9.wav"] == "test" and list(found.values()).count("test") == 1
    assert list(found.values()).count("evaluator") == 2


def test_too_few_speakers_to_keep_apart():
    members = [("a", "a/actor01_1.wav"), ("a", "a/actor01_2.wav"), ("a", "a/actor02_1.wav")]
    with pytest.raises(UserError, match="class a has clips of 2 speakers or folds alone"):
        split_of({"train": members})
    assert len(set(split_of({"train": members, "test": [("a", "test/a/actor03_1.wav")]}).values())) == 3


def test_windows_lie_in_the_active_part():
    clip = np.zeros(4 * RATE, np.float32)
    clip[RATE:3 * RATE] = tone(2)
    starts = window_starts(clip)
    assert len(starts) == voices.MOST and starts[0] == RATE and starts[-1] == 3 * RATE - WINDOW
    assert (np.diff(starts) >= voices.STRIDE).all()
    # a click: a single window with the click in its middle
    clip = np.zeros(4 * RATE, np.float32)
    clip[2 * RATE:2 * RATE + 320] = 1
    assert window_starts(clip).tolist() == [2 * RATE + 160 - WINDOW // 2]
    # and at the very end the last window
    clip = np.zeros(2 * RATE, np.float32)
    clip[-320:] = 1
    assert window_starts(clip).tolist() == [2 * RATE - WINDOW]


def test_quiet_windows_are_left_out():
    clip = np.concatenate((tone(1.1), 10 ** (-25 / 20) * tone(4))).astype(np.float32)
    assert window_starts(clip).max() < 1.2 * RATE


def test_a_window_recorded_elsewhere():
    windows = np.stack([tone(WINDOW / RATE), tone(WINDOW / RATE, 3000)])
    made = elsewhere(windows, np.random.default_rng(0))
    assert made.shape == windows.shape
    for window, other in zip(windows, made, strict=True):
        gain = (window @ other) / (window @ window)
        below = 10 * np.log10(((other - gain * window) ** 2).mean() / ((gain * window) ** 2).mean())
        assert 10 ** (-voices.BEND / 20) < gain < 10 ** (voices.BEND / 20)
        assert -voices.SNR[1] - 1 < below < -voices.SNR[0] + 1


def test_a_clips_images_depend_on_its_name_alone():
    clip = tone(2).astype(np.float32)
    images = window_images(clip, "men/a.wav", 64)
    assert images.shape == (voices.MOST, 1, 64, 64) and images.dtype == np.uint8 and images.max() == 255
    assert (images == window_images(clip, "men/a.wav", 64)).all()
    assert (images != window_images(clip, "men/b.wav", 64)).any()
    assert (images == window_images(0.01 * clip, "men/a.wav", 64)).mean() > 0.99


def test_a_folder_and_its_zip_give_the_same_images(tmp_path):
    root = made_tree(tmp_path / "made")
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        for file in root.rglob("*.*"):
            archive.write(file, f"made/{file.relative_to(root)}")
    spec, parts = prepare_sounds(root, SPEC, "", print)
    assert spec.classes == ("men", "nonhuman")
    # 1.5 s: 1.024 s and three more steps of 0.1 s; 3, 2 and 1 of six actors, 3, 1 and 1 of five folds, two clips each
    assert {split: np.bincount(part.labels).tolist() for split, part in parts.items()} == {
        "train": [24, 24], "evaluator": [16, 8], "test": [8, 8]}
    _, again = prepare_sounds(tmp_path / "made.zip", SPEC, "", print)
    for split, part in parts.items():
        assert all((part.read(i) == again[split].read(i)).all() for i in range(len(part.labels)))


def test_other_rates_and_several_channels(tmp_path, capsys):
    path = write_sound(tmp_path / "a.wav", np.stack((tone(1.5, 440, 44_100), np.zeros(66_150)), 1), 44_100)
    clip, channels = read_sound(path, path)
    assert channels == 2 and len(clip) == 1.5 * RATE
    assert np.abs(clip[1000:-1000] - tone(1.5, 440)[1000:-1000] / 2).max() < 5e-3
    root = made_tree(tmp_path / "made")
    for take in (1, 2):
        write_sound(root / f"men/actor01_0{take}.wav", np.stack([tone(1.5)] * 2, 1))
    prepare_sounds(root, SPEC, "", print)
    assert capsys.readouterr().out.count("2 channels") == 1


@pytest.mark.parametrize("samples, rate, said", [
    (np.zeros(2 * RATE), RATE, "silent"), (tone(0.5), RATE, "lasts 0.50 s"),
    (tone(2, rate=8000), 8000, "8000 samples a second"), (np.full(2 * RATE, np.nan), RATE, "no finite numbers")])
def test_a_sound_that_cannot_be_used(tmp_path, samples, rate, said):
    pytest.importorskip("soundfile", reason="soundfile is not installed").write(
        tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    with pytest.raises(UserError, match=said) as found:
        read_sound(tmp_path / "a.wav", "men/a.wav")
    assert "men/a.wav" in str(found.value)


def test_a_file_that_does_not_decode_is_named(tmp_path):
    root = made_tree(tmp_path / "made")
    (root / "men/actor03_03.ogg").write_bytes(b"OggS and no more")
    with pytest.raises(UserError, match=r"men/actor03_03.ogg does not decode"):
        prepare_sounds(root, SPEC, "", print)


def test_sources_that_do_not_fit(tmp_path):
    (tmp_path / "images/men").mkdir(parents=True)
    (tmp_path / "images/men/a.png").write_bytes(b"")
    assert not found_in(tmp_path / "images")
    made_tree(tmp_path / "made")
    with pytest.raises(UserError, match="'nonhuman' is not a class"):
        prepare_sounds(tmp_path / "made", DatasetSpec("made", 64, 1, ("men", "women")), "", print)
    for resolution, channels in ((32, 1), (64, 3)):
        with pytest.raises(UserError, match="one channel and 64 or 128 pixels"):
            prepare_sounds(tmp_path / "made", DatasetSpec("made", resolution, channels, ()), "", print)


def test_prepared_by_the_command_of_all_sets(tmp_path):
    spec, splits = prepare("mine", tmp_path / "sets", made_tree(tmp_path / "made"), 128, 1)
    assert {path.stem for path in (tmp_path / "sets/mine").iterdir()} == {"train", "test", "evaluator"}
    assert spec.sound and "DatasetSpec('mine', 128, 1, ('men', 'nonhuman'), sound=True)" in summary(
        spec, splits, tmp_path / "sets")
    source = open_source(spec, tmp_path / "sets", "evaluator")
    assert source.image_shape == (1, 128, 128) and len(source) == len(splits["evaluator"].labels) == 24


def test_a_sentence_where_soundfile_is_missing(monkeypatch):
    load = builtins.__import__
    monkeypatch.setattr(builtins, "__import__",
                        lambda name, *rest: (_ for _ in ()).throw(ImportError) if name == "soundfile" else
                        load(name, *rest))
    with pytest.raises(UserError, match="pip install soundfile"):
        read_sound("a.wav", "a.wav")
