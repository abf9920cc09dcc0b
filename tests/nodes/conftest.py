"""The parts of the pack that need no ComfyUI, under a package name of their own as ComfyUI would give one."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PACK = "lora_foundry_pack"


@pytest.fixture(scope="session")
def pack() -> Callable[[str], ModuleType]:
    """Imports a module of the pack, such as `nodes.training_view`, without the list of nodes, which needs ComfyUI."""
    root = _loaded(PACK, ROOT / "__init__.py", ROOT)
    nodes = ModuleType(f"{PACK}.nodes")
    nodes.__path__ = [str(ROOT / "nodes")]
    sys.modules[nodes.__name__] = nodes
    assert root.WEB_DIRECTORY == "./web"
    return lambda name: importlib.import_module(f"{PACK}.{name}" if name else PACK)


def _loaded(name: str, file: Path, folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(folder)])
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
