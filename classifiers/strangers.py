"""What a file that others made may not decide: which code is run, and whether the check has teeth."""

from utils import UserError

LIBRARIES = ("torchvision", "timm", "robustness")
NEAR_CHANCE = 0.3  # least share of the way from chance to certainty that any classifier has to go


def is_own_code(arch):
    """Whether an architecture's name is of the form module:factory, which is imported."""
    library, colon, _ = arch.partition(":")
    return bool(colon) and library not in LIBRARIES


def require_asked(arch, given, where, flag="--C_arch"):
    """Raise UserError where the architecture that the file `where` names is code to import, and is not the one given.

    given: the value of `flag` on the command line, '' for none.
    """
    if is_own_code(arch) and arch != given:
        raise UserError(f"{where} asks for the code {arch!r} to be imported, and a file does not decide what is run; "
                        f"if you trust that module, say so: {flag} {arch}")


def from_a_file(settings, flags, where):
    """The settings of a checkpoint (a dict), without what the command line alone may ask for.

    flags: what the command line gives. To trust the probed classifier, or the evaluator, is off unless given. Raises
    UserError as require_asked does.
    """
    for name in ("C_arch", "evaluator_arch"):
        require_asked(settings.get(name, ""), flags.get(name, ""), where, f"--{name}")
    trusted = {name: flags.get(name, False) for name in ("C_trust", "evaluator_trust") if name in settings}
    return {**settings, **trusted}


def least_expected(said, margin, classes):
    """(least accuracy, what suggests it) of a classifier on held-out images.

    said: the accuracy by its model card, or None. A card raises what is expected; it lowers it only down to what the
    number of classes suggests.
    """
    chance = 1 / classes
    least = chance + NEAR_CHANCE * (1 - chance)
    if said is None:
        return least, f"no model card, chance is {chance:.1%}"
    if said - margin >= least:
        return said - margin, f"its model card says {said:.1%}"
    return least, f"its model card says {said:.1%}, which is not taken for less than chance of {chance:.1%} suggests"
