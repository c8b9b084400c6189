"""Partitioning: a named mesh, T5X's logical axis rules, shardings of state and batch.

The mesh has three axes: `replica` (whole copies, one per TPU slice over the data-centre network), `data` (the batch,
and under some rules the parameters: fully sharded data parallelism) and `model` (tensor parallelism). A parameter
names its axes (`("embed", "mlp")`); a rule maps a logical name to mesh axes or to None. An axis that no rule names is
an error, never silently replicated.
"""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.linen import spmd
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flanx.errors import UserError, nearest

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

AXES = ("replica", "data", "model")
_BATCH = ("replica", "data")
# T5X's four presets by (activation, parameter) partitioning dimensions (t5x/partitioning.py,
# `standard_logical_axis_rules`); earlier rules win, and a mesh axis is used at most once per array.
_BATCH_AND_MODEL: Rules = (
    ("batch", _BATCH),
    ("vocab", "model"),
    ("mlp", "model"),
    ("heads", "model"),
    ("kv", None),
    ("joined_kv", "model"),
)
_EMBED: Mapping[tuple[int, int], Rules] = {
    (1, 1): (),
    (2, 1): (("embed", "model"),),
    (1, 2): (("embed", "data"),),
    (2, 2): (("embed", "model"), ("embed", "data")),
}
_FSDP: Rules = (("batch", AXES), ("embed", ("data", "model")), ("embed", "data"))
_REPLICATED: Rules = tuple(
    (name, None)
    for name in (
        *("embed", "vocab", "mlp", "heads", "kv", "joined_kv"),
        *("relpos_buckets", "abspos_buckets", "length", "layers", "stack", "mlp_activations"),
    )
)
PRESETS: Mapping[Any, Rules] = {key: (*_BATCH_AND_MODEL, *embed) for key, embed in _EMBED.items()} | {"fsdp": _FSDP}
MASKED: Any = optax.MaskedNode  # in place of the moments that an optimizer of only some parameters does not keep
SMALL = 2**20  # bytes; a smaller array may be replicated if its axis does not divide
BOX: Any = nn.meta.AxisMetadata  # linen's box for a parameter, with its axis names
LARGE = 2**24  # bytes; a fully replicated array of this size or more is reported


def rules(activations: int = 1, parameters: int = 1, extra: Rules = (), preset: str | None = None) -> Rules:
    """Logical axis rules: T5X's preset for 1-D or 2-D partitioning of activations and parameters, or `preset="fsdp"`.

    `extra` comes first and so takes precedence. `extra=[("length", "model")]` with preset (1, 2) is sequence
    parallelism: the activations between layers are split along their length.
    """
    key = preset or (activations, parameters)
    if key not in PRESETS:
        raise UserError(f"no partitioning preset {key}: known are (1, 1), (2, 1), (1, 2), (2, 2) and 'fsdp'")
    sequence = () if ("length", "model") not in [tuple(rule) for rule in extra] else (("length", "model"),)
    first = [rule for rule in extra if tuple(rule) != ("length", "model")]
    # a length over `model` yields to heads, mlp and vocab: inside a layer those are split
    return (*first, *PRESETS[key], *sequence, *_REPLICATED)


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """A mesh and the rules that place arrays on it.

    Attributes:
      num_partitions: devices along `model` (T5X's name), or "auto": `flanx.plan.search` then picks it and the rules.
      logical_axis_rules: pairs (logical axis, mesh axis, a tuple of them, or None); see `rules`.
      devices: the jax.Device objects to use; None for all.
      num_replicas: devices along `replica`; None for one per TPU slice.
    """

    num_partitions: int | str = 1
    logical_axis_rules: Rules = dataclasses.field(default_factory=rules)
    devices: Sequence[Any] | None = None
    num_replicas: int | None = None

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The (replica, data, model) mesh. Raises UserError if the devices do not divide."""
        if isinstance(self.num_partitions, str):
            raise UserError(f"num_partitions = '{self.num_partitions}' is for `flanx train` and `plan`; give a number")
        devices = list(self.devices if self.devices is not None else jax.devices())
        slices = len({getattr(d, "slice_index", None) for d in devices})
        replicas = self.num_replicas or slices
        data = len(devices) // (replicas * self.num_partitions)
        shape = (replicas, data, self.num_partitions)
        if math.prod(shape) != len(devices) or not data:
            per_replica, rest = divmod(len(devices), replicas)
            divisors = [n for n in range(1, per_replica + 1) if per_replica % n == 0] if not rest else []
            raise UserError(
                f"num_partitions = {self.num_partitions} in {replicas} replica(s) does not divide {len(devices)} "
                f"devices; use one of {divisors or 'another number of replicas'}"
            )
        if slices > 1:
            grid = _grid_of_slices(shape, devices, slices)
        else:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))

    @contextlib.contextmanager
    def scope(self) -> Iterator[Mesh]:
        """Activates mesh and rules; outside of it, the models' sharding constraints are no-ops."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(tuple(self.logical_axis_rules)):
            yield self.mesh

    def shardings(self, boxed: Any) -> Any:
        """Shardings of a tree of boxed (abstract) parameters, unboxed.

        An array below 1 MiB is not split along a dimension that its mesh axis does not divide. Raises UserError for a
        larger such array, and for an axis without a rule.
        """
        return jax.tree_util.tree_map_with_path(self._sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, BOX))

    def _sharding(self, path: tuple[Any, ...], box: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        array = box.value if isinstance(box, BOX) else box  # `nn.unbox` would constrain it, outside any jit
        names = getattr(box, "names", (None,) * array.ndim)
        known = {rule[0] for rule in self.logical_axis_rules}
        for axis in names:
            if axis is not None and axis not in known:
                raise UserError(f"no partitioning rule for axis '{axis}' of {name}" + nearest(axis, known))
        spec = list(spmd.logical_to_mesh_axes(names, tuple(self.logical_axis_rules)) or ())
        for i, axes in enumerate(spec):
            parts = self._size(axes)
            if array.shape[i] % parts:
                if array.size * array.dtype.itemsize >= SMALL:
                    raise UserError(
                        f"axis '{names[i]}' of {name} is {array.shape[i]} long and does not divide over the {parts} "
                        f"devices of mesh axis {axes}; use a num_partitions that divides it"
                    )
                spec[i] = None
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def _size(self, axes: str | tuple[str, ...] | None) -> int:
        """Devices along one or more mesh axes."""
        return math.prod(self.mesh.shape[axis] for axis in ([axes] if isinstance(axes, str) else axes or ()))

    def optimizer_shardings(self, optimizer: optax.GradientTransformation, params: Any, shardings: Any) -> Any:
        """Shardings of the optimizer state.

        A leaf of its parameter's shape has the parameter's sharding; one that lacks one of the dimensions (a factored
        moment) has that of the remaining dimensions; any other is replicated.
        """
        everywhere = self.everywhere()
        return optax.tree_map_params(
            optimizer,
            lambda leaf, param, sharding: (
                leaf if isinstance(leaf, MASKED) else _reduced(leaf.shape, param.shape, sharding) or everywhere
            ),
            jax.eval_shape(optimizer.init, params),
            params,
            shardings,
            transform_non_params=lambda _: everywhere,
            is_leaf=lambda leaf: isinstance(leaf, MASKED),
        )

    def replicated(self, params: Any, shardings: Any) -> list[tuple[str, int]]:
        """(name, bytes) of each large array that is fully replicated within a replica, the largest first."""
        if self.mesh.shape["data"] * self.mesh.shape["model"] == 1:
            return []
        pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True)
        arrays = [
            (jax.tree_util.keystr(path, simple=True, separator="/"), array.size * array.dtype.itemsize)
            for (path, array), sharding in pairs
            if sharding.is_fully_replicated
        ]
        return sorted([entry for entry in arrays if entry[1] >= LARGE], key=lambda entry: -entry[1])

    def everywhere(self) -> NamedSharding:
        """The sharding of a replicated array."""
        return NamedSharding(self.mesh, PartitionSpec())

    def batch_sharding(self) -> NamedSharding:
        """The sharding of a batch [rows, length]: rows by the rule for "batch", lengths not split."""
        (rows,) = spmd.logical_to_mesh_axes(("batch",), tuple(self.logical_axis_rules)) or (None,)
        return NamedSharding(self.mesh, PartitionSpec(rows))

    def batch_shards(self) -> int:
        """The number of shards of a batch's rows."""
        return self._size(self.batch_sharding().spec[0])

    def host_rows(self, batch_size: int) -> range:
        """The rows of a global batch held by this host's devices, as one range."""
        shards = self.batch_shards()
        if batch_size % shards:
            raise UserError(
                f"BATCH_SIZE = {batch_size} does not divide over {shards} data shards; use a multiple of {shards}, "
                "or a larger num_partitions"
            )
        indices = self.batch_sharding().addressable_devices_indices_map((batch_size,)).values()
        bounds = [index[0].indices(batch_size) for index in indices if index is not None]
        return range(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))

    def global_batch(self, rows: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
        """Global arrays [batch_size, length] from this host's rows (see `host_rows`)."""
        sharding, first = self.batch_sharding(), self.host_rows(batch_size).start

        def shard(array: np.ndarray, index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            return array[start - first : stop - first]

        return {
            name: jax.make_array_from_callback(
                (batch_size, *array.shape[1:]), sharding, functools.partial(shard, array)
            )
            for name, array in rows.items()
        }


def _grid_of_slices(shape: tuple[int, ...], devices: Sequence[Any], slices: int) -> np.ndarray:
    """Devices in mesh order [replica, data, model], with the slices split along `replica`, then `data`."""
    replicas, data, model = shape
    across = (math.gcd(replicas, slices), slices // math.gcd(replicas, slices), 1)
    inside = tuple(n // m for n, m in zip(shape, across, strict=True))
    if any(n % m for n, m in zip(shape, across, strict=True)):
        raise UserError(
            f"a mesh of {replicas} replicas x {data} data x {model} model does not split over {slices} slices; "
            f"set num_replicas = {slices}"
        )
    return mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)


def _reduced(shape: tuple[int, ...], full: tuple[int, ...], sharding: NamedSharding) -> NamedSharding | None:
    """The sharding of an array whose shape is `full`, or `full` without one dimension; None for any other shape."""
    spec = [*sharding.spec, *[None] * (len(full) - len(sharding.spec))]
    if shape == full:
        return sharding
    for i in range(len(full)):
        if shape == (*full[:i], *full[i + 1 :]):
            return NamedSharding(sharding.mesh, PartitionSpec(*spec[:i], *spec[i + 1 :]))
    return None


def cache_compilations(folder: str | os.PathLike | None = "auto") -> None:
    """Caches compiled programs on disk, so that a restart does not recompile.

    "auto" is JAX's own setting, else $XDG_CACHE_HOME/flanx/xla (or ~/.cache/flanx/xla), and off on a CPU: programs for
    one kind of CPU must not be loaded on another that shares the folder. None turns it off.
    """
    if folder == "auto":
        # jax sets its flags as attributes at run time
        if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
            return
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        folder = None if jax.default_backend() == "cpu" else cache / "flanx" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder) if folder else None)


@contextlib.contextmanager
def explain_exhausted(state: Any, partitioner: Partitioner) -> Iterator[None]:
    """Turns a device's RESOURCE_EXHAUSTED into a message with the state's largest arrays and the next layout to try.

    state: abstract, with shardings.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = {
            jax.tree_util.keystr(path, simple=True, separator="/"): math.prod(leaf.sharding.shard_shape(leaf.shape))
            * leaf.dtype.itemsize
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        }
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        named = ", ".join(f"{name} {sizes[name] / 1e9:.3g} GB" for name in largest)
        mesh = " x ".join(f"{axis} {n}" for axis, n in partitioner.mesh.shape.items())
        raise UserError(
            f"out of memory on {mesh}: the state takes {sum(sizes.values()) / 1e9:.3g} GB a device (largest: {named}); "
            f"next: {_next_layout(partitioner)}; `flanx plan` finds what fits"
        ) from error


def _next_layout(partitioner: Partitioner) -> str:
    """A layout that splits the state over more devices than `partitioner` does."""
    split = [a for name, a in partitioner.logical_axis_rules if name == "embed" and a and "data" in a]
    data, model = partitioner.mesh.shape["data"], partitioner.mesh.shape["model"]
    if not split and data > 1:
        return "partition.rules.parameters = 2 (parameters over data as well)"
    if data > 1:
        factor = next(n for n in range(2, data + 1) if data % n == 0)
        return f"NUM_PARTITIONS = {factor * model}, remat = 'full' or a larger NUM_MICROBATCHES"
    return "more devices, remat = 'full' or a larger NUM_MICROBATCHES"
