"""What a strange network takes and answers: found out by showing it images.

Networks answer with a tensor, or a tuple, dict or object that holds it beside features or auxiliary heads; with logits,
or what a sigmoid or softmax made of them; and many take images of one size alone, or flattened ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from classifiers.foreign import their_traceback
from utils import UserError

# tried where nothing says what a network takes: the usual ones first
SIZES = (28, 32, 64, 96, 128, 224, 299, 16, 48, 256, 384)
NAMED = ("logits", "logit")  # sure of its name, and likely ones
LIKELY = ("out", "output", "outputs", "pred", "preds", "prediction", "predictions", "score", "scores", "y", "y_hat",
          "main", "cls", "probs", "probabilities")
SMALLEST = 1e-30  # probability, whose logarithm float32 still holds
SATURATED = 1e-7  # how near to 0 and 1 a sigmoid's answer is believed
FORMS = {"logits": "logits", "log-softmax": "log-probabilities, which serve as logits",
         "softmax": "probabilities, of which the logarithm is taken",
         "sigmoid": "a sigmoid for each class, which is undone",
         "one logit": "one logit, taken for that of label 1 against 0",
         "one sigmoid": "one sigmoid, undone and taken for label 1 against 0"}


@dataclass(frozen=True)
class Answers:
    """Turns what a network returns into float32 logits (B, K).

    pick: the keys, places or attributes that lead to the tensor. form: one of FORMS. columns: the labels to keep, in
    this order; () keeps all.
    """

    pick: tuple = ()
    form: str = "logits"
    columns: tuple[int, ...] = ()

    def __call__(self, output):
        for key in self.pick:
            output = getattr(output, key) if isinstance(key, str) and not isinstance(output, Mapping) else output[key]
        values = output.float()
        values = values.flatten(1) if values.ndim > 1 else values[:, None]
        if self.form == "softmax":
            values = values.clamp(min=SMALLEST).log()
        elif self.form in ("sigmoid", "one sigmoid"):
            values = values.logit(SATURATED)
        if self.form.startswith("one"):
            values = torch.cat((torch.zeros_like(values), values), 1)
        return values[:, list(self.columns)] if self.columns else values

    def __str__(self):
        where = f" under {'.'.join(map(str, self.pick))} of what it returns" if self.pick else ""
        return f"{FORMS[self.form]}{where}"


def flat_if(flat, images):
    return images.flatten(1) if flat else images


# --------------------------------------------------------------------------------- what it answers


def tensors_in(output, at=()):
    """(pick, tensor) of each tensor in what a network returns."""
    if torch.is_tensor(output):
        yield at, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from tensors_in(value, (*at, key))
    elif isinstance(output, (tuple, list)):
        for place, value in enumerate(output):
            yield from tensors_in(value, (*at, place))
    elif output is not None and not isinstance(output, (str, bytes, int, float)):
        for key, value in getattr(output, "__dict__", {}).items():
            if torch.is_tensor(value):
                yield (*at, key), value


def logits_among(output, batch, widths):
    """The pick of the tensor that is likeliest the logits of `batch` images; None where there is none.

    widths: numbers of classes that would fit, as of the data set and of the network's last layer.
    """
    found = []
    for pick, value in tensors_in(output):
        shape = tuple(value.shape)
        if shape[:1] == (batch,) and all(side == 1 for side in shape[2:]) and value.is_floating_point():
            name = str(pick[-1]).lower() if pick else ""
            spare = any(part in str(key).lower() for key in pick for part in ("aux", "feat", "hidden", "embed"))
            width = shape[1] if len(shape) > 1 else 1
            found.append((name not in NAMED, spare, width not in widths, name not in LIKELY, len(found), pick))
    return min(found)[-1] if found else None


def form_of(values, wild):
    """Which of FORMS answers (B, K) are. wild: those to the same images far out of their range.

    There a layer that nothing bounds leaves [0, 1], which by chance it may keep to on others.
    """
    one = values.shape[1] == 1
    both = torch.cat((values, wild))
    if not both.isfinite().all() or both.max() - both.min() < 1e-6:
        return "one logit" if one else "logits"
    if both.min() >= 0 and both.max() <= 1 and values.max() > 0:
        if not one and (both.sum(1) - 1).abs().max() < 1e-3:
            return "softmax"
        return "one sigmoid" if one else "sigmoid"
    if not one and both.max() <= 0 and both.logsumexp(1).abs().max() < 1e-3:
        return "log-softmax"
    return "one logit" if one else "logits"


# ----------------------------------------------------------------------------------- what it takes


@dataclass(frozen=True)
class Trial:
    """What showing a network images found: channels, pixels a side, whether flattened, and how it answers."""

    channels: int
    size: int
    flat: bool
    answers: Answers
    num_classes: int


def shown(channels, size, n=8):
    """Images (n, channels, size, size) of several kinds, about as normalised ones are: noise, and of one brightness."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, channels, size, size, generator=generator)
    level = torch.linspace(-1.5, 1.5, n)[:, None, None, None]
    return torch.where(torch.arange(n)[:, None, None, None] % 2 == 0, noise, level + 0.2 * noise)


def takes(model, channels, size, flat):
    """The error with which a network refuses 2 such images, or None."""
    try:
        with torch.no_grad():
            model(flat_if(flat, torch.zeros(2, channels, size, size)))
    except Exception as error:  # foreign code fails in many ways
        return error
    return None


def sides_of(model, channels):
    """The sizes whose flattened images a network's first linear layer would take."""
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Linear)), None)
    side = round((first.in_features / channels) ** 0.5) if first else 0
    return [side] if side and side * side * channels == first.in_features else []


def try_out(model, channels, sizes, classes, path, size_flag, only=False):
    """The Trial of a network. Raises UserError where it takes no images, or answers with no logits.

    channels: numbers of channels to try, in this order; sizes: the pixels a side that are to be tried before the
    usual ones, or, with `only`, instead of them. classes: the data set's number, or None.
    """
    model.eval()
    convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())
    tried, first_error = [], None
    for own in channels:
        sides = sizes if only else dict.fromkeys([*sizes, *sides_of(model, own), *SIZES])
        for size, flat in ((size, flat) for flat in ((False,) if convolves else (False, True)) for size in sides):
            error = takes(model, own, size, flat)
            if error is None:
                return answering(model, own, size, flat, classes, path)
            tried.append(size)
            first_error = first_error or error
    listed = ", ".join(map(str, dict.fromkeys(tried)))
    raise UserError(f"the classifier {path} does not take 2 images of {' or '.join(map(str, channels))} channels and "
                    f"{tried[0]} x {tried[0]} pixels (tried: {listed}); give its size by {size_flag}, or leave that "
                    "out to have the usual ones tried, and export it for any number of images. It fails here:\n"
                    f"{their_traceback(first_error)}") from first_error


def answering(model, channels, size, flat, classes, path):
    """The Trial of a network that takes images of this kind."""
    images = shown(channels, size)
    with torch.no_grad():
        output = model(flat_if(flat, images))
        layers = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
        pick = logits_among(output, len(images), {classes, *layers[-1:]})
        if pick is None:
            shapes = ", ".join(str(tuple(value.shape)) for _, value in tensors_in(output)) or type(output).__name__
            raise UserError(f"the classifier {path} answers {len(images)} images with {shapes}; it must give logits, "
                            f"({len(images)}, classes).")
        plain = Answers(pick)
        values, wild = plain(output), plain(model(flat_if(flat, 50 * images)))
    answers = replace(plain, form=form_of(values, wild))
    return Trial(channels, size, flat, answers, max(values.shape[1], 2))
