"""ComfyUI's own trainer (`comfy_extras/nodes_train.py`), run as its node runs it, for `compare.py`."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from safetensors.torch import save_file
from torch import Tensor, nn

TARGETS = (
    r"diffusion_model\.(double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj)|mlp\.[02])|single_blocks\.\d+\.linear[12])"
)
"""Attention and feed-forward, by ComfyUI's names."""


class Builtin:
    """A model as ComfyUI loads it, and its node."""

    def __init__(self, comfyui: Path, weights: dict[str, Tensor], dtype: str) -> None:
        from tests.host.pack import comfy_on_cpu

        comfy_on_cpu(comfyui)
        import comfy.sd
        import comfy_extras.nodes_torch_compile
        import comfy_extras.nodes_train

        self._nodes: Any = comfy_extras.nodes_train
        self._dtype = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
        options = {"dtype": next(iter(weights.values())).dtype}
        self._folder = tempfile.TemporaryDirectory()  # from which the node makes its copy
        file = Path(self._folder.name) / "model.safetensors"
        save_file(weights, file)
        self._model = comfy.sd.load_diffusion_model(str(file), model_options=options)
        self._compiled = comfy_extras.nodes_torch_compile.TorchCompileModel.execute(self._model, "inductor").args[0]

    def train(
        self,
        clean: Tensor,
        text: dict[str, Tensor],
        rank: int,
        steps: int,
        between: Callable[[], None],
        compiled: bool = False,
        **settings: Any,
    ) -> tuple[list[float], dict[str, Any]]:
        """CPU seconds of each step, and what the first one computed: loss, noise, latents and sigma.

        Args:
            between: what takes turns with its steps.
            compiled: the model comes through the node TorchCompileModel.
            settings: gradient_checkpointing, checkpoint_depth, bypass_mode

        Raises:
            RuntimeError: without checkpointing, where the model changes what autograd has saved (FLUX does).
            TorchDynamoException: the same, compiled.
        """
        positive = [[text["text"][None], {"pooled_output": text["pooled"][None]}]]
        given = {
            "model": self._compiled if compiled else self._model,
            "batch_size": 1,
            "grad_accumulation_steps": 1,
            "steps": steps + 1,
            "learning_rate": 1e-4,
            "rank": rank,
            "optimizer": "AdamW",
            "loss_function": "MSE",
            "seed": 0,
            "training_dtype": self._dtype,
            "lora_dtype": "fp32",
            "quantized_backward": False,
            "algorithm": "LoRA",
            "offloading": False,
            "existing_lora": "[None]",
            "bucket_mode": False,
            **settings,
        }
        arguments = {name: [value] for name, value in given.items()}
        with self._watched(between) as (seconds, first):
            self._nodes.TrainLoraNode.execute(latents=[{"samples": clean}], positive=[positive], **arguments)
        return seconds, first

    @contextmanager
    def _watched(self, between: Callable[[], None]) -> Iterator[tuple[list[float], dict[str, Any]]]:
        sampler, seconds, first = self._nodes.TrainSampler, list[float](), dict[str, Any]()
        step, compute = sampler._train_step_standard_mode, sampler.fwd_bwd  # noqa: SLF001
        began = 0.0

        def stepped(*args: Any) -> None:
            nonlocal began
            if began:
                seconds.append(time.process_time() - began)
            between()
            began = time.process_time()
            step(*args)

        def computed(
            own: Any, wrap: Any, sigma: Tensor, noise: Tensor, latents: Tensor, *more: Any, **also: Any
        ) -> Any:
            loss = compute(own, wrap, sigma, noise, latents, *more, **also)
            if not first:
                first.update(loss=loss.item(), sigma=sigma.detach(), noise=noise.detach(), clean=latents.detach())
            return loss

        with ExitStack() as stack:
            for owner, name, own in (
                (sampler, "_train_step_standard_mode", stepped),
                (sampler, "fwd_bwd", computed),
                (self._nodes, "_setup_lora_adapters", _on_targets(self._nodes._setup_lora_adapters)),  # noqa: SLF001
                (
                    self._nodes,
                    "_setup_lora_adapters_bypass",
                    _on_targets(self._nodes._setup_lora_adapters_bypass),  # noqa: SLF001
                ),
                (self._nodes, "_create_bias_adapter", lambda *_: (nn.Identity(), {})),
            ):
                stack.enter_context(mock.patch.object(owner, name, own))
            yield seconds, first


def _on_targets(setup: Callable[..., Any]) -> Callable[..., Any]:
    """It would also train what no one else here does: every layer there is, norms and biases."""

    def limited(patcher: Any, *args: Any) -> Any:
        modules, wrap = patcher.model.named_modules, patcher.add_weight_wrapper
        found = [(name, one) for name, one in modules() if re.fullmatch(TARGETS, name)]

        def added(key: str, one: Any) -> None:
            if not key.endswith("bias"):
                wrap(key, one)

        with (
            mock.patch.object(patcher.model, "named_modules", return_value=found),
            mock.patch.object(patcher, "add_weight_wrapper", added),
        ):
            return setup(patcher, *args)

    return limited
