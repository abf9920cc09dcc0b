"""The cache: what was put comes back, and what is damaged is as if it were not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer_core import files
from trainer_core.data.cache import TensorCache, key_of
from trainer_core.errors import SaveError

ENTRY = {"mean": torch.arange(6.0).view(2, 3), "spread": torch.ones(2, dtype=torch.bfloat16)}
KEY = key_of("a", 1)


@pytest.fixture
def cache(tmp_path: Path) -> TensorCache:
    return TensorCache(tmp_path / "cache")


def entry_file(cache: TensorCache) -> Path:
    (found,) = [path for path in cache.root.rglob("*") if path.is_file()]
    return found


def test_an_entry_comes_back_as_it_was(cache: TensorCache) -> None:
    assert cache.get(KEY) is None
    cache.put(KEY, ENTRY)
    found = cache.get(KEY)
    assert found is not None
    assert found.keys() == ENTRY.keys()
    for name, value in ENTRY.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_tensors_that_share_memory_or_are_views(cache: TensorCache) -> None:
    whole = torch.arange(12.0).view(3, 4)
    cache.put(KEY, {"turned": whole.t(), "row": whole[1]})
    found = cache.get(KEY)
    assert found is not None
    assert torch.equal(found["turned"], whole.t())
    assert torch.equal(found["row"], whole[1])


def test_the_entrys_memory_is_its_own(cache: TensorCache) -> None:
    cache.put(KEY, ENTRY)
    found = cache.get(KEY)
    assert found is not None
    entry_file(cache).write_bytes(bytes(entry_file(cache).stat().st_size))
    assert torch.equal(found["mean"], ENTRY["mean"])


@pytest.mark.parametrize("kept", [0, 4, 8, 30, -1])
def test_truncated_entries_count_as_absent(kept: int, cache: TensorCache) -> None:
    cache.put(KEY, ENTRY)
    path = entry_file(cache)
    path.write_bytes(path.read_bytes()[:kept])
    assert cache.get(KEY) is None
    cache.put(KEY, ENTRY)
    assert cache.get(KEY) is not None


@pytest.mark.parametrize("position", [0, 20, -1, -9])
def test_entries_with_a_flipped_bit_count_as_absent(position: int, cache: TensorCache) -> None:
    """In the header or in the numbers: training on damaged latents would never be noticed."""
    cache.put(KEY, ENTRY)
    path = entry_file(cache)
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)
    assert cache.get(KEY) is None


def test_an_entry_is_whole_or_not_there(cache: TensorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(SaveError, match="disk is full"):
        cache.put(KEY, ENTRY)
    assert cache.get(KEY) is None
    assert [path for path in cache.root.rglob("*") if path.is_file()] == []


def test_a_failed_second_write_leaves_the_first(cache: TensorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.put(KEY, ENTRY)

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(SaveError):
        cache.put(KEY, {"mean": torch.zeros(1)})
    found = cache.get(KEY)
    assert found is not None
    assert torch.equal(found["mean"], ENTRY["mean"])


def test_the_same_entry_is_the_same_bytes(tmp_path: Path) -> None:
    one, other = TensorCache(tmp_path / "1"), TensorCache(tmp_path / "2")
    one.put(KEY, ENTRY)
    other.put(KEY, dict(reversed(ENTRY.items())))
    assert entry_file(one).read_bytes() == entry_file(other).read_bytes()


@given(st.lists(st.one_of(st.text(alphabet="ab1", max_size=3), st.integers(0, 11)), max_size=4), st.data())
def test_keys_differ_where_parts_do(parts: list[str | int], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.one_of(st.text(alphabet="ab1", max_size=3), st.integers(0, 11)), max_size=4))
    if [str(p) for p in parts] != [str(p) for p in other] and parts and other:
        assert key_of(*parts) != key_of(*other)
