"""The functions of the package: in notebooks, and for models in memory."""

import dataclasses
import html.parser
import inspect
import typing

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import compress
import tiny_models
from compress.data.registry import shipped
from compress.reports.notebook import Displayable, fragment
from compress.reports.tables import receipt_rows

COMMANDS = [name for name in compress._LAZY if name not in {"load", "save"}]


class Checked(html.parser.HTMLParser):
    """Collects text, and sees that tags close in order and nothing is fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.said, self.tags = [], "", set()

    def handle_starttag(self, tag, attrs):
        assert tag != "script"
        assert not {"src", "href"} & {name for name, _ in attrs}
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said += data


def checked(result):
    page = Checked()
    page.feed(result._repr_html_())
    page.close()
    assert not page.open
    return page


@pytest.fixture(scope="module")
def tiny():
    place = shipped("tiny-llama")
    model = AutoModelForCausalLM.from_pretrained(place, dtype="auto")
    return place, model, AutoTokenizer.from_pretrained(place)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_hands_back_what_a_notebook_can_show(name):
    call = getattr(compress, name)
    found = eval(call.__annotations__["return"], vars(inspect.getmodule(call)))
    kinds = typing.get_args(found) or (found,)
    for kind in kinds:
        if kind is not type(None) and kind is not typing.Any:
            assert issubclass(kind, Displayable), kind
            assert kind.render is not Displayable.render
            assert callable(kind.as_dict)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_has_a_type(name):
    parameters = inspect.signature(getattr(compress, name)).parameters.values()
    bare = [p.name for p in parameters if p.annotation is inspect.Parameter.empty]
    assert not bare


def test_a_receipt_is_a_table_and_the_terminal_is_folded(tiny, tmp_path):
    out = tmp_path / "a<b>"
    done = compress.alpha_prune(tiny[0], out, method="magnitude", sparsity=0.5)
    page = checked(done)
    assert {"table", "details", "pre"} <= page.tags
    assert f"alpha-prune of {tiny[0]}" in page.said
    assert str(out) in page.said  # what was escaped reads as it was
    for row in receipt_rows(done.receipt):
        assert row.label in page.said
        assert row.after in page.said
    assert done.render().splitlines()[0] in page.said


def test_without_a_receipt_the_plan_is_shown(tiny):
    planned = compress.alpha_prune(tiny[0], method="magnitude", sparsity=0.5, dry_run=True)
    page = checked(planned)
    assert "table" not in page.tags
    assert planned.plan.rows[0]["block"] in page.said


def test_runs_side_by_side_are_a_table(tiny, tmp_path):
    places = [tmp_path / str(share) for share in (0.3, 0.6)]
    for place, share in zip(places, (0.3, 0.6), strict=True):
        compress.alpha_prune(tiny[0], place, method="magnitude", sparsity=share)
    page = checked(compress.report(places))
    assert "table" in page.tags
    assert "0.3" in page.said
    assert "0.6" in page.said


def test_text_is_escaped():
    class Odd(Displayable):
        def render(self):
            return "<script>alert(1)</script> & more"

    assert fragment(Odd()) == (
        "<div><pre>&lt;script&gt;alert(1)&lt;/script&gt; &amp; more</pre></div>"
    )


def test_a_model_in_memory_is_pruned_as_the_one_on_disk(tiny, tmp_path):
    place, model, tokenizer = tiny
    before = {k: v.clone() for k, v in model.state_dict().items()}
    options = {"method": "magnitude", "sparsity": 0.5, "allocation": "uniform"}
    compress.alpha_prune(place, tmp_path / "out", **options)
    own = compress.alpha_prune(model, tokenizer=tokenizer, **options).model
    disk = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    for name, value in disk.state_dict().items():
        assert torch.equal(own.state_dict()[name], value), name
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_model_in_memory_is_inspected_as_the_one_on_disk(tiny):
    place, model, _ = tiny
    rows = [
        [{**dataclasses.asdict(row)} for row in compress.inspect(each, cache=False).rows]
        for each in (place, model)
    ]
    assert rows[0] == rows[1]


def test_models_in_memory_are_scored_as_those_on_disk(tiny, tmp_path):
    place, model, tokenizer = tiny
    text = tmp_path / "text.txt"
    text.write_text("the river rose again and the town was dry. " * 200, encoding="utf-8")
    options = {"ppl": str(text), "limit": 2}
    disk = compress.evaluate(place, **options).as_dict()
    own = compress.evaluate(model, against=model, tokenizer=tokenizer, **options)
    told = own.as_dict()
    assert told["models"][0]["source"] == "LlamaForCausalLM"
    assert told["against"] == "LlamaForCausalLM 2"
    assert told["models"][0]["perplexity"] == disk["models"][0]["perplexity"]
    assert "LlamaForCausalLM" in checked(own).said


def test_a_model_in_memory_is_exported(tmp_path):
    model = tiny_models.build("llama")
    done = compress.export(model, tmp_path / "out", "stock")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert str(tmp_path / "out") in checked(done).said


def test_a_model_in_memory_is_studied(tiny, tmp_path):
    _, model, tokenizer = tiny
    texts = [tmp_path / f"{name}.txt" for name in ("one", "two")]
    for text, word in zip(texts, ("river", "meadow"), strict=True):
        text.write_text(f"the {word} rose again and the town was dry. " * 300, encoding="utf-8")
    options = {
        "calib": tuple(map(str, texts)), "methods": ("wanda",), "sparsity": (0.5,), "seeds": 2,
        "samples": 4, "seqlen": 32, "ppl": ("demo",), "limit": 2, "eval_seqlen": 32,
        "controls": "none", "predictors": False, "bootstrap": 200,
    }  # fmt: skip
    done = compress.calib_study(model, tmp_path / "out", tokenizer=tokenizer, **options)
    cells = done.receipt.as_dict()["cells"]
    assert {cell["model"] for cell in cells} == {"LlamaForCausalLM"}
    assert len(cells) == 4
    checked(done)


def test_from_scratch_a_model_in_memory_is_refused(tiny, tmp_path):
    with pytest.raises(compress.errors.RequestError, match="configuration, not a model in memory"):
        compress.lowrank_svd(tiny[1], tmp_path / "out", from_scratch=True)
    assert not (tmp_path / "out").exists()
