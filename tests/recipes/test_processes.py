"""Real processes: what the nursery forks, kills, and what a killed run goes on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.recipes.launching import Forked, Order, Plain

RECIPE = """\
defaults: {limit: 2, eval-seqlen: 64}
steps:
  prune:
    run: alpha-prune
    model: ${shipped.tiny-llama}
    method: magnitude
    allocation: uniform
    sparsity: ${sparsity}
    ppl: demo
  look: {run: inspect, model: "${steps.prune.output}"}
matrix: {sparsity: [0.5, 0.6]}
report: prune
"""


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    own = [int(word) for word in found.stdout.split()]
    return own + [deeper for child in own for deeper in children(child)]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(params=[Plain, Forked], ids=["plain", "forked"])
def launcher(request):
    if request.param is Plain:
        made = Plain({"SOME": "where"})
    else:
        if not sys.platform.startswith("linux"):
            pytest.skip("forks only on Linux")
        made = Forked([], {"SOME": "where"})
    yield made
    made.close()


def order(tmp_path, *argv):
    return Order(argv, str(tmp_path / "out"), str(tmp_path / "err"))


def test_a_step_is_the_command_itself(launcher, tmp_path):
    assert launcher.run(order(tmp_path, "--version")) == 0
    assert "compress" in (tmp_path / "out").read_text()
    assert launcher.run(order(tmp_path, "alpha-prun", "--json")) == 2
    assert "`alpha-prun` isn't a command" in (tmp_path / "err").read_text()
    asked = [{"command": "export", "words": ["m"]}]
    assert launcher.judge(asked) == [""]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_run_leaves_no_process_and_goes_on(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    line = [sys.executable, "-m", "compress", "run", "r.yaml", "-o", "out", "--json"]
    run = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = tmp_path / "out.partial/steps/sparsity=0.5/prune/receipt.json"
    until(lambda: first.exists() or run.poll() is not None)
    assert run.poll() is None, run.stderr.read()
    until(lambda: (tmp_path / "out.partial/records/sparsity=0.6/prune.json").exists())
    below = children(run.pid)
    assert below
    run.kill()
    run.communicate()
    until(lambda: not any(map(alive, below)), 30)
    assert not (tmp_path / "out").exists()
    again = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    known = {step["place"]: step.get("cached", False) for step in told["steps"]}
    assert known["sparsity=0.5/prune"]
    assert [row["name"] for row in told["rows"]] == ["0.5", "0.6"]
    receipt = json.loads((tmp_path / "out/sparsity=0.6/look/receipt.json").read_text())
    assert receipt["model"]["source"] == str(tmp_path / "out/sparsity=0.6/prune")
    less, more = (run["after"]["nonzero"] for run in told["table"]["runs"])
    assert more < less
    assert os.stat(tmp_path / "out/sparsity=0.6/prune/model.safetensors").st_nlink == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_an_interrupted_run_says_how_to_go_on(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    line = [sys.executable, "-m", "compress", "run", "r.yaml", "-o", "out"]
    run = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True)  # fmt: skip
    until(lambda: (tmp_path / "out.partial/records/sparsity=0.5/prune.json").exists())
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "continue with: compress run r.yaml -o out --resume" in err
    assert not (tmp_path / "out").exists()
