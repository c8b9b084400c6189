"""Ctrl-C while modules are imported waits until they are: numpy and jax turn one amid their import into another error,
or crash."""

import signal
import threading
import types

PERIOD = 0.05  # seconds between attempts


def defer() -> None:
    """Defers Ctrl-C, unless it is already handled differently."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)


def _handle(number: int, frame: types.FrameType | None) -> None:
    at = frame
    while at is not None and not at.f_code.co_filename.startswith("<frozen importlib"):
        at = at.f_back
    if at is None:
        signal.default_int_handler(number, frame)
    main = threading.main_thread().ident
    assert main is not None
    again = threading.Timer(PERIOD, signal.pthread_kill, (main, number))
    again.daemon = True
    again.start()
