"""Evaluation suites as immutable specs: everything that can change a score, under one hash.

A `Spec` says which prompts (family, variant, split, shots), how they are fitted to the model (lengths, which shot goes
first), how an answer is got (generation or ranking of options) and read (rationale or not, stop texts), and how scores
are put together. The family's module (`flanx/evals/<family>.py`) turns it into `Item`s: prompts, byte for byte.
`Suite.hash` covers the spec and every byte of every prompt and gold answer; results are keyed by it.

    load("bbh_cot", data_dir)                      the suite as the paper has it
    load("bbh_direct[navigate,word_sorting]", d)   some of its tasks
    load("mmlu_direct[:20]", d)                    the first 20 items of every task
    load("gsm8k_cot+sc", d)                        with self-consistency: 40 samples, temperature 0.7, top-k 40
    load("gsm8k_cot+sc8", d)                       with 8 samples
    load("bbh_direct+beam4", d)                    by beam search with 4 beams
    load("bbh_zero_shot+likelihood", d)            the likelihood of the right answers, for models that get none right
"""

import dataclasses
import importlib
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from flanx.errors import UserError, nearest
from flanx.evals import download
from flanx.evals.spec import Item, Spec, Suite

SAMPLE = "sample"  # data_dir that stands for the small samples of our own writing
SAMPLE_DIR = pathlib.Path(__file__).with_name("sample")
# The kinds of held-out tasks of the embedded suite; the suite "held_out" has all of them.
KINDS_OF_HELD_OUT = (
    "suite_composition", "suite_composition_cot", "suite_frame", "suite_wording", "suite_rule", "suite_family"
)  # fmt: skip
DIRECT_HELD_OUT = tuple(kind for kind in KINDS_OF_HELD_OUT if not kind.endswith("_cot"))


def _specs() -> dict[str, Spec]:
    """The suites by name. Shots, splits and modes of the first six: paper.md section 3."""
    from flanx.evals.families import bbh, mgsm

    groups = (("nlp", bbh.NLP), ("alg", bbh.ALG))
    question, long = ("\n\nQ:",), 512
    bbh_direct = Spec("bbh_direct", "bbh", "direct", shots=3, stop=question, groups=groups)
    bbh_cot = Spec("bbh_cot", "bbh", "cot", shots=3, cot=True, stop=question, max_new=long, groups=groups)
    gsm8k = Spec("gsm8k_cot", "gsm8k", "cot", shots=8, cot=True, stop=question, max_new=long)
    mgsm_cot = Spec("mgsm_cot", "mgsm", "cot", tasks=mgsm.PAPER, shots=8, cot=True, stop=("\n\n",), max_new=long)
    rows = [
        bbh_direct,
        bbh_cot,
        dataclasses.replace(bbh_direct, name="bbh_zero_shot", variant="zero_shot", shots=0),
        dataclasses.replace(bbh_cot, name="bbh_zero_shot_cot", variant="zero_shot_cot", shots=0),
        Spec("tydiqa", "tydiqa", "direct", split="dev", shots=1, stop=("\n",), metric="f1", max_new=64),
        mgsm_cot,
        dataclasses.replace(mgsm_cot, name="mgsm_direct", variant="direct", cot=False, max_new=32),
        gsm8k,
        dataclasses.replace(gsm8k, name="gsm8k_zero_shot", variant="zero_shot", shots=0, cot=False),
        dataclasses.replace(gsm8k, name="gsm8k_zero_shot_cot", variant="zero_shot_cot", shots=0),
        *(Spec(name, "held_out", name, max_new=96, cot="cot" in name) for name in ("held_out", *KINDS_OF_HELD_OUT)),
        *(Spec(name, "held_out", name, max_new=96, cot=True) for name in (f"{k}_trigger" for k in DIRECT_HELD_OUT)),
    ]
    for split, prefix in (("val", "mmlu"), ("test", "mmlu_test")):
        direct = Spec(f"{prefix}_direct", "mmlu", "flan_paper", split, shots=5, stop=question)
        rank = dataclasses.replace(direct, scoring="rank", stop=())
        rows += [
            direct,
            dataclasses.replace(direct, name=f"{prefix}_cot", variant="flan_paper_cot", cot=True, max_new=long),
            dataclasses.replace(direct, name=f"{prefix}_zero_shot", shots=0),
            dataclasses.replace(rank, name=f"{prefix}_hendrycks", variant="hendrycks"),
            dataclasses.replace(rank, name=f"{prefix}_lm_eval", variant="lm_eval", drop="none"),
            dataclasses.replace(rank, name=f"{prefix}_text", variant="text"),
            dataclasses.replace(rank, name=f"{prefix}_text_normalized", variant="text", scoring="rank_normalized"),
        ]
    return {spec.name: spec for spec in rows}


def _family(spec: Spec) -> Any:
    """The module of a spec's family; "held_out" is the procedural suite's, under the name that its hash has."""
    return importlib.import_module(f"flanx.evals.families.{'procedural' if spec.family == 'held_out' else spec.family}")


def names() -> list[str]:
    """The names of all suites."""
    return sorted(_specs())


def resolve(name: str, allow_missing: Sequence[str] = ()) -> Spec:
    """The spec of a name with its selections (see above). Raises UserError with the nearest name."""
    match = re.fullmatch(r"([a-z0-9_]+)(?:\[([^\]]*)\])?(?:\+(likelihood|(?:sc|beam)(\d*)))?", name.strip())
    table = _specs()
    base = re.match(r"[a-z0-9_]*", name.strip())[0]
    if not match and base in table:
        raise UserError(
            f"suite '{name}': tasks and a number of items stand in one pair of brackets, the way to answer behind it, "
            f"as in '{base}[task,task,:20]+sc'"
        )
    if not match or match[1] not in table:
        raise UserError(f"no evaluation suite '{name}'" + nearest(match[1] if match else name, table))
    spec = table[match[1]]
    chosen, limit = [], spec.limit
    for part in filter(None, (p.strip() for p in (match[2] or "").split(","))):
        if part.startswith(":"):
            if not part[1:].isdigit() or not int(part[1:]):
                raise UserError(f"suite '{name}': '{part}' wants a number of items, as in '{match[1]}[:20]'")
            limit = int(part[1:])
        else:
            chosen.append(part)
    family = _family(spec)
    for task in (*chosen, *allow_missing):
        known = family.tasks(spec)
        if task in chosen and task not in known:
            raise UserError(f"suite '{name}': {spec.family} has no task '{task}'" + nearest(task, known))
    changes: dict = {"name": name.strip(), "limit": limit, "tasks": tuple(chosen) or spec.tasks}
    if hasattr(family, "groups"):
        changes["groups"] = family.groups(spec)
    changes["allow_missing"] = tuple(sorted(set(allow_missing) & set(family.tasks(spec))))
    way, count = match[3] or "", match[4]
    if count and int(count) < 2:
        raise UserError(f"suite '{name}': '+{way}' wants two samples or beams at least")
    if way and spec.scoring != "generate":
        raise UserError(f"suite '{name}' ranks options; '+{way}' wants a suite that generates")
    if way == "likelihood":
        changes |= {"scoring": "likelihood", "cot": False, "stop": ()}
    elif way.startswith("beam"):
        changes |= {"beams": int(count or 4)}
    elif way:
        # Samples, temperature and top-k: self-consistency for PaLM-540B, paper.md section 3.2.
        changes |= {"samples": int(count or 40), "temperature": 0.7, "top_k": 40}
    return dataclasses.replace(spec, **changes)


def load(name: str, data_dir: str, allow_missing: Sequence[str] = ()) -> Suite:
    """The suite of a name. UserError for a missing file or task, a wrong row, a duplicate id, an empty option."""
    spec = resolve(name, allow_missing)
    if not data_dir and spec.family != "held_out":
        raise UserError(
            f"suite {name}: no folder of benchmark data; set DATA_DIR (or FLANX_DATA_DIR) to one, or DATA_DIR to "
            f'"{download.HUB}", "{download.TFDS}" or "{SAMPLE}"'
        )
    family = _family(spec)
    wanted = spec.tasks or family.tasks(spec)
    if data_dir == SAMPLE:
        folder = SAMPLE_DIR
        present = [t for t in wanted if family.has(folder, t, spec)]
        spec = dataclasses.replace(spec, tasks=tuple(present), allow_missing=())
    else:
        folder = download.folder(data_dir) if data_dir in (download.HUB, download.TFDS) else pathlib.Path(data_dir)
        present = [t for t in wanted if t not in spec.allow_missing or family.has(folder, t, spec)]
    items: list[Item] = []
    for task in present:
        rows = family.items(spec, folder, task)
        items += rows[: spec.limit] if spec.limit else rows
    if spec.scoring == "likelihood":
        items = [dataclasses.replace(item, options=item.targets[:1]) for item in items]
    _check(spec, present, items)
    files = {name: e for name, e in download.recorded(folder).items() if name.startswith(f"{spec.family}/")}
    return Suite(spec, tuple(items), {"folder": data_dir, "files": files})


def _check(spec: Spec, present: Sequence[str], items: Sequence[Item]) -> None:
    """What no suite may hold."""
    for task in present:
        if not any(item.task == task for item in items):
            raise UserError(f"suite {spec.name}: task '{task}' has no item")
    if not items:
        raise UserError(f"suite {spec.name}: no task of it has data here")
    seen: dict[tuple[str, str], str] = {}
    for item in items:
        if (item.task, item.id) in seen:
            places = f"{seen[item.task, item.id]}, {item.place}"
            raise UserError(f"suite {spec.name}: id '{item.id}' of {item.task} stands twice ({places})")
        seen[item.task, item.id] = item.place
        if not all(option.strip() for option in item.options):
            raise UserError(f"suite {spec.name}: an option of item '{item.id}' is empty ({item.place})")
        if not item.targets:
            raise UserError(f"suite {spec.name}: item '{item.id}' has no gold answer ({item.place})")
