"""What recomputing spares in ComfyUI's own blocks, and that it is exact in quantized ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ..pack import module
from .running import predict
from .zoo import MODELS

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402


class Trained:
    """A copy of a model with an adapter: the bytes `kept` for the backward pass, and its `gradients`.

    After several passes: those of the last, and the layers whose product was `left_out` in it, by paths in blocks.
    `told` is why it was not compiled, if it was to be.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        *,
        recomputed: bool,
        mixed: bool = False,
        targets: str = "attention",
        passes: int = 1,
        compiled: bool = False,
        **settings: Any,
    ) -> None:
        zoo, layers = MODELS[name], module("nodes.comfy_models.layers")
        recompute = module("trainer_core.memory.recompute")
        self.model = module("nodes.comfy_models.shadow").shadow(model)
        denoiser = self.model.diffusion_model
        config = module("trainer_core.config").AdapterConfig(rank=2)
        adapter = module("trainer_core.adapters.adapter").Adapter(
            denoiser, config, layers.targets(denoiser)[targets], 0
        )
        for weight in adapter.parameters():
            weight.data += torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) * 0.05
        blocks = module("trainer_core.memory.blocks").blocks_of(denoiser)
        self.told: list[Any] = []
        if compiled:
            compile_blocks = module("trainer_core.memory.compiled").compile_blocks
            compile_blocks(blocks.values(), self.told.append, change_inputs=True)
        if recomputed:
            recompute.recompute_blocks(denoiser, blocks.values(), **settings)
        for _ in range(passes):
            self.left_out = self._watched(blocks)
            for weight in adapter.parameters():
                weight.grad = None
            with (
                module("nodes.comfy_models.prediction").computing(training=True),
                module("trainer_core.memory.saved").mutable_saved(),
            ):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
                    said = predict(self.model, zoo.streams(), zoo.conditioning())
                    loss = sum((one.float() - 1).square().mean() for one in said)
                self.kept = self._kept()
                loss.backward()
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in adapter.parameters()]
        self.gradients = torch.cat([one.flatten() for one in gradients])

    def _watched(self, blocks: dict[str, Any]) -> set[str]:
        found: set[str] = set()
        for block in blocks.values():
            for path, layer in block.named_modules():
                if hasattr(layer, "skips_product"):
                    layer.register_forward_pre_hook(
                        lambda layer, _, path=path: found.add(path) if layer.skips_product else None
                    )
        return found

    def _kept(self) -> int:
        """Bytes, beside the model's own weights."""
        saved = module("trainer_core.memory.saved")
        own = {piece for weight in self.model.parameters() for piece in saved.memory(weight)}
        kept = {piece: one for piece, some in saved._active._kept.items() for one in some if piece not in own}
        return sum(one.tensor.untyped_storage().nbytes() for one in kept.values() if isinstance(one, saved.Kept))


def difference(one: Trained, other: Trained) -> float:
    return float((one.gradients - other.gradients).norm() / other.gradients.norm())


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ["ltx2", "sdxl", "hidream", "wan21_i2v"])
def test_blocks_keep_their_inputs_only(name: str, mixed: bool) -> None:
    """Most of what plain autograd keeps is not kept, in the model's own precision and in mixed precision."""
    model = MODELS[name].make().model
    plain, recomputed = (Trained(name, model, recomputed=one, mixed=mixed) for one in (False, True))
    assert difference(recomputed, plain) < (2e-2 if mixed else 1e-6)
    assert recomputed.kept < plain.kept * 0.5


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("flux1", {"img_mlp.2", "txt_mlp.2", "linear2"}),
        ("qwen_image", {"img_mlp.net.2", "txt_mlp.net.2"}),
        ("wan21_t2v", {"ffn.2"}),
        ("ltx2", {"ff.net.2", "audio_ff.net.2"}),
        ("sdxl", {"ff.net.2"}),
        ("z_image", set()),  # norms come behind its last products
    ],
)
def test_last_products_are_left_out_and_no_setting_changes_a_bit(name: str, last: set[str]) -> None:
    model = MODELS[name].make().model
    copies = module("trainer_core.memory.offload").Copies()
    settings: list[dict[str, Any]] = [{"every": 0}, {}, {"every": 2, "keep_attention": True, "copies": copies}]
    plain, *others = (
        Trained(name, model, recomputed=True, targets="attention_mlp", passes=2, **one) for one in settings
    )
    assert not plain.left_out
    assert others[0].left_out == last
    assert all(torch.equal(one.gradients, plain.gradients) for one in others)


def test_comfyuis_attention_by_torch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is another, as by default on a CPU, it is computed again."""
    from comfy.ldm.flux import math
    from comfy.ldm.modules import attention

    calls: list[bool] = []
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

    class Count(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(func is fused)
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(math, "optimized_attention", attention.attention_pytorch)
    model, counted, found = MODELS["flux1"].make().model, [], []
    for keep in (False, True):
        calls.clear()
        with Count():
            found.append(Trained("flux1", model, recomputed=True, keep_attention=keep).gradients)
        counted.append(sum(calls))
    blocks = len(module("trainer_core.memory.blocks").blocks_of(model.diffusion_model))
    assert counted == [2 * blocks, blocks]
    assert torch.equal(*found)


@pytest.mark.parametrize(("kind", "error"), [("float8_e4m3fn", 0.1), ("int8_tensorwise", 0.03), ("nvfp4", 0.25)])
@pytest.mark.parametrize("name", ["flux1", "wan21_t2v"])
def test_quantized_blocks(name: str, kind: str, error: float) -> None:
    """Recomputed or not they have the same gradients, and those of their dequantized weights within the format's error.

    Activations are quantized too, so that is the error of a layer's result, through all layers.
    """
    with torch.inference_mode():
        patcher = MODELS[name].make()
        quantize(patcher.model.diffusion_model, kind)
    plain, recomputed = (Trained(name, patcher.model, recomputed=one, targets="all") for one in (False, True))
    assert difference(recomputed, plain) < 1e-6
    dequantize(patcher.model.diffusion_model)
    assert 1e-5 < difference(plain, Trained(name, patcher.model, recomputed=False, targets="all")) < error


def quantize(denoiser: Any, kind: str) -> None:
    """Makes layers of blocks what ComfyUI makes of such a file."""
    import comfy.ops
    import comfy.quant_ops

    layout = comfy.quant_ops.QUANT_ALGOS[kind]["comfy_tensor_layout"]
    operations = comfy.ops.mixed_precision_ops(compute_dtype=torch.float32)
    for pattern in module("nodes.comfy_models.layers").targets(denoiser)["all"]:
        path = pattern.replace("\\", "")
        dense = denoiser.get_submodule(path)
        weight = comfy.quant_ops.QuantizedTensor.from_float(dense.weight.data, layout, scale="recalculate")
        state = weight.state_dict("weight") | ({} if dense.bias is None else {"bias": dense.bias})
        state["comfy_quant"] = torch.tensor(list(json.dumps({"format": kind}).encode()), dtype=torch.uint8)
        layer = operations.Linear(dense.in_features, dense.out_features, bias=dense.bias is not None)
        layer.load_state_dict(state, strict=False)
        denoiser.set_submodule(path, layer.eval())


def dequantize(denoiser: Any) -> None:
    """Gives quantized layers their weights in full."""
    for layer in denoiser.modules():
        if hasattr(layer, "layout_type"):
            layer.weight = torch.nn.Parameter(layer.weight.dequantize(), requires_grad=False)
            layer.layout_type = layer.quant_format = None


def test_a_quantized_tensor_is_kept() -> None:
    """Its values lie in several tensors."""
    import comfy.quant_ops

    saved = module("trainer_core.memory.saved")
    weight = comfy.quant_ops.QuantizedTensor.from_float(torch.eye(32), "TensorCoreFP8E4M3Layout", scale="recalculate")
    with saved.mutable_saved():
        kept = saved.keep(weight)
        assert kept.value() is weight
        weight._params.scale.zero_()
        weight._qdata.view(torch.uint8).zero_()
        assert torch.equal(kept.value().dequantize(), torch.eye(32))
