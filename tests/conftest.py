"""What every test shares: eight forced host devices, strict numerics, compiled programs, the place of the real data."""

import atexit
import importlib.util
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import threading

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# LLVM's optimizations are half of the compilation, and the tests' programs run for moments
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8",
     "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"]
)  # fmt: skip
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["FLANX_IMPORTS"] = "tests"  # gin files of the tests bind functions of theirs
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every command that a test starts compiles all of flanx again
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Most of the suite's time would be compilation of the same small programs. The workers and the commands that tests
    # start inherit these; a limit of size makes jax lock the folder.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="flanx-compiled-")
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**31)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a shell runs in the background: tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import jax
import pytest

from flanx.data import vocabulary
from tests import t5_vocabulary

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).resolve().parent.parent
HAS_SEQIO = all(importlib.util.find_spec(name) for name in ("seqio", "tensorflow", "tensorflow_datasets"))
collect_ignore_glob = [] if HAS_SEQIO else ["test_seqio_*.py"]


def pytest_report_header() -> str:
    return (
        ""
        if HAS_SEQIO
        else "no SeqIO, TensorFlow, TFDS here: tests/test_seqio_*.py are left out, others skip what needs them"
    )


def _shared(variable: str, default: str) -> pathlib.Path:
    path = pathlib.Path(os.environ.get(variable, ROOT.parent / "shared" / default))
    if not path.is_dir():
        pytest.skip(f"no {default} at {path}; set {variable} to run this test")
    return path


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of real task and benchmark data (FLANX_DATA_DIR), or a skip that says where it was looked for."""
    return _shared("FLANX_DATA_DIR", "data")


@pytest.fixture(scope="session")
def reference_dir() -> pathlib.Path:
    """The folder of the paper's printed facts (FLANX_REFERENCE_DIR), or a skip that says where it was looked for."""
    return _shared("FLANX_REFERENCE_DIR", "reference")


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
    """The folder of golden runs of the real T5X (FLANX_GOLDEN_DIR), or a skip that says where it was looked for."""
    return _shared("FLANX_GOLDEN_DIR", "golden")


@pytest.fixture(scope="session")
def cases_dir() -> pathlib.Path:
    """The folder of outputs judged by a person (FLANX_CASES_DIR), or a skip that says where it was looked for."""
    return _shared("FLANX_CASES_DIR", "cases")


@pytest.fixture(scope="session")
def bbh_outputs() -> pathlib.Path:
    """The folder code-davinci-002-outputs of suzgunmirac/BIG-Bench-Hard (FLANX_BBH_OUTPUTS), or a skip."""
    folder = os.environ.get("FLANX_BBH_OUTPUTS")
    if not folder:
        pytest.skip("set FLANX_BBH_OUTPUTS to code-davinci-002-outputs of github.com/suzgunmirac/BIG-Bench-Hard")
    return pathlib.Path(folder)


@pytest.fixture(autouse=True)
def imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test lets gin files import ends with the test."""
    monkeypatch.setenv("FLANX_IMPORTS", "tests")


@pytest.fixture(autouse=True)
def leases_end():
    """The lease of a bucket is given back within the test: its thread would renew it in the bucket of the next one."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in set(threading.enumerate()) - before if thread.name == "flanx-lease"]
    for thread in left:
        thread.join(2)  # a renewal that is under way
    assert not any(thread.is_alive() for thread in left), "a lease that was not released"


@pytest.fixture
def program(tmp_path: pathlib.Path) -> tuple[str, ...]:
    """The stand-in for `flanx train`, as sweeps start it."""
    from tests.sweep_maker import STAND_IN

    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    return (sys.executable, str(path))


@pytest.fixture(scope="session")
def t5_like(tmp_path_factory: pytest.TempPathFactory) -> vocabulary.Vocabulary:
    """A small vocabulary like T5's: no line breaks, white space collapsed, NFKC."""
    return vocabulary.load(t5_vocabulary.train(tmp_path_factory.mktemp("t5_like")))
