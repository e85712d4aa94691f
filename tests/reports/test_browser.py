"""The pages in a real browser: what a click sorts, what the legend hides, what fits a phone.

A script is put into the page that acts as a reader would and leaves what it saw in the document;
headless Chromium prints that document (`--dump-dom`), or takes a picture of the page.
"""

import html
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from compress.reports import drawing, page
from compress.reports.compare import report
from compress.reports.receipt import Receipt
from tests.reports.test_allocation import FOUND

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(
    not BROWSER, reason="no chromium, chromium-browser or google-chrome on PATH"
)
HELPERS = """
const $ = (what, root = document) => [...root.querySelectorAll(what)];
const click = head => $("table:first-of-type th button").find(b => b.textContent === head).click();
const column = at => $("tbody tr", $("table")[0]).map(row => row.cells[at].textContent);
const press = (on, key) => on.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Runs Chromium on an HTML text; returns what a script found there, or takes a picture."""
    place = tmp_path_factory.mktemp("browser")

    def run(text, script="return null", *, size=(1000, 1000), picture=None):
        file = place / "page.html"
        act = f"{HELPERS} const found = (() => {{ {script} }})();"
        leave = 'const left = document.createElement("pre"); left.id = "found";'
        leave += "left.textContent = JSON.stringify(found); top.document.body.append(left);"
        more = f"<script>{{ {act} {leave} }}</script></body>"
        # In a frame: a window of a desktop isn't made narrower than 500 pixels, but for a picture.
        framed = html.escape(text.replace("</body>", more))
        frame = f'<iframe width="{size[0]}" height="{size[1]}" style="border:0" srcdoc="{framed}">'
        file.write_text(text if picture else f"<body>{frame}", encoding="utf-8")
        how = [f"--screenshot={picture}"] if picture else ["--dump-dom"]
        argv = [BROWSER, "--headless=new", "--disable-gpu", "--hide-scrollbars", *how]
        argv += [f"--user-data-dir={place / 'profile'}", f"--window-size={size[0]},{size[1]}"]
        argv += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        done = subprocess.run(
            [*argv, file.as_uri()], capture_output=True, text=True, encoding="utf-8", timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
        if picture:
            return picture
        seen = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
        assert seen, "the script in the page didn't end: " + done.stderr[-2000:]
        return json.loads(html.unescape(seen[1]))

    return run


@pytest.fixture(scope="module")
def page_of_runs(tmp_path_factory):
    """The page that `compress report` writes of four runs."""
    place = tmp_path_factory.mktemp("runs")
    blocks = [f"model.layers.{i}" for i in range(32)]
    shares = {"alpha": [0.5 + 0.1 * math.sin(i) for i in range(32)], "uniform": [0.5] * 32}
    runs = [("dense", 9.76, 1.24e9, 2.5e9), ("uniform-50", 13.0, 6.6e8, 1.41e9)]
    runs += [("alpha-50", 12.3, 6.6e8, 1.41e9), ("a-run-with-a-long-name", 103.4, 4.1e8, 9.2e8)]
    for name, ppl, nonzero, size in runs:
        scores = {"wiki.txt": {"value": ppl, "stderr": ppl / 100, "tokens": 99}}
        (place / name).mkdir()
        Receipt.build(
            "alpha-prune",
            seed=0,
            model={"source": "a <b> model"},
            after={"parameters": int(1.24e9), "nonzero": int(nonzero), "bytes": int(size),
                   "perplexity": scores},
            allocation={**FOUND, "blocks": blocks, "shares": shares},
        ).write(place / name)  # fmt: skip
    report([place / name for name, *_ in runs], html=place / "page.html")
    return (place / "page.html").read_text(encoding="utf-8")


COLUMNS = {
    # As they stand here is downwards or mixed: every order below is of the values, not the text.
    "size": ["2.47 GB", "900 kB", "1.41 GB", "40 B", ""],
    "weights": ["1.24 B", "66.1 M", "0.66 B", "120", ""],
    "change": ["−47 %", "×13", "same", "+33 %", "−0.4 %"],
    "score": ["103.4 ± 1.0 !", "9.76 ± 0.10", "1.2e+06", "12.31 *", "–"],
    "time": ["1:02:03", "4.2 s", "3:07", "59 s", "0:04"],
    "difference": ["−1.10 (95 %: −1.30 … −0.90)", "reference", "+0.20", "−0.05", "0.00"],
    "name": ["layers.10", "layers.9", "Layers.1", "alpha", ""],
}
UPWARDS = {
    "size": ["40 B", "900 kB", "1.41 GB", "2.47 GB", ""],
    "weights": ["120", "66.1 M", "0.66 B", "1.24 B", ""],
    "change": ["−47 %", "−0.4 %", "same", "+33 %", "×13"],
    "score": ["9.76 ± 0.10", "12.31 *", "103.4 ± 1.0 !", "1.2e+06", "–"],
    "time": ["0:04", "4.2 s", "59 s", "3:07", "1:02:03"],
    "difference": ["−1.10 (95 %: −1.30 … −0.90)", "−0.05", "0.00", "+0.20", "reference"],
    "name": ["alpha", "Layers.1", "layers.9", "layers.10", ""],
}


def test_clicks_sort_by_value_up_down_and_back(browse):
    rows = [[page.cell(text) for text in row] for row in zip(*COLUMNS.values())]
    text = page.html_page("t", [page.html_table(list(COLUMNS), rows)])
    found = browse(text, """
      const seen = {};
      $("th button").forEach((button, at) => {
        const head = button.parentElement, ways = seen[button.textContent] = [];
        for (let i = 0; i < 3; i++) {
          button.click();
          ways.push([head.getAttribute("aria-sort"), column(at)]);
        }
      });
      return seen;""")  # fmt: skip
    for name, (up, down, back) in found.items():
        assert up == ["ascending", UPWARDS[name]], name
        known = [text for text in UPWARDS[name] if text not in ("", "–", "reference")]
        unknown = UPWARDS[name][len(known) :]
        assert down == ["descending", [*reversed(known), *unknown]], name  # unknown ones stay last
        assert back == ["none", COLUMNS[name]], name


def test_a_number_beside_the_text_decides_and_equal_rows_keep_their_order(browse):
    rows = [[page.cell(name), page.cell("1.0", value)] for name, value in
            (("b", 1.04), ("a", 0.96), ("d", 1.0), ("c", 1.0))]  # fmt: skip
    text = page.html_page("t", [page.html_table(["name", "value"], rows)])
    script = """
      click("value"); const up = column(0);
      click("value"); const down = column(0);
      click("name");
      return [up, down, column(0), $("th").map(head => head.getAttribute("aria-sort"))];"""
    up, down, named, states = browse(text, script)
    assert up == ["a", "d", "c", "b"]
    assert down == ["b", "d", "c", "a"]
    assert named == ["a", "b", "c", "d"]
    assert states == ["ascending", "none"]  # one column at a time says that it is sorted


def test_the_keyboard_reaches_heads_and_plots(browse, page_of_runs):
    script = """
      const reached = $("th button, .legend button, figure > svg").every(one => {
        one.focus();
        return document.activeElement === one;
      });
      const svg = $("figure.plot > svg").at(-1), tip = $("#tip")[0], said = [tip.hidden];
      for (const key of ["Right", "Right", "Down", "Left", "Up", ""]) {
        press(svg, key ? `Arrow${key}` : "Escape");
        said.push(tip.hidden ? null : tip.textContent);
      }
      return {reached, said, titles: $("figure title").length};"""
    found = browse(page_of_runs, script)
    assert found["reached"]
    assert found["titles"] == 0  # the browser's own tips would stand on ours
    assert found["said"] == [
        True,
        "dense, block 0: 0.500",
        "dense, block 1: 0.584",
        "uniform-50, block 1: 0.584",
        "uniform-50, block 0: 0.500",
        "dense, block 0: 0.500",
        None,
    ]


def test_the_legend_hides_a_series_and_the_pointer_is_told_only_what_is_seen(browse, page_of_runs):
    script = """
      const figure = $("figure.plot").at(-1), svg = $("svg[role=img]", figure)[0];
      const button = $(".legend button", figure)[0], group = $(".series", svg)[0];
      const tip = $("#tip")[0], states = [];
      const look = () => {
        svg.scrollIntoView();
        const box = $("circle", $(".series", svg)[1])[3].getBoundingClientRect();
        const at = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 + 3};
        svg.dispatchEvent(new PointerEvent("pointermove", {...at, bubbles: true}));
        return tip.textContent;
      };
      states.push([button.getAttribute("aria-pressed"), getComputedStyle(group).display, look()]);
      button.click();
      states.push([button.getAttribute("aria-pressed"), getComputedStyle(group).display, look()]);
      const box = tip.getBoundingClientRect();
      const inside = box.left >= 0 && box.right <= innerWidth && !tip.hidden;
      svg.dispatchEvent(new PointerEvent("pointerleave"));
      const gone = tip.hidden;
      button.click();
      states.push([button.getAttribute("aria-pressed"), getComputedStyle(group).display, look()]);
      return {states, inside, gone, others: $(".series.off").length};"""
    found = browse(page_of_runs, script)
    # The runs' lines lie on each other: the first that is seen answers.
    assert found["states"] == [
        ["true", "inline", "dense, block 3: 0.514"],
        ["false", "none", "uniform-50, block 3: 0.514"],
        ["true", "inline", "dense, block 3: 0.514"],
    ]
    assert found["inside"]
    assert found["gone"]
    assert found["others"] == 0


def test_the_page_of_runs_sorts_and_fetches_nothing(browse, page_of_runs):
    script = """
      click("on disk");
      const names = column(0);
      const image = document.createElement("img");
      image.src = "https://example.org/x.png";  // the page's own policy must refuse this
      document.body.append(image);
      return {names, fetched: performance.getEntriesByType("resource").map(one => one.name),
              heads: $("h2").map(head => head.textContent), plots: $("figure.plot").length};"""
    found = browse(page_of_runs, script)
    assert found["names"] == ["a-run-with-a-long-name", "uniform-50", "alpha-50", "dense"]
    assert found["fetched"] == []
    assert found["heads"][0] == "ppl against size, speed and memory"
    assert found["plots"] == 3  # by weights, by size, and the shares
    assert "://" not in page_of_runs


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_but_tables_is_wider_than_the_screen(browse, page_of_runs, width):
    values = [[0.1 * x * y for x in range(40)] for y in range(3)]
    cells = drawing.heat(["q", "k", "v"], [str(i) for i in range(40)], values, "{:.2f}".format,
                         label="heat", caption="block")  # fmt: skip
    places = [drawing.Dot("a set with a very long name", 0.1, 0, -0.1, 0.3)]
    x = drawing.axis_of([-0.1, 0.3], "{:+.2f}".format, "difference")
    more = [cells, drawing.forest({"better": places, "worse": []}, x, label="differences")]
    text = page_of_runs.replace("<script>", "".join([*more, "<script>"]), 1)
    script = """
      const seen = one => getComputedStyle(one).display !== "none";
      const small = $("figure.lines svg text").filter(seen)
        .map(one => one.getBoundingClientRect().height);
      return {inner: innerWidth, whole: document.documentElement.scrollWidth,
              small: Math.min(...small),
              outside: $("h1, h2, p, figure, .legend, .wide").filter(one => {
                const box = one.getBoundingClientRect();
                return box.right > innerWidth + 1 || box.left < -1;
              }).map(one => one.outerHTML.slice(0, 80)),
              buttons: Math.min(...$(".legend button").map(one => one.offsetHeight))};"""
    found = browse(text, script, size=(width, 900))
    assert found["inner"] == width
    assert found["whole"] <= width
    assert found["outside"] == []
    assert found["small"] >= 10  # pixels: text that can be read
    assert found["buttons"] >= 24  # pixels: a finger hits them


@pytest.mark.parametrize("size", [(390, 844), (1200, 900)])
def test_a_picture_of_the_page_has_the_colours_of_its_lines(browse, page_of_runs, tmp_path, size):
    from PIL import Image

    picture = browse(page_of_runs, size=(size[0], 2200), picture=tmp_path / "page.png")
    with Image.open(picture) as image:
        assert image.size == (size[0], 2200)
        counts = {pixel: n for n, pixel in image.convert("RGB").getcolors(1 << 24)}
    for colour in drawing.COLOURS[:2]:  # what no other run beats, and the rest
        wanted = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
        assert counts.get(wanted, 0) > 30, colour
    assert counts[(255, 255, 255)] > 0.5 * size[0] * 2200


def test_paper_shows_what_was_folded_and_no_arrows(browse, tmp_path):
    parts = [page.folded("more", "<p>kept</p>"), page.html_table(["a"], [[page.cell("1")]])]
    text = page.html_page("t", parts)
    found = browse(text, """
      dispatchEvent(new Event("beforeprint"));
      const rules = [...document.styleSheets[0].cssRules];
      const print = rules.find(rule => rule.media?.mediaText === "print").cssText;
      return {open: $("details")[0].open, arrows: print.includes('content: ""')};""")  # fmt: skip
    assert found == {"open": True, "arrows": True}


def test_pages_are_whole_without_a_script():
    """What a reader without scripts sees: all rows, and the browser's own tips on every mark."""
    text = drawing.lines(["0", "1"], {"a": [1.0, 2.0], "b": [2.0, float("nan")]}, "{:.1f}".format)
    assert text.count("<title>") == 3
    assert Path(page.__file__).with_name("page.js").read_text(encoding="utf-8").count("fetch") == 0
