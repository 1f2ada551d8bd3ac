"""What librosa and Praat say of some sounds, for test_sound.py: python tests/other_tools.py VOICES_ZIP

Needs: pip install librosa praat-parselmouth soundfile. Writes other_tools.npz beside this file: filters, a mel
spectrogram and the error of a way back by librosa; pitches by Praat of a sound made here and of windows of real clips.
It holds figures alone, no sound of anybody's.
"""

import sys
import zipfile
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("other_tools.npz")
RATE, WINDOW, N_FFT = 16_000, 16_384, 1024
CLIPS = 40


def glide():
    """A made voice, float64 (WINDOW,): 12 harmonics that glide from 110 to 260 Hz and are silent at both ends."""
    t = np.arange(WINDOW) / RATE
    phase = 2 * np.pi * np.cumsum(110 * (260 / 110) ** (t / t[-1])) / RATE
    wave = sum(np.sin(k * phase) / k for k in range(1, 13))
    noise = np.random.default_rng(0).standard_normal(WINDOW)
    return wave * np.sin(np.pi * t / t[-1]) + 0.01 * noise


def middles(names):
    """CLIPS of the clips of men and women, evenly spaced in their order."""
    names = sorted(name for name in names if name.endswith(".ogg") and "/nonhuman/" not in name)
    return [names[i] for i in np.linspace(0, len(names) - 1, CLIPS).astype(int)]


def pitch(wave):
    """F0 in Hz by Praat, NaN where not voiced, about in the middle of each frame of sound.pitch: float32 (60,)."""
    import parselmouth

    found = parselmouth.Sound(wave.astype(np.float64), RATE).to_pitch(0.016, 60, 500)
    return np.array([found.get_value_at_time((256 * k + 430) / RATE) for k in range(60)], np.float32)


def main():
    import io

    import librosa
    import soundfile

    wave, made = glide(), {}
    for bands in (64, 128):
        filters = librosa.filters.mel(sr=RATE, n_fft=N_FFT, n_mels=bands)
        hop = WINDOW // bands
        spectra = np.abs(librosa.stft(wave, n_fft=N_FFT, hop_length=hop, pad_mode="reflect"))
        mel = filters @ spectra
        again = librosa.feature.inverse.mel_to_stft(mel, sr=RATE, n_fft=N_FFT, power=1.0)
        back = librosa.griffinlim(again, n_iter=60, hop_length=hop, n_fft=N_FFT, random_state=0, length=WINDOW)
        remade = filters @ np.abs(librosa.stft(back, n_fft=N_FFT, hop_length=hop, pad_mode="reflect"))
        decibels = [20 * np.log10(np.maximum(m / m.max(), 1e-4))[:, :bands] for m in (mel, remade)]
        made |= {f"filters_{bands}": filters, f"mel_{bands}": mel[:, :bands].astype(np.float32),
                 f"way_back_{bands}": np.sqrt(((decibels[0] - decibels[1]) ** 2).mean())}
    made["pitch"] = pitch(wave)
    archive = zipfile.ZipFile(sys.argv[1])
    names = middles(archive.namelist())
    clips = [soundfile.read(io.BytesIO(archive.read(name)))[0][-WINDOW - 4000:-4000] for name in names]
    made |= {"clips": np.array(names), "pitches": np.stack([pitch(clip) for clip in clips])}
    np.savez_compressed(FILE, **made)


if __name__ == "__main__":
    main()
