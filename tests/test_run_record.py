"""What the lines of a run's files may hold: damage is named with its line, by whoever reads it."""

import json
import pathlib

import pytest

from flanx import evaluate, run_record, tracker
from flanx.cli.main import main
from flanx.convert import architecture
from flanx.data import vocabulary
from flanx.errors import UserError
from flanx.train_metrics import MetricsLog
from tests import run_maker

DAMAGED = [
    ("metrics", "5", "not a JSON object"),
    ("metrics", '{"loss": 1.0}', "no 'step'"),
    ("metrics", '{"step": 3, "performance": 7}', "'performance' is 7"),
    ("metrics", '{"step": 3, "performance": {"step_seconds": "x"}}', "'performance' is"),
    ("metrics", '{"step": 3, "validation": {"macro_loss": 1.0}}', "no 'validation.loss'"),
    ("metrics", '{"step": 3, "validation": {"loss": 1.0, "collections": {"cot": {}}}}', "'validation.collections.cot"),
    ("metrics", '{"step": 3, "loss": 1.0, "hosts": {"input": {"process": 1}}}', "no 'hosts.input.host'"),
    ("metrics", '{"step": 3, "loss": 1.0, "sources": {"cot": {"tokens": 3}}}', "no 'sources.cot.loss'"),
    ("tasks", '{"step": 3, "tasks": {"a": {"loss_sum": 1.0}}}', "no 'tasks.a.tokens'"),
    ("sessions", '{"step": 3, "started": "noon"}', "'started' is 'noon'"),
    ("sessions", '{"started": 1.0}', "no 'step'"),
    ("unlogged", '{"step": 3, "sums": [1]}', r"'sums' is \[1\]"),
]


@pytest.mark.parametrize(("kind", "line", "said"), DAMAGED)
def test_a_damaged_line_is_named(tmp_path: pathlib.Path, kind: str, line: str, said: str) -> None:
    path = tmp_path / f"{kind}.jsonl"
    with pytest.raises(UserError, match=rf"{kind}\.jsonl:4.*{said}.*(move|remove)"):
        run_record.parse(path, 4, line)


def test_what_a_run_writes_is_taken(tmp_path: pathlib.Path) -> None:
    run_maker.leave(tmp_path / "a")
    for name in ("metrics", "tasks"):
        path = tmp_path / "a" / f"{name}.jsonl"
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert run_record.parse(path, number, line) == json.loads(line)


class Quiet:
    """A tracker that takes everything."""

    def __init__(self, run: tracker.Tracked) -> None:
        self.id = "q"

    def write(self, *_: object) -> None:
        pass

    close = write


def test_every_reader_names_it(tmp_path: pathlib.Path, capsys, monkeypatch) -> None:
    run_maker.leave(tmp_path / "a", steps=100)
    with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
        file.write('{"step": 150, "loss": 1.0, "hosts": {"input": {}}}\n')
    said = r"metrics\.jsonl:3: no 'hosts.input.process'"
    with pytest.raises(UserError, match=said):
        MetricsLog(tmp_path / "a", 100)
    monkeypatch.setattr(tracker, "TRACKERS", {"quiet": Quiet})
    with pytest.raises(UserError, match=said):
        tracker.send(tmp_path / "a", "quiet")
    assert main(["watch", "--once", str(tmp_path / "a")]) == 2
    assert "metrics.jsonl:3: no 'hosts.input.process'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ('{"data": 5}', "'data' is 5"),
        ('{"data": {"store": "x"}}', "'data.store' is 'x'"),
        ('{"data": {"lengths": {"inputs": "long"}}}', "'data.lengths' is"),
        ('{"settings": []}', r"'settings' is \[\]"),
        ('{"initial_checkpoint_path": 5}', "'initial_checkpoint_path' is 5"),
        ("[]", "not a JSON object"),
    ],
)
def test_a_damaged_record_of_a_run_is_named_by_whoever_reads_it(tmp_path: pathlib.Path, record: str, said: str) -> None:
    (tmp_path / "run.json").write_text(record)
    readers = (
        lambda: run_record.read_run(tmp_path / "run.json"),
        lambda: vocabulary.named_in(tmp_path),
        lambda: architecture.lengths(str(tmp_path)),
        lambda: evaluate.training(str(tmp_path), tmp_path / "evals"),
    )
    for read in readers:
        with pytest.raises(UserError, match=rf"run\.json.*{said}"):
            read()
    assert run_record.read_run(tmp_path / "none.json") == {}
