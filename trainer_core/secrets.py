"""Access tokens and passwords: what looks like one, and texts without them.

Messages of libraries may hold what they were given (a URL with its password, a header), and people paste their token
into the wrong field. Neither may reach a log, a run folder or a LoRA's metadata, which get shared.
"""

from __future__ import annotations

import os
import re

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "HUGGINGFACEHUB_API_TOKEN")
"""Environment variables whose value is a secret, whatever it looks like."""
HIDDEN = "[secret]"
"""Stands where a secret stood."""

_SHORTEST = 8
"""Characters; a shorter value of a variable is no token, and hiding it would riddle every text."""
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])"
    r"(?:(?:hf|api_org)_[A-Za-z0-9]{20,}"  # Hugging Face: users, organisations
    r"|gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_\w{30,}"  # GitHub
    r"|sk-[A-Za-z0-9_\-]{30,})"  # OpenAI and others
)
_BEARER = re.compile(r"(?i)(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:bearer|token|basic)\s+)[A-Za-z0-9._~+/\-]{8,}=*")
_BARE_BEARER = re.compile(r"(?i)(\bbearer\s+)([A-Za-z0-9._~+/\-]{16,}=*)")
_RANDOM = re.compile(r"(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{16,}")
"""Letters and digits mixed for longer than words are: "a bearer photorealistically lit" is a picture, and no secret."""
_PASSWORD = re.compile(r"(?i)(\b[a-z][a-z0-9+.\-]{0,15}://)[^\s/@:'\"]{0,200}:[^\s/@'\"]{1,200}@")


def looks_like_token(text: str) -> bool:
    """Whether a text holds an access token, or a URL with a password; or the value of one of `TOKEN_VARIABLES`."""
    return redacted(text) != text


def redacted(text: str) -> str:
    """A text with every access token, and user and password of every URL, replaced by `HIDDEN`."""
    for secret in _known():
        text = text.replace(secret, HIDDEN)
    text = _TOKEN.sub(HIDDEN, text)
    text = _BEARER.sub(rf"\g<1>{HIDDEN}", text)
    text = _BARE_BEARER.sub(lambda found: f"{found[1]}{HIDDEN}" if _RANDOM.search(found[2]) else found[0], text)
    return _PASSWORD.sub(rf"\g<1>{HIDDEN}@", text)


def _known() -> list[str]:
    """This machine's own tokens, the longest first: one may be the beginning of another."""
    values = {os.environ.get(name, "").strip() for name in TOKEN_VARIABLES}
    return sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)
