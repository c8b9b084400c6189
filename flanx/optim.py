"""Optimizers as optax transformations, and learning-rate schedules as functions of the step.

Adafactor has T5X's semantics, option for option and state for state: its state holds T5X's `v_row`, `v_col`, `v` and
`m` (here `momentum`), with zeros of shape (1,) for those that a parameter does not use. `optax.adafactor` gives the
same updates for unstacked parameters; it does not support stacked layers.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax.typing import ArrayLike

from flanx import kernels, moments

Schedule = Callable[[ArrayLike], jax.Array]
Rate = float | Schedule
Given = ParamSpec("Given")
Made = TypeVar("Made", bound=Callable[..., Any] | optax.GradientTransformation)


class _Optimizer(optax.GradientTransformation):
    """A transformation that can have attributes."""


def _recorded(make: Callable[Given, Made]) -> Callable[Given, Made]:
    """Wraps `make` so that its results have the call's arguments as `settings`, {"optim.adamw.learning_rate": 0.001,
    ...}, including those of a schedule: what a run records, and compares when it resumes."""

    @functools.wraps(make)
    def made(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        result: Any = make(*args, **kwargs)
        bound = inspect.signature(make).bind(*args, **kwargs)
        bound.apply_defaults()
        settings: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            is_schedule = callable(value)
            settings[f"optim.{make.__name__}.{name}"] = value.__qualname__.split(".")[0] if is_schedule else value
            settings |= getattr(value, "settings", {})
        result = _Optimizer(*result) if isinstance(result, tuple) else result
        result.settings = settings
        return result

    return made


class AdafactorState(NamedTuple):
    """Adafactor's moments: trees like the parameters, float32; unused ones are zeros of shape (1,).

    A factored [r, c] parameter whose larger axis is c has v_row [r] and v_col [c] (swapped if r is larger).
    `momentum` is the running mean of what is subtracted from the parameters, as T5X's `m`. (Until November 2026 it was
    that of what is added, in a field `m`; `flanx.checkpoint` flips the sign of such a checkpoint.)
    """

    count: jax.Array  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]  int32 [], updates
    v_row: Any
    v_col: Any
    v: Any
    momentum: Any


class _Leaf(NamedTuple):
    """One parameter's update and moments."""

    update: jax.Array
    v_row: jax.Array
    v_col: jax.Array
    v: jax.Array
    momentum: jax.Array


class _Step(NamedTuple):
    """What all parameters share in a step: the learning rate, the second-moment decay, the weight decay."""

    rate: jax.Array
    keep: jax.Array
    decay: jax.Array | float | None


def _is_stacked(path: tuple[Any, ...]) -> bool:
    """Whether a parameter is a stack of layers along axis 0, i.e. under a key `layers`."""
    return any(getattr(key, "key", None) == "layers" for key in path)


def _is_layer_kernel(path: tuple[Any, ...]) -> bool:
    """Whether a parameter is a layer's kernel, stacked or not."""
    keys = [str(getattr(key, "key", "")) for key in path]
    return keys[-1:] == ["kernel"] and any(key == "layers" or key.startswith("layers_") for key in keys)


def factored_axes(shape: tuple[int, ...], min_size: float) -> tuple[int, int] | None:
    """The second largest and the largest axis of a matrix, or None if the second largest is below `min_size`."""
    if len(shape) < 2:
        return None
    *_, second, largest = np.argsort(shape, kind="stable")
    return (int(second), int(largest)) if shape[second] >= min_size else None


def _mean(x: jax.Array, axis: int) -> jax.Array:
    """The mean over one axis; over the first as `kernels.sum_rows`."""
    return kernels.sum_rows(x)[0] / x.shape[0] if axis == 0 else jnp.mean(x, axis=axis)


def _root_mean_square(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


@dataclasses.dataclass(frozen=True)
class _Adafactor:
    """The options of `adafactor`, and its arithmetic for one parameter."""

    decay_rate: float
    step_offset: int
    min_dim_size_to_factor: float  # infinite if nothing is factored
    multiply_by_parameter_scale: bool
    clipping_threshold: float | None
    momentum: float | None
    weight_decay: float | None
    weight_decay_lr_exponent: float | None
    epsilon: float
    min_parameter_scale: float
    max_parameter_scale: float | None
    skip_nan_updates: bool

    def start(self, param: jax.Array) -> _Leaf:
        """Moments before the first step."""
        unused = jnp.zeros((1,), jnp.float32)
        leaf = _Leaf(unused, unused, unused, unused, unused)
        if axes := factored_axes(param.shape, self.min_dim_size_to_factor):
            rows, columns = np.delete(param.shape, axes[1]), np.delete(param.shape, axes[0])
            leaf = leaf._replace(v_row=jnp.zeros(rows, jnp.float32), v_col=jnp.zeros(columns, jnp.float32))
        else:
            leaf = leaf._replace(v=jnp.zeros(param.shape, jnp.float32))
        return leaf if self.momentum is None else leaf._replace(momentum=jnp.zeros(param.shape, jnp.float32))

    def shared(self, count: jax.Array, rate: jax.Array) -> _Step:
        """The rates of the step after `count` updates, shared by all parameters."""
        keep = 1.0 - (count - self.step_offset + 1.0) ** -self.decay_rate
        decay: jax.Array | float | None = self.weight_decay
        if self.weight_decay_lr_exponent is not None:
            decay = (1.0 if decay is None else decay) * rate**self.weight_decay_lr_exponent
        return _Step(rate, keep, decay)

    def precondition(self, leaf: _Leaf, keep: jax.Array) -> _Leaf:
        """Adds the gradient (`leaf.update`) to the second moments and divides it by their square root."""
        grad = leaf.update
        square = jnp.square(grad) + self.epsilon
        if not (axes := factored_axes(grad.shape, self.min_dim_size_to_factor)):
            v = keep * leaf.v + (1.0 - keep) * square
            return leaf._replace(update=grad * jax.lax.rsqrt(v), v=v)
        row, column = axes
        v_row = keep * leaf.v_row + (1.0 - keep) * _mean(square, column)
        v_col = keep * leaf.v_col + (1.0 - keep) * _mean(square, row)
        by_row, by_column = jax.lax.rsqrt(v_row / jnp.mean(v_row)), jax.lax.rsqrt(v_col)
        update = grad * jnp.expand_dims(by_row, column) * jnp.expand_dims(by_column, row)
        return leaf._replace(update=update, v_row=v_row, v_col=v_col)

    def advance(self, leaf: _Leaf, param: jax.Array, step: _Step) -> _Leaf:
        """A parameter's gradient (`leaf.update`) and moments -> what is subtracted from it, and its new moments."""
        before, leaf = leaf, self.precondition(leaf, step.keep)
        update, rate = leaf.update, step.rate
        if self.clipping_threshold is not None:
            update /= jnp.maximum(1.0, _root_mean_square(update) / self.clipping_threshold)
        if self.multiply_by_parameter_scale:
            rate *= jnp.clip(_root_mean_square(param), self.min_parameter_scale, self.max_parameter_scale)
        update *= rate
        if self.momentum is not None:
            update = self.momentum * leaf.momentum + (1.0 - self.momentum) * update
            leaf = leaf._replace(momentum=update)
        if step.decay is not None:
            update += step.decay * param
        leaf = leaf._replace(update=update)
        if self.skip_nan_updates:
            before = before._replace(update=jnp.zeros_like(update))
            leaf = _Leaf(*(jnp.where(jnp.isnan(new), old, new) for new, old in zip(leaf, before, strict=True)))
        return leaf


@_recorded
def adafactor(
    learning_rate: Rate = 1e-3,
    *,
    decay_rate: float = 0.8,
    step_offset: int = 0,
    factored: bool = True,
    min_dim_size_to_factor: int = 128,
    min_layer_dim_size_to_factor: int | None = None,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    momentum: float | None = None,
    weight_decay: float | None = None,
    weight_decay_lr_exponent: float | None = None,
    global_norm: float | None = None,
    epsilon: float = 1e-30,
    min_parameter_scale: float = 1e-3,
    max_parameter_scale: float | None = None,
    skip_nan_updates: bool = False,
) -> optax.GradientTransformation:
    """Adafactor as T5X has it: the learning rate is relative to each parameter's root mean square.

    Args:
      learning_rate: a rate or a schedule of the step, from 0.
      decay_rate: the second moments keep 1 - (step + 1 - step_offset)^-decay_rate of their old value.
      step_offset: the step at which finetuning starts, so that the second moments restart there.
      factored: whether matrices keep row and column means of the squares instead of all of them. Without, scale and
        clipping of stacked layers (scan_layers) are those of the whole stack, as in T5X.
      min_dim_size_to_factor: smallest size of a factored matrix's smaller axis.
      min_layer_dim_size_to_factor: the same for kernels inside of layers; None for no other. T5X factors those of its
        scanned layers (scalable_t5) whatever their sizes: 1.
      clipping_threshold: largest root mean square of an update before the rate, or None.
      momentum: fraction of the last update that is kept (T5X's beta1), or None.
      weight_decay: fraction of a parameter that each step subtracts, or None.
      weight_decay_lr_exponent: multiplies the weight decay (1 if None) by learning_rate^exponent; PaLM has 2.
      global_norm: clips the norm of all gradients together first, or None; PaLM has 1.
      min_parameter_scale, max_parameter_scale: bounds of the root mean square that the rate is relative to.
      skip_nan_updates: numbers of parameters and moments that would become NaN keep their old value.
    """
    rule = _Adafactor(
        decay_rate, step_offset, min_dim_size_to_factor if factored else math.inf, multiply_by_parameter_scale,
        clipping_threshold, momentum, weight_decay, weight_decay_lr_exponent, epsilon, min_parameter_scale,
        max_parameter_scale, skip_nan_updates,
    )  # fmt: skip
    of_layers: _Adafactor | None = None
    if factored and min_layer_dim_size_to_factor is not None:
        of_layers = dataclasses.replace(rule, min_dim_size_to_factor=min_layer_dim_size_to_factor)

    def init(params: Any) -> AdafactorState:
        def one(path: tuple[Any, ...], param: jax.Array) -> _Leaf:
            start = (of_layers if of_layers and _is_layer_kernel(path) else rule).start
            return jax.vmap(start)(param) if _is_stacked(path) else start(param)

        return AdafactorState(jnp.zeros((), jnp.int32), *_columns(jax.tree_util.tree_map_with_path(one, params))[1:])

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AdafactorState]:
        grads = updates
        rate = jnp.asarray(learning_rate(state.count) if callable(learning_rate) else learning_rate, jnp.float32)
        step = rule.shared(state.count, rate)
        if global_norm is not None:
            scale = jnp.minimum(1.0, global_norm / optax.tree.norm(grads))
            grads = jax.tree.map(lambda g: g * scale, grads)

        def one(path: tuple[Any, ...], param: jax.Array, *moments: jax.Array) -> _Leaf:
            options = of_layers if of_layers and _is_layer_kernel(path) else rule

            def each(param: jax.Array, *moments: jax.Array) -> _Leaf:
                return options.advance(_Leaf(*moments), param, step)

            apart = _is_stacked(path) and factored  # T5X uses the scales of a whole stack if nothing is factored
            return (jax.vmap(each) if apart else each)(param, *moments)

        trees = (params, grads, state.v_row, state.v_col, state.v, state.momentum)
        subtracted, *moments = _columns(jax.tree_util.tree_map_with_path(one, *trees))
        return jax.tree.map(jnp.negative, subtracted), AdafactorState(state.count + 1, *moments)

    return optax.GradientTransformation(init, update)


def _columns(tree: Any) -> list[Any]:
    """A tree of `_Leaf` as one tree per field."""
    return [
        jax.tree.map(lambda leaf, i=i: leaf[i], tree, is_leaf=lambda node: isinstance(node, _Leaf))
        for i in range(len(_Leaf._fields))
    ]


@_recorded
def adamw(
    learning_rate: Rate = 1e-4,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    global_norm: float | None = None,
) -> optax.GradientTransformation:
    """AdamW, after clipping the gradients' global norm if one is given."""
    rule = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    return rule if global_norm is None else optax.chain(optax.clip_by_global_norm(global_norm), rule)


def _adamw(
    kind: str, learning_rate: Rate, betas: tuple[float, float], eps: float, weight_decay: float, clip: float | None,
    seed: int,
) -> optax.GradientTransformation:  # fmt: skip
    first = () if clip is None else (optax.clip_by_global_norm(clip),)
    adam = moments.scale_by_adam(kind, *betas, eps, seed)
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(*first, adam, decay, optax.scale_by_learning_rate(learning_rate))


@_recorded
def adamw_bfloat16(
    learning_rate: Rate = 1e-4,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    global_norm: float | None = None,
    seed: int = 0,
) -> optax.GradientTransformation:
    """`adamw` with its moments in bfloat16, half the memory, rounded stochastically by `seed`; see `flanx.moments`."""
    return _adamw("bfloat16", learning_rate, (b1, b2), eps, weight_decay, global_norm, seed)


@_recorded
def adamw_8bit(
    learning_rate: Rate = 1e-4,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    global_norm: float | None = None,
) -> optax.GradientTransformation:
    """`adamw` with its moments in eight bits, a quarter of the memory; see `flanx.moments`."""
    return _adamw("8bit", learning_rate, (b1, b2), eps, weight_decay, global_norm, 0)


@_recorded
def muon(
    learning_rate: Rate = 2e-3,
    *,
    beta: float = 0.95,
    weight_decay: float = 0.0,
    adam_learning_rate: Rate | None = None,
    consistent_rms: float | None = 0.2,
) -> optax.GradientTransformation:
    """Muon (optax.contrib) for the kernels of layers, stacked or not, and AdamW for everything else.

    Args:
      learning_rate: of the kernels; adam_learning_rate: of the rest, None for the same.
      beta: share of the old momentum.
      consistent_rms: scales an update by this and the root of the kernel's longer side, as AdamW's are; None: by that
        of outputs over inputs, where they are more.
    """

    def dimensions(params: Any) -> Any:
        def of_kernel(path: tuple[Any, ...], param: Any) -> Any:
            axes = param.ndim - 2, param.ndim - 1
            return optax.contrib.MuonDimensionNumbers(*axes) if _is_layer_kernel(path) else None

        return jax.tree_util.tree_map_with_path(of_kernel, params)

    return optax.contrib.muon(
        learning_rate,
        beta=beta,
        weight_decay=weight_decay,
        adam_learning_rate=adam_learning_rate,
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=consistent_rms,
    )


@_recorded
def constant(rate: float) -> Schedule:
    """The same rate at every step."""
    return lambda step: jnp.full((), rate, jnp.float32)


@_recorded
def rsqrt_with_warmup(rate: float = 1.0, warmup_steps: int = 10_000) -> Schedule:
    """rate / sqrt(max(step, warmup_steps, 1)): T5's pre-training schedule, flat until `warmup_steps`."""
    return lambda step: rate / jnp.sqrt(jnp.maximum(step, max(1, warmup_steps)).astype(jnp.float32))


def _warm(step: ArrayLike, warmup_steps: int) -> jax.Array:
    return jnp.minimum(1.0, (jnp.asarray(step) + 1.0) / max(1, warmup_steps))


def _progress(step: ArrayLike, warmup_steps: int, total_steps: int) -> jax.Array:
    return jnp.clip((jnp.asarray(step) - warmup_steps) / max(1, total_steps - warmup_steps), 0.0, 1.0)


@_recorded
def cosine(rate: float, total_steps: int, warmup_steps: int = 0, final: float = 0.0) -> Schedule:
    """Linear warm-up to `rate`, then half a cosine down to `final` at `total_steps`."""

    def at(step: ArrayLike) -> jax.Array:
        height = 0.5 * (1.0 + jnp.cos(jnp.pi * _progress(step, warmup_steps, total_steps)))
        return _warm(step, warmup_steps) * (final + (rate - final) * height)

    return at


@_recorded
def linear(rate: float, total_steps: int, warmup_steps: int = 0, final: float = 0.0) -> Schedule:
    """Linear warm-up to `rate`, then a line down to `final` at `total_steps`."""

    def at(step: ArrayLike) -> jax.Array:
        return _warm(step, warmup_steps) * (rate + (final - rate) * _progress(step, warmup_steps, total_steps))

    return at
