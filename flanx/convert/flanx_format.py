"""flanx's own checkpoints under T5X's names: read lazily, written one tensor at a time.

A run holds checkpoints/checkpoint_<step>/default with {step, params, opt_state}; bare parameters are one Orbax item.
Our Adafactor keeps T5X's moments in T5X's shapes, so its state is converted both ways unchanged. Until November 2026 it
kept the momentum under T5X's name `m` with the opposite sign; it is negated when such a checkpoint is read.
"""

import json
import re
import time
from typing import Any

import numpy as np

from flanx import files
from flanx.convert import orbax_item
from flanx.convert.lazy_tensor import STATE, TARGET, LazyTensor, LazyTensors, in_memory
from flanx.errors import UserError
from flanx.storage import Storage

FOLDER, ITEM = "checkpoints", "default"
MARKER = "_CHECKPOINT_METADATA"  # of a step's folder, written last
NOTE = "flanx_convert.json"  # what a conversion leaves in its result
MOMENTS = {"v_row": "v_row", "v_col": "v_col", "v": "v", "m": "momentum"}  # T5X's name -> ours
STEP = STATE + "step"
_PARAM_STATE = re.compile(rf"{STATE}param_states/(.+)/({'|'.join(MOMENTS)})")
_MOMENT = re.compile(rf"opt_state/({'|'.join([*MOMENTS.values(), 'm'])})/(.+)")


def item_folder(folder: Storage) -> Storage | None:
    """The Orbax item of a run (its newest checkpoint), of a step folder or of bare parameters, or None."""
    if FOLDER in folder.children():
        names = (folder / FOLDER).children()
        if folder.is_remote:  # an incomplete upload is not a checkpoint
            names = {key.removesuffix(f"/{MARKER}") for key in (folder / FOLDER).keys() if key.endswith(f"/{MARKER}")}  # noqa: SIM118
        steps = [int(match[1]) for name in names if (match := re.fullmatch(r"checkpoint_(\d+)", name))]
        return folder / FOLDER / f"checkpoint_{max(steps)}" / ITEM if steps else None
    return next((item for item in (folder / ITEM, folder) if orbax_item.is_item(item)), None)


def read(folder: Storage, optimizer: bool = True) -> dict[str, LazyTensor]:
    """The tensors of a flanx checkpoint by T5X's names, lazily.

    Args:
      optimizer: whether to read the optimizer's state, which must be Adafactor's.
    """
    item = item_folder(folder)
    if item is None:
        raise UserError(f"no flanx checkpoint in {folder}; give a run folder, a step folder or a converted checkpoint")
    if item.is_remote:
        _expect_files(item.parent if item.name == ITEM else item)
    else:
        files.verify_checksums(item.local().parent if item.local().name == ITEM else item.local())
    leaves = orbax_item.read(item)
    if not any(name.startswith("params/") for name in leaves):
        return {TARGET + name: tensor for name, tensor in leaves.items()}
    tensors = {STEP: leaves.pop("step")}
    optimizer = optimizer and not any("/lora_" in name for name in leaves)  # an adapter's is that of the pairs
    for name, tensor in leaves.items():
        if name.startswith("params/"):
            tensors[TARGET + name.removeprefix("params/")] = tensor
        elif optimizer:
            _take_moment(tensors, name, tensor, item)
    return tensors


def _expect_files(folder: Storage) -> None:
    """Raises UserError if a file named in the record of checksums is missing in a bucket."""
    there = folder.keys()
    recorded = folder.read_json(files.CHECKSUMS) if files.CHECKSUMS in there else {}
    if missing := sorted(recorded.keys() - there):
        raise UserError(f"{folder}/{missing[0]} is missing: the checkpoint is damaged or half copied; copy it again")


def _take_moment(tensors: dict[str, LazyTensor], name: str, tensor: LazyTensor, item: Storage) -> None:
    if name == "opt_state/count":
        count, step = int(tensor.read()), int(tensors[STEP].read())
        if count != step:
            raise UserError(f"{item}: {step} steps but {count} updates of the optimizer; add --drop-optimizer")
        return
    match = _MOMENT.fullmatch(name)
    if not match:
        raise UserError(
            f"{item}: '{name}' is not Adafactor's; the optimizer state cannot be converted, add --drop-optimizer"
        )
    if match[1] == "m":  # its name when it had the opposite sign
        is_turned = has_turned_momentum(item.parent.parent.parent, int(tensors[STEP].read()))
        tensor = tensor.negated() if is_turned else tensor
    moment = {ours: theirs for theirs, ours in MOMENTS.items()}.get(match[1], "m")
    tensors[f"{STATE}param_states/{match[2]}/{moment}"] = tensor


def has_turned_momentum(run: Storage, step: int) -> bool:
    """Whether a momentum `opt_state/m` in a run's checkpoint at `step` is the mean of what is added.

    All are, except those that `flanx convert` made from a T5X checkpoint: it copied T5X's sign.
    """
    note = run.read_json(NOTE) if NOTE in run.children() else {}
    return not (note.get("from") == "t5x" and note.get("step") == step)


def write(folder: Storage, tensors: LazyTensors) -> None:
    """Writes bare parameters to `folder`, or a run's first checkpoint under it if there is an optimizer state.

    Raises UserError if `folder` already has a checkpoint.
    """
    params = {name.removeprefix(TARGET): tensor for name, tensor in tensors.items() if name.startswith(TARGET)}
    moments = {m.groups(): tensor for name, tensor in tensors.items() if (m := _PARAM_STATE.fullmatch(name))}
    if not moments:
        orbax_item.write(folder, [(tuple(name.split("/")), tensor) for name, tensor in params.items()])
        _seal(folder)
        return
    step = int(tensors[STEP].read())
    if FOLDER in folder.children():
        raise UserError(f"{folder / FOLDER} already exists; give another folder")
    number = in_memory(np.asarray(step, np.int32))
    unused = in_memory(np.zeros((1,), np.float32))
    leaves = [(("step",), number), (("opt_state", "count"), number)]
    leaves += [(("params", *name.split("/")), tensor) for name, tensor in params.items()]
    for theirs, ours in MOMENTS.items():
        leaves += [(("opt_state", ours, *name.split("/")), moments.get((name, theirs), unused)) for name in params]
    step_folder = folder / FOLDER / f"checkpoint_{step}"
    orbax_item.write(step_folder / ITEM, leaves)
    now = time.time_ns()
    handler = "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"
    record: dict[str, Any] = {
        "item_handlers": {ITEM: handler},
        "metrics": {},
        "performance_metrics": {},
        "custom_metadata": {},
    }
    record |= {"init_timestamp_nsecs": now, "commit_timestamp_nsecs": now}
    step_folder.write(MARKER, json.dumps(record))
    _seal(step_folder)


def _seal(folder: Storage) -> None:
    """Records the checksums of a folder on a local disk."""
    if not folder.is_remote:
        files.write_checksums(folder.local())
