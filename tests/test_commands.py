"""Wrong command lines, damaged files, hostile answers: each ends in status 2 and one to five lines, or makes sense."""

import json
import os
import pathlib
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from flanx.cli import main
from flanx.compare import ballot, pairing
from flanx.evals import registry
from flanx.sweep import grid
from tests import command_case, compare_case, sweep_maker, t5_vocabulary, test_law_section
from tests.command_case import TASKS, evaluate, infer, train

WRONG = ("None", "5", "-1", "1.5", "[]", "{}", "'a'", "True", "1e400", "''", "(", r"'a\x00b'", "'~nosuchuser/x'", "5,")
COUNTS = ("BATCH_SIZE", "CHECKPOINT_PERIOD", "NUM_MICROBATCHES", "NUM_PARTITIONS", "SEED", "TRAIN_STEPS")
FITS = {  # values that are no mistake
    **{name: ("5",) for name in COUNTS},
    **{name: ("'a'",) for name in ("INFER_OUTPUT_DIR", "MODEL_DIR", "OUTPUT_DIR", "STORE_DIR")},
    "ALLOW_MISSING": ("[]",),
    "BEAMS": ("5",),
    "COT_RATIO": ("None",),
    "DATA_DIR": ("None", "''"),
    "DROPOUT_RATE": (),
    "EVAL_BATCH_SIZE": ("5",),
    "EVAL_PERIOD": ("None", "5"),
    "INITIAL_CHECKPOINT_PATH": ("None",),
    "LEARNING_RATE": ("5", "1.5"),
    "LOSS_NORMALIZING_FACTOR": ("None", "5", "1.5"),
    "MAX_BAD_ROWS": ("5",),
    "NUM_TASKS": ("None",),
    "RENDERINGS": ("5",),
    "SAMPLES": ("5",),
    "SELF_CONSISTENCY": ("5",),
    "STYLES": ("None",),
    "TEMPERATURE": ("5", "1.5"),
    "TOP_K": ("5",),
    "TOP_P": (),
    "WORKERS": ("None", "5"),
}
MACROS = {
    "train": (*COUNTS, "COT_RATIO", "DROPOUT_RATE", "EVAL_PERIOD", "INITIAL_CHECKPOINT_PATH", "LEARNING_RATE",
              "LOSS_NORMALIZING_FACTOR", "MIXTURE_OR_TASK_NAME", "MODEL_DIR", "NUM_TASKS", "STORE_DIR",
              "TASK_FEATURE_LENGTHS", "VOCABULARY"),
    "evaluate": ("ALLOW_MISSING", "BEAMS", "CHECKPOINT_PATH", "DATA_DIR", "EVAL_BATCH_SIZE", "NUM_PARTITIONS",
                 "OUTPUT_DIR", "SELF_CONSISTENCY", "SUITES", "TASK_FEATURE_LENGTHS", "VOCABULARY"),
    "infer": ("BATCH_SIZE", "CHECKPOINT_PATH", "INFER_OUTPUT_DIR", "PROMPTS", "SAMPLES", "SEED", "TEMPERATURE", "TOP_K",
              "TOP_P", "VOCABULARY"),
    "store": ("DATA_DIR", "MAX_BAD_ROWS", "MIXTURE_OR_TASK_NAME", "RENDERINGS", "STORE_DIR", "STYLES", "VOCABULARY",
              "WORKERS"),
}  # fmt: skip
NUMBERS = ("nan", "-1", "a", "1e400", "", "1.5.2", "inf")
PATHS = ("", "~nosuchuser/x", "nosuch", "{BASE}/fifo", "{BASE}/bin.gin", "a\0b", "gs:x")
FLAGS = {  # command line -> its flags that take a number, and those that take something that is there
    "tasks show suite_text_word_reverse": (("--n", "--skip", "--rendering", "--shots"), ("--vocabulary",)),
    "tasks plan cot": (("--rate",), ()),
    "tasks fetch cot_gsm8k": (("--jobs",), ()),
    "tasks audit suite_text": (("--limit",), ("--store",)),
    "doctor": (("--devices",), ("--vocabulary", "--store_dir", "--data_dir")),
    "plan --gin_file=models/t5_1_1/small.gin --estimate": (("--compilations", "--timeout", "--rows"), ()),
    "fit published:3": (("--draws",), ()),
    "compare a b": (("--pairs", "--seed", "--port"), ("--read", "--judge")),
    "sweep --gin_file=sweeps/demo.gin --dry_run": (("--jobs", "--retries", "--retry_wait"), ()),
    "launch list": (("--slices", "--processes", "--jobs", "--restarts", "--grace", "--period", "--quota"), ()),
    "store show {BASE}/store": (("--lengths",), ()),
    "train --gin_file=runs/train.gin": (("--num_processes", "--process_id", "--cluster_timeout"), ("--gin_file",)),
    "evaluate": ((), ("--gin_file",)),
    "infer": ((), ("--gin_file",)),
    "explain": ((), ("--gin_file",)),
    "store mix {BASE}/store": ((), ("--gin_file",)),
    "convert {BASE}/run o --to=hf": ((), ("--vocabulary", "--base", "--scores", "--golden", "--dtype")),
    "infer --checkpoint={BASE}/run --prompts={BASE}/p.txt --output=o.jsonl": (
        ("--batch_size", "--samples", "--temperature", "--top_k", "--top_p", "--seed", "--partitions"),
        ("--checkpoint", "--prompts", "--vocabulary", "--dtype"),
    ),
    "evaluate --checkpoint={BASE}/run --output=o --suites suite_rule[:2]": (
        ("--batch_size", "--self_consistency", "--beams", "--partitions"),
        ("--checkpoint", "--vocabulary", "--dtype", "--scorer"),
    ),
    "finetune --checkpoint={BASE}/run --data={BASE}/p.jsonl --inputs=inputs --targets=targets --output=o --steps=1": (
        *(("--validation_share", "--steps", "--batch_size", "--learning_rate", "--lora"),),
        *(("--checkpoint", "--data", "--vocabulary", "--dtype", "--gin_file", "--inputs", "--targets"),),
    ),
    "finetune --checkpoint={BASE}/run --data={BASE}/p.jsonl --inputs=inputs --targets=targets --output=o": (
        *(("--inputs_length", "--targets_length", "--partitions"), ()),
    ),
    "ask {BASE}/run": (
        ("--temperature", "--top_k", "--top_p", "--seed", "--max_prompt_tokens", "--max_tokens", "--rows", "--timeout"),
        ("--vocabulary", "--dtype", "--template", "--host"),
    ),
    "ask {BASE}/run --serve": (("--port", "--waiting", "--partitions"), ("--host",)),
    "compare {BASE}/a.jsonl {BASE}/b.jsonl --output=o": (
        *(("--pairs", "--seed", "--port"), ("--read", "--judge", "--export", "--suite", "--host")),
    ),
    "compare --output={BASE}/cmp --results": ((), ("--read", "--judge", "--export", "--suite")),
    "fit {BASE}/out": (("--draws",), ("--scores", "--form", "--over", "--predict")),
    "report {BASE}/ev": (("--show_text",), ()),
    "reproduce flan_t5_small --dry_run": (
        *(("--slices", "--processes"), ("--target", "--skip", "--redo", "--program", "--gin_file")),
    ),
    "reproduce flan_t5_small --dry_run --rehearse": ((), ("--target", "--data_dir", "--place", "--benchmarks")),
    "rescore {BASE}/ev --check": ((), ("--scorer", "--texts")),
    "suites show suite_rule": (("--n",), ()),
    "suites show gsm8k_cot": ((), ("--data_dir",)),
    "sweep --dry_run": ((), ("--gin_file",)),
    "sweep --gin_file=sweeps/demo.gin --dry_run --jobs=1": ((), ("--only", "--topology", "--launcher")),
    "plan --gin_file=models/t5_1_1/small.gin": ((), ("--topology", "--family", "--layout")),
    "track {BASE}/run": ((), ("--to",)),
    "watch {BASE}/run --once": (("--every",), ()),
    "tasks plan suite_text": ((), ("--licence",)),
    "tasks list": ((), ("--licence",)),
    "tasks add {BASE}/p.jsonl --inputs=inputs --targets=targets --output=o": (
        *(("--validation_share", "--test_share"), ("--validation", "--test", "--options", "--metric")),
    ),
    "launch local train --gin_file=runs/train.gin --dry_run": (
        *((), ("--topology", "--target", "--gin_file", "--env", "--wheel", "--name")),
    ),
}
ARGUMENTS = (
    *("convert {} o", "store show {}", "store verify {}", "rescore {}", "report {}", "tasks import-flan {} --output=o"),
    *("ask {}", "push {} hf:a/b", "push {BASE}/hf {}", "track {} --to=trackio", "watch {} --once", "fit {}"),
    *("report {} {BASE}/ev", "report {BASE}/ev {}", "rescore {} {BASE}/ev --check", "watch {BASE}/run {} --once"),
    *("recipe show {}", "recipe diff flan_t5_small {}", "reproduce {} --dry_run", "launch {} train", "launch {}"),
    *("launch status {}", "launch stop {}", "launch logs {}", "launch local {} --dry_run", "suites show {}"),
    *("tasks show {}", "tasks plan {}", "tasks fetch {}", "store mix {}", "explain --gin_file=runs/train.gin {}x"),
    *(
        "compare {} {BASE}/a.jsonl --output=o --results",
        "compare --output={} --results",
        "tasks import-export {} --output=o",
        "tasks add {} --inputs=inputs --targets=targets --output=o",
        "tasks audit suite_text --store={}",
    ),
)


def wrong_commands(base: pathlib.Path) -> Iterator[list[str]]:
    """Command lines with one mistake each: values, unknown macros, flags, absent and odd files."""
    bound = ("STORE_DIR='st'", "VOCABULARY='byte'", "MIXTURE_OR_TASK_NAME='suite_text_word_reverse'")
    build = ["store", "build", "--quiet", *(f"--gin.{each}" for each in bound)]
    lines = {"train": train(base), "evaluate": evaluate(base), "infer": infer(base), "store": build}
    for command, names in MACROS.items():
        for name in names:
            yield from (
                [*lines[command], f"--gin.{name}={value}"] for value in WRONG if value not in FITS.get(name, ())
            )
            yield [*lines[command], f"--gin.{name}X=1"]
    for line, (numbers, paths) in FLAGS.items():
        words = line.replace("{BASE}", str(base)).split()
        yield from ([*words, f"{flag}={value}"] for flag in numbers for value in NUMBERS)
        yield from ([*words, f"{flag}={value}".replace("{BASE}", str(base))] for flag in paths for value in PATHS)
    for line in ARGUMENTS:
        yield from (
            [word.replace("{}", value).replace("{BASE}", str(base)) for word in line.split()] for value in PATHS
        )
    for command in main.COMMANDS:
        yield from ([command, "nosuch"], [command, "--nosuch"], [command, "--gin_file=nosuch.gin"], [command, "\n"])
    for words in ("ask {BASE}/run", "fit {BASE}/law", "push {BASE}/hf hf:a/b", "watch {BASE}/run", "tasks list"):
        yield [*words.replace("{BASE}", str(base)).split(), "--gin.SEED=1"]
    for file in ("bin.gin", "dir.gin", "self.gin", "deep.gin", "notutf.gin", "import.gin", "t5x.gin", "syn.gin"):
        for command in ("train", "evaluate", "infer", "sweep", "explain", "plan", "report"):
            path = f"{base}/{file}"
            yield [command, path if command == "report" else f"--gin_file={path}"]


def cases(commands: Sequence[Sequence[str]], folder: pathlib.Path) -> list[dict[str, Any]]:
    """Each command as a case in an empty folder of its own, which a refused one leaves empty."""
    found = []
    for number, argv in enumerate(commands):
        own = folder / str(number)
        own.mkdir()
        found.append({"id": str(number), "argv": list(argv), "folder": str(own), "wrong": True})
    return found


def show(results: Sequence[dict[str, Any]], what: str) -> list[str]:
    """Prints how many came out right, and a line for each that did not, which it returns."""
    found = [f"{r['mistake']}: {r['id']}: {' '.join(r['argv'])}: {r['err'][-300:]}" for r in results if r["mistake"]]
    print(f"{len(results) - len(found)} of {len(results)} {what} right", *found, sep="\n")
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("commands") / "base"
    command_case.make_base(folder)
    make_more(folder)
    return folder


def test_a_sample_of_wrong_commands(tmp_path):
    """Those that need neither a store nor a run."""
    base = tmp_path / "base"
    command_case.make_odd_files(base)
    every = list(wrong_commands(base))
    random.Random(0).shuffle(every)
    for case in cases(every[:60], tmp_path):
        result = command_case.run(case["argv"], pathlib.Path(case["folder"]))
        assert result.status == 2 and not result.mistake(), (case["argv"], result)
        assert not any(pathlib.Path(case["folder"]).iterdir()), case["argv"]


@pytest.mark.slow
def test_hundreds_of_wrong_commands(base, tmp_path):
    before = command_case.listing(base)
    every = list(wrong_commands(base))
    assert len(every) >= 500
    found = show(command_case.run_all(cases(every, tmp_path), tmp_path), "wrong command lines")
    assert command_case.listing(base) == before
    assert len(found) <= len(every) / 100, "\n".join(found)


@pytest.mark.slow
def test_the_command_lines_of_others(cases_dir, base, tmp_path):
    """commands.jsonl: lines that were tried by hand; those of a value that makes sense may succeed."""
    for name in ("st_unread", "st_unread2"):
        shutil.copytree(base / "store", base / name)
    for name in ("run", "ev"):
        shutil.copytree(base / name, base / "priv" / name)
    lines = [json.loads(line) for line in (cases_dir / "commands.jsonl").read_text().splitlines()]
    every = cases([[word.replace("{BASE}", str(base)) for word in line["argv"]] for line in lines], tmp_path)
    results = command_case.run_all([{**case, "wrong": False} for case in every], tmp_path)
    found = show(results, "command lines of commands.jsonl")
    assert len(found) <= len(every) / 100, "\n".join(found)


# ---- damaged files ---------------------------------------------------------------------------------------------------


def flip(raw: bytes, rng: random.Random) -> bytes:
    """The bytes with one bit turned."""
    at = rng.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": lambda raw, rng: b"",
    "cut": lambda raw, rng: raw[: len(raw) // 2],
    "cut by one": lambda raw, rng: raw[:-1],
    "flipped": flip,
    "flipped again": flip,
    "zeros": lambda raw, rng: bytes(len(raw)),
    "noise": lambda raw, rng: rng.randbytes(len(raw)),
    "UTF-16": lambda raw, rng: raw.decode("latin-1").encode("utf-16"),
    "doubled": lambda raw, rng: raw + raw,
}
ROAD = ("fetch", "benchmarks", "store", "mixture", "plan", "parent", "launch", "evaluation", "curves", "report", "card")
VALUES = (None, -1, 1.5, "x", [], {}, True, 10**30, [[]], {"a": "/etc/passwd"}, "../../x", 1e308)
TEXTS = ("[]", "5", '"x"', "null", "{}", "[" * 5000, '{"a": NaN}', '{"a": 1, "a": 2}', "1e999")


def of_json(raw: bytes, rng: random.Random) -> bytes:
    """A record with one value, at any depth, replaced by one of another kind, or a key taken away."""
    first, _, rest = raw.partition(b"\n") if raw.count(b"\n") > 1 and raw.startswith(b'{"') else (raw, b"", b"")
    record = json.loads(first)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(record)
    if not places:
        return b"[]"
    holder, key = rng.choice(places)
    if isinstance(holder, dict) and rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(VALUES)
    return json.dumps(record).encode() + (b"\n" + rest if rest else b"")


def damaged(base: pathlib.Path, folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Cases: a command on a copy of a good folder in which one file is damaged; `must` where it has to be refused."""
    rng = random.Random(0)
    resume = train(pathlib.Path("."), "--gin.TRAIN_STEPS=21")
    ask = infer(pathlib.Path("."))
    mix = ["store", "mix", "store", "--gin.MIXTURE_OR_TASK_NAME='suite_text'"]
    add = ["tasks", "add", "{}", "--inputs=inputs", "--targets=targets", "--output=o"]
    scored = evaluate(pathlib.Path("."), "--gin.DATA_DIR='sample'")

    launch = ["launch", "local", *resume, "--targets=targets.toml", "--target=here", "--dry_run"]

    def shown(name: str) -> list[str]:
        return ["suites", "show", name, "--data_dir=sample"]

    def suite(name: str) -> list[str]:
        return [*scored, f"--gin.SUITES=['{name}']", "--gin.EVAL_LENGTHS={'inputs': 256, 'targets': 8}"]

    plans = [  # files, the ways of damaging each, times the record is changed, the command, whether it must be refused
        ("run/done.json run/run.json", BYTES, 8, resume, False),
        ("run/metrics.jsonl run/config.gin", BYTES, 0, resume, False),
        ("run/checkpoints/checkpoint_20/*", BYTES, 0, ask, False),
        ("run/checkpoints/checkpoint_20/default/**", BYTES, 0, ask, True),
        ("out/state.json out/sweep.json out/runs/*/run.json", BYTES, 8, ["report", "out"], False),
        ("out/runs/*/evals/*/scores.json", BYTES, 12, ["report", "out"], False),
        ("ev/scores.json", BYTES, 12, ["report", "ev"], False),
        ("ev/scores.json ev/generations/*", BYTES, 8, ["rescore", "ev"], False),
        ("store/manifest.json", BYTES, 15, mix, True),
        ("store/*.npy", BYTES, 0, ["store", "verify", "store"], True),
        ("store/*.npy", BYTES, 0, mix, False),
        ("hf/config.json", BYTES, 15, ["convert", "hf", "o"], False),
        ("hf/model.safetensors hf/generation_config.json", BYTES, 0, ["convert", "hf", "o"], False),
        ("t5x/*", BYTES, 0, ["convert", "t5x", "o"], False),
        ("t5x/*/*", BYTES, 0, ["convert", "t5x", "o"], False),
        ("p.jsonl p.csv p.tsv", BYTES, 0, add, False),
        ("p.jsonl", BYTES, 5, [*ask, "--gin.PROMPTS='p.jsonl'"], False),
        ("sample/gsm8k/test.jsonl", BYTES, 5, suite("gsm8k_cot[:1]"), False),
        ("sample/mgsm/mgsm_de.tsv", BYTES, 0, suite("mgsm_cot[de,:1]"), False),
        ("sample/mgsm/exemplars.json", BYTES, 5, suite("mgsm_cot[de,:1]"), False),
        ("sample/tydiqa/tydiqa-goldp-v1.1-dev.json", BYTES, 5, suite("tydiqa[:1]"), False),
        ("tiny.gin", BYTES, 0, ["explain", "--gin_file=tiny.gin"], False),
        ("a.jsonl", BYTES, 5, ["compare", "a.jsonl", "b.jsonl", "--output=o", "--results"], False),
        ("cmp/comparison.json", BYTES, 12, ["compare", "--output=cmp", "--results"], True),
        ("cmp/ballots/*", BYTES, 10, ["compare", "--output=cmp", "--results"], False),
        ("ballots.jsonl", BYTES, 10, ["compare", "--output=cmp", "--results", "--read=ballots.jsonl"], False),
        ("law/predictions.json", BYTES, 4, ["report", "law"], False),
        ("law/predictions.json", BYTES, 4, ["fit", "law", "--draws=40"], False),
        ("run/metrics.jsonl run/tasks.jsonl run/run.json", BYTES, 8, ["watch", "run", "--once"], False),
        ("run/metrics.jsonl run/sessions.jsonl", BYTES, 4, ["report", "run", "--output=o"], False),
        ("hf/config.json hf/model.safetensors hf/README.md", BYTES, 4, ["push", "hf", "hf:a/b"], False),
        ("peft/adapter_config.json", BYTES, 10, ["convert", "peft", "o", "--to=hf"], False),
        ("peft/adapter_model.safetensors", BYTES, 0, ["convert", "peft", "o", "--to=hf"], False),
        ("lora/run.json lora/config.gin", BYTES, 4, ["convert", "lora", "o", "--to=hf"], False),
        ("lora/checkpoints/checkpoint_2/default/**", BYTES, 0, ["convert", "lora", "o", "--to=hf"], True),
        ("road/stages/*", BYTES, 12, ["reproduce", "flan_t5_small", "--folder=road", "--dry_run"], False),
        ("targets.toml", BYTES, 0, launch, False),
        ("chat.toml", BYTES, 0, ["ask", "run", "--template=chat.toml"], False),
        ("sp.model", BYTES, 0, ["tasks", "show", TASKS[0], "--vocabulary=sp.model"], False),
        ("sample/bbh/bbh/* sample/bbh/cot-prompts/*", BYTES, 3, shown("bbh_cot"), False),
        ("sample/mmlu/**/*", BYTES, 0, shown("mmlu_direct"), False),
        ("sample/bbq/data/Age.jsonl", BYTES, 5, shown("bbq"), False),
    ]
    number = 0
    for patterns, ways, records, argv, must in plans:
        top = sorted({pattern.partition("/")[0] for pattern in patterns.split()} | set(needed(argv)))
        files = [p for pattern in patterns.split() for p in sorted(base.glob(pattern)) if p.is_file()]
        for file in files[:3]:
            raw = file.read_bytes()
            variants = [(name, way(raw, rng)) for name, way in ways.items() if raw]
            if records and file.suffix in (".json", ".jsonl"):
                variants += [(f"record {n}", of_json(raw, rng)) for n in range(records)]
                variants += [(f"text {text[:20]}", text.encode()) for text in rng.sample(TEXTS, 4)]
            for name, content in [*variants, ("folder", None), ("pipe", None), ("absent", None)]:
                if content == raw:
                    continue
                own, number = folder / f"d{number}", number + 1
                own.mkdir()
                for part in top:
                    copy = shutil.copytree if (base / part).is_dir() else shutil.copy
                    copy(base / part, own / part)
                target = own / file.relative_to(base)
                target.unlink()
                if content is not None:
                    target.write_bytes(content)
                elif name != "absent":
                    (os.mkdir if name == "folder" else os.mkfifo)(target)
                words = [file.relative_to(base).as_posix() if word == "{}" else word for word in argv]
                what = f"{file.relative_to(base)}: {name}"
                is_same = content is not None and content.strip() == raw.strip()  # a line feed less
                wrong = must and not is_same and name not in ("doubled", "UTF-16")  # which may hold the same
                yield {"id": what, "argv": words, "folder": str(own), "wrong": wrong}


def needed(argv: Sequence[str]) -> Iterator[str]:
    """What else in the folder a command reads."""
    text = " ".join(argv)
    for name, marks in {
        "store": ("./store",),
        "run": ("./run", "MODEL_DIR='run'", "ask run", "=run"),
        "base": ("convert peft", "convert lora"),
        "b.jsonl": ("b.jsonl",),
        "cmp": ("=cmp",),
        "p.jsonl": ("=p.jsonl",),
        "tiny.gin": ("tiny.gin",),
        "p.txt": ("p.txt",),
        "sample": ("'sample'", "=sample"),
    }.items():
        if any(mark in text for mark in marks):
            yield name


def make_more(base: pathlib.Path) -> None:
    """Adds to a base what commands read beside its store and run: folders of sweeps, converted checkpoints, an adapter,
    a comparison with ballots, a road with a stage that is done, data files."""
    sweep = sweep_maker.make(base / "out")
    for point in sweep.points():
        sweep_maker.leave(point.folder, {5: {"suite_rule": sweep_maker.entry(12.5)}})
    (base / "out" / "sweep.json").write_text(grid.record(sweep))
    (base / "out" / "state.json").write_text(
        json.dumps({point.name: {"state": "done", "at": 1.0} for point in sweep.points()})
    )
    for kind in ("hf", "t5x"):
        done = command_case.run(["convert", "run", kind, f"--to={kind}"], base)
        assert done.status == 0, done.err
    laws = test_law_section.make(base / "law")
    test_law_section.leave(laws, skip=("d3_282",))
    (base / "law" / "sweep.json").write_text(grid.record(laws))
    for name in "ab":
        compare_case.write_answers(base / f"{name}.jsonl", [f"{name} {n}" for n in range(6)])
    lora = ["--gin_file=runs/lora.gin", "--gin.INITIAL_CHECKPOINT_PATH='base'", "--gin.TRAIN_STEPS=2"]
    road = ["reproduce", "flan_t5_small", "--folder=road", *(f"--skip={name}" for name in ROAD)]
    shutil.copytree(base / "hf", base / "base")
    for argv in (
        train(base, "--gin.MODEL_DIR='lora'", *lora),
        ["convert", "lora", "peft", "--to=peft"],
        ["compare", "a.jsonl", "b.jsonl", "--output=cmp", "--export=o.html"],
        ["fit", "law", "--draws=40"],
        road,
    ):
        done = command_case.run(argv, base, 300)
        assert done.status == 0, (argv, done.err)
    made = pairing.read(base / "cmp")
    for folder, rater in (("cmp", "ann"), ("other", "bob")):
        writer = ballot.Writer(base / folder, made, rater)
        writer.add([ballot.Ballot(pair.id, "left", seconds=2.0) for pair in made.pairs])
    writer.path.rename(base / "ballots.jsonl")
    pathlib.Path(t5_vocabulary.train(base)).rename(base / "sp.model")
    (base / "chat.toml").write_text('user = "Q: {text}\\n"\nassistant = "A: {text}\\n"\nanswer = "A:"\nstop = ["Q:"]\n')
    (base / "targets.toml").write_text('[here]\nmounts = "/data"\ntime = "1:00:00"\n')
    (base / "p.csv").write_text("inputs,targets\nsay a,a\nsay b,b\n")
    (base / "p.tsv").write_text("inputs\ttargets\nsay a\ta\nsay b\tb\n")
    shutil.copytree(registry.SAMPLE_DIR, base / "sample")


@pytest.mark.slow
def test_hundreds_of_damaged_files(base, tmp_path):
    every = list(damaged(base, tmp_path))
    assert len(every) >= 300
    found = show(command_case.run_all(every, tmp_path), "damaged files")
    assert len(found) <= len(every) / 100, "\n".join(found)
