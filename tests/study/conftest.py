"""A tiny model and a few texts that the study tests share."""

import pytest
import torch

import compress
from tests.tiny_models import make_checkpoint

WORDS = "the old boat lay by the pier and nobody came to mend it before the winter storms began "


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """Three calibration texts and one to score on."""
    place = tmp_path_factory.mktemp("texts")
    made = {
        "boats.txt": "".join(f"{i}: {WORDS[i % 40 :]}{WORDS}\n" for i in range(200)),
        "sums.txt": "".join(f"{i} plus {i * 7} makes {i * 8}; and so on\n" for i in range(300)),
        "lists.txt": "".join(f"apple, pear {i}, plum; \n" for i in range(400)),
        "score.txt": "".join(
            f"line {i * 37 % 101} of a quite different kind\n" for i in range(200)
        ),
    }
    for name, text in made.items():
        (place / name).write_text(text)
    return place


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A random Llama of a few blocks."""
    return make_checkpoint("llama", tmp_path_factory.mktemp("model") / "llama", dtype=torch.float32)


@pytest.fixture(scope="session")
def study(tiny, texts):
    """`compress.calib_study` on little data."""

    def call(output=None, model=None, **options):
        given = {
            "calib": (str(texts / "boats.txt"), str(texts / "sums.txt")),
            "sparsity": (0.5, 0.6),
            "methods": ("wanda", "sparsegpt"),
            "seeds": 2,
            "samples": 4,
            "seqlen": 32,
            "batch_size": 2,
            "ppl": (str(texts / "score.txt"),),
            "eval_seqlen": 32,
            "limit": 6,
            "bootstrap": 200,
            "block_size": 16,
            "controls": "none",
            **options,
        }
        return compress.calib_study(model or tiny, output, **given)

    return call
