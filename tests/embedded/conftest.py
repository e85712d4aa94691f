"""The shipped corpus's scripts lie beside their data, outside the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SHIPPED = Path(__file__).resolve().parents[2] / "calib_data"
sys.path.insert(0, str(SHIPPED))


@pytest.fixture(scope="session")
def shipped() -> Path:
    return SHIPPED
