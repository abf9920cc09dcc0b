"""A real ComfyUI server with this pack, in a base directory of its own, and what tests ask of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACK = "lora-foundry"
DEMO_IMAGES = len(list((ROOT / "trainer_core" / "embedded" / "demo_dataset").glob("*.png")))
_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
_START_SECONDS = 300
_PROMPT_SECONDS = 600
_END_SECONDS = 60
_POLL_SECONDS = 0.1


class ComfyServer:
    """Starts on entering, stops on leaving.

    Args:
        packs: folders of further node packs.
    """

    def __init__(self, comfyui: Path, base: Path, packs: Sequence[Path] = ()) -> None:
        self.comfyui, self.base, self._packs = comfyui, base, packs
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = base / "server.log"
        self.environment = {"HF_HUB_OFFLINE": "1", "LORA_FOUNDRY_STATE": str(base / "state")}
        """For processes that are to share this server's queue."""

    def __enter__(self) -> ComfyServer:
        install_pack(self.base / "custom_nodes")
        for pack in self._packs:
            place = self.base / "custom_nodes" / pack.name
            if not place.exists():
                place.symlink_to(pack, target_is_directory=True)
        options = ["--cpu", "--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.base)]
        options += ["--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "main.py", *options],
                cwd=self.comfyui,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment, "PYTHONUNBUFFERED": "1"},
            )
        end = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise RuntimeError(f"ComfyUI did not start:\n{self.log()[-4000:]}")
            time.sleep(_POLL_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def end(self, number: int) -> int:
        """Ends it by a signal, as its user or the system does; gives its exit code when it is gone."""
        self._process.send_signal(number)
        return self._process.wait(_END_SECONDS)

    def kill(self) -> None:
        """Ends it as a crash or a power cut does; another one may start in its folder."""
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    def log(self) -> str:
        """What the server has printed."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    # requests

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path: str, data: Any) -> Any:
        """The answer, also where it is an error."""
        return self.posted(path, json.dumps(data).encode())[1]

    def posted(self, path: str, body: bytes, content_type: str = "application/json") -> tuple[int, Any]:
        """Status and answer."""
        request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type}, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def file(self, shown: dict[str, str]) -> bytes:
        """A picture that a node shows."""
        query = urllib.parse.urlencode(shown)
        with urllib.request.urlopen(f"{self.url}/view?{query}", timeout=60) as answer:
            return answer.read()

    # prompts

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queues an API prompt, `filled`; gives its id."""
        answer = self.post("/prompt", {"prompt": self.filled(prompt), "prompt_id": str(uuid.uuid4())})
        assert "prompt_id" in answer, answer
        return answer["prompt_id"]

    def filled(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """A prompt in which our nodes' widgets that it leaves out have their defaults, as in the page."""
        known = self.get("/object_info")
        return {
            key: {**entry, "inputs": {**_defaults(known[entry["class_type"]]), **entry["inputs"]}}
            if entry["class_type"].startswith("Foundry")
            else entry
            for key, entry in prompt.items()
        }

    def wait(self, prompt_id: str) -> Result:
        """Waits for a prompt's end."""
        end = time.monotonic() + _PROMPT_SECONDS
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return Result(history[prompt_id])
            time.sleep(_POLL_SECONDS)
        raise TimeoutError(f"the prompt did not end:\n{self.log()[-4000:]}")

    def run(self, prompt: dict[str, Any]) -> Result:
        """Runs an API prompt to its end."""
        return self.wait(self.queue(prompt))

    def workflow(self, name: str) -> dict[str, Any]:
        """A workflow that we ship, as an API prompt."""
        path = ROOT / "example_workflows" / f"{name}.json"
        return api_prompt(json.loads(path.read_text(encoding="utf-8")), self.get("/object_info"))


class Result:
    """How a prompt ended."""

    def __init__(self, history: dict[str, Any]) -> None:
        self.status: str = history["status"]["status_str"]
        self.messages: dict[str, dict[str, Any]] = dict(history["status"]["messages"])
        self.outputs: dict[str, dict[str, Any]] = history["outputs"]

    @property
    def interrupted(self) -> bool:
        return "execution_interrupted" in self.messages

    @property
    def error(self) -> str:
        """The message that the user reads."""
        return self.messages["execution_error"]["exception_message"].strip()

    @property
    def failed_node(self) -> str:
        """The type of the node that failed."""
        return self.messages["execution_error"]["node_type"]


def install_pack(custom_nodes: Path) -> Path:
    """Puts the pack where ComfyUI looks for it: a link, or a copy where links need rights that we lack."""
    custom_nodes.mkdir(parents=True, exist_ok=True)
    pack = custom_nodes / PACK
    if pack.exists():
        return pack
    try:
        pack.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        shutil.copytree(ROOT, pack, ignore=shutil.ignore_patterns(".git", ".*cache", "__pycache__", "runs"))
    return pack


def api_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """A workflow in the page's format as a prompt, as the page makes it on queueing."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        info = object_info.get(node["type"])
        if info is None:
            continue  # notes and the like live in the page only
        inputs = _widget_values(node, info)
        for socket_ in node.get("inputs", []):
            if socket_.get("link") is not None:
                inputs[socket_["name"]] = sources[socket_["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def of_type(prompt: dict[str, Any], class_type: str) -> dict[str, Any]:
    """The inputs of the one node of a type."""
    (node,) = (node for node in prompt.values() if node["class_type"] == class_type)
    return node["inputs"]


def _defaults(info: dict[str, Any]) -> dict[str, Any]:
    """What the page shows in a new node's widgets."""
    found = {}
    for name, (kind, options) in info["input"].get("required", {}).items():
        if kind == "COMBO":
            found[name] = options.get("default", options["options"][0])
        elif kind in _WIDGETS and not options.get("forceInput"):
            found[name] = options["default"]
    return found


def _widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    names = []
    for group in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(group, {}).items():
            options = rest[0] if rest else {}
            if (isinstance(kind, list) or kind in _WIDGETS) and not options.get("forceInput"):
                names.append(name)
                if options.get("control_after_generate", name in ("seed", "noise_seed")):
                    names.append(None)  # the page's own widget behind a seed
    values = node.get("widgets_values", [])
    assert len(values) == len(names), f"node {node['id']} ({node['type']}): {len(values)} values for widgets {names}"
    return {name: value for name, value in zip(names, values, strict=True) if name}
