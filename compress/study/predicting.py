"""How well cheap predictors rank the calibration sets: their agreement with what was measured."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from compress.calibration.predict import mask_overlaps, profile, similarity, token_divergence
from compress.evaluation.perplexity import text_tokens
from compress.progress import Progress
from compress.study.outcomes import Grid
from compress.study.preparing import Calibration, Subject
from compress.study.settings import StudySettings

MORE_IS_BETTER = {"similarity": True, "overlap": True, "perplexity": False, "divergence": False}
LEAST = 3  # sets: of two any order agrees by chance every other time
_WINDOWS = 32  # of a text or task that is predicted for
Values = dict[str, dict[str, float]]


def predictions(
    subject: Subject,
    sets: Mapping[str, Calibration],
    settings: StudySettings,
    progress: Progress,
) -> dict[str, Values]:
    """What each predictor says of each set (its first draw), for every text and task.

    Args:
        subject: the model.
        sets: name -> its first draw.
        settings: the study's.
        progress: told of the passes.

    Returns:
        Text or task -> predictor -> set -> value. Costs a dense forward pass over each set and
        target.
    """
    options: dict[str, Any] = {"device": subject.device, "dtype": subject.dtype}
    profiles = {}
    for done, (name, found) in enumerate(sets.items()):
        progress("predictors", done, len(sets), name)
        profiles[name] = profile(subject.source, found.batches, **options)
    progress("predictors", len(sets), len(sets))
    out = {}
    for of, batches in _targets(subject, settings).items():
        goal = profile(subject.source, batches, **options)
        overlaps = mask_overlaps(
            subject.source, list(profiles.values()), goal, device=subject.device
        )
        values: Values = {
            "similarity": {n: similarity(p, goal) for n, p in profiles.items()},
            "overlap": dict(zip(profiles, overlaps)),
            "divergence": {n: token_divergence(s.batches, batches) for n, s in sets.items()},
        }
        known = {n: p.perplexity for n, p in profiles.items() if p.perplexity is not None}
        out[of] = values | ({"perplexity": known} if len(known) == len(sets) else {})
    return out


def agreement(grid: Grid, found: Mapping[str, Values]) -> list[dict[str, Any]]:
    """Kendall's tau of every predictor with the measured means, over the sets of a grid.

    Args:
        grid: of one model.
        found: what `predictions` gave.

    Returns:
        Rows with "metric", "predictor", "tau" (1: the same order), "p" where it can be told, "n"
        sets, and the "first" set by the predictor.
    """
    from scipy.stats import kendalltau

    rows = []
    for metric in grid.metrics:
        means = {c: t.means.mean() for c in grid.calib if len((t := grid.trials(c, metric)).means)}
        for predictor, values in found.get(metric.of, {}).items():
            names = [name for name in means if name in values]
            if len(names) < LEAST:
                continue
            more = MORE_IS_BETTER[predictor]
            good = [values[n] if more else -values[n] for n in names]
            measured = [-means[n] if metric.smaller else means[n] for n in names]
            test = kendalltau(good, measured)
            row: dict[str, Any] = {
                "metric": metric.name,
                "predictor": predictor,
                "n": len(names),
                "first": names[max(range(len(names)), key=good.__getitem__)],
            }
            if test.statistic == test.statistic:  # NaN where all values are equal
                rows.append({**row, "tau": float(test.statistic), "p": float(test.pvalue)})
    return rows


def _targets(subject: Subject, settings: StudySettings) -> dict[str, list[dict[str, Tensor]]]:
    """The texts and tasks of the score, as batches; no more than a few windows of each."""
    limit = min(settings.limit or _WINDOWS, _WINDOWS)
    found = {s: t for s, t in subject.request.texts.items() if isinstance(t, Tensor)}
    if subject.request.tasks is not None:
        for task, texts in subject.request.tasks.texts(settings.limit).items():
            found[task] = text_tokens(subject.tokenizer, texts)
    return {of: _windows(tokens, subject.eval_seqlen, limit) for of, tokens in found.items()}


def _windows(tokens: Tensor, seqlen: int, limit: int) -> list[dict[str, Tensor]]:
    length = min(seqlen, len(tokens))
    starts = range(0, len(tokens) - length + 1, length)[:limit]
    return [{"input_ids": tokens[None, start : start + length]} for start in starts]


def first_draws(
    sets: Mapping[tuple[str, str, int], Calibration], model: str, calib: Sequence[str]
) -> dict[str, Calibration]:
    """Of every set the draw with the least seed that this process has."""
    found: dict[str, Calibration] = {}
    for own, name, seed in sorted(sets, key=operator.itemgetter(2)):
        if own == model and name in calib:
            found.setdefault(name, sets[own, name, seed])
    return {name: found[name] for name in calib if name in found}
