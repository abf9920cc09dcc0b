"""What a training step costs here, in a plain loop of diffusers and peft, and in ComfyUI's own trainer.

    OMP_NUM_THREADS=1 python benchmarks/compare.py [--comfyui ~/ComfyUI] [--rounds 15] [--json FILE]

All train LoRAs of the same layers, rank and start on the same FLUX.1 with random weights, on the same batch. They take
turns of two steps in one process, and medians of the CPU seconds of the second steps are compared: ours divided by
theirs. The first finds the caches full of another's weights, which costs 7 to 20 %; in a training, steps follow one
another. Memory comes in large pages where the system gives them, so that where pages lie decides less. Losses must
agree.
`builtin` is each at its best: ours without checkpointing, plain or compiled (`memory.compile`), ComfyUI's in the
fastest of its modes that train a FLUX. None does behind its node TorchCompileModel, which is tried as well.
`bytes_kept_peft` is what waits for the backward pass of a smaller FLUX in bfloat16, counted by memory, without weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it once

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from trainer_core.adapters.adapter import Adapter  # noqa: E402
from trainer_core.config import JobConfig  # noqa: E402
from trainer_core.errors import first_line  # noqa: E402
from trainer_core.families.conditioning import MAIN, Conditioning  # noqa: E402
from trainer_core.families.device import autocast  # noqa: E402
from trainer_core.families.flux1.blocks import install  # noqa: E402
from trainer_core.families.flux1.model import Flux, pack, position_ids  # noqa: E402
from trainer_core.memory.blocks import blocks_of  # noqa: E402
from trainer_core.memory.compiled import compile_blocks  # noqa: E402
from trainer_core.memory.settings import MemorySettings  # noqa: E402
from trainer_core.objective.flow import FlowSchedule  # noqa: E402
from trainer_core.training.batch_source import TrainBatch  # noqa: E402
from trainer_core.training.step import Objective  # noqa: E402
from trainer_core.training.update import Updater  # noqa: E402

TEXT, POOLED = 64, 64
"""Widths of the text's embeddings."""
TARGETS = Flux.spec.targets["attention_mlp"]


class Random(Flux):
    """A FLUX.1 without files."""

    schedule = FlowSchedule()  # type: ignore[assignment]
    timestep_type = "linear"  # type: ignore[assignment]

    def __init__(self, dtype: torch.dtype) -> None:
        self.device, self.dtype, self.text_encoder_dtype = torch.device("cpu"), dtype, torch.float32
        self._distilled = False


def flux(dtype: torch.dtype, heads: int, head: int, double: int, single: int) -> nn.Module:
    """One with random weights, frozen."""
    torch.manual_seed(0)
    rope = [head // 8, head * 7 // 16, head * 7 // 16]
    model = FluxTransformer2DModel(
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=head,
        num_attention_heads=heads,
        axes_dims_rope=rope if sum(rope) == head else [head // 4, head * 3 // 8, head * 3 // 8],
        joint_attention_dim=TEXT,
        pooled_projection_dim=POOLED,
        guidance_embeds=False,
    )
    frozen: nn.Module = model.to(dtype).requires_grad_(False)
    return frozen


def batch_of(latents: int, text: int, size: int = 1) -> TrainBatch:
    """Latents of a square of so many tokens, and a text of so many."""
    edge = 2 * round(latents**0.5)
    shape = (size, 16, edge, edge)
    given = {"text": torch.randn(text, TEXT), "pooled": torch.randn(POOLED)}
    samples: Any = [SimpleNamespace(dataset=0)] * size
    return TrainBatch(
        number=0,
        everyone=tuple(samples),
        samples=samples,
        clean={MAIN: torch.randn(shape)},
        noise={MAIN: torch.randn(shape)},
        t=torch.rand(size) * 0.8 + 0.1,
        mask={},
        captioned=[Conditioning("", given)] * size,
    )


class Ours:
    """The trainer's objective and updates."""

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, rank: int, checkpointing: bool = False, compiled: bool = False
    ) -> None:
        job = JobConfig.model_validate(
            {
                "name": "compared",
                "model": {"source": "embedded"},
                "adapter": {"rank": rank, "targets": "attention_mlp"},
                "datasets": [{"folder": "."}],
                "train": {"learning_rate": 1e-4, "optimizer": "adamw", "max_grad_norm": 1.0, "weight_decay": 0.01},
            }
        )
        base, self.denoiser = Random(dtype), copy.deepcopy(model).train()
        install(self.denoiser)
        self.adapter = Adapter(self.denoiser, job.adapter, TARGETS, seed=0)
        if compiled:
            compile_blocks(blocks_of(self.denoiser).values(), print)
        if checkpointing:
            base.recompute_blocks(self.denoiser, MemorySettings(recompute=True))
        self.updater = Updater(job, Objective(job, base, self.denoiser, self.adapter), self.adapter, print)

    def step(self, batch: TrainBatch, number: int) -> float:
        return self.updater.update([batch], number).loss

    def loss(self, batch: TrainBatch) -> Tensor:
        (term,) = self.updater.objective.terms(batch, 0)
        return term.minimised.sum()


class Pefts:
    """A plain loop, as its libraries' documentation has it, with the fast forms of clipping and AdamW."""

    def __init__(
        self, ours: Ours, model: nn.Module, dtype: torch.dtype, rank: int, checkpointing: bool = False
    ) -> None:
        from peft import LoraConfig

        self.dtype, self.denoiser = dtype, copy.deepcopy(model).train()
        denoiser: Any = self.denoiser
        denoiser.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules="|".join(TARGETS)))
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        start = ours.adapter.state_dict()
        named = {name: one for name, one in denoiser.named_parameters() if "lora_" in name}
        for name, one in named.items():
            one.data = start.pop(name.replace(".default", "")).clone()
        assert not start, "the same layers"
        self.parameters = list(named.values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.01, foreach=True)

    def loss(self, batch: TrainBatch) -> Tensor:
        clean, noise, t = batch.clean[MAIN], batch.noise[MAIN], batch.t
        noisy = (1 - t[:, None, None, None]) * clean + t[:, None, None, None] * noise
        text, pooled = (
            torch.stack([one.text[key] for one in batch.captioned if one.text]) for key in ("text", "pooled")
        )
        edge = clean.shape[-1] // 2
        with autocast(clean.device, self.dtype):
            predicted = self.denoiser(
                hidden_states=pack(noisy).to(self.dtype),
                encoder_hidden_states=text.to(self.dtype),
                pooled_projections=pooled.to(self.dtype),
                timestep=t,
                img_ids=position_ids(edge, edge, clean.device),
                txt_ids=torch.zeros(text.shape[1], 3),
                return_dict=False,
            )[0]
        return F.mse_loss(predicted.float(), pack(noise - clean))

    def step(self, batch: TrainBatch, _: int) -> float:
        loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def bytes_kept(one: Any, batch: TrainBatch) -> int:
    """Bytes that wait for the backward pass: by memory, each once, without weights and what is trained.

    Beside what autograd saves, also the tensors that functions of ours hold on to.
    """
    frozen = (*one.denoiser.parameters(), *one.denoiser.buffers())
    own = {tensor.untyped_storage().data_ptr() for tensor in frozen}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in own:
            kept[memory.data_ptr()] = memory.nbytes()
        return tensor

    one.loss(batch)  # the first one finds out which layers read the same tensor
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = one.loss(batch)
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)
        for value in getattr(node, "__dict__", {}).values():
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, Tensor):
                    count(tensor)
    return sum(kept.values())


def compared(given: argparse.Namespace) -> dict[str, float]:
    """Ours divided by theirs, by the comparison's name."""
    dtype = getattr(torch, given.dtype)
    model = flux(dtype, given.width // 128, 128, given.double, given.single)
    batch = batch_of(given.tokens, given.text)
    print(
        f"{sum(one.numel() for one in model.parameters()) / 1e6:.1f} M parameters, {given.tokens + given.text} tokens"
    )
    ratios = {
        name: with_peft(name, given, model, batch, dtype, checkpointing)
        for name, checkpointing in (("peft", False), ("peft_checkpointed", True))
    }
    small = flux(torch.bfloat16, 8, 128, 2, 2)
    sizes = batch_of(256, 64)
    ours = Ours(small, torch.bfloat16, 16)
    kept = [bytes_kept(one, sizes) for one in (ours, Pefts(ours, small, torch.bfloat16, 16))]
    ratios["bytes_kept_peft"] = kept[0] / kept[1]
    print(f"bytes_kept_peft: {kept[0] / 1e6:.1f} MB / {kept[1] / 1e6:.1f} MB = {ratios['bytes_kept_peft']:.3f}")
    if given.comfyui.is_dir():
        ratios |= with_builtin(given, model, batch, dtype)
    return ratios


def with_peft(
    name: str, given: argparse.Namespace, model: nn.Module, batch: TrainBatch, dtype: torch.dtype, checkpointing: bool
) -> float:
    ours = Ours(model, dtype, given.rank, checkpointing)
    theirs = Pefts(ours, model, dtype, given.rank, checkpointing)
    seconds: list[list[float]] = [[], []]
    for number in range(given.rounds + 1):
        losses = [turn(one.step, batch, number, into) for one, into in zip((ours, theirs), seconds, strict=True)]
        agree(*losses, given.dtype)
    return told(name, *seconds)


def with_builtin(
    given: argparse.Namespace, model: nn.Module, batch: TrainBatch, dtype: torch.dtype
) -> dict[str, float]:
    from benchmarks.builtin import Builtin

    builtin = Builtin(given.comfyui, {name: one.clone() for name, one in model.state_dict().items()}, given.dtype)
    text = batch.captioned[0].text
    assert text
    untrained = Ours(model, dtype, given.rank)
    ours = {
        (checkpointing, compiled): Ours(model, dtype, given.rank, checkpointing, compiled)
        for checkpointing, compiled in product((False, True), repeat=2)
    }
    ratios: dict[str, float] = {}
    # 1: the whole model is computed again, 2: block by block
    for compiled, bypass, depth in product((False, True), (False, True), (0, 1, 2)):
        each = {which: one for which, one in ours.items() if depth or not which[0]}
        seconds: dict[Any, list[float]] = {which: [] for which in each}

        ours_now = cycle((True, False))

        def between(each: Any = each, seconds: Any = seconds, ours_now: Any = ours_now) -> None:
            for which, one in each.items() if next(ours_now) else ():
                turn(one.step, batch, len(seconds[which]), seconds[which])

        mode = f"checkpoint depth {depth}, bypass mode {'on' if bypass else 'off'}{', compiled' if compiled else ''}"
        more = {"gradient_checkpointing": depth > 0, "checkpoint_depth": max(depth, 1), "bypass_mode": bypass}
        try:
            theirs, first = builtin.train(
                batch.clean[MAIN], text, given.rank, 2 * (given.rounds + 1), between, compiled, **more
            )
        except (RuntimeError, TorchDynamoException) as error:
            reason = first_line(getattr(error, "inner_exception", error))
            print(f"built-in, {mode}: does not train ({reason.partition(':')[0]})")
            continue
        sigma = first["sigma"].float()
        same = replace(batch, clean={MAIN: first["clean"]}, noise={MAIN: first["noise"]}, t=sigma)
        # theirs is the error of x0, which is sigma times that of the velocity
        agree(untrained.loss(same).item(), first["loss"] / sigma.item() ** 2, given.dtype)
        best: dict[str, float] = {}
        for (checkpointing, own), mine in seconds.items():
            name = "builtin_checkpointed" if checkpointing else "builtin"
            ratio = told(f"{name}, {mode}; ours {'compiled' if own else 'plain'}", mine, theirs[1::2])
            best[name] = min(ratio, best.get(name, ratio))
        ratios = {name: max(ratio, ratios.get(name, ratio)) for name, ratio in best.items()}
    return ratios


def turn(step: Callable[[TrainBatch, int], float], batch: TrainBatch, number: int, into: list[float]) -> float:
    """Two steps, of which the second is measured; its loss."""
    step(batch, 2 * number)
    began = time.process_time()
    loss = step(batch, 2 * number + 1)
    into.append(time.process_time() - began)
    return loss


def told(name: str, ours: list[float], theirs: list[float]) -> float:
    """The ratio of medians, without each one's first turn."""
    mine, their = (statistics.median(one[1:]) for one in (ours, theirs))
    print(f"{name}: {mine:.3f} s / {their:.3f} s = {mine / their:.3f}", flush=True)
    return mine / their


def agree(ours: float, theirs: float, dtype: str) -> None:
    """Raises:
    SystemExit: if losses differ by more than rounding.
    """
    if abs(ours - theirs) > (1e-4 if dtype == "float32" else 2e-2) * abs(theirs):
        raise SystemExit(f"the losses differ: {ours} and {theirs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=Path.home() / "ComfyUI", help="skipped if it is not there")
    parser.add_argument("--width", type=int, default=512, help="a multiple of 128")
    parser.add_argument("--double", type=int, default=2, help="number of blocks")
    parser.add_argument("--single", type=int, default=4, help="number of blocks")
    parser.add_argument("--tokens", type=int, default=256, help="of the picture, the square of an even number")
    parser.add_argument("--text", type=int, default=32, help="tokens of the text")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    ratios = compared(given)
    if given.json:
        given.json.write_text(json.dumps({"ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
