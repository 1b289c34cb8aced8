"""The import law: rings point inwards, at run time and for typing, and this file shows that it catches each kind of breach."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "streambatch"

BESIDE = {
    "options",
    "access",
    "configure",
    "reports",
    "outcome",
    "previewing",
    "endings",
    "checking",
    "syncing",
}  # parts of the library and the commands
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "core": {"errors"},
    "edge": {"errors", "core"},
    "steps": {"errors", "core", "edge"},
    "config": {"errors", "core", "edge"},
    "engine": {"errors", "core", "edge", "steps", "config"},
    "options": {"errors"},
    "access": {"errors", "core", "edge"},
    "configure": {"errors", "core", "edge", "config", "options", "access"},
    "progress": {"errors", "core"},
    "reports": {"errors", "core", "edge"},
    "outcome": {"errors", "core", "edge"},
    "previewing": {"errors", "core", "edge"},
    "endings": {"errors", "core", "edge", "config", "engine"},
    "checking": {"errors", "core", "edge", "access", "configure"},
    "syncing": {"errors"},
    "server": {"errors"},
    "testing": {"errors", "server"},
    "api": {"errors", "core", "edge", "config", "engine", "server", *BESIDE},
    "purging": {"errors", "core", "edge", "config", "engine", "api", *BESIDE},
    "streaming": {"errors", "core", "edge", "config", "engine", "api", "outcome", "syncing"},
    "cli": {"errors", "core", "edge", "config", "engine", "server", "progress", "api", "purging", *BESIDE},
    "__main__": {"cli"},
    "__init__": {"api", "purging", "streaming", "errors"},
}
OUTSIDE = {
    "os",
    "time",
    "random",
    "secrets",
    "pathlib",
    "socket",
    "sqlite3",
    "subprocess",
    "threading",
    "tempfile",
    "shutil",
}
LOOPS = {"asyncio", "aiohttp", "aiofiles", "trio"}


def layer(module: str) -> str | None:
    """The ring of one of our modules; None for other people's."""
    parts = module.split(".")
    if parts[0] != "streambatch":
        return None
    return parts[1] if len(parts) > 1 else "__init__"


def module_name(root: Path, path: Path) -> str:
    parts = list(path.relative_to(root.parent).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imported(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in a file: at the top, in functions, for typing, relative, or by a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else package[: len(package) - node.level + 1]
            name = ".".join([*base, *([node.module] if node.module else [])])
            if name == "streambatch":
                yield from ((node.lineno, f"{name}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, name
        elif isinstance(node, ast.Call) and node.args and _called(node.func) in ("import_module", "__import__"):
            yield node.lineno, _leading_text(node.args[0])


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _leading_text(argument: ast.expr) -> str:
    if isinstance(argument, ast.JoinedStr) and argument.values:
        argument = argument.values[0]
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else ""


def breaches(root: Path) -> list[str]:
    """Every import under `root` that the law forbids, as `file:line: who imports what`."""
    found = []
    for path in sorted(root.rglob("*.py")):
        name = module_name(root, path)
        here = layer(name)
        assert here in MAY_IMPORT, f"{path} belongs to no ring: name it in this test"
        package = (
            name.split(".") if path.name == "__init__.py" and name != "streambatch.__init__" else name.split(".")[:-1]
        )
        for line, target in imported(ast.parse(path.read_text(encoding="utf-8")), package):
            if _forbidden(here, target):
                found.append(f"{path.relative_to(root)}:{line}: {here} imports {target}")
    return found


def _forbidden(here: str, target: str) -> bool:
    there = layer(target)
    if there is None:
        top = target.split(".")[0]
        return (here == "core" and top in OUTSIDE | {"anyio"}) or (here in ("core", "steps", "engine") and top in LOOPS)
    known = there in MAY_IMPORT and there != "__init__"
    return known and there != here and there not in MAY_IMPORT[here]


def test_the_package_keeps_the_law() -> None:
    assert breaches(PACKAGE) == []


@pytest.mark.parametrize(
    "code",
    [
        "import streambatch.engine",
        "import streambatch.engine.context as context",
        "from streambatch.engine import run",
        "from streambatch import engine",
        "from .. import engine",
        "from ..engine.context import Visit",
        "def f():\n    from streambatch.engine import run",
        "class C:\n    def f(self):\n        import streambatch.cli",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from streambatch.config import Config",
        "import importlib\nimportlib.import_module('streambatch.engine')",
        "import importlib\nimportlib.import_module(f'streambatch.cli.{1}')",
        "from importlib import import_module\nimport_module('streambatch.api')",
        "__import__('streambatch.steps')",
        "try:\n    from streambatch.server import app\nexcept ImportError:\n    app = None",
    ],
)
def test_a_planted_breach_is_caught(tmp_path: Path, code: str) -> None:
    root = _planted(tmp_path, "edge/planted.py", code)
    assert len(breaches(root)) == 1


@pytest.mark.parametrize(
    "code", ["import os", "from time import monotonic", "import anyio", "import random", "import aiohttp.web"]
)
def test_core_stays_away_from_the_world(tmp_path: Path, code: str) -> None:
    assert len(breaches(_planted(tmp_path, "core/planted.py", code))) == 1


@pytest.mark.parametrize("where", ["engine/planted.py", "steps.py", "core/planted.py"])
def test_the_engine_is_backend_neutral(tmp_path: Path, where: str) -> None:
    assert len(breaches(_planted(tmp_path, where, "import asyncio"))) == 1


def test_the_server_is_a_stranger(tmp_path: Path) -> None:
    assert len(breaches(_planted(tmp_path, "server/planted.py", "from streambatch.core import wire"))) == 1


def test_an_allowed_import_is_no_breach(tmp_path: Path) -> None:
    assert (
        breaches(
            _planted(
                tmp_path, "edge/planted.py", "import os\nfrom streambatch.core import wire\nfrom ..errors import X"
            )
        )
        == []
    )


def _planted(tmp_path: Path, where: str, code: str) -> Path:
    root = tmp_path / "streambatch"
    path = root / where
    path.parent.mkdir(parents=True)
    path.write_text(code, encoding="utf-8")
    return root


def _loaded(code: str) -> set[str]:
    """What a fresh process has imported after `code`."""
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(' '.join(sys.modules))"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return set(told.stdout.split())


def _modules(ring: str) -> list[str]:
    return [module_name(PACKAGE, path) for path in sorted((PACKAGE / ring).rglob("*.py"))]


def test_core_loads_nothing_that_does() -> None:
    loaded = _loaded("\n".join(f"import {name}" for name in _modules("core")))
    assert not loaded & {"aiohttp", "aiofiles", "anyio", "asyncio", "sqlite3", "rich", "click", "socket"}
    assert not {name for name in loaded if layer(name) not in (None, "__init__", "core", "errors")}


def test_the_package_itself_loads_nothing_heavy() -> None:
    assert not _loaded("import streambatch") & {"aiohttp", "anyio", "msgspec", "rich", "click", "asyncio"}


def test_public_names_are_there_and_lazy() -> None:
    loaded = _loaded(
        "import streambatch\nassert set(streambatch.__all__) <= set(dir(streambatch))\nstreambatch.ConfigError"
    )
    assert "streambatch.engine" not in loaded
