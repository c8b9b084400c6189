"""gin files and bindings -> a call. Only this module and `gin_files` import gin.

A run is defined by gin files (`--gin_file`, searched in the current folder, in `--gin_search_paths` and in flanx's own
gin folder) and by bindings (`--gin.MACRO=VALUE`). The files are scanned before gin binds anything (`gin_files`), so
that an unknown file, macro or module is reported with its location and the nearest known name.
"""

import contextlib
import copy
import functools
import logging
import os
import pathlib
import pprint
import re
import tokenize
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gin
from gin import config as gin_config

from flanx import settings
from flanx.errors import UserError, nearest
from flanx.files import local_folder, lock, open_regular, write_atomic
from flanx.gin_files import Scan, import_hint, open_text, take_modules

_readers: Any = gin_config._FILE_READERS
_readers[0] = (open_text, os.path.isfile)


def gin_folder() -> pathlib.Path:
    """The folder of flanx's gin files: `flanx/gin` in a wheel, `gin/` next to `flanx/` in an editable install."""
    package = pathlib.Path(__file__).resolve().parent
    return next(p for p in (package / "gin", package.parent / "gin", package) if p.is_dir())


T5X_MACROS = {  # macros of T5X's gin files without meaning here -> what to do
    "USE_CACHED_TASKS": "; the token store takes the place of cached tasks: leave it out",
    "USE_HARDWARE_RNG": "; leave it out",
    "SHUFFLE_TRAIN_EXAMPLES": "; examples are always drawn at random, by SEED: leave it out",
    "RANDOM_SEED": "; it is called SEED here",
    "EVAL_OUTPUT_DIR": "; it is called OUTPUT_DIR here",
    "EVAL_STEPS": "; an evaluation reads all examples that its name selects: leave it out",
    "EVALUATOR_NUM_EXAMPLES": "; name the number with the suite, as in SUITES = ['mmlu_direct[:50]']",
    "TRAIN_STEPS_RELATIVE": "; TRAIN_STEPS counts the run's own steps up to the parent's step",
    "Z_LOSS": "; bind train_step.Trainer.z_loss",
    "LABEL_SMOOTHING": "; bind train_step.Trainer.label_smoothing",
    "OPTIMIZER": "; bind train_step.Trainer.optimizer = @optim.adafactor()",
    "EVALUATOR_USE_MEMORY_CACHE": "; leave it out",
    "JSON_WRITE_N_RESULTS": "; every generation is kept: leave it out",
    "USE_CACHED_TASKS_TRAIN_EVAL": "; the token store takes the place of cached tasks: leave it out",
    "TRAIN_EVAL_MIXTURE_OR_TASK_NAME": "; it is called VALIDATION here",
    "BEAM_SIZE": "; it is called BEAMS here, of evaluate",
    "FEATURE_LENGTHS": "; it is called TASK_FEATURE_LENGTHS here",
    "TF_EXAMPLE_FILE_PATHS": "; PROMPTS names the file of infer",
    "TF_EXAMPLE_FILE_TYPE": "; PROMPTS goes by the file's name: leave it out",
    "MODEL_OUTPUT_DIR": "; `flanx convert` writes what others serve: leave it out",
    "MODEL_NAME": "; `flanx convert` writes what others serve: leave it out",
    "OUTPUT_FEATURES": "; `flanx convert` writes what others serve: leave it out",
}

NAMED = "runs/model.gin"
_LAST = Scan(())  # of the last `parse`; like gin's own bindings, one per process


def parse(
    gin_files: Sequence[str], bindings: Sequence[str] = (), search_paths: Sequence[str] = (), whole: bool = True
) -> None:
    """Binds `gin_files`, then `bindings` ("MACRO=VALUE" or "module.function.parameter=VALUE").

    With `whole=False`, required macros may stay unset, for a caller that reads only some parameters.

    Raises UserError with file:line and the nearest known name for an unknown file, module, macro,
    configurable or parameter, for a syntax error, for an unused macro and for a required one that is unset.
    """
    global _LAST
    folders = [*search_paths, str(gin_folder())]
    scan = _LAST = Scan(folders)
    given = [_split(binding) for binding in bindings]
    try:
        for name in gin_files:
            scan.read(name, "the command line")
        known = {*scan.defined, *scan.referenced}
        if named := _named_model(scan, given):
            gin_files, given = [NAMED, *gin_files], [*given, *named]
            scan.read(NAMED, "the command line")
            known |= {*scan.defined, *scan.referenced}
        for key, _ in given:
            if "." not in key and key not in known:
                hint = T5X_MACROS.get(key) or nearest(key, known)
                raise UserError(f"no gin macro '{key}' (the command line){hint}")
        for key, text in given:
            _read_binding(scan, key, text)
        take_modules(scan)
        _check_macros(scan, whole)
        gin.clear_config()
        for folder in folders:
            gin.add_config_file_search_path(folder)
        with _quiet():
            gin.parse_config_files_and_bindings(
                [str(f) for f in gin_files], [f"{key} = {value}" for key, value in given], finalize_config=whole
            )
    except RecursionError as error:
        raise UserError(f"{', '.join(map(str, gin_files))}: nested too deeply; is it a gin file?") from error
    except tokenize.TokenError as error:
        message, (line, _) = error.args
        raise UserError(f"{scan.reading[-1]}:{line}: {message}; is a bracket or a quote not closed?") from error
    except (ValueError, SyntaxError, OSError, ImportError, AttributeError, TypeError, NameError) as error:
        raise _explain(error) from error
    _check_scopes(scan)
    _check_values(scan)


def _named_model(scan: Scan, given: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The bindings that a MODEL given as the name of a checkpoint stands for; [] for any other MODEL."""
    texts = [text for _, text in scan.bound.get("MODEL", ())] + [text for key, text in given if key == "MODEL"]
    if not texts or texts[-1][:1] not in ("'", '"'):
        return []
    found = [("MODEL_NAME", texts[-1]), ("MODEL", "@architecture.read_model()")]
    size = next((text for text in reversed(texts) if text.startswith("@")), None)  # of a file of models/
    return [*found, ("architecture.read_model.given", size)] if size else found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the error that gin logs for every search path tried before the one that has the file."""
    root = logging.getLogger()

    def is_kept(record: logging.LogRecord) -> bool:
        return "Path not found" not in str(record.msg)

    root.addFilter(is_kept)
    try:
        yield
    finally:
        root.removeFilter(is_kept)


def _read_binding(scan: Scan, key: str, text: str) -> None:
    try:
        scan.read_statements(f"{key} = {text}")
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError) as error:
        shown = text if len(text) < 80 else text[:77] + "..."
        raise UserError(
            f"--gin.{key}={shown} (the command line): not a gin value; a number is written as it is, a string needs "
            f"its own quotes: --gin.{key}=\"'text'\""
        ) from error


def _split(binding: str) -> tuple[str, str]:
    key, equals, value = binding.partition("=")
    if not equals or not key.strip() or "\n" in key:
        raise UserError(f"'{binding}' (the command line) is not a binding: write --gin.NAME=VALUE")
    return key.strip(), value.strip()


def _check_macros(scan: Scan, whole: bool) -> None:
    """Raises UserError naming every macro without a value, with the files that would set it."""
    required = [m for m in scan.defined if scan.bound[m][-1][1] == "%gin.REQUIRED" and m in scan.referenced and whole]
    undefined = [m for m in scan.referenced if m not in scan.defined and not m.startswith("gin.")]
    lines = [f"gin macro '{macro}' has no value: add --gin.{macro}=VALUE{_givers(macro)}" for macro in required]
    for macro in undefined:
        location = scan.referenced[macro]
        lines.append(
            f"no gin macro '{macro}' ({location}); define it or bind --gin.{macro}=VALUE"
            + (_givers(macro) or nearest(macro, scan.defined))
        )
    if len(lines) > 5:
        given = [f"{macro}{_givers(macro)}" for macro in (*required, *undefined)]
        lines = [f"these gin macros have no value: add --gin.NAME=VALUE for each of {'; '.join(given)}"]
    if lines:
        raise UserError("\n".join(lines))
    for macro, location in scan.defined.items():
        if macro not in scan.referenced:
            hint = T5X_MACROS.get(macro) or nearest(macro, scan.referenced)
            raise UserError(f"gin macro '{macro}' ({location}) is used by nothing{hint}")


def _few(lines: Sequence[str]) -> list[str]:
    """At most five lines, the last one saying how many more there are."""
    return [*lines] if len(lines) <= 5 else [*lines[:4], f"and {len(lines) - 4} more"]


def _givers(macro: str) -> str:
    """The folder of flanx's own gin files that set the macro, as a hint."""
    pattern = re.compile(rf"^{re.escape(macro)}\s*=\s*(?!%gin\.REQUIRED|None\b)", re.MULTILINE)
    files = sorted(p for f in ("models", "mixtures", "evals") for p in (gin_folder() / f).rglob("*.gin"))
    folders = dict.fromkeys(
        p.relative_to(gin_folder()).parts[0] for p in files if pattern.search(p.read_text(encoding="utf-8"))
    )
    return f", or a --gin_file of {' or '.join(f'{folder}/' for folder in folders)}" if folders else ""


def _check_scopes(scan: Scan) -> None:
    """Raises UserError for a binding in a scope where nothing is called: gin would ignore it."""
    for (scope, selector), parameters in gin_config._CONFIG.items():
        if scope and selector != "gin.macro" and scope not in scan.scopes:
            raise UserError(
                f"nothing is called in the scope of '{scope}/{selector}.{next(iter(parameters), '')}', "
                "which has no effect; "
                f"write it without '{scope}/'"
            )


def _check_values(scan: Scan) -> None:
    """Checks every bound value (see `flanx.settings`) and converts it to the parameter's type."""
    lines: list[str] = []
    for (_, selector), parameters in list(gin_config._CONFIG.items()):
        match = gin_config._REGISTRY.get_match(selector)
        if match is None or selector.startswith("gin."):
            continue
        for name in list(parameters):
            holder, key, source = _holder(parameters, name)
            value = _plain(holder[key])
            if value is gin.REQUIRED:
                continue
            try:
                taken = settings.check(match.wrapped, name, value)
            except settings.Wrong as wrong:
                full = f"{selector}.{name}"
                rows = scan.bound.get(source) or [
                    row for key, found in scan.bound.items() for row in found if f".{full}".endswith(f".{key}")
                ]
                location = rows[-1][0] if rows else "the command line"
                shown = source or full.removeprefix("flanx.")
                of = f" ({full.removeprefix('flanx.')})" if source else ""
                text = re.sub(r"//[^/@]*@|\bhf_\w+", "...", repr(value))  # a password or a token
                text = text if len(text) < 80 else text[:77] + "..."
                lines.append(f"{shown} is {text} ({location}); it takes {wrong}{of}")
                continue
            if settings.UNCHECKED not in _leaves(value) and (taken != value or repr(taken) != repr(value)):
                holder[key] = taken
    if lines:
        raise UserError("\n".join(_few(list(dict.fromkeys(lines)))))


def _holder(parameters: Any, name: str) -> tuple[Any, str, str]:
    """(dict, key, macro) that holds a parameter's value: its own binding, or the last macro in its chain."""
    holder, key, macro = parameters, name, ""
    while isinstance(holder[key], gin_config.ConfigurableReference) and holder[key].selector == "gin.macro":
        scope = "/".join(holder[key].scopes)
        if (scope, "gin.macro") not in gin_config._CONFIG:
            break
        holder, key, macro = gin_config._CONFIG[scope, "gin.macro"], "value", scope
    return holder, key, macro


def _plain(value: Any) -> Any:
    """A bound value with its macros substituted, and UNCHECKED for a function or a function's result."""
    if isinstance(value, gin_config.ConfigurableReference):
        if value.selector != "gin.macro":
            return settings.UNCHECKED
        bound = gin_config._CONFIG.get(("/".join(value.scopes), "gin.macro"))
        return _plain(bound["value"]) if bound else settings.UNCHECKED
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return type(value)(map(_plain, value)) if isinstance(value, list | tuple) else value


def _leaves(value: Any) -> list[Any]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    return [value] if parts is None else [leaf for part in parts for leaf in _leaves(part)]


def _explain(error: Exception) -> UserError:
    """Converts gin's error to a UserError: its first line, and the file and line that gin or Python attached to it."""
    text = str(error.args[0] if isinstance(error, SyntaxError) and error.args else error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    if isinstance(error, SyntaxError):
        location = f"{error.filename}:{error.lineno}" if error.filename else "the command line"
        quoted = "" if error.filename else "; a string needs its own quotes: --gin.NAME=\"'text'\""
        return UserError(f"{first.rstrip('.')} ({location}){quoted}")
    required = re.match(r"(\S+)/macro\.value set to `%gin\.REQUIRED`", first)
    if required:
        return UserError(f"gin macro '{required[1]}' has no value: add --gin.{required[1]}=VALUE")
    where = re.search(r'In file "([^"]+)", line (\d+)', text)
    location = f"{where[1]}:{where[2]}" if where else "the command line"
    unknown = re.match(r"No configurable matching (?:reference )?'@?([^'()]+)(?:\(\))?'", first)
    parameter = re.match(r"Configurable '(\S+)' doesn't have a parameter named '(\S+)'", first)
    hint = ""
    if unknown:
        hint = import_hint(unknown[1]) or nearest(unknown[1], [key for _, key in _bound()])
    if parameter:
        hint = nearest(parameter[2], _parameters(parameter[1]))
    return UserError(f"{first.rstrip('.')} ({location}){hint}")


def last_scan() -> Scan:
    """The scan of the last `parse`."""
    return _LAST


def bound_functions() -> dict[str, Callable[..., Any]]:
    """The functions and classes that the last `parse` binds, by their full names."""
    selectors = dict.fromkeys(selector for _, selector in _bound() if not selector.startswith("gin."))
    matches = {selector: gin_config._REGISTRY.get_match(selector) for selector in selectors}
    return {selector: match.wrapped for selector, match in matches.items() if match is not None}


def _bound() -> list[tuple[str, str]]:
    return list(gin_config._CONFIG)


def _parameters(selector: str) -> list[str]:
    try:
        match = gin_config._REGISTRY.get_match(selector)
    except (KeyError, ValueError):
        match = None
    return list(gin_config._get_cached_arg_spec(match.wrapped).args) if match is not None else []


def value(macro: str) -> Any:
    """The bound value of a macro, with nested macros and references evaluated, as gin does on copying."""
    unset = UserError(f"gin macro '{macro}' has no value: add --gin.{macro}=VALUE")
    try:
        bound = copy.deepcopy(gin.query_parameter(f"{macro}/gin.macro.value"))
    except ValueError as error:
        raise unset from error
    if bound is gin.REQUIRED:
        raise unset
    return bound


def call(function: Callable[..., Any], folder: str | os.PathLike | None = None) -> Any:
    """Calls `function` with its gin bindings.

    With `folder`, the whole resolved config is written to `folder/config.gin` before the call (it can be passed back as
    `--gin_file`), and the operative config to `folder/operative_config.gin` after it. A folder that was created for a
    call that rejects its input is removed again.
    """
    with contextlib.nullcontext() if folder is None else _recorded(local_folder(folder), function.__name__):
        try:
            with _own_errors():
                return gin.get_configurable(function)()
        except TypeError as error:
            own = re.escape(function.__name__)
            missing = re.search(rf"Required bindings for `(\S*{own})` not provided in config: (\[.*?\])", str(error))
            absent = re.match(rf"({own})\(\) missing \d+ required .*? arguments?: (.*)", str(error).splitlines()[0])
            if match := missing or absent:
                name = match[1]
                raise UserError(
                    f"gin binds no {match[2]} of {name}: add it to a gin file or as --gin.{name}.NAME=VALUE"
                ) from error
            raise


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """Lets errors pass unchanged: gin would replace each with another, without its attributes, and add lines."""
    kept = gin_config.utils.augment_exception_message_and_reraise

    def raise_again(error: Exception, message: str) -> None:
        raise error

    gin_config.utils.augment_exception_message_and_reraise = raise_again
    try:
        yield
    finally:
        gin_config.utils.augment_exception_message_and_reraise = kept


HOLDS = {  # a file of a folder: (the function that wrote it, what the folder is)
    "run.json": ("train", "a training run"),
    "manifest.json": ("build_store", "a token store"),
    "predictions.part": ("infer", "a folder of answers"),
    "generations": ("evaluate", "a folder of scores"),
    "generations_harmful": ("evaluate", "a folder of scores"),
}


@contextlib.contextmanager
def _recorded(folder: pathlib.Path, caller: str) -> Iterator[None]:
    """Writes the config before a call, and the operative config after it, with exclusive use of the folder.

    A call that rejects its input leaves the folder as it was. Raises UserError if the folder and its config.gin belong
    to a function other than `caller`.
    """
    for file, (owner, what) in HOLDS.items():
        if caller != owner and (folder / file).exists():
            raise UserError(f"{folder} is {what} (it has {file}), whose config.gin would be lost; give another folder")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    given, operative, locked = folder / "config.gin", folder / "operative_config.gin", folder / ".flanx.lock"
    was_used = locked.exists()
    with lock(locked, busy=f"{folder}: another flanx command is writing there; wait for it, or give another folder"):
        earlier = None
        if given.exists():
            with open_regular(given) as opened:
                earlier = opened.read()
        own = {given.name, operative.name, locked.name}
        others = {file.name for file in folder.iterdir()} - own
        write_atomic(given, text())
        try:
            yield
        except Exception:
            if {file.name for file in folder.iterdir()} - own == others:  # rejected before it wrote anything
                given.unlink() if earlier is None else write_atomic(given, earlier)
                if not was_used:
                    locked.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # not empty
                    for path in made:
                        path.rmdir()
            else:
                write_atomic(operative, gin.operative_config_str())
            raise
        write_atomic(operative, gin.operative_config_str())


def parameter(function: Callable[..., Any] | str, name: str, default: Any = None) -> Any:
    """The bound value of one parameter of a function or class, with references evaluated; no other is evaluated.

    A function may be given by its full name, "flanx.train.train", which gin resolves from the parsed files.
    """
    unresolved = gin.get_bindings(function, resolve_references=False)
    try:
        return copy.deepcopy(unresolved[name]) if name in unresolved else default  # gin evaluates as it copies
    except (ValueError, TypeError) as error:
        owner = function if isinstance(function, str) else function.__name__
        raise UserError(f"{owner}.{name}: {str(error).splitlines()[0]}") from error


def make(function: Callable[..., Any]) -> Any:
    """Calls `function`, usually a class, with its gin bindings; nothing is written."""
    return call(function)


def text() -> str:
    """The whole resolved config, usable as a --gin_file: without macros that became unused because what referred to
    them was overridden, and with every dict in its own order, which gin would sort."""
    every, unused = dict(gin_config._CONFIG), {""}
    printer = types.SimpleNamespace(pformat=functools.partial(pprint.pformat, sort_dicts=False))
    gin_config.pprint, kept = printer, gin_config.pprint  # type: ignore[assignment]  # a dict keeps its order
    try:
        while unused:
            scan = Scan(())
            scan.read_statements(gin.config_str())
            unused = set(scan.defined) - set(scan.referenced)
            for macro in unused:
                del gin_config._CONFIG[macro, "gin.macro"]
        return gin.config_str()
    finally:
        gin_config.pprint = kept
        gin_config._CONFIG.clear()
        gin_config._CONFIG.update(every)


def assignments(text: str) -> dict[str, str]:
    """{macro or parameter: its value as text} of a gin file without includes, as returned by `text`."""
    scan = Scan(())
    scan.read_statements(text)
    return {name: rows[-1][1] for name, rows in scan.bound.items()}
