"""What a user reads of a failure: widgets' names and not those of job.yaml."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from types import ModuleType

import pytest

Pack = Callable[[str], ModuleType]


@pytest.fixture
def failures(pack: Pack) -> ModuleType:
    return pack("nodes.failures")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Lower train.learning_rate and resume", "Lower learning_rate of Train LoRA and resume"),
        ("validation.every: nothing", "validation_every of Training Options: nothing"),
        (
            "save.weights: ema needs train.ema_decay",
            "save_weights of Train LoRA: ema needs ema_decay of Training Options",
        ),
        ("model.files.vae: a.safetensors: no", "vae of Base Model: a.safetensors: no"),
        ("model.source: x", "source of Base Model: x"),
        ("model.dtype: x", "precision of Base Model: x"),
        ("datasets[1].caption_dropout: x", "caption_dropout of Caption with Trigger: x"),
        ("memory.compile: set adapter.dropout to 0", "compile of Training Options: set dropout of Configure LoRA to 0"),
        ("/home/model.source/x and model.safetensors", "/home/model.source/x and model.safetensors"),
        ("model.tokenizers: has no widget", "model.tokenizers: has no widget"),
    ],
)
def test_fields_are_called_as_their_widgets(failures: ModuleType, text: str, shown: str) -> None:
    assert failures.in_widgets(text) == shown


def test_a_nodes_own_widgets_are_named_alone(failures: ModuleType) -> None:
    text = failures.in_widgets("train.steps: more than save.every; see train.ema_decay", "FoundryTrainLoRA")
    assert text == "steps: more than save_every; see ema_decay of Training Options"


def test_wrong_values_are_told_by_their_widget(pack: Pack) -> None:
    """Fields of several sections have the same name: which of them it is, only the widget tells."""
    form, settings, error = pack("nodes.setting"), pack("nodes.settings"), pack("trainer_core.errors").ConfigError
    shown = {one.widget: one.default for one in settings.TRAINING_OPTIONS} | {"validation_every": -1}
    with pytest.raises(error, match=r"^validation_every: "):
        form.checked(settings.TRAINING_OPTIONS, shown)


def test_what_is_linked_is_not_known_before_the_run(pack: Pack) -> None:
    form, table = pack("nodes.setting"), pack("nodes.settings").REGULARIZATION
    names = ("output_preservation", "output_preservation_class")
    assert form.refused(table, dict(zip(names, (True, None), strict=True))) is True
    assert form.refused(table, dict(zip(names, (True, "woman"), strict=True))) is True
    assert "such as `woman`" in form.refused(table, dict(zip(names, (True, ""), strict=True)))


def test_only_the_traceback_of_an_expected_failure_is_left_out(failures: ModuleType) -> None:
    kept = []
    for error in (failures.Failure("steps: too many"), ValueError("LoRA Foundry: no")):
        try:
            raise error
        except (failures.Failure, ValueError):
            record = logging.LogRecord("root", logging.ERROR, "", 0, traceback.format_exc(), (), None)
        kept.append(failures.OneLine().filter(record))
    assert kept == [False, True]
