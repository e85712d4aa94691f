"""Spectra of checkpoints: every matrix, by its own eigenvalues; parts of fused ones; odd ones."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, GPT2Config, LlamaConfig, Phi3Config

from compress.checkpoints.anatomy import Matrix, read_anatomy
from compress.checkpoints.loader import skeleton
from compress.checkpoints.source import open_source
from compress.errors import RequestError
from compress.spectra.measure import measure_spectra
from compress.spectra.metrics import DEFAULT_METRICS, shape_metrics
from compress.spectra.parts import logical_parts
from tiny_models import ARCHITECTURES, make_checkpoint


def opened(path: Path):
    source = open_source(path)
    return source, read_anatomy(skeleton(source))


def rewritten(path: Path, edit) -> Path:
    """Change the tensors of a one-file checkpoint in place."""
    from safetensors.torch import load_file, save_file

    file = path / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return path


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return make_checkpoint("llama", tmp_path / "llama")


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_matrix_of_every_family_has_a_finite_row(arch, tmp_path):
    source, anatomy = opened(make_checkpoint(arch, tmp_path / arch))
    rows = measure_spectra(source, anatomy)
    assert [row.module for row in rows] == [m.name for m in anatomy.matrices]
    for row, matrix in zip(rows, anatomy.matrices, strict=True):
        assert row.shape == matrix.shape
        assert set(row.metrics) == set(DEFAULT_METRICS)
        assert all(math.isfinite(v) for v in row.metrics.values())
        assert row.metrics["alpha_peak"] > 1
        assert row.warning is None


def test_rows_are_the_metrics_of_the_weights_on_disk(llama):
    source, anatomy = opened(llama)
    for row in measure_spectra(source, anatomy, exact=True):
        weight = source.read([f"{row.module}.weight"])[f"{row.module}.weight"].double()
        expected = shape_metrics(torch.linalg.svdvals(weight).square())
        assert row.metrics == pytest.approx({n: expected[n] for n in DEFAULT_METRICS}, rel=1e-9)
        assert row.tail_size == expected["peak_size"]
        assert row.tail_distance == pytest.approx(expected["peak_distance"], rel=1e-6)
        assert row.zeros == 0


def test_gram_and_singular_values_agree(llama):
    source, anatomy = opened(llama)
    pairs = zip(
        measure_spectra(source, anatomy), measure_spectra(source, anatomy, exact=True), strict=True
    )
    for gram, exact in pairs:
        assert gram.metrics == pytest.approx(exact.metrics, rel=1e-6)


def test_experts_are_measured_one_by_one(tmp_path):
    source, anatomy = opened(make_checkpoint("mixtral", tmp_path / "m"))
    rows = {row.module: row for row in measure_spectra(source, anatomy, metrics=["alpha_mid"])}
    experts = [m for m in anatomy.matrices if m.expert is not None]
    assert experts
    weights = source.load().state_dict()
    for matrix in experts[:6]:
        weight = weights[matrix.parameter][matrix.expert]
        weight = weight[slice(*matrix.rows)] if matrix.rows else weight
        e = torch.linalg.svdvals(weight.double()).square()
        expected = shape_metrics(e)["alpha_mid"]
        assert rows[matrix.name].metrics["alpha_mid"] == pytest.approx(expected, rel=1e-6)


def matrix_of(role: str, out: int) -> Matrix:
    return Matrix("b.m", "b.m", "b.m.weight", role, (out, 6), False, None, None, "b")


HEADS = {"num_attention_heads": 4, "hidden_size": 8}


@pytest.mark.parametrize(
    ("role", "config", "out", "rows"),
    [
        ("qkv", GPT2Config(n_head=4), 24, [range(8), range(8, 16), range(16, 24)]),
        (
            "qkv",
            Phi3Config(num_key_value_heads=2, **HEADS),
            16,
            [range(8), range(8, 12), range(12, 16)],
        ),
        (
            "qkv",
            BloomConfig(n_head=4, hidden_size=8),
            24,
            [[6 * h + 2 * part + i for h in range(4) for i in range(2)] for part in range(3)],
        ),
        ("gate_up", LlamaConfig(**HEADS), 10, [range(5), range(5, 10)]),
        ("q", LlamaConfig(**HEADS), 24, [range(24)]),
        ("qkv", LlamaConfig(**HEADS), 23, [range(23)]),
    ],
    ids=["gpt2", "grouped", "head by head", "gate_up", "plain", "unclear"],
)
def test_fused_matrices_are_split_into_their_maps(role, config, out, rows):
    weight = torch.arange(out * 6).reshape(out, 6)
    parts = logical_parts(matrix_of(role, out), weight, config)
    assert [part.tolist() for part in parts] == [weight[list(r)].tolist() for r in rows]


def test_a_fused_matrix_has_the_mean_of_its_parts(tmp_path):
    source, anatomy = opened(make_checkpoint("gpt2", tmp_path / "g"))
    row = next(r for r in measure_spectra(source, anatomy) if r.role == "qkv")
    weight = source.load().state_dict()[f"{row.module}.weight"].T.double()
    parts = [shape_metrics(torch.linalg.svdvals(p).square()) for p in weight.chunk(3)]
    for name in DEFAULT_METRICS:
        expected = statistics.fmean(p[name] for p in parts)
        assert row.metrics[name] == pytest.approx(expected, rel=1e-6), name
    assert row.tail_size == sum(p["peak_size"] for p in parts)


def test_odd_matrices_get_the_median_of_the_others_and_a_warning(llama):
    zero, constant, poor = (
        f"model.layers.{i}.self_attn.o_proj.weight" for i in (0, 1, 2)
    )  # fmt: skip

    def edit(tensors):
        tensors[zero].zero_()
        tensors[constant].fill_(0.25)
        tensors[poor][5:] = 0

    source, anatomy = opened(rewritten(llama, edit))
    rows = {f"{row.module}.weight": row for row in measure_spectra(source, anatomy)}
    others = [r.metrics["alpha_peak"] for n, r in rows.items() if n not in (zero, constant)]
    for name in (zero, constant):
        assert rows[name].metrics["alpha_peak"] == statistics.median(others)
        assert all(math.isfinite(v) for v in rows[name].metrics.values())
    assert rows[zero].warning.startswith("all weights are zero: alpha_peak")
    assert "median of the other matrices" in rows[zero].warning
    assert rows[constant].warning.startswith("rank 1 of 32")
    assert rows[poor].warning == "rank 5 of 32"
    assert rows[zero].zeros == 1
    assert rows[poor].zeros == 27 / 32


def test_a_model_without_any_spectrum_has_equal_values(llama):
    def edit(tensors):
        for name in tensors:
            if "proj" in name:
                tensors[name].zero_()

    source, anatomy = opened(rewritten(llama, edit))
    rows = measure_spectra(source, anatomy, metrics=["alpha_peak"])
    assert {row.metrics["alpha_peak"] for row in rows} == {0.0}
    assert all("0 stands in" in row.warning for row in rows)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_named(llama, value):
    def edit(tensors):
        tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = value

    source, anatomy = opened(rewritten(llama, edit))
    with pytest.raises(RequestError, match=r"`model\.layers\.2\.mlp\.up_proj` holds NaN or Inf"):
        measure_spectra(source, anatomy)


def test_an_unknown_metric_suggests_a_near_one(llama):
    source, anatomy = opened(llama)
    with pytest.raises(RequestError, match="alpha_peek") as error:
        measure_spectra(source, anatomy, metrics=["alpha_peek"])
    assert "did you mean `alpha_peak`" in error.value.hint


def test_progress_ends_at_the_total_and_blocks_are_read_one_at_a_time(llama, monkeypatch):
    from compress.checkpoints.loader import BlockLoader

    source, anatomy = opened(llama)
    loaded, most = set(), []
    load, unload = BlockLoader.load, BlockLoader.unload

    def watched_load(self, part, *rest):
        loaded.add(part)
        most.append(len(loaded))
        load(self, part, *rest)

    def watched_unload(self, part):
        loaded.discard(part)
        unload(self, part)

    monkeypatch.setattr(BlockLoader, "load", watched_load)
    monkeypatch.setattr(BlockLoader, "unload", watched_unload)
    seen = []
    measure_spectra(source, anatomy, progress=lambda task, done, total, note="": seen.append(done))
    assert max(most) == 1
    assert seen[0] == 0
    assert seen[-1] == len(anatomy.matrices)
    assert seen == sorted(seen)
