"""flanx: scaling instruction-finetuned language models in JAX, from one device to a pod.

    import flanx
    model = flanx.load("out/my_run")
    model.generate(["Translate to French: yes"], max_new_tokens=32)

What is named here is imported when it is asked for (`flanx.api`, `flanx.task_api`).
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flanx import task_api as tasks
    from flanx.api import Model, evaluate, load, train
    from flanx.data.pipeline.mixture import Mixture
    from flanx.data.store.build import build_store
    from flanx.errors import UserError

__version__ = "0.2.0"
__all__ = ["Mixture", "Model", "UserError", "build_store", "evaluate", "load", "tasks", "train"]

_HOMES = {
    "Mixture": "flanx.data.pipeline.mixture",
    "UserError": "flanx.errors",
    "build_store": "flanx.data.store.build",
    "tasks": "flanx.task_api",
}


def __getattr__(name: str) -> Any:
    """The names in `__all__`, imported on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'flanx' has no attribute '{name}'")
    if name in ("evaluate", "train"):  # always the module, which is callable
        return importlib.import_module(f"flanx.{name}")
    module = importlib.import_module(_HOMES.get(name, "flanx.api"))
    return module if name == "tasks" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Program(types.ModuleType):
    """A module of a program that shares its name with an API function, and can be called as that function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    @property
    def _function(self) -> Any:
        return getattr(importlib.import_module("flanx.api"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> Any:
        return importlib.import_module("inspect").signature(self._function)


def call_as_function(module: str) -> None:
    """Lets `flanx.train(...)` and `flanx.evaluate(...)` be the functions of `flanx.api`: the import system binds the
    modules `flanx.train` and `flanx.evaluate` to the same names."""
    sys.modules[module].__class__ = _Program
