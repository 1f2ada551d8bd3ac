"""A run as its user sees it: files, resume, signals, full disks, NaN, and a sentence for each wrong input."""

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import evaluate
import files
import utils
from classifiers import build
from config import Config, located
from layers import EMA
from methods import make_config, read_config
from methods import start as start_run
from metrics.selection import Selection
from train import locked, main, train
from training import Judge, Recorded
from utils import DATASETS, UserError, load_checkpoint, load_torch, save_torch, write_json

ROOT = Path(__file__).parents[1]
SMALL = ["--G_ch", "1", "--D_ch", "1", "--dim_z", "6", "--shared_dim", "8", "--batch_size", "8", "--num_D_steps", "1",
         "--gp_every", "1", "--device", "cpu", "--ema_start", "2", "--precision", "fp32"]


@pytest.fixture(scope="module")
def world(noise_world):
    return noise_world


def command(world, *flags, program="train.py", **options):
    return subprocess.run([sys.executable, str(ROOT / program), *map(str, flags)], capture_output=True, text=True,
                          cwd=world, **options)


def start(world, run, *flags):
    return command(world, "--dataset", "digits", "--new_class", 7, "--data_root", world, "--C_path", world / "C.pt",
                   "--run", run, "--skip_classifier_check", *SMALL, *flags)


def training(world, **changes):
    """A Training in this process, small."""
    settings = {flag[2:]: value for flag, value in zip(SMALL[::2], SMALL[1::2], strict=True)}
    settings = {name: type(getattr(Config, name))(value) for name, value in settings.items()}
    settings |= {"new_class": ["7"], "C_path": str(world / "C.pt"), **changes}
    config = make_config(dataset="digits", data_root=str(world), **settings)
    return start_run(config, DATASETS["digits"], torch.device(config.device))


def flat(value, path=""):
    """Every leaf of nested dicts and lists by its path."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{path}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, part in enumerate(value) for k, v in flat(part, f"{path}/{i}").items()}
    return {path: value}


def assert_same_state(a, b, but=()):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for key, value in a.items():
        if not key.startswith(but):
            assert torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key], key


def test_a_run_writes_its_files_and_resumes_bit_exactly(world, tmp_path):
    """3 + 3 steps with a restart equal 6 steps in every tensor; by the commands that a user types."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = start(world, whole, "--num_steps", 6, "--log_every", 1, "--save_every", 6)
    assert done.returncode == 0, done.stderr
    assert "No image of 7 was used: 20 images were left out" in done.stdout
    assert {path.name for path in whole.iterdir()} == {
        "config.json", "audit.json", "classifier_check.json", "collapse.jsonl", "log.jsonl", "samples.png",
        "teachers.jsonl", "checkpoints"}
    assert json.loads((whole / "config.json").read_text())["new_class"] == [7]
    audit = json.loads((whole / "audit.json").read_text())
    assert audit["images_per_class"]["7"] == 0 and audit["images_used"] == 180
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"D_hinge_fake", "D_hinge_real", "D_wasserstein", "D_penalty", "D_reg", "G_hinge", "G_wasserstein",
            "G_class", "C_accepts_seen", "steps_per_second"} < lines[0].keys()
    assert any("C_accepts_unseen" in line for line in lines)  # not of a batch without a fake of y*

    assert start(world, parts, "--num_steps", 3, "--log_every", 1).returncode == 0
    done = command(world, "--resume", parts, "--num_steps", 6)
    assert done.returncode == 0, done.stderr
    assert_same_state(load_checkpoint(whole), load_checkpoint(parts), but=("/config/save_every", "/config/log_every"))
    again = [json.loads(line) for line in (parts / "log.jsonl").read_text().splitlines()]
    for line, other in zip(lines, again, strict=True):
        assert {**line, "steps_per_second": 0} == {**other, "steps_per_second": 0}


def test_a_checkpoint_holds_plain_values_and_the_audit(world):
    run = training(world)
    run.advance()
    state = run.state()
    assert state["audit"]["unseen_classes"] == ["7"] and state["step"] == 1
    for path, value in flat(state).items():
        assert type(value) in (int, float, str, bool, torch.Tensor, type(None)), (path, type(value))


def test_streamed_data_resumes_exactly_too(world, tmp_path):
    whole = training(world, max_resident_gb=0.0)
    assert not whole.stream.resident
    for _ in range(2):
        whole.advance()
    save_torch(tmp_path / "state.pt", whole.state())
    for _ in range(30):  # past the end of an epoch of 22 batches
        whole.advance()
    resumed = start_run(whole.config, whole.spec, whole.device, load_torch(tmp_path / "state.pt"))
    for _ in range(30):
        resumed.advance()
    assert_same_state(whole.state(), resumed.state())


def test_drawing_grids_changes_nothing_in_the_run(world, tmp_path):
    """Grids leave training's random stream alone, so that a resume from the same step is exact too."""
    states = []
    for sample_every in (1, 100):
        run = training(world, num_steps=4, sample_every=sample_every, save_every=2)
        train(run, tmp_path / str(sample_every))
        states.append(run.state())
    assert_same_state(*states, but="/config/sample_every")
    resumed = start_run(read_config(states[0]["config"]), DATASETS["digits"], torch.device("cpu"),
                       load_torch(tmp_path / "1/checkpoints/step_00000002.pt"))
    train(resumed, tmp_path / "resumed")
    assert_same_state(states[0], resumed.state())


def test_the_average_is_a_copy_until_it_starts_and_then_lags(world):
    run = training(world, ema_start=3, ema_decay=0.9, ema_rampup=0.0)
    for _ in range(2):
        run.advance()
        assert all(torch.equal(a, b) for a, b in zip(run.G_ema.parameters(), run.G.parameters(), strict=True))
    before = [p.clone() for p in run.G_ema.parameters()]
    run.advance()
    for average, old, new in zip(run.G_ema.parameters(), before, run.G.parameters(), strict=True):
        assert torch.allclose(average, 0.9 * old + 0.1 * new, atol=1e-7)


def test_the_average_reaches_back_over_a_share_of_the_steps():
    source, target = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    average = EMA(source, target, 0.9, 0, rampup=0.2)
    shares = []
    for step in range(1, 101):
        torch.nn.init.ones_(source.weight)
        torch.nn.init.zeros_(target.weight)
        average.update(step)
        shares.append(target.weight.item())  # of the new value
    expected = [1.0] * 5 + [5 / step for step in range(6, 51)] + [0.1] * 50  # from 50 steps on a fifth is ten and more
    assert shares == pytest.approx(expected)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_before_leaving(world, tmp_path, signal_number):
    run = tmp_path / "run"
    flags = ["--dataset", "digits", "--new_class", "7", "--data_root", str(world), "--C_path", str(world / "C.pt"),
             "--run", str(run), *SMALL, "--num_steps", "100000", "--log_every", "1", "--skip_classifier_check"]
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *flags], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "log.jsonl").exists() or not (run / "log.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal_number, errors
    state = load_checkpoint(run)
    assert state["step"] >= 1 and f"stopped at step {state['step']}" in errors


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(world, tmp_path, capsys):
    run = training(world, num_steps=3, save_every=1, keep=2)
    train(run, tmp_path)
    files = utils.checkpoint_files(tmp_path)
    assert [file.name for file in files] == ["step_00000003.pt", "step_00000002.pt"]  # the last two are kept
    files[0].write_bytes(files[0].read_bytes()[:1000])
    state = load_checkpoint(tmp_path)
    assert state["step"] == 2
    assert "step_00000003.pt is truncated" in capsys.readouterr().err
    files[1].write_bytes(b"")
    with pytest.raises(UserError, match="step_00000002.pt is truncated"):
        load_checkpoint(tmp_path)


def test_a_full_disk_leaves_the_last_good_checkpoint(world, tmp_path, monkeypatch):
    run = training(world, num_steps=2, save_every=1)
    save = torch.save

    def full(value, path):
        if value["step"] == 2:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(value, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left on device.*intact"):
        train(run, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001.pt"]
    assert load_checkpoint(tmp_path)["step"] == 1


def test_a_loss_that_is_not_finite_names_its_term_and_step(world, tmp_path):
    run = training(world, num_steps=9, save_every=1, log_every=1)
    advance = run.advance

    def poisoned():
        if run.step == 4:
            with torch.no_grad():
                run.D.linear2.bias.fill_(float("nan"))
        return advance()

    run.advance = poisoned
    with pytest.raises(UserError, match="D_wasserstein is nan at step 5.*last checkpoint is from before it"):
        train(run, tmp_path)
    state = load_checkpoint(tmp_path)
    assert state["step"] == 4
    assert all(torch.isfinite(value).all() for name in ("G", "D", "G_ema") for value in state[name].values())


def test_weights_that_are_not_finite_are_never_saved(world, tmp_path):
    run = training(world, num_steps=2, save_every=1)
    advance = run.advance

    def poisoned():
        terms = advance()
        with torch.no_grad():
            run.G.shared.weight[0, 0] = float("inf")
        return terms

    run.advance = poisoned
    with pytest.raises(UserError, match="shared.weight of G is not finite at step 1"):
        train(run, tmp_path)
    assert not utils.checkpoint_files(tmp_path)


def test_released_weights_start_a_run(world, tmp_path):
    first = training(world)
    for name, network in (("G", first.G), ("D", first.D)):
        state = network.state_dict()
        if name == "D":  # BigGAN-PyTorch's D has no unconditional head
            state = {f"module.{key}": value for key, value in state.items() if not key.startswith("linear2")}
        torch.save(state, tmp_path / f"{name}.pth")
    second = training(world, seed=5, init_G=str(tmp_path / "G.pth"), init_D=str(tmp_path / "D.pth"))
    assert_same_state(first.G.state_dict(), second.G.state_dict())
    assert_same_state(first.D.state_dict(), second.D.state_dict(), but="/linear2")
    assert not torch.equal(first.D.linear2.weight, second.D.linear2.weight)
    with pytest.raises(UserError, match="does not fit Generator: its 'linear.weight' is \\(64, 2\\)"):
        training(world, G_ch=2, init_G=str(tmp_path / "G.pth"))


def test_the_reals_of_the_unseen_class_never_reach_the_step(world):
    run = training(world)
    for _ in range(60):  # almost three epochs
        assert 7 not in run.stream.next_batch()[1]
    oracle = training(world, oracle=True)
    assert any(7 in oracle.stream.next_batch()[1] for _ in range(22))
    assert oracle.audit["statement"].startswith("ORACLE")


@pytest.mark.parametrize("changes", [{}, {"num_D_steps": 3, "one_G_pass": True, "C_coeff_end": 0.0}])
def test_a_recorded_iteration_computes_what_an_eager_one_does(world, changes):
    """The recorder of a GPU, with a recording that a CPU can play: the same function on the same tensors."""
    eager, recorded = training(world, **changes), training(world, **changes)
    played = []
    recorded.run_iteration = Recorded(recorded.iterate, lambda function: lambda: played.append(1) or function())
    for run in (eager, recorded):
        torch.manual_seed(1)
        run.terms = [run.advance() for _ in range(6)]
    assert len(played) == 3
    assert_same_state(eager.state(), recorded.state())
    assert_same_state(eager.terms, recorded.terms)


TILED = {"D_tilemix_ngrid": 4, "level_unseen": False}
# what keeps an unseen class varied, and a share of its own for it
VARIED = {"C_bound": 0.5, "C_bound_new": 1.0, "spread_coeff": 2.0, "level_unseen": True, "unseen_share": 0.2,
          "balanced_y": False, "penalty": "zero", "gp_every": 2, "num_D_steps": 2, "one_G_pass": True}


@pytest.mark.parametrize("changes", [
    {}, VARIED, {"oracle": True}, {"method": "naive"}, {"method": "biggan"}, {"method": "degan"}, {"penalty": "r1"},
    {**TILED, "diffaug": ("color", "translation", "cutout")}, {"method": "probegan_labels"},
    {"diversity_coeff": 1.0, "prob_clip": 0.5}, {"method": "labelled", "class_loss": "acgan_plus"},
    {"method": "labelled", "labelling": "dynamic"},
])
def test_an_iteration_waits_for_no_value(world, changes, waits):
    run = training(world, **changes)
    with waits:
        run.iterate([run.stream.next_batch() for _ in range(run.config.num_D_steps)])
    assert not waits.found


def test_a_wait_is_noted(waits):
    x = torch.arange(4.0)
    with waits:
        x[x > 1], x.max().item(), torch.unique(x)
    assert waits.found[0] == "index" and {"_local_scalar_dense", "_unique2"} <= set(waits.found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"method": "naive"}, TILED, VARIED,
                                     {"method": "labelled", "labelling": "dynamic"}])
def test_a_cuda_graph_computes_what_eager_steps_do(world, changes, capsys):
    runs = {}
    for graph in (True, False):
        run = training(world, device="cuda", cuda_graph=graph, **changes)
        torch.manual_seed(1)
        runs[graph] = [{name: term.item() for name, term in run.advance().items()} for _ in range(8)]
    assert "eagerly" not in capsys.readouterr().out
    tolerance = 2e-2 if "precision" in changes else 1e-3
    for captured, eager in zip(runs[True], runs[False], strict=True):
        for name, value in eager.items():
            assert captured[name] == pytest.approx(value, rel=tolerance, abs=1e-3), name


def test_several_unseen_classes(world):
    run = training(world, new_class=["2", "7"])
    assert run.task.unseen.tolist() == [2, 7] and run.audit["unseen_classes"] == ["2", "7"]
    terms = run.advance()
    assert all(torch.isfinite(term) for term in terms.values())


@pytest.mark.parametrize("changes", [
    {"method": "naive"}, {"oracle": True}, TILED, {"num_D_accumulations": 2, "one_G_pass": True},
    {"diffaug": ("color", "translation", "cutout")},
    {"precision": "bf16"}, {"hier": False}, {"D2_reg_coeff": 0.0}, {"augment": "flip_crop"}, {"prob_clip": 0.5},
    {"G_attn": "16", "D_attn": "8", "G_ch": 2, "D_ch": 2}, {"init": "ortho"}, {"init": "xavier"},
    {"C_class_map": ("9", "8", "none", "6", "5", "4", "3", "2", "1", "0")},
])
def test_every_option_trains(world, changes):
    run = training(world, **changes)
    before = {name: [p.clone() for p in getattr(run, name).parameters()] for name in ("G", "D")}
    for _ in range(2):
        terms = run.advance()
    assert all(torch.isfinite(term) for term in terms.values())
    for name, old in before.items():
        changed = [not torch.equal(a, b) for a, b in zip(getattr(run, name).parameters(), old, strict=True)]
        assert sum(changed) > len(changed) / 2, name


def wrong_checkpoint(path, **changes):
    state = {"arch": "smallcnn", "num_classes": 10, "channels": 1, "resolution": 16, "mean": [0.5], "std": [0.5],
             "state_dict": build("smallcnn", changes.get("num_classes", 10), 1).state_dict()} | changes
    torch.save(state, path)
    return path


@pytest.mark.parametrize("flags, words", [
    (["--dataset", "digit"], "'digit' is not registered .did you mean 'digits'"),
    (["--batch_sise", "8"], "'--batch_sise' is not a flag of this command .did you mean '--batch_size'"),
    (["--dataset", "C10"], "python scripts/prepare_data.py cifar10"),
    (["--new_class", "12"], "class '12' is not in this data set: give a label from 0 to 9"),
    (["--new_class", "horse"], "class 'horse' is not in this data set"),
    (["--new_class", *"0123456789"], "every class is unseen"),
    (["--C_path", "missing.pt"], "classifier 'missing.pt' does not exist; make one: python -m classifiers.train"),
    (["--C_path", ""], "no classifier to probe was given; name its checkpoint with --C_path"),
    (["--C_arch", "resnet18"], "is not a 'resnet18'"),
    (["--C_arch", "resnet19"], "did you mean 'resnet9'"),
    (["--batch_size", "181"], "--batch_size 181 is larger than the image set of 180 images"),
    (["--batch_size", "many"], "invalid int value: 'many'"),
    (["--precision", "fp16"], "--precision 'fp16' is not valid .did you mean"),
    (["--device", "gpu"], "device 'gpu' is unknown"),
    (["--method", "naive", "--oracle"], "--oracle trains on images of y., which --method naive is to do without"),
    (["--method", "naive", "--new_class", "2", "7"], "--method naive draws one unseen class; 2 were given"),
    (["--C_class_map", "0", "1"], "--C_class_map has 2 entries; the data set has 10 classes"),
    (["--C_class_map", *"012345678", "40"], "entry '40' is no class of the classifier; give a label from 0 to 9"),
    (["--C_class_map", *"0123456", "none", "8", "9"], "gives the unseen class 7 no label"),
    (["--C_class_map"], "--C_class_map: expected at least one argument"),
    (["--C_range", "1", "1"], "--C_range is 1.0 1.0; give the values of black and of white"),
    (["--C_mean", "0", "0", "0"], "mean .0.0, 0.0, 0.0.*must hold 1 finite number"),
    (["--num_steps", "0"], "--num_steps is 0; it must be at least 1"),
    (["--beta1", "1.0"], "--beta1 is 1.0"),
    (["--diffaug", "colour"], "did you mean 'color'"),
    (["--G_attn", "12"], "attention at '12' cannot be"),
    (["--dim_z", "2"], "dim_z 2 is too small for 3 chunks"),
    (["--init_G", "missing.pth"], "missing.pth does not exist"),
    (["--resume", "nowhere"], "cannot change in a resumed run"),
    (["--run", __file__], "test_train.py is a file; give a folder"),
    (["--device", "cpu:x"], "device 'cpu:x' is unknown; give auto, cpu"),
    (["--seed", "1" + "0" * 30], "--seed is 10{30}; it must be at least 0 and less than"),
])
def test_wrong_input_gets_a_sentence_and_no_run_folder(world, tmp_path, flags, words, monkeypatch, capsys):
    arguments = ["--dataset", "digits", "--new_class", "7", "--data_root", str(world), "--C_path", str(world / "C.pt"),
                 "--run", str(tmp_path / "run"), "--skip_classifier_check", *SMALL, *flags]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        utils.run_main(main)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1
    assert re.search(words, message), message
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_stays_in_its_folder(world, tmp_path):
    done = command(world, "--resume", tmp_path / "a", "--run", tmp_path / "b")
    assert done.returncode == 2 and "a resumed run stays in its folder" in done.stderr


@pytest.mark.parametrize("again", [False, True])
def test_resuming_asks_again_whether_a_pickle_is_trusted(tmp_path, monkeypatch, again):
    config, asked = make_config(dataset="digits", new_class=["7"], C_path="c.pt", C_trust=True, device="cpu"), []
    monkeypatch.setattr("train.load_run", lambda path: {"config": config.as_dict()})
    monkeypatch.setattr("train.start", lambda config, *_: asked.append(config))
    monkeypatch.setattr("train.carry_out", lambda *_: None)
    monkeypatch.setattr("train.tune", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume", str(tmp_path), *["--C_trust"] * again])
    main()
    assert asked[0].C_trust is again


def test_no_unseen_class_at_all(world):
    done = command(world, "--dataset", "digits", "--data_root", world)
    assert done.returncode == 2 and "no unseen class was given" in done.stderr


@pytest.mark.parametrize("changes, words", [
    ({"num_classes": 9}, "knows 9 classes without names; the data set has 0, 1, 2, .*--C_class_map"),
    ({"state_dict": {}}, "holds no state dict"),
    ({"classes": list("abcdefghij")}, "knows a, b, .*; the data set has 0, 1, .*--C_class_map"),
    ({"role": "evaluator"}, "was trained to be an evaluator, which judges images and may not be probed"),
])
def test_wrong_classifiers(world, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        training(world, C_path=str(wrong_checkpoint(tmp_path / "wrong.pt", **changes)))


def test_classes_are_matched_by_name_or_by_the_map(world, tmp_path):
    path = str(wrong_checkpoint(tmp_path / "other.pt", classes=list("9876543210")))
    assert training(world, C_path=path).task.C_labels.tolist() == list(range(9, -1, -1))
    mapped = training(world, C_path=path, C_class_map=["none", *"123456", "0", "none", "9"])
    # '7' stands for the class that the classifier calls 0, its label 9
    assert mapped.task.C_labels.tolist() == [-1, 8, 7, 6, 5, 4, 3, 9, -1, 0]
    with pytest.raises(UserError, match="gives the unseen class 7 the label 9, which is that of 0 too"):
        training(world, C_path=path, C_class_map=[*"0123456", "0", "none", "9"])


def test_a_classifier_with_more_classes_than_the_data_set(world, tmp_path):
    path = str(wrong_checkpoint(tmp_path / "more.pt", num_classes=12))
    run = training(world, C_path=path, C_class_map=[str(label) for label in range(11, 1, -1)])
    assert run.task.C_labels.tolist() == list(range(11, 1, -1)) and len(run.task.C_weights) == 12
    assert all(torch.isfinite(term) for term in run.advance().values())


def test_the_evaluator_of_a_run_may_not_be_probed(world, tmp_path):
    again = wrong_checkpoint(tmp_path / "again.pt", state_dict=load_torch(world / "C.pt")["state_dict"])
    with pytest.raises(UserError, match="are the same classifier; one that was probed cannot judge"):
        training(world, evaluator=str(again))
    assert training(world, evaluator=str(wrong_checkpoint(tmp_path / "independent.pt"))).config.evaluator


def test_a_failed_check_stops_a_run_before_it_begins_unless_skipped(world, tmp_path):
    flags = ["--dataset", "digits", "--new_class", 7, "--data_root", world, "--C_path", world / "C.pt",
             "--num_steps", 1, "--run", tmp_path / "run", *SMALL]
    refused = command(world, *flags)
    assert refused.returncode == 2 and "fails its check: it classifies" in refused.stderr
    assert not (tmp_path / "run").exists()
    done = command(world, *flags, "--skip_classifier_check")
    assert done.returncode == 0 and "warning: the classifier" in done.stderr
    found = json.loads((tmp_path / "run" / "classifier_check.json").read_text())
    assert not found["passed"] and found["images"] == 200 and found["accuracy"] < 0.3


def test_resuming_with_another_classifier_is_refused(world, tmp_path):
    state = training(world).state()
    state["config"]["C_path"] = str(wrong_checkpoint(tmp_path / "other.pt"))
    with pytest.raises(UserError, match="is not the one this run was started on .SHA-256 of its weights"):
        start_run(read_config(state["config"]), DATASETS["digits"], torch.device("cpu"), state)


def test_a_folder_in_use_is_refused(tmp_path):
    refused = pytest.raises(UserError, match="another process trains in .*run; wait for it, or give another --run")
    with locked(tmp_path / "run"), refused, locked(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
    with locked(tmp_path / "run"):  # it is free again
        assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("number", utils.STOPPING)
def test_what_batch_systems_send_asks_to_stop(number):
    with utils.stop_on_signal() as stopped:
        assert stopped() is None
        signal.raise_signal(number)
        assert stopped() == number


def test_a_run_finds_its_files_from_another_folder(tmp_path, monkeypatch):
    for name in ("probed.pt", "sets/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    config = Config(C_path="probed.pt", data_root="sets", evaluator="nowhere.pt")
    found = located(config, tmp_path / "runs/a")
    assert (found.C_path, found.data_root, found.evaluator) == (str(tmp_path / "probed.pt"), str(tmp_path / "sets"),
                                                                "nowhere.pt")


def test_a_second_run_does_not_overwrite_the_first(world, tmp_path):
    assert start(world, tmp_path, "--num_steps", 1).returncode == 0
    again = start(world, tmp_path, "--num_steps", 1)
    assert again.returncode == 2 and "already holds a run" in again.stderr


def test_resuming_on_other_images_is_refused(world, tmp_path):
    state = training(world).state()
    state["audit"] = {**state["audit"], "sha256": "0" * 64}
    with pytest.raises(UserError, match="not the one this run was started on"):
        start_run(read_config(state["config"]), DATASETS["digits"], torch.device("cpu"), state)


# ------------------------------------------------------------------------- absence, and files of strangers


def test_the_audit_of_a_run_asks_its_classifiers_and_both_splits(world):
    resident, streamed = (training(world, evaluator=str(world / "E.pt"), max_resident_gb=gb) for gb in (4.0, 0.0))
    assert not streamed.stream.resident and streamed.audit == resident.audit
    audit = resident.audit
    assert audit["mistaken"]["judges"] == ["the probed classifier", "the evaluator"]
    assert audit["near_copies"]["compared_with"] == 40 and audit["test_images_compared"] == 20
    assert audit["statement"].startswith("No image of 7 was used: 20 images were left out by label, and 0 exact "
                                         "duplicates of them under other labels.")


@pytest.mark.parametrize("drop", [False, True])
def test_suspects_are_left_out_of_a_run_by_a_flag(world, monkeypatch, drop):
    monkeypatch.setattr("training.Judge", lambda frozen, labels: lambda images: (images[:, 0, 0, 0] > 240).float())
    run = training(world, drop_suspects=drop)
    found = run.audit["mistaken"]["suspects_found"]
    assert found > 0 and run.audit["mistaken"]["dropped"] is drop
    assert len(run.stream.images) == run.audit["images_used"] == 180 - drop * found
    assert (run.stream.images[:, 0, 0, 0] > 240).sum() == (not drop) * found


def test_a_judge_says_how_likely_its_labels_are(world):
    images = torch.randint(256, (5, 1, 16, 16), dtype=torch.uint8)
    frozen = training(world).C
    parts = [Judge(frozen, [k])(images) for k in range(10)]
    assert torch.allclose(torch.stack(parts).sum(0), torch.ones(5))
    assert torch.allclose(Judge(frozen, [3, 8])(images), parts[3] + parts[8])


def test_a_judge_is_known_by_its_weights_its_labels_and_what_it_is_shown(world):
    frozen = training(world).C
    same = Judge(frozen, [3]).sha256
    assert Judge(frozen, [3]).sha256 == same != Judge(frozen, [4]).sha256
    frozen.bgr = True
    assert Judge(frozen, [3]).sha256 != same
    frozen.bgr = False
    next(frozen.model.parameters()).data.flatten()[0] += 0.5
    assert Judge(frozen, [3]).sha256 != same


def test_a_second_start_searches_nothing(world, monkeypatch):
    first = training(world)
    monkeypatch.setattr("datasets.absence.search", pytest.fail)
    monkeypatch.setattr("datasets.absence.asked", pytest.fail)
    assert training(world).audit == first.audit
    assert start_run(first.config, first.spec, first.device, first.state()).audit == first.audit


def test_weights_of_an_oracle_start_no_run(world, tmp_path):
    oracle = training(world, oracle=True)
    save_torch(tmp_path / "oracle/checkpoints/G.pth", oracle.G.state_dict())
    write_json(tmp_path / "oracle/audit.json", oracle.audit)
    path = str(tmp_path / "oracle/checkpoints/G.pth")
    with pytest.raises(UserError, match="--init_G .* was trained on images of 7"):
        training(world, init_G=path)
    training(world, init_G=path, oracle=True)


def test_a_resumed_run_still_names_its_starting_weights(world, tmp_path):
    save_torch(tmp_path / "G.pth", training(world).G.state_dict())
    run = training(world, init_G=str(tmp_path / "G.pth"))
    state = run.state()
    (tmp_path / "G.pth").unlink()
    resumed = start_run(run.config, run.spec, run.device, state)
    assert resumed.audit == run.audit and "G.pth: it is not known what" in resumed.audit["statement"]


@pytest.mark.parametrize("attack", ["C_arch in a checkpoint", "C_trust in a checkpoint", "arch in a classifier"])
@pytest.mark.parametrize("program", ["train.py", "evaluate.py"])
def test_no_file_runs_code(world, tmp_path, monkeypatch, capsys, attack, program):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("open('marker', 'w')\ndef factory(n): raise SystemExit")
    state = training(world).state()
    if attack == "C_arch in a checkpoint":
        state["config"]["C_arch"] = "evil:factory"
    elif attack == "C_trust in a checkpoint":
        torch.save(Evil(), tmp_path / "evil.pt")
        state["config"] |= {"C_trust": True, "C_path": "evil.pt"}
    else:
        save_torch(tmp_path / "evil.pt", {**load_torch(world / "C.pt"), "arch": "evil:factory"})
        state["config"]["C_path"] = "evil.pt"
    save_torch(tmp_path / "run/checkpoints/step_00000001.pt", state)
    flags = ["--resume", "run"] if program == "train.py" else ["--run", "run", "--evaluator", str(world / "E.pt"),
                                                              "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [program, *flags])
    with pytest.raises(UserError, match="--C_trust" if "C_trust" in attack else "say so: --C_arch evil:factory"):
        (main if program == "train.py" else evaluate.main)()
    assert not (tmp_path / "marker").exists()


class Evil:
    """Unpickled it makes a file."""

    def __reduce__(self):
        return open, ("marker", "w")


def test_a_full_disk_at_a_line_of_the_log_saves_and_loses_nothing(world, tmp_path, monkeypatch, capsys):
    append = files.append_lines

    def full(path, records):
        if Path(path).name == "log.jsonl" and records[-1]["step"] in (2, 3):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(path, records)

    monkeypatch.setattr(files, "append_lines", full)
    run = training(world, num_steps=5, save_every=5, log_every=1)
    train(run, tmp_path)
    saved = [path.name for path in utils.checkpoint_files(tmp_path)]
    assert saved == ["step_00000005.pt", "step_00000002.pt"]
    assert [record["step"] for record in files.read_lines(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5]
    assert "log.jsonl could not be written (No space left on device)" in capsys.readouterr().err


def test_another_number_of_threads_is_said_at_resume(world, capsys):
    run = training(world)
    state = run.state()
    assert state["threads"] == torch.get_num_threads()
    start_run(run.config, run.spec, run.device, state)
    assert "threads" not in capsys.readouterr().out
    start_run(run.config, run.spec, run.device, {**state, "threads": 77})
    assert "the run has used 77, and rounds otherwise from here on. OMP_NUM_THREADS=77" in capsys.readouterr().out


def test_half_a_best_checkpoint_is_passed_over(world, tmp_path, capsys):
    run = training(world, select=True)
    save_torch(tmp_path / "checkpoints/step_00000001.pt", run.state())
    whole = (tmp_path / "checkpoints/step_00000001.pt").read_bytes()
    (tmp_path / "best.pt").write_bytes(whole[:len(whole) // 2])
    assert evaluate.target_free(tmp_path)[1] == evaluate.NEWEST
    chosen = Selection(run.C, run.stream, run.spec.classes, [7], run.device, tmp_path, step=1)
    assert chosen.best == -math.inf
    said = capsys.readouterr().err
    assert "best.pt is truncated" in said and "next candidate takes its place" in said
