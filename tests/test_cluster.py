"""Several processes as one run, for real: on loopback, with gloo."""

import argparse
import json
import pathlib
import signal
import socket
import sys
import threading
import time

import jax
import numpy as np
import pytest

import flanx
from flanx import cluster, coordination, optim, partition, train, train_step
from flanx.data import store
from flanx.data.pipeline import mixture
from flanx.data.pipeline.batches import Batches
from flanx.errors import UserError
from flanx.models import t5
from flanx.train_metrics import read_metrics
from tests import run_case


def flags(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"coordinator_address": None, "num_processes": None, "process_id": None} | given)


def test_number_from_flags_and_environment() -> None:
    given = flags(coordinator_address="a:1", num_processes=4, process_id=2)
    assert cluster.locate(given, {}) == coordination.ProcessId("a:1", 4, 2)
    named = {"JAX_COORDINATOR_ADDRESS": "b:2", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "1"}
    assert cluster.locate(flags(), named) == coordination.ProcessId("b:2", 3, 1)
    indexed = {"JAX_COORDINATOR_ADDRESS": "b:2", "JAX_NUM_PROCESSES": "3", "JOB_COMPLETION_INDEX": "2"}
    assert cluster.locate(flags(), indexed) == coordination.ProcessId("b:2", 3, 2)
    assert cluster.locate(flags(), {}) is None
    assert cluster.locate(flags(coordinator_address="a:1", num_processes=1, process_id=0), {}) is None


def test_a_number_that_cannot_be() -> None:
    with pytest.raises(UserError, match="need --coordinator_address"):
        cluster.locate(flags(num_processes=2), {})
    with pytest.raises(UserError, match="number is not known"):
        cluster.locate(flags(coordinator_address="a:1"), {})
    with pytest.raises(UserError, match="process 4 of 4 at 'a:1': numbers run from 0"):
        cluster.locate(flags(coordinator_address="a:1", num_processes=4, process_id=4), {})


def call_roll(count: int, present: int, timeout: float = 20.0) -> list[str | None]:
    """What each of the processes that are present (threads here) hears of the roll call; None where all are there."""
    address = f"127.0.0.1:{run_case.free_port()}"
    heard: list[str | None] = [None] * present

    def one(i: int) -> None:
        try:
            coordination.Connection(coordination.ProcessId(address, count, i), timeout).leave()
        except UserError as error:
            heard[i] = str(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(present)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


def test_roll_call_of_all_processes() -> None:
    assert call_roll(3, 3) == [None] * 3


def test_roll_call_names_who_is_missing() -> None:
    heard = call_roll(4, 2, timeout=1.0)
    assert all("process 2, 3 (of 4) did not start within 1 s" in str(text) for text in heard)
    assert all(f"(there: process 0 ({socket.gethostname()}), 1 (" in str(text) for text in heard)


def test_process_0_listens_at_its_address_alone() -> None:
    """Not on every interface: another loopback address reaches nothing, and a foreign one is refused in one line."""
    own = coordination.ProcessId(f"127.0.0.1:{run_case.free_port()}", 1, 0)
    connection = coordination.Connection(own, 5.0)
    socket.create_connection(("127.0.0.1", own.port), timeout=5).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", own.port), timeout=5)
    connection.leave()
    with pytest.raises(UserError, match=r"process 0 cannot listen at 192\.0\.2\.1:"):
        coordination.Connection(coordination.ProcessId("192.0.2.1:9000", 2, 0), 0.3)


def agree_with(monkeypatch: pytest.MonkeyPatch, every: list[dict]) -> str | None:
    """What `cluster.agree` says where the processes of a run bring these facts."""
    from jax.experimental import multihost_utils

    texts = [
        json.dumps({name: str(v) for name, v in facts.items()} | {"host": f"h{i}"}) for i, facts in enumerate(every)
    ]
    longest = max(map(len, texts))
    rows = np.array([np.frombuffer(text.encode().ljust(longest), np.uint8) for text in texts])
    answers = iter([np.array([len(text) for text in texts]), rows])
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda array: next(answers))
    monkeypatch.setattr(cluster, "_connection", object())
    try:
        cluster.agree("the run", every[0])
    except UserError as error:
        return str(error)
    return None


def test_agreement_names_what_differs_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"code": "a", "jax": "1"}
    assert agree_with(monkeypatch, [same] * 3) is None
    found = agree_with(monkeypatch, [same, same, {"code": "a", "jax": "2, and longer than the others"}])
    assert (
        found is not None and "'jax' differs between hosts: process 0, 1 (h1) has 1, process 2 (h2) has 2, and" in found
    )


def test_agreement_groups_all_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    found = agree_with(monkeypatch, [{"jax": version} for version in "1221"])
    assert found is not None and "process 0, 3 (h3) has 1, process 1 (h1), 2 (h2) has 2; give" in found
    found = agree_with(monkeypatch, [{"jax": "1"}] + [{"jax": "2"}] * 20)
    assert found is not None and "8 (h8), 12 more has 2" in found


# ---- where all are, when none goes on; who is slow -------------------------------------------------------------------


def server_of(places: list[dict]) -> coordination._Server:
    """Process 0's side, which was told these places."""
    server = coordination._Server.__new__(coordination._Server)
    server._lock, server._count, server._compared = threading.Lock(), len(places), None
    server._hosts, server._places = {i: f"h{i}" for i in range(len(places))}, {}
    server._patience, server._still = 600.0, 30.0
    for process, place in enumerate(places):
        server._place(process, place)
    return server


def test_the_processes_behind_are_named_first_when_none_goes_on() -> None:
    places = [{"step": 8, "stage": "step"}, {"step": 8, "stage": "step"}, {"step": 7, "stage": "input"}]
    message = server_of(places)._hang()
    assert message["hung"] == (
        "no process has gone on for 600 s. process 2 (h2): input of step 7; process 0 (h0), 1 (h1): step of step 8"
    )
    assert message["ends"] is True
    assert server_of([*places, {"step": 8, "stage": "evaluation"}])._hang()["ends"] is False  # it may take its time


def test_predictions_are_named_by_their_batches_and_end_too() -> None:
    places = [{"stage": "prediction", "batch": 5}, {"stage": "prediction", "batch": 4}]
    message = server_of(places)._hang()
    assert message["hung"].endswith(" s. process 1 (h1): prediction, batch 4; process 0 (h0): prediction, batch 5")
    assert message["ends"] is True
    message = server_of(
        [place | {"step": 8} for place in places] + [{"step": 8, "stage": "scores", "batch": 5}]
    )._hang()
    assert "process 1 (h1): prediction of step 8, batch 4" in message["hung"] and message["ends"] is False
    assert "process 2 (h2): scores of step 8;" in message["hung"]


def test_a_process_that_goes_on_begins_the_wait_anew() -> None:
    server = server_of([{"step": 8, "stage": "step"}] * 2)
    server._still = 599.0
    server._place(1, {"step": 8, "stage": "step"})
    assert server._still == 599.0
    server._place(1, {"step": 9, "stage": "input"})
    assert server._still == 0.0


def test_a_run_that_hangs_tells_every_process_and_ends(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    ended: list[tuple[int, int]] = []
    monkeypatch.setattr(coordination, "BEAT", 0.05)
    monkeypatch.setattr(coordination.Connection, "_end", lambda self, reason, status=coordination.LOST: (
        self._leaving or ended.append((self.own.process, status))
    ))  # fmt: skip
    monkeypatch.setattr(coordination, "position", {"step": 3, "stage": "step"})
    address, both, values = f"127.0.0.1:{run_case.free_port()}", {}, Values()

    def connect(i: int) -> None:
        both[i] = coordination.Connection(coordination.ProcessId(address, 2, i), 10.0, patience=0.4)

    threads = [threading.Thread(target=connect, args=(i,)) for i in range(2)]
    [t.start() for t in threads], [t.join() for t in threads]
    for i in range(2):
        both[i].admit(values, 10.0)
    limit = time.monotonic() + 10
    while {process for process, _ in ended} != {0, 1} and time.monotonic() < limit:
        time.sleep(0.01)
    [each.leave() for each in both.values()]
    assert {status for _, status in ended} == {coordination.HUNG}
    said = capsys.readouterr().err
    assert (
        "flanx: process 1: no process has gone on for 0 s. process 0 (" in said and "): step of step 3; here:" in said
    )
    assert "test_a_run_that_hangs_tells_every_process" in said  # where its main thread is


def test_the_slow_host_is_named_by_what_each_does_alone(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(coordination, "slowest", {})
    usual = {"step": 200, "stage": "step", "compared": 200, "seconds": 1.0, "input": 0.01, "product": 0.002}
    server_of([usual] * 4)
    assert capsys.readouterr().out == ""
    server = server_of([usual, usual, usual | {"product": 0.004}, usual | {"input": 0.3}])
    input_is, product_is = capsys.readouterr().out.splitlines()
    slow = "is slow: it waits for its input 0.3 s, the median of 4 processes is 0.01 s; all wait for it"
    assert input_is == f"note: process 3 (h3) {slow}"
    assert product_is.startswith(
        "note: process 2 (h2) is slow: it takes for a matrix product 0.004 s, the median of 4 "
    )
    assert coordination.slowest["product"] == {"process": 2, "host": "h2", "seconds": 0.004, "median": 0.002}
    server._place(0, usual | {"step": 201})
    assert capsys.readouterr().out == ""  # once for each comparison
    server_of([usual, usual | {"input": 0.05}])
    assert capsys.readouterr().out == ""  # five times the other's, and nothing beside the step


def held(arguments: list[str], body: str) -> list[str]:
    """The same command, which runs `body` before it takes the batch of each step; `count` is how many it has taken."""
    code = f"""
import time
from flanx.cli import main
from flanx.data.pipeline import prefetch
take, count = prefetch.Loader.__next__, 0
def take_later(self):
    global count
    count += 1
    {body}
    return take(self)
prefetch.Loader.__next__ = take_later
main.entry()
"""
    return [sys.executable, "-c", code, *arguments[3:]]


@pytest.mark.slow
def test_a_host_whose_input_hangs_is_named_and_the_run_ends(tmp_path: pathlib.Path) -> None:
    plain = [*run_case.command(tmp_path), "--hang_timeout=40"]  # longer than the first step compiles on a busy machine
    ended = run_case.finish(run_case.launch_many([plain, held(plain, "count == 5 and time.sleep(300)")]), timeout=200)
    for status, said in ended:
        assert status == coordination.HUNG, said
        assert "no process has gone on for 40 s. process 1 (" in said and "): input of step 4; process 0 (" in said
    assert "take_later" in ended[1][1]


@pytest.mark.slow
def test_a_host_that_hangs_in_an_evaluation_is_named_and_the_command_ends(tmp_path: pathlib.Path) -> None:
    run_case.run(run_case.command(tmp_path / "run", TRAIN_STEPS=2))
    words = ["evaluate", f"--checkpoint={tmp_path}/run", "--vocabulary=byte", "--suites=suite_composition[:20]"]
    words += [f"--output={tmp_path}/scores", "--gin.EVAL_BATCH_SIZE=8", "--hang_timeout=40"]
    code = """
import time
from flanx.cli import main
from flanx.predictor import Predictor
put, count = Predictor.device_put, 0
def put_later(self, array):
    global count
    count += 1
    count == 9 and time.sleep(300)
    return put(self, array)
Predictor.device_put = put_later
main.entry()
"""
    each = [[sys.executable, "-m", "flanx", *words], [sys.executable, "-c", code, *words]]
    for status, said in run_case.finish(run_case.launch_many(each), timeout=200):
        assert status == coordination.HUNG, said
        assert "no process has gone on for 40 s. process 1 (" in said and "): prediction, batch 8; process 0 (" in said


@pytest.mark.slow
def test_a_host_whose_input_is_slow_is_named(tmp_path: pathlib.Path) -> None:
    bound = {"TRAIN_STEPS": 60, "CHECKPOINT_PERIOD": 60, "train.task_loss_period": 10}
    plain = run_case.command(tmp_path, **bound)
    ended = run_case.finish(run_case.launch_many([plain, held(plain, "time.sleep(0.4)")]), timeout=200)
    assert [status for status, _ in ended] == [0, 0], ended
    assert "note: process 1 (" in ended[0][1] and ") is slow: it waits for its input 0.4" in ended[0][1]
    assert any(record["hosts"]["input"]["process"] == 1 for record in read_metrics(tmp_path) if "hosts" in record)


def test_another_store_mixture_or_model_on_one_host_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same recipe on every host, but not the same store behind its path: found before the first step."""
    told: list[dict] = []
    monkeypatch.setattr(cluster, "agree", lambda name, facts: told.append(dict(facts)))
    monkeypatch.setattr(train.jax, "process_count", lambda: 2)
    lengths, opened = {"inputs": 32, "targets": 16}, store.open_store(run_case.store_dir())
    model = t5.T5(vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16)
    for i, rows in enumerate((8, 8, 4)):
        batches = Batches(opened, mixture.Mixture("own"), lengths, rows)
        identity = train.identity(train_step.Trainer(model, optim.adafactor(1e-3)), batches)
        if i == 1:
            identity["batches"] = "of another store"
        train.check_run_metadata(tmp_path / str(i), identity, fork=False)
    monkeypatch.undo()
    assert agree_with(monkeypatch, [told[0], told[0]]) is None
    for other in told[1:]:
        assert "'batches' differs between hosts: process 0 has" in str(agree_with(monkeypatch, [told[0], other]))


def test_no_answer_from_process_0() -> None:
    with pytest.raises(UserError, match="did not answer within 0 s"):
        coordination.Connection(coordination.ProcessId(f"127.0.0.1:{run_case.free_port()}", 2, 1), 0.3)


class Values:
    """The little of JAX's key-value store that is needed."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def key_value_set(self, key: str, value: str) -> None:
        self.kept[key] = value

    def blocking_key_value_get(self, key: str, timeout_ms: int) -> str:
        return self.kept[key]


def test_a_number_that_is_taken_is_refused() -> None:
    address = f"127.0.0.1:{run_case.free_port()}"
    heard: list[str] = []

    def connect(i: int) -> None:
        try:
            coordination.Connection(coordination.ProcessId(address, 3, i), 3.0).leave()
        except UserError as error:
            heard.append(str(error))

    threads = [threading.Thread(target=connect, args=(i,)) for i in (0, 1, 1)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert sorted(text.partition(":")[0] for text in heard)[0] == "process 1 is there already"


def test_a_failure_of_a_process_of_the_run_alone_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(
        coordination.Connection,
        "_end",
        lambda self, reason: self._leaving or ended.append(f"{self.own.process}: {reason}"),
    )
    address = f"127.0.0.1:{run_case.free_port()}"
    both: dict[int, coordination.Connection] = {}
    values = Values()

    def connect(i: int) -> None:
        both[i] = coordination.Connection(coordination.ProcessId(address, 2, i), 10.0)

    threads = [threading.Thread(target=connect, args=(i,)) for i in range(2)]
    [t.start() for t in threads], [t.join() for t in threads]
    own = both[0].own
    with socket.create_connection((own.host, own.port)) as stranger:  # any client of the network
        for line in ('{"failed": "x"}', '{"process": 1, "host": "h"}', '{"token": ""}', '{"failed": "x"}', "[", "5"):
            stranger.sendall(line.encode() + b"\n")
    for i in range(2):
        both[i].admit(values, 10.0)
    with socket.create_connection((own.host, own.port)) as stranger:
        stranger.sendall(b'{"process": 1, "host": "h"}\n{"token": "guess"}\n{"failed": "x"}\n')
    time.sleep(0.2)
    assert not ended
    both[1].fail("the loss of step 3 is nan")
    limit = time.monotonic() + 10
    while not ended and time.monotonic() < limit:
        time.sleep(0.01)
    both[0].leave()
    assert ended[0] == "0: process 1 failed: the loss of step 3 is nan"


def test_silence_is_counted_in_waits_and_not_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordination, "BEAT", 0.1)
    monkeypatch.setattr(coordination, "SILENCE", 0.4)
    one, other = socket.socketpair()
    monkeypatch.setattr(coordination.time, "monotonic", lambda: 1e9)  # as after a long stop
    with one, other:
        heard = coordination._messages(one)
        for i in range(3):
            threading.Timer(0.25, other.sendall, (b'{"i": %d}\n' % i,)).start()  # later than BEAT, sooner than SILENCE
            assert next(heard) == {"i": i}
        began = time.perf_counter()
        assert list(heard) == []
        assert 0.3 < time.perf_counter() - began < 2.0


def test_two_processes_take_the_batches_of_one_and_lose_as_one_does(tmp_path: pathlib.Path) -> None:
    alone = run_case.losses(run_case.undisturbed())
    ended = run_case.finish(run_case.launch_many([run_case.command(tmp_path)] * 2))
    assert [status for status, _ in ended] == [0, 0], ended
    found = run_case.losses(tmp_path)
    assert list(found) == list(alone)
    np.testing.assert_allclose(list(found.values()), list(alone.values()), rtol=1e-5)
    assert run_case.done(tmp_path) == run_case.STEPS
    padding = [[record["padding"] for record in read_metrics(f)] for f in (tmp_path, run_case.undisturbed())]
    assert padding[0] == padding[1]


def test_another_recipe_on_one_host_is_refused(tmp_path: pathlib.Path) -> None:
    commands = [run_case.command(tmp_path), run_case.command(tmp_path, SEED=1)]
    for status, said in run_case.finish(run_case.launch_many(commands)):
        assert status == 2
        assert "'gin files and bindings' differs between hosts" in said.splitlines()[-1]


@pytest.mark.parametrize("count", [2, 4])
def test_the_rows_of_all_hosts_are_the_whole_batch_byte_for_byte(count: int) -> None:
    """The mesh is cut into `count` hosts of neighbouring devices; each reads its own rows, and nothing else."""
    lengths = {"inputs": 32, "targets": 16}
    opened, mix = store.open_store(run_case.store_dir()), mixture.Mixture("own")
    whole = Batches(opened, mix, lengths, 8)
    sharding = partition.Partitioner(1).batch_sharding()
    for step in (0, 5):
        parts = []
        for host in range(count):
            devices = set(jax.devices()[host * 8 // count : (host + 1) * 8 // count])
            places = [i for d, (i, _) in sharding.devices_indices_map((8, 32)).items() if d in devices]
            rows = range(min(i.start for i in places), max(i.stop for i in places))
            parts.append(Batches(opened, mix, lengths, 8).batch(step, rows))
        for name, array in whole.batch(step).items():
            assert np.concatenate([part[name] for part in parts]).tobytes() == array.tobytes()


@pytest.mark.slow
def test_checkpoint_of_four_processes_is_resumed_by_one_and_by_two(tmp_path: pathlib.Path) -> None:
    alone = run_case.losses(run_case.undisturbed())
    for count in (1, 2):
        folder = tmp_path / str(count)
        ended = run_case.finish(run_case.launch_many([run_case.command(folder, TRAIN_STEPS=3)] * 4))
        assert [status for status, _ in ended] == [0] * 4, ended
        ended = run_case.finish(run_case.launch_many([run_case.command(folder)] * count))
        assert [status for status, _ in ended] == [0] * count, ended
        found = run_case.losses(folder)
        np.testing.assert_allclose(list(found.values()), list(alone.values()), rtol=1e-5)


@pytest.mark.slow
def test_an_adapter_of_four_processes_is_loaded_by_one(tmp_path: pathlib.Path) -> None:
    base = run_case.undisturbed()

    def command(folder: pathlib.Path, **more: object) -> list[str]:
        bound = {"TRAIN_STEPS": 4, "INITIAL_CHECKPOINT_PATH": str(base), "LORA_RANK": 2, "LORA_TARGETS": [".*"]}
        return [*run_case.command(folder, **(bound | more)), "--gin_file=runs/lora.gin"]

    ended = run_case.finish(run_case.launch_many([command(tmp_path / "four", NUM_PARTITIONS=2)] * 4))
    assert [status for status, _ in ended] == [0] * 4, ended
    run_case.run(command(tmp_path / "one"))
    losses = [list(run_case.losses(tmp_path / name).values()) for name in ("one", "four")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    pairs = [("abcdef", ["abcd", "fedc"])]
    one, four, plain = (np.array(flanx.load(f).score(pairs)) for f in (tmp_path / "one", tmp_path / "four", base))
    np.testing.assert_allclose(four, one, atol=1e-3)
    assert np.abs(four - plain).max() > 1e-2
    run_case.run(command(tmp_path / "four", TRAIN_STEPS=6))
    assert run_case.done(tmp_path / "four") == 6


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does_and_write_once(tmp_path: pathlib.Path) -> None:
    def evaluated(folder: pathlib.Path, count: int) -> tuple[dict, list[dict]]:
        bound = {"TRAIN_STEPS": 2, "SUITES": ["suite_composition[:1]"], "EVAL_BATCH_SIZE": 8}
        one = [*run_case.command(folder, **bound), "--gin_file=evals/suite.gin"]
        ended = run_case.finish(run_case.launch_many([one] * count) if count > 1 else [run_case.launch(one)])
        assert [status for status, _ in ended] == [0] * count, ended
        place = folder / "evals" / "step_2"
        files = sorted((place / "generations").glob("*.jsonl"))
        rows = [json.loads(line) for path in files for line in path.read_text().splitlines()[1:]]
        return json.loads((place / "scores.json").read_text())["suites"], sorted(rows, key=lambda row: row["task"])

    one, two = evaluated(tmp_path / "one", 1), evaluated(tmp_path / "two", 2)
    assert len(one[1]) > 2
    assert two == one


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_with_its_name_and_the_run_goes_on(
    tmp_path: pathlib.Path, victim: int
) -> None:
    long = run_case.command(tmp_path, TRAIN_STEPS=100000, CHECKPOINT_PERIOD=5)
    processes = run_case.launch_many([long] * 2)
    run_case.wait_until(lambda: run_case.newest(tmp_path), processes[0])
    processes[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    ended = run_case.finish(processes, timeout=90)
    assert time.monotonic() - began < 60
    assert ended[1 - victim][0] == coordination.LOST
    assert f"process {victim}" in ended[1 - victim][1].splitlines()[-1]
    kept, last = run_case.losses(tmp_path), run_case.newest(tmp_path)
    again = run_case.command(tmp_path, TRAIN_STEPS=last + 3, CHECKPOINT_PERIOD=5)
    ended = run_case.finish(run_case.launch_many([again] * 2))
    assert [status for status, _ in ended] == [0, 0], ended
    found = run_case.losses(tmp_path)
    assert list(found) == list(range(1, last + 4))
    assert [found[i] for i in range(1, last + 1)] == [kept[i] for i in range(1, last + 1)]


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_stops_all(tmp_path: pathlib.Path) -> None:
    long = run_case.command(tmp_path, TRAIN_STEPS=100000, CHECKPOINT_PERIOD=100000)
    processes = run_case.launch_many([long] * 2)
    run_case.wait_until(lambda: run_case.losses(tmp_path), processes[0])
    processes[1].send_signal(signal.SIGTERM)
    ended = run_case.finish(processes, timeout=90)
    assert [status for status, _ in ended] == [75, 75], ended
    assert run_case.newest(tmp_path) == max(run_case.losses(tmp_path))


@pytest.mark.slow
def test_processes_that_are_stopped_for_long_go_on(tmp_path: pathlib.Path) -> None:
    """Longer than a silence that counts as a loss, and than JAX's own heartbeat allows (100 s)."""
    long = run_case.command(tmp_path, TRAIN_STEPS=100000, CHECKPOINT_PERIOD=5)
    processes = run_case.launch_many([long] * 2)
    run_case.wait_until(lambda: run_case.newest(tmp_path), processes[0])
    for signum, pause in ((signal.SIGSTOP, 130.0), (signal.SIGCONT, 0.0)):
        for process in processes:
            process.send_signal(signum)
        time.sleep(pause)
    before = max(run_case.losses(tmp_path))
    run_case.wait_until(lambda: max(run_case.losses(tmp_path)) > before + 20, processes[0])
    time.sleep(2 * coordination.BEAT)
    assert [process.poll() for process in processes] == [None, None]
    processes[0].send_signal(signal.SIGTERM)
    ended = run_case.finish(processes, timeout=90)
    assert [status for status, _ in ended] == [75, 75], ended
