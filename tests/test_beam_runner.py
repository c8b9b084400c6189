"""The Beam runner writes the bytes that worker processes write."""

import pytest

from flanx.data import store
from tests.test_build import content, forget, run, tables  # noqa: F401  (a fixture)

pytest.importorskip("apache_beam", reason="extra `beam` is not installed; its protobuf is another than the lock file's")


@pytest.mark.filterwarnings("ignore")
def test_beam_writes_the_same_bytes(tables, tmp_path):  # noqa: F811
    (tmp_path / "data" / "mini" / "b.tsv").write_text("only one column\n" * 300)
    forget()
    one = run(tmp_path, "here")
    other = run(tmp_path, "beam", runner="beam", runner_options=["--runner=DirectRunner"])
    assert (other.built, set(other.failed)) == (one.built, {"mini_b"})
    assert content(tmp_path / "here") == content(tmp_path / "beam")
    store.verify(tmp_path / "beam")
