"""Installs the wheel and the source distribution of a folder, each into an empty environment, and runs what it brings.

    python release/install.py dist             (`make test-package`)

Versions are those of requirements-light.lock: SeqIO and TensorFlow would be most of the time. The programs run away
from the checkout, so that nothing of it helps.
"""

import pathlib
import subprocess
import sys
import tempfile
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = (  # each needs a different part of the package: tables, gin files, suites, samples, recipes, a model
    ("tasks", "list"),
    ("explain", "--gin_file=recipes/flan_t5_small.gin", "--gin.STORE_DIR='x'", "--gin.MODEL_DIR='x'"),
    ("suites", "show", "bbh_direct", "--data_dir=sample"),
    ("recipe", "show", "flan_t5_small"),
    ("reproduce", "flan_t5_small", "--rehearse", "--dry_run"),
)


def main() -> None:
    """Exit status 1 if a file does not install or one of its commands fails."""
    folder = pathlib.Path(sys.argv[1] if sys.argv[1:] else ROOT / "dist").resolve()
    files = [*folder.glob("flanx-*.whl"), *folder.glob("flanx-*.tar.gz")]
    if len(files) != 2:
        sys.exit(f"{folder} has {len(files)} packages of flanx, not a wheel and a source distribution: `make package`")
    for file in files:
        with tempfile.TemporaryDirectory() as scratch:
            check(file, pathlib.Path(scratch))


def check(file: pathlib.Path, folder: pathlib.Path) -> None:
    """Installs one file into a new environment in `folder` and runs the commands there."""
    venv.create(folder / "env", with_pip=True)
    python, away = folder / "env" / "bin" / "python", folder / "away"
    away.mkdir()
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--require-hashes", f"--requirement={ROOT / 'requirements-light.lock'}"], away)
    run([*pip, "--no-deps", "--no-build-isolation", str(file)], away)
    flanx = str(folder / "env" / "bin" / "flanx")
    version = run([flanx, "--version"], away).strip()
    if f"-{version}" not in file.name:
        sys.exit(f"{file.name} says that it is version {version}")
    for words in COMMANDS:
        run([flanx, *words], away)
    print(f"{file.name}: installed, {len(COMMANDS)} commands ran")


def run(command: list[str], folder: pathlib.Path) -> str:
    """The standard output of a command that must succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
