"""From spectra and a budget to a plan: which layers become factors of which rank."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.checkpoints.plan import Plan
from compress.errors import RequestError, near_names
from compress.lowrank import allocation
from compress.lowrank.allocation import DENSE, Item, Unreachable
from compress.lowrank.allocators import svdllm_v2
from compress.lowrank.modules import Unit
from compress.lowrank.settings import FIXED, LowRankSettings
from compress.lowrank.spectra import errors_at

COMMAND = "lowrank-svd"


def items_of(
    units: Sequence[Unit],
    energies: Mapping[str, Tensor],
    settings: LowRankSettings,
    *,
    all_ranks: bool = False,
) -> list[Item]:
    """What each unit may become.

    Args:
        units: what gets ranks.
        energies: unit -> energies.
        settings: step and least rank.
        all_ranks: offer ranks up to the break-even one, where the unit itself isn't a choice.
    """
    items = []
    for unit in units:
        side = min(unit.out, unit.into)
        ranks = allocation.steps(unit.most, side, settings.round, settings.min_rank)
        if not all_ranks:
            ranks = allocation.worthwhile(ranks, unit.cost, unit.dense)
        errors = errors_at(energies[unit.name], ranks) if unit.name in energies else ()
        items.append(Item(unit.dense, unit.cost, ranks, errors or tuple(0.0 for _ in ranks)))
    return items


def budget_of(settings: LowRankSettings, units: Sequence[Unit], parameters: int) -> float:
    """The share of the chosen layers' weights that may be kept.

    Args:
        settings: with keep or keep_model.
        units: the chosen layers.
        parameters: of the whole model.

    Raises:
        RequestError: what lies outside the chosen layers alone is more than `--keep-model`.
    """
    name, value = settings.size
    if name != "keep_model":
        return float(value)
    chosen = sum(unit.dense for unit in units)
    outside = parameters - chosen
    left = value * parameters - outside
    if left <= 0:
        raise RequestError(
            f"`--keep-model {value:g}` can't be met: what isn't factored is "
            f"{outside / parameters:.3f} of the model",
            "choose more layers, or keep more",
        )
    return min(left / chosen, 1.0)


def choose_ranks(
    units: Sequence[Unit],
    energies: Mapping[str, Tensor],
    settings: LowRankSettings,
    parameters: int,
) -> tuple[list[int], dict[str, Any]]:
    """Spread rank over the units by the rules that need nothing but their spectra.

    Returns:
        A rank for each unit (DENSE: it stays), and facts for the plan's options.

    Raises:
        RequestError: the budget can't be met; the smallest share that can is named.
    """
    rule = settings.rule
    if rule == "file":
        return from_file(units, Path(str(settings.alloc))), {}
    if settings.size[0] in FIXED:
        return _fixed(units, settings), {}
    if rule == "energy" and settings.energy is not None:
        items = items_of(units, energies, settings, all_ranks=True)
        return allocation.energy(items, settings.energy), {"energy": settings.energy}
    keep = budget_of(settings, units, parameters)
    return _within(rule, units, energies, settings, keep)


def _within(
    rule: str,
    units: Sequence[Unit],
    energies: Mapping[str, Tensor],
    settings: LowRankSettings,
    keep: float,
) -> tuple[list[int], dict[str, Any]]:
    items = items_of(
        units, energies, settings, all_ranks=rule in ("uniform", "energy", "svdllm-v2")
    )
    budget = int(keep * sum(unit.dense for unit in units) + 1e-9)
    try:
        if rule == "uniform":
            return allocation.uniform(items, keep), {}
        if rule == "energy":
            ranks, level = allocation.energy_within(items, keep)
            return ranks, {"energy": level}
        if rule == "svdllm-v2":
            kinds = [unit.name.rpartition(".")[2] for unit in units]
            even = allocation.uniform(items, keep)
            losses = [item.error(rank) ** 0.5 for item, rank in zip(items, even, strict=True)]
            return svdllm_v2(items, kinds, losses, keep), {}
        spread = allocation.greedy if rule == "greedy" else allocation.knapsack
        return spread(items, budget), {}
    except Unreachable as error:
        raise unreachable(settings, error) from error


def check_reachable(units: Sequence[Unit], settings: LowRankSettings, parameters: int) -> None:
    """Refuse a budget that no ranks keep, before anything is measured.

    Raises:
        RequestError: as `choose_ranks`.
    """
    if settings.rule == "file":
        from_file(units, Path(str(settings.alloc)))
    elif settings.size[0] in FIXED:
        _fixed(units, settings)
    elif settings.size[0] == "budget_ms":
        routed = [m.name for unit in units for m in unit.matrices if m.expert is not None]
        if routed:
            raise RequestError(
                f"`--budget-ms` can't foretell `{routed[0]}`: how many tokens an expert gets is "
                "the router's to say",
                "`--exclude '*experts*'`, or give `--keep`",
            )
    elif settings.size[0] in ("keep", "keep_model"):
        keep = budget_of(settings, units, parameters)
        _within("greedy", units, {}, settings, keep)


def unreachable(settings: LowRankSettings, error: Unreachable) -> RequestError:
    """The budget can't be met."""
    name, value = settings.size
    return RequestError(
        f"`--{name.replace('_', '-')} {value:g}` can't be met: with rank {settings.min_rank} "
        f"everywhere {error.least:.4f} of the chosen weights are left",
        "keep more, lower --min-rank or --round, or choose fewer small layers",
    )


def _fixed(units: Sequence[Unit], settings: LowRankSettings) -> list[int]:
    """One rank, or one share of the smaller side; layers that gain nothing by it stay."""
    name, value = settings.size
    ranks = []
    for unit in units:
        side = min(unit.out, unit.into)
        rank = int(value) if name == "rank" else max(round(value * side), 1)
        ranks.append(rank if rank <= unit.most else DENSE)
    if not any(ranks):
        raise RequestError(
            f"`--{name.replace('_', '-')} {value:g}`: at this rank the factors of every layer hold "
            "as many weights as the layer",
            f"a rank of at most {max(unit.most for unit in units)} saves some",
        )
    return ranks


def from_file(units: Sequence[Unit], path: Path) -> list[int]:
    """Ranks by layer name: `{"glob": rank or "dense"}`; the first glob that matches counts.

    Raises:
        RequestError: it can't be read, has another form, or leaves a layer out.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"`--alloc {path}` can't be read: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"`--alloc {path}` isn't JSON: {error}") from error
    if not isinstance(given, dict) or not given:
        raise RequestError(
            f"`--alloc {path}` isn't an object of ranks by layer", 'such as {"*.q_proj": 32}'
        )
    names = [m.name for unit in units for m in unit.matrices]
    for glob in given:
        if not fnmatch.filter(names, glob):
            raise RequestError(
                f"`--alloc {path}`: `{glob}` matches no chosen layer",
                near_names(glob, names, listed=4),
            )
    ranks = []
    for unit in units:
        found = next((v for g, v in given.items() if fnmatch.fnmatch(unit.name, g)), None)
        if found is None:
            raise RequestError(
                f"`--alloc {path}` has no rank for `{unit.name}`", 'add a line such as "*": "dense"'
            )
        rank = DENSE if found == "dense" else found
        if type(rank) is not int or rank < 0 or rank > min(unit.out, unit.into):
            raise RequestError(
                f"`--alloc {path}`: {found!r} is no rank for `{unit.name}`",
                f'a number from 1 to {min(unit.out, unit.into)}, or "dense"',
            )
        ranks.append(rank if rank <= unit.most else DENSE)
    return ranks


def rows_of(
    units: Sequence[Unit], ranks: Sequence[int], energies: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """A plan's rows, one a layer, with the error that the spectra foretell."""
    rows = []
    for unit, rank in zip(units, ranks, strict=True):
        for matrix in unit.matrices:
            row: dict[str, Any] = {
                "module": matrix.name,
                "kind": "lowrank" if rank else "dense",
                "block": matrix.block,
                "role": matrix.role,
                "out": matrix.shape[0],
                "in": matrix.shape[1],
                "weights": matrix.numel,
            }
            if rank:
                side = min(matrix.shape)
                row |= {"rank": rank, "rank_ratio": round(rank / side, 6)}
                row["kept"] = round(rank * unit.cost / unit.dense, 6)
                if len(unit.matrices) > 1:
                    row["shared"] = unit.name
                if unit.name in energies:
                    (lost,) = errors_at(energies[unit.name], [rank])
                    row["foretold"] = _short(lost**0.5)
            rows.append(row)
    return rows


def units_of_plan(plan: Plan, matrices: Mapping[str, Any]) -> tuple[list[Unit], list[int]]:
    """Check a plan's rows against the layers, and return what they ask for.

    Args:
        plan: read from a file.
        matrices: name -> Matrix, of the layers that can be factored.

    Raises:
        RequestError: a row of another kind, a rank that its layer can't have, or layers that share
            a factor and can't.
    """
    groups: dict[str, list[Any]] = {}
    ranks: dict[str, int] = {}
    for row in plan.rows:
        name, kind = row["module"], row["kind"]
        if kind not in ("lowrank", "dense"):
            raise RequestError(f"the plan's row for `{name}` has kind `{kind}`, not `lowrank`")
        matrix, leader = matrices[name], row.get("shared", name)
        rank = row.get("rank", 0) if kind == "lowrank" else DENSE
        if type(rank) is not int or (kind == "lowrank" and not 1 <= rank <= min(matrix.shape)):
            raise RequestError(
                f"the plan's row for `{name}` asks for rank {rank!r} of {matrix.shape[0]} x "
                f"{matrix.shape[1]}",
                f"a number from 1 to {min(matrix.shape)}",
            )
        if ranks.setdefault(leader, rank) != rank:
            raise RequestError(f"the plan's row for `{name}` shares `{leader}`, at another rank")
        groups.setdefault(leader, []).append(matrix)
    for leader, group in groups.items():
        beside = {(m.name.rpartition(".")[0], m.shape[1]) for m in group}
        if len(beside) > 1 or all(m.name != leader for m in group):
            raise RequestError(f"the plan's layers that share `{leader}` don't lie beside it")
    units = [Unit(tuple(group)) for group in groups.values()]
    for unit in units:
        if ranks[unit.name] > unit.most:
            raise RequestError(
                f"the plan's row for `{unit.name}` asks for rank {ranks[unit.name]}, whose factors "
                f"hold as many weights as the layer; up to {unit.most} saves some",
                "a row of kind `dense` leaves it as it is",
            )
    return units, [ranks[unit.name] for unit in units]


def _short(value: float) -> float:
    return float(f"{value:.6g}")
