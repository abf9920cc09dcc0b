"""Files of the same content are the same bytes in every process, the library reads them, and junk is refused."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer_core.errors import AdapterError
from trainer_core.safetensors_file import read_header, read_tensors, serialize

ROOT = Path(__file__).parents[3]
TENSORS = {
    "z.weight": torch.arange(6.0).view(2, 3),
    "a.alpha": torch.tensor(0.5),
    "b.half": torch.arange(3, dtype=torch.bfloat16),
    "c.odd": torch.arange(5, dtype=torch.uint8),
    "d.empty": torch.zeros(0, 4),
    "ü.weight": torch.arange(6.0).view(2, 3).t(),
}
METADATA = {"format": "pt", "ss_tag": '{"größe": 1}', "a": "", "z": "line\nbreak"}


def test_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(serialize(TENSORS, METADATA))
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    with safe_open(path, "pt") as file:
        assert file.metadata() == METADATA


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(serialize(TENSORS, METADATA))
    assert read_header(path)["__metadata__"] == METADATA
    assert all(torch.equal(value, TENSORS[name]) for name, value in read_tensors(path).items())


def test_the_order_that_it_is_given_in_changes_nothing() -> None:
    data = serialize(TENSORS, METADATA)
    assert data == serialize(dict(reversed(TENSORS.items())), dict(reversed(METADATA.items())))
    assert data != serialize(TENSORS, {**METADATA, "a": "b"})


def test_header_is_aligned_and_sorted() -> None:
    data = serialize(TENSORS, METADATA)
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert next(iter(header)) == "__metadata__"
    offsets = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    assert offsets == sorted(offsets)
    assert offsets[-1][1] == len(data) - 8 - length


def test_without_metadata_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(serialize(TENSORS, {}))
    assert "__metadata__" not in read_header(path)


@pytest.mark.parametrize("hash_seed", ["1", "77"])
def test_the_same_bytes_in_every_process(hash_seed: str) -> None:
    code = (
        "import hashlib, torch\n"
        "from trainer_core.safetensors_file import serialize\n"
        "tensors = {f'layer.{k}': torch.full((k + 1, 2), float(k)) for k in {3, 1, 4, 15, 9, 2, 6}}\n"
        "metadata = {f'key{k}': str(k) for k in {'b', 'a', 'z', 'q', 'm'}}\n"
        "print(hashlib.sha256(serialize(tensors, metadata)).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    tensors = {f"layer.{k}": torch.full((k + 1, 2), float(k)) for k in (1, 2, 3, 4, 6, 9, 15)}
    metadata = {f"key{k}": k for k in "abmqz"}
    assert done.stdout.strip() == hashlib.sha256(serialize(tensors, metadata)).hexdigest(), done.stderr


def test_tensors_read_outlive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(serialize(TENSORS, {}))
    found = read_tensors(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    path.unlink()
    assert torch.equal(found["z.weight"], TENSORS["z.weight"])


def whole() -> bytes:
    return serialize(TENSORS, METADATA)


JUNK = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "a length alone": struct.pack("<Q", 100),
    "a length of 0": struct.pack("<Q", 0) + b"{}",
    "an absurd length": struct.pack("<Q", 2**63) + b"{}",
    "text": b"this is a text file, nothing else" * 10,
    "no JSON": struct.pack("<Q", 8) + b"not json",
    "bad UTF-8": struct.pack("<Q", 8) + b'{"\xff": 1}',
    "a list": struct.pack("<Q", 8) + b"[1,2,3] ",
    "a number": struct.pack("<Q", 8) + b"12345678",
    "deep": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "a pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.",
    "entries without offsets": struct.pack("<Q", 16) + b'{"a":{}}        ',
    "metadata that is a list": struct.pack("<Q", 24) + b'{"__metadata__":[1]}    ',
    "offsets beyond the end": struct.pack("<Q", 64)
    + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'.ljust(64),
    "truncated": whole()[:-1],
    "cut in the header": whole()[:100],
    "longer than it says": whole() + b"\0",
}


@pytest.mark.parametrize("content", JUNK.values(), ids=list(JUNK))
def test_junk_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "junk.safetensors"
    path.write_bytes(content)
    with pytest.raises(AdapterError, match=r"junk\.safetensors"):
        read_tensors(path)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(AdapterError, match=path.name):
            read_tensors(path)
        with pytest.raises(AdapterError, match=path.name):
            read_header(path)


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"x": "y"})
    assert read_header(tmp_path / "a.safetensors")["__metadata__"] == {"x": "y"}
    assert read_tensors(tmp_path / "a.safetensors")["a"].tolist() == [1, 1]


# --- the hash of the data --------------------------------------------------------------------------------------------

SPEC = {**METADATA, "modelspec.title": "style", "ss_output_name": "style"}


def test_files_that_speak_the_model_spec_say_their_hash(tmp_path: Path) -> None:
    """By the specification: `0x` and the SHA-256 of all that follows the header."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(serialize({"a": torch.arange(6.0), "b": torch.ones(2)}, SPEC))
    expected = hashlib.sha256(np.arange(6, dtype="<f4").tobytes() + np.ones(2, dtype="<f4").tobytes()).hexdigest()
    assert read_header(path)["__metadata__"]["modelspec.hash_sha256"] == f"0x{expected}"
    assert read_tensors(path).keys() == {"a", "b"}
    assert read_header(path)["__metadata__"].items() >= SPEC.items()


def test_a_stale_hash_is_replaced() -> None:
    stale = {**SPEC, "modelspec.hash_sha256": "0x00", "lora_foundry.data_sha256": "x:y"}
    assert serialize(TENSORS, stale) == serialize(TENSORS, SPEC)


_HASHED = serialize(TENSORS, SPEC)
_DATA = 8 + struct.unpack("<Q", _HASHED[:8])[0]


@given(st.integers(_DATA * 8, len(_HASHED) * 8 - 1))
def test_any_flipped_bit_of_the_data_is_noticed(tmp_path_factory: pytest.TempPathFactory, bit: int) -> None:
    damaged = bytearray(_HASHED)
    damaged[bit // 8] ^= 1 << bit % 8
    path = tmp_path_factory.mktemp("flipped") / "style.safetensors"
    path.write_bytes(damaged)
    with pytest.raises(AdapterError, match=r"style\.safetensors.*damaged.*hash"):
        read_tensors(path)


@pytest.mark.parametrize(
    "edited",
    [
        {"modelspec.author": "me"},
        {"modelspec.hash_sha256": "0x" + "0" * 64},  # some programs write that of the whole file
        {"modelspec.hash_sha256": ""},
        {"lora_foundry.data_sha256": ""},
        {"lora_foundry.data_sha256": "nonsense"},
    ],
)
def test_metadata_edited_by_another_program_do_no_harm(edited: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(_HASHED)
    save_file(load_file(path), tmp_path / "b.safetensors", metadata=read_header(path)["__metadata__"] | edited)
    found = read_tensors(tmp_path / "b.safetensors")
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize("how", ["converted", "resized", "renamed", "thinned out"])
def test_another_program_may_copy_metadata_that_no_longer_apply(how: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(_HASHED)
    tensors = {
        "converted": lambda: {name: value.to(torch.float16) for name, value in TENSORS.items()},
        "resized": lambda: {name: value.flatten()[:1] for name, value in TENSORS.items()},
        "renamed": lambda: {f"{ord(name[0]) % 7}{name}": value for name, value in TENSORS.items()},
        "thinned out": lambda: {name: value for name, value in TENSORS.items() if name < "c"},
    }[how]()
    metadata = read_header(path)["__metadata__"]
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=metadata)
    assert read_tensors(path).keys() == tensors.keys()
