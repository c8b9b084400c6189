"""The `fields` column of the task tables: a small pipeline of operations from a raw record to named texts.

    keep(premise, hypothesis) | choose(label, ['no', 'yes'])

The text is parsed with `ast` into a list of known operations; nothing in it is ever evaluated. Operations read a name
from the pipeline's output so far, else from the raw record (dots access nested records, and lists of records), and
write to the output: a template may use only names that some operation wrote. Arguments are field names (bare, or
`record['label-coarse']` if a name is not a Python identifier), or literals: strings, numbers, lists, dictionaries.
flanx/data/task/ops.py defines the whole language.
"""

import ast
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flanx.data.task.ops import OPS, Field, Step
from flanx.data.task.row import BadRow, Draw, Record, lookup
from flanx.errors import UserError, nearest


@dataclass(frozen=True)
class Pipeline:
    """A parsed `fields` text: `columns`, the raw columns it reads; `outputs`, the names it writes."""

    steps: tuple[Step, ...]
    columns: tuple[str, ...]
    outputs: frozenset[str]

    def run(self, record: Record, draw: Draw) -> Record:
        """The named values of one raw record. Raises BadRow (missing column, invalid value) or SkipRow."""
        out: Record = {}

        get = functools.partial(lookup, out, record)
        for step in self.steps:
            try:
                step.run(get, out, draw)
            except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as e:
                raise BadRow(f"{' and '.join(step.reads)}: {type(e).__name__}: {e}") from e
        return out


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


def _calls(node: ast.expr) -> Iterable[tuple[str, ast.Call]]:
    """(operation name, its call) for each link of a chain `a(...) | b(...)`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _calls(node.left)
        yield from _calls(node.right)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        yield node.func.id, node
    else:
        raise ValueError(f"{ast.unparse(node)!r} is not an operation")


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Pipeline:
    """The pipeline of a `fields` text. Raises UserError with the reason (the caller adds file and line)."""
    try:
        steps = []
        for name, call in _calls(ast.parse(text.strip(), mode="eval").body):
            if name not in OPS:
                raise ValueError(f"unknown operation '{name}'{nearest(name, OPS)}")
            try:
                keywords = {keyword.arg: _argument(keyword.value) for keyword in call.keywords if keyword.arg}
                if len(keywords) < len(call.keywords):
                    raise ValueError("'**' is not an argument")
                steps.append(OPS[name](*(_argument(argument) for argument in call.args), **keywords))
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
