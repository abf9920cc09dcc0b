"""Attention of few tokens as plain products (`trainer_core/families/parts/attention.py`) against torch's fused
attention, both compiled, forward and backward on this CPU.

    OMP_NUM_THREADS=1 python benchmarks/attention.py [--rounds 15]

Both take turns; a line gives the medians of their CPU seconds, and those of products divided by those of the other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it once

import torch
from torch import Tensor
from torch._dynamo import config
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from trainer_core.families.parts.attention import by_products

SIZES = [
    (heads, width, tokens)
    for heads, width in ((4, 128), (24, 128), (8, 64))
    for tokens in (80, 160, 288, 384, 512, 768, 1024)
]
"""Heads, their width, tokens; of one sample."""


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    turned = (one.transpose(1, 2) for one in (query, key, value))
    return F.scaled_dot_product_attention(*turned).transpose(1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with config.patch(recompile_limit=2 * len(SIZES)):
        compiled = [torch.compile(one, dynamic=False) for one in (fused, by_products)]
        for heads, width, tokens in SIZES:
            torch.manual_seed(0)
            given = [torch.randn(1, tokens, heads, width, requires_grad=True) for _ in range(3)]
            gradient = torch.randn_like(given[0])
            seconds: list[list[float]] = [[], []]
            for _ in range(rounds + 1):
                for one, into in zip(compiled, seconds, strict=True):
                    began = time.process_time()
                    torch.autograd.grad(one(*given), given, gradient)
                    into.append(time.process_time() - began)
            theirs, ours = (1000 * statistics.median(one[1:]) for one in seconds)
            what = f"{heads:2} heads of {width:3}, {tokens:4} tokens"
            print(f"{what}: products {ours:6.2f} ms, fused {theirs:6.2f} ms = {ours / theirs:.2f}", flush=True)


if __name__ == "__main__":
    main()
