"""Files from strangers: each that is wrong ends with one sentence that says where, and none takes long or much."""

from __future__ import annotations

import copy
import math
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from trainer_core.api import import_config
from trainer_core.errors import ConfigError, FoundryError
from trainer_core.reading import read_regular

from .configurations import FOLDER, MAIN

SD = 'network_module = "networks.lora"\n'
PIPE = "[model]\ntype = 'flux'\n"
TOOLKIT = "config:\n  process:\n  - type: sd_trainer\n"
VALUES: tuple[Any, ...] = (
    *(True, False, 0, -1, 2**62, 0.5, -1e300, "", "x", "1e-4", "a,b", "\0", "\u202e", "y" * 5000, "../../etc/passwd"),
    *([], [1, 2, 3], ["x"], [[1]], {}, {"a": 1}, [{"a": {}}], {"x": [{"y": 1}]}),
)
TRIES = 300


def sentence(name: str, text: str) -> str:
    """The message of a text that is refused."""
    with pytest.raises(ConfigError) as caught:
        import_config({name: text})
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("big.toml", SD + "# " + "x" * 1_000_000, "too large"),
        ("big.yaml", TOOLKIT + "# " + "x" * 1_000_000, "too large"),
        ("many.toml", SD + "".join(f"a{n} = 1\n" for n in range(30_000)), "more than 20000"),
        ("many.yaml", TOOLKIT + "    x: [" + "1," * 20_001 + "]", "more than 20000"),
        ("deep.toml", SD + "x = " + "[" * 100_000, "nested too deeply"),
        ("deeper.toml", SD + "x = " + "[" * 50 + "]" * 50, "20 levels"),
        ("deep.yaml", "x: " + "[" * 10_000, "levels deep"),
        ("dots.toml", "a" + ".a" * 200_000 + " = 1", "too many parts"),
        ("levels.toml", "a" + ".a" * 3000 + " = 1", "20 levels"),
        ("digits.toml", SD + "x = " + "1" * 500_000, "too many digits"),
        ("hex.toml", SD + "x = 0x" + "f" * 900, "64 bits"),
        ("nan.toml", SD + "learning_rate = nan", "infinite"),
        ("inf.yaml", TOOLKIT + "    x: .inf", "infinite"),
    ],
)
def test_what_is_too_much(name: str, text: str, told: str) -> None:
    assert told in sentence(name, text)


def test_yaml_may_not_refer_to_itself() -> None:
    laughs = "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(9))
    assert "anchor" in sentence("laughs.yaml", laughs)
    assert "line 3" in sentence("alias.yaml", TOOLKIT.replace("- type: sd_trainer", "- type: *other"))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [id]", "!!binary aGk=", "!x y"])
def test_yaml_may_not_have_tags(tag: str) -> None:
    message = sentence("tag.yaml", f"{TOOLKIT}    trigger_word: {tag}\n")
    assert "tag" in message
    assert "line 4" in message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("broken.toml", SD + "learning_rate = = 1"),
        ("twice.toml", SD + SD),
        ("open.toml", SD + 'x = "never closed'),
        ("broken.yaml", TOOLKIT + "   wrong: [1"),
        ("twice.yaml", TOOLKIT + "config: 1\n"),
    ],
)
def test_what_is_no_toml_or_yaml_is_told_with_its_line(name: str, text: str) -> None:
    message = sentence(name, text)
    assert any(word in message for word in ("line", "twice", "end of document"))


@pytest.mark.parametrize("text", ["", "just a sentence", "- a\n- b\n", "a: 1\n", "x = 1\n", "{}", "\0\1\2"])
def test_what_is_of_no_tool(text: str) -> None:
    for name in ("a.yaml", "a.toml", "a"):
        sentence(name, text)


def test_a_job_of_ours_is_none_of_theirs() -> None:
    assert "already" in sentence("job.yaml", "name: x\ndatasets:\n- folder: y\n")


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.toml", SD + 'learning_rate = "fast"', "learning_rate: must be a number"),
        ("a.toml", SD + "max_train_steps = 1.5", "max_train_steps: "),
        ("a.toml", SD + "gradient_checkpointing = 3", "gradient_checkpointing: must be true or false"),
        ("a.toml", SD + "output_name = 7", "output_name: must be a text"),
        ("a.toml", SD + 'network_args = ["conv_dim"]', "network_args: must be NAME=VALUE"),
        ("a.toml", SD + "network_dim = 0", "network_dim: cannot be taken over: adapter.rank"),
        ("a.toml", SD + "[x]\nseed = -1", "x.seed: cannot be taken over: train.seed"),
        (
            "a.toml",
            "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 1",
            "datasets[0].subsets[0].image_dir: must be a text",
        ),
        ("a.toml", "[[datasets]]\nsubsets = [1]", "datasets: must be a section"),
        ("a.toml", PIPE + "[optimizer]\nlr = []", "optimizer.lr: must be a number"),
        ("a.toml", PIPE + "[adapter]\nrank = 'high'", "adapter.rank: must be a number"),
        ("a.toml", "directory = [3]", "directory: must be a section"),
        ("a.yaml", TOOLKIT + "    datasets: 3", "datasets, sample, train: must be a list"),
        ("a.yaml", TOOLKIT + "    datasets: [{resolution: [big]}]", "datasets[0].resolution: must be a number"),
        ("a.yaml", TOOLKIT + "    train: {steps: many}", "process[0].train.steps: cannot be taken over"),
        ("a.yaml", TOOLKIT + "    train: {lr: 50}", "process[0].train.lr: cannot be taken over"),
        ("a.yaml", "config: {process: 4}", "config: must be a list"),
        ("a.yaml", "config: {process: []}", "config.process: the job has no process"),
        ("a.yaml", "config: {process: [{type: slider}]}", "concept slider"),
    ],
)
def test_values_of_the_wrong_kind_are_told_with_their_place(name: str, text: str, where: str) -> None:
    assert where in sentence(name, text)


def test_files_that_do_not_belong_together() -> None:
    for texts, told in (
        ({"a.toml": SD, "b.toml": SD}, "a job of its own"),
        ({"a.toml": SD, "b.toml": "[[directory]]\npath = 'x'\n"}, "is not of sd-scripts"),
        ({"a.toml": SD, "b.toml": "x = 1\n"}, "no configuration"),
        ({"p.txt": "a prompt"}, "no configuration among"),
        ({}, "no configuration among"),
    ):
        with pytest.raises(ConfigError, match=told):
            import_config(texts)


def test_files_on_disk_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    big = tmp_path / "big.toml"
    big.write_bytes(b"#" * 1_000_001)
    for path in (tmp_path / "none.toml", tmp_path, binary, big):
        with pytest.raises(ConfigError, match=path.name):
            import_config(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.toml")
        with pytest.raises(ConfigError, match="no regular file"):
            import_config(tmp_path / "pipe.toml")


def test_named_files_that_are_pipes_devices_or_no_data_sets(tmp_path: Path) -> None:
    main = tmp_path / "main.toml"
    for named in ("/dev/zero", "/dev/null", str(tmp_path), "\\x00", "x" * 5000):
        main.write_text(f'{SD}dataset_config = "{named}"\n'.replace("\\x00", "\\u0000"), encoding="utf-8")
        assert any(note.kind == "missing" and "dataset_config" in note.key for note in import_config(main).notes)
    (tmp_path / "other.toml").write_text("password = 'secret'\n", encoding="utf-8")
    main.write_text(f'{SD}dataset_config = "other.toml"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"other\.toml: holds no data sets") as caught:
        import_config(main)
    assert "secret" not in str(caught.value)


def test_changed_configurations_are_read_or_refused_and_never_crash() -> None:
    """Any value in any place of the configurations, as JSON, which all of them can be."""
    rng = random.Random(11)
    settings = [(path, plain(path)) for path in MAIN]
    places = [(path, data, place) for path, data in settings for place in all_places(data)]
    for path, data, place in rng.sample(places, min(TRIES, len(places))):
        changed = copy.deepcopy(data)
        within = changed
        for key in place[:-1]:
            within = within[key]
        within[place[-1]] = rng.choice(VALUES)
        message = refused(f"{path.stem}.yaml", yaml.safe_dump(changed, width=math.inf))
        assert "\n" not in message
        assert len(message) < 1000


def refused(name: str, text: str) -> str:
    """Why a text is refused; nothing if it is read."""
    try:
        import_config({name: text})
    except FoundryError as error:
        return str(error)
    return ""


def plain(path: Path) -> Any:
    text = read_regular(path, 1_000_000).decode()
    return tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)


def all_places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*before, key)
        yield from all_places(item, (*before, key))


def test_there_are_places_to_change() -> None:
    assert sum(len([*all_places(plain(path))]) for path in MAIN) > 600
    assert FOLDER.is_dir()
