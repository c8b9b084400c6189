"""`flanx infer`: runs a checkpoint on your own prompts, from file to file.

prompts (one per line, or JSONL) -> tokens -> decoding -> predictions.jsonl, one line per prompt, in order.
When killed and started again with the same arguments, it resumes with the unanswered prompts.
"""

import contextlib
import hashlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TextIO

from flanx import cluster, coordination, files, hub, storage
from flanx.ctranslate2_predictor import ComputeType, CTranslate2Predictor
from flanx.data import vocabulary as vocabularies
from flanx.data.task import text
from flanx.data.task.row import BadRow, text_of, whole
from flanx.decoding import decode
from flanx.errors import UserError
from flanx.files import write_atomic
from flanx.models import Model
from flanx.partition import Partitioner
from flanx.predictor import Prediction, Predictor

OURS = ("prediction", "predictions", "ended")  # fields of an answer


def infer(
    *,
    model: Model,
    vocabulary: str,
    checkpoint: str,
    prompts: str,
    out_dir: str,
    out_file: str | None = None,
    lengths: Mapping[str, int],
    method: decode.Sample = decode.GREEDY,
    samples: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    partitioner: Partitioner | None = None,
    engine: Literal["flanx", "ctranslate2"] = "flanx",
    compute_type: ComputeType | None = None,
) -> pathlib.Path:
    """Answers every prompt of a file and returns the path of the answers, by default `out_dir`/predictions.jsonl.

    A line of the answer holds `index` (the prompt's place from 0, unless prompts have a field of that name), `inputs`,
    `prediction` (`predictions` where samples > 1), `ended` (False: truncated at the longest output), and the other
    fields of the prompt's own line.

    Args:
      checkpoint: a run, a step folder of a run, or what `flanx convert` wrote or reads.
      prompts: JSONL, JSON, CSV or TSV with a text in "inputs", or any other file with a prompt on each line.
      out_file: where the answers go, instead of `out_dir`/predictions.jsonl; until then they are kept in `out_dir`.
      lengths: {"inputs": I, "targets": T}, tokens of the longest prompt and the longest output.
      method: greedy, or how tokens are sampled.
      engine: what decodes; "ctranslate2" (the extra of that name) only decodes greedily, T5, on one CPU.
      compute_type: of ctranslate2's products, "float32" (None) or "int8".

    Raises:
      UserError: for what the engine does not have, a malformed line, a prompt that is longer than the model takes,
        answers of other arguments in `out_dir`.
    """
    loaded = vocabularies.load(vocabulary)
    predictor = Predictor(model, None, loaded, lengths, batch_size, seed)
    chosen: list[str] = []
    if engine == "ctranslate2":
        chosen = [engine, compute_type or "float32"]
        predictor = CTranslate2Predictor(**vars(predictor), compute_type=compute_type or "float32")
        predictor.expect(method, samples)
    elif compute_type:
        raise UserError(f"COMPUTE_TYPE is '{compute_type}', which ENGINE = 'ctranslate2' alone has: set both")
    rows = read_prompts(pathlib.Path(storage.local(prompts)))
    tokens = [[*loaded.encode(row["inputs"]), loaded.eos_id] for row in rows]
    for number, ids in enumerate(tokens):
        if len(ids) > lengths["inputs"]:
            raise UserError(
                f"{prompts}:{number + 1}: {len(ids)} tokens, the longest prompt has {lengths['inputs']}; shorten it or "
                "raise TASK_FEATURE_LENGTHS"
            )
    with predictor.restored(checkpoint, partitioner or Partitioner()) as predictor:
        parameters = predictor.fingerprint() or str(checkpoint)  # a run's newest checkpoint may differ next time
        settings = [repr(model), parameters, loaded.fingerprint, sorted(lengths.items()), repr(method), samples, seed]
        settings += chosen
        answers = Answers(files.local_folder(out_dir), rows, settings, hub.record(checkpoint), out_file)
        todo = [number for number in range(len(rows)) if number not in answers.done]
        began = time.monotonic()
        with contextlib.closing(answers), answers.discarded_if_refused():
            for index, prediction in predictor.generate([tokens[number] for number in todo], method, samples):
                answers.add(todo[index], prediction)
        coordination.position["stage"] = "answers"
    seconds = max(time.monotonic() - began, 1e-9)
    print(
        f"{len(todo)} prompts in {seconds:.1f} s, {len(todo) / seconds:.1f} a second, {len(answers.done)} done before"
    )
    return answers.finish()


def read_prompts(path: pathlib.Path) -> list[dict[str, Any]]:
    """The prompts in a file, each at least {"inputs": text}: JSONL, a JSON array, CSV or TSV with that column, else one
    prompt per line. Raises UserError naming the malformed line."""
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"no file of prompts '{path}'")
    if text.kind_of(path) is None:
        rows = [{"inputs": line} for _, line in text.lines(path)]
        while rows and not rows[-1]["inputs"].strip():
            rows.pop()
        if not rows:
            raise UserError(f"{path}: no prompt in it")
        for number, row in enumerate(rows, 1):
            if not row["inputs"].strip():
                raise UserError(f"{path}:{number}: an empty prompt; remove the line")
        return rows
    rows = []
    for location, record in text.records(path):
        if isinstance(record, BadRow):
            raise UserError(f"{location}: {record}")
        found = record.get("inputs")
        if isinstance(found, bool) or not isinstance(found, str | int | float):
            raise UserError(f'{location}: the text "inputs" is missing; write {{"inputs": "..."}} on every line')
        try:
            rows.append({**record, "inputs": whole(text_of(found, "inputs"))})
        except BadRow as error:
            raise UserError(f"{location}: {error}") from None
    if not rows:
        raise UserError(f"{path}: no prompt in it")
    return rows


class Answers:
    """The answers to one set of prompts under one set of arguments, kept line by line as they arrive.

    A kept line only has our own fields (`index`: the prompt's position, the answer), so that no field of a prompt is
    mistaken for one of them; `finish` combines both. If prompts have their own "index", that one is written.

    Nothing is written before the first answer, so that rejected input leaves nothing behind.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        rows: Sequence[Mapping[str, Any]],
        settings: Sequence[Any],
        origin: Mapping[str, Any] | None = None,
        out_file: str | None = None,
    ) -> None:
        self._rows, self._folder = rows, folder
        for number, row in enumerate(rows):
            if taken := next((name for name in OURS if name in row), None):
                raise UserError(f'prompt {number}: its field "{taken}" is one that answers have; give it another name')
        self._file: TextIO | None = None
        places = range(len(rows))
        header = {"version": 2, "hash": hashlib.sha256(json.dumps([settings, list(rows)]).encode()).hexdigest()[:16]}
        self._part = folder / "predictions.part"
        self._final = files.local_folder(out_file) if out_file else folder / "predictions.jsonl"
        kept = files.read_jsonl(self._part)
        if kept and {key: kept[0].get(key) for key in header} != header:
            raise UserError(
                f"{folder} holds answers to other prompts, of another checkpoint or of other arguments; choose another "
                "folder (--output, INFER_OUTPUT_DIR)"
            )
        for number, row in enumerate(kept[1:], 2):
            if set(row) - {"index", "ended"} not in ({"prediction"}, {"predictions"}) or row.get("index") not in places:
                raise UserError(f"{self._part}:{number}: not an answer to one of the prompts; move the file away")
        self.answers = {row["index"]: row for row in kept[1:]}
        self.done = frozenset(self.answers)
        if not kept and self._final.exists():
            raise UserError(f"{self._final} is not of this command; move it away or choose another place (--output)")
        if len(self.done) == len(rows):
            self._expect_unchanged()
        self._header = None if kept else header | ({"checkpoint": dict(origin)} if origin else {})

    def add(self, number: int, prediction: Prediction) -> None:
        """Keeps the answer to prompt `number`."""
        texts, ended = prediction.texts, prediction.ended
        if prediction.non_finite:
            raise UserError(f"prompt {number}: the logits hold a NaN or an infinity; the checkpoint is damaged")
        answer = {"predictions": texts, "ended": ended}
        if len(texts) == 1:
            answer = {"prediction": texts[0], "ended": ended[0]}
        self.answers[number] = {"index": number, **answer}
        if self._file is None and cluster.is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._header:
                write_atomic(self._part, files.json_line(self._header))
            else:
                files.truncate_jsonl(self._part)
            self._file = open(self._part, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  closed by `close`
        if self._file is not None:
            self._file.write(files.json_line(self.answers[number]))

    @contextlib.contextmanager
    def discarded_if_refused(self) -> Iterator[None]:
        """Removes what this call began to keep if its input, such as a damaged checkpoint, is rejected."""
        try:
            yield
        except UserError:
            if self._file is not None and self._header:
                self.close()
                self._part.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def finish(self) -> pathlib.Path:
        """Writes all answers in prompt order."""
        if cluster.is_first():
            self._expect_unchanged()
            write_atomic(self._final, self._content())
        print(files.shown(self._final))
        return self._final

    def _expect_unchanged(self) -> None:
        """Raises UserError if the output file exists with other content."""
        if not self._final.exists():
            return
        with files.open_regular(self._final) as file:
            if file.read() != self._content():
                raise UserError(
                    f"{self._final} has been changed since it was written: move it away, and the same command writes "
                    "it again"
                )

    def _content(self) -> bytes:
        own = any("index" in row for row in self._rows)
        lines = []
        for number, row in enumerate(self._rows):
            answer = {key: value for key, value in self.answers[number].items() if key != "index"}
            lines.append(files.json_line({**({} if own else {"index": number}), **row, **answer}))
        return "".join(lines).encode()
