"""The settings of a run: one frozen dataclass, and the command-line flags made from it.

The defaults are the paper's CIFAR-10 settings (ProbeGAN, AAAI 2022, appendix, and the authors' launch
scripts). A data set's entry in utils.DATASETS overrides them, flags override both. Flags keep the
names that users of BigGAN-PyTorch know.
"""

import argparse
import dataclasses
from dataclasses import dataclass
from typing import get_args, get_origin, get_type_hints

from utils import DATASETS, UserError, class_label, find_dataset, nearest


def setting(default, text, choices=None, or_none=False):
    """A dataclass field with the text of its flag, where it is one of a few its valid values, and, of several, whether
    the flag alone means none."""
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices, "or_none": or_none})


def check_choices(settings):
    """Raise UserError where a setting that is one of a few is none of them; a default is always valid."""
    for field in dataclasses.fields(settings):
        value, choices = getattr(settings, field.name), field.metadata["choices"]
        if choices and value != field.default and value not in choices:
            raise UserError(f"--{field.name} '{value}' is not valid ({nearest(value, choices)}).")


# the name of each method in tables; what sample.py draws of each, sample.fake_classes says
METHODS = {"probegan": "ProbeGAN", "naive": "NAIVE", "biggan": "BigGAN", "biggan_am": "BigGAN-AM",
           "robust_synthesis": "classifier synthesis", "deep_inversion": "DeepInversion", "degan": "DeGAN-like"}


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes. Raises UserError for a value that cannot be.

    y* stands for the unseen classes, D_c for the conditional and D_u for the unconditional head.
    """

    # data
    dataset: str = setting("C10", "registered data set (utils.DATASETS); C10_wo_7 means C10 with --new_class 7")
    new_class: tuple[int, ...] = setting((), "unseen classes y*, by label or name; left out of the image set")
    data_root: str = setting("datasets", "folder that holds the prepared data sets")
    augment: str = setting("none", "augmentation of the real images", ("none", "flip", "crop", "flip_crop"))
    max_resident_gb: float = setting(4.0, "an image set larger than this streams from disk instead of memory")
    num_workers: int = setting(2, "threads that read a streamed image set")

    # the method
    method: str = setting("probegan", "ProbeGAN or a rival, a file each in baselines/", tuple(METHODS))
    oracle: bool = setting(False, "keep the images of y* in the set: the bound that no probe can pass")

    # the probed classifier
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
    skip_classifier_check: bool = setting(False, "probe the classifier even if it fails its check")
    evaluator: str = setting("", "checkpoint of the classifier that will judge this run and must not be the probed one")
    C_coeff: float = setting(1.0, "lambda_g, weight of the classifier's cross-entropy (eq. 1)")
    C_new_coeff: float = setting(1.0, "class weight of y* in the cross-entropy; 1 is off")
    C_coeff_end: float = setting(-1.0, "weight of the cross-entropy at the end of the run, reached along a line from "
                                 "C_coeff; negative: C_coeff throughout, as in the paper")
    prob_clip: float = setting(1.0, "fakes that C accepts with more than this probability add no loss; 1 is off")

    # losses of the discriminator
    penalty: str = setting("wgan-gp", "gradient penalty on D_u: the paper's; r1: zero-centred on reals; zero: "
                           "zero-centred between reals and fakes", ("wgan-gp", "r1", "zero"))
    gp_coeff: float = setting(10.0, "weight of the gradient penalty on D_u (eq. 3)")
    D2_reg_coeff: float = setting(1e-4, "weight of E[D_u^2] in the losses of D and G")
    drift: float = setting(1e-3, "weight of E[D_u(real)^2] in D's loss where D2_reg_coeff is 0")
    mask_real_by_fake: bool = setting(True, "drop real rows whose fake partner is of y* from the hinge of D_c")
    G_new_coeff: float = setting(1.0, "weight of the rows of y* in G's loss from D_u; 1 is off")
    D_tilemix_ngrid: int = setting(1, "shuffle an n x n grid of tiles across the batch before D_u; 1 is off")
    balanced_y: bool = setting(False, "fakes of each class equally often in a batch; not the paper's")
    diversity_coeff: float = setting(0.0, "weight of the differences between fakes of y*; not the paper's; 0 is off")
    diffaug: tuple[str, ...] = setting((), "DiffAugment before D: color, translation, cutout; not the paper's; "
                                       "--diffaug alone is none", or_none=True)

    # rivals
    num_images: int = setting(1000, "images, or latents, a class that a rival without a conditional generator keeps")
    synthesis_steps: int = setting(0, "steps of a rival that trains no GAN: on an embedding or on images; 0 is its own")
    gan: str = setting("", "run of --method biggan whose generator biggan_am searches")
    AM_lr: float = setting(0.05, "Adam's learning rate on the class embedding of biggan_am")
    AM_weight_decay: float = setting(0.0, "biggan_am: weight of the embedding's square")
    AM_diversity: float = setting(0.0, "biggan_am: weight of the differences between the images of a start")
    AM_diversity_space: str = setting("pixels", "what biggan_am's differences are measured in", ("pixels", "features"))
    PGD_eps: float = setting(30.0, "robust_synthesis: L2 distance that an image may go from its seed, on [0,1] pixels")
    DI_lr: float = setting(0.1, "Adam's learning rate on the pixels of deep_inversion")
    DI_bn: float = setting(1.0, "deep_inversion: weight of the distance to the classifier's batch-norm statistics")
    DI_tv: float = setting(1e-3, "deep_inversion: weight of the total variation")
    DI_l2: float = setting(1e-4, "deep_inversion: weight of the pixels' square")
    DG_entropy: float = setting(1.0, "degan: weight of the entropy of the classifier's answer to each image")
    DG_balance: float = setting(1.0, "degan: weight of the entropy of its mean answer")

    # networks
    G_ch: int = setting(64, "width unit of G")
    D_ch: int = setting(64, "width unit of D")
    dim_z: int = setting(120, "dimension of the latent z")
    shared_dim: int = setting(128, "dimension of G's shared class embedding")
    hier: bool = setting(True, "hierarchical latent: one chunk of z to each block of G")
    G_attn: str = setting("0", "resolutions with self-attention in G, joined by _; 0 is none")
    D_attn: str = setting("0", "resolutions with self-attention in D, joined by _; 0 is none")
    init: str = setting("N02", "initial weights", ("N02", "ortho", "xavier"))
    BN_eps: float = setting(1e-5, "epsilon of batch norm")
    SN_eps: float = setting(1e-8, "epsilon of spectral norm")
    init_G: str = setting("", "start from the weights in this G.pth or G_ema.pth of BigGAN-PyTorch or ProbeGAN")
    init_D: str = setting("", "start from the weights in this D.pth of BigGAN-PyTorch or ProbeGAN")

    # optimisation
    batch_size: int = setting(64, "images a step, real and fake each, over all processes of torchrun")
    num_steps: int = setting(100_000, "G steps of the whole run")
    num_D_steps: int = setting(4, "D steps before each G step")
    num_D_accumulations: int = setting(1, "batches whose gradients a D step adds up, to save memory")
    num_G_accumulations: int = setting(1, "batches whose gradients a G step adds up")
    one_G_pass: bool = setting(False, "make the fakes of all D steps of a G step at once: faster, more memory; their "
                               "batch norms see all of them")
    G_lr: float = setting(2e-4, "learning rate of G")
    D_lr: float = setting(2e-4, "learning rate of D")
    beta1: float = setting(0.0, "Adam's beta_1 of both optimisers")
    beta2: float = setting(0.999, "Adam's beta_2 of both optimisers")
    adam_eps: float = setting(1e-8, "Adam's epsilon")
    ema_decay: float = setting(0.9999, "decay of the moving average of G that is sampled")
    ema_start: int = setting(1000, "G step from which the average is kept; a copy of G before")

    # the machine and the run folder
    seed: int = setting(0, "seed of the initial weights and of all draws")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting("fp32", "arithmetic of the forward passes", ("fp32", "bf16"))
    cuda_graph: bool = setting(True, "replay iterations as one CUDA graph, without work for the host")
    log_every: int = setting(50, "G steps between lines of log.jsonl")
    sample_every: int = setting(1000, "G steps between sample grids")
    save_every: int = setting(1000, "G steps between checkpoints")
    keep: int = setting(3, "checkpoints kept")
    select: bool = setting(False, "also keep the best checkpoint, best.pt, by figures that use no image of y*")

    def __post_init__(self):
        check_choices(self)
        if self.oracle and self.method not in ("probegan", "biggan"):
            raise UserError(f"--oracle trains on images of y*, which --method {self.method} is to do without; leave "
                            "one out.")
        if self.select and self.oracle:
            raise UserError("--select chooses without images of y*, and --oracle trains on them; leave one out.")
        if self.select and self.method not in ("probegan", "naive"):
            raise UserError(f"--select chooses among the checkpoints of probegan or naive; leave it out with --method "
                            f"{self.method}.")
        if self.method == "naive" and len(self.new_class) != 1:
            raise UserError(f"--method naive draws one unseen class; {len(self.new_class)} were given.")
        if (self.method == "biggan_am") != bool(self.gan):
            raise UserError("--method biggan_am searches the generator of another run, and no other method does: give "
                            "both --method biggan_am and --gan RUN, or neither. That run is made by train.py --method "
                            "biggan with the same data set and unseen class.")
        if self.num_images < 50:
            raise UserError(f"--num_images is {self.num_images}; it must be at least 50.")
        for name in ("batch_size", "num_steps", "num_D_steps", "num_D_accumulations",
                     "num_G_accumulations", "G_ch", "D_ch", "dim_z", "shared_dim", "D_tilemix_ngrid",
                     "log_every", "sample_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("C_coeff", "C_new_coeff", "G_new_coeff", "gp_coeff", "D2_reg_coeff", "drift", "num_workers",
                     "max_resident_gb", "ema_start", "diversity_coeff", "synthesis_steps", "AM_weight_decay",
                     "AM_diversity", "DI_bn", "DI_tv", "DI_l2", "DG_entropy", "DG_balance"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name} is {getattr(self, name)}; it must not be negative.")
        for name in ("G_lr", "D_lr", "adam_eps", "BN_eps", "SN_eps", "AM_lr", "PGD_eps", "DI_lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be positive.")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least 0 and less than 1.")
        if len(self.C_range) != 2 or self.C_range[0] == self.C_range[1]:
            raise UserError(f"--C_range is {' '.join(map(str, self.C_range))}; give the values of black and of white, "
                            "two different numbers, as --C_range 0 255.")
        if self.C_size < 0:
            raise UserError(f"--C_size is {self.C_size}; it must be a number of pixels, or 0.")
        if not 0 < self.prob_clip <= 1:
            raise UserError(f"--prob_clip is {self.prob_clip}; it must be a probability above 0; 1 is off.")
        for part in self.diffaug:
            if part not in ("color", "translation", "cutout"):
                raise UserError(f"--diffaug '{part}' is unknown ({nearest(part, ('color', 'translation', 'cutout'))}).")

    @property
    def method_name(self):
        """What tables call the run's method."""
        return ("oracle" if self.method == "probegan" else "BigGAN, all classes") if self.oracle \
            else METHODS[self.method]

    def as_dict(self):
        """Plain values alone, as JSON and torch.load(weights_only=True) take them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values):
        """The Config of plain values, as `as_dict` gives them. Raises UserError for an unknown key."""
        for key in values:
            if key not in FIELDS:
                raise UserError(f"setting '{key}' is unknown ({nearest(key, FIELDS)}).")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def make_config(**settings):
    """A Config from the data set's own settings overridden by `settings`.

    new_class entries may be labels or names; dataset may be 'C10_wo_7'. Raises UserError with the
    nearest right name for an unknown key.
    """
    name, left_out = find_dataset(settings.get("dataset", Config.dataset))
    spec = DATASETS[name]
    unseen = {class_label(spec, c) for c in [*left_out, *settings.get("new_class", ())]}
    merged = {**spec.settings, **settings, "dataset": name, "new_class": sorted(unseen)}
    config = Config.from_dict(merged)
    if not unseen and not config.oracle:
        raise UserError("no unseen class was given; name at least one, as in --new_class 7 or --new_class horse.")
    if len(unseen) == len(spec.classes) and not config.oracle:
        raise UserError("every class is unseen; leave at least one class in the image set.")
    return config


def add_flags(parser, settings=Config, names=None):
    """Add one flag a field of the dataclass `settings`, or one for each of `names`, to an argparse parser.

    A flag that is not given leaves no attribute.
    """
    kinds = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        name, kind, choices = field.name, kinds[field.name], field.metadata["choices"]
        if names is not None and name not in names:
            continue
        listed = f"; one of {', '.join(choices)}" if choices else ""
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        common = {"default": argparse.SUPPRESS,
                  "help": f"{field.metadata['help']}{listed} (default: {default or 'none'})"}
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
