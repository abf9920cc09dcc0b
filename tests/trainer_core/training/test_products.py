"""Who chooses which products with the base are computed in 8 bits (`memory/test_products.py`: what is measured)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from trainer_core.memory.packed_linear import PackedLinear
from trainer_core.training import products
from trainer_core.training.parallel import Ranks


@dataclass(frozen=True)
class Pair(Ranks):
    """One of two processes; what the other one has, and what the first one says, is given."""

    count: int = 2
    other: tuple[int, ...] = (0, 0)
    said: str = ""

    def exchange(self, numbers: Any) -> list[list[int]]:
        return [list(numbers), list(self.other)]

    def tell(self, text: str = "") -> str:
        return text if self.leads else self.said


@pytest.mark.parametrize(
    ("ranks", "fast"),
    [
        (Pair(), True),
        (Pair(other=(8, 9)), False),
        (Pair(rank=1, said='{"int8 64x64": true}'), True),
        (Pair(rank=1, said="{}"), False),
    ],
)
def test_all_do_as_the_first_says_and_it_chooses_none_where_gpus_differ(
    ranks: Pair, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def measured(*_given: Any) -> dict[str, bool]:
        asked.append(1)
        return {"int8 64x64": True}

    monkeypatch.setattr(products, "_measured", measured)
    layer = PackedLinear.from_linear(nn.Linear(64, 64), "int8")
    experts: Any = [SimpleNamespace(denoiser=nn.Sequential(layer))]
    base: Any = SimpleNamespace(device=torch.device("cpu"))
    for _ in range(2):  # the second time from the file, where there is one
        layer.in_8_bits = not fast
        products.choose_products(tmp_path, SimpleNamespace(), base, experts, lambda _: None, ranks)  # type: ignore[arg-type]
        assert layer.in_8_bits is fast
        assert base.products == ({"int8 64x64": True} if fast else {})
    assert len(asked) == (1 if ranks.leads and fast else 0)
    assert (tmp_path / products.FILE).exists() == bool(asked)
