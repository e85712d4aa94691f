"""`compress doctor`: what this machine has, what is missing, and the line that installs it.

Every probe stands alone: one that fails is reported and the others go on. Nothing is sent over the
network; whether it may be used is read from the environment. (The module isn't called `doctor`: a
submodule of that name would hide the function `compress.doctor`.)
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from compress import __version__
from compress.reports import formats as fmt
from compress.reports.notebook import Displayable
from compress.reports.receipt import processor_name
from compress.reports.records import encode

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_TRUE = {"1", "true", "yes", "on"}
_LOW_DISK = 5 * 10**9
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
_LABEL = 11  # columns of a line's name


class Part(NamedTuple):
    """An optional package: its name on the index, what it is for, what to tell pip."""

    name: str
    use: str
    install: str


def _optional() -> list[Part]:
    torch = _version("torch")
    # timm brings torchvision, whose own pin would replace a CPU build of torch by a CUDA one.
    keep = f' "torch=={torch}"' if torch else ""
    return [
        Part("ray", "grids over machines", 'pip install "ray[default]"'),
        Part("timm", "timm's image models", f"pip install timm{keep}"),
        Part("onnxruntime", "running ONNX exports", "pip install onnxruntime"),
        Part("llmcompressor", "the peer in benchmarks", "pip install llmcompressor"),
        Part("tensorboard", "event files of training", "pip install tensorboard"),
        Part("pytest", "the test suite", 'pip install -e ".[test]"'),
    ]


class Package(NamedTuple):
    """A dependency: the range that the installed metadata asks for, and what is there."""

    name: str
    needed: str
    found: str | None
    good: bool
    install: str


@dataclass(frozen=True)
class Diagnosis(Displayable):
    """What `doctor` found; a probe that failed is {"error": why}.

    Attributes:
        machine: Python, system, processor, cores, memory in bytes.
        torch: version, build, devices.
        disk: place -> path and free bytes.
        compiler: what torch.compile would use.
        network: what the environment says; nothing was sent.
        packages: the dependencies against their ranges.
        optional: optional parts that are missing or there.
        advice: what to do, most important first; empty where all is well.
    """

    machine: Mapping[str, Any] = field(default_factory=dict)
    torch: Mapping[str, Any] = field(default_factory=dict)
    disk: Mapping[str, Any] = field(default_factory=dict)
    compiler: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[Package, ...] = ()
    optional: tuple[tuple[Part, str | None], ...] = ()
    advice: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON types; what couldn't be found is absent."""
        return encode(
            {
                "schema": 1,
                "compress": __version__,
                "machine": self.machine,
                "torch": self.torch,
                "disk": self.disk,
                "compiler": self.compiler,
                "network": self.network,
                "packages": [p._asdict() for p in self.packages],
                "optional": [{**part._asdict(), "found": found} for part, found in self.optional],
                "advice": self.advice,
            }
        )

    def render(self, width: int | None = None) -> str:
        """The same for people, at most 80 columns wide unless told."""
        columns = fmt.screen_width() if width is None else width
        lines = [
            _line(label, text, columns)
            for label, text in (
                ("compress", self._versions()),
                ("processor", _or_error(self.machine, _processor_text)),
                ("memory", _or_error(self.machine, _memory_text)),
                ("torch", _or_error(self.torch, _torch_text)),
                ("compiler", _or_error(self.compiler, _compiler_text)),
                ("disk", _or_error(self.disk, _disk_text)),
                ("network", _or_error(self.network, _network_text)),
                ("packages", self._packages()),
            )
            if text
        ]
        missing = [part for part, found in self.optional if found is None]
        if missing:
            rows = [[f"  {part.name}", part.use, part.install] for part in missing]
            lines += ["", "Optional parts that are missing (nothing else needs them)"]
            lines += fmt.table(["", "", ""], rows, "lll", width=columns, terminal=False).split(
                "\n"
            )[1:]
        lines += ["", "To do" if self.advice else "All that is needed is here."]
        lines += [fmt.wrap(f"- {advice}", columns) for advice in self.advice]
        return fmt.fit_encoding("\n".join(lines))

    def _versions(self) -> str:
        facts = self.machine
        return f"{__version__}   Python {facts.get('python', '?')}, {facts.get('system', '?')}"

    def _packages(self) -> str:
        bad = [p for p in self.packages if not p.good]
        if not self.packages:
            return "the package's metadata isn't installed; ranges can't be checked"
        text = f"{len(self.packages) - len(bad)} of {len(self.packages)} within their ranges"
        wrong = "; ".join(f"{p.name} {p.found or 'missing'}, needed {p.needed}" for p in bad)
        return text + (f": {wrong}" if wrong else "")


def doctor() -> Diagnosis:
    """Look at this machine; never fails and never uses the network."""
    machine, torch, disk, compiler, network = (
        _tried(probe) for probe in (_machine, _torch, _disk, _compiler, _network)
    )
    packages = _list(_packages)
    optional = tuple((part, _version(part.name)) for part in _optional())
    advice = _advice(torch, disk, compiler, packages)
    return Diagnosis(machine, torch, disk, compiler, network, packages, optional, tuple(advice))


def _tried(probe: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return probe()
    except Exception as error:  # a broken installation may raise anything, and that is the finding
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def _list(probe: Callable[[], list[Package]]) -> tuple[Package, ...]:
    try:
        return tuple(probe())
    except Exception:  # without readable metadata there are no ranges to check
        return ()


def _version(name: str) -> str | None:
    with suppress(Exception):  # absent, or its metadata is damaged
        return metadata.version(name)
    return None


def _machine() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    total, free = _memory()
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": usable,
        "core_limit": _cgroup_cores(),
        "flags": _cpu_flags(),
        "memory_bytes": total,
        "memory_free_bytes": free,
        "memory_limit_bytes": _cgroup_memory(),
    }


def _memory() -> tuple[int | None, int | None]:
    with suppress(Exception):
        import psutil

        seen = psutil.virtual_memory()
        return int(seen.total), int(seen.available)
    return None, None


def _cgroup_memory() -> int | None:
    with suppress(OSError, ValueError):
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    return None


def _cgroup_cores() -> float | None:
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    return None


def _cpu_flags() -> list[str]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                seen = set(line.partition(":")[2].split())
                return [flag for flag in _CPU_FLAGS if flag in seen]
    return []


def _torch() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "version": torch.__version__,
        "build": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU",
        "threads": torch.get_num_threads(),
        "mps": torch.backends.mps.is_available(),
        "devices": [],
        "driver": shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists(),
    }
    if getattr(torch.version, "hip", None):
        found["build"] = f"ROCm {torch.version.hip}"
    for index in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(index)
        found["devices"].append(
            {
                "name": seen.name,
                "capability": f"{seen.major}.{seen.minor}",
                "memory_bytes": seen.total_memory,
                "bfloat16": seen.major >= 8,
                "sparse_2_4": seen.major >= 8,
            }
        )
    return found


def _disk() -> dict[str, Any]:
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    return {"hub": _free(home), "here": _free(os.getcwd())}


def _free(place: str) -> dict[str, Any]:
    path = Path(place).absolute()
    nearest = next((p for p in (path, *path.parents) if p.exists()), Path(path.anchor))
    usage = shutil.disk_usage(nearest)
    writable = os.access(nearest, os.W_OK)
    return {"path": str(path), "free_bytes": usage.free, "writable": writable}


def _compiler() -> dict[str, Any]:
    named = os.environ.get("CXX")
    tried = [named] if named else ["g++", "clang++", "c++", "cl"]
    path = next((found for name in tried if (found := shutil.which(name))), None)
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return {"path": path, "headers": headers.exists()}


def _network() -> dict[str, Any]:
    return {
        "offline_by": [n for n in _OFFLINE if os.environ.get(n, "").lower() in _TRUE],
        # Names only: a proxy's address or an endpoint may carry a password.
        "proxy_by": [name for name in _PROXIES if os.environ.get(name)],
        "endpoint_set": bool(os.environ.get("HF_ENDPOINT")),
        "token_set": bool(os.environ.get("HF_TOKEN")),
    }


def _packages() -> list[Package]:
    from packaging.requirements import Requirement

    found = []
    for line in metadata.requires("compress") or []:
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        version = _version(need.name)
        good = version is not None and need.specifier.contains(version, prereleases=True)
        extras = f"[{','.join(sorted(need.extras))}]" if need.extras else ""
        wanted = f"{need.name}{extras}{need.specifier}"
        found.append(
            Package(
                need.name, str(need.specifier) or "any", version, good, f'pip install "{wanted}"'
            )
        )
    return sorted(found)


def _advice(
    torch: Mapping[str, Any],
    disk: Mapping[str, Any],
    compiler: Mapping[str, Any],
    packages: tuple[Package, ...],
) -> list[str]:
    advice = [f"{p.name}: {p.install}" for p in packages if not p.good]
    if "error" in torch:
        advice.append(f"torch can't be imported ({torch['error']}): reinstall it")
    elif torch["driver"] and not torch["devices"]:
        advice.append(
            f"an NVIDIA driver is here, but torch ({torch['build']} build) sees no GPU: install a "
            "CUDA build of torch, or check CUDA_VISIBLE_DEVICES"
        )
    for name, what in (("hub", "for downloads"), ("here", "in this directory")):
        place = disk.get(name) or {}
        if place.get("free_bytes", _LOW_DISK) < _LOW_DISK:
            free = fmt.bytes_text(place["free_bytes"])
            advice.append(f"only {free} of disk left {what} (`{place['path']}`)")
    if not disk.get("hub", {}).get("writable", True):
        advice.append(f"`{disk['hub']['path']}` can't be written: set HF_HOME to a place that can")
    if "error" not in compiler and not (compiler["path"] and compiler["headers"]):
        lacks = "a C++ compiler" if not compiler["path"] else "Python's headers (Python.h)"
        advice.append(f"torch.compile needs {lacks}; everything else works without")
    return advice


def _line(label: str, text: str, width: int) -> str:
    return fmt.wrap(f"{label:<{_LABEL}}{text}", width, " " * _LABEL)


def _or_error(facts: Mapping[str, Any], text: Callable[[Mapping[str, Any]], str]) -> str:
    return f"can't be read: {facts['error']}" if "error" in facts else text(facts)


def _processor_text(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    flags = facts["flags"]
    fast = [flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in flags]
    bf16 = f"bfloat16 in hardware ({fast[0]})" if fast else "no bfloat16 in hardware"
    cores = f"{facts['cores']} core{'s' * (facts['cores'] != 1)}"
    if facts["core_limit"] is not None:
        cores += f" (limited to {facts['core_limit']:g})"
    return f"{facts['processor']}, {cores}; {bf16}"


def _memory_text(facts: Mapping[str, Any]) -> str:
    if not facts or facts["memory_bytes"] is None:
        return ""
    total, free = fmt.bytes_text(facts["memory_bytes"]), fmt.bytes_text(facts["memory_free_bytes"])
    limit = facts["memory_limit_bytes"]
    return f"{total}, {free} free" + (f", limited to {fmt.bytes_text(limit)}" if limit else "")


def _torch_text(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    devices = [
        f"{d['name']} (capability {d['capability']}, {fmt.bytes_text(d['memory_bytes'])})"
        for d in facts["devices"]
    ]
    devices += ["Metal"] if facts["mps"] else []
    seen = ", ".join(devices) or "no GPU"
    return f"{facts['version']}, {facts['build']} build, {facts['threads']} threads; {seen}"


def _compiler_text(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    if facts["path"] and facts["headers"]:
        return f"{facts['path']}: torch.compile can be used"
    return f"{facts['path'] or 'none'}{'' if facts['headers'] else ', no Python.h'}"


def _disk_text(facts: Mapping[str, Any]) -> str:
    places = (("hub", "for the Hub's cache"), ("here", "in this directory"))
    return "; ".join(
        f"{fmt.bytes_text(facts[name]['free_bytes'])} free {what}"
        for name, what in places
        if name in facts
    )


def _network_text(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    state = f"off by {', '.join(facts['offline_by'])}" if facts["offline_by"] else "allowed"
    parts = [f"{state} (not tried)"]
    if facts["proxy_by"]:
        parts.append(f"proxy from {', '.join(facts['proxy_by'])}")
    if facts["endpoint_set"]:
        parts.append("Hub address from HF_ENDPOINT")
    parts.append("HF_TOKEN is set" if facts["token_set"] else "no HF_TOKEN: public models only")
    return "; ".join(parts)
