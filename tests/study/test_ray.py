"""The Ray backend's own steps, on a stand-in that runs each task in this process."""

import importlib.machinery
import json
import pickle
import sys
import types

import pytest


class Ref:
    def __init__(self, value):
        self.value = value


@pytest.fixture
def ray(monkeypatch):
    """As much of Ray as is used: what goes to a task is pickled, as it is for another machine."""
    made = types.ModuleType("ray")
    made.__spec__ = importlib.machinery.ModuleSpec("ray", None)
    made.calls = []

    def remote(function):
        def call(*given):
            made.calls.append(given)
            own = [pickle.loads(pickle.dumps(g.value if isinstance(g, Ref) else g)) for g in given]
            return Ref(function(*own))

        return types.SimpleNamespace(remote=call)

    made.is_initialized = lambda: False
    made.init = lambda **given: made.calls.append("init")
    made.shutdown = lambda: made.calls.append("shutdown")
    made.put = Ref
    made.get = lambda ref: ref.value
    made.remote = remote
    made.wait = lambda refs, num_returns: (refs[-1:], refs[:-1])  # the last one is done first
    monkeypatch.setitem(sys.modules, "ray", made)
    return made


def test_groups_given_to_ray_make_the_same_grid(study, tmp_path, ray):
    options = {"methods": ("wanda",), "sparsity": (0.5,), "predictors": False}
    study(tmp_path / "local", **options)
    study(tmp_path / "ray", backend="ray", **options)
    assert (tmp_path / "ray/grid.jsonl").read_text() == (tmp_path / "local/grid.jsonl").read_text()
    assert ray.calls[0] == "init"
    assert ray.calls[-1] == "shutdown"
    assert len(ray.calls) == 2 + 4  # a task for each set and seed
    receipts = [json.loads((tmp_path / n / "receipt.json").read_text()) for n in ("local", "ray")]
    assert receipts[0]["cost"]["passes"] == receipts[1]["cost"]["passes"]
