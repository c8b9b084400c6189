"""Opens a checkpoint of any format, and places it on a mesh without an intermediate copy."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flanx import files, hub
from flanx.convert import adapter_merge, flanx_format, hf, orbax_item, peft, scan_layers, t5x
from flanx.convert.adapter_merge import Pairs
from flanx.convert.flanx_format import NOTE
from flanx.convert.lazy_tensor import (
    STATE,
    TARGET,
    LazyTensor,
    LazyTensors,
    fingerprint,
    flatten,
    in_memory,
    nest,
    parameters,
)
from flanx.convert.t5_shapes import T5Sizes, check, infer, is_t5
from flanx.errors import UserError, nearest
from flanx.models.t5 import T5
from flanx.optim import AdafactorState
from flanx.storage import Storage, local_tree, open_storage

KINDS = ("t5x", "hf", "flanx", "peft")


@dataclasses.dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint that is open but not yet read.

    Attributes:
      kind: one of KINDS.
      folder: the checkpoint's own: a step's folder if `given` holds several.
      tensors: `target/...` unrolled, and `state/param_states/...` and `state/step` if it has them.
      sizes: a T5's sizes; None for another model.
      config: the model's settings in Hugging Face's config.json beyond its sizes; empty if not recorded.
      given: the folder that was requested, which may hold tokenizer files.
      note: what `flanx convert` recorded if it wrote the checkpoint.
      stacked: whether its layers are stacked, as in a model with scan_layers; `tensors` are unrolled regardless.
      origin: its `flanx.hub.record`.
      pairs: the adapter merged into `tensors`, from an adapter's run or a PEFT folder.
    """

    kind: str
    folder: Storage
    tensors: dict[str, LazyTensor]
    sizes: T5Sizes | None
    config: Mapping[str, Any]
    given: Storage
    note: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stacked: bool = False
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pairs: Pairs | None = None

    @property
    def shown(self) -> str:
        """How messages name it."""
        return f"{hub.PREFIX}{self.origin['hub']}" if self.origin else str(self.given)

    @property
    def name(self) -> str:
        """Where it is from, without this machine's folders."""
        if self.origin:
            return f"{hub.PREFIX}{self.origin['hub']}@{self.origin['revision']}"
        return str(self.given) if self.given.is_remote else self.given.name

    def t5_sizes(self) -> T5Sizes:
        """The sizes of a T5. Raises UserError for any other model."""
        if self.sizes is None:
            raise UserError(
                f"{self.folder} is not a T5: Hugging Face's form and --verify exist only for T5; use --to flanx or t5x"
            )
        return self.sizes

    @property
    def step(self) -> int:
        """Steps done; 0 if the checkpoint does not record them."""
        step = self.tensors.get(f"{STATE}step")
        return int(self.note.get("step") or 0) if step is None else int(step.read())


def detect(folder: Storage) -> str:
    """The kind of checkpoint in `folder`. Raises UserError if there is none."""
    children = folder.children()
    if not children:
        raise UserError(f"no folder '{folder}', or nothing in it")
    if peft.CONFIG in children:
        return "peft"
    if "config.json" in children:
        return "hf"
    if peft.WEIGHTS in children:
        raise UserError(f"{folder} has no {peft.CONFIG}, which has the rank and base of its {peft.WEIGHTS}; copy both")
    if t5x.step_folder(folder, says=False).children() & {t5x.MESSAGES, "state"}:
        return "t5x"
    if flanx_format.item_folder(folder) is not None:
        return "flanx"
    within = f"; the run of `flanx finetune` is {folder}/run" if {"finetune.json", "run"} <= children else ""
    raise UserError(
        f"no checkpoint in '{folder}': no config.json, T5X 'checkpoint' or 'state', nor Orbax _METADATA{within}"
    )


def open_checkpoint(
    path: str | os.PathLike,
    kind: str = "auto",
    optimizer: bool = True,
    base: str | None = None,
    above: tuple[str, ...] = (),
) -> OpenCheckpoint:
    """Opens a checkpoint of T5X (legacy or Orbax), Hugging Face or flanx, and checks it against its own sizes.

    An adapter's run or a PEFT folder opens as its base with the adapter merged, and has no optimizer state.

    Args:
      path: local, gs:// for T5X's and flanx's, or hf:ORG/NAME[@REVISION].
      kind: one of KINDS, or "auto".
      optimizer: whether to open the optimizer's state as well.
      base: an adapter's base, in place of the one that it names.
      above: adapters whose base it is.
    """
    given = open_storage(path)
    if str(given) in above:
        raise UserError(f"{given} is an adapter and its own base; name a whole model: flanx convert --base BASE")
    if given.name == t5x.MESSAGES and not given.children() and t5x.MESSAGES in given.parent.children():  # its file
        given = given.parent
    kind = detect(given) if kind == "auto" else kind
    if kind not in KINDS:
        raise UserError(f"no checkpoint format '{kind}'{nearest(kind, KINDS)}")
    held = open_storage(local_tree(str(given))) if kind in ("hf", "peft") else given  # their readers need a disk
    if kind == "hf":
        contents = hf.read(held)
        return OpenCheckpoint(
            *(kind, held, contents.tensors, contents.sizes, contents.config, given, read_note(given)),
            origin=hub.record(path),
        )
    if kind == "peft":
        return _with_base(peft.read(held), given, base, {}, above)
    if kind == "t5x":
        folder = t5x.step_folder(given)
        in_orbax = "state" in folder.children()
        tensors = orbax_item.read(folder / "state") if in_orbax else t5x.read_legacy(folder)
    else:
        folder = given
        tensors = flanx_format.read(given, optimizer)
        if adapter_merge.has_pairs(tensors):
            tensors = scan_layers.unroll(tensors, folder)
            return _with_base(adapter_merge.of_run(folder, tensors), given, base, tensors, above)
    if not optimizer:
        tensors = {name: t for name, t in tensors.items() if not name.startswith(f"{STATE}param_states/")}
    if not parameters(tensors):
        raise UserError(f"{folder} holds no parameters (no name starts with '{TARGET}')")
    stacked = kind == "flanx" and scan_layers.is_stacked(tensors)
    tensors = scan_layers.unroll(tensors, folder)
    sizes = infer(tensors, folder) if is_t5(tensors) else None
    if sizes is not None:
        check(tensors, sizes, folder)
    note = read_note(given)
    return OpenCheckpoint(kind, folder, tensors, sizes, note.get("config", {}), given, note, stacked)


def _with_base(
    pairs: Pairs, given: Storage, base: str | None, tensors: LazyTensors, above: tuple[str, ...]
) -> OpenCheckpoint:
    """The base of an adapter with the adapter merged. Raises UserError if it was trained on another base.

    tensors: the adapter's own, from which the step is kept; above: see `open_checkpoint`.
    """
    named = base or pairs.base
    try:
        source = open_checkpoint(named, optimizer=False, above=(*above, str(given)))
    except UserError as error:
        raise UserError(f"the base of the adapter {given}: {error}") from error
    if pairs.fingerprint and files.verifying and (actual := fingerprint(source.tensors)) != pairs.fingerprint:
        raise UserError(
            f"{given} is an adapter of another base: {named} has fingerprint {actual}, its own was {pairs.fingerprint}"
        )
    pairs = dataclasses.replace(pairs, base=named)
    step = {name: tensor for name, tensor in tensors.items() if name == f"{STATE}step"}
    params = {name: tensor for name, tensor in source.tensors.items() if name.startswith(TARGET)}
    merged = adapter_merge.merge(params, pairs) | step
    return OpenCheckpoint("flanx", given, merged, source.sizes, source.config, given, pairs=pairs)


def read_note(folder: Storage) -> dict[str, Any]:
    """What `flanx convert` recorded in a folder that it wrote; empty for any other."""
    note = folder.read_json(NOTE) if NOTE in folder.children() else {}
    if not isinstance(note, dict) or not isinstance(note.get("config", {}), dict):
        raise UserError(
            f"{folder}/{NOTE} is damaged: it is not a record of `flanx convert`; remove it or convert again"
        )
    return note


def expect_model(path: str | os.PathLike, model: Any) -> None:
    """Raises UserError if a T5 would not compute what the checkpoint's config says, which tensors do not show."""
    folder = open_storage(path)
    if folder.parent.name == flanx_format.FOLDER:  # the step of a run
        folder = folder.parent.parent
    config = hf.read_config(folder) if "config.json" in folder.children() else read_note(folder).get("config", {})
    if not isinstance(model, T5) or not config:
        return
    named = {"decoder_start_token_id": hf.start_token(config)}
    if "model_type" in config or "feed_forward_proj" in config:
        named["mlp_activations"] = hf.ACTIVATIONS.get(hf.feed_forward(config))
    for field, wanted in named.items():
        if getattr(model, field) != wanted:
            raise UserError(
                f"{folder} was trained with {field} = {wanted!r}, the model has {getattr(model, field)!r}; "
                f"bind t5.T5.{field} = {wanted!r}"
            )


def expect_fingerprint(source: OpenCheckpoint, actual: str) -> None:
    """Raises UserError if a checkpoint is not what `flanx convert` recorded when it wrote it."""
    wanted, is_later = source.note.get("fingerprint"), f"{STATE}step" in source.tensors
    if wanted in (None, actual) or (is_later and source.step != source.note.get("step")):
        return
    raise UserError(
        f"{source.folder} has fingerprint {actual}, its {NOTE} says {wanted}: it is damaged or was changed; "
        f"convert again, or remove {NOTE} if the change is meant"
    )


def restore(path: str | os.PathLike | OpenCheckpoint, target: Any) -> Any:
    """Parameters of a checkpoint of any format, placed as `target` says; every device reads only its own shard.

    Args:
      path: what `open_checkpoint` accepts, or what it returned.
      target: nested dict of jax.ShapeDtypeStruct with shardings, T5X's names, layers unrolled or stacked.

    Raises UserError that names a parameter which only one side has, or which has another shape.
    """
    source = path if isinstance(path, OpenCheckpoint) else open_checkpoint(path, optimizer=False)
    wanted = flatten(target)
    tensors = fitted(source, wanted)
    return nest({name: _device_put(tensors[name], wanted[name]) for name in wanted})


def fitted(source: OpenCheckpoint, wanted: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """A checkpoint's parameters by a model's names; `wanted` is {name: an array or its shape}.

    Raises UserError that names a parameter which only one side has, or which has another shape.
    """
    tensors = parameters(_arranged(source.tensors, wanted))
    for name in [*wanted, *tensors]:
        if name in tensors and name in wanted:
            continue
        hint = scan_layers.bias_hint(name, tensors) or nearest(name, tensors if name in wanted else wanted)
        if name not in tensors:
            raise UserError(f"{source.folder} has no '{name}', which the model needs{hint}")
        raise UserError(f"{source.folder} holds '{name}', which the model does not have{hint}")
    for name in wanted:
        if tensors[name].shape != tuple(wanted[name].shape):
            shapes = list(tensors[name].shape), list(wanted[name].shape)
            raise UserError(
                f"{source.folder}: '{name}' is {shapes[0]}, the model has {shapes[1]}: give MODEL the checkpoint's "
                f"sizes; --gin.MODEL=\"'{source.shown}'\" takes them from it"
            )
    return tensors


def restore_moments(path: str | os.PathLike, target: AdafactorState) -> AdafactorState:
    """The Adafactor state of a T5X or flanx checkpoint, placed as `target` says.

    Args:
      target: jax.ShapeDtypeStruct with shardings, T5X's names, layers unrolled or stacked.

    Raises UserError naming a moment that the checkpoint lacks, or has in another shape.
    """
    source = open_checkpoint(path)
    tensors = _arranged(source.tensors, flatten(target.v))
    moments: dict[str, Any] = {}
    for theirs, ours in flanx_format.MOMENTS.items():
        found = {}
        for name, leaf in flatten(getattr(target, ours)).items():
            moment = tensors.get(f"{STATE}param_states/{name}/{theirs}")
            if moment is None and leaf.shape == (1,):  # unused
                moment = in_memory(np.zeros((1,), np.float32))
            if moment is None or moment.shape != leaf.shape:
                what = "nothing" if moment is None else f"shape {list(moment.shape)}"
                raise UserError(
                    f"{source.folder}: the optimizer state '{theirs}' of '{name}' has {what} there, this run's "
                    f"{list(leaf.shape)}: set restore_optimizer = False, or the parent's optimizer and its settings"
                )
            found[name] = _device_put(moment, leaf)
        moments[ours] = nest(found)
    count: Any = target.count
    return AdafactorState(_device_put(in_memory(np.asarray(source.step, np.int32)), count), **moments)


def _arranged(tensors: LazyTensors, wanted: Any) -> LazyTensors:
    """The tensors with layers and relative biases arranged as in the model whose names are `wanted`."""
    if scan_layers.has_layer_bias(tensors) and not scan_layers.has_layer_bias(wanted):
        tensors = scan_layers.share_bias(tensors)
    return scan_layers.stack(tensors) if scan_layers.is_stacked(wanted) else tensors


def expect_parent(path: str | os.PathLike | OpenCheckpoint, wanted: str | None) -> str:
    """The fingerprint of a parent checkpoint, for a run to record.

    The first host reads all parameters, one at a time, and sends the fingerprint to the others.

    Raises UserError if a recipe names another (`wanted`): LM-adapted and plain T5.1.1 look alike, but differ.
    """
    source = path if isinstance(path, OpenCheckpoint) else open_checkpoint(path, optimizer=False)
    actual = fingerprint(source.tensors) if jax.process_index() == 0 else "00" * 32
    actual = bytes(multihost_utils.broadcast_one_to_all(np.frombuffer(bytes.fromhex(actual), np.uint8))).hex()
    expect_fingerprint(source, actual)
    if wanted is not None and actual != wanted:
        raise UserError(
            f"{source.folder} has fingerprint {actual}, but the recipe's parent is {wanted}; "
            "give that checkpoint, or take the parent's fingerprint out of the recipe"
        )
    return actual


def _device_put(tensor: LazyTensor, target: jax.ShapeDtypeStruct) -> jax.Array:
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # None only occurs for arrays without a shape
        spans = tuple(each.indices(size)[:2] for each, size in zip(index, tensor.shape, strict=True))
        if spans not in parts:  # devices that hold the same part share one read
            parts[spans] = np.asarray(tensor.read(tuple(slice(*span) for span in spans)), target.dtype)
        return parts[spans]

    return jax.make_array_from_callback(tensor.shape, target.sharding, part)
