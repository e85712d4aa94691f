"""FARMS, the shuffled matrix, the Marchenko-Pastur bulk, the cache, WeightWatcher, HTML."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.source import open_source
from compress.errors import RequestError
from compress.numerics import gram_eigenvalues
from compress.spectra.bulk import bulk_metrics
from compress.spectra.cache import SpectraCache
from compress.spectra.farms import FarmsSettings, farms_alpha
from compress.spectra.inspect import inspect
from compress.spectra.measure import measure_spectra
from compress.spectra.shuffle import shuffled
from tiny_models import make_checkpoint


def gaussian(out: int, inp: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, inp, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_checkpoint("llama", tmp_path_factory.mktemp("m") / "llama", tokenizer=False)


def test_windows_take_the_shape_out_of_the_exponent():
    # alpha.md 3: whole matrices give 2.12, 3.45, 3.45.
    for shape in ((256, 256), (256, 1024), (1024, 256)):
        value = farms_alpha(gaussian(*shape), FarmsSettings(128, 1.0, 3), "mid")
        assert value == pytest.approx(2.12, abs=0.03)


def test_a_window_larger_than_the_matrix_is_the_matrix_and_is_noted(llama):
    settings = FarmsSettings(2000)
    weight = gaussian(40, 40)
    whole = farms_alpha(weight, FarmsSettings(40, 1.0, 1), "peak")
    assert farms_alpha(weight, settings, "peak") == whole
    seen = inspect(llama, farms=settings, cache=False)
    assert "FARMS window 2000 cut to 32 × 32" in seen.render(80)


@pytest.mark.parametrize("text", ["", "a", "1,1,1", "100,0,5", "100,1,0", "100,1,5,6", "9,nan,1"])
def test_windows_that_cannot_be_are_refused(text):
    with pytest.raises(RequestError):
        FarmsSettings.parse(text)


def test_scale_changes_neither_farms_nor_the_bulks_shape():
    weight = gaussian(60, 90) + 3 * gaussian(60, 3, 1) @ gaussian(3, 90, 2)
    one, two = (bulk_metrics(gram_eigenvalues(w).numpy(), (60, 90)) for w in (weight, weight * 64))
    assert two["mp_softrank"] == pytest.approx(one["mp_softrank"], rel=1e-5)
    assert two["num_spikes"] == one["num_spikes"]
    settings = FarmsSettings(30, 1.0, 3)
    assert farms_alpha(weight * 64, settings) == pytest.approx(farms_alpha(weight, settings))


def test_the_shuffle_keeps_the_elements_and_its_order_is_the_seeds():
    weight = gaussian(6, 7)
    assert torch.equal(shuffled(weight, 3), shuffled(weight, 3))
    assert not torch.equal(shuffled(weight, 3), shuffled(weight, 4))
    assert torch.equal(shuffled(weight, 3).flatten().sort().values, weight.flatten().sort().values)


def measured(path, cache):
    source = open_source(path)
    names = ["alpha_peak", "farms", "rand_distance"]
    return measure_spectra(source, read_anatomy(skeleton(source)), metrics=names, cache=cache)


def test_the_cache_changes_no_value_and_knows_tensors_by_content(llama, tmp_path):
    plain = measured(llama, None)
    first, second = SpectraCache(tmp_path / "c"), SpectraCache(tmp_path / "c")
    assert measured(llama, first) == plain == measured(llama, second)
    assert (first.hits, first.misses) == (0, 28)
    assert (second.hits, second.misses) == (28, 0)
    weight = gaussian(4, 6)
    others = [weight + 1e-6, weight.reshape(6, 4), weight.double()]
    assert SpectraCache.content(weight) not in map(SpectraCache.content, others)


@pytest.mark.parametrize("damage", ["cut", "flipped", "version"])
def test_an_entry_that_cannot_be_trusted_is_replaced(tmp_path, damage, monkeypatch):
    cache = SpectraCache(tmp_path)
    content = cache.content(gaussian(3, 4))
    cache.write(content, "x", np.array([1.0, 2.0]))
    (file,) = (p for p in tmp_path.rglob("*") if p.is_file())
    whole = file.read_bytes()
    if damage == "version":
        monkeypatch.setattr("compress.spectra.cache.MEASURES", 99)
    else:
        file.write_bytes(whole[:-1] if damage == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    assert cache.read(content, "x") is None
    cache.write(content, "x", np.array([1.0, 2.0]))
    assert cache.read(content, "x").tolist() == [1.0, 2.0]
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 1


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "file").write_text("")
    cache = SpectraCache(tmp_path / "file")
    cache.write("a", "b", np.zeros(1))
    assert cache.problem is not None
    assert cache.read("a", "b") is None


def test_unknown_engines_and_metrics_are_refused(llama):
    with pytest.raises(RequestError, match="weightwatch"):
        inspect(llama, engine="weightwatch")
    with pytest.raises(RequestError, match="alpha_peek"):
        inspect(llama, plot="alpha_peek")
    with pytest.raises(RequestError, match="farms"):
        inspect(llama, engine="weightwatcher", farms="30,1,2")


def test_the_page_is_one_file_that_needs_no_other(llama, tmp_path):
    inspect(llama, html=tmp_path / "page.html", randomize=True, cache=False)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append(tag)
            assert not {"src", "href"} & {name for name, _ in attrs}

    Reader().feed(text)
    assert seen.count("tr") == 29
    assert seen.count("figure") == 2
    assert "://" not in text
    assert "nan" not in text.partition("<script>")[0].lower()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A Llama whose matrices have 24 or 64 eigenvalues, and 12 (the keys and values)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=1, head_dim=12, vocab_size=50,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("w") / "wide"
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():  # above WeightWatcher's absolute threshold of 1e-5
        parameter.data *= 10
    model.save_pretrained(path)
    return path


def test_weightwatcher_agrees_from_twenty_eigenvalues_on_and_fits_fewer_otherwise(wide):
    pytest.importorskip("weightwatcher")
    seen = []
    ours = inspect(wide, cache=False).rows
    theirs = inspect(wide, engine="weightwatcher", progress=lambda *state: seen.append(state)).rows
    apart = {min(row.shape) for row in ours if min(row.shape) < 20}
    assert apart == {12}
    for one, two in zip(ours, theirs, strict=True):
        same = pytest.approx(two.metrics["alpha_ks"], abs=1e-4)
        assert (one.metrics["alpha_ks"] == same) == (min(one.shape) >= 20), one.module
        for name in ("stable_rank", "norm", "spectral_norm"):
            assert one.metrics[name] == pytest.approx(two.metrics[name], rel=1e-5)
    # Heard of after every matrix.
    assert [done for _, done, _, _ in seen] == list(range(8))
    assert seen[-1][3] == "model.layers.0.mlp.down_proj"


def test_the_progress_names_weightwatchers_slow_part():
    from compress.spectra.watcher import _slow_part

    assert _slow_part(["alpha_ks"]) == ""
    assert _slow_part(["rand_distance", "num_spikes"]) == (
        "WeightWatcher's randomize and mp_fit, about 1 s a matrix"
    )
