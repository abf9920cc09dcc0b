"""The adapter of one run: its layers inside the frozen denoiser and, if asked for, the text encoders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..config import AdapterConfig, JobConfig
from ..errors import AdapterError
from ..memory.blocks import blocks_of
from .deltas import Delta, Deltas, LowRank, mapped
from .flat import Flat
from .fused import Siblings, Watch
from .layers import KINDS, AdaptedLayer, LoraLayer
from .operations import operation_of
from .working import Working

if TYPE_CHECKING:
    from ..families.base import Base


class Adapter:
    """LoRA, DoRA, LoKr or LoHa layers, put in place of layers of frozen models; all trained together."""

    def __init__(
        self,
        denoiser: nn.Module,
        config: AdapterConfig,
        targets: Sequence[str],
        seed: int,
        *,
        conv_targets: Sequence[str] = (),
        text_encoders: Mapping[str, nn.Module] | None = None,
        text_targets: Sequence[str] = (),
    ) -> None:
        """Adapts every linear layer and convolution whose whole path matches one of the targets, and freezes all.

        Args:
            targets: regular expressions over the denoiser's module paths, for layers that get `config.rank`.
            seed: starts and dropout are functions of it and of a layer's name.
            conv_targets: the same for those that get `config.conv_rank`, if that is set.
            text_encoders: by name, which comes before the names of their layers: `text_encoder.<path>`.
            text_targets: regular expressions over module paths of each text encoder.

        Raises:
            AdapterError: if none matches, or one that does cannot be adapted.
        """
        self.config = config
        self.roots: dict[str, nn.Module] = {"": denoiser, **(text_encoders or {})}
        self.layers: dict[str, AdaptedLayer] = {}
        for root, model in self.roots.items():
            model.requires_grad_(False)
            self._adapt(root, model, text_targets if root else targets, () if root else conv_targets, seed)
        self._flats = self._flattened()

    @classmethod
    def of(cls, job: JobConfig, base: Base, denoiser: nn.Module) -> Adapter:
        """The adapter that a job asks for; `base` must have its text encoders loaded where it adapts them."""
        config, spec = job.adapter, base.spec
        return cls(
            denoiser,
            config,
            spec.targets[config.targets],
            job.train.seed,
            conv_targets=spec.conv_targets,
            text_encoders=base.text_encoders() if config.text_encoders else None,
            text_targets=spec.text_targets,
        )

    def _adapt(
        self, root: str, model: nn.Module, targets: Sequence[str], conv_targets: Sequence[str], seed: int
    ) -> None:
        config = self.config
        ranks = [("|".join(f"(?:{one})" for one in targets), config.rank, config.scale)]
        if config.conv_rank is not None:
            ranks.append(("|".join(f"(?:{one})" for one in conv_targets), config.conv_rank, config.conv_scale))
        count = len(self.layers)
        for path, module in list(model.named_modules()):
            found = next((one for one in ranks if one[0] and re.fullmatch(one[0], path)), None)
            if found is None:
                continue
            operation = operation_of(module)
            if operation is None or isinstance(module, AdaptedLayer):
                raise AdapterError(f"adapter.targets: {path} is a {type(module).__name__}, which no adapter fits")
            name = f"{root}.{path}" if root else path
            try:
                self.layers[name] = KINDS[config.type](module, operation, name, *found[1:], config, seed)
            except AdapterError as error:
                raise AdapterError(f"adapter.type: {path}: {error}. Set it to lora, which does not need it") from None
            model.set_submodule(path, self.layers[name])
        own = list(self.layers.values())[count:]
        if not own:
            raise AdapterError(f"adapter.targets: no layer of the {root.replace('_', ' ') or 'base'} matches")
        working = Working(model, [parameter for layer in own for parameter in layer.trained.values()])
        for layer in own:
            layer.working = working

    # weights

    def parameters(self) -> list[nn.Parameter]:
        """Trainable parameters, fp32, in a fixed order: layer by layer, the denoiser's first."""
        return list(self._named().values())

    def text_parameters(self) -> list[nn.Parameter]:
        """Those of them that are in text encoders; they come last."""
        roots = tuple(f"{root}." for root in self.roots if root)
        return [parameter for name, parameter in self._named().items() if roots and name.startswith(roots)]

    def flats(self) -> list[Flat]:
        """All parameters as buffers: those of the denoiser, and if text encoders are adapted, those of all of them."""
        return self._flats

    def _flattened(self) -> list[Flat]:
        """First tensors of all layers come first: A of q, k and v are neighbours. A checkpoint knows nothing of it."""
        text = {id(parameter) for parameter in self.text_parameters()}
        rows = zip_longest(*(layer.trained.values() for layer in self.layers.values()))
        ordered = [parameter for row in rows for parameter in row if parameter is not None]
        groups = [[one for one in ordered if (id(one) in text) == of_text] for of_text in (False, True)]
        return [Flat(group) for group in groups if group]

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all weights, such as `<module path>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank)."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self._named().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Sets all weights.

        Raises:
            AdapterError: if names or shapes differ; nothing is changed then.
        """
        mine = self._named()
        if mine.keys() != state.keys():
            odd = sorted(mine.keys() ^ state.keys())
            raise AdapterError(f"the saved LoRA has other layers than this job's: {odd[0]} and {len(odd) - 1} more")
        for name, parameter in mine.items():
            if parameter.shape != state[name].shape:
                raise AdapterError(
                    f"the saved LoRA's {name} has shape {tuple(state[name].shape)}, this job's {tuple(parameter.shape)}"
                )
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(state[name])

    def deltas(self) -> Deltas:
        """Each layer's weight delta, by name, at strength 1: fp32, where the layer is."""
        return {name: mapped(layer.delta()) for name, layer in self.layers.items()}

    def start_from(self, deltas: Mapping[str, Delta]) -> None:
        """Sets the weights to do what a file's layers do; layers that the file leaves out start as usual.

        Raises:
            AdapterError: if the file adapts layers that this adapter does not, or cannot be represented by it.
        """
        state = self.state_dict()
        for name, delta in deltas.items():
            if name not in self.layers:
                if isinstance(delta, LowRank) and delta.dora_scale is None and not delta.up.any():
                    continue  # the part of a fused layer that was not adapted
                raise AdapterError(f"the file adapts {name}, which this job's targets leave out")
            try:
                found = self.layers[name].started_from(delta)
            except AdapterError as error:
                raise AdapterError(f"{name}: {error}") from None
            state |= {f"{name}.{key}": value for key, value in found.items()}
        self.load_state_dict(state)

    def _named(self) -> dict[str, nn.Parameter]:
        return {f"{name}.{key}": value for name, layer in self.layers.items() for key, value in layer.trained.items()}

    # how it acts

    @property
    def knows_siblings(self) -> bool:
        """Whether it is known which layers read the same tensor, where it matters."""
        return all(layer.siblings is not None for layer in self._fused())

    @contextmanager
    def finding_siblings(self) -> Iterator[None]:
        """Around one pass without gradients: layers that are given the same tensor in it share work from then on.

        Sums are then taken in another order. So that no bit depends on what was computed before, it comes before all
        that trains, and all else is computed `apart`. They are of one block, or of none: blocks are computed again one
        by one.
        """
        blocks = [f"{path}." for path in blocks_of(self.roots[""])]
        names = {layer: name for name, layer in self.layers.items()}
        watch = Watch({layer: next(filter(names[layer].startswith, blocks), "") for layer in self._fused()})
        self.seed_dropout()
        for layer in self._fused():
            layer.siblings = watch
        try:
            yield
        finally:
            for layer in self._fused():
                layer.siblings = Siblings([layer])
            for siblings in watch.found():
                for one in siblings.layers:
                    one.siblings = siblings

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Around passes that may come before that one: each layer computes alone, whether siblings are known or not."""
        known = {layer: layer.siblings for layer in self._fused()}
        for layer in known:
            layer.siblings = None
        try:
            yield
        finally:
            for layer, siblings in known.items():
                layer.siblings = siblings

    def _fused(self) -> Iterator[LoraLayer]:
        return (layer for layer in self.layers.values() if isinstance(layer, LoraLayer) and layer.is_fused)

    def end_pass(self) -> None:
        """After a pass that may have failed: what its layers share would keep its graph."""
        for layer in self.layers.values():
            layer.working.readings.clear()

    def seed_dropout(self, *place: int | str, first: int = 0, samples: int = 1) -> None:
        """Says where the next forward pass is, for dropout; nowhere: nothing is dropped.

        Args:
            first: place of its first sample in the micro-batch, of which it may train a part.
            samples: of the pass.
        """
        for layer in self.layers.values():
            if layer.dropout.rate:
                layer.dropout.place, layer.dropout.part = place, (first, samples)

    def set_strength(self, strength: float) -> None:
        """Multiplies what the adapter adds from now on; 1 is normal."""
        for layer in self.layers.values():
            layer.strength = strength

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The models as they are without the adapter."""
        for layer in self.layers.values():
            layer.enabled = False
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enabled = True
