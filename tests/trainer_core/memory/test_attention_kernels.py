"""The fastest attention kernel for each shape, measured once and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from trainer_core.memory import attention_kernels as attention
from trainer_core.memory.attention_kernels import FILE, AttentionKernels, tuned_attention
from trainer_core.runs.events import Event

KERNELS = {"one": SDPBackend.FLASH_ATTENTION, "two": SDPBackend.CUDNN_ATTENTION, "three": SDPBackend.MATH}


@pytest.fixture
def active(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels that calls were made with; none is left to torch."""
    found: list[Any] = []
    inside: list[Any] = []

    @contextmanager
    def sdpa_kernel(kernel: Any) -> Any:
        inside.append(kernel)
        try:
            yield
        finally:
            inside.pop()

    plain = F.scaled_dot_product_attention

    def spy(*args: Any, **kwargs: Any) -> Any:
        found.append(inside[-1] if inside else None)
        return plain(*args, **kwargs)

    monkeypatch.setattr(attention, "sdpa_kernel", sdpa_kernel)
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return found


def timer(seconds: dict[Any, float | None], active: list[Any]) -> Callable[..., float]:
    def timed(run: Callable[[], None], _: torch.device) -> float:
        run()
        found = seconds[active[-1]]
        if found is None:
            raise RuntimeError("no kernel for this")
        return found

    return timed


def qkv(tokens: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(1, 2, tokens, 8, generator=torch.Generator().manual_seed(k)) for k in range(3))


def test_each_shape_gets_the_kernel_that_was_the_fastest_for_it(active: list[Any]) -> None:
    seconds: dict[Any, float | None] = dict.fromkeys(KERNELS.values(), 2.0)
    kernels = AttentionKernels({}, KERNELS, timer(seconds, active))
    seconds[SDPBackend.CUDNN_ATTENTION] = 1.0
    first = kernels(*qkv(4))
    assert active[-1] == SDPBackend.CUDNN_ATTENTION
    seconds[SDPBackend.MATH] = 0.5
    kernels(*qkv(6))
    assert active[-1] == SDPBackend.MATH
    measured = len(active)
    again = kernels(*qkv(4))  # is not measured again
    assert active[measured:] == [SDPBackend.CUDNN_ATTENTION]
    assert torch.equal(first, again)
    assert torch.allclose(first, torch.softmax(qkv(4)[0] @ qkv(4)[1].mT / 8**0.5, -1) @ qkv(4)[2], atol=1e-6)


def test_kernels_that_fail_are_passed_over_and_without_any_torch_chooses(active: list[Any]) -> None:
    seconds: dict[Any, float | None] = {**dict.fromkeys(KERNELS.values()), SDPBackend.MATH: 3.0}
    told: list[tuple[Any, ...]] = []
    kernels = AttentionKernels({}, KERNELS, timer(seconds, active), lambda *one: told.append(one))
    kernels(*qkv(4))
    assert active[-1] == SDPBackend.MATH
    seconds[SDPBackend.MATH] = None
    kernels(*qkv(6))
    assert active[-1] is None
    assert told == [("1x2x4x8 float32", "three", {"three": 3.0}), ("1x2x6x8 float32", "", {})]


def test_measuring_is_not_seen_by_who_watches_the_model(active: list[Any]) -> None:
    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **kwargs or {})

    seen: list[str] = []
    kernels = AttentionKernels({}, KERNELS, timer(dict.fromkeys(KERNELS.values(), 1.0), active))
    with Watching():
        kernels(*qkv(4))
    assert len([name for name in seen if "scaled_dot_product" in name]) == 1


def test_masked_and_causal_attention_are_measured_apart(active: list[Any]) -> None:
    kernels = AttentionKernels({}, KERNELS, timer(dict.fromkeys(KERNELS.values(), 1.0), active))
    kernels(*qkv(4), attn_mask=torch.ones(4, 4, dtype=torch.bool))
    kernels(*qkv(4), is_causal=True)
    kernels(*qkv(4))
    assert sorted(kernels.chosen) == ["1x2x4x8 float32", "1x2x4x8 float32 causal", "1x2x4x8 float32 masked"]


def test_a_run_keeps_what_was_measured_and_gives_torchs_own_back(
    tmp_path: Path, active: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, told = F.scaled_dot_product_attention, list[Event]()
    monkeypatch.setattr(attention, "_seconds", timer(dict.fromkeys(attention.KERNELS.values(), 1.0), active))
    gpu = torch.device("cuda")
    with tuned_attention(tmp_path, gpu, "auto", told.append):
        F.scaled_dot_product_attention(*qkv(4))
    assert F.scaled_dot_product_attention is plain
    assert json.loads((tmp_path / FILE).read_text()) == {"1x2x4x8 float32": "flash"}
    assert len(told) == 1
    with tuned_attention(tmp_path, gpu, "auto", told.append), pytest.raises(TypeError):
        F.scaled_dot_product_attention(*qkv(4), is_causal="no")
    with tuned_attention(tmp_path, gpu, "auto", told.append):
        F.scaled_dot_product_attention(*qkv(4))
    assert F.scaled_dot_product_attention is plain
    assert len(told) == 1, "measured again"
    for device, setting in (("cpu", "auto"), ("cuda", "default")):
        with tuned_attention(tmp_path, torch.device(device), setting, told.append):
            assert F.scaled_dot_product_attention is plain


def test_each_of_several_processes_keeps_what_it_has_measured_itself(
    tmp_path: Path, active: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They meet shapes at different times: of a short micro-batch one has less than another."""
    gpu, told = torch.device("cuda"), list[Event]()
    for rank, fastest in enumerate(("efficient", "flash", "cudnn")):
        seconds = {kernel: float(name != fastest) + 1 for name, kernel in attention.KERNELS.items()}
        monkeypatch.setattr(attention, "_seconds", timer(seconds, active))
        with tuned_attention(tmp_path, gpu, "auto", told.append, rank):
            F.scaled_dot_product_attention(*qkv(4))
    for rank, fastest in enumerate(("efficient", "flash", "cudnn")):
        with tuned_attention(tmp_path, gpu, "auto", told.append, rank):
            F.scaled_dot_product_attention(*qkv(4))
        file = tmp_path / ("kernels.json" if rank == 0 else f"kernels_{rank}.json")
        assert json.loads(file.read_text()) == {"1x2x4x8 float32": fastest}
    assert len(told) == 3, "measured again"
