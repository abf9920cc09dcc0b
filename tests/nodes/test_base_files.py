"""Which file a base's source is: by a list's name, or by the MODEL that ComfyUI loaded from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

Pack = Callable[[str], ModuleType]
LISTED = {"checkpoints": ["a.safetensors", "xl/b.safetensors"], "diffusion_models": ["a.safetensors"]}


@pytest.fixture
def files(pack: Pack) -> ModuleType:
    return pack("nodes.base_files")


@pytest.fixture
def error(pack: Pack) -> type[Exception]:
    return pack("trainer_core.errors").ConfigError


def test_files_of_both_folders_are_told_apart_and_found_again(files: ModuleType) -> None:
    names = files.source_names(LISTED.__getitem__)
    assert names[0] == "embedded"
    assert [files.named_source(name) for name in names[1:]] == [
        ("checkpoints", "a.safetensors"),
        ("checkpoints", "xl/b.safetensors"),
        ("diffusion_models", "a.safetensors"),
    ]


@pytest.mark.parametrize("name", ["/etc/passwd", "loras/a.safetensors", "checkpoints", "checkpoints/", "owner/model"])
def test_other_names_are_refused(files: ModuleType, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match="folder_or_repo"):
        files.named_source(name)


def model(path: Any, **more: Any) -> Any:
    """As ComfyUI's loaders note where a MODEL came from."""
    return SimpleNamespace(cached_patcher_init=(len, (path, {}), 0), patches={}, injections={}, **more)


def test_a_model_tells_its_file(files: ModuleType) -> None:
    assert files.file_of(model("/models/a.safetensors")) == Path("/models/a.safetensors")


@pytest.mark.parametrize(
    "stranger",
    [
        None,
        SimpleNamespace(),
        SimpleNamespace(cached_patcher_init=None),
        SimpleNamespace(cached_patcher_init=(len,)),
        SimpleNamespace(cached_patcher_init=(len, ())),
        SimpleNamespace(cached_patcher_init=(len, {"path": "a"})),
        model(["a.safetensors", "b.safetensors"]),
        model({}),
        model(""),
    ],
)
def test_a_model_that_does_not_tell_is_refused(files: ModuleType, error: type[Exception], stranger: Any) -> None:
    with pytest.raises(error, match="GGUF"):
        files.file_of(stranger)


@pytest.mark.parametrize("place", ["patches", "injections"])
def test_a_lora_on_the_model_is_refused(files: ModuleType, error: type[Exception], place: str) -> None:
    """As an ordinary loader keeps it, and as a bypass loader does."""
    patched = model("/models/a.safetensors")
    setattr(patched, place, {"lora": ["something"]})
    with pytest.raises(error, match="LoRA"):
        files.file_of(patched)
