"""A prompt reaches no folder that the machine's owner has not allowed, by whatever node and in whatever form."""

from __future__ import annotations

import contextlib
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .conftest import base, node
from .server import ComfyServer
from .test_bad_input import fails, refused

Training = Callable[..., dict[str, Any]]
OUTSIDE = ["/etc", "../../etc", "//server/share", "\\\\server\\share", "C:\\pictures", "~/pictures"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A data set that lies in none of ComfyUI's folders."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red square", encoding="utf-8")
    return tmp_path


@pytest.fixture
def listed(server: ComfyServer) -> Iterator[Path]:
    """The owner's list, which is gone afterwards."""
    path = server.base / "user" / "__lora_foundry" / "roots.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path
    path.unlink()


@pytest.mark.parametrize("path", OUTSIDE)
def test_folders_outside_of_the_roots_are_refused(server: ComfyServer, training: Training, path: str) -> None:
    for widget in ("folder", "mask_folder", "control_folders"):
        prompt = training("x")
        prompt["data"]["inputs"][widget] = path
        if widget == "folder":
            refused(server, prompt, f"Load Dataset: {widget}:", node="FoundryLoadDataset")
        else:
            fails(server, prompt, "FoundryLoadDataset", f"Load Dataset: {widget}:")
    prompt = training("x")
    prompt["base"] = base(path)
    refused(server, prompt, "folder_or_repo", node="FoundryQuantizeBase")


def test_the_message_says_how_to_allow_a_folder(server: ComfyServer, training: Training, pictures: Path) -> None:
    refused(server, training("x", folder=str(pictures)), "__lora_foundry", "LORA_FOUNDRY_ROOTS")


def test_a_folder_that_the_owner_lists_is_read(server: ComfyServer, pictures: Path, listed: Path) -> None:
    listed.write_text(f"# mine\n{pictures}\n", encoding="utf-8")
    result = server.run({"data": node("LoadDataset", folder=str(pictures), resolutions="64")})
    assert result.status == "success"
    assert len(result.outputs["data"]["images"]) == 1


def test_requests_cannot_write_the_owners_list(server: ComfyServer, listed: Path) -> None:
    """The server keeps users' files for its page; which folders are allowed must not be among them."""
    listed.write_text("", encoding="utf-8")
    places = ["/userdata/..%2F__lora_foundry%2Froots.txt?overwrite=true", "/userdata/__lora_foundry%2Froots.txt"]
    for place in places:
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(server.url + place, data=b"/etc", timeout=60)
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(
                server.url + place.replace("/userdata/", "/userdata/..%2F"), data=b"/etc", timeout=60
            )
    assert listed.read_text(encoding="utf-8") == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset", {"folder": "/etc"}),
        ("dataset", {"folder": "etc/../../../../../../etc"}),
        ("dataset_2", {"folder": "//server/share"}),
        ("base", {"source": "/etc", "device": "cpu"}),
        ("base", {"source": "//server/share", "device": "cpu"}),
        ("base", {"source": "/etc/a.safetensors", "device": "cpu"}),
        ("base", {"text_encoder": "/etc/a.safetensors", "device": "cpu"}),
        ("base", {"vae": "//server/share/a.safetensors", "device": "cpu"}),
        ("base", {"tokenizers": "/etc", "device": "cpu"}),
        ("lora", {"rank": 4, "warm_start": "/etc/passwd"}),
    ],
)
def test_raw_values_in_place_of_links_get_nowhere(
    server: ComfyServer, training: Training, key: str, value: dict[str, Any]
) -> None:
    """Prompts may hold anything where the page draws links, past the nodes that would have checked it."""
    prompt = training("x")
    prompt["train"]["inputs"][key] = value
    fails(server, prompt, "FoundryTrainLoRA", "outside" if ".." not in str(value) else "leads out")


@pytest.mark.parametrize("run", ["//server/share", "/etc", "{runs}/../../user", "\\\\server\\share"])
def test_a_run_is_one_of_ours(server: ComfyServer, run: str) -> None:
    named = run.format(runs=server.base / "output" / "lora_foundry")
    prompt = {"save": node("SaveCheckpoint", run=named, which="latest", step=0, name="")}
    fails(server, prompt, "FoundrySaveCheckpoint", "is no run of this ComfyUI")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_load_run_opens_what_the_page_lists_and_nothing_else(
    server: ComfyServer, training: Training, tmp_path: Path
) -> None:
    prompt = training("not linked", steps=2, save_every=2)
    assert server.run(prompt).status == "success"
    run = server.base / "output" / "lora_foundry" / "not linked"
    linked = Path(shutil.copytree(run, run.with_name("linked checkpoints")))
    (linked / "checkpoints").rename(tmp_path / "checkpoints")
    (linked / "checkpoints").symlink_to(tmp_path / "checkpoints", target_is_directory=True)
    load = {"load": node("LoadRun", name="linked checkpoints"), "save": node("SaveCheckpoint", run=["load", 0])}
    fails(server, load, "FoundryLoadRun", "linked checkpoints", "link")
    load["load"]["inputs"]["name"] = " not linked "
    assert server.run(load).status == "success"
    load["load"]["inputs"]["name"] = "Not linked"  # on Windows and macOS a folder has that name too
    fails(server, load, "FoundryLoadRun", "there is no run 'Not linked'")
    shutil.rmtree(linked)
