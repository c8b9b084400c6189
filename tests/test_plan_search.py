"""The search for a mesh layout: ranked, compiled, resolved for the available devices."""

import dataclasses

import pytest

from flanx import partition
from flanx.errors import UserError
from flanx.plan import cost_model, hardware, mesh_layout, search, tpu_compile
from tests.plan_case import RUN, TRAINER


@pytest.fixture(scope="module")
def traced() -> cost_model.Trace:
    return cost_model.trace(RUN.scanned(), tpu=False)


def test_auto_layout_of_the_devices_at_hand() -> None:
    settled = search.resolve_partitioner(partition.Partitioner("auto"), TRAINER, 32, RUN.lengths)
    assert settled.num_partitions in (1, 2, 4, 8)
    assert settled.host_rows(32) == range(32)


def test_a_recipe_that_fits_nowhere_and_a_batch_that_divides_over_nothing(traced: cost_model.Trace) -> None:
    odd = dataclasses.replace(RUN, batch_size=7)
    with pytest.raises(UserError, match=r"a batch of 7 rows .* divides over no layout of v5e:16x16"):
        search.ranked(odd, traced, hardware.parse("v5e:16x16"))
    uneven = dataclasses.replace(RUN, trainer=dataclasses.replace(TRAINER, num_microbatches=5))
    with pytest.raises(UserError, match=r"a batch of 32 rows does not divide into 5 microbatches"):
        search.ranked(uneven, traced, hardware.parse("v5e:2x2"))
    tiny_chip = dataclasses.replace(hardware.CHIPS["v5e"], hbm_bytes=1e6)
    plans = search.ranked(RUN, traced, hardware.Topology(tiny_chip, (2, 2)))
    assert not plans[0].fits
    assert search.reason(plans) == "no layout fits; this one comes nearest"


def test_a_layout_that_does_not_fit_leads_to_the_next_smaller_one(traced: cost_model.Trace) -> None:
    plans = search.ranked(RUN, traced, hardware.parse("v5e:2x4"))
    sizes, asked = {plan.layout: plan.hbm for plan in plans}, []

    def compiler(fits_at: int) -> search.Compile:
        """One that takes the layout of this turn and refuses all others."""
        asked.clear()

        def ask(topology: hardware.Topology, wanted: mesh_layout.MeshLayout) -> tpu_compile.CompilerReport:
            asked.append(wanted)
            fits = len(asked) == fits_at
            needs = 1e6 if fits else 1e12
            return tpu_compile.CompilerReport(fits, needs, 1e5, needs - 1e5, 0.0, [], 1.0, 1e9)

        return ask

    chosen = search.compile_best(plans, traced, compiler(2), compilations=1).plans
    assert asked[0] == plans[0].layout and len(asked) == 2
    assert sizes[asked[1]] < sizes[asked[0]]
    assert chosen[0].layout == asked[1] and chosen[0].fits and chosen[0].source == "compiled"
    assert not search.compile_best(plans, traced, compiler(99), compilations=1).best.fits
    assert 1 < len(asked) <= search.ATTEMPTS


def test_a_program_much_slower_than_the_next_estimate_leads_to_that_one(traced: cost_model.Trace) -> None:
    plans = search.ranked(RUN, traced, hardware.parse("v5e:2x4"))
    asked: list[mesh_layout.MeshLayout] = []

    def ask(topology: hardware.Topology, wanted: mesh_layout.MeshLayout) -> tpu_compile.CompilerReport:
        """The first program sums 1 GB that no estimate knows of over all chips."""
        asked.append(wanted)
        sums = [{"kind": "all-reduce", "members": range(8), "count": 1, "sent": 1e9}] if len(asked) == 1 else []
        return tpu_compile.CompilerReport(True, 1e6, 1e6, 1e5, 0.0, sums, 1.0, 1e9)

    found = search.compile_best(plans, traced, ask, compilations=1)
    assert asked == [plan.layout for plan in plans[:2]] and found.best.layout == asked[1]
    assert found.plans[1].layout == asked[0] and found.plans[1].source == "compiled"


def test_a_plan_fits_up_to_the_last_byte_of_the_chip(traced: cost_model.Trace) -> None:
    plan = search.ranked(RUN, traced, hardware.parse("v5e:2x4"))[0]

    def fits(hbm_bytes: float) -> bool:
        chip = dataclasses.replace(plan.topology.chip, hbm_bytes=hbm_bytes)
        return dataclasses.replace(plan, topology=dataclasses.replace(plan.topology, chip=chip)).fits

    assert fits(plan.hbm) and not fits(plan.hbm - 1)


def test_of_equally_fast_layouts_the_one_with_least_memory_is_chosen(traced: cost_model.Trace) -> None:
    plan = search.ranked(RUN, traced, hardware.parse("v5e:2x4"))[0]

    def made(name: str, seconds: float, hbm: float) -> search.Plan:
        layout = dataclasses.replace(plan.layout, preset=name)
        return dataclasses.replace(
            plan, layout=layout, parts={"parameters": hbm}, compute=seconds, memory=0.0, links=0.0, network=0.0
        )

    given = [made("small", 1.018, 1e9), made("smallest", 1.03, 1e8), made("fast", 1.0, 2e9), made("huge", 0.5, 1e15)]
    best = search.best_first(given)
    assert [each.layout.preset for each in best] == ["small", "fast", "smallest", "huge"]
    assert search.reason(best).startswith("the least memory of those that are fastest")
    assert search.reason([best[1], best[2]]).startswith("the fastest that fits: 1.03 x ahead of")
    assert search.best_first([made("larger", 1.0, 2e15), *given[3:]])[0].layout.preset == "huge"  # neither fits
