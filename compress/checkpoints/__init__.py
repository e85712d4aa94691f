"""Checkpoints: open, read their anatomy, walk them block by block, edit, save, export."""
