"""Rules of the house that a linter does not know, read off the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from trainer_core.families.registry import family_names

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "trainer_core").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
COMFY_MODELS = sorted((ROOT / "nodes" / "comfy_models").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "server", "nodes", "execution"}
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate"}
CHEAP = (
    "trainer_core",
    "trainer_core.api",
    "trainer_core.config",
    "trainer_core.errors",
    "trainer_core.cli",
    "trainer_core.commands.data",
    "trainer_core.commands.queue",
    "trainer_core.commands.runs",
    "trainer_core.commands.starter",
    "trainer_core.commands.terminal",
    "trainer_core.commands.training",
    "trainer_core.runs.events",
    "trainer_core.runs.run_folder",
    "trainer_core.job",
    "trainer_core.runs.queue",
    "trainer_core.runs.status",
    "trainer_core.data.lint",
    "trainer_core.data.summary",
    "trainer_core.adapters.export",
    "trainer_core.families.registry",
)
IMPORT_NAMES = {"pyyaml": "yaml", "pillow": "PIL"}


def parametrized(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[str(path.relative_to(ROOT)) for path in paths])


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports absolutely, wherever in the file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in {"import_module", "__import__"}:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and not first.value.startswith("."):
                yield first.value


def top_levels(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def dotted(node: ast.AST) -> str:
    """`torch.load` of the expression torch.load; an empty string for what has no such name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def calls(path: Path) -> set[str]:
    return {dotted(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}


def test_there_is_something_to_check() -> None:
    assert len(CORE) > 20
    assert {path.name for path in CORE} >= {"job.py", "errors.py", "cli.py"}
    assert [path.name for path in NODES].count("host.py") == 1


@parametrized(CORE)
def test_core_imports_nothing_of_comfyui(path: Path) -> None:
    assert not top_levels(path) & COMFYUI


@parametrized(CORE)
def test_core_imports_itself_relatively(path: Path) -> None:
    """ComfyUI imports the core under the pack's name; an absolute import would load a second copy, or none."""
    assert "trainer_core" not in top_levels(path)


@parametrized([path for path in NODES if path.name != "host.py"])
def test_only_host_touches_comfyui_beyond_its_node_api(path: Path) -> None:
    """What trains ComfyUI's models uses its library too, and the command line its folders; never its server."""
    library = {"comfy"} if path in COMFY_MODELS else set()
    folders = {"folder_paths"} if path.name == "library.py" else set()
    assert not top_levels(path) & (COMFYUI - {"comfy_api"} - library - folders)


@parametrized(NODES)
def test_nodes_import_the_core_relatively(path: Path) -> None:
    """`trainer_core` or `nodes` as absolute names would miss the pack's own copy or hit ComfyUI's module."""
    assert not top_levels(path) & {"trainer_core", "nodes"}


DOOR = {"api", "config", "errors"}
COMMANDS = sorted((ROOT / "trainer_core" / "commands").rglob("*.py"))
USERS = [*sorted({*NODES} - {*COMFY_MODELS}), ROOT / "trainer_core" / "cli.py", *COMMANDS]


@parametrized(USERS)
def test_the_core_has_one_door(path: Path) -> None:
    """Nodes and the command line use the core as web pages will: through `api`, with types of `config` and `errors`."""
    assert of_core(path) <= DOOR


def of_core(path: Path) -> set[str]:
    """Modules of the core that a file outside of it imports, by the first part of their names in it."""
    package = [*path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        place = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ())]
        for name in (
            [place] if node.module and place != ["trainer_core"] else [[*place, one.name] for one in node.names]
        ):
            if name[0] == "trainer_core" and name[1] not in OWN:
                found.add(name[1])
    return found


OWN = {"commands", "__version__"}
"""What the command line is made of itself."""


def test_the_check_of_the_door_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for folder, text, expected in (
        ("nodes", "from ..trainer_core.runs.queue import a", {"runs"}),
        ("nodes", "from ..trainer_core import job, api", {"job", "api"}),
        ("nodes", "from . import host", set()),
        ("trainer_core", "from . import __version__, demo", {"demo"}),
        ("trainer_core", "def f():\n    from .secrets import b", {"secrets"}),
        ("trainer_core/commands", "from ..data.lint import c", {"data"}),
        ("trainer_core/commands", "from .. import files, config", {"files", "config"}),
        ("trainer_core/commands", "from . import OK", set()),
        ("trainer_core/commands", "from .terminal import say", set()),
    ):
        file = tmp_path / folder / "some.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        assert of_core(file) == expected, text


@parametrized([*CORE, *NODES])
def test_no_global_random_state(path: Path) -> None:
    """ComfyUI shares the process: seeding torch, numpy or random globally would change its results, and ours theirs."""
    seeding = {"torch.manual_seed", "torch.random.manual_seed", "torch.seed", "np.random.seed", "random.seed"}
    assert not {
        call for call in calls(path) if call in seeding or call.endswith((".manual_seed_all", "seed_everything"))
    }


@parametrized([*CORE, *NODES])
def test_nothing_is_unpickled_or_executed_from_data(path: Path) -> None:
    assert not top_levels(path) & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    found = calls(path)
    assert not found & {"torch.load", "eval", "exec", "compile", "yaml.load", "yaml.unsafe_load", "os.system"}
    assert not {call for call in found if call.endswith(("load_pickle", "unsafe_load", "full_load"))}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.keyword) and node.arg in {"allow_pickle", "trust_remote_code"}:
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False
        if isinstance(node, ast.keyword) and node.arg == "use_safetensors":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is True


@parametrized([*CORE, *NODES, *TESTS, *BENCHMARKS])
def test_files_are_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines < 400


@parametrized(CORE)
def test_no_family_ladders_outside_families(path: Path) -> None:
    """What is peculiar to a family lives in families/; elsewhere no `family == "flux1"`."""
    if "families" in path.parts:
        return
    families = set(family_names())
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Compare):
            values = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            assert not values & families, f"line {node.lineno} compares with a family's name"


@pytest.mark.parametrize("module", CHEAP)
def test_cheap_modules_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_help_imports_no_numeric_library() -> None:
    """`lora-foundry --help` is quick: not even the libraries that read YAML or check settings are needed for it."""
    code = (
        "import sys; from trainer_core.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('loaded:', *sorted({'torch', 'numpy', 'PIL', 'pydantic', 'yaml'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_declared_dependencies_are_the_imported_ones() -> None:
    own = {"trainer_core", *sys.stdlib_module_names}
    used = {name for path in CORE for name in top_levels(path)} - own
    declared = {_import_name(requirement) for requirement in PROJECT["project"]["dependencies"]}
    optional = {_import_name(one) for one in PROJECT["project"]["optional-dependencies"]["8bit"]}
    assert used - declared - optional == set(), "imported and not declared in pyproject.toml"
    # diffusers loads models through accelerate where it is installed (less memory); nothing of ours imports it.
    assert declared - used - {"accelerate"} == set(), "declared in pyproject.toml and never imported"


def test_nothing_is_pinned() -> None:
    """ComfyUI's environment owns these packages: floors only."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    assert requirements
    for requirement in [*requirements, *PROJECT["project"]["dependencies"]]:
        assert not re.search(r"==|~=|<|!=|@", requirement.split(";")[0]), requirement
    assert set(requirements) <= set(PROJECT["project"]["dependencies"])


def test_version_is_told_once() -> None:
    import trainer_core

    assert PROJECT["project"]["version"] == trainer_core.__version__


def test_registry_metadata() -> None:
    """What ComfyUI's registry asks of a pack (reference/comfyui-host.md §6)."""
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert project["name"] == "lora-foundry"
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["requires-python"] == ">=3.10"
    assert set(project["license"]) == {"file"}
    assert set(project["urls"]) >= {"Repository", "Documentation", "Bug Tracker"}
    assert comfy["DisplayName"] == "LoRA Foundry"
    assert comfy["PublisherId"]
    assert comfy["requires-comfyui"].startswith(">=0.20")
    assert "web" not in comfy, "it would move the help pages away from the pack's folder; WEB_DIRECTORY serves them"


def _import_name(requirement: str) -> str:
    name = re.split(r"[<>=~!;\[ ]", requirement)[0].lower()
    return IMPORT_NAMES.get(name, name.replace("-", "_"))


def test_git_keeps_every_source_file() -> None:
    """A source folder that .gitignore hides works for its author and is absent from every clone."""
    asked = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "--", "*.py", "*.js", "*.json"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    source = ("trainer_core/", "nodes/", "web/", "example_workflows/", "tests/", "benchmarks/")
    assert [line for line in done.stdout.splitlines() if line.startswith(source)] == []
