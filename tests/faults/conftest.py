"""One undisturbed run for all short versions of the harness."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before processes are forked

from pathlib import Path

import pytest
from tests.faults import kills
from tests.faults.cases import Case
from tests.faults.kills import Plan

CASE = Case("curlora", ("adapter=curlora", "epochs=1"))


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for everything that the harness makes."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def made(workplace: Path) -> Plan:
    """An undisturbed run with what it leaves."""
    return kills.plan(CASE, workplace)
