"""A LoRA file as other tools read it: `diffusers` (pipelines' load_lora_weights), `peft` and `kohya` (sd-scripts).

What comes out does what the file does. Numbers keep the file's precision where it holds them exactly, and are fp32
otherwise; what a tool has no form for is refused.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ModelConfig
from ..errors import AdapterError, SaveError
from ..families.sources.source import is_repository_id
from ..files import save_error, write_durably, write_fresh
from .key_names import split_key, split_text
from .peft_format import to_peft

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..families.base import Base
    from ..families.names import Place
    from .deltas import Delta

FORMS = ("diffusers", "peft", "kohya")
_SUFFIX = ".safetensors"
_CONFIG_OF_DIFFUSERS = "lora_adapter_metadata"
"""Where diffusers (0.35 on) looks for PEFT's settings in a file's metadata."""


def export_as(form: str, lora: Path, model: ModelConfig, name: str, out: Path | None = None) -> Path:
    """Writes a LoRA file in another tool's form.

    Args:
        form: one of FORMS.
        lora: file of any tool.
        model: the base that it is for; its weights are read for a DoRA only.
        name: what to call it where `out` does not say; if it is taken, a number is added.
        out: a folder to put it into, or the file (for peft, the folder) to make, which must not be there.

    Returns:
        What was made.

    Raises:
        AdapterError: if the file is no LoRA for the base, or cannot be expressed in this form.
        SaveError: if it cannot be written, or `out` is there.
    """
    from ..safetensors_file import read_header, read_tensors

    folder, stem, exact = _place(form, out, f"{name}_{form}")
    tensors = read_tensors(lora)
    metadata = {**read_header(lora).get("__metadata__", {})}
    metadata.pop(_CONFIG_OF_DIFFUSERS, None)
    base, models = _open(model, tensors)
    deltas = _deltas(tensors, models, base)
    dtype = _precision(tensors)
    if form == "peft":
        return _write_folder(folder, stem, exact, _peft_files(deltas, models, base, metadata, dtype))
    if form == "kohya":
        made = _exactly(to_kohya(deltas, models, base), dtype)
    else:
        made, config = to_diffusers(deltas, models, base)
        made = _exactly(made, dtype)
        metadata[_CONFIG_OF_DIFFUSERS] = json.dumps(config, sort_keys=True)
    from ..safetensors_file import serialize

    return write_fresh(folder, stem, _SUFFIX, serialize(made, metadata))


# --- reading ---------------------------------------------------------------------------------------------------------


def _open(model: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[Base, dict[str, nn.Module]]:
    """The base, and its models that a file adapts, by root ("" for the denoiser)."""
    from ..families.registry import open_base

    split = [found for key in tensors if (found := split_key(key))]
    base = open_base(model.but(device="cpu", quantization="none", text_encoder_quantization="none"))
    if not any(part in ("dora_scale", "magnitude") for _, part in split):
        base.source = base.source.without_weights()
    own, text = split_text({name: None for name, _ in split})
    models: dict[str, nn.Module] = {"": base.load_denoiser()} if own else {}
    if text and base.spec.lora.text_encoders:
        base.load_text_encoders()
        models |= base.text_encoders()
    return base, models or {"": base.load_denoiser()}


def _deltas(tensors: Mapping[str, Tensor], models: Mapping[str, nn.Module], base: Base) -> dict[str, Delta]:
    from .parsing import for_roots, parse

    found = for_roots(parse(tensors), models, base)
    deltas = {path: slim for path, delta in found.items() if (slim := _without_padding(delta)) is not None}
    if not deltas:
        raise AdapterError("the LoRA changes nothing: all of its layers are zero")
    return deltas


def _without_padding(delta: Delta) -> Delta | None:
    """A LoRA without the columns that are zero, as those of its neighbours in a fused layer are; None if all are."""
    from .deltas import LowRank

    if not isinstance(delta, LowRank) or delta.dora_scale is not None:
        return delta
    used = (delta.up != 0).any(0)
    return replace(delta, down=delta.down[used], up=delta.up[:, used]) if used.any() else None


def _precision(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The one precision of a file's weights; fp32 if there are several."""
    import torch

    exact = ("alpha", "dora_scale", "magnitude")
    found = {value.dtype for key, value in tensors.items() if (split := split_key(key)) and split[1] not in exact}
    return found.pop() if len(found) == 1 else torch.float32


def _exactly(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """In a precision if it holds all numbers as they are, else in fp32; as one, because layers compute with both."""
    weights = {key: value.to(dtype) for key, value in tensors.items() if not key.endswith((".alpha", ".dora_scale"))}
    same = all(bool((value.float() == tensors[key]).all()) for key, value in weights.items())
    return {**tensors, **weights} if same else tensors


# --- forms -----------------------------------------------------------------------------------------------------------


def to_diffusers(
    deltas: Mapping[str, Delta], models: Mapping[str, nn.Module], base: Base
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors for `load_lora_weights`, and the settings of PEFT that it takes from the metadata.

    alpha is in lora_B: of alpha keys, diffusers reads those of some pipelines only. The settings are for versions
    that take one alpha where ranks differ.

    Raises:
        AdapterError: for LoKr and LoHa, which those pipelines do not read, and for a text encoder's DoRA.
    """
    from .deltas import LowRank

    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    for root, own in _by_root(deltas, models).items():
        folded: dict[str, Delta] = {}
        for path, delta in own.items():
            if not isinstance(delta, LowRank):
                raise AdapterError(
                    f"{path} is a {delta.kind}, which diffusers' load_lora_weights does not read. Export it with "
                    "--to peft, and load it with PeftModel.from_pretrained"
                )
            if root and delta.dora_scale is not None:
                raise AdapterError(
                    f"{root}.{path} is a DoRA, of which transformers loses the magnitudes when diffusers loads a text "
                    "encoder's LoRA. Export it with --to peft, and load it with PeftModel.from_pretrained"
                )
            folded[path] = replace(delta, up=delta.up * delta.scale, scale=1.0)
        adapter = to_peft(folded, models[root])
        part = root or base.spec.denoiser_part
        settings = adapter.settings
        if root:  # versions of transformers differ in whether `text_model.` is there: in files it is
            settings = {key: _text_paths(value) for key, value in settings.items()}
        config |= {f"{part}.{key}": value for key, value in settings.items()}
        for key, value in adapter.tensors.items():
            tensors[f"{part}.text_model.{_text_paths(key)}" if root else f"{part}.{key}"] = value
    return tensors, config


def _text_paths(value: Any) -> Any:
    """Without `text_model.`, which then matches with it or without."""
    if isinstance(value, str):
        return value.removeprefix("^").removeprefix("text_model.")
    if isinstance(value, list):
        return [_text_paths(one) for one in value]
    return {_text_paths(key): one for key, one in value.items()} if isinstance(value, dict) else value


def to_kohya(deltas: Mapping[str, Delta], models: Mapping[str, nn.Module], base: Base) -> dict[str, Tensor]:
    """Tensors as sd-scripts names them: `lora_unet_…`, `lora_te1_…`, with `lora_down`, `lora_up` and `alpha`.

    Raises:
        AdapterError: for kinds other than LoRA on a part of a layer that sd-scripts has whole.
    """
    import torch

    from ..families.names import Place
    from ..families.spec import LoraNames
    from .comfy_format import in_original_names
    from .deltas import LowRank
    from .operations import weight_shapes

    names = base.spec.lora
    originals = base.original_modules(weight_shapes(models[""])) if names.original and "" in models else {}

    def place_of(path: str) -> Place:
        if not names.original:
            return Place(path)
        place = Place(originals[path]) if path in originals else base.lora_place(path)
        delta = deltas[path]
        if (place.total > 1 or place.swap_halves) and not (isinstance(delta, LowRank) and delta.dora_scale is None):
            raise AdapterError(
                f"{path} is a {delta.kind}; sd-scripts has this layer as a part of {place.name}, for which such a "
                "change cannot be written. Use the file for ComfyUI as it is, or --to peft"
            )
        return place

    kohya = LoraNames("lora_unet_", names.text_encoders, kohya=True)
    return in_original_names(deltas, kohya, place_of, torch.float32)


def _peft_files(
    deltas: Mapping[str, Delta],
    models: Mapping[str, nn.Module],
    base: Base,
    metadata: dict[str, str],
    dtype: torch.dtype,
) -> dict[Path, bytes]:
    """An adapter's folder for the denoiser; those of text encoders are in it, in folders of their names."""
    from ..safetensors_file import serialize

    files = {}
    for root, own in _by_root(deltas, models).items():
        adapter = to_peft(own, models[root])
        config = adapter.config()
        config.base_model_name_or_path = base.source.name if is_repository_id(base.source.name) else None
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            files[Path(root, "adapter_config.json")] = Path(folder, "adapter_config.json").read_bytes()
        tensors = {f"base_model.model.{key}": value for key, value in adapter.tensors.items()}
        files[Path(root, "adapter_model.safetensors")] = serialize(_exactly(tensors, dtype), metadata)
    return files


def _by_root(deltas: Mapping[str, Delta], models: Mapping[str, nn.Module]) -> dict[str, dict[str, Delta]]:
    """Each model's own deltas, by its own module paths; models without any are left out."""
    found: dict[str, dict[str, Delta]] = {}
    for name, delta in deltas.items():
        root = next((root for root in models if root and name.startswith(f"{root}.")), "")
        found.setdefault(root, {})[name.removeprefix(f"{root}.") if root else name] = delta
    return found


# --- writing ---------------------------------------------------------------------------------------------------------


def _place(form: str, out: Path | None, name: str) -> tuple[Path, str, bool]:
    """Folder and name (without ending) of what is made, and whether it must have that very name.

    Raises:
        SaveError: for an `out` that is there, or that ends otherwise.
    """
    if out is None or out.is_dir():
        return out or Path(), name, False
    if out.exists():
        raise SaveError(f"{out}: is there already, and is not overwritten. Give another --out")
    if form == "peft":
        return out.parent, out.name, True
    if out.suffix != _SUFFIX:
        raise SaveError(f"{out}: what is made is a {_SUFFIX} file. Give --out that ending, or a folder that is there")
    return out.parent, out.stem, True


def _write_folder(folder: Path, stem: str, exact: bool, files: Mapping[Path, bytes]) -> Path:
    """Writes files into a new folder, which gets a number if its name is taken.

    Raises:
        SaveError: if that fails; nothing of it is left then.
    """
    target = folder / stem
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            try:
                target.mkdir()
                break
            except FileExistsError:
                if exact:
                    raise
                number += 1
                target = folder / f"{stem}_{number}"
    except OSError as error:
        raise save_error(target, error) from error
    try:
        for path, data in files.items():
            (target / path).parent.mkdir(exist_ok=True)
            write_durably(target / path, data)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise save_error(target, error) from error
    return target
