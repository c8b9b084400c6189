"""A release: what keeps a commit from it, archives without a trace of the machine, the commands that publish."""

import gzip
import os
import pathlib
import subprocess
import sys
import tarfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "release"))
import package  # noqa: E402
import tag  # noqa: E402

sys.path.remove(str(ROOT / "release"))

TODAY = time.strftime("%Y-%m-%d")


@pytest.fixture
def ready(tmp_path):
    """A repository whose newest commit may be released as 1.2.0."""
    files = {
        "flanx/__init__.py": '__version__ = "1.2.0"\n',
        "CITATION.cff": "cff-version: 1.2.0\nversion: 1.2.0\n",
        "CHANGELOG.md": f"# Changes\n\n## 1.2.0, {TODAY}\n\n- all\n\n## 1.1.0, 2026-01-01\n",
    }
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    commit(tmp_path)
    return tmp_path


def commit(root: pathlib.Path) -> None:
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message=c"], check=True)


def test_a_commit_that_is_ready(ready):
    assert package.version(ready) == "1.2.0" and tag.faults(ready, "1.2.0") == []


@pytest.mark.parametrize(
    ("file", "old", "new", "fault"),
    [
        ("CHANGELOG.md", f"1.2.0, {TODAY}", "Unreleased", "section of CHANGELOG.md is 'Unreleased'"),
        ("CHANGELOG.md", f"1.2.0, {TODAY}", "1.2.0", "give it the title '1.2.0, YYYY-MM-DD'"),
        ("CHANGELOG.md", TODAY, "2999-01-01", "in the future"),
        ("CITATION.cff", "\nversion: 1.2.0", "\nversion: 1.1.0", "CITATION.cff has version 1.1.0: write 1.2.0"),
    ],
)
def test_what_is_not_ready_is_named(ready, file, old, new, fault):
    path = ready / file
    path.write_text(path.read_text().replace(old, new, 1))
    assert "1 tracked files have changes" in tag.faults(ready, "1.2.0")[0]
    commit(ready)
    (found,) = tag.faults(ready, "1.2.0")
    assert fault in found


def test_a_tag_that_exists_is_refused(ready):
    package.git(ready, "tag", "v1.2.0")
    assert tag.faults(ready, "1.2.0") == ["the tag v1.2.0 exists: raise __version__ of flanx/__init__.py"]


def archive(path: pathlib.Path, folder: pathlib.Path, mode: int, later: float) -> pathlib.Path:
    """A .tar.gz of two files as a machine of its own makes it."""
    folder.mkdir()
    names = ["b", "a/run"] if later else ["a/run", "b"]
    with tarfile.open(path, "w:gz") as out:
        for name in names:
            file = folder / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(name)
            file.chmod(mode | (0o100 if name == "a/run" else 0))
            entry = out.gettarinfo(str(file), f"flanx-1/{name}")
            entry.mtime, entry.uname, entry.uid = 1e9 + later, f"user{later}", 1000 + int(later)
            with open(file, "rb") as content:
                out.addfile(entry, content)
    return path


def test_an_archive_has_no_trace_of_the_machine_that_made_it(tmp_path):
    made = []
    for number, (mode, later) in enumerate([(0o600, 0.0), (0o664, 7.5)]):
        one = archive(tmp_path / f"{number}.tar.gz", tmp_path / str(number), mode, later)
        package.normalize(one, tmp_path / f"{number}.out.tar.gz", 1_700_000_000)
        made.append((tmp_path / f"{number}.out.tar.gz").read_bytes())
    assert made[0] == made[1]
    with tarfile.open(tmp_path / "0.out.tar.gz") as found:
        assert [(e.name, e.mode, e.mtime, e.uname) for e in found] == [
            ("flanx-1/a/run", 0o755, 1_700_000_000, ""),
            ("flanx-1/b", 0o644, 1_700_000_000, ""),
        ]
        content = found.extractfile("flanx-1/a/run")
        assert content and content.read() == b"a/run"
    assert gzip.decompress(made[0])[:9] == b"flanx-1/a"


def test_nothing_is_uploaded_the_commands_are_printed():
    files = [pathlib.Path(name) for name in ("flanx-1.2.0.tar.gz", "flanx-1.2.0-py3-none-any.whl", "a.cdx.json")]
    lines = tag.publishing("1.2.0", files)
    assert lines[:2] == [
        "git push origin v1.2.0",
        "python -m twine upload dist/flanx-1.2.0.tar.gz dist/flanx-1.2.0-py3-none-any.whl",
    ]
    assert lines[-1] == "make docs-version VERSION=1.2 && git push origin gh-pages"


@pytest.mark.slow
def test_a_clone_is_released_up_to_the_upload(tmp_path):
    """Builds twice, the same bytes; tags the clone alone; the SBOM has every package of the lock."""
    for name in ("build", "twine", "cyclonedx_py"):
        pytest.importorskip(name, reason="of requirements-check.lock: `make release` has it")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    for file, old, new in (
        ("flanx/__init__.py", package.version(ROOT), "9.9.9"),
        ("CITATION.cff", "\nversion: 0.2.0", "\nversion: 9.9.9"),
        ("CHANGELOG.md", "\n## ", f"\n## 9.9.9, {TODAY}\n\n## "),
    ):
        path = clone / file
        path.write_text(path.read_text().replace(old, new, 1))
    commit(clone)
    command = [sys.executable, str(clone / "release" / "tag.py")]
    git = {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **git})
    assert done.returncode == 0, done.stderr
    assert "tagged: v9.9.9. Nothing is uploaded." in done.stdout
    assert package.git(clone, "tag", "--list") == b"v9.9.9\n"
    names = sorted(path.name for path in (clone / "dist").iterdir())
    assert names == ["SHA256SUMS", "flanx-9.9.9-py3-none-any.whl", "flanx-9.9.9.cdx.json", "flanx-9.9.9.tar.gz"]
    listed = (clone / "dist" / "flanx-9.9.9.cdx.json").read_text()
    assert '"purl": "pkg:pypi/jax@' in listed and listed.count('"purl"') >= 100
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "the tag v9.9.9 exists" in again.stderr
