"""Whether links hold the same as before is told by a digest of weights, and of what nodes did to them."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ..pack import ROOT
from .hosted import linked
from .patches import PATCHES, patched

pytest.importorskip("torch")


def test_every_patch_has_a_name_of_its_own() -> None:
    names = [linked(patched(*patches)).source for patches in ((), *((one,) for one in PATCHES))]
    assert len({*names}) == len(names)
    assert linked(patched()).source == names[0]


def scaled(by: float) -> Callable[..., Any]:
    return lambda out, _options: out * by


class Scale:
    __slots__ = ("by",)

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, out: Any, _options: Any) -> Any:
        return out * self.by


def by_number(out: Any, _options: Any, by: Any = 1.0) -> Any:
    return out * by


def _default(by: float) -> Callable[..., Any]:
    def patch(out: Any, _options: Any, given: float = by) -> Any:
        return out * given

    return patch


LIKE = {
    "closures": (scaled(1.5), scaled(1.6)),
    "two functions of one name": ((lambda out, _: out * 2), (lambda out, _: out + 2)),
    "partials": (functools.partial(by_number, by=2.0), functools.partial(by_number, by=3.0)),
    "slots": (Scale(2.0), Scale(3.0)),
    "defaults": (_default(2.0), _default(3.0)),
    "methods": (Scale(2.0).__call__, Scale(3.0).__call__),
}


@pytest.mark.parametrize("kind", LIKE)
def test_like_patches_are_told_apart(kind: str) -> None:
    names = []
    for patch in LIKE[kind]:
        model = patched()
        model.set_model_attn1_output_patch(patch)
        names.append(linked(model).source)
    assert names[0] != names[1]


def test_arrays_and_kinds_of_sampling_are_told_apart() -> None:
    import comfy.model_sampling as kinds
    import numpy as np

    names = []
    for kind in (kinds.EPS, kinds.V_PREDICTION):
        model = patched(name="sd15")
        found = type("Advanced", (kinds.ModelSamplingDiscrete, kind), {})(SimpleNamespace(sampling_settings={}))
        model.add_object_patch("model_sampling", found)
        names.append(linked(model).source)
    for value in (1.0, 2.0):
        model = patched(name="sd15")
        model.set_model_attn1_output_patch(functools.partial(by_number, by=np.full(3, value)))
        names.append(linked(model).source)
    assert len({*names}) == 4


_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.host.pack import comfy_on_cpu
comfy_on_cpu(Path(sys.argv[2]))
from tests.host.comfy_models import test_digest as here
model = here.patched(*here.PATCHES)
for name, (patch, _) in here.LIKE.items():
    model.set_model_attn1_output_patch(patch)
print(here.linked(model).source)
"""


def test_the_name_is_the_same_in_another_process(comfyui: Any) -> None:
    command = [sys.executable, "-c", _SCRIPT, str(ROOT), str(comfyui)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    model = patched(*PATCHES)
    for patch, _ in LIKE.values():
        model.set_model_attn1_output_patch(patch)
    assert found.strip() == linked(model).source
