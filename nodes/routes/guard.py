"""What every request passes before it is answered, and how answers and refusals are sent. Nothing here is of ComfyUI.

Requests come from whoever reaches the server, and from pages of other sites that are open in the same browser. An
answer is made of ids and numbers that were checked, in a thread of its own: nothing waits for a disk on the server's
loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, NoReturn
from urllib.parse import urlsplit

from aiohttp import web

from ...trainer_core.api import redacted
from ...trainer_core.errors import FoundryError, ResumeRefused, RunHeld, SaveError
from .asked import Asked, Refused, Route
from .sending import File, Picture, send

_LOG = logging.getLogger(__name__)
_HEADERS = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def handler(route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """What the server calls for a route."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            _check_origin(request)
            body = await _json_body(request, route.limit) if route.method == "POST" else None
            asked = Asked(dict(request.match_info), dict(request.query), body, _is_local(request))
            found = await asyncio.to_thread(route.answer, asked)
            if isinstance(found, (File, Picture)):
                return await send(request, found, _HEADERS)
            return _json(found)
        except Refused as error:
            return _json({"error": str(error), **error.more}, error.status)
        except FoundryError as error:
            return _json({"error": redacted(str(error))}, _status(error))
        except (web.HTTPException, asyncio.CancelledError, ConnectionError):
            raise
        except Exception:  # noqa: BLE001 - told in one sentence, whatever it is
            _LOG.exception("LoRA Foundry: %s %s", route.method, route.path)
            return _json({"error": "this failed in a way that was not foreseen; ComfyUI's console says more"}, 500)

    return handle


def _status(error: FoundryError) -> int:
    """HTTP's word for a failure that a user can cause or cure."""
    if isinstance(error, (RunHeld, ResumeRefused)):
        return HTTPStatus.CONFLICT
    return HTTPStatus.INTERNAL_SERVER_ERROR if isinstance(error, SaveError) else HTTPStatus.BAD_REQUEST


def _json(value: Any, status: int = 200) -> web.Response:
    # lone surrogates, of names that are no text, stay escaped: UTF-8 has none
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(value), allow_nan=False)
    return web.json_response(text=text, status=status, headers=_HEADERS)


def _without_nan(value: Any) -> Any:
    """The same with null for numbers that JSON cannot tell."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_origin(request: web.Request) -> None:
    """Refuses what a page of another site asks; a program that is no browser says nothing of where it comes from.

    Raises:
        Refused: naming what differs.
    """
    if request.headers.get("Sec-Fetch-Site", "same-origin").lower() not in ("same-origin", "none"):
        raise Refused(403, "another site's page asked for this; only ComfyUI's own may")
    origin = request.headers.get("Origin")
    # a proxy tells what it was called; a page of another site cannot write this header unasked
    hosts = {_netloc(f"//{request.headers.get(name, '')}") for name in ("Host", "X-Forwarded-Host")} - {None}
    if origin is not None and _netloc(origin) not in hosts:
        raise Refused(403, f"the page's origin {origin!r:.100} is not this server; only ComfyUI's own page may ask")


def _netloc(url: str) -> str | None:
    """Host and port of a URL as browsers compare them; the usual ports are left out."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return f"{host}:{port}" if host and port not in (None, 80, 443) else host


def _is_local(request: web.Request) -> bool:
    """Whether the browser runs on this machine, and calls it so: neither through a proxy nor by another's name."""
    if any(name in request.headers for name in ("X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "X-Real-IP")):
        return False
    try:
        host = urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
    except ValueError:
        return False
    return _is_loopback(request.remote or "") and (host == "localhost" or _is_loopback(host))


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


async def _json_body(request: web.Request, limit: int) -> Any:
    """A POST's body. Only JSON by name is taken: a page of another site cannot send it unasked."""
    if request.content_type != "application/json":
        raise Refused(415, "send JSON, as Content-Type: application/json")
    if request.content_length is None or request.content_length > limit:
        raise Refused(413, f"send at most {limit} bytes, and say how many")
    try:
        return json.loads(await request.read(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"this is no JSON: {error}") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
