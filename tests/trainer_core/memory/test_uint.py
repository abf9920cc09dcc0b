"""AI Toolkit's uint formats, weight by weight as torchao 0.10 computes them: every operation rounds to bf16."""

from __future__ import annotations

import pytest
import torch

from trainer_core.memory.formats import Packed, encode
from trainer_core.randomness import normal_like


def _expected(group: list[float], bits: int) -> list[float]:
    def bf16(value: float) -> float:
        return torch.tensor(value).bfloat16().item()

    weights, most = [bf16(one) for one in group], 2**bits - 1
    low, high = min(*weights, 0.0), max(*weights, 0.0)
    step = bf16(bf16(high - low) / most)
    zero = min(max(-round(bf16(low / step)), 0), most)
    factor = bf16(1 / step)
    codes = [min(max(round(bf16(one * factor)) + zero, 0), most) for one in weights]
    return [bf16((code - zero) * step) for code in codes]


@pytest.mark.parametrize(("name", "bits", "size", "error"), [("uint3", 3, 3.375, 0.195), ("uint4", 4, 4.375, 0.091)])
def test_the_weights_are_those_of_torchao(name: str, bits: int, size: float, error: float) -> None:
    weight = normal_like((64, 256), name) * 0.02
    weight[0, :64] = weight[0, :64].abs()  # zero is a level though no weight is below it
    packed = encode(weight, name)
    found = packed.decode()
    expected = [_expected(group.tolist(), bits) for row in weight[:4] for group in row.split(64)]
    assert found[:4].flatten().tolist() == [one for group in expected for one in group]
    assert packed.bits_per_weight == size
    assert ((found - weight).norm() / weight.norm()).item() == pytest.approx(error, rel=0.05)  # of the reference
    again = Packed.from_tensors(packed.name, packed.shape, packed.tensors())
    assert torch.equal(again.decode(torch.bfloat16), found.bfloat16())
