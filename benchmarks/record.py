"""The lines of JSON that benchmarks print, each with the machine that it was measured on and what else ran there.

`write(line)` adds `machine` (processor, instruction sets, cores, cache), `versions` and `load` (the share of all
processor time since the line before that other processes took, and the load average). A `ratio` is not claimed where
that share was above a tenth, or is not known: it is null then, and `refused` says why.
"""

import contextlib
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

MOST = 0.1  # share of all processor time used by other processes
# the flags in /proc/cpuinfo that determine which kernels a matrix library uses
INSTRUCTION_SETS = re.compile(
    r"avx2|avx512(f|_bf16|_vnni|_fp16)|avx_vnni|amx_(tile|bf16|int8|fp16)|asimd|sve2?|bf16|i8mm"
)
PACKAGES = ("flanx", "jax", "jaxlib", "numpy", "torch", "transformers", "ctranslate2", "lm_eval")


@functools.cache
def machine() -> dict[str, Any]:
    """Processor, instruction sets, cores of this process, bytes of the last-level cache."""
    text = _read("/proc/cpuinfo")
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    cache = os.sysconf("SC_LEVEL3_CACHE_SIZE") if "SC_LEVEL3_CACHE_SIZE" in names else 0
    family = f" family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
    return {
        "processor": (fields.get("model name") or platform.processor() or platform.machine()) + family,
        "instruction_sets": sorted(
            flag
            for flag in (fields.get("flags") or fields.get("Features") or "").split()
            if INSTRUCTION_SETS.fullmatch(flag)
        ),
        "cores": cores(),
        "last_cache_bytes": max(cache, 0),
    }


def cores() -> int:
    """The machine's number of processors, as counted in `/proc/stat`."""
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that the program has imported."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        if name in sys.modules:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a stand-in, or a file of that name
                found[name] = importlib.metadata.version(name)
    return found


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def _busy() -> float | None:
    """Non-idle seconds of all processors since boot; None if the system does not report them."""
    first = _read("/proc/stat").partition("\n")[0].split()
    if len(first) < 9:
        return None
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, first[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """Processor seconds of this process and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


class Watch:
    """Measures what other processes do on the machine from now on."""

    def __init__(self) -> None:
        self._time, self._busy, self._own = time.monotonic(), _busy(), _own()

    def others(self) -> float | None:
        """Their share of all processor time; None if the system does not report it. Restarts the measurement."""
        before, busy, own, now = (self._time, self._busy, self._own), _busy(), _own(), time.monotonic()
        self._time, self._busy, self._own = now, busy, own
        if busy is None or before[1] is None or now - before[0] < 0.1:  # the clock of /proc/stat ticks in hundredths
            return None
        return max(0.0, (busy - before[1] - (own - before[2])) / ((now - before[0]) * cores()))


_watch = Watch()


def write(line: Mapping[str, Any]) -> None:
    """Prints a line; its measurement covers this process since the previous line, or since this module's import."""
    print(json.dumps(judged(line, _watch.others())), flush=True)


def judged(line: Mapping[str, Any], others: float | None) -> dict[str, Any]:
    """The line with machine and load, without its ratio if `others` used too much."""
    average = [round(each, 2) for each in os.getloadavg()]
    load = {"others": None if others is None else round(others, 3), "average": average}
    found = {**line, "machine": machine(), "versions": versions(), "load": load}
    if found.get("ratio") is not None and (others is None or others > MOST):
        taken = "an unknown share" if others is None else f"{others:.0%}"
        found |= {"ratio": None, "refused": f"other processes took {taken} of the processors: no ratio"}
    return found
