"""The discriminator and generator step: equal to a literal float64 computation, no host synchronisation,
one backward an optimiser step, the unseen class and the classifier kept out of where they must not be."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import probegan_losses as losses
from BigGAN import make_discriminator, make_generator
from layers import Convolution, SNConv2d, SpectralNorm, convolution_gradients, diff_augment
from methods import find_method, make_config
from step import acceptance, discriminator_step, draw_fakes, draw_latents, generator_step, make_task, shares
from utils import UserError

BATCH, CLASSES, UNSEEN = 6, 4, 2
SETTINGS = {"dataset": "C10", "new_class": (UNSEEN,), "G_ch": 2, "D_ch": 2, "dim_z": 12, "shared_dim": 8,
            "batch_size": BATCH, "init": "ortho", "diffaug": (), "num_D_steps": 4, "G_lr": 2e-4, "D_lr": 2e-4}


class LinearClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 16, CLASSES)

    def forward(self, images):
        return self.linear(images.flatten(1))


def task_of(config, device="cpu", C_labels=range(CLASSES), C_classes=CLASSES):
    return make_task(config, find_method(config.method).fed(config, CLASSES), C_labels, C_classes, device)


class Nets:
    def __init__(self, config, device="cpu"):
        torch.manual_seed(0)
        self.G = make_generator(config, 16, 3, CLASSES).to(device)
        self.D = make_discriminator(config, 16, 3, CLASSES).to(device)
        self.C = LinearClassifier().requires_grad_(False).to(device)
        self.G_optim = torch.optim.Adam(self.G.parameters(), 1e-3, betas=(0.0, 0.999), fused=True)
        self.D_optim = torch.optim.Adam(self.D.parameters(), 1e-3, betas=(0.0, 0.999), fused=True)
        self.task = task_of(config, device)
        self.images = torch.randint(0, 256, (BATCH, 3, 16, 16), dtype=torch.uint8).to(device)
        self.labels = torch.tensor([0, 1, 3, 0, 1, 3], device=device)
        self.config, self.device = config, torch.device(device)

    def D_step(self):
        loss, _ = find_method(self.config.method).losses
        fakes = draw_fakes(self.G, self.task, BATCH, self.device)
        return discriminator_step(loss, self.G, self.D, self.D_optim, self.images, self.labels, fakes, self.task,
                                  self.config)

    def G_step(self):
        _, loss = find_method(self.config.method).losses
        fakes = draw_fakes(self.G, self.task, BATCH, self.device)
        return generator_step(loss, self.G, self.D, self.C, self.G_optim, fakes, self.task, self.config)


def settings(**changes):
    return make_config(**{**SETTINGS, **changes})


def literal_D(nets, z, y, e):
    """Eqs. (2) and (3) for D, an image at a time in float64; networks in eval mode."""
    G, D, config = copy.deepcopy(nets.G).double(), copy.deepcopy(nets.D).double(), nets.config
    hinge_fake, hinge_real, fake_u, real_u, penalties = [], [], [], [], []
    for i in range(BATCH):
        with torch.no_grad():
            fake = G(z[i:i + 1].double(), y[i:i + 1]).double()
        real = nets.images[i:i + 1].double() / 127.5 - 1
        (fake_c_i, fake_u_i), (real_c_i, real_u_i) = D(fake, y[i:i + 1]), D(real, nets.labels[i:i + 1])
        fake_u.append(fake_u_i[0])
        real_u.append(real_u_i[0])
        if y[i] != UNSEEN:
            hinge_fake.append(max(1 + fake_c_i[0], fake_c_i[0] * 0))
        if y[i] != UNSEEN or not getattr(config.own, "mask_real_by_fake", False):
            hinge_real.append(max(1 - real_c_i[0], real_c_i[0] * 0))
        x_hat = (e[i] * real + (1 - e[i]) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(D(x_hat)[1][0], x_hat, create_graph=True)
        penalties.append(((gradient**2).sum().sqrt() - 1) ** 2)

    def mean(values):
        return sum(values) / len(values)

    if getattr(config.own, "level_unseen", False):
        level = mean([u for u, label in zip(fake_u, y, strict=True) if label != UNSEEN])
        assert any(u < level for u, label in zip(fake_u, y, strict=True) if label == UNSEEN)
        fake_u = [u if label != UNSEEN else max(u, level) for u, label in zip(fake_u, y, strict=True)]
    terms = {"D_wasserstein": mean(fake_u) - mean(real_u), "D_penalty": mean(penalties)}
    if config.D2_reg_coeff:
        terms["D_reg"] = mean([u**2 for u in fake_u]) + mean([u**2 for u in real_u])
    else:
        terms["D_reg"] = mean([u**2 for u in real_u])
    total = terms["D_wasserstein"] + 10 * terms["D_penalty"] + (config.D2_reg_coeff or config.drift) * terms["D_reg"]
    if config.method != "naive":
        terms |= {"D_hinge_fake": mean(hinge_fake), "D_hinge_real": mean(hinge_real)}
        total = total + terms["D_hinge_fake"] + terms["D_hinge_real"]
    total.backward()
    return terms, {name: p.grad for name, p in D.named_parameters()}


def literal_G(nets, z, y):
    """Eqs. (2), (3) and (4) for G, an image at a time in float64; networks in eval mode."""
    G, D, C = (copy.deepcopy(network).double() for network in (nets.G, nets.D, nets.C))
    hinge, wasserstein, cross_entropy, squares = [], [], [], []
    for i in range(BATCH):
        fake = G(z[i:i + 1].double(), y[i:i + 1]).double()
        d_c, d_u = D(fake, y[i:i + 1])
        if y[i] != UNSEEN:
            hinge.append(-d_c[0])
        wasserstein.append(-d_u[0])
        squares.append(d_u[0] ** 2)
        cross_entropy.append(-torch.log(C(fake).softmax(1)[0, y[i]]))
    terms = {"G_wasserstein": sum(wasserstein) / BATCH, "G_class": sum(cross_entropy) / BATCH}
    total = sum(terms.values()) + nets.config.D2_reg_coeff * sum(squares) / BATCH
    if nets.config.method != "naive":
        terms["G_hinge"] = sum(hinge) / len(hinge)
        total = total + terms["G_hinge"]
    total.backward()
    return terms, {name: p.grad for name, p in G.named_parameters()}


def assert_close(ours, literal, gradients, literal_gradients):
    for name, value in literal.items():
        assert ours[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    for name, gradient in literal_gradients.items():
        if gradient is not None:
            assert torch.allclose(gradients[name].double(), gradient, rtol=1e-3, atol=1e-5), name


@pytest.fixture
def double_outputs(monkeypatch):
    """The networks compute their last step in float32 by .float(); the literal computation wants float64."""
    plain = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self if self.dtype == torch.float64 else plain(self))


VARIANTS = [settings(), settings(method="naive"), settings(D2_reg_coeff=0.0), settings(mask_real_by_fake=False),
            settings(level_unseen=True)]


@pytest.mark.parametrize("config", VARIANTS)
def test_steps_equal_the_literal_float64_computation(config, double_outputs):
    nets = Nets(config)
    nets.G.eval()
    nets.D.eval()  # spectral norm stands still, so that one image at a time is the same function
    torch.manual_seed(5)
    z, y = draw_latents(nets.G, nets.task, BATCH, "cpu")
    e = torch.rand(BATCH, 1, 1, 1).double()
    assert config.method == "naive" or (UNSEEN in y and len(set(y.tolist())) > 1)
    expected, gradients = literal_D(nets, z, y, e)
    torch.manual_seed(5)
    terms = nets.D_step()
    assert terms.keys() == expected.keys()
    assert_close(terms, expected, {n: p.grad for n, p in nets.D.named_parameters()}, gradients)

    torch.manual_seed(6)
    z, y = draw_latents(nets.G, nets.task, BATCH, "cpu")
    expected, gradients = literal_G(nets, z, y)
    torch.manual_seed(6)
    terms = nets.G_step()
    assert terms.keys() == expected.keys() | {"fakes_seen", "fakes_unseen", "accepted_seen", "accepted_unseen"}
    assert_close(terms, expected, {n: p.grad for n, p in nets.G.named_parameters()}, gradients)


class NoSynchronisation(TorchDispatchMode):
    """Fails on every operator that makes the host wait for values on a device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "item", "_unique2")

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function._overloadpacket.__name__
        assert name not in self.WAITING, f"{name} waits for the device"
        if name.startswith("index") and len(arguments) > 1 and isinstance(arguments[1], (list, tuple)):
            assert all(i is None or i.dtype != torch.bool for i in arguments[1]), "a boolean index waits for the device"
        return function(*arguments, **(keywords or {}))


ALL_OPTIONS = settings(D_tilemix_ngrid=2, prob_clip=0.9, C_new_coeff=2.0, G_new_coeff=3.0,
                       diffaug=("color", "translation", "cutout"), penalty="zero", diversity_coeff=1.0, balanced_y=True)
EVERY_STEP = [settings(), *(settings(method=method) for method in ("naive", "biggan", "degan")), ALL_OPTIONS,
              settings(level_unseen=True)]


@pytest.mark.parametrize("config", EVERY_STEP)
def test_a_step_waits_for_no_device(config):
    nets = Nets(config)
    with NoSynchronisation():
        nets.D_step()
        nets.G_step()


def test_the_check_for_waiting_sees_waiting():
    with pytest.raises(AssertionError, match="waits"), NoSynchronisation():
        torch.ones(1).item()
    with pytest.raises(AssertionError, match="waits"), NoSynchronisation():
        torch.ones(3)[torch.tensor([True, False, True])]


@pytest.mark.parametrize("config", EVERY_STEP)
def test_one_backward_an_optimiser_step(config, monkeypatch):
    nets, calls = Nets(config), []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: calls.append("backward") or backward(self))
    for optimiser in (nets.D_optim, nets.G_optim):
        monkeypatch.setattr(optimiser, "step", lambda: calls.append("step"))
    nets.D_step()
    assert calls == ["backward", "step"]
    nets.G_step()
    assert calls == ["backward", "step"] * 2


@pytest.mark.parametrize("config", [settings(mask_real_by_fake=False), settings(C_new_coeff=2.0, G_new_coeff=3.0),
                                    settings(method="naive")])
@pytest.mark.parametrize("n", [2, 3])
def test_accumulated_gradients_are_those_of_the_large_batch(config, n, double_outputs):
    """Without batch statistics (eval mode), in float64, in 2 and 3 parts whose rows of y* differ in number."""
    gradients = []
    e = torch.rand(BATCH, 1, 1, 1, dtype=torch.float64)
    for parts in (1, n):
        nets = Nets(dataclasses.replace(config, num_D_accumulations=parts, num_G_accumulations=parts))
        for network in (nets.G, nets.D, nets.C):
            network.eval().double()
        torch.manual_seed(2)
        fakes = draw_fakes(nets.G, nets.task, BATCH, "cpu")
        fakes = dataclasses.replace(fakes, z=fakes.z.double())
        assert config.method == "naive" or len({part.seen.sum().item() for part in fakes.split(n)}) > 1
        D_loss, G_loss = find_method(config.method).losses
        with pytest.MonkeyPatch.context() as patch:
            pieces = iter(e.chunk(parts))
            patch.setattr(torch, "rand", lambda *_, pieces=pieces, **__: next(pieces))
            patch.setattr("step.to_unit_range", lambda images: images.double() / 127.5 - 1)
            for optimiser in (nets.D_optim, nets.G_optim):
                patch.setattr(optimiser, "step", lambda: None)
            discriminator_step(D_loss, nets.G, nets.D, nets.D_optim, nets.images, nets.labels, fakes, nets.task,
                               nets.config)
            found = {f"D.{name}": p.grad.clone() for name, p in nets.D.named_parameters() if p.grad is not None}
            generator_step(G_loss, nets.G, nets.D, nets.C, nets.G_optim, fakes, nets.task, nets.config)
        gradients.append(found | {f"G.{name}": p.grad for name, p in nets.G.named_parameters() if p.grad is not None})
    whole, accumulated = gradients
    assert whole.keys() == accumulated.keys() and len(whole) > 20
    for name, gradient in whole.items():
        assert torch.allclose(gradient, accumulated[name], rtol=1e-9, atol=1e-12), name


def test_the_shares_accepted_are_of_fakes_and_not_of_steps():
    logits = torch.eye(3)[[0, 1, 2, 2]]  # C calls them 0, 1, 2, 2
    some = acceptance(logits, torch.tensor([0, 2, 2, -1]), torch.tensor([1.0, 1.0, 0.0, 1.0]))  # 1 of 2 seen, 1 of 1
    none = acceptance(logits, torch.tensor([0, 1, 0, 0]), torch.ones(4))  # 2 of 4 seen, no unseen
    means = {name: (some[name] + none[name]).item() / 2 for name in some}
    assert shares({"G_class": 3.0, **means}) == {"G_class": 3.0, "C_accepts_seen": 0.5, "C_accepts_unseen": 1.0}
    assert shares({name: value.item() for name, value in none.items()}) == {"C_accepts_seen": 0.5}
    assert shares({"D_reg": 1.0}) == {"D_reg": 1.0}


def test_terms_are_detached():
    nets = Nets(settings())
    assert not any(term.requires_grad for term in (nets.D_step() | nets.G_step()).values())


def test_no_gradient_reaches_the_classifier_or_the_other_network():
    nets = Nets(settings())
    nets.D_step()
    assert all(p.grad is None for p in nets.G.parameters())
    D_gradients = [p.grad.clone() for p in nets.D.parameters()]
    nets.G_step()
    assert all(p.grad is None for p in nets.C.parameters())
    assert all(torch.equal(p.grad, g) for p, g in zip(nets.D.parameters(), D_gradients, strict=True))
    assert all(p.requires_grad for p in nets.D.parameters())


def test_the_penalty_uses_the_unconditional_output_alone():
    nets = Nets(settings(gp_coeff=1.0))
    nets.D.eval()
    torch.manual_seed(3)
    before = nets.D_step()["D_penalty"]
    with torch.no_grad():
        for head in (nets.D.linear, nets.D.embed):
            head.weight.copy_(torch.randn_like(head.weight))
    nets = Nets(settings(gp_coeff=1.0))
    nets.D.eval()
    with torch.no_grad():
        for head in (nets.D.linear, nets.D.embed):
            head.weight.copy_(torch.randn_like(head.weight))
    torch.manual_seed(3)
    assert torch.equal(nets.D_step()["D_penalty"], before)


@pytest.mark.parametrize("network", ["D", "G"])
def test_no_unseen_row_reaches_the_conditional_loss(network, monkeypatch):
    """The conditional terms count the rows that were drawn for seen classes; a batch of y* alone gives 0."""
    nets = Nets(settings())
    seen_by_hinge = []
    name = "hinge_fake" if network == "D" else "hinge_generator"
    hinge = getattr(losses, name)
    monkeypatch.setattr(losses, name, lambda d_c, rows, total: seen_by_hinge.append(rows) or hinge(d_c, rows, total))
    drawn = []
    monkeypatch.setattr("step.draw_latents", lambda *a: drawn.append(draw_latents(*a)) or drawn[-1])
    (nets.D_step if network == "D" else nets.G_step)()
    assert seen_by_hinge[0].tolist() == [float(y != UNSEEN) for y in drawn[0][1].tolist()]
    if network == "D":
        nets.task = dataclasses.replace(nets.task, fake_classes=torch.tensor([UNSEEN]))
        terms = nets.D_step()
        assert terms["D_hinge_fake"] == 0 and terms["D_hinge_real"] == 0


def test_naive_draws_the_unseen_class_alone_and_the_oracle_masks_nothing():
    assert task_of(settings(method="naive")).fake_classes.tolist() == [UNSEEN]
    oracle = task_of(settings(oracle=True))
    assert oracle.unseen.tolist() == [] and oracle.fake_classes.tolist() == [0, 1, 2, 3]


def test_balanced_classes_come_equally_often_and_not_always_in_the_same_places():
    nets = Nets(settings(balanced_y=True))
    drawn = [draw_latents(nets.G, nets.task, 2 * CLASSES, "cpu")[1] for _ in range(20)]
    assert all(y.bincount(minlength=CLASSES).tolist() == [2] * CLASSES for y in drawn)
    assert len({tuple(y.tolist()) for y in drawn}) > 1


def test_the_penalty_is_taken_where_its_name_says(monkeypatch):
    """R1 on the real images, the others between real and fake; the zero-centred ones towards a gradient of 0."""
    seen = {}
    penalty = losses.gradient_penalty
    for name in ("wgan-gp", "r1", "zero"):
        nets = Nets(settings(penalty=name))
        monkeypatch.setattr(losses, "gradient_penalty",
                            lambda d_u, x, norm, name=name: seen.setdefault(name, (x, norm)) and penalty(d_u, x, norm))
        nets.D_step()
    real = nets.images.float() / 127.5 - 1
    assert {name: norm for name, (_, norm) in seen.items()} == {"wgan-gp": 1.0, "r1": 0.0, "zero": 0.0}
    assert torch.allclose(seen["r1"][0], real) and not torch.allclose(seen["zero"][0], real)


def test_class_map_and_weights():
    task = task_of(settings(C_new_coeff=5.0), C_labels=(3, -1, 1, 2), C_classes=5)
    assert task.C_labels.tolist() == [3, -1, 1, 2]
    assert task.C_weights.tolist() == [1, 5, 1, 1, 1]  # y* = 2 is the classifier's label 1


@pytest.mark.parametrize("kernel, bias", [(3, True), (1, False)])
def test_the_own_convolution_has_torchs_first_and_second_gradients(kernel, bias):
    x, weight, offset = (torch.randn(shape, dtype=torch.float64, requires_grad=True)
                         for shape in ((2, 3, 5, 4), (4, 3, kernel, kernel), (4,)))
    offset = offset if bias else None
    parts = [part for part in (x, weight, offset) if part is not None]

    def gradients(convolution):
        out = convolution(x, weight, offset)
        of_parts = torch.autograd.grad(out.sin().sum(), parts, create_graph=True)
        of_x, = torch.autograd.grad(convolution(x, weight, offset).sin().sum(), x, create_graph=True)
        return out, *of_parts, *torch.autograd.grad(of_x.square().sum(), parts, retain_graph=True), \
            *torch.autograd.grad(sum(part.square().sum() for part in of_parts[1:]), parts)

    own = gradients(lambda *given: Convolution.apply(*given, kernel // 2))
    torchs = gradients(lambda *given: nn.functional.conv2d(*given, padding=kernel // 2))
    assert len(own) == 1 + 3 * len(parts)
    for a, b in zip(own, torchs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_the_penalty_computes_no_gradients_of_weights_on_its_way(monkeypatch):
    """Its first pass asks for those of the image alone."""
    asked = []

    def record(gradient, x, weight, padding, wanted):
        asked.append(tuple(wanted))
        return convolution_gradients(gradient, x, weight, padding, wanted)

    monkeypatch.setattr("layers.convolution_gradients", record)
    layer, x = SNConv2d(2, 3, 3), torch.randn(2, 2, 4, 4, requires_grad=True)
    of_x, = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
    assert asked == [(True, False, False)]
    of_x.square().sum().backward()
    assert (False, True, True) in asked and layer.weight.grad.abs().sum() > 0


def test_training_mode_advances_spectral_norm_once_a_forward():
    nets = Nets(settings())
    layer = next(module for module in nets.D.modules() if isinstance(module, SpectralNorm))
    before = layer.u0.clone()
    nets.D.eval()
    layer.normalised_weight()
    assert torch.equal(layer.u0, before)
    nets.D.train()
    for _ in range(100):
        weight = layer.normalised_weight()
    assert torch.linalg.matrix_norm(weight.flatten(1), ord=2).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("part", ["color", "translation", "time", "cutout"])
def test_diff_augment_changes_images_and_passes_gradients_twice(part):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    changed = diff_augment(images, (part,))
    assert changed.shape == images.shape and not torch.equal(changed, images)
    (gradient,) = torch.autograd.grad(changed.pow(3).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert torch.isfinite(images.grad).all() and images.grad.norm() > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_on_cuda_waits_for_nothing_and_agrees_with_the_cpu(precision):
    config = settings(precision=precision)
    on_cpu, on_cuda = Nets(config), Nets(config, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        terms = on_cuda.D_step() | on_cuda.G_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(term) for term in terms.values())
    for network in ("G", "D"):
        theirs = getattr(on_cuda, network).state_dict()
        assert theirs.keys() == getattr(on_cpu, network).state_dict().keys()
        assert all(torch.isfinite(value).all() for value in theirs.values())


# ----------------------------------------------------------------------- what keeps a class varied


def gradients_on_fakes(config):
    """{name: (B,) norms of D's and of the classifier's gradient on each fake, and of their sum}, of one G step."""
    nets = Nets(config)
    nets.task = dataclasses.replace(nets.task, spreads=torch.full((CLASSES,), 0.5))
    fakes = draw_fakes(nets.G, nets.task, BATCH, nets.device)
    x = nets.G(fakes.z, fakes.y).detach().requires_grad_()
    total, terms = find_method("probegan").losses[1](lambda z, y: x, nets.D, nets.C, fakes, nets.task, config)
    parts = {"all": total, "D": terms["G_hinge"] + terms["G_wasserstein"], "C": terms["G_class"]}
    found = {name: torch.autograd.grad(part, x, retain_graph=True)[0].flatten(1) for name, part in parts.items()}
    return found, fakes.seen.bool(), total


def test_the_classifiers_pull_is_bounded_by_a_share_of_ds_and_the_value_of_the_loss_stays():
    plain, seen, value = gradients_on_fakes(settings(D2_reg_coeff=0.0))
    bound, _, same = gradients_on_fakes(settings(D2_reg_coeff=0.0, C_bound=0.01, C_bound_new=0.02))
    assert same.item() == pytest.approx(value.item(), rel=1e-5)
    most = torch.where(seen, 0.01, 0.02) * plain["D"].norm(dim=1)
    assert (plain["C"].norm(dim=1) > most).all()
    assert torch.allclose(bound["C"].norm(dim=1), most, rtol=1e-3)
    assert torch.allclose(bound["all"], plain["D"] + bound["C"], atol=1e-6)
    loose, _, _ = gradients_on_fakes(settings(D2_reg_coeff=0.0, C_bound=1e6, C_bound_new=1e6))
    assert torch.allclose(loose["all"], plain["all"], atol=1e-5)


def test_a_bounded_step_moves_g_and_leaves_d():
    nets = Nets(settings(C_bound=0.5, C_bound_new=2.0, spread_coeff=1.0))
    nets.task = dataclasses.replace(nets.task, spreads=torch.full((CLASSES,), 0.5))
    before = copy.deepcopy(nets.D.state_dict())
    weight = nets.G.linear.weight.clone()
    terms = nets.G_step()
    assert terms["G_spread"] > 0 and not torch.equal(nets.G.linear.weight, weight)
    assert all(torch.equal(p, before[name]) for name, p in nets.D.named_parameters())


def test_the_penalty_is_left_out_where_its_weight_is_zero():
    nets = Nets(settings(gp_coeff=0.0))
    assert "D_penalty" not in nets.D_step()


@pytest.mark.parametrize("changes, words", [
    ({"C_bound": 0.5}, "--C_bound is 0.5 and --C_bound_new 0.0; give both, or neither"),
    ({"D_tilemix_ngrid": 2, "level_unseen": True}, "--D_tilemix_ngrid 2 mixes the classes within an image"),
    ({"gp_every": 3}, "--gp_every 3 does not divide --num_D_steps 4"),
    ({"spread_coeff": -1.0}, "--spread_coeff is -1.0; it must not be negative"),
])
def test_wrong_values_get_a_sentence(changes, words):
    with pytest.raises(UserError, match=words):
        settings(**changes)
