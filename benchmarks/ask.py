"""How soon `flanx ask --serve` answers: T5-small's shapes, float32, plain HTTP on loopback, streamed.

    python benchmarks/ask.py [--requests 32] [--new 64] [--quick]

One JSON object a line. Ready: seconds from a loaded model until every length is compiled. First token: seconds from
sending a request until its first text has come, of one client alone, by prompt length; `cpu_s`: processor seconds of
a request of one token, which other programs of the machine lengthen less. Crowd: so many requests at the same moment,
of 20 to 120 tokens, greedy and sampled in turn: errors, the first token and the end of the last, new tokens a second
of all. Weights are drawn and texts are bytes, so that an answer ends at its longest. Needs the extra
`serve`.
"""

import argparse
import dataclasses
import http.client
import json
import statistics
import sys
import threading
import time
import urllib.parse
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import record

from flanx.ask.engine import Engine
from flanx.ask.service import Service
from flanx.ask.template import Template
from flanx.data import vocabulary
from flanx.malloc import keep_freed_memory
from flanx.models.t5 import T5
from flanx.partition import Partitioner
from flanx.predictor import Predictor
from flanx.web.server import Server

SMALL = {"vocab_size": 32_128, "emb_dim": 512, "num_heads": 8, "head_dim": 64, "mlp_dim": 2048}
SMALL |= {"num_encoder_layers": 6, "num_decoder_layers": 6}


def predictor() -> Predictor:
    """A random T5-small (60.5 million parameters, tied head, relu) that only ever generates printable bytes."""
    model = T5(**SMALL, mlp_activations=("relu",), tied_head=True, kernels="tuned")
    params = jax.jit(lambda key: nn.unbox(model.init(key)))(jax.random.key(0))
    table = np.array(params["token_embedder"]["embedding"])
    table[: 3 + 32] *= 1e-3
    table[3 + 127 :] *= 1e-3
    params["token_embedder"]["embedding"] = jax.numpy.asarray(table)
    return Predictor(model, params, vocabulary.load("byte"), {"inputs": 512, "targets": 128})


def ask(server: Server, body: Mapping[str, Any]) -> tuple[int, float, float, int]:
    """(status, seconds to the first text, seconds to the end, tokens) of one streamed completion."""
    url = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=600)
    headers = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}
    began, first, tokens = time.perf_counter(), 0.0, 0
    connection.request("POST", "/v1/completions", json.dumps({"stream": True, **body}), headers)
    answer = connection.getresponse()
    for line in answer:
        event = json.loads(line[6:]) if line.startswith(b"data: {") else {}
        first = first or (time.perf_counter() - began if event.get("choices") else 0.0)
        tokens += sum(len(choice["text"]) for choice in event.get("choices", []))
        if "error" in event:
            return 500, first, time.perf_counter() - began, tokens
    connection.close()
    return answer.status, first, time.perf_counter() - began, tokens


def report(metric: str, value: float, unit: str, **more: Any) -> None:
    """One line of JSON."""
    record.write({"benchmark": "ask", "metric": metric, "value": round(value, 4), "unit": unit, **more})


def main() -> None:
    """Prints one JSON object per line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32, help="at once")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=10, help="of the single client")
    parser.add_argument("--quick", action="store_true", help="3 rounds, answers of 16 tokens")
    args = parser.parse_args()
    if args.quick:
        args = argparse.Namespace(**{**vars(args), "rounds": 3, "new": 16})
    keep_freed_memory()  # as `flanx ask` does
    made, partitioner = predictor(), Partitioner()
    made = dataclasses.replace(made, params=jax.block_until_ready(made.params))
    began = time.perf_counter()
    with Engine(made, partitioner.scope) as engine:
        engine.warm()
        report("ready", time.perf_counter() - began, "s", device=jax.devices()[0].device_kind)
        service = Service("drawn", Template())
        service.start(engine)
        with Server(service.routes) as server:
            threading.Thread(target=server.run, daemon=True).start()
            measure(server, args)
            server.stop()


def measure(server: Server, args: argparse.Namespace) -> None:
    """The single client, then the crowd."""
    ask(server, {"prompt": "once", "max_tokens": 1})
    for length, samples in [(20, 1), (120, 1), (180, 1), (250, 1), (380, 1), (500, 1), (500, 8)]:
        times, began = [], time.process_time()
        more = {"n": samples, "temperature": 0.7} if samples > 1 else {}
        for number in range(args.rounds):
            prompt = f"{number + 100 * samples} {'why ' * length}"[:length]
            times.append(ask(server, {"prompt": prompt, "max_tokens": 1, **more})[2 if samples > 1 else 1])
        cpu = (time.process_time() - began) / args.rounds
        what = "first token" if samples == 1 else f"one token each of {samples} samples"
        report(
            f"{what}, prompt of {length} tokens", statistics.median(times), "s", worst=round(max(times), 4),
            cpu_s=round(cpu, 4),
        )  # fmt: skip
    bodies = []
    for number in range(args.requests):
        prompt = f"{number} {'why ' * 40}"[: 20 + 100 * number // max(1, args.requests - 1)]
        drawn = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": number} if number % 2 else {}
        bodies.append({"prompt": prompt, "max_tokens": args.new, **drawn})
    began = time.perf_counter()
    with ThreadPoolExecutor(args.requests) as pool:
        found = list(pool.map(lambda body: ask(server, body), bodies))
    seconds = time.perf_counter() - began
    statuses, firsts, ends, tokens = zip(*found, strict=True)
    errors = sum(status != 200 for status in statuses)
    firsts_of = {"first_median": round(statistics.median(firsts), 3), "first_last": round(max(firsts), 3)}
    report(
        f"{args.requests} requests at once, {args.new} new tokens each", max(ends), "s", errors=errors, **firsts_of,
        tokens_per_s=round(sum(tokens) / seconds, 1),
    )  # fmt: skip
    if errors:
        sys.exit(1)


if __name__ == "__main__":
    main()
