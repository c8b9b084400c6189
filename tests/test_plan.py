"""The plan: topologies, the reading of a compiled program, estimates beside XLA's own figures, the door."""

import dataclasses
import json
import math
from collections.abc import Callable

import jax
import pytest

from flanx import cli, optim, partition
from flanx.errors import UserError
from flanx.models import t5
from flanx.plan import chip, choose, compile, estimate, layout, program, recipe
from flanx.train_step import Trainer

SMALL = t5.T5(
    vocab_size=512, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=512, num_encoder_layers=2, num_decoder_layers=2
)
TRAINER = Trainer(SMALL, optim.adafactor(1e-3), dropout=False)
RECIPE = recipe.Recipe(TRAINER, 32, {"inputs": 128, "targets": 64}, 100)


@pytest.fixture(scope="module")
def traced() -> estimate.Trace:
    return estimate.trace(RECIPE.scanned(), tpu=False)


@pytest.mark.parametrize(
    ("text", "chips"), [("v4:4x4x4", 64), ("2x v5e:16x16", 512), ("h100:16", 16), ("v4:12x16x16", 3072)]
)
def test_topologies(text: str, chips: int) -> None:
    assert chip.parse(text).chips == chips
    assert chip.parse(text).name == text
    assert chip.parse(text.replace("2x ", "2x")).name == text


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
        chip.parse(text)


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
    found = {c.kind: c for c in program.collectives(PROGRAM, 8)}
    gather = found["all-gather"]
    assert (gather.count, gather.members) == (24, (0, 1, 2, 3))
    assert gather.sent == 24 * 8 * 64 * 2 * 3 / 4
    assert found["all-reduce"].members == (0, 4)
    assert found["all-reduce"].sent == 2 * 8 * 16 * 4 / 2
    assert found["reduce-scatter"].members == (0, 2, 4, 6)
    assert found["reduce-scatter"].sent == 2 * 16 * 4 * 3
    assert found["collective-permute"].sent == 8 * 16 * 4
    assert program.axes_spanned((0, 4), (1, 2, 4)) == (1,)
    assert program.axes_spanned((0, 1, 2, 3), (1, 2, 4)) == (2,)


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
    (gather,) = program.collectives(TPU_PROGRAM, 8)
    assert (gather.kind, gather.count, gather.members) == ("all-gather", 7, (0, 1, 2, 3))
    assert gather.sent == 7 * 512 * 2 * 3 / 4


def test_flops_of_the_walk_are_those_of_the_model(traced: estimate.Trace) -> None:
    for made in layout.layouts(RECIPE, chip.parse("v5e:2x4")):
        cost = estimate.cost(traced, made)
        ratio = cost.flops * 8 / RECIPE.flops_per_step
        assert 0.95 < ratio < 1.3, (made.name, ratio)  # above 1: what a layout computes more than once


@pytest.mark.parametrize(("data", "model", "preset"), [(8, 1, "(1, 1)"), (4, 2, "(1, 2)"), (2, 4, "(2, 2)")])
def test_estimate_beside_what_xla_says_on_the_cpu(
    traced: estimate.Trace, data: int, model: int, preset: str, record_property: object
) -> None:
    """Arguments are exact; temporaries (gradients and activations) within a factor that is written down here.

    The walk fuses nothing and frees at once; XLA on a CPU fuses, but keeps scheduling freedom and small copies.
    """
    made = layout.Layout(1, data, model, preset)
    cost = estimate.cost(traced, made)
    partitioner, scanned = made.partitioner(jax.devices()), RECIPE.scanned()
    state, batch = scanned.trainer.abstract_state(partitioner), scanned.batch(partitioner)
    with partitioner.scope():
        step = scanned.trainer.jit(state, compiler_options={"xla_backend_optimization_level": 0})
        memory = step.lower(state, batch).compile().memory_analysis()
    unused = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * 4 for n, leaf in batch.items() if "positions" in n)
    exact = cost.params + cost.optimizer + cost.batch - unused  # T5 reads no positions: jit leaves them out
    assert memory.argument_size_in_bytes == pytest.approx(exact, rel=0.001)
    ratio = (cost.gradients + cost.activations) / memory.temp_size_in_bytes
    record_property("temporaries: estimate over XLA's", round(ratio, 2))
    assert 0.6 < ratio < 1.7, ratio


def test_parts_of_a_sharded_state_are_exact(traced: estimate.Trace) -> None:
    whole = estimate.cost(traced, layout.Layout(1, 8, 1, "(1, 1)"))
    split = estimate.cost(traced, layout.Layout(1, 8, 1, "fsdp"))
    assert whole.params == pytest.approx(4 * SMALL.num_params(), rel=1e-6)
    assert split.params < whole.params / 7  # the small relative bias stays whole
    assert split.collectives["all-gather", ("data",)] > 0
    assert not [key for key in whole.collectives if key[0] == "all-gather"]


def test_auto_layout_of_the_devices_at_hand() -> None:
    settled = choose.settle(partition.Partitioner("auto"), TRAINER, 32, RECIPE.lengths)
    assert settled.num_partitions in (1, 2, 4, 8)
    assert settled.host_rows(32) == range(32)


def test_a_recipe_that_fits_nowhere_and_a_batch_that_divides_over_nothing(traced: estimate.Trace) -> None:
    odd = dataclasses.replace(RECIPE, batch_size=7)
    with pytest.raises(UserError, match=r"a batch of 7 rows .* divides over no layout of v5e:16x16"):
        choose.ranked(odd, traced, chip.parse("v5e:16x16"))
    uneven = dataclasses.replace(RECIPE, trainer=dataclasses.replace(TRAINER, num_microbatches=5))
    with pytest.raises(UserError, match=r"a batch of 32 rows does not divide into 5 microbatches"):
        choose.ranked(uneven, traced, chip.parse("v5e:2x2"))
    tiny_chip = dataclasses.replace(chip.CHIPS["v5e"], hbm_bytes=1e6)
    plans = choose.ranked(RECIPE, traced, chip.Topology(tiny_chip, (2, 2)))
    assert not plans[0].fits
    assert choose.reason(plans) == "no layout fits; this one comes nearest"


REFUSALS = [
    ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.", 20.5 * 2**30),
    ("the total memory required for HLO temporaries (32.92G) exceeds available HBM (30.75G).", 32.92 * 2**30 + 5e9),
    ("INTERNAL: something else", None),
]


@pytest.mark.parametrize(("text", "size"), REFUSALS)
def test_what_a_refused_program_asked_for(text: str, size: float | None) -> None:
    assert compile.needed(text, 5e9) == size


def test_a_layout_that_does_not_fit_leads_to_the_next_smaller_one(traced: estimate.Trace) -> None:
    plans = choose.ranked(RECIPE, traced, chip.parse("v5e:2x4"))
    sizes, asked = {plan.layout: plan.hbm for plan in plans}, []

    def compiler(fits_at: int) -> Callable[[layout.Layout], compile.Answer]:
        """One that takes the layout of this turn and refuses all others."""
        asked.clear()

        def ask(wanted: layout.Layout) -> compile.Answer:
            asked.append(wanted)
            fits = len(asked) == fits_at
            needs = 1e9 if fits else 1e12
            return compile.Answer(fits, needs, 1e8, needs - 1e8, 0.0, [], 1.0, 1e9)

        return ask

    chosen = choose.best(plans, traced, compiler(2), compilations=1)
    assert asked[0] == plans[0].layout and len(asked) == 2
    assert sizes[asked[1]] < sizes[asked[0]]
    assert chosen[0].layout == asked[1] and chosen[0].fits and chosen[0].source == "compiled"
    assert not choose.best(plans, traced, compiler(99), compilations=1)[0].fits
    assert 1 < len(asked) <= choose.ATTEMPTS


def door(*more: str) -> list[str]:
    bound = ["--gin.t5.T5.num_encoder_layers=1", "--gin.t5.T5.num_decoder_layers=1", "--gin.BATCH_SIZE=32"]
    return ["plan", "--gin_file=models/t5_1_1/tiny.gin", *bound, *more]


def test_door_prints_json_and_says_whether_it_fits(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(door("--topology=v5e:2x2", "--estimate", "--json", "--gin.TRAIN_STEPS=3600")) == 0
    told = json.loads(capsys.readouterr().out)
    keys = "fits chips layout hbm_per_chip_bytes hbm_capacity_bytes step_seconds tokens_per_second mfu hours chip_hours"
    assert set(keys.split()) <= set(told)
    assert (told["fits"], told["chips"], told["source"]) == (True, 4, "estimate")
    assert told["chip_hours"] == pytest.approx(4 * told["step_seconds"])
    assert math.isclose(sum(told["hbm_parts_bytes"].values()), told["hbm_per_chip_bytes"])


def test_door_finds_the_smallest_slice_and_plans_gpus(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(door("--topology=auto", "--family=v6e", "--estimate", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["topology"] == "v6e:1x1"
    assert cli.main(door("--topology=h100:8", "--rows=2")) == 0
    said = capsys.readouterr().out
    assert "h100:8: 8 chips" in said
    assert "note: GPUs are planned from shapes alone" in said


def test_door_says_when_the_compiler_is_absent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(compile, "has_compiler", lambda: False)
    assert cli.main(door("--topology=v5e:2x2", "--rows=1")) == 0
    assert "libtpu is not installed" in capsys.readouterr().out


def test_door_with_bad_input_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(door("--topology=v4:4x4")) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(door("--topology=v5e:2x2", "--layout=model 3")) == 2
    assert "names no layout of v5e:2x2" in capsys.readouterr().err


@pytest.mark.slow
def test_flan_t5_small_compiles_for_v5e(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler comes with libtpu")
    arguments = ["plan", "--gin_file=recipes/flan_t5_small.gin", "--topology=v5e:2x2", "--compilations=1", "--json"]
    assert cli.main([*arguments, "--gin.t5.T5.remat='full'"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["source"] == "compiled"
    assert {row["kind"] for row in told["collectives"]} & {"all-reduce", "reduce-scatter", "all-gather"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "topology", "limit"), [("flan_t5_xxl", "v4:4x4x4", 20e9), ("flan_palm_540b", "v4:8x8x8", 33e9)]
)
def test_the_largest_models_compile_and_fit(
    name: str, topology: str, limit: float, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler comes with libtpu")
    arguments = ["plan", f"--gin_file=recipes/{name}.gin", f"--topology={topology}", "--compilations=1", "--json"]
    assert cli.main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["source"] == "compiled"
    assert told["hbm_per_chip_bytes"] < limit
    assert told["compile_host_bytes"] < 12e9
