"""4-bit weights: the rounding by its definition, a straight gradient, a stock checkpoint."""

import json
import shutil

import pytest
import torch
import transformers

import tiny_models
from compress.checkpoints.source import open_source
from compress.errors import RequestError
from compress.training.command import train_spam
from compress.training.quantising import (
    QuantisedLinear,
    Scheme,
    format_of,
    quantise_activation,
    quantise_model,
    quantise_weight,
    unquantise_model,
)


def slow_int4(values):
    """One group, by counting levels."""
    low, high = min(*values, 0.0), max(*values, 0.0)
    scale = (high - low) / 15 or 1.0
    zero = round(-low / scale)
    return [(min(max(round(v / scale) + zero, 0), 15) - zero) * scale for v in values]


def slow_fp4(values):
    kept = sorted(range(len(values)), key=lambda i: -abs(values[i]))[:2]
    rest = [0.0 if i in kept else v for i, v in enumerate(values)]
    scale = max(map(abs, rest)) / 7 or 1.0
    return [v if i in kept else round(v / scale) * scale for i, v in enumerate(values)]


@pytest.mark.parametrize(("name", "slow"), [("int4", slow_int4), ("fp4", slow_fp4)])
@pytest.mark.parametrize("shape", [(4, 8), (3, 5), (2, 20), (1, 1)])
def test_each_group_is_rounded_by_the_definition(name, slow, shape):
    draw = torch.Generator().manual_seed(shape[1])
    weight = torch.randn(shape, generator=draw, dtype=torch.float64)
    found = quantise_weight(weight, Scheme(name, group=8)).flatten()
    flat = weight.flatten().tolist()
    wanted = [v for start in range(0, len(flat), 8) for v in slow(flat[start : start + 8])]
    assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-12)


def test_int4_has_sixteen_levels_half_a_step_apart_at_most_and_keeps_zero():
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    weight[:, ::7] = 0
    found = quantise_weight(weight)
    for row, kept in zip(weight, found):
        step = (row.max() - row.min()) / 15
        assert len(kept.unique()) <= 16
        assert float((row - kept).abs().max()) <= step * 1.0001  # the zero point is rounded too
        assert float((row - kept).abs().mean()) < step * 0.3
    assert (found[:, ::7] == 0).all()


def test_grid_points_stay_where_they_are():
    """A group that spans -5 to 10 has a step of 1."""
    weight = torch.arange(-5.0, 11.0).view(1, 16)
    assert torch.equal(quantise_weight(weight, Scheme(group=16)), weight)
    once = quantise_weight(torch.randn(4, 64), Scheme(group=64))
    assert torch.allclose(quantise_weight(once, Scheme(group=64)), once, atol=1e-6)


def test_fp4_has_fifteen_levels_and_the_two_largest_exactly():
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    weight[0, 3], weight[0, 9] = 50.0, -40.0
    found = quantise_weight(weight, Scheme("fp4"))
    assert found[0, 3] == 50
    assert found[0, 9] == -40
    assert len(found[0].unique()) <= 17
    assert float((weight[0] - found[0]).abs().max()) < 0.3  # outliers cost the others nothing


@pytest.mark.parametrize("name", ["int4", "fp4"])
def test_groups_of_one_value_and_of_zeros(name):
    for value in (0.0, 3.0, -2.0):
        weight = torch.full((2, 256), value)
        assert torch.allclose(quantise_weight(weight, Scheme(name)), weight, atol=1e-6)


def test_activations_are_right_in_the_mean_and_keep_the_two_largest():
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    found = torch.stack([quantise_activation(x) for _ in range(3000)])
    top = x.abs().topk(2, -1).indices
    assert torch.equal(found[0].gather(-1, top), x.gather(-1, top))
    step = 4 / 15
    assert float((found.mean(0) - x).abs().max()) < 4 * step / (2 * 3000**0.5) * 1.5
    assert float((found[0] - x).abs().max()) <= step * 1.5
    assert float((found[0] - found[1]).abs().max()) > 0


def test_looking_draws_no_numbers():
    """Outside training activations are rounded to the nearest step."""
    model = tiny_models.build("llama").eval()
    quantise_model(model, Scheme(activations=True))
    before = torch.random.get_rng_state()
    ids = torch.arange(12)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert torch.equal(before, torch.random.get_rng_state())
    x = torch.linspace(0.0, 15.0, 64)[None]
    x[0, -2:] = torch.tensor([99.0, -99.0])
    found = quantise_activation(x, random=False)
    step = float(x[0, 61]) / 15
    assert torch.allclose(found[0, :62], (x[0, :62] / step).round() * step, atol=1e-4)
    assert torch.equal(found[0, 62:], x[0, 62:])


@pytest.mark.parametrize("name", ["int4", "fp4"])
def test_no_token_sees_another_through_its_scale(name):
    x = torch.randn(1, 4, 80)  # a whole group and a part of one
    other = x.clone()
    other[:, 2:] *= 100
    torch.manual_seed(0)
    one = quantise_activation(x, Scheme(name, activations=True))
    torch.manual_seed(0)
    two = quantise_activation(other, Scheme(name, activations=True))
    assert torch.equal(one[:, :2], two[:, :2])


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("scheme", [Scheme(group=32), Scheme("fp4"), Scheme(activations=True)])
def test_the_gradient_passes_straight_through(arch, scheme):
    """d/dW of <y, c> is c x^T with the x that was used; d/dx is W_rounded^T c."""
    model = tiny_models.build(arch).train()
    quantise_model(model, scheme)
    layer = next(m for m in model.modules() if hasattr(m, "scheme"))
    across = not isinstance(layer, QuantisedLinear)
    matrix = (layer.weight.t() if across else layer.weight).detach()
    x = torch.randn(5, matrix.shape[1], requires_grad=True)
    c = torch.randn(5, matrix.shape[0])
    torch.manual_seed(0)
    (layer(x) * c).sum().backward()
    torch.manual_seed(0)
    used = quantise_activation(x.detach(), scheme) if scheme.activations else x.detach()
    rounded = quantise_weight(matrix, scheme)
    weight_grad = c.t() @ used
    assert torch.allclose(layer.weight.grad, weight_grad.t() if across else weight_grad, atol=1e-5)
    assert torch.allclose(x.grad, c @ rounded, atol=1e-5)
    assert not torch.equal(rounded, matrix)


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gpt2", "gpt_neox", "mixtral", "phi3"])
def test_the_blocks_linear_layers_and_no_others(arch):
    model = tiny_models.build(arch)
    keys = set(model.state_dict())
    done = quantise_model(model, Scheme())
    assert set(model.state_dict()) == keys
    names = {n for n, m in model.named_modules() if hasattr(m, "scheme")}
    assert names == set(done.modules)
    assert not any(word in n for n in names for word in ("embed", "lm_head", "norm", "router"))
    blocks = {n for n, m in model.named_modules()
              if type(m).__name__ in ("Linear", "Conv1D") and "layers" in n}  # fmt: skip
    assert not {n for n in blocks if n.endswith("_proj")}
    if arch == "mixtral":
        assert any("experts" in name for name in done.left)
        assert len(names) == 4 * model.config.num_hidden_layers
    else:
        assert not done.left
    before = model.state_dict()
    unquantise_model(model, rounded=False)
    assert not any(hasattr(m, "scheme") for m in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_it_computes_what_a_stock_model_with_rounded_weights_computes():
    model = tiny_models.build("llama").eval()
    ids = torch.arange(12)[None]
    plain = model(ids).logits
    quantise_model(model, Scheme())
    quantised = model(ids).logits
    unquantise_model(model, rounded=True)
    assert torch.allclose(model(ids).logits, quantised, atol=1e-6)
    assert not torch.allclose(plain, quantised, atol=1e-4)


def test_a_model_without_linear_layers_is_refused():
    model = tiny_models.build("llama")
    quantise_model(model, Scheme())
    with pytest.raises(RequestError, match="no linear layer"):
        quantise_model(model, Scheme())


def test_four_is_int4():
    assert [format_of(text) for text in ("4", "int4", "fp4")] == ["int4", "int4", "fp4"]


# In a run


@pytest.mark.parametrize("optimizer", ["adamw", "spam", "stable-spam"])
@pytest.mark.parametrize("stored", ["rounded", "master"])
def test_the_saved_checkpoint_is_stock(optimizer, stored, config, options, tmp_path):
    place = tmp_path / "out"
    own = {**options, "optimizer": optimizer, "quantise_group": 32}
    train_spam(config, place, quantise="4", quantise_save=stored, **own)
    entry = json.loads((place / "receipt.json").read_text())["training"]["quantise"]
    assert entry == {
        "bits": 4, "format": "int4", "group": 32, "activations": False, "modules": 14, "left": [],
        "stored": stored,
    }  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(place)
    assert not hasattr(model.config, "quantization_config")
    weight = model.model.layers[0].mlp.up_proj.weight
    levels = max(len(group.unique()) for group in weight.detach().view(-1, 32))
    assert (levels <= 16) == (stored == "rounded")


def test_the_loss_is_that_of_the_rounded_model(config, options, text, tmp_path):
    """Validated in memory, and loaded from OUT, it is the same model."""
    valid = str(text.with_name("valid.txt"))
    train_spam(config, tmp_path / "out", quantise="4", valid=valid, **options)
    entry = json.loads((tmp_path / "out" / "receipt.json").read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    from compress.data.specs import parse_spec
    from compress.training.data import PackedRows, encode_documents, write_store
    from compress.training.losses import mean_loss
    from compress.training.objectives import NextTokenCollator

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    store = write_store(
        encode_documents(parse_spec((valid,)), tokenizer, role="evaluation"),
        tmp_path / "valid", vocabulary=128,
    )  # fmt: skip
    found = mean_loss(
        model, PackedRows(store, 24), NextTokenCollator(tokenizer),
        device=torch.device("cpu"), batch_size=8,
    )  # fmt: skip
    assert found.value == pytest.approx(entry["training"]["valid"]["valid"]["value"], rel=1e-5)


def test_fine_tuning_in_four_bits(questions, options, tmp_path):
    source = tiny_models.make_checkpoint("gpt2", tmp_path / "source")
    own = {**options, "data": str(questions), "seqlen": 60, "steps": 2}
    train_spam(
        source, tmp_path / "out", sft="q:a", quantise="fp4", quantise_activations=True, **own
    )
    assert open_source(tmp_path / "out").dtype == torch.float32
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_random_rounding_resumes_to_the_last_bit(config, options, tmp_path, monkeypatch):
    from compress.training import finishing

    own = {**options, "quantise": "4", "quantise_activations": True, "quantise_save": "master"}
    train_spam(config, tmp_path / "whole", **own)
    with monkeypatch.context() as patch:
        patch.setattr(finishing, "save_model", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_spam(config, tmp_path / "half", **own)
    shutil.rmtree(tmp_path / "half.partial" / "checkpoints" / "checkpoint-6")
    train_spam(config, tmp_path / "half", resume=True, **own)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "half")]
    assert files[0] == files[1]
