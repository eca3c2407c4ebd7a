"""`pip install ./python_backend` alone is the light client, and imports point one way."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "python_backend" / "dgemma"
HEAVY = (
    *("torch", "onnxruntime", "onnx", "onnxscript", "transformers"),
    *("safetensors", "tokenizers", "jinja2", "pytriton", "dgemma_build", "tests"),
    *("fastapi", "starlette", "uvicorn"),
)
# A Python in which these distributions are not installed, as far as code can tell.
REFUSING = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""


def light(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script where only the light install's modules can be imported."""
    return subprocess.run(
        [sys.executable, "-c", REFUSING + script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_dgemma(*arguments: str) -> subprocess.CompletedProcess[str]:
    return light("from dgemma.cli import app; app(prog_name='dgemma')", *arguments)


# What can be used


def test_the_heavy_modules_are_really_refused() -> None:
    assert "No module named 'torch'" in light("import torch").stderr


def test_the_client_and_the_command_line_import_without_the_server_s_packages() -> None:
    process = light("import dgemma.client, dgemma.cli, dgemma.watch; print('imported')")
    assert (process.stdout, process.stderr) == ("imported\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["generate", "--help"],
        ["serve", "--help"],
        ["replay", "--help"],
        ["front", "--help"],
        ["tenants", "--help"],
        ["tenants", "check", "--help"],
    ],
)
def test_the_command_line_explains_itself_without_them(arguments: list[str]) -> None:
    process = run_dgemma(*arguments)
    assert (process.returncode, process.stderr) == (0, "")
    assert "dgemma" in process.stdout


def test_generate_reaches_for_a_server_without_them() -> None:
    process = run_dgemma("generate", "hi", "--url", "127.0.0.1:1")
    assert process.returncode == 1
    assert process.stderr.startswith("error: no server answers at 127.0.0.1:1")


def test_the_front_says_what_to_install() -> None:
    process = run_dgemma("front")
    assert process.returncode == 1
    assert process.stderr == ("error: front needs uvicorn: run pip install 'dgemma[server]'\n")


def test_replay_says_what_to_install(tmp_path: Path) -> None:
    tape = tmp_path / "tape.npz"
    tape.write_bytes(b"")
    process = run_dgemma(
        *("replay", "--checkpoint", str(tmp_path), "--tape", str(tape), "--out", "out.npz")
    )
    assert process.returncode == 1
    assert process.stderr.startswith("error: replay needs ")
    assert "pip install 'dgemma[server]'" in process.stderr
    assert process.stderr.count("\n") == 1


# What is declared

IMPORTED = """
import dgemma.client, dgemma.cli, dgemma.serve
import json
print(json.dumps(sorted(name for name in sys.modules if not name.startswith("_"))))
"""


def requirement_names(requirements: list[str]) -> set[str]:
    return {canonical(re.split(r"[\s\[<>=!~;(]", text, maxsplit=1)[0]) for text in requirements}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    text = (REPOSITORY / "python_backend" / "pyproject.toml").read_text()
    return dict(tomllib.loads(text)["project"])


def test_the_dependencies_cover_every_module_that_the_light_client_imports_itself(
    project: dict[str, object],
) -> None:
    """By the imports written in those of our modules that the light client loads."""
    loaded = json.loads(light(IMPORTED).stdout)
    ours = [name for name in loaded if name.partition(".")[0] == "dgemma"]
    assert "dgemma.client" in ours
    distributions = importlib.metadata.packages_distributions()
    allowed = requirement_names(list(project["dependencies"]))  # type: ignore[call-overload]
    missing = {
        f"{name} imports {module}"
        for name in ours
        for module in top_level_imports(file_of(name))
        if module not in sys.stdlib_module_names | {"dgemma"}
        and not {canonical(found) for found in distributions[module]} & allowed
    }
    assert missing == set()


def test_what_the_dependencies_bring_covers_every_module_that_is_loaded(
    project: dict[str, object],
) -> None:
    roots = {name.partition(".")[0] for name in json.loads(light(IMPORTED).stdout)}
    distributions = importlib.metadata.packages_distributions()
    allowed = closure(list(project["dependencies"]))  # type: ignore[call-overload]
    third_party = roots - sys.stdlib_module_names - {"dgemma", "sitecustomize"}
    uncovered = {
        root
        for root in third_party
        if root in distributions
        and not {canonical(found) for found in distributions[root]} & allowed
    }
    assert uncovered == set()
    assert {"grpc", "tritonclient", "typer", "rich"} <= third_party


def test_the_heavy_packages_are_in_the_server_extra_alone(project: dict[str, object]) -> None:
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    server = requirement_names(extras["server"])
    light_ones = requirement_names(list(project["dependencies"]))  # type: ignore[call-overload]
    assert {"torch", "onnxruntime", "safetensors", "tokenizers", "jinja2"} <= server
    assert not {canonical(name) for name in HEAVY} & light_ones


def test_the_extras_cover_every_other_module_that_dgemma_imports(
    project: dict[str, object],
) -> None:
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    dependencies = list(project["dependencies"])  # type: ignore[call-overload]
    allowed = requirement_names(
        [*dependencies, *(name for part in extras.values() for name in part)]
    )
    distributions = importlib.metadata.packages_distributions()
    missing = {
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in PACKAGE.rglob("*.py")
        for module in imports(path)
        if module not in sys.stdlib_module_names | {"dgemma"}
        and not {canonical(found) for found in distributions.get(module, [])} & allowed
    }
    assert missing == set()


def closure(requirements: list[str]) -> set[str]:
    """The names of installed distributions that these bring, extras included."""
    found: set[str] = set()
    waiting = requirement_names(requirements)
    while waiting:
        name = waiting.pop()
        try:
            more = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        plain = [text for text in more if "extra ==" not in text or name == "tritonclient"]
        waiting |= requirement_names(plain) - found
    return found


# Which way imports point


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_dgemma_imports_neither_the_builder_nor_tests(path: Path) -> None:
    assert not imports(path) & {"dgemma_build", "dgemma_loadtest", "tests"}


@pytest.mark.parametrize("directory", ["build/dgemma_build", "model_repository"])
def test_nothing_imports_tests(directory: str) -> None:
    paths = list((REPOSITORY / directory).rglob("*.py"))
    assert paths
    assert {path.name for path in paths if imports(path) & {"tests", "pytest"}} == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b", {"a"}),
        ("from a.b import c", {"a"}),
        ("def f():\n    from a import b", {"a"}),
        ("from . import a", set()),
        ("import importlib\nimportlib.import_module('a.b')", {"a", "importlib"}),
    ],
)
def test_imports_are_seen_wherever_they_are(
    source: str, expected: set[str], tmp_path: Path
) -> None:
    file = tmp_path / "module.py"
    file.write_text(source)
    assert imports(file) == expected


def imports(path: Path) -> set[str]:
    """The top-level names of all modules that a file imports, inside functions too."""
    return set(_imported(ast.walk(ast.parse(path.read_text()))))


def top_level_imports(path: Path) -> set[str]:
    """Those that are imported when the file is."""
    return set(_imported(iter(ast.parse(path.read_text()).body)))


def _imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        match node:
            case ast.Import(names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(str(module), _, 0):
                yield module.partition(".")[0]
            case ast.Call(
                ast.Attribute(_, "import_module") | ast.Name("import_module" | "__import__"),
                [ast.Constant(str(name)), *_],
            ):
                yield name.partition(".")[0]


def file_of(module: str) -> Path:
    path = PACKAGE.parent / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
