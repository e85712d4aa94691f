"""Train the shipped tiny Llama on the corpus of generate.py; two CPU cores are enough.

    python calib_data/train_tiny_llama.py --output DIR --log log.jsonl --minutes 45

Weights and data follow from --seed; how many steps fit into --minutes depends on the machine, so
--steps alone gives the same model twice (with the same torch and number of threads). The run ends
when --steps are done or --minutes are over; the learning rate falls with whichever is nearer its
end. Every --save minutes and at the end it evaluates the tasks and writes the checkpoint, in
bfloat16, and OUTPUT.state, from which the same command goes on after an interruption.

Hidden matrices are trained by Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/), the
embedding and the norms by AdamW.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from generate import DOMAINS, Document, Item, digest, document, task_items
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.qwen2_moe.modeling_qwen2_moe import load_balancing_loss_func

VOCABULARY = 1024
LENGTH = 128  # tokens of a training window
CONTEXT = 256  # tokens the model is made for
WARM_UP = 60  # steps
# The first steps train on one domain's answers alone: beside the others' losses, which fall faster,
# the relation of two words was not found in time.
LEAD_IN, LEAD_STEPS = "entailment", 300
SEPARATORS = ("</s>", "\n\n")  # at random: calibration ends documents so, perplexity joins them so
# Shares of the training tokens. Entailment is slowest: neither of its words alone says anything.
SHARES = {"story": 1, "arithmetic": 1, "entailment": 2, "commonsense": 1}


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 1,024 tokens from 1,500 training documents of every domain."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (document(seed, d, n, "train").text for n in range(1500) for d in DOMAINS)
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model(seed: int, vocabulary: int) -> LlamaForCausalLM:
    """Eight layers of width 96, about one million parameters, embeddings tied."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=96,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=288,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
    )


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal by five Newton-Schulz steps, batched by shape.

    torch's own does one matrix at a time in bfloat16, which CPUs without such units emulate.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float, weight_decay: float):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix from its gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                updates = []
                for matrix in matrices:
                    assert matrix.grad is not None
                    state = self.state[matrix]
                    buffer = state.setdefault("momentum", torch.zeros_like(matrix))
                    buffer.lerp_(matrix.grad, 1 - group["momentum"])
                    updates.append(matrix.grad.lerp(buffer, group["momentum"]))  # Nesterov
                scale = group["lr"] * max(1.0, shape[-2] / shape[-1]) ** 0.5
                flat = orthogonal(torch.stack(updates).flatten(0, -3))  # stacked experts: one each
                for matrix, update in zip(matrices, flat.view(-1, *shape)):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """Bring the singular values of [n, rows, columns] near 1, by Muon's quintic iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def encode(
    tokenizer: PreTrainedTokenizerFast, one: Document, separator: str, weight: float
) -> tuple[list[int], list[float]]:
    """Token ids of a document with its separator, and each token's weight in the loss."""
    ids, weights = [], []
    pieces = [*one.pieces[:-1], one.pieces[-1] + separator]
    for index, piece in enumerate(
        tokenizer.backend_tokenizer.encode_batch(pieces, add_special_tokens=False)
    ):
        ids += piece.ids
        weights += [weight if index % 2 else 1.0] * len(piece.ids)
    return ids, weights


class Source:
    """Training windows; the domain furthest behind its share of the tokens comes next."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, weight: float):
        self.tokenizer, self.seed, self.weight = tokenizer, seed, weight
        self.next_document = dict.fromkeys(DOMAINS, 0)
        self.spent = dict.fromkeys(DOMAINS, 0)
        self.rest: list[tuple[int, int, float, int]] = []

    def batch(self, rows: int, only: str | None = None) -> Tensor:
        """Return [4, rows, LENGTH + 1]: token, domain, weight, number of the document."""
        need = rows * (LENGTH + 1)
        while len(self.rest) < need:
            domain = only or min(DOMAINS, key=lambda name: self.spent[name] / SHARES[name])
            one = document(self.seed, domain, self.next_document[domain], "train")
            count = sum(self.next_document.values())
            ids, weights = encode(
                self.tokenizer, one, SEPARATORS[digest(str(count)) % 2], self.weight
            )
            self.next_document[domain] += 1
            self.spent[domain] += 0 if only else len(ids)
            number = DOMAINS.index(domain)
            self.rest += [(i, number, w, count) for i, w in zip(ids, weights)]
        taken, self.rest = self.rest[:need], self.rest[need:]
        return torch.tensor(taken, dtype=torch.float64).T.reshape(4, rows, LENGTH + 1)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on from here."""
        return {"next": self.next_document, "spent": self.spent, "rest": self.rest}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.next_document, self.spent, self.rest = state["next"], state["spent"], state["rest"]


def optimizers_of(
    model: PreTrainedModel, muon_rate: float, adam_rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embedding, routers and norms (norms don't decay)."""
    apart = ("embed", "mlp.gate.", "shared_expert_gate")  # routers too
    adams = {n for n, p in model.named_parameters() if p.ndim == 2 and any(a in n for a in apart)}
    hidden = [p for n, p in model.named_parameters() if p.ndim >= 2 and n not in adams]
    embedding = [p for n, p in model.named_parameters() if n in adams]
    norms = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": embedding, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=adam_rate, betas=(0.9, 0.98))
    optimizers = [Muon(hidden, muon_rate, 0.95, 0.1), adam]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def separate(documents: Tensor) -> Tensor:
    """Bool [rows, 1, T, T]: a token sees those before it that are of its own document [rows, T]."""
    return (documents[:, :, None] == documents[:, None, :]).tril()[:, None]


def loss_of(model: PreTrainedModel, batch: Tensor, separated: int) -> tuple[Tensor, Tensor]:
    """The weighted mean loss, and the plain loss of every predicted token [rows * LENGTH].

    Args:
        separated: in so many leading rows no document sees another; else what stands before an
            entailment hides which two words belong together, and they are not learned in time.
    """
    ids = batch[0].long()
    seen = separate(batch[3, :, :-1])
    seen[separated:] = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    asked = {"output_router_logits": True} if hasattr(model.config, "num_experts") else {}
    out = model.base_model(ids[:, :-1], attention_mask=seen, use_cache=False, **asked)
    logits = model.get_output_embeddings()(out.last_hidden_state).flatten(0, 1)
    each = cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    weight = batch[2, :, 1:].flatten().float()
    loss = (each * weight).sum() / weight.sum()
    return loss + auxiliary(model, out), each.detach()


def auxiliary(model: PreTrainedModel, out: Any) -> Tensor | float:
    """What a mixture of experts adds to the loss, so that tokens spread over its experts."""
    if getattr(out, "router_logits", None) is None:
        return 0.0
    config = model.config
    spread = load_balancing_loss_func(
        out.router_logits, config.num_experts, config.num_experts_per_tok
    )
    return config.router_aux_loss_coef * spread


def by_domain(each: Tensor, batch: Tensor) -> dict[str, float]:
    """Mean loss in nats of each domain's tokens, and of its answers' tokens alone."""
    domain, weight = batch[1, :, 1:].flatten(), batch[2, :, 1:].flatten()
    found = {}
    for number, name in enumerate(DOMAINS):
        own = domain == number
        if bool(own.any()):
            found[name] = round(float(each[own].mean()), 4)
        if bool((own & (weight > 1)).any()):
            found[f"{name}_answer"] = round(float(each[own & (weight > 1)].mean()), 4)
    return found


@torch.no_grad()
def choose(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: list[Item]
) -> list[int]:
    """Index of each item's most likely choice, by the summed log-probability of its tokens."""
    chosen = []
    for one in items:
        start = len(tokenizer(one.context, add_special_tokens=False)["input_ids"])
        texts = [f"{one.context} {choice}" for choice in one.choices]
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
        scores = model(ids).logits.log_softmax(-1)[:, :-1]
        scores = scores.gather(-1, ids[:, 1:, None])[..., 0]
        totals = [scores[i, start - 1 : len(row) - 1].sum() for i, row in enumerate(rows)]
        chosen.append(int(torch.stack(totals).argmax()))
    return chosen


def accuracies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, count: int
) -> dict[str, float]:
    """Share of right choices by domain, on calibration items: the test stays untouched."""
    model.eval()
    found = {}
    for domain in DOMAINS:
        items = task_items(domain, count, "calibration")[:count]
        chosen = choose(model, tokenizer, items)
        right = sum(c == one.gold for c, one in zip(chosen, items))
        found[domain] = round(right / len(items), 4)
    model.train()
    return found


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Save in bfloat16, leaving the model as it is."""
    copy.deepcopy(model).bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)


class Run:
    """A training run: model, optimizers, data, and how far it has come."""

    def __init__(
        self,
        options: argparse.Namespace,
        make: Callable[[int, int], PreTrainedModel] = make_model,
    ):
        self.options, self.out = options, Path(options.output)
        self.state_file = self.out.with_name(f"{self.out.name}.state")
        self.tokenizer = make_tokenizer(options.seed)
        self.model = make(options.seed, VOCABULARY)
        self.optimizers = optimizers_of(self.model, options.muon_rate, options.adam_rate)
        self.source = Source(self.tokenizer, options.seed, options.answer_weight)
        self.step, self.before, self.begun = 0, 0.0, time.monotonic()
        if self.state_file.is_file():
            state = torch.load(self.state_file, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"]):
                optimizer.load_state_dict(saved)
            self.source.restore(state["source"])
            self.step, self.before = state["step"], state["minutes"]

    @property
    def minutes(self) -> float:
        """Minutes trained, those before an interruption included."""
        return self.before + (time.monotonic() - self.begun) / 60

    @property
    def done(self) -> float:
        """How much of the run is over, from 0 to 1 and above."""
        return max(self.step / self.options.steps, self.minutes / self.options.minutes)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Train to the end; yield a log line every --every steps."""
        while (done := self.done) < 1:
            share = min((self.step + 1) / WARM_UP, 1.0, 0.02 + 1.6 * (1 - done))
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * share
            lead = self.step < LEAD_STEPS
            batch = self.source.batch(self.options.rows, LEAD_IN if lead else None)
            if lead:
                batch[2] *= batch[2] > 1
            loss, each = loss_of(self.model, batch, 3 * self.options.rows // 4)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            self.step += 1
            if self.step % self.options.every == 0:
                yield {
                    "step": self.step,
                    "tokens": self.step * self.options.rows * LENGTH,
                    "minutes": round(self.minutes, 2),
                    "loss": round(float(loss.detach()), 4),
                    "gradient_norm": round(float(norm), 3),
                    "rate_share": round(share, 4),
                    **by_domain(each, batch),
                }

    def save(self) -> dict[str, Any]:
        """Write checkpoint and state; return a log line with the accuracies."""
        write(self.model, self.tokenizer, self.out)
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "source": self.source.state(),
            "step": self.step,
            "minutes": self.minutes,
        }
        torch.save(state, f"{self.state_file}.tmp")
        os.replace(f"{self.state_file}.tmp", self.state_file)
        found = accuracies(self.model, self.tokenizer, self.options.items)
        return {"step": self.step, "minutes": round(self.minutes, 2), "accuracy": found}


def main(
    make: Callable[[int, int], PreTrainedModel] = make_model, about: str = __doc__ or ""
) -> None:
    """Read the command line and train.

    Args:
        make: (seed, vocabulary) -> the model to train.
        about: what the help says.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--output", required=True, help="directory for the checkpoint")
    parser.add_argument("--log", required=True, help="JSONL file, appended to")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--muon-rate", type=float, default=1e-2)
    parser.add_argument("--adam-rate", type=float, default=3e-3)
    parser.add_argument("--rows", type=int, default=16, help="windows of 128 tokens in a step")
    parser.add_argument("--answer-weight", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=20, help="steps between log lines")
    parser.add_argument("--save", type=float, default=5, help="minutes between checkpoints")
    parser.add_argument("--items", type=int, default=40, help="of each task, when evaluated")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run, saved = Run(options, make), time.monotonic()
    with open(options.log, "a", encoding="utf-8") as log:
        for row in run.rows():
            log.write(json.dumps(row) + "\n")
            if time.monotonic() - saved > options.save * 60:
                log.write(json.dumps(run.save()) + "\n")
                saved = time.monotonic()
            log.flush()
        log.write(json.dumps(run.save()) + "\n")
    run.state_file.unlink()


if __name__ == "__main__":
    main()
