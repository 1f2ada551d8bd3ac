"""One run: what every method has, and the GAN that most of them train. train.py is its loop and its files."""

import copy
import hashlib
from dataclasses import replace

import torch

import processes
from BigGAN import load_weights, make_discriminator, make_generator
from classifiers.check import logits_of
from classifiers.frozen import fingerprint
from classifiers.loading import Asked, judging_classifier, probed_classifier, refuse_evaluator
from datasets import ImageStream, leave_out, open_source
from datasets.absence import starting_weights, statement, test_source
from datasets.sources import sample_sha256
from files import cache_folder
from layers import EMA, synchronise_batch_norms
from machine import autocast, choose_precision
from step import discriminator_step, draw_fakes, generator_step, make_task
from utils import UserError


class Judge:
    """The judge of datasets.leave_out that a classifier makes: the probability of these labels of its own together.

    sha256: of the classifier's weights, of how it is shown images and read, and of the labels.
    """

    def __init__(self, frozen, labels):
        self.frozen, self.labels = frozen, labels
        self.sha256 = hashlib.sha256(repr((
            fingerprint(frozen.model), frozen.arch, frozen.channels, frozen.resolution, frozen.mean.flatten().tolist(),
            frozen.std.flatten().tolist(), frozen.bgr, frozen.flat, frozen.answers, labels)).encode()).hexdigest()

    def __call__(self, images):
        return logits_of(self.frozen, images).softmax(1)[:, self.labels].sum(1)


def random_state():
    """The random states that training draws from, of the CPU and of the current GPU, as tensors."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state):
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


class Training:
    """A run of one method: what every method has. `state()` is all that a checkpoint holds.

    A subclass adds advance() -> detached terms, which train.py calls num_steps times, and to state() and load_state()
    what it draws from: G_ema, with latents of each class where it is not conditional, or images. `D` is None where
    there is no discriminator. method: a methods.Method. Raises UserError for a classifier or an image set that do not
    fit, before anything is written.
    """

    D = None
    parallel = False  # whether several processes can share the work

    def __init__(self, method, config, spec, device):
        if processes.size() > 1 and not self.parallel:
            raise UserError(f"--method {method.name} trains no GAN, and runs in one process; start it without "
                            "torchrun.")
        # one choice for all processes; written down, so that a resumed run keeps it
        bf16 = processes.largest(int(choose_precision(config.precision, device) == "bf16"))
        config = replace(config, precision="bf16" if bf16 else "fp32")
        self.method, self.config, self.spec, self.device = method, config, spec, device
        n_classes = len(spec.classes)
        evaluator = judging_classifier(Asked.of(config, "evaluator"), spec.classes, "cpu", spec) \
            if config.evaluator else None
        torch.manual_seed(config.seed)
        self.C = probed_classifier(config, spec.classes, device)
        refuse_evaluator(self.C, config.C_path, config.evaluator, evaluator)
        self.C_sha256 = fingerprint(self.C.model)
        source = open_source(spec, config.data_root, "train")
        self.seen_sha256 = sample_sha256(source, [] if config.oracle else config.new_class)
        judges = {"the probed classifier": Judge(self.C, [self.C.labels[y] for y in config.new_class])}
        if evaluator:
            judges["the evaluator"] = Judge(evaluator.to(device), [evaluator.labels[y] for y in config.new_class])
        files = {"init_G": config.init_G, "init_D": config.init_D, "gan": getattr(config.own, "gan", "")}
        indices, self.audit, guard = leave_out(
            source, spec, config.new_class, config.oracle, config.only, test=test_source(spec, config.data_root),
            judges=judges, drop_suspects=config.drop_suspects, cache=cache_folder(),
            weights=starting_weights(files, spec, () if config.oracle else config.new_class))
        if config.batch_size % processes.size():
            raise UserError(f"--batch_size {config.batch_size} cannot be shared by {processes.size()} processes; give "
                            "a multiple of their number.")
        self.stream = ImageStream(source, indices, guard, config.batch_size * config.num_D_accumulations, device,
                                  config.augment, config.seed, config.max_resident_gb, config.num_workers,
                                  processes.rank(), processes.size())
        self.draws = method.draws(config, n_classes)
        self.task = make_task(config, self.draws["fed"], self.C.labels, self.C.num_classes, device)
        self.step = 0

    @property
    def num_steps(self):
        return self.config.num_steps

    @property
    def critic(self):
        """The D whose unconditional head tells how real an image is; None where there is none, or nothing trains it."""
        return self.D

    @property
    def drawable(self):
        """Whether images can be drawn from the state at hand."""
        return True

    def networks(self):
        """{name: network in training}, whose weights must stay finite."""
        return {}

    def warnings(self):
        """What is wrong with what is drawn, as sentences. Draws no random number."""
        return []

    def state(self):
        return {
            "config": self.config.as_dict(),
            "dataset": {"resolution": self.spec.resolution, "channels": self.spec.channels,
                        "classes": list(self.spec.classes)},
            "draws": self.draws, "step": self.step, "random": random_state(), "audit": self.audit,
            "classifier_sha256": self.C_sha256, "seen_sha256": self.seen_sha256,
            "threads": torch.get_num_threads(),
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
        # the files may be gone by now
        self.audit["starting_weights"] = state["audit"].get("starting_weights", [])
        self.audit["statement"] = statement(self.audit)
        threads = torch.get_num_threads()
        if state.get("threads", threads) != threads:
            print(f"computing with {threads} threads; the run has used {state['threads']}, and rounds otherwise from "
                  f"here on. OMP_NUM_THREADS={state['threads']} would keep it bit for bit.")
        self.step = state["step"]
        set_random_state(state["random"])


# ------------------------------------------------------------------------------------------------ a GAN

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


def recorded(iterate, device, config):
    """What runs an iteration: on a GPU, in one process, a recording of iterate(batches), else iterate itself."""
    if device.type != "cuda" or not config.cuda_graph:
        return iterate
    if processes.size() == 1:
        return Recorded(iterate, record_cuda_graph)
    if processes.rank() == 0:
        print("the iterations run eagerly: a CUDA graph is captured for one process alone")
    return iterate


def make_adam(network, lr, config):
    """Adam over a network's parameters with a Config's betas and epsilon."""
    parameters = list(network.parameters())
    return torch.optim.Adam(parameters, lr, betas=(config.beta1, config.beta2), eps=config.adam_eps,
                            fused=parameters[0].device.type in ("cpu", "cuda"),
                            capturable=parameters[0].device.type == "cuda")


def make_average(G, config):
    """(a copy of G to draw from, the EMA that moves it) with a Config's decay, start and ramp."""
    G_ema = copy.deepcopy(G).requires_grad_(False)
    return G_ema, EMA(G, G_ema, config.ema_decay, config.ema_start, config.ema_rampup)


def C_coeff_at(step, config):
    """lambda_g of eq. (1) after `step` G steps: a line from C_coeff to C_coeff_end, where that is given."""
    if config.C_coeff_end < 0:
        return config.C_coeff
    return config.C_coeff + (config.C_coeff_end - config.C_coeff) * min(1.0, step / config.num_steps)


class GAN(Training):
    """Networks, optimisers, data and classifier of one GAN; `state()` is all that a checkpoint holds.

    With the `state` of a checkpoint the run goes on from there. Raises UserError for a classifier, weights
    or an image set that do not fit, before anything is written.
    """

    parallel = True

    def __init__(self, method, config, spec, device, state=None):
        super().__init__(method, config, spec, device)
        config = self.config
        self.C.fold_batch_norms(spec.resolution)
        self.D_loss, self.G_loss = method.losses
        self.rows = config.batch_size // processes.size()  # of a batch in this process
        self.G, self.D = self.make_networks()
        if config.init_G and state is None:
            load_weights(self.G, config.init_G)
        if config.init_D and state is None:
            load_weights(self.D, config.init_D)
        for network in (self.G, self.D):
            network.to(device, memory_format=torch.channels_last)
        synchronise_batch_norms(self.G)
        self.G_ema, self.ema = make_average(self.G, config)
        self.G_optim = make_adam(self.G, config.G_lr, config)
        self.D_optim = make_adam(self.D, config.D_lr, config)
        self.run_iteration = recorded(self.iterate, device, config)
        if state is not None:
            self.load_state(state)

    def make_networks(self):
        """(G, D), new ones on the CPU. A subclass may make others."""
        shape = self.spec.resolution, self.spec.channels, len(self.spec.classes)
        return make_generator(self.config, *shape, self.draws["conditional"]), make_discriminator(self.config, *shape)

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
        config, every = self.config, self.config.gp_every
        for k, ((images, labels), fakes) in enumerate(zip(batches, self.fakes_for_D(), strict=True), 1):
            penalised = replace(config, gp_coeff=every * config.gp_coeff if k % every == 0 else 0.0)
            D_terms = discriminator_step(self.D_loss, self.G, self.D, self.D_optim, images, labels, fakes, self.task,
                                         penalised)
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
        return super().state() | {
            "G": self.G.state_dict(), "D": self.D.state_dict(), "G_ema": self.G_ema.state_dict(),
            "G_optim": self.G_optim.state_dict(), "D_optim": self.D_optim.state_dict(),
            "data": self.stream.state_dict(),
        }

    def load_state(self, state):
        super().load_state(state)
        for name in ("G", "D", "G_ema", "G_optim", "D_optim"):
            getattr(self, name).load_state_dict(state[name])
        self.stream.load_state_dict(state["data"])
