from __future__ import annotations

import _thread
import threading
import time
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PretrainedConfig
from walk_methods import (
    Halver,
    NormScaler,
    Watcher,
    leaves,
    plain_run,
    same_tensors,
    stored,
)

from compress.checkpoints import edits
from compress.checkpoints.anatomy import matrix_view
from compress.checkpoints.save import save
from compress.checkpoints.source import open_source
from compress.checkpoints.walk import open_writer, walk
from compress.errors import RequestError, RunError
from tiny_models import ARCHITECTURES, BLOCKS, build, make_batch, make_checkpoint


def right_padded(rows: int = 3, length: int = 20, seed: int = 5) -> dict:
    batch = make_batch(rows, length, seed=seed)
    mask = torch.ones_like(batch["input_ids"])
    for row in range(1, rows):
        mask[row, -2 * row :] = 0
    tokens = batch["input_ids"].where(mask.bool(), torch.tensor(3))
    return {"input_ids": tokens, "attention_mask": mask}


def three_batches() -> list[dict]:
    return [make_batch(2, 24), make_batch(3, 20, seed=1, padded=True), right_padded()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_blocks_get_what_the_model_gives_them_and_are_written_as_they_were(arch, dtype, tmp_path):
    source = open_source(make_checkpoint(arch, tmp_path / "in", dtype=dtype, max_shard_size="40KB"))
    writer = open_writer(tmp_path / "parts", source, max_shard_size="40KB")
    batches, blocks, outputs = three_batches(), {}, {}
    report = walk(
        source,
        batches,
        Watcher(),
        writer,
        on_block=lambda block, stream, batch, out: blocks.setdefault(block.name, []).append(out),
        on_output=lambda stream, batch, out: outputs.__setitem__(batch, out.logits),
    )
    want_blocks, want = plain_run(source.load(), batches, list(blocks))
    assert len(blocks) == BLOCKS
    for name, got in blocks.items():
        for one, other in zip(got, want_blocks[name], strict=True):
            pairs = list(zip(leaves(one), leaves(other), strict=True))
            assert pairs
            assert all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(outputs[i], out.logits) for i, out in enumerate(want))
    assert report.passes == 2
    writer.join(tmp_path / "out")
    assert same_tensors(stored(tmp_path / "out"), stored(tmp_path / "in"))


TWO_STACKS = {
    "t5": (
        "T5ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4},
    ),
    "bart": (
        "BartForConditionalGeneration",
        {
            "d_model": 32,
            "encoder_layers": 3,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 40,
            "max_position_embeddings": 64,
        },
    ),
}
# Further families: two stacks, alibi, latent attention, parallel blocks, one block called thrice,
# stacks that run in turns, shared keys and values, state spaces.
_BASE = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_LLAMA_LIKE = {**_BASE, "num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
FURTHER = {
    "bloom": (
        "BloomForCausalLM",
        {"vocab_size": 128, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    ),
    "falcon": ("FalconForCausalLM", _BASE),
    "gemma3_text": ("Gemma3ForCausalLM", {**_LLAMA_LIKE, "sliding_window": 8}),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        {
            **_BASE,
            **_EXPERTS,
            "intermediate_size": 48,
            "n_routed_experts": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "qk_nope_head_dim": 8,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "granitemoe": (
        "GraniteMoeForCausalLM",
        {**_LLAMA_LIKE, "head_dim": None, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "albert": (
        "AlbertForMaskedLM",
        {**_BASE, "embedding_size": 16, "intermediate_size": 48},
    ),
    "xlm": ("XLMWithLMHeadModel", {"vocab_size": 128, "emb_dim": 32, "n_layers": 3, "n_heads": 4}),
    "mamba": (
        "MambaForCausalLM",
        {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
    ),
}


def save_family(model_type: str, head: str, options: dict, directory: Path) -> Path:
    config: PretrainedConfig = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=128,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        **{k: v for k, v in options.items() if k != "vocab_size" and v is not None},
    )
    torch.manual_seed(0)
    getattr(transformers, head)(config).eval().save_pretrained(directory, max_shard_size="40KB")
    return directory


@pytest.mark.parametrize("model_type", [*TWO_STACKS, *FURTHER])
def test_further_families(model_type, tmp_path):
    head, options = {**TWO_STACKS, **FURTHER}[model_type]
    source = open_source(save_family(model_type, head, options, tmp_path / "in"))
    batches = [make_batch(2, 24), right_padded()]
    if model_type in TWO_STACKS:
        for batch in batches:
            batch["decoder_input_ids"] = batch["input_ids"][:, :13]
    writer, outputs, watcher = open_writer(tmp_path / "parts", source), {}, Watcher()
    walk(
        source,
        batches,
        watcher,
        writer,
        on_output=lambda stream, batch, out: outputs.__setitem__(batch, out[0]),
    )
    _, want = plain_run(source.load(), batches, [])
    assert all(torch.equal(outputs[i], out[0]) for i, out in enumerate(want))
    writer.join(tmp_path / "out")
    assert same_tensors(stored(tmp_path / "out"), stored(tmp_path / "in"))
    assert_padding_never_counts(source, batches[1])


def single_rows(batch: dict) -> list[dict]:
    """Each row alone, its padding cut off."""
    rows = []
    for row, mask in enumerate(batch["attention_mask"].bool()):
        rest = {k: v[row : row + 1] for k, v in batch.items() if k.startswith("decoder")}
        rows.append({"input_ids": batch["input_ids"][row : row + 1, mask], **rest})
    return rows


def assert_padding_never_counts(source, padded: dict) -> None:
    together, alone = Watcher(), Watcher()
    walk(source, [padded], together)
    walk(source, single_rows(padded), alone)
    assert together.inputs.keys() == alone.inputs.keys()
    for name in alone.inputs:
        rows = sum(len(next(iter(i.values()))) for i in alone.inputs[name])
        assert sum(len(next(iter(i.values()))) for i in together.inputs[name]) == rows
        torch.testing.assert_close(together.gram(name), alone.gram(name), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2", "phi", "qwen2_moe", "mixtral", "opt"])
def test_left_padding_never_reaches_statistics(arch, tmp_path):
    source = open_source(make_checkpoint(arch, tmp_path))
    assert_padding_never_counts(source, make_batch(3, 20, seed=1, padded=True))


def test_the_mask_is_handed_out_only_where_something_is_padded(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path))
    padded, watcher = make_batch(3, 20, padded=True), Watcher()
    full = {**make_batch(2, 20), "attention_mask": torch.ones(2, 20, dtype=torch.long)}
    walk(source, [full, padded], watcher)
    half = len(watcher.keeps) // (2 * BLOCKS)
    assert all(keep is None for keep in watcher.keeps[:half])
    assert all(
        torch.equal(k, padded["attention_mask"].bool()) for k in watcher.keeps[half : 2 * half]
    )


def test_matrices_that_read_one_tensor_get_one_object(tmp_path):
    for arch, groups in {
        "llama": [("q", "k", "v"), ("gate", "up")],
        "phi": [("q", "k", "v", "fc1")],  # attention and MLP in parallel
        "mixtral": [("q", "k", "v")],
    }.items():
        source = open_source(make_checkpoint(arch, tmp_path / arch))
        for batch in (make_batch(2, 24), make_batch(3, 20, padded=True)):
            watcher = Watcher()
            walk(source, [batch], watcher)
            for group in groups:
                seen = {
                    id(inputs[0]["pruned"])
                    for name, inputs in watcher.inputs.items()
                    if watcher.matrices[name].role in group
                    and watcher.matrices[name].expert is None
                    and ".layers.1." in name
                }
                assert len(seen) == 1, (arch, group)


@pytest.mark.parametrize("arch", ["mixtral", "qwen2_moe"])
def test_experts_see_exactly_the_rows_routed_to_them(arch, tmp_path):
    """Against each expert computed slowly: its rows must give the layer's own output."""
    source = open_source(make_checkpoint(arch, tmp_path))
    watcher, batch = Watcher(), make_batch(3, 20, padded=True)
    walk(source, [batch], watcher)
    model = source.load()
    experts = next(n for n, _ in model.named_modules() if n.endswith("layers.0.mlp.experts"))
    calls = []
    model.get_submodule(experts).register_forward_pre_hook(lambda m, args: calls.append(args))
    with torch.no_grad():
        model(**batch)
    hidden, chosen = calls[0][0], calls[0][1]
    kept = batch["attention_mask"].bool().flatten()
    down = model.get_parameter(f"{experts}.down_proj")
    parameter = model.get_parameter(f"{experts}.gate_up_proj")
    for expert in range(down.shape[0]):
        rows = hidden[(chosen == expert).any(-1) & kept]
        names = [f"{experts}.{expert}.{part}" for part in ("gate_proj", "up_proj", "down_proj")]
        if not len(rows):
            assert not any(name in watcher.inputs for name in names)
            continue
        gate, up, into = (watcher.inputs[name][0]["pruned"] for name in names)
        assert gate is up
        assert torch.equal(gate.sort(0).values, rows.sort(0).values)
        w_gate, w_up = (matrix_view(parameter, watcher.matrices[name]) for name in names[:2])
        with torch.no_grad():
            want = torch.nn.functional.silu(gate @ w_gate.T) * (gate @ w_up.T)
        torch.testing.assert_close(into, want)


def slow_walk(source, batches, roles) -> dict[str, torch.Tensor]:
    """NormScaler on a whole model: hooks on each matrix, a full forward for every stage."""
    model = source.load()
    with torch.no_grad():
        for layer in range(BLOCKS):
            for stage in roles:
                linears = {
                    n: m
                    for n, m in model.named_modules()
                    if f".layers.{layer}." in n and n.rpartition(".")[2] in stage
                }
                seen: dict[str, list] = {n: [] for n in linears}
                handles = [
                    m.register_forward_pre_hook(lambda _, a, into=seen[n]: into.append(a[0]))
                    for n, m in linears.items()
                ]
                for batch in batches:
                    model(**batch)
                for handle in handles:
                    handle.remove()
                for name, module in linears.items():
                    rows = torch.cat([x.flatten(0, -2) for x in seen[name]])
                    norm = rows.float().norm(dim=1).mean().clamp_min(0.1)
                    module.weight.div_(norm)
    return dict(model.state_dict())


@pytest.mark.parametrize(
    ("roles", "parts", "passes"),
    [
        (
            [("q", "k", "v", "o", "gate", "up", "down")],
            [("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")],
            2,
        ),
        (
            [("q", "k", "v"), ("o",), ("gate", "up"), ("down",)],
            [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)],
            5,
        ),
    ],
    ids=["at once", "true-sequential"],
)
def test_edits_reach_later_blocks_and_later_stages(roles, parts, passes, tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path / "in"))
    batches, writer = [make_batch(2, 16), make_batch(2, 16, seed=1)], None
    writer = open_writer(tmp_path / "parts", source)
    report = walk(source, batches, NormScaler(roles), writer)
    writer.join(tmp_path / "out")
    want = slow_walk(source, batches, parts)
    for name, tensor in stored(tmp_path / "out").items():
        assert torch.equal(tensor, want[name]), name
    # The last block isn't passed on: nobody asked for the model's output.
    assert report.passes == passes - 1 / BLOCKS


def test_dense_propagation_takes_one_pass_and_never_sees_an_edit(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path))
    batches, dense, watcher = (
        [make_batch(2, 16), make_batch(2, 16, seed=1)],
        NormScaler(),
        Watcher(),
    )
    outputs: dict[int, torch.Tensor] = {}
    seen: dict[str, list] = {}
    original = dense.observe

    def observe(matrix, inputs, keep):
        seen.setdefault(matrix.name, []).append(inputs["pruned"])
        original(matrix, inputs, keep)

    dense.observe = observe
    report = walk(
        source,
        batches,
        dense,
        propagate="dense",
        on_output=lambda stream, batch, out: outputs.__setitem__(batch, out.logits),
    )
    assert report.passes == 1
    walk(source, batches, watcher)
    for name, rows in seen.items():
        assert all(torch.equal(a, b["pruned"]) for a, b in zip(rows, watcher.inputs[name]))
    _, want = plain_run(source.load(), batches, [])
    assert all(torch.equal(outputs[i], out.logits) for i, out in enumerate(want))


@pytest.mark.parametrize("arch", ["llama", "mixtral", "gpt2"])
def test_without_batches_no_forward_runs_and_all_is_edited(arch, tmp_path):
    source = open_source(make_checkpoint(arch, tmp_path / "in"))
    writer = open_writer(tmp_path / "parts", source)
    report = walk(source, [], Halver(), writer)
    writer.join(tmp_path / "out")
    assert report.passes == 0
    assert {reason for _, reason in report.untouched} <= {"a router", "a bias"}
    got, want = source.model_class().from_pretrained(tmp_path / "in"), stored(tmp_path / "in")
    from compress.checkpoints.anatomy import read_anatomy

    edited = {matrix.parameter for matrix in read_anatomy(got).matrices}
    for file in (tmp_path / "in").glob("*.json"):
        (tmp_path / "out" / file.name).write_bytes(file.read_bytes())
    result = source.model_class().from_pretrained(tmp_path / "out")
    for name, parameter in got.named_parameters():
        factor = 0.5 if name in edited else 1.0
        assert torch.equal(result.get_parameter(name), parameter * factor), name
    assert stored(tmp_path / "out").keys() == want.keys()


def test_every_matrix_is_edited_or_listed(tmp_path):
    class OnlyAttention(Halver):
        def stages(self, block):
            return [[m.name for m in block.matrices if m.role in ("q", "k", "v", "o")]]

        def edit(self, block, names, weights):
            for name in names:
                if "v_proj" not in name:
                    weights.view(name).mul_(0.5)

    source = open_source(make_checkpoint("qwen2_moe", tmp_path))
    for batches in ([], [make_batch()]):
        report = walk(source, batches, OnlyAttention())
        reasons = dict(report.untouched)
        first = "model.layers.0."
        assert reasons[f"{first}self_attn.v_proj"] == "left unchanged by the method"
        assert reasons[f"{first}mlp.experts.3.up_proj"] == "not chosen by the method"
        assert reasons[f"{first}mlp.gate.weight"] == "a router"
        assert f"{first}self_attn.q_proj" not in reasons
        assert len(reasons) == len(report.untouched)


def test_a_dtype_is_cast_as_from_pretrained_casts(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path / "in"))
    writer, outputs = open_writer(tmp_path / "parts", source, dtype=torch.bfloat16), {}
    walk(
        source,
        [make_batch()],
        Watcher(),
        writer,
        dtype=torch.bfloat16,
        on_output=lambda stream, batch, out: outputs.__setitem__(batch, out.logits),
    )
    model = source.load(dtype=torch.bfloat16)
    _, want = plain_run(model, [make_batch()], [])
    assert torch.equal(outputs[0], want[0].logits)
    model.save_pretrained(tmp_path / "want")
    writer.join(tmp_path / "out")
    assert same_tensors(stored(tmp_path / "out"), stored(tmp_path / "want"))


def threads() -> int:
    return sum(t.name == "suspended-forward" for t in threading.enumerate())


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["observe", "edit", "finish", "stages"])
def test_an_error_of_the_method_comes_out_as_it_is(place, error, tmp_path):
    class Failing(Halver):
        pass

    def fail(*args):
        raise error

    source, method = open_source(make_checkpoint("llama", tmp_path)), Failing()
    setattr(method, place, fail)
    with pytest.raises(type(error)) as caught:
        walk(source, [make_batch(), make_batch(seed=1)], method)
    assert caught.value is error
    assert threads() == 0


def test_an_error_in_the_models_own_code_comes_out_and_nothing_hangs(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path))
    for bad in ({"input_ids": torch.tensor([[500]])}, {"nonsense": torch.tensor([[1]])}):
        with pytest.raises((IndexError, TypeError, ValueError)):
            walk(source, [make_batch(), bad], Watcher())
        assert threads() == 0


def test_an_interrupt_while_the_models_own_code_runs_leaves_no_thread(tmp_path, monkeypatch):
    source = open_source(make_checkpoint("llama", tmp_path))
    embed, ran = torch.nn.Embedding.forward, []

    def interrupted(self, tokens):
        ran.append(threading.current_thread().name)
        if len(ran) == 2:
            _thread.interrupt_main()
            time.sleep(0.05)
        return embed(self, tokens)

    monkeypatch.setattr(torch.nn.Embedding, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        walk(source, [make_batch(seed=i) for i in range(4)], Halver())
    assert ran == ["suspended-forward"] * 2
    assert threads() == 0


def test_hundreds_of_batches_are_no_trouble(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path))
    watcher = Watcher()
    report = walk(source, [make_batch(1, 4, seed=i) for i in range(100)], watcher)
    assert report.passes == 2 - 1 / BLOCKS
    assert len(watcher.inputs["model.layers.3.mlp.down_proj"]) == 100
    assert threads() == 0


@pytest.mark.parametrize("arch", ["llama", "mixtral"])
def test_an_edited_checkpoint_is_walked_with_its_edits(arch, tmp_path):
    name = "model.layers.1.self_attn.q_proj"
    model = build(arch)
    edits.apply(model, {name: {"kind": "lowrank", "rank": 6}})
    save(model, tmp_path / "in")
    source = open_source(tmp_path / "in")
    writer, outputs, watcher = open_writer(tmp_path / "parts", source), {}, Watcher()
    batches = three_batches()
    walk(
        source,
        batches,
        watcher,
        writer,
        on_output=lambda stream, batch, out: outputs.__setitem__(batch, out.logits),
    )
    assert {f"{name}.up", f"{name}.down"} <= set(watcher.inputs)
    _, want = plain_run(source.load(), batches, [])
    assert all(torch.equal(outputs[i], out.logits) for i, out in enumerate(want))
    writer.join(tmp_path / "out")
    assert same_tensors(stored(tmp_path / "out"), stored(tmp_path / "in"))


def test_an_interrupt_between_blocks_keeps_the_finished_ones(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path / "in"))
    writer = open_writer(tmp_path / "parts", source)

    def interrupt(block, stream, batch, output):
        if block.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walk(source, [make_batch()], Halver(), writer, on_block=interrupt)
    assert writer.parts() == {f"model.layers.{i}" for i in range(3)}
    assert threads() == 0


def test_an_output_that_is_not_finite_names_its_block(tmp_path):
    class Exploding(Halver):
        def edit(self, block, names, weights):
            if block.index == 1:
                weights.view("model.layers.1.mlp.down_proj").fill_(float("inf"))

    source = open_source(make_checkpoint("llama", tmp_path))
    with pytest.raises(RunError, match=r"model\.layers\.1.*NaN or infinities in 2 of 2"):
        walk(source, [make_batch(), make_batch(seed=1)], Exploding())
    assert threads() == 0


def test_requests_that_cannot_be_served(tmp_path):
    source = open_source(make_checkpoint("llama", tmp_path))

    class Misnaming(Halver):
        def stages(self, block):
            return [[f"{block.name}.mlp.down_prj"]]

    with pytest.raises(
        RequestError, match=r"no matrix `model\.layers\.0\.mlp\.down_prj`"
    ) as caught:
        walk(source, [], Misnaming())
    assert "down_proj" in (caught.value.hint or "")
    with pytest.raises(RequestError, match="unique"):
        walk(source, [], Halver(), streams=("a", "a"))


def test_progress_counts_blocks(tmp_path):
    source, told = open_source(make_checkpoint("llama", tmp_path)), []
    walk(source, [make_batch()], Halver(), progress=lambda *args: told.append(args))
    assert [t[1] for t in told] == list(range(BLOCKS + 1))
    assert all(t[0] == "blocks" and t[2] == BLOCKS for t in told)
    assert told[2][3] == "model.layers.2"
