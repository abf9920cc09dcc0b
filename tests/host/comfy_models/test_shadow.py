"""The model that is trained: in the memory of the one in the graph, which never notices."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import OrderedDict
from typing import Any

import pytest

from ..pack import module
from .running import predict
from .zoo import MODELS

pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]

UNSTEADY = ("hidream_o1", "hidream_o1_edit")
"""Their sums on a CPU are in another order each time, by where tensors happen to lie."""


@pytest.fixture(scope="module")
def torch() -> Any:
    import torch

    return torch


def shadow(model: Any) -> Any:
    return module("nodes.comfy_models.shadow").shadow(model)


def tensors(model: Any) -> dict[str, Any]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


@pytest.mark.parametrize("name", MODELS)
def test_it_shares_memory_and_leaves_the_original_alone(name: str, torch: Any) -> None:
    zoo = MODELS[name]
    streams, conditioning = zoo.streams(), zoo.conditioning()
    model = zoo.make().model
    with torch.inference_mode():
        before = predict(model, streams, conditioning)
    originals = tensors(model)
    copy = shadow(model)
    assert tensors(copy).keys() == originals.keys()
    for key, tensor in tensors(copy).items():
        original = originals[key]
        assert tensor is not original
        assert tensor.untyped_storage().data_ptr() == original.untyped_storage().data_ptr(), key
        assert (tensor.shape, tensor.stride(), tensor.dtype) == (original.shape, original.stride(), original.dtype)
        assert type(tensor) is type(original)
        assert not tensor.is_inference()
        assert not tensor.requires_grad
    same = functools.partial(torch.allclose, atol=1e-4) if name in UNSTEADY else torch.equal
    with torch.no_grad():
        assert all(map(same, predict(copy, streams, conditioning), before))
    now = tensors(model)
    assert all(now[key] is original for key, original in originals.items())
    assert all(weight.is_inference() for weight in model.diffusion_model.parameters())
    with torch.inference_mode():
        assert all(map(same, predict(model, streams, conditioning), before))
    assert type(copy.model_sampling) is type(model.model_sampling)
    assert type(copy.latent_format) is type(model.latent_format)
    assert copy.concat_keys == model.concat_keys
    modules = {path: (type(one), one.training) for path, one in copy.named_modules()}
    assert modules == {path: (type(one), one.training) for path, one in model.named_modules()}


def test_a_copy_trains_and_moves_while_the_original_samples(torch: Any) -> None:
    """A weight is saved for backward; what is put in its place is not seen in the original."""
    zoo = MODELS["flux1"]
    model = zoo.make().model
    with torch.inference_mode():
        before = predict(model, zoo.streams(), zoo.conditioning())
    copy = shadow(model)
    weight = copy.diffusion_model.img_in.weight
    x = torch.ones(1, weight.shape[1], requires_grad=True)
    torch.nn.functional.linear(x, weight).sum().backward()
    assert torch.allclose(x.grad[0], weight.sum(0), atol=1e-5)
    copy.to(torch.bfloat16)
    copy.diffusion_model.txt_in.weight = torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    assert copy.diffusion_model.img_in.weight.dtype == torch.bfloat16
    with torch.inference_mode():
        assert all(map(torch.equal, predict(model, zoo.streams(), zoo.conditioning()), before))


def test_it_stays_in_the_mode_of_sampling(torch: Any) -> None:
    """Only adapters are switched. PixArt's embedder of text, for one, leaves texts out while it trains."""
    zoo, adapters = MODELS["pixart_alpha"], module("trainer_core.adapters.adapter")
    model = zoo.make().model
    copy = shadow(shadow(model))
    denoiser = copy.diffusion_model
    config = module("trainer_core.config").AdapterConfig(rank=2, dropout=0.5)
    layers = adapters.Adapter(denoiser, config, [r"blocks\.0\.attn\.qkv"], 0).layers.values()
    assert denoiser.train() is denoiser
    assert [layer.dropout.training for layer in layers] == [True]
    assert not any(part.training for part in denoiser.modules() if part not in {*layers, *(x.dropout for x in layers)})
    with torch.no_grad():
        predict(copy, zoo.streams(), zoo.conditioning())
    denoiser.eval()
    assert [layer.dropout.training for layer in layers] == [False]


def test_it_works_from_within_inference_mode(torch: Any) -> None:
    with torch.inference_mode():
        copy = shadow(torch.nn.Linear(2, 3))
    assert not copy.weight.is_inference()


def test_a_patcher_loads_the_copy_without_touching_the_original(torch: Any) -> None:
    """A patch (a merged LoRA, a training adapter) counts in the copy, and goes away again."""
    import comfy.model_patcher

    cpu = torch.device("cpu")
    model = MODELS["flux1"].make().model
    key = "diffusion_model.img_in.weight"
    original = model.diffusion_model.img_in.weight.clone()
    copy = shadow(model)
    patcher = comfy.model_patcher.ModelPatcher(copy, load_device=cpu, offload_device=cpu)
    patcher.add_patches({key: (torch.ones(original.shape),)}, 0.5)
    patcher.patch_model()
    assert torch.equal(copy.diffusion_model.img_in.weight, original + 0.5)
    assert torch.equal(model.diffusion_model.img_in.weight, original)
    patcher.unpatch_model()
    assert torch.equal(copy.diffusion_model.img_in.weight, original)


def _format(kind: str, torch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file of a linear layer 32 → 48 in one of ComfyUI's formats: its tensors, and its `comfy_quant`."""
    import comfy.quant_ops

    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(1))
    layout = comfy.quant_ops.QUANT_ALGOS[kind]["comfy_tensor_layout"]
    made = comfy.quant_ops.QuantizedTensor.from_float(weight, layout, scale="recalculate")
    return made.state_dict("weight"), {"format": kind}


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "nvfp4", "int8_tensorwise"])
def test_quantized_layers_stay_quantized_in_the_same_memory(kind: str, torch: Any) -> None:
    import json

    import comfy.ops
    import comfy.quant_ops

    with torch.inference_mode():
        state, config = _format(kind, torch)
        state["comfy_quant"] = torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)
        layer = comfy.ops.mixed_precision_ops(compute_dtype=torch.float32).Linear(32, 48, bias=False)
        layer.load_state_dict({f"{name}": value for name, value in state.items()}, strict=False)
        layer.input_scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        x = torch.randn(4, 32)
        expected = layer(x)
    copy = shadow(layer)
    weight, original = copy.weight, layer.weight
    assert isinstance(weight, comfy.quant_ops.QuantizedTensor)
    assert isinstance(weight, torch.nn.Parameter)
    assert weight._qdata.untyped_storage().data_ptr() == original._qdata.untyped_storage().data_ptr()
    assert weight._qdata.dtype == original._qdata.dtype
    for name in ("scale", "block_scale"):
        if hasattr(original._params, name):
            theirs, ours = getattr(original._params, name), getattr(weight._params, name)
            assert ours.untyped_storage().data_ptr() == theirs.untyped_storage().data_ptr()
            assert not ours.is_inference()
    assert not weight._qdata.is_inference()
    assert (copy.quant_format, copy.layout_type) == (layer.quant_format, layer.layout_type)
    assert copy.input_scale == 1
    with torch.no_grad():
        assert torch.equal(copy(x.clone()), expected)
    assert torch.equal(weight.dequantize(), original.dequantize())


def test_a_tensor_subclass_with_attributes_as_of_gguf(torch: Any) -> None:
    """ComfyUI-GGUF's weights are packed bytes whose `shape` is that of the weight."""

    class Packed(torch.Tensor):
        kind: str
        whole: Any
        patches: list[Any]

        def detach(self) -> Any:
            return self

        def clone(self, *args: Any, **kwargs: Any) -> Any:
            return self

        @property
        def shape(self) -> Any:
            return self.whole

    with torch.inference_mode():
        packed = torch.arange(12, dtype=torch.uint8).as_subclass(Packed)
        packed.kind, packed.whole, packed.patches = "Q4", torch.Size((4, 6)), [("a", 1)]
        layer = torch.nn.Linear(6, 4)
        layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    copy = shadow(layer)
    assert type(copy.weight) is Packed
    assert isinstance(copy.weight, torch.nn.Parameter)
    assert (copy.weight.kind, copy.weight.shape, copy.weight.patches) == ("Q4", (4, 6), [("a", 1)])
    assert copy.weight.patches is not layer.weight.patches
    assert copy.weight.untyped_storage().data_ptr() == layer.weight.untyped_storage().data_ptr()
    assert copy.weight.as_subclass(torch.Tensor).tolist() == list(range(12))
    assert not copy.weight.is_inference()


def test_what_is_shared_stays_shared_and_what_is_bound_is_bound_to_the_copy(torch: Any) -> None:
    class Table:
        """A plain object with a tensor, as rope tables are."""

        def __init__(self) -> None:
            self.values = torch.ones(3)
            self.lock = threading.Lock()
            self.back: Any = None

        def look_up(self) -> Any:
            return self.values

    class Part(torch.nn.Module):
        def name_of(self) -> Any:
            return self

    with torch.inference_mode():
        part, table = Part(), Table()
        part.one = torch.nn.Linear(2, 2)
        part.other = torch.nn.Linear(2, 2)
        part.other.weight = part.one.weight
        model = torch.nn.ModuleDict({"a": part, "b": part})
        model.hidden = [part.one, {"deep": (part,)}]
        model.table, table.back = table, model
        model.look_up, model.name_of = table.look_up, part.name_of
        model.parent, model.by_parts = weakref.ref(part), functools.partial(part.name_of)
        model.function, model.lock, model.nothing = len, threading.Lock(), None
        part.register_forward_hook(part.name_of)
        model.current_patcher, model._v = object(), object()
        model.cache = OrderedDict(x=torch.zeros(1))

    copy = shadow(model)
    assert copy["a"] is copy["b"] is not part
    assert copy["a"].one.weight is copy["a"].other.weight is not part.one.weight
    assert copy.hidden[0] is copy["a"].one
    assert copy.hidden[1]["deep"][0] is copy["a"]
    assert copy.table is not table
    assert copy.table.back is copy
    assert copy.table.lock is table.lock
    assert copy.look_up() is copy.table.values
    assert copy.look_up().data_ptr() == table.values.data_ptr()
    assert not copy.look_up().is_inference()
    assert copy.name_of() is copy.parent() is copy.by_parts() is copy["a"]
    assert copy.function is len
    assert copy.lock is model.lock
    assert copy["a"]._forward_hooks is not part._forward_hooks
    assert next(iter(copy["a"]._forward_hooks.values()))() is copy["a"]
    assert type(copy.cache) is OrderedDict
    assert copy.current_patcher is None
    assert not hasattr(copy, "_v")
    copy.cache["y"] = 1
    copy["a"].new = 1
    assert list(model.cache) == ["x"]
    assert not hasattr(part, "new")
