"""A trace of some steps for xprof, TensorBoard's profiler: what the devices and the host did, and when.

Every process writes one file, <run>/tensorboard/plugins/profile/<time>/<host>.xplane.pb.
"""

import pathlib
import re
from collections.abc import Generator
from typing import Any

import jax

from flanx.errors import UserError


def steps_of(text: str, last: int) -> range:
    """The steps of "10:13" (10, 11, 12 and 13) or "10". Raises UserError where they are none of 1, ..., `last`."""
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
    first, end = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= end <= last:
        raise UserError(
            f"--profile={text}: give the first and the last step to trace, of 1 to TRAIN_STEPS ({last:,}), as 10:13"
        )
    return range(first, end + 1)


def traced(
    stream: Generator[tuple[int, Any], None, None], steps: range, folder: pathlib.Path
) -> Generator[tuple[int, Any], None, None]:
    """The same steps and batches, `steps` of them traced.

    The loop reads the metrics of a step while the next one runs, so the trace ends after the step behind the last: then
    the devices have done all of it.
    """
    is_on, is_late = False, True
    try:
        for step, batch in stream:
            if step in steps and not is_on:
                jax.profiler.start_trace(folder / "tensorboard")
                is_on, is_late = True, False
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                yield step, batch
            if is_on and step >= steps.stop:
                is_on = False
                _stop(folder, steps)
    finally:
        if is_on:
            _stop(folder, steps)
        if is_late:
            print(f"{folder.name}: traced nothing, as the run did not come to step {steps.start} or began behind it")
        stream.close()


def _stop(folder: pathlib.Path, steps: range) -> None:
    jax.profiler.stop_trace()
    if jax.process_index() == 0:
        which = f"steps {steps.start} to {steps.stop - 1}"
        print(f"{folder.name}: traced {which}; look at it with: tensorboard --logdir {folder / 'tensorboard'}")
