"""Fixtures that several tests share; data that lies beside the repository and a browser are optional."""

import shutil
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# no sandbox: root has none in a container; the rest keeps the browser itself off the network and the GPU
BROWSER_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def shared_file():
    """A function from a path below the optional data folder to that path; skips the test where it is absent."""
    def find(name):
        if not (SHARED / name).exists():
            pytest.skip(f"the optional data {name} is not on this machine")
        return SHARED / name
    return find


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
