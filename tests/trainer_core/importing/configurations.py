"""The configurations that tests read, by the rules of each tool's documentation, in words of our own."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "configs"
MAIN = sorted(
    path
    for path in FOLDER.glob("*/*")
    if path.suffix in {".yaml", ".json", ".toml"} and not {".data", ".eval"} & {*path.suffixes}
)
"""Those that are imported; what ends in .data.toml, .eval.toml, .jsonl or .txt belongs to one of them."""
