"""`recover`: a recovery adapter for a quantized base, and what it gives back."""

from __future__ import annotations
