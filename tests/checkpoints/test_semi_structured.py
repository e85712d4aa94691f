"""2:4 on CUDA: what can be converted and what can't, and the product where there is a GPU."""

import pytest
import torch
from torch import nn

import compress
from compress.checkpoints import semi_structured as module
from compress.checkpoints.semi_structured import (
    CUTLASS,
    Converted,
    obstacle,
    require_cuda,
    to_semi_structured,
)
from compress.errors import RequestError
from compress.sparsity.masks import nm_mask
from tiny_models import build, make_batch


def weight(rows=32, columns=64, dtype=torch.bfloat16):
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return (drawn * nm_mask(drawn.abs(), 2, 4)).to(dtype)


def test_a_pruned_weight_can_be_converted_and_so_can_one_with_more_zeros():
    assert obstacle(weight()) is None
    assert obstacle(torch.zeros(16, 16, dtype=torch.float16)) is None


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (weight().float(), "float32, not float16"),
        (weight()[None], "3 dimensions"),
        (weight(64, 32).t(), "not contiguous"),
        (weight(24, 64), "multiples of 16 and 16"),
        (weight(16, 40), "multiples of 16 and 16"),
        (torch.ones(16, 16).half(), "more than 2 of some 4"),
    ],
)
def test_what_cannot_be_converted_says_why(made, words):
    assert words in obstacle(made)


def test_one_group_too_full_is_seen():
    made = weight()
    made[31, 60:63] = 1
    assert "more than 2" in obstacle(made)


def test_cutlass_wants_larger_sides():
    assert "multiples of 32 and 64" in obstacle(weight(16, 64), CUTLASS)
    assert obstacle(weight(32, 64), CUTLASS) is None


def test_a_machine_without_cuda_is_refused_in_one_line_before_reading(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match="needs a CUDA device") as caught:
        compress.load("/nowhere/at/all", semi_structured=True)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    with pytest.raises(RequestError, match="needs a CUDA device"):
        to_semi_structured(nn.Linear(4, 4))


def test_an_old_device_is_refused_with_its_capability(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(RequestError, match=r"capability 8\.0, this device has 7\.5"):
        require_cuda()


@pytest.mark.parametrize("arch", ["llama", "gpt2", "mixtral"])
def test_every_matrix_is_converted_or_left_with_a_reason(arch, monkeypatch):
    monkeypatch.setattr(module, "require_cuda", lambda: None)
    model = build(arch)
    found = to_semi_structured(model)  # on the CPU, so nothing is converted
    names = {m.name for m in compress.checkpoints.anatomy.read_anatomy(model).matrices}
    assert set(found.left) | set(found.converted) == names
    assert not found.converted
    if arch == "gpt2":
        assert set(found.left.values()) == {"not the weight of a linear layer of its own"}
    else:
        assert "not on a CUDA device" in found.left.values()


def test_the_summary_counts_by_reason():
    told = str(Converted(("a", "b"), {"c": "float32", "d": "float32", "e": "not contiguous"}))
    assert told == "2 matrices are semi-structured; 2 left: float32; 1 left: not contiguous"


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="needs a CUDA device of compute capability 8.0: torch's 2:4 form runs nowhere else",
)
def test_a_converted_model_computes_what_the_dense_one_does(tmp_path):
    model = build("llama").to(torch.bfloat16)
    for matrix in compress.checkpoints.anatomy.read_anatomy(model).matrices:
        values = model.get_submodule(matrix.module).weight.data
        values.mul_(nm_mask(values.float().abs(), 2, 4))
    model.save_pretrained(tmp_path / "sparse")
    with pytest.warns(UserWarning, match="matrices are semi-structured"):
        sparse = compress.load(tmp_path / "sparse", semi_structured=True)
    assert sparse.semi_structured.converted
    dense = compress.load(tmp_path / "sparse").to("cuda")
    batch = {key: value.to("cuda") for key, value in make_batch().items()}
    with torch.no_grad():
        one, two = sparse(**batch).logits.float(), dense(**batch).logits.float()
    assert float((one - two).abs().max()) < 0.05 * float(two.abs().max())
