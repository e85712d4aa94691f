"""A result appears whole or not at all, and nobody's files are lost."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import textwrap

import pytest

from compress.checkpoints.save import Workspace, check_output, copy_companions, writing
from compress.errors import RequestError, RunError


def content(directory):
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()
    }


def fill(directory, text="new"):
    (directory / "sub").mkdir()
    (directory / "weights").write_text(text)
    (directory / "sub" / "more").write_text(text)


NEW = {"weights": b"new", os.path.join("sub", "more"): b"new"}


def test_commit_makes_out_and_leaves_nothing_else(tmp_path):
    with Workspace.open(tmp_path / "deep" / "out", fingerprint={"a": 1}) as ws:
        fill(ws.result)
        (ws.path / "shards").mkdir()
        assert not ws.output.exists()
        ws.commit()
    assert content(tmp_path / "deep" / "out") == NEW
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_files_get_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with Workspace.open(tmp_path / "out") as ws:
            fill(ws.result)
            (ws.result / "weights").chmod(0o600)  # as safetensors leaves it
            ws.commit()
        assert stat.S_IMODE((tmp_path / "out" / "weights").stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_an_empty_output_is_fine_a_full_one_needs_overwrite(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with Workspace.open(out) as ws:
        fill(ws.result, "old")
        ws.commit()
    old = content(out)
    with pytest.raises(RequestError, match=r"not empty.*") as caught:
        Workspace.open(out)
    assert "--overwrite" in caught.value.hint
    assert not (tmp_path / "out.partial").exists()
    with Workspace.open(out, overwrite=True) as ws:
        fill(ws.result)
        assert content(out) == old
        ws.commit()
    assert content(out) == NEW
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("out", "word"),
    [
        ("source", "is the source"),
        ("source/inner", "lies inside"),
        (".", "holds"),
        ("file", "is a file"),
        ("other/../source", "is the source"),
        ("link", "is the source"),
    ],
)
def test_outputs_that_touch_the_source_are_refused(tmp_path, out, word):
    base = tmp_path / "base"
    (base / "source").mkdir(parents=True)
    (base / "other").mkdir()
    (base / "source" / "w").write_text("x")
    (base / "file").write_text("x")
    (base / "link").symlink_to("source")
    before = content(tmp_path)
    with pytest.raises(RequestError, match=word):
        Workspace.open(base / out, overwrite=True, source=base / "source")
    assert content(tmp_path) == before


def test_the_current_directory_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="current directory"):
        check_output(".")


def test_a_source_inside_the_workspace_would_be_wiped(tmp_path):
    with pytest.raises(RequestError, match="still being made"):
        check_output(tmp_path / "out", source=tmp_path / "out.partial" / "result")


def test_a_strangers_partial_is_not_touched(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").write_text("x")
    with pytest.raises(RequestError, match="in the way"):
        Workspace.open(tmp_path / "out")
    assert (tmp_path / "out.partial" / "thesis.tex").exists()


def test_resume_keeps_the_parts_and_empties_the_result(tmp_path):
    with Workspace.open(tmp_path / "out", fingerprint={"a": 1}) as ws:
        (ws.path / "block-0").write_text("done")
        fill(ws.result, "half")
    with Workspace.open(tmp_path / "out", resume=True, fingerprint={"a": 1}) as ws:
        assert (ws.path / "block-0").read_text() == "done"
        assert list(ws.result.iterdir()) == []
        assert not ws.committed


def test_without_resume_a_run_starts_anew(tmp_path):
    with Workspace.open(tmp_path / "out", fingerprint={"a": 1}) as ws:
        (ws.path / "block-0").write_text("done")
    with Workspace.open(tmp_path / "out", fingerprint={"a": 2}) as ws:
        assert not (ws.path / "block-0").exists()
        assert json.loads((ws.path / "journal.json").read_text())["fingerprint"] == {"a": 2}


def test_resume_without_a_journal(tmp_path):
    with pytest.raises(RequestError, match="nothing to resume"):
        Workspace.open(tmp_path / "out", resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"model": "a", "options": {"sparsity": 0.6, "pair": [1, 2]}}, ["options.sparsity", "0.5"]),
        ({"model": "b", "options": {"sparsity": 0.5, "pair": [1, 2]}}, ["`model`", '"a"', '"b"']),
        ({"model": "a"}, ["`options`"]),
    ],
)
def test_another_fingerprint_names_the_key_and_both_values(tmp_path, now, words):
    first = {"model": "a", "options": {"sparsity": 0.5, "pair": (1, 2)}}
    Workspace.open(tmp_path / "out", fingerprint=first).close()
    Workspace.open(tmp_path / "out", resume=True, fingerprint=first).close()
    with pytest.raises(RequestError) as caught:
        Workspace.open(tmp_path / "out", resume=True, fingerprint=now)
    for word in words:
        assert word in caught.value.message


def test_a_second_process_is_refused(tmp_path):
    code = textwrap.dedent("""
        import sys
        from compress.checkpoints.save import Workspace
        from compress.errors import RequestError
        try:
            Workspace.open(sys.argv[1], resume=sys.argv[2] == "resume", fingerprint={})
        except RequestError as error:
            print(error.message)
            sys.exit(error.code)
    """)
    with Workspace.open(tmp_path / "out", fingerprint={}) as ws:
        (ws.path / "block-0").write_text("done")
        for how in ("resume", "anew"):
            run = subprocess.run(
                [sys.executable, "-c", code, str(tmp_path / "out"), how],
                capture_output=True,
                text=True,
            )
            assert run.returncode == 2, run.stderr
            assert "another process" in run.stdout
        assert (ws.path / "block-0").exists()
    Workspace.open(tmp_path / "out").close()  # the lock goes with its holder


def test_a_place_that_cannot_be_made_is_a_request_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequestError, match="can't be made"):
        Workspace.open(tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "x"


def test_save_and_load_give_the_model_back_or_nothing(tmp_path, monkeypatch):
    import torch

    import compress
    import tiny_models

    model = tiny_models.build("llama")
    compress.save(model, tmp_path / "out")
    again = compress.load(tmp_path / "out")
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters()))
    with pytest.raises(RequestError, match="not empty"):
        compress.save(model, tmp_path / "out")
    before = content(tmp_path / "out")

    def full(*args, **kw):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(model), "save_pretrained", full)
    with pytest.raises(RunError, match="no space"):
        compress.save(model, tmp_path / "out", overwrite=True)
    assert content(tmp_path / "out") == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(RequestError, match="nowhere"):
        compress.load(tmp_path / "nowhere")


def test_discard_leaves_no_trace(tmp_path):
    with Workspace.open(tmp_path / "out") as ws:
        fill(ws.result)
        ws.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_run_error(tmp_path, monkeypatch):
    with Workspace.open(tmp_path / "out") as ws:
        fill(ws.result)

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="no space") as caught:
            ws.commit()
    assert "--resume" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_the_words_of_safetensors_for_a_full_disk():
    from safetensors import SafetensorError

    with pytest.raises(RunError, match="no space"), writing("/there"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), writing("/there"):
        raise SafetensorError("I/O error: something else (os error 5)")


def test_a_link_in_the_result_never_leads_out(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    with Workspace.open(tmp_path / "out") as ws:
        (ws.result / "link").symlink_to(secret)
        with pytest.raises(RunError, match="symbolic link"):
            ws.commit()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_companions_are_copied_byte_for_byte_through_links(tmp_path):
    blob = tmp_path / "blob"
    blob.write_bytes(b"\x00tok\r\n")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "tokenizer.json").symlink_to(blob)
    into = tmp_path / "into"
    into.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (into / "tokenizer.json").symlink_to(victim)
    copy_companions([snapshot / "tokenizer.json"], into)
    assert not (into / "tokenizer.json").is_symlink()
    assert (into / "tokenizer.json").read_bytes() == b"\x00tok\r\n"
    assert victim.read_text() == "mine"


KILLED = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from compress.checkpoints import workspace
    from compress.checkpoints.save import Workspace

    out, step, overwrite = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "overwrite"
    seen = 0

    def dying(real):
        def call(*args, **kw):
            global seen
            if seen == step:
                os.kill(os.getpid(), 9)
            seen += 1
            return real(*args, **kw)
        return call

    ws = Workspace.open(out, overwrite=overwrite, fingerprint={"a": 1})
    (ws.result / "weights").write_text("new")
    os.rename = dying(os.rename)
    os.fsync = dying(os.fsync)
    workspace.shutil.rmtree = dying(workspace.shutil.rmtree)
    ws.commit()
    print(seen)
""")


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_any_step_of_a_commit(tmp_path, overwrite):
    word = "overwrite" if overwrite else "plain"
    steps = 100
    restored = ended = 0
    step = 0
    while step < steps:
        base = tmp_path / f"{word}-{step}"
        out = base / "out"
        if overwrite:
            out.mkdir(parents=True)
            (out / "weights").write_text("old")
        run = subprocess.run(
            [sys.executable, "-c", KILLED, str(out), str(step), word],
            capture_output=True,
            text=True,
        )
        if run.returncode == 0:
            steps = int(run.stdout)
            assert content(out) == {"weights": b"new"}
            break
        assert run.returncode == -9, run.stderr
        now = content(out) if out.exists() else None
        assert now in ({"weights": b"new"}, {"weights": b"old"} if overwrite else None) or (
            overwrite and now is None
        )
        if now is None and overwrite:  # between the two renames: the next run puts it back
            restored += 1
            with pytest.raises(RequestError, match="not empty"):
                Workspace.open(out)
            Workspace.open(out, overwrite=True, fingerprint={"a": 1}).close()
            assert content(out) == {"weights": b"old"}
        if now == {"weights": b"new"} and not (base / "out.partial" / "journal.json").exists():
            Workspace.open(out, overwrite=True).discard()  # all done but an empty workspace
            ended += 1
            step += 1
            continue
        with Workspace.open(out, overwrite=overwrite, resume=True, fingerprint={"a": 1}) as ws:
            if ws.committed:
                assert now == {"weights": b"new"}
                ws.discard()
            else:
                (ws.result / "weights").write_text("new")
                ws.commit()
        assert content(out) == {"weights": b"new"}
        assert [p.name for p in base.iterdir()] == ["out"]
        step += 1
    assert step == steps >= 5
    assert restored == int(overwrite)
    assert ended == 1


@pytest.mark.parametrize("fails", [1, 2])
def test_a_rename_that_fails_leaves_out_as_it_was(tmp_path, monkeypatch, fails):
    out = tmp_path / "out"
    out.mkdir()
    (out / "weights").write_text("old")
    real, calls = os.rename, []

    def rename(a, b):
        calls.append((a, b))
        if len(calls) == fails:
            raise OSError(errno.EIO, "bad disk")
        return real(a, b)

    with Workspace.open(out, overwrite=True) as ws:
        (ws.result / "weights").write_text("new")
        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(OSError, match="bad disk"):
            ws.commit()
        assert content(out) == {"weights": b"old"}
