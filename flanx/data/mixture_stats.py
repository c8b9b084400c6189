"""What a mixture yields over the planned steps, as plain data for tables and JSON, and as a plot."""

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from flanx.data.pipeline.batches import Batches
from flanx.data.pipeline.mixture import Mixture
from flanx.data.store import open_store

_SIDES = ("inputs", "targets")


def describe_mixture(
    store_dir: str | os.PathLike[str],
    mixture: Mixture,
    task_feature_lengths: Mapping[str, int],
    batch_size: int,
    train_steps: int,
    packing: str = "encoder_decoder",
) -> dict[str, Any]:
    """What `train_steps` batches contain: shares, examples and epochs by task and collection, and padding.

    Shares are exact; examples and epochs are derived from them and the mean number of examples per row (an epoch: every
    example of the task drawn once, over all styles); padding and truncation are measured on the first chunk of rows
    (about 130,000 examples).
    """
    batches = Batches(open_store(store_dir), mixture, task_feature_lengths, batch_size, packing=packing)
    resolved = batches.resolved
    plan = batches.chunk_plan(0)
    drawn = train_steps * batches.batch_size * batches.examples_per_row
    cut = {side: np.bincount(plan.source, plan.cut[:, i], len(resolved.sources)) for i, side in enumerate(_SIDES)}
    seen = np.bincount(plan.source, minlength=len(resolved.sources))
    tasks: dict[str, dict[str, Any]] = {}
    for i, source in enumerate(resolved.sources):
        row = tasks.setdefault(
            source.task.name,
            {"collection": source.collection, "share": 0.0, "examples": source.task.examples,
             "styles": {}, "seen": 0, **{f"cut_{side}": 0.0 for side in _SIDES}},
        )  # fmt: skip
        row["share"] += source.weight
        row["styles"][source.style] = source.weight
        row["seen"] += int(seen[i])
        for side in _SIDES:
            row[f"cut_{side}"] += float(cut[side][i])
    epochs = batches.epochs(train_steps)
    for name, row in tasks.items():
        row["drawn"], row["epochs"] = drawn * row["share"], epochs[name]
        for side in _SIDES:
            row[f"cut_{side}"] = row[f"cut_{side}"] / row["seen"] if row["seen"] else math.nan
        del row["seen"]
    collections = {}
    for name, share in resolved.collections.items():
        rows = [row for row in tasks.values() if row["collection"] == name]
        most = max(row["epochs"] for row in rows)
        collections[name] = {"tasks": len(rows), "share": share, "drawn": drawn * share, "most_epochs": most}
    used = plan.length.sum(axis=0)
    num_rows = len(plan.starts) - 1
    if batches.packing == "decoder_only":
        padding = {"rows": 1 - used.sum() / (num_rows * sum(batches.limits))}
    else:
        padding = {side: 1 - used[i] / (num_rows * batches.limits[i]) for i, side in enumerate(_SIDES)}
    of_row = np.add.reduceat(plan.length, np.minimum(plan.starts[:-1], len(plan.source) - 1), axis=0)
    if batches.packing == "encoder_decoder":  # of whichever side fills first in each row
        padding["first_full"] = 1 - (of_row / batches.limits).max(axis=1).mean()
    return batches.describe() | {
        "steps": train_steps,
        "examples": drawn,
        "padding": {name: float(share) for name, share in padding.items()},
        "cut": {side: float(plan.cut[:, i].mean()) for i, side in enumerate(_SIDES)},
        "collections": collections,
        "tasks": tasks,
    }


def draw(table: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Plots the result of `describe_mixture` to an image file (png, svg, pdf)."""
    import matplotlib  # noqa: PLC0415  (an extra)

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    collections = sorted(table["collections"].items(), key=lambda item: item[1]["share"])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    names = [f"{name} ({row['tasks']})" for name, row in collections]
    shares = [100 * row["share"] for _, row in collections]
    bars = left.barh(names, shares, color=[f"C{i}" for i in range(len(names))])
    left.bar_label(bars, fmt="%.1f %%", padding=3)
    left.set(xlabel="share of examples (%)", xlim=(0, max(shares) * 1.2), title=table["mixture"]["asked"]["name"])
    for i, (name, _) in enumerate(collections):
        epochs = sorted((row["epochs"] for row in table["tasks"].values() if row["collection"] == name), reverse=True)
        right.step(range(1, len(epochs) + 1), epochs, where="mid", color=f"C{i}", label=name, marker=".")
    right.axhline(1, color="0.6", linewidth=1)
    right.set(
        xlabel="tasks of the collection, most repeated first",
        ylabel=f"epochs in {table['steps']:,} steps",
        xscale="log",
        yscale="log",
    )
    right.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
