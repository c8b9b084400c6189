"""Traces some steps for xprof, TensorBoard's profiler: what the devices and the host did, and when.

Every process writes one file, <run>/tensorboard/plugins/profile/<time>/<host>.xplane.pb.
"""

import pathlib
import re
from collections.abc import Callable, Generator
from typing import Any

import jax

from flanx import files
from flanx.errors import UserError


def steps_of(text: str, last: int) -> range:
    """The steps of "10:13" (10, 11, 12 and 13) or "10". Raises UserError if they are not within 1, ..., `last`."""
    found = re.fullmatch(r"(\d{1,12})(?::(\d{1,12}))?", text.strip())
    first, end = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= end <= last:
        raise UserError(
            f"--profile={text}: give the first and the last step to trace, of 1 to TRAIN_STEPS ({last:,}), as 10:13"
        )
    return range(first, end + 1)


def traced(
    stream: Generator[tuple[int, Any], None, None], steps: range, folder: pathlib.Path
) -> Generator[tuple[int, Any], None, None]:
    """Yields the same steps and batches, tracing `steps` of them; prints the outcome, and never stops a run.

    The loop reads the metrics of a step while the next one runs, so the trace ends one step after the last: by then the
    devices have finished it.
    """
    first = last = 0  # steps of the current trace
    has_come = False
    try:
        for step, batch in stream:
            if not has_come and step >= steps.start:
                has_come = True
                if step >= steps.stop:
                    _say(folder, f"traced nothing, as this start resumes at step {step:,}, after {_named(steps)}")
                elif _did(folder, lambda: jax.profiler.start_trace(folder / "tensorboard")):
                    first = step
            last = min(step, steps.stop - 1)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                yield step, batch
            if first and step >= steps.stop:
                _stop(folder, range(first, last + 1))
                first = 0
    finally:
        if first:
            _stop(folder, range(first, last + 1))
        if not has_come:
            _say(folder, f"traced nothing, as the run ended before step {steps.start:,}")
        stream.close()


def _stop(folder: pathlib.Path, steps: range) -> None:
    if _did(folder, jax.profiler.stop_trace):
        where = files.shown(folder / "tensorboard")
        _say(folder, f"traced {_named(steps)}; look at it with: tensorboard --logdir {where}")


def _did(folder: pathlib.Path, act: Callable[[], object]) -> bool:
    """Whether the profiler succeeded: a full disk or another trace is no reason to lose a run."""
    try:
        act()
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        _say(folder, f"is not traced ({reason}); the run continues")
        return False
    return True


def _named(steps: range) -> str:
    return f"steps {steps.start} to {steps.stop - 1}"


def _say(folder: pathlib.Path, text: str) -> None:
    if jax.process_index() == 0:
        print(f"{folder.name}: {text}", flush=True)
