"""Packaging of flanx: metadata, minimum versions with reasons, extras, package data.

`tasks/` and `gin/` stand at the top of the repository, where people look for them, and are installed as
`flanx.tasks` (a package) and `flanx/gin` (data). Both forms work from a wheel and with `pip install -e .`.
"""

import pathlib

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent

REQUIRES = [
    "jax>=0.10",  # jax.set_mesh and AxisType as the partitioner uses them
    "flax>=0.12",  # linen's logical partitioning on jax 0.10
    "optax>=0.2.8",  # adafactor's parameter scaling as compared with T5X's own
    "orbax-checkpoint>=0.12",  # first series on jax 0.10
    "gin-config>=0.5",  # dynamic_registration and file:line in errors
    "seqio>=0.0.20",  # resolves with TensorFlow 2.21
    "tensorflow-datasets>=4.9.9",
    "importlib_resources",  # TFDS imports it to prepare a data set and does not ask for it
    "tensorflow>=2.21",  # first series that resolves with jax 0.10's protobuf and numpy
    "numpy>=2.0",
    "sentencepiece>=0.2",
    "etils[epath]>=1.10",  # one path type for local files and gs://
    "tensorboard>=2.20",
    "rich>=13",
]

EXTRAS = {
    "tpu": ["jax[tpu]>=0.10"],
    "cuda": ["jax[cuda13]>=0.10"],
    "tpu-plan": ["libtpu"],  # the TPU compiler alone, for `flanx plan` on a machine without a TPU
    "beam": ["apache-beam>=2.60"],
    "hf": ["safetensors>=0.5", "torch>=2.6", "transformers>=4.50"],
    "plots": ["matplotlib>=3.9"],
    "dev": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.9", "setuptools>=77", "wheel"],
}


def gin_packages() -> list[str]:
    """Every folder under gin/ as a data-only package of its own: `gin/runs` becomes `flanx.gin.runs`."""
    folders = [p for p in sorted(ROOT.glob("gin/**/")) if p.is_dir() and "__pycache__" not in p.parts]
    return ["flanx." + ".".join(p.relative_to(ROOT).parts) for p in folders]


setup(
    name="flanx",
    version="0.1.0",
    description="Scaling instruction-finetuned language models (Flan-T5, Flan-PaLM) in JAX, from one device to a pod",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["flanx", "flanx.*"])
    + ["flanx.tasks"]
    + [p.replace("tasks", "flanx.tasks", 1) for p in find_packages(include=["tasks.*"])]
    + gin_packages(),
    package_dir={"flanx": "flanx", "flanx.tasks": "tasks", "flanx.gin": "gin"},
    package_data={
        "flanx": ["**/*.html", "**/*.css", "**/*.toml", "**/*.csv", "evals/sample/**/*"],
        "flanx.tasks": ["**/*.toml", "**/*.csv", "**/*.tsv", "**/*.jsonl", "**/*.json"],
        **{name: ["*.gin"] for name in gin_packages()},
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["flanx = flanx.cli.main:entry"]},
)
