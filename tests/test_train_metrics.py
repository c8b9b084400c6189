"""The metrics of a run: metrics.jsonl survives a kill and a resume, TensorBoard reads its events."""

import json

import numpy as np
import pytest

from flanx import train_metrics
from flanx.errors import UserError
from flanx.train_metrics import MetricsLog, last_metrics, read_metrics


def test_a_resumed_run_drops_what_lies_beyond_its_step(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0 / step})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]

    assert last_metrics(tmp_path) == {"step": 3, "loss": 1.0 / 3}
    assert last_metrics(tmp_path / "none") is None

    log = MetricsLog(tmp_path, resume_step=2)
    log.write(3, {"loss": 0.5})
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.5},
    ]


def test_tensorboard_reads_the_events(tmp_path):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    log = MetricsLog(tmp_path)
    log.write(7, {"loss": 0.25, "accuracy": 0.5})
    log.close()
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    reader, events = PyRecordReader_New(str(path)), []
    while len(events) < 2:
        reader.GetNext()
        events.append(Event.FromString(reader.record()))
    assert events[0].file_version == "brain.Event:2"
    found = {v.tag: (e.step, v.simple_value) for e in events for v in e.summary.value}
    assert found == {"loss": (7, 0.25), "accuracy": (7, 0.5)}


def test_a_float_is_written_to_its_last_bit(tmp_path):
    value = 0.1 + 0.2
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": value})
    log.close()
    assert read_metrics(tmp_path)[0]["loss"] == value


def test_a_record_has_means_per_token_and_speeds_of_the_steps_since_the_last(tmp_path, monkeypatch, capsys):
    """Tokens per second count the filled positions of inputs and targets, not the padding, nor the loss's tokens."""
    clock = iter([100.0, 104.0, 105.0])
    monkeypatch.setattr(train_metrics.time, "monotonic", lambda: next(clock))
    folder = tmp_path / "run [b]"  # a name that rich would read as markup
    watch = train_metrics.Watch(folder, None, 0, 3, 2, lambda: None)
    metrics = {"loss": 40.0, "cross_ent_loss": 30.0, "z_loss": 10.0, "correct": 5.0, "tokens": 20.0, "grad_norm": 3.0}
    metrics |= {"filled": 50.0, "positions": 80.0}
    for step in (1, 2, 3):
        watch.record(step, {name: np.float32(step * value) for name, value in metrics.items()}, None, None)
    watch.flush(None)
    watch.close()
    first, second = read_metrics(folder)
    assert first == {
        "step": 2, "loss": 2.0, "cross_ent_loss": 1.5, "z_loss": 0.5, "accuracy": 0.25, "grad_norm": 4.5,
        "padding": 0.375, "tokens_per_second": 150.0 / 4.0, "steps_per_second": 0.5,
    }  # fmt: skip
    assert (second["tokens_per_second"], second["steps_per_second"], second["grad_norm"]) == (150.0, 1.0, 9.0)
    assert capsys.readouterr().out.splitlines() == [
        "run [b]  step 2/3  loss 2.0000  38 tokens/s  padding 37.5%  0:00:02 left",
        "run [b]  step 3/3  loss 2.0000  150 tokens/s  padding 37.5%  0:00:00 left",
    ]


def test_a_loss_that_is_not_finite_names_its_step_and_the_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(train_metrics, "first_nonfinite", lambda model, params, batch: "decoder/layers_0/mlp")
    watch = train_metrics.Watch(tmp_path, None, 0, 10, 5, lambda: 4)
    for bad in ({"loss": np.nan, "grad_norm": 1.0}, {"loss": 1.0, "grad_norm": np.inf}):
        watch.record(6, bad, None, None)
        with pytest.raises(UserError, match=r"step 6 .*decoder/layers_0/mlp; last good checkpoint: step 4"):
            watch.flush(None)
    watch.close()
