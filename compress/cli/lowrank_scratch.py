"""The options of `lowrank-svd --from-scratch` alone."""

from __future__ import annotations

from compress.cli import options as opt
from compress.cli.options import option

SCRATCH = opt.options(
    option(
        "--from-scratch",
        is_flag=True,
        heading="From scratch",
        help="train a low-rank model from the config MODEL instead",
    ),
)
ONLY: tuple[str, ...] = ()
"""Names of the parameters that mean something with --from-scratch alone."""
BOTH: tuple[str, ...] = ("output", "overwrite", "resume", "seed", "device", "dtype")
"""Names of the door's other parameters that `train_from_scratch` takes too."""
