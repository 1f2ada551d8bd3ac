"""The settings that all methods share: frozen dataclasses in groups, and the command-line flags made from them.

The defaults are the paper's CIFAR-10 settings (ProbeGAN, AAAI 2022, appendix, and the authors' launch
scripts). A data set's entry in utils.DATASETS overrides them, flags override both. Flags keep the
names that users of BigGAN-PyTorch know. What one method alone needs stands in its file in methods/.
"""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

from utils import DATASETS, ROOT, UserError, class_label, find_dataset, nearest


def setting(default, text, choices=None, or_none=False, least=None, above=None, below=None):
    """A dataclass field with the text of its flag, where it is one of a few its valid values, and, of several, whether
    the flag alone means none. A number is at least `least`, more than `above` and less than `below`, where given."""
    return dataclasses.field(default=default, metadata={
        "help": text, "choices": choices, "or_none": or_none, "least": least, "above": above, "below": below})


def check_settings(settings):
    """Raise UserError where a setting is none of its few valid values, or out of its bounds; a default is valid."""
    for field in dataclasses.fields(settings):
        value, of = getattr(settings, field.name), field.metadata
        if not of or value == field.default:
            continue
        if of["choices"]:
            for part in value if of["or_none"] else [value]:
                if part not in of["choices"]:
                    raise UserError(f"--{field.name} '{part}' is not valid ({nearest(part, of['choices'])}).")
        if of["least"] is None and of["above"] is None:
            continue
        low = of["above"] is None or value > of["above"]
        if low and (of["least"] is None or value >= of["least"]) and (of["below"] is None or value < of["below"]):
            continue
        if of["below"] is not None:
            must = f"be at least {of['least']} and less than {of['below']}"
        elif of["least"] == 0:
            must = "not be negative"
        else:
            must = f"be at least {of['least']}" if of["least"] is not None else "be positive"
        raise UserError(f"--{field.name} is {value}; it must {must}.")


@dataclass(frozen=True)
class Data:
    """What the GAN is shown. y* stands for the unseen classes."""

    dataset: str = setting("C10", "registered data set (utils.DATASETS); C10_wo_7 means C10 with --new_class 7")
    new_class: tuple[int, ...] = setting((), "unseen classes y*, by label or name; left out of the image set")
    only: tuple[str, ...] = setting((), "show D the images alone that have these values of attributes, as place=land")
    data_root: str = setting("datasets", "folder that holds the prepared data sets")
    oracle: bool = setting(False, "keep the images of y* in the set: the bound that no probe can pass")
    drop_suspects: bool = setting(False, "also leave out images of seen classes that C, or the evaluator, takes for y*")
    augment: str = setting("none", "augmentation of the real images", ("none", "flip", "crop", "flip_crop"))
    max_resident_gb: float = setting(4.0, "an image set larger than this streams from disk instead of memory", least=0)
    num_workers: int = setting(2, "threads that read a streamed image set", least=0)


@dataclass(frozen=True)
class Classifier:
    """The probed classifier, and the judge."""

    C_path: str = setting("", "checkpoint of the probed classifier (made by python -m classifiers.train)")
    C_arch: str = setting("", "its architecture, where the checkpoint does not name it: a registered name, wrn-28-10, "
                          "densenet-bc-190-40, torchvision:NAME, timm:NAME or package.module:factory")
    C_mean: tuple[float, ...] = setting((), "its mean of each channel, subtracted; not given: the checkpoint's")
    C_std: tuple[float, ...] = setting((), "its divisor of each channel; not given: the checkpoint's")
    C_size: int = setting(0, "its image size, to which fakes are resized; 0 is the checkpoint's, or any")
    C_range: tuple[float, ...] = setting((0.0, 1.0), "its values of black and white before mean and std, as 0 255")
    C_bgr: bool = setting(False, "it takes blue first")
    C_class_map: tuple[str, ...] = setting((), "its label or class name for each class of the data set, in order; none "
                                           "where it has none; not given: by name, else by position")
    C_trust: bool = setting(False, "unpickle --C_path where it needs that, which runs any code that it holds")
    C_weights: str = setting("", "which of several weights in --C_path, as state_dict_ema")
    skip_classifier_check: bool = setting(False, "take the classifier, and the judge, even if it fails its check")
    evaluator: str = setting("", "checkpoint of the classifier that will judge this run and must not be the probed one")
    evaluator_arch: str = setting("", "as C_arch, of the evaluator; so are the following")
    evaluator_mean: tuple[float, ...] = setting((), "as C_mean")
    evaluator_std: tuple[float, ...] = setting((), "as C_std")
    evaluator_size: int = setting(0, "as C_size", least=0)
    evaluator_range: tuple[float, ...] = setting((0.0, 1.0), "as C_range")
    evaluator_bgr: bool = setting(False, "as C_bgr")
    evaluator_map: tuple[str, ...] = setting((), "as C_class_map; a judge must know every class")
    evaluator_trust: bool = setting(False, "as C_trust")
    evaluator_weights: str = setting("", "as C_weights")


@dataclass(frozen=True)
class Losses:
    """Weights of the equations' terms. D_c is the conditional and D_u the unconditional head."""

    C_coeff: float = setting(1.0, "lambda_g, weight of the classifier's cross-entropy (eq. 1)", least=0)
    C_new_coeff: float = setting(1.0, "class weight of y* in the cross-entropy; 1 is off", least=0)
    C_coeff_end: float = setting(-1.0, "weight of the cross-entropy at the end of the run, reached along a line from "
                                 "C_coeff; negative: C_coeff throughout, as in the paper")
    prob_clip: float = setting(1.0, "fakes that C accepts with more than this probability add no loss; 1 is off")
    penalty: str = setting("wgan-gp", "gradient penalty on D_u: the paper's; r1: zero-centred on reals; zero: "
                           "zero-centred between reals and fakes", ("wgan-gp", "r1", "zero"))
    gp_coeff: float = setting(10.0, "weight of the gradient penalty on D_u (eq. 3)", least=0)
    gp_every: int = setting(1, "take the penalty at every k-th D step alone, k times as heavy; not the paper's",
                            least=1)
    D2_reg_coeff: float = setting(1e-4, "weight of E[D_u^2] in the losses of D and G", least=0)
    drift: float = setting(1e-3, "weight of E[D_u(real)^2] in D's loss where D2_reg_coeff is 0", least=0)
    balanced_y: bool = setting(False, "fakes of each class equally often in a batch; not the paper's")
    unseen_share: float = setting(0.0, "share of y* among the fakes; 0: as often as each other class, the paper's",
                                  least=0, below=1)
    diffaug: tuple[str, ...] = setting((), "DiffAugment before D: color, translation, time (sideways alone), "
                                       "cutout; not the paper's; --diffaug alone is none",
                                       ("color", "translation", "time", "cutout"), or_none=True)


@dataclass(frozen=True)
class Networks:
    """G and D. What a checkpoint holds of it rebuilds them."""

    networks: str = setting("biggan", "this project's, or AM-GAN's DCGAN pair, where D has class logits alone; of "
                            "that one G_ch, D_ch and dim_z are the only settings", ("biggan", "dcgan"))
    G_ch: int = setting(64, "width unit of G", least=1)
    D_ch: int = setting(64, "width unit of D", least=1)
    dim_z: int = setting(120, "dimension of the latent z", least=1)
    shared_dim: int = setting(128, "dimension of G's shared class embedding", least=1)
    hier: bool = setting(True, "hierarchical latent: one chunk of z to each block of G")
    G_attn: str = setting("0", "resolutions with self-attention in G, joined by _; 0 is none")
    D_attn: str = setting("0", "resolutions with self-attention in D, joined by _; 0 is none")
    init: str = setting("N02", "initial weights", ("N02", "ortho", "xavier"))
    BN_eps: float = setting(1e-5, "epsilon of batch norm", above=0)
    SN_eps: float = setting(1e-8, "epsilon of spectral norm", above=0)
    init_G: str = setting("", "start from the weights in this G.pth or G_ema.pth of BigGAN-PyTorch or ProbeGAN")
    init_D: str = setting("", "start from the weights in this D.pth of BigGAN-PyTorch or ProbeGAN")


@dataclass(frozen=True)
class Optimisation:
    """The steps."""

    batch_size: int = setting(64, "images a step, real and fake each, over all processes of torchrun", least=1)
    num_steps: int = setting(100_000, "G steps of the whole run", least=1)
    num_D_steps: int = setting(4, "D steps before each G step", least=1)
    num_D_accumulations: int = setting(1, "batches whose gradients a D step adds up, to save memory", least=1)
    num_G_accumulations: int = setting(1, "batches whose gradients a G step adds up", least=1)
    one_G_pass: bool = setting(False, "make the fakes of all D steps of a G step at once: faster, more memory; their "
                               "batch norms see all of them")
    G_lr: float = setting(2e-4, "learning rate of G", above=0)
    D_lr: float = setting(2e-4, "learning rate of D", above=0)
    beta1: float = setting(0.0, "Adam's beta_1 of both optimisers", least=0, below=1)
    beta2: float = setting(0.999, "Adam's beta_2 of both optimisers", least=0, below=1)
    adam_eps: float = setting(1e-8, "Adam's epsilon", above=0)
    ema_decay: float = setting(0.9999, "decay of the moving average of G that is sampled", least=0, below=1)
    ema_start: int = setting(1000, "G step from which the average is kept; a copy of G before", least=0)
    ema_rampup: float = setting(0.0, "the average reaches back over this share of the steps so far at most, as in "
                                "StyleGAN2-ADA; not the paper's; 0 is no bound", least=0)


@dataclass(frozen=True)
class Machine:
    """The machine and the files of the run folder."""

    seed: int = setting(0, "seed of the initial weights and of all draws", least=0, below=2**62)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting("auto", "arithmetic of the forward passes; auto: bf16 where it is faster",
                             ("auto", "fp32", "bf16"))
    cuda_graph: bool = setting(True, "replay iterations as one CUDA graph, without work for the host")
    log_every: int = setting(50, "G steps between lines of log.jsonl", least=1)
    sample_every: int = setting(1000, "G steps between sample grids", least=1)
    save_every: int = setting(1000, "G steps between checkpoints", least=1)
    keep: int = setting(3, "checkpoints kept", least=1)
    select: bool = setting(False, "also keep the best checkpoint, best.pt, by figures that use no image of y*")


GROUPS = {"data": Data, "classifier": Classifier, "losses": Losses, "networks": Networks, "optimisation": Optimisation,
          "machine": Machine}
# what --help shows; the rest is one more word away
OFTEN = ("dataset", "new_class", "oracle", "C_path", "evaluator", "G_ch", "D_ch", "batch_size", "num_steps",
         "seed", "precision")


@dataclass(frozen=True)
class Config(Machine, Optimisation, Networks, Losses, Classifier, Data):
    """Everything that decides what a run computes. Raises UserError for a value that cannot be.

    method: the name of one in methods/, which makes the Config of a run. own: the method's own settings, an object of
    its dataclass, or the plain values of one as a checkpoint holds them.
    """

    method: str = ""
    own: object = None

    def __post_init__(self):
        check_settings(self)
        if self.select and self.oracle:
            raise UserError("--select chooses without images of y*, and --oracle trains on them; leave one out.")
        if self.num_D_steps % self.gp_every:
            raise UserError(f"--gp_every {self.gp_every} does not divide --num_D_steps {self.num_D_steps}; give a "
                            "number that does.")
        for name in ("C_range", "evaluator_range"):
            given = getattr(self, name)
            if len(given) != 2 or given[0] == given[1]:
                raise UserError(f"--{name} is {' '.join(map(str, given))}; give the values of black and of white, two "
                                f"different numbers, as --{name} 0 255.")
        if self.C_size < 0:
            raise UserError(f"--C_size is {self.C_size}; it must be a number of pixels, or 0.")
        if self.unseen_share and self.balanced_y:
            raise UserError("--unseen_share says how often y* is drawn, and --balanced_y that each class is drawn "
                            "equally often; leave one out.")
        if not 0 < self.prob_clip <= 1:
            raise UserError(f"--prob_clip is {self.prob_clip}; it must be a probability above 0; 1 is off.")

    def as_dict(self):
        """Plain values alone, as JSON and torch.load(weights_only=True) take them; the method's own in `own`."""
        return plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values):
        """The Config of plain values, as `as_dict` gives them. Raises UserError for an unknown key."""
        for key in values:
            if key not in FIELDS:
                raise UserError(f"setting '{key}' is unknown ({nearest(key, FIELDS)}).")
        return cls(**tuples(values))


FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def plain(values):
    """A dict without tuples: lists in their place, in inner dicts too."""
    return {k: plain(v) if isinstance(v, dict) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def tuples(values):
    """A dict with tuples for lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def networks_of(values):
    """The Networks among the plain values of a Config, as a checkpoint holds them."""
    return Networks(**{field.name: values[field.name] for field in dataclasses.fields(Networks)
                       if field.name in values})


def add_flags(parser, settings=Config, names=None):
    """Add one flag a field of the dataclass `settings`, or one for each of `names`, to an argparse parser.

    A flag that is not given leaves no attribute. A field that is no `setting` has no flag.
    """
    kinds = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        name, kind = field.name, kinds[field.name]
        if not field.metadata or names is not None and name not in names:
            continue
        choices = field.metadata["choices"]
        listed = f"; one of {', '.join(choices)}" if choices and not field.metadata["or_none"] else ""
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        usual = "" if default is False or default == "" else f" (default: {default})"
        common = {"default": argparse.SUPPRESS, "help": f"{field.metadata['help']}{listed}{usual}"}
        if kind is bool:
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, **common)
        elif get_origin(kind) is tuple:
            element = str if name == "new_class" else get_args(kind)[0]
            parser.add_argument(f"--{name}", nargs="*" if field.metadata["or_none"] else "+", type=element,
                                metavar="LABEL" if element is not float else "VALUE", **common)
        else:
            parser.add_argument(f"--{name}", type=kind, metavar=kind.__name__.upper(), **common)


class Parser(argparse.ArgumentParser):
    """argparse, with errors as UserError and the nearest right name for a misspelt flag."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        raise UserError(f"{message}. See --help.")

    def parse_args(self, args=None, namespace=None):
        """Parse; raises UserError for an unknown flag."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [option for action in self._actions for option in action.option_strings]
            raise UserError(f"'{unknown[0]}' is not a flag of this command ({nearest(unknown[0], flags)}).")
        return parsed


def located(config, run):
    """A Config of the run in the folder `run`, its paths found from here: as they stand, or from the repository, or
    from a folder around the run, since they are relative to where the run was started."""
    def found(name):
        path = Path(getattr(config, name))
        if not path.name or path.is_absolute() or path.exists() or (ROOT / path).exists():
            return str(path) if path.name else ""
        return str(next((around / path for around in Path(run).resolve().parents if (around / path).exists()), path))

    return dataclasses.replace(config, **{name: found(name) for name in ("C_path", "evaluator", "data_root")})


def merged_settings(settings):
    """(the data set's own settings overridden by `settings`, with new_class as sorted labels; the names of those that
    the data set alone gives). Raises UserError for an unknown data set or class."""
    name, left_out = find_dataset(settings.get("dataset", Config.dataset))
    spec = DATASETS[name]
    unseen = {class_label(spec, c) for c in [*left_out, *settings.get("new_class", ())]}
    merged = {**spec.settings, **settings, "dataset": name, "new_class": sorted(unseen)}
    return merged, set(spec.settings) - set(settings)


def make_config(**settings):
    """A Config, without a method, from the data set's own settings overridden by `settings`.

    new_class entries may be labels or names; dataset may be 'C10_wo_7'. Raises UserError with the
    nearest right name for an unknown key.
    """
    merged, of_data_set = merged_settings(settings)
    # what the data set sets goes with its own number of D steps and its own draws
    if "gp_every" in of_data_set and merged.get("num_D_steps", Config.num_D_steps) % merged["gp_every"]:
        merged["gp_every"] = 1
    if "balanced_y" in of_data_set and merged.get("unseen_share"):
        merged["balanced_y"] = False
    config = Config.from_dict({key: value for key, value in merged.items()
                               if key in FIELDS or key not in of_data_set})
    n_classes = len(DATASETS[config.dataset].classes)
    if not config.new_class and not config.oracle:
        raise UserError("no unseen class was given; name at least one, as in --new_class 7 or --new_class horse.")
    if len(config.new_class) == n_classes and not config.oracle:
        raise UserError("every class is unseen; leave at least one class in the image set.")
    return config
