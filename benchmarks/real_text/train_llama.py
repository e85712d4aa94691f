"""Train a small Llama on real text, for the benchmarks that need trained weights.

    python benchmarks/real_text/train_llama.py --size small --output DIR --minutes 20

The text is OpenWebText (`openwebtext_docs.jsonl` in the folder that COMPRESS_ASSETS names); its
last tenth is held out and only scored. The tokenizer is a byte-level BPE trained on the rest.
Weights are not committed; the log is. The optimizer is AdamW.

The run ends after --minutes, the learning rate falling to a tenth over that time, so two runs on
machines of different speed differ; the log says how many tokens were seen.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


class Size(NamedTuple):
    """A shape of Llama."""

    vocabulary: int
    hidden: int
    mlp: int
    layers: int
    heads: int


SIZES = {
    "small": Size(2048, 192, 512, 8, 6),  # 3.9M parameters
    "30m": Size(4096, 512, 1376, 8, 8),  # 29.6M
}
LENGTH = 512
WARM_UP = 0.05  # of the time


def documents(folder: Path) -> tuple[list[str], list[str]]:
    """Training and held-out documents: the last tenth is held out."""
    with open(folder / "data" / "openwebtext_docs.jsonl", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    cut = len(texts) * 9 // 10
    return texts[:cut], texts[cut:]


def make_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `texts`."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=LENGTH,
    )


def tokens_of(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """All documents in one row, an end token after each."""
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return torch.tensor([t for row in rows for t in [*row, tokenizer.eos_token_id]])


def make_model(size: Size, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama in float32, embedding and head tied."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=size.mlp,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
    )


def held_out_loss(model: LlamaForCausalLM, stream: torch.Tensor, windows: int = 24) -> float:
    """Mean loss a token over the first windows of the held-out text, in nats."""
    rows = stream[: windows * LENGTH].view(-1, LENGTH)
    model.eval()
    with torch.no_grad():
        losses = [model(row[None], labels=row[None]).loss.item() for row in rows]
    model.train()
    return sum(losses) / len(losses)


def rate(share: float) -> float:
    """Learning rate factor: warm-up, then a straight line to a tenth."""
    return min(share / WARM_UP, 1.0) if share < WARM_UP else 1 - 0.9 * (share - WARM_UP)


def train(args: argparse.Namespace) -> None:
    """Train, log, save."""
    size = SIZES[args.size]
    seen, held = documents(Path(os.environ["COMPRESS_ASSETS"]))
    tokenizer = make_tokenizer(seen, size.vocabulary)
    stream, held_stream = tokens_of(seen, tokenizer), tokens_of(held, tokenizer)
    model = make_model(size, args.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    start, share, step, count = time.monotonic(), 0.0, 0, 0
    draw = torch.Generator().manual_seed(args.seed)
    while share < 1:
        at = torch.randint(0, len(stream) - LENGTH, (args.rows,), generator=draw)
        rows = torch.stack([stream[i : i + LENGTH] for i in at])
        loss = model(rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = args.lr * rate(share)
        optimizer.step()
        optimizer.zero_grad()
        step, count = step + 1, count + rows.numel()
        share = (time.monotonic() - start) / (60 * args.minutes)
        if step % args.every == 0 or share >= 1:
            line = {"step": step, "tokens": count, "loss": round(loss.item(), 4),
                    "held_out": round(held_out_loss(model, held_stream), 4)}  # fmt: skip
            with open(args.output.with_suffix(".jsonl"), "a", encoding="utf-8") as log:
                print(json.dumps(line), file=log)
            model.save_pretrained(args.output)
            tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
