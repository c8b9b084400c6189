"""Which parameters a run trains: name patterns, trees split in two, learning rates of parts.

A pattern is a regular expression that matches a full name (`decoder/layers_0/mlp/wo/kernel`; `layers` stands for every
layer). A leading "!" excludes what it matches. The last pattern that matches a name decides; if the first one excludes,
it is as if all names were included before it: ["decoder/.*", "!.*embedding"], ["!token_embedder/.*"].
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from flanx.errors import UserError, nearest
from flanx.models.adapter import MARK, Adapter

OF_ADAPTERS = (rf".*/{MARK}\w+",)


def check(patterns: Sequence[str]) -> tuple[str, ...]:
    """Patterns as a tuple. Raises UserError for an invalid regular expression, and for an empty list."""
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not patterns:
        raise UserError("TRAINABLE is empty: nothing would be trained; None trains all parameters")
    for pattern in patterns:
        _expect_expression(pattern.removeprefix("!"))
    return patterns


def check_multipliers(multipliers: Mapping[str, float]) -> None:
    """Raises UserError for a pattern that is an invalid regular expression or excludes, and for an invalid factor."""
    for pattern, factor in multipliers.items():
        if pattern.startswith("!"):
            raise UserError(f"RATE_MULTIPLIERS: '{pattern}' takes away; name what has a factor, without '!'")
        _expect_expression(pattern)
        if not 0 <= factor < math.inf:
            raise UserError(f"RATE_MULTIPLIERS: '{pattern}' has the factor {factor}; give a number, 0 or more")


def _expect_expression(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"'{pattern}' is not a regular expression: {error}") from error


def fits(pattern: str, name: str) -> bool:
    """Whether a pattern, with or without a leading "!", matches a name."""
    bare, unrolled = pattern.removeprefix("!"), re.sub(r"\blayers_[0-9]+", "layers", name)
    return any(re.fullmatch(bare, each) for each in (name, unrolled))


def is_trained(patterns: Sequence[str], name: str) -> bool:
    """Whether the parameter with that name is trained."""
    last = next((pattern for pattern in reversed(patterns) if fits(pattern, name)), None)
    return patterns[0].startswith("!") if last is None else not last.startswith("!")


def flat(tree: Any) -> dict[str, Any]:
    """{"a/b": leaf} of nested dicts."""
    leaves: Any = flatten_dict(tree, sep="/")  # flax's return annotation includes its empty nodes
    return leaves


def split(params: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """Nested dicts split in two: what is trained and what is not."""
    leaves = flat(params)
    trained = {name: leaf for name, leaf in leaves.items() if is_trained(patterns, name)}
    frozen = {name: leaf for name, leaf in leaves.items() if name not in trained}
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def join(one: Any, other: Any) -> Any:
    """The tree that `split` split."""
    return unflatten_dict(flat(one) | flat(other), sep="/")


def expect_names(patterns: Sequence[str], params: Any) -> None:
    """Raises UserError for a pattern that matches no name, and if nothing is left to train."""
    names = list(flat(params))
    for pattern in patterns:
        if not any(fits(pattern, name) for name in names):
            raise UserError(f"'{pattern}' fits no parameter{nearest(pattern.removeprefix('!'), names)}")
    if not any(is_trained(patterns, name) for name in names):
        raise UserError(f"TRAINABLE = {list(patterns)} leaves nothing to train")


def expect_multiplied(multipliers: Mapping[str, float], trained: Any) -> None:
    """Raises UserError for a pattern that matches no trained parameter: its factor would have no effect."""
    names = list(flat(trained))
    for pattern in multipliers:
        if not any(fits(pattern, name) for name in names):
            raise UserError(f"RATE_MULTIPLIERS: '{pattern}' fits no parameter that is trained{nearest(pattern, names)}")


def multiply(updates: Any, multipliers: Mapping[str, float]) -> Any:
    """Multiplies updates by the factor of the last pattern that matches their name."""
    reverse = list(multipliers.items())[::-1]

    def factor(path: Any, update: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return update * next((by for pattern, by in reverse if fits(pattern, name)), 1.0)

    return jax.tree_util.tree_map_with_path(factor, updates)


def describe(patterns: Sequence[str], params: Any) -> str:
    """A line for people: how many of how many parameters are trained, and the names of their layers."""
    sizes = {name: math.prod(leaf.shape) for name, leaf in flat(params).items()}
    trained = [name for name in sizes if is_trained(patterns, name)]
    count, total = sum(sizes[name] for name in trained), sum(sizes.values())
    kinds = list(dict.fromkeys(re.sub(r"\blayers_[0-9]+", "layers", name) for name in trained))
    few = ", ".join(kinds[:4]) + (f" and {len(kinds) - 4} more" if len(kinds) > 4 else "")
    return f"trains {count:,} of {total:,} parameters ({count / total:.2%}), {len(trained)} tensors: {few}"


def with_adapter(model: Any, adapter: Adapter, patterns: Sequence[str] | None) -> Any:
    """A model with an adapter. Raises UserError if it does not support one, and for patterns together with one."""
    if patterns is not None:
        raise UserError("ADAPTER and TRAINABLE exclude each other: an adapter alone is trained, all else is frozen")
    if not hasattr(model, "adapter"):
        raise UserError(f"{type(model).__name__} takes no adapter; T5 and PaLM do")
    return model if model.adapter == adapter else dataclasses.replace(model, adapter=adapter)


def expect_targets(adapter: Adapter, params: Any) -> None:
    """Raises UserError for a target that is not a layer of the model."""
    layers = dict.fromkeys(
        name.rpartition("/")[0] for name in flat(params) if "/layers" in name and re.search(r"/kernel(_\w+)?$", name)
    )
    for target in adapter.targets:
        one = dataclasses.replace(adapter, targets=(target,))
        if not any(one.is_target(layer) for layer in layers):
            raise UserError(
                f"lora.Adapter.targets: '{target}' fits no layer; the layers are "
                + ", ".join(dict.fromkeys(layer.rpartition("/")[2] for layer in layers))
            )
