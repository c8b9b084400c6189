import numpy as np
import pytest

from flanx.convert import fingerprint
from flanx.convert.lazy_tensor import BFLOAT16, LazyTensor, flatten, in_memory, nest
from tests.convert_case import draw


def test_fingerprint_is_one_for_nested_flat_arrays_and_any_order():
    tensors = draw()
    flat = {name.removeprefix("target/"): tensor.read() for name, tensor in reversed(tensors.items())}
    assert fingerprint(flat) == fingerprint(nest(flat)) == fingerprint(tensors)
    assert fingerprint({**tensors, "state/step": in_memory(np.int32(3))}) == fingerprint(tensors)


def test_fingerprint_is_one_for_every_dtype_that_holds_the_values():
    exact = np.asarray([1.5, -2.0, 0.0078125], np.float32)
    assert fingerprint({"a": exact}) == fingerprint({"a": exact.astype(BFLOAT16)})
    assert fingerprint({"a": exact}) == fingerprint({"a": exact.astype(np.float16)})


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.arange(6, dtype=np.float32).reshape(3, 2)},
        {"b": np.arange(6, dtype=np.float32).reshape(2, 3)},
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3) + np.float32(1e-6)},
        {"a": np.arange(6, dtype=np.float32).reshape(3, 2).T},
    ],
    ids=["shape", "name", "value", "transpose"],
)
def test_fingerprint_tells_different_parameters_apart(other: dict[str, np.ndarray]):
    assert fingerprint(other) != fingerprint({"a": np.arange(6, dtype=np.float32).reshape(2, 3)})


def test_fingerprint_does_not_change_between_versions():
    """Runs have recorded it: a change of this figure orphans every recorded parent."""
    golden = {"encoder/x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.asarray([0.5], np.float32)}
    assert fingerprint(golden) == "9983bcf9ee6c3d4ef26157aef95393d91e3f412dfec151e7c2cd59edc54b5fdb"


def test_a_transposed_tensor_reads_only_the_part_that_is_asked_for():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    asked = []
    tensor = LazyTensor(array.shape, array.dtype, lambda index: (asked.append(index), array[index])[1])
    part = tensor.transposed().read((slice(1, 5), slice(0, 2)))
    np.testing.assert_array_equal(part, array.T[1:5, 0:2])
    assert asked == [(slice(0, 2), slice(1, 5))]


def test_row_blocks_cover_a_tensor_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flanx.convert.lazy_tensor.BLOCK_BYTES", 100)
    array = np.arange(7 * 9, dtype=np.float32).reshape(7, 9)
    blocks = list(in_memory(array).row_blocks())
    assert len(blocks) > 1 and all(block.nbytes <= 100 for _, block in blocks)
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), array)
    assert [start for start, _ in blocks] == list(np.cumsum([0, *(len(block) for _, block in blocks[:-1])]))


def test_cast_leaves_integers_alone():
    assert in_memory(np.asarray(3, np.int32)).cast(BFLOAT16).dtype == np.int32
    assert in_memory(np.asarray([3.0], np.float32)).cast(BFLOAT16).read().dtype == BFLOAT16


def test_nest_and_flatten_are_opposites():
    flat = {"a/b/c": 1, "a/d": 2, "e": 3}
    assert nest(flat) == {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert flatten(nest(flat)) == flat
