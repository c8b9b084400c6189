"""Mesh layouts of a topology: every shape whose shards divide the batch, with the presets that differ."""

from flanx.plan import hardware, mesh_layout
from tests.plan_case import RUN


def test_layouts_divide_the_batch_and_cover_the_chips() -> None:
    layouts = list(mesh_layout.mesh_layouts(RUN, hardware.parse("2x v5e:2x4")))
    assert {(layout.data, layout.model) for layout in layouts} == {(8, 1), (4, 2), (2, 4), (1, 8)}
    assert all(layout.replicas == 2 for layout in layouts)
    assert {layout.preset for layout in layouts if layout.model == 1} == {"(1, 1)", "fsdp"}
    assert "fsdp" not in {layout.preset for layout in layouts if layout.model > 1}
    assert layouts[0].name == "replica 2 x data 8 x model 1, (1, 1)"


def test_an_abstract_partitioner_has_the_shape_of_the_mesh() -> None:
    partitioner = mesh_layout.MeshLayout(1, 4, 2, "(1, 2)").partitioner()
    assert dict(partitioner.mesh.shape) == {"replica": 1, "data": 4, "model": 2}
