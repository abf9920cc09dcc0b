"""The cache: what was put comes back, and what is damaged is as if it were not there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.data.cache import CacheUsage, RecentEntries, TensorCache, key_of
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


def test_an_entry_says_who_made_it(cache: TensorCache) -> None:
    cache.put(KEY, ENTRY, "torch 2.9")
    cache.put(key_of("b"), ENTRY)
    for reader in (cache, TensorCache(cache.root)):
        assert reader.get(KEY) is not None
        assert reader.get(key_of("b")) is not None
        assert (reader.made_by(KEY), reader.made_by(key_of("b"))) == ("torch 2.9", "")


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
    def full(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
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


# --- its size --------------------------------------------------------------------------------------------------------


def keys_of(count: int) -> list[str]:
    return [key_of("entry", number) for number in range(count)]


def filled(cache: TensorCache, count: int, day: float = 86_400.0) -> list[str]:
    """Entries of equal size; number k was last used `count - k` days ago."""
    for number, key in enumerate(keys_of(count)):
        cache.put(key, ENTRY)
        used = time.time() - (count - number) * day
        os.utime(cache.root / key[:2] / f"{key}.safetensors", (used, used))
    return keys_of(count)


def present(cache: TensorCache, keys: list[str]) -> list[bool]:
    return [(cache.root / key[:2] / f"{key}.safetensors").exists() for key in keys]


def test_usage_is_what_lies_there(cache: TensorCache) -> None:
    assert cache.usage() == CacheUsage(0, 0)
    filled(cache, 3)
    assert cache.usage() == CacheUsage(3, sum(path.stat().st_size for path in cache.root.rglob("*.safetensors")))


def test_pruning_deletes_what_was_not_used_for_longest(cache: TensorCache) -> None:
    keys = filled(cache, 6)
    size = cache.usage().bytes // 6
    assert cache.prune(6 * size) == (0, 0)
    assert cache.prune(4 * size) == (2, 2 * size)
    assert present(cache, keys) == [False, False, True, True, True, True]
    assert cache.prune(4 * size - 1) == (1, size)
    assert cache.usage() == CacheUsage(3, 3 * size)


def test_use_keeps_an_entry(cache: TensorCache) -> None:
    keys = filled(cache, 4)
    assert cache.get(keys[0]) is not None
    assert cache.prune(0) == (3, 3 * cache.usage().bytes)
    assert present(cache, keys) == [True, False, False, False]


def test_what_was_used_within_the_spared_time_stays_even_beyond_the_limit(cache: TensorCache) -> None:
    keys = filled(cache, 5, day=3600.0)
    assert cache.prune(0) == (0, 0)
    assert cache.prune(0, spare=2.5 * 3600)[0] == 3
    assert present(cache, keys) == [False, False, False, True, True]


def test_an_entry_used_while_another_run_prunes_stays(cache: TensorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between listing the files and deleting them, minutes can pass."""
    keys = filled(cache, 3)
    listed = list(cache._files())  # type: ignore[attr-defined]
    assert cache.get(keys[0]) is not None
    monkeypatch.setattr(TensorCache, "_files", lambda _: iter(listed))
    assert cache.prune(0)[0] == 2
    assert present(cache, keys) == [True, False, False]


def test_other_files_are_left_alone_and_unfinished_ones_go_after_a_day(cache: TensorCache) -> None:
    (key,) = filled(cache, 1)
    folder = cache.root / key[:2]
    others = [cache.root / "notes.txt", folder / "notes.txt", folder / "model.safetensors", cache.root / "models" / "a"]
    others[-1].parent.mkdir()
    for path in others:
        path.write_bytes(b"x")
        os.utime(path, (1, 1))
    old, new = (folder / f".{key}.safetensors.{end}.tmp" for end in ("00000000", "11111111"))
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    assert cache.usage().entries == 1
    assert cache.prune(10**9) == (0, 0)
    assert [path.exists() for path in (old, new)] == [False, True]
    assert cache.clear().entries == 1
    assert all(path.exists() for path in others)
    assert not new.exists()
    assert cache.usage() == CacheUsage(0, 0)


def test_a_folder_or_link_in_an_entrys_place_is_not_followed(cache: TensorCache, tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_bytes(b"mine")
    keys = keys_of(2)
    for key in keys:
        (cache.root / key[:2]).mkdir(parents=True)
    (cache.root / keys[0][:2] / f"{keys[0]}.safetensors").mkdir()
    (cache.root / keys[1][:2] / f"{keys[1]}.safetensors").symlink_to(treasure)
    assert cache.usage() == CacheUsage(0, 0)
    cache.clear()
    assert treasure.read_bytes() == b"mine"
    assert [cache.get(key) for key in keys] == [None, None]


def test_damaged_entries_can_be_deleted(cache: TensorCache) -> None:
    filled(cache, 1)
    entry_file(cache).write_bytes(b"nonsense")
    os.utime(entry_file(cache), (1, 1))
    assert cache.prune(0) == (1, 8)


def test_what_cannot_be_deleted_does_not_count_as_deleted(cache: TensorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to delete a file that another run has open."""
    filled(cache, 2)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "in use")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert cache.prune(0) == (0, 0)
    assert cache.clear() == CacheUsage(0, 0)


def test_another_run_that_holds_the_file_open_has_written_the_same(
    cache: TensorCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows answers a rename onto an open file: there is nothing left to do if the entry is there and whole."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "in use")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(SaveError):
            cache.put(KEY, ENTRY)
    cache.put(KEY, ENTRY)
    monkeypatch.setattr(os, "replace", refuse)
    cache.put(KEY, ENTRY)


# --- in memory -------------------------------------------------------------------------------------------------------


class CountedCache(TensorCache):
    reads = 0

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        self.reads += 1
        return super().get(key)


def test_recent_entries_are_not_read_again_and_older_ones_are(tmp_path: Path) -> None:
    disk = CountedCache(tmp_path)
    entry = {"x": torch.zeros(25)}  # 100 bytes
    recent = RecentEntries(disk, 250)
    one, two, three = keys_of(3)
    for key in (one, two):
        recent.put(key, entry)
    assert recent.get(one) is not None
    assert disk.reads == 0
    recent.put(three, entry)  # two has not been used for longest
    assert (recent.get(one) is not None, recent.get(three) is not None, disk.reads) == (True, True, 0)
    assert recent.get(two) is not None
    assert disk.reads == 1
    assert recent.get(keys_of(4)[3]) is None


def test_an_entry_put_twice_counts_once_in_memory(tmp_path: Path) -> None:
    disk = CountedCache(tmp_path)
    recent = RecentEntries(disk, 250)
    one, two = keys_of(2)
    for key in (one, two, two, two):
        recent.put(key, {"x": torch.zeros(25)})
    assert recent.get(one) is not None
    assert disk.reads == 0


def test_an_entry_larger_than_the_memory_is_kept_while_it_is_the_last(tmp_path: Path) -> None:
    disk = CountedCache(tmp_path)
    recent = RecentEntries(disk, 10)
    recent.put(KEY, {"x": torch.zeros(25)})
    assert recent.get(KEY) is not None
    assert disk.reads == 0
