"""How many prompts of each suite equal those of lm-evaluation-harness, byte for byte.

    pip download --no-deps lm-eval && unzip -q lm_eval-*.whl "lm_eval/tasks/*"      # its task files are enough
    python benchmarks/lm_eval_prompts.py --data DIR --tasks lm_eval/tasks

A table in Markdown, the one of docs/evaluation.md: our suite, lm-eval's task, equal prompts, and the first difference.
The task files are YAML with Jinja templates; both tools read the same benchmark files from DIR. Needs jinja2.
"""

import argparse
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jinja2
import yaml

from flanx.data.task import text
from flanx.errors import UserError
from flanx.evals import registry
from flanx.evals.families import mgsm, mmlu, tydiqa

ENVIRONMENT = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
Document = Mapping[str, Any]


class _Loader(yaml.SafeLoader):
    """A YAML loader that leaves `!function` tags as text."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


def read(path: pathlib.Path) -> dict[str, Any]:
    """A task file, with its includes merged."""
    found = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    base = read(path.parent / found["include"]) if "include" in found else {}
    return base | found


template = functools.lru_cache(maxsize=256)(ENVIRONMENT.from_string)


def field(task: Document, key: str, document: Document) -> str:
    """A template in the task file, rendered with a document."""
    return template(str(task[key])).render(**document)


def target(task: Document, document: Document) -> str:
    """The answer of an exemplar; for a task with choices it is an index."""
    name = task["doc_to_target"]
    found = document[name] if name in document else field(task, "doc_to_target", document)
    if "doc_to_choice" not in task:
        return str(found)
    choices = task["doc_to_choice"]
    return (choices if isinstance(choices, list) else document[choices.strip("{} ")])[int(found)]


def beginning(task: Document, exemplars: list[Document]) -> str:
    """The description and the exemplars."""
    shots = [
        field(task, "doc_to_text", each) + task.get("target_delimiter", " ") + target(task, each) + "\n\n"
        for each in exemplars
    ]
    return task.get("description", "") + "".join(shots)


# --- documents, with the fields of the data sets that lm-eval reads ---------------------------------------------------


def bbh_documents(data: pathlib.Path, task: str) -> list[Document]:
    return text.read_json(data / "bbh" / "bbh" / f"{task}.json")["examples"]


def gsm8k_documents(data: pathlib.Path, task: str) -> list[Document]:
    return [record for _, record in text.json_rows(data / "gsm8k" / "test.jsonl") if isinstance(record, dict)]


def mmlu_documents(data: pathlib.Path, task: str, split: str = "test") -> list[Document]:
    rows = [row for _, row in mmlu.rows(data, split, task)]
    return [{"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])} for row in rows]


def mgsm_documents(data: pathlib.Path, task: str) -> list[Document]:
    rows = [row for _, row in text.tsv_rows(data / "mgsm" / f"mgsm_{task}.tsv") if isinstance(row, list)]
    return [{"question": q, "answer": None, "answer_number": a.strip()} for q, a in rows]


def mgsm_exemplars(data: pathlib.Path, task: str) -> list[Document]:
    return [{"question": q, "answer": a, "answer_number": n} for q, a, n in mgsm.exemplars(data, task)]


def tydiqa_documents(data: pathlib.Path, task: str, split: str = "dev") -> list[Document]:
    return [{"context": c, "question": q, "answers": a} for _, c, q, a in tydiqa.rows(data, split, task)]


def none(data: pathlib.Path, task: str) -> list[Document]:
    return []


Reader = Callable[[pathlib.Path, str], list[Document]]
ALL_MGSM = ",".join(mgsm.LANGUAGES)
# our suite -> (pattern of lm-eval's file, {} for the task; documents; exemplars, unless the file has its own; how many)
PAIRS: dict[str, tuple[str, Reader, Reader, int]] = {
    "gsm8k_cot": ("gsm8k/gsm8k-cot.yaml", gsm8k_documents, none, 8),
    "gsm8k_cot_mgsm_exemplars": ("gsm8k/gsm8k-cot.yaml", gsm8k_documents, none, 8),
    "gsm8k_zero_shot_cot": ("gsm8k/gsm8k-cot-zeroshot.yaml", gsm8k_documents, none, 0),
    "bbh_direct": ("bbh/fewshot/{}.yaml", bbh_documents, none, 3),
    "bbh_cot": ("bbh/cot_fewshot/{}.yaml", bbh_documents, none, 3),
    "bbh_zero_shot": ("bbh/zeroshot/{}.yaml", bbh_documents, none, 0),
    "bbh_zero_shot_cot": ("bbh/cot_zeroshot/{}.yaml", bbh_documents, none, 0),
    "mmlu_test_lm_eval": (
        "mmlu/default/mmlu_{}.yaml", mmlu_documents, functools.partial(mmlu_documents, split="dev"), 5
    ),
    "mmlu_test_text": (
        "mmlu/continuation/mmlu_{}.yaml", mmlu_documents, functools.partial(mmlu_documents, split="dev"), 5
    ),
    "mmlu_test_direct": (
        "mmlu/flan_n_shot/generative/mmlu_{}.yaml", mmlu_documents, functools.partial(mmlu_documents, split="dev"), 5
    ),
    "mmlu_test_zero_shot": ("mmlu/flan_n_shot/generative/mmlu_{}.yaml", mmlu_documents, none, 0),
    "mmlu_test_cot": ("mmlu/flan_cot_fewshot/mmlu_{}.yaml", mmlu_documents, none, 5),
    f"mgsm_direct_8_shot[{ALL_MGSM}]": ("mgsm/direct/mgsm_direct_{}.yaml", mgsm_documents, mgsm_exemplars, 8),
    f"mgsm_cot[{ALL_MGSM}]": ("mgsm/native_cot/mgsm_native_cot_{}.yaml", mgsm_documents, mgsm_exemplars, 8),
    "tydiqa": (
        "tydiqa/tydiqa_goldp_{}.yaml", tydiqa_documents, functools.partial(tydiqa_documents, split="train"), 1
    ),
}  # fmt: skip


def theirs(name: str, data: pathlib.Path, tasks: pathlib.Path, task: str) -> Iterator[str]:
    """lm-eval's prompts of one task, in the order of the file."""
    pattern, documents, exemplars, count = PAIRS[name]
    found = list(tasks.glob(pattern.format(task))) or list(tasks.glob(pattern.format(f"*{task}")))
    if not found:
        raise UserError(f"{tasks / pattern.format(task)}: no such task file; give the folder lm_eval/tasks (--tasks)")
    file = read(found[0])
    shots = file.get("fewshot_config", {}).get("samples") or exemplars(data, task)
    start = beginning(file, list(shots)[:count])
    for document in documents(data, task):
        yield start + field(file, "doc_to_text", document)


def difference(ours: str, other: str) -> str:
    """Both texts around the first character where they differ."""
    at = next((i for i, (a, b) in enumerate(zip(ours, other, strict=False)) if a != b), min(len(ours), len(other)))
    return f"`{ours[max(at - 12, 0) : at + 20]!r}` / `{other[max(at - 12, 0) : at + 20]!r}`".replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=pathlib.Path, help="folder of benchmark data (or our samples)")
    parser.add_argument("--tasks", required=True, type=pathlib.Path, help="lm-eval's folder lm_eval/tasks")
    args = parser.parse_args()
    print("| suite | lm-eval's task file | equal prompts | first difference, ours / theirs |\n|---|---|---|---|")
    for name, (pattern, *_) in PAIRS.items():
        try:
            suite = registry.load(name, str(args.data))
        except UserError as error:
            print(f"| `{name}` | `{pattern}` | no data: {str(error)[:80]} | |", flush=True)
            continue
        ours = [(item.task, item.prompt()) for item in suite.items]
        wanted = [
            prompt for task in dict.fromkeys(t for t, _ in ours) for prompt in theirs(name, args.data, args.tasks, task)
        ]
        equal = sum(mine == other for (_, mine), other in zip(ours, wanted, strict=True))
        first = next((difference(m, o) for (_, m), o in zip(ours, wanted, strict=True) if m != o), "")
        print(f"| `{name.partition('[')[0]}` | `{pattern}` | {equal:,} of {len(ours):,} | {first} |", flush=True)


if __name__ == "__main__":
    main()
