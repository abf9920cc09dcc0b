"""What the Preset node gives to Train LoRA and tells the user."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

Pack = Callable[[str], ModuleType]


@pytest.fixture
def view(pack: Pack) -> ModuleType:
    return pack("nodes.preset_view")


@pytest.fixture
def presets(pack: Pack) -> ModuleType:
    return pack("trainer_core.presets")


def spec(pack: Pack, family: str) -> Any:
    return pack("trainer_core.families.registry").family_spec(family)


@pytest.mark.parametrize("subject", ["character", "style", "object"])
@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux1"])
def test_every_setting_of_a_preset_goes_somewhere(
    pack: Pack, view: ModuleType, presets: ModuleType, subject: str, family: str
) -> None:
    """To Configure LoRA's place, to Training Options', to an output, or to the user; nothing gets lost."""
    changes = presets.preset(subject, 12, spec(pack, family))
    options = view.training_options(presets.by_part(changes)["train"])["train"]
    for change in changes:
        place = (change.part, change.field)
        ways = [change.part == "adapter", place in view.LINKED, place in view.BY_HAND]
        ways.append(change.part == "train" and change.field in options)
        assert sum(ways) == 1, place


def test_a_presets_options_leave_train_loras_own_widgets_alone(
    pack: Pack, view: ModuleType, presets: ModuleType
) -> None:
    """Whoever links training_options but not steps has chosen the steps."""
    changes = presets.preset("character", 12, spec(pack, "sdxl"))
    own = {one.field for one in pack("nodes.settings").TRAIN_LORA}
    assert not own & view.training_options(presets.by_part(changes)["train"])["train"].keys()


def test_the_node_tells_settings_and_reasons(pack: Pack, view: ModuleType, presets: ModuleType) -> None:
    changes = presets.preset("style", 8, spec(pack, "sdxl"))
    text = view.told(changes, presets.warning(8, spec(pack, "sdxl")))
    lines = text.splitlines()
    assert lines[0].startswith("SDXL needs 12 GB")
    assert any(line.startswith("• rank = 8: ") for line in lines)
    assert any(line.startswith("• resolutions = 512: ") for line in lines)
    by_hand = lines[lines.index("Set these yourself:") + 1 :]
    assert [line.split(" = ")[0] for line in by_hand] == ["• caption_dropout of Caption with Trigger"]


def test_nothing_is_asked_of_the_user_that_is_so_anyway(pack: Pack, view: ModuleType, presets: ModuleType) -> None:
    assert "yourself" not in view.told(presets.preset("character", 12, spec(pack, "sdxl")), None)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux1"])
def test_a_preset_as_values_of_widgets_is_the_same_job(
    pack: Pack, view: ModuleType, presets: ModuleType, family: str
) -> None:
    """What the page fills in, read back through the nodes' tables, is what the preset says."""
    changes = presets.preset("style", 24, spec(pack, family))
    filled = view.filled(changes, ())
    by_node = pack("nodes.settings").BY_NODE
    assert len(filled) == len(changes)
    for one, change in zip(filled, changes, strict=True):
        (setting,) = (setting for setting in by_node[one["node"]] if setting.widget == one["widget"])
        value = setting.value(one["value"])
        assert (tuple(value) if isinstance(value, list) else value) == change.value
        assert one["why"] == change.reason
    assert {"node": "FoundryTrainLoRA", "widget": "save_every", "value": 250} in [
        {key: one[key] for key in ("node", "widget", "value")} for one in filled
    ]


def test_what_only_another_preset_changes_goes_back(pack: Pack, view: ModuleType, presets: ModuleType) -> None:
    """Whoever has filled in a style and then takes a character keeps nothing of the style."""
    style, character = (presets.preset(one, 24, spec(pack, "sdxl")) for one in ("style", "character"))
    values = {(one["node"], one["widget"]): one["value"] for one in view.filled(character, style)}
    assert values["FoundryConfigureLoRA", "conv_rank"] == 0
    assert values["FoundryCaptionWithTrigger", "caption_dropout"] == 0.0
    assert values["FoundryConfigureLoRA", "rank"] == 32
