"""Tokens per second of a training step: flanx beside transformers on torch, and the share of the floor.

T5.1.1-small (or base), 32,128 pieces, float32, no dropout, on the CPU. flanx steps with Adafactor and z-loss,
transformers with SDPA and fused AdamW, as it is and with torch.compile where that works; the faster of the two is the
peer. Both run as programs of their own and take turns, step by step, so that a busy machine slows both; a ratio is the
median over rounds. The floor is the step's analytic FLOPs at the speed of a 2,048-cubed product measured in the same
rounds.

    python benchmarks/train_step.py [--quick] [--size base] [--rounds N] [--rows R] [--inputs S] [--targets T]

With --kernels the step is compared with itself instead: each kernel of `flanx.kernels` replaced by its plain form, and
all of them, in turns in one process. A kernel that gains less than 5% of the processor time goes.
"""

import argparse
import contextlib
import importlib.metadata
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import record

VOCAB = 32_128
SIZES = {  # T5.1.1's
    "small": {"emb_dim": 512, "num_heads": 6, "head_dim": 64, "mlp_dim": 1024},
    "base": {"emb_dim": 768, "num_heads": 12, "head_dim": 64, "mlp_dim": 2048},
}
LAYERS = {"small": 8, "base": 12}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one layer, short rows, two rounds")
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--inputs", type=int, default=512)
    parser.add_argument("--targets", type=int, default=128)
    parser.add_argument("--layers", type=int, help="those of the size unless given")
    parser.add_argument("--kernels", action="store_true", help="compare the tuned kernels with their plain forms")
    parser.add_argument("--worker", choices=("flanx", "transformers"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.layers = args.layers or LAYERS[args.size]
    if args.quick:
        args.rounds, args.rows, args.inputs, args.targets, args.layers = 2, 2, 64, 16, 1
    return args


def draw(args: argparse.Namespace) -> dict:
    """Random tokens, int64: inputs [rows, inputs] and targets [rows, targets]."""
    import numpy as np

    draws = np.random.default_rng(0)
    return {name: draws.integers(3, 32_000, (args.rows, getattr(args, name))) for name in ("inputs", "targets")}


def flanx_step(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], None]]]:
    """flanx's jobs: a step, and a matmul of 2 * 2,048^3 FLOPs."""
    from flanx.malloc import keep_freed_memory

    keep_freed_memory()  # as `flanx train` does
    import jax
    import jax.numpy as jnp
    import numpy as np

    from flanx import kernels
    from flanx.models import layers
    from flanx.models.t5 import T5
    from flanx.optim import adafactor
    from flanx.train_step import Trainer

    model = T5(
        vocab_size=VOCAB,
        num_encoder_layers=args.layers,
        num_decoder_layers=args.layers,
        kernels="tuned",
        **SIZES[args.size],
    )
    trainer = Trainer(model, adafactor(1e-3), dropout=False)
    tokens = draw(args)
    batch = {
        "encoder_input_tokens": tokens["inputs"],
        "decoder_target_tokens": tokens["targets"],
        "decoder_input_tokens": np.pad(tokens["targets"], ((0, 0), (1, 0)))[:, :-1],
        "decoder_loss_weights": np.ones_like(tokens["targets"]),
        "encoder_segment_ids": np.ones_like(tokens["inputs"]),
        "decoder_segment_ids": np.ones_like(tokens["targets"]),
    }
    batch = {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}
    state = jax.jit(trainer.init)()

    def compiled(name: str = "", plain: Any = None) -> Callable[..., Any]:
        """The step, with the tuned kernel `name` replaced by `plain`."""
        with mock.patch.object(kernels, name, plain) if name else contextlib.nullcontext():
            jax.clear_caches()
            return jax.jit(trainer.step, donate_argnums=0).lower(state, batch).compile()

    def job(train_step: Callable[..., Any]) -> Callable[[], None]:
        def step() -> None:
            nonlocal state
            state, _ = train_step(state, batch)
            jax.block_until_ready(state)

        return step

    square = jnp.ones((2048, 2048), jnp.float32)
    multiply = jax.jit(lambda a: a @ a)

    yield "step", job(compiled())
    if args.kernels:
        yield "products", job(compiled("product", layers.product))
        yield "attention", job(compiled("attend", layers.attend_plainly))
        yield "sum over rows", job(compiled("sum_rows", lambda x: jnp.sum(x, axis=0, keepdims=True)))
    yield "product", lambda: jax.block_until_ready(multiply(square))


def transformers_step(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], None]]]:
    """transformers' jobs: a step of the same model and batch with SDPA and fused AdamW, and the same compiled."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.set_num_threads(os.cpu_count() or 1)
    sizes = SIZES[args.size]
    config = T5Config(
        vocab_size=VOCAB,
        d_model=sizes["emb_dim"],
        d_kv=sizes["head_dim"],
        d_ff=sizes["mlp_dim"],
        num_heads=sizes["num_heads"],
        num_layers=args.layers,
        num_decoder_layers=args.layers,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration._from_config(config, attn_implementation="sdpa").train()
    # Version 5 ties a newly created head, whatever the config says.
    model.lm_head.weight = torch.nn.Parameter(0.05 * torch.randn(VOCAB, sizes["emb_dim"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = {name: torch.tensor(array) for name, array in draw(args).items()}

    def job(forward: Callable[..., Any]) -> Callable[[], None]:
        def step() -> None:
            optimizer.zero_grad()
            forward(input_ids=tokens["inputs"], labels=tokens["targets"]).loss.backward()
            optimizer.step()

        return step

    yield "as it is", job(model)
    yield "compiled", job(torch.compile(model))


def work(jobs: Iterator[tuple[str, Callable[[], None]]]) -> None:
    """A worker: runs the job named on each line of standard input; answers with seconds and CPU seconds."""
    table = {}
    for name, job in jobs:
        try:
            job()  # compiles
            job()
        except Exception as error:
            if name != "compiled":
                raise
            print(f"torch.compile does not work here: {type(error).__name__}", file=sys.stderr, flush=True)
            continue
        table[name] = job
    print(*["ready", *table], sep="\t", flush=True)
    for line in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        table[line.strip()]()
        print(time.perf_counter() - start, time.process_time() - cpu, flush=True)


class Worker:
    """A program that runs jobs on demand."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        sizes = [f"--{key}={getattr(args, key)}" for key in ("size", "rows", "inputs", "targets", "layers")]
        sizes += ["--kernels"] if args.kernels else []
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, __file__, "--worker", name, *sizes]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        while not (line := self._line()).startswith("ready\t"):
            pass
        self.jobs = line.split("\t")[1:]

    def _line(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker ended with status {self._process.wait()}")
        return line.strip()

    def run(self, job: str) -> tuple[float, float]:
        """Seconds and CPU seconds of one run of a job."""
        self._process.stdin.write(job + "\n")
        self._process.stdin.flush()
        wall, cpu = map(float, self._line().split())
        return wall, cpu

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def report(metric: str, value: float, unit: str, peer: str | None = None, peer_value: float | None = None) -> None:
    """One JSON line."""
    ratio = None if peer_value is None else value / peer_value
    line = {"metric": metric, "value": value, "unit": unit, "peer": peer, "peer_value": peer_value, "ratio": ratio}
    record.write({"benchmark": "train_step"} | line)


def compare_kernels(args: argparse.Namespace) -> None:
    """The processor time of each plain form relative to the tuned step; the median over rounds."""
    worker, names = Worker("flanx", args), ("products", "attention", "sum over rows")
    rounds = [{name: worker.run(name)[1] for name in ("step", *names)} for _ in range(args.rounds)]
    worker.close()
    for name in names:
        ratio = statistics.median(each[name] / each["step"] for each in rounds)
        report(f"cpu_seconds_with_plain_{name.replace(' ', '_')}", ratio, "x the tuned step")


def main() -> None:
    args = arguments()
    if args.worker:
        work({"flanx": flanx_step, "transformers": transformers_step}[args.worker](args))
        return
    if args.kernels:
        compare_kernels(args)
        return
    from flanx.models.t5 import T5

    ours, theirs = Worker("flanx", args), Worker("transformers", args)
    rounds = [
        (ours.run("step"), {name: theirs.run(name) for name in theirs.jobs}, ours.run("product"))
        for _ in range(args.rounds)
    ]
    ours.close()
    theirs.close()

    model = T5(vocab_size=VOCAB, num_encoder_layers=args.layers, num_decoder_layers=args.layers, **SIZES[args.size])
    tokens = args.rows * (args.inputs + args.targets)
    flops = model.flops_per_token(args.inputs, args.targets) * tokens
    seconds = statistics.median(a[0] for a, _, _ in rounds)
    best = min(theirs.jobs, key=lambda name: statistics.median(b[name][0] for _, b, _ in rounds))
    ratio = statistics.median(b[best][0] / a[0] for a, b, _ in rounds)
    peak = statistics.median(2 * 2048**3 / c[0] for _, _, c in rounds)
    share = statistics.median(flops / a[0] / (2 * 2048**3 / c[0]) for a, _, c in rounds)
    torch, transformers = (importlib.metadata.version(package) for package in ("torch", "transformers"))
    name = f"transformers {transformers} on torch {torch}, {best}"
    report("tokens_per_second", tokens / seconds, "tokens/s", name, tokens / seconds / ratio)
    cpu = statistics.median(a[1] for a, _, _ in rounds)
    report("cpu_seconds_per_step", cpu, "s", name, statistics.median(b[best][1] for _, b, _ in rounds))
    report("matrix_product_speed", peak / 1e9, "GFLOP/s")
    report("share_of_floor", share, f"of {flops / peak:.2f} s per step")


if __name__ == "__main__":
    main()
