"""A model of diffusers or transformers from single tensors: built without weights, then filled one after the other.

What is in memory at a time is the part of the model that is filled, one portion of the file, and one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import BaseModelError
from ...memory.packing import packed_layer
from ..names import Naming, Place
from .stored import Stored
from .tensors import FLOAT8, FLOATS, TensorFile

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ...memory.packing import Packing


def fill(
    model: nn.Module,
    files: Sequence[TensorFile],
    prefix: str,
    naming: Naming,
    dtype: torch.dtype,
    device: torch.device,
    packing: Packing | None = None,
) -> nn.Module:
    """Gives an empty model its weights, which come to lie in memory of their own.

    A mapped tensor begins where the file's header ends, and matrix products of the same numbers round otherwise at
    another alignment: only copies are the same model, bit for bit, whatever file they come from.

    Args:
        model: from `empty_model`.
        files: which together hold all weights.
        prefix: of the part's tensors in the files.
        naming: name of a weight in the model → where the files keep it, after the prefix.
        packing: packs the weights of the blocks' linear layers; each is packed before the next one is read.

    Raises:
        BaseModelError: if a weight is missing, of another shape or of an unknown type.
    """
    import torch

    targets = model.state_dict(keep_vars=True)
    by_key: dict[str, dict[Place, list[str]]] = {}
    for name in targets:
        place = naming(name)
        by_key.setdefault(prefix + place.name, {}).setdefault(place, []).append(name)
    _check(files, targets, by_key)
    precise = _precise_modules(model, dtype)
    single = {names[0] for places in by_key.values() for names in places.values() if len(names) == 1}
    packed = _Packed(model, packing, single, precise, dtype, device)
    for file in files:
        wanted = [
            key
            for key in by_key.keys() & file.shapes.keys()
            if any(names[0] not in packed.there for names in by_key[key].values())
        ]
        for key, values in file.tensors(wanted):
            stored = file.stored(key, values)
            for place, names in by_key[key].items():
                weight = stored.at(place, targets[names[0]].shape)
                if not packed.put(names[0], weight):
                    own = torch.float32 if precise & set(names[0].split(".")) else dtype
                    value = weight.dense(device)
                    _put(model, names, torch.empty(value.shape, dtype=own, device=device).copy_(value))
                    del value
            del values, stored, weight  # views of the file: while they are held, the file's pages count as ours
    return model.to(device)


class _Packed:
    """The layers of a model whose weights are packed while it is filled; none without `packing`."""

    def __init__(
        self,
        model: nn.Module,
        packing: Packing | None,
        names: set[str],
        precise: set[str],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Takes from the cache what is there.

        Args:
            names: of the weights that may be packed.
            precise: modules of these names stay as they are.
        """
        self._model, self._dtype, self._lies = model, dtype, device
        self._device = (packing and packing.device) or device
        layers = packing.layers(model) if packing else {}
        self._how = {
            f"{path}.weight": how
            for path, (_, how) in layers.items()
            if f"{path}.weight" in names and not precise & set(path.split("."))
        }
        self.there: set[str] = set()
        """Weights that are in their place."""
        for name, how in self._how.items():
            self._set(name, how.cached(name, self._layer(name), dtype, self._device))

    def put(self, name: str, weight: Stored) -> bool:
        """Packs a weight and puts it into its place; whether it is one of them."""
        if name in self._how and name not in self.there:
            how, layer = self._how[name], self._layer(name)
            as_it_is = None if how.low_rank else weight.packed(how.name)
            if as_it_is is None:
                dense = weight.dense(self._device).to(self._device)
                self._set(name, how.packed(name, dense, layer, self._dtype))
            else:
                self._set(name, packed_layer(as_it_is, layer, self._dtype))
        return name in self.there

    def _layer(self, name: str) -> nn.Module:
        return self._model.get_submodule(name.removesuffix(".weight"))

    def _set(self, name: str, layer: nn.Module | None) -> None:
        if layer is not None:
            for part, value in [*layer.named_buffers(recurse=False)] if self._lies != self._device else []:
                if not value.is_meta:
                    layer.register_buffer(part, value.to(self._lies))
            self._model.set_submodule(name.removesuffix(".weight"), layer)
            self.there.add(name)


def empty_model(kind: Any, config: dict[str, Any]) -> nn.Module:
    """A model without weights (they are on the meta device); its buffers are real."""
    from accelerate import init_empty_weights
    from diffusers import ModelMixin

    with init_empty_weights(include_buffers=False):
        diffusers_model = issubclass(kind, ModelMixin)
        return kind.from_config(config) if diffusers_model else kind(kind.config_class.from_dict(config))


def imitation(kind: Any, config: dict[str, Any], dtype: torch.dtype, packing: Packing | None = None) -> nn.Module:
    """What `fill` makes of an empty model on the CPU, with fake tensors; inside `memory.imitation.imitating`."""
    import torch

    from ...memory.imitation import imitate, on_real_tensors
    from ...memory.packing import outline

    with on_real_tensors():
        model = empty_model(kind, config)
        plain = model.state_dict().keys()
        if packing:
            outline(model, packing, dtype)
    precise = _precise_modules(model, dtype)

    def dtype_of(name: str, tensor: Tensor) -> torch.dtype:
        if name not in plain:  # of a packed layer
            return tensor.dtype
        return torch.float32 if precise & set(name.split(".")) else dtype

    return imitate(model, dtype_of)


def _check(files: Sequence[TensorFile], targets: dict[str, Tensor], by_key: dict[str, dict[Place, list[str]]]) -> None:
    where = {key: file for file in files for key in file.shapes}
    if missing := sorted(by_key.keys() - where.keys()):
        more = f" and {len(missing) - 1} more weights are missing" if len(missing) > 1 else " is missing"
        raise BaseModelError(f"{files[0].path}: is incomplete: {missing[0]}{more}")
    for key, origins in by_key.items():
        file = where[key]
        if file.dtypes[key] not in FLOATS | FLOAT8 and key not in file.int8:
            raise BaseModelError(
                f"{file.path}: {key} is stored as {file.dtypes[key]}: it is quantized in a way that LoRA Foundry "
                "cannot read. Use the fp16, bf16 or fp8 version"
            )
        for place, names in origins.items():
            shape, expected = _shape(file.shapes[key], place), tuple(targets[names[0]].shape)
            if _without_ones(shape) != _without_ones(expected):
                raise BaseModelError(f"{file.path}: {key} has the shape {shape} where {expected} is expected")


def _shape(shape: tuple[int, ...], place: Place) -> tuple[int, ...]:
    if place.transposed:
        return shape[::-1]
    if not shape:
        return shape
    return (shape[0] // place.total * (place.stop - place.start), *shape[1:])


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1x1 convolution is the same as a linear layer, and files keep either."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _put(model: nn.Module, names: list[str], value: Tensor) -> None:
    """Sets a weight under all its names, so that tied weights stay one."""
    from torch import nn

    parameter = nn.Parameter(value, requires_grad=False)
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        setattr(module, leaf, parameter if isinstance(getattr(module, leaf), nn.Parameter) else value)


def _precise_modules(model: nn.Module, dtype: torch.dtype) -> set[str]:
    """Modules that stay fp32 at a lower precision, as `from_pretrained` of the model's own library keeps them.

    diffusers keeps `_keep_in_fp32_modules` at any. transformers keeps them in fp16 alone, which overflows in T5's `wo`
    where bf16 does not (ComfyUI has T5 all in bf16, too), and `_keep_in_fp32_modules_strict` at any.
    """
    import torch
    from diffusers import ModelMixin

    if dtype == torch.float32:
        return set()
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if isinstance(model, ModelMixin) or dtype == torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return kept
