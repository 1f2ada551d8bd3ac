"""The classifiers of pretrained/: their size, their cards, and, where the data is, that the cards tell the truth."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from classifiers import load_classifier
from classifiers.check import check_classifier
from classifiers.loading import refuse_evaluator
from classifiers.train import TrainSettings
from config import Parser, add_flags
from datasets import load_split
from datasets.prepare import prepare
from utils import DATASETS, UserError

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "pretrained").glob("*.safetensors"))
# least clean accuracy, and least under the card's attack where one was trained against
LEAST = {"cifar10_regular": (0.92, 0), "cifar10_robust": (0.82, 0.60), "cifar10_evaluator": (0.93, 0),
         "cifar10_robust_evaluator": (0.77, 0.58), "cifar10_test_evaluator": (0.84, 0),
         "mnist_regular": (0.985, 0), "mnist_robust": (0.97, 0.70), "mnist_evaluator": (0.99, 0),
         "mnist_robust_evaluator": (0.985, 0.80),
         "voices_regular": (0.93, 0), "voices_robust": (0.90, 0.65), "voices_evaluator": (0.90, 0),
         "fer2013_regular": (0.57, 0), "fer2013_robust": (0.43, 0.37), "fer2013_evaluator": (0.60, 0)}
# of each set: the name of its launcher, of the data set, and its source
SETS = {"cifar10": ("cifar", "C10", "data/cifar10.zip"), "mnist": ("mnist", "MNIST", "data/mnist"),
        "voices": ("voices", "voices", "data/voices16k.zip"),
        "fer2013": ("fer2013", "fer2013", "data/fer2013.zip")}


def card_of(file):
    return json.loads(file.with_name(f"{file.name}.json").read_text())


def test_all_are_there():
    assert {file.stem for file in FILES} == set(LEAST)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_and_its_card(file):
    card, (clean, attacked) = card_of(file), LEAST[file.stem]
    assert file.stat().st_size <= 6e6
    frozen = load_classifier(file)
    assert frozen.card == card and frozen.classes == DATASETS[card["dataset"]].classes
    assert frozen.role == card["role"] == ("evaluator" if file.stem.endswith("evaluator") else "")
    assert card["clean_accuracy"]["overall"] >= clean and card["pgd_accuracy"]["overall"] >= attacked
    assert card["attack"]["steps"] == 20 and card["attack"]["images"] >= 1000
    assert tuple(card["clean_accuracy"]["per_class"]) == frozen.classes
    assert re.fullmatch("[0-9a-f]{12}", card["commit"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_launcher_holds_the_command_of_the_card(file):
    launcher = SETS[file.stem.partition("_")[0]][0]
    script = (ROOT / f"scripts/launch_train_{launcher}_classifiers.sh").read_text().replace("\\\n", "")
    common = re.search(r"common=\((.*)\)", script)[1]
    line = re.search(rf'make {file.stem} "\$\{{common\[@\]\}}" (.*) "\$@"', script)[1]
    parser = Parser()
    add_flags(parser, TrainSettings)
    flags = parser.parse_args(shlex.split(f"{common} {line} --out pretrained/{file.name}"))
    # some were made before --precision auto, which chooses bf16 where that is faster
    made, held = (command.replace(" --precision bf16", "") for command in (card_of(file)["command"],
                                                                           TrainSettings(**vars(flags)).command))
    assert held == made


@pytest.mark.parametrize("folder", SETS)
def test_evaluators_are_built_otherwise_and_never_probed(folder):
    cards = [card_of(file) for file in FILES if file.stem.startswith(f"{folder}_")]
    judges = [card for card in cards if card["role"] == "evaluator"]
    probed = {(card["arch"], card["seed"]) for card in cards if card not in judges}
    assert len(probed) == 1 and judges and len({judge["seed"] for judge in judges}) == len(judges)
    for judge in judges:
        assert all(judge["arch"] != arch and judge["seed"] != seed for arch, seed in probed)
        path = ROOT / judge["out"]
        with pytest.raises(UserError, match="may not be probed"):
            refuse_evaluator(load_classifier(path), path)


@pytest.mark.parametrize("folder", SETS)
def test_the_cards_tell_the_truth(request, shared_file, tmp_path, folder):
    _, dataset, source = SETS[folder]
    source = request.getfixturevalue("tenth_of_cifar10") if folder == "cifar10" else shared_file(source)
    if DATASETS[dataset].sound:
        pytest.importorskip("soundfile", reason="soundfile is not installed")
    prepare(folder, tmp_path, source=source)
    for file in [file for file in FILES if file.stem.startswith(folder)]:
        images, labels = load_split(dataset, tmp_path, card_of(file).get("test", "test"))
        rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))[:1000]
        check = check_classifier(load_classifier(file), images[rows], labels[rows], dataset)
        assert check.problems == []
        assert check.accuracy == pytest.approx(card_of(file)["clean_accuracy"]["overall"], abs=0.035)
