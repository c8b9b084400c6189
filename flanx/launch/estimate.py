"""What a flanx command will run, read from its gin files: the operative config, the run's folder, the plan on a slice.

jax is imported inside the functions, so that `flanx launch` commands that only follow a launch start without it.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from flanx.errors import UserError
from flanx.plan.hardware import Topology


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A training run on a topology, as the plan estimates it (nothing is compiled).

    Attributes:
      layout: of the mesh; hbm, capacity: bytes per chip that it needs and that are available; hours: for all steps,
        with no communication overlapped.
    """

    topology: str
    chips: int
    layout: str
    hbm: float
    capacity: float
    steps: int
    hours: float

    @property
    def text(self) -> str:
        """The estimate as one line."""
        return (
            f"{self.chips} chips, layout {self.layout}, {self.hbm / 1e9:.2f} of {self.capacity / 1e9:.2f} GB a chip; "
            f"{self.steps:,} steps: {self.hours:.3g} h, {self.hours * self.chips:,.3g} chip-hours "
            "(an estimate from shapes)"
        )


def operative_config(
    gin_files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str], folder: str
) -> tuple[str, str]:
    """(the whole config as gin text, the value of the macro `folder`). Raises UserError as the command would."""
    from flanx import config  # noqa: PLC0415  (see the module's docstring)

    config.parse(gin_files, bindings, search_paths)
    return config.text(), str(config.value(folder))


def own_files(gin_files: Sequence[str]) -> list[str]:
    """The gin files that do not ship with flanx."""
    from flanx import config  # noqa: PLC0415  (see the module's docstring)

    return [n for n in gin_files if pathlib.Path(n).is_file() or not (config.gin_folder() / n).is_file()]


def plan(
    gin_files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str], topology: Topology
) -> Estimate:
    """The plan of a training run. Raises UserError if it does not fit."""
    from flanx.plan import planned_run, search  # noqa: PLC0415  (see the module's docstring)

    planned = planned_run.read(gin_files, bindings, search_paths)
    best = search.search(planned.scanned(), [topology], None, 0, "").best
    capacity = topology.chip.hbm_bytes
    if not best.fits:
        raise UserError(
            f"it does not fit {topology.name}: {best.hbm / 1e9:.1f} GB a chip of {capacity / 1e9:.1f} "
            f"({best.layout.name}); next: {search.advice(best)}"
        )
    hours = best.seconds * planned.train_steps / 3600
    return Estimate(topology.name, topology.chips, best.layout.name, best.hbm, capacity, planned.train_steps, hours)


def sweep_folder(gin_files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str]) -> str:
    """The folder of the sweep that the gin files bind."""
    from flanx import config  # noqa: PLC0415  (see the module's docstring)

    config.parse(gin_files, bindings, [path for path in search_paths if path], whole=False)
    return str(config.parameter("flanx.sweep.grid.Sweep", "out_dir"))
