"""The operations of the `fields` language (flanx/data/task/fields.py): each takes its arguments and returns a Step.

OPS is the whole language. An operation reads names through `get` and writes to the output.
"""

import contextlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from flanx.data.task.functions import FUNCTIONS
from flanx.data.task.row import BadRow, Draw, Record, SkipRow, text_of
from flanx.errors import nearest


@dataclass(frozen=True)
class Field:
    """A bare name in the pipeline, `a` or `a.b`."""

    path: str

    @property
    def last(self) -> str:
        return self.path.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Step:
    """One operation: `run(get, out, draw)` writes to `out`; `get(path)` reads. `reads` and `writes` are static.

    Any exception that `run` raises on an invalid value makes the row a bad row (`Pipeline.run`)."""

    run: Callable[[Callable[[str], Any], Record, Draw], None]
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def _names(args: Iterable[Any], op: str) -> list[Field]:
    fields = list(args)
    for arg in fields:
        if not isinstance(arg, Field):
            raise ValueError(f"{op}: {arg!r} is not a field name")
    return fields


def _keep(*args: Any, **new: Any) -> Step:
    """keep(a, b.c, new=d): a unchanged, c from within b, d under the name `new`."""
    pairs = [(f.last, f.path) for f in _names(args, "keep")]
    pairs += [(name, f.path) for name, f in zip(new, _names(new.values(), "keep"), strict=True)]

    def run(get: Callable, out: Record, draw: Draw) -> None:
        out.update([(name, get(path)) for name, path in pairs])

    return Step(run, tuple(path for _, path in pairs), tuple(name for name, _ in pairs))


def _maybe(**new: Any) -> Step:
    """maybe(d=a): a under the name `d` if the row has it; otherwise templates that need `d` are not drawn."""
    pairs = [(name, f.path) for name, f in zip(new, _names(new.values(), "maybe"), strict=True)]

    def run(get: Callable, out: Record, draw: Draw) -> None:
        for name, path in pairs:
            with contextlib.suppress(BadRow):
                out[name] = get(path)

    return Step(run, tuple(path for _, path in pairs), tuple(name for name, _ in pairs))


def _default(field: Field, value: Any) -> Step:
    """default(passage, ''): the value, or this literal if the row has none (no such column, or null)."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        with contextlib.suppress(BadRow):
            out[field.last] = get(field.path)
        if out.get(field.last) is None:
            out[field.last] = value

    return Step(run, (field.path,), (field.last,))


def _choose(label: Field, options: Any) -> Step:
    """choose(label, ['no', 'yes']) or choose(label, options_field): writes `options` and `answer`.

    An integer label is an index (negative ones, used for hidden test labels, skip the row); a string is the answer."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        texts = get(options.path) if isinstance(options, Field) else options
        texts = [text_of(item, "options") for item in texts]
        value = get(label.path)
        if isinstance(value, (bool, int)):
            if int(value) < 0:
                raise SkipRow("hidden label")
            if int(value) >= len(texts):
                raise BadRow(f"label {value} of '{label.path}' is outside {len(texts)} options")
            value = texts[int(value)]
        out["options"], out["answer"] = texts, text_of(value, label.path)

    reads = (label.path, options.path) if isinstance(options, Field) else (label.path,)
    return Step(run, reads, ("options", "answer"))


def _make(new: str, parts: Iterable[Field], value: Callable[..., Any]) -> Step:
    """`value` applied to the parts' values, under the name `new`."""
    paths = tuple(f.path for f in parts)

    def run(get: Callable, out: Record, draw: Draw) -> None:
        out[new] = value(*map(get, paths))

    return Step(run, paths, (new,))


def _gather(new: Field, *parts: Field) -> Step:
    """gather(options, choice1, choice2): a list of the values of several fields."""
    return _make(new.path, _names(parts, "gather"), lambda *values: list(values))


def _pick(new: Field, items: Field) -> Step:
    """pick(answer, answers): a list item, by the row's own draw; an empty list skips the row."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        values = get(items.path)
        if not values:
            raise SkipRow(f"'{items.path}' is empty")
        out[new.path] = values[draw("pick " + new.path, len(values))]

    return Step(run, (items.path,), (new.path,))


def _at(new: Field, items: Field, index: Any) -> Step:
    """at(first, items, 0) or at(answer, items, index_field): a list item; an index out of range skips the row."""
    fixed = not isinstance(index, Field)

    def item(values: Any, where: Any = index) -> Any:
        if not -len(values) <= int(where) < len(values):
            raise SkipRow(f"'{items.path}' has no item {where}")
        return values[int(where)]

    return _make(new.path, [items] if fixed else [items, index], item)


def _join(new: Field, glue: str, *parts: Field) -> Step:
    """join(text, ' ', a, b): the texts of several fields, lists item by item, joined by `glue`."""

    def text(*values: Any) -> str:
        items = [item for value in values for item in (value if isinstance(value, list) else [value])]
        return glue.join(filter(None, map(text_of, items)))

    return _make(new.path, _names(parts, "join"), text)


_HOLE = re.compile(r"\{([A-Za-z_][\w.]*)\}")


def _fill(new: Field, text: str) -> Step:
    """fill(question, 'What is {a} of {b}?'): fields inserted into a text."""
    paths = tuple(_HOLE.findall(text))

    def filled(*values: Any) -> str:
        rest = iter(zip(values, paths, strict=True))
        return _HOLE.sub(lambda hole: text_of(*next(rest)), text)

    return _make(new.path, map(Field, paths), filled)


def _map(field: Field, table: dict) -> Step:
    """map(field, {'0': 'no', '1': 'yes'}): the value looked up, under the same name; unknown values are bad rows."""
    known = {str(key): value for key, value in table.items()}

    def value(said: Any) -> Any:
        if str(said) not in known:
            raise BadRow(f"'{field.path}' is {str(said)!r}, not one of {', '.join(known)}")
        return known[str(said)]

    return _make(field.last, [field], value)


def _split(new: Field, field: Field, separator: str) -> Step:
    """split(items, text, ';'): the parts of a text, stripped, without empty ones."""
    return _make(new.path, [field], lambda v: [p.strip() for p in text_of(v, field.path).split(separator) if p.strip()])


def _mark(options: Field, marks: Field, right: Field, wrong: Field) -> Step:
    """mark(options, marks, right, wrong): two lists concatenated, and per item 1 if it is from the first, else 0."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        lists = [list(get(field.path)) for field in (right, wrong)]
        out[options.path] = [*lists[0], *lists[1]]
        out[marks.path] = [1] * len(lists[0]) + [0] * len(lists[1])

    return Step(run, (right.path, wrong.path), (options.path, marks.path))


def _const(new: Field, value: Any) -> Step:
    """const(name, 'text' or ['a', 'b']): a fixed value."""
    return _make(new.path, [], lambda: value)


def _number(field: Field, step: float) -> Step:
    """number(score, 0.2): the nearest multiple of `step`, written without a trailing fraction."""

    def value(said: Any) -> str:
        try:
            return f"{round(float(said) / step) * step:.6g}"
        except (TypeError, ValueError, OverflowError) as e:
            raise BadRow(f"'{field.path}' is not a number") from e

    return _make(field.last, [field], value)


def _number_lines(new: Field, items: Field, most: int = 100) -> Step:
    """number_lines(text, items, 10): the first items of a list as lines `1. ...`."""

    def text(values: Any) -> str:
        said = [text_of(v, items.path).strip() for v in values]
        lines = [f"{i}. {v}" for i, v in enumerate([v for v in said if v][:most], 1)]
        if not lines:
            raise SkipRow(f"'{items.path}' is empty")
        return "\n".join(lines)

    return _make(new.path, [items], text)


def _filter(fields: Iterable[Field], keeps: Callable[..., bool]) -> Step:
    """Only rows whose values satisfy `keeps`."""
    paths = tuple(f.path for f in fields)

    def run(get: Callable, out: Record, draw: Draw) -> None:
        if not keeps(*map(get, paths)):
            raise SkipRow(f"'{' and '.join(paths)}' is filtered out")

    return Step(run, paths, ())


def _where(field: Field, *values: Any) -> Step:
    """where(lang, 'en'): only rows with one of these values."""
    return _filter([field], lambda value: value in values)


def _unless(field: Field, *values: Any) -> Step:
    """unless(label, -1): only rows without one of these values."""
    return _filter([field], lambda value: value not in values)


def _above(field: Field, bound: float) -> Step:
    """above(turn_id, 6): only rows with a larger number than this."""
    return _filter([field], lambda value: float(value) > bound)


def _lacks(field: Field, *parts: str) -> Step:
    """lacks(text, 'UNK', '#'): only rows whose text contains none of these."""
    return _filter([field], lambda value: not any(part in text_of(value, field.path) for part in parts))


def _holds(field: Field, *parts: str) -> Step:
    """holds(answer, '#### '): rows whose text lacks any of these are bad rows."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        for part in parts:
            if part not in text_of(get(field.path), field.path):
                raise BadRow(f"'{field.path}' has no {part!r}")

    return Step(run, (field.path,), ())


def _differ(a: Field, b: Field) -> Step:
    """differ(lower, answer): only rows in which the two texts differ."""
    return _filter([a, b], lambda one, two: one != two)


def _nonempty(*fields: Field) -> Step:
    """nonempty(a, b): only rows in which none of these is empty."""

    def says(value: Any) -> bool:
        return bool(value.strip()) if isinstance(value, str) else value is not None and value != []

    return _filter(_names(fields, "nonempty"), lambda *values: all(map(says, values)))


def _call(name: str) -> Step:
    """call('name'): a function of flanx/data/task/functions.py, for the few records that no operation can read."""
    if name not in FUNCTIONS:
        raise ValueError(f"call: no function {name!r} in flanx/data/task/functions.py{nearest(str(name), FUNCTIONS)}")
    function = FUNCTIONS[name]

    def run(get: Callable, out: Record, draw: Draw) -> None:
        made = function.run({path: get(path) for path in function.reads}, draw)
        if made is None:
            raise SkipRow(f"{name} leaves this row out")
        out.update(made)

    return Step(run, function.reads, function.writes)


def _edit(op: str, change: Callable[..., str]) -> Callable[..., Step]:
    """An operation on the text of a field, in place: `change(text, *literals)`."""

    def make(*args: Any) -> Step:
        fields = [a for a in args if isinstance(a, Field)]
        literals = [a for a in args if not isinstance(a, Field)]
        if not fields:
            raise ValueError(f"{op}: name a field")
        change("", *literals)  # a wrong number of literals fails here, when the table is read

        def run(get: Callable, out: Record, draw: Draw) -> None:
            for f in fields:
                value = get(f.path)
                many = isinstance(value, list)
                texts = [change(text_of(v, f.path), *literals) for v in (value if many else [value])]
                out[f.last] = texts if many else texts[0]

        return Step(run, tuple(f.path for f in fields), tuple(f.last for f in fields))

    make.__doc__ = change.__doc__
    return make


OPS: dict[str, Callable[..., Step]] = {
    "keep": _keep,
    "maybe": _maybe,
    "default": _default,
    "choose": _choose,
    "gather": _gather,
    "pick": _pick,
    "at": _at,
    "join": _join,
    "fill": _fill,
    "map": _map,
    "split": _split,
    "mark": _mark,
    "const": _const,
    "number": _number,
    "where": _where,
    "unless": _unless,
    "above": _above,
    "nonempty": _nonempty,
    "lacks": _lacks,
    "holds": _holds,
    "differ": _differ,
    "number_lines": _number_lines,
    "call": _call,
    "strip": _edit("strip", lambda text, chars=None: text.strip(chars)),
    "lower": _edit("lower", lambda text: text.lower()),
    "capital": _edit("capital", lambda text: text[:1].upper() + text[1:]),
    "replace": _edit("replace", lambda text, old, new: text.replace(old, new)),
    "sub": _edit("sub", lambda text, pattern, new: re.sub(pattern, new, text)),
    "before": _edit("before", lambda text, mark: text.split(mark, 1)[0]),
    "after": _edit("after", lambda text, mark: text.split(mark, 1)[-1]),
    "sentence": _edit("sentence", lambda text: text if text.endswith((".", "!", "?", '"', "'")) else text + "."),
    "squeeze": _edit("squeeze", lambda text: " ".join(text.split())),
}
