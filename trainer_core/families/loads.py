"""How the parts of a base come into memory: as its job holds them, or only their shapes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..memory.packing import Packing, described
from .sources.source import Source
from .spec import FamilySpec, Part

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..config import ModelConfig
    from ..data.cache import TensorCache
    from .names import Named

_Base = TypeVar("_Base", bound="Loads")


class Loads:
    """The part of a `Base` that loads."""

    spec: FamilySpec
    source: Source
    config: ModelConfig
    device: torch.device
    dtype: torch.dtype
    text_encoder_dtype: torch.dtype
    packed_cache: TensorCache | None = None
    """Where quantized weights are kept for the next start; None: they are made each time."""
    products: Mapping[str, bool] = MappingProxyType({})
    """Which products with quantized weights are computed in 8 bits (`memory.products`)."""
    packs_on: torch.device | None = None
    """Where weights are quantized, if that is not `device`."""

    def load_part(self, part: Part, dtype: torch.dtype) -> nn.Module:
        """A part as a frozen model on the device, quantized as the job says.

        Raises:
            BaseModelError: if it is not there, truncated, incomplete, or is something else.
        """
        return self.source.load(part.name, part.load_class(), dtype, self.device, self._packing(part))

    def load_denoiser(self, expert: str = "") -> nn.Module:
        """The frozen denoiser on the device, in `self.dtype`; each call gives a fresh one, which the caller owns.

        Args:
            expert: the name of one of `spec.experts`, whose part is the denoiser of the same place in `spec.parts`.
        """
        place = [one.name for one in self.spec.experts].index(expert)
        denoiser = self.load_part(self.spec.of_role("denoiser")[place], self.dtype)
        self.recover(denoiser)
        return denoiser

    def recover(self, denoiser: nn.Module) -> None:
        """Puts the job's recovery adapter beside the packed layers of a denoiser, if there is one.

        Raises:
            ConfigError: if it was made for weights that are held otherwise.
            AdapterError: if it cannot be read, or is for another base.
        """
        if self.config.recovery_adapter is not None:
            from ..memory.recovery_file import apply_recovery

            apply_recovery(denoiser, cast("Named", self), Path(self.config.recovery_adapter))

    def outline(self, expert: str = "") -> nn.Module:
        """The denoiser's modules and the shapes of its weights; it is not run."""
        twin = copy.copy(self)
        twin.source, twin.config = self.source.without_weights(), self.sketched()
        return twin.load_denoiser(expert)

    def imitated(self: _Base) -> _Base:
        """The same base with parts of fake tensors on the CPU, to run inside `memory.imitation.imitating`."""
        import torch

        kind: Any = type(self)
        twin: _Base = kind(self.source.imitated(), self.sketched())
        for name in ("dtype", "text_encoder_dtype", "vae_dtype"):
            setattr(twin, name, getattr(self, name))
        twin.device = torch.device("cpu")
        return twin

    def sketched(self) -> ModelConfig:
        """The job's model with a branch of the recovery adapter's size in its place: what it holds is not asked."""
        from ..memory.recovery_file import rank_of

        adapter = self.config.recovery_adapter
        return self.config.but(recovery_adapter=None, low_rank=rank_of(Path(adapter))) if adapter else self.config

    def load_denoiser_on_host(self, expert: str = "") -> nn.Module:
        """The same in host memory: blocks that are to be streamed never have to fit on the device. `bring` it then."""
        import torch

        twin = copy.copy(self)
        twin.device, twin.packs_on = torch.device("cpu"), self.device
        return twin.load_denoiser(expert)

    @property
    def precision(self) -> str:
        """What the denoiser is held in and computes in, such as "6bit, computed in bfloat16"."""
        computed = str(self.dtype).removeprefix("torch.")
        held, rank = self.config.quantization, self.config.low_rank
        if held == "none":
            return computed
        fast = ", products in 8 bits" if any(self.products.values()) else ""
        return f"{held}{f' + rank {rank}' if rank else ''}, computed in {computed}{fast}"

    def precision_told(self) -> list[str]:
        """A line for each part that is quantized: how many of its weights, and its size before and after."""
        lines, source = [], self.source.without_weights()
        for part in self.spec.parts:
            name = self._quantization(part)
            if name != "none":
                dtype = self.dtype if part.role == "denoiser" else self.text_encoder_dtype
                model = source.load(part.name, part.load_class(), dtype, self.device)
                packing = Packing(name, low_rank=self.config.low_rank if part.role == "denoiser" else 0)
                lines.append(f"{part.name}: {described(model, packing, dtype)}")
        return lines

    def _quantization(self, part: Part) -> str:
        """The format of a part's layers; none for what is not quantized, as a VAE is not."""
        formats = {"denoiser": self.config.quantization, "text_encoder": self.config.text_encoder_quantization}
        return formats.get(part.role, "none")

    def _packing(self, part: Part) -> Packing | None:
        """How a part's layers are packed; None: not."""
        name = self._quantization(part)
        if name == "none":
            return None
        mark = self.source.fingerprint(part.name) if self.packed_cache else ""
        rank = self.config.low_rank if part.role == "denoiser" else 0
        return Packing(name, mark, self.packed_cache, rank, self.packs_on)
