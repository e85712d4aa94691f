"""A calibration set: data specs, mixed by share of tokens, as batches without uncounted padding.

How documents and examples become windows stands in `windows`. A window that isn't full is padded
only to the longest of its batch, and the batch then says by `attention_mask` which positions are
tokens: no statistic counts the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from compress.data.batching import CalibrationReport, split_batches, token_digest
from compress.data.drawing import SELECTIONS, Leaks, Part, Select, Wanted, draw, windows_of
from compress.data.formats import Format, read_format
from compress.data.leakage import HeldOut
from compress.data.overlap import Items, refuse_same
from compress.data.specs import (
    DataSpec,
    Mix,
    load_documents,
    load_examples,
    parse_mix,
    parse_spec,
)
from compress.data.windows import (
    DocumentStream,
    ExampleStream,
    LongStream,
    Shape,
    Stream,
    begin_token,
)
from compress.data.writing import Writer, has_chat_template
from compress.errors import RequestError

__all__ = [
    "SELECTIONS",
    "CalibrationReport",
    "Select",
    "begin_token",
    "calibration_batches",
    "prepare_calibration",
    "split_batches",
    "token_digest",
]


def prepare_calibration(
    calib: str | Sequence[str] | Mix,
    tokenizer: Any,
    *,
    samples: int = 128,
    seqlen: int = 2048,
    seed: int = 0,
    batch_size: int = 1,
    held_out: str | Sequence[str] = (),
    registry: str | Path | None = None,
    tokens: int | None = None,
    items: Mapping[str, Sequence[str]] | None = None,
    allow_leakage: bool = False,
    doc_sampling: str = "packed",
    chat_template: bool = True,
    select: str | Select = "random",
    pool: int = 4,
    disjoint: tuple[int, int] | None = None,
    sampled: Callable[[DataSpec], Iterable[list[int]]] | None = None,
) -> tuple[list[dict[str, torch.Tensor]], CalibrationReport]:
    """Read data specs and pack them, keeping out what is evaluated on.

    Args:
        calib: data specs of one set; several are mixed by their shares of the tokens, equal ones
            unless given, with each window of one of them.
        tokenizer: of the model.
        samples, seqlen: windows and tokens in each.
        seed: of the random order.
        batch_size: windows a batch; doesn't change them.
        held_out: the data specs of `--ppl`; a calibration document or window found in their text is
            dropped and counted.
        registry: a user's registry file beside the shipped one.
        tokens: how many tokens in all, padding not counted; windows are drawn until there are so
            many, and the last is cut to meet the number. Then `samples` doesn't act.
        items: task -> texts of its items with their prompts; a window that shares a passage with
            one (`overlap`) is dropped and counted by task.
        allow_leakage: let a text be calibrated on and evaluated on.
        doc_sampling: packed, isolated or long; see `windows`.
        chat_template: write formats as conversations where the tokenizer has a chat template.
        select: random; diverse, windows with many different words; or a function that is given
            `pool` candidates for each window wanted.
        pool: see select.
        disjoint: (i, n): only every n-th window from the i-th on, so that n sets share none.
        sampled: gives the token ids of texts sampled from the model, for specs such as `self`.

    Returns:
        Batches {"input_ids": int64 [B, T]}, with "attention_mask" int64 [B, T] where rows are
        padded and "position_ids" where documents are isolated; and the report.

    Raises:
        RequestError: as load_documents and load_examples; too little text; a size out of range; a
            spec that is also evaluated on.
    """
    mix = calib if isinstance(calib, Mix) else parse_mix(calib, registry)
    held = parse_spec(held_out, registry)
    wanted = Wanted(
        tokenizer,
        samples,
        seqlen,
        seed,
        tokens,
        doc_sampling,
        chat_template,
        select,
        pool,
        disjoint,
    )
    wanted.check()
    if not allow_leakage:
        refuse_same(mix.parts, held, list(items or ()))
    texts = [text for spec in held for text in load_documents(spec, role="evaluation")]
    if allow_leakage:
        texts, items = [], None
    guard = HeldOut(texts, tokenizer)
    known = Items(items or {})
    dropped = 0
    parts = []
    for spec in mix.parts:
        stream, lost = _stream(spec, guard, wanted, sampled)
        dropped += lost
        leaks = Leaks(guard, known, tokenizer)
        parts.append(Part(spec, stream, leaks, windows_of(stream, leaks, wanted, spec)))
    return draw(parts, wanted, dropped, batch_size)


def calibration_batches(
    documents: Sequence[str],
    tokenizer: Any,
    *,
    samples: int = 128,
    seqlen: int = 2048,
    seed: int = 0,
    batch_size: int = 1,
    held_out: Sequence[str] = (),
) -> tuple[list[dict[str, torch.Tensor]], CalibrationReport]:
    """Pack documents into `samples` windows of `seqlen` tokens.

    Args:
        documents: texts; blank ones are passed over.
        tokenizer: of the model.
        samples, seqlen: windows and tokens in each, both > 0 (seqlen > 1).
        seed: of the random order, >= 0.
        batch_size: windows a batch, > 0; doesn't change them.
        held_out: evaluation texts; what also occurs in them is dropped.

    Returns:
        Batches {"input_ids": int64 [B, T]} without padding, the last one maybe smaller; the report.

    Raises:
        RequestError: too little text; a size out of range.
    """
    wanted = Wanted(tokenizer, samples, seqlen, seed)
    wanted.check()
    guard = HeldOut(held_out, tokenizer)
    kept, dropped = guard.without(documents)
    spec = DataSpec("the calibration text", "")
    stream = DocumentStream(kept, Shape(tokenizer, seqlen), seed)
    leaks = Leaks(guard, Items({}), tokenizer)
    part = Part(spec, stream, leaks, windows_of(stream, leaks, wanted, spec))
    return draw([part], wanted, dropped, batch_size)


def _stream(
    spec: DataSpec,
    guard: HeldOut,
    wanted: Wanted,
    sampled: Callable[[DataSpec], Iterable[list[int]]] | None,
) -> tuple[Stream, int]:
    """Open a spec: its stream of windows, and how many of its documents are held out."""
    shape = Shape(wanted.tokenizer, wanted.seqlen, wanted.doc_sampling == "isolated")
    form = read_format(spec.format)
    if form is not None:
        return _examples(spec, form, guard, shape, wanted)
    if spec.sampled and sampled is not None:
        return DocumentStream(iter(sampled(spec)), shape, wanted.seed), 0
    kept, dropped = guard.without(load_documents(spec, role="calibration"))
    kind = LongStream if wanted.doc_sampling == "long" else DocumentStream
    return kind(kept, shape, wanted.seed), dropped


def _examples(
    spec: DataSpec, form: Format, guard: HeldOut, shape: Shape, wanted: Wanted
) -> tuple[Stream, int]:
    examples = load_examples(spec, role="calibration")
    kept = [e for e in examples if not guard.holds(e.prompt + e.answer)]
    shots = 1 if not form.joined else form.shots
    if shots is not None and len(kept) < shots:
        raise RequestError(
            f"data spec `{spec.text}` asks for {shots} examples a prompt and has {len(kept)}",
            f"use `@icl-{max(len(kept), 1)}` or less",
        )
    if wanted.doc_sampling == "long":
        raise RequestError(
            f"`--doc-sampling long` cuts long documents, and `{spec.text}` is of examples",
            "use `--doc-sampling packed`, or the data without a format",
        )
    assert spec.entry is not None
    chat = wanted.chat_template and has_chat_template(wanted.tokenizer)
    write = Writer(wanted.tokenizer, spec.entry.separator, form.answered, chat)
    return ExampleStream(kept, shape, wanted.seed, write, shots), len(examples) - len(kept)
