"""The metrics of a run: metrics.jsonl survives a kill and a resume, TensorBoard reads its events."""

import json
import math

import jax
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
    log.write(7, {"loss": 0.25, "accuracy": 0.5, "sources": {"cot": {"loss": 0.125, "tokens": 3, "examples": 1}},
                  "performance": {"mfu": 0.75}})  # fmt: skip
    log.close()
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    reader, events = PyRecordReader_New(str(path)), []
    while len(events) < 2:
        reader.GetNext()
        events.append(Event.FromString(reader.record()))
    assert events[0].file_version == "brain.Event:2"
    found = {v.tag: (e.step, v.simple_value) for e in events for v in e.summary.value}
    assert found == {"loss": (7, 0.25), "accuracy": (7, 0.5), "train/cot/loss": (7, 0.125),
                     "performance/mfu": (7, 0.75)}  # fmt: skip


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
    watch = train_metrics.Watch(folder, None, 0, 3, 2, lambda: None, chips=2)
    metrics = {"loss": 40.0, "cross_ent_loss": 30.0, "z_loss": 10.0, "correct": 5.0, "tokens": 20.0, "grad_norm": 3.0}
    metrics |= {"filled": 50.0, "positions": 80.0}
    for step in (1, 2, 3):
        watch.record(step, {name: np.float32(step * value) for name, value in metrics.items()}, None, None)
    watch.flush(None)
    watch.close()
    first, second = read_metrics(folder)
    figures = first.pop("performance")
    assert figures["tokens_per_second_per_chip"] == 75.0 / 4.0 and figures["host_memory_peak"] > 1e7
    assert not {"mfu", "device_memory_peak"} & figures.keys()  # of a CPU neither is known
    assert first == {
        "step": 2, "loss": 2.0, "cross_ent_loss": 1.5, "z_loss": 0.5, "accuracy": 0.25, "grad_norm": 4.5,
        "padding": 0.375, "tokens_per_second": 150.0 / 4.0, "steps_per_second": 0.5,
    }  # fmt: skip
    assert (second["tokens_per_second"], second["steps_per_second"], second["grad_norm"]) == (150.0, 1.0, 9.0)
    assert capsys.readouterr().out.splitlines() == [
        "run [b]  step 2/3  loss 2.0000  38 tokens/s  padding 37.5%  0:00:02 left",
        "run [b]  step 3/3  loss 2.0000  150 tokens/s  padding 37.5%  0:00:00 left",
    ]


METRICS = dict.fromkeys(
    ("loss", "cross_ent_loss", "z_loss", "correct", "tokens", "grad_norm", "filled", "positions"), np.float32(1)
)


class Clock:
    """Takes the place of the module `time`: it stands still but for `sleep`."""

    def __init__(self) -> None:
        self.now = 5000.0
        self.monotonic = self.time = lambda: self.now
        self.time_ns = lambda: int(self.now * 1e9)
        self.process_time = lambda: 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_time_of_a_record_is_split_and_speeds_are_of_the_steps_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(train_metrics, "time", clock := Clock())
    watch = train_metrics.Watch(tmp_path, None, 0, 4, 2, lambda: None, full_speed=2.0, began=4990.0)
    for step in (1, 2, 3, 4):
        with watch.during("input"):
            clock.sleep(0.25)
        clock.sleep(1.0)
        watch.record(step, METRICS, None, None)
        if step == 1:
            jax.monitoring.record_event_duration_secs(train_metrics.COMPILED, 0.5)
            with watch.during("evaluation"):
                clock.sleep(2.0)
                jax.monitoring.record_event_duration_secs(train_metrics.COMPILED, 0.75)
                jax.monitoring.record_event(train_metrics.CACHE_HIT)
        if step == 2:
            watch.flush(None)
            with watch.during("checkpoint"):
                clock.sleep(4.0)
    watch.flush(None)
    watch.close()
    jax.monitoring.record_event(train_metrics.CACHE_HIT)
    assert len(watch._events) == 0  # it listens no more
    first, second = read_metrics(tmp_path)
    for record, wanted in ((first, (0.5, 1.5, 0.0, 1.25, 1.25)), (second, (0.5, 2.0, 4.0, 0.0, 0.0))):
        assert tuple(record["performance"][f"{stage}_seconds"] for stage in train_metrics.STAGES) == wanted
    assert first["steps_per_second"] == 2 / 2.5 and first["performance"]["mfu"] == 0.4
    assert (first["performance"]["programs"], first["performance"]["cache_hits"]) == (2, 1)
    assert first["performance"]["goodput"] == 1.5 / 14.5 and second["performance"]["goodput"] == 3.5 / 21.0


def test_goodput_counts_what_a_kill_lost_and_no_pause_after_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(train_metrics, "time", clock := Clock())

    def train(first: int, last: int, until: int) -> float:
        watch = train_metrics.Watch(tmp_path, None, first, last, 1, lambda: None)
        for step in range(first + 1, until + 1):
            clock.sleep(1.0)
            watch.record(step, METRICS, None, None)
            watch.flush(None)
        watch.close()
        return read_metrics(tmp_path)[-1]["performance"]["goodput"]

    assert train(0, 4, until=3) == 1.0
    clock.sleep(5.0)  # killed, the newest checkpoint is of step 2
    assert train(2, 4, until=4) == 4 / 10
    clock.sleep(1000.0)
    assert train(4, 6, until=6) == 6 / 12
    sessions = [json.loads(line) for line in (tmp_path / "sessions.jsonl").read_text().splitlines()]
    assert [(each["step"], "ended" in each) for each in sessions] == [
        (0, False), (2, False), (4, True), (4, False), (6, True)
    ]  # fmt: skip


def goodput(folder, clock: Clock, first: int, last: int) -> float | None:
    """The newest of a start that makes these steps, a second each, of a run of 100."""
    watch = train_metrics.Watch(folder, None, first, 100, 1, lambda: None)
    for step in range(first + 1, last + 1):
        clock.sleep(1.0)
        watch.record(step, METRICS, None, None)
        watch.flush(None)
    watch.close()
    return read_metrics(folder)[-1]["performance"].get("goodput")


def test_goodput_is_of_the_time_that_is_known(tmp_path, monkeypatch):
    """Without the starts of before, as of an older version or deleted by a person, their steps do not count."""
    monkeypatch.setattr(train_metrics, "time", clock := Clock())
    assert goodput(tmp_path, clock, 0, 5) == 1.0
    (tmp_path / "sessions.jsonl").unlink()
    clock.sleep(7.0)
    assert goodput(tmp_path, clock, 5, 6) == 1.0
    clock.sleep(1.0)
    assert goodput(tmp_path, clock, 6, 8) == 3 / 4
    records = [record | {"performance": {}} for record in read_metrics(tmp_path)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert goodput(tmp_path, clock, 8, 9) == 1 / 5


def test_a_clock_that_was_set_back_gives_no_goodput(tmp_path, monkeypatch):
    monkeypatch.setattr(train_metrics, "time", clock := Clock())
    assert goodput(tmp_path, clock, 0, 50) == 1.0
    clock.now -= 1000.0
    assert goodput(tmp_path, clock, 50, 52) is None
    lines = (tmp_path / "sessions.jsonl").read_text().splitlines()
    (tmp_path / "sessions.jsonl").write_text(f'{lines[0]}\n{{"step": 50, "ended": 9e9}}\n')  # after the next start
    clock.now = 5060.0
    assert goodput(tmp_path, clock, 50, 51) == 51 / 61


def test_a_line_of_a_start_that_was_cut_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(train_metrics, "time", clock := Clock())
    goodput(tmp_path, clock, 0, 2)
    with open(tmp_path / "sessions.jsonl", "a") as file:
        file.write('{"step": 2, "sta')
    goodput(tmp_path, clock, 2, 3)
    sessions = [json.loads(line) for line in (tmp_path / "sessions.jsonl").read_text().splitlines()]
    assert [each["step"] for each in sessions] == [0, 2]


def test_what_jax_compiles_is_counted(tmp_path):
    watch = train_metrics.Watch(tmp_path, None, 0, 1, 1, lambda: None)
    jax.block_until_ready(jax.jit(lambda x: x * 3 - 1)(np.arange(5.0)))
    watch.record(1, METRICS, None, None)
    watch.flush(None)
    watch.close()
    (record,) = read_metrics(tmp_path)
    assert record["performance"]["programs"] == 1 and record["performance"]["compile_seconds"] > 0


def steps(
    folder, first: int, last: int, task_period: int = 4, stop: bool = False, ends: bool = False
) -> train_metrics.Watch:
    """A watch that resumed at `first` and read the steps to `last` of 10, where the run `ends`; their sums are drawn by
    step."""
    tasks = {"cot_a": "cot", "niv2_b": "niv2", "cot_c": "cot"}
    watch = train_metrics.Watch(folder, None, first, 10, 3, lambda: None, tasks, task_period)  # type: ignore[arg-type]
    for step in range(first + 1, last + 1):
        draws = np.random.default_rng(step)
        by_task = np.stack([draws.exponential(30, 3), *draws.integers(1, 9, (2, 3))]).astype(np.float32)
        by_task[:, 1] *= step > 5
        metrics = {"loss": by_task[0].sum(), "tokens": by_task[1].sum(), "tasks": by_task, "grad_norm": 1.0}
        metrics |= {"cross_ent_loss": 0.0, "z_loss": 0.0, "correct": 0.0, "filled": 50.0, "positions": 80.0}
        watch.record(step, metrics, None, None)
        if step % 5 == 0 or (stop and step == last):
            watch.flush(None, saves=True)
    watch.flush(None)
    if ends:
        watch.end(last)
    watch.close()
    return watch


def lines(folder, name: str) -> list[dict]:
    """A run's records without what a clock made."""
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    of_clocks = ("tokens_per_second", "steps_per_second", "performance")
    return [{key: each[key] for key in each if key not in of_clocks} for each in found]


def test_sums_by_source_add_up_to_the_total_and_to_every_step(tmp_path):
    steps(tmp_path, 0, 10)
    tables, records = lines(tmp_path, "tasks.jsonl"), lines(tmp_path, "metrics.jsonl")
    drawn = [np.random.default_rng(step) for step in range(1, 11)]
    drawn = [np.stack([each.exponential(30, 3), *each.integers(1, 9, (2, 3))]).astype(np.float32) for each in drawn]
    for step, each in enumerate(drawn, start=1):
        each[:, 1] *= step > 5
    every = np.array(drawn, np.float64)  # [steps, 3, tasks]
    assert [table["step"] for table in tables] == [4, 8, 10]
    assert [record["step"] for record in records] == [3, 6, 9, 10]
    assert set(tables[0]["tasks"]) == {"cot_a", "cot_c"}  # a task that was not drawn has no entry
    for table, (first, last) in zip(tables, [(0, 4), (4, 8), (8, 10)], strict=True):
        for key, kind in (("loss_sum", 0), ("tokens", 1), ("examples", 2)):
            assert table["total"][key] == math.fsum(task[key] for task in table["tasks"].values())
            assert table["tasks"]["cot_c"][key] == math.fsum(every[first:last, kind, 2])
    for key, kind in (("loss_sum", 0), ("tokens", 1), ("examples", 2)):
        of_tasks = [task[key] for table in tables for task in table["tasks"].values()]
        assert math.fsum(of_tasks) == math.fsum(t["total"][key] for t in tables) == math.fsum(every[:, kind].ravel())
    first = records[0]["sources"]["cot"]
    assert first["tokens"] == every[:3, 1][:, [0, 2]].sum() and first["examples"] == every[:3, 2][:, [0, 2]].sum()
    assert first["loss"] == math.fsum(every[:3, 0][:, [0, 2]].ravel()) / first["tokens"]
    assert records[0]["sources"]["niv2"] == {"loss": 0.0, "tokens": 0, "examples": 0}
    assert records[0]["cross_ent_loss"] == math.fsum(every[:3, 0].ravel()) / every[:3, 1].sum()


@pytest.mark.parametrize("stop", [False, True])
def test_a_run_that_was_killed_or_stopped_between_two_records_leaves_those_of_an_undisturbed_one(tmp_path, stop):
    steps(tmp_path / "one", 0, 10)
    steps(tmp_path / "two", 0, 7, stop=stop)
    steps(tmp_path / "two", 7 if stop else 5, 10)  # the state is saved every five steps
    for name in ("metrics.jsonl", "tasks.jsonl"):
        assert lines(tmp_path / "one", name) == lines(tmp_path / "two", name)
        assert len(lines(tmp_path / "one", name)) >= 3
    assert not list(tmp_path.glob("*/unlogged.jsonl"))


def test_a_run_that_ends_before_its_last_step_leaves_all_its_records(tmp_path):
    steps(tmp_path, 0, 7, ends=True)
    assert [each["step"] for each in lines(tmp_path, "metrics.jsonl")] == [3, 6, 7]
    assert [each["step"] for each in lines(tmp_path, "tasks.jsonl")] == [4, 7]
    assert [(each["step"], "ended" in each) for each in lines(tmp_path, "sessions.jsonl")] == [(0, False), (7, True)]
    assert not (tmp_path / "unlogged.jsonl").exists()
    steps(tmp_path, 7, 7, ends=True)  # killed before done.json was written: it has nothing more to say
    assert [each["step"] for each in lines(tmp_path, "metrics.jsonl")] == [3, 6, 7]
    steps(tmp_path, 7, 10, ends=True)  # at its last step it has ended already
    assert [each["step"] for each in lines(tmp_path, "sessions.jsonl")] == [0, 7, 7, 7, 7, 10]


def test_a_fork_over_other_tasks_does_not_take_the_sums_of_the_old_ones(tmp_path):
    steps(tmp_path, 0, 5)
    path = tmp_path / "unlogged.jsonl"
    path.write_text(path.read_text().replace("cot_a", "cot_z"))
    steps(tmp_path, 5, 10)
    assert lines(tmp_path, "tasks.jsonl")[1]["tasks"]["cot_c"]["examples"] == sum(
        int(np.stack([d.exponential(30, 3), *d.integers(1, 9, (2, 3))])[2, 2])
        for d in map(np.random.default_rng, (6, 7, 8))
    )


def test_the_newest_record_is_found_however_long_it_is(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": 1.0})
    log.write(2, {"loss": 0.5, "sources": {f"source {i}": {"loss": 1 / 3} for i in range(train_metrics.TAIL // 20)}})
    log.close()
    assert (tmp_path / "metrics.jsonl").stat().st_size > 2 * train_metrics.TAIL
    newest = last_metrics(tmp_path)
    assert newest is not None and newest["step"] == 2


def test_a_loss_that_is_not_finite_names_its_step_and_the_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(train_metrics, "first_nonfinite", lambda model, params, batch: "decoder/layers_0/mlp")
    watch = train_metrics.Watch(tmp_path, None, 0, 10, 5, lambda: 4)
    for bad in ({"loss": np.nan, "grad_norm": 1.0}, {"loss": 1.0, "grad_norm": np.inf}):
        watch.record(6, bad, None, None)
        with pytest.raises(UserError, match=r"step 6 .*decoder/layers_0/mlp; last good checkpoint: step 4"):
            watch.flush(None)
    watch.close()


def test_a_damaged_line_hides_none_before_it_from_who_follows_a_run(tmp_path):
    lines = ['{"step": 3, "loss": 0.5}', '{"step": 4, "lo', "5", "[" * 5000, '{"step": 4']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert last_metrics(tmp_path) == {"step": 3, "loss": 0.5}
