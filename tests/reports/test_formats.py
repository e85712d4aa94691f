from __future__ import annotations

import pytest

from compress.reports import formats as fmt


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1_240_000_000, 660_000_000], ["1.24 B", "0.66 B"]),
        ([512], ["512"]),
        ([0], ["0"]),
        ([999_950], ["1.00 M"]),
        ([12_345, 99_960], ["12 K", "100 K"]),
        ([1_000_000_000, 4_000_000], ["1.00 B", "4.00 M"]),  # 0.00 B would read as nothing
        ([1_000_000, 0], ["1.00 M", "0.00 M"]),
        ([21.3, 21.1], ["21.3", "21.1"]),
        ([5 * 10**15], ["5000 T"]),
    ],
)
def test_counts_share_the_unit_of_the_largest(values, texts):
    assert fmt.scaled(values, fmt.COUNT_UNITS) == texts


def test_bytes_are_decimal():
    assert fmt.bytes_text(2_470_000_000) == "2.47 GB"
    assert fmt.bytes_text(999) == "999 B"
    assert fmt.bytes_text(1500) == "1.50 kB"


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (9.76, 13.02, "+33 %"),
        (100, 53, "−47 %"),
        (1000, 996, "−0.4 %"),
        (1000, 1000.1, "under 0.1 %"),
        (5, 5, "same"),
        (2, 26, "×13"),
        (1, 5e6, "×5.0e+06"),
        (0, 3, ""),
        (100, 0, "−100 %"),
        (1000, 1100, "+10 %"),
    ],
)
def test_changes(before, after, text):
    assert fmt.change(before, after) == text


@pytest.mark.parametrize(
    ("seconds", "short", "colons"),
    [
        (4.24, "4.2 s", "0:04"),
        (59.96, "1:00", "1:00"),
        (187, "3:07", "3:07"),
        (3723, "1:02:03", "1:02:03"),
    ],
)
def test_durations(seconds, short, colons):
    assert fmt.duration(seconds) == short
    assert fmt.duration(seconds, colons=True) == colons


def test_signs_and_qualities():
    assert [fmt.signed(v, 3) for v in (-0.041, 0.2, -0.0001, 0)] == [
        "−0.041", "+0.200", "0.000", "0.000"
    ]  # fmt: skip
    assert [fmt.quality(v) for v in (9.764, 123.44, 1234.4, 1.23e6)] == [
        "9.76", "123.4", "1234", "1.2e+06"
    ]  # fmt: skip


def test_paths_are_short_where_that_is_clear():
    assert fmt.short_names(["/a/wiki.txt", "c4"]) == {"/a/wiki.txt": "wiki.txt", "c4": "c4"}
    assert fmt.short_names(["/a/t.txt", "/b/t.txt"]) == {p: p for p in ("/a/t.txt", "/b/t.txt")}
    assert fmt.short_names(["runs/x/"]) == {"runs/x/": "x"}


def test_a_terminal_without_unicode_gets_ascii():
    text = "−1 ± 2 … 3 × 4 · 5 – 6 → 7"
    assert fmt.fit_encoding(text, "utf-8") == text
    assert fmt.fit_encoding(text, "ascii") == "-1 +/- 2 ... 3 x 4 - 5 - 6 -> 7"
    assert fmt.fit_encoding("ключ", "ascii") == "????"


def test_cells_are_folded_and_never_cut():
    long = "x" * 100
    shown = fmt.table(["a", "b"], [[long, "1"], ["y", "22"]], "lr", width=40, terminal=False)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 40
    assert shown.count("x") == 100
    assert lines[-1].split() == ["y", "22"]


def test_bold_is_all_that_a_terminal_adds(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = fmt.table(["a", "b"], [["c", "1"]], "lr", width=40, terminal=False)
    drawn = fmt.table(["a", "b"], [["c", "1"]], "lr", width=40, terminal=True)
    assert drawn == "\x1b[1ma   b\x1b[0m\nc   1"
    assert drawn.replace("\x1b[1m", "").replace("\x1b[0m", "") == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert fmt.table(["a", "b"], [["c", "1"]], "lr", width=40, terminal=True) == plain
