"""The configurations that tests read: ten of each tool, by the rules of its documentation, in words of our own."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "configs"
MAIN = sorted(
    path
    for path in FOLDER.glob("*/*")
    if path.suffix in {".yaml", ".json", ".toml"} and not {".data", ".eval"} & {*path.suffixes}
)
"""Those that are imported; what ends in .data.toml, .eval.toml or .txt belongs to one of them."""
