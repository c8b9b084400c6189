"""The rows of the graded problems: 1,836 training tasks in four collections, the corpus, and held-out tasks.

`python -m flanx.procedural.collection` writes `tasks/tables/home_*.csv`; `docs/findings/home/design.md` explains the
design. A task is a list of operations (`flanx/procedural/problem.py`) in one wording and one frame (a block of
`tasks/templates/home.toml`), so the number of tasks sets how many wordings, frames and operations training sees.
"""

import collections
import csv
import io
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator

from flanx.procedural import problem
from flanx.procedural.draw import Stream

Codes = tuple[str, ...]
Row = tuple[str, str, str, str]  # name, category, source, templates
FRAMES = 8  # blocks home_0 to home_7; home_steps_0 to home_steps_7 also ask for the steps
NEW_FRAME = "home_frame"
RULES = tuple(rule for rule in problem.RULES if rule not in problem.HELD_RULES)
SINGLES = (*problem.LETTERS, *problem.MOVES, *RULES)  # every operation that may be trained
# Held out in the second language: training never uses it for these.
OTHER_HELD = ("ror", "swz", "nxt", "dwn", "+2", "-4")
# World and depth of the nine tasks with steps. Like the paper's nine, they are datasets of many different problems:
# from nine fixed lists of operations, a model would learn just those nine.
COT = (*(("letters", depth) for depth in (2, 2, 3, 3, 3, 4, 4)), ("digits", 3), ("digits", 4))
MUFFIN, T0, NIV2 = 80, 193, 1554
# Sizes in the later collections: single operations, pairs, triples and tasks in the second language.
T0_PARTS = {"single": 113, "pair": 80}
NIV2_PARTS = {"single": 720, "other": 60, "pair": 480, "three": 294}


def row(codes: Codes, wording: str, block: str, category: str) -> Row:
    """One row, named after its operations, wording and block."""
    said = "_".join(code.replace("+", "up").replace("-", "down") for code in codes)
    program = f"suite:ask.{wording} {' '.join(codes)}"
    return f"{said}_{wording}_{block.removeprefix('home_')}", category, program, block


def pick_sequences(
    key: str, depth: int, allowed: Callable[[Codes], bool], pool: Codes = problem.LETTERS
) -> Iterator[Codes]:
    """Endless distinct lists of `depth` operations from the pool, without equal neighbours, drawn under `key`."""
    draw, seen = Stream("flanx-home", key, depth), set()
    while True:
        codes = tuple(draw.choice(pool) for _ in range(depth))
        if codes in seen or any(a == b for a, b in itertools.pairwise(codes)) or not allowed(codes):
            continue
        seen.add(codes)
        yield codes


def is_trained(codes: Codes) -> bool:
    """Whether training may contain these neighbours."""
    return not problem.has_held(codes)


def singles() -> list[Row]:
    """Single operations in every wording and frame, ordered so that any prefix has each about equally often."""
    draw = Stream("flanx-home", "singles")
    turns = {code: draw.sample([f"{w} {f}" for w in "012" for f in range(FRAMES)], 3 * FRAMES) for code in SINGLES}
    found = []
    for turn in range(3 * FRAMES):
        for code in draw.sample(SINGLES, len(SINGLES)):
            wording, frame = turns[code][turn].split()
            found.append(row((code,), wording, f"home_{frame}", "single"))
    return found


def framed(
    key: str, sequences: Iterable[Codes], category: str, block: str = "home_", wording: str = ""
) -> Iterator[Row]:
    """Rows for the sequences, each in a random frame and, unless one is given, a random training wording."""
    for codes in sequences:
        draw = Stream("flanx-home", key, category, *codes)
        frame = f"{block}{draw.below(FRAMES)}"
        yield row(codes, wording or draw.choice("012"), frame, category)


def take(count: int, rows: Iterable[Row]) -> list[Row]:
    """The first `count` rows, checked for unique names."""
    found = {each[0]: each for each in itertools.islice(rows, count)}
    assert len(found) == count
    return list(found.values())


def training() -> dict[str, list[Row]]:
    """The four collections and the corpus."""
    every = iter(singles())
    pairs = framed("train", pick_sequences("train", 2, is_trained, (*problem.LETTERS, *RULES)), "pair")
    threes = framed("train", pick_sequences("train", 3, is_trained), "three")
    spoken = [(code,) for code in (*problem.LETTERS, *problem.MOVES) if code not in OTHER_HELD]
    in_other = (
        row(codes, "other", f"home_{frame}", "other") for frame in range(FRAMES) for codes in spoken[frame % 2 :: 2]
    )
    parts = {"single": every, "pair": pairs, "three": threes, "other": in_other}

    def make(sizes: dict[str, int]) -> list[Row]:
        return [each for name, size in sizes.items() for each in take(size, parts[name])]

    cot = [
        (f"{world}_{depth}_{i}", world, f"suite:mixed.0 {world} {depth} {'abcdefghi'[i]}", f"home_steps_{i % FRAMES}")
        for i, (world, depth) in enumerate(COT)
    ]
    return {
        "home_cot": cot,
        "home_muffin": make({"single": MUFFIN}),
        "home_t0": make(T0_PARTS),
        "home_niv2": make(NIV2_PARTS),
        "home_corpus": [
            ("letters", "letters", "suite:corpus.letters", "home_corpus"),
            ("digits", "digits", "suite:corpus.digits", "home_corpus"),
            ("once", "once", "suite:corpus.once", "home_once"),
        ],
    }


def held_out(trained: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The scored tasks, one collection per kind, and the development family. Training has none of their programs."""
    programs = {
        each[2].split(" ", 1)[1] for rows in trained.values() for each in rows if each[2].startswith("suite:ask")
    }

    def is_new(codes: Codes) -> bool:
        return is_trained(codes) and " ".join(codes) not in programs

    def new(key: str, depth: int, count: int, category: str = "", **more: str) -> list[Row]:
        """Trained operations in untrained lists."""
        sequences = pick_sequences(key, depth, is_new)
        return take(count, framed(key, sequences, category or f"depth_{depth}", **more))

    def unseen_pair(depth: int, count: int) -> list[Row]:
        sequences = pick_sequences("composition", depth, problem.has_held)
        return take(count, framed("composition", sequences, f"depth_{depth}"))

    one = [(code,) for code in (*problem.LETTERS, "+1", "-2", "+3", "-5")]
    compositions = [each for depth in (2, 3, 4) for each in unseen_pair(depth, 20)]
    language = [row((code,), "other", f"home_{i % FRAMES}", "depth_1") for i, code in enumerate(OTHER_HELD * 3)]
    found = {
        "home_composition": compositions,
        "home_notation": [(name, category, source, "home_corpus") for name, category, source, _ in compositions],
        "home_depth": new("depth", 5, 32),
        "home_wording": take(16, framed("wording", one, "depth_1", wording="unseen"))
        + new("wording", 2, 16, wording="unseen"),
        "home_frame": [row(codes, str(i % 3), NEW_FRAME, "depth_1") for i, codes in enumerate(one)]
        + [(name, category, source, NEW_FRAME) for name, category, source, _ in new("frame", 2, 16)],
        "home_rule": [
            row((rule,), w, f"home_{i}", "depth_1") for i, rule in enumerate(problem.HELD_RULES) for w in "012"
        ],
        "home_language": language + new("language", 2, 16, wording="other"),
        "home_walk": [
            each
            for depth in (2, 3, 4)
            for each in take(16, framed("walk", pick_sequences("walk", depth, is_new, problem.MOVES), f"depth_{depth}"))
        ],
    }
    scored = {each[2].split(" ", 1)[1] for rows in found.values() for each in rows}

    def is_free(codes: Codes) -> bool:
        return is_new(codes) and " ".join(codes) not in scored

    pool = (*problem.LETTERS, *RULES)
    found["home_dev"] = singles()[-32:]
    for depth in (2, 3):
        sequences = pick_sequences("dev", depth, is_free, pool)
        found["home_dev"] += take(16, framed("dev", sequences, f"depth_{depth}"))
    return found


def tables() -> dict[str, list[Row]]:
    """Every collection's rows."""
    trained = training()
    return {**trained, **held_out(trained)}


def text(rows: Iterable[Row]) -> str:
    """The rows as the text of a table file."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([("name", "category", "source", "templates"), *rows])
    return file.getvalue()


def main() -> None:
    folder = pathlib.Path(__file__).parents[2] / "tasks" / "tables"
    for name, rows in tables().items():
        (folder / f"{name}.csv").write_text(text(rows), encoding="utf-8")
        print(name, len(rows), dict(collections.Counter(each[1] for each in rows)))


if __name__ == "__main__":
    main()
