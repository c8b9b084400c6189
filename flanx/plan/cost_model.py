"""The per-chip cost of a step from its jaxpr: memory, FLOPs and collectives, without compiling anything.

The step is traced once with prime sizes (rows, lengths, emb_dim, heads, ...), so that a dimension's factors identify
its logical name; bytes and FLOPs are counted with the true sizes. A layout's rules then give the number of chips that
an array is split over. One pass over the equations, in order, sums the live bytes (nothing is fused; views and
broadcasts are free), the FLOPs of products, and for each product the collectives that its dimensions require.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax.linen import spmd
from jax.extend import core

from flanx import partition, trainable
from flanx.plan.mesh_layout import MeshLayout
from flanx.plan.planned_run import PlannedRun

# model field -> (its stand-in size in a trace, logical name); head_dim is even, for rotary embeddings
PRIMES = {
    "emb_dim": (1021, "embed"),
    "num_heads": (1031, "heads"),
    "head_dim": (2 * 1033, "kv"),
    "mlp_dim": (1039, "mlp"),
    "vocab_size": (1049, "vocab"),
}
ROWS, INPUTS, TARGETS = 1009, 1013, 1019
FREE = {  # computed on the fly or in place by a compiler
    *("broadcast_in_dim", "iota", "reshape", "squeeze", "expand_dims", "transpose", "sharding_constraint"),
    *("stop_gradient", "copy", "random_wrap", "random_unwrap", "random_fold_in", "random_split"),
}
ARITHMETIC = {  # on arrays of a parameter's shape it belongs to the optimizer, which is fused and in place
    *("add", "sub", "mul", "div", "neg", "max", "min", "sqrt", "rsqrt", "square", "integer_pow", "pow", "select_n"),
    *("add_any", "sign", "abs"),
}


@dataclasses.dataclass(frozen=True)
class Trace:
    """A run's step as a jaxpr over stand-in sizes, and their meaning: {prime: (logical name, true size)}."""

    run: PlannedRun
    jaxpr: Any
    primes: Mapping[int, tuple[str, float]]
    tpu: bool


@dataclasses.dataclass
class Cost:
    """The cost of a step on one chip. Bytes, FLOPs; collectives {(kind, mesh axes): bytes that the chip sends}."""

    params: float = 0.0
    optimizer: float = 0.0
    gradients: float = 0.0
    activations: float = 0.0
    batch: float = 0.0
    flops: float = 0.0  # recomputation included
    collectives: dict[tuple[str, tuple[str, ...]], float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )

    @property
    def hbm(self) -> float:
        """Total bytes at the peak."""
        return self.params + self.optimizer + self.gradients + self.activations + self.batch


def trace(run: PlannedRun, tpu: bool = True) -> Trace:
    """Traces the step over one microbatch; `cost` adds what gradient accumulation needs."""
    fields = {f: entry for f, entry in PRIMES.items() if hasattr(run.model, f)}
    traced = run.with_model(**{field: size for field, (size, _) in fields.items()})
    inputs, targets = run.lengths["inputs"], run.lengths["targets"]
    rows = run.batch_size / run.trainer.num_microbatches
    primes = {size: (name, float(getattr(run.model, field))) for field, (size, name) in fields.items()}
    primes[PRIMES["head_dim"][0] // 2] = ("kv", getattr(run.model, "head_dim", 2) / 2)
    primes |= {ROWS: ("batch", rows), INPUTS: ("length", inputs), TARGETS: ("length", targets)}
    primes[INPUTS + TARGETS] = ("length", inputs + targets)
    trainer = dataclasses.replace(traced.trainer, num_microbatches=1)
    batch = dataclasses.replace(traced, batch_size=ROWS, lengths={"inputs": INPUTS, "targets": TARGETS}).batch()
    return Trace(run, jax.make_jaxpr(trainer.step)(jax.eval_shape(trainer.init), batch), primes, tpu)


def cost(traced: Trace, layout: MeshLayout) -> Cost:
    """The cost of a step under a layout. Raises UserError if a large parameter does not divide."""
    run, partitioner = traced.run, layout.partitioner()
    state = run.trainer.abstract_state(partitioner)
    walk = _Walk(traced, partitioner)
    peak = walk.run(traced.jaxpr.jaxpr)
    parts = run.trainer.num_microbatches
    result = Cost(params=_bytes(state.params), optimizer=_bytes(state.opt_state), batch=_bytes(run.batch(partitioner)))
    patterns = run.trainer.patterns
    result.gradients = result.params if patterns is None else _bytes(trainable.split(state.params, patterns)[0])
    # the walk covers one microbatch, including its gradients; accumulation adds the sum of gradients
    result.activations = max(peak - result.gradients, 0.0) + (result.gradients if parts > 1 else 0.0)
    result.flops = walk.flops * parts
    for key, sent in walk.collectives.items():
        result.collectives[key] = sent * parts
    return result


def _bytes(tree: Any) -> float:
    """Bytes of a tree's shards on one chip."""
    return float(
        sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    )


class _Walk:
    """One pass over a jaxpr under one layout: live bytes, FLOPs, collectives."""

    def __init__(self, traced: Trace, partitioner: partition.Partitioner) -> None:
        self.traced = traced
        self.rules = tuple(partitioner.logical_axis_rules)
        self.axis_sizes = dict(partitioner.mesh.shape)
        self.flops = 0.0
        self.collectives: dict[tuple[str, tuple[str, ...]], float] = collections.defaultdict(float)
        self._true: dict[int, tuple[str | None, float]] = {}
        self._sizes: dict[Any, float] = {}
        self._axes: dict[tuple[int, ...], tuple[tuple[str, ...], ...]] = {}

    def true(self, n: int) -> tuple[str | None, float]:
        """The logical name of a dimension in the trace and its true size."""
        if n not in self._true:
            self._true[n] = self._factor(n)
        return self._true[n]

    def _factor(self, n: int) -> tuple[str | None, float]:
        names, size = set(), 1.0
        for prime, (name, actual) in self.traced.primes.items():
            while n and n % prime == 0:
                n, size = n // prime, size * actual
                names.add(name)
        if "batch" in names:
            return "batch", n * size
        return "joined_kv" if names == {"heads", "kv"} else min(names, default=None), n * size

    def mesh_axes(self, shape: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
        """The mesh axes that split each dimension of an array."""
        if shape not in self._axes:
            names: list[str | None] = []
            for n in shape:
                name = self.true(n)[0]
                names.append(name if name not in names else None)
            if "batch" not in names:  # not an activation: its lengths are not split
                names = [None if name == "length" else name for name in names]
            spec = spmd.logical_to_mesh_axes(tuple(names), self.rules) or ()
            self._axes[shape] = tuple((a,) if isinstance(a, str) else tuple(a or ()) for a in spec)
        return self._axes[shape]

    def split(self, axes: Iterable[str]) -> int:
        """Chips along mesh axes."""
        return math.prod(self.axis_sizes[a] for a in axes)

    def elements(self, shape: tuple[int, ...]) -> float:
        """Elements of an array on one chip, by true sizes."""
        return math.prod(self.true(n)[1] for n in shape) / self.split(a for axes in self.mesh_axes(shape) for a in axes)

    def size(self, aval: Any) -> float:
        """Bytes of an array on one chip."""
        key = (aval.shape, aval.dtype)
        if key not in self._sizes:
            width = 8 if jax.numpy.issubdtype(aval.dtype, jax.dtypes.extended) else aval.dtype.itemsize
            self._sizes[key] = self.elements(aval.shape) * width
        return self._sizes[key]

    def run(self, jaxpr: Any, times: float = 1.0) -> float:
        """The peak bytes of arrays created in `jaxpr`; adds its FLOPs and collectives, multiplied by `times`."""
        last: dict[Any, int] = {}
        for i, eqn in enumerate(jaxpr.eqns):
            last |= {v: i for v in eqn.invars if not isinstance(v, core.Literal)}
        last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if not isinstance(v, core.Literal)}
        live, peak = 0.0, 0.0
        held: dict[Any, float] = {}
        ends: dict[int, list[Any]] = collections.defaultdict(list)
        for i, eqn in enumerate(jaxpr.eqns):
            inner = self._inner(eqn, times)
            for v in eqn.outvars:
                held[v] = 0.0 if self._is_free(eqn, v.aval) else self.size(v.aval)
                ends[last.get(v, i)].append(v)
            made = sum(held[v] for v in eqn.outvars)
            peak = max(peak, live + max(made, inner))
            live += made - sum(held.pop(v) for v in ends.pop(i, ()))
        return peak

    def _is_free(self, eqn: Any, aval: Any) -> bool:
        """Whether an equation's result takes no memory of its own."""
        name = eqn.primitive.name
        return name in FREE or (name in ARITHMETIC and not {"batch", "length"} & {self.true(n)[0] for n in aval.shape})

    def _inner(self, eqn: Any, times: float) -> float:
        """The peak inside an equation; counts the equation if it is a product."""
        if eqn.primitive.name == "dot_general":
            self._product(eqn, times)
            return 0.0
        if eqn.primitive.name == "cond":
            return self.run(self._branch(eqn).jaxpr, times)
        repeats = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        return max((self.run(j, times * repeats) for j in _jaxprs(eqn)), default=0.0)

    def _branch(self, eqn: Any) -> Any:
        """The branch of a conditional that the platform takes (`lax.platform_dependent`), else its last."""
        platform = "tpu" if self.traced.tpu else "cuda"
        platforms = eqn.params.get("branches_platforms") or ()
        taken = (i for i, names in enumerate(platforms) if names is None or platform in names)
        return eqn.params["branches"][next(taken, -1)]

    def _product(self, eqn: Any, times: float) -> None:
        """FLOPs of a product, and the collectives that its dimensions require, one mesh axis at a time.

        An axis that splits the contracted dimensions of both operands leaves partial sums: they are all-reduced, or
        reduce-scattered where the result is split. An axis that splits a contracted dimension of only one operand, or
        a free dimension of both, cannot stay: the first of those operands is gathered.
        """
        (summed, _) = eqn.params["dimension_numbers"]
        sides, out = [v.aval for v in eqn.invars], eqn.outvars[0].aval
        places = [self.mesh_axes(side.shape) for side in sides]
        depth = math.prod(self.true(sides[0].shape[i])[1] for i in summed[0])
        made = self.elements(out.shape)
        for axis, n in self.axis_sizes.items():
            if n == 1:
                continue
            inside = [any(axis in place[i] for i in dims) for place, dims in zip(places, summed, strict=True)]
            anywhere = [any(axis in axes for axes in place) for place in places]
            in_out = any(axis in axes for axes in self.mesh_axes(out.shape))
            if all(inside):
                depth /= n
                made *= n if in_out else 1  # computed whole, then scattered
                whole = self.size(out) * (n if in_out else 1)
                kind, factor = ("reduce-scatter", 1.0) if in_out else ("all-reduce", 2.0)
                self.collectives[kind, (axis,)] += times * factor * whole * (n - 1) / n
            elif any(inside) and not all(anywhere) and not in_out:
                depth /= n  # the other operand is whole: each chip takes its part of it
                self.collectives["all-reduce", (axis,)] += times * 2.0 * self.size(out) * (n - 1) / n
            elif any(inside) or self._clash(eqn, axis, places):
                split = [side for side, here in zip(sides, inside if any(inside) else anywhere, strict=True) if here]
                gathered = min(split, key=self._has_rows)  # a parameter rather than an activation
                self.collectives["all-gather", (axis,)] += times * self.size(gathered) * (n - 1)
        self.flops += times * 2.0 * made * depth

    def _has_rows(self, aval: Any) -> bool:
        return any(self.true(n)[0] == "batch" for n in aval.shape)

    def _clash(self, eqn: Any, axis: str, places: Sequence[Sequence[Sequence[str]]]) -> bool:
        """Whether an axis splits a free dimension of both operands (a batch dimension may be split in both)."""
        summed, batched = eqn.params["dimension_numbers"]
        free = [
            any(axis in axes for i, axes in enumerate(place) if i not in (*s, *b))
            for place, s, b in zip(places, summed, batched, strict=True)
        ]
        return all(free)


def _jaxprs(eqn: Any) -> Iterator[Any]:
    """The jaxprs inside an equation: calls, loops, rematerialized and custom functions."""
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
