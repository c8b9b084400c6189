"""`flanx infer`: a checkpoint on prompts of your own, from a file to a file.

prompts (a line each, or JSONL) -> tokens -> decoding -> predictions.jsonl, one line per prompt in their order.
Killed and started again with the same arguments it resumes with the prompts that are not answered.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from flanx import cluster, jsonl
from flanx.data import vocabulary as vocabularies
from flanx.decoding import decode
from flanx.errors import UserError
from flanx.files import write_atomic
from flanx.models import Model
from flanx.partition import Partitioner
from flanx.predictor import Prediction, Predictor


def infer(
    *,
    model: Model,
    vocabulary: str,
    checkpoint: str,
    prompts: str,
    out_dir: str,
    lengths: Mapping[str, int],
    method: decode.Sample = decode.GREEDY,
    samples: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    partitioner: Partitioner | None = None,
) -> pathlib.Path:
    """Answers every prompt of a file and returns the path of `out_dir`/predictions.jsonl.

    A line of the answer holds `index`, `inputs`, `prediction` (`predictions` where samples > 1), `ended`
    (False: truncated at the longest output), and the other fields of the prompt's own line.

    Args:
      checkpoint: a run, a step folder of a run, or what `flanx convert` wrote or reads.
      prompts: .jsonl with a text in "inputs", or any other file with a prompt on each line.
      lengths: {"inputs": I, "targets": T}, tokens of the longest prompt and the longest output.
      method: greedy, or how tokens are drawn.

    Raises:
      UserError: for a malformed line, a prompt that is longer than the model takes, answers of other arguments in
        `out_dir`.
    """
    loaded = vocabularies.load(vocabulary)
    predictor = Predictor(model, None, loaded, lengths, batch_size, seed)
    rows = read_prompts(pathlib.Path(prompts))
    tokens = [[*loaded.encode(row["inputs"]), loaded.eos_id] for row in rows]
    for number, ids in enumerate(tokens):
        if len(ids) > lengths["inputs"]:
            raise UserError(
                f"{prompts}:{number + 1}: {len(ids)} tokens, the longest prompt has {lengths['inputs']}; shorten it or "
                "raise TASK_FEATURE_LENGTHS"
            )
    settings = [repr(model), str(checkpoint), loaded.fingerprint, sorted(lengths.items()), repr(method), samples, seed]
    answers = Answers(pathlib.Path(out_dir), rows, settings)
    todo = [number for number in range(len(rows)) if number not in answers.done]
    began = time.monotonic()
    if todo:
        with predictor.restored(checkpoint, partitioner or Partitioner()) as predictor, contextlib.closing(answers):
            began = time.monotonic()
            for index, prediction in predictor.generate([tokens[number] for number in todo], method, samples):
                answers.add(todo[index], prediction)
    seconds = max(time.monotonic() - began, 1e-9)
    print(
        f"{len(todo)} prompts in {seconds:.1f} s, {len(todo) / seconds:.1f} a second, {len(answers.done)} done before"
    )
    return answers.finish()


def read_prompts(path: pathlib.Path) -> list[dict[str, Any]]:
    """The prompts of a file, each at least {"inputs": text}. Raises UserError naming the line that is malformed."""
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
            raise UserError(f"{path}:{number}: not a JSON object ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("inputs"), str):
            raise UserError(f'{path}:{number}: the text "inputs" is missing; write {{"inputs": "..."}} on every line')
        rows.append(row)
    return rows


class Answers:
    """The answers of one set of prompts under one set of arguments, kept line by line as they come.

    Nothing is written before the first answer, so that input that is refused leaves nothing.
    """

    def __init__(self, folder: pathlib.Path, rows: Sequence[Mapping[str, Any]], settings: Sequence[Any]) -> None:
        self._rows, self._folder = rows, folder
        self._file: TextIO | None = None
        header = {"hash": hashlib.sha256(json.dumps([settings, list(rows)]).encode()).hexdigest()[:16]}
        self._part, self._final = folder / "predictions.part", folder / "predictions.jsonl"
        kept = jsonl.records(self._part)
        if kept and kept[0] != header:
            raise UserError(f"{folder} holds answers to other prompts or of other arguments; choose another folder")
        self.answers = {row["index"]: row for row in kept[1:]}
        self.done = frozenset(self.answers)
        self._header = None if kept else header

    def add(self, number: int, prediction: Prediction) -> None:
        """Keeps the answer to prompt `number`."""
        texts, ended = prediction.texts, prediction.ended
        if prediction.non_finite:
            raise UserError(f"prompt {number}: the logits hold a NaN or an infinity; the checkpoint is damaged")
        answer = {"predictions": texts, "ended": ended}
        if len(texts) == 1:
            answer = {"prediction": texts[0], "ended": ended[0]}
        self.answers[number] = {"index": number, **self._rows[number], **answer}
        if self._file is None and cluster.is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._header:
                write_atomic(self._part, jsonl.line(self._header))
            else:
                jsonl.truncate(self._part)
            self._file = open(self._part, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  closed by `close`
        if self._file is not None:
            self._file.write(jsonl.line(self.answers[number]))

    def close(self) -> None:
        """Ends the writing."""
        if self._file is not None:
            self._file.close()

    def finish(self) -> pathlib.Path:
        """Writes all answers in the order of the prompts."""
        if cluster.is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._final, "".join(jsonl.line(self.answers[n]) for n in range(len(self._rows))))
        print(os.fspath(self._final))
        return self._final
