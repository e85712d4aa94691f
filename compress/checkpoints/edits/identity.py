"""`{"kind": "identity"}`: a module that does nothing, where one without weights stood.

On disk: nothing, before as after. A stem's pooling goes so for images of a few pixels.
"""

from __future__ import annotations

from torch import nn

from compress.checkpoints.edits.base import Fields, Kind, refuse


def make(old: nn.Module, fields: Fields, where: str) -> nn.Module:
    """Build the identity.

    Raises:
        RequestError: `old` has weights, which would be lost.
    """
    if any(True for _ in old.parameters()) or any(True for _ in old.buffers()):
        refuse("identity", old, where, "modules without weights, such as a pooling")
    return nn.Identity()


KIND = Kind("identity", make)
