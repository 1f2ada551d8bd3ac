#!/usr/bin/env python3
"""Train ProbeGAN: draw the classes that an image set lacks from a frozen classifier's memory alone.

    python train.py --dataset C10 --new_class horse --C_path robust.pt     a new run
    python train.py --resume runs/C10_wo_horse                             go on with it
    torchrun --nproc_per_node 4 -- train.py ...                            either, on several GPUs

Method: Zhang et al., "An Adversarial Framework for Generating Unseen Images by Activation
Maximization", AAAI 2022.
"""

import copy
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

import probegan_losses as losses
from baselines import biggan, degan, naive, ranks
from baselines.biggan_am import BigGANAM
from baselines.deep_inversion import DeepInversion
from baselines.probe import (
    Probe,
    class_terms,
    critic_loss,
    discriminator_step,
    draw_fakes,
    generator_step,
    shares,
    shown_to_D,
)
from baselines.robust_synthesis import RobustSynthesis
from BigGAN import load_weights, make_discriminator, make_generator
from classifiers.check import preflight, require_passed
from config import Config, Parser, add_flags, make_config
from layers import diff_augment, synchronise_batch_norms
from metrics.collapse import CollapseWatch
from metrics.selection import Selection
from sample import make_sampler, save_class_grid
from utils import (
    DATASETS,
    EMA,
    JsonLines,
    UserError,
    autocast,
    checkpoint_files,
    find_dataset,
    load_checkpoint,
    run_main,
    save_checkpoint,
    stop_on_signal,
    tune,
    write_json,
)

# ----------------------------------------------------------------------------------------- the losses


def discriminator_loss(G, D, images, y_real, fakes, task, config):
    """D's part of eq. (1): (total, unweighted terms).

    images: uint8 (B, C, H, W) of seen classes; y_real (B,); fakes: baselines.probe.Fakes of B.
    """
    with autocast(images.device, config.precision):
        fake, real = shown_to_D(G, images, fakes, config)
        d_c, d_u = D(torch.cat((fake, real)), torch.cat((fakes.y, y_real)))
        if config.D_tilemix_ngrid > 1:
            fake, real = (losses.tile_mix(images, config.D_tilemix_ngrid) for images in (fake, real))
            d_u = D(torch.cat((fake, real)))[1]
        total, terms = critic_loss(D, d_u, fake, real, config)
    d_c_fake, d_c_real = d_c.split(len(images))
    terms["D_hinge_fake"] = losses.hinge_fake(d_c_fake, fakes.seen, fakes.n_seen)
    if config.mask_real_by_fake:
        terms["D_hinge_real"] = losses.hinge_real(d_c_real, fakes.seen, fakes.n_seen)
    else:
        terms["D_hinge_real"] = losses.hinge_real(d_c_real, torch.ones_like(d_c_real))
    return total + terms["D_hinge_fake"] + terms["D_hinge_real"], terms


def generator_loss(G, D, C, fakes, task, config):
    """G's part of eq. (1), through D and the frozen classifier C: (total, unweighted terms).

    fakes: baselines.probe.Fakes of all classes. Among the terms are those of acceptance.
    """
    with autocast(fakes.z.device, config.precision):
        fake = G(fakes.z, fakes.y)
        shown = diff_augment(fake, config.diffaug)
        d_c, d_u = D(shown, fakes.y)
        if config.D_tilemix_ngrid > 1:
            d_u = D(losses.tile_mix(shown, config.D_tilemix_ngrid))[1]
        logits = C(fake)
    class_loss, accepted = class_terms(logits, fakes, task, config)
    u_weights = task.u_weights
    terms = {"G_wasserstein": losses.wasserstein_generator(d_u, u_weights[fakes.y],
                                                           fakes.share(u_weights[fakes.y_batch])),
             "G_hinge": losses.hinge_generator(d_c, fakes.seen, fakes.n_seen), "G_class": class_loss}
    total = terms["G_wasserstein"] + terms["G_hinge"] + task.C_coeff * class_loss
    if config.D2_reg_coeff > 0:
        total = total + config.D2_reg_coeff * losses.output_penalty(d_u)
    if config.diversity_coeff > 0:
        terms["G_diversity"] = losses.diversity(fake, fakes.z, 1 - fakes.seen)
        total = total - config.diversity_coeff * terms["G_diversity"]
    return total, terms | accepted


# the losses of D and of G
GANS = {"probegan": (discriminator_loss, generator_loss),
        **{module.__name__.rpartition(".")[2]: (module.discriminator_loss, module.generator_loss)
           for module in (naive, biggan, degan)}}
# methods that train no GAN
SYNTHESES = {"biggan_am": BigGANAM, "robust_synthesis": RobustSynthesis, "deep_inversion": DeepInversion}

# ------------------------------------------------------------------------------------------- one run

WARM_UP = 3  # iterations before one is recorded, in which libraries set up what they need


class Recorded:
    """Runs iterate(batches) -> {name: scalar} from a recording of it, after a few runs as it is.

    A recording works on the tensors that it was made with: the batches are copied into those, and the terms out of
    them. record: a function without arguments -> one that repeats its work on the device and returns the same
    tensors.
    """

    def __init__(self, iterate, record):
        self.iterate, self.record = iterate, record
        self.runs, self.repeat = 0, None

    def __call__(self, batches):
        self.runs += 1
        if self.runs <= WARM_UP:
            return self.iterate(batches)
        if self.repeat is None:
            self.batches = [tuple(part.clone() for part in batch) for batch in batches]
            self.repeat = self.record(lambda: self.iterate(self.batches))
        for own, given in zip(self.batches, batches, strict=True):
            for place, part in zip(own, given, strict=True):
                place.copy_(part)
        return {name: term.clone() for name, term in self.repeat().items()}


def record_cuda_graph(function):
    """Capture what `function` does on the GPU; where that cannot be, say why and return `function` itself."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            found = function()
    except RuntimeError as error:
        print(f"the iterations run eagerly: no CUDA graph could be captured ({str(error).splitlines()[0]})")
        return function

    def repeat():
        graph.replay()
        return found

    return repeat


def make_adam(network, lr, config):
    """Adam over a network's parameters with a Config's betas and epsilon."""
    parameters = list(network.parameters())
    return torch.optim.Adam(parameters, lr, betas=(config.beta1, config.beta2), eps=config.adam_eps,
                            fused=parameters[0].device.type in ("cpu", "cuda"),
                            capturable=parameters[0].device.type == "cuda")


def C_coeff_at(step, config):
    """lambda_g of eq. (1) after `step` G steps: a line from C_coeff to C_coeff_end, where that is given."""
    if config.C_coeff_end < 0:
        return config.C_coeff
    return config.C_coeff + (config.C_coeff_end - config.C_coeff) * min(1.0, step / config.num_steps)


ADVICE = "The last checkpoint is from before it; try a lower learning rate, or --precision fp32."


class Training(Probe):
    """Networks, optimisers, data and classifier of one GAN; `state()` is all that a checkpoint holds.

    With the `state` of a checkpoint the run goes on from there. Raises UserError for a classifier, weights
    or an image set that do not fit, before anything is written.
    """

    def __init__(self, config, spec, device, state=None):
        super().__init__(config, spec, device)
        self.C.fold_batch_norms(spec.resolution)
        self.D_loss, self.G_loss = GANS[config.method]
        self.rows = config.batch_size // ranks.size()  # of a batch in this process
        networks = spec.resolution, spec.channels, len(spec.classes)
        self.G, self.D = make_generator(config, *networks), make_discriminator(config, *networks)
        if config.init_G and state is None:
            load_weights(self.G, config.init_G)
        if config.init_D and state is None:
            load_weights(self.D, config.init_D)
        if config.D_tilemix_ngrid > 1 and spec.resolution % config.D_tilemix_ngrid:
            raise UserError(f"--D_tilemix_ngrid {config.D_tilemix_ngrid} does not divide {spec.resolution} pixels.")
        for network in (self.G, self.D):
            network.to(device, memory_format=torch.channels_last)
        synchronise_batch_norms(self.G)
        self.G_ema = copy.deepcopy(self.G).requires_grad_(False)
        self.ema = EMA(self.G, self.G_ema, config.ema_decay, config.ema_start)
        self.G_optim = make_adam(self.G, config.G_lr, config)
        self.D_optim = make_adam(self.D, config.D_lr, config)
        self.run_iteration = self.iterate
        if device.type == "cuda" and config.cuda_graph:
            if ranks.size() == 1:
                self.run_iteration = Recorded(self.iterate, record_cuda_graph)
            elif ranks.rank() == 0:
                print("the iterations run eagerly: a CUDA graph is captured for one process alone")
        if state is not None:
            self.load_state(state)

    def networks(self):
        return {"G": self.G, "D": self.D}

    def fakes_for_D(self):
        """The Fakes of each D step in turn; with one_G_pass their images are made together, before the first."""
        config = self.config
        drawn = (draw_fakes(self.G, self.task, self.rows * config.num_D_accumulations, self.device)
                 for _ in range(config.num_D_steps))
        if not config.one_G_pass:
            return drawn
        drawn = list(drawn)
        with torch.no_grad(), autocast(self.device, config.precision):
            images = self.G(torch.cat([fakes.z for fakes in drawn]), torch.cat([fakes.y for fakes in drawn]))
        return [replace(fakes, images=part) for fakes, part in zip(drawn, images.chunk(len(drawn)), strict=True)]

    def iterate(self, batches):
        """num_D_steps D steps on as many batches, and one G step. Returns detached terms; waits for nothing."""
        config = self.config
        for (images, labels), fakes in zip(batches, self.fakes_for_D(), strict=True):
            D_terms = discriminator_step(self.D_loss, self.G, self.D, self.D_optim, images, labels, fakes, self.task,
                                         config)
        fakes = draw_fakes(self.G, self.task, self.rows * config.num_G_accumulations, self.device)
        G_terms = generator_step(self.G_loss, self.G, self.D, self.C, self.G_optim, fakes, self.task, config)
        return D_terms | G_terms

    def advance(self):
        """The steps of one iteration, and the moving average. Returns detached terms; waits for nothing."""
        self.task.C_coeff.fill_(C_coeff_at(self.step, self.config))
        terms = self.run_iteration([self.stream.next_batch() for _ in range(self.config.num_D_steps)])
        self.step += 1
        self.ema.update(self.step)
        return terms

    def state(self):
        state = super().state() | {
            "G": self.G.state_dict(), "D": self.D.state_dict(), "G_ema": self.G_ema.state_dict(),
            "G_optim": self.G_optim.state_dict(), "D_optim": self.D_optim.state_dict(),
            "data": self.stream.state_dict(),
        }
        if self.config.method == "degan":
            state["latents"] = degan.chosen_latents(state, self.C, self.task.C_labels.tolist(), self.device)
        return state

    def load_state(self, state):
        super().load_state(state)
        for name in ("G", "D", "G_ema", "G_optim", "D_optim"):
            getattr(self, name).load_state_dict(state[name])
        self.stream.load_state_dict(state["data"])


def start(config, spec, device, state=None):
    """The run that a Config asks for, a new one or from a checkpoint's state."""
    if config.method in SYNTHESES and ranks.size() > 1:
        raise UserError(f"--method {config.method} trains no GAN, and runs in one process; start it without torchrun.")
    return SYNTHESES.get(config.method, Training)(config, spec, device, state)


def require_finite(training, terms, first_step):
    """Raise UserError if a term or a weight is not finite. terms: {name: (steps,)}."""
    for name, values in terms.items():
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            step = first_step + bad[0, 0].item()
            raise UserError(f"the loss term {name} is {values[bad[0, 0]].item()} at step {step}. {ADVICE}")
    for name, network in training.networks().items():
        for key, value in network.state_dict().items():
            if not torch.isfinite(value).all():
                raise UserError(f"the weight {key} of {name} is not finite at step {training.step}. {ADVICE}")


class Keeper:
    """Judges what a run draws and keeps its checkpoints. Moves neither weights nor random stream of the run."""

    def __init__(self, training, run):
        self.training, self.run = training, run
        shared = training.C, training.stream, training.spec.classes, training.task.unseen.tolist()
        self.watch = CollapseWatch(*shared, training.task.C_labels.tolist(), training.device)
        self.watched = JsonLines(run / "collapse.jsonl", training.step)
        self.selection = Selection(*shared, training.device, run, training.step) if training.config.select else None

    def judge(self, sampler, state):
        """Look at what the averaged generator of a checkpoint's `state` draws; returns the warnings."""
        record = self.watch.look(sampler, self.training.D)
        self.watched.write(record)
        if self.selection:
            self.selection.consider(state, sampler, self.training.D, record)
        return record["warnings"]

    def save(self, state):
        save_checkpoint(self.run, state, self.training.config.keep)


SHOWN = {"D": "D_wasserstein", "G": "G_wasserstein", "class": "G_class", "unseen": "C_accepts_unseen"}


def train(training, run):
    """The loop: steps, then what looks after them. Process 0 writes everything into the run folder."""
    config, leads = training.config, ranks.rank() == 0
    if leads:
        keeper, log = Keeper(training, run), JsonLines(run / "log.jsonl", training.step)
    window, window_start = [], time.perf_counter()

    def flush():
        nonlocal window_start
        if not window:
            return
        terms = {name: torch.stack([step[name] for step in window]).float().cpu() for name in window[0]}
        ranks.average(list(terms.values()))
        require_finite(training, terms, training.step - len(window) + 1)
        means = shares({name: values.mean().item() for name, values in terms.items()})
        rate = len(window) / (time.perf_counter() - window_start)
        if leads:
            log.write({"step": training.step, **means, "steps_per_second": rate})
        bar.set_postfix({short: f"{means[name]:.2f}" for short, name in SHOWN.items() if name in means})
        window.clear()
        window_start = time.perf_counter()

    def look(state, drawing, judging):
        sampler = make_sampler(state, training.device)
        if drawing:
            save_class_grid(run / "samples.png", sampler)
        if judging:
            for warning in keeper.judge(sampler, state):
                bar.write(f"warning: step {training.step}: {warning}", file=sys.stderr)

    with stop_on_signal() as stopped, tqdm(total=training.num_steps, initial=training.step, unit="step",
                                           disable=not leads) as bar:
        while training.step < training.num_steps:
            window.append(training.advance())
            bar.update()
            last = training.step == training.num_steps
            if training.step % config.log_every == 0:
                flush()
            drawing = training.step % config.sample_every == 0 or last
            saving = training.step % config.save_every == 0 or last
            stop = ranks.largest(stopped() or 0) if not last else 0
            if drawing or saving or stop:
                flush()
            if leads and (drawing or saving or stop):
                state = training.state()  # once: a rival may choose what it draws in it
                if (drawing or saving) and training.drawable:
                    look(state, drawing, saving)
                # the checkpoint last: a run whose last checkpoint stands has its last grid and judgement
                if saving or stop:
                    keeper.save(state)
            if stop:
                bar.close()
                if leads:
                    print(f"stopped at step {training.step}; go on with: python train.py --resume {run}",
                          file=sys.stderr)
                sys.exit(128 + stop)


def carry_out(training, run):
    """Check the classifier, write down what the run is, and train it to its end."""
    config = training.config
    check = preflight(training.C, config, training.spec)
    if ranks.rank() == 0:
        print(check)
    require_passed(check, config)
    if ranks.rank() == 0:
        write_json(run / "config.json", config.as_dict())
        write_json(run / "audit.json", training.audit)
        write_json(run / "classifier_check.json", check.as_dict())
        print(training.audit["statement"])
    train(training, run)


# -------------------------------------------------------------------------------------- command line

RESUME_FLAGS = ("num_steps", "device", "data_root", "C_path", "skip_classifier_check", "evaluator", "num_workers",
                "max_resident_gb", "log_every", "sample_every", "save_every", "keep", "select")


def default_run(config, spec):
    """runs/<data set>_wo_<classes>, with the method and the seed where they are not the usual ones."""
    names = "_".join(spec.classes[y] for y in config.new_class) or "none"
    method = "" if config.method == "probegan" else config.method
    seed = f"seed{config.seed}" if config.seed else ""
    parts = [config.dataset, "with" if config.oracle else "wo", names, method, seed]
    return Path("runs") / "_".join(part for part in parts if part)


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
    with ranks.joined(config.device) as device:
        tune(device)
        carry_out(start(config, spec, device, state), run)


if __name__ == "__main__":
    run_main(main)
