"""What became slower between two files of benchmark lines: python benchmarks/compare.py OLD.jsonl NEW.jsonl

    make bench > old.jsonl; ...; make bench > new.jsonl

A table of the metrics that both have: of those with a ratio to a peer the ratio, which says more than a time where the
machine is not the same; of others the value. A change for the worse of more than --tolerance is marked, and exit status
1 then. Values of two processors, or of a machine that did other work, are shown and not judged.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

from flanx.files import markdown_table

LOWER = ("s", "seconds", "ms", "min", "h", "GB", "MB", "bytes", "passes", "x slower")  # units where less is better


def read(path: pathlib.Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The last line of each metric; lines not in a benchmark's form are skipped."""
    lines = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and {"benchmark", "metric"} <= line.keys():
            lines[line["benchmark"], line["metric"]] = line
    return lines


def change(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, float, float, float | None]:
    """(what is compared, its two values, how much better the new one is: 0.1 is a tenth; None: not judged)."""
    if old.get("ratio") and new.get("ratio"):
        return "ratio", old["ratio"], new["ratio"], new["ratio"] / old["ratio"] - 1
    before, after = old.get("value"), new.get("value")
    if not isinstance(before, int | float) or not isinstance(after, int | float) or not before or not after:
        return "value", before or 0.0, after or 0.0, None
    same = old.get("machine", {}).get("processor") == new.get("machine", {}).get("processor")
    loads = [(line.get("load") or {}).get("others") for line in (old, new)]
    quiet = all(load is not None and load <= 0.1 for load in loads)
    better = before / after if new.get("unit") in LOWER else after / before
    return f"value, {new.get('unit', '')}", before, after, better - 1 if same and quiet else None


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns 1 if something became worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=pathlib.Path)
    parser.add_argument("new", type=pathlib.Path)
    parser.add_argument("--tolerance", type=float, default=0.05, help="share by which a metric may become worse")
    args = parser.parse_args(argv)
    old, new = read(args.old), read(args.new)
    both = [key for key in new if key in old]
    if not both:
        print(f"no metric is in both {args.old} and {args.new}", file=sys.stderr)
        return 2
    worse, rows = 0, []
    for key in both:
        what, before, after, better = change(old[key], new[key])
        is_worse = better is not None and better < -args.tolerance
        worse += is_worse
        verdict = "not judged" if better is None else f"{100 * better:+.1f}%" + (" **regression**" if is_worse else "")
        rows.append([*key, what, f"{before:.4g}", f"{after:.4g}", verdict])
    print(markdown_table(("benchmark", "metric", "compared", "old", "new", "change"), rows))
    for missing in sorted(set(old) - set(new)):
        print(f"not measured again: {missing[0]}, {missing[1]}", file=sys.stderr)
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
