"""Weights of linear layers in fewer bits, as pure functions: a weight is encoded once and decoded whenever it is used.

All of it is plain torch, deterministic on any number of threads, and works row by row, in chunks.
"""

from .packed import NAMES, Packed, encode, format_of

__all__ = ["NAMES", "Packed", "encode", "format_of"]
