"""`inspect`: CONTRACT's JSON, the table, one spectrum, the files it writes, what it refuses."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

import compress
from compress.errors import RequestError, RunError
from compress.spectra.inspect import inspect
from compress.spectra.metrics import DEFAULT_METRICS
from tiny_models import make_checkpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("m") / "llama", tokenizer=False)


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


def test_the_json_is_the_contracts(llama):
    seen = inspect(llama).as_dict()
    seen = json.loads(json.dumps(seen, allow_nan=False))
    assert seen["schema"] == 1
    assert seen["model"]["source"] == str(llama)
    assert seen["model"]["architecture"] == "LlamaForCausalLM"
    assert seen["model"]["digest"].startswith("sha256:")
    assert seen["model"]["blocks"] == 4
    rows = {row["module"]: row for row in seen["rows"]}
    assert len(rows) == 28 == seen["model"]["matrices"]
    row = rows["model.layers.0.mlp.down_proj"]
    assert row["shape"] == [32, 48]
    assert set(DEFAULT_METRICS) <= set(row)
    assert "warning" not in row
    means = seen["blocks"][1]
    mine = [r for r in seen["rows"] if r["block"] == means["block"]]
    assert means["alpha_mid"] == pytest.approx(sum(r["alpha_mid"] for r in mine) / 7)
    assert seen["anatomy"]["heads"] == ["lm_head"]


def test_nothing_is_changed_and_no_tokenizer_is_needed(llama):
    before = digests(llama)
    inspect(llama)
    assert digests(llama) == before


@pytest.mark.parametrize("width", [80, 60])
def test_the_table_fits_the_screen_and_names_every_matrix(llama, width):
    seen = inspect(llama)
    lines = seen.render(width).splitlines()
    assert max(len(line) for line in lines if str(llama) not in line) <= width
    text = "\n".join(lines)
    for row in seen.rows:
        assert f"\n  {row.module.removeprefix(row.block + '.')}" in text
    assert f"{seen.rows[0].metrics['alpha_peak']:.2f}" in text
    header = next(line for line in lines if "shape" in line).split()
    everything = ["shape", "peak", "strict", "mid", "ks", "D", "k", "st.rank", "entropy"]
    assert header == everything if width == 80 else set(header) < set(everything)


def test_one_matrix_shows_its_spectrum_and_tail(llama, tmp_path):
    name = "model.layers.3.self_attn.q_proj"
    seen = inspect(llama, module=name, png=tmp_path / "one.png")
    assert [row.module for row in seen.rows] == [name]
    text = seen.render(80)
    assert "q_proj, block 3   32 × 32   alpha_peak" in text
    assert f"tail from {seen.spectra[0].start:.3g}" in text
    assert "eigenvalue" in text
    assert all(len(line) <= 80 for line in text.splitlines() if str(llama) not in line)
    data = json.loads(json.dumps(seen.as_dict(), allow_nan=False))
    assert sum(data["spectra"][0]["counts"]) == 32
    assert data["spectra"][0]["tail"]["size"] == seen.rows[0].tail_size
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 400


def test_a_fused_matrix_shows_each_part(tmp_path):
    model = make_checkpoint("gpt2", tmp_path / "gpt2")
    seen = inspect(model, module="transformer.h.0.attn.c_attn", png=tmp_path / "p.png")
    assert [spectrum.part for spectrum in seen.spectra] == ["1 of 3", "2 of 3", "3 of 3"]
    assert "part 3 of 3" in seen.render(80)
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_files_hold_all_rows(llama, tmp_path):
    seen = inspect(llama, csv=tmp_path / "rows.csv", png=tmp_path / "all.png")
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["module"] for row in rows] == [row.module for row in seen.rows]
    assert float(rows[5]["stable_rank"]) == seen.rows[5].metrics["stable_rank"]
    assert (rows[6]["out"], rows[6]["in"]) == ("32", "48")
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.format == "PNG"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.png", "rows.csv"]


def test_odd_matrices_are_noted(llama, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(llama, tmp_path / "odd"))
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"].zero_()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    seen = inspect(copy, csv=tmp_path / "rows.csv")
    text = seen.render(80)
    assert "self_attn.v_proj *" in text
    assert "note: model.layers.1.self_attn.v_proj: all weights are zero" in text
    assert "100.0 %" in text
    json.dumps(seen.as_dict(), allow_nan=False)
    alone = inspect(copy, module="model.layers.1.self_attn.v_proj", png=tmp_path / "odd.png")
    assert "no tail" in alone.render(80)
    json.dumps(alone.as_dict(), allow_nan=False)


def test_bad_requests_write_nothing(llama, tmp_path):
    out = tmp_path / "rows.csv"
    with pytest.raises(RequestError, match="q_prj") as error:
        inspect(llama, module="model.layers.0.self_attn.q_prj", csv=out)
    assert "q_proj" in error.value.hint
    with pytest.raises(RequestError, match="nowhere"):
        inspect(tmp_path / "nowhere", csv=out)
    with pytest.raises(RequestError, match=r"--csv .* no directory"):
        inspect(llama, csv=tmp_path / "absent" / "rows.csv")
    with pytest.raises(RequestError, match=r"--png .* is a directory"):
        inspect(llama, png=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_half_file(llama, tmp_path, monkeypatch):
    def full(path, *rest, **options):
        path.open("w").write("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match="No space left"):
        inspect(llama, csv=tmp_path / "rows.csv")
    assert list(tmp_path.iterdir()) == []


def test_the_trained_model_reads_well(assets):
    seen = inspect(assets / "models" / "stories260k")
    assert all(row.metrics["alpha_peak"] > 1 for row in seen.rows)
    # alpha.md 1.3: queries and keys are much heavier-tailed than the rest.
    mean = {role: [r.metrics["alpha_mid"] for r in seen.rows if r.role == role] for role in "qkvo"}
    assert max(mean["q"]) < min(mean["v"])


def test_the_contract_name_is_callable(llama):
    assert compress.inspect(llama).model["blocks"] == 4
