"""The layout of the code: who may import whom, and which test covers which module."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "flanx").rglob("*.py"))
    if "gin" not in file.parts
}
# package -> the packages and modules of flanx that it may not import, at the top or inside functions
FORBIDDEN = {
    "flanx.data.task": ("flanx.data.store", "flanx.data.pipeline", "flanx.data.fetch", "flanx.evals", "flanx.train"),
    "flanx.data.store": ("flanx.data.pipeline", "flanx.evals", "flanx.train", "flanx.models"),
    "flanx.data.pipeline": ("flanx.evals", "flanx.train", "flanx.models", "flanx.data.fetch"),
    "flanx.models": ("flanx.data", "flanx.train", "flanx.decoding", "flanx.evals", "flanx.plan", "flanx.sweep"),
    "flanx.decoding": ("flanx.data", "flanx.train", "flanx.evals", "flanx.plan", "flanx.sweep"),
    "flanx.evals": ("flanx.train", "flanx.plan", "flanx.sweep"),
    "flanx.plan": ("flanx.train", "flanx.sweep", "flanx.evals"),
    "flanx.convert": ("flanx.train", "flanx.sweep", "flanx.plan", "flanx.evals"),
    "flanx.procedural": ("flanx.data", "flanx.evals", "flanx.train", "flanx.models"),
}
HEAVY = ("seqio", "tensorflow", "tensorflow_datasets", "t5x")  # of flanx.seqio alone


def imports(file: pathlib.Path) -> set[str]:
    """Every module that a file imports, wherever in it; `from a import b` gives "a" and "a.b"."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_nothing_imports_the_command_line():
    for module, file in SOURCES.items():
        if not inside(module, "flanx.cli") and module != "flanx.__main__":
            assert not any(inside(name, "flanx.cli") for name in imports(file)), module


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_import_runs_back_up(package):
    members = {module: file for module, file in SOURCES.items() if inside(module, package)}
    assert members
    for module, file in members.items():
        wrong = [name for name in imports(file) for above in FORBIDDEN[package] if inside(name, above)]
        assert not wrong, (module, wrong)


def test_only_the_seqio_package_imports_seqio_and_tensorflow():
    for module, file in SOURCES.items():
        if not inside(module, "flanx.seqio"):
            assert not {name.partition(".")[0] for name in imports(file)} & set(HEAVY), module


def test_packages_import_one_another_in_one_direction():
    """Packages of flanx, data's own packages counted apart: if a imports b, b does not import a."""

    def package(module: str) -> str:
        return ".".join(module.split(".")[: 3 if module.startswith("flanx.data.") else 2])

    arrows = {
        (package(module), package(name))
        for module, file in SOURCES.items()
        for name in imports(file)
        if name in SOURCES and package(module) != package(name)
    }
    arrows = {
        (a, b) for a, b in arrows if b != "flanx.seqio"
    }  # it holds what needs SeqIO or TFDS, and is called for that
    both = sorted((a, b) for a, b in arrows if (b, a) in arrows and a < b)
    assert not both
