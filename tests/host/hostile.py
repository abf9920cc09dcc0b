"""Requests that an attacker sends, as tables: what stands in the place of an id, of a body, of a header."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

_IDS = r"""
.. %2e%2e %2E%2E%2F ..%2f..%2f..%2fetc%2fpasswd ..%5c..%5cwindows ..%252f..%252fetc ....// ..; . ~ ~root
%2fetc%2fpasswd %5c%5cserver%5cshare %2f%2fserver%2fshare C: C:%5cWindows file:%2f%2f%2fetc%2fpasswd
a%00b %00 %0d%0aSet-Cookie:%20a=b %0a %09 %7f %ff%fe %c0%ae%c0%ae%2f %ed%a0%80 %u002e %
CON con.txt nul AUX COM1 lpt9.png fine. fine%20 %20fine fine::$DATA fine%2f..%2ffine FINE
.trash .cache .thumbnails -rf * ? %3f %23 __proto__ constructor 1e3 -1 %EF%BC%91
%3Cscript%3Ealert(1)%3C%2Fscript%3E %22%3E%3Cimg%20src=x%20onerror=alert(1)%3E '%20OR%201=1-- ${7*7} {{7*7}}
%E2%80%AEgnp %EF%BC%8E%EF%BC%8E %F0%9F%98%80 fi%CC%80ne
linked samples_linked job_linked log_linked metrics_pipe status_pipe checkpoints_linked unknown
"""
RAW_IDS = (*_IDS.split(), "a" * 300, "%41" * 2000)
"""In the place of a run's name, a step or a file; `fine` is the name of a run that there is."""
PARTS = ("runs/{}", "runs/{}/metrics", "runs/{}/log", "runs/{}/samples", "runs/{}/checkpoints")
PARTS += ("runs/{}/samples/2/00.png", "runs/fine/samples/{}/00.png", "runs/fine/samples/2/{}")
PARTS += ("runs/{}/checkpoints/2/lora.safetensors", "runs/fine/checkpoints/{}/lora.safetensors")
PARTS += ("runs/fine/checkpoints/2/{}", "datasets/{}", "datasets/{}/items", "datasets/{}/items/0/picture")
POSTS = {
    "runs/{}/request": {"request": "save"},
    "runs/{}/resume": {},
    "runs/{}/rename": {"name": "renamed"},
    "runs/{}/delete": {},
    "runs/{}/restore": {},
    "runs/{}/open": {},
    "runs/{}/pin": {"step": 2, "pinned": True},
    "runs/{}/use": {"step": 2},
    "runs/{}/choose": {},
}
"""Routes with a body that would be done if the run were there."""
_BODIES = r"""{
[]
null
"pause"
1
NaN
{"step": Infinity}
{"request": "pause", "path": "/etc"}
{"request": ["pause"]}
{"request": "__class__"}
{"request": null}
{"name": "../../x"}
{"name": "a/b"}
{"name": "CON"}
{"name": ".trash"}
{"name": "\ud800"}
{"name": "a\u0000b"}
{"name": "<b>"}
{"name": 7}
{"name": "fine", "x": 1}
{"step": -1, "pinned": true}
{"step": 2.0, "pinned": true}
{"step": true, "pinned": true}
{"step": 99999999999999999999, "pinned": true}
{"step": 7, "pinned": true}
{"step": "2", "pinned": true}
{"step": 2, "name": "../../../x"}
{"step": 2, "name": "C:x"}
{"step": 2, "name": "\u202e"}
{"step": 7}
{"accept": 1}
{"accept": "yes"}"""
BODIES = (
    *(line.encode() for line in _BODIES.splitlines()),
    *(b"", b"\xff\xfe", b"[" * 4000, b'{"a":' * 700, b"{" + b" " * 5000 + b"}"),
)
ORIGINS = (
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://127.0.0.1.evil.example:{port}"},
    {"Origin": "http://localhost.evil.example:{port}"},
    {"Origin": "http://[::1]"},
    {"Origin": ""},
    {"Origin": "file://"},
    {"Origin": "chrome-extension://abcdef"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "odd"},
    {"Host": "evil.example", "Origin": "http://127.0.0.1:{port}"},
    {"Host": ":80", "Origin": "null"},
    {"X-Forwarded-Host": "other.example", "Origin": "http://evil.example"},
)
TYPES = (
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=a",
    "",
    "application/jsonp",
    "*/*",
)
QUERIES = (
    "after=-1",
    "after=x",
    "after=1e9",
    "points=99999999999999999999",
    "points=-5",
    "after=%00",
    "points=%E2%85%A7",
)


_JOBS = r"""{"settings": []}
{"settings": {"subject": [], "vram": {}}}
{"settings": {"subject": "style", "vram": "12 GB", "base": 7}}
{"settings": {"subject": "style", "vram": "12 GB", "base": {"source": "../../etc/passwd"}}}
{"settings": {"subject": "style", "vram": "12 GB", "base": {"source": "embedded", "folder_or_repo": "/etc"}}}
{"settings": {"subject": "style", "vram": "12 GB", "base": {"source": "//server/share", "family": "../x"}}}
{"name": "a.yaml", "text": "&a [*a, *a]"}
{"name": "a.yaml", "text": "job: extension\nconfig: !!python/object/apply:os.system [id]"}
{"name": "a.toml", "text": "x", "more": [1]}
{"name": "a.toml", "text": "x", "more": [{"name": "a\u0000b", "text": ""}]}
{"name": "a.toml", "text": "[[[", "more": null}
{"name": "../../etc/passwd", "text": ""}"""
"""Bodies for presets and imports."""


@dataclass(frozen=True)
class Hostile:
    """One request; `path` as it stands on the wire."""

    method: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


def requests() -> Iterator[Hostile]:
    """All of them."""
    yield from _bad_ids()
    yield from _bad_bodies()
    yield from _bad_headers()
    for query in QUERIES:
        yield from (Hostile("GET", f"runs/fine/{part}?{query}") for part in ("metrics", "log") if _of(part, query))
    for size in ("x", "-1", "1e9", "%00", "9" * 40, quote("٣")):
        yield Hostile("GET", f"runs/fine/samples/2/00.png?size={size}")


def _bad_ids() -> Iterator[Hostile]:
    for raw in RAW_IDS:
        for part in PARTS:
            yield Hostile("GET", part.format(raw))
        for part, body in POSTS.items():
            yield _post(part.format(raw), json.dumps(body).encode())


def _bad_bodies() -> Iterator[Hostile]:
    for part in POSTS:
        for body in BODIES:
            yield _post(part.format("fine"), body)
        for kind in TYPES:
            yield _post(part.format("fine"), b"{}", {"Content-Type": kind})
        yield Hostile("GET", part.format("fine"))
        yield Hostile("PUT", part.format("fine"), b"{}")
        yield _post(part.format("fine"), b"{}", {"Content-Length": "99999999999"})
    for part in ("preset", "import"):
        for body in (*BODIES, *(line.encode() for line in _JOBS.splitlines())):
            yield _post(part, body)


def _bad_headers() -> Iterator[Hostile]:
    for headers in ORIGINS:
        for part in ("runs", "trash", *(one.format("fine") for one in PARTS[:7])):
            yield Hostile("GET", part, None, headers)
        for part, body in POSTS.items():
            yield _post(part.format("fine"), json.dumps(body).encode(), headers)


def _of(part: str, query: str) -> bool:
    """Whether a listing knows a query: others are not looked at."""
    return query.startswith("after") or part == "metrics"


def _post(path: str, body: bytes, headers: dict[str, str] | None = None) -> Hostile:
    return Hostile("POST", path, body, {"Content-Type": "application/json", **(headers or {})})


class Wire:
    """A connection that sends what it is told, and not what is proper."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def send(self, one: Hostile) -> tuple[int, bytes, bool]:
        """Status and body of the answer, and whether it is ours and not that of ComfyUI's router."""
        headers = {name: value.format(port=self._port) for name, value in one.headers.items()}
        headers.setdefault("Host", f"127.0.0.1:{self._port}")
        if one.body is not None:
            headers.setdefault("Content-Length", str(len(one.body)))
        wire = self._connection
        wire.putrequest(one.method, f"/lora_foundry/{one.path}", skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            wire.putheader(name, value)
        wire.endheaders(one.body)
        answer = wire.getresponse()
        status, body, ours = answer.status, answer.read(), "Cross-Origin-Resource-Policy" in answer.headers
        if answer.will_close or headers.get("Content-Length", "").startswith("999"):
            wire.close()
        return status, body, ours
