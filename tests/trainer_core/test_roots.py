"""What a workflow may name: nothing outside of the roots, and nothing there is even looked up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer_core import config as core
from trainer_core import roots
from trainer_core.errors import ConfigError

OUTSIDE = [
    "/etc",
    "/etc/passwd",
    "~",
    "~/pictures",
    "~root/pictures",
    "//server/share/pictures",
    "\\\\server\\share\\pictures",
    "\\\\?\\C:\\pictures",
    "C:\\pictures",
    "c:pictures",
    "..",
    "../secret",
    "a/../../secret",
    "a\0b",
    "",
    " ",
    "{inputs}/../secret",
    "{inputs}er/x",
    "{inputs}/../../../../../../etc",
]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """ComfyUI's input folder, with a secret beside it."""
    (tmp_path / "input" / "cats").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    for folder in ("input/cats", "secret"):
        Image.new("RGB", (64, 64)).save(tmp_path / folder / "a.png")
        (tmp_path / folder / "a.txt").write_text("a cat", encoding="utf-8")
    return tmp_path / "input"


@pytest.fixture
def allowed(inputs: Path) -> Any:
    return roots.Roots.of([inputs], inputs.parent / "roots.txt")


@pytest.fixture
def refused() -> Callable[..., Any]:
    return lambda **options: pytest.raises(ConfigError, **options)


@contextmanager
def looked_up() -> Iterator[list[str]]:
    """Names of what the file system is asked for meanwhile."""
    asked: list[str] = []

    def spied(real: Callable[..., Any]) -> Callable[..., Any]:
        def spy(path: Any, *rest: Any, **options: Any) -> Any:
            asked.append(os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path))
            return real(path, *rest, **options)

        return spy

    with pytest.MonkeyPatch.context() as patch:
        for name in ("stat", "lstat", "readlink", "scandir", "listdir", "open"):
            patch.setattr(os, name, spied(getattr(os, name)))
        yield asked


@pytest.mark.parametrize("text", OUTSIDE)
def test_what_lies_outside_is_refused_before_it_is_looked_up(
    text: str, allowed: Any, inputs: Path, refused: Callable[..., Any]
) -> None:
    text = text.format(inputs=inputs)
    with looked_up() as asked, refused(match="^folder: "):
        allowed.checked(text, inputs, "folder")
    assert [path for path in asked if not path.startswith(str(inputs)) and not str(inputs).startswith(path)] == []
    assert not [path for path in asked if "secret" in path]


@pytest.mark.parametrize("text", ["cats", "./cats", '"cats"', "cats/../cats", "{inputs}/cats", "{inputs}", "not there"])
def test_what_lies_in_a_root_is_taken(text: str, allowed: Any, inputs: Path) -> None:
    found = allowed.checked(text.format(inputs=inputs), inputs, "folder")
    assert found == inputs.resolve() or found.parent == inputs.resolve()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_that_leads_out_is_refused_and_a_root_may_be_a_link(inputs: Path, refused: Callable[..., Any]) -> None:
    (inputs / "link").symlink_to(inputs.parent / "secret")
    (inputs / "circle").symlink_to(inputs / "circle")
    own = roots.Roots.of([inputs], inputs / "none")
    for name in ("link", "link/deeper", "circle"):
        with refused():
            own.checked(name, inputs, "folder")
    (inputs.parent / "models").symlink_to(inputs)
    linked = roots.Roots.of([inputs.parent / "models"], inputs / "none")
    assert linked.checked("cats", inputs.parent / "models", "folder") == (inputs / "cats").resolve()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_caption_that_is_a_link_to_a_secret_is_refused(
    inputs: Path, allowed: Any, refused: Callable[..., Any]
) -> None:
    dataset = core.DatasetConfig(folder=str(inputs / "cats"))
    allowed.check_links(dataset)
    (inputs / "cats" / "a.txt").unlink()
    (inputs / "cats" / "a.txt").symlink_to(inputs.parent / "secret" / "a.txt")
    with refused(match=r"a\.txt"):
        allowed.check_links(dataset)


def test_the_owner_allows_more_by_a_list_and_by_a_variable(
    inputs: Path, refused: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, listed = inputs.parent / "secret", inputs.parent / "roots.txt"
    with refused(match=r"roots\.txt"):
        roots.Roots.of([inputs], listed).checked(str(secret), inputs, "folder")
    listed.write_text(f"# my pictures\nrelative\n\n{secret}\n", encoding="utf-8")
    own = roots.Roots.of([inputs], listed)
    assert own.checked(str(secret), inputs, "folder") == secret.resolve()
    assert own.folders == (inputs, secret), "relative lines would mean whatever folder ComfyUI was started in"
    listed.unlink()
    monkeypatch.setenv(roots.VARIABLE, os.pathsep.join(["", str(secret)]))
    assert roots.Roots.of([inputs], listed).checked(str(secret / "x"), inputs, "folder") == (secret / "x").resolve()


def test_a_source_is_embedded_a_repository_or_a_folder_in_a_root(
    inputs: Path, allowed: Any, refused: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def source(text: str) -> str:
        return str(allowed.source(text, [inputs], "source"))

    (inputs / "owner" / "model").mkdir(parents=True)
    assert source("embedded") == "embedded"
    assert source("black-forest-labs/FLUX.1-dev") == "black-forest-labs/FLUX.1-dev"
    assert source("cats") == str((inputs / "cats").resolve())
    assert source("owner/model") == str((inputs / "owner" / "model").resolve())
    for text in ("/etc", "../secret", "//server/share", "~/x", ""):
        with refused():
            source(text)
    (inputs.parent / "my" / "model").mkdir(parents=True)
    monkeypatch.chdir(inputs.parent)  # there, an id is a folder's name: the core would take the folder
    with refused():
        source("my/model")


def test_models_files_may_be_their_owners_links(inputs: Path, allowed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models folders are full of links to other disks. Data sets are not: they come from others."""
    monkeypatch.chdir(inputs.parent)
    elsewhere = inputs.parent / "secret" / "model.safetensors"
    elsewhere.write_bytes(b"")
    link = inputs / "model.safetensors"
    link.symlink_to(elsewhere)
    job = {"name": "x", "datasets": [{"folder": str(inputs / "cats")}], "model": {"vae": str(link)}}
    job["model"]["source"] = allowed.source(str(link), [inputs], "source")
    assert job["model"]["source"] == str(link)
    allowed.check_job(core.validated(core.JobConfig, job))


@pytest.mark.parametrize(
    "change",
    [
        {"datasets": [{"folder": "{secret}"}]},
        {"datasets": [{"folder": "secret"}]},
        {"datasets": [{"folder": "{inputs}/cats", "mask_folder": "{secret}"}]},
        {"datasets": [{"folder": "{inputs}/cats", "control_folders": ["{secret}"]}]},
        {"adapter": {"warm_start": "{secret}/a.safetensors"}},
        {"model": {"source": "{secret}"}},
        {"model": {"source": "//server/share"}},
        {"model": {"source": "{secret}/a.safetensors"}},
        {"model": {"text_encoder": "{secret}/a.safetensors"}},
        {"model": {"text_encoder_2": "secret/a.safetensors"}},
        {"model": {"vae": "//server/share/a.safetensors"}},
        {"model": {"tokenizers": "{secret}"}},
        {"sample": {"prompts": ["a"], "controls": ["{secret}/a.png"]}},
        {"sample": {"controls": [["{inputs}/a.png", "//server/share/a.png"]]}},
    ],
)
def test_no_path_of_a_job_gets_past(
    change: dict[str, Any],
    inputs: Path,
    allowed: Any,
    refused: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A prompt may hold a data set or a base as raw values, which no other node has checked."""
    monkeypatch.chdir(inputs.parent)
    good = {"name": "x", "datasets": [{"folder": str(inputs / "cats")}]}
    allowed.check_job(core.validated(core.JobConfig, good))
    text = json.dumps(change).replace("{secret}", f"{inputs.parent}/secret").replace("{inputs}", str(inputs))
    job = core.validated(core.JobConfig, {**good, **json.loads(text)})
    with looked_up() as asked, refused():
        allowed.check_job(job)
    assert not [path for path in asked if "secret" in path or "server" in path]


def test_a_run_is_below_the_runs_folder_by_name_and_by_what_it_is(inputs: Path) -> None:
    assert roots.is_below(inputs / "cats", inputs)
    with looked_up() as asked:
        assert not roots.is_below(Path("//server/share"), inputs)
        assert not roots.is_below(inputs / ".." / "secret", inputs)
    assert asked == []
