"""Recovery adapters as files, and put beside the packed weights of a base.

Such a file is a LoRA in ComfyUI's names, without alpha, as AI Toolkit's accuracy recovery adapters are; ours say in
their metadata what they were made for. What comes of it is a
frozen branch of packed layers, never a part of what is trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..adapters.key_names import split_key
from ..errors import AdapterError, ConfigError
from ..files import write_fresh
from ..reading import parse_json
from .packed_linear import PackedLinear

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..config import ModelConfig
    from ..families.names import Named

_FACTS = "lora_foundry.recovery"
_AI_TOOLKIT = re.compile(r"(?<![a-z])(uint[2-7])(?!\d)")
"""AI Toolkit's files say their format in their names alone: qwen_image_torchao_uint3.safetensors."""


@dataclass(frozen=True)
class Facts:
    """What a file was made for, and what it achieved."""

    quantization: str
    low_rank: int
    """Of `model.low_rank`: what was packed is the rest of the weight, and this branch takes the other one's place."""
    rank: int
    base_hash: str
    error_before: float
    """‖packed - full‖ / ‖full‖ of predictions that were not used to make it"""
    error_after: float


def write_recovery(
    folder: Path, name: str, branches: Mapping[str, tuple[Tensor, Tensor]], base: Named, facts: Facts
) -> Path:
    """Writes a file under a name that was not used before.

    Args:
        branches: module path → (down (rank, in), up (out, rank)).

    Raises:
        SaveError: if it cannot be written.
    """
    import torch

    from ..adapters.comfy_format import to_comfy
    from ..adapters.deltas import LowRank
    from ..safetensors_file import serialize

    deltas = {path: LowRank(down, up, 1.0) for path, (down, up) in branches.items()}
    tensors = to_comfy(deltas, base, torch.bfloat16)
    without_alpha = {key: value for key, value in tensors.items() if not key.endswith(".alpha")}  # the scale is 1
    told = {"format": "pt", "lora_foundry.version": __version__, _FACTS: json.dumps(asdict(facts), sort_keys=True)}
    return write_fresh(folder, name, ".safetensors", serialize(without_alpha, told))


def read_facts(path: Path) -> Facts | None:
    """What a file of ours says of itself; None of others' files.

    Raises:
        AdapterError: if it is no safetensors file, or says it wrongly.
    """
    from ..safetensors_file import read_header

    told = read_header(path).get("__metadata__", {}).get(_FACTS)
    if told is None:
        return None
    try:
        data = parse_json(told)
        return Facts(**{one.name: data[one.name] for one in fields(Facts)})
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path}: its metadata {_FACTS} cannot be read ({error})") from None


def rank_of(path: Path) -> int:
    """The rank of a file's branches, at most; reads its header.

    Raises:
        AdapterError: if it is no safetensors file, or says it wrongly.
    """
    from ..safetensors_file import read_header

    facts = read_facts(path)
    if facts:
        return facts.rank
    found = ((split_key(key), entry) for key, entry in read_header(path).items())
    return max((entry["shape"][0] for split, entry in found if split and split[1] == "down"), default=0)


def check_recovery(model: ModelConfig) -> None:
    """Whether a model's recovery adapter was made for weights that are held as its are; reads the file's header.

    An adapter makes good the errors of one format. Those of another are different ones, and it adds its own to them.

    Raises:
        ConfigError: if it was not.
        AdapterError: if the file cannot be read.
    """
    if model.recovery_adapter is None:
        return
    path, own = Path(model.recovery_adapter), (model.quantization, model.low_rank)
    facts = read_facts(path)
    named = _AI_TOOLKIT.search(path.name)
    made_for = (facts.quantization, facts.low_rank) if facts else ((named[1], 0) if named else None)
    if made_for is None and model.quantization not in ("uint3", "uint4"):
        raise ConfigError(
            f"model.recovery_adapter: {path.name} does not say which quantization it was made for. If it is one of AI "
            "Toolkit's, set model.quantization to uint3 or uint4, which are theirs; `lora-foundry recover` makes others"
        )
    if made_for is not None and made_for != own:
        wanted, given = (f"quantization {name} with low_rank {rank}" for name, rank in (made_for, own))
        raise ConfigError(
            f"model.recovery_adapter: {path.name} was made for {wanted}, but the base has {given}. Set these, or make "
            "another adapter with `lora-foundry recover`"
        )


def recovery_notes(base: Named) -> list[str]:
    """What a user should know of a base's recovery adapter, which `check_recovery` let pass."""
    path = base.config.recovery_adapter
    facts = read_facts(Path(path)) if path else None
    if path and facts and facts.base_hash != base.denoiser_fingerprint():
        return [f"model.recovery_adapter: {Path(path).name} was made for other weights than those of this base"]
    return []


def apply_recovery(denoiser: nn.Module, base: Named, path: Path) -> list[str]:
    """Gives a base's packed layers the branches of a file, in place of any that they have.

    Layers that are held more precisely here have no such error to make good, such as modulation, which AI Toolkit
    quantizes as all others; the file's branches for them are left out.

    Returns:
        The paths of these.

    Raises:
        ConfigError: as `check_recovery`, or if the base has several denoisers.
        AdapterError: if the file is for another base, or is no LoRA, or no layer is packed.
    """
    from ..adapters.deltas import LowRank
    from ..adapters.parsing import for_modules, parse
    from ..safetensors_file import read_tensors

    if len(base.spec.experts) > 1:
        raise ConfigError(
            f"model.recovery_adapter: {base.spec.title} has several denoisers, which none is read for yet"
        )
    check_recovery(base.config)
    left_out = []
    deltas = for_modules(parse(read_tensors(path)), denoiser, base)
    for name, delta in deltas.items():
        layer = denoiser.get_submodule(name)
        if not isinstance(layer, PackedLinear) or layer.format != base.config.quantization:
            left_out.append(name)
            continue
        if not isinstance(delta, LowRank) or delta.dora_scale is not None:
            raise AdapterError(f"{path}: {name} is a {delta.kind}; recovery adapters are LoRAs")
        kept = (delta.up != 0).any(0)  # the other columns are those of layers that the file has fused with it
        set_branch(layer, delta.down[kept], delta.up[:, kept] * delta.scale)
    if len(left_out) == len(deltas):
        raise AdapterError(f"{path}: none of its {len(deltas)} layers is packed in this base")
    return left_out


def set_branch(layer: PackedLinear, down: Tensor | None, up: Tensor | None) -> None:
    """Puts a frozen branch in bf16 beside a packed weight, or takes it away."""
    import torch

    layer.low_rank_down = None if down is None else down.detach().to(layer.device, torch.bfloat16).contiguous()
    layer.low_rank_up = None if up is None else up.detach().to(layer.device, torch.bfloat16).contiguous()
