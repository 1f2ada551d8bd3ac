"""BigGAN-AM (Li et al., "A cost-effective method for improving and re-purposing large, pre-trained GANs by
fine-tuning their class-embeddings", ACCV 2020): a frozen BigGAN of the seen classes, searched for y*.

The embedding of y* climbs the classifier's probability of y* from several starts, each the mean of the seen
classes' embeddings with noise, within the range that those have. The start with the highest probability is kept.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

import probegan_losses as losses
from config import Config, setting
from methods.registry import Method, Row, load_run
from methods.synthesis import OwnSteps
from sampler import Sampler
from step import acceptance
from training import Training
from utils import UserError, seeded_latents

STEPS = 200
STARTS = 5
NOISE = 0.1  # of a start, as a share of the spread of the seen classes' embeddings
FIRST_SEED = 2**42  # of the latents that choose among the starts, far from the seeds of all other draws
NETWORK = ("G_ch", "dim_z", "shared_dim", "hier", "G_attn", "init", "BN_eps", "SN_eps")


@dataclass(frozen=True)
class BigGANAMSettings(OwnSteps):
    """The run that is searched, and the search."""

    gan: str = setting("", "run of --method biggan whose generator is searched")
    AM_lr: float = setting(0.05, "Adam's learning rate on the class embedding", above=0)
    AM_weight_decay: float = setting(0.0, "weight of the embedding's square", least=0)
    AM_diversity: float = setting(0.0, "weight of the differences between the images of a start", least=0)
    AM_diversity_space: str = setting("pixels", "what these differences are measured in", ("pixels", "features"))


def check(config):
    """Raise UserError where no generator is named."""
    if not config.own.gan:
        raise UserError("--method biggan_am searches the generator of another run: give it as --gan RUN. That run is "
                        "made by train.py --method biggan with the same data set and unseen class.")


class BigGANAM(Training):
    """The search; the interface of Training. Raises UserError where --gan is no BigGAN of the same seen classes."""

    def __init__(self, method, config, spec, device, state=None):
        gan = load_run(config.own.gan)
        made_by = Config.from_dict(gan["config"])
        for name, value in (("method", "biggan"), ("dataset", config.dataset), ("new_class", config.new_class),
                            ("oracle", False)):
            if getattr(made_by, name) != value:
                raise UserError(f"--gan {config.own.gan} was made with --{name} {getattr(made_by, name)}, where "
                                f"{value} is needed; give a run of train.py --method biggan with the same data set and "
                                "unseen class.")
        super().__init__(method, replace(config, **{name: getattr(made_by, name) for name in NETWORK}), spec, device)
        if gan["audit"]["sha256"] != self.audit["sha256"]:
            raise UserError(f"--gan {config.own.gan} was trained on other images than those in {config.data_root}; "
                            "train it anew, or restore them.")
        self.G = Sampler(gan, device).G
        seen = [y for y in range(len(spec.classes)) if y not in config.new_class]
        known = self.G.shared.weight[seen]  # (seen classes, shared_dim)
        self.low, self.high = known.min(), known.max()
        shape = (len(config.new_class), STARTS, known.shape[1])
        noise = torch.randn(shape).to(device)
        self.embeddings = (known.mean(0) + NOISE * known.std(0) * noise).requires_grad_()
        self.optimiser = torch.optim.Adam([self.embeddings], config.own.AM_lr)
        if state is not None:
            self.load_state(state)

    @property
    def num_steps(self):
        return self.config.own.synthesis_steps or STEPS

    def advance(self):
        """One step of Adam on the embeddings of all starts. Returns detached terms."""
        own, count = self.config.own, max(2, self.config.batch_size // STARTS)
        terms, total = [], own.AM_weight_decay * self.embeddings.square().sum()
        self.optimiser.zero_grad()
        for k, label in enumerate(self.config.new_class):
            z = torch.randn(STARTS * count, self.G.dim_z, device=self.device)
            fake = self.G(z, self.embeddings[k].repeat_interleave(count, 0))  # (STARTS * count, C, H, W)
            features, logits = self.C.features_and_logits(fake)
            y_C = self.task.C_labels[torch.full((len(z),), label, device=self.device)]
            # a sum over starts: none's step depends on the others
            class_loss = STARTS * losses.classification(logits, y_C, self.task.C_weights)
            total = total + class_loss
            if own.AM_diversity > 0:
                looked_at = fake if own.AM_diversity_space == "pixels" else features
                for part, latents in zip(looked_at.split(count), z.split(count), strict=True):
                    ones = torch.ones(count, device=self.device)
                    total = total - own.AM_diversity * losses.diversity(part, latents, ones)
            terms.append({"G_class": class_loss / STARTS, **acceptance(logits, y_C, torch.zeros_like(logits[:, 0]))})
        total.backward()
        self.optimiser.step()
        with torch.no_grad():
            self.embeddings.clamp_(self.low, self.high)
        self.step += 1
        return {name: torch.stack([part[name].detach() for part in terms]).mean() for name in terms[0]}

    @torch.no_grad()
    def best(self):
        """(unseen classes, shared_dim): of each class the start that C gives the highest mean probability."""
        z = seeded_latents(range(FIRST_SEED, FIRST_SEED + 64), self.G.dim_z).to(self.device)
        chosen = []
        for label, starts in zip(self.config.new_class, self.embeddings, strict=True):
            p = [F.softmax(self.C(self.G(z, e.expand(len(z), -1))), 1)[:, self.task.C_labels[label]].mean()
                 for e in starts]
            chosen.append(starts[torch.stack(p).argmax()])
        return torch.stack(chosen)

    def state(self):
        weights = {name: value.clone() for name, value in self.G.state_dict().items()}
        weights["shared.weight"][list(self.config.new_class)] = self.best()
        return super().state() | {"G_ema": weights, "embeddings": self.embeddings.detach(),
                                  "optimiser": self.optimiser.state_dict()}

    def load_state(self, state):
        super().load_state(state)
        with torch.no_grad():
            self.embeddings.copy_(state["embeddings"])
        self.optimiser.load_state_dict(state["optimiser"])


METHOD = Method("biggan_am", "BigGAN-AM", __doc__, BigGANAMSettings, training=BigGANAM, check=check,
                rows=(Row("biggan_am", "BigGAN-AM", "--method biggan_am", needs="--method biggan"),))
