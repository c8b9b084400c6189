"""Wheel and source distribution of the checkout, the same bytes from the same commit, and what they are made from.

    python release/package.py --out=dist       (`make package`, in the environment of requirements-check.lock)

It packs the tracked files as they are, changes included, and nothing else of the folder. Times are the commit's
(or SOURCE_DATE_EPOCH), owners are nobody, modes are 644 and 755, and setuptools is the lock's: no isolated environment
that another day fills otherwise. The SBOM lists the packages of requirements.lock with their hashes, in CycloneDX 1.6,
validated against its schema.
"""

import argparse
import gzip
import hashlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOCK = "requirements.lock"


def main() -> None:
    """Writes everything into --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "dist", help="an empty or absent folder (dist)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if left := sorted(path.name for path in args.out.iterdir()):
        sys.exit(f"{args.out} is not empty (it has {left[0]}): empty it, or give another --out")
    for path in [*package(ROOT, args.out.resolve()), sbom(ROOT, args.out.resolve())]:
        print(f"{digest(path)}  {path}")


def version(root: pathlib.Path) -> str:
    """The version of a checkout."""
    found = re.search(r'__version__ = "(.+)"', (root / "flanx" / "__init__.py").read_text(encoding="utf-8"))
    assert found
    return found[1]


def digest(path: pathlib.Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git(root: pathlib.Path, *words: str) -> bytes:
    """The output of git."""
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True).stdout


def environment(root: pathlib.Path) -> dict[str, str]:
    """The environment variables of a build: its time, and nothing that differs between machines."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or git(root, "log", "-1", "--format=%ct").decode().strip()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLANX_", "PYTHON"))}
    return {**kept, "SOURCE_DATE_EPOCH": epoch, "PYTHONHASHSEED": "0", "LC_ALL": "C", "TZ": "UTC"}


def package(root: pathlib.Path, out: pathlib.Path) -> list[pathlib.Path]:
    """Builds (source distribution, wheel) of a checkout's tracked files into `out`; the wheel from the former."""
    env = environment(root)
    state = "HEAD"
    if git(root, "status", "--porcelain", "--untracked-files=no"):
        who = ("-c", "user.name=flanx", "-c", "user.email=flanx@localhost")
        state = git(root, *who, "stash", "create").decode().strip()  # a commit of the changes, on no branch
    build = [sys.executable, "-m", "build", "--no-isolation"]
    os.umask(0o022)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        with tarfile.open(fileobj=io.BytesIO(git(root, "archive", "--prefix=source/", state))) as archive:
            archive.extractall(folder, filter="data")
        _run([*build, "--sdist", f"--outdir={folder / 'sdist'}", str(folder / "source")], env)
        (made,) = (folder / "sdist").iterdir()
        source = out / made.name
        normalize(made, source, int(env["SOURCE_DATE_EPOCH"]))
        with tarfile.open(source) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        (unpacked,) = (folder / "unpacked").iterdir()
        _run([*build, "--wheel", f"--outdir={out}", str(unpacked)], env)
    (wheel,) = out.glob("*.whl")
    return [source, wheel]


def _run(command: list[str], env: dict[str, str]) -> None:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def normalize(source: pathlib.Path, target: pathlib.Path, epoch: int) -> None:
    """Rewrites a .tar.gz: entries sorted by name, one time, no owner, 644 or 755; no name or time in the gzip."""
    content = io.BytesIO()
    with tarfile.open(source) as old, tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as new:
        for entry in sorted(old.getmembers(), key=lambda entry: entry.name):
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = epoch, 0, 0, "", ""
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            entry.pax_headers = {}
            new.addfile(entry, old.extractfile(entry) if entry.isfile() else None)
    with open(target, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as packed:
        packed.write(content.getvalue())


def sbom(root: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Writes the packages of the lock file as flanx-VERSION.cdx.json."""
    path = out / f"flanx-{version(root)}.cdx.json"
    with tempfile.TemporaryDirectory() as scratch:
        project = pathlib.Path(scratch) / "pyproject.toml"
        project.write_text(f'[project]\nname = "flanx"\nversion = "{version(root)}"\nlicense = "Apache-2.0"\n')
        words = ["requirements", str(root / LOCK), f"--pyproject={project}", "--mc-type=library", "--sv=1.6"]
        words += ["--of=JSON", "--output-reproducible", "--validate", f"--output-file={path}"]
        _run([sys.executable, "-m", "cyclonedx_py", *words], environment(root))
    return path


if __name__ == "__main__":
    main()
