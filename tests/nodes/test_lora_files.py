"""Under which names LoRA files come into the folders that ComfyUI lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

Pack = Callable[[str], ModuleType]


@pytest.fixture
def files(pack: Pack) -> ModuleType:
    return pack("nodes.lora_files")


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """ComfyUI's models/loras and output/loras."""
    return [tmp_path / "models", tmp_path / "output"]


def lora(path: Path, value: float) -> Path:
    save_file({"x.lora_A.weight": torch.full((1, 1), value)}, path)
    return path


def test_the_same_lora_is_not_saved_twice(files: ModuleType, roots: list[Path], tmp_path: Path) -> None:
    one = lora(tmp_path / "a.safetensors", 1.0)
    first, again = (files.export(one, roots[1], "zorble", roots) for _ in range(2))
    assert (first.name, again) == ("zorble.safetensors", first)
    assert [path.name for path in roots[1].iterdir()] == ["zorble.safetensors"]
    assert files.note(first.older) == []


def test_another_lora_gets_another_name_and_says_so(files: ModuleType, roots: list[Path], tmp_path: Path) -> None:
    """Loaders keep what they once read under a name."""
    one, two = (lora(tmp_path / f"{value}.safetensors", value) for value in (1.0, 2.0))
    files.export(one, roots[1], "zorble", roots)
    exported = files.export(two, roots[1], "zorble.safetensors", roots)
    assert (exported.name, exported.older) == ("zorble_2.safetensors", ("zorble.safetensors",))
    assert exported.path.read_bytes() == two.read_bytes()
    assert files.note(exported.older) == [
        "zorble.safetensors is another LoRA: loaders that have it selected stay with it"
    ]
    assert files.export(two, roots[1], "zorble", roots) == exported
    assert files.export(one, roots[1], "zorble", roots).name == "zorble.safetensors"


def test_a_saved_checkpoint_has_the_name_that_it_had(files: ModuleType, roots: list[Path], tmp_path: Path) -> None:
    """Lists show a name once, in however many folders it lies; the first that has it is read."""
    one = lora(tmp_path / "a.safetensors", 1.0)
    finished = files.export(one, roots[1], "zorble_300_steps", roots)
    saved = files.export(one, roots[0], "zorble_300_steps", roots)
    assert saved.name == finished.name
    assert saved.path == roots[0] / finished.name  # a copy that stays when the output folder is emptied
    assert files.export(one, roots[1], "zorble_300_steps", roots).path == saved.path


def test_a_name_that_nobody_chose_is_not_used_beside_another(
    files: ModuleType, roots: list[Path], tmp_path: Path
) -> None:
    one, two = (lora(tmp_path / f"{value}.safetensors", value) for value in (1.0, 2.0))
    files.export(one, roots[1], "chosen", roots)
    assert files.export(one, roots[1], "zorble_3_steps", roots, asked=False).path == roots[1] / "chosen.safetensors"
    assert files.export(one, roots[0], "zorble_3_steps", roots, asked=False).path == roots[0] / "chosen.safetensors"
    assert files.export(two, roots[0], "zorble_3_steps", roots, asked=False).name == "zorble_3_steps.safetensors"


def test_a_name_that_the_first_folder_has_is_not_used(files: ModuleType, roots: list[Path], tmp_path: Path) -> None:
    one, two = (lora(tmp_path / f"{value}.safetensors", value) for value in (1.0, 2.0))
    files.export(one, roots[0], "zorble", roots)
    roots[1].mkdir()
    lora(roots[1] / "zorble.safetensors", 2.0)  # hidden by the first
    assert files.export(two, roots[1], "zorble", roots).name == "zorble_2.safetensors"


def test_loras_of_earlier_trainings_are_named(files: ModuleType, roots: list[Path], tmp_path: Path) -> None:
    """A loader that has one selected would draw with it, unawares."""
    names = ("zorble_300_steps", "zorble", "zorble_2_600_steps", "zorbles_300_steps", "zorble red", "zorble_final")
    for value, name in enumerate(names):
        files.export(lora(tmp_path / f"{value}.safetensors", value), roots[value % 2], name, roots)
    new = files.export(lora(tmp_path / "new.safetensors", 9.0), roots[1], "zorble_3_600_steps", roots)
    same = files.export(tmp_path / "new.safetensors", roots[0], "zorble_4", roots)
    assert same.path.read_bytes() == new.path.read_bytes()
    found = files.earlier("zorble", [new], roots)
    assert sorted(found) == ["zorble.safetensors", "zorble_2_600_steps.safetensors", "zorble_300_steps.safetensors"]
    assert files.note(found)[0].startswith(f"{found[-1]} (and 2 more) is another LoRA")
