"""Whole steps through the TPU compiler, and its out-of-memory messages."""

import json

import pytest

from flanx.cli import main
from flanx.plan import mesh_layout, tpu_compile

REFUSALS = [
    ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.", 20.5 * 2**30),
    ("the total memory required for HLO temporaries (32.92G) exceeds available HBM (30.75G).", 32.92 * 2**30 + 5e9),
    ("INTERNAL: something else", None),
]


@pytest.mark.parametrize(("text", "size"), REFUSALS)
def test_what_a_refused_program_asked_for(text: str, size: float | None) -> None:
    assert tpu_compile.requested_bytes(text, 5e9) == size


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
    answer = json.loads(capsys.readouterr().out)
    assert answer["source"] == "compiled"
    assert answer["topology"] == ("v5e:1x1" if kind == "auto" else topology)
    parameters = answer["hbm_parts_bytes"]["parameters"]
    whole = 4 * 76_961_152  # bytes of T5.1.1 small
    assert parameters == pytest.approx(whole, rel=1e-3) if "model 1, (1, 1)" in name else 0 < parameters <= whole
    made = mesh_layout.MeshLayout(**answer["layout"])
    sizes = {"replica": made.replicas, "data": made.data, "model": made.model}
    used = {axis for row in answer["collectives"] for axis in row["axes"]}
    assert used == {axis for axis, n in sizes.items() if n > 1}
    assert (answer["seconds"]["network"] > 0) == (kind == "two slices")


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
    answer = json.loads(capsys.readouterr().out)
    assert answer["source"] == "compiled"
    assert answer["hbm_per_chip_bytes"] < limit
    assert answer["compile_host_bytes"] < 12e9
