"""Fitting the names of a strange state dict to a network's: prefixes, what stands beside the weights, what lacks.

Wrappers put prefixes before all names (`net.`, `backbone.`, `student.`, at any depth), torch.compile and DataParallel
inside them; checkpoints hold averages, loss weights, counters and normalisers beside the network, and leave counters
and auxiliary heads out.
"""

import re
from dataclasses import dataclass, field

WRAPPING = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # parts of names
SECOND = ("teacher", "attacker", "momentum", "discriminator", "target", "frozen", "old")  # not what one means first
AVERAGED = ("ema", "averaged", "average", "swa")
MEANS, STDS = ("mean", "means", "mu", "new_mean", "pixel_mean", "_mean"), ("std", "stds", "sigma", "new_std",
                                                                           "pixel_std", "_std")


@dataclass
class Fitted:
    """How a state dict fits a network.

    weights: {the network's name: tensor}. prefix: what was before the names. kept: the network's names that the file
    lacks and that need no value from it (counters, tables). dropped: its auxiliary heads that the file lacks.
    strays: {name: value} of what the network has no place for. elsewhere: other prefixes under which the file holds
    the whole network. misfit: what keeps it from being loaded, '' where nothing does.
    """

    weights: dict = field(default_factory=dict)
    prefix: str = ""
    kept: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    strays: dict = field(default_factory=dict)
    elsewhere: list[str] = field(default_factory=list)
    misfit: str = ""


def preference(place):
    """Sorts places in a file: a moving average first, as that is what was measured, then plain ones, then the rest."""
    parts = re.split(r"[._\s]+", place.lower())
    return (any(part in SECOND for part in parts), not any(part in AVERAGED for part in parts), place.count("."),
            len(place))


def unwrapped(weights, wanted):
    """{name without the parts that wrappers put inside it: tensor}, but for parts that the network has itself."""
    own = {part for name in wanted for part in name.split(".")}
    inside = [part for part in WRAPPING if part not in own]
    return {".".join(part for part in name.split(".") if part not in inside): value for name, value in weights.items()}


def shared_prefixes(names):
    """'' and each longer prefix, ending in a dot, that all names share."""
    names, prefix = list(names), ""
    yield prefix
    while names and "." in names[0][len(prefix):]:
        prefix = names[0][:names[0].index(".", len(prefix)) + 1]
        if not all(name.startswith(prefix) for name in names):
            return
        yield prefix


def prefixes(weights, wanted):
    """[(prefix in the file, prefix in the network, names found)] of all ways in which names agree."""
    found = {}
    for own in shared_prefixes(wanted):
        bare = {name[len(own):] for name in wanted}
        for name in weights:
            cut = 0
            while True:
                # a prefix that ends in the network's own is counted without either
                if name[cut:] in bare and not (own and name[:cut].endswith(own)):
                    found[name[:cut], own] = found.get((name[:cut], own), 0) + 1
                cut = name.find(".", cut) + 1
                if not cut:
                    break
    return [(prefix, own, count) for (prefix, own), count in found.items()]


def is_spare(name, value):
    """Whether a network's value need not come from the file: a counter or table of whole numbers."""
    return not value.is_floating_point() or name.endswith("num_batches_tracked")


def is_auxiliary(name):
    """Whether a name is of an auxiliary head, which answers in training alone."""
    return "aux" in name.partition(".")[0].lower()


def same_but_for_ones(shape, wanted):
    return [side for side in shape if side != 1] == [side for side in wanted if side != 1]


def listed(names, kind):
    return f"{names[0]} is {kind} (with {len(names) - 1} more)"


def fit_names(weights, wanted, which=""):
    """The Fitted of a state dict to a network's, {name: tensor}. which: the prefix to take, where several fit."""
    weights = unwrapped(weights, wanted)
    found = prefixes(weights, wanted)
    if not found:
        return Fitted(misfit=listed(list(wanted), "missing") + (f" and {listed(list(weights), 'unexpected')}"
                                                                if weights else ""))
    most = max(count for *_, count in found)
    whole = sorted({prefix for prefix, _, count in found if count == most}, key=preference)
    chosen = next((prefix for prefix in whole if which and prefix.rstrip(".").endswith(which.rstrip("."))), whole[0])
    own = next(own for prefix, own, count in found if prefix == chosen and count == most)
    fitted = Fitted(prefix=chosen, elsewhere=[prefix for prefix in whole if prefix != chosen])
    used = {}
    for name in wanted:
        given = chosen + name[len(own):]
        if given in weights:
            fitted.weights[name], used[given] = weights[given], name
    absent = [name for name in wanted if name not in fitted.weights]
    fitted.kept = [name for name in absent if is_spare(name, wanted[name])]
    fitted.dropped = [name for name in absent if name not in fitted.kept and is_auxiliary(name[len(own):])]
    missing = [name for name in absent if name not in fitted.kept and name not in fitted.dropped]
    copies = tuple(prefix for prefix in fitted.elsewhere if prefix)
    fitted.strays = {name: value for name, value in weights.items()
                     if name not in used and not (copies and name.startswith(copies))}
    unexpected = [name for name, value in fitted.strays.items() if belongs(name, value, chosen, wanted, own)]
    if missing or unexpected:
        kinds = (("missing", missing), ("unexpected", list(fitted.strays) if missing else unexpected))
        fitted.misfit = " and ".join(listed(names, kind) for kind, names in kinds if names)
        return fitted
    for name, value in fitted.weights.items():
        if value.shape != wanted[name].shape:
            if not same_but_for_ones(value.shape, wanted[name].shape):
                fitted.misfit = f"{name} is {tuple(value.shape)} and should be {tuple(wanted[name].shape)}"
                return fitted
            fitted.weights[name] = value.reshape(wanted[name].shape)
    return fitted


def belongs(name, value, prefix, wanted, own):
    """Whether a name that found no place says that the file holds another network, a deeper one or with more biases.

    It does where it lies beside the network's weights, in a part that the network has, and is no counter or table.
    """
    if not name.startswith(prefix) or value.numel() <= 1 or not value.is_floating_point():
        return False
    top = name[len(prefix):].partition(".")[0]
    parts = {known[len(own):].partition(".")[0] for known in wanted}
    return top in parts or top.isdecimal() and all(part.isdecimal() for part in parts)


def normaliser_in(strays, channels):
    """(mean, std, their names) as lists of floats where a file holds a normaliser beside its network, or None."""
    for name in strays:
        parent, _, last = name.rpartition(".")
        if last not in MEANS:
            continue
        other = f"{parent}.{STDS[MEANS.index(last)]}".lstrip(".")
        pair = [strays[name], strays.get(other)]
        if all(value is not None and value.numel() in (1, channels) for value in pair):
            mean, std = (value.float().flatten().expand(channels).tolist() for value in pair)
            if min(std) > 0:
                return mean, std, (name, other)
    return None
