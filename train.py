#!/usr/bin/env python3
"""Train ProbeGAN: draw the classes that an image set lacks from a frozen classifier's memory alone.

    python train.py --dataset C10 --new_class horse --C_path robust.pt     a new run
    python train.py --resume runs/C10_wo_horse                             go on with it

Method: Zhang et al., "An Adversarial Framework for Generating Unseen Images by Activation
Maximization", AAAI 2022.
"""

import copy
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

import probegan_losses as losses
from BigGAN import load_weights, make_discriminator, make_generator
from classifiers import load_classifier
from classifiers.check import preflight, require_passed
from classifiers.frozen import fingerprint
from classifiers.loading import probed_classifier, refuse_evaluator
from config import Config, Parser, add_flags, make_config
from datasets import ImageStream, leave_out, open_source
from layers import diff_augment
from metrics.collapse import CollapseWatch
from metrics.selection import Selection
from sample import Sampler, fake_classes, save_class_grid
from utils import (
    DATASETS,
    EMA,
    JsonLines,
    UserError,
    autocast,
    checkpoint_files,
    choose_device,
    find_dataset,
    load_checkpoint,
    random_state,
    run_main,
    save_checkpoint,
    set_random_state,
    stop_on_signal,
    to_unit_range,
    write_json,
)

# ------------------------------------------------------------------------------------------ the steps


@dataclass(frozen=True)
class Task:
    """What the steps need to know of the classes, as tensors on the training device."""

    fake_classes: torch.Tensor  # (M,) labels that fakes are drawn for, uniformly
    unseen: torch.Tensor  # (K,) labels of y*; empty for the oracle
    C_labels: torch.Tensor  # (n_classes,) classifier label of each generator label, -1 where it has none
    C_weights: torch.Tensor  # (classifier's n_classes,) weights in eq. (4)
    u_weights: torch.Tensor  # (n_classes,) row weights in G's part of eq. (3)


def make_task(config, C_labels, C_classes, device):
    """The Task of a Config. C_labels: the classifier's label of each class, -1 for none; C_classes: how many it has."""
    unseen = [] if config.oracle else list(config.new_class)
    C_weights, u_weights = torch.ones(C_classes), torch.ones(len(C_labels))
    for y in unseen:
        C_weights[C_labels[y]] = config.C_new_coeff
        u_weights[y] = config.G_new_coeff
    tensors = (torch.tensor(fake_classes(config, len(C_labels))), torch.tensor(unseen, dtype=torch.long),
               torch.tensor(C_labels), C_weights, u_weights)
    return Task(*(tensor.to(device) for tensor in tensors))


def draw_latents(G, task, batch_size, device):
    """z (B, dim_z) ~ N(0, 1) and labels y (B,), uniform over the classes that fakes are drawn for."""
    z = torch.randn(batch_size, G.dim_z, device=device)
    y = task.fake_classes[torch.randint(len(task.fake_classes), (batch_size,), device=device)]
    return z, y


def discriminator_step(G, D, optimiser, images, y_real, task, config):
    """One D step of eq. (1). images: uint8 (B, C, H, W) of seen classes, y_real: (B,).

    Returns the unweighted terms as detached scalars.
    """
    batch_size, device = len(images), images.device
    with autocast(device, config.precision):
        real = to_unit_range(images).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            z, y = draw_latents(G, task, batch_size, device)
            fake = diff_augment(G(z, y), config.diffaug)
            real = diff_augment(real, config.diffaug)
        d_c, d_u = D(torch.cat((fake, real)), torch.cat((y, y_real)))
        if config.D_tilemix_ngrid > 1:
            fake, real = (losses.tile_mix(images, config.D_tilemix_ngrid) for images in (fake, real))
            d_u = D(torch.cat((fake, real)))[1]
        e = torch.rand(batch_size, 1, 1, 1, device=device)
        x_hat = losses.interpolate(real, fake, e).requires_grad_()
        penalty = losses.gradient_penalty(D(x_hat)[1], x_hat)

    d_u_fake, d_u_real = d_u.split(batch_size)
    terms = {"D_wasserstein": losses.wasserstein(d_u_real, d_u_fake), "D_penalty": penalty}
    total = terms["D_wasserstein"] + config.gp_coeff * penalty
    if config.D2_reg_coeff > 0:
        terms["D_reg"] = losses.output_penalty(d_u_real) + losses.output_penalty(d_u_fake)
        total = total + config.D2_reg_coeff * terms["D_reg"]
    elif config.drift > 0:
        terms["D_reg"] = losses.output_penalty(d_u_real)
        total = total + config.drift * terms["D_reg"]
    if not config.naive:
        seen = losses.seen_rows(y, task.unseen)
        d_c_fake, d_c_real = d_c.split(batch_size)
        terms["D_hinge_fake"] = losses.hinge_fake(d_c_fake, seen)
        terms["D_hinge_real"] = losses.hinge_real(
            d_c_real, seen if config.mask_real_by_fake else torch.ones_like(d_c_real))
        total = total + terms["D_hinge_fake"] + terms["D_hinge_real"]

    optimiser.zero_grad(set_to_none=True)
    total.backward()
    optimiser.step()
    return {name: term.detach() for name, term in terms.items()}


def generator_step(G, D, C, optimiser, task, config, batch_size, device):
    """One G step of eq. (1) through D and the frozen classifier C, fakes of all classes.

    Returns the unweighted terms as detached scalars, and the share of fakes that C accepts as their class.
    """
    D.requires_grad_(False)  # the gradient passes through D, none is kept for it
    with autocast(device, config.precision):
        z, y = draw_latents(G, task, batch_size, device)
        fake = G(z, y)
        shown = diff_augment(fake, config.diffaug)
        d_c, d_u = D(shown, y)
        if config.D_tilemix_ngrid > 1:
            d_u = D(losses.tile_mix(shown, config.D_tilemix_ngrid))[1]
        logits = C(fake)
    y_C = task.C_labels[y]
    seen = losses.seen_rows(y, task.unseen)
    terms = {"G_wasserstein": losses.wasserstein_generator(d_u, task.u_weights[y]),
             "G_class": losses.classification(logits, y_C, task.C_weights, config.prob_clip)}
    total = terms["G_wasserstein"] + config.C_coeff * terms["G_class"]
    if config.D2_reg_coeff > 0:
        total = total + config.D2_reg_coeff * losses.output_penalty(d_u)
    if not config.naive:
        terms["G_hinge"] = losses.hinge_generator(d_c, seen)
        total = total + terms["G_hinge"]

    optimiser.zero_grad(set_to_none=True)
    total.backward()
    optimiser.step()
    D.requires_grad_(True)
    accepted = (logits.detach().argmax(1) == y_C).float()
    terms |= {"C_accepts_seen": losses.mean_over(accepted, seen * (y_C >= 0)),
              "C_accepts_unseen": losses.mean_over(accepted, 1 - seen)}
    return {name: term.detach() for name, term in terms.items()}


# ------------------------------------------------------------------------------------------- one run


def make_adam(network, lr, config):
    """Adam over a network's parameters with a Config's betas and epsilon."""
    parameters = list(network.parameters())
    return torch.optim.Adam(parameters, lr, betas=(config.beta1, config.beta2), eps=config.adam_eps,
                            fused=parameters[0].device.type in ("cpu", "cuda"))


ADVICE = "The last checkpoint is from before it; try a lower learning rate, or --precision fp32."


class Training:
    """Networks, optimisers, data and classifier of one run; `state()` is all that a checkpoint holds.

    With the `state` of a checkpoint the run goes on from there. Raises UserError for a classifier, weights
    or an image set that do not fit, before anything is written.
    """

    def __init__(self, config, spec, device, state=None):
        self.config, self.spec, self.device = config, spec, device
        n_classes = len(spec.classes)
        evaluator = load_classifier(config.evaluator, num_classes=n_classes) if config.evaluator else None
        torch.manual_seed(config.seed)
        self.C = probed_classifier(config, spec.classes, device)
        refuse_evaluator(self.C, config.C_path, config.evaluator, evaluator)
        self.C_sha256 = fingerprint(self.C.model)
        networks = spec.resolution, spec.channels, n_classes
        self.G, self.D = make_generator(config, *networks), make_discriminator(config, *networks)
        if config.init_G and state is None:
            load_weights(self.G, config.init_G)
        if config.init_D and state is None:
            load_weights(self.D, config.init_D)
        if config.D_tilemix_ngrid > 1 and spec.resolution % config.D_tilemix_ngrid:
            raise UserError(f"--D_tilemix_ngrid {config.D_tilemix_ngrid} does not divide {spec.resolution} pixels.")
        source = open_source(spec, config.data_root, "train")
        indices, self.audit, guard = leave_out(source, spec, config.new_class, keep_unseen=config.oracle)
        self.stream = ImageStream(source, indices, guard, config.batch_size, device, config.augment, config.seed,
                                  config.max_resident_gb, config.num_workers)
        for network in (self.G, self.D):
            network.to(device, memory_format=torch.channels_last)
        self.G_ema = copy.deepcopy(self.G).requires_grad_(False)
        self.ema = EMA(self.G, self.G_ema, config.ema_decay, config.ema_start)
        self.G_optim = make_adam(self.G, config.G_lr, config)
        self.D_optim = make_adam(self.D, config.D_lr, config)
        self.task = make_task(config, self.C.labels, self.C.num_classes, device)
        self.step = 0
        if state is not None:
            self.load_state(state)

    def advance(self):
        """num_D_steps D steps, one G step, the moving average. Returns detached terms; waits for nothing."""
        for _ in range(self.config.num_D_steps):
            images, labels = self.stream.next_batch()
            D_terms = discriminator_step(self.G, self.D, self.D_optim, images, labels, self.task, self.config)
        G_terms = generator_step(self.G, self.D, self.C, self.G_optim, self.task, self.config, self.config.batch_size,
                                 self.device)
        self.step += 1
        self.ema.update(self.step)
        return D_terms | G_terms

    def state(self):
        return {
            "config": self.config.as_dict(),
            "dataset": {"resolution": self.spec.resolution, "channels": self.spec.channels,
                        "classes": list(self.spec.classes)},
            "step": self.step,
            "G": self.G.state_dict(), "D": self.D.state_dict(), "G_ema": self.G_ema.state_dict(),
            "G_optim": self.G_optim.state_dict(), "D_optim": self.D_optim.state_dict(),
            "random": random_state(), "data": self.stream.state_dict(), "audit": self.audit,
            "classifier_sha256": self.C_sha256,
        }

    def load_state(self, state):
        if state["audit"]["sha256"] != self.audit["sha256"]:
            raise UserError(f"the image set in {self.config.data_root} is not the one this run was started on (SHA-256 "
                            f"{self.audit['sha256'][:12]}, was {state['audit']['sha256'][:12]}); restore it, or start "
                            "a new run.")
        if state["classifier_sha256"] != self.C_sha256:
            raise UserError(f"the classifier {self.config.C_path} is not the one this run was started on (SHA-256 "
                            f"of its weights {self.C_sha256[:12]}, was {state['classifier_sha256'][:12]}); give that "
                            "one as --C_path, or start a new run.")
        for name in ("G", "D", "G_ema", "G_optim", "D_optim"):
            getattr(self, name).load_state_dict(state[name])
        self.stream.load_state_dict(state["data"])
        self.step = state["step"]
        set_random_state(state["random"])

    def require_finite(self, terms, first_step):
        """Raise UserError if a term or a weight is not finite. terms: {name: (steps,)}."""
        for name, values in terms.items():
            bad = (~torch.isfinite(values)).nonzero()
            if len(bad):
                step = first_step + bad[0, 0].item()
                raise UserError(f"the loss term {name} is {values[bad[0, 0]].item()} at step {step}. {ADVICE}")
        for name, network in (("G", self.G), ("D", self.D)):
            for key, value in network.state_dict().items():
                if not torch.isfinite(value).all():
                    raise UserError(f"the weight {key} of {name} is not finite at step {self.step}. {ADVICE}")


class Keeper:
    """Judges what a run draws and keeps its checkpoints. Moves neither weights nor random stream of the run."""

    def __init__(self, training, run):
        self.training, self.run = training, run
        shared = training.C, training.stream, training.spec.classes, training.task.unseen.tolist()
        self.watch = CollapseWatch(*shared, training.task.C_labels.tolist(), training.device)
        self.watched = JsonLines(run / "collapse.jsonl", training.step)
        self.selection = Selection(*shared, training.device, run, training.step) if training.config.select else None

    def judge(self, sampler):
        """Look at what the averaged generator draws; returns the warnings."""
        record = self.watch.look(sampler, self.training.D)
        self.watched.write(record)
        if self.selection:
            self.selection.consider(self.training.state(), sampler, self.training.D, record)
        return record["warnings"]

    def save(self):
        save_checkpoint(self.run, self.training.state(), self.training.config.keep)


def train(training, run):
    """The loop: steps, then what looks after them. Writes everything into the run folder."""
    config, keeper = training.config, Keeper(training, run)
    log = JsonLines(run / "log.jsonl", training.step)
    window, window_start = [], time.perf_counter()

    def flush():
        nonlocal window_start
        if not window:
            return
        terms = {name: torch.stack([step[name] for step in window]).float().cpu() for name in window[0]}
        training.require_finite(terms, training.step - len(window) + 1)
        means = {name: values.mean().item() for name, values in terms.items()}
        rate = len(window) / (time.perf_counter() - window_start)
        log.write({"step": training.step, **means, "steps_per_second": rate})
        bar.set_postfix({"D": f"{means['D_wasserstein']:.2f}", "G": f"{means['G_wasserstein']:.2f}",
                         "class": f"{means['G_class']:.2f}", "unseen": f"{means['C_accepts_unseen']:.0%}"})
        window.clear()
        window_start = time.perf_counter()

    with stop_on_signal() as stopped, tqdm(total=config.num_steps, initial=training.step, unit="step") as bar:
        while training.step < config.num_steps:
            window.append(training.advance())
            bar.update()
            last = training.step == config.num_steps
            if training.step % config.log_every == 0:
                flush()
            drawing = training.step % config.sample_every == 0 or last
            saving = training.step % config.save_every == 0 or last
            if drawing or saving:
                flush()
                sampler = Sampler(training.state(), training.device)
            # the checkpoint last: a run whose last checkpoint stands has its last grid and judgement
            if drawing:
                save_class_grid(run / "samples.png", sampler)
            if saving:
                for warning in keeper.judge(sampler):
                    bar.write(f"warning: step {training.step}: {warning}", file=sys.stderr)
                keeper.save()
            if stopped() and not last:
                flush()
                keeper.save()
                bar.close()
                print(f"stopped at step {training.step}; go on with: python train.py --resume {run}", file=sys.stderr)
                sys.exit(128 + stopped())


# -------------------------------------------------------------------------------------- command line

RESUME_FLAGS = ("num_steps", "device", "data_root", "C_path", "skip_classifier_check", "evaluator", "num_workers",
                "max_resident_gb", "log_every", "sample_every", "save_every", "keep", "select")


def default_run(config, spec):
    """runs/<data set>_wo_<classes>, with the variant and the seed where they are not the usual ones."""
    names = "_".join(spec.classes[y] for y in config.new_class) or "none"
    parts = [config.dataset, "with" if config.oracle else "wo", names, "naive" if config.naive else ""]
    seed = f"seed{config.seed}" if config.seed else ""
    return Path("runs") / "_".join(part for part in [*parts, seed] if part)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--run", type=Path, help="run folder to make (default: runs/<data set>_wo_<class>)")
    parser.add_argument("--resume", type=Path, metavar="RUN",
                        help="run folder to go on with; of the other flags only these may be given: "
                        + ", ".join(RESUME_FLAGS))
    add_flags(parser)
    flags = vars(parser.parse_args())
    run, resume = flags.pop("run"), flags.pop("resume")
    if resume:
        for name in flags:
            if name not in RESUME_FLAGS:
                raise UserError(f"--{name} cannot change in a resumed run; leave it out, or start a new run.")
        if run:
            raise UserError(f"--run {run} was given with --resume {resume}; a resumed run stays in its folder: "
                            "leave --run out.")
        state = load_checkpoint(resume)
        folder = resume if resume.is_dir() else resume.parent
        run = folder.parent if folder.name == "checkpoints" and not resume.is_dir() else folder
        config = replace(Config.from_dict(state["config"]), **flags)
        spec = DATASETS[find_dataset(config.dataset)[0]]
    else:
        state, config = None, make_config(**flags)
        spec = DATASETS[config.dataset]
        run = run or default_run(config, spec)
        if checkpoint_files(run):
            raise UserError(f"{run} already holds a run; go on with it by --resume {run}, or give another --run.")
    training = Training(config, spec, choose_device(config.device), state)
    check = preflight(training.C, config, spec)
    print(check)
    require_passed(check, config)
    write_json(run / "config.json", config.as_dict())
    write_json(run / "audit.json", training.audit)
    write_json(run / "classifier_check.json", check.as_dict())
    print(training.audit["statement"])
    train(training, run)


if __name__ == "__main__":
    run_main(main)
