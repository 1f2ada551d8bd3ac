"""Agreement with one evaluation of the authors' released networks: outputs, losses, gradients within 1e-4."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import probegan_losses as losses
from BigGAN import Discriminator, Generator

TOLERANCE = 1e-4


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-12)).item()


class Reference:
    def __init__(self, path):
        with np.load(path, allow_pickle=False) as arrays:
            self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        self.G, self.D = Generator(32, 3, 10, ch=4, shared_dim=16), Discriminator(32, 3, 10, ch=4)
        for name, network in (("G", self.G), ("D", self.D)):
            network.load_state_dict(self.below(f"state/{name}/"))
            network.eval()
        inputs = self.below("in/")
        self.z, self.y, self.x, self.y_real, self.eps = (inputs[k] for k in ("z", "y", "x", "y_real", "eps"))
        self.seen = losses.seen_rows(self.y, self.arrays["in/unseen_class"].view(1))

    def below(self, prefix):
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}

    def classifier(self, images):
        return F.adaptive_avg_pool2d((images + 1) / 2, 8).flatten(1) @ self.arrays["in/classifier_weight"].T

    def discriminator_terms(self):
        fake = self.arrays["out/G"]
        d_c_fake, d_u_fake = self.D(fake, self.y)
        d_c_real, d_u_real = self.D(self.x, self.y_real)
        x_hat = losses.interpolate(self.x, fake, self.eps).requires_grad_()
        return {
            "hinge_real_all_rows": losses.hinge_real(d_c_real, torch.ones(len(self.x))),
            "hinge_real_rows_masked_by_fake_labels": losses.hinge_real(d_c_real, self.seen),
            "hinge_fake_seen_rows": losses.hinge_fake(d_c_fake, self.seen),
            "wasserstein": losses.wasserstein(d_u_real, d_u_fake),
            "drift_1e-4": 1e-4 * (losses.output_penalty(d_u_real) + losses.output_penalty(d_u_fake)),
            "gradient_penalty_unweighted": losses.gradient_penalty(self.D(x_hat)[1], x_hat),
        }

    def generator_terms(self):
        fake = self.G(self.z, self.y)
        d_c, d_u = self.D(fake, self.y)
        return {
            "g_hinge_seen_rows": losses.hinge_generator(d_c, self.seen),
            "g_wasserstein": losses.wasserstein_generator(d_u, torch.ones(len(d_u))),
            "cross_entropy": losses.classification(self.classifier(fake), self.y, torch.ones(10)),
        }


@pytest.fixture
def reference(shared_file):
    return Reference(shared_file("fixtures/biggan32_reference.npz"))


def test_outputs(reference):
    assert relative_error(reference.G(reference.z, reference.y), reference.arrays["out/G"]) < TOLERANCE
    fake = reference.arrays["out/G"]
    for images, labels, name in ((fake, reference.y, "fake"), (reference.x, reference.y_real, "real")):
        heads = torch.stack(reference.D(images, labels), 1)
        assert relative_error(heads, reference.arrays[f"out/D_{name}"]) < TOLERANCE


def test_every_loss_term(reference):
    terms = reference.discriminator_terms() | reference.generator_terms()
    stored = reference.below("loss/")
    assert terms.keys() == stored.keys()
    for name, term in terms.items():
        assert relative_error(term.double(), stored[name]) < TOLERANCE, name


@pytest.mark.parametrize("network", ["G", "D"])
def test_every_gradient(reference, network):
    if network == "D":
        terms = reference.discriminator_terms()
        total = (terms["hinge_fake_seen_rows"] + terms["hinge_real_all_rows"] + terms["wasserstein"]
                 + 10 * terms["gradient_penalty_unweighted"])
    else:
        total = sum(reference.generator_terms().values())
    total.backward()
    stored = reference.below(f"grad/{network}/")
    ours = {name: parameter.grad for name, parameter in getattr(reference, network).named_parameters()}
    assert ours.keys() == stored.keys()
    for name, gradient in ours.items():
        if stored[name].norm() < 1e-6:  # a bias before a batch norm has no gradient but rounding
            assert gradient.norm() < 1e-5, name
        else:
            assert relative_error(gradient, stored[name]) < TOLERANCE, name
