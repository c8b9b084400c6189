"""The embedded task suite: short procedural tasks, each a program such as `word.2 reverse upper`.

A program names the kind of input to draw (see `draw.py`; the digit is the difficulty level) and the operations to apply
to it in order (see `text.py`, `number.py`, `world.py`). The tasks are rows of `tasks/tables/suite_*.csv` with source
`suite:<program>`; their templates are in `tasks/templates/suite.toml`, the wordings of operations in `wording.toml`.

Example i of (program, split) depends on nothing else. An input's hash assigns it to one split, whatever the program, so
training inputs never occur in validation or test, not even in another task.
"""

import functools
import hashlib
import pathlib
import tomllib
from collections.abc import Iterator

from flanx.errors import UserError, nearest
from flanx.procedural import number, people, problem, text, world
from flanx.procedural.draw import MAKERS, Fields, Stream
from flanx.procedural.operation import NOTHING, Operation, Steps

OPERATIONS: dict[str, Operation] = {**text.OPERATIONS, **number.OPERATIONS, **world.OPERATIONS}
STEPS: dict[str, Steps] = {**text.STEPS, **number.STEPS, **world.STEPS}
SIZES = {"train": 500, "validation": 100, "test": 100}  # a demo of 2,000 steps over 96 tasks sees each once
# Of every 8 inputs, one is for validation and one for test.
SPLITS = ("validation", "test", "train", "train", "train", "train", "train", "train")
TAKES = {"items": ("word", "list", "digits"), "text": ("text", "word", "list")}  # kinds that include several others
PROBLEMS = ("ask.", "mixed.", "corpus.")  # prefixes of programs in `problem.py`
MAX_DRAWS = 1000  # a split has at least an eighth of the inputs, so this many misses in a row mean that there are none
JOINTS = ("{}, {}", "{} then {}", "{} + {}")
UNSEEN_JOINT = "{}, and after that {}"


def examples(program: str, split: str) -> Iterator[Fields]:
    """All examples in one split (`SIZES`, `problem.count`), as dicts of text.

    x: the input; do: the instruction in the training tasks' wording; new: the same in a wording that no training task
    uses; answer; rationale: the intermediate steps, joined by `; `, empty if there are none; and the individual values
    that the maker draws (a, b, key, name, ...).
    """
    sizes = people.SIZES if program.startswith(people.PREFIX) else SIZES
    size = sizes[_known(split, sizes, "split", program)]
    return (example(program, split, index) for index in range(problem.count(program) or size))


def example(program: str, split: str, index: int) -> Fields:
    """Example `index` of `split`; any index >= 0, even beyond the split's usual size."""
    if program.startswith(PROBLEMS):
        return problem.example(program, split, index)
    if program.startswith(people.PREFIX):
        return people.example(program, split, index)
    maker, level, names = parse(program)
    draw = Stream("flanx-suite", program, split, index)
    for _ in range(MAX_DRAWS):
        fields = MAKERS[maker][1](draw, level)
        if split_of(fields["x"]) != split:
            continue
        values, steps = run(names, fields)
        if len(values) > len(names):
            break
    else:
        raise UserError(f"suite program '{program}': no input found for split '{split}'; raise its level")
    words = [wordings()[name] for name in names]
    said = [draw.choice(word["says"]) for word in words]
    do, new = said[0], words[0]["unseen"]
    if len(names) == 2:
        do, new = draw.choice(JOINTS).format(*said), UNSEEN_JOINT.format(*(word["unseen"] for word in words))
    do, new = (said.replace("{p}", fields.get("p", "")).replace("{q}", fields.get("q", "")) for said in (do, new))
    return {**fields, "do": do, "new": new, "answer": values[-1], "rationale": "; ".join(steps)}


def run(names: tuple[str, ...], fields: Fields) -> tuple[list[str], list[str]]:
    """Every value from the input to the answer, and the intermediate steps that a rationale writes down."""
    values, steps = [fields["x"]], []
    for name in names:
        if NOTHING in values:
            break
        steps += STEPS[name](values[-1], fields) if name in STEPS else []
        values.append(OPERATIONS[name].apply(values[-1], fields))
        steps += [values[-1]] if len(values) <= len(names) and name not in STEPS else []
    return values, steps


def split_of(x: str) -> str:
    """The one split in which the input `x` may occur."""
    return SPLITS[hashlib.sha256(x.encode()).digest()[0] % len(SPLITS)]


@functools.cache
def parse(program: str) -> tuple[str, int, tuple[str, ...]]:
    """`"word.2 reverse upper"` -> ("word", 2, ("reverse", "upper")), or an error that names the invalid part."""
    first, *names = program.split()
    maker, _, level = first.partition(".")
    _known(maker, MAKERS, "input", program)
    if level not in ("1", "2", "3"):
        raise UserError(f"suite program '{program}': level '{level}' is not 1, 2 or 3; write e.g. '{maker}.1'")
    if len(names) not in (1, 2):
        raise UserError(f"suite program '{program}': {len(names)} operations; write one or two after '{first}'")
    kind = MAKERS[maker][0]
    for name in names:
        operation = OPERATIONS[_known(name, OPERATIONS, "operation", program)]
        if kind not in TAKES.get(operation.takes, (operation.takes,)):
            raise UserError(f"suite program '{program}': '{name}' takes {operation.takes}, but gets {kind}")
        kind = kind if operation.gives == "items" else operation.gives
    return maker, int(level), tuple(names)


@functools.cache
def wordings() -> dict[str, dict]:
    """For every operation, `says`, the wordings for training tasks, and `unseen`, reserved for held-out tasks."""
    return tomllib.loads((pathlib.Path(__file__).parent / "wording.toml").read_text(encoding="utf-8"))


def _known(name: str, known: dict, thing: str, program: str) -> str:
    if name not in known:
        raise UserError(f"suite program '{program}': unknown {thing} '{name}'{nearest(name, known)}")
    return name
