"""Makes a recovery adapter: low-rank branches with which a packed model computes what the full one does.

Block by block, in the order of computing. A block is given what the packed model, recovered so far, hands it, and is to
make of that what the full block makes. Its layers' branches come in closed form from what the full block's layers are
given (`low_rank.fitted`) and are then refined together by Adam; at last, all of them on the whole prediction. One block
in full precision is on the device at a time; the full model waits in host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapters.operations import dense_weight
from ..errors import ConfigError
from .blocks import blocks_of
from .low_rank import fitted
from .observation import Call, all_outputs, calls_of, observed, outputs, prediction, predictions, tensors_of, visiting
from .packed_linear import PackedLinear
from .recovery_file import set_branch
from .settings import MemorySettings

if TYPE_CHECKING:
    from ..data.progress import Progress
    from ..families.base import Base
    from ..families.conditioning import Streams
    from .calibration import Probe

_RATE = 0.01
"""Of Adam, in terms of a branch's own size, for blocks; half of it for the whole. It falls to zero."""
_BRANCH = ("down", "up")


@dataclass(frozen=True)
class BlockError:
    """‖packed - full‖ / ‖full‖ of a block's outputs, for the same inputs."""

    path: str
    before: float
    after: float


@dataclass(frozen=True)
class Recovered:
    """The branches that were made, and what they achieve."""

    branches: dict[str, tuple[Tensor, Tensor]]
    """Module path → (down (rank, in), up (out, rank))"""
    blocks: list[BlockError]
    before: float
    """‖packed - full‖ / ‖full‖ of predictions that nothing was fitted to."""
    after: float
    bits_before: float
    """Bits for each packed weight, with scales and any branch."""
    bits_after: float


def recover(
    base: Base,
    packed: nn.Module,
    whole: Base,
    full: nn.Module,
    probes: Sequence[Probe],
    held_out: Sequence[Probe],
    rank: int,
    steps: int,
    whole_steps: int,
    progress: Progress,
) -> Recovered:
    """Gives a packed denoiser branches, in place of any that it has.

    Args:
        packed: its denoiser, on its device.
        whole: the same model with its weights as they are.
        full: its denoiser, on the CPU.
        probes: what the branches are fitted to.
        held_out: what the errors are measured on.
        steps: of Adam for each block; 0: the closed form alone.
        whole_steps: of Adam for all branches, on the prediction. They need as much memory as training does.

    Raises:
        ConfigError: if no layer of the model is packed.
    """
    blocks, originals = blocks_of(packed), blocks_of(full)
    held = base.config.quantization
    layers = {
        path: {name: one for name, one in block.named_modules() if isinstance(one, PackedLinear) and one.format == held}
        for path, block in blocks.items()
    }
    everything = {f"{path}.{name}": layer for path, own in layers.items() for name, layer in own.items()}
    if not everything:
        raise ConfigError("model.quantization: no layer of this base is packed, so there is nothing to recover")
    bits = _bits(everything.values())
    with visiting(full, originals.values(), base.device):
        wanted, wanted_apart = (predictions(whole, full, asked) for asked in (probes, held_out))
    before = relative_error(tensors_of(predictions(base, packed, held_out)), tensors_of(wanted_apart))
    errors = []
    for number, (path, block) in enumerate(blocks.items()):
        progress("recovering blocks", number, len(blocks))
        if layers[path]:
            calls = calls_of(base, packed, block, probes)
            original = originals[path].to(base.device)
            errors.append(BlockError(path, *_recover_block(base, block, original, layers[path], calls, rank, steps)))
            original.to("cpu")
    _refine_whole(base, packed, everything, probes, wanted, whole_steps, progress)
    after = relative_error(tensors_of(predictions(base, packed, held_out)), tensors_of(wanted_apart))
    branches = {path: (layer.low_rank_down, layer.low_rank_up) for path, layer in everything.items()}
    made = {path: (down, up) for path, (down, up) in branches.items() if down is not None and up is not None}
    return Recovered(made, errors, before, after, bits, _bits(everything.values()))


def relative_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """‖found - wanted‖ / ‖wanted‖ over all of several tensors."""
    apart = sum((a.float() - b.float()).square().sum().item() for a, b in zip(found, wanted, strict=True))
    return float((apart / max(sum(b.float().square().sum().item() for b in wanted), 1e-30)) ** 0.5)


def _recover_block(
    base: Base,
    block: nn.Module,
    original: nn.Module,
    layers: Mapping[str, PackedLinear],
    calls: Sequence[Call],
    rank: int,
    steps: int,
) -> tuple[float, float]:
    """Errors of its outputs before and after."""
    targets, covariances = observed(base, original, layers, calls)
    with torch.no_grad():
        before = relative_error(all_outputs(base, block, calls), [one for target in targets for one in target])
        for name, layer in layers.items():
            set_branch(layer, None, None)
            error = dense_weight(original.get_submodule(name)).float() - layer.dequantize().float()
            covariance = covariances.get(name, error.new_zeros(layer.in_features, layer.in_features))
            set_branch(layer, *fitted(error @ covariance, covariance, error, rank))
    scales = [
        sum(one.float().square().sum().item() for one in group) / len(targets) for group in zip(*targets, strict=True)
    ]

    def loss(number: int) -> Tensor:
        found = outputs(base, block, calls[number])
        pairs = zip(found, targets[number], scales, strict=True)
        return torch.stack([(one.float() - aim.to(one.device)).square().sum() / size for one, aim, size in pairs]).sum()

    _refine(base, layers.values(), loss, len(calls), steps, _RATE)
    with torch.no_grad():
        after = relative_error(all_outputs(base, block, calls), [one for target in targets for one in target])
    return before, after


def _refine_whole(
    base: Base,
    packed: nn.Module,
    layers: Mapping[str, PackedLinear],
    probes: Sequence[Probe],
    wanted: Sequence[Streams],
    steps: int,
    progress: Progress,
) -> None:
    scale = sum(one.square().sum().item() for one in tensors_of(wanted)) / len(wanted)
    if steps:
        base.recompute_blocks(packed, MemorySettings(recompute=True))

    def loss(number: int) -> Tensor:
        found = prediction(base, packed, probes[number])
        apart = [(found[name] - aim.to(base.device)).square().sum() for name, aim in wanted[number].items()]
        return torch.stack(apart).sum() / scale

    _refine(base, layers.values(), loss, len(probes), steps, _RATE / 2, partial(progress, "recovering the whole"))


def _refine(
    base: Base,
    layers: Iterable[PackedLinear],
    loss: Callable[[int], Tensor],
    count: int,
    steps: int,
    rate: float,
    progress: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005
) -> None:
    """Adam on the branches of some layers, over `count` losses in turn."""
    if not steps:
        return
    with torch.enable_grad(), base.training_pass(), _trained(layers) as weights:
        groups = [{"params": [one], "lr": rate * one.detach().square().mean().sqrt().item()} for one in weights]
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        for step in range(steps):
            progress(step, steps)
            optimizer.zero_grad()
            loss(step % count).backward()
            optimizer.step()
            schedule.step()


@contextmanager
def _trained(layers: Iterable[PackedLinear]) -> Iterator[list[nn.Parameter]]:
    """The branches of some layers as fp32 parameters of theirs; they are buffers again at the end."""
    layers, hooks = list(layers), []
    for layer in layers:
        for name in _BRANCH:
            layer.register_parameter(f"trained_{name}", nn.Parameter(getattr(layer, f"low_rank_{name}").float()))
        set_branch(layer, None, None)
        hooks.append(layer.register_forward_hook(_beside))
    try:
        yield [layer.get_parameter(f"trained_{name}") for layer in layers for name in _BRANCH]
    finally:
        for hook, layer in zip(hooks, layers, strict=True):
            hook.remove()
            set_branch(layer, *(layer.get_parameter(f"trained_{name}") for name in _BRANCH))
            for name in _BRANCH:
                delattr(layer, f"trained_{name}")


def _beside(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    down, up = (layer.get_parameter(f"trained_{name}").to(inputs[0].dtype) for name in _BRANCH)
    return output + F.linear(F.linear(inputs[0], down), up).to(output.dtype)


def _bits(layers: Iterable[PackedLinear]) -> float:
    layers = list(layers)
    size = sum(buffer.nbytes for layer in layers for name, buffer in layer.named_buffers() if name != "bias")
    return 8 * size / sum(layer.in_features * layer.out_features for layer in layers)
