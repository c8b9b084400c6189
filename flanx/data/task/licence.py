"""Licences of data sets in four classes, and the filter over them that `--licence` and `Mixture.licence` set.

A licence is an SPDX identifier or, for terms without one, a name of ours (`custom`: special terms, to be read);
several that apply together are joined by " AND ", and the strictest counts. `unknown` is a licence that no source
states, or one that is in no class here: it is never permissive.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from flanx.errors import UserError, nearest

CLASSES = {
    "permissive": (  # any use, possibly with attribution
        *("Apache-2.0", "MIT", "ISC", "BSD-2-Clause", "BSD-3-Clause", "AFL-3.0", "OANC", "CC0-1.0"),
        *("CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0", "ODC-By-1.0", "PDDL-1.0"),
        *("CDLA-Permissive-1.0", "CDLA-Permissive-2.0"),
    ),
    "share_alike": (  # any use, derived works under the same terms
        *("CC-BY-SA-2.0", "CC-BY-SA-2.5", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CDLA-Sharing-1.0", "ODbL-1.0"),
        *("GPL-2.0", "GPL-3.0"),
    ),
    "restricted": (  # no commercial use, no derived works, research or computation only, a form, or terms to be read
        *("CC-BY-NC-2.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-2.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0"),
        *("CC-BY-NC-ND-3.0", "CC-BY-NC-ND-4.0", "CC-BY-ND-4.0", "C-UDA-1.0"),
        *("non-commercial", "research-only", "on-request", "custom"),
    ),
}
UNKNOWN = "unknown"
ORDER = (*CLASSES, UNKNOWN)  # from most permissive to unknown
_CLASS = {name: group for group, names in CLASSES.items() for name in names}


def classify(licence: str) -> str:
    """The strictest class among the parts of a licence; "unknown" for an empty one."""
    return max((_CLASS.get(part, UNKNOWN) for part in licence.split(" AND ")), key=ORDER.index)


def parse(asked: str) -> frozenset[str]:
    """The classes and licences of a filter such as "permissive,CC-BY-SA-4.0". Raises UserError for anything else."""
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in ORDER and name not in _CLASS:
            raise UserError(
                f"no licence or class '{name}'{nearest(name, [*ORDER, *_CLASS])}; classes are {', '.join(ORDER)}, "
                "licences are written as CC-BY-SA-4.0, with commas between them"
            )
    return frozenset(names)


def allows(asked: frozenset[str], licence: str) -> bool:
    """Whether every part of a licence is allowed, by name or by class."""
    return all({part, _CLASS.get(part, UNKNOWN)} & asked for part in licence.split(" AND "))


def refused(asked: str | None, facts: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> dict[str, str]:
    """{task excluded by the filter: reason}; empty without a filter. `facts`: metadata by task, with its licence."""
    if asked is None:
        return {}
    wanted = parse(asked)
    licences = {name: facts[name].get("licence") or "" for name in names}
    return {
        name: f"licence {licence or UNKNOWN} ({classify(licence)}) is not {asked}"
        for name, licence in licences.items()
        if not allows(wanted, licence)
    }
