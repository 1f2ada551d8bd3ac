"""GANs with class labels as methods: which terms each loss has, targets, masked classes, ProbeGAN's other head."""

import copy
import dataclasses
import json
import math
import sys

import pytest
import torch

import evaluate
import label_losses as losses
import sample
import train
from BigGAN import load_weights, make_discriminator, make_generator
from classifiers import load_classifier
from dcgan import fit_to_batch
from methods import find_method, labelled, make_config, start
from sampler import Sampler, make_sampler
from step import discriminator_step, draw_fakes, generator_step, make_task
from utils import DATASETS, UserError, load_checkpoint, save_checkpoint, save_torch, seeded_latents

BATCH, CLASSES, UNSEEN = 8, 4, 2
NONE = torch.tensor([], dtype=torch.long)
CPU = torch.device("cpu")


def settings(**changes):
    return make_config(**{"dataset": "digits", "method": "labelled", "new_class": [str(UNSEEN)], "G_ch": 2, "D_ch": 2,
                          "dim_z": 12, "shared_dim": 8, "batch_size": BATCH, "init": "ortho", "diffaug": (),
                          "precision": "fp32", "gp_every": 1, "penalty": "wgan-gp", "gp_coeff": 10.0,
                          "balanced_y": False, **changes})


class Nets:
    """Small networks, a task and a batch. classifier: any function of images."""

    def __init__(self, config):
        torch.manual_seed(0)
        n, self.method = losses.head_outputs(config.own.class_loss, CLASSES), find_method(config.method)
        draws = self.method.draws(config, CLASSES)
        self.G = make_generator(config, 16, 1, CLASSES, draws["conditional"])
        self.D = make_discriminator(config, 16, 1, CLASSES, n, draws["conditional"])
        self.task = make_task(config, draws["fed"], range(CLASSES), CLASSES, "cpu")
        self.images = torch.randint(0, 256, (BATCH, 1, 16, 16), dtype=torch.uint8)
        self.labels = torch.tensor([0, 1, 3, 0, 1, 3, 0, 1])
        self.config = config
        self.weights = torch.randn(256, CLASSES)

    def C(self, images):
        return images.flatten(1) @ self.weights

    def fakes(self):
        return draw_fakes(self.G, self.task, BATCH, "cpu")

    def D_terms(self, fakes):
        return self.method.losses[0](self.G, self.D, self.images, self.labels, fakes, self.task, self.config)

    def G_terms(self, fakes):
        return self.method.losses[1](self.G, self.D, self.C, fakes, self.task, self.config)


D_TERMS = {"gan": set(), "gan_star": {"D_class_real"}, "label": {"D_class_real"},
           "acgan": {"D_class_real", "D_class_fake"}, "acgan_star": {"D_class_real"},
           "acgan_plus": {"D_class_real", "D_class_fake"}, "am": {"D_class_real"}}


@pytest.mark.parametrize("networks", ["biggan", "dcgan"])
@pytest.mark.parametrize("labelling", ["predefined", "dynamic"])
@pytest.mark.parametrize("class_loss", losses.CLASS_LOSSES)
def test_each_loss_has_its_terms_and_trains(class_loss, labelling, networks):
    nets = Nets(settings(class_loss=class_loss, labelling=labelling, networks=networks, oracle=True))
    D_optim, G_optim = (torch.optim.Adam(network.parameters(), 1e-3) for network in (nets.D, nets.G))
    D_terms = discriminator_step(labelled.discriminator_loss, nets.G, nets.D, D_optim, nets.images, nets.labels,
                                 nets.fakes(), nets.task, nets.config)
    before = copy.deepcopy(nets.G.state_dict())
    G_terms = generator_step(labelled.generator_loss, nets.G, nets.D, None, G_optim, nets.fakes(), nets.task,
                             nets.config)
    assert D_terms.keys() == {"D_real", "D_fake"} | D_TERMS[class_loss]
    assert G_terms.keys() == {"G_real"} | ({"G_label"} if class_loss in losses.G_KNOWS else set())
    assert all(term.isfinite() for term in (D_terms | G_terms).values())
    assert any(not torch.equal(value, before[name]) for name, value in nets.G.named_parameters())


def outputs(class_loss, seed=0):
    n = losses.head_outputs(class_loss, CLASSES)
    return torch.randn(2, BATCH, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind(0)


def D_loss(class_loss, fake, real, y_fake=None, **changes):
    y = torch.arange(BATCH) % CLASSES
    return labelled.discriminator_terms(fake, real, y, y_fake or (lambda logits: y.flip(0)), NONE,
                                        settings(class_loss=class_loss, **changes).own)[0]


def G_loss(class_loss, of_fakes, **changes):
    y = torch.arange(BATCH) % CLASSES
    return labelled.generator_terms(of_fakes, lambda logits: y, NONE, settings(class_loss=class_loss, **changes).own)[0]


def test_losses_against_a_softmax_over_K_plus_1_by_hand():
    fake, real = outputs("am")
    log_D = [torch.cat((logits, torch.zeros(BATCH, 1, dtype=torch.float64)), 1).log_softmax(1)
             for logits in (fake, real)]
    y = torch.arange(BATCH) % CLASSES
    of_real = log_D[1].gather(1, y[:, None]).mean()
    for class_loss in ("am", "label"):
        torch.testing.assert_close(D_loss(class_loss, fake, real), -of_real - log_D[0][:, -1].mean())
        smoothed = -0.9 * of_real - 0.1 * log_D[1][:, -1].mean() - log_D[0][:, -1].mean()
        torch.testing.assert_close(D_loss(class_loss, fake, real, label_smooth=0.9), smoothed)
    torch.testing.assert_close(G_loss("am", fake), -log_D[0].gather(1, y[:, None]).mean())
    torch.testing.assert_close(G_loss("label", fake), -log_D[0][:, :-1].exp().sum(1).log().mean())


def test_losses_that_differ_in_one_term():
    fake, real = outputs("am")
    assert torch.equal(D_loss("am", fake, real), D_loss("label", fake, real))  # the same function
    assert torch.equal(G_loss("am", fake, G_class_coeff=0), G_loss("label", fake))
    fake, real = outputs("acgan_star")
    assert torch.equal(G_loss("acgan_star", fake, G_class_coeff=0), G_loss("gan_star", fake))
    assert torch.equal(D_loss("acgan_star", fake, real), D_loss("gan_star", fake, real))
    for class_loss in ("acgan_star", "acgan_plus"):
        assert torch.equal(G_loss("acgan", fake), G_loss(class_loss, fake))
    more = D_loss("acgan_plus", fake, real) - D_loss("acgan_star", fake, real)
    torch.testing.assert_close(more, losses.uniform_entropy(fake[:, :-1]).mean())
    assert more > math.log(CLASSES)
    torch.testing.assert_close(D_loss("gan_star", fake, real, D_class_coeff=0),
                               D_loss("gan", fake[:, -1:], real[:, -1:]))
    assert torch.equal(D_loss("acgan", fake, real, label_smooth=1.0), D_loss("acgan", fake, real))


def test_a_target_is_the_fake_s_own_label_or_D_s_best_without_a_gradient():
    nets = Nets(settings(oracle=True))
    fakes, logits = nets.fakes(), torch.randn(BATCH, CLASSES).requires_grad_()
    assert torch.equal(labelled.targets(logits, fakes, nets.config.own), fakes.y)
    dynamic = labelled.targets(logits, fakes, settings(labelling="dynamic").own)
    assert torch.equal(dynamic, logits.argmax(1)) and not dynamic.requires_grad


def test_a_generator_of_dynamic_labels_is_asked_for_one_class():
    for networks in ("biggan", "dcgan"):
        nets = Nets(settings(labelling="dynamic", networks=networks, oracle=True))
        assert not nets.fakes().y.any()
    assert torch.equal(nets.G(torch.ones(1, 12), torch.tensor([0])), nets.G(torch.ones(1, 12), torch.tensor([3])))


@pytest.mark.parametrize("labelling", ["predefined", "dynamic"])
@pytest.mark.parametrize("class_loss", losses.CLASS_LOSSES)
def test_an_unseen_class_is_masked(class_loss, labelling):
    """Neither a gradient reaches its logit, nor a target is of it, nor a fake is drawn for it."""
    nets = Nets(settings(class_loss=class_loss, labelling=labelling))
    with torch.no_grad():
        if class_loss != "gan":
            nets.D.linear3.bias[UNSEEN] = 1e4  # D would take every image for it
    fakes = nets.fakes()
    assert labelling == "dynamic" or UNSEEN not in fakes.y
    for total, _ in (nets.D_terms(fakes), nets.G_terms(fakes)):
        assert total < 1e3
        nets.D.zero_grad()
        total.backward()
        gradient = nets.D.linear3.bias.grad
        assert gradient.isfinite().all() and gradient.any()
        assert class_loss == "gan" or gradient[UNSEEN] == 0


# ------------------------------------------------------------------------------ ProbeGAN's other head


def probe(class_loss="am", **changes):
    """Networks of ProbeGAN with the paper's terms alone."""
    return Nets(settings(method="probegan_labels", class_loss=class_loss, C_bound=0.0, C_bound_new=0.0,
                         spread_coeff=0.0, level_unseen=False, **changes))


def test_probegan_with_class_logits_against_its_parts():
    nets = probe()
    nets.G.eval(), nets.D.eval()
    fakes = nets.fakes()
    assert UNSEEN in fakes.y and (fakes.y != UNSEEN).any()
    torch.manual_seed(5)  # of the penalty's interpolation
    total, terms = nets.D_terms(fakes)
    fake, real = nets.G(fakes.z, fakes.y), nets.images / 127.5 - 1
    seen = fakes.y != UNSEEN
    kept = [k for k in range(CLASSES) if k != UNSEEN]
    places = torch.tensor([0, 1, -1, 2])

    def log_D(images):  # of the seen classes and fake
        logits = nets.D(images)[0][:, kept]
        return torch.cat((logits, torch.zeros(BATCH, 1)), 1).log_softmax(1)

    def of_class(log_D, y):
        return -log_D[seen].gather(1, places[y[seen]][:, None]).mean()

    torch.testing.assert_close(terms["D_real"] + terms["D_class_real"], of_class(log_D(real), nets.labels))
    torch.testing.assert_close(terms["D_fake"], -log_D(fake)[seen][:, -1].mean())
    d_u = [nets.D(images)[1].mean() for images in (fake, real)]
    torch.testing.assert_close(terms["D_wasserstein"], d_u[0] - d_u[1])  # fakes of all classes: dilution
    wanted = (sum(terms[name] for name in ("D_real", "D_class_real", "D_fake", "D_wasserstein"))
              + 10 * terms["D_penalty"] + 1e-4 * terms["D_reg"])
    torch.testing.assert_close(total, wanted)

    total, terms = nets.G_terms(fakes)
    torch.testing.assert_close(terms["G_real"] + terms["G_label"], of_class(log_D(fake), fakes.y))
    log_C = nets.C(fake).log_softmax(1).gather(1, fakes.y[:, None]).mean()
    d_u = nets.D(fake)[1]
    torch.testing.assert_close(total, terms["G_real"] + terms["G_label"] - d_u.mean() - log_C
                               + 1e-4 * d_u.square().mean())
    assert terms["fakes_unseen"] == (~seen).sum()


@pytest.mark.parametrize("class_loss", losses.CLASS_LOSSES)
def test_no_fake_of_the_unseen_class_reaches_the_class_logits(class_loss):
    nets = probe(class_loss, gp_coeff=0.0)
    nets.G.eval(), nets.D.eval()
    fakes = nets.fakes()
    moved = dataclasses.replace(fakes, z=torch.where(fakes.seen[:, None] > 0, fakes.z, fakes.z + 1))
    for terms in (nets.D_terms, nets.G_terms):
        (_, before), (_, after) = terms(fakes), terms(moved)
        own = {"D_real", "D_fake", "D_class_real", "D_class_fake", "G_real", "G_label"} & before.keys()
        assert len(own) > 0
        for name in own:
            torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=1e-5)
        name = "D_wasserstein" if "D_wasserstein" in before else "G_wasserstein"
        assert not torch.equal(before[name], after[name])
    only = dataclasses.replace(fakes, y=torch.full((BATCH,), UNSEEN), seen=torch.zeros(BATCH),
                               seen_batch=torch.zeros(BATCH))
    for total, _ in (nets.D_terms(only), nets.G_terms(only)):
        assert total.isfinite()


# ------------------------------------------------------------------------------------ the third head


def test_the_third_head_is_made_where_it_is_asked_for():
    torch.manual_seed(1)
    plain = make_discriminator(settings(), 16, 1, CLASSES)
    torch.manual_seed(1)
    other = make_discriminator(settings(), 16, 1, CLASSES, 5)
    assert other.state_dict().keys() - plain.state_dict().keys() == {
        f"linear3.{name}" for name in ("weight", "bias", "u0", "sv0")}
    x = torch.randn(3, 1, 16, 16)
    labels, d_u = other.eval()(x, torch.zeros(3, dtype=torch.long))
    assert labels.shape == (3, 5) and d_u.shape == (3,)
    assert torch.equal(labels, other(x)[0])


def test_a_discriminator_without_the_third_head_may_start_one_with_it(tmp_path):
    save_torch(tmp_path / "D.pth", make_discriminator(settings(), 16, 1, CLASSES).state_dict())
    D = make_discriminator(settings(), 16, 1, CLASSES, 5)
    fresh = D.linear3.weight.clone()
    load_weights(D, tmp_path / "D.pth")
    assert torch.equal(D.linear3.weight, fresh)


# ------------------------------------------------------------------------------------------- a run


def call(program, *flags):
    """Run a command's main() in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program.__name__, *map(str, flags)])
        program.main()


def run_settings(world, **changes):
    return {"dataset": "digits", "data_root": str(world), "method": "labelled", "new_class": ["7"], "G_ch": 2,
            "D_ch": 2, "dim_z": 6, "shared_dim": 8, "batch_size": 20, "num_D_steps": 1, "gp_every": 1, "device": "cpu",
            "ema_start": 1, "num_steps": 3, "C_path": str(world / "C.pt"), "evaluator": str(world / "E.pt"),
            "skip_classifier_check": True, **changes}


@pytest.mark.parametrize("changes, drawn", [
    ({"oracle": True, "class_loss": "acgan_plus", "networks": "dcgan"}, list(range(10))),
    ({"labelling": "dynamic", "networks": "dcgan", "num_images": 50}, None),
    ({"labelling": "dynamic", "num_images": 50, "class_loss": "gan"}, None),
])
def test_a_run_stops_goes_on_draws_and_is_measured(noise_world, tmp_path, changes, drawn):
    """As every method of test_methods, which runs the rest."""
    config = make_config(**run_settings(noise_world, **changes))
    first = start(config, DATASETS["digits"], CPU)
    first.advance()
    whole, again = first, start(config, DATASETS["digits"], CPU, copy.deepcopy(first.state()))
    for run in (again, whole):
        torch.manual_seed(1)
        assert all(term.isfinite() and not term.requires_grad for term in run.advance().values())
    for name, value in whole.state()["G_ema"].items():
        assert torch.equal(value, again.state()["G_ema"][name])

    save_checkpoint(tmp_path, whole.state(), keep=1)
    call(sample, "--checkpoint", tmp_path, "--device", "cpu")
    call(evaluate, "--run", tmp_path, "--metrics", "am_score", "ms_ssim_max", "fd", "--num", 50, "--device", "cpu")
    found = {r["metric"].split("@")[0]: r for r in map(json.loads, (tmp_path / "results.jsonl").open())}
    assert found["am_score"]["value"] == pytest.approx(found["am_divergence"]["value"] + found["am_doubt"]["value"])
    sampler = make_sampler(load_checkpoint(tmp_path), CPU)
    assert ("sorted by the probed classifier" in found["fd"]["warning"]) == (drawn is None)
    if drawn is not None:
        assert sampler.drawn == drawn and sampler.shares is None and not sampler.different
        return
    assert 7 not in sampler.drawn and sum(sampler.shares.values()) == pytest.approx(1)
    rare = [y for y in sampler.drawn if sampler.different[y] < 50]
    assert all(sampler.different[y] == round(900 * sampler.shares[y]) for y in rare)
    assert found["fd"]["warning"].count("different images of class") == len(rare)
    # the AM score of the sorted images is that of as many unsorted ones
    z = seeded_latents(range(labelled.FIRST_SEED, labelled.FIRST_SEED + 2 * 50 * 9), 6)
    judge = load_classifier(noise_world / "E.pt")
    p = judge(sampler.images(z, torch.zeros(len(z), dtype=torch.long))).softmax(1)
    doubt = torch.special.entr(p.double()).sum(1)
    half = 4 * doubt.std() / math.sqrt(len(p)) + 1e-3
    assert found["am_doubt"]["value"] == pytest.approx(doubt.mean().item(), abs=half.item())
    with pytest.raises(UserError, match="--mode z walks through a generator of classes"):
        call(sample, "--checkpoint", tmp_path, "--mode", "z", "--device", "cpu")


def test_sorted_latents_are_the_first_of_each_class_and_repeated_where_there_are_few(noise_world):
    run = start(make_config(**run_settings(noise_world, labelling="dynamic", networks="dcgan", num_images=50)),
                DATASETS["digits"], CPU)
    run.advance()
    state = run.state()
    G = Sampler({**state, "latents": None}, CPU)

    def C(images):  # by the brightness of the first pixel: class 0 one in ten, class 1 never, class 9 the rest
        bright = images[:, 0, 0, 0]
        return torch.stack([(bright > edge) * 2.0, *[torch.full_like(bright, -1.0)] * 8, torch.ones_like(bright)], 1)

    z = seeded_latents(range(labelled.FIRST_SEED, labelled.FIRST_SEED + 2 * 50 * 9), 6)
    bright = G.images(z, torch.zeros(len(z), dtype=torch.long))[:, 0, 0, 0]
    edge = bright.sort().values[-21].item()  # 20 are brighter
    latents, shares = labelled.sorted_latents(state, C, list(range(10)), [7], 50, CPU)
    assert latents.keys() == {0, 9} and shares[0] == 20 / 900 and shares[9] == 880 / 900 and 7 not in shares
    own = z[bright > edge]
    assert torch.equal(latents[0], torch.cat((own, own, own[:10])))
    assert torch.equal(latents[9], z[bright <= edge][:50])
    sampler = make_sampler({**state, "latents": latents, "shares": shares}, CPU)
    assert sampler.different == {0: 20, 9: 50} and sampler.most == 50


@pytest.mark.parametrize("changes, judged", [({"networks": "dcgan"}, False), ({}, False),
                                             ({"method": "probegan_labels"}, True)])
def test_the_watches_look_at_heads_that_are_trained_alone(noise_world, tmp_path, changes, judged):
    run = start(make_config(**run_settings(noise_world, num_steps=1, **changes)), DATASETS["digits"], CPU)
    train.train(run, tmp_path)
    watched, taught = (json.loads((tmp_path / f"{name}.jsonl").read_text()) for name in ("collapse", "teachers"))
    assert (watched["classes"]["3"]["D_gap"] is not None) == judged == ("D_u_seen" in taught)
    assert "D_c_right" not in taught and taught["pull_seen_G_label"] > 0


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("changes, words", [
    ({"method": "probegan_labels", "labelling": "dynamic"}, "--labelling is a setting of --method labelled, and this"),
    ({"method": "probegan_labels", "D_tilemix_ngrid": 3}, "--D_tilemix_ngrid 3 does not divide 16 pixels"),
    ({"label_smooth": 0.0}, "--label_smooth is 0.0"), ({"label_smooth": 1.1}, "--label_smooth is 1.1"),
    ({"label_smooth": math.nan}, "--label_smooth is nan"), ({"class_loss": "acgan2"}, "did you mean 'acgan'"),
    ({"G_class_coeff": -1.0}, "--G_class_coeff is -1.0"), ({"D_class_coeff": -1.0}, "--D_class_coeff is -1.0"),
    ({"networks": "dcgan", "method": "probegan_labels"}, "no unconditional head"),
])
def test_wrong_settings_get_a_sentence(changes, words):
    with pytest.raises(UserError, match=words):
        make_config(**{"dataset": "digits", "new_class": ["7"], "method": "labelled", **changes})


def test_the_dcgan_pair_is_refused_by_a_method_of_other_heads(noise_world):
    config = make_config(**run_settings(noise_world, method="probegan", networks="dcgan"))
    with pytest.raises(UserError, match="--networks dcgan has a head of class logits alone"):
        start(config, DATASETS["digits"], CPU)


def test_more_classes_than_data():
    names = ("ant", "bee", "cow", "dog")
    labelled.require_every_class(torch.tensor([0, 1, 3]), names, [2])
    with pytest.raises(UserError, match="holds no image of cow, dog, and D learns the 4 classes"):
        labelled.require_every_class(torch.tensor([0, 1, 1]), names, [])


def test_the_first_batch_of_the_dcgan_pair_is_of_its_own_fakes():
    nets = Nets(settings(networks="dcgan", oracle=True))
    fakes = nets.fakes()
    images = fit_to_batch(nets.G, fakes.z, fakes.y)
    outputs, _ = fit_to_batch(nets.D, images)
    assert outputs.shape == (BATCH, CLASSES)
    torch.testing.assert_close(outputs.mean(0), torch.zeros(CLASSES), atol=1e-4, rtol=0)
