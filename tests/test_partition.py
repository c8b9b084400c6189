"""Mesh, rules, shardings of parameters, optimizer and batch."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from flanx import optim, partition
from flanx.errors import UserError
from flanx.models import layers, t5

TINY = t5.T5(
    vocab_size=384, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256, num_encoder_layers=1, num_decoder_layers=1
)


def boxed(shape: tuple[int, ...], names: tuple[str, ...]) -> nn.LogicallyPartitioned:
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


@functools.cache
def abstract() -> tuple[object, object]:
    tree = jax.eval_shape(TINY.init, jax.random.key(0))
    return tree, jax.eval_shape(nn.unbox, tree)


def kernel_spec(activations: int, parameters: int) -> PartitionSpec:
    rules = partition.rules(activations, parameters)
    sharding = partition.Partitioner(2, rules).shardings({"wi": boxed((256, 512), ("embed", "mlp"))})["wi"]
    return sharding.spec


def test_presets_place_a_kernel_as_t5x_does() -> None:
    assert kernel_spec(1, 1) == PartitionSpec(None, "model")
    assert kernel_spec(2, 1) == PartitionSpec(None, "model")  # `model` is taken by mlp
    assert kernel_spec(1, 2) == PartitionSpec("data", "model")
    assert kernel_spec(2, 2) == PartitionSpec("data", "model")


@pytest.mark.parametrize(
    ("rules", "spec"),
    [
        (partition.rules(1, 1), (("replica", "data"), None, None)),
        (partition.rules(2, 1), (("replica", "data"), None, "model")),
        (partition.rules(1, 2), (("replica", "data"), None, None)),
        (partition.rules(2, 2), (("replica", "data"), None, "model")),
        (partition.rules(preset="fsdp"), (("replica", "data", "model"), None, None)),
        (partition.rules(1, 2, extra=[("length", "model")]), (("replica", "data"), "model", None)),
    ],
)
def test_presets_place_what_lies_between_layers(rules: partition.Rules, spec: tuple[object, ...]) -> None:
    assert nn.logical_to_mesh_axes(("batch", "length", "embed"), rules) == PartitionSpec(*spec)


def test_sequence_parallelism_leaves_mlp_split_inside_a_layer() -> None:
    rules = partition.rules(1, 2, extra=[("length", "model")])
    assert nn.logical_to_mesh_axes(("batch", "length", "mlp"), rules) == PartitionSpec(
        ("replica", "data"), None, "model"
    )


def test_mesh_has_automatic_axes() -> None:  # trap 1: constraints of linen fail on explicit ones
    mesh = partition.Partitioner(4).mesh
    assert dict(mesh.shape) == {"replica": 1, "data": 2, "model": 4}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_scope_turns_constraints_on() -> None:  # trap 2: under `with mesh:` they vanish from the jaxpr
    def constrained(x: jax.Array) -> jax.Array:
        return layers.constrain(x, ("batch", "mlp"))

    x = jnp.zeros((8, 8))
    assert "sharding_constraint" not in str(jax.make_jaxpr(constrained)(x))
    with partition.Partitioner(2).scope():
        assert "sharding_constraint" in str(jax.make_jaxpr(constrained)(x))


def test_axis_without_a_rule_is_an_error() -> None:  # trap 3
    with pytest.raises(UserError, match=r"no partitioning rule for axis 'embd' of a/wi; did you mean 'embed'\?"):
        partition.Partitioner(2).shardings({"a": {"wi": boxed((8, 8), ("embd", "mlp"))}})
    with (
        partition.Partitioner(2).scope(),
        pytest.raises(UserError, match=r"no partitioning rule for axis 'hads' of an activation.*did you mean 'heads'"),
    ):
        layers.constrain(jnp.zeros((8, 8)), ("batch", "hads"))


def test_every_axis_of_the_model_has_a_rule_in_every_preset() -> None:
    for key in partition.PRESETS:
        rules = partition.rules(preset="fsdp") if key == "fsdp" else partition.rules(*key)
        assert jax.tree.leaves(partition.Partitioner(2, rules).shardings(abstract()[0]))


@pytest.mark.parametrize("make", [optim.adafactor, optax.adafactor, optim.adamw])
def test_optimizer_state_lies_as_its_parameters(make: object) -> None:  # trap 4
    optimizer = make(learning_rate=1e-3)
    tree, params = abstract()
    partitioner = partition.Partitioner(2, partition.rules(1, 2))
    shardings = partitioner.shardings(tree)
    state = jax.eval_shape(optimizer.init, params)
    placed = partitioner.optimizer_shardings(optimizer, params, shardings)
    whole = [
        leaf.size
        for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True)
        if sharding.is_fully_replicated
    ]
    assert max(whole) < 1000  # no large moment is held whole by every device
    with partitioner.scope():
        made = jax.jit(lambda: optimizer.init(nn.unbox(TINY.init(jax.random.key(0)))), out_shardings=placed)()
    assert jax.tree.all(jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), made, placed))


def test_shardings_of_abstract_parameters_in_scope() -> None:  # trap 5: unboxing outside jit constrains, and fails
    partitioner = partition.Partitioner(2, partition.rules(1, 2))
    with partitioner.scope():
        inside = partitioner.shardings(abstract()[0])
    assert inside == partitioner.shardings(abstract()[0])


def test_indivisible_axis_small_stays_whole_and_large_is_an_error() -> None:
    partitioner = partition.Partitioner(4)
    assert partitioner.shardings({"b": boxed((6, 32), ("heads", "relpos_buckets"))})["b"].spec == PartitionSpec(
        None, None
    )
    with pytest.raises(UserError, match=r"axis 'mlp' of wi is 1022 long and does not divide over the 4 devices"):
        partitioner.shardings({"wi": boxed((1024, 1022), ("embed", "mlp"))})


def test_impossible_mesh_names_the_possible_ones() -> None:
    with pytest.raises(
        UserError, match=r"num_partitions = 3 in 1 replica\(s\) does not divide 8 devices.*\[1, 2, 4, 8\]"
    ):
        _ = partition.Partitioner(3).mesh
    with pytest.raises(UserError, match=r"in 3 replica\(s\) does not divide 8 devices; use one of another number"):
        _ = partition.Partitioner(1, num_replicas=3).mesh


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh asks of a device of one of several slices."""

    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "none"
    process_index: int = 0


def test_slices_are_told_apart_along_replica_and_then_data() -> None:
    devices = [Chip(i, i % 2) for i in range(8)]  # not in the order of their slices
    grid = partition._grid_of_slices((2, 2, 2), devices, 2)
    assert grid.shape == (2, 2, 2)
    assert [{chip.slice_index for chip in replica.flat} for replica in grid] == [{0}, {1}]
    grid = partition._grid_of_slices((1, 4, 2), devices, 2)
    assert [{chip.slice_index for chip in rows.flat} for rows in grid[0]] == [{0}, {0}, {1}, {1}]
    with pytest.raises(UserError, match=r"does not split over 2 slices; set num_replicas = 2"):
        partition._grid_of_slices((1, 1, 8), devices, 2)


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no partitioning preset \(3, 1\): known are"):
        partition.rules(3, 1)


def test_batch_rows_over_replicas_and_data() -> None:
    partitioner = partition.Partitioner(2, num_replicas=2)
    assert partitioner.host_rows(8) == range(8)
    rows = {"x": np.arange(24, dtype=np.int32).reshape(8, 3)}
    placed = partitioner.global_batch(rows, 8)["x"]
    np.testing.assert_array_equal(placed, rows["x"])
    assert placed.sharding.shard_shape(placed.shape) == (2, 3)


def test_batch_that_does_not_divide() -> None:
    with pytest.raises(UserError, match="BATCH_SIZE = 6 does not divide over 4 data shards; use a multiple of 4"):
        partition.Partitioner(2).host_rows(6)


def test_large_replicated_arrays_are_reported() -> None:
    params = {"a": jax.ShapeDtypeStruct((4096, 2048), jnp.float32), "b": jax.ShapeDtypeStruct((8,), jnp.float32)}
    names = {"a": boxed((4096, 2048), ("embed", "kv")), "b": boxed((8,), ("embed",))}
    one, two = partition.Partitioner(2), partition.Partitioner(2, partition.rules(1, 2))
    assert one.replicated(params, one.shardings(names)) == [("a", 4 * 4096 * 2048)]
    assert two.replicated(params, two.shardings(names)) == []


def test_compilations_are_kept_on_disk(tmp_path: object) -> None:
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        partition.cache_compilations()
        assert jax.config.jax_compilation_cache_dir is None  # a CPU keeps nothing unless told
        partition.cache_compilations(tmp_path)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    finally:
        partition.cache_compilations(before)


@pytest.mark.parametrize("make", [optim.adafactor, optax.adafactor])
def test_factored_moments_are_sharded_as_the_dimension_they_keep(make: object) -> None:
    params = {"wi": jax.ShapeDtypeStruct((256, 512), jnp.float32), "scale": jax.ShapeDtypeStruct((64,), jnp.float32)}
    partitioner = partition.Partitioner(2, partition.rules(1, 2))
    shardings = partitioner.shardings({"wi": boxed((256, 512), ("embed", "mlp")), "scale": boxed((64,), ("kv",))})
    optimizer = make(learning_rate=1e-3)
    state = jax.eval_shape(optimizer.init, params)
    placed = partitioner.optimizer_shardings(optimizer, params, shardings)
    specs: dict[tuple[int, ...], set[PartitionSpec]] = {}
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True):
        specs.setdefault(leaf.shape, set()).add(sharding.spec)
    assert specs[256,] == {PartitionSpec("data")}  # rows: mlp is averaged out
    assert specs[512,] == {PartitionSpec("model")}  # columns: embed is
