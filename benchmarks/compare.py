"""What a training step costs here, in a plain loop of diffusers and peft, and in ComfyUI's own trainer.

    OMP_NUM_THREADS=1 python benchmarks/compare.py [--comfyui ~/ComfyUI] [--rounds 15] [--dtype float32] [--json FILE]

All train LoRAs of the same layers, rank and start on the same FLUX.1 with random weights, on the same batch. Steps of all
take turns in one process, and medians of their CPU seconds are compared: ours divided by theirs. Losses must agree.
`builtin` is each at its best: ours without checkpointing, ComfyUI's in its faster mode. `bytes_kept_peft` is what
waits for the backward pass of a smaller FLUX in bfloat16, counted by memory, without weights.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from trainer_core.adapters.adapter import Adapter  # noqa: E402
from trainer_core.config import JobConfig  # noqa: E402
from trainer_core.families.conditioning import MAIN, Conditioning  # noqa: E402
from trainer_core.families.device import autocast  # noqa: E402
from trainer_core.families.flux1.blocks import install  # noqa: E402
from trainer_core.families.flux1.model import Flux, pack, position_ids  # noqa: E402
from trainer_core.memory.settings import MemorySettings  # noqa: E402
from trainer_core.objective.flow import FlowSchedule  # noqa: E402
from trainer_core.training.batch_source import TrainBatch  # noqa: E402
from trainer_core.training.step import Objective  # noqa: E402
from trainer_core.training.update import Updater  # noqa: E402

TEXT, POOLED = 64, 64
"""Widths of the text's embeddings."""
TARGETS = Flux.spec.targets["attention_mlp"]
ADDED = ("loss", "adamw", "clipping")


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

    def __init__(self, model: nn.Module, dtype: torch.dtype, rank: int, checkpointing: bool = False) -> None:
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

    def step(self, batch: TrainBatch, number: int) -> float:
        loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def bytes_kept(one: Any, batch: TrainBatch, weights: nn.Module) -> int:
    """Bytes that wait for the backward pass: by memory, each once, without weights and what is trained.

    Beside what autograd saves, also the tensors that functions of ours hold on to.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*weights.parameters(), *weights.buffers())}
    own |= {one.untyped_storage().data_ptr() for value in batch.clean.values() for one in [value]}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in own:
            kept[memory.data_ptr()] = memory.nbytes()
        return tensor

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
