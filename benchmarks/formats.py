"""Each format of packed weights: bits, error, and what encoding and decoding take. `python benchmarks/formats.py`.

The weight is Gaussian. Decoding is told in milliseconds for 4 M codes, into bf16 and fp32, of the weight as it is held
(int8: rotated); encoding as GB of a weight in bf16 per second. Times are of the processor, of one thread, the best of
several.

`--levels` computes the levels of the codebooks: Lloyd and Max's for Gaussian weights divided by the largest magnitude
of their group. They are what `memory/formats/codebook.py` holds in ten-thousandths.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer_core.memory.formats import NAMES, encode

_ROWS, _COLUMNS = 1024, 4096
_GROUPS = {5: 32, 4: 16, 3: 16, 2: 16}
"""By bits."""


def milliseconds(call: Callable[[], object], times: int = 7) -> float:
    found = []
    for _ in range(times):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return 1e3 * min(found)


class Largest(TorchDispatchMode):
    """The largest tensor that is made, in bytes."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.size = max(self.size, result.untyped_storage().nbytes())
        return result


def table(names: tuple[str, ...]) -> None:
    weight = torch.randn(_ROWS, _COLUMNS, generator=torch.Generator().manual_seed(0)) * 0.02
    half = weight.bfloat16()
    print(f"{'format':8} {'bits':>6} {'error %':>8} {'in bf16':>8} {'bf16 ms':>8} {'fp32 ms':>8} {'encode GB/s':>12}")
    for name in names:
        packed = encode(weight, name)
        errors = [
            100 * float((packed.decode(dtype).double() - weight).norm() / weight.norm())
            for dtype in (torch.float32, torch.bfloat16)
        ]
        decode = [
            milliseconds(lambda packed=packed, dtype=dtype: packed.decode_rotated(dtype))  # type: ignore[misc]
            for dtype in (torch.bfloat16, torch.float32)
        ]
        speed = half.nbytes / 1e6 / milliseconds(lambda name=name: encode(half, name), 3)  # type: ignore[misc]
        print(
            f"{name:8} {packed.bits_per_weight:6.2f} {errors[0]:8.2f} {errors[1]:8.2f} "
            f"{decode[0]:8.1f} {decode[1]:8.1f} {speed:12.3f}"
        )
    with Largest() as largest:
        packed = encode(half, "4bit")
    print(f"largest tensor while encoding {half.nbytes / 1e6:.0f} MB: {largest.size / 1e6:.1f} MB")


def levels(bits: int, group: int, weights: int = 1_000_000, rounds: int = 4000) -> list[int]:
    """The magnitudes, in ten-thousandths, that lose least of weights divided by the largest of their group."""
    size = torch.randn(weights // group, group, generator=torch.Generator().manual_seed(0)).double().abs()
    largest = size.amax(1, keepdim=True)
    relative, order = (size / largest).flatten().sort()
    weighs = largest.square().expand_as(size).flatten()[order]
    start = torch.zeros(1, dtype=torch.float64)
    sums = [torch.cat([start, one.cumsum(0)]) for one in (weighs * relative, weighs)]
    found = (torch.arange(2 ** (bits - 1), dtype=torch.float64) + 0.5) / 2 ** (bits - 1)
    for _ in range(rounds):
        inner = torch.searchsorted(relative, (found[1:] + found[:-1]) / 2)
        ends = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(relative))])
        whole, count = (one[ends].diff() for one in sums)
        found = whole / count
    return [round(10_000 * level) for level in found.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=NAMES, help="formats (all)")
    parser.add_argument("--levels", action="store_true", help="compute the codebooks' levels")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.levels:
        for bits, group in _GROUPS.items():
            print(bits, "bits:", levels(bits, group))
    else:
        table(tuple(given.names))


if __name__ == "__main__":
    main()
