"""Time of choosing experts against its floor: every expert once on every calibration token.

    python benchmarks/experts/selection_time.py [--tokens 4096]

One layer with drawn weights, float32, one thread. The floor is the bare MLPs on the same tokens in
one batch each. The statistics add the products of all outputs with one another and their norms, by
tiles of tokens; the choice itself works on them. CPU seconds, medians of alternating rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn.functional import silu

from compress.experts.capture import LayerData
from compress.experts.layers import ExpertLayer, apply_mlp
from compress.experts.merge import GatedMLP
from compress.experts.selection import constants_of, greedy_least_squares
from compress.experts.statistics import measure_experts


def main() -> None:
    """Draw a layer, time both, print a line of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--width", type=int, default=704)
    parser.add_argument("--rounds", type=int, default=3)
    o = parser.parse_args()
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)

    def mlp() -> GatedMLP:
        gate, up = (torch.randn(o.width, o.hidden, generator=draw) for _ in range(2))
        return GatedMLP(gate / 32, up / 32, torch.randn(o.hidden, o.width, generator=draw) / 32)

    experts, shared = [mlp() for _ in range(o.experts)], mlp()
    x = torch.randn(o.tokens, o.hidden, generator=draw)
    top = torch.rand(o.tokens, o.experts, generator=draw).topk(4, dim=1)
    chosen = torch.zeros(o.tokens, o.experts, dtype=torch.bool).scatter_(1, top.indices, True)
    layer = ExpertLayer(
        "b", 0, "b.mlp", "b.mlp.experts", o.experts, o.width, o.hidden, "b.mlp.shared", o.width,
        None, False, 1.0,
    )  # fmt: skip
    data = LayerData(x, apply_mlp(shared, x, silu), chosen.float() / 4, chosen, None, None)
    taken: dict[str, list[float]] = {"floor": [], "selection": []}
    for turn in range(o.rounds + 1):
        for name in taken:
            start = time.process_time()
            if name == "floor":
                for each in (shared, *experts):
                    apply_mlp(each, x, silu)
            else:
                found = measure_experts(layer, experts, shared, data, silu)
                kept = greedy_least_squares(found.fit, 4, shared=True)
                constants_of(found, kept, how="least-squares", shared=True)
            if turn:  # the first round warms up
                taken[name].append(time.process_time() - start)
    floor, ours = (statistics.median(times) for times in taken.values())
    ratios = [b / a for a, b in zip(*taken.values(), strict=True)]
    print(f"floor {floor:.2f} s, selection {ours:.2f} s, ratio {statistics.median(ratios):.2f} "
          f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
