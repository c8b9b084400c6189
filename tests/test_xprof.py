"""`--profile`: which steps are traced, and what lies in the folder then."""

import pathlib
from collections.abc import Generator

import jax
import jax.numpy as jnp
import pytest

from flanx import xprof
from flanx.errors import UserError


@pytest.mark.parametrize(("text", "steps"), [("10:13", range(10, 14)), ("7", range(7, 8)), (" 1:20 ", range(1, 21))])
def test_steps_are_named_by_the_first_and_the_last(text: str, steps: range) -> None:
    assert xprof.steps_of(text, 20) == steps


@pytest.mark.parametrize("text", ["", "0:3", "13:10", "10:21", "3-5", "1:2:3", "-1", "1:" + 5000 * "9"])
def test_other_steps_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--profile=.*of 1 to TRAIN_STEPS \(20\), as 10:13"):
        xprof.steps_of(text, 20)


def stream(first: int, last: int) -> Generator[tuple[int, jax.Array], None, None]:
    for step in range(first, last + 1):
        yield step, jnp.arange(4.0) + step


def run(folder: pathlib.Path, first: int, last: int, steps: range, monkeypatch: pytest.MonkeyPatch) -> list[str | int]:
    """What happens in order: steps, and "on" and "off" of the profiler."""
    seen: list[str | int] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda where: seen.append("on"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("off"))
    seen += []
    for step, _ in xprof.traced(stream(first, last), steps, folder):
        seen.append(step)
    return seen


def test_the_trace_ends_when_the_metrics_of_its_last_step_have_been_read(tmp_path, monkeypatch, capsys) -> None:
    assert run(tmp_path, 1, 5, range(2, 4), monkeypatch) == [1, "on", 2, 3, 4, "off", 5]
    assert run(tmp_path, 1, 3, range(2, 4), monkeypatch) == [1, "on", 2, 3, "off"]
    assert run(tmp_path, 3, 5, range(2, 5), monkeypatch) == ["on", 3, 4, 5, "off"]  # resumed among them
    capsys.readouterr()
    assert run(tmp_path, 5, 6, range(2, 4), monkeypatch) == [5, 6]
    assert "traced nothing" in capsys.readouterr().out


def test_a_range_that_is_over_is_said_when_the_run_goes_on(tmp_path, capsys) -> None:
    next(steps := xprof.traced(stream(5, 9), range(2, 4), tmp_path))
    said = f"{tmp_path.name}: traced nothing, as this start resumes at step 5, after steps 2 to 3\n"
    assert capsys.readouterr().out == said
    assert [step for step, _ in steps] == [6, 7, 8, 9] and capsys.readouterr().out == ""


def test_a_run_that_ends_amid_its_trace_has_traced_the_steps_that_it_made(tmp_path, monkeypatch, capsys) -> None:
    assert run(tmp_path, 3, 4, range(2, 8), monkeypatch) == ["on", 3, 4, "off"]
    assert "traced steps 3 to 4;" in capsys.readouterr().out
    assert run(tmp_path, 1, 1, range(2, 8), monkeypatch) == [1]
    assert "traced nothing, as the run ended before step 2" in capsys.readouterr().out


@pytest.mark.parametrize("call", ["start_trace", "stop_trace"])
def test_a_trace_that_fails_is_said_and_the_run_goes_on(tmp_path, monkeypatch, capsys, call) -> None:
    monkeypatch.setattr(jax.profiler, "start_trace", lambda where: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jax.profiler, call, fail)
    assert [step for step, _ in xprof.traced(stream(1, 5), range(2, 4), tmp_path)] == [1, 2, 3, 4, 5]
    said = capsys.readouterr().out
    assert said.count("No space left on device") == 1 and "the run continues" in said and "traced steps" not in said


def test_a_trace_is_where_tensorboard_looks_for_it(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    double = jax.jit(lambda x: x * 2)
    for _, batch in xprof.traced(stream(1, 3), range(2, 3), tmp_path):
        jax.block_until_ready(double(batch))
    (trace,) = (tmp_path / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb")
    assert b"train" in trace.read_bytes()
    assert "traced steps 2 to 2; look at it with: tensorboard --logdir" in capsys.readouterr().out
