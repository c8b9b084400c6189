"""`flanx ask CHECKPOINT`: a conversation with a model in the terminal; with --serve a page and an HTTP endpoint."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

from flanx.ask import template
from flanx.cli import short_form
from flanx.errors import UserError
from flanx.settings import RANGES, Range, flag, path_flag, text_flag

TOKENS = Range(2, 1_000_000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `flanx ask`."""
    parser.add_argument("checkpoint", type=path_flag, metavar="CHECKPOINT", help=short_form.CHECKPOINT.meaning)
    for name, each in short_form.OF_MODEL.items():
        parser.add_argument(f"--{name}", type=each.kind, help=each.meaning, metavar=name.upper())
    answers = parser.add_argument_group("answers", "of requests that do not say otherwise")
    for name in ("temperature", "top_k", "top_p", "seed"):
        each = short_form.FLAGS["infer"][name]
        answers.add_argument(f"--{name}", type=each.kind, help=each.meaning, metavar=name.upper())
    answers.add_argument("--stop", action="append", metavar="TEXT", help="ends an answer; may be given again")
    answers.add_argument("--system", default="", metavar="TEXT", help="before every conversation")
    answers.add_argument(
        "--template",
        default=template.DEFAULT,
        metavar="NAME|FILE",
        help="how turns become a prompt: qa (default), lines, last, or a TOML file",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max_prompt_tokens", type=flag(int, TOKENS), metavar="N", help="else those of training, or 2048"
    )
    limits.add_argument(
        "--max_tokens", type=flag(int, TOKENS), metavar="N", help="of an answer; else those of training, or 512"
    )
    limits.add_argument(
        "--rows", type=flag(int, Range(1, 4096)), default=8, metavar="N", help="requests decoded together (default 8)"
    )
    limits.add_argument(
        "--waiting",
        type=flag(int, Range(1, 100_000)),
        default=256,
        metavar="N",
        help="answers that may wait (default 256)",
    )
    limits.add_argument(
        "--timeout",
        type=flag(float, RANGES["timeout"]),
        default=120.0,
        metavar="SECONDS",
        help="of a request (default 120)",
    )
    server = parser.add_argument_group("server")
    server.add_argument("--serve", action="store_true", help="a page and OpenAI's API in place of the terminal")
    server.add_argument("--host", type=text_flag, metavar="IP", help="default 127.0.0.1; another needs FLANX_TOKEN")
    server.add_argument(
        "--port", type=flag(int, Range(0, 65535)), metavar="N", help="default 8000; 0: any that is free"
    )


def run(args: argparse.Namespace) -> int:
    """Loads the model and answers until Ctrl-C, Ctrl-D or the end of the input."""
    form = template.load(args.template)
    if not args.serve and (args.host is not None or args.port is not None):
        raise UserError("--host and --port belong to the server: add --serve, or leave them out")
    return _serve(args, form) if args.serve else _talk(args, form)


def _talk(args: argparse.Namespace, form: template.Template) -> int:
    from flanx.ask import terminal  # noqa: PLC0415  (imports jax, which `flanx --help` does not need)

    options = _options(args)
    with _engine(args) as engine, _failures():
        conversation = terminal.Conversation(engine, form, options, args.system)
        if not sys.stdin.isatty():
            terminal.answer_lines(conversation, terminal.decoded(sys.stdin.buffer))
            return 0
        turns = "earlier turns are left out" if form.only_last else "several turns become one text"
        print(f"{_summary(args, engine)}; {turns} (template {args.template})", file=sys.stderr)
        terminal.talk(conversation)
    return 0


def _serve(args: argparse.Namespace, form: template.Template) -> int:
    from flanx.web.server import Server  # noqa: PLC0415  (starlette, not needed in the terminal)

    from flanx.ask.service import Service  # noqa: PLC0415  isort: skip

    name = short_form.short_name(args.checkpoint)
    service = Service(name, form, _options(args), args.system)
    port = 8000 if args.port is None else args.port
    server = Server(service.routes, host=args.host or "127.0.0.1", port=port)  # fails before the model is loaded
    with server, _engine(args) as engine, _failures():
        service.start(engine, lambda: server.is_stopping)
        engine.warm()
        print(f"{_summary(args, engine)}\npage   {server.link}", flush=True)
        print(f"API    {server.url}/v1   key {server.token}   model {name}\nCtrl-C ends", flush=True)
        server.run()
    print("stopped")
    return 0


def _options(args: argparse.Namespace) -> Any:
    """Default settings of answers: an `Options`."""
    from flanx.ask import openai_api, terminal  # noqa: PLC0415

    stop = tuple(terminal.parse("stop", text) for text in args.stop or ())
    if not all(stop):
        raise UserError("--stop is empty, and every answer begins with that: leave it out")
    given = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "seed")}
    return openai_api.Options(stop=stop, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


@contextlib.contextmanager
def _engine(args: argparse.Namespace) -> Iterator[Any]:
    """The checkpoint's model, ready to answer: an `Engine`."""
    from flanx import api  # noqa: PLC0415
    from flanx.ask.engine import Engine  # noqa: PLC0415

    checkpoint = short_form.of_checkpoint(args.checkpoint, args.vocabulary)["CHECKPOINT_PATH"]
    print(f"loading {checkpoint}", file=sys.stderr, flush=True)
    model = api.load(checkpoint, partitions=args.partitions or 1, dtype=args.dtype, vocabulary=args.vocabulary)
    given = {"inputs": args.max_prompt_tokens, "targets": args.max_tokens}
    lengths = {name: value or model.lengths[name] for name, value in given.items()}
    predictor = dataclasses.replace(model.predictor, lengths=lengths)
    scope = model.partitioner.scope
    with Engine(predictor, scope, rows=args.rows, waiting=args.waiting, seconds=args.timeout) as engine:
        yield engine


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Turns an engine failure into an error of the command."""
    from flanx.ask.engine import Failure  # noqa: PLC0415

    try:
        yield
    except Failure as error:
        raise UserError(str(error)) from None


def _summary(args: argparse.Namespace, engine: Any) -> str:
    predictor = engine.predictor
    longest = (
        f"prompts of up to {predictor.lengths['inputs']:,} tokens, answers of up to {predictor.lengths['targets']:,}"
    )
    return f"{args.checkpoint}: {predictor.model.num_params():,} parameters, {longest}"
