"""The methods, one in each file; ProbeGAN first. train.py --method NAME trains any of them, and each is drawn and
measured alike. A file declares all that is its own as METHOD: methods.registry says what that can be."""

from methods import (
    biggan,
    biggan_am,
    deep_inversion,
    degan,
    features,
    labelled,
    naive,
    probegan,
    probegan_labels,
    robust_synthesis,
)
from methods.registry import (
    METHODS,
    Method,
    Row,
    RunParser,
    Settings,
    find_method,
    load_run,
    make_config,
    read_config,
    register,
    start,
)

# in the order of tables; the first is the default
for module in (probegan, naive, biggan, biggan_am, robust_synthesis, deep_inversion, degan, labelled, probegan_labels,
               features):
    register(module.METHOD)

__all__ = ["METHODS", "Method", "Row", "RunParser", "Settings", "find_method", "load_run", "make_config",
           "read_config", "register", "start"]
