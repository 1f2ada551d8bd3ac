"""GANs with class labels: AM-GAN and its family (Zhou et al., ICLR 2018), without a probed classifier.

Seven discriminators (`--class_loss`, the table of label_losses) and two ways of labelling a fake (`--labelling`):
predefined, the label that G drew it for; or dynamic, D's own best class at the moment, for an unconditional G. The
images of an unconditional G are sorted by the probed classifier, which has no other part here: the authors' D sorts its
own. With --oracle on all classes; without, on the seen classes alone, the logits of the others masked.

The losses gan, gan_star and label never tell G of a label: with predefined labels their classes mean nothing, and what
is measured of one class is measured of a mixture.
"""

from dataclasses import dataclass

import torch

import dcgan
import label_losses as losses
from BigGAN import make_discriminator, make_generator
from config import setting
from layers import diff_augment
from machine import autocast
from methods.biggan import given_classes
from methods.registry import Method, Settings
from methods.synthesis import KeptImages
from sampler import Sampler
from step import draw_latents, shown_to_D
from training import GAN
from utils import UserError, seeded_latents

FIRST_SEED = 2**42  # far from the seeds of all other draws
POOL = 2  # latents looked at for each one kept, where all classes are made equally often


@dataclass(frozen=True)
class LabelSettings(Settings):
    """The head of class logits."""

    class_loss: str = setting("am", "the loss, a line of the table of label_losses", losses.CLASS_LOSSES)
    G_class_coeff: float = setting(1.0, "weight of the class term in G's loss", least=0)
    D_class_coeff: float = setting(1.0, "weight of the class terms in D's loss", least=0)
    label_smooth: float = setting(1.0, "D's target for being real of real rows, one-sided; 1 is off")

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.label_smooth <= 1:
            raise UserError(f"--label_smooth is {self.label_smooth}; it must be a probability above 0; 1 is off.")


@dataclass(frozen=True)
class LabelledSettings(KeptImages, LabelSettings):
    """Where a fake's label comes from."""

    labelling: str = setting("predefined", "a fake's label: predefined, drawn before the fake; dynamic, the one that D "
                             "is surest of at the moment, for a G without classes", ("predefined", "dynamic"))


def conditional(config):
    """Whether a label says what G draws."""
    return config.own.labelling == "predefined"


def fed(config, n_classes):
    """The labels that fakes are drawn for: of the classes that there are images of, or one that says nothing."""
    return given_classes(config, n_classes) if conditional(config) else [0]


def require_every_class(labels, classes, unseen):
    """Raise UserError where the image set lacks a class that D is to learn.

    labels (N,): of the images; classes: names; unseen: labels of y*.
    """
    found = {*labels.unique().tolist(), *unseen}
    missing = [name for label, name in enumerate(classes) if label not in found]
    if missing:
        raise UserError(f"the image set holds no image of {', '.join(missing)}, and D learns the {len(classes)} "
                        "classes from images; add some, or leave those classes out by --new_class.")


def targets(logits, fakes, own):
    """The label that each fake is to have (B,); logits (B, K) of D."""
    return losses.dynamic_labels(logits) if own.labelling == "dynamic" else fakes.y


def discriminator_terms(fake, real, y_real, y_fake, unseen, own, of_fake=torch.mean, of_real=torch.mean):
    """D's loss of `class_loss`: (total, unweighted terms).

    fake, real: D's outputs (B, n); y_real (B,). y_fake: class logits (B, K) of fakes -> their targets (B,). unseen:
    labels whose logits are masked. own: LabelSettings. of_fake, of_real: one value a row (B,) -> their mean over the
    rows that count.
    """
    (logits_fake, fake_r), (logits_real, real_r) = (losses.split_outputs(outputs, own.class_loss, unseen)
                                                    for outputs in (fake, real))
    smooth = own.label_smooth  # of real rows: the target [a u(y), 1 - a] weighs their class by a, too
    terms = {"D_real": of_real(losses.gan_real(real_r, smooth)), "D_fake": of_fake(losses.gan_fake(fake_r))}
    total = terms["D_real"] + terms["D_fake"]
    if own.class_loss != "gan":
        terms["D_class_real"] = of_real(losses.class_entropy(logits_real, y_real))
        total = total + own.D_class_coeff * smooth * terms["D_class_real"]
    if own.class_loss in ("acgan", "acgan_plus"):
        terms["D_class_fake"] = of_fake(losses.uniform_entropy(logits_fake) if own.class_loss == "acgan_plus" else
                                        losses.class_entropy(logits_fake, y_fake(logits_fake)))
        total = total + own.D_class_coeff * terms["D_class_fake"]
    return total, terms


def generator_terms(outputs, y_fake, unseen, own, of_fake=torch.mean):
    """G's loss of `class_loss`: (total, unweighted terms). As discriminator_terms."""
    logits, l_r = losses.split_outputs(outputs, own.class_loss, unseen)
    terms = {"G_real": of_fake(losses.gan_generator(l_r))}
    total = terms["G_real"]
    if own.class_loss in losses.G_KNOWS:
        terms["G_label"] = of_fake(losses.class_entropy(logits, y_fake(logits)))
        total = total + own.G_class_coeff * terms["G_label"]
    return total, terms


def discriminator_loss(G, D, images, y_real, fakes, task, config):
    """D's part. The interface of methods.probegan.discriminator_loss. Batch norms of D, where it has some, see fakes
    and reals apart."""
    with autocast(images.device, config.precision):
        fake, real = shown_to_D(G, images, fakes, config)
        of_fake, of_real = D(fake)[0], D(real)[0]
    return discriminator_terms(of_fake, of_real, y_real, lambda logits: targets(logits, fakes, config.own), task.unseen,
                               config.own)


def generator_loss(G, D, C, fakes, task, config):
    """G's part. The interface of methods.probegan.generator_loss; C is not used."""
    with autocast(fakes.z.device, config.precision):
        outputs, _ = D(diff_augment(G(fakes.z, fakes.y), config.diffaug))
    return generator_terms(outputs, lambda logits: targets(logits, fakes, config.own), task.unseen, config.own)


@torch.no_grad()
def sorted_latents(state, C, C_labels, unseen, num, device):
    """({label: latents (num, dim_z)}, {label: share}) of an unconditional generator, by what C says.

    state: of training.GAN. C_labels: C's label of each class, negative where it has none; unseen: labels of y*, which
    the generator does not draw. The latents of a class are the first of a pool, not the best; where the pool holds
    fewer than `num` they are repeated. share: of the pool; a class that is never made has no latents.
    """
    sampler = Sampler(state, device)
    known = {label: k for label, k in enumerate(C_labels) if k >= 0 and label not in unseen}
    z = seeded_latents(range(FIRST_SEED, FIRST_SEED + POOL * num * len(known)), sampler.G.dim_z)
    y, of_C = torch.zeros(sampler.batch_size, dtype=torch.long), torch.tensor(list(known.values()))
    best = torch.cat([C(sampler.images(part, y[:len(part)]).to(device)).cpu()[:, of_C].argmax(1)
                      for part in z.split(sampler.batch_size)])  # places in `known`
    found = {label: z[best == place] for place, label in enumerate(known)}
    latents = {label: own[torch.arange(num) % len(own)] for label, own in found.items() if len(own)}
    return latents, {label: len(own) / len(z) for label, own in found.items()}


class LabelGAN(GAN):
    """A GAN whose D has the head of class logits that its LabelSettings ask for."""

    def make_networks(self):
        labels, spec = self.stream.source.labels[self.stream.indices], self.spec
        require_every_class(labels, spec.classes, self.task.unseen.tolist())
        shape, conditional = (spec.resolution, spec.channels, len(spec.classes)), self.draws["conditional"]
        outputs = losses.head_outputs(self.config.own.class_loss, len(spec.classes))
        G = make_generator(self.config, *shape, conditional)
        D = make_discriminator(self.config, *shape, outputs, conditional)
        if self.config.networks == "dcgan":
            latents, y = draw_latents(G, self.task, self.config.batch_size, self.device)
            dcgan.fit_to_batch(D, dcgan.fit_to_batch(G, latents.cpu(), y.cpu()))
        return G, D


class Labelled(LabelGAN):
    """Of which D's unconditional head, where there is one, is not trained; with sorted latents where G has no classes.
    """

    critic = None

    def state(self):
        state = super().state()
        if self.draws["conditional"]:
            return state
        latents, shares = sorted_latents(state, self.C, self.task.C_labels.tolist(), self.task.unseen.tolist(),
                                         self.config.own.num_images, self.device)
        return state | {"latents": latents, "shares": shares}


METHOD = Method("labelled", "labelled GAN", __doc__, LabelledSettings, (discriminator_loss, generator_loss), Labelled,
                fed=fed, conditional=conditional, oracle_title="labelled GAN, all classes",
                weights=lambda training: {"G_label": training.config.own.G_class_coeff})
