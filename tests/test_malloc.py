"""Memory that is kept: a program that frees and asks again gets pages that the kernel need not clear."""

import os
import subprocess
import sys

PROGRAM = """
import resource
from flanx import malloc
print(malloc.keep_freed_memory())
def faults(size=1 << 26):
    b"x" * size  # every page is touched, and freed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
"""


def run(**environment: str) -> list[str]:
    env = os.environ | {"PYTHONMALLOC": "malloc"} | environment
    return subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True).stdout.split()


def test_freed_pages_serve_again_where_the_cpu_is_the_only_device():
    kept, faults = run(JAX_PLATFORMS="cpu")
    if kept == "True":  # glibc
        assert int(faults) < 1000  # of 16,384 pages


def test_where_an_accelerator_may_work_nothing_is_changed(monkeypatch):
    from flanx import malloc

    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(malloc.importlib.util, "find_spec", lambda name: name == "libtpu")
    assert malloc.keep_freed_memory() is False
