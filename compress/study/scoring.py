"""A model in memory that takes on one set of pruned weights after another, scored with each."""

from __future__ import annotations

import contextlib
from typing import Any

from compress.checkpoints.loader import BlockLoader, skeleton
from compress.checkpoints.placement import compute_dtype
from compress.checkpoints.shards import ShardWriter
from compress.evaluation.measures import Measures
from compress.evaluation.measuring import measure
from compress.progress import Progress, silent
from compress.study.preparing import Subject
from compress.study.settings import StudySettings


class Scorer:
    """Scores pruned versions of one model, each as a checkpoint loaded anew would be.

    Embeddings, heads and the text's tokens are read once; a version brings only its blocks.

    Args:
        subject: the model.
        settings: what is measured.
    """

    def __init__(self, subject: Subject, settings: StudySettings) -> None:
        self._subject, self._settings = subject, settings
        source = subject.source
        running = compute_dtype(subject.stored, subject.device, source.bytes_on_disk())
        self._blocks = [block.name for block in subject.anatomy.blocks]
        self._loader = BlockLoader(
            source,
            skeleton(source, running),
            blocks=self._blocks,
            dtype=running,
            device=subject.device,
        )
        self._loader.load_rest()
        self._model: Any = self._loader.model
        _own_generation(self._model, source.directory)

    def score(self, parts: ShardWriter | None, progress: Progress = silent) -> Measures:
        """Measure the model with the blocks of `parts`; None is the dense model.

        Raises:
            RunError: a loss isn't finite.
        """
        for block in self._blocks:
            self._loader.load(block, None if parts is None else parts.read(block))
        settings = self._settings
        return measure(
            self._model,
            self._subject.tokenizer,
            limit=settings.limit,
            seqlen=self._subject.eval_seqlen,
            stride=settings.stride,
            batch_size=settings.eval_batch_size,
            request=self._subject.request,
            progress=progress,
        )


def _own_generation(model: Any, directory: Any) -> None:
    """Give the model its own defaults for generating, which tasks use."""
    from transformers import GenerationConfig

    with contextlib.suppress(OSError):  # it has none
        model.generation_config = GenerationConfig.from_pretrained(directory)
