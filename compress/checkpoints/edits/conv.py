"""`{"kind": "conv", "in": n, "out": m, "groups": g}`: a convolution with other channel counts.

On disk: the same names as before, `NAME.weight [out, in / groups, …]` and `NAME.bias [out]` where
there was one. A number left out stays; so do padding and dilation, but with another `kernel` the
padding is half of it, rounded down. `kernel` and `stride` are of every side alike.
"""

from __future__ import annotations

from torch import nn

from compress.checkpoints.edits.base import Fields, Kind, placement, refuse
from compress.errors import RequestError

CLASSES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Build a convolution of the given channels, otherwise as `old`.

    Raises:
        RequestError: `old` is no convolution, or the groups don't divide the channels.
    """
    if not isinstance(old, CLASSES):
        refuse("conv", old, where, "nn.Conv1d, nn.Conv2d and nn.Conv3d")
    wide, tall = int(fields.get("in", old.in_channels)), int(fields.get("out", old.out_channels))
    groups = int(fields.get("groups", old.groups))
    for name, channels in (("in", wide), ("out", tall)):
        if channels % groups:
            raise RequestError(
                f"edit of `{where}`: groups {groups} don't divide `{name}` {channels}",
                "give `groups`, or channel counts that are multiples of it",
            )
    cls = next(cls for cls in CLASSES if isinstance(old, cls))
    kernel = int(fields["kernel"]) if "kernel" in fields else None
    return cls(
        wide,
        tall,
        old.kernel_size if kernel is None else kernel,  # type: ignore[arg-type]
        stride=fields.get("stride", old.stride),
        padding=old.padding if kernel is None else kernel // 2,  # type: ignore[arg-type]
        dilation=old.dilation,  # type: ignore[arg-type]
        groups=groups,
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
        **placement(old),
    )


KIND = Kind("conv", make, optional=("in", "out", "groups", "kernel", "stride"))
