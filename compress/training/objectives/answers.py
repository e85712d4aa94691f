"""Supervised fine-tuning on answers, plain or with MEAP's masked copies.

Every sample is trained on as it is, labels on the answer and its end. With MEAP an answer of more
than `min_response` tokens also comes as a masked copy: some tokens are masked, and these alone are
labels, each predicted from the corrupted text before it. The paper's formula puts copy and original
into one sequence (`concat`), the authors' code into two samples (`separate`).

Source: arXiv:2502.07490, section 3.2. The authors draw these masks once, in preprocessing; here
they are drawn anew in each epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.training.data import TokenStore
from compress.training.objectives.masked import MaskedNextTokenCollator, choose, how_many
from compress.training.objectives.plain import IGNORED

MODES = ("separate", "concat")
SCOPES = ("response", "prompt", "all")
_PLAIN, _COPY, _BOTH = 0, 1, 2


class SampleRows:
    """Fine-tuning samples as rows; samples whose prompt fills a whole row are left out.

    A sample longer than a row loses the end of its answer.

    Args:
        store: samples, as encode_samples makes them.
        length: most tokens in a row.
        masked: whether there are masked copies.
        mode: one of MODES.
        min_response: answers of more tokens than this are copied.
        end: id of the end-of-text token, which is a label but never masked; None if there is none.

    Attributes:
        dropped: samples left out.
        cut: samples that lost the end of their answer.
    """

    def __init__(
        self,
        store: TokenStore,
        length: int,
        *,
        masked: bool = False,
        mode: str = "separate",
        min_response: int = 50,
        end: int | None = None,
    ) -> None:
        self.store, self.length, self.end = store, length, end
        sizes = np.diff(np.append(store.starts, store.tokens))
        kept = np.flatnonzero(store.answers < length)
        self.dropped = store.documents - len(kept)
        self.cut = int((sizes[kept] > length).sum())
        inside = np.minimum(sizes, length)
        ended = (sizes <= length) & (end is not None)
        copied = (inside - store.answers - ended)[kept] > min_response
        if mode == "concat":  # room for the copy, which begins where the original ends
            copied &= 2 * inside[kept] <= length
        kinds = np.where(copied & masked & (mode == "concat"), _BOTH, _PLAIN)
        again = kept[copied] if masked and mode == "separate" else kept[:0]
        self._samples = np.concatenate([kept, again])
        self._kinds = np.concatenate([kinds, np.full(len(again), _COPY)])
        self._sizes = inside

    def __len__(self) -> int:
        return len(self._samples)

    def tokens(self, row: int) -> int:
        """Return the number of tokens in a row."""
        return int(self._sizes[self._samples[row]]) * (2 if self._kinds[row] == _BOTH else 1)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return input_ids [T], labels [T] of the plain part, and for a copy the places in it:
        `copy`, its first token, `prompt`, `answer` and `stop`, ends of its prompt and answer.
        """
        sample, kind = int(self._samples[row]), int(self._kinds[row])
        first, size = int(self.store.starts[sample]), int(self._sizes[sample])
        ids = torch.from_numpy(self.store.ids[first : first + size].astype(np.int64))
        answer = int(self.store.answers[sample])
        labels = ids.clone()
        labels[:answer] = IGNORED
        if kind == _PLAIN:
            return {"input_ids": ids, "labels": labels}
        last = size - int(self.end is not None and int(ids[-1]) == self.end)
        copy = 0
        if kind == _COPY:
            labels.fill_(IGNORED)
        else:
            copy = size
            ids = torch.cat([ids, ids])
            labels = torch.cat([labels, torch.full_like(labels, IGNORED)])
        places = {"copy": copy, "answer": copy + answer, "stop": copy + last}
        return {"input_ids": ids, "labels": labels, **places}


class MaskedAnswerCollator(MaskedNextTokenCollator):
    """Makes batches of SampleRows; only masked copies are masked.

    Args:
        tokenizer, mask_ratio, seed, mask_special, anneal, multiple: as of MaskedNextTokenCollator.
        scope: what of a copy may be masked, one of SCOPES. k is P times its length.

    Raises:
        ValueError: as MaskedNextTokenCollator.
    """

    def __init__(
        self,
        tokenizer: Any,
        mask_ratio: float = 0.10,
        seed: int = 0,
        mask_special: bool = False,
        *,
        scope: str = "response",
        anneal: tuple[int, int] | None = None,
        multiple: int = 8,
    ) -> None:
        super().__init__(
            tokenizer, mask_ratio, seed, mask_special, anneal=anneal, multiple=multiple
        )
        self.scope = scope

    def _chosen(self, example: Mapping[str, Any], ids: Tensor) -> Tensor | None:
        """Return the masked places of a copy, None for a plain sample."""
        if "copy" not in example:
            return None
        start = example["answer"] if self.scope == "response" else example["copy"]
        stop = example["answer"] if self.scope == "prompt" else example["stop"]
        eligible = torch.isin(ids, self._special, invert=True)
        eligible[:start] = False
        eligible[stop:] = False
        eligible[example["copy"]] = False  # nothing before it would predict it
        count = how_many(self.ratio_at(int(example.get("position", 0))), int(eligible.sum()))
        places = choose(
            eligible.numpy(), count, self.seed, int(example.get("epoch", 0)), int(example["row"])
        )
        return torch.from_numpy(places)

    def _labels(self, example: Mapping[str, Any], ids: Tensor) -> Tensor:
        labels = super()._labels(example, ids)
        chosen = self._chosen(example, ids)
        return labels if chosen is None else labels.index_copy(0, chosen, ids[chosen])

    def _inputs(self, example: Mapping[str, Any], ids: Tensor) -> Tensor:
        chosen = self._chosen(example, ids)
        return ids if chosen is None else ids.index_fill(0, chosen, self.mask)
