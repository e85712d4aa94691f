"""What every test shares: no network, one thread, and the two places where real models lie."""

from __future__ import annotations

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# A shell starts background jobs with SIGINT ignored, which children inherit; interrupts are tested.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Spectra are cached by content: the tests' never lie among the user's."""
    os.environ["COMPRESS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The directory of real models and texts that COMPRESS_ASSETS names, or a skip."""
    named = os.environ.get("COMPRESS_ASSETS")
    if not named or not Path(named).is_dir():
        pytest.skip("COMPRESS_ASSETS names no directory of real models and texts")
    return Path(named)


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The small trained Llama that the package ships."""
    path = Path(__file__).resolve().parent.parent / "calib_data" / "tiny-llama"
    if not (path / "config.json").is_file():
        pytest.skip("calib_data/tiny-llama has not been trained in this checkout")
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes (once) the tiny random checkpoint of an architecture."""
    from tiny_models import make_checkpoint  # it imports transformers

    made = {}

    def make(arch: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
        if (arch, dtype) not in made:
            place = tmp_path_factory.mktemp(arch) / arch
            made[arch, dtype] = make_checkpoint(arch, place, dtype=dtype)
        return made[arch, dtype]

    return make
