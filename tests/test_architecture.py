"""Imports point down the list of docs: a module imports only from rooms below its own."""

import ast
from pathlib import Path

import pytest
from conftest import SLOW

ROOT = Path(__file__).parents[1]
# highest first; a name may import what stands in a later row (train also draws its grids with sample)
ROWS = [{"scripts", "benchmarks"}, {"experiments"}, {"train", "evaluate"}, {"metrics", "sample"}, {"methods"},
        {"training", "sampler"}, {"step"}, {"feature_networks", "features"}, {"classifiers", "BigGAN"},
        {"datasets", "dcgan"}, {"layers", "config", "processes", "machine"}, {"utils"},
        {"probegan_losses", "feature_losses", "label_losses", "files"}]
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}
FILES = [path for path in sorted(ROOT.rglob("*.py"))
         if path.relative_to(ROOT).parts[0].removesuffix(".py") in LEVEL]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imported(path):
        if name in LEVEL and name != room:
            assert LEVEL[name] > LEVEL[room], f"{path.name} imports {name}"


@pytest.mark.parametrize("name, found", [("probegan_losses", {"torch"}), ("feature_losses", {"torch"}),
                                         ("label_losses", {"torch", "math"})])
def test_the_losses_import_torch_alone(name, found):
    assert set(imported(ROOT / f"{name}.py")) == found


def test_the_files_import_nothing_of_ours():
    assert not set(imported(ROOT / "files.py")) & set(LEVEL)


def test_utils_stays_short():
    assert len((ROOT / "utils.py").read_text().splitlines()) <= 400


def test_the_slow_tests_exist():
    for name in SLOW:
        file, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text() or not test, name
