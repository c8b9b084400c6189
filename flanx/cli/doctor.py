"""`flanx doctor`: what this machine has for flanx, and what prevents a run."""

import argparse
import contextlib
import dataclasses
import glob
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from flanx import cluster, folder_check, hub
from flanx.cli import gin_flags
from flanx.cli.table import print_table
from flanx.data import store, vocabulary
from flanx.errors import UserError
from flanx.settings import COUNT, flag, path_flag

GOOD, NOTE, BAD = "ok", "note", "bad"
# signs of an accelerator that can be checked without jax: platform -> (device files, environment variables)
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
MEMORY, RECIPE = "memory of the run", "gin files"
CLOCK_S = 5.0  # maximum clock difference: requests to buckets are signed with the time, and logs compare it
# packages whose requirements pin an accelerator's libraries, and the names of those extras
HOLDERS = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-cuda12-pjrt", "jax-cuda13-pjrt")
HELD = ("", "tpu", "cuda12", "cuda13", "with-cuda")  # their extras
# oldest driver for a CUDA release (docs.nvidia.com/deploy/cuda-compatibility: minor version compatibility)
DRIVERS = {"12": 525, "13": 580}
TPU_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")  # device files of a TPU VM's chips on Linux
DRIVER_FILE = "/proc/driver/nvidia/version"
SPARE_GB = 5  # enough for a run of the smallest sizes with its store and checkpoints


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: the subject, its state (ok, note, bad), what was found, and how to fix a bad one."""

    subject: str
    state: str
    seen: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("--expect", choices=("cpu", "gpu", "tpu"), help="the platform that jax must run on")
    parser.add_argument("--devices", type=flag(int, COUNT), metavar="N", help="the number of devices that jax must see")
    for given, what in GIVEN.items():
        parser.add_argument(f"--{given}", type=path_flag, metavar="PATH", help=what)
    parser.add_argument("--model_dir", type=path_flag, metavar="PATH", help="a folder or bucket that runs write to")
    gin_flags.add_gin_arguments(parser)
    cluster.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the findings; 1 if any is bad. Raises UserError for a given path that does not exist."""
    for given in GIVEN:
        path, what = getattr(args, given), "file" if given == "vocabulary" else "folder"
        is_there = os.path.exists if what == "file" else os.path.isdir
        if path is None or path == "byte" or "://" in path or path.startswith(hub.PREFIX):
            continue
        if not is_there(path):
            raise UserError(f"--{given}={path}: no such {what}; give one that is there")
    findings = [
        *hosts(args),  # first: JAX joins processes before it initializes devices
        *versions(),
        *libraries(),
        *devices(args.expect, args.devices),
        *machine(),
        hub_token(),
        *data(args.data_dir or os.environ.get("FLANX_DATA_DIR"), args.vocabulary, args.store_dir),
    ]
    if args.model_dir:
        findings += [
            Finding(f"{operation}, {args.model_dir}", BAD if problem else GOOD, problem or "done")
            for operation, problem in folder_check.check(args.model_dir)
        ]
    if args.gin_file:
        try:
            findings += planned(args.gin_file, args.bindings, [p for p in args.gin_search_paths.split(",") if p])
        except (UserError, RuntimeError) as error:  # the latter if jax does not start; --json prints JSON in any case
            findings.append(Finding(RECIPE, BAD, str(error)))
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        rows = [(finding.state, finding.subject, finding.seen) for finding in findings]
        print_table(("state", "subject", "seen"), rows, left=("subject", "seen"), header=False)
    return 1 if any(finding.state == BAD for finding in findings) else 0


def versions() -> Iterator[Finding]:
    """Checks Python and every package that flanx requires against their minimum versions."""
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


def libraries() -> Iterator[Finding]:
    """Whether the installed accelerator libraries are those that jax and its plugins require, and whether the driver
    supports them."""
    from packaging.requirements import Requirement  # noqa: PLC0415  (tensorboard's)

    installed = {(each.metadata["Name"] or "").lower(): each.version for each in importlib.metadata.distributions()}
    found = {name: version for name, version in installed.items() if cluster.OF_ACCELERATORS.fullmatch(name)}
    for holder in HOLDERS:
        for line in importlib.metadata.requires(holder) or [] if holder in installed else ():
            wanted = Requirement(line)
            version = installed.get(wanted.name.lower())
            is_of_it = wanted.name == "jaxlib" or wanted.name.lower() in found
            is_of_it &= wanted.marker is None or any(wanted.marker.evaluate({"extra": each}) for each in HELD)
            if version and is_of_it and not wanted.specifier.contains(version, prereleases=True):
                of = f"{holder} {installed[holder]} requires {wanted.name}{wanted.specifier}"
                # without a TPU, libtpu only serves as the compiler of `flanx plan`, for which other versions work too
                state = NOTE if wanted.name == "libtpu" and not any(map(glob.glob, TPU_DEVICES)) else BAD
                yield Finding(wanted.name, state, f"{version}, but {of}; pip install '{wanted.name}{wanted.specifier}'")
    releases = sorted({match[1] for name in found if (match := re.match(r"jax-cuda(\d+)-plugin", name))})
    if len(releases) > 1:
        yield Finding("CUDA", BAD, f"plugins for CUDA {' and '.join(releases)}; pip uninstall those of one")
    driver = _driver()
    for release in releases:
        if driver and driver < DRIVERS.get(release, 0):
            least = f"CUDA {release} takes {DRIVERS[release]} or newer"
            yield Finding("NVIDIA driver", BAD, f"{driver}, but {least}; update it, or install jax[cuda12]")
    if found:
        yield Finding("libraries", GOOD, ", ".join(f"{name} {version}" for name, version in sorted(found.items())))


def _driver() -> int | None:
    """The major version of the NVIDIA driver."""
    try:
        match = re.search(r"Kernel Module.*?\s(\d+)\.", pathlib.Path(DRIVER_FILE).read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(match[1]) if match else None


def hosts(args: argparse.Namespace) -> Iterator[Finding]:
    """If the command runs on several hosts, like a training: all present, same versions and devices, clocks in sync."""
    if cluster.locate(args) is None:
        return
    try:
        with cluster.joined(args, ""):
            cluster.barrier("clocks")
            every = cluster.gather({"time": time.time()})
    except UserError as error:
        yield Finding("hosts", BAD, str(error))
        return
    names = [each["host"] for each in every]
    yield Finding("hosts", GOOD, f"{len(every)} processes agree: {', '.join(names[:8])}{' ...' * (len(every) > 8)}")
    clocks = [float(each["time"]) for each in every]
    middle = statistics.median(clocks)
    off = max(range(len(clocks)), key=lambda i: abs(clocks[i] - middle))
    skew = clocks[off] - middle
    seen = f"they differ by {max(clocks) - min(clocks):.2f} s at most"
    bad = f"process {off} ({names[off]}) is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}: set it by NTP"
    yield Finding("clocks", GOOD if abs(skew) <= CLOCK_S else BAD, seen if abs(skew) <= CLOCK_S else bad)


def hub_token() -> Finding:
    """Whether there is a Hugging Face hub token; it is not printed."""
    try:
        from huggingface_hub import get_token  # noqa: PLC0415  (an extra)
    except ImportError:
        return Finding("hub token", NOTE, "huggingface_hub is not installed: pip install 'flanx[hf]'")
    if get_token():
        return Finding("hub token", GOOD, "there is one")
    return Finding("hub token", NOTE, "none: for gated models and `flanx push` set HF_TOKEN, or `hf auth login`")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def devices(expected: str | None, count: int | None) -> Iterator[Finding]:
    """What jax runs on. Bad if the machine has an accelerator, or one is expected, and jax does not use it."""
    there = [name for name, signs in SIGNS.items() if _shows(*signs)]
    try:
        import jax  # noqa: PLC0415  (only after the packages are reported)

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
    yield from _step(jax.local_devices()[0])


def _shows(files: tuple[str, ...], variables: tuple[str, ...]) -> bool:
    return any(os.path.exists(file) for file in files) or any(name in os.environ for name in variables)


def _step(device: Any) -> Iterator[Finding]:
    """Runs a matrix product on the device and checks it against the known value."""
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
    """Cores, memory, disk, whether the current folder is writable, and its file system's clock."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield Finding("machine", GOOD, f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB memory")
    free = shutil.disk_usage(".").free / 1e9
    yield Finding("disk", GOOD if free > SPARE_GB else BAD, f"{free:.0f} GB free here (a small run needs {SPARE_GB})")
    writable = os.access(".", os.W_OK)
    yield Finding(
        "this folder", GOOD if writable else BAD, "can be written" if writable else "cannot be written: OUT_DIR"
    )
    if writable and (skew := _skew()) is not None:  # a full disk has been reported
        ahead = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's: set both by NTP"
        seen = "its file system's is this machine's" if abs(skew) <= CLOCK_S else f"its file system's is {ahead}"
        yield Finding("clock", GOOD if abs(skew) <= CLOCK_S else BAD, seen)


def _skew() -> float | None:
    """Seconds by which this folder's file system clock is ahead, as a remote one may be; None if no file can be
    created."""
    try:
        with tempfile.NamedTemporaryFile(dir=".") as file:
            return os.stat(file.name).st_mtime - time.time()
    except OSError:
        return None


def planned(gin_files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str]) -> Iterator[Finding]:
    """What training with these gin files needs on each device, estimated from shapes as in `flanx plan --estimate`, and
    of free host memory and disk."""
    import jax  # noqa: PLC0415  (see `devices`)

    from flanx import trainable  # noqa: PLC0415
    from flanx.plan import cost_model, mesh_layout, planned_run  # noqa: PLC0415

    run, found = planned_run.read(gin_files, bindings, search_paths).scanned(), jax.devices()
    is_auto, count = run.partitioner.num_partitions == "auto", len(found)
    model = 1 if is_auto else int(run.partitioner.num_partitions)
    rows = run.batch_size // run.trainer.num_microbatches
    if count % model or rows % (count // model):
        uneven = f"{rows} rows do not divide over {count} devices with NUM_PARTITIONS {model}; bind another BATCH_SIZE"
        yield Finding(MEMORY, BAD, uneven)
        return
    layout = mesh_layout.MeshLayout(1, count // model, model, "fsdp" if is_auto else "(1, 1)")
    cost = cost_model.cost(cost_model.trace(run, tpu=found[0].platform == "tpu"), layout)
    has = _memory(found[0], count)
    names = ("params", "optimizer", "gradients", "activations")
    parts = ", ".join(f"{name} {getattr(cost, name) / 1e9:.3f}" for name in names)
    seen = f"{cost.hbm / 1e9:.3f} of {has / 1e9:.3f} GB a device, by shapes alone ({parts})"
    if run.trainer.patterns:
        seen += f"; {trainable.describe(run.trainer.patterns, jax.eval_shape(run.trainer.init).params)}"
    fits = cost.hbm <= has
    yield Finding(MEMORY, GOOD if fits else BAD, seen + ("" if fits else "; `flanx plan` says what it would fit"))
    # a save copies the state to host memory; on a CPU the whole run is there
    local, is_cpu = jax.local_device_count(), found[0].platform == "cpu"
    copied = (cost.params + cost.optimizer) * local
    yield _room("free memory", copied + (cost.hbm * local if is_cpu else 0.0), _free_memory(), "the run and a save")
    state = jax.eval_shape(run.trainer.init)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.opt_state)))
    yield from _disk(float(size), run.train_steps)


def _disk(size: float, train_steps: int) -> Iterator[Finding]:
    """Disk space for a run's checkpoints, of `size` bytes each, if its folder is local."""
    from flanx import config  # noqa: PLC0415  (gin)
    from flanx.checkpoint import SaveCheckpointConfig  # noqa: PLC0415  (jax)
    from flanx.plan.planned_run import TRAIN  # noqa: PLC0415

    kept = config.parameter(TRAIN, "checkpoints") or SaveCheckpointConfig()
    folder: str | None = None
    with contextlib.suppress(UserError):  # planning does not require one
        folder = config.parameter(TRAIN, "model_dir")
    if not isinstance(folder, str) or "://" in folder:
        return
    newest = train_steps // kept.period if kept.keep is None else kept.keep
    for_good = train_steps // kept.keep_period if kept.keep_period else 0
    path = pathlib.Path(folder).absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    what = f"{newest + for_good + 1:,} checkpoints in {there}"  # a new one is complete before an old one is deleted
    yield _room("free disk", size * (newest + for_good + 1), float(shutil.disk_usage(there).free), what)


def _room(subject: str, needs: float, has: float, what: str) -> Finding:
    seen = f"{what} take {needs / 1e9:.2f} of {has / 1e9:.1f} GB"
    return Finding(subject, GOOD if needs <= has else BAD, seen + ("" if needs <= has else ": make room"))


def _free_memory() -> float:
    """Bytes that programs can allocate without swapping."""
    try:
        match = re.search(r"MemAvailable:\s+(\d+) kB", pathlib.Path("/proc/meminfo").read_text(encoding="utf-8"))
    except OSError:
        match = None
    return 1024.0 * int(match[1]) if match else float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _memory(device: Any, count: int) -> float:
    """Bytes that each of `count` devices may use: its own memory, or a share of the machine's, as on a CPU."""
    own = (device.memory_stats() or {}).get("bytes_limit")
    return own or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / count


def data(folder: str | None, vocabulary_name: str | None, store_dir: str | None) -> Iterator[Finding]:
    """The data folder, the vocabulary and the store, each only if given."""
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
