"""What a run tells: metrics.jsonl survives a kill and a resume, TensorBoard reads its events."""

import json

from flanx.train_metrics import MetricsLog, Progress, last_metrics, read_metrics


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


def test_the_progress_line_has_loss_speed_padding_and_time_left(capsys):
    progress = Progress(10, "run")
    values = {"loss": 1.5, "tokens_per_second": 12345.0, "padding": 0.03}
    progress.show(2, values)
    progress.show(4, values)
    first, second = capsys.readouterr().out.splitlines()
    assert "step 2/10" in first and "left" not in first
    for part in ("run", "step 4/10", "loss 1.5000", "12,345 tokens/s", "padding 3.0%", "0:00 left"):
        assert part in second
