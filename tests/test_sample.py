"""Sampling: image i depends on seed i alone, from nothing but a checkpoint; every mode writes what it says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
import sound
import utils
from BigGAN import make_generator
from config import Config
from layers import StoredBatchNorm
from methods import find_method
from sampler import Sampler
from utils import save_checkpoint, seeded_latents, to_uint8

ROOT = Path(__file__).parents[1]
CLASSES = ["cat", "dog", "horse"]


def make_state(resolution=16, channels=3, classes=CLASSES, **settings):
    config = Config(**{"dataset": "a data set that is registered no more", "new_class": (2,), "G_ch": 2, "dim_z": 12,
                       "shared_dim": 8, "init": "ortho", **settings})
    torch.manual_seed(0)
    G = make_generator(config, resolution, channels, len(classes))
    return {"config": config.as_dict(), "step": 5, "G_ema": G.state_dict(),
            "draws": find_method(config.method).draws(config, len(classes)),
            "dataset": {"resolution": resolution, "channels": channels, "classes": list(classes)}}


@pytest.fixture
def run(tmp_path):
    save_checkpoint(tmp_path / "run", make_state(), keep=1)
    return tmp_path / "run"


def sampler(**options):
    return Sampler(make_state(), torch.device("cpu"), **options)


def command(*flags):
    return subprocess.run([sys.executable, str(ROOT / "sample.py"), *map(str, flags)], capture_output=True, text=True)


def call(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, flags)])
    sample.main()


def test_sounds_are_written_beside_their_spectrograms(tmp_path, monkeypatch):
    classes = utils.DATASETS["voices"].classes
    save_checkpoint(tmp_path / "run", make_state(64, 1, classes, dataset="voices", new_class=(1,)), keep=1)
    call(monkeypatch, "--checkpoint", tmp_path / "run", "--sound", "--columns", 2, "--seed", 5, "--device", "cpu")
    sounds = tmp_path / "run/samples_grid"
    assert {path.name for path in sounds.iterdir()} == {f"{name}_{seed}.wav" for name in classes for seed in (5, 6)}
    # the sound of that very image
    drawn = Sampler(make_state(64, 1, classes, dataset="voices", new_class=(1,)), torch.device("cpu"))
    waves = sound.to_waves(drawn.class_images(1, (5, 6)))
    assert (sounds / "women_6.wav").read_bytes() == sound.wav_bytes(waves[1])
    assert Image.open(tmp_path / "run/samples_grid.png").size[0] > 2 * 128


@pytest.mark.parametrize("flags, words", [((), "are none"), (("--mode", "class"), "leave out --mode class")])
def test_what_has_no_sound(tmp_path, monkeypatch, flags, words):
    state = make_state(64, 1, utils.DATASETS["voices"].classes, dataset="voices") if flags else make_state()
    save_checkpoint(tmp_path / "run", state, keep=1)
    with pytest.raises(utils.UserError, match=words):
        call(monkeypatch, "--checkpoint", tmp_path / "run", "--sound", "--device", "cpu", *flags)


def test_latents_depend_on_their_own_seed_alone():
    rows = seeded_latents([3, 9, 4], 12)
    assert torch.equal(rows[1], seeded_latents([9], 12)[0])
    assert not torch.equal(rows[0], rows[2])


def test_an_image_does_not_depend_on_the_batch_it_is_made_in():
    drawn = sampler()
    together = drawn.class_images(1, range(20))
    drawn.batch_size = 7
    apart = drawn.class_images(1, range(20))
    # a batch of another size may round the last bit of a float differently
    assert (to_uint8(together).int() - to_uint8(apart).int()).abs().max() <= 1
    assert torch.allclose(together[13], drawn.class_images(1, [13])[0], atol=1e-5)


def test_the_same_checkpoint_gives_the_same_images():
    assert torch.equal(sampler().class_images(2, range(4)), sampler().class_images(2, range(4)))


def test_truncation_bounds_the_latents():
    z = sampler(truncation=0.5).latents(range(50))
    assert z.abs().max() <= 0.5 and z.std() > 0.2
    assert sampler().latents(range(50)).abs().max() > 2


def test_standing_statistics_are_those_of_the_generator_s_own_layers():
    drawn = sampler()
    for norm in drawn.G.modules():
        if isinstance(norm, StoredBatchNorm):
            assert not norm.training and norm.momentum == 0.1
            assert norm.stored_mean.abs().max() > 0
    first = drawn.G.blocks[0][0].bn1
    z, y = zip(*(drawn._standing_batch(k) for k in range(16)), strict=True)
    h = torch.cat([drawn.G.linear(part[:, :drawn.G.chunk]) for part in z]).unflatten(1, (-1, 4, 4))
    assert torch.allclose(first.stored_mean, h.mean((0, 2, 3)), atol=1e-5)
    per_pass = [part.var((0, 2, 3)) for part in h.split(100)]
    assert torch.allclose(first.stored_var, torch.stack(per_pass).mean(0), rtol=1e-4)


def test_every_mode_writes_its_file(run, monkeypatch, capsys):
    for flags in (["--mode", "grid", "--columns", 3], ["--mode", "class", "--columns", 2],
                  ["--mode", "z", "--columns", 4], ["--mode", "y", "--classes", "cat", "2", "--columns", 4]):
        call(monkeypatch, "--checkpoint", run, "--device", "cpu", *flags)
        path = Path(capsys.readouterr().out.strip())
        assert path.parent == run and Image.open(path).size[0] > 64
    call(monkeypatch, "--checkpoint", run, "--mode", "npz", "--num", 5, "--classes", "dog", "horse", "--device", "cpu",
         "--seed", 100, "--out", run / "a.npz")
    with np.load(run / "a.npz") as arrays:
        assert arrays["x"].shape == (10, 3, 16, 16) and arrays["x"].dtype == np.uint8
        assert arrays["y"].tolist() == [1] * 5 + [2] * 5 and arrays["seed"].tolist() == list(range(100, 110))
        assert arrays["classes"].tolist() == CLASSES
        expected = to_uint8(sampler().class_images(2, [107])[0]).numpy()
        assert np.abs(arrays["x"][7].astype(int) - expected).max() <= 1


def test_the_grid_marks_the_unseen_class_only(run, monkeypatch, capsys):
    call(monkeypatch, "--checkpoint", run, "--columns", 2, "--device", "cpu", "--out", run / "g.png")
    pixels = np.asarray(Image.open(run / "g.png")).astype(int)
    frame = (np.abs(pixels - [0xC8, 0x1E, 0x1E]).sum(2) == 0).sum(1)
    rows = np.flatnonzero(frame > 50)  # the two horizontal edges of one frame
    third = pixels.shape[0] * 2 // 3
    assert len(rows) == 4 and rows.min() > third - 10


def test_the_ends_of_a_class_walk_are_the_classes(run):
    drawn = sampler()
    z = drawn.latents([0])
    ends = drawn.G.shared(torch.tensor([0, 2]))
    walk = drawn.images(z.repeat(2, 1), ends)
    assert torch.allclose(walk[0], drawn.class_images(0, [0])[0], atol=1e-5)
    assert torch.allclose(walk[1], drawn.class_images(2, [0])[0], atol=1e-5)


def test_a_naive_checkpoint_draws_its_unseen_class_alone(tmp_path, monkeypatch):
    drawn = Sampler(make_state(method="naive"), torch.device("cpu"))
    assert drawn.drawn == [2]
    save_checkpoint(tmp_path, make_state(method="naive"), keep=1)
    with pytest.raises(utils.UserError, match="this checkpoint of --method naive draws horse alone"):
        call(monkeypatch, "--checkpoint", tmp_path, "--classes", "cat", "--device", "cpu")


def test_released_weights_can_be_sampled(shared_file, tmp_path):
    with np.load(shared_file("fixtures/biggan32_reference.npz"), allow_pickle=False) as arrays:
        prefix = "state/G/"
        weights = {k.removeprefix(prefix): torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith(prefix)}
    torch.save(weights, tmp_path / "G_ema.pth")
    flags = ["--init_G", tmp_path / "G_ema.pth", "--dataset", "C10", "--G_ch", 4, "--device", "cpu",
             "--out", tmp_path / "grid.png"]
    done = command(*flags, "--shared_dim", 16)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "grid.png").size[1] > 640  # ten rows
    done = command(*flags)
    assert done.returncode == 2 and "does not fit Generator" in done.stderr


@pytest.mark.parametrize("flags, words", [
    ([], "give either --checkpoint RUN, or --init_G"),
    (["--checkpoint", "nowhere"], "no checkpoint at nowhere"),
    (["--checkpoint", "RUN", "--classes", "cow"], "class 'cow' is not in this data set"),
    (["--checkpoint", "RUN", "--mode", "y", "--classes", "cat"], "name both with --classes"),
    (["--checkpoint", "RUN", "--mode", "class", "--classes", "cat", "dog"], "draws one class"),
    (["--checkpoint", "RUN", "--truncation", "0"], "--truncation is 0.0; it must be positive"),
    (["--checkpoint", "RUN", "--columns", "0"], "--columns is 0"),
    (["--checkpoint", "RUN", "--columns", "101"], "--columns is 101; a picture has 100 at most"),
    (["--checkpoint", "RUN", "--mode", "npzz"], "invalid choice: 'npzz'"),
    (["--checkpoint", "RUN", "--colums", "3"], "did you mean '--columns'"),
    (["--checkpoint", "RUN", "--seed", "1" + "0" * 30], "it must be at least 0 and less than 4611686018427387904"),
    (["--checkpoint", "RUN", "--seed", "-1"], "--seed is -1"),
    (["--checkpoint", "FILE"], "FILE is not a plain file of tensors"),
    (["--checkpoint", "no\udcff"], "no checkpoint at no\\udcff"),
    (["--checkpoint", "RUN", "--out", "FILE/a.png"], "a.png cannot be written ("),
    (["--checkpoint", "RUN", "--out", "FOLDER"], "samples_grid.png cannot be written (a folder has its name)"),
    (["--checkpoint", "RUN", "--out", "FILE.jpg"], "--mode grid writes a .png file; give a name that ends so, or a"),
    (["--checkpoint", "RUN", "--out", "FILE.png", "--mode", "npz"], "--mode npz writes a .npz file"),
])
def test_wrong_input_gets_a_sentence_before_anything_is_drawn(run, flags, words, monkeypatch, capsys):
    (run / "FILE").write_text("{}")
    (run / "FOLDER/samples_grid.png").mkdir(parents=True)
    flags = [str(run) if flag == "RUN" else str(run / flag) if flag.startswith("F") else flag for flag in flags]
    monkeypatch.setattr(Sampler, "images", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["sample.py", *flags, "--device", "cpu"])
    with pytest.raises(SystemExit) as stopped:
        utils.run_main(sample.main)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_a_file_that_executes_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    torch.save({"config": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(utils.UserError, match="not a plain file of tensors"):
        utils.load_checkpoint(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()
