"""The user's own code: found, imported so that its modules and ours keep their names, and its errors shown as its own.

A user's `utils.py`, `layers.py` or `datasets` package has the name of one of ours. While code of theirs is imported,
built or unpickled, such a name means the module in their folder; at all other times it means ours.
"""

import importlib
import inspect
import sys
import traceback
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import nn

from utils import ROOT, UserError

OURS = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
# how people call the number of classes, and of channels, where a network is made
CLASSES = ("num_classes", "n_classes", "nb_classes", "num_class", "n_class", "nclass", "nclasses", "classes",
           "num_labels", "n_labels", "num_outputs", "n_outputs", "out_features", "out_dim", "output_dim", "n_out")
CHANNELS = ("channels", "in_chans", "in_channels", "num_channels", "n_channels", "input_channels", "in_ch",
            "image_channels", "img_channels", "n_in")
_FOLDERS = {}


class Folder:
    """A folder of the user's code. `inside()` is the context in which its modules have their own names."""

    def __init__(self, path):
        self.path = str(path)
        clashing = [] if path == ROOT else OURS
        self.names = {name for name in clashing if (path / f"{name}.py").is_file() or any((path / name).glob("*.py"))}
        self.kept = {}  # their modules of such names, out of sys.modules while nothing of theirs is run

    def is_theirs(self, name):
        return name.partition(".")[0] in self.names

    @contextmanager
    def inside(self):
        ours = {name: sys.modules.pop(name) for name in list(sys.modules) if self.is_theirs(name)}
        sys.modules.update(self.kept)
        sys.path.insert(0, self.path)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(self.path)
            self.kept = {name: sys.modules.pop(name) for name in list(sys.modules) if self.is_theirs(name)}
            sys.modules.update(ours)
            if self.path not in sys.path:
                sys.path.append(self.path)  # last: what a function of theirs imports later is found, ours goes first


def folder_of(path):
    """The Folder at `path`, one object a path, so that a module of theirs is imported once."""
    path = Path(path).resolve()
    return _FOLDERS.setdefault(path, Folder(path))


@contextmanager
def inside(*paths):
    """The context of several folders, the first of which goes before the others."""
    with ExitStack() as stack:
        for folder in dict.fromkeys(folder_of(path) for path in reversed(paths)):
            stack.enter_context(folder.inside())
        yield


def holds(folder, name):
    return (folder / f"{name}.py").is_file() or (folder / name).is_dir()


def found_in(module):
    """The folder that a module's first part lies in: the working directory's before those of the path, ours last."""
    top = module.partition(".")[0]
    places = [Path.cwd(), *(Path(entry or ".") for entry in sys.path)]
    return next((place.resolve() for place in sorted(places, key=lambda place: place.resolve() == ROOT)
                 if holds(place, top)), Path.cwd())


def their_traceback(error):
    """The traceback of an error in the user's code, without the calls in this folder that led there."""
    hidden = ("<frozen", str(Path(__file__).parent), str(Path(sys.modules[nn.Module.__module__].__file__)))
    calls = [call for call in traceback.extract_tb(error.__traceback__) if not call.filename.startswith(hidden)]
    return "".join([*traceback.format_list(calls), *traceback.format_exception_only(error)]).rstrip()


def own_factory(module, name):
    """builder(num_classes, channels) from `name` in the user's `module`, which may be a file, as nets.py.

    Raises UserError, with the user's traceback, where the module or the name cannot be had.
    """
    if module.endswith(".py") or "/" in module:
        file = Path(module)
        folder, module = file.resolve().parent, file.stem
    else:
        folder = found_in(module)
    called = f"classifier architecture '{module}:{name}'"
    try:
        with inside(folder):
            imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name and module.startswith(error.name)
        if missing or isinstance(error, ValueError) and not module:
            raise UserError(f"{called} cannot be imported ({error}); give package.module:factory, found from the "
                            "folder that the command is run in, or FILE.py:factory.") from error
        raise UserError(f"{called} cannot be imported, since its own code fails:\n{their_traceback(error)}") from error
    if not callable(found := getattr(imported, name, None)):
        offered = [key for key, value in vars(imported).items() if callable(value) and not key.startswith("_")
                   and getattr(value, "__module__", "") == imported.__name__]
        raise UserError(f"{called} cannot be had: module {module} in {folder} has no attribute '{name}' that can be "
                        f"called; it defines: {', '.join(offered) or 'nothing'}.")

    def builder(num_classes, channels):
        with inside(folder):
            return called_with(found, called, num_classes, channels)

    return builder


def called_with(factory, called, num_classes, channels):
    """What `factory` makes, given the number of classes and of channels under the names that it knows them by.

    A factory that takes any name (**kwargs) hands on what it is given to one that may not: then fewer are given.
    """
    parameters = inspect.signature(factory).parameters
    given = {}
    for names, value in ((CLASSES, num_classes), (CHANNELS, channels)):
        known = next((key for key in names if key in parameters), None)
        if known:
            given[known] = value
    needed = [key for key, p in parameters.items() if p.default is p.empty and key not in given
              and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise UserError(f"{called} needs {', '.join(needed)}; give a function that needs at most num_classes and "
                        "channels, as: def mine(num_classes): return Net(...).")
    tries = [given]
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        more = {names[0]: value for names, value in ((CLASSES, num_classes), (CHANNELS, channels))
                if not given.keys() & set(names)}
        tries = [given | more, given | {key: more[key] for key in more if key == CLASSES[0]}, given]
    for arguments in tries:
        try:
            return factory(**arguments)
        except TypeError as error:
            if arguments is tries[-1] or "unexpected keyword argument" not in str(error):
                raise
