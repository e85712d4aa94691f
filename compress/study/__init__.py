"""Grids over calibration data: which corpus prunes best, and whether the difference is noise."""
