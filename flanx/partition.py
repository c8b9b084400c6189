"""Where arrays live: a named mesh, T5X's logical axis rules, shardings of state and batch.

A parameter names its axes (`("embed", "mlp")`); a rule maps a logical name to a mesh axis or to None. An axis that no
rule names is an error, never silently replicated.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flanx.errors import UserError, nearest

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

# T5X's four presets by (activation, parameter) partitioning dimensions (t5x/partitioning.py,
# `standard_logical_axis_rules`), and fsdp: every parameter split over the data axis along its embedding.
_BATCH_AND_MODEL = (
    ("batch", "data"),
    ("vocab", "model"),
    ("mlp", "model"),
    ("heads", "model"),
    ("kv", None),
    ("joined_kv", "model"),
)
_EMBED: Mapping[Any, Rules] = {
    (1, 1): (),
    (2, 1): (("embed", "model"),),
    (1, 2): (("embed", "data"),),
    (2, 2): (("embed", "model"), ("embed", "data")),
}
_REPLICATED = tuple(
    (name, None)
    for name in ("embed", "relpos_buckets", "abspos_buckets", "length", "layers", "stack", "mlp_activations")
)


def rules(activations: int = 1, parameters: int = 1, extra: Rules = ()) -> Rules:
    """T5X's preset of logical axis rules for 1-D or 2-D partitioning of activations and parameters, then `extra`."""
    if (activations, parameters) not in _EMBED:
        raise UserError(f"no partitioning preset ({activations}, {parameters}): both are 1 or 2")
    return (*extra, *_BATCH_AND_MODEL, *_EMBED[activations, parameters], *_REPLICATED)


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """A mesh of (data, model) and the rules that place arrays on it.

    Attributes:
      num_partitions: devices along `model` (T5X's name); the rest of the devices are `data`.
      logical_axis_rules: pairs (logical axis, mesh axis or None); see `rules`.
      devices: the devices to use; None for all.
    """

    num_partitions: int = 1
    logical_axis_rules: Rules = dataclasses.field(default_factory=rules)
    devices: Sequence[jax.Device] | None = None

    @property
    def mesh(self) -> Mesh:
        """The (data, model) mesh. Raises UserError where the devices do not divide."""
        devices = list(self.devices if self.devices is not None else jax.devices())
        data, rest = divmod(len(devices), self.num_partitions)
        if rest or not data:
            divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
            raise UserError(
                f"num_partitions = {self.num_partitions} does not divide {len(devices)} devices; use one of {divisors}"
            )
        shape = (data, self.num_partitions)
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    @contextlib.contextmanager
    def scope(self) -> Iterator[Mesh]:
        """The mesh and the rules in force; sharding constraints of the models are no-ops outside of it."""
        mesh = self.mesh
        with jax.set_mesh(mesh), nn.logical_axis_rules(self.logical_axis_rules):
            yield mesh

    def shardings(self, boxed: Any) -> Any:
        """Shardings of a tree of boxed (abstract) parameters, unboxed. Raises UserError for an axis without a rule."""
        known = {name for name, _ in self.logical_axis_rules}
        specs = nn.get_partition_spec(boxed)
        for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda x: isinstance(x, PartitionSpec)):
            for axis in spec:
                if axis is not None and axis not in known:
                    name = jax.tree_util.keystr(path, simple=True, separator="/")
                    raise UserError(f"no partitioning rule for axis '{axis}' of {name}" + nearest(axis, known))
        return nn.logical_to_mesh_sharding(specs, self.mesh, self.logical_axis_rules)

    def optimizer_shardings(self, optimizer: optax.GradientTransformation, params: Any, shardings: Any) -> Any:
        """Shardings of the optimizer's state: a leaf of its parameter's shape lies as that, any other is everywhere."""
        everywhere = self.everywhere()
        return optax.tree_map_params(
            optimizer,
            lambda leaf, param, sharding: sharding if leaf.shape == param.shape else everywhere,
            jax.eval_shape(optimizer.init, params),
            params,
            shardings,
            transform_non_params=lambda _: everywhere,
        )

    def everywhere(self) -> NamedSharding:
        """The sharding of an array that every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def batch_sharding(self) -> NamedSharding:
        """The sharding of a batch [rows, length]: rows over `data`."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    def host_rows(self, batch_size: int) -> range:
        """The rows of a global batch that this host's devices hold, as one range."""
        sharding = self.batch_sharding()
        if batch_size % self.mesh.shape["data"]:
            data = self.mesh.shape["data"]
            raise UserError(
                f"BATCH_SIZE = {batch_size} does not divide over {data} data shards; use a multiple of {data}"
            )
        slices = [i[0] for i in sharding.addressable_devices_indices_map((batch_size,)).values()]
        return range(min(s.start or 0 for s in slices), max(batch_size if s.stop is None else s.stop for s in slices))

    def global_batch(self, rows: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
        """This host's rows (as `host_rows` names them) as global arrays [batch_size, length]."""
        sharding, first = self.batch_sharding(), self.host_rows(batch_size).start

        def place(array: np.ndarray) -> jax.Array:
            def part(index: tuple[slice, ...]) -> np.ndarray:
                start, stop, _ = index[0].indices(batch_size)
                return array[start - first : stop - first]

            return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, part)

        return {name: place(array) for name, array in rows.items()}
