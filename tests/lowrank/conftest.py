"""Checkpoints, a text and the command on little data, for the tests of low rank."""

import pytest

import compress
from compress.lowrank.settings import SIZES

WORDS = "a low wall of grey stones ran along the field and down to the river where the mill stood "


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text of 300 lines that differ."""
    path = tmp_path_factory.mktemp("text") / "calib.txt"
    path.write_text("".join(f"{i}: {WORDS[i % 40 :]}{WORDS}\n" for i in range(300)))
    return path


@pytest.fixture
def factor(text):
    """`compress.lowrank_svd` on little data."""

    def call(model, output=None, **options):
        given = {"calib": str(text), "samples": 16, "seqlen": 32, **options}
        if not {*SIZES, "plan"} & set(options) and not options.get("alloc", "").endswith("json"):
            given["keep"] = 0.7
        return compress.lowrank_svd(model, output, **given)

    return call
