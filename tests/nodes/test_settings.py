"""Widgets ↔ configuration: every field has one place, and what a widget says arrives in the job."""

from __future__ import annotations

import json
import typing
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

Pack = Callable[[str], ModuleType]
ROOT = Path(__file__).parents[2]

OWN_WIDGETS = {
    ("dataset", "folder"): "a name below ComfyUI's input folder, or `demo`; links can take its place",
    ("adapter", "warm_start"): "one of the LoRA files that ComfyUI lists",
    ("sample", "prompts"): "a text box with one prompt a line, on Train LoRA",
    ("model", "family"): "one of the families that there are",
    ("model", "source"): "one of the files that ComfyUI lists, or folder_or_repo",
    ("model", "files"): "a list of the files that ComfyUI lists, for each part",
    ("model", "recovery_adapter"): "one of the LoRA files that ComfyUI lists",
    ("sample", "sampler"): "one of the samplers that ComfyUI lists",
    ("sample", "scheduler"): "one of the schedulers that ComfyUI lists",
}
"""Fields whose widget is made by the node itself, and why."""
NO_WIDGET = {
    ("model", "device"): "ComfyUI says on which device everything runs",
    ("model", "tokenizers"): "ComfyUI brings its own along",
}
"""Fields that have none, and why."""
MORE_WIDGETS = {
    "FoundryLoadDataset": {"folder", "check"},
    "FoundryConfigureLoRA": {"warm_start"},
    "FoundryQuantizeBase": {"family", "source", "folder_or_repo", "text_encoder", "text_encoder_2", "vae"},
    "FoundryTrainLoRA": {"name", "sample_prompts", "continue_stopped"},
}
"""Widgets that no table holds."""
CHANGED: dict[str, Any] = {
    "resolutions": ("64, 128", (64, 128)),
    "control_folders": ("a\nb", ("a", "b")),
    "controls": ("a | b\nc", (("a", "b"), ("c",))),
    "optimizer": ("lion", "lion"),
    "optimizer_options": ("d_coef=2", {"d_coef": 2}),
    "stage_boundaries": ("0.5", (0.5,)),
    "background": ("black", "black"),
    "warmup_steps": (1, 1),
}
"""As `_another`, where no rule finds it."""
NEEDED = {
    "output_preservation": {"output_preservation_class": "shape"},
    "stages": {"stage_boundaries": "0.5"},
    "timestep_min": {"timestep_max": 1.0},
}
"""What a setting cannot be without."""
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@pytest.fixture
def settings(pack: Pack) -> ModuleType:
    return pack("nodes.settings")


@pytest.fixture
def form(pack: Pack) -> ModuleType:
    return pack("nodes.setting")


def test_every_field_has_exactly_one_place(settings: ModuleType, form: ModuleType) -> None:
    tables = [(form.PARTS[one.section], one.field) for table in settings.BY_NODE.values() for one in table]
    places = Counter([*tables, *OWN_WIDGETS, *NO_WIDGET])
    fields = {(part, name) for section, part in form.PARTS.items() for name in section.model_fields}
    assert {place for place, count in places.items() if count > 1} == set()
    assert fields - set(places) == set(), "no widget"
    assert set(places) - fields == set(), "no such field"


def test_nodes_have_the_widgets_of_their_tables_and_few_more(settings: ModuleType) -> None:
    """By the snapshot that tests/host compares with the real nodes."""
    known = json.loads((ROOT / "tests" / "host" / "node_info.json").read_text(encoding="utf-8"))
    for kind, table in settings.BY_NODE.items():
        inputs = known[kind]["inputs"]
        tables = {one.widget for one in table}
        names = {
            name
            for name, (group, kind_, _) in inputs.items()
            if not _is_socket(kind_) and (group == "required" or name in tables)
        }
        assert names - tables == MORE_WIDGETS.get(kind, set())
        assert tables <= names
        for one in table:
            assert inputs[one.widget][2]["default"] == one.default
            assert inputs[one.widget][2].get("advanced", False) == one.advanced


def test_the_parts_are_those_of_a_job(pack: Pack, settings: ModuleType, form: ModuleType) -> None:
    """A section added to the job must be added here."""
    job = pack("trainer_core.config").JobConfig
    inner = {"datasets" if part == "dataset" else part for part in form.PARTS.values()}
    assert set(job.model_fields) - inner == {"name", "trigger"}  # on Train LoRA; on Caption with Trigger
    for section, part in form.PARTS.items():
        if part != "dataset":
            assert job.model_fields[part].annotation is section


def test_widgets_names_are_unique_on_their_node(settings: ModuleType) -> None:
    for table in settings.BY_NODE.values():
        assert max(Counter(one.widget for one in table).values()) == 1


def test_untouched_widgets_give_the_defaults(settings: ModuleType, form: ModuleType) -> None:
    for table in settings.BY_NODE.values():
        untouched = {one.widget: one.default for one in table}
        for one in table:
            plain = one.section(folder="x") if form.PARTS[one.section] == "dataset" else one.section()
            assert _section(form, table, one, untouched) == plain


def test_each_changed_widget_changes_its_field_alone(settings: ModuleType, form: ModuleType) -> None:
    for table in settings.BY_NODE.values():
        untouched = {one.widget: one.default for one in table}
        for one in table:
            if (other := _another(one)) is None:
                continue
            shown, expected = other
            common = {**untouched, **NEEDED.get(one.field, {})}
            before, after = (_section(form, table, one, {**common, **new}) for new in ({}, {one.widget: shown}))
            changed = {name for name in one.section.model_fields if getattr(before, name) != getattr(after, name)}
            assert changed == {one.field}
            assert getattr(after, one.field) == expected, one.field


def test_numbers_stand_for_empty_fields(settings: ModuleType) -> None:
    by_name = {one.widget: one for table in settings.BY_NODE.values() for one in table}
    for name, empty in (
        ("alpha", 0.0),
        ("ema_decay", 0.0),
        ("min_snr_gamma", 0.0),
        ("width", 0),
        ("guidance", -1.0),
        ("conv_rank", 0),
    ):
        assert by_name[name].value(empty) is None
        assert by_name[name].shown(None) == empty
        assert by_name[name].value(0.5) == 0.5
    assert by_name["mask_minimum"].value(0.0) == 0.0  # not all zeros mean empty


def test_settings_that_do_not_fit_are_refused_by_their_node(pack: Pack, settings: ModuleType, form: ModuleType) -> None:
    error = pack("trainer_core.errors").ConfigError
    table = settings.REGULARIZATION
    shown = {one.widget: one.default for one in table} | {"output_preservation": True}
    with pytest.raises(error, match="output_preservation_class"):
        form.checked(table, shown)
    assert form.checked(table, {**shown, "output_preservation_class": "shape"}).keys() == {"regularization"}


def test_what_depends_on_a_widget_says_so(settings: ModuleType, form: ModuleType) -> None:
    """The page hides what would do nothing; `needs` names widgets of the same node and values that they can have."""
    needs = {name: {one.widget: one.needs for one in table} for name, table in settings.BY_NODE.items()}
    regularization, options = needs["FoundryRegularization"], needs["FoundryTrainingOptions"]
    assert regularization["output_preservation_class"] == {"output_preservation": form.ON}
    assert options["huber_delta"] == {"loss_type": ["huber", "smooth_l1"]}
    assert options["lr_cycles"] == {"lr_scheduler": ["cosine_with_restarts"]}
    assert options["ema_warmup"] == {"ema_decay": form.ON}
    assert needs["FoundryConfigureLoRA"]["conv_alpha"] == {"conv_rank": form.ON}
    for table in settings.BY_NODE.values():
        widgets = {one.widget: one for one in table}
        for one in table:
            for name, values in one.needs.items():
                kind = widgets[name].section.model_fields[widgets[name].field].annotation
                assert values == form.ON or set(values) < set(typing.get_args(kind)), one.widget


def test_no_node_shows_more_than_ten_widgets_at_first() -> None:
    """By the snapshot, as above: the rest is advanced. Sockets are no widgets."""
    known = json.loads((ROOT / "tests" / "host" / "node_info.json").read_text(encoding="utf-8"))
    for name, node in known.items():
        plain = [
            widget
            for widget, (_, kind, options) in node["inputs"].items()
            if kind in WIDGETS and not options.get("advanced") and not options.get("forceInput")
        ]
        assert len(plain) <= 10, (name, plain)


def test_text_that_says_nothing_is_named(pack: Pack, settings: ModuleType) -> None:
    error = pack("trainer_core.errors").ConfigError
    by_name = {one.widget: one for table in settings.BY_NODE.values() for one in table}
    for widget, text in (("resolutions", "big"), ("stage_boundaries", "half"), ("optimizer_options", "d_coef 2")):
        with pytest.raises(error, match=f"{widget}: .*{text}"):
            by_name[widget].value(text)


def test_all_optimizers_of_torch_can_be_chosen(settings: ModuleType) -> None:
    (optimizer,) = (one for one in settings.TRAINING_OPTIONS if one.field == "optimizer")
    offered = {name.lower() for name in optimizer.options["options"]}
    classes = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    unusable = {"Optimizer", "LBFGS", "SparseAdam"}  # the base class; several losses a step; sparse gradients
    newer = {"Muon"}  # not in every torch that we run on
    assert {name.lower() for name in classes - unusable - newer} <= offered


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("d_coef=2", {"d_coef": 2}),
        ("eps = 1e-3\nbetas=[0.9, 0.99]", {"eps": 1e-3, "betas": [0.9, 0.99]}),
        ("a=true\nb=False\n\nc=.5", {"a": True, "b": False, "c": 0.5}),
        ("mode=a=b", {"mode": "a=b"}),
        ('word="true"', {"word": "true"}),
        ("", {}),
    ],
)
def test_arguments_are_read_as_written(pack: Pack, text: str, value: dict[str, Any]) -> None:
    assert pack("nodes.text_fields").ARGUMENTS.read(text) == value


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
        st.booleans()
        | st.integers(-1000, 1000)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=8)
        | st.lists(st.floats(0, 1), min_size=1, max_size=3),
        max_size=4,
    )
)
def test_arguments_survive_being_shown(pack: Pack, arguments: dict[str, Any]) -> None:
    form = pack("nodes.text_fields").ARGUMENTS
    assert form.read(form.show(arguments)) == arguments


def _is_socket(kind: str) -> bool:
    return kind.startswith("FOUNDRY_")


def _default(setting: Any) -> Any:
    return setting.section.model_fields[setting.field].get_default(call_default_factory=True)


def _section(form: ModuleType, table: Any, setting: Any, shown: dict[str, Any]) -> Any:
    """The setting's section as a node's widgets make it."""
    part = form.PARTS[setting.section]
    required = {"folder": "x"} if part == "dataset" else {}
    return setting.section(**required, **form.values(table, shown)[part])


def _another(setting: Any) -> tuple[Any, Any] | None:
    """What to write into a widget to change it, and the field's value that it must give; None: there is no choice."""
    if setting.field in CHANGED:
        return CHANGED[setting.field]
    default = _default(setting)
    kind = setting.section.model_fields[setting.field].annotation
    parts = [kind, *typing.get_args(kind)]
    if typing.get_origin(kind) is typing.Literal:
        choices = [choice for choice in typing.get_args(kind) if choice != default]
        return (choices[0], choices[0]) if choices else None
    if isinstance(default, bool):
        return not default, not default
    if isinstance(default, tuple) and int in parts:
        return "17, 49", (17, 49)
    if int in parts and not isinstance(default, float):
        value = 64 if default is None else default + 1
        return value, value
    if float in parts:
        return 0.25, 0.25
    return "another", "another"
