"""The layout of the code: who may import whom, and which test covers which module."""

import ast
import json
import pathlib
import subprocess
import sys

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
    "flanx.compare": ("flanx.train", "flanx.plan", "flanx.sweep", "flanx.api", "flanx.models"),
    "flanx.evals": ("flanx.compare", "flanx.train", "flanx.plan", "flanx.sweep"),
    "flanx.plan": ("flanx.train", "flanx.sweep", "flanx.evals"),
    "flanx.convert": ("flanx.train", "flanx.sweep", "flanx.plan", "flanx.evals"),
    "flanx.laws": ("flanx.data", "flanx.models", "flanx.train", "flanx.plan", "flanx.sweep"),
    "flanx.launch": ("flanx.train", "flanx.sweep", "flanx.evals", "flanx.data", "flanx.models", "flanx.decoding"),
    "flanx.web": ("flanx.data", "flanx.models", "flanx.evals", "flanx.decoding", "flanx.predictor"),
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
    # flanx.seqio holds what needs SeqIO or TFDS, and is called for that; flanx itself names its API, imported late
    arrows = {(a, b) for a, b in arrows if b != "flanx.seqio" and a != "flanx"}
    both = sorted((a, b) for a, b in arrows if (b, a) in arrows and a < b)
    assert not both


# modules without a test file of their name -> the files that test them
TESTED_IN = {
    "cli.gin_flags": "test_cli_main",
    "cli.track": "test_tracker",
    "compare.result_table": "test_preference_page test_cli_compare",
    "convert.adapter_merge": "test_lora",
    "convert.architecture": "test_api",
    "convert.conversion": "test_cli_convert",
    "convert.flanx_format": "test_convert_t5x test_cli_convert",
    "convert.formats": "test_cli_convert test_storage",
    "convert.logit_parity": "test_cli_convert test_convert_hf",
    "convert.orbax_item": "test_convert_t5x",
    "convert.safetensor": "test_convert_hf",
    "convert.t5_shapes": "test_convert_hf test_convert_t5x",
    "convert.torch_bin": "test_convert_hf",
    "convert.zarr": "test_convert_t5x",
    "coordination": "test_cluster",
    "data.fetch.checksums": "test_fetch",
    "data.fetch.downloads": "test_fetch",
    "data.fetch.http": "test_fetch",
    "data.fetch.mirrors": "test_fetch",
    "data.fetch.running": "test_fetch",
    "data.importers.flan_export": "test_user_file",
    "data.mixture_stats": "test_cli_store",
    "data.pipeline.features": "test_batches",
    "data.pipeline.prefetch": "test_batches",
    "data.store.assemble": "test_build test_store_format",
    "data.store.build_worker": "test_build",
    "data.store.selection": "test_build",
    "data.store.shard": "test_build test_store_format",
    "data.store.stats": "test_cli_store",
    "data.task.functions": "test_fields test_tables_muffin",
    "data.task.ops": "test_fields",
    "data.task.row": "test_fields",
    "data.task.tables": "test_spec test_collections",
    "data.task.template": "test_render test_prompt_golden",
    "decoding.beam_search": "test_decode",
    "decoding.kv_cache": "test_decode",
    "decoding.length_buckets": "test_decode",
    "decoding.loglikelihood": "test_decode",
    "decoding.slot": "test_decode",
    "errors": "test_cli_main",
    "evals.families.bbh": "test_benchmarks",
    "evals.families.mgsm": "test_benchmarks",
    "evals.families.mmlu": "test_benchmarks",
    "evals.families.tydiqa": "test_benchmarks",
    "evals.families.user_task": "test_seqio_suites",
    "evals.suite_check": "test_families_table",
    "evals.suite_row": "test_families_table",
    "evals.scorers.precomputed": "test_scorer",
    "evals.suite_table": "test_families_table",
    "gin_files": "test_config test_gin",
    "laws.form": "test_fit",
    "launch.backend": "test_lifecycle test_kubernetes",
    "launch.cleanup": "test_lifecycle",
    "launch.estimate": "test_cli_launch",
    "launch.job": "test_target test_cli_launch",
    "launch.program": "test_lifecycle",
    "launch.record": "test_lifecycle test_cli_launch",
    "launch.slurm": "test_lifecycle test_cli_launch",
    "launch.tpu": "test_kubernetes test_cli_launch",
    "launch.tpu_vm": "test_lifecycle test_cli_launch",
    "laws.law": "test_cli_fit test_law_section",
    "laws.published_cell": "test_cli_fit",
    "models.adapter": "test_lora test_kernels",
    "models.find_nonfinite": "test_fault",
    "procedural.draw": "test_procedural",
    "procedural.number": "test_procedural",
    "procedural.operation": "test_procedural",
    "procedural.text": "test_procedural",
    "procedural.world": "test_procedural",
    "reproduction.row": "test_cli_reproduce",
    "reproduction.stage": "test_road",
    "reproduction.table": "test_cli_reproduce",
    "seqio.packages": "test_light",
    "seqio.tfds": "test_download test_tables_muffin",
    "seqio.user_tasks": "test_build",
    "seqio.vocabularies": "test_vocabulary",
    "sweep.label_figures": "test_label_table",
    "sweep.law_cells": "test_law_section",
    "sweep.law_figures": "test_law_section",
}


def test_every_module_has_a_test_file_of_its_name_or_says_where_it_is_tested():
    tests = {file.stem for file in (ROOT / "tests").glob("test_*.py")}
    without = set()
    for module, file in SOURCES.items():
        *packages, name = module.split(".")
        if (
            file.name != "__init__.py"
            and name != "__main__"
            and not {f"test_{name}", f"test_{packages[-1]}_{name}"} & tests
        ):
            without.add(module.removeprefix("flanx."))
    assert without == set(TESTED_IN)
    assert {name for names in TESTED_IN.values() for name in names.split()} <= tests


def test_the_walks_of_a_run_and_of_a_row_stay_short():
    command = [sys.executable, "benchmarks/walk.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    run, row = map(json.loads, done.stdout.splitlines())
    assert run["files"] < 20 and run["functions"] < 200, run
    assert row["files"] < 8 and row["returns"] <= 3, row


def test_no_file_holds_the_marks_of_an_unfinished_merge():
    """Of the text that is read by people, and of the code."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *SOURCES.values(), *(ROOT / "tests").glob("*.py")]
    marked = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if line.startswith(("<<<<<<< ", ">>>>>>> "))
    ]
    assert not marked
