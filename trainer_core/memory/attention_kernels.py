"""Which of torch's attention kernels is used: on a GPU the fastest one for each shape, measured when it first comes.

Which that is differs between GPUs by a factor of two and more, and torch does not look: it takes them in a fixed order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import _disable_current_modes

from ..files import write_atomically
from ..reading import read_json
from ..runs.events import Listener, Phase

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""By the names in files and logs. The plain one keeps all weights of attention for the backward pass."""
FILE = "kernels.json"
"""In the run folder: what was measured, so that a resumed run computes with the same kernels."""
_FILE_OF = "kernels_{}.json"
"""The same of a rank that does not lead: each measures the shapes that it meets, when it meets them."""
_ROUNDS = 5

Timer = Callable[[Callable[[], None], torch.device], float]


class AttentionKernels:
    """`scaled_dot_product_attention`, with the kernel that was the fastest for its shapes."""

    def __init__(
        self,
        chosen: Mapping[str, str],
        kernels: Mapping[str, Any] = KERNELS,
        timer: Timer | None = None,
        on_choice: Callable[[str, str, dict[str, float]], None] | None = None,
    ) -> None:
        """Args:
        chosen: what was measured before: kernels by shapes.
        timer: seconds that a call takes on a device.
        on_choice: is told the shapes, the kernel, and the seconds of all.
        """
        self.chosen, self._kernels = dict(chosen), kernels
        self._timer, self._on_choice = timer or _seconds, on_choice
        self._plain: Callable[..., Tensor] = F.scaled_dot_product_attention

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kw: Any) -> Tensor:
        if torch.compiler.is_compiling() or query.is_meta:
            return self._plain(query, key, value, attn_mask, **kw)
        shapes = _described(query, key, value, attn_mask, kw)
        if shapes not in self.chosen:
            self._choose(shapes, (query, key, value), attn_mask, kw)
        kernel = self._kernels.get(self.chosen[shapes])
        with nullcontext() if kernel is None else sdpa_kernel(kernel):
            return self._plain(query, key, value, attn_mask, **kw)

    def _choose(self, shapes: str, tensors: tuple[Tensor, ...], mask: Tensor | None, kw: dict[str, Any]) -> None:
        """Measures all kernels; where none can compute this, the choice is empty and torch's."""
        seconds: dict[str, float] = {}
        # only sizes matter; and whoever watches the model's operations must not take these for its own
        with _disable_current_modes(), torch.inference_mode(False), torch.enable_grad():
            given = [torch.randn_like(one.detach()).requires_grad_() for one in tensors]

            def run() -> None:
                found = self._plain(*given, mask, **kw)
                torch.autograd.grad(found, given, torch.ones_like(found))

            for name, kernel in self._kernels.items():
                try:
                    with sdpa_kernel(kernel):
                        seconds[name] = self._timer(run, tensors[0].device)
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError:  # not for these shapes, this precision, this GPU
                    continue
        self.chosen[shapes] = min(seconds, key=seconds.__getitem__) if seconds else ""
        if self._on_choice is not None:
            self._on_choice(shapes, self.chosen[shapes], seconds)


@contextmanager
def tuned_attention(folder: Path, device: torch.device, setting: str, emit: Listener, rank: int = 0) -> Iterator[None]:
    """Has models on a GPU compute attention with the fastest kernel, where `memory.attention` is auto.

    Args:
        folder: of the run, which keeps what was measured.
        rank: of this process, of those that train the run.
    """
    if setting != "auto" or device.type != "cuda":
        yield
        return
    file = folder / (_FILE_OF.format(rank) if rank else FILE)

    def told(shapes: str, kernel: str, seconds: dict[str, float]) -> None:
        times = ", ".join(f"{name} {1000 * one:.2f} ms" for name, one in seconds.items())
        emit(Phase(f"attention of {shapes}: {kernel or 'as torch chooses'} ({times or 'no other kernel fits'})", 1, 1))
        write_atomically(file, json.dumps(kernels.chosen, indent=1).encode(), inside=folder)

    kernels = AttentionKernels(_read(file), on_choice=told)
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = kernels  # type: ignore[assignment]  # diffusers and ComfyUI look it up at each call
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def _read(file: Path) -> dict[str, str]:
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return {str(shapes): str(name) for shapes, name in found.items()} if isinstance(found, dict) else {}


def _described(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kw: Mapping[str, Any]) -> str:
    """Such as "1x24x4608x128 bfloat16": equal where the same kernel is the fastest."""
    sizes = {"x".join(map(str, one.shape)) for one in (query, key, value)}
    more = [name for name, on in (("masked", mask is not None), ("causal", kw.get("is_causal"))) if on]
    return " ".join([*sorted(sizes, reverse=True), str(query.dtype).removeprefix("torch."), *more])


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """The median of some calls, after one that does not count."""
    run()
    times = []
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(torch.cuda.current_stream(device))
        run()
        end.record(torch.cuda.current_stream(device))
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return sorted(times)[_ROUNDS // 2]
