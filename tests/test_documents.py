"""README's table of models and CONTRIBUTING's picture of folders against what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from trainer_core.families.registry import family_names

from .host.comfy_models.zoo import MODELS, NONE
from .host.comfy_models.zoo.real import REAL

ROOT = Path(__file__).parents[1]
GROUPS = {"Pictures": "image", "Edit": "edit", "Video": "video"}
"""Heading → category of the zoo."""


class Row(NamedTuple):
    """One of the table, as written."""

    group: str
    model: str
    through: str
    tiny: str
    real: str
    tests: str

    @property
    def zoo(self) -> list[str]:
        """The zoo's names."""
        return names(self.tests)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def names(markdown: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", markdown)


def part(heading: str) -> str:
    """What README says below one of its headings, up to the next."""
    return re.split(r"^##+ ", text("README.md").split(f"\n### {heading}\n")[1], flags=re.MULTILINE)[0]


def rows() -> list[Row]:
    lines = ((group, line) for group in GROUPS for line in part(group).splitlines() if line.startswith("| "))
    return [
        Row(group, *(cell.strip() for cell in line.strip("|").split("|")))
        for group, line in lines
        if not line.startswith("| model |")
    ]


def test_readme_has_every_model_once_and_no_other() -> None:
    listed = [(name, GROUPS[row.group]) for row in rows() for name in row.zoo]
    assert sorted(listed) == sorted((name, model.category) for name, model in MODELS.items() if not model.refused)


def test_readme_has_everything_that_is_refused() -> None:
    refused = [name for name, model in MODELS.items() if model.refused]
    assert sorted(names(part("Refused"))) == sorted([*refused, *NONE])


def test_readme_has_every_family_and_no_other() -> None:
    listed = {name for row in rows() for name in names(row.through)}
    assert listed == {*family_names()}
    assert all(row.through.endswith("ComfyUI") for row in rows())


def test_readme_tells_which_models_are_tested_at_real_shapes() -> None:
    listed = [(name, row) for row in rows() if row.real != "–" for name in row.real.split(", ")]
    assert {name for name, _ in listed} == REAL.keys()
    assert all(REAL[name][1].kind in {MODELS[one].kind for one in row.zoo} for name, row in listed)


def test_contributing_has_every_file_that_trains_comfyui_s_models() -> None:
    listed = re.findall(r"^ +- `(\w+\.py)`:", text("CONTRIBUTING.md"), flags=re.MULTILINE)
    folder = ROOT / "nodes" / "comfy_models"
    assert sorted(listed) == sorted(one.name for one in folder.glob("*.py") if one.name != "__init__.py")
