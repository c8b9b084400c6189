"""A plot of a mixture: shares of its collections, and epochs of its tasks over the planned steps."""

import os
from typing import Any


def draw(table: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws the result of `stats.describe_mixture` into an image file (png, svg, pdf)."""
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
