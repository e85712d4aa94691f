"""A condensed model as a checkpoint: stock where its family's config can say it, else by edits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.checkpoints import edits
from compress.checkpoints.anatomy import read_anatomy
from compress.checkpoints.configs import read_config
from compress.checkpoints.durable import writing
from compress.checkpoints.loader import REST, BlockLoader, skeleton
from compress.checkpoints.shards import ShardWriter
from compress.checkpoints.source import Source
from compress.checkpoints.workspace import Workspace, copy_companions
from compress.errors import RequestError
from compress.experts.condensing import Condensed
from compress.experts.fewer import MERGE, PRUNE, fewer_fields, fewer_tensors
from compress.experts.journal import LayerJournal
from compress.experts.layers import ExpertLayer, gated_parts
from compress.experts.merge import GatedMLP, widened
from compress.experts.one_expert import one_expert_tensors
from compress.experts.stock import fields_of, form_of, one_expert_of
from compress.progress import Progress

_ALIGNED = 16  # columns: the grouped product of experts wants rows of whole 16 bytes
PADDING_SHARE = 0.02  # of the model's bytes: above it an edit is written instead


@dataclass(frozen=True)
class Layout:
    """How the condensed layers are stored.

    Attributes:
        kind: "stock" or "edits".
        fields: fields of config.json that change; of its text part where it has one.
        width: stock: the width of every dense layer.
        padding: stock: bytes of zeros that the common width costs.
        why: edits: why it isn't stock.
        one_expert: stock: each layer keeps a router and one expert of this width.
        shared: of that form: the width of the shared MLP.
    """

    kind: str
    fields: dict[str, Any]
    width: int = 0
    padding: int = 0
    why: str = ""
    one_expert: bool = False
    shared: int = 0


def plan_layout(
    source: Source,
    layers: Sequence[ExpertLayer],
    condensed: Mapping[str, Mapping[str, Any]],
    *,
    stock_only: bool = False,
    dtype: torch.dtype | None = None,
) -> Layout:
    """Decide how a model with some layers condensed is stored.

    Args:
        source: the checkpoint.
        layers: all its expert layers.
        condensed: layer name -> its plan row, of those that are condensed.
        stock_only: refuse what only an edit can say.
        dtype: of the result; None keeps the source's.

    Raises:
        RequestError: `stock_only`, and the family can't say it; the reason is named.
    """
    config = source.config.get_text_config()
    rows = list(condensed.values())
    if rows[0]["kind"] in (PRUNE, MERGE):
        return Layout("stock", fewer_fields(config, layers[0], len(rows[0]["experts"])))
    form = form_of(config)
    chosen = {layer.index for layer in layers if layer.name in condensed}
    total = config.num_hidden_layers
    dense = {i for i in range(total) if i not in {layer.index for layer in layers}}
    why = ""
    if form is None:
        why = f"the config of `{config.model_type}` can't say that a layer is dense"
    elif any(row["kind"] != "dense_mlp" for row in rows):
        why = "a kept shared gate has no place in the family's dense layer"
    else:
        own = getattr(config, form.width, 0) if dense else 0
        width = max([own, *(row["width"] for row in rows)])
        fields = fields_of(config, form, dense | chosen, width)
        size = (dtype or source.dtype).itemsize
        pads = [width - row["width"] for row in rows] + [width - own] * len(dense)
        padding = 3 * size * layers[0].hidden * sum(pads)
        if fields is None:
            why = f"the config of `{config.model_type}` can say it of {form.where} alone"
        elif padding > PADDING_SHARE * source.bytes_on_disk() and not stock_only:
            why = f"one width for all dense layers would cost {padding:,} bytes of zeros"
        else:
            return Layout("stock", fields, width, padding)
    if len(condensed) == len(layers):
        one = _one_expert(config, layers, rows)
        if one is not None:
            return one
    if stock_only:
        raise RequestError(
            f"`--stock-only`: {why}",
            "leave it out, or choose other layers (`--layers prefix:N` suits families whose dense "
            "layers come first)",
        )
    return Layout("edits", {}, why=why)


def _one_expert(
    config: Any, layers: Sequence[ExpertLayer], rows: Sequence[Mapping[str, Any]]
) -> Layout | None:
    """Return the layout of a model whose layers keep one expert each; None where that can't be."""
    form = one_expert_of(config)
    if form is None:
        return None
    width, shared = max(row["width"] for row in rows), 0
    if form.shared == "same":
        width = -(-width // 2)
    elif form.shared:
        shared = layers[0].shared_width
        width -= 0 if rows[0]["kind"] == "gated_dense_mlp" else shared
    width = -(-max(width, 1) // _ALIGNED) * _ALIGNED
    shared = width if form.shared == "same" else shared
    fields = {**dict.fromkeys(form.fields, 1), form.width: width}
    return Layout("stock", fields, width, one_expert=True, shared=shared)


def write_checkpoint(
    source: Source,
    layers: Sequence[ExpertLayer],
    condensed: Sequence[ExpertLayer],
    journal: LayerJournal,
    layout: Layout,
    workspace: Workspace,
    *,
    dtype: torch.dtype | None,
    progress: Progress,
) -> None:
    """Write the checkpoint into the workspace's result, a block in memory at a time.

    Args:
        source: what is condensed.
        layers: all its expert layers.
        condensed: those that are.
        journal: holds their condensed forms.
        layout: how they are stored.
        workspace: where.
        dtype: of the written weights; None keeps each tensor's own.
        progress: told of each block.
    """
    model = skeleton(source, dtype)
    blocks = read_anatomy(model).blocks
    loader = BlockLoader(source, model, blocks=[b.name for b in blocks], dtype=dtype)
    new = _target(source, condensed, journal, layout, workspace.result, loader, dtype)
    writer = ShardWriter(
        workspace.path / "parts" / layout.kind,
        new,
        new._weight_conversions,  # type: ignore[arg-type]
        keep=source if dtype is None else None,
    )
    done, by_block = writer.parts(), {layer.block: layer for layer in condensed}
    sparse = {layer.block for layer in layers}
    for number, block in enumerate(blocks):
        progress("write", number, len(blocks), block.name)
        if block.name in done:
            continue
        loader.load(block.name)
        tensors = loader.tensors(block.name)
        made = journal.read(by_block[block.name]) if block.name in by_block else None
        if made is not None and made.row["kind"] in (PRUNE, MERGE):
            tensors = fewer_tensors(tensors, made.layer, made.row)
        elif made is not None:
            tensors = _exchanged(tensors, made, layout, source)
        elif layout.width and not layout.one_expert and block.name not in sparse:
            tensors = _padded(tensors, model, block.name, layout.width)
        writer.write(block.name, tensors)
        loader.unload(block.name)
    if REST not in done:
        loader.load_rest()
        writer.write(REST, loader.tensors(REST))
    progress("write", len(blocks), len(blocks))
    writer.join(workspace.result)
    copy_companions(source.companions(), workspace.result)


def _target(
    source: Source,
    condensed: Sequence[ExpertLayer],
    journal: LayerJournal,
    layout: Layout,
    place: Path,
    loader: BlockLoader,
    dtype: torch.dtype | None,
) -> PreTrainedModel:
    """Write the result's config.json, and return the skeleton of the model that it describes."""
    config = json.loads((source.directory / "config.json").read_text(encoding="utf-8"))
    if dtype is not None and dtype != source.dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
    if layout.kind == "stock":
        nested = source.config.get_text_config() is not source.config
        part = config["text_config"] if nested else config
        part.update(layout.fields)
        _write_config(config, place)
        model = skeleton(
            replace(source, config=read_config(place, source.trust_remote_code)), dtype
        )
        model._weight_conversions = list(loader.conversions)  # type: ignore[assignment]
        return model
    model = skeleton(source, dtype)
    model._weight_conversions = list(loader.conversions)  # type: ignore[assignment]
    edits.apply(model, {layer.name: _edit(journal.row(layer)) for layer in condensed})
    config["quantization_config"] = model.config.quantization_config.to_dict()
    _write_config(config, place)
    return model


def _edit(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the edit that a plan row stands for."""
    fields = {"kind": row["kind"], "width": row["width"]}
    if row["kind"] == "gated_dense_mlp":
        fields["shared"] = row["shared"]
    return {name: value for name, value in fields.items() if value}


def _exchanged(
    tensors: Mapping[str, Tensor], made: Condensed, layout: Layout, source: Source
) -> dict[str, Tensor]:
    """Return a block's tensors with the condensed layer's in the place of its experts'."""
    if layout.one_expert:
        return one_expert_tensors(tensors, made, layout.width, layout.shared)
    name = made.layer.name
    out = {key: value for key, value in tensors.items() if not key.startswith(f"{name}.")}
    parts = ("gate_proj", "up_proj", "down_proj")
    if layout.kind == "stock":
        form = form_of(source.config.get_text_config())
        assert form is not None
        assert made.mlp is not None
        parts, mlp = form.parts, widened(made.mlp, layout.width)
    else:
        mlp = made.mlp  # type: ignore[assignment]
    dtype = next(v.dtype for k, v in tensors.items() if k.startswith(f"{made.layer.experts}."))
    for prefix, weights in ((name, mlp), (f"{name}.shared_expert", made.shared)):
        if weights is not None:
            out.update(_named(prefix, weights, dtype, parts))
    if made.gate is not None:
        out[f"{name}.shared_expert_gate.weight"] = made.gate.to(dtype)
    return out


def _padded(
    tensors: dict[str, Tensor], model: PreTrainedModel, block: str, width: int
) -> dict[str, Tensor]:
    """Return a dense block's tensors with its MLP as wide as all others."""
    for name, module in model.get_submodule(block).named_children():
        try:
            parts = gated_parts(module, f"{block}.{name}")
        except RequestError:
            continue
        own = [f"{block}.{name}.{part}.weight" for part in parts]
        mlp = widened(GatedMLP(*(tensors[key] for key in own)), width)
        return {**tensors, **dict(zip(own, mlp, strict=True))}
    return tensors


def _named(
    prefix: str, mlp: GatedMLP, dtype: torch.dtype, parts: tuple[str, str, str]
) -> dict[str, Tensor]:
    return {f"{prefix}.{p}.weight": v.to(dtype) for p, v in zip(parts, mlp, strict=True)}


def _write_config(config: Mapping[str, Any], place: Path) -> None:
    with writing(place):
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (place / "config.json").write_text(text, encoding="utf-8")
