"""`--push-to-hub` against a local stand-in of the Hub's HTTP API."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Hub(BaseHTTPRequestHandler):
    """Takes a repository's files, large ones by the LFS protocol, into `store`."""

    store: dict = {}
    calls: list = []

    def log_message(self, *args):
        pass

    def _answer(self, data, status=200):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self):
        self.calls.append(self.path)
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self._answer({"error": "Invalid user token."}, 401)
        return self._answer({"name": "me", "type": "user", "auth": {}})

    def do_PUT(self):
        self.store[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self):
        self.calls.append(self.path)
        here, body = f"http://{self.headers['Host']}", self._body()
        if self.path == "/api/repos/create":
            return self._answer({"url": f"{here}/me/{json.loads(body)['name']}"})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{here}/upload/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self._answer({"objects": objects})
        assert "/commit/" in self.path, self.path
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.store[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.store[value["path"]] = self.store[value["oid"]]
        return self._answer({"commitUrl": f"{here}/me/small/commit/abc", "commitOid": "abc"})


@pytest.fixture
def hub():
    Hub.store, Hub.calls = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def run(hub, tmp_path, *args, token="hf_right"):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": token,
    }  # fmt: skip
    command = [sys.executable, "-m", "compress", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_result_is_uploaded_file_by_file(hub, demo_model, tmp_path):
    out = tmp_path / "out"
    given = ("alpha-prune", demo_model, "-o", out, "--method", "magnitude", "--sparsity", "0.5")
    done = run(hub, tmp_path, *given, "--push-to-hub", "me/small", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"] == "alpha-prune"
    assert f"uploaded to {hub}/me/small" in done.stderr
    names = {path.name for path in out.iterdir()}
    assert names <= set(Hub.store)
    assert all(Hub.store[name] == (out / name).read_bytes() for name in names)
    weights = (out / "model.safetensors").read_bytes()
    assert Hub.store[hashlib.sha256(weights).hexdigest()] == weights
    assert Hub.calls[0] == "/api/whoami-v2"  # the account, before any work


@pytest.mark.parametrize(
    ("given", "token", "told"),
    [
        (("--push-to-hub", "me/small"), "hf_wrong", "token"),
        (("--push-to-hub", "a/b/c"), "hf_right", "not a Hub id"),
        (("--push-to-hub", "me/small", "--dry-run"), "hf_right", "dry run"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_before_any_work(
    given, token, told, hub, demo_model, tmp_path
):
    out = tmp_path / "out"
    done = run(
        hub, tmp_path, "alpha-prune", demo_model, "-o", out, "--method", "magnitude", *given,
        token=token,
    )  # fmt: skip
    assert done.returncode == 2
    first = done.stderr.splitlines()[0]
    assert first.startswith("error: `--push-to-hub")
    assert told in first
    assert not out.exists()
    assert Hub.store == {}
