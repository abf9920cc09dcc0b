"""The mode: torch's switches are set while a job needs them, and afterwards all are as they were; what is found."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from trainer_core.errors import TrainingError
from trainer_core.training import determinism
from trainer_core.training.determinism import Findings, deterministic

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
ON = {"algorithms": True, "warn_only": False, "fill": True, "cudnn.deterministic": True, "cudnn.benchmark": False}
WATCHED = {"algorithms": True, "warn_only": True, "warn_always": True}


def switches() -> dict[str, Any]:
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "warn_always": torch.is_warn_always_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "workspace": os.environ.get(WORKSPACE),
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
    }


@pytest.fixture(params=["as torch starts", "all otherwise", "as ComfyUI's --deterministic"], autouse=True)
def before(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Every test runs from three states of the process, and must leave it in that state."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    torch.use_deterministic_algorithms(False)  # loads modules at its first call, which set filters of their own
    if request.param == "all otherwise":
        monkeypatch.setenv(WORKSPACE, ":0:0")
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
        torch.set_warn_always(True)
    elif request.param == "as ComfyUI's --deterministic":
        monkeypatch.setenv(WORKSPACE, ":16:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    found = switches()
    yield found
    left = switches()
    torch.use_deterministic_algorithms(False)
    torch.set_warn_always(False)
    assert left == found


def nondeterministic() -> None:
    """`put_` has no deterministic algorithm, on a CPU either."""
    torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))


def indexing() -> None:
    """Its gradient is an `index_put_` that accumulates."""
    x = torch.ones(5, requires_grad=True)
    x[torch.tensor([1, 1])].sum().backward()
    assert x.grad is not None
    assert x.grad[1] == 2


def watched_put() -> None:
    with deterministic(CPU, wanted=False) as findings, findings.probing():
        assert not switches()["warn_only"]
        nondeterministic()


@pytest.fixture
def threads() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


# --- switches --------------------------------------------------------------------------------------------------------


def test_all_switches_are_set_while_wanted(before: dict[str, Any]) -> None:
    with deterministic(CPU, wanted=True) as findings:
        inside = switches()
        assert ON.items() <= inside.items()
        assert inside["workspace"] == (":16:8" if before["workspace"] == ":16:8" else ":4096:8")
        with findings.probing():
            assert switches() == inside
    assert findings.summary() == "yes"


def test_not_wanted_touches_the_first_update_only(before: dict[str, Any]) -> None:
    with deterministic(CPU, wanted=False) as findings:
        assert switches() == before
        with findings.probing():
            inside = switches()
            assert inside == {**before, **WATCHED, "filters": inside["filters"], "showwarning": inside["showwarning"]}
        assert switches() == before
        with findings.probing():
            assert switches() == before


@pytest.mark.parametrize("wanted", [True, False])
def test_an_exception_restores_all(wanted: bool, before: dict[str, Any]) -> None:
    with pytest.raises(KeyboardInterrupt), deterministic(CPU, wanted) as findings, findings.probing():
        raise KeyboardInterrupt
    assert switches() == before


def test_two_jobs_share_the_mode_and_the_last_restores(before: dict[str, Any]) -> None:
    """The first to come is the first to leave."""
    second_in, first_out = threading.Event(), threading.Event()
    seen: list[dict[str, Any]] = []

    def second() -> None:
        with deterministic(CPU, wanted=True):
            second_in.set()
            assert first_out.wait(60)
            seen.append(switches())

    thread = threading.Thread(target=second)
    with deterministic(CPU, wanted=True):
        thread.start()
        assert second_in.wait(60)
    first_out.set()
    thread.join(60)
    (inside,) = seen
    assert ON.items() <= inside.items()
    assert switches() == before


def test_a_watched_update_does_not_weaken_another_jobs_mode() -> None:
    with deterministic(CPU, wanted=True):
        inside = switches()
        with pytest.raises(TrainingError, match=r"put_ .* of the other job"):
            watched_put()
        assert switches() == inside


def test_watched_updates_of_two_jobs_wait_for_each_other(before: dict[str, Any]) -> None:
    """Python's warning filters are the process's: interleaved, one would restore what the other had set."""
    started, done = threading.Event(), threading.Event()

    def second() -> None:
        started.set()
        with Findings().probing():
            assert done.is_set()
        assert switches() == before

    thread = threading.Thread(target=second)
    with Findings().probing():
        thread.start()
        assert started.wait(60)
        done.set()
    thread.join(60)
    assert not thread.is_alive()
    assert switches() == before


# --- operations ------------------------------------------------------------------------------------------------------


def test_an_operation_without_a_deterministic_algorithm_is_named() -> None:
    message = r"^put_ .*\(cpu\).*train\.deterministic off"
    with pytest.raises(TrainingError, match=message) as caught, deterministic(CPU, wanted=True):
        nondeterministic()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="size"), deterministic(CPU, wanted=True):
        torch.zeros(2) + torch.zeros(3)


def test_a_watched_operation_becomes_a_finding() -> None:
    with deterministic(CPU, wanted=False) as findings, findings.probing():
        nondeterministic()
        nondeterministic()
    assert findings.summary() == "no: put_ has no deterministic algorithm here"


@pytest.mark.parametrize("count", [1, 2])
def test_indexing_is_found_where_several_threads_add(count: int, threads: None) -> None:
    """The mode makes it deterministic, so torch warns of nothing; without the mode its bits vary."""
    torch.set_num_threads(count)
    with deterministic(CPU, wanted=False) as findings, findings.probing():
        indexing()
    assert ("index_put_" in findings.summary()) == (count == 2)
    with deterministic(CPU, wanted=True) as findings, findings.probing():
        indexing()
    assert findings.summary() == "yes"


def test_other_warnings_are_shown_as_ever() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with Findings().probing():
            nondeterministic()
            warnings.warn("something else", stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["something else"]


@pytest.mark.parametrize(
    ("message", "operation"),
    [
        (
            "index_add_cuda_ does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True, warn_only=True)'. You can file an issue at …",
            "index_add_cuda_",
        ),
        (
            "Memory Efficient attention defaults to a non-deterministic algorithm. To explicitly enable determinism "
            "call torch.use_deterministic_algorithms(True, warn_only=False).",
            "Memory Efficient attention",
        ),
        (
            "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
            "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because it uses "
            "CuBLAS and you have CUDA >= 10.2. To enable deterministic behavior in this case, …",
            "cuBLAS",
        ),
        ("The size of tensor a (2) must match the size of tensor b (3)", None),
    ],
)
def test_what_torch_says_is_understood(message: str, operation: str | None) -> None:
    """As torch 2.11 says it."""
    assert determinism._operation(message) == operation


# --- findings --------------------------------------------------------------------------------------------------------


def test_nothing_is_promised_before_an_update_was_watched() -> None:
    findings = Findings()
    assert findings.summary().startswith("no: ")
    with findings.probing():
        pass
    assert findings.summary() == "yes"


def test_an_update_that_failed_was_not_watched() -> None:
    findings = Findings()
    with pytest.raises(ValueError, match="no"), findings.probing():
        raise ValueError("no")
    assert findings.summary() != "yes"


def test_a_resumed_run_knows_what_was_found(before: dict[str, Any]) -> None:
    first = Findings()
    with first.probing():
        nondeterministic()
    resumed = Findings()
    resumed.loads(first.dumps())
    with resumed.probing():
        assert switches() == before
    assert resumed.summary() == first.summary()
    resumed.add("another")
    resumed.add("another")
    assert resumed.summary() == f"{first.summary()}; another"


def test_a_checkpoint_without_findings_has_its_next_update_watched() -> None:
    findings = Findings()
    findings.loads("")
    with findings.probing():
        nondeterministic()
    assert "put_" in findings.summary()


def test_a_gpu_without_the_mode_promises_nothing() -> None:
    with deterministic(CUDA, wanted=False) as findings, findings.probing():
        pass
    assert "train.deterministic is off" in findings.summary()


@pytest.mark.parametrize("wanted", [True, False])
def test_a_device_without_deterministic_algorithms_promises_nothing(wanted: bool) -> None:
    with deterministic(torch.device("mps"), wanted) as findings, findings.probing():
        pass
    assert "mps" in findings.summary()


def test_where_cublas_was_in_use_before_nothing_raises_and_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(device: torch.device) -> bool:
        assert os.environ[WORKSPACE] in (":4096:8", ":16:8")
        assert torch.are_deterministic_algorithms_enabled()
        return False

    monkeypatch.setattr(determinism, "_cublas_obeys", too_late)
    with deterministic(CUDA, wanted=True) as findings:
        inside = switches()
        assert {**ON, "warn_only": True}.items() <= inside.items()
        with findings.probing():
            nondeterministic()
    assert WORKSPACE in findings.summary()
    assert "put_" in findings.summary()
