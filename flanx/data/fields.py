"""The `fields` column of the task tables: a small pipeline of operations from a raw record to named texts.

    keep(premise, hypothesis) | choose(label, ['no', 'yes'])

The text is parsed with `ast` into a list of known operations; nothing in it is ever evaluated. Operations read a name
from what the pipeline has made so far, else from the raw record (dots lead into nested records; into a list of
records too), and write to what comes out: only names that some operation wrote can stand in a template. Arguments are
field names (bare; `record['label-coarse']` where a name is no Python name), or literals: texts, numbers, lists,
dictionaries. OPS is the whole language.
"""

import ast
import contextlib
import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from flanx.data.record import FUNCTIONS
from flanx.errors import UserError, nearest

Record = dict[str, Any]
Draw = Callable[[str, int], int]  # (label, n) -> an integer in [0, n), the same for the same row and label


class BadRow(Exception):
    """A row that cannot be a row of this task: counted, reported, and an error above a limit."""


class SkipRow(Exception):
    """A row that the task leaves out on purpose (a filter, a hidden label, an empty list)."""


@dataclass(frozen=True)
class Field:
    """A bare name in the pipeline, `a` or `a.b`."""

    path: str

    @property
    def last(self) -> str:
        return self.path.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Step:
    """One operation: `run(get, out, draw)` writes to `out`; `get(path)` reads. `reads` and `writes` are static."""

    run: Callable[[Callable[[str], Any], Record, Draw], None]
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Pipeline:
    """A parsed `fields` text: `columns`, the raw columns it reads; `outputs`, the names it makes."""

    steps: tuple[Step, ...]
    columns: tuple[str, ...]
    outputs: frozenset[str]

    def run(self, record: Record, draw: Draw) -> Record:
        """The named values of one raw record. Raises BadRow (a column is absent, a value makes no sense) or SkipRow."""
        out: Record = {}

        def get(path: str) -> Any:
            return _walk(out if path.split(".", 1)[0] in out else record, path)

        for step in self.steps:
            step.run(get, out, draw)
        return out


def _walk(value: Any, path: str) -> Any:
    for part in path.split("."):
        if isinstance(value, list):
            value = [_walk(item, part) for item in value]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            raise BadRow(f"no column '{path}'")
    return value


def text_of(value: Any, name: str = "value") -> str:
    """A value as the text that stands in a prompt: numbers without a spare fraction, lists joined by a comma."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(text_of(item, name) for item in value)
    raise BadRow(f"'{name}' is {type(value).__name__}, not text")


# ---- the operations: each takes its arguments and gives a Step -------------------------------------------------------


def _names(args: Iterable[Any], op: str) -> list[Field]:
    fields = list(args)
    for arg in fields:
        if not isinstance(arg, Field):
            raise ValueError(f"{op}: {arg!r} is no field name")
    return fields


def _keep(*args: Any, **new: Any) -> Step:
    """keep(a, b.c, new=d): a as it is, c from inside b, d under the name `new`."""
    pairs = [(f.last, f.path) for f in _names(args, "keep")]
    pairs += [(name, f.path) for name, f in zip(new, _names(new.values(), "keep"), strict=True)]

    def run(get: Callable, out: Record, draw: Draw) -> None:
        out.update([(name, get(path)) for name, path in pairs])

    return Step(run, tuple(path for _, path in pairs), tuple(name for name, _ in pairs))


def _maybe(**new: Any) -> Step:
    """maybe(d=a): a under the name `d` where the row has it; a template that needs `d` is then not drawn."""
    pairs = [(name, f.path) for name, f in zip(new, _names(new.values(), "maybe"), strict=True)]

    def run(get: Callable, out: Record, draw: Draw) -> None:
        for name, path in pairs:
            with contextlib.suppress(BadRow):
                out[name] = get(path)

    return Step(run, tuple(path for _, path in pairs), tuple(name for name, _ in pairs))


def _choose(label: Field, options: Any) -> Step:
    """choose(label, ['no', 'yes']) or choose(label, options_field): writes `options` and `answer`.

    An integer label is an index (a negative one, as hidden test labels have, skips the row); a text is the answer."""

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


def _gather(new: Field, *parts: Field) -> Step:
    """gather(options, choice1, choice2): a list of the values of several fields."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        out[new.path] = [get(f.path) for f in parts]

    return Step(run, tuple(f.path for f in _names(parts, "gather")), (new.path,))


def _pick(new: Field, items: Field) -> Step:
    """pick(answer, answers): one of a list, by the row's own draw; an empty list skips the row."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        values = get(items.path)
        if not values:
            raise SkipRow(f"'{items.path}' is empty")
        out[new.path] = values[draw("pick " + new.path, len(values))]

    return Step(run, (items.path,), (new.path,))


def _at(new: Field, items: Field, index: Any) -> Step:
    """at(first, items, 0) or at(answer, items, index_field): one item of a list; outside it, the row is skipped."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        values = get(items.path)
        where = get(index.path) if isinstance(index, Field) else index
        if not -len(values) <= int(where) < len(values):
            raise SkipRow(f"'{items.path}' has no item {where}")
        out[new.path] = values[int(where)]

    reads = (items.path, index.path) if isinstance(index, Field) else (items.path,)
    return Step(run, reads, (new.path,))


def _join(new: Field, glue: str, *parts: Field) -> Step:
    """join(text, ' ', a, b): the texts of several fields, lists item by item, with `glue` between."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        texts: list[str] = []
        for f in parts:
            value = get(f.path)
            texts += [text_of(v, f.path) for v in value] if isinstance(value, list) else [text_of(value, f.path)]
        out[new.path] = glue.join(t for t in texts if t)

    return Step(run, tuple(f.path for f in _names(parts, "join")), (new.path,))


_HOLE = re.compile(r"\{([A-Za-z_][\w.]*)\}")


def _fill(new: Field, text: str) -> Step:
    """fill(question, 'What is {a} of {b}?'): fields inside a text."""
    paths = tuple(_HOLE.findall(text))

    def run(get: Callable, out: Record, draw: Draw) -> None:
        out[new.path] = _HOLE.sub(lambda hole: text_of(get(hole[1]), hole[1]), text)

    return Step(run, paths, (new.path,))


def _map(field: Field, table: dict) -> Step:
    """map(field, {'0': 'no', '1': 'yes'}): the value by table, under the same name; an unknown value is a bad row."""
    known = {str(key): value for key, value in table.items()}

    def run(get: Callable, out: Record, draw: Draw) -> None:
        value = str(get(field.path))
        if value not in known:
            raise BadRow(f"'{field.path}' is {value!r}, not one of {', '.join(known)}")
        out[field.last] = known[value]

    return Step(run, (field.path,), (field.last,))


def _split(new: Field, field: Field, separator: str) -> Step:
    """split(items, text, ';'): the parts of a text, stripped, empty ones left out."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        out[new.path] = [p.strip() for p in text_of(get(field.path), field.path).split(separator) if p.strip()]

    return Step(run, (field.path,), (new.path,))


def _const(new: Field, value: Any) -> Step:
    """const(name, 'text' or ['a', 'b']): a fixed value."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        out[new.path] = value

    return Step(run, (), (new.path,))


def _number(field: Field, step: float) -> Step:
    """number(score, 0.2): the nearest multiple of `step`, written without a spare fraction."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        try:
            out[field.last] = f"{round(float(get(field.path)) / step) * step:.6g}"
        except (TypeError, ValueError, OverflowError) as e:
            raise BadRow(f"'{field.path}' is no number") from e

    return Step(run, (field.path,), (field.last,))


def _where(field: Field, *values: Any) -> Step:
    """where(lang, 'en'): only rows with one of these values."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        if get(field.path) not in values:
            raise SkipRow(f"'{field.path}' is filtered out")

    return Step(run, (field.path,), ())


def _unless(field: Field, *values: Any) -> Step:
    """unless(label, -1): only rows without one of these values."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        if get(field.path) in values:
            raise SkipRow(f"'{field.path}' is filtered out")

    return Step(run, (field.path,), ())


def _above(field: Field, bound: float) -> Step:
    """above(turn_id, 6): only rows whose number is larger than this."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        try:
            if not float(get(field.path)) > bound:
                raise SkipRow(f"'{field.path}' is filtered out")
        except (TypeError, ValueError) as e:
            raise BadRow(f"'{field.path}' is no number") from e

    return Step(run, (field.path,), ())


def _lacks(field: Field, *parts: str) -> Step:
    """lacks(text, 'UNK', '#'): only rows whose text holds none of these."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        text = text_of(get(field.path), field.path)
        if any(part in text for part in parts):
            raise SkipRow(f"'{field.path}' is filtered out")

    return Step(run, (field.path,), ())


def _differ(a: Field, b: Field) -> Step:
    """differ(lower, answer): only rows in which the two texts are not the same."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        if get(a.path) == get(b.path):
            raise SkipRow(f"'{a.path}' and '{b.path}' are the same")

    return Step(run, (a.path, b.path), ())


def _number_lines(new: Field, items: Field, most: int = 100) -> Step:
    """number_lines(text, items, 10): the first items of a list as lines `1. ...`."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        values = [text_of(v, items.path).strip() for v in get(items.path)]
        lines = [f"{i}. {v}" for i, v in enumerate([v for v in values if v][:most], 1)]
        if not lines:
            raise SkipRow(f"'{items.path}' is empty")
        out[new.path] = "\n".join(lines)

    return Step(run, (items.path,), (new.path,))


def _nonempty(*fields: Field) -> Step:
    """nonempty(a, b): only rows in which all of these say something."""

    def run(get: Callable, out: Record, draw: Draw) -> None:
        for f in fields:
            value = get(f.path)
            if value is None or value == [] or (isinstance(value, str) and not value.strip()):
                raise SkipRow(f"'{f.path}' is empty")

    return Step(run, tuple(f.path for f in _names(fields, "nonempty")), ())


def _call(name: str) -> Step:
    """call('name'): a function of flanx/data/record.py, for the few records that no operation can read."""
    if name not in FUNCTIONS:
        raise ValueError(f"call: no function {name!r} in flanx/data/record.py{nearest(str(name), FUNCTIONS)}")
    function = FUNCTIONS[name]

    def run(get: Callable, out: Record, draw: Draw) -> None:
        try:
            made = function.run({path: get(path) for path in function.reads}, draw)
        except (KeyError, IndexError, TypeError, ValueError) as e:
            raise BadRow(f"{name}: {type(e).__name__}: {e}") from e
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
        change("", *literals)  # too many or too few literals fail here, when the table is read

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
    "choose": _choose,
    "gather": _gather,
    "pick": _pick,
    "at": _at,
    "join": _join,
    "fill": _fill,
    "map": _map,
    "split": _split,
    "const": _const,
    "number": _number,
    "where": _where,
    "unless": _unless,
    "above": _above,
    "nonempty": _nonempty,
    "lacks": _lacks,
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


# ---- the parser ------------------------------------------------------------------------------------------------------


def _argument(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return Field(node.id)
    if isinstance(node, ast.Attribute):
        inner = _argument(node.value)
        if isinstance(inner, Field):
            return Field(f"{inner.path}.{node.attr}")
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "record":
        key = _argument(node.slice)
        if isinstance(key, str):
            return Field(key)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as e:
        raise ValueError(f"{ast.unparse(node)!r} is neither a field nor a literal") from e


def _calls(node: ast.expr) -> Iterable[ast.Call]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _calls(node.left)
        yield from _calls(node.right)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        yield node
    else:
        raise ValueError(f"{ast.unparse(node)!r} is no operation")


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Pipeline:
    """The pipeline of a `fields` text. Raises UserError with the reason (the caller adds file and line)."""
    try:
        steps = []
        for call in _calls(ast.parse(text.strip(), mode="eval").body):
            name = call.func.id
            if name not in OPS:
                raise ValueError(f"unknown operation '{name}'{nearest(name, OPS)}")
            try:
                if any(k.arg is None for k in call.keywords):
                    raise ValueError("'**' is no argument")
                args = [_argument(a) for a in call.args]
                steps.append(OPS[name](*args, **{k.arg: _argument(k.value) for k in call.keywords}))
            except (TypeError, AttributeError, re.error) as e:
                raise ValueError(f"{ast.unparse(call)}: {e}") from e
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise UserError(f"fields: {getattr(e, 'msg', None) or e} in {text[:200]!r}") from e
    columns: dict[str, None] = {}
    outputs: set[str] = set()
    for step in steps:
        columns.update({path: None for path in step.reads if path.split(".", 1)[0] not in outputs})
        outputs.update(step.writes)
    return Pipeline(tuple(steps), tuple(columns), frozenset(outputs))
