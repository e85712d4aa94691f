"""The receipt, and everything that shows one: tables, bars, charts, comparisons.

Knows receipts and plain numbers only; no model, no method.
"""
