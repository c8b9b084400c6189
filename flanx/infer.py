"""`flanx infer`: a checkpoint on prompts of your own, from a file to a file.

prompts (a line each, or JSONL) -> tokens -> decoding -> predictions.jsonl, one line per prompt in their order.
Killed and started again with the same arguments it goes on with the prompts that are not answered.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flanx import cluster, jsonl
from flanx.data import vocabulary as vocabularies
from flanx.decoding import decode, length_buckets
from flanx.errors import UserError
from flanx.evaluate import check, placement, restore
from flanx.files import write_atomic
from flanx.models import Model
from flanx.partition import Partitioner

GREEDY = decode.Sample()


def infer(
    *,
    model: Model,
    vocabulary: str,
    checkpoint: str,
    prompts: str,
    out_dir: str,
    lengths: Mapping[str, int],
    method: decode.Sample = GREEDY,
    samples: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    partitioner: Partitioner | None = None,
) -> pathlib.Path:
    """Answers every prompt of a file and returns the path of `out_dir`/predictions.jsonl.

    A line of the answer holds `index`, `inputs`, `prediction` (`predictions` where samples > 1), `ended` (False: cut at
    the longest output), and the other fields of the prompt's own line.

    Args:
      checkpoint: a run, a step folder of a run, or what `flanx convert` wrote or reads.
      prompts: .jsonl with a text in "inputs", or any other file with a prompt on each line.
      lengths: {"inputs": I, "targets": T}, tokens of the longest prompt and the longest output.
      method: greedy, or how tokens are drawn.

    Raises:
      UserError: for a malformed line, a prompt that is longer than the model takes, answers of other arguments in
        `out_dir`.
    """
    words = vocabularies.load(vocabulary)
    check(model, words, lengths, batch_size)
    rows = read_prompts(pathlib.Path(prompts))
    tokens = [[*words.encode(row["inputs"]), words.eos_id] for row in rows]
    for number, ids in enumerate(tokens):
        if len(ids) > lengths["inputs"]:
            raise UserError(
                f"{prompts}:{number + 1}: {len(ids)} tokens, the longest prompt has {lengths['inputs']}; shorten it or "
                "raise TASK_FEATURE_LENGTHS"
            )
    folder = pathlib.Path(out_dir)
    settings = [repr(model), str(checkpoint), words.fingerprint, sorted(lengths.items()), repr(method), samples, seed]
    answers = Answers(folder, rows, settings)
    todo = [number for number in range(len(rows)) if number not in answers.done]
    with contextlib.ExitStack() as stack:
        params = restore(stack, model, checkpoint, partitioner or Partitioner()) if todo else None
        stack.callback(answers.close)
        began = time.monotonic()
        for place, output in decode.stream(
            model,
            params,
            [tokens[number] for number in todo],
            max_new=lengths["targets"],
            method=method,
            samples=samples,
            seed=seed,
            eos_id=words.eos_id,
            batch_size=batch_size,
            lengths=length_buckets.bucket_lengths(lengths["inputs"]),
            **({"place": placement(params)} if todo else {}),
        ):
            answers.add(todo[place], [words.decode(ids) for ids in output.tokens], output)
    seconds = max(time.monotonic() - began, 1e-9)
    print(
        f"{len(todo)} prompts in {seconds:.1f} s, {len(todo) / seconds:.1f} a second, {len(answers.done)} done before"
    )
    return answers.finish()


def read_prompts(path: pathlib.Path) -> list[dict[str, Any]]:
    """The prompts of a file, each at least {"inputs": text}. Raises UserError naming the line that is none."""
    if not path.is_file():
        raise UserError(f"no file of prompts '{path}'")
    lines = [line.removesuffix("\r") for line in jsonl.lines(path)]
    if path.suffix != ".jsonl":
        return [{"inputs": line} for line in lines]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: no JSON object ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("inputs"), str):
            raise UserError(f'{path}:{number}: no text "inputs"; write {{"inputs": "..."}} on every line')
        rows.append(row)
    return rows


class Answers:
    """The answers of one set of prompts under one set of arguments, kept line by line as they come.

    Nothing is written before the first answer, so that input that is refused leaves nothing.
    """

    def __init__(self, folder: pathlib.Path, rows: Sequence[Mapping[str, Any]], settings: Sequence[Any]) -> None:
        self._rows, self._folder, self._file = rows, folder, None
        header = {"hash": hashlib.sha256(json.dumps([settings, list(rows)]).encode()).hexdigest()[:16]}
        self._part, self._final = folder / "predictions.part", folder / "predictions.jsonl"
        kept = jsonl.records(self._part)
        if kept and kept[0] != header:
            raise UserError(f"{folder} holds answers to other prompts or of other arguments; choose another folder")
        self.found = {row["index"]: row for row in kept[1:]}
        self.done = frozenset(self.found)
        self._header = None if kept else header

    def add(self, number: int, texts: Sequence[str], output: decode.Output) -> None:
        """Keeps the answer to prompt `number`."""
        if output.broken:
            raise UserError(f"prompt {number}: the logits hold a NaN or an infinity; the checkpoint is broken")
        answer = {"predictions": list(texts)} if len(texts) > 1 else {"prediction": texts[0]}
        ended = list(output.ended) if len(texts) > 1 else output.ended[0]
        self.found[number] = {"index": number, **self._rows[number], **answer, "ended": ended}
        if self._file is None and cluster.is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._header:
                write_atomic(self._part, jsonl.line(self._header))
            else:
                jsonl.mend(self._part)
            self._file = open(self._part, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  closed by `close`
        if self._file is not None:
            self._file.write(jsonl.line(self.found[number]))

    def close(self) -> None:
        """Ends the writing."""
        if self._file is not None:
            self._file.close()

    def finish(self) -> pathlib.Path:
        """Writes all answers in the order of the prompts."""
        if cluster.is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._final, "".join(jsonl.line(self.found[n]) for n in range(len(self._rows))))
        print(os.fspath(self._final))
        return self._final
