"""Checks gin bindings: every value against the annotation of its parameter and the range for its name.

A parameter's name means the same in every signature, so that a range belongs to a name. The check runs when the gin
files are parsed, before anything is read, written or compiled. A whole float is converted to an int
(`TRAIN_STEPS=1e6`); "~" and "file://" in a path are resolved. Nothing else is converted: '64' for 64 may be a quoting
mistake that also affects other values.
"""

import argparse
import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import itertools
import math
import os
import pathlib
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from flanx import hub
from flanx.errors import UserError

UNCHECKED = object()  # a value known only after a call: a function's result


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `open_low` or `open_high` excludes the end."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        return above and (number < self.high if self.open_high else number <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.open_low else f"{self.low:g} or more"
        if self.high == math.inf:
            return low
        if self.low == -math.inf:
            return f"at most {self.high:g}"
        high = f"below {self.high:g}" if self.open_high else f"{self.high:,.10g} at most"
        return f"{low}, {high}"


COUNT, NATURAL = Range(1, 2**31 - 1), Range(0, 2**31 - 1)
RATE, POSITIVE, SHARE = Range(0), Range(0, open_low=True), Range(0, 1)
BELOW_ONE = Range(0, 1, open_high=True)
MOST_SECONDS = 30 * 24 * 3600  # of any time limit

# of numbers, including those in a list or the values of a dict
RANGES: Mapping[str, Range] = {
    "adam_learning_rate": RATE,
    "alpha": POSITIVE,
    "activations": Range(1, 2),
    "batch_size": Range(1, 10_000_000),
    "beams": NATURAL,
    "beta": BELOW_ONE,
    "caps": RATE,
    "clipping_threshold": POSITIVE,
    "consistent_rms": POSITIVE,
    "cot_ratio": SHARE,
    "decay_rate": Range(0, 1),
    "decoder_start_token_id": NATURAL,
    "dropout": BELOW_ONE,
    "dropout_rate": BELOW_ONE,
    "b1": BELOW_ONE,
    "b2": BELOW_ONE,
    "emb_dim": COUNT,
    "eps": POSITIVE,
    "epsilon": RATE,
    "eval_period": COUNT,
    "examples": COUNT,
    "extra_ids": NATURAL,
    "final": RATE,
    "global_norm": POSITIVE,
    "head_dim": COUNT,
    "inversion": RATE,
    "keep": COUNT,
    "keep_period": COUNT,
    "label_smoothing": BELOW_ONE,
    "learning_rate": RATE,
    "lengths": Range(1, 10_000_000),
    "log_period": COUNT,
    "task_loss_period": COUNT,
    "validation_examples": COUNT,
    "loss_normalizing_factor": POSITIVE,
    "max_bad_rows": NATURAL,
    "max_new_tokens": COUNT,
    "max_parameter_scale": POSITIVE,
    "max_tokens": COUNT,
    "min_dim_size_to_factor": COUNT,
    "min_layer_dim_size_to_factor": COUNT,
    "min_parameter_scale": RATE,
    "mlp_dim": COUNT,
    "momentum": BELOW_ONE,
    "n": NATURAL,
    "num_decoder_layers": COUNT,
    "num_encoder_layers": COUNT,
    "num_heads": COUNT,
    "num_layers": COUNT,
    "num_microbatches": COUNT,
    "num_partitions": COUNT,
    "num_replicas": COUNT,
    "num_tasks": NATURAL,
    "parameters": Range(1, 2),
    "partitions": COUNT,
    "patience": COUNT,
    "peak_flops": POSITIVE,
    "period": COUNT,
    "rank": COUNT,
    "rate": RATE,
    "rate_multipliers": RATE,
    "rates": RATE,
    "renderings": COUNT,
    "samples": COUNT,
    "seed": Range(0, 2**32 - 1),
    "self_consistency": NATURAL,
    "step": NATURAL,
    "step_offset": NATURAL,
    "styles": RATE,
    "task_feature_lengths": Range(1, 10_000_000),
    "temperature": Range(0, 1000),
    "timeout": Range(0, MOST_SECONDS, open_low=True),
    "top_k": NATURAL,
    "top_p": Range(0, 1, open_low=True),
    "total_steps": NATURAL,
    "train_steps": NATURAL,
    "vocab_size": COUNT,
    "warmup_steps": NATURAL,
    "warn_epochs": POSITIVE,
    "weight_decay": RATE,
    "weight_decay_lr_exponent": RATE,
    "workers": NATURAL,
    "z_loss": RATE,
}
FOLDERS = ("model_dir", "out_dir")  # written: on a file system or in a bucket
NAMED = ("checkpoint", "path", "start", "vocabulary")  # may also be a name on the Hugging Face hub
PATHS = (*FOLDERS, *NAMED, "compilation_cache", "data_dir", "out_file", "prompts", "store_dir")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "num_partitions": ("auto",),
    "peak_flops": ("measured",),
    "loss_normalizing_factor": ("tokens", "NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE"),
}


class Wrong(Exception):
    """What is expected instead of a value."""


def flag(kind: type[int] | type[float], limits: Range) -> Callable[[str], Any]:
    """The `type` of a command-line flag that takes a finite number within limits."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError, OverflowError):
            number = kind(text)
            if math.isfinite(number) and number in limits:
                return number
        raise argparse.ArgumentTypeError(f"'{text}'; it takes {_kind(kind)}, {limits}")

    return read


def path_flag(text: str) -> str:
    """The `type` of a flag or argument that takes a path or URL."""
    try:
        return _path("path", text)
    except Wrong as wrong:
        raise argparse.ArgumentTypeError(f"'{text}'; it takes {wrong}") from None


def text_flag(text: str) -> str:
    """The `type` of a flag that takes a non-empty text."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"'{text}'; it takes a text, not an empty one")
    return text


@functools.cache
def annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """{parameter: its type} of a function or class, except those whose types cannot be resolved."""
    owner = function
    if inspect.isclass(function) and not dataclasses.is_dataclass(function):
        owner = function.__init__
    try:
        return {name: hint for name, hint in typing.get_type_hints(owner).items() if name != "return"}
    except (NameError, TypeError, AttributeError):
        return {}


def check(function: Callable[..., Any], name: str, value: Any) -> Any:
    """`value` converted for the parameter `name` of `function`. Raises Wrong with what is expected.

    `value` is what gin bound, with macros substituted, and UNCHECKED for what is known only after a call.
    """
    if function.__module__.partition(".")[0] != "flanx":
        return value
    hint = annotations(function).get(name, Any)
    if value is None and not _takes(hint, type(None)):
        raise Wrong(_describe(hint, name))
    if isinstance(value, str) and re.search(r"\bhf_[A-Za-z0-9]{20,}", value):
        raise Wrong("no access token: it would be written into the run's records; set HF_TOKEN instead")
    value = _convert(hint, name, value)
    return _path(name, value) if name in PATHS and isinstance(value, str) else value


def checked(function: Callable[..., Any], **given: Any) -> dict[str, Any]:
    """The converted arguments of a function. Raises UserError naming the first invalid one."""
    taken = {}
    for name, value in given.items():
        try:
            taken[name] = check(function, name, value)
        except Wrong as wrong:
            text = repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."
            raise UserError(f"{function.__name__}: {name} is {text}; it takes {wrong}") from None
    return taken


def convert(hint: Any, value: Any) -> Any:
    """`value` converted to the type of an annotation, whatever its name. Raises Wrong."""
    return _convert(hint, "", value)


def _takes(hint: Any, kind: type) -> bool:
    return hint is Any or hint is kind or kind in typing.get_args(hint) or Any in typing.get_args(hint)


def _convert(hint: Any, name: str, value: Any) -> Any:
    """The value converted to the hint's type. Raises Wrong if it has another type or is out of range."""
    if value is UNCHECKED or hint in (Any, object):
        return value
    kind = _origin(hint)
    if kind is typing.Union:
        return _convert_any(typing.get_args(hint), hint, name, value)
    if hint in (int, float):
        return _number(hint, name, value)
    if kind in (list, dict):
        return _items(hint, name, value)
    if kind is typing.Literal:
        holds = value in typing.get_args(hint)
    elif kind is collections.abc.Callable:
        holds = callable(value)
    elif hint in (str, bool, type(None)):
        holds = type(value) is hint and (hint is not str or value in CHOICES.get(name, (value,)))
    elif os.PathLike in (hint, kind):
        holds = isinstance(value, str | os.PathLike)
    else:  # a class, whose instances only come from a call
        holds = not (inspect.isclass(hint) and isinstance(value, str | int | float | bool | list | tuple | dict))
    if not holds:
        raise Wrong(_describe(hint, name))
    return value


@functools.cache
def _origin(hint: Any) -> Any:
    """The kind of a hint: Union, list for any sequence, dict for any mapping, otherwise its own origin."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return typing.Union
    if origin in (collections.abc.Sequence, list, tuple):
        return list
    return dict if origin in (collections.abc.Mapping, dict) else origin


def _convert_any(parts: tuple[Any, ...], hint: Any, name: str, value: Any) -> Any:
    """The value as the first type that accepts it, trying its own first."""
    for part in sorted(parts, key=lambda part: part is not type(value)):
        try:
            return _convert(part, name, value)
        except Wrong:
            continue
    raise Wrong(_describe(hint, name))


def _items(hint: Any, name: str, value: Any) -> Any:
    """A list or dict with every item converted; for a tuple of several types, each item by its own."""
    parts = typing.get_args(hint)
    if _origin(hint) is dict and isinstance(value, Mapping):
        return {_convert(parts[0], name, key): _convert(parts[1], name, item) for key, item in value.items()}
    if _origin(hint) is list and isinstance(value, list | tuple):
        is_mixed = typing.get_origin(hint) is tuple and Ellipsis not in parts
        kinds = parts if is_mixed else itertools.repeat(parts[0], len(value))
        with contextlib.suppress(Wrong, ValueError):  # ValueError: more items than types, or fewer
            return type(value)(_convert(kind, name, item) for kind, item in zip(kinds, value, strict=True))
    raise Wrong(_describe(hint, name))


def _number(hint: Any, name: str, value: Any) -> float:
    """A number as int or float; a whole float becomes an int, True and False are not numbers."""
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int if hint is int else int | float):
        raise Wrong(_describe(hint, name))
    if not abs(value) < math.inf or value not in RANGES.get(name, Range(-math.inf)):
        raise Wrong(_describe(hint, name))
    return value


def _path(name: str, text: str) -> str:
    """A path with "~" expanded to the home folder and "file://" removed."""
    text = text.removeprefix("file://")
    if not text.strip() or any(ord(c) < 32 for c in text):
        raise Wrong("a path, not an empty one" if not text.strip() else "a path without control characters")
    if text.startswith(hub.PREFIX):
        if name not in NAMED:
            raise Wrong("a path, no name of the Hugging Face hub")
        if name != "vocabulary" and not hub.NAME.fullmatch(text):
            raise Wrong("a path, or a name of the Hugging Face hub as hf:ORG/NAME or hf:ORG/NAME@REVISION")
        return text
    if re.match(r"[a-z0-9]+:(?!//)", text) and name != "vocabulary" and not os.path.lexists(text):
        raise Wrong(f"a path; '{text}' is neither one nor a URL (a URL has ://; './{text}' is a path)")
    if "://" in text:
        if re.match(r"[^/]*//[^/]*@", text):
            raise Wrong("a URL without a name and password in it: they would be written into the run's records")
        if name in FOLDERS and not re.match(r"(gs|s3)://[^/]", text):
            raise Wrong("a folder: a path, gs://BUCKET/... or s3://BUCKET/...")
        return text
    if text.startswith("~"):
        expanded = os.path.expanduser(text)
        if expanded.startswith("~"):
            raise Wrong(f"a path; there is no home folder '{pathlib.PurePath(text).parts[0]}'")
        text = expanded
    if any(len(os.fsencode(part)) > 255 for part in pathlib.PurePath(text).parts) or len(os.fsencode(text)) > 4000:
        raise Wrong("a shorter path: file systems take 255 bytes for a name")
    return text


def _describe(hint: Any, name: str) -> str:
    """What a parameter takes, in words."""
    options = [_kind(part) for part in (typing.get_args(hint) if _origin(hint) is typing.Union else (hint,))]
    options = list(dict.fromkeys(options))
    if name in CHOICES:
        options = [" or ".join(f"'{choice}'" for choice in CHOICES[name]) if o == "a text" else o for o in options]
    limits = f", {RANGES[name]}" if name in RANGES and hint is not bool else ""
    return " or ".join(options) + limits


def _kind(hint: Any) -> str:
    """A type in words."""
    if _origin(hint) is collections.abc.Callable:
        return "a function (@module.function)"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}
    names |= {os.PathLike: "a path"}
    if hint in names or inspect.isclass(hint):
        return names.get(hint, f"a {getattr(hint, '__name__', hint)} (@module.name())")
    literal = typing.get_origin(hint) is typing.Literal
    parts = [repr(part) if literal else _kind(part).removeprefix("a ") for part in typing.get_args(hint)]
    if literal or _origin(hint) is typing.Union:
        return " or ".join(parts)
    if typing.get_origin(hint) is tuple and Ellipsis not in typing.get_args(hint):
        return f"({', '.join(parts)})"
    several = re.sub(r"(\w)(?= or |$)", r"\1s", parts[0]) if parts else "values"
    kinds = {list: f"a list of {several}", dict: f"a dict {{{': '.join(parts)}}}"}
    return kinds.get(_origin(hint), "another value")
