"""The pages: links lead somewhere, shown commands have options that exist, Python parses."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

import compress
from compress.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
ENDS = {"|", "&&", ";", ">", ">>", "2>", "&"}


def name(page):
    return str(page.relative_to(ROOT))


def command_lines():
    """(page, arguments) of every `compress …` in a block of shell lines."""
    for page in PAGES:
        for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
            if language in ("python", "json", "yaml", "toml") or "--8<--" in block:
                continue
            for line in block.replace("\\\n", " ").splitlines():
                found = re.search(r"(?:^|\$ |-m )compress ((?:[a-z-]+ .*|[a-z-]+$))", line.strip())
                if found:
                    yield name(page), found.group(1)


LINES = sorted(set(command_lines()))


def test_the_pages_show_commands():
    assert len(LINES) > 25


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_shown_command_can_be_typed(page, line):
    words = shlex.split(re.sub(r"\$\{[^}]*\}", "1", line), comments=True)
    end = next((i for i, word in enumerate(words) if word in ENDS), len(words))
    command, *given = [word for word in words[:end] if not word.startswith("$")]
    given = [word.replace("OUT…", "OUT") for word in given if word != "…"]
    assert command in COMMANDS, f"{page}: no command `{command}`"
    door = importlib.import_module(COMMANDS[command].module).command
    if "--config" in given:
        return  # reads its file at once
    try:
        door.make_context(command, given)
    except click.ClickException as error:
        pytest.fail(f"{page}: `compress {line}`: {error.format_message()}")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_pictures_and_included_files_exist(page):
    text = page.read_text(encoding="utf-8")
    plain = BLOCK.sub("", text)
    for target in LINK.findall(plain):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{name(page)} links to {target}"
        inside = page.parent == ROOT or place.is_relative_to(ROOT / "docs")
        assert inside, f"{name(page)} links to {target}, which the site doesn't hold"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in heads}
            assert anchor in slugs, f"{name(page)} links to {target}"
    for included in re.findall(r'--8<-- "([^"]+)"', text):
        assert (ROOT / "docs" / included).is_file(), f"{name(page)} includes {included}"


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/.-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    there = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
    assert there == listed


def python_blocks():
    for page in PAGES:
        for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
            if language == "python":
                yield pytest.param(block, id=f"{name(page)}: {block.splitlines()[0]}")


@pytest.mark.parametrize("block", python_blocks())
def test_python_on_the_pages_names_what_there_is(block):
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("compress"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "compress":
            assert hasattr(compress, node.attr), f"compress.{node.attr}"


def test_functions_named_in_the_table_exist():
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    found = re.findall(r"`(compress(?:\.\w+)+)", text)
    assert len(found) > 6
    for path in found:
        module, _, attribute = path.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), path
