"""What is heard of spectrograms: recognition, pitch and voicing of the sound that they stand for.

An image is made audible (sound.to_waves), and the wave is what is measured: its pitch, and by the evaluator the image
that is made of it again. Patterns that no sound has do not survive that, so that they do not count. Real images go the
same way, and each figure has theirs beside it (key real).
"""

from dataclasses import dataclass

import torch

from metrics.intervals import bootstrap, bootstrap_means
from metrics.protocols import flaw, record, share_record
from metrics.recognition import rate
from metrics.registry import register
from sound import to_images, to_waves, voices
from utils import to_uint8, to_unit_range

HEARD = 100  # images of a class
VOICED = 0.4  # share of voiced frames from which a sound counts as voiced, and its pitch with it
SIDE = 190.0  # Hz: the threshold that best tells men from women, 93 % of the voices in data set voices
FEW = 1 / 3  # of the real voices' spread: a class whose pitch spreads less has collapsed


@dataclass(frozen=True)
class Heard:
    """What is heard of N images. hz: median F0 (N,), NaN where no frame is voiced; share: voiced frames (N,);
    judged: the evaluator's probabilities (N, K) of the sound's own spectrogram."""

    hz: torch.Tensor
    share: torch.Tensor
    judged: torch.Tensor

    @property
    def voiced(self):
        """Whether each sound counts as voiced, (N,)."""
        return self.share >= VOICED

    @property
    def pitches(self):
        """The median F0 of the voiced sounds."""
        return self.hz[self.voiced]

    def on_side(self, side):
        """Whether each pitch of a voiced sound is below SIDE, or for 'above' not below it."""
        return (self.pitches < SIDE) == (side == "below")


def hear(images, judge):
    """Heard of images (N, 1, R, R) in [-1, 1]; judge: images -> (features, probabilities (N, K))."""
    waves = to_waves(images)
    hz, share = voices(waves)
    # as 8 bits hold it, for so were the images that the judge was trained on
    again = to_unit_range(to_uint8(to_images(waves, images.shape[2])))
    judged = torch.cat([judge(part)[1].float().cpu() for part in again.split(100)])
    return Heard(hz.cpu(), share.cpu(), judged)


def side_of(real):
    """The side of SIDE on which a class speaks, 'below' or 'above', by its real sounds; None where few are voiced."""
    if real.voiced.float().mean() < 0.5:
        return None
    return "below" if real.on_side("below").float().mean() >= 0.5 else "above"


def agreement(heard, sides):
    """For each voiced sound that the evaluator gives to a class with a side: whether its pitch is on that side, bool.

    sides: {label: side or None}. A sound that is taken for a man's at 240 Hz is an adversarial image.
    """
    given = heard.judged.argmax(1)[heard.voiced].tolist()
    return torch.tensor([(hz < SIDE) == (sides[label] == "below")
                         for label, hz in zip(given, heard.pitches.tolist(), strict=True) if sides[label]]).bool()


def spread(pitches):
    """The standard deviation of pitches (n,) in Hz; NaN for fewer than two."""
    return pitches.std().item() if len(pitches) > 1 else float("nan")


def figures(label, heard, sides):
    """{name: value} of the sounds of a class, `label`: what `sound` records, as plain numbers; NaN where there is no
    such sound. sides: as `agreement` takes them."""
    found = {"sound_recognition": (heard.judged.argmax(1) == label).float().mean().item(),
             "voiced_share": heard.share.mean().item(),
             "f0_median": heard.pitches.median().item() if len(heard.pitches) else float("nan"),
             "f0_spread": spread(heard.pitches)}
    if sides[label]:
        found["f0_side"] = heard.on_side(sides[label]).float().mean().item()
    found["sound_agreement"] = agreement(heard, sides).float().mean().item()
    return found


def some_of(images, labels, label, count, generator):
    """At most `count` images of a class of uint8 images (M, C, H, W), drawn at random, in [-1, 1]."""
    rows = (labels == label).nonzero()[:, 0]
    return to_unit_range(images[rows[torch.randperm(len(rows), generator=generator)[:count]]])


@register("sound", "Of the images made audible: the share whose sound the evaluator recognises (sound_recognition); "
          f"the mean share of voiced frames; of sounds with {VOICED:.0%} of them, the median pitch in Hz, the share on "
          f"the side of {SIDE:.0f} Hz on which the class's real voices are, and the pitches' standard deviation, where "
          "little means collapse; how often pitch and evaluator agree. Key real: of real images that went the same "
          "way.",
          needs=("real", "sound"), parts=("sound_recognition", "voiced_share", "f0_median", "f0_side", "f0_spread",
                                          "sound_agreement"))
def sound(m):
    real = {label: hear(some_of(*m.training_set, label, HEARD, m.generator()).to(m.device), m.judge)
            for label in range(len(m.classes))}
    sides, records = {label: side_of(part) for label, part in real.items()}, []
    for label in m.images.drawn:
        heard = hear(to_unit_range(m.pixels[label][:HEARD]).to(m.device), m.judge)
        records += records_of(m, label, heard, figures(label, real[label], sides), sides)
    return records


def records_of(m, label, heard, of_real, sides):
    """The records of a class. of_real: the same figures of its real sounds."""
    name, pitches, generator = m.classes[label], heard.pitches, m.generator
    shares = {"sound_recognition": heard.judged.argmax(1) == label, "sound_agreement": agreement(heard, sides)}
    if sides[label]:
        shares["f0_side"] = heard.on_side(sides[label])
    records = [share_record(f"{metric}@{m.judge.name}" if metric.startswith("sound") else metric,
                            rate(hits.sum(), len(hits)), name, warning=flaw(m, label), real=of_real[metric])
               for metric, hits in shares.items() if len(hits)]
    records.append(record("voiced_share", heard.share.mean(), bootstrap_means(heard.share, generator()),
                          len(heard.share), name, flaw(m, label), real=of_real["voiced_share"]))
    if len(pitches) > 1:
        warning = flaw(m, label)
        if spread(pitches) < FEW * of_real["f0_spread"]:
            warning += (f" The pitches of class {name} spread by {spread(pitches):.0f} Hz, those of real ones by "
                        f"{of_real['f0_spread']:.0f} Hz: it may draw one voice again and again.")
        for metric, statistic in (("f0_median", lambda x: x.median().item()), ("f0_spread", spread)):
            interval = bootstrap(lambda rows, of=statistic: of(pitches[rows]), len(pitches), generator())
            records.append(record(metric, statistic(pitches), interval, len(pitches), name, warning.strip(),
                                  real=of_real[metric]))
    return records
