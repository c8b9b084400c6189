"""The collectives of a compiled program and their bytes; a loop's body counts as often as it runs.

Parses XLA's text of a compiled module: computations, the calls between them with their trip counts, and the collective
instructions in each, whose device groups show which mesh axes they run over.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_SHAPE = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\((.*)$")
# between slices, hosts send and receive; the instruction's attributes name the kind of collective
_ACROSS = re.compile(r'^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) send\(.*_xla_megascale_transfer_type="(\w+)"')
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'known_trip_count[\\"]*:\s*\{[\\"]*n[\\"]*:[\\"]*(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over groups of one size in a step.

    Attributes:
      kind: one of KINDS.
      group: devices in a group.
      sent: total bytes that each device sends, on a ring.
      count: how many run.
      members: the devices of one group, as flat indices into the mesh.
    """

    kind: str
    group: int
    sent: float
    count: int
    members: tuple[int, ...]


def collectives(text: str, devices: int, slices: int = 1) -> list[Collective]:
    """All collectives in a module's text, equal ones summed, in descending order of bytes.

    A collective between slices runs between the devices with the same index in each slice.
    """
    bodies, entry = _computations(text)
    times = _times(bodies, entry)
    found: dict[tuple[str, tuple[int, ...]], list[float]] = collections.defaultdict(lambda: [0.0, 0])
    channels: set[str] = set()  # the start, middle and end of an asynchronous collective share one channel
    for name, lines in bodies.items():
        for line in lines if times[name] else ():
            if match := _ACROSS.match(line):
                kind, members = match[2].lower().replace("_", "-"), tuple(range(0, devices, devices // slices))
                entry_ = found[kind, members]
                entry_[0] += times[name] * _sent(kind, _bytes(match[1], True, kind), slices)
                entry_[1] += times[name]
            elif match := _COLLECTIVE.match(line):
                channel = re.search(r"channel_id=(\d+)", line)
                if channel and channel[1] in channels:
                    continue
                channels |= {channel[1]} if channel else set()
                kind, members = match[2], _group(line, devices)
                if len(members) > 1:
                    entry_ = found[kind, members]
                    entry_[0] += times[name] * _sent(kind, _bytes(match[1], bool(match[3]), kind), len(members))
                    entry_[1] += times[name]
    made = [Collective(kind, len(m), sent, int(count), m) for (kind, m), (sent, count) in found.items()]
    return sorted(made, key=lambda c: -c.sent)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the entry's name."""
    bodies: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[2]
            bodies[current] = []
            entry = current if match[1] else entry
        elif line.startswith("}"):
            current = ""
        elif current:
            bodies[current].append(line)
    return bodies, entry


def _calls(line: str, bodies: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, int]]:
    """(computation, how often it runs) for each call of an instruction."""
    trips = 1
    if " while(" in line:
        condition = re.search(r"condition=%?([\w.\-]+)", line)
        bound = "\n".join(bodies.get(condition[1], ())) if condition else ""
        # the TPU compiler drops the trip count and leaves a loop from 0 to a constant
        match = _TRIPS.search(line) or ("direction=LT" in bound and re.search(r"s32\[\]\S* constant\((\d+)\)", bound))
        trips = int(match[1]) if match else 1
    for found in _CALLED.findall(line):
        for name in found.strip("{}").split(","):
            yield name.strip().lstrip("%"), trips


def _times(bodies: Mapping[str, Sequence[str]], entry: str) -> Mapping[str, int]:
    """How often each computation runs per run of the entry; conditionals count every branch."""
    edges = {
        name: [call for line in lines if "=" in line for call in _calls(line, bodies)] for name, lines in bodies.items()
    }
    times: dict[str, int] = collections.defaultdict(int)

    def visit(name: str, count: int) -> None:
        times[name] += count
        for callee, trips in edges.get(name, ()):
            visit(callee, count * trips)

    visit(entry, 1)
    return times


def _bytes(shape: str, started: bool, kind: str) -> float:
    """Bytes of a collective's result; an asynchronous start has (operand, result, ...), of which the result counts."""
    sizes = [
        float(np.prod([int(n) for n in dims.split(",") if n] or [1])) * WIDTHS.get(kind_, 4)
        for kind_, dims in _SHAPE.findall(shape)
    ]
    if not sizes:
        return 0.0
    if started and len(sizes) > 1:
        sizes = [s for s in sizes if s > 4] or sizes
        return min(sizes) if kind == "reduce-scatter" else max(sizes)
    return sum(sizes)


def _sent(kind: str, made: float, group: int) -> float:
    """Bytes that one device in a ring sends: `made` is the size of the result."""
    if kind == "all-reduce":
        return 2.0 * made * (group - 1) / group
    if kind == "reduce-scatter":
        return made * (group - 1)
    return made if kind == "collective-permute" else made * (group - 1) / group


def _group(line: str, devices: int) -> tuple[int, ...]:
    """The devices of a collective's first group, as flat indices into the mesh."""
    if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line):
        return (int(match[1]), int(match[2]))
    if match := re.search(r"replica_groups=\{\{([0-9,]+)\}", line):
        return tuple(int(n) for n in match[1].split(","))
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", line):  # mesh axes by name
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", match[1])}
        inside = set(re.findall(r"'([^']+)'", match[2]))
        indices = np.arange(devices).reshape(list(sizes.values()))
        return tuple(int(n) for n in indices[tuple(slice(None) if a in inside else 0 for a in sizes)].reshape(-1))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?", line):
        dims = [int(n) for n in match[3].split(",")]
        indices = np.arange(devices).reshape(dims)
        if match[4]:
            indices = indices.transpose([int(n) for n in match[4].split(",")])
        return tuple(int(n) for n in indices.reshape(int(match[1]), int(match[2]))[0])
    return tuple(range(devices))


def axes_spanned(members: Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a mesh of shape `shape` along which the members of a group differ."""
    indices = np.array([np.unravel_index(m, shape) for m in members])
    return tuple(i for i in range(len(shape)) if len(set(indices[:, i])) > 1)
