"""Train the tiny Llama that the package ships, from the corpus that `generate.py` makes.

    python calib_data/train_tiny_llama.py --output tiny-llama --minutes 40

Needs a CPU and less than an hour. Training documents are made as they are needed, so nothing is
seen twice; answers weigh more in the loss. The run ends after --steps, or when its --minutes are
over (the learning rate falls with whichever is nearer its end), and goes on from
OUTPUT.state where it was interrupted. Weights are written in bfloat16, with the tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent))

from generate import DOMAINS, Document, document  # noqa: E402

VOCABULARY = 1024
LENGTH = 128  # tokens a training window
CONTEXT = 256  # tokens the model is made for
SEED = 7


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on 2,000 documents of every domain."""
    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (document(SEED, d, n, "train").text for n in range(2000) for d in DOMAINS)
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model() -> LlamaForCausalLM:
    """Eight layers of width 112: about 1.4 million parameters, embeddings tied."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=112,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=304,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )


def encode(
    tokenizer: PreTrainedTokenizerFast, one: Document, weight: float
) -> tuple[list[int], list[float]]:
    """Token ids of a document, from </s> on, and each token's weight in the loss."""
    ids, weights = [tokenizer.eos_token_id], [1.0]
    for index, piece in enumerate(one.pieces):
        if piece:
            tokens = tokenizer(piece, add_special_tokens=False)["input_ids"]
            ids += tokens
            weights += [weight if index % 2 else 1.0] * len(tokens)
    return ids, weights


def stream(
    tokenizer: PreTrainedTokenizerFast, start: dict[str, int], weight: float
) -> Iterator[tuple[int, int, float]]:
    """Endless (token, domain, weight); the domain with the fewest tokens so far comes next.

    Args:
        start: next document's number by domain; advanced in place.
        weight: of an answer's tokens.
    """
    spent = dict.fromkeys(DOMAINS, 0)
    while True:
        domain = min(DOMAINS, key=spent.__getitem__)
        one = document(SEED, domain, start[domain], "train")
        start[domain] += 1
        ids, weights = encode(tokenizer, one, weight)
        spent[domain] += len(ids)
        number = DOMAINS.index(domain)
        yield from ((i, number, w) for i, w in zip(ids, weights))


def batches(tokens: Iterator[tuple[int, int, float]], rows: int) -> Iterator[torch.Tensor]:
    """[3, rows, LENGTH + 1] of token, domain, weight; windows overlap by one token."""
    while True:
        flat = [next(tokens) for _ in range(rows * LENGTH + 1)]
        columns = torch.tensor(flat, dtype=torch.float64).T
        yield torch.stack([columns[:, i * LENGTH : (i + 1) * LENGTH + 1] for i in range(rows)], 1)


def optimizer_of(model: LlamaForCausalLM, rate: float) -> torch.optim.Optimizer:
    """AdamW; norms don't decay."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted mean loss, and the unweighted loss of every predicted token [rows * LENGTH]."""
    ids = batch[0].long()
    logits = model(ids[:, :-1], use_cache=False).logits
    each = cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    weight = batch[2, :, 1:].flatten().float()
    return (each * weight).sum() / weight.sum(), each.detach()


def by_domain(each: torch.Tensor, batch: torch.Tensor) -> dict[str, float]:
    """Mean loss of each domain's answers, and of all its tokens."""
    domain, weight = batch[1, :, 1:].flatten(), batch[2, :, 1:].flatten()
    found = {}
    for number, name in enumerate(DOMAINS):
        own = domain == number
        if bool(own.any()):
            found[name] = round(float(each[own].mean()), 4)
        if bool((own & (weight > 1)).any()):
            found[f"{name}_answer"] = round(float(each[own & (weight > 1)].mean()), 4)
    return found


def train(options: argparse.Namespace) -> None:
    """Run, log, and save whenever --save minutes have passed and at the end."""
    out = Path(options.output)
    state_file = out.with_name(out.name + ".state")
    torch.set_num_threads(options.threads)
    tokenizer, model = make_tokenizer(), make_model()
    optimizer = optimizer_of(model, options.rate)
    step, spent, position = 0, 0.0, dict.fromkeys(DOMAINS, 0)
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent, position = state["step"], state["spent"], state["position"]
    source = batches(stream(tokenizer, position, options.answer_weight), options.rows)
    saved = begun = time.monotonic()
    print(sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    with open(options.log, "a", encoding="utf-8") as log:
        while True:
            minutes = (spent + time.monotonic() - begun) / 60
            done = max(step / options.steps, minutes / options.minutes)
            if done >= 1:
                break
            warm = min(1.0, (step + 1) / 100)
            for group in optimizer.param_groups:
                group["lr"] = options.rate * warm * min(1.0, 0.02 + 1.6 * (1 - done))
            batch = next(source)
            loss, each = loss_of(model, batch)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % options.every == 0:
                row = {
                    "step": step,
                    "tokens": step * options.rows * LENGTH,
                    "minutes": round(minutes, 2),
                    "loss": round(float(loss), 4),
                    "gradient_norm": round(float(norm), 3),
                    "rate": optimizer.param_groups[0]["lr"],
                    **by_domain(each, batch),
                }
                log.write(json.dumps(row) + "\n")
                log.flush()
            if time.monotonic() - saved > options.save * 60:
                saved = time.monotonic()
                write(model, tokenizer, out)
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "spent": spent + saved - begun,
                    "position": position,
                }
                torch.save(state, f"{state_file}.tmp")
                os.replace(f"{state_file}.tmp", state_file)
    write(model, tokenizer, out)
    state_file.unlink(missing_ok=True)


def write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Save in bfloat16, leaving the model as it is."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="tiny-llama")
    parser.add_argument("--log", default="log.jsonl")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--rows", type=int, default=16, help="windows of 128 tokens a step")
    parser.add_argument("--answer-weight", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=20, help="steps between log lines")
    parser.add_argument("--save", type=float, default=3, help="minutes between checkpoints")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
