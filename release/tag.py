"""A release of the commit that is checked out: what is wrong is refused, built twice, tagged; nothing is uploaded.

    python release/tag.py [--dry_run]      (`make release`, in the environment of requirements-check.lock)

It ends with the commands that publish, for a person to type. docs/releasing.md has the steps before and after.
"""

import argparse
import datetime
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import package

ROOT = package.ROOT


def main() -> None:
    """Builds and tags; --dry_run tags nothing. Exit status 2 for a commit that is not ready."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry_run", action="store_true", help="do everything but the tag")
    args = parser.parse_args()
    version = package.version(ROOT)
    if wrong := faults(ROOT, version):
        print("not ready to release:", *wrong, sep="\n  ", file=sys.stderr)
        sys.exit(2)
    files = build(ROOT, ROOT / "dist")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files[:2])], check=True)
    tag = f"v{version}"
    if not args.dry_run:
        package.git(ROOT, "tag", "--annotate", tag, f"--message=flanx {version}")
    print(f"{'would be tagged' if args.dry_run else 'tagged'}: {tag}. Nothing is uploaded. To publish:")
    print("\n".join(f"  {line}" for line in publishing(version, files)))


def faults(root: pathlib.Path, version: str) -> list[str]:
    """What prevents a commit from being released, each with its fix."""
    found = []
    if changed := package.git(root, "status", "--porcelain", "--untracked-files=no").decode().splitlines():
        found.append(f"{len(changed)} tracked files have changes, {changed[0][3:]} the first: commit them")
    if package.git(root, "tag", "--list", f"v{version}").strip():
        found.append(f"the tag v{version} exists: raise __version__ of flanx/__init__.py")
    head = re.search(r"^## (.+)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    entry = re.fullmatch(rf"{re.escape(version)}, (\d{{4}}-\d\d-\d\d)", head[1] if head else "")
    if not entry:
        shown = f"'{head[1]}'" if head else "none"
        found.append(f"the newest section of CHANGELOG.md is {shown}: give it the title '{version}, YYYY-MM-DD'")
    elif entry[1] > str(datetime.date.today()):
        found.append(f"CHANGELOG.md dates {version} in the future ({entry[1]})")
    cited = re.search(r"^version: (.+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    if not cited or cited[1].strip("'\"") != version:
        found.append(f"CITATION.cff has version {cited[1] if cited else 'none'}: write {version}")
    return found


def build(root: pathlib.Path, out: pathlib.Path) -> list[pathlib.Path]:
    """[source distribution, wheel, SBOM, SHA256SUMS] in `out`, after two builds with identical bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [pathlib.Path(scratch) / name for name in ("one", "two")]
        for folder in folders:
            folder.mkdir()
        one, two = [[*package.package(root, folder), package.sbom(root, folder)] for folder in folders]
        for a, b in zip(one, two, strict=True):
            if package.digest(a) != package.digest(b):
                sys.exit(f"{a.name}: two builds of one commit differ; look at them with diffoscope")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        files = [pathlib.Path(shutil.copy2(path, out)) for path in one]
    sums = out / "SHA256SUMS"
    sums.write_text("".join(f"{package.digest(path)}  {path.name}\n" for path in files))
    print(sums.read_text(), end="")
    return [*files, sums]


def publishing(version: str, files: list[pathlib.Path]) -> list[str]:
    """The commands that publish what was built."""
    packages = " ".join(f"dist/{path.name}" for path in files[:2])
    notes = " ".join(f"dist/{path.name}" for path in files)
    return [
        f"git push origin v{version}",
        f"python -m twine upload {packages}",
        f"gh release create v{version} --notes-from-tag {notes}",
        f"make docs-version VERSION={'.'.join(version.split('.')[:2])} && git push origin gh-pages",
    ]


if __name__ == "__main__":
    main()
