"""The grid of a sweep: points as command lines, and grids that are refused."""

import pytest

from flanx.errors import UserError
from flanx.sweep.grid import Sweep
from tests.sweep_maker import make as make_sweep


def test_a_grid_is_the_product_of_its_axes_as_command_lines(tmp_path):
    points = make_sweep(tmp_path).points()
    assert [p.name for p in points] == ["d1_2", "d1_8", "d2_2", "d2_8"]
    folder = str(tmp_path / "runs" / "d2_8")
    assert points[3].arguments("a,b") == [
        "train",
        "--gin_file=runs/train.gin",
        "--gin_search_paths=a,b",
        "--gin.STEPS=5",
        "--gin.D=2",
        "--gin.TASKS=8",
        f"--gin.MODEL_DIR='{folder}'",
    ]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({}, "no points"),
        ({"size": {}}, "no points"),
        ({"size": {"a/b": ["D=1"], "a b": ["D=2"]}}, "share the folder 'a_b'"),
        ({"size": {"a": ["models/tiny"]}}, "'models/tiny'"),
    ],
)
def test_a_wrong_grid_is_named(axes, said):
    with pytest.raises(UserError, match=said):
        Sweep(out_dir="out", gin_files=[], axes=axes).points()
