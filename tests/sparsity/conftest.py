"""Checkpoints and texts that the pruning tests share."""

import pytest

import compress

WORDS = "the old boat lay by the pier and nobody came to mend it before the winter storms began "


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text of 300 lines that differ."""
    path = tmp_path_factory.mktemp("text") / "calib.txt"
    path.write_text("".join(f"{i}: {WORDS[i % 40 :]}{WORDS}\n" for i in range(300)))
    return path


@pytest.fixture(scope="session")
def other_text(tmp_path_factory):
    """Another text, to score on."""
    path = tmp_path_factory.mktemp("text") / "score.txt"
    path.write_text("".join(f"line {i * 37 % 101} of a quite different kind\n" for i in range(200)))
    return path


@pytest.fixture
def prune(text):
    """`compress.alpha_prune` on little data."""

    def call(model, output=None, **options):
        given = {"sparsity": 0.6, "calib": str(text), "samples": 4, "seqlen": 32, **options}
        return compress.alpha_prune(model, output, **given)

    return call
