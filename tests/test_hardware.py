"""Topologies by name: the shapes that exist, the nearest to one that does not, the next larger one."""

import pytest

from flanx.errors import UserError
from flanx.plan import hardware


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


def test_the_next_larger_topology() -> None:
    names = {"v4:4x4x4": "v4:4x4x8", "v5e:16x16": "2x v5e:16x16", "2x v5e:2x2": "4x v5e:2x2", "h100:8": "h100:16"}
    assert {name: hardware.larger(hardware.parse(name)) for name in names} == names


@pytest.mark.parametrize(
    ("text", "hosts", "each"),
    [
        *(("v4:2x2x1", 1, 4), ("v4:4x4x4", 16, 4), ("v5e:1x1", 1, 1), ("v5e:2x4", 1, 8), ("v5e:4x4", 4, 4)),
        *(("2x v6e:16x16", 128, 4), ("h100:4", 1, 4), ("h100:16", 2, 8)),
    ],
)
def test_hosts(text: str, hosts: int, each: int) -> None:
    topology = hardware.parse(text)
    assert (topology.hosts, topology.chips_per_host) == (hosts, each)
