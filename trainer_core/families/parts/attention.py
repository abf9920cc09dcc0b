"""Attention of few tokens as plain products, which a compiler makes faster than torch's fused attention on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 384
"""Tokens up to which it takes 0.64 to 1.03 of the time, by the number of heads and their width
(`benchmarks/attention.py`, RESULTS.md): fused attention computes its weights again in the backward pass."""


def is_of_few(query: Tensor, key: Tensor) -> bool:
    """Whether products are faster for queries and keys (N, T, H, D).

    They keep the weights (N, H, T_q, T) for the backward pass. In a recomputed block `memory.keep_attention` keeps none
    of it: that is about fused attention, whose results are small.
    """
    if not torch.compiler.is_compiling() or query.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return query.dtype == torch.float32 and key.shape[1] <= FEW


def by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q kᵀ / √D) v for queries (N, T_q, H, D), keys and values (N, T, H, D), laid out as the queries."""
    weights = torch.einsum("nqhd,nkhd->nhqk", query, key) * query.shape[-1] ** -0.5
    return torch.einsum("nhqk,nkhd->nqhd", weights.softmax(-1), value)
