"""The positions of labels along x."""

from flanx.sweep import figures


def test_positions_follow_numbers_parameters_or_order():
    assert figures.x_positions(["0", "9"], {}) == ({"0": 0.0, "9": 9.0}, True)
    assert figures.x_positions(["80M", "11B"], {}) == ({"80M": 8e7, "11B": 1.1e10}, True)
    assert figures.x_positions(["a", "b"], {"a": 10, "b": 20}) == ({"a": 10.0, "b": 20.0}, True)
    assert figures.x_positions(["x", "9"], {}) == ({"x": 0.0, "9": 1.0}, False)
