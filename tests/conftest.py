"""Fixtures that several tests share; data that lies beside the repository is optional."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_file():
    """A function from a path below the optional data folder to that path; skips the test where it is absent."""
    def find(name):
        if not (SHARED / name).exists():
            pytest.skip(f"the optional data {name} is not on this machine")
        return SHARED / name
    return find
