"""Low-rank models trained from a random start: LR-SMS (arXiv:2410.07771) for speech, and text.

schedules:        how rank goes with depth, with exact sums
factors:          the start of every layer by (seed, name), and of its factors
decay, watching:  what becomes of the product while the factors train
tokens, sizes:    tokenizers and extractors of a new speech model; models by name
rows:             recordings as training rows, in an order that groups lengths
settings, start, preparing, command: the options, the model, the job, the public function
"""

from __future__ import annotations

from compress.lowrank.scratch.command import train_from_scratch

__all__ = ["train_from_scratch"]
