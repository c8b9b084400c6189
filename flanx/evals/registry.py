"""Evaluation suites by name: everything that can change a score is in an immutable spec, under one hash.

A `Spec` says which prompts (family, variant, split, shots), how they are fitted to the model (lengths, which shots are
dropped first), how an answer is produced (generation or ranking of options) and extracted (rationale or not, stop
texts), and how scores are averaged. The module of its family (`flanx.evals.families`) turns it into `Item`s: prompts,
byte for byte. `Suite.hash` covers the spec and every byte of every prompt and gold answer; results are keyed by it.

    load("bbh_cot", data_dir)                      the suite as the paper has it
    load("bbh_direct[navigate,word_sorting]", d)   some of its tasks
    load("mmlu_direct[:20]", d)                    the first 20 items of every task
    load("gsm8k_cot+sc", d)                        with self-consistency: 40 samples, temperature 0.7, top-k 40
    load("gsm8k_cot+sc8", d)                       with 8 samples
    load("bbh_direct+beam4", d)                    by beam search with 4 beams
    load("bbh_zero_shot+likelihood", d)            the likelihood of the gold answers, for models that get none right
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flanx.errors import UserError, nearest
from flanx.evals import download
from flanx.evals.families import bbh, gsm8k, mgsm, mmlu, procedural, tydiqa
from flanx.evals.spec import Family, Item, Spec, Suite

SAMPLE = "sample"  # the data_dir that means the small samples of our own writing
SAMPLE_DIR = pathlib.Path(__file__).with_name("sample")
FAMILIES: Mapping[str, Family] = {
    "bbh": bbh,
    "gsm8k": gsm8k,
    "held_out": procedural,  # the held-out tasks of the procedural suite, under the name that their hashes have
    "mgsm": mgsm,
    "mmlu": mmlu,
    "tydiqa": tydiqa,
}
RENAMED = {"mgsm_direct": "mgsm_direct_8_shot"}  # names of earlier versions: scores are written under the new one
SUFFIX = r"(?:\+(likelihood|(?:sc|beam)(\d*)))?"
NAME = re.compile(rf"([a-z0-9_]+)(?:\[([^\]]*)\])?{SUFFIX}")


@functools.cache
def specs() -> dict[str, Spec]:
    """The suites by name. Shots, splits and modes of the first six: paper.md section 3."""
    question, long = ("Q:",), 512
    bbh_direct = Spec("bbh_direct", "bbh", "direct", shots=3, stop=question)
    bbh_cot = Spec("bbh_cot", "bbh", "cot", shots=3, cot=True, stop=question, max_new=long)
    gsm8k_cot = Spec("gsm8k_cot", "gsm8k", "cot", shots=8, cot=True, stop=question, max_new=long)
    mgsm_cot = Spec(
        "mgsm_cot", "mgsm", "cot", tasks=mgsm.PAPER, shots=8, cot=True, stop=("Q:", "Question:"), max_new=long
    )
    rows = [
        bbh_direct,
        bbh_cot,
        dataclasses.replace(bbh_direct, name="bbh_zero_shot", variant="zero_shot", shots=0),
        dataclasses.replace(bbh_cot, name="bbh_zero_shot_cot", variant="zero_shot_cot", shots=0),
        Spec("tydiqa", "tydiqa", "direct", split="dev", shots=1, stop=("\n", "Q:"), metric="f1", max_new=64),
        mgsm_cot,
        dataclasses.replace(mgsm_cot, name="mgsm_direct_8_shot", variant="direct", cot=False, max_new=32),
        gsm8k_cot,
        dataclasses.replace(gsm8k_cot, name="gsm8k_cot_mgsm_exemplars", variant="cot_mgsm"),
        dataclasses.replace(gsm8k_cot, name="gsm8k_zero_shot", variant="zero_shot", shots=0, cot=False),
        dataclasses.replace(gsm8k_cot, name="gsm8k_zero_shot_cot", variant="zero_shot_cot", shots=0),
        *(Spec(name, "held_out", name, max_new=96, cot="cot" in name) for name in ("held_out", *procedural.KINDS)),
        *(
            Spec(name, "held_out", name, max_new=96, cot=True)
            for name in (f"{k}_trigger" for k in procedural.DIRECT_KINDS)
        ),
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


def names() -> list[str]:
    """The names of all suites."""
    return sorted(specs())


def resolve(name: str, allow_missing: Sequence[str] = ()) -> Spec:
    """The spec of a name with its selections (see above). Raises UserError with the nearest name."""
    name = name.strip()
    base = name.partition("[")[0].partition("+")[0]
    name = RENAMED.get(base, base) + name[len(base) :]
    match, table = NAME.fullmatch(name), specs()
    if not match and base in table:
        raise UserError(
            f"suite '{name}': put tasks and the number of items in one pair of brackets, the decoding method after it, "
            f"as in '{base}[task,task,:20]+sc'"
        )
    if not match or match[1] not in table:
        raise UserError(f"no evaluation suite '{name}'" + nearest(base, table))
    spec = table[match[1]]
    tasks, limit = _selection(name, spec, match[2] or "")
    family = FAMILIES[spec.family]
    return dataclasses.replace(
        spec,
        name=name,
        limit=limit,
        tasks=tasks or spec.tasks,
        groups=family.groups(spec),
        allow_missing=tuple(sorted(set(allow_missing) & set(family.tasks(spec)))) if allow_missing else (),
        **_decoding(name, spec, match[3] or "", match[4]),
    )


def _selection(name: str, spec: Spec, text: str) -> tuple[tuple[str, ...], int]:
    """(tasks, items of each) that the brackets of a name select."""
    if not text:
        return (), spec.limit
    chosen, limit = [], spec.limit
    known = FAMILIES[spec.family].tasks(spec)
    for part in filter(None, (p.strip() for p in text.split(","))):
        if part.startswith(":"):
            if not part[1:].isdigit() or not int(part[1:]):
                raise UserError(f"suite '{name}': '{part}' needs a number of items, as in '{spec.name}[:20]'")
            limit = int(part[1:])
        elif part not in known:
            raise UserError(f"suite '{name}': {spec.family} has no task '{part}'" + nearest(part, known))
        else:
            chosen.append(part)
    return tuple(chosen), limit


def _decoding(name: str, spec: Spec, method: str, count: str | None) -> dict[str, Any]:
    """What the suffix of a name changes: "likelihood", "sc" and "beam" with their counts, "" for nothing."""
    if not method:
        return {}
    if count and int(count) < 2:
        raise UserError(f"suite '{name}': '+{method}' needs at least two samples or beams")
    if spec.scoring != "generate":
        raise UserError(f"suite '{name}' ranks options; '+{method}' needs a suite that generates")
    if method == "likelihood":
        return {"scoring": "likelihood", "cot": False, "stop": ()}
    if method.startswith("beam"):
        return {"beams": int(count or 4)}
    # Samples, temperature and top-k: self-consistency for PaLM-540B, paper.md section 3.2.
    return {"samples": int(count or 40), "temperature": 0.7, "top_k": 40}


def load(name: str, data_dir: str, allow_missing: Sequence[str] = ()) -> Suite:
    """The suite of a name. UserError for a missing file or task, a wrong row, a duplicate id, an empty option."""
    spec = resolve(name, allow_missing)
    if not data_dir and spec.family != "held_out":
        raise UserError(
            f"suite {name}: no folder of benchmark data; set DATA_DIR (or FLANX_DATA_DIR) to one, or DATA_DIR to "
            f'"{download.HUB}", "{download.TFDS}" or "{SAMPLE}"'
        )
    family = FAMILIES[spec.family]
    wanted = spec.tasks or family.tasks(spec)
    if data_dir == SAMPLE:
        folder = SAMPLE_DIR
        present = [t for t in wanted if family.has(folder, t, spec)]
        spec = dataclasses.replace(spec, tasks=tuple(present), allow_missing=())
    else:
        is_source = data_dir in (download.HUB, download.TFDS)
        folder = download.folder(data_dir) if is_source else pathlib.Path(data_dir)
        if data_dir and not is_source and not folder.is_dir():
            raise UserError(f"DATA_DIR {data_dir}: no such folder; give the one that holds the benchmark files")
        present = [t for t in wanted if t not in spec.allow_missing or family.has(folder, t, spec)]
    if spec.stop:
        spec = dataclasses.replace(spec, stop=family.stops(spec, folder, present))
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
    """Raises UserError for tasks without items, duplicate ids, empty options and items without a gold answer."""
    with_items = {item.task for item in items}
    for task in present:
        if task not in with_items:
            raise UserError(f"suite {spec.name}: task '{task}' has no items")
    if not items:
        raise UserError(f"suite {spec.name}: none of its tasks has data here")
    seen: dict[tuple[str, str], str] = {}
    for item in items:
        if (item.task, item.id) in seen:
            both = f"{seen[item.task, item.id]}, {item.location}"
            raise UserError(f"suite {spec.name}: id '{item.id}' of {item.task} occurs twice ({both})")
        seen[item.task, item.id] = item.location
        if not all(option.strip() for option in item.options):
            raise UserError(f"suite {spec.name}: an option of item '{item.id}' is empty ({item.location})")
        if not item.targets:
            raise UserError(f"suite {spec.name}: item '{item.id}' has no gold answer ({item.location})")
