"""Images from feature vectors: G(x, f) edits an image until a frozen classifier's last layer says f, G(z, f) draws one.

After the StarGAN conditioned on continuous features ("Conditional Image Generation for Black-Box Model Visualization
and Interpretation", whose discriminator regresses the features of real images and never asks the classifier about a
fake), with what later work found: f in every block and in a projection, and the frozen classifier itself where its
gradient may be used.
"""

from dataclasses import dataclass

import torch

import feature_losses as feature
import probegan_losses as losses
from config import setting
from feature_networks import WAYS, FeatureDiscriminator, make_drawer
from features import Bank, FeatureSpace, draw_targets, kept_features, require_linear
from layers import diff_augment
from machine import autocast
from methods.registry import Method, Row, Settings
from step import descend, frozen_weights
from training import Training, make_adam, make_average, recorded
from utils import UserError, seeded_latents, to_unit_range

ENFORCERS = ("head", "projection", "classifier")
KEPT = 50  # held-out images a class that a checkpoint keeps, to draw from without the data
IGNORED = 0.01  # change of the images, in units of the distance of real ones, below which G is said to ignore f or z


@dataclass(frozen=True)
class FeatureSettings(Settings):
    """What is drawn, and what makes it have the features."""

    mode: str = setting("edit", "edit: G(x, f) changes an image; draw: G(z, f) draws one", ("edit", "draw"))
    enforce: tuple[str, ...] = setting(("projection", "classifier"), "what makes the images have the features, any of "
                                       "head (D regresses them from real images, a black box), projection (D sees "
                                       "pairs of image and features, a black box) and classifier (its own gradient)",
                                       ENFORCERS, or_none=True)
    condition: str = setting("features", "what G and D are told: the features, or their label alone, the rival that "
                             "every figure has to pass", ("features", "label"))
    inject: str = setting("norms", "how the condition enters an editing G: by the norms of every block, or as tiled or "
                          "flat channels beside the image", WAYS)
    adversary: str = setting("hinge", "D's loss", ("hinge", "wgan-gp"))
    feature_loss: str = setting("ccc", "ccc: 1 - CCC, the mean over components; ccc_sum: their sum; mse: with the "
                                "moments of the training set for the batch's", ("ccc", "ccc_sum", "mse"))
    C_feature_coeff: float = setting(5.0, "weight of the feature loss by the classifier", least=0)
    head_coeff: float = setting(5.0, "weight of the feature loss by D's head, in both steps", least=0)
    cycle_coeff: float = setting(10.0, "weight of |x - G(G(x, f), own f)|", least=0)
    self_coeff: float = setting(10.0, "weight of |x - G(x, own f)|", least=0)
    own_share: float = setting(0.2, "share of the targets of G(x, f) that are the image's own", least=0)
    changed_share: float = setting(0.2, "share of the targets that are mixtures, or moved along a principal component",
                                   least=0)


def check(config):
    """Raise UserError where nothing enforces the features, the shares of targets are more than all, or features are to
    lie beside an image that a drawing G is not given."""
    own = config.own
    if not own.enforce:
        raise UserError(f"--enforce names nothing that makes the images have the features; give any of "
                        f"{', '.join(ENFORCERS)}.")
    if own.mode == "draw" and own.inject != "norms":
        raise UserError(f"--inject {own.inject} lays features beside the image that --mode edit is given, and --mode "
                        "draw is given none; leave one of them out.")
    if own.own_share + own.changed_share > 1:
        raise UserError(f"--own_share {own.own_share} and --changed_share {own.changed_share} are more than all "
                        "targets; give shares that add up to at most 1.")


def seen_classes(config, n_classes):
    """The labels of the classes that the image set has."""
    return [y for y in range(n_classes) if config.oracle or y not in config.new_class]


class FeatureTraining(Training):
    """The training; the interface of Training. Raises UserError for a classifier without a linear last layer."""

    def __init__(self, method, config, spec, device, state=None):
        super().__init__(method, config, spec, device)
        config, own = self.config, self.config.own
        require_linear(self.C, config.C_path, spec.resolution)
        self.bank = Bank.of(self.C, self.stream)
        self.kept = kept_features(self.C, self.bank.space, spec, config.data_root, self.draws["fed"], KEPT)
        self.C.fold_batch_norms(spec.resolution)
        f = len(self.bank.space)
        n_told = f if own.condition == "features" else self.C.num_classes
        self.draws["features"] = {"mode": own.mode, "condition": own.condition, "inject": own.inject, "told": n_told}
        self.G = make_drawer(self.draws["features"], config, spec.resolution, spec.channels)
        self.D = FeatureDiscriminator(spec.resolution, spec.channels, n_told, f, ch=config.D_ch,
                                      attention=config.D_attn, init=config.init, SN_eps=config.SN_eps)
        for network in (self.G, self.D):
            network.to(device, memory_format=torch.channels_last)
        self.G_ema, self.ema = make_average(self.G, config)
        self.G_optim, self.D_optim = make_adam(self.G, config.G_lr, config), make_adam(self.D, config.D_lr, config)
        self.run_iteration = recorded(self.iterate, device, config)
        if state is not None:
            self.load_state(state)

    def networks(self):
        return {"G": self.G, "D": self.D}

    # -------------------------------------------------------------------------------------- the losses

    def distance(self, found, asked):
        """The feature loss that the settings ask for."""
        kind = self.config.own.feature_loss
        return feature.mse_loss(found, asked) if kind == "mse" else feature.ccc_loss(found, asked, kind == "ccc_sum")

    def tell(self, f, labels):
        """What G and D are told of features (B, f) with the classifier's labels (B,)."""
        if self.config.own.condition == "features":
            return f
        return (labels[:, None] == torch.arange(self.C.num_classes, device=labels.device)).float()

    def draw(self, own, own_labels):
        """Targets of a batch: (features (B, f), what is told of them, is_own (B,))."""
        settings = self.config.own
        own_share = settings.own_share if settings.mode == "edit" else 0.0
        if settings.condition == "features":
            asked, is_own = draw_targets(self.bank, own, own_share, settings.changed_share)
            return asked, asked, is_own
        # a label stands for features of images alone
        place = torch.randint(len(self.bank.f), (len(own),), device=self.device)
        is_own = torch.rand(len(own), device=self.device) < own_share
        asked = torch.where(is_own[:, None], own, self.bank.f[place])
        labels = torch.where(is_own, own_labels, self.bank.predicted[place])
        return asked, self.tell(asked, labels), is_own.float()

    def drawn(self, x, told):
        """G's images: of x (B, C, H, W) edited, or of fresh latents."""
        if self.config.own.mode == "edit":
            return self.G(x, told)
        return self.G(torch.randn(len(told), self.G.dim_z, device=self.device), told)

    def realness(self, projection, unconditional):
        """What the adversary is given of D: the projection where it enforces the features."""
        return projection if "projection" in self.config.own.enforce else unconditional

    def discriminator_loss(self, x, own, own_told):
        """(total, terms) of one D step on real images x with their own features."""
        settings = self.config.own
        asked, told, _ = self.draw(own, own_told[1])
        with torch.no_grad():
            fake = diff_augment(self.drawn(x, told), self.config.diffaug)
        real = diff_augment(x, self.config.diffaug)
        projection, unconditional, head = self.D(torch.cat((fake, real)), torch.cat((told, own_told[0])))
        d_fake, d_real = self.realness(projection, unconditional).chunk(2)
        rows = torch.ones_like(d_fake)
        if settings.adversary == "hinge":
            terms = {"D_fake": losses.hinge_fake(d_fake, rows), "D_real": losses.hinge_real(d_real, rows)}
            total = terms["D_fake"] + terms["D_real"]
        else:
            x_hat = losses.interpolate(real, fake, torch.rand(len(x), 1, 1, 1, device=x.device)).requires_grad_()
            terms = {"D_wasserstein": losses.wasserstein(d_real, d_fake)}
            terms["D_penalty"] = losses.gradient_penalty(self.realness(*self.D(x_hat, told)[:2]), x_hat)
            total = terms["D_wasserstein"] + self.config.gp_coeff * terms["D_penalty"]
        if "head" in settings.enforce:
            terms["D_head"] = self.distance(head.chunk(2)[1], own)
            total = total + settings.head_coeff * terms["D_head"]
        return total, terms

    def generator_loss(self, x, own, own_told):
        """(total, terms) of one G step."""
        settings = self.config.own
        asked, told, is_own = self.draw(own, own_told[1])
        fake = self.drawn(x, told)
        projection, unconditional, head = self.D(diff_augment(fake, self.config.diffaug), told)
        d_fake = self.realness(projection, unconditional)
        terms = {"G_adversary": losses.hinge_generator(d_fake, torch.ones_like(d_fake))}
        total = terms["G_adversary"]
        if "head" in settings.enforce:
            terms["G_head"] = self.distance(head, asked)
            total = total + settings.head_coeff * terms["G_head"]
        if "classifier" in settings.enforce:
            terms["G_features"] = self.distance(self.bank.space.of(self.C, fake)[0], asked)
            total = total + settings.C_feature_coeff * terms["G_features"]
        if settings.mode == "edit":
            terms["G_self"] = feature.masked_l1(x, fake, is_own)
            terms["G_cycle"] = feature.masked_l1(x, self.G(fake, own_told[0]), 1 - is_own)
            total = total + settings.self_coeff * terms["G_self"] + settings.cycle_coeff * terms["G_cycle"]
        return total, terms

    # --------------------------------------------------------------------------------------- the steps

    def own_features(self, images):
        """Of uint8 images: (x (B, C, H, W) in [-1, 1], their own features, (what is told of these, labels))."""
        x = to_unit_range(images).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), autocast(self.device, self.config.precision):
            own, logits = self.bank.space.of(self.C, x)
        labels = logits.argmax(1)
        return x, own, (self.tell(own, labels), labels)

    def take_step(self, optimiser, loss, given):
        """One step down loss(*given); returns its detached terms."""
        def in_precision(*part):  # anew in each step, for autocast keeps the weights that it has cast
            with autocast(self.device, self.config.precision):
                return loss(*part)
        return descend(optimiser, in_precision, [given])

    def iterate(self, batches):
        """num_D_steps D steps on as many batches, and one G step on the last. Returns detached terms."""
        for images, _ in batches:
            given = self.own_features(images)
            terms = self.take_step(self.D_optim, self.discriminator_loss, given)
        with frozen_weights(self.D):
            return terms | self.take_step(self.G_optim, self.generator_loss, given)

    def advance(self):
        """num_D_steps D steps and one G step. Returns detached terms."""
        terms = self.run_iteration([self.stream.next_batch() for _ in range(self.config.num_D_steps)])
        self.step += 1
        self.ema.update(self.step)
        return terms

    @torch.no_grad()
    def warnings(self):
        """What is wrong with what is drawn, as sentences. Draws no random number."""
        x = to_unit_range(self.kept["images"][::5].to(self.device))
        told = self.tell(self.kept["f"][::5].to(self.device), self.kept["predicted"][::5].to(self.device))
        edits = self.config.own.mode == "edit"
        given = x if edits else seeded_latents(range(len(x)), self.G.dim_z).to(self.device)

        def others(rows):
            return rows.roll(len(rows) // 2, 0)

        def moved(images):
            return feature.ignored_condition(fake, images, (x - others(x)).abs().mean())

        self.G_ema.eval()
        fake = self.G_ema(given, told)
        by_f, by_z = moved(self.G_ema(given, others(told))), 1.0 if edits else moved(self.G_ema(others(given), told))
        self.G_ema.train()
        found = []
        if by_f < IGNORED:
            found.append(f"G hardly hears what it is asked for: other features change its images by {by_f:.1%} of what "
                         "lies between two real ones. Give --C_feature_coeff or --head_coeff more weight, or train "
                         "longer.")
        if by_z < IGNORED:
            found.append(f"G hardly hears its latents: others change its images of the same features by {by_z:.1%} of "
                         "what lies between two real ones. Give --C_feature_coeff less weight, or train longer.")
        return found

    def state(self):
        return super().state() | {
            "G": self.G.state_dict(), "D": self.D.state_dict(), "G_ema": self.G_ema.state_dict(),
            "G_optim": self.G_optim.state_dict(), "D_optim": self.D_optim.state_dict(),
            "data": self.stream.state_dict(), "space": self.bank.space.state(), "kept": self.kept}

    def load_state(self, state):
        super().load_state(state)
        for name in ("G", "D", "G_ema", "G_optim", "D_optim"):
            getattr(self, name).load_state_dict(state[name])
        self.stream.load_state_dict(state["data"])
        self.bank = Bank(FeatureSpace.of_state(state["space"]).to(self.device), self.bank.f, self.bank.predicted)
        self.kept = state["kept"]


METHOD = Method("features", "features", __doc__, FeatureSettings, training=FeatureTraining, fed=seen_classes,
                check=check, rows=(Row("features", "features", "--method features"),), oracle_title="features",
                whole=True)
