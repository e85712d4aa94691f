"""`compress inspect --depth`: the measures of every layer as table, plots and JSON."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compress.checkpoints.placement import resolve_device
from compress.checkpoints.source import open_source
from compress.data.packing import calibration_batches
from compress.data.specs import load_documents, parse_spec
from compress.errors import RequestError
from compress.evaluation.depth import Depth, check_files, measure_depth
from compress.evaluation.measures import check_model
from compress.progress import Progress, silent
from compress.reports import formats as fmt
from compress.reports.charts import bars, number
from compress.reports.heatmap import draw_heatmap, heatmap
from compress.reports.notebook import Displayable
from compress.reports.pictures import new_figure, save_figure

SAMPLES = 16
SEQLEN = 512
_LEGEND = (
    "variance: of the layer's output. gradient: its norm over the layer's matrices, and over all "
    "parameters. d(l, 1): angle between the layer's input and output, in half turns (0: no "
    "change). loss: how much it rises, in nats, when the layer is left out."
)


@dataclass(frozen=True)
class DepthInspection(Displayable):
    """What `inspect_depth` found.

    Attributes:
        model: source, architecture, digest, layers.
        data: the spec, seqlen, and seed of the windows.
        depth: the measures.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    depth: Depth

    def as_dict(self) -> dict[str, Any]:
        """CONTRACT's JSON of `inspect`, the rows being layers."""
        return {"schema": 1, "model": self.model, "data": self.data, **self.depth.as_dict()}

    def render(self, width: int | None = None) -> str:
        """The same as text: a table, the loss by layer as bars, the distances as a heat map."""
        columns = fmt.screen_width() if width is None else width
        depth = self.depth
        head = (
            f"model     {self.model['source']}   {self.model['architecture']}, "
            f"{len(depth.layers)} layers; loss {depth.loss:.3f} over {depth.windows} × "
            f"{self.data['seqlen']} tokens of {self.data['spec']}"
        )
        names = [str(i) for i in range(len(depth.layers))]
        rises = [layer.loss_increase for layer in depth.layers]
        parts = [
            fmt.wrap(head, columns, " " * 10),
            self._table(columns),
            fmt.wrap(_LEGEND, columns, ""),
            "loss increase when a layer is left out\n"
            + bars(names, rises, origin=min(0.0, *rises), width=columns),
            "angular distance d(l, n) between inputs of layers l (down) and l + n (across)\n"
            + self._map(columns),
        ]
        return fmt.fit_encoding("\n\n".join(parts))

    def _table(self, width: int) -> str:
        rows = []
        for index, layer in enumerate(self.depth.layers):
            error = "" if layer.stderr is None else f" ± {layer.stderr:.3f}"
            rows.append(
                [
                    str(index),
                    number(layer.variance),
                    number(layer.gradient_2d),
                    number(layer.gradient),
                    f"{layer.distance:.3f}",
                    f"{fmt.signed(layer.loss_increase, 3)}{error}",
                ]
            )
        heads = ["layer", "variance", "gradient, 2-D", "all", "d(l, 1)", "loss without it"]
        return fmt.table(heads, rows, "rrrrrr", width=width)

    def _map(self, width: int) -> str:
        distances = self.depth.distances()
        cells = [[*row, *[None] * (len(distances) - len(row))] for row in distances]
        top = max(value for row in distances for value in row)
        names = [str(i) for i in range(len(cells))]
        steps = [str(i + 1) for i in range(len(cells))]
        return heatmap(cells, names, steps, ends=(0.0, top or 1.0), width=width)

    def draw(self, path: str | Path) -> None:
        """Write the four measures as one PNG."""
        layers = self.depth.layers
        figure, axes = new_figure(2, 2, (10, 7))
        figure.suptitle(self.model["source"])
        x = range(len(layers))
        axes[0, 0].plot(x, [layer.variance for layer in layers], ".-")
        axes[0, 0].set(title="output variance", xlabel="layer", yscale="log")
        axes[0, 1].plot(x, [layer.gradient_2d for layer in layers], ".-", label="matrices")
        axes[0, 1].plot(x, [layer.gradient for layer in layers], ".--", label="all parameters")
        axes[0, 1].set(title="gradient norm", xlabel="layer", ylim=(0, None))
        axes[0, 1].legend()
        errors = [layer.stderr or 0.0 for layer in layers]
        axes[1, 0].bar(x, [layer.loss_increase for layer in layers], yerr=errors)
        axes[1, 0].set(title="loss increase when left out (nats)", xlabel="layer")
        top = float(self.depth.angular.max()) or 1.0
        draw_heatmap(axes[1, 1], figure, self.depth.angular.tolist(), (0.0, top))
        axes[1, 1].set(title="angular distance of inputs", xlabel="layer", ylabel="layer")
        save_figure(figure, path)


def inspect_depth(
    model: str | Path,
    *,
    data: str = "demo",
    samples: int | None = None,
    seqlen: int | None = None,
    seed: int = 0,
    png: str | Path | None = None,
    device: str = "auto",
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> DepthInspection:
    """Measure what each layer of a checkpoint does; changes nothing.

    Args:
        model: a local directory or a Hub id of a decoder-only language model with a tokenizer.
        data: a data spec; default the shipped corpus.
        samples, seqlen: windows and tokens in each; default 16 of 512, or the model's limit.
        seed: of the choice of windows.
        png: a file to draw to.
        device: where the model runs, in float32.
        revision, token, trust_remote_code: as in `open_source`.
        progress: called along the way.

    Raises:
        RequestError: a model or text that can't be used, a length above the model's limit, a file
            that can't be written.
        RunError: a loss isn't finite, or the picture couldn't be written after all.
    """
    check_files(png=png)
    source = open_source(model, revision=revision, token=token, trust_remote_code=trust_remote_code)
    check_model(source, None, ppl=True)
    place = resolve_device(device)
    limit = source.token_limit()
    length = seqlen or min(SEQLEN, limit or SEQLEN)
    if limit is not None and length > limit:
        raise RequestError(
            f"`--seqlen {length}` is above the model's limit of {limit} tokens",
            f"use `--seqlen {limit}` or less",
        )
    documents = [text for spec in parse_spec(data) for text in load_documents(spec)]
    batches, _ = calibration_batches(
        documents, source.tokenizer(), samples=samples or SAMPLES, seqlen=length, seed=seed
    )
    loaded = source.load(torch.float32, place)
    depth = measure_depth(loaded, batches, progress)
    facts = {
        "source": source.name,
        "architecture": type(loaded).__name__,
        "digest": source.digest(),
        "layers": len(depth.layers),
    }
    del loaded
    gc.collect()
    seen = DepthInspection(facts, {"spec": data, "seqlen": length, "seed": seed}, depth)
    if png is not None:
        seen.draw(png)
    return seen
