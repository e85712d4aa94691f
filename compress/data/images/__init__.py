"""Labelled images: folders, archives, parquet and `datasets`; read, split, cut to size, augmented.

reading:    where pictures and labels come from, each with the place that an error names
splits:     train, validation and test kept apart, by a fixed rule where the source lacks one
processing: a checkpoint's own image processor, cut in two: geometry, then numbers
sets:       a split as pixels in memory or decoded when asked, matched to a model's classes
augmenting: flips, shifts and mixup that depend on (seed, epoch, row) alone
"""

from __future__ import annotations

from compress.data.images.augmenting import Augmentation, ImageCollator
from compress.data.images.processing import Processing, read_processing
from compress.data.images.sets import ImageData, ImageSet, load_evaluation, load_images

__all__ = [
    "Augmentation",
    "ImageCollator",
    "ImageData",
    "ImageSet",
    "Processing",
    "load_evaluation",
    "load_images",
    "read_processing",
]
