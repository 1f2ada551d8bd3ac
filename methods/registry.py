"""What a method of this loop is, the methods by name, and the settings of a run: shared ones and the method's own."""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_type_hints

import config as shared
from config import FIELDS, GROUPS, OFTEN, Config, Parser, add_flags, check_settings, merged_settings, tuples
from training import GAN
from utils import UserError, load_checkpoint, nearest


@dataclass(frozen=True)
class Settings:
    """A method's own settings, fields made by config.setting; each becomes a flag of train.py."""

    def __post_init__(self):
        check_settings(self)


@dataclass(frozen=True)
class Row:
    """How a method enters a table.

    flags: of train.py; {num} in them stands for the images measured of a class. classifier: 'each' for a row with each
    probed classifier, 'first' for a bound that needs one but is the same for all, 'none' where none is probed. needs:
    flags of a run that is trained before and given as --gan; '' for none.
    """

    key: str
    title: str
    flags: str
    classifier: str = "each"
    needs: str = ""


def all_classes(config, n_classes):
    """The labels of all classes."""
    return list(range(n_classes))


def unseen_classes(config, n_classes):
    """The labels of y*."""
    return list(config.new_class)


@dataclass(frozen=True)
class Method:
    """One way of drawing unseen classes.

    about: what --help says of it. settings: its own, derived from Settings. losses: (discriminator_loss,
    generator_loss) of a GAN, with the interface of methods/probegan.py. training: a class with the interface of
    training.Training. fed(config, n_classes): the labels that fakes are drawn for. conditional: whether a label says
    what is drawn, or conditional(config) where that depends on its settings; where not, a checkpoint holds latents or
    images of each class. oracle_title: its title with --oracle; '' refuses that. whole: whether a run that names no
    unseen class is of all, as with --oracle. selects: whether --select can choose among its checkpoints. check(config):
    raises UserError for settings that do not go together. weights(training): {term of generator_loss: its weight in G's
    loss} where that is not 1.
    """

    name: str
    title: str
    about: str
    settings: type = Settings
    losses: tuple[Callable, ...] = ()
    training: type = GAN
    fed: Callable = all_classes
    conditional: bool | Callable = True
    rows: tuple[Row, ...] = ()
    oracle_title: str = ""
    whole: bool = False
    selects: bool = False
    check: Callable = lambda config: None
    weights: Callable = lambda training: {}

    @property
    def own(self):
        """The names of its own settings."""
        return [field.name for field in dataclasses.fields(self.settings)]

    def draws(self, config, n_classes):
        """What a checkpoint says of what it draws, as plain values: `fed` and `conditional` as above, the `title` of
        the run in tables, the labels `new_class` that it is about, and whether the GAN saw images of them (oracle)."""
        conditional = self.conditional(config) if callable(self.conditional) else self.conditional
        return {"title": self.oracle_title if config.oracle else self.title, "fed": self.fed(config, n_classes),
                "conditional": conditional, "new_class": list(config.new_class), "oracle": config.oracle}


METHODS = {}


def register(method):
    """Add a Method. Raises ValueError for a second one of its name, or a setting that has another meaning already."""
    if method.name in METHODS:
        raise ValueError(f"two methods are called '{method.name}'")
    kinds = get_type_hints(method.settings)
    for name in method.own:
        if name in FIELDS or any(get_type_hints(METHODS[m].settings)[name] != kinds[name] for m in owners(name)):
            raise ValueError(f"the setting '{name}' of '{method.name}' has another meaning already")
    METHODS[method.name] = method


def owners(name):
    """The names of the methods that have an own setting of this name."""
    return [method.name for method in METHODS.values() if name in method.own]


def find_method(name):
    """The Method of a name; of '' the first that was registered. Raises UserError."""
    if name and name not in METHODS:
        raise UserError(f"--method '{name}' is not valid ({nearest(name, METHODS)}).")
    return METHODS[name or next(iter(METHODS))]


# ------------------------------------------------------------------------------------------- settings


def unknown(name, method):
    """The UserError for a setting that is neither shared nor the method's own."""
    return UserError(f"setting '{name}' is unknown ({nearest(name, [*FIELDS, *method.own])}).")


def with_own(config, own):
    """`config` with its method's own settings made from the plain values `own`. Raises UserError for what cannot be."""
    method = find_method(config.method)
    for name in own:
        if name not in method.own:
            raise unknown(name, method)
    if config.oracle and not method.oracle_title:
        raise UserError(f"--oracle trains on images of y*, which --method {method.name} is to do without; leave one "
                        "out.")
    if config.select and not method.selects:
        able = " or ".join(m.name for m in METHODS.values() if m.selects)
        raise UserError(f"--select chooses among the checkpoints of {able}; leave it out with --method {method.name}.")
    config = dataclasses.replace(config, method=method.name, own=method.settings(**tuples(own)))
    method.check(config)
    return config


def make_config(**settings):
    """The Config of a run: the data set's own settings overridden by `settings`, shared ones and the method's own.

    Raises UserError with the nearest right name for an unknown key, and for a setting of another method; such a one
    among the data set's own settings is passed over.
    """
    method = find_method(settings.get("method", ""))
    merged, of_data_set = merged_settings(settings)
    if method.whole and not merged["new_class"]:
        settings = {**settings, "oracle": True}
    own = {}
    for name in merged:
        if name in method.own:
            own[name] = merged[name]
        elif name not in FIELDS and not owners(name):
            raise unknown(name, method)
        elif owners(name) and name not in of_data_set:
            raise UserError(f"--{name} is a setting of --method {' and '.join(owners(name))}, and this run is of "
                            f"--method {method.name}; leave it out, or choose that method.")
    config = shared.make_config(**{name: value for name, value in settings.items() if name not in own})
    return with_own(config, own)


def read_config(values):
    """The Config of plain values, as a checkpoint holds them. Raises UserError for an unknown key or method.

    Of a run made before methods had settings of their own they are flat, those of all methods among them.
    """
    if "own" not in values:
        method = find_method(values["method"])
        own = {name: values[name] for name in method.own if name in values}
        values = {name: value for name, value in values.items() if name in FIELDS or not owners(name)} | {"own": own}
    config = Config.from_dict(values)
    return with_own(config, config.own)


def load_run(path):
    """utils.load_checkpoint; what a run made before methods had settings of their own does not say is added."""
    state = load_checkpoint(path)
    if "draws" not in state:
        config = read_config(state["config"])
        draws = find_method(config.method).draws(config, len(state["dataset"]["classes"]))
        state |= {"config": config.as_dict(), "draws": draws}
    return state


def start(config, spec, device, state=None):
    """The run that a Config asks for, a new one or from a checkpoint's state."""
    method = find_method(config.method)
    return method.training(method, config, spec, device, state)


# --------------------------------------------------------------------------------------- command line


class RunParser(Parser):
    """A parser of all settings of a run, the methods' own included; `run` is its group for flags of the command itself.

    --help shows what is often turned, --help all or a group's name the rest, --method X --help what X has of its own.
    """

    def __init__(self, description):
        super().__init__(description=description, add_help=False, usage="%(prog)s [flags]")
        self.run = self.add_argument_group("the run")
        self.run.add_argument("--method", default=argparse.SUPPRESS, metavar="NAME",
                              help=f"one of {', '.join(METHODS)} (default: {next(iter(METHODS))})")
        self.run.add_argument("-h", "--help", nargs="?", const="often", metavar="GROUP", default=argparse.SUPPRESS,
                              help="this page; all, or the name of a group: those settings")
        for name, group in GROUPS.items():
            add_flags(self.add_argument_group(name, group.__doc__), group)
        known = set()
        for method in METHODS.values():
            names = [name for name in method.own if name not in known]
            known.update(names)
            add_flags(self.add_argument_group(method.name), method.settings, names)

    def parse_args(self, args=None, namespace=None):
        """Parse; raises UserError for an unknown flag. Prints what --help asks for, and ends."""
        parsed = super().parse_args(args, namespace)
        if "help" in parsed:
            print(self.explained(parsed.help, vars(parsed).get("method", "")))
            sys.exit()
        return parsed

    def explained(self, asked, method):
        """The text of --help `asked` [--method `method`]. Raises UserError for a group that is none."""
        if asked == "all":
            return self.format_help()
        page = Parser(prog=self.prog, usage=self.usage, add_help=False)
        if method:
            own = find_method(method)
            page.description = f"--method {own.name}: {own.about}"
            add_flags(page.add_argument_group("its own settings"), own.settings)
        elif asked == "often":
            page.description = self.description
            page._action_groups.append(self.run)
            often = page.add_argument_group("what is often turned")
            for group in GROUPS.values():
                add_flags(often, group, [name for name in OFTEN if name in group.__dataclass_fields__])
            page.epilog = (f"More settings: --help all, or one group: {', '.join(GROUPS)}.\n"
                           "What a method has of its own: --method NAME --help.")
        elif asked in GROUPS:
            add_flags(page.add_argument_group(asked, GROUPS[asked].__doc__), GROUPS[asked])
        else:
            raise UserError(f"--help '{asked}' is no group of settings ({nearest(asked, ('all', *GROUPS))}).")
        return page.format_help()
