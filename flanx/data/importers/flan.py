"""Imports FLAN's original templates from a user's own clone: `flanx tasks import-flan CLONE --output DIR`.

The clone's Python is parsed with `ast` and its literals are read with `ast.literal_eval`; none of it is executed, and
none of it is in this repository. The output folder, when named in FLANX_TABLES, overrides the templates of our rows:
zero-shot prompts with and without options, few-shot patterns with their prefixes and separators, NIV2's worked
examples. Every pattern group is converted; prompts that cannot be, and groups that no task uses, are reported.
"""

import argparse
import ast
import csv
import io
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from flanx.data.importers import user_file
from flanx.data.task import spec, tables
from flanx.data.task.fields import parse
from flanx.data.task.template import Prompt, parse_block
from flanx.errors import UserError
from flanx.files import local_path

TEMPLATES = "flan/v2/templates.py"  # PATTERNS, FEWSHOT_PATTERNS, INLINE_FS_PATTERNS
BRANCHED = "flan/v2/flan_templates_branched.py"  # PATTERNS for prompts without options
FEW = {"inputs_prefix": "", "targets_prefix": "", "x_y_delimiter": "\n\n", "example_separator": "\n\n\n",
       "final_suffix": "", "input_pattern": "{{inputs}}{final_suffix}"}  # FewShotPattern's own defaults  # fmt: skip
_COT = "keep(chain_of_thought=rationale)"
_DIALOG = "keep(dialog_=dialog)"
_LANGUAGES = "keep(sent1=english, sent2=foreign, lang2=language) | const(lang1, 'English')"
_DATA = "keep(target=text, {0}=data)"

_AS_THEY_ARE = (  # groups that use our field names
    "rte", "cb", "snli", "wic", "natural_questions", "math_dataset", "gigaword", "multi_news", "xsum", "samsum",
    "true_case", "ag_news_subset", "bool_q", "definite_pronoun_resolution", "glue_mrpc", "paws_wiki", "imdb_reviews",
    "sentiment140", "yelp_polarity_reviews", "story_cloze", "hellaswag", "piqa", "openbookqa", "lambada", "cola",
    "qnli", "trec", "stsb", "unified_qa_science_inst",
)  # fmt: skip
_COT_SETS = ("gsm8k", "strategyqa", "creak", "qasc", "esnli", "ecqa", "sensemaking")
_WMT16 = ("deen", "tren", "csen", "fien", "roen", "ruen")

# group of the clone -> (our tasks, operations that make its field names; they are appended to our row's `fields`)
GROUPS: dict[str, tuple[str, str]] = {
    **{name: (f"muffin_{name}", "") for name in _AS_THEY_ARE},
    "anli": ("muffin_anli_r1 muffin_anli_r2 muffin_anli_r3", "keep(context=premise)"),
    "mnli": ("muffin_mnli_matched muffin_mnli_mismatched", ""),
    "wnli": ("muffin_wnli", "keep(sentence1=premise, sentence2=hypothesis)"),
    "wsc": ("muffin_wsc", "keep(context=text, text1=noun, text2=pronoun)"),
    "record": ("muffin_record", "keep(passage=text)"),
    "trivia_qa": ("muffin_trivia_qa muffin_trivia_qa_wiki_missing", ""),
    "aeslc": ("muffin_aeslc", "keep(body=text)"),
    "cnn_dailymail": ("muffin_cnn_dailymail", "keep(highlights=summary)"),
    "newsroom": ("muffin_newsroom", "keep(title)"),
    "squad_v1": ("muffin_squad_v1", "keep(context=text)"),
    "squad_v2": ("muffin_squad_v2", "keep(context=text)"),
    "drop": ("muffin_drop", "keep(context=text)"),
    "quac": ("muffin_quac", "keep(context=text)"),
    "para_crawl": ("muffin_para_crawl_enes", _LANGUAGES),
    "wmt14_enfr": ("muffin_wmt14_enfr", _LANGUAGES),
    "wmt16_translate": (" ".join(f"muffin_wmt16_translate_{pair}" for pair in _WMT16), _LANGUAGES),
    "fix_punct": ("muffin_fix_punct", "keep(no_punct=bare)"),
    "word_segment": ("muffin_word_segment", "keep(no_space=joined)"),
    "cosmos_qa": ("muffin_cosmos_qa", "keep(context=text)"),
    "glue_qqp": ("muffin_glue_qqp", "keep(question1=sentence1, question2=sentence2)"),
    "sst2": ("muffin_sst2", "keep(sentence=text)"),
    "copa": ("muffin_copa", "keep(question=relation)"),
    "winogrande": ("muffin_winogrande", "keep(context=sentence)"),
    "arc": ("muffin_arc_challenge muffin_arc_easy", ""),
    "coqa": ("muffin_coqa", "keep(questions, answers) | number_lines(numbered_questions, questions) | "
                            "number_lines(numbered_answers, answers.input_text)"),
    "opinion_abstracts_rotten_tomatoes": ("muffin_opinion_abstracts_rotten_tomatoes",
        "keep(critic_consensus=summary, numbered_reviews=reviews) | at(first_review, _critics.value, 0)"),
    "opinion_abstracts_idebate": ("muffin_opinion_abstracts_idebate",
                                  "keep(argument_sentences=arguments, debate_name=debate)"),
    "common_gen": ("muffin_common_gen", "keep(target=text, concepts_newline=concepts) | "
                                        "replace(concepts_newline, ', ', '\\n')"),
    "dart": ("muffin_dart", "keep(target=text, tripleset=data, tripleset_newline=data) | "
                            "replace(tripleset_newline, '; ', '\\n')"),
    "e2e_nlg": ("muffin_e2e_nlg", _DATA.format("meaning_representation")),
    "web_nlg_en": ("muffin_web_nlg_en", _DATA.format("input_string")),
    "wiki_lingua_english_en": ("muffin_wiki_lingua_english_en", "keep(source=text, target=summary)"),
    "multirc": ("muffin_multirc", "keep(paragraph=text)"),
    **{f"cot_{name}": (f"cot_{name}", _COT) for name in _COT_SETS},
    "stream_aqua": ("cot_aqua", _COT),
    "stream_qed": ("cot_qed", _COT),
    **{name: (f"muffin_{name}", _DIALOG) for name in ("wiki_dialog", "qrecc", "task_master")},
    "program_synthesis_dmcc_python": ("muffin_dmcc_python", "keep(question=problem, answer=solution)"),
    **{f"program_synthesis_dr_repair_{name}": (f"muffin_dr_repair_{name}", "keep(question=broken, answer=fixed)")
       for name in ("no_errors", "plain_code", "line_numbers", "error_comments")},
    "t0_question_answer": ("t0_sf", ""),  # a whole collection; its rows with separate options use the group below
    "t0_multiple_choice_separated_options": ("t0_sf:choose", ""),
    "natinst_v2": ("niv2", "keep(Definition=definition, output=answer) | "
                           "maybe(ex_input=worked_input, ex_output=worked_output, ex_explanation=worked_why)"),
}  # fmt: skip
# group of inverted prompts -> the groups it inverts
INVERSIONS = {
    "cot_stream_general_input_inversion": ("cot_", "stream_"),
    "predict_next_turn_dialog_input_inversion": ("wiki_dialog", "qrecc", "task_master"),
    "program_synthesis_dmcc_python_input_inversion": ("program_synthesis_dmcc_python",),
    "program_synthesis_dr_repair_input_inversion": ("program_synthesis_dr_repair",),
}

Prompts = list[Any]  # as in a block of the tables
Groups = dict[str, Prompts]


# ---- reading the clone -----------------------------------------------------------------------------------------------


def _assignments(path: pathlib.Path) -> Iterator[tuple[str, str | None, ast.expr]]:
    """(name, key or None, value) of each top-level `NAME = ...` and `NAME["key"] = ...` in a module."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise UserError(f"{path}: {reason}; is this a clone of google-research/FLAN?") from e
    for node in tree.body:
        if not isinstance(node, ast.Assign):
            continue
        target = node.targets[0]
        if isinstance(target, ast.Name):
            yield target.id, None, node.value
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
            yield target.value.id, _literal(target.slice), node.value


def _literal(node: ast.expr) -> str:
    """The value of a literal, or the source text of anything else."""
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def _options(text: str) -> str:
    return text.replace("{options_}", "{options}").replace("{options_str}", "{options}")


def _pair(node: ast.expr) -> list[str]:
    texts = ast.literal_eval(node)
    if not isinstance(texts, tuple) or len(texts) != 2:
        raise ValueError("not a pair of texts")
    return [_options(t) for t in texts]


def _pattern(node: ast.expr) -> dict[str, Any]:
    """A FewShotPattern(...) call as a prompt with its own head and few-shot style."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a FewShotPattern with named arguments")
    given = {**FEW, **{k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}}
    head, mark, tail = given["input_pattern"].partition("{{inputs}}")
    if not mark or tail != "{final_suffix}" or given["final_suffix"]:
        raise ValueError(f"input_pattern {given['input_pattern']!r} puts more after the exemplars")
    return {
        "head": head.replace("{{", "{").replace("}}", "}"),
        "input": _options(given["inputs"]),
        "target": _options(given["targets"]),
        "shot": [given["inputs_prefix"], given["x_y_delimiter"] + given["targets_prefix"], given["example_separator"]],
    }


def read(path: pathlib.Path) -> tuple[dict[str, Groups], list[str]]:
    """{"PATTERNS" etc.: {group: prompts}} of a module, and what could not be read, with reasons."""
    found: dict[str, Groups] = {"PATTERNS": {}, "FEWSHOT_PATTERNS": {}, "INLINE_FS_PATTERNS": {}}
    failed: list[str] = []
    for name, key, value in _assignments(path):
        if name not in found:
            continue
        convert = _pattern if name == "FEWSHOT_PATTERNS" else _pair
        if key is not None:  # an alias: PATTERNS["a"] = PATTERNS["b"]
            try:
                if not isinstance(value, ast.Subscript):
                    raise ValueError("not an alias of another group")
                found[name][key] = found[name][ast.literal_eval(value.slice)]
            except (KeyError, ValueError) as e:
                failed.append(f"{name}[{key!r}]: {type(e).__name__}: {e}")
        elif isinstance(value, ast.Dict):
            for group, prompts in zip(value.keys, value.values, strict=True):
                if group is None or not isinstance(prompts, ast.List | ast.Tuple):
                    failed.append(f"{name}: {ast.unparse(prompts)[:80]} is not a list of prompts under a name")
                    continue
                label = _literal(group)
                try:
                    found[name][label] = [convert(node) for node in prompts.elts]
                except (ValueError, TypeError) as e:
                    failed.append(f"{name}[{label!r}]: {e}")
    return found, failed


# ---- writing the tables ----------------------------------------------------------------------------------------------


def _blocks(kinds: dict[str, Groups], failed: list[str]) -> dict[str, dict[str, Any]]:
    """Template blocks by name; a prompt that has no equivalent is left out and added to `failed`."""
    blocks = {}
    for ending, groups in kinds.items():
        for group, prompts in groups.items():
            name, kept = user_file.clean(f"flan_{group}{ending}"), []
            for number, prompt in enumerate(prompts):
                try:
                    Prompt.parse(f"{name}:{number}", prompt)
                    kept.append(prompt)
                except ValueError as e:
                    failed.append(f"{group}{ending}, prompt {number}: {e}")
            if kept:
                first = kept[0]
                none = [first["head"], first["input"], first["target"]] if isinstance(first, dict) else first
                blocks[name] = {"none": none, "prompts": kept}
    return blocks


def _tasks(names: str, loaded: tables.Tables) -> list[spec.TaskSpec]:
    if names == "t0_sf":
        return [t for t in loaded.tasks.values() if t.collection == "t0_sf" and "choose" not in t.fields]
    if names == "t0_sf:choose":
        return [t for t in loaded.tasks.values() if t.collection == "t0_sf" and "choose" in t.fields]
    return [t for n in names.split() for t in loaded.tasks.values() if n in (t.name, t.collection)]


def _row(group: str, task: spec.TaskSpec, more: str, blocks: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The keys that override a task's row, and the blocks it cannot use because a field is missing."""
    fields = " | ".join(filter(None, [task.fields or f"keep({', '.join(task.columns)})", more]))
    names = parse(fields).outputs | {"options"}
    row: dict[str, Any] = {"fields": fields} if more else {}
    refused = []
    wanted = {"templates": "", "noopt": "_noopt", "few": "_few", "worked": "_worked"}
    candidates = {key: user_file.clean(f"flan_{group}{ending}") for key, ending in wanted.items()}
    for inverted, prefixes in INVERSIONS.items():
        if group.startswith(prefixes):
            candidates["inversions"] = user_file.clean(f"flan_{inverted}")
    for key, block in candidates.items():
        if block in blocks:
            parsed = parse_block(block, blocks[block])
            if absent := parsed.fields - names:
                refused.append(f"{block}: {task.name} has no field '{sorted(absent)[0]}'")
            elif key != "noopt" or "zsnoopt" in task.styles:
                row[key] = block
    return row, refused


def import_flan(args: argparse.Namespace) -> int:
    """Reads the clone, writes templates and rows, prints what was converted and what was not."""
    clone, output = local_path(args.clone), local_path(args.output)
    found, failed = read(clone / TEMPLATES)
    branched, more_failed = read(clone / BRANCHED)
    failed += more_failed
    unread = len(failed)
    kinds = {"": found["PATTERNS"], "_noopt": branched["PATTERNS"], "_few": found["FEWSHOT_PATTERNS"],
             "_worked": found["INLINE_FS_PATTERNS"]}  # fmt: skip
    blocks = _blocks(kinds, failed)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    used: set[str] = set()
    loaded = tables.load()
    for group, (names, more) in GROUPS.items():
        for task in _tasks(names, loaded):
            row, refused = _row(group, task, more, blocks)
            failed += [line for line in refused if line not in failed]
            if row:
                rows.setdefault(task.collection, {})[task.name.removeprefix(f"{task.collection}_")] = row
                used |= {value for key, value in row.items() if key != "fields"}
    note = "# Made by `flanx tasks import-flan` from a clone of google-research/FLAN (Apache-2.0).\n\n"
    user_file.write_made(
        output / "templates" / "flan.toml", note + "\n".join(user_file.section(n, t) for n, t in sorted(blocks.items()))
    )
    for collection, table in rows.items():
        _write_rows(output / "tables", collection, table, note)
    user_file.check(output)
    groups = sum(map(len, kinds.values())) + unread
    for name in sorted(blocks.keys() - used):
        print(f"converted, but no task here uses it: {name}")
    for line in failed:
        print(f"not converted: {line}")
    count = sum(map(len, rows.values()))
    print(
        f"{len(blocks)} of {groups} pattern groups converted, {count} tasks take them; "
        f"{len(failed)} lines not converted"
    )
    print(user_file.hint(output, "muffin_rte"))
    return 0


def _write_rows(folder: pathlib.Path, collection: str, table: dict[str, dict[str, Any]], note: str) -> None:
    """Writes rows as TOML, or as CSV if there are many."""
    if len(table) <= 100:
        user_file.write_made(
            folder / f"{collection}.toml", note + "\n".join(user_file.section(n, row) for n, row in table.items())
        )
        return
    keys = sorted({key for row in table.values() for key in row})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *keys])
    writer.writerows([[name, *(row.get(key, "") for key in keys)] for name, row in table.items()])
    user_file.write_made(folder / f"{collection}.csv", re.sub(r"\r", "", text.getvalue()))
