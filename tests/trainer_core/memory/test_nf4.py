"""NF4 as bitsandbytes' own layers hold it."""

from __future__ import annotations

import sys

import pytest
import torch

from trainer_core.errors import ConfigError
from trainer_core.memory.formats import Packed, encode

bitsandbytes = pytest.importorskip("bitsandbytes")


def weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_bitsandbytes_own(dtype: torch.dtype) -> None:
    dense = weight(48, 192)
    found = encode(dense, "nf4")
    codes, state = bitsandbytes.functional.quantize_4bit(dense, blocksize=64, quant_type="nf4")
    expected = bitsandbytes.functional.dequantize_4bit(codes, state)
    assert torch.equal(found.parts["codes"].flatten(), codes.flatten())
    assert torch.allclose(found.decode(dtype), expected.to(dtype), atol=0.02 if dtype == torch.bfloat16 else 1e-6)
    assert found.bits_per_weight == 4.5


def test_error_and_rows_that_groups_do_not_divide() -> None:
    """Published: 9.1 to 9.2 % of normal weights."""
    dense = weight(256, 1000)
    found = encode(dense, "nf4").decode()
    assert 0.088 < ((found - dense).norm() / dense.norm()).item() < 0.095


def test_from_disk() -> None:
    made = encode(weight(8, 128), "nf4")
    again = Packed.from_tensors("nf4", (8, 128), made.tensors())
    assert torch.equal(made.decode(), again.decode())


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        encode(weight(8, 128), "nf4")
