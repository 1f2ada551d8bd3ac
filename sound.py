"""Sound as images and back: log-mel spectrograms, their inversion, the pitch of a voice, wav files and pictures.

An image is a window of WINDOW samples at RATE Hz: R frames of R mel bands, row 0 the highest. A pixel u in [-1, 1] says
how loud a band is, in steps of 40 dB below the loudest of the window: u = clip(log10(M / max M) / 2 + 1, -1, 1), so
that -1 stands for 80 dB or more below it. The loudness of the whole is lost, and the phases are: the way back finds
them anew (`to_waves`).
"""

import base64
import io
import math
import wave
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from utils import UserError, replacing, to_uint8

RATE = 16_000  # Hz
WINDOW = 16_384  # samples of an image, 1.024 s
N_FFT = 1024  # samples of a Hann window, of which the spectra are taken
NNLS_UPDATES, GRIFFIN_LIM_STEPS, MOMENTUM = 60, 60, 0.99
PEAK = 0.9  # of the waves that are made from images, which know no loudness

F0_LOWEST, F0_HIGHEST = 60.0, 500.0  # Hz
F0_BAND = 800.0  # Hz: the harmonics above it are the first to be lost in noise and on the way through an image
F0_FRAME, F0_HOP = 768, 256  # samples
APERIODICITY = 0.35  # of a voiced frame, at most; YIN's absolute threshold
OCTAVE = 0.1  # by which the dip that is taken may be shallower than the deepest: the deepest can be of two periods
QUIET = 25.0  # dB below the loudest frame of a clip: a quieter frame is not voiced

# -------------------------------------------------------------------------------- mel spectrograms


def hz_to_mel(hz):
    """Slaney's mel scale, float64: a mel is 200/3 Hz up to 1 kHz, and from there a factor of 6.4^(1/27)."""
    hz = np.asarray(hz, np.float64)
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / math.log(6.4))


def mel_to_hz(mel):
    """The inverse of hz_to_mel."""
    mel = np.asarray(mel, np.float64)
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((np.maximum(mel, 15) - 15) / 27))


def band_edges(bands):
    """The bands + 2 frequencies in Hz, equally far apart in mel from 0 to RATE / 2, between which the bands lie."""
    return mel_to_hz(np.linspace(0, hz_to_mel(RATE / 2), bands + 2))


@lru_cache
def mel_filters(bands):
    """Slaney's filters, float32 (bands, N_FFT / 2 + 1), lowest first: triangles of area 1, in 1/Hz.

    Filter k rises from edge k to edge k + 1 and falls to edge k + 2 (Slaney, Auditory Toolbox, 1998).
    """
    edges, bins = band_edges(bands), np.linspace(0, RATE / 2, N_FFT // 2 + 1)
    up = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    down = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(up, down)) * 2 / (edges[2:] - edges[:-2])[:, None]
    return torch.from_numpy(triangles.astype(np.float32))


def hop_of(resolution):
    """Samples between the frames of an image of this side."""
    return WINDOW // resolution


def stft(waves, hop):
    """Complex spectra (B, N_FFT / 2 + 1, T / hop + 1) of waves (B, T): Hann windows centred on the multiples of hop,
    the waves mirrored at their ends."""
    return torch.stft(waves, N_FFT, hop, window=torch.hann_window(N_FFT, device=waves.device), center=True,
                      pad_mode="reflect", return_complex=True)


def to_images(waves, resolution):
    """Waves (B, WINDOW) in any units -> images (B, 1, resolution, resolution) in [-1, 1].

    Raises UserError for a wave that is silent throughout, for it has no loudest band.
    """
    spectra = stft(waves.float(), hop_of(resolution)).abs()[..., :resolution]  # (B, bins, R)
    mel = mel_filters(resolution).to(waves.device) @ spectra  # (B, R, R)
    loudest = mel.amax((1, 2), keepdim=True)
    if not (loudest > 0).all():
        raise UserError("a window of sound is silent throughout; take one in which there is something to hear.")
    levels = (mel / loudest).clamp(min=1e-4).log10() / 2 + 1
    return levels.clamp(-1, 1).flip(1)[:, None]


def to_spectra(images):
    """The amplitudes (B, N_FFT / 2 + 1, R) >= 0 whose mel spectrogram comes nearest to images (B, 1, R, R) in [-1, 1].

    Non-negative least squares, by NNLS_UPDATES multiplicative updates (Lee and Seung, 2001) of the clamped
    pseudo-inverse's answer.
    """
    mel = 10 ** (2 * (images[:, 0].float().flip(1) - 1))  # (B, R, R)
    filters = mel_filters(images.shape[2]).to(images.device)
    found = (torch.linalg.pinv(filters) @ mel).clamp(min=1e-8)
    wanted = filters.T @ mel
    for _ in range(NNLS_UPDATES):
        found = found * wanted / (filters.T @ (filters @ found)).clamp(min=1e-20)
    return found


def griffin_lim(spectra, hop, generator=None):
    """Waves (B, hop * (T - 1)) whose short-time spectra have the amplitudes (B, N_FFT / 2 + 1, T).

    Griffin and Lim's iteration, as Perraudin, Balazs and Sondergaard (2013) hasten it: GRIFFIN_LIM_STEPS steps of
    momentum MOMENTUM, from random phases that `generator` draws on the CPU.
    """
    window = torch.hann_window(N_FFT, device=spectra.device)

    def consistent(complex_spectra):
        waves = torch.istft(complex_spectra, N_FFT, hop, window=window)
        return waves, stft(waves, hop)

    # the same phases for each clip, so that what a clip sounds like does not depend on the others
    turns = torch.rand(spectra.shape[1:], generator=generator).to(spectra.device)
    guess, before = torch.polar(spectra, (2 * math.pi * turns).expand_as(spectra)), 0
    for _ in range(GRIFFIN_LIM_STEPS):
        _, now = consistent(guess)
        ahead = now + MOMENTUM * (now - before) if torch.is_tensor(before) else now
        guess, before = spectra * ahead / ahead.abs().clamp(min=1e-16), now
    return consistent(guess)[0]


@torch.no_grad()
def to_waves(images, seed=0, batch_size=8):
    """Images (B, 1, R, R) in [-1, 1] -> waves (B, WINDOW), float32, their largest sample PEAK. A clip's wave depends on
    its image and the seed alone."""
    waves = []
    for part in images.split(batch_size):
        spectra, hop = to_spectra(part), hop_of(part.shape[2])
        # the frame that an image leaves out, centred on the end
        spectra = torch.cat((spectra, spectra[..., -1:]), 2)
        made = griffin_lim(spectra, hop, torch.Generator().manual_seed(seed))
        waves.append(PEAK * made / made.abs().amax(1, keepdim=True).clamp(min=1e-12))
    return torch.cat(waves)


# ------------------------------------------------------------------------------------------- pitch


@torch.no_grad()
def pitch(waves, batch_size=64):
    """The fundamental frequency of waves (B, T) at RATE: (Hz, voiced), both (B, frames), Hz is NaN where not voiced.

    YIN (de Cheveigne and Kawahara, 2002), steps 1 to 5, of what lies below F0_BAND: the first dip of the cumulative
    mean normalised difference that is below APERIODICITY and within OCTAVE of the deepest, refined by a parabola.
    Frames of F0_FRAME samples, F0_HOP apart; F0_LOWEST to F0_HIGHEST Hz.
    """
    found = [_yin(part.float()) for part in waves.split(batch_size)]
    return torch.cat([hz for hz, _ in found]), torch.cat([voiced for _, voiced in found])


def _yin(waves):
    spectra = torch.fft.rfft(waves)
    spectra[:, math.ceil(F0_BAND / RATE * waves.shape[1]):] = 0
    waves = torch.fft.irfft(spectra, waves.shape[1])
    shortest, longest = int(RATE / F0_HIGHEST), math.ceil(RATE / F0_LOWEST)
    frames = waves.unfold(1, F0_FRAME + longest + 1, F0_HOP)  # (B, frames, F0_FRAME + lags - 1)
    size = 2 ** math.ceil(math.log2(frames.shape[2] + 1))
    spectra = torch.fft.rfft(frames[..., :F0_FRAME], size).conj() * torch.fft.rfft(frames, size)
    products = torch.fft.irfft(spectra, size)[..., :longest + 2]  # (B, frames, lags), sum over j of x[j] x[j + lag]
    energies = torch.nn.functional.pad(frames.double().square().cumsum(2), (1, 0))
    energies = (energies[..., F0_FRAME:] - energies[..., :longest + 2]).float()  # of x[lag:lag + F0_FRAME]
    difference = (energies[..., :1] + energies - 2 * products).clamp(min=0)
    lags = torch.arange(longest + 2, device=waves.device)
    mean = difference[..., 1:].cumsum(2) / lags[1:]
    normalised = torch.nn.functional.pad(difference[..., 1:] / mean.clamp(min=1e-12), (1, 0), value=1.0)

    left, middle, right = normalised[..., :-2], normalised[..., 1:-1], normalised[..., 2:]
    dips = (middle <= left) & (middle < right) & (middle < APERIODICITY)
    dips[..., :shortest - 1] = False
    dips &= middle <= torch.where(dips, middle, APERIODICITY).amin(2, keepdim=True) + OCTAVE
    first = dips.int().argmax(2, keepdim=True)  # of the lags from 1 on
    a, b, c = (part.gather(2, first)[..., 0] for part in (left, middle, right))
    period = first[..., 0] + 1 + (a - c) / (2 * (a - 2 * b + c)).clamp(min=1e-12)
    loud = energies[..., 0] > energies[..., 0].amax(1, keepdim=True) * 10 ** (-QUIET / 10)
    voiced = dips.any(2) & loud
    return torch.where(voiced, RATE / period, float("nan")), voiced


def voices(waves):
    """(median F0 in Hz, voiced share) of each wave (B, T), both (B,); the median is NaN where no frame is voiced."""
    hz, voiced = pitch(waves)
    return hz.nanmedian(1).values, voiced.float().mean(1)


# ----------------------------------------------------------------------------- files and pictures


def wav_bytes(samples):
    """A wave (T,) in [-1, 1] as the bytes of a wav file: mono, 16 bit, RATE."""
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(RATE)
        opened.writeframes((samples.clamp(-1, 1) * 32767).round().to(torch.int16).cpu().numpy().tobytes())
    return file.getvalue()


def save_wav(path, samples):
    """Write a wave (T,) in [-1, 1] as a wav file, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(wav_bytes(samples))


def wav_uri(samples):
    """A wave (T,) in [-1, 1] as a data URI, for a page that plays it without a network."""
    return "data:audio/wav;base64," + base64.b64encode(wav_bytes(samples)).decode()


def row_of(hz, resolution):
    """The place of a frequency on an image's vertical axis, in rows from its upper edge, as a float."""
    band = hz_to_mel(hz) / hz_to_mel(RATE / 2) * (resolution + 1) - 0.5  # of the lowest band's middle: 0.5
    return resolution - band


def coloured(pixels):
    """Loudness as colour: uint8 (H, W) -> (H, W, 3), from black through violet and orange to white."""
    stops = np.array([(0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (255, 255, 230)], np.float64)
    places = pixels / 255 * (len(stops) - 1)
    return np.stack([np.interp(places, range(len(stops)), stops[:, c]) for c in range(3)], 2).round().astype(np.uint8)


def save_spectrograms(path, rows, labels, marked=(), caption=None):
    """Write spectrograms as a PNG grid with axes of time and frequency, one labelled row each; atomically.

    rows: float images in [-1, 1], (rows, columns, 1, R, R). labels: a string a row. marked: the row numbers drawn
    with a red frame and a red label (the unseen classes).
    """
    pixels = to_uint8(rows).cpu().numpy()[:, :, 0]  # (rows, columns, R, R)
    n_rows, n_columns, resolution, _ = pixels.shape
    side, gap, margin = resolution * max(1, 128 // resolution), 8, 10
    font, small = ImageFont.load_default(size=16), ImageFont.load_default(size=11)
    axis = 34  # room for the frequencies
    left = margin + int(max(font.getlength(text) for text in labels)) + axis + margin
    top = margin if caption is None else margin + 26
    canvas = Image.new("RGB", (left + n_columns * (side + gap) + margin, top + n_rows * (side + gap) + 36), "white")
    draw = ImageDraw.Draw(canvas)
    if caption is not None:
        draw.text((margin, margin), caption, "black", font=font)
    for r in range(n_rows):
        y = top + r * (side + gap)
        colour = "#c81e1e" if r in marked else "black"
        draw.text((margin, y + side // 2), labels[r], colour, font=font, anchor="lm")
        for hz in (200, 500, 1000, 2000, 4000):
            at = y + float(row_of(hz, resolution)) * side / resolution
            draw.line((left - 5, at, left - 1, at), "black")
            draw.text((left - 7, at), f"{hz / 1000:g}k" if hz >= 1000 else str(hz), "black", font=small, anchor="rm")
        if r in marked:
            draw.rectangle((left - 2, y - 3, left + n_columns * (side + gap) - gap + 2, y + side + 2), outline=colour,
                           width=2)
        for c in range(n_columns):
            image = Image.fromarray(coloured(pixels[r, c])).resize((side, side), Image.NEAREST)
            canvas.paste(image, (left + c * (side + gap), y))
    y = top + n_rows * (side + gap)
    for c in range(n_columns):
        x = left + c * (side + gap)
        for seconds in (0.0, 0.5, 1.0):
            at = x + seconds * RATE / WINDOW * side
            draw.line((at, y - 4, at, y), "black")
            draw.text((at, y + 2), f"{seconds:g}", "black", font=small, anchor="ma")
    draw.text((margin, y + 2), "Hz, s", "black", font=small)
    with replacing(path) as temporary:
        canvas.save(temporary, format="PNG")
