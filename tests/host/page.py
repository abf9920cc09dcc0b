"""A page's socket, and what it hears of runs."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from .server import ComfyServer

_PATIENCE = 300


class Page:
    """Listens from entering to leaving, as a page does: its socket first, then GET runs."""

    def __init__(self, server: ComfyServer) -> None:
        self._server = server
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self._ended = threading.Event()
        self._open = threading.Event()

    def __enter__(self) -> Page:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)
        self._thread.start()
        assert self._open.wait(60)
        first = self._server.get("/lora_foundry/runs")
        self.known = {run["name"]: run for run in first["runs"]}
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(60)

    async def _listen(self) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self._server.url}/ws?clientId=page") as socket,
        ):
            self._open.set()
            while not self._ended.is_set():
                try:
                    message = await socket.receive(timeout=0.1)
                except (asyncio.TimeoutError, TimeoutError):
                    continue
                if message.type == aiohttp.WSMsgType.TEXT:
                    told = json.loads(message.data)
                    if told["type"].startswith("lora_foundry."):
                        self.messages.append((told["type"].removeprefix("lora_foundry."), told["data"]))

    def news(self, name: str) -> list[dict[str, Any]]:
        """What came of one run at work."""
        return [data for event, data in list(self.messages) if event == "run" and data["name"] == name]

    @property
    def revisions(self) -> list[int]:
        return [data["revision"] for event, data in list(self.messages) if event == "runs"]

    @property
    def gone(self) -> set[str]:
        return {name for event, data in list(self.messages) if event == "runs" for name in data["gone"]}

    def run(self, name: str, as_wished: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """A run, when the page was told that it is so; it asks for nothing."""
        found: list[dict[str, Any]] = []

        def told() -> bool:
            runs = [one for event, data in list(self.messages) if event == "runs" for one in data["runs"]]
            found[:] = [one for one in runs if one["name"] == name and as_wished(one)]
            return bool(found)

        self.until(told)
        return found[-1]

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + _PATIENCE
        while not done():
            assert time.monotonic() < end, self.messages[-3:]
            time.sleep(0.05)

    @staticmethod
    def server_pid(run: Path) -> int:
        """Whoever works on a run, by its own file."""
        return int(json.loads((run / "owner.json").read_text())["pid"])
