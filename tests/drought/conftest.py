"""Small files of drought for the tests of this room."""

import csv

import pytest

from compress.drought.simulated import simulate


@pytest.fixture(scope="session")
def simulated():
    """The made-up set, long enough to learn from."""
    return simulate(weeks=420, seed=0)


@pytest.fixture
def write_rows(tmp_path):
    """Write records as CSV; returns the path."""

    def write(rows, name="series.csv", encoding="utf-8"):
        path = tmp_path / name
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write
