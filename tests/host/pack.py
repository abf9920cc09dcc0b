"""This pack and a real ComfyUI in the tests' own process, without a server.

The pack is imported under a name of its own, as ComfyUI imports it; ComfyUI's library (`comfy`) beside it. Neither
touches what other tests in the same process import: our `nodes` is `lora_foundry_pack.nodes`, and nothing here imports
ComfyUI's module of that name.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

ROOT = Path(__file__).parents[2]
PACK = "lora_foundry_pack"


def registered() -> ModuleType:
    """The pack, without the list of nodes, which needs ComfyUI's server."""
    if PACK not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec
        assert spec.loader
        pack = sys.modules[PACK] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(pack)
        nodes = sys.modules[f"{PACK}.nodes"] = ModuleType(f"{PACK}.nodes")
        nodes.__path__ = [str(ROOT / "nodes")]
    return sys.modules[PACK]


def module(name: str) -> ModuleType:
    """A module of the pack, such as `nodes.comfy_models.shadow`."""
    registered()
    return importlib.import_module(f"{PACK}.{name}")


def comfy_on_cpu(comfyui: Path) -> None:
    """Makes `import comfy…` work in this process, as `main.py --cpu` would; does nothing where it works already."""
    if "comfy.options" in sys.modules:
        return
    sys.path.append(os.fspath(comfyui))  # last: only what nobody else has is ComfyUI's
    with mock.patch.object(sys, "argv", ["main.py", "--cpu"]):
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")  # reads the arguments, once
