"""How far a reader walks: the files and functions of flanx that a command runs, in the order of their first call.

    python benchmarks/walk.py              # a training run of three steps; a table row to the text that a model sees
    python benchmarks/walk.py --functions  # the functions too, file by file, as a reader meets them

One JSON object per walk: `files` and `functions` of ours that ran (methods included; lambdas, comprehensions, generated
methods and what runs while a module is imported are not), `lines` of these files, and `returns`: first calls of a
function, made in another file, that come back into a file which was left before. The command line (flanx/cli, config,
settings, errors) is the same in front of every command and is not counted: the walk of a run starts in `train.train`,
with what gin built. The tables of tasks and mixtures (`data/task/tables`) are loaded before,
as their checks are a walk of their own, and looking up what they hold is not counted. The model is the plain one;
`--tuned` takes it with the kernels for a CPU. Taken with `sys.settrace`, in every thread.
"""

import argparse
import contextlib
import io
import itertools
import os
import pathlib
import sys
import tempfile
import threading
import types
from collections.abc import Mapping, Sequence

from record import write as record_line

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import flanx
from flanx.cli.main import main as run_command
from flanx.data.task import tables
from tests import run_case

ROOT = pathlib.Path(flanx.__file__).parent
PREFIX = f"{ROOT}{os.sep}"
NAMES = (f"cli{os.sep}", "config.py", "gin_files.py", "settings.py", "errors.py", "__main__.py")
COMMAND_LINE = tuple(PREFIX + name for name in NAMES)
TABLES = f"{PREFIX}data{os.sep}task{os.sep}tables.py"


class Recorder:
    """The functions under flanx/ that run, in order of their first call: (file, qualified name) -> file of the flanx
    function that called it, or None. From the call of `start` to its return, if given."""

    def __init__(self, start: str) -> None:
        """`start`: a function, as file:name, or ""."""
        self.functions: dict[tuple[str, str], str | None] = {}
        self.start, self.is_on = start, not start
        self.importing = threading.local()

    def __call__(self, frame: types.FrameType, event: str, argument: object) -> "Recorder | None":
        """A trace function (see `sys.settrace`): traces calls and returns of flanx's frames, and nothing of the others,
        which are nearly all."""
        if not frame.f_code.co_filename.startswith(PREFIX):
            return None
        frame.f_trace_lines = False
        self.record(frame, event)
        return self

    def record(self, frame: types.FrameType, event: str) -> None:
        code = frame.f_code
        if event not in ("call", "return"):
            return
        if code.co_name == "<module>":
            depth = getattr(self.importing, "depth", 0)
            self.importing.depth = depth + (1 if event == "call" else -1)
            return
        if code.co_name.startswith("<") or getattr(self.importing, "depth", 0):
            return
        file = own_file(frame)
        if self.start == f"{file}:{code.co_qualname}":
            self.is_on = event == "call"
        if file is not None and event == "call" and self.is_on and (file, code.co_qualname) not in self.functions:
            caller = frame.f_back
            while caller is not None and own_file(caller) is None:
                caller = caller.f_back
            self.functions[file, code.co_qualname] = own_file(caller) if caller is not None else None


def own_file(frame: types.FrameType) -> str | None:
    """The file of a frame below flanx/, or None for a frame of another package, the command line or the tables."""
    path = frame.f_code.co_filename
    if not path.startswith(PREFIX) or path.startswith(COMMAND_LINE) or path == TABLES:
        return None
    return path[len(PREFIX) :]


def record(argv: Sequence[str], start: str) -> dict[tuple[str, str], str | None]:
    """Runs a flanx command with its output suppressed; returns which of our functions ran."""
    recorder = Recorder(start)
    threading.settrace(recorder)
    sys.settrace(recorder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            status = run_command(list(argv))
    finally:
        sys.settrace(None)
        threading.settrace(None)
    if status:
        raise SystemExit(f"flanx {' '.join(argv)} ended with {status}")
    return recorder.functions


def summary(walk: str, functions: Mapping[tuple[str, str], str | None]) -> dict[str, object]:
    """The counts of a walk."""
    visited: set[str] = set()
    returns = 0
    for (file, _), caller in functions.items():
        returns += file in visited and caller != file
        visited.add(file)
    lines = sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in visited)
    return {"walk": walk, "files": len(visited), "functions": len(functions), "lines": lines, "returns": returns}


def train(folder: pathlib.Path, kernels: str) -> list[str]:
    """`flanx train`: three steps of a one-layer T5 on a store of one task."""
    command = run_case.command(folder / "run", TRAIN_STEPS=3, CHECKPOINT_PERIOD=3)
    return [*command[command.index("train") :], f"--gin.t5.T5.kernels='{kernels}'"]


def row(folder: pathlib.Path, kernels: str) -> list[str]:
    """`flanx tasks show`: three few-shot examples of a chain-of-thought task, from synthetic rows."""
    (folder / "cot").mkdir()
    rows = "".join(f"How many is {i} and {i}?\t{2 * i}\tAdd {i} to itself.\n" for i in range(40))
    (folder / "cot" / "gsm8k_train.tsv").write_text(rows, encoding="utf-8")
    return ["tasks", "show", "cot_gsm8k", "--style", "fsopt", "--data_dir", str(folder)]


# walk -> (its command, where it starts, what is counted: for a row, the package that renders it, without the command's
# token counts)
WALKS = {"train": (train, "train.py:train", ""), "row": (row, "data/task/render.py:render_rows", "data/task/")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("walks", nargs="*", default=list(WALKS), help=f"some of {', '.join(WALKS)}")
    parser.add_argument("--functions", action="store_true", help="print the functions in the order of their first call")
    parser.add_argument("--tuned", action="store_true", help="a model with the kernels for a CPU")
    parser.add_argument("--quick", action="store_true", help="as every benchmark has it: the row's walk alone")
    args = parser.parse_args()
    for walk in ["row"] if args.quick else args.walks:
        with tempfile.TemporaryDirectory() as folder:
            command, start, counted = WALKS[walk]
            argv = command(pathlib.Path(folder), "tuned" if args.tuned else "plain")
            tables.load()
            tables.load_mixtures()
            functions = {f: caller for f, caller in record(argv, start).items() if f[0].startswith(counted)}
        found = summary(walk, functions)
        record_line({"benchmark": "walk", "metric": walk, "value": found["functions"], "unit": "functions", **found})
        if args.functions:
            for file, names in itertools.groupby(functions, key=lambda function: function[0]):
                print(f"  {file}: {', '.join(name for _, name in names)}")


if __name__ == "__main__":
    main()
