"""Chinese says what English says: every node, widget and output, every text of the page, with the same values in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def read(name: str) -> Any:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def texts(tree: dict[str, Any], at: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a tree with its key, such as `runs.pause`."""
    for name, value in tree.items():
        key = f"{at}.{name}" if at else name
        if isinstance(value, dict):
            yield from texts(value, key)
        else:
            yield key, value


def page(language: str) -> dict[str, str]:
    return dict(texts(read(f"locales/{language}/main.json")["loraFoundry"]))


def values(text: str) -> set[str]:
    """The names in braces."""
    return set(re.findall(r"\{(\w+)\}", text))


def test_every_node_widget_and_output_is_translated_and_no_other() -> None:
    nodes, chinese = read("tests/host/node_info.json"), read("locales/zh/nodeDefs.json")
    assert {name: (set(node["inputs"]), len(node["outputs"])) for name, node in nodes.items()} == {
        name: (set(node["inputs"]), len(node["outputs"])) for name, node in chinese.items()
    }
    assert all(text.strip() for _, text in texts(chinese))


def test_both_languages_have_the_same_texts_with_the_same_values() -> None:
    english, chinese = page("en"), page("zh")
    assert english.keys() == chinese.keys()
    # a language may leave out how many where it says "one"
    assert {key for key in english if not values(chinese[key]) <= values(english[key])} == set()
    assert {
        key for key in english if not key.endswith(".one") and values(chinese[key]) != values(english[key])
    } == set()


def test_every_text_that_the_page_asks_for_is_there() -> None:
    known = page("en").keys()
    asked = {
        key
        for file in sorted((ROOT / "web" / "js").rglob("*.js"))
        for key in re.findall(r"""\bt\(\s*["']([\w.]+)["']""", file.read_text(encoding="utf-8"))
    }
    assert {key for key in asked if key not in known and f"{key}.other" not in known} == set()
