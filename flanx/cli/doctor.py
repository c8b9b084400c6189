"""`flanx doctor`: what this machine has for flanx, and what prevents a run."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from flanx import hub
from flanx.cli import gin_flags
from flanx.cli.table import print_table
from flanx.data import store, vocabulary
from flanx.errors import UserError
from flanx.settings import COUNT, flag, path_flag

GOOD, NOTE, BAD = "ok", "note", "bad"
# signs of an accelerator that need no jax: platform -> (device files, environment variables)
SIGNS = {
    "tpu": (("/dev/accel0",), ("TPU_WORKER_ID", "TPU_NAME")),
    "gpu": (("/dev/nvidia0",), ()),
}
EXTRAS = {"tpu": "jax[tpu]", "gpu": "jax[cuda13]"}
GIVEN = {
    "vocabulary": 'a vocabulary to load: "byte" or a SentencePiece model',
    "data_dir": "the folder of tasks and benchmarks (FLANX_DATA_DIR)",
    "store_dir": "a store to open",
}
MEMORY = "memory of the run"
SPARE_GB = 5  # a run of the smallest sizes with its store and checkpoints


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: the subject, its state (ok, note, bad), what was seen, and the repair of a bad one."""

    subject: str
    state: str
    seen: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("--expect", choices=("cpu", "gpu", "tpu"), help="the platform that jax must run on")
    parser.add_argument("--devices", type=flag(int, COUNT), metavar="N", help="the number of devices that jax must see")
    for given, what in GIVEN.items():
        parser.add_argument(f"--{given}", type=path_flag, metavar="PATH", help=what)
    gin_flags.add_gin_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the findings; 1 where one is bad. Raises UserError for a path that is given and is not there."""
    for given in GIVEN:
        path, what = getattr(args, given), "file" if given == "vocabulary" else "folder"
        is_there = os.path.exists if what == "file" else os.path.isdir
        if path is None or path == "byte" or "://" in path or path.startswith(hub.PREFIX):
            continue
        if not is_there(path):
            raise UserError(f"--{given}={path}: no such {what}; give one that is there")
    findings = [
        *versions(),
        *devices(args.expect, args.devices),
        *machine(),
        *data(args.data_dir or os.environ.get("FLANX_DATA_DIR"), args.vocabulary, args.store_dir),
    ]
    if args.gin_file:
        findings.append(memory(args.gin_file, args.bindings, [p for p in args.gin_search_paths.split(",") if p]))
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        rows = [(finding.state, finding.subject, finding.seen) for finding in findings]
        print_table(("state", "subject", "seen"), rows, left=("subject", "seen"), header=False)
    return 1 if any(finding.state == BAD for finding in findings) else 0


def versions() -> Iterator[Finding]:
    """Python, and every package that flanx requires, compared with its minimum version."""
    yield Finding(
        "python", GOOD if sys.version_info >= (3, 11) else BAD, f"{platform.python_version()} (3.11 or newer)"
    )
    for line in importlib.metadata.requires("flanx") or []:
        match = re.match(r"([\w.-]+)\s*(?:>=([\w.]+))?[^;]*(;.*extra ==.*)?", line)
        assert match is not None  # a requirement begins with a name
        name, least, extra = match[1], match[2], match[3]
        try:
            has = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if not extra:
                yield Finding(name, BAD, f"absent; pip install '{name}>={least}'")
            continue
        wanted = f" ({least} or newer)" if least else ""
        of = f" for the extra {extra.rpartition('==')[2].strip()}" if extra else ""
        if least and _numbers(has) < _numbers(least):
            yield Finding(name, NOTE if extra else BAD, f"{has} is too old{of}; pip install '{name}>={least}'")
        elif not extra:
            yield Finding(name, GOOD, has + wanted)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def devices(expected: str | None, count: int | None) -> Iterator[Finding]:
    """What jax runs on. Bad where the machine has an accelerator, or one is expected, and jax does not use it."""
    there = [name for name, signs in SIGNS.items() if _shows(*signs)]
    try:
        import jax  # noqa: PLC0415  (only once the packages are reported)

        found = jax.devices()
    except RuntimeError as error:  # a platform named in JAX_PLATFORMS that does not start
        yield Finding("devices", BAD, f"jax does not start: {str(error).splitlines()[0]}")
        return
    platform_name = found[0].platform
    seen = f"{len(found)} x {found[0].device_kind} ({platform_name})"
    forced = os.environ.get("JAX_PLATFORMS")
    missed = expected if expected and expected != platform_name else None
    if missed is None and platform_name == "cpu" and not forced and there:
        missed = there[0]
    if missed:
        why = f"JAX_PLATFORMS={forced} is set" if forced else f"pip install {EXTRAS.get(missed, 'jax')!r}"
        yield Finding("devices", BAD, f"{seen}, not {missed}: {why}")
    elif count is not None and len(found) != count:
        yield Finding(
            "devices", BAD, f"{seen}, not {count}: has every host started, does another process hold a device?"
        )
    else:
        yield Finding("devices", GOOD, seen)
    yield from _step(found[0])


def _shows(files: tuple[str, ...], variables: tuple[str, ...]) -> bool:
    return any(os.path.exists(file) for file in files) or any(name in os.environ for name in variables)


def _step(device: Any) -> Iterator[Finding]:
    """A matrix product on the device, checked against its known value."""
    import jax  # noqa: PLC0415  (see `devices`)
    import jax.numpy as jnp  # noqa: PLC0415

    size = 512
    ones = jax.device_put(jnp.ones((size, size), jnp.bfloat16), device)
    product = jax.jit(lambda a: jnp.einsum("ij,jk->ik", a, a, preferred_element_type=jnp.float32))(ones)
    right = bool((product == size).all())
    yield Finding(
        "matrix product", GOOD if right else BAD, f"{size} x {size}, bfloat16: {'right' if right else 'wrong'}"
    )


def machine() -> Iterator[Finding]:
    """Cores, memory, disk, and whether the current folder can be written."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield Finding("machine", GOOD, f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB memory")
    free = shutil.disk_usage(".").free / 1e9
    yield Finding("disk", GOOD if free > SPARE_GB else BAD, f"{free:.0f} GB free here (a small run needs {SPARE_GB})")
    writable = os.access(".", os.W_OK)
    yield Finding(
        "this folder", GOOD if writable else BAD, "can be written" if writable else "cannot be written: OUT_DIR"
    )


def memory(gin_files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str]) -> Finding:
    """What a training of these gin files takes of each device here, from shapes alone, as `flanx plan --estimate`."""
    import jax  # noqa: PLC0415  (see `devices`)

    from flanx import trainable  # noqa: PLC0415
    from flanx.plan import cost_model, mesh_layout, planned_run  # noqa: PLC0415

    run, found = planned_run.read(gin_files, bindings, search_paths).scanned(), jax.devices()
    is_auto, count = run.partitioner.num_partitions == "auto", len(found)
    model = 1 if is_auto else int(run.partitioner.num_partitions)
    rows = run.batch_size // run.trainer.num_microbatches
    if count % model or rows % (count // model):
        uneven = f"{rows} rows do not divide over {count} devices with NUM_PARTITIONS {model}; bind another BATCH_SIZE"
        return Finding(MEMORY, BAD, uneven)
    layout = mesh_layout.MeshLayout(1, count // model, model, "fsdp" if is_auto else "(1, 1)")
    cost = cost_model.cost(cost_model.trace(run, tpu=found[0].platform == "tpu"), layout)
    has = _memory(found[0], count)
    names = ("params", "optimizer", "gradients", "activations")
    parts = ", ".join(f"{name} {getattr(cost, name) / 1e9:.3f}" for name in names)
    seen = f"{cost.hbm / 1e9:.3f} of {has / 1e9:.3f} GB a device, by shapes alone ({parts})"
    if run.trainer.patterns:
        seen += f"; {trainable.describe(run.trainer.patterns, jax.eval_shape(run.trainer.init).params)}"
    fits = cost.hbm <= has
    return Finding(MEMORY, GOOD if fits else BAD, seen + ("" if fits else "; `flanx plan` says what it would fit"))


def _memory(device: Any, count: int) -> float:
    """Bytes that each of `count` devices may use: its own, or a part of the machine's, as on a CPU."""
    own = (device.memory_stats() or {}).get("bytes_limit")
    return own or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / count


def data(folder: str | None, vocabulary_name: str | None, store_dir: str | None) -> Iterator[Finding]:
    """The data folder, the vocabulary, the store; each only where it is given."""
    if folder is None:
        yield Finding("data", NOTE, "no folder given (--data_dir or FLANX_DATA_DIR); the demo needs none")
    else:
        there = sorted(path.name for path in pathlib.Path(folder).glob("*"))
        yield Finding("data", GOOD if there else BAD, f"{folder}: {', '.join(there) or 'empty or missing'}")
    for subject, name, look in (("vocabulary", vocabulary_name, _vocabulary), ("store", store_dir, _store)):
        if name is not None:
            try:
                yield Finding(subject, GOOD, f"{name}: {look(name)}")
            except UserError as error:
                yield Finding(subject, BAD, str(error))


def _vocabulary(name: str) -> str:
    loaded = vocabulary.load(name)
    return f"{loaded.size:,} pieces, fingerprint {loaded.fingerprint}"


def _store(path: str) -> str:
    return f"{len(store.open_store(path).tasks):,} tasks; `flanx store verify` reads every byte"
