"""Captions by small models of transformers' own classes, against the classes used by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from trainer_core.api import Drafts, OpenSet, draft_captions, find_models
from trainer_core.captioning.writer import QUESTION, CaptionWriter
from trainer_core.config import DatasetConfig
from trainer_core.errors import BaseModelError, Interrupted

from .small_captioners import blip, florence, llava, qwen_vl

PICTURE = Image.new("RGB", (40, 30), "red")
TOKENS = 6
ASKED = {
    "llava": f"USER: <image>\n{QUESTION} ASSISTANT:",
    "blip": None,
    "florence": "<MORE_DETAILED_CAPTION>",
    "qwen": f"user <|vision_start|><|image_pad|><|vision_end|>{QUESTION} ASSISTANT :",
}
"""What each kind is given beside the picture."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as models/LLM."""
    folder = tmp_path_factory.mktemp("LLM")
    llava(folder / "author" / "llava")
    blip(folder / "blip")
    florence(folder / "florence")
    qwen_vl(folder / "qwen")
    return folder


@pytest.fixture(autouse=True)
def _short_and_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("trainer_core.captioning.writer._LONGEST", TOKENS)


@pytest.mark.parametrize(
    ("name", "kind"), [("author/llava", "llava"), ("blip", "blip"), ("florence", "florence"), ("qwen", "qwen")]
)
def test_a_model_says_what_its_own_class_says(place: Path, name: str, kind: str) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = {one.name: one for one in find_models([place])}[name]
    processor = AutoProcessor.from_pretrained(place / name)
    given = processor(images=PICTURE, return_tensors="pt", **({"text": ASKED[kind]} if ASKED[kind] else {}))
    with torch.no_grad():
        own = AutoModelForImageTextToText.from_pretrained(place / name).eval()
        tokens = own.generate(**given, max_new_tokens=TOKENS, do_sample=False)
    answers = kind in ("llava", "qwen")
    told = tokens[:, given["input_ids"].shape[1] :] if answers else tokens
    expected = processor.batch_decode(told, skip_special_tokens=True)[0].split()
    writer = CaptionWriter(model, "cpu")
    assert writer.write(PICTURE).split() == expected
    assert writer.write(PICTURE).split() == expected
    assert not answers or (expected and not expected[0].lower().startswith("user"))


def test_models_are_found_by_their_files_and_told_what_they_lack(place: Path, tmp_path: Path) -> None:
    def folder(name: str, config: object, *files: str) -> None:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        for file in files:
            (tmp_path / name / file).touch()

    folder("pickled", {"model_type": "florence2"}, "pytorch_model.bin", "preprocessor_config.json")
    folder("bare", {"model_type": "qwen2_5_vl"}, "model.safetensors")
    folder("whole", {"model_type": "qwen3_vl"}, "model-00001-of-00002.safetensors", "preprocessor_config.json")
    folder("text", {"model_type": "llama"}, "model.safetensors")
    folder("odd", "[" * 100_000)
    folder("odder", {"model_type": ["llava"]})
    snapshot = "hub/models--author--name/snapshots/abc"
    folder(snapshot, {"model_type": "llava"}, "model.safetensors", "processor_config.json")
    found = find_models([tmp_path, tmp_path, tmp_path / "missing"])
    assert [(one.name, one.problem is None) for one in found] == [
        ("author/name", True),
        ("whole", True),
        ("bare", False),
        ("pickled", False),
    ]
    assert ".safetensors" in str(found[3].problem)
    assert len({one.id for one in found}) == 4
    with pytest.raises(BaseModelError, match="bare: it has neither"):
        CaptionWriter(found[2], "cpu")


def test_weights_of_another_layout_are_refused(place: Path, tmp_path: Path) -> None:
    """Such as Florence-2 as Microsoft published it, for code of its own."""
    from safetensors.torch import load_file, save_file

    blip(tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    save_file({f"theirs.{name}": one for name, one in weights.items()}, tmp_path / "other" / "model.safetensors")
    (model,) = find_models([tmp_path])
    with pytest.raises(BaseModelError, match=r"other: its weights are named otherwise.*converted"):
        CaptionWriter(model, "cpu")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(BaseModelError, match="other: cannot be loaded"):
        CaptionWriter(model, "cpu")


def test_drafts_are_written_until_somebody_stops_it(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    blip(tmp_path / "LLM" / "blip", says="circle")
    (model,) = find_models([tmp_path / "LLM"])
    folder = make_dataset(3, caption=None)
    (folder / "1_green.png").write_bytes(b"no picture")
    opened = OpenSet.of("0" * 16, "pictures", DatasetConfig(folder=str(folder)))
    drafts, heard = Drafts(tmp_path / "drafts"), []
    count, unreadable = draft_captions(
        opened, [*opened.keys], model, "cpu", drafts, progress=lambda done, of: heard.append((done, of))
    )
    assert (count, len(unreadable)) == (2, 1)
    assert "1_green.png" in unreadable[0]
    assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]
    kept = drafts.of(opened.id)
    assert {key: (draft["caption"], draft["by"]) for key, draft in kept.items()} == {
        "0_red.png": ("circle", "blip"),
        "2_blue.png": ("circle", "blip"),
    }
    assert not [*folder.glob("*.txt")]
    drafts.drop(opened.id, [*kept])

    def stop(done: int, of: int) -> None:
        if done == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        draft_captions(opened, [*opened.keys], model, "cpu", drafts, progress=stop)
    assert [*drafts.of(opened.id)] == ["0_red.png"]


def test_a_question_goes_to_models_that_take_one(place: Path) -> None:
    writers = {one.kind: CaptionWriter(one, "cpu") for one in find_models([place])}
    assert writers["llava"]._prompt("What?") == "USER: <image>\nWhat? ASSISTANT:"
    assert writers["blip"]._prompt("a photo of") == "a photo of"
    assert writers["florence2"]._prompt("What?") == "<MORE_DETAILED_CAPTION>"
    assert writers["florence2"]._prompt("<CAPTION>") == "<CAPTION>"
