from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from rich.console import Console

from compress.reports.progress_bars import Bar, ProgressBars, clock, draw

SHOW, HIDE = "\x1b[?25h", "\x1b[?25l"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def lines(bars: list[Bar], now: float, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=True)
    console.print(draw(bars, now, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_screen_of_a_run():
    done = Bar("spectra", 112, started=0.0)
    done.update(112, 112, "", 9.0)
    running = Bar("prune", 16, started=10.0)
    running.update(7, 16, "model.layers.7 · 2.1 GB", 80.0)
    shown = lines([done, running], now=82.0)
    assert shown == [
        "spectra   " + "━" * 32 + " 112/112 0:00:09",
        "prune     " + "━" * 14 + " " * 18 + " 7/16    0:01:12 ETA 0:01:28",
        "          now model.layers.7 · 2.1 GB",
    ]


def test_eta_is_the_pace_since_the_bar_opened_and_counts_down():
    bar = Bar("prune", 20, started=100.0, first=10, done=10, updated=100.0)
    assert bar.remaining(130.0) is None
    bar.update(12, 20, "", 140.0)  # 2 units in 40 s: 8 left take 160 s
    assert bar.remaining(140.0) == 160.0
    assert bar.remaining(150.0) == 150.0
    assert bar.remaining(1000.0) == 0.0
    bar.update(20, 20, "", 300.0)
    assert bar.remaining(300.0) is None
    assert bar.elapsed(999.0) == 200.0


def test_no_line_is_wider_than_the_terminal():
    bar = Bar("evaluate", 1000, started=0.0)
    bar.update(500, 1000, "model.layers.7." * 20, 5.0)
    for width in (50, 60, 80, 200):
        shown = lines([bar], 10.0, width)
        assert max(map(len, shown)) <= width
        assert len(shown) == 2


def test_short_tasks_are_not_drawn():
    quick = Bar("load", 2, started=0.0)
    quick.update(2, 2, "", 0.3)
    assert lines([quick], 100.0) in ([], [""])


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (61.9, "0:01:01"), (7322, "2:02:02")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def drive(bars: ProgressBars, seconds: float) -> None:
    with bars:
        bars("prune", 0, 4, "first")
        time.sleep(seconds)
        bars("prune", 2, 4, "third")
        time.sleep(0.2)
        bars("prune", 4, 4)


def test_silent_when_piped_quiet_dumb_or_quick(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    piped, quiet, quick, dumb = io.StringIO(), Terminal(), Terminal(), Terminal()
    drive(ProgressBars(stream=piped), 0.7)
    drive(ProgressBars(quiet=True, stream=quiet), 0.7)
    drive(ProgressBars(stream=quick), 0.0)
    monkeypatch.setenv("TERM", "dumb")
    drive(ProgressBars(stream=dumb), 0.7)
    assert [s.getvalue() for s in (piped, quiet, quick, dumb)] == [""] * 4


def test_drawn_on_a_terminal_and_the_cursor_comes_back(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    drive(ProgressBars(stream=screen), 0.8)
    text = screen.getvalue()
    assert "prune" in text
    assert "4/4" in text
    assert text.rindex(SHOW) > text.rindex(HIDE)


def test_the_cursor_comes_back_after_an_exception(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    bars = ProgressBars(stream=screen)

    def job() -> None:
        with bars:
            bars("prune", 0, 4)
            time.sleep(0.8)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        job()
    text = screen.getvalue()
    assert text.rindex(SHOW) > text.rindex(HIDE)
    bars("prune", 1, 4)  # a late report of a thread draws nothing
    time.sleep(0.6)
    assert screen.getvalue() == text


def test_what_is_printed_after_the_bars_stands_below_them_and_ctrl_c_gives_the_cursor_back():
    code = """
        import sys, time
        from compress.reports.progress_bars import ProgressBars
        with ProgressBars() as bars:
            bars("spectra", 0, 2)
            time.sleep(0.8)
            bars("spectra", 2, 2)
            print("between")
            bars("prune", 0, 9)
            time.sleep(0.8)
            print("ready")
            time.sleep(60)
    """
    leader, follower = pty.openpty()
    job = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=follower, stdout=follower, stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"},
    )  # fmt: skip
    os.close(follower)
    seen, interrupted, deadline = "", False, time.monotonic() + 50
    while time.monotonic() < deadline:
        if not select.select([leader], [], [], 1)[0]:
            continue
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # Linux says EIO once the other end has closed
            break
        if not chunk:
            break
        seen += chunk.decode()
        if "ready" in seen and not interrupted:
            job.send_signal(signal.SIGINT)
            interrupted = True
    job.wait(10)
    os.close(leader)
    assert "KeyboardInterrupt" in seen
    assert seen.rindex("2/2") < seen.index("between") < seen.index("0/9")
    assert seen.rindex(SHOW) > seen.rindex(HIDE)
    assert re.search(r"spectra +━+ 2/2", seen)
