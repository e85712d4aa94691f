"""The audit itself: it must see what it claims to see, and miss nothing on purpose left out."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from compress.checkpoints.anatomy import matrix_view, read_anatomy
from compress.checkpoints.audit import unexplained, unlisted, weight_uses
from tiny_models import build, make_batch


def test_every_kind_of_use_is_seen():
    uses = weight_uses(build("gpt2"), [make_batch()])
    assert "addmm" in uses["transformer.h.0.attn.c_attn.weight"]
    assert "embedding" in uses["transformer.wte.weight"]
    uses = weight_uses(build("mamba"), [make_batch()])
    assert "matmul" in uses["backbone.layers.0.mixer.dt_proj.weight"]
    assert "conv1d" in uses["backbone.layers.0.mixer.conv1d.weight"]
    uses = weight_uses(build("llama4"), [make_batch()])
    assert "bmm" in uses["model.layers.1.feed_forward.experts.down_proj"]
    uses = weight_uses(build("mixtral"), [make_batch()])
    assert "linear" in uses["model.layers.0.self_attn.q_proj.weight"]
    assert any("mm" in use for use in uses["model.layers.0.mlp.experts.gate_up_proj"])


def test_a_weight_that_no_forward_uses_is_not_reported():
    model = build("t5")
    uses = weight_uses(model.get_encoder(), [make_batch()])
    assert not any("EncDecAttention" in name for name in uses)


def without(anatomy, name):
    """The anatomy as it would be if it had overlooked a matrix."""
    blocks = tuple(
        replace(b, matrices=tuple(m for m in b.matrices if m.name != name)) for b in anatomy.blocks
    )
    return replace(anatomy, stacks=(blocks,))


def test_an_overlooked_matrix_is_found():
    model = build("llama")
    anatomy, uses = read_anatomy(model), weight_uses(model, [make_batch()])
    assert unlisted(anatomy, uses) == []
    name = "model.layers.2.mlp.up_proj"
    assert unlisted(without(anatomy, name), uses) == [f"{name}.weight"]


def test_what_was_neither_changed_nor_listed_is_found():
    before = build("qwen2_moe")
    after, anatomy = copy.deepcopy(before), read_anatomy(before)
    untouched = [pair for block in anatomy.blocks for pair in block.skipped]
    with torch.no_grad():
        for matrix in anatomy.matrices:
            matrix_view(after.get_parameter(matrix.parameter), matrix).mul_(0.5)
    assert unexplained(before, after, anatomy, untouched) == []

    expert = anatomy.matrix("model.layers.1.mlp.experts.3.up_proj")
    old = matrix_view(before.get_parameter(expert.parameter), expert).detach()
    with torch.no_grad():
        matrix_view(after.get_parameter(expert.parameter), expert).copy_(old)
    assert unexplained(before, after, anatomy, untouched) == [expert.name]
    assert unexplained(before, after, anatomy, [*untouched, (expert.name, "idle")]) == []
    assert unexplained(before, after, anatomy, [*untouched, (expert.name, "")]) == [expert.name]


def test_a_router_that_changed_or_went_unlisted_is_found():
    before = build("mixtral")
    after, anatomy = copy.deepcopy(before), read_anatomy(before)
    untouched = [(m.name, "left") for m in anatomy.matrices]
    untouched += [pair for block in anatomy.blocks for pair in block.skipped]
    assert unexplained(before, after, anatomy, untouched) == []
    gate = "model.layers.0.mlp.gate.weight"
    assert unexplained(before, after, anatomy, [p for p in untouched if p[0] != gate]) == [gate]
    with torch.no_grad():
        after.get_parameter(gate).add_(1)
    assert unexplained(before, after, anatomy, untouched) == [gate]
