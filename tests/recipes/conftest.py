"""A stand-in for the processes that run steps: it does at once what a command would leave."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from compress.recipes import command
from compress.recipes.judging import faults


class Stub:
    """Leaves a receipt for every step; steps whose command line holds a word of `failing` fail."""

    def __init__(self):
        self.ran = []
        self.failing = {}
        self.signals = []
        self.before = lambda argv: None
        self.lock = threading.Lock()

    def run(self, order):
        argv = list(order.argv)
        self.before(argv)
        with self.lock:
            self.ran.append(argv)
        for word, (text, code) in self.failing.items():
            if word in argv:
                Path(order.err).write_text(text, encoding="utf-8")
                return code
        receipt = {
            "schema": 1,
            "command": argv[0],
            "argv": ["compress", *argv],
            "settings": {"words": argv[1:2]},
            "after": {"bytes": 1000 + len(argv), "perplexity": {"wiki.txt": {"value": 9.5}}},
        }
        if "-o" in argv:
            out = Path(argv[argv.index("-o") + 1])
            out.mkdir()
            (out / "receipt.json").write_text(json.dumps(receipt), encoding="utf-8")
            (out / "model.safetensors").write_bytes(b"weights of " + " ".join(argv).encode())
        for word in argv:
            if word.startswith("--csv="):
                Path(word[6:]).write_text("a,b\n", encoding="utf-8")
        Path(order.out).write_text(json.dumps(receipt), encoding="utf-8")
        return 0

    def judge(self, questions):
        return faults(questions)

    def signal(self, number):
        self.signals.append(number)

    def close(self):
        pass

    def names(self):
        """What was run: the commands with their first argument's last part."""
        return [f"{argv[0]} {Path(argv[1]).name}" for argv in self.ran]


@pytest.fixture
def stub(monkeypatch):
    made = Stub()
    monkeypatch.setattr(command, "launcher", lambda names, env: made)
    return made


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Write a recipe; the current directory is its own."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="r.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path.name

    return write
