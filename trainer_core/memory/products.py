"""Products on a device's units for 8-bit numbers (W8A8): inputs become codes too, with a scale for each row.

    forward         y  = (x_q Qᵀ) · s_x · s_w      with x_q, s_x of the rotated x
    input gradient  dx = rot((g·s_w)_q Q) · s_g    the weight's scales are on the summed axis, so g takes them first

int8 needs the rotation, or outliers of the input cost its accuracy; float8 is better without. What the layer computes
changes by about 1 % (int8) or 3 % (float8), so whether a run computes so is a fact of the run: `products_of` answers it
once, by measuring, and the answer is recorded.

The kernels ran on CPUs only: on CUDA neither speed nor limits of `_int_mm` and `_scaled_mm` were seen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from .formats import Packed, encode, float8, int8
from .formats.rotation import rotated

_ROW_CODES = {"int8": int8.row_codes, "float8": float8.row_codes}
_FEWEST_ROWS = 17
"""Kernels take no fewer; so few are as fast with the weight unpacked."""
_ROWS = 32
"""Rows are padded to a multiple of it."""
_ALIGNED = {"int8": 8, "float8": 16}
"""What columns and rows of a weight are multiples of where kernels take it."""
_SMALLEST_BLOCK = 64
"""A shorter rotation leaves outliers too high for int8."""
_CHUNK = 2**25
"""Numbers of an output that are computed at once: sums are in 32 bits, and twice in memory until they are scaled."""
_MARGIN = 0.95
"""How much of the time a product may take to be chosen: results change, so that a tie is no reason."""

Timer = Callable[[Callable[[], object], torch.device], float]
"""Seconds that a call takes on a device."""
_log = logging.getLogger(__name__)
_measured: dict[tuple[object, ...], bool] = {}


def product(packed: Packed, x: Tensor) -> Tensor:
    """x Wᵀ (rows, out), for x (rows, in)."""
    return _multiplied(packed.name, rotated(x, packed.rotation), packed.parts["codes"].T, None, packed.parts["scale"].T)


def input_gradient(packed: Packed, gradient: Tensor) -> Tensor:
    """gradient W (rows, in), for a gradient (rows, out)."""
    found = _multiplied(packed.name, gradient, packed.parts["codes"], packed.parts["scale"].T, None)
    return rotated(found, packed.rotation)


def unpacked_product(packed: Packed, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias (…, out), for x (…, in), in the precision of x."""
    return F.linear(rotated(x, packed.rotation), packed.decode_rotated(x.dtype), bias)


def unpacked_input_gradient(packed: Packed, gradient: Tensor) -> Tensor:
    """gradient W (…, in), for a gradient (…, out), in its precision."""
    dtype = gradient.dtype
    if packed.name in _ROW_CODES and dtype != torch.float16:  # in which so small a gradient would be nothing
        # Less to compute than the weight. Turned twice, it is not what the forward pass computes: torch.compile would
        # keep an unpacked weight that both passes share.
        gradient, weight = gradient * packed.parts["scale"].T.to(dtype), packed.parts["codes"].T.to(dtype).T
    else:
        weight = packed.decode_rotated(dtype)
    return rotated(gradient @ weight, packed.rotation)


def fits(packed: Packed, rows: int) -> bool:
    """Whether kernels take a weight, with that many rows of input."""
    aligned = _ALIGNED.get(packed.name)
    if aligned is None or rows < _FEWEST_ROWS or any(size % aligned for size in packed.shape):
        return False
    return packed.name != "int8" or packed.rotation >= _SMALLEST_BLOCK


def products_of(
    device: torch.device,
    weights: Iterable[tuple[str, tuple[int, int]]],
    dtype: torch.dtype,
    rows: int,
    seconds: Timer | None = None,
) -> dict[str, bool]:
    """Which weights' products are computed in 8 bits: those that are faster so, forward and backward together.

    Args:
        device: only CUDA's is measured. On any other none is.
        weights: format and shape of each.
        dtype: the precision that the model computes in.
        rows: tokens of a batch.
        seconds: for tests; measures on any device.

    Returns:
        Answers by `key_of` a weight, to be recorded with the run.
    """
    if seconds is None and device.type != "cuda":
        return {}
    found = {key_of(*weight): weight for weight in weights}
    return {key: _pays(*weight, device, dtype, rows, seconds) for key, weight in found.items()}


def key_of(name: str, shape: tuple[int, int]) -> str:
    """Format and shape of a weight, such as "int8 3072x12288"."""
    return f"{name} {shape[0]}x{shape[1]}"


def _pays(
    name: str, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, rows: int, seconds: Timer | None
) -> bool:
    blank = Packed.blank(name, shape, "meta")
    if not fits(blank, rows):
        return False
    key = (torch.cuda.get_device_name(device) if device.type == "cuda" else device, name, shape, dtype, rows)
    if seconds is None and key in _measured:
        return _measured[key]
    packed = encode(torch.randn(shape, device=device), name)
    x, gradient = (torch.randn(rows, size, device=device, dtype=dtype) for size in reversed(shape))
    timer = seconds or _seconds
    unpacked = timer(lambda: (unpacked_product(packed, x), unpacked_input_gradient(packed, gradient)), device)
    try:
        coded = timer(lambda: (product(packed, x), input_gradient(packed, gradient)), device)
    except (RuntimeError, NotImplementedError) as error:
        _log.info("%s: no products in 8 bits, %s", key_of(name, shape), error)
        coded = float("inf")
    _measured[key] = coded < _MARGIN * unpacked
    _log.info(
        "%s, %d rows: %.2f ms with the weight unpacked, %.2f ms in 8 bits: %s",
        key_of(name, shape),
        rows,
        unpacked * 1e3,
        coded * 1e3,
        "in 8 bits" if _measured[key] else "unpacked",
    )
    return _measured[key]


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """The fastest of some calls, after some that warm up."""
    found = []
    for _ in range(8):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found[3:])


def _multiplied(name: str, x: Tensor, codes: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
    """((x · before) codes) · after (rows, n), for x (rows, k) and codes (k, n); before (1, k), after (1, n)."""
    found = x.new_empty(len(x), codes.shape[1])
    step = max(_ROWS, _CHUNK // codes.shape[1] // _ROWS * _ROWS)
    for start in range(0, len(x), step):
        chunk = x[start : start + step].float()
        part = found[start : start + step]
        if before is not None:
            chunk = chunk * before
        x_codes, scale = _ROW_CODES[name](F.pad(chunk, (0, 0, 0, -len(chunk) % _ROWS)))
        sums = _sums(x_codes, codes)[: len(part)] * scale[: len(part)]
        part.copy_(sums if after is None else sums * after)
    return found


def _sums(x: Tensor, codes: Tensor) -> Tensor:
    """x codes, for codes of int8 or float8."""
    if x.dtype == torch.int8:
        return torch._int_mm(x, codes)  # noqa: SLF001
    one = torch.ones((), device=x.device)
    columns = codes.T.contiguous().T  # no copy in the forward pass, where it lies so
    # bf16 as the kernels for rows of it are the ones that all have; its error is small beside that of the codes.
    return torch._scaled_mm(x, columns, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)  # noqa: SLF001
