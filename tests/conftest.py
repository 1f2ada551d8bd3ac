"""Fixtures that several tests share; data that lies beside the repository and a browser are optional."""

import importlib
import shutil
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from classifiers import build
from experiments import engine
from utils import save_torch

SHARED = Path(__file__).parents[2] / "shared"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# no sandbox: root has none in a container; the rest keeps the browser itself off the network and the GPU
BROWSER_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync"]
# tests, or files of them, that take more than two seconds or start Python anew; a line each
SLOW = {line.split()[0] for line in (Path(__file__).parent / "slow.txt").read_text().splitlines()
        if line and not line.startswith("#")}


# files that train for minutes: begun last, they would run on alone
LONGEST = ("test_real_data.py", "test_experiments_marker.py", "test_pretrained.py", "test_kills.py")


def pytest_collection_modifyitems(items):
    """Mark what `bash scripts/test.sh quick` leaves out, and begin with the longest."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker("browser")
        if SLOW & {item.path.name, f"{item.path.name}::{item.originalname}"}:
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What programs keep for the next time lies apart from the user's, and is new."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_file():
    """A function from a path below the optional data folder to that path; skips the test where it is absent."""
    def find(name):
        if not (SHARED / name).exists():
            pytest.skip(f"the optional data {name} is not on this machine")
        return SHARED / name
    return find


@pytest.fixture
def tenth_of_cifar10(shared_file, tmp_path):
    """An archive of every tenth image of each class of CIFAR-10: to read them all takes minutes."""
    with zipfile.ZipFile(shared_file("data/cifar10.zip")) as whole, \
            zipfile.ZipFile(tmp_path / "cifar10.zip", "w") as part:
        for name in sorted(whole.namelist())[::10]:
            part.writestr(name, whole.read(name))
    return tmp_path / "cifar10.zip"


class Waits(TorchDispatchMode):
    """Notes each operation inside whose result, or its shape, the host must know: a GPU would be waited for there, and
    no CUDA graph could be captured."""

    NAMES = ("nonzero", "masked_select", "_local_scalar_dense", "_unique2", "unique_dim", "equal", "is_nonzero",
             "bincount", "repeat_interleave", "lift_fresh")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype == torch.bool for index in arguments[1])
        if name in self.NAMES or by_mask:
            self.found.append(name)
        return function(*arguments, **keywords or {})


@pytest.fixture
def waits():
    return Waits()


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium as a playwright Browser (sync API); skips the test where either is absent."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (tests/requirements.txt)")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(BROWSERS)} is on the path")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=BROWSER_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def noise_world(tmp_path_factory):
    """A data root with 200 noise 'digits' and untrained classifiers C, D and E.pt: what a run needs, in a moment."""
    root = tmp_path_factory.mktemp("world")
    generator = np.random.default_rng(0)
    (root / "digits").mkdir()
    for split in ("train", "test"):
        with h5py.File(root / "digits" / f"{split}.h5", "w") as file:
            file["images"] = generator.integers(0, 256, (200, 1, 16, 16), dtype=np.uint8)
            file["labels"] = np.arange(200) % 10
            file.attrs["classes"] = list("0123456789")
    torch.manual_seed(0)
    for name, arch in (("C", "smallcnn"), ("D", "smallcnn"), ("E", "resnet8")):
        save_torch(root / f"{name}.pt", {"arch": arch, "num_classes": 10, "channels": 1, "resolution": 16,
                                         "mean": [0.5], "std": [0.5], "state_dict": build(arch, 10, 1).state_dict()})
    return root


@pytest.fixture
def no_processes(monkeypatch):
    """experiments/ calls each program in this process, and so with the methods that a test registered."""
    def run(command, log, lock, stopped):
        program, words = (command[1], command[1:]) if command[0] == "-m" else (Path(command[0]).stem, command)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", list(map(str, words)))
            importlib.import_module(program).main()
        return "", 1.0
    monkeypatch.setattr(engine, "call", run)
    return run


@pytest.fixture
def fewer_processes(monkeypatch, request):
    """Only the first call of each program by experiments/ is a process of its own: each spends seconds on imports."""
    as_process, seen = engine.call, set()
    run_here = request.getfixturevalue("no_processes")

    def run(command, *others):
        program = command[1] if command[0] == "-m" else command[0]
        if program in seen:
            return run_here(command, *others)
        seen.add(program)
        return as_process(command, *others)
    monkeypatch.setattr(engine, "call", run)
