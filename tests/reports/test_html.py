"""The page and the picture of a report: all tables, the shares, one file, nothing fetched."""

import copy
import html.parser

import pytest

import compress
from compress.errors import RequestError
from compress.reports.html import shares_by_block
from compress.reports.receipt import Receipt
from compress.reports.runs import read_runs
from tests.reports.test_allocation import FOUND


@pytest.fixture
def out(tmp_path):
    """Writes a receipt with an allocation, and returns its directory."""

    def make(name, allocation=FOUND, **more):
        place = tmp_path / name
        place.mkdir()
        parts = {"perplexity": {"wiki.txt": {"value": 13.0, "stderr": 0.1, "tokens": 99}}}
        receipt = Receipt.build(
            "alpha-prune",
            seed=0,
            model={"source": "a <b> model"},
            before={"parameters": 10, "nonzero": 10, "bytes": 40, **parts},
            after={"parameters": 10, "nonzero": 4, "bytes": 40, **parts},
            notes=["less & more"],
            allocation=allocation,
            **more,
        )
        receipt.write(place)
        return place

    return make


class Page(html.parser.HTMLParser):
    """What a page holds: text by tag, and every address."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.addresses = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href")]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # every tag is closed where it belongs

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def test_one_run_has_its_table_its_comparison_and_its_shares(out, tmp_path):
    compress.report(out("one"), html=tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert page.addresses == []
    assert page.texts["h1"] == ["alpha-prune of a <b> model"]
    cells = page.texts["td"]
    for text in ("−1.10 (95 %: −1.30 … −0.90)", "not distinguishable (p 0.08)", "0.700", "atp"):
        assert text in cells, text
    assert "less & more" in page.texts["p"]
    assert {"alpha", "uniform", "atp"} <= {*page.texts["button"]}  # the lines' names


def test_many_runs_stand_side_by_side(out, tmp_path):
    other = copy.deepcopy(FOUND)
    other["own"] = "uniform"
    third = out("third", {**FOUND, "blocks": ["a", "b", "c"], "shares": {"alpha": [0.1] * 3}})
    runs = [out("one"), out("two", other), third, out("none", {})]
    compress.report(runs, html=tmp_path / "r.html", png=tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    blocks, series = shares_by_block(read_runs(runs))
    assert blocks == FOUND["blocks"]
    assert series == {"one": [0.5, 0.7], "two": [0.6, 0.6]}  # others have other blocks, or none
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.texts["h1"] == ["4 runs"]
    assert "Allocations compared in two" in page.texts["h2"]


def test_nothing_to_draw_is_said_and_no_file_is_left(out, tmp_path):
    with pytest.raises(RequestError, match="no receipt here has any"):
        compress.report(out("none", {}), png=tmp_path / "r.png")
    assert not (tmp_path / "r.png").exists()
    compress.report(tmp_path / "none", html=tmp_path / "r.html")
    assert "Sparsity by block" not in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written_is_named(out, tmp_path):
    with pytest.raises(RequestError, match="can't be written"):
        compress.report(out("one"), html=tmp_path / "no" / "r.html")
