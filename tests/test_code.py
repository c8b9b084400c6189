"""The code that a launch ships: a commit of a checkout, a wheel, an installed release."""

import pathlib
import subprocess
import tarfile

import pytest

from flanx.errors import UserError
from flanx.launch import code


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
    """A repository of one file."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "setup.py").write_text("a = 1\n")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    return root


def test_a_tree_with_changes_is_shipped_only_when_told(checkout):
    clean = code.find(False, root=checkout)
    assert len(clean.commit) == 40 and not clean.dirty and clean.tag == clean.commit[:12]
    (checkout / "new.py").write_text("not in the repository\n")
    assert code.find(False, root=checkout) == clean
    (checkout / "setup.py").write_text("a = 2\n")
    with pytest.raises(UserError, match=r"has not \(setup.py\): commit them, or ship them with --dirty"):
        code.find(False, root=checkout)
    dirty = code.find(True, root=checkout)
    assert dirty.dirty and dirty.tag == f"{clean.commit[:12]}-dirty"
    (command,) = code.wheel_commands(dirty, pathlib.Path("f"), checkout)
    assert command[-1] == str(checkout)


def test_a_clean_wheel_has_the_files_of_the_commit_alone(checkout, tmp_path):
    found = code.find(False, root=checkout)
    (checkout / "new.py").write_text("not in the repository\n")
    archive, _, remove = code.wheel_commands(found, tmp_path, checkout)
    subprocess.run(archive, check=True)
    with tarfile.open(tmp_path / "source.tar.gz") as files:
        assert "flanx/setup.py" in files.getnames() and "flanx/new.py" not in files.getnames()
    subprocess.run(remove, check=True)
    assert not (tmp_path / "source.tar.gz").exists()


def test_a_wheel_and_a_release(tmp_path):
    installed = code.find(False, root=tmp_path)
    assert installed.tag == f"v{installed.version}"
    for commands in (
        lambda: code.wheel_commands(installed, tmp_path),
        lambda: code.image_commands(installed, "a", "cpu"),
    ):
        with pytest.raises(UserError, match="installed here without a checkout"):
            commands()
    wheel = tmp_path / "flanx-0.1.0-py3-none-any.whl"
    with pytest.raises(UserError, match="no such file"):
        code.find(False, str(wheel), tmp_path)
    wheel.touch()
    assert code.wheel_commands(code.find(False, str(wheel), tmp_path), tmp_path / "f") == [
        ["cp", str(wheel), str(tmp_path / "f")]
    ]
    with pytest.raises(UserError, match="that is not the name of a wheel"):
        code.find(False, str(tmp_path / "a;b.whl"), tmp_path)
