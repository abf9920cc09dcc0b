"""What a base's folder may hold, looked at before a library opens it: bases come from strangers too.

diffusers and transformers follow what a part's files say: to code of the repository (`auto_map`), to attention kernels
that are downloaded and run, to weights of another base (`adapter_config.json`), to pickles (an index may name any file
as the one of a weight). Nothing of that is needed for the bases that we train, so a folder with any of it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import BaseModelError
from ...reading import read_json
from .tokenizer_kinds import KINDS

_ATTENTION = {None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}
_ANY_TOKENIZER = {"PreTrainedTokenizer", "TokenizersBackend", "PythonBackend"}
"""Classes of transformers that take any tokenizer's files."""
_MOST_LAYERS = 1000
_DEEPEST = 20


def check_part(folder: Path) -> None:
    """Checks a part of a base: a folder with configuration, and weights or a tokenizer.

    Raises:
        BaseModelError: naming the file and what is wrong with it.
    """
    try:
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                continue
            if not path.is_file():
                raise BaseModelError(f"{path}: is no regular file (a pipe, a device or a broken link). Remove it")
            if path.name == "adapter_config.json":
                raise BaseModelError(f"{path}: would load weights of another base. Remove the file")
            if path.suffix == ".json" and path.name not in ("tokenizer.json", "vocab.json"):
                _check_json(path)
    except OSError as error:
        raise BaseModelError(f"{folder}: cannot be read ({error})") from None


def _check_json(path: Path) -> None:
    try:
        data = read_json(path)
    except ValueError as error:
        raise BaseModelError(f"{path}: cannot be read: {error}") from None
    if path.name.endswith(".index.json"):
        weights = data.get("weight_map") if isinstance(data, dict) else None
        files = list(weights.values()) if isinstance(weights, dict) else [None]
        if not all(isinstance(one, str) and one == Path(one).name and one.endswith(".safetensors") for one in files):
            raise BaseModelError(f"{path}: names files that are no .safetensors of this folder, and no others are read")
        return
    for name, value in _entries(path, data):
        if problem := _problem(name, value):
            raise BaseModelError(f"{path}: `{name}` {problem}")


def _problem(name: str, value: Any) -> str | None:
    """What is wrong with a setting."""
    if value is None:
        return None
    if name in ("auto_map", "custom_pipelines"):
        return "names code that comes with the base, which is never run. Use a base that needs none"
    if name == "quantization_config":
        return "says that the weights are quantized, which cannot be trained on. Use the base in its full precision"
    if name == "transformers_weights":
        return "leads to other files than usual. Remove it"
    if name.strip("_") in ("attn_implementation", "experts_implementation", "attn_implementation_internal"):
        known = isinstance(value, str) and value in _ATTENTION
        return None if known else "names an attention kernel of somebody else's, which would be downloaded and run"
    if name == "tokenizer_class":
        known = isinstance(value, str) and value.removesuffix("Fast") in _tokenizer_classes()
        return None if known else f"is {value!r:.80}, which no family that can be trained has"
    if "layer" in name and isinstance(value, int) and value > _MOST_LAYERS:
        return f"is {value}: no model has that many layers"
    return None


def _tokenizer_classes() -> set[str]:
    return _ANY_TOKENIZER | {one.kind for one in KINDS.values()}


def _entries(path: Path, data: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """All settings, those of sections inside too."""
    if depth > _DEEPEST:
        raise BaseModelError(f"{path}: is nested too deeply for a configuration")
    for part in data if isinstance(data, list) else []:
        yield from _entries(path, part, depth + 1)
    for name, value in data.items() if isinstance(data, dict) else []:
        yield name, value
        if name != "added_tokens_decoder":  # a mapping of words
            yield from _entries(path, value, depth + 1)
