"""The plan: topologies, the reading of a compiled program, estimates beside XLA's own figures, the door."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable

import jax
import pytest

from flanx import optim, partition
from flanx.cli import main
from flanx.errors import UserError
from flanx.models import t5
from flanx.plan import cost_model, hardware, hlo, mesh_layout, page, planned_run, search, tpu_compile
from flanx.train_step import Trainer, TrainState

SMALL = t5.T5(
    vocab_size=512, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=512, num_encoder_layers=2, num_decoder_layers=2
)
TRAINER = Trainer(SMALL, optim.adafactor(1e-3), dropout=False)
RECIPE = planned_run.Recipe(TRAINER, 32, {"inputs": 128, "targets": 64}, 100)


@pytest.fixture(scope="module")
def traced() -> cost_model.Trace:
    return cost_model.trace(RECIPE.scanned(), tpu=False)


@pytest.mark.parametrize(
    ("text", "chips"), [("v4:4x4x4", 64), ("2x v5e:16x16", 512), ("h100:16", 16), ("v4:12x16x16", 3072)]
)
def test_topologies(text: str, chips: int) -> None:
    assert hardware.parse(text).chips == chips
    assert hardware.parse(text).name == text
    assert hardware.parse(text.replace("2x ", "2x")).name == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v4:3x3x3", r"no slice v4:3x3x3: nearest are v4:2x4x4, v4:2x2x4, v4:4x4x4"),
        ("v5e:4x4x4", r"v5e has 2 axes; nearest slices: v5e:8x8"),
        ("v5f:2x2", r"no chip 'v5f'; did you mean 'v5p'\?"),
        ("v4", r"write FAMILY:SHAPE"),
        ("0x v5e:2x2", r"write FAMILY:SHAPE"),
        ("h100:2x2", r"GPUs are counted"),
        ("v4:64x64x64", r"no slice v4:64x64x64: nearest are v4:16x16x16"),
    ],
)
def test_topologies_that_are_not(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        hardware.parse(text)


PROGRAM = """HloModule jit_step

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %ag = bf16[8,64]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%i, %ag)
}

%condition (p: (s32[], f32[8,16])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %w = (s32[], f32[8,16]{1,0}) while(%init), condition=%condition, body=%body, backend_config={TRIPS}
  %ar = f32[8,16]{1,0} all-reduce(%g), channel_id=2, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %rs = (f32[8,16]{1,0}, f32[2,16]{1,0}) reduce-scatter-start(%g), channel_id=3, replica_groups=[2,4]<=[4,2]T(1,0)
  ROOT %cp = f32[8,16]{1,0} collective-permute(%ar), source_target_pairs={{0,1},{1,0}}
}
""".replace("{TRIPS}", '{"known_trip_count":{"n":"24"}}')


def test_collectives_of_a_program_count_loops() -> None:
    found = {c.kind: c for c in hlo.collectives(PROGRAM, 8)}
    gather = found["all-gather"]
    assert (gather.count, gather.members) == (24, (0, 1, 2, 3))
    assert gather.sent == 24 * 8 * 64 * 2 * 3 / 4
    assert found["all-reduce"].members == (0, 4)
    assert found["all-reduce"].sent == 2 * 8 * 16 * 4 / 2
    assert found["reduce-scatter"].members == (0, 2, 4, 6)
    assert found["reduce-scatter"].sent == 2 * 16 * 4 * 3
    assert found["collective-permute"].sent == 8 * 16 * 4
    assert hlo.axes_spanned((0, 4), (1, 2, 4)) == (1,)
    assert hlo.axes_spanned((0, 1, 2, 3), (1, 2, 4)) == (2,)


TPU_PROGRAM = """HloModule jit_f

%start (p: bf16[1,128]) -> bf16[1,512] {
  ROOT %ag = bf16[1,512]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}
}

%done (p: bf16[1,128]) -> bf16[1,512] {
  ROOT %ag.1 = bf16[1,512]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = bf16[1,512]{1,0} fusion(%x), kind=kCustom, calls=%start
  ROOT %g = (s32[], f32[8]) fusion(%f), kind=kCustom, calls=%done
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %c = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[]{:T(512)} compare(%i, %c), direction=LT
}

ENTRY %main (a: f32[8]) -> f32[8] {
  ROOT %w = (s32[]{:T(128)}, f32[8]{0}) while(%init), condition=%condition, body=%body
}
"""


def test_a_tpu_program_counts_an_asynchronous_collective_once_per_trip() -> None:
    (gather,) = hlo.collectives(TPU_PROGRAM, 8)
    assert (gather.kind, gather.count, gather.members) == ("all-gather", 7, (0, 1, 2, 3))
    assert gather.sent == 7 * 512 * 2 * 3 / 4


TWO_SLICES = """HloModule jit_step

ENTRY %main (a: f32[2,8]) -> f32[2,8] {
  %send = (f32[2,8]{1,0:T(8,128)}, u32[], token[]) send(%a, %t), channel_id=5, is_host_transfer=true, \
frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[2,8]{1,0:T(8,128)}, u32[], token[]) recv(%t), channel_id=6, is_host_transfer=true, \
frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""


def test_what_is_sent_between_slices_counts_over_the_replicas() -> None:
    (across,) = hlo.collectives(TWO_SLICES, 8, slices=2)
    assert (across.kind, across.count, across.members) == ("all-reduce", 1, (0, 4))
    assert across.sent == 2 * 2 * 8 * 4 / 2
    assert hlo.axes_spanned(across.members, (2, 2, 2)) == (0,)


def test_flops_of_the_walk_are_those_of_the_model(traced: cost_model.Trace) -> None:
    for made in mesh_layout.layouts(RECIPE, hardware.parse("v5e:2x4")):
        cost = cost_model.cost(traced, made)
        ratio = cost.flops * 8 / RECIPE.flops_per_step
        assert 0.95 < ratio < 1.3, (made.name, ratio)  # above 1: what a layout computes more than once


# Activations: the estimate over XLA's own figure on the CPU. What lies from step to step and the gradients are exact.
# The walk fuses nothing and frees at once; XLA on a CPU fuses, but keeps scheduling freedom and small copies.
BESIDE_XLA = {(8, 1, "(1, 1)"): 0.81, (4, 2, "(1, 2)"): 0.89, (2, 4, "(2, 2)"): 0.84}
QUICK = {"xla_backend_optimization_level": 0}


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=() if shape == (4, 2, "(1, 2)") else pytest.mark.slow) for shape in BESIDE_XLA]
)
def test_estimate_beside_what_xla_says_on_the_cpu(traced: cost_model.Trace, shape: tuple[int, int, str]) -> None:
    made = mesh_layout.Layout(1, *shape)
    cost, found = cost_model.cost(traced, made), xla_parts(RECIPE.scanned(), made.partitioner(jax.devices()))
    ratios = {part: getattr(cost, part) / found[part] for part in found}
    exact = dict.fromkeys(("params", "optimizer", "batch", "gradients"), 1.0)
    assert {part: ratios[part] for part in exact} == pytest.approx(exact, rel=0.001)
    assert ratios["activations"] == pytest.approx(BESIDE_XLA[shape], rel=0.1)


def xla_parts(planned: planned_run.Recipe, partitioner: partition.Partitioner) -> dict[str, float]:
    """Bytes per device of the parts of a step, from XLA's memory analysis of its gradient."""
    state, batch = planned.trainer.abstract_state(partitioner), planned.batch(partitioner)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state.params)

    def gradient(state: TrainState, batch: dict[str, jax.Array]) -> object:
        return jax.grad(lambda params: planned.trainer.loss(params, batch, None)[0])(state.params)

    def given(*which: object) -> float:
        """Bytes of arguments, read or not."""
        nothing = jax.jit(lambda *_: 0, keep_unused=True).lower(*which).compile()
        return nothing.memory_analysis().argument_size_in_bytes

    with partitioner.scope():
        lowered = jax.jit(gradient, out_shardings=shardings, compiler_options=QUICK).lower(state, batch)
        memory = lowered.compile().memory_analysis()
        parts = {"params": given(state.params), "optimizer": given(state.opt_state), "batch": given(batch)}
    return parts | {"gradients": memory.output_size_in_bytes, "activations": memory.temp_size_in_bytes}


def test_estimate_of_a_whole_step_beside_xla(traced: cost_model.Trace) -> None:
    """All that a step holds, donated state and optimizer's arithmetic included."""
    made = mesh_layout.Layout(1, 4, 2, "(1, 2)")
    partitioner, scanned = made.partitioner(jax.devices()), RECIPE.scanned()
    state, batch = scanned.trainer.abstract_state(partitioner), scanned.batch(partitioner)
    with partitioner.scope():
        memory = scanned.trainer.jit(state, compiler_options=QUICK).lower(state, batch).compile().memory_analysis()
    cost, whole = cost_model.cost(traced, made), memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert memory.alias_size_in_bytes >= cost.params + cost.optimizer  # the new state takes the place of the old
    assert cost.hbm / whole == pytest.approx(0.90, rel=0.1)


def test_parts_of_a_sharded_state_are_exact(traced: cost_model.Trace) -> None:
    whole = cost_model.cost(traced, mesh_layout.Layout(1, 8, 1, "(1, 1)"))
    split = cost_model.cost(traced, mesh_layout.Layout(1, 8, 1, "fsdp"))
    assert whole.params == pytest.approx(4 * SMALL.num_params(), rel=1e-6)
    assert split.params < whole.params / 7  # the small relative bias stays whole
    assert split.collectives["all-gather", ("data",)] > 0
    assert not [key for key in whole.collectives if key[0] == "all-gather"]


def test_auto_layout_of_the_devices_at_hand() -> None:
    settled = search.settle(partition.Partitioner("auto"), TRAINER, 32, RECIPE.lengths)
    assert settled.num_partitions in (1, 2, 4, 8)
    assert settled.host_rows(32) == range(32)


def test_a_recipe_that_fits_nowhere_and_a_batch_that_divides_over_nothing(traced: cost_model.Trace) -> None:
    odd = dataclasses.replace(RECIPE, batch_size=7)
    with pytest.raises(UserError, match=r"a batch of 7 rows .* divides over no layout of v5e:16x16"):
        search.ranked(odd, traced, hardware.parse("v5e:16x16"))
    uneven = dataclasses.replace(RECIPE, trainer=dataclasses.replace(TRAINER, num_microbatches=5))
    with pytest.raises(UserError, match=r"a batch of 32 rows does not divide into 5 microbatches"):
        search.ranked(uneven, traced, hardware.parse("v5e:2x2"))
    tiny_chip = dataclasses.replace(hardware.CHIPS["v5e"], hbm_bytes=1e6)
    plans = search.ranked(RECIPE, traced, hardware.Topology(tiny_chip, (2, 2)))
    assert not plans[0].fits
    assert search.reason(plans) == "no layout fits; this one comes nearest"


REFUSALS = [
    ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.", 20.5 * 2**30),
    ("the total memory required for HLO temporaries (32.92G) exceeds available HBM (30.75G).", 32.92 * 2**30 + 5e9),
    ("INTERNAL: something else", None),
]


@pytest.mark.parametrize(("text", "size"), REFUSALS)
def test_what_a_refused_program_asked_for(text: str, size: float | None) -> None:
    assert tpu_compile.needed(text, 5e9) == size


def test_a_layout_that_does_not_fit_leads_to_the_next_smaller_one(traced: cost_model.Trace) -> None:
    plans = search.ranked(RECIPE, traced, hardware.parse("v5e:2x4"))
    sizes, asked = {plan.layout: plan.hbm for plan in plans}, []

    def compiler(fits_at: int) -> Callable[[mesh_layout.Layout], tpu_compile.Answer]:
        """One that takes the layout of this turn and refuses all others."""
        asked.clear()

        def ask(wanted: mesh_layout.Layout) -> tpu_compile.Answer:
            asked.append(wanted)
            fits = len(asked) == fits_at
            needs = 1e9 if fits else 1e12
            return tpu_compile.Answer(fits, needs, 1e8, needs - 1e8, 0.0, [], 1.0, 1e9)

        return ask

    chosen = search.best(plans, traced, compiler(2), compilations=1)
    assert asked[0] == plans[0].layout and len(asked) == 2
    assert sizes[asked[1]] < sizes[asked[0]]
    assert chosen[0].layout == asked[1] and chosen[0].fits and chosen[0].source == "compiled"
    assert not search.best(plans, traced, compiler(99), compilations=1)[0].fits
    assert 1 < len(asked) <= search.ATTEMPTS


def test_a_layout_on_which_the_compiler_fails_is_named_and_the_next_one_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: list[dict] = []

    def ask(request: dict, timeout: float) -> tpu_compile.Answer:
        asked.append(request["layout"])
        if len(asked) == 1:
            raise tpu_compile.Broken("the compiler failed on it: INTERNAL: RET_CHECK")
        return tpu_compile.Answer(True, 1e9, 1e8, 9e8, 0.0, [], 1.0, 1e9)

    monkeypatch.setattr(tpu_compile, "has_compiler", lambda: True)
    monkeypatch.setattr(tpu_compile, "ask", ask)
    assert main.main(door("--topology=v5e:2x2", "--compilations=1", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["source"] == "compiled" and told["layout"] == asked[1] != asked[0]
    assert "INTERNAL: RET_CHECK; left out" in told["notes"][0]
    monkeypatch.setattr(tpu_compile, "ask", lambda *_: ask({"layout": asked.clear()}, 0.0))
    assert main.main(door("--topology=v5e:2x2", "--json")) == 2
    assert "INTERNAL: RET_CHECK" in capsys.readouterr().err


def door(*more: str) -> list[str]:
    bound = ["--gin.t5.T5.num_encoder_layers=1", "--gin.t5.T5.num_decoder_layers=1", "--gin.BATCH_SIZE=32"]
    return ["plan", "--gin_file=models/t5_1_1/tiny.gin", *bound, *more]


def test_door_prints_json_and_says_whether_it_fits(capsys: pytest.CaptureFixture) -> None:
    assert main.main(door("--topology=v5e:2x2", "--estimate", "--json", "--gin.TRAIN_STEPS=3600")) == 0
    told = json.loads(capsys.readouterr().out)
    keys = "fits chips layout hbm_per_chip_bytes hbm_capacity_bytes step_seconds tokens_per_second mfu hours chip_hours"
    assert set(keys.split()) <= set(told)
    assert (told["fits"], told["chips"], told["source"]) == (True, 4, "estimate")
    assert told["chip_hours"] == pytest.approx(4 * told["step_seconds"])
    assert math.isclose(sum(told["hbm_parts_bytes"].values()), told["hbm_per_chip_bytes"])


def test_door_finds_the_smallest_slice_and_plans_gpus(capsys: pytest.CaptureFixture) -> None:
    assert main.main(door("--topology=auto", "--family=v6e", "--estimate", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["topology"] == "v6e:1x1"
    assert main.main(door("--topology=h100:8", "--rows=2")) == 0
    said = capsys.readouterr().out
    assert "h100:8: 8 chips" in said
    assert "note: GPUs are planned from shapes alone" in said


def test_door_says_when_the_compiler_is_absent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(tpu_compile, "has_compiler", lambda: False)
    assert main.main(door("--topology=v5e:2x2", "--rows=1")) == 0
    assert "libtpu is not installed" in capsys.readouterr().out


def test_door_with_bad_input_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert main.main(door("--topology=v4:4x4")) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main.main(door("--topology=v5e:2x2", "--layout=model 3")) == 2
    assert "names no layout of v5e:2x2" in capsys.readouterr().err
    for flag in ("--compilations=0", "--timeout=-1", "--rows=0"):
        assert main.main(door("--topology=v5e:2x2", flag)) == 2
        assert f"{flag}: give 1 or more" in capsys.readouterr().err


def test_a_model_that_fits_nowhere_in_a_family_is_one_line_with_the_next_thing_to_try(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(hardware.CHIPS, "v5e", dataclasses.replace(hardware.CHIPS["v5e"], hbm_bytes=3e6))
    assert main.main(door("--topology=auto", "--estimate", "--json", "--gin.BATCH_SIZE=1024")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no slice of v5e holds it: the largest, v5e:16x16, has 0.0 GB a chip and the recipe needs" in said
    assert "next: remat = 'full', a larger NUM_MICROBATCHES or a smaller BATCH_SIZE, --topology='2x v5e:16x16'" in said
    assert main.main(door("--topology=v5e:2x2", "--estimate")) == 1
    assert "GB too much (next: remat = 'full', " in capsys.readouterr().out
    monkeypatch.setitem(hardware.CHIPS, "v5e", dataclasses.replace(hardware.CHIPS["v5e"], hbm_bytes=1e5))
    assert main.main(door("--topology=v5e:1x1", "--estimate")) == 1
    assert "parameters, optimizer and gradients alone are too much" in capsys.readouterr().out


def test_the_next_larger_topology() -> None:
    names = {"v4:4x4x4": "v4:4x4x8", "v5e:16x16": "2x v5e:16x16", "2x v5e:2x2": "4x v5e:2x2", "h100:8": "h100:16"}
    assert {name: hardware.larger(hardware.parse(name)) for name in names} == names


def test_the_page_has_the_papers_ten_models_compiled() -> None:
    text = (pathlib.Path(__file__).parent.parent / "docs" / "plan.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| Flan-")]
    assert [row[0] for row in rows] == [row.name for row in page.ROWS]
    assert {row[-1] for row in rows} == {"compiled"}
    assert "does not fit" not in text
    (largest,) = [row for row in rows if row[0] == "Flan-PaLM 540B"]
    assert largest[1] == "`v4:8x8x8`, 512 chips" and largest[-3].endswith("(paper: 37)")


SLICES = {
    "v5e": ("v5e:2x2", "data 4 x model 1, (1, 1)"),  # this one in CI: `make test-plan`
    "v4": ("v4:2x2x1", "data 4 x model 1, fsdp"),
    "v5p": ("v5p:2x2x1", "data 2 x model 2, (1, 2)"),
    "v6e": ("v6e:2x2", "data 1 x model 4, (1, 1)"),
    "two slices": ("2x v5e:2x2", "replica 2 x data 4 x model 1, (1, 1)"),
    "auto": ("auto", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SLICES)
def test_flan_t5_small_compiles(kind: str, capsys: pytest.CaptureFixture) -> None:
    """The recipe's whole step by the TPU compiler; few and short rows, whose program is made in half a minute."""
    pytest.importorskip("libtpu", reason="the TPU compiler comes with libtpu")
    topology, name = SLICES[kind]
    arguments = ["plan", "--gin_file=recipes/flan_t5_small.gin", "--compilations=1", "--json", "--gin.BATCH_SIZE=8"]
    arguments += ["--gin.TASK_FEATURE_LENGTHS={'inputs': 128, 'targets': 64}", f"--layout={name}"]
    assert main.main([*arguments, f"--topology={topology}"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["source"] == "compiled"
    assert told["topology"] == ("v5e:1x1" if kind == "auto" else topology)
    parameters = told["hbm_parts_bytes"]["parameters"]
    whole = 4 * 76_961_152  # bytes of T5.1.1 small
    assert parameters == pytest.approx(whole, rel=1e-3) if "model 1, (1, 1)" in name else 0 < parameters <= whole
    made = mesh_layout.Layout(**told["layout"])
    sizes = {"replica": made.replicas, "data": made.data, "model": made.model}
    used = {axis for row in told["collectives"] for axis in row["axes"]}
    assert used == {axis for axis, n in sizes.items() if n > 1}
    assert (told["seconds"]["network"] > 0) == (kind == "two slices")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "topology", "limit"), [("flan_t5_xxl", "v4:4x4x4", 20e9), ("flan_palm_540b", "v4:8x8x8", 33e9)]
)
def test_the_largest_models_compile_and_fit(
    name: str, topology: str, limit: float, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler comes with libtpu")
    arguments = ["plan", f"--gin_file=recipes/{name}.gin", f"--topology={topology}", "--compilations=1", "--json"]
    assert main.main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["source"] == "compiled"
    assert told["hbm_per_chip_bytes"] < limit
    assert told["compile_host_bytes"] < 12e9
