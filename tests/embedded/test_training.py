"""The training script: the same run twice, resumption, data and Muon against slow references."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
import train_tiny_llama as script
from generate import DOMAINS, document


@pytest.fixture(scope="module")
def tokenizer():
    return script.make_tokenizer(7)


@pytest.fixture
def quick(monkeypatch, tokenizer):
    monkeypatch.setattr(script, "make_tokenizer", lambda seed: tokenizer)
    monkeypatch.setattr(script, "LEAD_STEPS", 2)

    def options(out: Path, steps: int = 6) -> argparse.Namespace:
        return argparse.Namespace(
            output=str(out), seed=7, steps=steps, minutes=1e9, muon_rate=1e-2, adam_rate=3e-3,
            rows=2, answer_weight=4.0, every=1, items=6,
        )  # fmt: skip

    return options


def weights(run: script.Run) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def test_a_resumed_run_gives_the_same_weights(tmp_path, quick):
    whole = script.Run(quick(tmp_path / "whole"))
    lines = list(whole.rows())
    assert [line["step"] for line in lines] == list(range(1, 7))
    first = script.Run(quick(tmp_path / "parts"))
    rows = first.rows()
    for _ in range(3):
        next(rows)
    first.save()
    second = script.Run(quick(tmp_path / "parts"))
    assert second.step == 3
    list(second.rows())
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name


def test_a_run_stops_by_time_and_still_saves(tmp_path, quick):
    options = quick(tmp_path / "short", steps=10**6)
    options.minutes = 1e-4
    run = script.Run(options)
    list(run.rows())
    line = run.save()
    assert set(line["accuracy"]) == set(DOMAINS)
    assert (tmp_path / "short" / "model.safetensors").is_file()
    assert (tmp_path / "short" / "tokenizer.json").is_file()


def test_windows_are_the_documents_in_a_row(tokenizer):
    source = script.Source(tokenizer, 7, 4.0)
    tokens, domains, weight, number = source.batch(4)
    text = tokenizer.decode(tokens.flatten().long().tolist())
    story, arithmetic = (document(7, name, 0, "train").text for name in DOMAINS[:2])
    assert text.startswith(f"{story}</s>{arithmetic}\n\n")
    answer = document(7, "story", 0, "train").pieces[-2]
    marked = tokens.flatten()[: len(tokenizer(story)["input_ids"])].long()
    marked = marked[weight.flatten()[: len(marked)] == 4]
    assert tokenizer.decode(marked) == answer
    first = number.flatten() == 0
    assert tokenizer.decode(tokens.flatten()[first].long().tolist()) == f"{story}</s>"
    assert set(domains.flatten()[first].tolist()) == {0}


def test_domains_get_their_shares_of_tokens(tokenizer):
    source = script.Source(tokenizer, 7, 4.0)
    domains = source.batch(80)[1]
    counts = torch.bincount(domains.flatten().long(), minlength=len(DOMAINS)).double()
    wanted = torch.tensor([script.SHARES[name] for name in DOMAINS]).double()
    torch.testing.assert_close(counts / counts.sum(), wanted / wanted.sum(), atol=0.02, rtol=0)


def test_a_lead_in_holds_one_domain(tokenizer):
    source = script.Source(tokenizer, 7, 4.0)
    domains = source.batch(4, "entailment")[1]
    assert set(domains.flatten().tolist()) == {DOMAINS.index("entailment")}


def test_separated_documents_do_not_see_each_other(tokenizer):
    model = script.make_model(7, script.VOCABULARY).eval()
    batch = script.Source(tokenizer, 7, 4.0).batch(2)
    second = batch[3, 0] == 1
    changed = batch.clone()
    changed[0, 0, batch[3, 0] == 0] = 300
    inside = second[1:] & second[:-1]  # predicted from a token of the same document
    for separated, same in ((2, True), (0, False)):
        with torch.no_grad():
            each = [script.loss_of(model, b, separated)[1][:128] for b in (batch, changed)]
        assert torch.allclose(each[0][inside], each[1][inside], atol=1e-6) == same
    # What follows never matters, seen or not.
    later = batch.clone()
    later[0, 0, 60:] = 300
    with torch.no_grad():
        each = [script.loss_of(model, b, 0)[1][:59] for b in (batch, later)]
    torch.testing.assert_close(each[0], each[1])


@pytest.mark.parametrize("shape", [(12, 12), (8, 24), (24, 8)])
def test_muons_update_is_nearly_orthogonal_and_keeps_the_singular_vectors(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    for matrix, found in zip(matrices, script.orthogonal(matrices)):
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6
        assert values.max() < 1.3
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.mT @ found @ vh.mT
        assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-3


def test_muon_moves_by_the_rate_whatever_the_gradients_size():
    torch.manual_seed(0)
    start = torch.randn(10, 10)
    moved = []
    for size in (1.0, 1e-3):
        torch.manual_seed(1)
        matrix = torch.nn.Parameter(start.clone())
        matrix.grad = size * torch.randn(10, 10)
        script.Muon([matrix], lr=0.1, momentum=0.95, weight_decay=0.0).step()
        moved.append(matrix.detach() - start)
    torch.testing.assert_close(moved[0], moved[1], atol=1e-4, rtol=1e-3)
    assert torch.linalg.svdvals(moved[0]).max() < 0.13
