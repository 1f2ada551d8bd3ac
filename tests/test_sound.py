"""sound.py against librosa and Praat. Their figures lie in other_tools.npz: python tests/other_tools.py VOICES_ZIP"""

import base64
import io
import math
import wave
import zipfile

import numpy as np
import pytest
import torch
from other_tools import FILE, glide
from PIL import Image

import sound
from utils import UserError, to_uint8, to_unit_range

OTHERS = np.load(FILE)
GLIDE = torch.from_numpy(glide()).float()[None]


def decibels(images):
    """Images -> dB below the loudest band."""
    return 40 * (images - 1)


def tone(hz, harmonics=10):
    t = torch.arange(sound.WINDOW) / sound.RATE
    return sum(torch.sin(2 * math.pi * k * hz * t) / k for k in range(1, harmonics + 1))


@pytest.mark.parametrize("bands", [64, 128])
def test_filters_are_librosas(bands):
    assert np.abs(sound.mel_filters(bands).numpy() - OTHERS[f"filters_{bands}"]).max() < 1e-7


def test_the_mel_scale_by_hand():
    # 66.67 Hz a mel to 15 mels at 1 kHz, from there 27 mels a factor of 6.4
    assert sound.hz_to_mel([0, 200, 1000, 6400]) == pytest.approx([0, 3, 15, 42])
    assert sound.mel_to_hz([0, 3, 15, 42]) == pytest.approx([0, 200, 1000, 6400])
    assert sound.band_edges(2)[[0, -1]] == pytest.approx([0, 8000])


@pytest.mark.parametrize("bands", [64, 128])
def test_an_image_is_librosas_mel_spectrogram(bands):
    mel = OTHERS[f"mel_{bands}"]
    expected = np.clip(np.log10(np.maximum(mel / mel.max(), 1e-9)) / 2 + 1, -1, 1)[::-1]
    image = sound.to_images(GLIDE, bands)
    assert image.shape == (1, 1, bands, bands) and image.max() == 1
    assert np.abs(image[0, 0].numpy() - expected).max() < 1e-3


def test_loudness_is_lost_and_a_tone_lies_in_its_row():
    image = sound.to_images(tone(3000, 1)[None], 64)
    assert torch.allclose(sound.to_images(1e-3 * tone(3000, 1)[None], 64), image, atol=1e-4)
    row = image[0, 0].mean(1).argmax().item()
    assert abs(row + 0.5 - sound.row_of(3000, 64)) <= 1
    edges = sound.band_edges(64)[::-1]
    assert edges[row + 2] < 3000 < edges[row]


def test_silence_is_refused():
    with pytest.raises(UserError, match="silent"):
        sound.to_images(torch.zeros(2, sound.WINDOW), 64)


@pytest.mark.parametrize("bands", [64, 128])
def test_the_way_back_is_no_worse_than_librosas(bands):
    """Root mean square in dB between a made voice's image and that of the wave that is made of it."""
    image = sound.to_images(GLIDE, bands)
    made = sound.to_waves(image)
    assert made.shape == (1, sound.WINDOW) and made.abs().max() == pytest.approx(sound.PEAK)
    error = (decibels(sound.to_images(made, bands)) - decibels(image)).square().mean().sqrt().item()
    assert error < OTHERS[f"way_back_{bands}"]


def test_spectra_are_not_negative_and_give_the_image_back():
    image = sound.to_images(GLIDE, 64)
    spectra = sound.to_spectra(image)
    assert spectra.shape == (1, 513, 64) and spectra.min() >= 0
    mel = sound.mel_filters(64) @ spectra
    again = ((mel / mel.max()).clamp(min=1e-4).log10() / 2 + 1).flip(1)
    assert (again - image[:, 0]).abs().mean() < 0.02


def test_a_wave_depends_on_its_own_image_and_the_seed():
    images = torch.cat([sound.to_images(tone(hz)[None], 64) for hz in (120, 200, 330)])
    together = sound.to_waves(images, batch_size=2)
    assert torch.allclose(together[1:2], sound.to_waves(images[1:2]), atol=1e-3)
    assert not torch.allclose(together[1:2], sound.to_waves(images[1:2], seed=1), atol=1e-3)


def test_any_image_has_a_sound():
    images = torch.cat((torch.full((1, 1, 64, 64), -1.0), 2 * torch.rand(1, 1, 64, 64) - 1))
    assert sound.to_waves(images).isfinite().all()


def test_the_pitch_of_tones():
    hz = torch.tensor([65.0, 90, 120, 200, 330, 440, 495])
    found, share = sound.voices(torch.stack([tone(f) for f in hz.tolist()]))
    assert torch.allclose(found, hz, rtol=2e-3) and (share == 1).all()


def test_noise_has_no_pitch_and_quiet_frames_none():
    noise = torch.randn(4, sound.WINDOW, generator=torch.Generator().manual_seed(0))
    assert (sound.voices(noise)[1] < 0.1).all()
    half = tone(150)
    half[sound.WINDOW // 2:] *= 10 ** (-60 / 20)
    _, voiced = sound.pitch(half[None])
    assert 0.4 < voiced.float().mean() < 0.6
    hz, share = sound.voices(torch.zeros(1, sound.WINDOW))
    assert hz.isnan().all() and share == 0


def test_the_pitch_of_a_gliding_voice_is_praats():
    (hz,), (voiced,) = sound.pitch(GLIDE)
    praat = torch.from_numpy(OTHERS["pitch"])
    assert voiced.float().mean() > 0.7 and semitones(hz, praat)[voiced & ~praat.isnan()].max() < 0.5


def real_windows(shared_file):
    """Windows of the clips of other_tools.npz, (40, WINDOW)."""
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
    with zipfile.ZipFile(shared_file("data/voices16k.zip")) as archive:
        clips = [soundfile.read(io.BytesIO(archive.read(name)), dtype="float32")[0] for name in OTHERS["clips"]]
    return torch.stack([torch.from_numpy(clip[-sound.WINDOW - 4000:-4000]) for clip in clips])


def semitones(a, b):
    return (12 * (a / b).log2()).abs()


def test_the_pitch_of_real_voices_is_praats(shared_file):
    hz, voiced = sound.pitch(real_windows(shared_file))
    praat = torch.from_numpy(OTHERS["pitches"])
    both = voiced & ~praat.isnan()
    print((semitones(hz, praat)[both] <= 1).float().mean(), voiced.float().mean(), (~praat.isnan()).float().mean(),
          both.float().mean())
    assert (semitones(hz, praat)[both] <= 1).float().mean() >= 0.95
    assert abs(voiced.float().mean() - (~praat.isnan()).float().mean()) < 0.1


def test_the_pitch_of_real_voices_survives_the_way_through_an_image(shared_file):
    """Within a semitone: the median pitch of nine clips in ten, and nearly each frame voiced before and after."""
    waves = real_windows(shared_file)
    images = to_unit_range(to_uint8(sound.to_images(waves, 64)))
    (before, voiced), (after, still) = sound.pitch(waves), sound.pitch(sound.to_waves(images))
    off = semitones(after, before).masked_fill(~(voiced & still), float("nan"))
    medians = semitones(after.nanmedian(1).values, before.nanmedian(1).values)
    print((medians <= 1).float().mean(), (off[voiced & still] <= 1).float().mean(), still.float().mean())
    assert (medians <= 1).float().mean() >= 0.9 and (off[voiced & still] <= 1).float().mean() >= 0.95
    assert still.float().mean() > 0.75 * voiced.float().mean()


def test_wav_files(tmp_path):
    samples = torch.tensor([0.0, 0.5, -1.0, 3.0])
    sound.save_wav(tmp_path / "a.wav", samples)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
        assert np.frombuffer(file.readframes(4), np.int16).tolist() == [0, 16384, -32767, 32767]
    head, data = sound.wav_uri(samples).split(",")
    assert head == "data:audio/wav;base64" and base64.b64decode(data) == (tmp_path / "a.wav").read_bytes()


def test_spectrograms_are_drawn_with_the_low_tones_below(tmp_path):
    images = torch.stack([sound.to_images(tone(hz, 1)[None], 64) for hz in (300, 4000)])  # (2, 1, 1, 64, 64)
    sound.save_spectrograms(tmp_path / "a.png", images, ["low", "high"], marked=(1,), caption="tones")
    drawn = np.asarray(Image.open(tmp_path / "a.png").convert("L")).astype(float)
    assert drawn.shape[0] > 2 * 128 and not list(tmp_path.glob(".a.png*"))
    rows = drawn[:, drawn.shape[1] - 60]  # within the only column of images
    rows = np.where(rows < 254, rows, 0)
    low, high = rows[36:36 + 128].argmax(), rows[172:172 + 128].argmax()
    assert low > 100 and high < 40
