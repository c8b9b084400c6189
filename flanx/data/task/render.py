"""Examples of a task as texts: source rows, fields, templates, few-shot prompts in one stream. No TensorFlow."""

import os
from collections.abc import Callable, Iterator
from typing import Any

from flanx.data.task import sources
from flanx.data.task.prompt import Rendered, Renderer
from flanx.data.task.row import BadRow
from flanx.data.task.spec import INVERSION, TaskSpec, load
from flanx.errors import UserError


def make_renderer(
    spec: TaskSpec,
    style: str,
    split: str,
    data_dir: str | os.PathLike | None = None,
    rendering: int = 0,
    count: Callable[[str], int] = len,
    max_bad_rows: int = sources.MAX_BAD_ROWS,
    raw: Callable[[str], sources.Raw] | None = None,
    inversion: float = INVERSION,
) -> Renderer:
    """The renderer of one task, style and split; its exemplars are the first rows of the train split.

    `raw(split)` stands in for the task's own source."""
    if style not in spec.styles:
        raise UserError(f"task {spec.name} has no style '{style}' (it has {', '.join(spec.styles)})")
    tables = load()
    train = split == "train" and not spec.held_out

    def pool() -> list[tuple[str, dict[str, Any]]]:
        if "train" not in spec.splits:
            return []
        found = []
        for row, _, record in sources.rows(
            spec, "train", data_dir, rendering, max_bad_rows, raw("train") if raw else None
        ):
            found.append((row, record))
            if len(found) == sources.POOL:
                break
        return found

    return Renderer(
        task=spec.name,
        dataset=spec.dataset,
        blocks=[tables.blocks[name] for name in spec.templates],
        style=tables.style,
        prompt_style=style,
        inversions=[tables.blocks[name] for name in spec.inversions] if train else [],
        few=[tables.blocks[name] for name in spec.few],
        noopt=[tables.blocks[name] for name in spec.noopt],
        worked=[tables.blocks[name] for name in spec.worked],
        shots=spec.shots,
        pool=pool,
        count=count,
        rendering=rendering,
        keep_unshot=not train,
        inversion=inversion,
    )


def render_rows(
    spec: TaskSpec,
    style: str,
    split: str,
    data_dir: str | os.PathLike | None = None,
    rendering: int = 0,
    count: Callable[[str], int] = len,
    max_bad_rows: int = sources.MAX_BAD_ROWS,
    raw: Callable[[str], sources.Raw] | None = None,
    shard: tuple[int, int] = (0, 1),
    inversion: float = INVERSION,
) -> Iterator[Rendered]:
    """Every example of a split or of a shard (i, n) of it, in the source's order; bad rows count towards the limit.

    A shard's examples are those that the whole split has of its rows, byte for byte."""
    renderer = make_renderer(spec, style, split, data_dir, rendering, count, max_bad_rows, raw, inversion)
    bad = 0
    found = sources.rows(spec, split, data_dir, rendering, max_bad_rows, raw(split) if raw else None, shard)
    for row, place, record in found:
        try:
            example = renderer.render(row, record)
        except BadRow as e:
            bad += 1
            sources.report_bad(spec, place, e, bad, max_bad_rows)
            continue
        if example is not None:
            yield example
