"""What class labels do to a GAN: the table of AM-GAN (Zhou et al., ICLR 2018), and its head in ProbeGAN's place.

    python -m experiments.amgan --dataset MNIST                     small networks, two CPU cores
    python -m experiments.amgan --dataset MNIST --scale dcgan       the authors' networks, as small
    python -m experiments.amgan --dataset C10 --scale paper         the paper's settings; needs a GPU

Rows: the seven losses with dynamic labels, and those whose G is told a label with predefined ones, as --method labelled
on all classes; then, but for dcgan, ProbeGAN with its hinge head and with class logits, without one class.
Writes amgan_<data set>.md, .json and .png, with the scale in the name where it is not small. Stopped at any point, the
same command goes on.
"""

import shlex

import torch

from config import Parser
from experiments.engine import (
    BOUNDED,
    SMALL,
    Run,
    add_engine_flags,
    check_flags,
    chosen,
    classifier_path,
    from_root,
    plain_config,
)
from experiments.table import SHOWN, Column, Experiment, Row, carry_out, evaluation
from label_losses import CLASS_LOSSES, G_KNOWS
from methods import load_run
from sampler import make_sampler
from utils import DATASETS, ROOT, choose_device, class_label, run_main

# num: images a class; labelled, probegan: flags of train.py for the runs of each kind (dcgan has ProbeGAN's rows in
# small). In all labelled runs D learns twice as fast as G, as the authors' does, and but for small MNIST both learn at
# its rates and once a step
AUTHORS = "--networks dcgan --G_ch 96 --D_ch 64 --dim_z 100 --batch_size 100 --num_D_steps 1 --beta1 0.5 --G_lr 4e-4 " \
          "--D_lr 8e-4 --num_steps 1000000 --ema_decay 0 --ema_start 0 --diffaug --no-balanced_y --gp_every 1 " \
          "--save_every 10000"
MNIST = "--G_ch 8 --D_ch 8 --batch_size 32 --num_steps 1200 --diffaug translation --save_every 400 --sample_every 1200"
C10 = "--G_ch 16 --D_ch 16 --batch_size 32 --num_D_steps 1 --init ortho --G_lr 4e-4 --D_lr 8e-4 --ema_decay 0.998 " \
      "--ema_start 1000 --diffaug translation --balanced_y --num_steps 4000 --save_every 500 --sample_every 2000"
DCGAN = "--networks dcgan --G_ch 16 --D_ch 16 --dim_z 100 --batch_size 32 --num_D_steps 1 --beta1 0.5 --G_lr 4e-4 " \
        "--D_lr 8e-4 --ema_decay 0.99 --ema_start 200 --diffaug --precision fp32"
SCALES = {
    "MNIST": {"small": {"num": 200, "labelled": MNIST, "probegan": f"{MNIST} --no-level_unseen"},
              "dcgan": {"num": 200, "labelled": f"{DCGAN} --num_steps 2000 --sample_every 2000"},
              "paper": {"num": 5000, "labelled": AUTHORS, "probegan": ""}},
    "C10": {"small": {"num": 200, "labelled": C10,
                      "probegan": f"{SMALL} {BOUNDED} --balanced_y --num_steps 5000 --sample_every 5000"},
            "dcgan": {"num": 200, "labelled": f"{DCGAN} --num_steps 2500 --sample_every 2500"},
            "paper": {"num": 5000, "labelled": AUTHORS, "probegan": ""}},
}
NAMES = {"gan": "GAN", "gan_star": "GAN*", "label": "LabelGAN", "acgan": "AC-GAN", "acgan_star": "AC-GAN*",
         "acgan_plus": "AC-GAN*+", "am": "AM-GAN"}
FAMILY = {f"{loss}_{labelling}": (loss, labelling) for labelling in ("dynamic", "predefined") for loss in CLASS_LOSSES
          if labelling == "dynamic" or loss in G_KNOWS}
PROBES = {"probegan": "hinge", "probegan_labels": "class logits"}
COLUMNS = {
    "am_score": Column("AM score", "am_score", "number", of="all", lower=True),
    "am_divergence": Column("its divergence", "am_divergence", "number", of="all", lower=True),
    "am_doubt": Column("its entropy", "am_doubt", "number", of="all", lower=True),
    "ms_ssim_max": Column("largest MS-SSIM", "ms_ssim_max", "index", of="all", lower=True),
    "intra_fd": Column("intra-FD, mean", "intra_fd", "number", of="each", lower=True),
    "recall": Column("recall", "recall", of="all"),
    "recognised": Column("unseen: recognised", "recognition"),
    "intra_fd_unseen": Column("unseen: intra-FD", "intra_fd", "number", lower=True),
}
MEASURED = ("recognition", "am_score", "ms_ssim_max", "intra_fd", "precision_recall_density_coverage")
# the paper's Table 1 and its text, in which the original AC-GAN has no place
EXPECTED = {
    "am_score": (("am_dynamic", "am_predefined"), ("acgan_plus_dynamic", "acgan_plus_predefined"), "label_dynamic",
                 ("acgan_star_dynamic", "acgan_star_predefined"), ("gan_star_dynamic", "gan_dynamic")),
    "ms_ssim_max": (tuple(name for name, (loss, _) in FAMILY.items() if loss not in ("acgan", "acgan_star"))
                    + ("acgan_star_predefined",), "acgan_star_dynamic"),
}
TEXT = ("{num} images a class, features and probabilities of the evaluator (SHA-256 {evaluator_sha256:.12}). In "
        "brackets the 95 % interval over seeds by Student's t, cut where no figure can be, or, where one seed is "
        "finished, over its images. The images of rows with dynamic labels are sorted by the probed classifier: AM "
        "score and its terms weigh each class by how often the generator makes it; recall and intra-FD are of as many "
        "images of each, and a class of which fewer were found is repeated, of which results.jsonl of the run warns. "
        "The losses that never tell G of a label (GAN, GAN*, LabelGAN) have no row with predefined labels: a class of "
        "theirs would be a mixture. Largest MS-SSIM: the largest of the classes' means, with five scales as AM-GAN's "
        "code takes it. ProbeGAN's rows are without the unseen class.")


def one_of_each_class(row, run):
    """The first image of each of SHOWN classes (SHOWN, C, H, W) in [-1, 1] that a run draws; white for none."""
    sampler, spec = make_sampler(load_run(ROOT / run.path), choose_device()), DATASETS[run.config["dataset"]]
    white = torch.ones(1, spec.channels, spec.resolution, spec.resolution)
    return torch.cat([sampler.class_images(y, [0]) if y in sampler.drawn else white for y in range(SHOWN)])


def plan(flags, evaluator):
    """The rows of what was asked for. Raises UserError as train.py would."""
    spec, scale = DATASETS[flags.dataset], SCALES[flags.dataset][flags.scale]
    home, unseen = from_root(flags.runs) / f"{flags.dataset}_{flags.scale}", class_label(spec, flags.unseen)

    def make_row(name):
        without = spec.classes[unseen] if name in PROBES else ""
        if without:
            group, labels = f"all but {without}", ("ProbeGAN", PROBES[name])
            own = f"{scale['probegan']} --method {name} --new_class {unseen}"
        else:
            loss, labelling = FAMILY[name]
            group, labels = "all", (NAMES[loss], labelling)
            own = f"{scale['labelled']} --method labelled --oracle --class_loss {loss} --labelling {labelling}"
            own += f" --num_images {flags.num}" if labelling == "dynamic" else ""
        judge = evaluation(COLUMNS, without, (evaluator,), len(spec.classes), flags.num, MEASURED)
        runs = []
        for seed in range(flags.seeds):
            words = ("--dataset", flags.dataset, "--seed", str(seed), "--C_path", str(flags.classifier), "--evaluator",
                     str(evaluator), "--data_root", str(from_root(flags.data_root)), *shlex.split(own))
            runs.append(Run("amgan", home / f"{name}_seed{seed}", words, plain_config(words), True, judge,
                            processes=flags.processes))
        return Row(group, labels, name, tuple(runs))

    return [make_row(name) for name in chosen("rows", flags.rows, (*FAMILY, *(PROBES if "probegan" in scale else ())))]


def main():
    parser = Parser(prog="python -m experiments.amgan", description=__doc__)
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(SCALES)}")
    parser.add_argument("--rows", nargs="+", default=["all"], metavar="NAME",
                        help=f"{', '.join((*FAMILY, *PROBES))} or all (default: all)")
    parser.add_argument("--unseen", default="7", help="class that ProbeGAN does without, by label or name (default: 7)")
    parser.add_argument("--classifier", default="", help="the probed one (default: the robust one of pretrained/)")
    parser.add_argument("--evaluator", default="", help="the judge (default: that of pretrained/)")
    parser.add_argument("--scale", default="small", help="small: two CPU cores; dcgan: as small, by AM-GAN's own "
                        "networks; paper: full size (default: small)")
    parser.add_argument("--num", type=int, help="images a class (default: 200; 5000 paper)")
    add_engine_flags(parser, "amgan")
    flags = parser.parse_args()
    check_flags(flags, {"dataset": SCALES, "scale": ("small", "dcgan", "paper")}, num=50)
    scale = SCALES[flags.dataset][flags.scale]
    flags.num = scale["num"] if flags.num is None else flags.num
    flags.classifier = classifier_path(flags.dataset, "robust", flags.classifier)
    evaluator = classifier_path(flags.dataset, "evaluator", flags.evaluator)
    stem = f"amgan_{flags.dataset}" + (f"_{flags.scale}" if flags.scale != "small" else "")
    experiment = Experiment(stem, "experiments.amgan",
                            f"Class labels in a GAN on {flags.dataset}, scale {flags.scale}", TEXT, COLUMNS,
                            groups="Classes", heads=("loss", "labels"), expected=EXPECTED, images=one_of_each_class)
    protocol = {"dataset": flags.dataset, "scale": flags.scale, "settings": scale}
    carry_out(experiment, plan(flags, evaluator), flags, protocol, gpus=int(flags.scale == "paper"))


if __name__ == "__main__":
    run_main(main)
