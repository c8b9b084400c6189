"""How a mixture's draws are shared out: sizes under caps, rates of collections, chain of thought, styles, inversion."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from flanx.data.store import INVERTED, Part, Store, Task
from flanx.errors import UserError, nearest

TOLERANCE = 0.005  # rates may miss their sum by this: the paper's Proportion B adds up to 99.9 %


@dataclasses.dataclass(frozen=True)
class Source:
    """One (task, style) with its share of all draws and its renderings."""

    task: Task
    style: str
    weight: float
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        return f"{self.task.name}_{self.style}"


def size(task: Task, caps: Mapping[str, int]) -> float:
    """Weight of a task inside its collection: min(examples, cap)."""
    if not task.examples:
        raise UserError(f"task {task.name} has no examples in the store; leave it out or build it again")
    cap = caps.get(task.name, caps.get(task.collection, task.metadata.get("cap")))
    return float(task.examples if cap is None else min(task.examples, cap))


def rates_of_one(name: str, rates: Mapping[str, float] | None) -> dict[str, float] | None:
    """The rates of mixture `name`, in parts of 1 or of 100, as parts of 1; None where it has none."""
    if rates is None:
        return None
    total = math.fsum(rates.values())
    whole = 1.0 if total < 2 else 100.0
    if abs(total - whole) > TOLERANCE * whole:
        raise UserError(f"mixture '{name}': rates add up to {total:g}, not to {whole:g}")
    return {collection: rate / total for collection, rate in rates.items()}


def rated(name: str, weights: dict[str, float], rates: Mapping[str, float], store: Store) -> dict[str, float]:
    """Scales the weights of tasks so that the collections that are there get their rates, or parts in their ratio."""
    sums: dict[str, float] = {}
    for task, weight in weights.items():
        collection = store.tasks[task].collection
        if collection not in rates:
            raise UserError(f"mixture '{name}': no rate for collection '{collection}'{nearest(collection, rates)}")
        sums[collection] = sums.get(collection, 0.0) + weight
    return {
        task: weight * rates[collection] / sums[collection]
        for task, weight in weights.items()
        if rates[collection := store.tasks[task].collection]
    }


def with_cot(name: str, weights: dict[str, float], ratio: float, store: Store) -> dict[str, float]:
    """Gives chain-of-thought tasks the share COT_RATIO of all draws, both groups keeping their proportions."""
    groups = {True: {}, False: {}}
    for task, weight in weights.items():
        groups[bool(store.tasks[task].metadata.get("cot"))][task] = weight
    scaled = {}
    for is_cot, part, kind in ((True, ratio, "chain-of-thought"), (False, 1 - ratio, "other")):
        if part and not groups[is_cot]:
            raise UserError(f"COT_RATIO {ratio}: mixture '{name}' has no {kind} task to give that share")
        total = math.fsum(groups[is_cot].values())
        scaled |= {task: weight / total * part for task, weight in groups[is_cot].items() if part}
    return scaled


def sources(task: Task, weight: float, styles: Mapping[str, float] | None, inversion: float) -> Iterable[Source]:
    """Divides a task's weight over its styles, and each style's over plain and inverted examples."""
    plain = [style for style in task.parts if not style.endswith(INVERTED)]
    rates = {style: 1.0 if styles is None else float(styles.get(style, 0.0)) for style in plain}
    total = math.fsum(rates.values())
    if not total:
        asked = ", ".join(style for style, rate in (styles or {}).items() if rate)
        raise UserError(f"task {task.name} has the styles {', '.join(plain)}, none of {asked}")
    for style, rate in rates.items():
        pair = [(style, 1.0), (f"{style}{INVERTED}", inversion)]
        pair = [(s, r) for s, r in pair if r and s in task.parts and sum(p.examples for p in task.parts[s])]
        for name, share in pair:
            if rate:
                yield Source(task, name, weight * rate / total * share / sum(r for _, r in pair), task.parts[name])


def whole(sources: Sequence[Source]) -> tuple[Source, ...]:
    """The sources with weights that add up to 1."""
    total = math.fsum(source.weight for source in sources)
    return tuple(dataclasses.replace(source, weight=source.weight / total) for source in sources)
