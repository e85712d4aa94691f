"""Layers that stay sparse with fewer experts: pruned (REAP and other scores), or merged.

Pruned layers keep some experts and their rows of the router. Merged ones cluster experts by what
they return on average, and put the mean of each cluster, weighted by use, in its place; the
cluster's router row is that of its most used expert.

Letters: E experts, K kept, H hidden size, I width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.errors import RequestError
from compress.experts.layers import ExpertLayer
from compress.experts.selection import SCORES
from compress.experts.statistics import ExpertStatistics

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
PRUNE, MERGE = "pruned_experts", "merged_experts"


def kept_experts(
    statistics: ExpertStatistics, score: str, count: int, groups: int = 1
) -> list[int]:
    """Return the experts that a pruned layer keeps, in their old order.

    Args:
        statistics: of the layer.
        score: a name of SCORES; REAP is mean g_e |f_e| over the tokens routed to e, with the
            weights that the router hands over (arXiv:2510.13999).
        count: how many.
        groups: groups of neighbouring experts that the router chooses among; each keeps as many.
    """
    scores = SCORES[score](statistics)
    each, kept = len(scores) // groups, []
    for group in range(groups):
        own = scores[group * each : (group + 1) * each]
        best = torch.sort(own, descending=True, stable=True).indices[: count // groups]
        kept += [group * each + int(e) for e in best]
    return sorted(kept)


def clusters(centers: Tensor, used: Tensor, count: int) -> list[list[int]]:
    """Group experts whose mean outputs are near, by average linkage.

    Args:
        centers: [E, H], each expert's mean output over the calibration tokens.
        used: [E], how often each is routed to.
        count: how many groups.

    Returns:
        The groups in the order of their most used expert, which comes first in each.

    Source: HC-SMoE, arXiv:2410.08589.
    """
    if len(centers) == count:
        return [[e] for e in range(count)]
    from sklearn.cluster import AgglomerativeClustering

    labels = AgglomerativeClustering(count, linkage="average").fit_predict(centers.cpu().numpy())
    found: dict[int, list[int]] = {}
    for expert in torch.sort(used, descending=True, stable=True).indices.tolist():
        found.setdefault(int(labels[expert]), []).append(expert)
    return sorted(found.values(), key=lambda group: group[0])


def aligned(reference: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Return the order of an expert's neurons that brings them nearest to another's, [I].

    Args:
        reference, other: gate [I, H], up [I, H] and down [H, I] of an expert.

    Source: M-SMoE, arXiv:2310.01334: a linear assignment over all three matrices.
    """
    from scipy.optimize import linear_sum_assignment

    def rows(parts: Sequence[Tensor]) -> Tensor:
        gate, up, down = (part.float() for part in parts)
        return torch.cat([gate, up, down.T], dim=1)

    gain = rows(reference) @ rows(other).T
    return torch.as_tensor(linear_sum_assignment(gain.cpu().numpy(), maximize=True)[1])


def fewer_tensors(
    tensors: Mapping[str, Tensor], layer: ExpertLayer, row: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return a block's tensors with fewer experts in one layer.

    Args:
        tensors: run-time name -> tensor, experts stacked.
        layer: the layer.
        row: its row of the plan.
    """
    kept = torch.tensor(row["experts"])
    out = dict(tensors)
    for name, value in tensors.items():
        if name.startswith(f"{layer.experts}."):
            out[name] = value[kept]
        elif routes(name, layer):
            if value.dim() and value.shape[0] == layer.count:
                out[name] = value[kept]
            elif value.dim() == 2 and value.shape == (1, layer.count):
                out[name] = value[:, kept]
    if row["kind"] == MERGE:
        _merge(out, tensors, layer, row)
    return out


def fewer_fields(config: Any, layer: ExpertLayer, count: int) -> dict[str, Any]:
    """Return the config's fields that say how many experts there are.

    Raises:
        RequestError: the config says it nowhere, or its router can't work with so few.
    """
    routed = int(getattr(config, "num_experts_per_tok", 0) or 1)
    groups = groups_of(config)
    if count < routed:
        raise RequestError(
            f"`--experts {count}`: each token is routed to {routed}", f"keep {routed} or more"
        )
    if count % groups or (groups > 1 and count // groups < 2):
        raise RequestError(
            f"`--experts {count}`: the router chooses among {groups} groups of equal size, of 2 "
            "experts at least",
            f"use a multiple of {groups} from {2 * groups}",
        )
    fields = {n: count for n in COUNTS if getattr(config, n, None) == layer.count}
    if not fields:
        raise RequestError(
            f"the config of `{config.model_type}` doesn't say how many experts there are in a way "
            "that is known here"
        )
    return fields


def groups_of(config: Any) -> int:
    """Return the groups of experts that a router chooses among."""
    return int(getattr(config, "n_group", 1) or 1)


def routes(name: str, layer: ExpertLayer) -> bool:
    """Whether a tensor belongs to the router: in the layer, but not to a shared MLP."""
    shared = f"{layer.shared}." if layer.shared else None
    gate = f"{layer.shared_gate}." if layer.shared_gate else None
    return name.startswith(f"{layer.name}.") and not any(
        name.startswith(part) for part in (shared, gate) if part
    )


def _merge(
    out: dict[str, Tensor],
    tensors: Mapping[str, Tensor],
    layer: ExpertLayer,
    row: Mapping[str, Any],
) -> None:
    """Put the mean of each cluster in the place of its first expert."""
    first, second = f"{layer.experts}.gate_up_proj", f"{layer.experts}.down_proj"
    gate_up, down = tensors[first], tensors[second]
    transposed = gate_up.shape[1] == layer.hidden and down.shape[2] == layer.hidden
    if transposed and gate_up.shape[2] == 2 * layer.width:
        raise RequestError(f"`{layer.experts}`: experts stored transposed aren't merged")
    merged_first, merged_second = out[first].clone(), out[second].clone()
    for place, (group, weights) in enumerate(zip(row["clusters"], row["shares"], strict=True)):
        head = _parts(gate_up[group[0]], down[group[0]])
        total = [torch.zeros_like(part, dtype=torch.float32) for part in head]
        for expert, weight in zip(group, weights, strict=True):
            own = _parts(gate_up[expert], down[expert])
            order = aligned(head, own)
            for part, value in enumerate((own[0][order], own[1][order], own[2][:, order])):
                total[part] += weight * value.float()
        merged_first[place] = torch.cat(total[:2]).to(gate_up.dtype)
        merged_second[place] = total[2].to(down.dtype)
    out[first], out[second] = merged_first, merged_second


def _parts(gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gate, up = gate_up.chunk(2)
    return gate, up, down
