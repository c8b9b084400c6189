"""The code that a launch ships: a commit, as a wheel or as the tag of an image."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import flanx
from flanx.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]  # the checkout, or the site-packages of an installation
# lock files by accelerator: the base without TensorFlow, then libtpu or the CUDA libraries
LOCKS = {
    "cpu": ("requirements-light.lock",),
    "tpu": ("requirements-light.lock", "requirements-plan.lock"),
    "cuda": ("requirements-light.lock", "requirements-cuda.lock"),
}


@dataclasses.dataclass(frozen=True)
class Code:
    """A commit, or a release.

    Attributes:
      commit: its hash; "" for an installed release.
      dirty: whether the tree has uncommitted changes, which are shipped with it.
      version: flanx's version.
      wheel: a file to ship as is.
    """

    commit: str = ""
    dirty: bool = False
    version: str = flanx.__version__
    wheel: str = ""

    @property
    def tag(self) -> str:
        """The image tag: the commit, or the version."""
        return (self.commit[:12] or f"v{self.version}") + ("-dirty" if self.dirty else "")


def find(dirty_allowed: bool, wheel: str = "", root: pathlib.Path = ROOT) -> Code:
    """The code that is running. Raises UserError for a tree with uncommitted changes, unless they may be shipped."""
    if wheel and not re.fullmatch(r"[\w.+-]+\.whl", pathlib.Path(wheel).name):
        raise UserError(f"--wheel={wheel}: that is not the name of a wheel (flanx-VERSION-py3-none-any.whl)")
    if wheel and not pathlib.Path(wheel).is_file():
        raise UserError(f"--wheel={wheel}: no such file; `make package` writes one to dist/")
    if not (root / ".git").exists():
        return Code(wheel=wheel)
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no").splitlines()
    if changed and not dirty_allowed and not wheel:
        few = ", ".join(line[2:].strip() for line in changed[:3]) + (", ..." if len(changed) > 3 else "")
        raise UserError(
            f"the tree has changes that commit {commit[:12]} has not ({few}): commit them, or ship them with --dirty"
        )
    return Code(commit, bool(changed), wheel=wheel)


def _git(root: pathlib.Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"git cannot read {root} ({getattr(error, 'stderr', error)}); give --wheel=FILE") from error
    return done.stdout.strip()


def wheel_commands(code: Code, folder: pathlib.Path, root: pathlib.Path = ROOT) -> list[list[str]]:
    """The commands that put the code's wheel in `folder`, built only from the commit's files unless it is dirty."""
    if code.wheel:
        return [["cp", code.wheel, str(folder)]]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    if not code.commit:
        raise UserError(
            f"flanx {code.version} is installed here without a checkout: give --wheel=FILE to ship, or an image"
        )
    if code.dirty:
        return [[*pip, str(root)]]
    archive = str(folder / "source.tar.gz")
    return [
        ["git", "-C", str(root), "archive", "--format=tar.gz", "--prefix=flanx/", f"--output={archive}", code.commit],
        [*pip, archive],
        ["rm", archive],
    ]


def image_commands(code: Code, image: str, accelerator: str, root: pathlib.Path = ROOT) -> list[list[str]]:
    """The commands that build the image from the checkout and push it."""
    if not code.commit:
        raise UserError(f"--build: flanx {code.version} is installed here without a checkout; build it from one")
    build = [
        "docker",
        "build",
        f"--build-arg=ACCELERATOR={accelerator}",
        f"--label=commit={code.tag}",
        f"--tag={image}",
    ]
    return [[*build, str(root)], ["docker", "push", image]]
