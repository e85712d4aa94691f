"""What each layer does: against slow references on every family, and identities."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as functional

import tiny_models
from compress.checkpoints.anatomy import read_anatomy
from compress.errors import RequestError, RunError
from compress.evaluation.depth import angular_distances, measure_depth
from compress.evaluation.depth_page import inspect_depth
from compress.reports.heatmap import heatmap

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "deepseek_v3", "gpt2", "gpt_neox", "qwen2_moe"]


def layers_of(model):
    return [model.get_submodule(block.name) for block in read_anatomy(model).blocks]


def states_of(model, ids):
    """Inputs of all layers and the last one's output, [L + 1] of [B, T, D], by transformers."""
    seen = []
    hook = layers_of(model)[-1].register_forward_hook(
        lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states[:-1]
    hook.remove()
    return [*states, *seen]


def window_losses(model, ids):
    logits = model(ids, use_cache=False).logits[:, :-1]
    losses = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return losses.mean(1)


@pytest.mark.parametrize("arch", FAMILIES)
def test_measures_are_those_of_a_slow_reference(arch):
    model = tiny_models.build(arch)
    first, second = (tiny_models.make_batch(rows=2, seed=seed) for seed in (0, 1))
    ids = torch.cat([first["input_ids"], second["input_ids"]])
    found = measure_depth(model, [first, second])
    states = states_of(model, ids)
    for layer, state in zip(found.layers, states[1:]):
        assert layer.variance == pytest.approx(float(state.var(correction=0)), rel=1e-4)
    assert found.input_variance == pytest.approx(float(states[0].var(correction=0)), rel=1e-4)

    ends = torch.stack([state[:, -1] for state in states]).double()
    size = len(states)
    for i in range(size):
        for j in range(size):
            cosine = functional.cosine_similarity(ends[i], ends[j], dim=-1).clamp(-1, 1)
            wanted = float(torch.arccos(cosine).div(math.pi).mean())
            assert float(found.angular[i, j]) == pytest.approx(wanted, abs=1e-6)
    assert found.distances()[1] == pytest.approx(found.angular[1, 2:].tolist())
    assert [layer.distance for layer in found.layers] == pytest.approx(
        [float(found.angular[i, i + 1]) for i in range(size - 1)]
    )

    model.zero_grad()
    losses = window_losses(model, ids)
    losses.mean().backward()
    for layer, module in zip(found.layers, layers_of(model)):
        squares = [(p.dim(), float(p.grad.square().sum())) for p in module.parameters()]
        flat = math.sqrt(sum(square for dim, square in squares if dim >= 2))
        assert layer.gradient_2d == pytest.approx(flat, rel=1e-4)
        assert layer.gradient == pytest.approx(math.sqrt(sum(s for _, s in squares)), rel=1e-4)
        assert layer.gradient > layer.gradient_2d
    assert found.loss == pytest.approx(float(losses.detach().mean()), rel=1e-5)

    with torch.no_grad():
        for layer, module in zip(found.layers, layers_of(model)):
            is_tuple = isinstance(real_output(model, module, ids), tuple)
            module.forward = lambda x, *a, is_tuple=is_tuple, **k: (x,) if is_tuple else x
            rises = (window_losses(model, ids) - losses).double()
            del module.forward
            assert layer.loss_increase == pytest.approx(float(rises.mean()), abs=1e-5)
            assert layer.stderr == pytest.approx(float(rises.std()) / 2, abs=1e-5)


def real_output(model, module, ids):
    seen = []
    hook = module.register_forward_hook(lambda m, a, out: seen.append(out))
    model(ids)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox"])
def test_a_layer_that_adds_nothing_does_nothing(arch):
    model = tiny_models.build(arch)
    layer = read_anatomy(model).blocks[2]
    with torch.no_grad():
        for name, parameter in model.get_submodule(layer.name).named_parameters():
            if name.rpartition(".")[0].endswith(
                ("o_proj", "down_proj", "c_proj", "attention.dense", "4h_to_h")
            ):
                parameter.zero_()
    found = measure_depth(model, [tiny_models.make_batch()])
    row = found.layers[2]
    assert row.distance == 0.0
    assert row.loss_increase == 0.0
    assert row.variance == found.layers[1].variance
    assert all(r.distance > 0.01 for r in found.layers if r is not row)
    assert torch.equal(found.angular[2], found.angular[3])


def test_batching_and_padding_change_nothing():
    model = tiny_models.build("llama")
    ids = tiny_models.make_batch(rows=4)["input_ids"]
    whole = measure_depth(model, [{"input_ids": ids}])
    single = measure_depth(model, [{"input_ids": row[None]} for row in ids])
    for left in (True, False):
        padding = torch.full((4, 5), 3)
        parts = (padding, ids) if left else (ids, padding)
        mask = torch.cat([torch.full_like(p, int(p is ids)) for p in parts], dim=1)
        padded = measure_depth(
            model, [{"input_ids": torch.cat(parts, dim=1), "attention_mask": mask}]
        )
        for other in (single, padded):
            assert other.tokens == whole.tokens == 4 * 23
            torch.testing.assert_close(other.angular, whole.angular, rtol=1e-5, atol=1e-6)
            for one, two in zip(other.layers, whole.layers):
                for name in ("variance", "gradient", "loss_increase", "stderr"):
                    assert getattr(one, name) == pytest.approx(
                        getattr(two, name), rel=1e-4, abs=1e-5
                    )


def test_leaving_layers_out_costs_half_a_pass_each():
    model = tiny_models.build("llama")
    calls = [0] * 4
    for number, layer in enumerate(layers_of(model)):

        def count(*args, number=number, **kwargs):
            calls[number] += 1

        layer.input_layernorm.register_forward_hook(count)
    measure_depth(model, [tiny_models.make_batch()])
    assert calls[0] == calls[3] - 3  # layer 3 runs in the passes without 0, 1 and 2
    assert sum(calls) - 4 * calls[0] == 3 + 2 + 1


def test_the_model_is_left_as_it_was():
    model = tiny_models.build("gpt2")
    ids = tiny_models.make_batch()["input_ids"]
    with torch.no_grad():
        wanted = model(ids).logits
        measure_depth(model, [{"input_ids": ids}])
        assert torch.equal(model(ids).logits, wanted)
    assert all(parameter.grad is None for parameter in model.parameters())
    for layer in layers_of(model):
        assert "forward" not in vars(layer)
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks


def test_one_window_has_no_standard_error():
    found = measure_depth(tiny_models.build("llama"), [tiny_models.make_batch(rows=1)])
    assert all(layer.stderr is None for layer in found.layers)
    assert "stderr" not in found.as_dict()["rows"][0]


def test_angular_identities():
    x = torch.randn(7)
    for scale in (1e-30, 1.0, 3.7, 1e30):
        assert angular_distances(torch.stack([x, scale * x]))[0, 1] <= 1e-7
        assert angular_distances(torch.stack([x, -scale * x]))[0, 1] >= 1 - 1e-7
    same = angular_distances(torch.stack([x, x, -x]))
    assert same[0, 1] == 0.0
    assert same[0, 2] == 1.0
    right = (1 - torch.eye(3, dtype=torch.float64)) / 2
    torch.testing.assert_close(angular_distances(torch.eye(3)), right, rtol=0, atol=1e-12)
    assert angular_distances(torch.stack([x, torch.zeros(7)]))[0, 1] == 0.5
    random = angular_distances(torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)))
    assert random[0, 1] == pytest.approx(0.5, abs=0.02)
    third = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    assert angular_distances(third)[0, 1] == pytest.approx(1 / 3, abs=1e-7)


def test_a_broken_weight_is_told():
    model = tiny_models.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(RunError, match="not finite"):
        measure_depth(model, [tiny_models.make_batch()])


@pytest.mark.parametrize("arch", ["bert", "t5", "vit"])
def test_other_models_are_refused(arch):
    with pytest.raises(RequestError):
        measure_depth(tiny_models.build(arch), [tiny_models.make_batch()])


# the command's function


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_models.make_checkpoint("llama", tmp_path_factory.mktemp("llama") / "model")


def test_inspect_depth_shows_writes_and_reports(llama, tmp_path):
    seen = inspect_depth(llama, samples=3, seqlen=32, png=tmp_path / "depth.png", device="cpu")
    data = json.loads(json.dumps(seen.as_dict(), allow_nan=False))
    assert data["model"]["layers"] == len(data["rows"]) == 4
    assert data["data"] == {"spec": "demo", "seqlen": 32, "seed": 0}
    assert (data["windows"], data["tokens"]) == (3, 3 * 31)
    assert [row["module"] for row in data["rows"]] == [f"model.layers.{i}" for i in range(4)]
    assert [len(row) for row in data["angular_distance"]] == [4, 3, 2, 1]
    text = seen.render(80)
    assert max(map(len, text.splitlines())) <= 80
    for row in data["rows"]:
        assert f"{abs(row['loss_increase']):.3f}" in text
    assert (tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG")
    again = inspect_depth(llama, samples=3, seqlen=32, device="cpu")
    assert again.as_dict() == seen.as_dict()


def test_bad_requests(llama, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("a")
    without = tiny_models.make_checkpoint("llama", tmp_path / "mute", tokenizer=False)
    bert = tiny_models.make_checkpoint("bert", tmp_path / "bert")
    for model, options, words in (
        (llama, {"seqlen": 129}, "`--seqlen 129` is above the model's limit of 128"),
        (llama, {"data": str(tmp_path / "no.jsonl")}, "no.jsonl"),
        (llama, {"data": str(short)}, "token"),
        (llama, {"png": tmp_path / "nowhere" / "x.png"}, "there is no directory"),
        (llama, {"png": tmp_path}, "is a directory"),
        (without, {}, "no tokenizer"),
        (bert, {}, "causal language model"),
        (tmp_path / "nothing", {}, "nothing"),
    ):
        with pytest.raises(RequestError, match=words):
            inspect_depth(model, **options)


# the heat map


@pytest.mark.parametrize("columns", [1, 5, 20, 100])
@pytest.mark.parametrize("width", [40, 80])
def test_a_heat_map_fits_and_shades_by_value(columns, width):
    cells = [[i / max(columns - 1, 1) for i in range(columns)], [None] * columns]
    names = [str(i) for i in range(columns)]
    lines = heatmap(cells, ["a", "b"], names, width=width, ascii_only=True).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[2].split() == ["b"]
    marks = [" .:*#".index(c) for c in lines[1][2:] if c in ".:*#" and not c.isdigit()]
    if columns > 10:
        assert marks == sorted(marks)
        assert set(marks) == {1, 2, 3, 4}


def test_a_heat_map_shows_numbers_where_there_is_room():
    drawn = heatmap([[0.0, 1.0, float("nan")]], ["x"], ["1", "2", "3"], ascii_only=False)
    assert "░░0.00" in drawn
    assert "██1.00" in drawn
    assert "nan" not in drawn


# the door


def test_the_door_of_depth(llama):
    from click.testing import CliRunner

    from compress.cli.inspect import command

    run = CliRunner().invoke
    arguments = ["--depth", "--samples", "2", "--seqlen", "16", "--device", "cpu", "--json"]
    done = run(command, [str(llama), *arguments])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert {"variance", "gradient", "gradient_2d", "distance", "loss_increase"} <= set(rows[0])
    for wrong, words in (
        (["--data", "demo"], "`--data` needs `--depth`"),
        (["--depth", "--module", "x"], "`--module` does nothing with `--depth`"),
        (["--depth", "--csv", "x.csv"], "`--csv` does nothing with `--depth`"),
        (["--depth", "--mp-fit"], "`--mp-fit` does nothing"),
    ):
        failed = run(command, [str(llama), *wrong])
        assert isinstance(failed.exception, RequestError)
        assert words in failed.exception.message
