"""Weights in fewer bits: what they take and lose, and what they are where shapes and values are odd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer_core.errors import BaseModelError, ConfigError
from trainer_core.memory.formats import Packed, encode, format_of
from trainer_core.memory.formats.constant import constant

TABLE = {
    "float8": (8.25, 2.6),
    "int8": (8.25, 0.87),
    "6bit": (6.5, 2.2),
    "5bit": (5.4, 4.2),
    "4bit": (4.5, 7.0),
    "3bit": (3.5, 14.9),
    "2bit": (2.5, 31.0),
}
"""Bits per weight and relative error (%) on Gaussian weights: shared/reference/memory-speed.md §1."""
OURS = tuple(TABLE)


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, weight: Tensor) -> float:
    """Relative, in percent."""
    return 100 * float((found.double() - weight.double()).norm() / weight.double().norm())


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return 0.02 * gaussian(96, 4096)


@pytest.fixture(scope="module")
def packed(weight: Tensor) -> dict[str, Packed]:
    return {name: encode(weight, name) for name in OURS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OURS)
def test_bits_and_error_are_those_of_the_table(
    name: str, dtype: torch.dtype, weight: Tensor, packed: dict[str, Packed]
) -> None:
    bits, percent = TABLE[name]
    found = packed[name].decode(dtype)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert packed[name].bits_per_weight <= bits * 1.05
    assert error(found, weight) <= percent * 1.05


def test_fewer_bits_lose_more(weight: Tensor, packed: dict[str, Packed]) -> None:
    names = ("int8", "6bit", "5bit", "4bit", "3bit", "2bit")
    bits = [packed[name].bits_per_weight for name in names]
    errors = [error(packed[name].decode(), weight) for name in names]
    assert bits == sorted(bits, reverse=True)
    assert errors == sorted(errors)


@pytest.mark.parametrize("columns", [1024, 192, 48, 12])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("even", [True, False])
def test_int8_is_comfyuis(columns: int, dtype: torch.dtype, even: bool) -> None:
    """Of the weight in fp32, as published files are made; ComfyUI itself rotates in the weight's own precision.

    Bit for bit where the rotation's sums are exact. Else some CPUs add up in another order where a product has other
    rows beside it.
    """
    int8 = pytest.importorskip("comfy_kitchen.tensor.int8").TensorWiseINT8Layout
    weight = gaussian(700, columns)  # more than one chunk of 1024 columns
    weight = ((weight * 64).round() / 64 if even else weight).to(dtype)
    block = next(size for size in (256, 64, 16, 4) if columns % size == 0)
    codes, params = int8.quantize(weight.float(), per_channel=True, convrot=True, convrot_groupsize=block)
    found = encode(weight, "int8")
    ours, decoded = found.tensors(), int8.dequantize(codes, params).float()
    if even:
        assert torch.equal(ours["codes"], codes)
        assert torch.equal(ours["scale"], params.scale)
        torch.testing.assert_close(found.decode(), decoded)
    else:
        assert (ours["codes"] != codes).float().mean() < 1e-4
        torch.testing.assert_close(ours["scale"], params.scale, rtol=5e-7, atol=0)
        assert error(found.decode(), decoded) < 1e-2


def test_int8_without_a_rotation_is_comfyuis_by_rows() -> None:
    int8 = pytest.importorskip("comfy_kitchen.tensor.int8").TensorWiseINT8Layout
    weight = gaussian(8, 66)
    codes, params = int8.quantize(weight, per_channel=True)
    found = encode(weight, "int8")
    assert torch.equal(found.tensors()["codes"], codes)
    assert torch.equal(found.tensors()["scale"], params.scale)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("shape", [(40, 100), (9, 67), (200, 17), (1, 256)])
def test_rows_of_odd_lengths_are_as_exact(name: str, shape: tuple[int, int]) -> None:
    weight = gaussian(*shape)
    found = encode(weight, name)
    assert found.decode().shape == found.decode(torch.bfloat16).shape == shape
    assert error(found.decode(), weight) <= TABLE[name][1] * 1.2  # few weights: the error itself varies


@pytest.mark.parametrize(("name", "columns"), [("6bit", 63), ("5bit", 31), ("4bit", 15), ("3bit", 8), ("2bit", 1)])
def test_rows_shorter_than_a_group_are_in_int8(name: str, columns: int) -> None:
    weight = gaussian(8, columns)
    assert encode(weight, name).name == format_of(name, (8, columns)) == "int8"
    assert format_of(name, (8, columns + 63)) == name
    assert error(encode(weight, name).decode(), weight) < 1


@pytest.mark.parametrize("name", OURS)
def test_zeros_stay_zeros(name: str) -> None:
    weight = gaussian(4, 256)
    weight[1] = 0
    weight[2, :128] = 0
    found = encode(weight, name).decode()
    assert not found[1].any()
    assert found[2, :128].abs().max() < 1e-6 + (name == "int8")  # rotated: a row's zeros are not zeros there
    assert error(found[[0, 3]], weight[[0, 3]]) < TABLE[name][1] * 1.2


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_no_weights_are_too_small_or_too_large(name: str, factor: float) -> None:
    weight = gaussian(16, 256)
    assert error(encode(weight * factor, name).decode(), weight * factor) < TABLE[name][1] * 1.2


@pytest.mark.parametrize("name", ["6bit", "5bit", "4bit", "3bit", "2bit"])
def test_an_outlier_costs_its_group_alone(name: str) -> None:
    weight = gaussian(16, 256)
    weight[:, 0] = 1000
    found = encode(weight, name).decode()
    assert error(found[:, 64:], weight[:, 64:]) < TABLE[name][1] * 1.2


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_weights_of_any_precision_are_taken_as_they_are(name: str, dtype: torch.dtype) -> None:
    weight = gaussian(8, 128).to(dtype)
    assert same(encode(weight, name), encode(weight.float(), name))


def test_codes_are_the_same_on_any_number_of_threads() -> None:
    weight = gaussian(64, 2048)

    def made() -> list[Packed | Tensor]:
        found = [encode(weight, name) for name in OURS]
        return [*found, *(one.decode(torch.bfloat16) for one in found)]

    before = torch.get_num_threads()
    first = made()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        second = made()
    finally:
        torch.set_num_threads(before)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else same(one, other)


@pytest.mark.parametrize("name", OURS)
def test_rows_do_not_depend_on_each_other(name: str, weight: Tensor, packed: dict[str, Packed]) -> None:
    """So that it does not matter how many are encoded at once."""
    part = encode(weight[60:90], name)
    assert torch.equal(part.decode(), packed[name].decode()[60:90])


@pytest.mark.parametrize("name", OURS)
def test_a_file_holds_them(name: str, packed: dict[str, Packed], weight: Tensor) -> None:
    whole = packed[name]
    read = Packed.from_tensors(name, whole.shape, load(save(whole.tensors())))
    assert torch.equal(read.decode(), whole.decode())
    blank = Packed.blank(name, whole.shape, "meta")
    assert blank.nbytes == whole.nbytes


def test_tensors_of_another_weight_are_refused(packed: dict[str, Packed]) -> None:
    tensors = packed["6bit"].tensors()
    with pytest.raises(BaseModelError, match="6bit weight 96 x 2048: codes_2, codes_4"):
        Packed.from_tensors("6bit", (96, 2048), tensors)
    with pytest.raises(BaseModelError, match="step"):
        Packed.from_tensors("6bit", (96, 4096), tensors | {"step": tensors["step"].float()})
    del tensors["scale"]
    with pytest.raises(BaseModelError, match="scale"):
        Packed.from_tensors("6bit", (96, 4096), tensors)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(name: str, value: float) -> None:
    weight = gaussian(4, 64)
    weight[3, 63] = value
    with pytest.raises(BaseModelError, match="not finite"):
        encode(weight, name)


@pytest.mark.parametrize("weight", [torch.ones(4), torch.ones(0, 4), torch.ones(4, 4, dtype=torch.int8)])
def test_only_matrices_are_packed(weight: Tensor) -> None:
    with pytest.raises(BaseModelError, match="only matrices"):
        encode(weight, "6bit")


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean `6bit`"):
        encode(torch.ones(4, 4), "6bits")


@pytest.mark.parametrize("name", OURS)
def test_fake_weights_are_decoded(name: str) -> None:
    """The memory plan runs a model of them."""
    whole = encode(gaussian(3, 128), name)
    with FakeTensorMode() as mode:
        fake = Packed(name, whole.shape, {key: mode.from_tensor(part) for key, part in whole.tensors().items()})
        assert fake.decode(torch.bfloat16).shape == (3, 128)


def test_tables_are_made_once_but_no_fake_or_inference_tensor_is_kept() -> None:
    calls = []

    @constant
    def table(size: int) -> Tensor:
        calls.append(size)
        return torch.ones(size)

    with FakeTensorMode():
        table(3)
    with torch.inference_mode():
        assert not table(3).is_inference()
    assert type(table(3)) is Tensor
    assert calls == [3, 3]


def same(one: Packed, other: Any) -> bool:
    """Bit for bit."""
    bits = ({name: part.view(torch.uint8) for name, part in packed.tensors().items()} for packed in (one, other))
    return one.name == other.name and all(map(torch.equal, *(each.values() for each in bits)))
