"""Which tasks a name means, and at which rates they are drawn: shared by stores, SeqIO, fetching and planning.

Everything here is a pure function of the metadata of tasks and of the named mixtures (`tables.load_mixtures`):

    tasks = {"cot_gsm8k": {"collection": "cot", "group": "", "cap": 100000, "held_out": False, "cot": True, ...,
                           "examples": 7473, "styles": {"zsopt": 7473, "zsopt_inverted": 7473}}, ...}

`examples` is the size of the train split (None: unknown, the cap is used), `styles` the examples of each prompt style
and of its inverted version (the answer asks for the question), and `missing` is why a requested task has no data; tasks
with data do not have this key. A token store provides this metadata from its manifest, `of_tables` from the task
tables.

A name is a mixture of `tasks/tables/mixtures.toml`, a collection, a group within one (`dialog`, a part of Muffin: if a
mixture names the group, its tasks count only there), a task, or one style of a task. A list of names is a mixture too:
`["cot", "muffin_rte"]` of all their tasks, `[("cot", 0.3), ("niv2_*", 0.7)]` with a rate for each name. The size of a
task is min(examples, cap); `rates` then set each collection's share of all draws, `styles` divide the draws of a task
among those of its prompt styles that have examples, and `inversion` is how often the inverted version of a style is
drawn relative to 1 for the plain one; if a style is named explicitly, only it is drawn. Held-out tasks are never drawn,
and NUM_TASKS counts tasks that have data.

If NUM_TASKS leaves out tasks of a collection, the collection's rate is multiplied by the remaining fraction of its size
before the rates are normalized to sum to 1: no task is drawn more often for being one of the first of its collection
(the paper repeats no task more than once), and with whole collections (9, 89, 282 and 1,836 tasks of the paper's
mixtures) their rates are in the paper's ratio.
"""

import dataclasses
import fnmatch
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flanx.data.task import licence
from flanx.data.task.spec import INVERSION, INVERTED, STYLES, TaskSpec
from flanx.data.task.tables import find_style, load_mixtures, load_tables, missing_tables
from flanx.errors import UserError, nearest

TOLERANCE = 0.005  # tolerance on the sum of rates: the paper's Proportion B adds up to 99.9 %
Tasks = Mapping[str, Mapping[str, Any]]  # metadata by task name
Mixtures = Mapping[str, Mapping[str, Any]]  # the sections of mixtures.toml by name
Names = str | Sequence[str | tuple[str, float]]  # one name, or a list of names or of (name, rate)


@dataclasses.dataclass(frozen=True)
class MixtureSpec:
    """A mixture named by the user; fields that are None come from the named mixture, else from the tasks themselves.

    name: a named mixture, a collection, a group or a task (all its styles, or `task_style` for one); or a list of names
      other than mixtures, of patterns (`niv2_*`), or of (name, rate).
    num_tasks: how many tasks, in a fixed order in which the first n tasks are always among the first n + 1; None: all.
    cot_ratio: the share of draws for chain-of-thought tasks, 0 to 1; the others keep their proportions.
    rates: {collection: rate}, summing to 1 or to 100; caps: {collection or task: maximum number of examples to count}.
    styles: {style: rate}, among the styles that a task has.
    inversion: how often the inverted version of a task is drawn relative to 1 for the plain one: {collection, group or
      task: rate}, 0 for those not listed; or one number for all tasks that have one. None: `spec.INVERSION`.
    seed: of the order in which `num_tasks` takes tasks.
    allow_missing: leave out requested collections or tasks that have no data, and record them.
    licence: classes and licences of the data to train on, such as "permissive" (flanx/data/task/licence.py); other
      tasks are left out, before `num_tasks` counts, and recorded as missing. None: all.
    """

    name: Names
    num_tasks: int | None = None
    cot_ratio: float | None = None
    rates: Mapping[str, float] | None = None
    caps: Mapping[str, int] | None = None
    styles: Mapping[str, float] | None = None
    inversion: float | Mapping[str, float] | None = None
    seed: int = 0
    allow_missing: bool = False
    licence: str | None = None

    @property
    def title(self) -> str:
        """The name, or a list's names joined by "+"."""
        if isinstance(self.name, str):
            return self.name
        return "+".join(entry if isinstance(entry, str) else str(entry[0]) for entry in self.name)


@dataclasses.dataclass(frozen=True)
class Share:
    """The share of all draws of one style of a task, or of its inverted version."""

    task: str
    collection: str  # or the mixture's own group
    style: str
    weight: float


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a mixture draws: shares that add up to 1, sorted by task, and what was requested but is not drawn."""

    shares: tuple[Share, ...]
    rates: dict[str, float] | None  # requested, by collection, sum 1
    missing: dict[str, str]  # task or collection -> reason
    held_out: tuple[str, ...]  # held-out tasks of the collections

    def collections(self) -> dict[str, float]:
        """Share of all draws by collection."""
        return total_by((share.collection, share.weight) for share in self.shares)


def total_by(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Sums of weights by name, in order of first occurrence."""
    sums: dict[str, float] = {}
    for name, weight in pairs:
        sums[name] = sums.get(name, 0.0) + weight
    return sums


def of_tables(specs: Mapping[str, TaskSpec]) -> dict[str, dict[str, Any]]:
    """The metadata of the rows of the task tables."""
    return {
        name: {
            **vars(spec),
            "examples": spec.num_examples,
            "styles": dict.fromkeys(spec.versions, 1),
        }
        for name, spec in specs.items()
    }


# ---- names -> tasks --------------------------------------------------------------------------------------------------


def find(name: str, tasks: Tasks, mixtures: Mixtures) -> list[str]:
    """The tasks named by a mixture, a collection, a group, a task, one of its styles or a pattern (`*`, `?`); for a
    mixture without the held-out ones. Raises UserError if there are none."""
    collections = mixtures[name]["collections"] if name in mixtures else [name]
    found = _members(collections, _with_groups(tasks, collections))
    if name in mixtures:
        found = [task for task in found if not tasks[task].get("held_out")]
    found = found or [task for task in tasks if fnmatch.fnmatchcase(task, name)]
    if not found and (one := find_style(name, {task: facts.get("styles", ()) for task, facts in tasks.items()})):
        found = [one[0]]
    if not found:
        raise unknown(name, tasks, mixtures)
    return found


def unknown(name: str, tasks: Tasks, mixtures: Mixtures, where: str = "") -> UserError:
    """The error for an unknown name."""
    known = [*mixtures, *dict.fromkeys(str(task["collection"]) for task in tasks.values()), *tasks]
    if _is_registered(name):  # the tasks are those of a store
        hint = "; it is in the tables: build the store again with it (`flanx store build`)"
    else:
        hint = nearest(name, known) or missing_tables()
    return UserError(f"no mixture, collection or task '{name}'{where and f' in {where}'}{hint}")


def _is_registered(name: str) -> bool:
    """Whether the tables have a task, a style of one, a collection or a group of this name."""
    tasks = load_tables()
    homes = (home for spec in tasks.values() for home in (spec.collection, spec.group))
    return find_style(name, {task: spec.versions for task, spec in tasks.items()}) is not None or name in homes


def _with_groups(tasks: Tasks, named: Iterable[str]) -> Tasks:
    """The tasks, with the group as collection for those of the named groups."""
    groups = {task["group"] for task in tasks.values() if task.get("group")} & set(named)
    if not groups:
        return tasks
    return {
        name: {**task, "collection": task["group"]} if task.get("group") in groups else task
        for name, task in tasks.items()
    }


def _members(collections: Sequence[str], tasks: Tasks) -> list[str]:
    """The tasks of the collections, in the order of both."""
    members: dict[str, list[str]] = {collection: [] for collection in collections}
    for name, task in tasks.items():
        if task["collection"] in members:
            members[task["collection"]].append(name)
    return [name for names in members.values() for name in names]


def training(name: str, names: Sequence[str], tasks: Tasks) -> tuple[list[str], tuple[str, ...]]:
    """(tasks that may be trained on, held-out ones) of those that `name` means. Raises UserError if all are held out:
    they are for evaluation only."""
    held_out = tuple(task for task in names if tasks[task].get("held_out"))
    if names and len(held_out) == len(names):
        raise UserError(f"'{name}' is held out for evaluation, never trained on ({', '.join(held_out[:3])})")
    return [task for task in names if not tasks[task].get("held_out")], held_out


def licensed(name: str, asked: str | None, names: Sequence[str], tasks: Tasks) -> tuple[list[str], dict[str, str]]:
    """(tasks that pass the licence filter, {rejected task: reason}). Raises UserError if none passes."""
    if asked is None:
        return list(names), {}
    refused = licence.refused(asked, tasks, names)
    kept = [task for task in names if task not in refused]
    present = [task for task in names if "missing" not in tasks[task]]
    if present and not set(present) & set(kept):
        raise UserError(f"mixture '{name}': no task is left; {present[0]}: {refused[present[0]]}")
    return kept, refused


def find_specs(name: str, asked: str | None = None) -> list[TaskSpec]:
    """The rows of the tables that `find` returns, filtered by licence (None: all)."""
    specs = load_tables()
    tasks = of_tables(specs)
    kept, _ = licensed(name, asked, find(name, tasks, load_mixtures()), tasks)
    return [specs[task] for task in kept]


# ---- names -> rates --------------------------------------------------------------------------------------------------


def resolve(
    asked: MixtureSpec, tasks: Tasks, mixtures: Mixtures, where: str = "the tables", evaluation: bool = False
) -> Selection:
    """The shares of a mixture over these tasks. Raises UserError if the tasks cannot provide what is requested.

    `where` names the tasks in messages. `evaluation` admits held-out tasks: never use it for training data."""
    one = asked.name if isinstance(asked.name, str) else None
    section: Mapping[str, Any] = mixtures.get(one, {}) if one is not None else {}
    if one is None:
        listed = _rates_of_list(asked, mixtures)
        section = {"collections": list(listed)}
        asked = dataclasses.replace(asked, rates={k: v for k, v in listed.items() if v is not None} or None)
    homes = (home for task in tasks.values() for home in (task["collection"], task.get("group")) if home)
    _check(asked, itertools.chain(tasks, homes, section.get("collections", ()), section.get("rates", ())))
    setting = {key: getattr(asked, key) for key in ("rates", "caps", "styles", "inversion")}
    setting = {key: section.get(key) if value is None else value for key, value in setting.items()}
    collections = _collections(section, setting["rates"] or {}, tasks)
    tasks = _with_groups(tasks, (asked.title, *collections, *(setting["rates"] or {})))
    if one is None:
        tasks, absent = _listed(collections, setting["rates"], tasks, where, asked.allow_missing)
        names = list(tasks)
    else:
        names, style, absent = _names(one, collections, tasks, mixtures, where)
        if style:
            tasks = {**tasks, names[0]: _with_style(tasks[names[0]], style)}
            setting |= {"styles": None}
    names, held_out = (names, ()) if evaluation else training(asked.title, names, tasks)
    names, refused = licensed(asked.title, asked.licence, names, tasks)
    ranked = task_order({name: tasks[name] for name in names}, collections, asked.seed, section.get("balance"))
    styles = setting["styles"]
    divide = functools.partial(divide_task, styles=styles, inversion=setting["inversion"])
    empty = _without_examples(ranked, tasks, styles, divide)
    ranked = [name for name in ranked if name not in empty]
    names, missing = _take(asked, ranked, absent, tasks, where)
    sizes = {
        name: _size(name, tasks[name], setting["caps"] or {}, where) for name in ranked if "missing" not in tasks[name]
    }
    weights = {name: sizes[name] for name in names}
    rates = _rates_of_one(asked.title, setting["rates"]) if names else None
    if rates is not None:
        weights = _rated(asked.title, weights, sizes, rates, tasks)
        missing |= _unrated(asked, rates, tasks, where)
    if names and asked.cot_ratio is not None:
        weights = _with_cot(asked.title, weights, asked.cot_ratio, tasks)
    shares = [
        Share(name, tasks[name]["collection"], style, weights[name] * part)
        for name in sorted(weights)
        if weights[name]
        for style, part in divide(name, tasks[name]).items()
    ]
    total = math.fsum(share.weight for share in shares)
    if names and not total:
        raise UserError(f"mixture '{asked.title}': nothing to draw, as every task has the cap or the rate 0")
    shares = [dataclasses.replace(share, weight=share.weight / total) for share in shares]
    return Selection(tuple(shares), rates, missing | empty | refused, held_out)


def _check(asked: MixtureSpec, known: Iterable[str]) -> None:
    """Raises UserError for invalid values; `known`: the collections, groups and tasks that caps may name."""
    here = f"mixture '{asked.title}'"
    if asked.cot_ratio is not None and not (_is_number(asked.cot_ratio) and 0 <= asked.cot_ratio <= 1):
        raise UserError(f"COT_RATIO {asked.cot_ratio}: a share of the draws, from 0 to 1")
    count = asked.num_tasks
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
        raise UserError(f"NUM_TASKS {count}: a whole number, 0 or more")
    homes = set(known)
    for what, names in (("rates", None), ("caps", homes), ("styles", set(STYLES)), ("inversion", homes)):
        given = getattr(asked, what)
        if what in ("rates", "styles") and isinstance(given, Mapping) and not any(given.values()):
            raise UserError(f"{here}: {what} {dict(given)} leave nothing to draw; give one a rate above 0")
        if what == "inversion" and isinstance(given, int | float) and _is_number(given) and given >= 0:
            continue
        if given is not None and not isinstance(given, Mapping):
            raise UserError(f"{here}: {what} is {given!r}; give {{name: number}}, each 0 or more")
        for key, value in (given or {}).items():
            if not (_is_number(value) and value >= 0):
                raise UserError(f"{here}: {what} of '{key}' is {value!r}; give 0 or more")
            if what == "caps" and value != int(value):
                raise UserError(f"{here}: caps of '{key}' is {value}; give a whole number of examples")
            if names is not None and key not in names:
                raise UserError(f"{here}: {what} names '{key}', which it does not have{nearest(str(key), names)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rates_of_list(asked: MixtureSpec, mixtures: Mixtures) -> dict[str, float | None]:
    """{name: rate or None} for a list of names or of (name, rate). Raises UserError if it cannot be a mixture."""
    here, rates = f"mixture '{asked.title}'", dict[str, float | None]()
    for entry in asked.name:
        pair: tuple[Any, ...] = (entry, None) if isinstance(entry, str) else tuple(entry)
        if len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(f"{here}: {entry!r} is neither a name nor (name, rate)")
        name, rate = pair
        if name in rates:
            raise UserError(f"{here}: '{name}' is listed twice")
        if name in mixtures:
            collections = ", ".join(mixtures[name]["collections"])
            raise UserError(
                f"{here}: '{name}' is a mixture with rates of its own; list its collections ({collections})"
            )
        rates[name] = rate
    without = [name for name, rate in rates.items() if rate is None]
    if not rates:
        raise UserError("MIXTURE_OR_TASK_NAME is an empty list: name a mixture, a collection or a task")
    if without and len(without) < len(rates):
        raise UserError(f"{here}: '{without[0]}' has no rate and others have one; give each a rate, or none")
    if asked.rates is not None:
        raise UserError(f"{here}: a list has its rates in it, as in [('cot', 0.3), ('niv2', 0.7)]; leave `rates` out")
    return rates


def _listed(
    listed: Sequence[str], rates: Mapping[str, float] | None, tasks: Tasks, where: str, allow_missing: bool
) -> tuple[Tasks, dict[str, str]]:
    """(tasks that a list names, {name without tasks: reason}); with rates each name is the collection of its tasks.

    Raises UserError for a task that two names with rates share."""
    found: dict[str, dict[str, Any]] = {}
    absent, homes = {}, dict[str, str]()
    styles = {task: facts.get("styles", ()) for task, facts in tasks.items()}
    for name in listed:
        one = find_style(name, styles)
        members = [one[0]] if one else _members([name], tasks)
        members = members or [task for task in tasks if fnmatch.fnmatchcase(task, name)]
        if not members and not allow_missing:
            raise unknown(name, tasks, {}, where)
        if not members:
            absent[name] = "has no tasks"
        for task in members:
            facts = dict(tasks[task])
            if one and one[1]:
                facts = _with_style(facts, one[1])
            if task in found and rates:
                raise UserError(f"'{homes[task]}' and '{name}' have rates and share the task {task}: name it in one")
            if task in found:
                facts["styles"] = {**found[task].get("styles", {}), **facts.get("styles", {})}
            if rates:  # caps and inversion of its own collection still apply
                facts |= {"collection": name, "group": facts.get("group") or facts["collection"]}
            found[task], homes[task] = facts, name
    return found, absent


def _with_style(task: Mapping[str, Any], style: str) -> dict[str, Any]:
    """A task reduced to one of its styles."""
    return {**task, "styles": {style: task["styles"][style]} if "missing" not in task else {}}


def _collections(section: Mapping[str, Any], rates: Mapping[str, float], tasks: Tasks) -> list[str]:
    """The collections a mixture lists, and the groups within them that it gives a rate."""
    groups = {task["group"]: task["collection"] for task in tasks.values() if task.get("group")}
    listed = list(section.get("collections", []))
    return listed + [rated for rated in rates if rated not in listed and groups.get(rated) in listed]


def _names(
    name: str, collections: Sequence[str], tasks: Tasks, mixtures: Mixtures, where: str
) -> tuple[list[str], str | None, dict[str, str]]:
    """(tasks with and without data, the only style or None, {collection without any task: reason})."""
    known = {task["collection"] for task in tasks.values()}
    if name in mixtures or name in known:
        listed = collections or [name]
        return _members(listed, tasks), None, {one: "has no tasks" for one in listed if one not in known}
    found = find_style(name, {task: known.get("styles", ()) for task, known in tasks.items()})
    if found is None:
        raise unknown(name, tasks, mixtures, where)
    if "missing" in tasks[found[0]]:
        raise UserError(f"task {name} is not in {where}: {tasks[found[0]]['missing']}")
    return [found[0]], found[1], {}


def task_order(tasks: Tasks, collections: Sequence[str], seed: int, balance: str | None = None) -> list[str]:
    """The order in which NUM_TASKS takes tasks: collection by collection as the mixture lists them, within each by a
    seeded hash of the name, so that a task's rank does not depend on other tasks; with balance = "category",
    round-robin over the categories."""

    def rank(name: str) -> tuple[int, str, int]:
        collection = str(tasks[name]["collection"])
        place = collections.index(collection) if collection in collections else len(collections)
        return place, collection, hash_of(seed, "task", name)

    ranked = sorted(tasks, key=rank)
    if balance != "category":
        return ranked
    turns: dict[tuple[str, str], int] = {}
    turn_of = {}
    for name in ranked:
        category = (str(tasks[name]["collection"]), str(tasks[name].get("category", "")))
        turn_of[name] = turns[category] = turns.get(category, -1) + 1
    return sorted(ranked, key=lambda name: (rank(name)[:2], turn_of[name], rank(name)[2]))


def hash_of(*parts: str | int) -> int:
    """64 bits from SHA-256 of the parts: the same on every machine."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "little")


def _take(
    asked: MixtureSpec, ranked: Sequence[str], absent: dict[str, str], tasks: Tasks, where: str
) -> tuple[list[str], dict[str, str]]:
    """The first NUM_TASKS tasks that have data; {task without data among them, or collection: reason}."""
    present = [name for name in ranked if "missing" not in tasks[name]]
    count = len(present) if asked.num_tasks is None else asked.num_tasks
    if count > len(present) and not asked.allow_missing:
        without_data = len(ranked) - len(present)
        raise UserError(
            f"NUM_TASKS {count}: {where} holds {len(present)} tasks of '{asked.title}'"
            + (f" and records {without_data} as missing" if without_data else "")
            + "; build more, or set allow_missing"
        )
    if absent and asked.num_tasks is None and not asked.allow_missing:
        raise UserError(
            f"mixture '{asked.title}': {where} has no collection {', '.join(absent)}; build it, lower NUM_TASKS, or "
            "set allow_missing"
        )
    chosen = present[:count]
    if not chosen and ranked and asked.num_tasks != 0:
        raise UserError(f"mixture '{asked.title}': none of its tasks is in {where}")
    last = ranked.index(chosen[-1]) + 1 if chosen and count < len(present) else len(ranked) if count else 0
    missing = {name: str(tasks[name]["missing"]) for name in ranked[:last] if "missing" in tasks[name]}
    if count > len(present) or asked.num_tasks is None:
        missing |= absent
    return chosen, missing


def _without_examples(
    names: Sequence[str],
    tasks: Tasks,
    styles: Mapping[str, float] | None,
    divide: Callable[[str, Mapping[str, Any]], dict[str, float]],
) -> dict[str, str]:
    """{task without examples in the requested styles: reason}."""
    found = {}
    for name in names:
        task = tasks[name]
        asked = (
            [style for style in plain_styles(task) if styles is None or styles.get(style)] if "styles" in task else []
        )
        if asked and task.get("examples") != 0 and not divide(name, task):
            found[name] = f"no examples of style {', '.join(asked)}"
    return found


def _size(name: str, task: Mapping[str, Any], caps: Mapping[str, int], where: str) -> float:
    """Weight of a task within its collection: min(examples, cap), or the cap if the examples are unknown."""
    if task["examples"] == 0:
        raise UserError(f"task {name} has no examples in {where}; leave it out or build it again")
    homes = (name, str(task.get("group")), str(task["collection"]))
    cap = next((caps[home] for home in homes if home in caps), task.get("cap"))
    counts = [count for count in (task["examples"], cap) if count is not None]
    return float(min(counts, default=1))


def _rates_of_one(name: str, rates: Mapping[str, float] | None) -> dict[str, float] | None:
    """The rates of mixture `name`, which sum to 1 or to 100, normalized to 1; None if it has none."""
    if rates is None:
        return None
    total = math.fsum(rates.values())
    unit = 1.0 if total < 2 else 100.0
    if abs(total - unit) > TOLERANCE * unit:
        raise UserError(f"mixture '{name}': rates add up to {total:g}, not to {unit:g}")
    return {collection: rate / total for collection, rate in rates.items()}


def _rated(
    name: str, weights: Mapping[str, float], sizes: Mapping[str, float], rates: Mapping[str, float], tasks: Tasks
) -> dict[str, float]:
    """Scales the sizes of the chosen tasks so that each collection gets its rate, times the fraction of its size
    (`sizes`: of all its tasks that have data) that was chosen."""
    taken = total_by((tasks[task]["collection"], size) for task, size in weights.items())
    whole = total_by((tasks[task]["collection"], size) for task, size in sizes.items())
    for collection, total in taken.items():
        if collection not in rates:
            raise UserError(f"mixture '{name}': no rate for collection '{collection}'{nearest(collection, rates)}")
        if rates[collection] and not total:
            raise UserError(f"mixture '{name}': collection '{collection}' has a rate, and its tasks have the cap 0")
    return {
        task: size * rates[collection] / whole[collection]
        for task, size in weights.items()
        if rates[collection := tasks[task]["collection"]]
    }


def _unrated(asked: MixtureSpec, rates: Mapping[str, float], tasks: Tasks, where: str) -> dict[str, str]:
    """{collection with a rate but no task: reason}; an error unless allowed."""
    known = {task["collection"] for task in tasks.values()}
    empty = {name: "has a rate and no tasks" for name, rate in rates.items() if rate and name not in known}
    if asked.num_tasks is not None:
        return {}
    if empty and not asked.allow_missing:
        raise UserError(
            f"mixture '{asked.title}': rate for collection '{next(iter(empty))}', which {where} does not have; build "
            "it, or set allow_missing"
        )
    return empty


def _with_cot(name: str, weights: Mapping[str, float], ratio: float, tasks: Tasks) -> dict[str, float]:
    """Gives chain-of-thought tasks the share COT_RATIO of all draws; both groups keep their proportions."""
    scaled: dict[str, float] = {}
    for is_cot, part, kind in ((True, ratio, "chain-of-thought"), (False, 1 - ratio, "other")):
        group = {task: weight for task, weight in weights.items() if bool(tasks[task].get("cot")) == is_cot}
        total = math.fsum(group.values())
        if part and not total:
            raise UserError(f"COT_RATIO {ratio}: mixture '{name}' has no {kind} task to give that share")
        scaled |= {task: weight / total * part for task, weight in group.items() if part}
    return scaled


def plain_styles(task: Mapping[str, Any]) -> list[str]:
    """The prompt styles of a task, without the inverted versions."""
    return list(dict.fromkeys(style.removesuffix(INVERTED) for style in task["styles"]))


def divide_task(
    name: str,
    task: Mapping[str, Any],
    styles: Mapping[str, float] | None = None,
    inversion: float | Mapping[str, float] | None = None,
) -> dict[str, float]:
    """{style or inverted style: its share of the draws of a task}, sum 1, over those with examples; {} if none has any.

    Raises UserError if the task has none of the requested styles."""
    rates = {style: 1.0 if styles is None else float(styles.get(style, 0.0)) for style in plain_styles(task)}
    if not math.fsum(rates.values()):
        asked = ", ".join(style for style, rate in (styles or {}).items() if rate)
        raise UserError(f"task {name} has the styles {', '.join(rates)}, none of {asked}")
    inversion = INVERSION if inversion is None else inversion
    if isinstance(inversion, Mapping):
        homes = (name, str(task.get("group")), str(task["collection"]))
        inversion = next((inversion[home] for home in homes if home in inversion), 0.0)
    parts: dict[str, float] = {}
    for style, rate in rates.items():
        odds = {style: 1.0, style + INVERTED: inversion if style in task["styles"] else 1.0}
        odds = {one: odd for one, odd in odds.items() if rate and odd and task["styles"].get(one)}
        parts |= {one: rate * odd / math.fsum(odds.values()) for one, odd in odds.items()}
    total = math.fsum(parts.values())
    return {style: part / total for style, part in parts.items()}
