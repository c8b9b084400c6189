"""Checkpoints of a run: Orbax, written completely or not at all; the newest N and every k-th are kept.

A checkpoint is MODEL_DIR/checkpoints/checkpoint_<step> with {step, params, opt_state}; parameters have T5X's names.
Saves are asynchronous; a step folder gets its final name only once all of it is on disk.
"""

import dataclasses
import functools
import logging
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from flanx import convert, files, trainable
from flanx.convert import flanx_format, orbax_item, scan_layers
from flanx.coordination import HUNG
from flanx.errors import UserError
from flanx.optim import AdafactorState
from flanx.storage import URLS, open_storage
from flanx.train_step import TrainState

FOLDER = "checkpoints"

# Orbax looks in an item's folder for a file that it writes into the step's, and warns at every read
logging.getLogger("absl").addFilter(lambda record: "_CHECKPOINT_METADATA" not in record.getMessage())


@dataclasses.dataclass(frozen=True)
class SaveCheckpointConfig:
    """When a run saves and what it keeps.

    Attributes:
      period: steps between saves.
      keep: newest checkpoints to keep; None for all.
      keep_period: every checkpoint at a multiple of this step is kept for good.
      timeout: seconds after which a save that has not finished ends the process, with a message and status 74.
    """

    period: int = 1000
    keep: int | None = 1
    keep_period: int | None = None
    timeout: float = 3600.0


@dataclasses.dataclass(frozen=True)
class RestoreCheckpointConfig:
    """The parameters that a run starts from.

    Attributes:
      path: a run, a step folder, what `flanx convert` wrote or reads; None for new parameters.
      fingerprint: the parent's, as `flanx convert` prints it; another parent is an error. None for any.
      restore_optimizer: take the parent's optimizer state (Adafactor's) and its step, as T5X does; else it is new.
    """

    path: str | None = None
    fingerprint: str | None = None
    restore_optimizer: bool = False

    def __post_init__(self) -> None:
        if self.restore_optimizer and self.path is None:
            raise UserError("restore_optimizer takes the state of a parent: give INITIAL_CHECKPOINT_PATH, or unset it")
        if self.fingerprint is not None and self.path is None:
            raise UserError(
                "INITIAL_CHECKPOINT_FINGERPRINT says which parent is wanted: give INITIAL_CHECKPOINT_PATH, or unset it"
            )


class Checkpoints:
    """The checkpoints of one run.

    Attributes:
      folder: `checkpoints` in the run's folder.
    """

    def __init__(self, folder: str | os.PathLike, config: SaveCheckpointConfig | None = None) -> None:
        config = config or SaveCheckpointConfig()
        self.folder, self._timeout = epath.Path(folder) / FOLDER, config.timeout
        self._starting = False  # a save is being handed over
        self._unsealed: int | None = None  # the last saved step, which has no checksums yet
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep,
            keep_period=config.keep_period,
            step_prefix="checkpoint",
            cleanup_tmp_directories=True,
        )
        # an explicit handler: without one, a manager that has saved nothing cannot read shapes
        handler = ocp.StandardCheckpointHandler()
        if files.mirrors and jax.process_count() > 1:  # each process has a copy of the folder, and sends its own arrays
            alone = ocp.options.MultiprocessingOptions(primary_host=None)
            handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone, use_ocdbt=False)
            options = dataclasses.replace(options, multiprocessing_options=alone, create=False)
            epath.Path(self.folder).mkdir(parents=True, exist_ok=True)
        path = epath.Path(self.folder).resolve()
        self._link = None
        if "[" in str(path):  # Orbax globs for files, and brackets would be taken for a pattern
            path.mkdir(parents=True, exist_ok=True)
            self._link = tempfile.TemporaryDirectory(prefix="flanx-")
            os.symlink(path, f"{self._link.name}/{FOLDER}")
            path = epath.Path(self._link.name) / FOLDER
        self._manager = ocp.CheckpointManager(path, item_handlers=handler, options=options)

    def latest(self) -> int | None:
        """The step of the newest finished checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, patterns: Sequence[str] | None = None) -> None:
        """Starts an asynchronous save of `state`, unless its step is already saved; given patterns, only of the
        parameters whose names match them."""
        step = int(state.step)
        if patterns is not None:
            state = state.replace(params=trainable.split(state.params, patterns)[0])
        self.wait()
        if step != self.latest():
            self._unsealed = step
            self._starting, self._watched = True, object()
            look = functools.partial(self._end_if_hung, step, self._watched)
            threading.Thread(target=look, name="flanx-save-watch", daemon=True).start()
            self._manager.save(step, args=ocp.args.StandardSave(dict(vars(state))), force=True)
            self._starting = False

    def _set_damaged_aside(self) -> None:
        """Moves damaged checkpoints, newest first, to MODEL_DIR/damaged, until one is intact or none is left.

        Raises UserError if nothing intact is left, or if several processes would have to agree on it.
        """
        while (step := self.latest()) is not None:
            folder = self.folder / f"checkpoint_{step}"
            files.complete(folder)
            try:
                _verify(folder, folder / "default")
                return
            except UserError as error:
                earlier = [s for s in self._manager.all_steps() if s < step]
                if not earlier or jax.process_count() > 1:
                    raise
                aside = self.folder.parent / "damaged" / f"checkpoint_{step}"
                aside.parent.mkdir(exist_ok=True)
                folder.rename(aside)
                self._manager.reload()
                print(f"note: {error}; it is set aside as {aside}, and the run resumes from step {max(earlier)}")

    def _end_if_hung(self, step: int, mine: object) -> None:
        """Ends the process if this save hangs: a job that waits forever holds its chips and reports nothing."""
        tick, waited = min(1.0, self._timeout / 4), 0.0
        while self._watched is mine and (self._starting or self._manager.is_saving_in_progress()):
            if waited > self._timeout:
                print(
                    f"flanx: process {jax.process_index()} on {socket.gethostname()}: the save of step {step} to "
                    f"{self.folder} has not ended after {self._timeout:.0f} s; ending (status {HUNG}); the same "
                    "command resumes from the last good checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(HUNG)
            time.sleep(tick)
            waited += tick  # not by the clock: time while the process was suspended does not count

    def restore(self, target: TrainState, step: int | None = None) -> TrainState:
        """The state at `step` (newest if None), placed as `target`, a tree of jax.ShapeDtypeStruct with shardings.

        Raises UserError, naming the first array, if the checkpoint does not fit the model.
        """
        if step is None:
            self._set_damaged_aside()
            step = self.latest()
        files.complete(self.folder / f"checkpoint_{step}")
        if step is None or step not in self._manager.all_steps():
            steps = ", ".join(map(str, self._manager.all_steps())) or "none"
            raise UserError(f"no checkpoint of step {step} in {self.folder} (there: {steps})")
        wanted: dict[str, Any] = dict(vars(target))
        metadata = self._manager.item_metadata(step)
        is_old = isinstance(target.opt_state, AdafactorState) and "opt_state/m" in _names(metadata)
        if is_old:
            opt_state = target.opt_state._asdict()
            wanted["opt_state"] = opt_state | {"m": opt_state.pop("momentum")}
        _check_shapes(metadata, wanted, f"{self.folder}/checkpoint_{step}")
        restored: dict[str, Any] = dict(self._manager.restore(step, args=ocp.args.StandardRestore(wanted)))
        if is_old:
            opt_state = restored["opt_state"]
            momentum = opt_state.pop("m")
            if flanx_format.has_turned_momentum(open_storage(self.folder.parent), step):
                momentum = jax.tree.map(lambda x: 0 - x, momentum)
            restored["opt_state"] = AdafactorState(**opt_state, momentum=momentum)
        return TrainState(**restored)

    def drop(self, first: int) -> None:
        """Deletes the checkpoints from step `first` on."""
        for step in [each for each in self._manager.all_steps() if each >= first]:
            self._manager.delete(step)

    def wait(self) -> None:
        """Blocks until the save in progress is on disk, and records its checksums."""
        if self._unsealed is not None:
            self._manager.wait_until_finished()
            folder = self.folder / f"checkpoint_{self._unsealed}"
            if jax.process_index() == 0 and folder.is_dir():
                files.write_checksums(folder)
            self._unsealed = None
            for mirror in files.mirrors.values():  # no checkpoint replaces one that is not yet in the bucket
                mirror.flush()

    def close(self) -> None:
        """Waits for the save in progress and releases the writer."""
        self._manager.wait_until_finished()
        self._manager.close()
        if self._link:
            self._link.cleanup()


def _verify(folder: epath.Path, item: epath.Path) -> None:
    """Raises UserError if a file of the checkpoint, whose arrays are in `item`, is missing or has changed."""
    metadata = item / "_METADATA"
    if not metadata.exists() or not metadata.stat().length:
        raise UserError(f"{metadata} is missing or empty: the checkpoint is damaged or half copied; copy it again")
    files.verify_checksums(folder)
    if not (item / "manifest.ocdbt").exists():
        orbax_item.read(open_storage(item))  # names the file of a missing array


def _check_shapes(metadata: Any, wanted: Any, path: str) -> None:
    """Raises UserError for the first array that is missing on one side or differs in shape."""
    saved, here = _leaves(getattr(metadata, "tree", metadata)), _leaves(wanted)
    for name in [*here, *saved]:
        hint = scan_layers.bias_hint(name, saved)
        if name not in saved:
            raise UserError(f"{path} has no '{name}': another model or optimizer wrote it{hint}")
        if name not in here:
            raise UserError(f"{path} has '{name}', which this model or optimizer does not have{hint}")
        shapes = list(saved[name].shape), list(here[name].shape)
        if shapes[0] != shapes[1]:
            if re.match(r"opt_state/v(_row|_col)?/.*/kernel", name):
                hint = "; see optim.adafactor.factored and min_layer_dim_size_to_factor (1 for T5X's scanned layers)"
            hint = hint or "; MODEL is of other sizes: --gin.MODEL=\"'FOLDER'\" takes those of a run or checkpoint"
            raise UserError(f"{path}: '{name}' is {shapes[0]}, in this model {shapes[1]}{hint}")


def _names(metadata: Any) -> set[str]:
    """{"params/decoder", "opt_state/v_row", ...}: the first two keys of every array."""
    return {"/".join(name.split("/")[:2]) for name in _leaves(getattr(metadata, "tree", metadata))}


def _leaves(tree: Any) -> dict[str, Any]:
    """{"params/decoder/...": leaf}."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}


def save_params(folder: str | os.PathLike, params: Any) -> None:
    """Writes bare parameters (T5X's names) to `folder`, completely or not at all."""
    with ocp.StandardCheckpointer() as writer:
        writer.save(epath.Path(folder).resolve(), params, force=True)


def load_params(path: str | os.PathLike, target: Any, model: Any = None) -> Any:
    """Parameters placed as `target` (jax.ShapeDtypeStruct with shardings) from a folder.

    `path` is what `save_params` wrote, a step folder `.../checkpoint_<step>` of a run, or a run's MODEL_DIR (its newest
    checkpoint); or a checkpoint of T5X or Hugging Face, which is placed without a copy. Raises UserError if it is none
    of these, a tensor does not fit, or `model` does not match the checkpoint's config.
    """
    if model is not None:
        convert.expect_model(path, model)
    if str(path).startswith(URLS):
        return convert.restore(path, target)
    folder = epath.Path(path)
    if (folder / FOLDER).is_dir():
        latest = Checkpoints(folder).latest()
        if latest is None:
            raise UserError(f"no finished checkpoint in {folder / FOLDER}")
        folder = folder / FOLDER / f"checkpoint_{latest}"
    item = folder / "default"
    source = item if item.is_dir() else folder
    if not (source / "_METADATA").exists() and not item.is_dir():
        return convert.restore(path, target)
    _verify(folder, source)
    with ocp.PyTreeCheckpointer() as reader:
        metadata = reader.metadata(source.resolve()).item_metadata
        tree = getattr(metadata, "tree", metadata)
        if any("/lora_" in name for name in _leaves(tree)):
            return convert.restore(folder, target)
        whole_state = "params" in tree and "opt_state" in tree
        _check_shapes(tree["params"] if whole_state else tree, target, str(folder))
        wanted = {"params": target} if whole_state else target
        arguments = jax.tree.map(lambda s: ocp.ArrayRestoreArgs(sharding=s.sharding, dtype=s.dtype), wanted)
        restored = reader.restore(
            source.resolve(), ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=whole_state)
        )
    return restored["params"] if whole_state else restored
