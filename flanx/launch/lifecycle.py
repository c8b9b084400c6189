"""The lifecycle of a launch: check, ship, make, wait, run or follow, restart, give back; the same for all programs."""

import contextlib
import re
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

from flanx import process
from flanx.coordination import LOST
from flanx.errors import UserError
from flanx.launch.backend import Backend, State
from flanx.launch.cleanup import give_back
from flanx.launch.job import Words
from flanx.launch.program import Result, Streams, require, run, say
from flanx.launch.record import ENDED, MADE, MAKING, Record
from flanx.storage import BUCKETS, NoBucket, open_storage

# exit statuses after which the same command resumes: another process lost, a save hung, preempted; ssh's lost
# connection; killed, as a shell reports it and as this process sees it
RESTARTED = frozenset((LOST, 74, 75, 255, 137, 143, -signal.SIGKILL, -signal.SIGTERM))
UNREACHABLE = re.compile(r"could not ssh|connection (refused|timed out|reset|closed)|unreachable|broken pipe", re.I)
TAKEN = re.compile(r"already ?exists", re.IGNORECASE)
REPAIRS = {  # what services say -> what to do
    r"quota|RESOURCE_EXHAUSTED|QOSMax|AssocMax": (
        "no quota: ask for more, or take a smaller --topology, --spot or another zone"
    ),
    r"already ?exists": "the name is taken: give another --name, or end that one with `flanx launch stop`",
    r"PERMISSION_DENIED|forbidden|unauthori|credentials": "log in with an account that may do this",
    r"no (more )?capacity|stockout|RESOURCE_POOL_EXHAUSTED": "nothing is free there: take another zone, or wait",
    r"image|manifest unknown": "make the image with --build, or correct the target",
}
SILENT_ANSWERS = 5  # consecutive answers without a state before the service counts as unreachable


class Taken(UserError):
    """What would be created exists and belongs to another launch: nothing is removed."""


class Ended(NamedTuple):
    """How an attempt ended: the exit status of the host that failed first, 0 for none, and that in words.

    The other hosts' failures follow from it: a collective that loses a process raises errors of many kinds.
    """

    status: int
    text: str = ""

    @property
    def may_restart(self) -> bool:
        """Whether the same command resumes after such an end."""
        return self.status in RESTARTED or (self.status == 1 and bool(UNREACHABLE.search(self.text)))


def check(backend: Backend) -> None:
    """Checks that what must exist does. Raises UserError before anything is created."""
    require(*backend.tools)
    for each in backend.checks():
        result = run(each.words)
        if not each.free and result.status:
            raise UserError(f"{each.repair}\n({each.words[0]}: {result.last})")
        if each.free and not result.status and result.out.strip():
            raise UserError(each.repair)
    if backend.job.model_dir.startswith(BUCKETS):
        try:
            open_storage(backend.job.model_dir).expect_bucket()
        except NoBucket:
            raise
        except UserError as error:  # the hosts may have their own credentials
            say(f"{backend.job.name}: every restart will count as one without progress: {error}")


def advised(text: str) -> str:
    """A service's message, with what to do about it on a second line if that is known."""
    advice = next((what for pattern, what in REPAIRS.items() if re.search(pattern, text, re.IGNORECASE)), "")
    return f"{text}\n{advice}" if advice else text


def must(words: Words) -> Result:
    """Runs a command that must succeed. Raises UserError, or Taken if something exists already."""
    result = run(words)
    if result.status:
        text = f"{' '.join(words[:4])} ... ended with {result.status}: {result.last}"
        raise (Taken if TAKEN.search(result.err) else UserError)(advised(text))
    return result


def launch(backend: Backend, record: Record, period: float = 30.0, detach: bool = False) -> int:
    """Launches, waits for the end and gives everything back; returns the run's exit status.

    Ctrl-C, SIGTERM and any error also give the hosts back; what could not be given back is printed with its commands.

    Args:
      period: seconds between polls.
      detach: return once the job is created; for programs that keep the run.
    """
    keep = False
    with process.signals_as_interrupt():
        record.write(stage=MAKING, text="ships code and files", started=time.time())
        try:
            write_files(backend)
            for words in backend.ship():
                must(words)
            if detach:
                _make(backend, record)
                keep = True
                return 0
            status = (_follow if backend.keeps_run else _drive)(backend, record, period)
            record.write(status=status)
            return status
        except Taken:
            keep = True
            record.write(stage=ENDED, text="its name was taken", remove=[])
            raise
        finally:
            if not keep:
                made = backend.discard() if record.stage == MADE else []
                give_back(record, [*made, *backend.clean()])


def write_files(backend: Backend) -> None:
    """Writes the files of a launch into its folder."""
    folder = backend.job.folder / "files"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in backend.files().items():
        (folder / name).write_text(content, encoding="utf-8")


def _make(backend: Backend, record: Record) -> None:
    """Requests the hosts. The record says so first: a kill in between must not hide what may be billed."""
    record.write(stage=MADE, text="asked for", remove=_lists([*backend.discard(), *backend.clean()]))
    backend.made([must(words) for words in backend.make()])
    record.write(
        identifier=backend.identifier,
        questions=_lists(backend.questions()),
        remove=_lists([*backend.discard(), *backend.clean()]),
        logs=_lists(list(backend.hosts().values())) if backend.keeps_run else [],
    )


def _lists(commands: list[Words]) -> list[list[str]]:
    return [list(words) for words in commands]


def ask(backend: Backend) -> tuple[State, str]:
    """The state of a launch."""
    return type(backend).state([run(words, 120.0) for words in backend.questions()], backend.identifier)


def _states(backend: Backend, record: Record, period: float) -> Iterator[tuple[State, str]]:
    """The states of a launch, polled every `period` seconds; changes are printed. Raises UserError after silence."""
    name, known, silent = backend.job.name, None, 0
    while True:
        state, text = ask(backend)
        silent = silent + 1 if state == State.UNKNOWN else 0
        if silent >= SILENT_ANSWERS:
            raise UserError(f"{name}: no state from the service, {silent} times in a row: {text}")
        if (state, text) != known and not silent and backend.questions():
            known = (state, text)
            said = f"{state.value} ({text})" if text else state.value
            say(f"{name}: {said}")
            record.write(text=said)
        yield state, text
        time.sleep(period)


# ---- the run is this process's ---------------------------------------------------------------------------------------


def _drive(backend: Backend, record: Record, period: float) -> int:
    """Requests hosts, starts the command on each, and again after a preemption, up to the limit without progress."""
    job = backend.job
    stalled, newest, is_made = 0, newest_step(job.model_dir) or 0, False
    while True:
        if not is_made:
            _make(backend, record)
            is_made = True
        state, text = _hosts_state(backend, record, period)
        if state == State.READY:
            ended = _attempt(backend, record)
            if not ended.status:
                return 0
            state, asked = ask(backend)
            text = f"{ended.text}{asked and f' ({asked})'}"
            if state not in (State.LOST, State.ABSENT) and not ended.may_restart:
                say(f"{job.name}: {text}")
                return ended.status
        step = newest_step(job.model_dir) or 0
        stalled = 0 if step > newest else stalled + 1
        newest = max(step, newest)
        if stalled > job.restarts:
            raise UserError(
                f"{job.name}: {stalled} ends in a row without a newer checkpoint, the last: {text}\n"
                f"look at {record.folder}/logs; the same command resumes from step {newest}"
            )
        say(f"{job.name}: starts again from step {newest}, after {text} ({stalled} of {job.restarts} without progress)")
        is_made = state == State.READY
        for words in backend.halt() if is_made else backend.discard():
            run(words)


def _hosts_state(backend: Backend, record: Record, period: float) -> tuple[State, str]:
    """Waits until the hosts are ready or lost. Raises UserError if they never will be."""
    for state, text in _states(backend, record, period):
        if state == State.FAILED:
            raise UserError(advised(f"{backend.job.name} failed before it ran: {text}"))
        if state in (State.READY, State.LOST, State.ABSENT):
            return state, text
    raise AssertionError("states have no end")


def _attempt(backend: Backend, record: Record) -> Ended:
    """Starts the command on every host and waits for all of them."""
    for words in backend.prepare():
        result = run(words, 1800.0)
        if result.status:
            return Ended(result.status, f"setup ended with {result.status}: {result.last}")
    record.write(text="running")
    streams = Streams(backend.hosts(), record.folder / "logs", backend.environment())
    try:
        record.write(children=[process.describe(each.pid) for each in streams.processes.values()])
        statuses = streams.wait(backend.job.grace)
    except BaseException:
        streams.stop(backend.job.grace)
        for words in backend.halt():
            run(words)
        raise
    if not (cause := streams.cause):
        return Ended(0)
    return Ended(statuses[cause], f"{cause} ended with {statuses[cause]}: {streams.last.get(cause, '')}")


def newest_step(model_dir: str) -> int | None:
    """The step of a run's newest checkpoint; None if its folder is not visible from here."""
    if not model_dir:
        return None
    with contextlib.suppress(UserError, OSError):
        children = open_storage(f"{model_dir}/checkpoints").children()
        found = [re.fullmatch(r"checkpoint_(\d+)", name) for name in children]
        return max((int(match[1]) for match in found if match), default=0)
    return None


# ---- the service keeps the run ---------------------------------------------------------------------------------------


def _follow(backend: Backend, record: Record, period: float) -> int:
    """Makes and follows the job; makes it again if its service gives up restarting it and a newer checkpoint exists."""
    job = backend.job
    newest = newest_step(job.model_dir) or 0
    while True:
        _make(backend, record)
        state, text = _streamed(backend, record, period)
        step = newest_step(job.model_dir) or 0
        if state != State.LOST or step <= newest:
            break
        say(f"{job.name}: starts again from step {step}, after {text}")
        newest = step
        for words in backend.discard():
            run(words)
    if state != State.DONE:
        say(advised(f"{job.name}: {state.value}: {text}"))
    return 0 if state == State.DONE else 1


def _streamed(backend: Backend, record: Record, period: float) -> tuple[State, str]:
    """Streams the job's log until the job ends, and returns its final state; a stream that is cut is reopened."""
    streams: Streams | None = None
    try:
        for state, text in _states(backend, record, period):
            if state in (State.READY, State.DONE) and (streams is None or (state == State.READY and streams.is_over)):
                if streams is not None:
                    say("the log's stream was cut; it is opened again")
                streams = Streams(backend.hosts(resumed=streams is not None), record.folder / "logs")
            if state in (State.DONE, State.FAILED, State.ABSENT, State.LOST):
                if streams is not None:
                    streams.wait(min(period, 10.0), lambda: True)
                return state, text
    finally:
        if streams is not None:
            streams.stop(1.0)
    raise AssertionError("states have no end")
