"""Who teaches G: how hard each term of its loss pulls at an image, and what D can tell apart.

A classifier's term that outruns D draws each class together before D knows anything; recognition does not show it.
One pass of G's own loss a save, on images of the averaged generator from fixed seeds, says it.
"""

import torch

from datasets.stream import seen_images
from metrics.collapse import PER_CLASS, plain
from metrics.selection import standardised_gap
from step import Fakes, frozen_weights

FIRST_SEED = 2**41 + 2**39  # far from the seeds of all other draws
IMAGES = 64  # fakes looked at, about
ALONE = 10  # times as hard as all others together: a term that moves G alone
CHANCE = 0.6  # share told apart below which D is at chance
NAMES = {"G_hinge": "D_c", "G_wasserstein": "D_u", "G_class": "the classifier", "G_real": "D's being real",
         "G_label": "D's class logits"}
GROUPS = {"seen": "the seen classes", "unseen": "the unseen class"}


def told_apart(real, fake):
    """P(a real image scores above a fake) for scores (n,) and (m,), ties half; 0.5 is chance."""
    above = real[:, None] - fake[None]
    return ((above > 0).double().mean() + (above == 0).double().mean() / 2).item()


def pulls(loss, D, C, images, z, y, seen, task, config, weights):
    """{term: (B,) norms of the gradient that it puts on each image, by its weight in G's loss}.

    loss: a method's generator_loss. images (B, C, H, W) stand for what G draws of z (B, dim_z) and labels y (B,). The
    norms are those of B times the loss: of an image's own part of it.
    """
    x = images.detach().requires_grad_()
    fakes = Fakes(z, y, seen, y, seen, 1)
    with torch.random.fork_rng(devices=[]), frozen_weights(D):
        torch.manual_seed(0)
        _, terms = loss(lambda z, y: x, D, C, fakes, task, config)
    found = {}
    for name, term in terms.items():
        if term.requires_grad:
            (gradient,) = torch.autograd.grad(term, x, retain_graph=True, allow_unused=True)
            if gradient is not None:
                found[name] = weights.get(name, 1.0) * len(x) * gradient.flatten(1).float().norm(dim=1)
    return found


class Teachers:
    """Looks at a training.GAN at each save. The real images are read once; nothing random is drawn."""

    def __init__(self, training):
        self.training = training
        real = seen_images(training.stream, training.task.unseen.tolist(), PER_CLASS)
        self.real = torch.cat(list(real.values())).to(training.device)
        self.real_labels = torch.tensor([y for y, images in real.items() for _ in images], device=training.device)

    def look(self, sampler, collapsed):
        """A flat record for a line of teachers.jsonl, and the warnings: (dict, sentences).

        pull_<group>_<term>: mean gradient norm on an image, group 'seen' or 'unseen'; D_c_right: share of real and fake
        images of seen classes that D_c's sign tells right; D_u_<group>: P(a real seen image scores above a fake of
        the group); D_u_gap_<group>: their means' distance over their spread. collapsed: names of classes that the
        collapse watch warns of.
        """
        training, device = self.training, self.training.device
        each = -(-IMAGES // len(sampler.fed))
        seeds = range(FIRST_SEED, FIRST_SEED + each)
        z = sampler.latents(seeds).repeat(len(sampler.fed), 1)
        y = torch.tensor(sampler.fed).repeat_interleave(each)
        images, z, y = (part.to(device) for part in (sampler.images(z, y), z, y))
        seen = 1.0 - torch.isin(y, training.task.unseen).float()
        was_training = training.D.training
        training.D.eval()  # its singular vectors are not advanced
        found = pulls(training.G_loss, training.D, training.C, images, z, y, seen, training.task, training.config,
                      training.method.weights(training))
        with torch.no_grad():
            (c_real, u_real), (c_fake, u_fake) = training.D(self.real, self.real_labels), training.D(images, y)
        training.D.train(was_training)
        rows = {"seen": seen.bool(), "unseen": ~seen.bool()}
        rows = {group: chosen for group, chosen in rows.items() if chosen.any()}
        record = {f"pull_{group}_{name}": norms[chosen].mean().item()
                  for name, norms in found.items() for group, chosen in rows.items()}
        if "G_hinge" in found and "seen" in rows:
            right = [(c_real > 0).float().mean(), (c_fake[rows["seen"]] < 0).float().mean()]
            record["D_c_right"] = sum(right).item() / 2
        if "G_wasserstein" in found:
            for group, chosen in rows.items():
                record[f"D_u_{group}"] = told_apart(u_real, u_fake[chosen])
                record[f"D_u_gap_{group}"] = standardised_gap(u_real, u_fake[chosen])
        record = {name: plain(value) for name, value in record.items()}
        return {"step": sampler.step, **record}, [*alone(record), *blind(record, collapsed)]


def alone(record):
    """A sentence for each group of classes that one term of several moves alone."""
    for group, of in GROUPS.items():
        norms = {name.removeprefix(f"pull_{group}_"): value for name, value in record.items()
                 if name.startswith(f"pull_{group}_") and value}
        if len(norms) > 1:
            strongest = max(norms, key=norms.get)
            others = sum(norms.values()) - norms[strongest]
            if norms[strongest] > ALONE * others:
                yield (f"{NAMES.get(strongest, strongest)} alone moves G on {of}: it pulls "
                       f"{norms[strongest] / others:.0f} times as hard at an image as all other terms together.")


def blind(record, collapsed):
    """A sentence where classes have collapsed and D does not see it."""
    knows = [record[name] for name in ("D_c_right", "D_u_seen", "D_u_unseen") if record.get(name) is not None]
    if collapsed and knows and max(knows) < CHANCE:
        yield (f"the fakes of {', '.join(collapsed)} are nearly one picture each, and D does not see it (it tells "
               f"{max(knows):.0%} of the images right; chance is 50%): it cannot teach G variety. Give D a larger "
               "learning rate than G or more steps, or weigh the classifier less.")
