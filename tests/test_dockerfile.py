"""The steps of the Dockerfile, without Docker: what is copied, which versions, what an argument installs."""

import fnmatch
import pathlib
import re
import subprocess

import pytest

from flanx.launch import code, kubernetes

ROOT = pathlib.Path(__file__).resolve().parent.parent


def steps() -> list[tuple[str, str]]:
    """(instruction, the rest of its lines joined), in order."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def test_everything_that_is_copied_is_there_and_not_ignored():
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    kept = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert ignore[0] == "*"
    copied = [word for name, rest in steps() if name == "COPY" for word in rest.split()[:-1]]
    assert len(copied) > 8
    for name in copied:
        assert (ROOT / name).exists() and any(fnmatch.fnmatch(name, pattern) for pattern in kept), name


def test_versions_are_fixed():
    bases = [rest for name, rest in steps() if name == "FROM"]
    assert bases and all(re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-[a-z-]+", base) for base in bases)
    for _, rest in steps():
        assert "latest" not in rest and "apt-get" not in rest  # packages of a distribution have no fixed version
    installs = [part for name, rest in steps() if name == "RUN" for part in re.findall(r"pip install [^;&]*", rest)]
    assert len(installs) == 2 and all("--require-hashes" in each or "--no-deps" in each for each in installs)


def test_it_runs_as_nobody_special_and_says_how_it_is():
    names = [name for name, _ in steps()]
    user = next(rest for name, rest in steps() if name == "USER")
    assert f"useradd --create-home --uid {kubernetes.USER} {user}" in dict(steps())["RUN"]
    assert not {"RUN", "COPY"} & set(names[names.index("USER") :])
    assert '["flanx", "doctor"]' in dict(steps())["HEALTHCHECK"]


@pytest.mark.parametrize("accelerator", [*code.LOCKS, "gpu"])
def test_what_a_build_argument_installs(accelerator, tmp_path):
    """The step itself, with a program in pip's place that prints its arguments."""
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    step = next(rest for name, rest in steps() if name == "RUN")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ACCELERATOR": accelerator}
    done = subprocess.run(["sh", "-c", step], env=env, capture_output=True, text=True, check=False)
    if accelerator == "gpu":
        assert done.returncode == 2 and "give cpu, tpu or cuda" in done.stderr
        return
    assert tuple(re.findall(r"-r (\S+)", done.stdout)) == code.LOCKS[accelerator]
    assert all((ROOT / name).is_file() for name in code.LOCKS[accelerator])


def test_the_locks_agree():
    """The versions of a package in the locks that are installed together."""
    versions: dict[str, set[str]] = {}
    for name in {name for names in code.LOCKS.values() for name in names}:
        for package, version in re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / name).read_text(), re.MULTILINE):
            versions.setdefault(package, set()).add(version)
    light = (ROOT / "requirements-light.lock").read_text()
    for package, found in versions.items():
        forks = len(re.findall(rf"^{package}==", light, re.MULTILINE))  # one for each Python that needs another
        assert len(found) <= max(forks, 1), (package, found)
