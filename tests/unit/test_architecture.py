"""The arrows between packages, and the sizes that keep a file readable."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support import ROOT

PACKAGE = ROOT / "src" / "minga"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))

FILE_LINES = 400
FUNCTION_LINES = 60
PARAMETERS = 6


def _imports(source: str) -> set[str]:
    """Every module that a source imports, at whatever depth; ``from a import b`` gives both."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module or "")
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def _any_under(imports: set[str], *packages: str) -> set[str]:
    return {name for name in imports for p in packages if name == p or name.startswith(f"{p}.")}


LEAVES = {"errors", "protocol", "timing", "watchdog"}
ENGINE = {
    "algorithm",
    "console",
    "data",
    "messages",
    "observe",
    "settings",
    "tasks",
    "transport",
}
"""What ps and worker share."""
ALLOWED: dict[str, set[str]] = {
    **{leaf: set() for leaf in LEAVES},
    "algorithm": set(),
    "messages": {"data"},
    "console": {"errors"},
    "settings": {"errors", "protocol"},
    "tasks": {"algorithm", "errors"},
    "transport": {"data", "errors", "messages", "timing"},
    "observe": {"errors"},
    "data": {"console", "errors", "settings"},
    "plan": {"algorithm", "errors", "settings", "transport"},
    "ps": {*LEAVES, *ENGINE},
    "worker": {*LEAVES, *ENGINE},
    "deploy": {"console", "data", "errors", "protocol", "settings", "transport"},
    "evaluate": {"data", "errors", "ps", "settings", "tasks", "worker"},
    "export": {"ps"},
    "audit": {"errors", "ps"},
    "demo": {"console", "data", "errors", "observe", "settings", "transport"},
    "__main__": {"cli"},
    "child": {"cli"},
}
"""What each package, and each module beside them, may import of minga; `cli` all of it."""


def _room(where: str) -> str:
    """The package, or the module beside the packages, of ``ps/run.py`` or ``demo.py``."""
    return where.partition("/")[0].removesuffix(".py")


def _offending(source: str, where: str) -> set[str]:
    """What a module at ``where`` (``ps/run.py``) imports against the rules of the design."""
    imports, room = _imports(source), _room(where)
    forbidden = set()
    if room != "transport":
        forbidden |= _any_under(imports, "torch.distributed.rpc")
    if room not in ("cli", "__init__"):
        forbidden |= {
            name
            for name in _any_under(imports, "minga") - {"minga", "minga.__version__"}
            if name.split(".")[1] not in ALLOWED[room] | {room}
        }
    return forbidden


def _modules(imports: set[str]) -> set[str]:
    """Without the packages of ``from package import module``."""
    return {name for name in imports if not any(each.startswith(f"{name}.") for each in imports)}


def _circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Circles of imports: each as the modules on its way."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            found.append(way[way.index(module) :])
        elif module not in done:
            for following in sorted(imports.get(module, ())):
                visit(following, [*way, module])
            done.add(module)

    for module in sorted(imports):
        visit(module, [])
    return found


def test_every_package_has_its_row() -> None:
    rooms = {_room(path.relative_to(PACKAGE).as_posix()) for path in MODULES}
    assert rooms - {"__init__", "cli"} == ALLOWED.keys()


def test_no_module_imports_itself_by_way_of_others() -> None:
    imports = {}
    for path in MODULES:
        where = path.relative_to(PACKAGE.parent).with_suffix("")
        imports[".".join(where.parts).removesuffix(".__init__")] = _imports(path.read_text())
    names = imports.keys()
    own = {module: _modules(found & names) - {module} for module, found in imports.items()}
    assert sum(map(len, own.values())) > 200, "the control: there are imports to look at"
    assert _circles(own) == []


def test_the_circle_rule_sees_one() -> None:
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c"]]
    assert _circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_place_allows(path: Path) -> None:
    assert _offending(path.read_text(), path.relative_to(PACKAGE).as_posix()) == set()


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("ps/run.py", "import torch.distributed.rpc"),
        ("ps/run.py", "from torch.distributed import rpc"),
        ("ps/run.py", "def f():\n    from minga.worker import run"),
        ("worker/run.py", "from minga.ps.ledger import Ledger"),
        ("algorithm/codec.py", "from minga import settings"),
        ("algorithm/codec.py", "from minga.settings.schema import Settings"),
        ("plan/simulation.py", "from minga.ps.pushes import pace_of"),
        ("demo.py", "from minga.cli import main"),
        ("deploy/check.py", "from minga.ps.run_state import RunState"),
        ("data/split.py", "from minga.ps.ledger import Ledger"),
        ("observe/events.py", "from minga.transport.stream import Message"),
        ("transport/rpc.py", "import minga.console"),
        ("timing.py", "from minga.errors import Hint"),
    ],
)
def test_the_import_rule_sees_what_it_forbids(where: str, source: str) -> None:
    assert _offending(source, where) != set()


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("transport/rpc.py", "from torch.distributed import rpc"),
        ("algorithm/localsgd.py", "import torch\nfrom minga.algorithm.codec import encode"),
        ("evaluate.py", "from minga.ps import run\nfrom minga.worker import run"),
        ("cli/roles.py", "from minga.ps import run"),
        ("ps/run.py", "from minga import __version__"),
        ("__main__.py", "from minga.cli import main"),
    ],
)
def test_the_import_rule_leaves_the_rest_alone(where: str, source: str) -> None:
    assert _offending(source, where) == set()


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _too_big(source: str) -> list[str]:
    """What is longer or takes more than the house style allows."""
    found = []
    if (count := len(source.splitlines())) > FILE_LINES:
        found.append(f"the file has {count} lines")
    for function in _functions(ast.parse(source)):
        count = (function.end_lineno or 0) - function.lineno + 1
        if count > FUNCTION_LINES:
            found.append(f"{function.name} has {count} lines")
    return found


def _too_many_parameters(source: str) -> list[str]:
    found = []
    for function in _functions(ast.parse(source)):
        named = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
        named = named[1:] if named[:1] in (["self"], ["cls"]) else named
        if (count := len(named) + len(function.args.kwonlyargs)) > PARAMETERS:
            found.append(f"{function.name} takes {count} parameters")
    return found


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    assert _too_big(path.read_text()) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_take_few_parameters(path: Path) -> None:
    assert _too_many_parameters(path.read_text()) == []


def test_the_size_rules_see_what_they_forbid() -> None:
    long_function = "def f():\n" + "    pass\n" * FUNCTION_LINES
    assert _too_big(long_function) == [f"f has {FUNCTION_LINES + 1} lines"]
    assert _too_big("pass\n" * (FILE_LINES + 1)) == [f"the file has {FILE_LINES + 1} lines"]
    assert _too_many_parameters("def f(a, b, c, d, *, e, g, h): ...") == ["f takes 7 parameters"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["ps", "--help"],
        ["config", "show"],
        ["worker"],
        ["plan", "--pcs=0x1"],
    ],
)
def test_what_needs_no_tensor_does_not_import_torch(arguments: list[str], tmp_path: Path) -> None:
    code = f"import sys; from minga.cli import main; main({arguments}); print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    modules = set(ended.stdout.splitlines()[-1].split())
    assert "minga.cli.app" in modules, "the control: the list is one of modules"
    assert not modules & {"torch", "numpy", "matplotlib", "sklearn"}


def test_importing_minga_does_nothing(tmp_path: Path) -> None:
    """No file, no variable, no thread, no logger: the command decides all that."""
    code = (
        "import logging, os, threading; before = dict(os.environ)\n"
        "import minga.cli.app\n"
        "assert dict(os.environ) == before\n"
        "assert threading.active_count() == 1\n"
        "assert not logging.getLogger().handlers\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        timeout=60,
        check=True,
    )
    assert list(tmp_path.iterdir()) == []
