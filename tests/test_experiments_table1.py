"""Table 1: a tiny one from end to end; what the engine does of many runs, with programs that only pretend."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import utils
from classifiers import load_classifier
from classifiers.frozen import fingerprint
from experiments import engine, table, table1
from utils import UserError

TINY = {"num": 50, "all": "--G_ch 1 --D_ch 1 --dim_z 6 --shared_dim 8 --batch_size 8 --num_D_steps 1 --num_steps 3 "
                          "--ema_start 2 --device cpu --skip_classifier_check"}

# train.py and evaluate.py in a moment: they note their calls, and fail or linger where a file asks for it
PROGRAM = """
import json, signal, sys, time
from pathlib import Path
here, words = Path(__file__).parent, sys.argv[1:]
run = Path(words[words.index("--resume" if "--resume" in words else "--run") + 1])
with (here / "calls").open("a") as calls:
    calls.write(json.dumps([Path(__file__).stem, *words]) + "\\n")
if (here / f"fail_{run.name}").exists():
    print("a line before")
    sys.exit("error: no luck with this one.")
def save(*_):
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints/step_00000001.pt").touch()
if "train" in __file__:
    if (here / "linger").exists():
        signal.signal(signal.SIGTERM, lambda *_: (save(), sys.exit(143)))
        (here / "lingers").touch()
        time.sleep(20)
    save()
else:
    share, sha = 0.5 + 0.1 * int(run.name[-1]), (here / "sha").read_text()
    seen = [("fd@e", None, 20.0)] + ([] if "naive" in run.name else [("recognition@e", None, 0.9)])
    records = [("recognition@e", "7", share), ("recognition@e", "3", 0.1), ("adversarial_gap@e", "7", 0.2),
               ("intra_fd50@e", "7", 100 * share), ("precision@e", None, 0.3), ("precision@e", "7", 0.4),
               ("recall@e", "7", 0.4), ("coverage@e", "7", None)]
    with (run / "results.jsonl").open("a") as file:
        for metric, label, value in records + seen:
            group = {"group": "all seen"} if metric == "recognition@e" and label is None else {}
            low, high = (None, None) if value is None else (value - 0.1, value + 0.1)
            file.write(json.dumps({"metric": metric, "class": label, "value": value, "low": low, "high": high, "n": 50,
                                   "accepted": 0.8, "evaluator_sha256": sha, **group}) + "\\n")
"""


@pytest.fixture(scope="module")
def world(noise_world):
    """The noise world, its classifiers by the names of the table."""
    for name, file in (("robust", "C"), ("regular", "D"), ("evaluator", "E")):
        (noise_world / f"{name}.pt").symlink_to(noise_world / f"{file}.pt")
    return noise_world


@pytest.fixture
def call(world, tmp_path, monkeypatch):
    """A function that runs the script on the world with these flags, and gives its exit code."""
    monkeypatch.setitem(table1.SCALES["digits"], "small", TINY)

    def run(*flags, dataset="digits", unseen=(7,), classifiers=("robust",)):
        given = [f"{name}={world / name}.pt" for name in classifiers]
        words = ["--dataset", dataset, "--unseen", *unseen, "--classifiers", *given, "--evaluator",
                 world / "evaluator.pt", "--data_root", world, "--runs", tmp_path / "runs", "--out", tmp_path, *flags]
        monkeypatch.setattr(sys, "argv", ["table1.py", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            utils.run_main(table1.main)
        return end.value.code
    return run


@pytest.fixture
def pretend(world, tmp_path, monkeypatch):
    """The folder of programs that only pretend; its `calls` are listed by calls_in."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("train", "evaluate"):
        (folder / f"{name}.py").write_text(PROGRAM)
        monkeypatch.setattr(engine, name.upper(), str(folder / f"{name}.py"))
    (folder / "sha").write_text(fingerprint(load_classifier(world / "evaluator.pt").model))
    monkeypatch.setattr(table, "draw", lambda row, run: torch.zeros(table.SHOWN, 1, 16, 16))
    return folder


def calls_in(folder):
    """(program, folder of the run, flags) of each call so far."""
    lines = [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
    return [(program, Path(words[1]).name, words) for program, *words in lines]


def written(tmp_path):
    return json.loads((tmp_path / "table1_digits.json").read_text())


# ------------------------------------------------------------------------------------------ end to end


@pytest.mark.usefixtures("fewer_processes")
def test_a_table_from_nothing_and_again(call, tmp_path, monkeypatch, capsys):
    flags = ["--methods", "probegan", "naive", "--seeds", 2]
    assert call(*flags) == 0, "".join(path.read_text() for path in tmp_path.rglob("table1.log"))
    runs = tmp_path / "runs/digits_small"
    assert {path.name for path in runs.iterdir() if path.is_dir()} == {
        f"{name}_robust_wo_7_seed{seed}" for name in ("probegan", "naive") for seed in (0, 1)}
    made = written(tmp_path)
    assert [row["method"] for row in made["rows"]] == ["ProbeGAN", "NAIVE"]
    probegan, naive = (row["figures"] for row in made["rows"])
    assert probegan.keys() == table1.COLUMNS.keys() and naive.keys() == table1.COLUMNS.keys() - {"fd"}
    values = [run["figures"]["intra_fd"]["value"] for run in made["rows"][0]["runs"]]
    assert probegan["intra_fd"]["value"] == pytest.approx(sum(values) / 2) and values[0] != values[1]
    mean, half = sum(values) / 2, 6.3531 * abs(values[0] - values[1])  # t(0.975, 1) * std / sqrt(2)
    assert probegan["intra_fd"]["high"] == pytest.approx(mean + half, rel=1e-4)
    assert probegan["intra_fd"]["low"] == pytest.approx(max(mean - half, 0), rel=1e-4)
    assert all(0 <= figures[name]["low"] <= figures[name]["high"] <= 1 for figures in (probegan, naive)
               for name, column in table1.COLUMNS.items() if column.kind == "share")
    assert made["protocol"]["settings"] == table1.SCALES["digits"]["small"]
    assert made["protocol"]["num"] == 50 and len(made["protocol"]["evaluator_sha256"]) == 64
    assert made["seconds"] > 0 and made["machine"]["cores"] == os.cpu_count()
    text = (tmp_path / "table1_digits.md").read_text()
    assert "| ProbeGAN | robust |" in text and "| 2 of 2 |" in text and "missing" not in text
    with Image.open(tmp_path / "table1_digits.png") as picture:
        assert picture.height > 2 * 64 and picture.width > 10 * 64

    monkeypatch.setattr(engine, "TRAIN", "none.py")
    monkeypatch.setattr(engine, "EVALUATE", "none.py")
    assert call(*flags) == 0 and written(tmp_path)["rows"] == made["rows"]

    assert call(*flags, "--num", 60) == 2
    assert "(num was 50, is 60); give another --out" in capsys.readouterr().err
    monkeypatch.setitem(table1.SCALES["digits"], "small", TINY | {"all": TINY["all"] + " --G_lr 0.5"})
    assert call(*flags) == 2
    assert "made with other settings (G_lr was 0.0005, is 0.5); give another --runs" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- what is run


def rows_of(world, tmp_path, monkeypatch, *unseen, **more):
    monkeypatch.setitem(table1.SCALES["digits"], "small", TINY)
    flags = SimpleNamespace(**{"dataset": "digits", "scale": "small", "runs": tmp_path, "data_root": world, "num": 60,
                               "unseen": unseen, "methods": ["all"], "variants": [], "seeds": 2, "processes": 1,
                               **more})
    classifiers = {name: world / f"{name}.pt" for name in ("robust", "regular")}
    return table1.plan(flags, classifiers, [world / "evaluator.pt"])[0]


def test_each_method_is_a_row_for_each_classifier(world, tmp_path, monkeypatch):
    methods = ["oracle", "biggan", "probegan", "naive", "biggan_am", "robust_synthesis", "deep_inversion", "degan"]
    rows = rows_of(world, tmp_path, monkeypatch, "7", "9", methods=methods)
    assert methods == [key for key in table1.method_rows() if key in methods]  # the order of 'all'
    both = ["ProbeGAN", "NAIVE", "BigGAN-AM", "classifier synthesis", "DeepInversion", "DeGAN-like"]
    names = ["oracle, robust", "BigGAN, all classes",
             *(f"{title}, {name}" for title in both for name in ("robust", "regular"))]
    assert [(row.group, row.name) for row in rows] == [(y, name) for y in "79" for name in names]
    folders = [run.path for row in rows for run in row.runs]
    assert len(set(folders)) == len(folders) == 2 * 14 * 2
    by_name = {row.name: row.runs[1].config for row in rows if row.group == "7"}
    assert by_name["oracle, robust"]["oracle"] and by_name["oracle, robust"]["seed"] == 1
    for name in both[3:]:
        assert by_name[f"{name}, regular"]["num_images"] == 60
    assert by_name["NAIVE, regular"]["C_path"] == str(world / "regular.pt")
    # one generator of the seen classes for both classifiers
    am = [row.runs[1] for row in rows if row.labels[0] == "BigGAN-AM" and row.group == "9"]
    (gan,), (same,) = am[0].needs, am[1].needs
    assert gan.path == same.path == Path(am[0].config["gan"]) and not gan.measurement
    assert gan.config["method"] == "biggan" and not gan.config["oracle"]
    assert gan.config["new_class"] == [9] and gan.config["seed"] == 1


def test_a_variant_is_probegan_with_one_option_changed(world, tmp_path, monkeypatch):
    base, _, *rows = rows_of(world, tmp_path, monkeypatch, "9", methods=["probegan"], variants=["all"])
    assert {row.key for row in rows} == {""} and base.labels == ("ProbeGAN", "robust")
    changed = {row.labels[0].removeprefix("ProbeGAN, "): {
        key: value for key, value in row.runs[0].config.items() if value != base.runs[0].config[key]} for row in rows}
    assert changed == {
        "DiffAugment translation": {"diffaug": ["translation"]},
        "DiffAugment colour, translation, cutout": {"diffaug": ["color", "translation", "cutout"]},
        "class weight rising": {"C_coeff": 0.1, "C_coeff_end": 1.0}, "class weight falling": {"C_coeff_end": 0.1},
        "R1 penalty": {"penalty": "r1"}, "WGAN-GP's penalty": {"penalty": "wgan-gp", "gp_coeff": 10.0},
        "classes as they come": {"balanced_y": False}, "classifier unbounded": {"C_bound": 0.0, "C_bound_new": 0.0},
        "no spread term": {"spread_coeff": 0.0}, "D_u learns y* apart": {"level_unseen": False},
        "diversity term": {"diversity_coeff": 1.0},
        "k = 2": {"new_class": [0, 9]}, "k = 3": {"new_class": [0, 1, 9]}}
    assert {row.labels[1] for row in rows} == {"robust"} and {row.group for row in rows} == {"9"}


def test_a_variant_that_changes_nothing_has_no_row(world, tmp_path, monkeypatch):
    monkeypatch.setitem(table1.VARIANTS, "R1 penalty", "--penalty zero")
    rows = rows_of(world, tmp_path, monkeypatch, "7", variants=["R1 penalty"])
    assert rows and not any(row.labels[0].startswith("ProbeGAN, ") for row in rows)


# -------------------------------------------------------------------------------------- many runs at once


def test_a_failing_run_is_named_and_the_rest_goes_on(call, pretend, tmp_path, capsys):
    for name in ("naive_robust_wo_7_seed0", "gan_wo_7_seed0"):
        (pretend / f"fail_{name}").touch()
    flags = ["--methods", "probegan", "naive", "biggan_am", "--seeds", 2]
    assert call(*flags, classifiers=("robust", "regular")) == 1
    trained = [name for program, name, _ in calls_in(pretend) if program == "train"]
    assert trained.count("gan_wo_7_seed0") == 1 and "probegan_robust_wo_7_seed1" in trained
    text = (tmp_path / "table1_digits.md").read_text()
    assert "naive_robust_wo_7_seed0: train.py ended with code 1: error: no luck with this one." in text
    assert "biggan_am_regular_wo_7_seed0: it needs " in text and "seed0, which failed" in text
    # one seed: the interval over images; of two: over seeds, by Student's t of 0.5 and 0.6
    assert "| NAIVE | robust | 60.0 % (50.0 % to 70.0 %) | 80.0 % (67.0 % to 88.8 %) | 60 (59.9 to 60.1) | - |" in text
    assert "| not finite | 1 of 2, interval over images |" in text
    assert "| ProbeGAN | robust | 55.0 % (0.0 % to 100.0 %) |" in text
    assert "failed: " in capsys.readouterr().err

    for file in pretend.glob("fail_*"):
        file.unlink()
    (pretend / "calls").unlink()
    assert call(*flags, classifiers=("robust", "regular")) == 0
    again = [name for program, name, _ in calls_in(pretend) if program == "train"]
    assert sorted(again) == ["biggan_am_regular_wo_7_seed0", "biggan_am_robust_wo_7_seed0", "gan_wo_7_seed0",
                             "naive_robust_wo_7_seed0"]
    assert "## Failed" not in (tmp_path / "table1_digits.md").read_text()


def test_rows_without_a_run_are_shown_as_missing(call, pretend, tmp_path):
    (pretend / "fail_naive_robust_wo_7_seed0").touch()
    assert call("--methods", "probegan", "naive", "biggan", "--seeds", 1) == 1
    text = (tmp_path / "table1_digits.md").read_text()
    assert "| NAIVE | robust |" + " missing |" * 7 + " 0 of 1 |" in text
    assert "| BigGAN, all classes | - | 50.0 % (40.0 % to 60.0 %) | - |" in text  # no classifier accepts

    (pretend / "fail_naive_robust_wo_7_seed0").unlink()
    assert call("--methods", "probegan", "naive", "biggan", "--seeds", 2) == 0  # a table grows by seeds
    assert (tmp_path / "table1_digits.md").read_text().count("| 2 of 2 |") == 3


def test_a_signal_stops_the_run_which_is_resumed(call, pretend, tmp_path, capsys):
    (pretend / "linger").touch()

    def stop():
        while not (pretend / "lingers").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    assert call("--methods", "probegan", "naive", "--seeds", 1) == 128 + signal.SIGTERM
    assert "the same command goes on" in capsys.readouterr().err
    assert (tmp_path / "table1_digits.md").read_text().count("| 0 of 1 |") == 2 and not written(tmp_path)["rows"][0][
        "runs"][0]["error"]
    (pretend / "linger").unlink()
    assert call("--methods", "probegan", "naive", "--seeds", 1) == 0
    words = [words for program, _, words in calls_in(pretend) if program == "train"]
    assert [w[0] for w in words] == ["--run", "--resume", "--run"] and "probegan" in words[1][1]


def test_a_run_that_another_process_holds_is_left_to_it(call, pretend, tmp_path, capsys, request):
    runs = tmp_path / "runs/digits_small"
    runs.mkdir(parents=True)
    # the other process ends once this one has trained what is left
    code = ("import fcntl, sys, time\nfrom pathlib import Path\nfile = open(sys.argv[1], 'a')\n"
            "fcntl.flock(file, fcntl.LOCK_EX)\nprint('held', flush=True)\n"
            "while not Path(sys.argv[2]).exists():\n    time.sleep(0.05)\n")
    other = subprocess.Popen([sys.executable, "-c", code, runs / "probegan_robust_wo_7_seed0.lock",
                              runs / "naive_robust_wo_7_seed1/results.jsonl"], stdout=subprocess.PIPE)
    request.addfinalizer(other.kill)
    other.stdout.readline()
    assert call("--methods", "probegan", "naive", "--seeds", 2) == 0 and other.wait(10) == 0
    assert [name for program, name, _ in calls_in(pretend) if program == "train"] == [
        "naive_robust_wo_7_seed0", "probegan_robust_wo_7_seed1", "naive_robust_wo_7_seed1",
        "probegan_robust_wo_7_seed0"]
    out = capsys.readouterr().out
    assert out.count("waiting for ") == 1 and "probegan_robust_wo_7_seed0, which another process holds" in out


def test_the_training_holds_the_lock_too(tmp_path):
    """Were the script killed, the training that it leaves behind would still keep its folder."""
    with engine.locked(tmp_path / "run", lambda: False) as lock:
        command = ["-c", "import sys, time; print('on', flush=True); time.sleep(20)"]
        process = subprocess.Popen([sys.executable, *command], pass_fds=[lock.fileno()], stdout=subprocess.PIPE)
        process.stdout.readline()
    with engine.locked(tmp_path / "run", lambda: False) as lock:
        assert lock is None
    process.kill()
    process.wait()
    with engine.locked(tmp_path / "run", lambda: False) as lock:
        assert lock is not None


@pytest.mark.usefixtures("pretend")
def test_a_run_on_another_classifier_file_is_refused(call, world, capsys):
    assert call("--methods", "naive", "--seeds", 1) == 0
    original = (world / "robust.pt").read_bytes()
    try:
        (world / "robust.pt").write_bytes((world / "regular.pt").read_bytes())
        assert call("--methods", "naive", "--seeds", 1) == 2
    finally:
        (world / "robust.pt").write_bytes(original)
    assert "was made with other settings (probed was " in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("flags, options, said", [
    (["--methods", "niave"], {}, "--methods 'niave' is unknown (did you mean 'naive'?)"),
    (["--variants", "R2 penalty"], {}, "--variants 'R2 penalty' is unknown (did you mean 'R1 penalty'?)"),
    ([], {"unseen": ("12",)}, "class '12' is not in this data set: give a label from 0 to 9"),
    ([], {"dataset": "MINST"}, "--dataset 'MINST' is not valid (did you mean 'MNIST'?)"),
    (["--scale", "papers"], {}, "--scale 'papers' is not valid (did you mean 'paper'?)"),
    (["--executor", "slrum"], {}, "--executor 'slrum' is not valid (did you mean 'slurm'?)"),
    (["--seeds", "0"], {}, "--seeds is 0; it must be at least 1."),
    (["--num", "49"], {}, "--num is 49; it must be at least 50."),
    (["--slurm_time_min", "0"], {}, "--slurm_time_min is 0; it must be at least 1."),
    (["--classifiers", "robots"], {}, "classifier 'robots' is unknown (did you mean 'robust'?)"),
    (["--classifiers", "mine=/no/such.pt"], {}, "the classifier mine, /no/such.pt, does not exist"),
    (["--evaluator", "/no/judge.pt"], {}, "the classifier evaluator, /no/judge.pt, does not exist"),
    (["--sedes", "3"], {}, "'--sedes' is not a flag of this command (did you mean '--seeds'?)"),
])
def test_bad_input_is_one_sentence(call, capsys, flags, options, said):
    assert call(*flags, **options) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and said in err and "Traceback" not in err and not out


@pytest.mark.parametrize("dataset, command", [
    ("MNIST", "make it: scripts/launch_train_mnist_classifiers.sh"),
    ("C10", "make it: scripts/launch_train_cifar_classifiers.sh"),
    ("digits", "make it: python -m classifiers.train --dataset digits --arch smallcnn --robust l2")])
def test_a_missing_classifier_is_named_with_the_command_that_makes_it(tmp_path, monkeypatch, dataset, command):
    monkeypatch.setattr(engine, "ROOT", tmp_path)
    with pytest.raises(UserError, match="does not exist; make it: ") as error:
        engine.classifier_path(dataset, "robust", "")
    assert command in str(error.value)


# --------------------------------------------------------------------------------------------- the order


def test_the_order_is_checked_by_means_and_intervals():
    experiment = table.Experiment("t", "t", "", "", table1.COLUMNS, expected=table1.EXPECTED)

    def entry(method, classifier, recognised, intra_fd, half=0.01):
        key = {"oracle": "oracle", "biggan": "", "variant": ""}.get(method, f"{method} {classifier}")
        row = table.Row("7", (method, classifier), key, ())
        return row, {name: {"value": value, "low": value - half, "high": value + half} for name, value in
                     (("recognised", recognised), ("intra_fd", intra_fd))}

    right = [entry("oracle", "robust", 0.99, 10), entry("probegan", "robust", 0.9, 40),
             entry("naive", "robust", 0.7, 70), entry("probegan", "regular", 0.8, 90),
             entry("degan", "robust", 0.6, 99), entry("biggan", "", 0.1, 999), entry("variant", "robust", 1.0, 1)]
    assert table.order_sentences(experiment, *zip(*right, strict=True)) == []
    wrong = [*right[:2], entry("naive", "robust", 0.805, 70), *right[3:4], entry("degan", "robust", 0.95, 99)]
    said = table.order_sentences(experiment, *zip(*wrong, strict=True))
    assert said == [
        "Unseen 7, recognised: probegan, robust (90.0 %) was expected before, and comes after: degan, robust (95.0 %, "
        "intervals apart).",
        "Unseen 7, recognised: naive, robust (80.5 %) was expected before, and comes after: degan, robust (95.0 %, "
        "intervals apart).",
        "Unseen 7, recognised: probegan, regular (80.0 %) was expected before, and comes after: naive, robust (80.5 "
        "%); degan, robust (95.0 %, intervals apart)."]
    lone = entry("naive", "robust", 0.6, 30)
    lone[1]["intra_fd"].update(low=None, high=None)
    said = table.order_sentences(experiment, *zip(right[1], lone, strict=True))
    assert said[0].endswith("naive, robust (30, no interval).")


# ------------------------------------------------------------------------------------------------ submitit


def test_submitit_does_the_runs(call, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed")
    assert call("--methods", "naive", "--seeds", 1, "--executor", "local", "--slurm_time_min", 5) == 0
    assert written(tmp_path)["rows"][0]["runs"][0]["finished"]


def test_without_submitit_its_install_is_advised(call, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert call("--methods", "naive", "--executor", "local") == 2
    assert "--executor local needs submitit; install it: pip install submitit" in capsys.readouterr().err
