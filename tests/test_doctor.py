from __future__ import annotations

import json
import socket
import types
from importlib import metadata

import pytest
import torch

from compress import diagnosis
from compress.diagnosis import Diagnosis, doctor


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_this_machine_is_described_within_80_columns():
    found = doctor()
    data = found.as_dict()
    text = found.render(width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert data["machine"]["cores"] >= 1
    assert data["torch"]["version"] == torch.__version__
    assert f"torch      {torch.__version__}" in text
    assert {p["name"] for p in data["packages"]} >= {"torch", "transformers", "click", "rich"}
    assert "null" not in json.dumps(data, allow_nan=False)
    assert [line.split()[0] for line in text.splitlines()[:2]] == ["compress", "processor"]


@pytest.mark.parametrize("probe", ["_machine", "_torch", "_disk", "_compiler", "_network"])
def test_one_failing_probe_stops_nothing(monkeypatch, probe):
    def broken() -> dict:
        raise OSError("libgomp.so.1: cannot open shared object file\nmore")

    whole = doctor().as_dict()
    monkeypatch.setattr(diagnosis, probe, broken)
    found = doctor()
    data = found.as_dict()
    name = probe.lstrip("_")
    assert data[name] == {"error": "OSError: libgomp.so.1: cannot open shared object file more"}
    others = {"machine", "torch", "disk", "compiler", "network"} - {name}
    assert all("error" not in data[other] for other in others)
    assert data["packages"] == whole["packages"]
    assert "can't be read: OSError: libgomp.so.1" in " ".join(found.render(width=80).split())
    if probe == "_torch":
        assert "torch can't be imported" in data["advice"][0]


def test_an_empty_diagnosis_renders():
    assert "compress" in Diagnosis().render(width=80)


def test_packages_out_of_range_and_missing_come_with_their_pip_line(monkeypatch):
    real = metadata.version

    def version(name: str) -> str:
        if name == "rich":
            raise metadata.PackageNotFoundError(name)
        return {"click": "7.0", "torch": "2.11.0+cpu"}.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = doctor()
    bad = {p.name: p for p in found.packages if not p.good}
    assert set(bad) == {"click", "rich"}  # a local version such as +cpu is within >=2.11
    assert bad["click"].found == "7.0"
    assert bad["rich"].found is None
    needed = bad["click"].needed
    assert f'click: pip install "click{needed}"' in found.advice
    text = " ".join(found.render(width=80).split())
    assert f"click 7.0, needed {needed}" in text
    assert "rich missing, needed" in text
    assert "All that is needed is here" not in text


def test_without_metadata_the_ranges_are_unknown(monkeypatch):
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    found = doctor()
    assert found.packages == ()
    assert "ranges can't be checked" in found.render(width=80)


def test_a_missing_optional_part_shows_the_exact_line(monkeypatch):
    real = metadata.version

    def version(name: str) -> str:
        if name in ("ray", "timm"):
            raise metadata.PackageNotFoundError(name)
        return "2.13.0+cpu" if name == "torch" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    lines = doctor().render(width=80).splitlines()
    (ray,) = (line for line in lines if line.startswith("  ray "))
    assert ray.endswith('pip install "ray[default]"')
    (timm,) = (line for line in lines if line.startswith("  timm "))
    assert timm.endswith('pip install timm "torch==2.13.0+cpu"')
    assert not any(line.startswith("  pytest ") for line in lines)


def test_the_network_is_told_from_the_environment_and_secrets_are_not(monkeypatch):
    for name in ("TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy:1")
    monkeypatch.setenv("HF_ENDPOINT", "https://key@mirror")
    found = doctor()
    said = json.dumps(found.as_dict()) + found.render(width=80)
    assert not any(secret in said for secret in ("hf_secret", "password", "key@mirror"))
    assert found.network["offline_by"] == ["HF_HUB_OFFLINE"]
    assert "off by HF_HUB_OFFLINE (not tried)" in said
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert doctor().network["offline_by"] == []


def test_gpus_are_listed_with_what_they_can(monkeypatch):
    card = types.SimpleNamespace(name="Card", major=7, minor=5, total_memory=16 * 10**9)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    found = doctor()
    assert found.torch["devices"] == [
        {
            "name": "Card",
            "capability": "7.5",
            "memory_bytes": 16 * 10**9,
            "bfloat16": False,
            "sparse_2_4": False,
        }
    ]
    assert "Card (capability 7.5, 16.0 GB)" in found.render(width=200)


def test_a_driver_without_a_gpu_in_torch_is_pointed_out(monkeypatch):
    seen = {**diagnosis._torch(), "driver": True, "devices": []}
    monkeypatch.setattr(diagnosis, "_torch", lambda: seen)
    assert any("an NVIDIA driver is here" in line for line in doctor().advice)


def test_a_full_disk_and_a_read_only_cache_are_pointed_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "yet"))
    usage = types.SimpleNamespace(free=10**9)
    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(diagnosis.os, "access", lambda path, mode: False)
    found = doctor()
    assert found.disk["hub"]["path"] == str(tmp_path / "not" / "yet")
    advice = "\n".join(found.advice)
    assert "only 1.00 GB of disk left for downloads" in advice
    assert "set HF_HOME" in advice


def test_no_compiler_is_no_obstacle_but_said(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(diagnosis.shutil, "which", lambda name: None)
    found = doctor()
    assert "path" not in found.as_dict()["compiler"]
    assert any("torch.compile needs a C++ compiler" in line for line in found.advice)
