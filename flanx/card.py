"""Cards of an exported model: its origin, its recipe, its scores and its cost; and its data.

Everything comes from the run's folder (run.json, done.json, metrics.jsonl, tasks.jsonl, evals/), licences from the task
tables. What no file records is stated as unknown. No path of this machine is in a card.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flanx
from flanx import hub
from flanx.convert.architecture import model_of_settings
from flanx.convert.formats import OpenCheckpoint
from flanx.data.task import licence, tables
from flanx.data.task.spec import TaskSpec
from flanx.errors import UserError
from flanx.evals import scores
from flanx.files import markdown_table
from flanx.sweep import curves, published_recipes, results

MODEL, DATA = "README.md", "DATA.md"  # the names of the two cards


def cards(
    name: str, source: OpenCheckpoint, more_scores: Sequence[pathlib.Path] = (), library: str = "transformers"
) -> dict[str, str]:
    """{file: text} of both cards of a checkpoint; for one not made by a flanx run, with what is known of it.

    Args:
      name: of the exported model.
      more_scores: further folders of `flanx evaluate` with a scores.json of the model.
      library: the library that loads it, by its name on the hub.

    Raises UserError if a file of the run is damaged, and for a folder without scores.
    """
    run = run_of(source)
    evaluated = results.evaluations(run.folder) if run else {}
    found = read_scores([*([evaluated[source.step].parent] if source.step in evaluated else []), *more_scores])
    return {MODEL: model_card(name, source, run, found, library), DATA: data_card(name, run)}


def run_of(source: OpenCheckpoint) -> curves.Run | None:
    """The run that a checkpoint belongs to; None if there is none."""
    if source.given.is_remote:
        return None
    folder = source.given.local()
    folder = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    return curves.read_runs([str(folder)])[0] if (folder / "run.json").is_file() else None


def read_scores(folders: Iterable[pathlib.Path]) -> dict[str, Mapping[str, Any]]:
    """{suite: its entry} of all folders. Raises UserError for one that has no scores.json."""
    found: dict[str, Mapping[str, Any]] = {}
    for folder in folders:
        read = scores.read_scores(folder / "scores.json")
        if not read:
            raise UserError(f"{folder} has no scores.json: give a folder that `flanx evaluate` wrote")
        found |= read["suites"]
    return found


def public(path: str | None) -> str:
    """A path as it may be published: the last part of an absolute one."""
    if not path:
        return "none"
    return pathlib.PurePath(path).name if path.startswith(("/", "~")) else path


# ---- the model -------------------------------------------------------------------------------------------------------


def model_card(
    name: str,
    source: OpenCheckpoint,
    run: curves.Run | None,
    suites: Mapping[str, Mapping[str, Any]],
    library: str = "transformers",
) -> str:
    """The model card: README.md of its folder."""
    record = run.metadata if run else {}
    of_hub = f"{hub.PREFIX}{source.origin['hub']}" if source.origin else ""
    base = source.pairs.base if source.pairs else ""
    parent: str = base if library == "peft" else record.get("initial_checkpoint_path") or of_hub
    head = [f"library_name: {library}", "pipeline_tag: text2text-generation", "tags: [flanx]"]
    if parent.startswith(hub.PREFIX):
        head.append(f"base_model: {hub.split(parent)[0]}")
    sections = {
        "": f"Written by flanx {flanx.__version__}. What it was trained on is in [{DATA}]({DATA}).",
        "Recipe": _recipe(record) if run else f"Not known: {source.name} is not a run of flanx.",
        "Provenance": _provenance(source, record),
        "Scores": _scores(suites),
        "Cost": _cost(run, source.step) if run else "Not known.",
        "Use": "Intended uses, limits and a licence are its author's to add.",
    }
    texts = [f"## {title}\n\n{text}" if title else text for title, text in sections.items()]
    return "\n\n".join(["---\n" + "\n".join(head) + "\n---", f"# {name}", *texts]) + "\n"


def _recipe(record: Mapping[str, Any]) -> str:
    """The settings of the run."""
    data, settings = record.get("data") or {}, record.get("settings") or {}
    asked = (data.get("mixture") or {}).get("asked", {})
    rows: list[list[Any]] = [[f"mixture.{key}", value] for key, value in asked.items()]
    rows += [[f"data.{key}", data[key]] for key in ("lengths", "batch_size", "packing") if key in data]
    for part in ("adapter", "trainable"):  # of a run that trains only a part of its model
        of_part = record.get(part)
        rows += [[f"{part}.{key}", value] for key, value in of_part.items()] if isinstance(of_part, dict) else []
        rows += [[part, of_part]] if of_part and not isinstance(of_part, dict) else []
    rows += [[key, value] for key, value in settings.items()]
    recipe = _recipe_of(record, asked)
    head = ["setting", "value", *(["source"] if recipe else [])]
    lines = []
    for key, value in rows:
        shown = public(value) if isinstance(value, str) else value
        lines.append([f"`{key}`", f"`{shown}`", *([_source(recipe, key, value)] if recipe else [])])
    said = (
        f"{recipe.title}: the values of `flanx recipe show {recipe.name}`, each with its source.\n\n" if recipe else ""
    )
    return said + markdown_table(head, lines)


MACROS = {  # a name in a run's record -> the field of a published recipe
    "mixture.name": "MIXTURE_OR_TASK_NAME", "mixture.num_tasks": "NUM_TASKS", "mixture.cot_ratio": "COT_RATIO",
    "data.lengths": "TASK_FEATURE_LENGTHS", "data.batch_size": "BATCH_SIZE", "data.packing": "packing",
    "train_step.Trainer.seed": "SEED", "train_step.Trainer.loss_normalizing_factor": "LOSS_NORMALIZING_FACTOR",
    "optim.adafactor.learning_rate": "LEARNING_RATE", "dropout_rate": "DROPOUT_RATE", "dtype": "ACTIVATION_DTYPE",
    "vocab_size": "VOCAB_SIZE",
}  # fmt: skip


def _recipe_of(record: Mapping[str, Any], asked: Mapping[str, Any]) -> published_recipes.PublishedRecipe | None:
    """The published recipe of a run: the one with its mixture and its parent, wherever that was copied to."""
    parent = pathlib.PurePosixPath(record.get("initial_checkpoint_path") or "").parts[-2:]
    for recipe in published_recipes.load().values():
        mixture, start = (recipe.fields[name].value for name in ("MIXTURE_OR_TASK_NAME", "INITIAL_CHECKPOINT_PATH"))
        if parent and mixture == asked.get("name") and pathlib.PurePosixPath(start).parts[-2:] == parent:
            return recipe
    return None


def _source(recipe: published_recipes.PublishedRecipe, key: str, value: Any) -> str:
    """The source of a setting's value in a recipe; "" for what no recipe specifies."""
    field = recipe.fields.get(key) or recipe.fields.get(MACROS.get(re.sub(r"^(t5\.T5|palm\.PaLM)\.", "", key), ""))
    if field is None:
        return ""
    same = field.value == value or (field.value == "None" and value is None)
    return f"{field.kind}: {field.source}" if same else f"not the recipe's, which is `{field.text}`"


def _provenance(source: OpenCheckpoint, record: Mapping[str, Any]) -> str:
    origin = record.get("initial_checkpoint_source") or {}
    rows = [
        ["parent", public(record.get("initial_checkpoint_path")) if record else source.name],
        ["parent's fingerprint", record.get("initial_checkpoint_fingerprint") or "none"],
        *([["parent's revision", origin["revision"]]] if origin else []),
        ["step", f"{source.step:,}"],
        ["parameters", f"{record['num_params']:,}" if "num_params" in record else "as config.json says"],
        ["token store", ((record.get("data") or {}).get("store") or {}).get("hash", "none")],
        ["vocabulary", public(((record.get("data") or {}).get("store") or {}).get("vocabulary"))],
    ]
    return markdown_table(["what", "which"], rows)


def _scores(suites: Mapping[str, Mapping[str, Any]]) -> str:
    """Each suite's score with its interval, and the reason if it must not be quoted."""
    if not suites:
        return "None: it was not evaluated, or on no suite that is recorded with the run."
    rows = []
    for name, entry in suites.items():
        remarks = [*scores.partial(entry), *scores.flags(entry)]
        interval = scores.interval_text(entry, " to ")
        rows.append([name, entry["metric"], scores.score_text(entry), interval, entry["n"], "; ".join(remarks)])
    note = "95% intervals. Scores compare only where metric, items and the suite's version are the same."
    return markdown_table(["suite", "metric", "score", "interval", "items", "remarks"], rows) + f"\n\n{note}"


def _cost(run: curves.Run, step: int) -> str:
    """Steps, tokens, FLOPs by the analytic count, hours of the training steps."""
    data, parents = run.metadata.get("data") or {}, run.metadata.get("initial_checkpoint_step") or 0
    trained = step - parents if step > parents else step
    rows = [["steps trained", f"{trained:,}"]]
    if lengths := data.get("lengths"):
        if "batch_size" not in data or not {"inputs", "targets"} <= lengths.keys():
            raise UserError(f"{run.folder}/run.json is damaged: batch_size or lengths are missing; copy the run again")
        model = model_of_settings(f"{run.folder.name}/run.json", run.metadata.get("settings") or {})
        tokens = trained * data["batch_size"] * sum(lengths.values())
        flops = tokens * model.flops_per_token(lengths["inputs"], lengths["targets"])
        rows += [["tokens, padding included", f"{tokens:,}"], ["training FLOPs, nothing recomputed", f"{flops:.3g}"]]
    seconds, last = 0.0, step - trained
    for record in run.records:
        if record.get("steps_per_second") and last < record["step"] <= step:
            seconds += (record["step"] - last) / record["steps_per_second"]
            last = record["step"]
    rows.append(["hours of training steps", f"{seconds / 3600:.3g}" if seconds else "not recorded"])
    return markdown_table(["what", "how much"], rows)


# ---- the data --------------------------------------------------------------------------------------------------------


def data_card(name: str, run: curves.Run | None) -> str:
    """The data card, of what a model was trained on: DATA.md of its folder."""
    data = (run.metadata.get("data") or {}) if run else {}
    if run is None or not data:
        return f"# Data of {name}\n\nNot known here: see the card of the model that it was made from.\n"
    mixture, known = data.get("mixture", {}), _rows()
    drawn = {one.task: one for one in curves.task_losses(run)}
    rows = []
    for task in sorted(data.get("content", {}) or drawn):
        row, one = known.get(task), drawn.get(task)
        terms = (row.licence if row else "") or "not stated"
        place = (row.url or public(row.source.partition(":")[2])) if row else "of the user's own"
        counts = [f"{one.examples:,}", f"{one.tokens:,}"] if one else ["", ""]
        rows.append([task, row.collection if row else "", terms, licence.classify(row.licence if row else ""), place])
        rows[-1] += counts
    classes = [row[3] for row in rows]
    summary = ", ".join(f"{classes.count(each):,} {each}" for each in licence.ORDER if each in classes)
    parts = [
        f"# Data of {name}",
        f"Mixture `{mixture.get('asked', {}).get('name', '')}`, {len(rows):,} task{'s' if len(rows) != 1 else ''}, by "
        "the classes of their licences: "
        f"{summary}. A licence is what a page states of a data set: where a check begins, not legal advice.",
        markdown_table(
            ["collection", "share"], [[each, f"{share:.4f}"] for each, share in mixture.get("collections", {}).items()]
        ),
        markdown_table(["task", "collection", "licence", "class", "source", "examples drawn", "target tokens"], rows),
    ]
    if missing := mixture.get("missing"):
        parts += ["Asked for and not trained on:", markdown_table(["task", "reason"], missing.items())]
    held = mixture.get("held_out") or []
    parts.append(f"Held out from training: {', '.join(held) if held else 'nothing that the mixture names'}.")
    return "\n\n".join(parts) + "\n"


def _rows() -> Mapping[str, TaskSpec]:
    """The rows of the available tables; none if one of them is invalid."""
    try:
        return tables.load_tables()
    except UserError:
        return {}
