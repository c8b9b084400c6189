"""The measurements of accelerator.py, each in a process of its own:

    python benchmarks/accelerator_work.py NAME ARGUMENTS      ARGUMENTS: a JSON object

Results are lines of JSON on standard output.
"""

import contextlib
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import record

EXAMPLES = 4  # per packed row
CLOSE = 1e-3  # of logits to the largest, of losses to the first; measured between two forms on a CPU: 1e-6, 1e-7
SAME = 0.99  # of greedy tokens: a random model has near ties


def say(metric: str, value: float, unit: str, **more: Any) -> None:
    """Prints a result."""
    record.write({"metric": metric, "value": float(f"{value:.4g}"), "unit": unit, **more})


def seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    """Seconds of the fastest of several runs, after a warm-up."""
    run()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken)


def model_of(sizes: dict[str, int], **more: Any) -> Any:
    """flanx's T5.1.1 of these sizes."""
    from flanx.models.t5 import T5

    counts = {key: value for key, value in sizes.items() if key != "layers"}
    return T5(**counts, num_encoder_layers=sizes["layers"], num_decoder_layers=sizes["layers"], **more)


def packed(rows: int, inputs: int, targets: int, vocab_size: int) -> dict[str, Any]:
    """A random batch of rows of EXAMPLES examples each, int32 [rows, inputs] and [rows, targets]."""
    import numpy as np

    draws = np.random.default_rng(0)
    given, wanted = (draws.integers(3, vocab_size, (rows, length), np.int32) for length in (inputs, targets))
    segments = [np.arange(length, dtype=np.int32) * EXAMPLES // length + 1 for length in (inputs, targets)]
    first = np.diff(segments[1], prepend=0) > 0  # of an example: the decoder starts with 0 there
    return {
        "encoder_input_tokens": given,
        "encoder_segment_ids": np.tile(segments[0], (rows, 1)),
        "decoder_target_tokens": wanted,
        "decoder_input_tokens": np.where(first, 0, np.roll(wanted, 1, axis=1)),
        "decoder_segment_ids": np.tile(segments[1], (rows, 1)),
        "decoder_loss_weights": np.ones_like(wanted),
    }


def floor(width: int, megabytes: int) -> None:
    """The device's peak: TFLOP/s of a square matmul in bfloat16, GB/s of a copy (read plus written)."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    say("devices", jax.device_count(), "", device=device.device_kind, platform=device.platform, jax=jax.__version__)
    square = jnp.ones((width, width), jnp.bfloat16)
    multiply = jax.jit(lambda a: a @ a)
    taken = seconds(lambda: multiply(square).block_until_ready())
    say(f"product {width}^3, bfloat16", 2 * width**3 / taken / 1e12, "TFLOP/s")
    content = jnp.ones((megabytes * 2**18,), jnp.float32)
    copy = jax.jit(lambda a: a + 1)
    taken = seconds(lambda: copy(content).block_until_ready())
    say(f"copy of {megabytes} MiB", 2 * content.nbytes / taken / 1e9, "GB/s")


def answers(kernels: str, sizes: dict[str, int], rows: int, steps: int, prompts: int) -> dict[str, Any]:
    """Logits [rows, T, V], losses [steps] and greedy tokens [prompts, 16] of one random model in float32."""
    import jax
    import numpy as np

    from flanx.convert.lazy_tensor import flatten, nest
    from flanx.decoding import decode
    from flanx.decoding.length_buckets import Batching
    from flanx.optim import adafactor
    from flanx.train_step import Trainer

    jax.config.update("jax_default_matmul_precision", "highest")
    model = model_of(sizes, kernels=kernels)
    draws = np.random.default_rng(1)  # from numpy: jax's streams are not the same on every platform
    shapes = flatten(jax.eval_shape(Trainer(model, adafactor(1e-3)).init).params)
    params = {}
    for name, leaf in sorted(shapes.items()):
        width = leaf.shape[0] ** -0.5 if "kernel" in name else 1.0
        noise = (width * draws.standard_normal(leaf.shape)).astype(np.float32)
        params[name] = np.ones_like(noise) if name.endswith("scale") else noise
    params = nest(params)
    trainer = Trainer(model, adafactor(1e-3), dropout=False, loss_normalizing_factor="tokens")
    batch = packed(rows, 128, 32, sizes["vocab_size"])
    logits = jax.jit(model.logits)(params, batch)
    state, step, losses = jax.jit(trainer.init_from_params)(params), jax.jit(trainer.step), []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]) / float(metrics["tokens"]))
    given = draws.integers(3, sizes["vocab_size"], (prompts, 64)).tolist()
    made = decode.generate(model, params, given, max_new=16, eos_id=-1, batching=Batching(prompts, (64,)))
    tokens = np.array([np.ravel(one.tokens[0])[:16] for one in made])
    return {"logits": np.asarray(logits, np.float32), "losses": np.array(losses), "tokens": tokens}


def reference(**arguments: Any) -> None:
    """Writes the answers of plain kernels on the CPU to a file; the driver has set JAX_PLATFORMS."""
    import numpy as np

    np.savez(pathlib.Path(os.environ["ACCELERATOR_SCRATCH"]) / "reference.npz", **answers("plain", **arguments))


def parity(**arguments: Any) -> None:
    """Compares the answers of this device with the reference."""
    import numpy as np

    with np.load(pathlib.Path(os.environ["ACCELERATOR_SCRATCH"]) / "reference.npz") as kept:
        wanted = dict(kept)
    found = answers("tuned", **arguments)
    logits = np.abs(found["logits"] - wanted["logits"]).max() / np.abs(wanted["logits"]).max()
    losses = np.abs(found["losses"] - wanted["losses"]).max() / wanted["losses"][0]
    tokens = np.mean(found["tokens"] == wanted["tokens"])
    fell = wanted["losses"][0] - wanted["losses"][-1]
    say("logits, largest relative difference", logits, "", holds=bool(logits < CLOSE))
    say(
        f"losses of {len(found['losses'])} steps, largest difference over the first",
        losses,
        "",
        holds=bool(losses < CLOSE),
        fell_by=fell,
    )
    say("greedy tokens that are the same", tokens, "share", holds=bool(tokens >= SAME))


def train_step(sizes: dict[str, int], rows: int, inputs: int, targets: int, remat: str, microbatches: int) -> None:
    """Seconds, tokens/s, MFU and memory of a step on all devices of this machine, with the rows split over them."""
    import jax

    from flanx.optim import adafactor
    from flanx.partition import Partitioner
    from flanx.train_step import Trainer

    rows = max(rows, jax.device_count() * microbatches)
    model = model_of(sizes, dtype="bfloat16", remat=remat, dropout_rate=0.05)
    trainer, partitioner = Trainer(model, adafactor(1e-3), num_microbatches=microbatches), Partitioner()
    with partitioner.scope():
        target = trainer.abstract_state(partitioner)
        state = jax.jit(trainer.init, out_shardings=jax.tree.map(lambda s: s.sharding, target))()
        batch = jax.device_put(packed(rows, inputs, targets, sizes["vocab_size"]), partitioner.batch_sharding())
        began = time.perf_counter()
        step = trainer.jit(target).lower(state, batch).compile()
        compiled = time.perf_counter() - began

        def run() -> None:
            nonlocal state
            state, _ = step(state, batch)
            jax.block_until_ready(state)

        taken = seconds(run)
    tokens = rows * (inputs + targets)
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    more = {"seconds": float(f"{taken:.4g}"), "compile_seconds": round(compiled, 1), "parameters": model.num_params()}
    more |= {"peak_GB": round(memory / 1e9, 2)} if memory else {}
    say("tokens/s", tokens / taken, "tokens/s", flops=tokens * model.flops_per_token(inputs, targets) / taken, **more)


def torch_model(sizes: dict[str, int]) -> Any:
    """transformers' T5.1.1 of these sizes, on a GPU if there is one, and its device; exits if torch is absent."""
    try:
        import torch
        import transformers
    except ImportError:
        say("left out: torch or transformers is not installed", 0, "")
        sys.exit(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.T5Config(
        vocab_size=sizes["vocab_size"], d_model=sizes["emb_dim"], d_kv=sizes["head_dim"], d_ff=sizes["mlp_dim"],
        num_heads=sizes["num_heads"], num_layers=sizes["layers"], num_decoder_layers=sizes["layers"],
        feed_forward_proj="gated-gelu", dropout_rate=0.05, decoder_start_token_id=0,
    )  # fmt: skip
    with torch.device(device):
        model = transformers.T5ForConditionalGeneration(config).to(
            torch.bfloat16 if device == "cuda" else torch.float32
        )
    return model, device


def torch_step(sizes: dict[str, int], rows: int, inputs: int, targets: int) -> None:
    """A step of transformers' T5 with its own Adafactor: bfloat16 on a GPU, rows of one example each, no packing."""
    import numpy as np

    model, device = torch_model(sizes)
    import torch
    from transformers.optimization import Adafactor

    optimizer = Adafactor(model.train().parameters(), lr=1e-3, relative_step=False, scale_parameter=True)
    draws = np.random.default_rng(0)
    given, wanted = (
        torch.from_numpy(draws.integers(3, sizes["vocab_size"], (rows, length))).to(device)
        for length in (inputs, targets)
    )

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=given, labels=wanted).loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    taken = seconds(run, 3)
    memory = {"peak_GB": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if device == "cuda" else {}
    say("tokens/s", rows * (inputs + targets) / taken, "tokens/s", torch=torch.__version__, device=device, **memory)


def decode(sizes: dict[str, int], prompts: int, inputs: int, new: int) -> None:
    """New tokens/s of greedy decoding, and the cost of 40 samples per prompt in greedy passes."""
    import flax.linen as nn
    import jax
    import numpy as np

    from flanx.decoding import decode as decoding
    from flanx.decoding.length_buckets import Batching

    model = model_of(sizes, dtype="bfloat16")
    params = jax.jit(lambda key: nn.unbox(model.init(key)))(jax.random.key(0))
    given = np.random.default_rng(0).integers(3, sizes["vocab_size"], (prompts, inputs)).tolist()

    def run(rows: int, **options: Any) -> None:
        common = {"max_new": new, "eos_id": -1, "batching": Batching(rows, (inputs,))}
        decoding.generate(model, params, given, **common, **options)

    greedy = seconds(lambda: run(prompts), 2)
    say(f"greedy, {prompts} prompts of {inputs}, {new} new tokens", prompts * new / greedy, "tokens/s")
    samples = seconds(lambda: run(max(prompts // 4, 1), samples=40, method=decoding.Sample(0.7, top_k=40)), 1)
    say("40 samples of each prompt", 40 * prompts * new / samples, "tokens/s", greedy_passes=round(samples / greedy, 2))


def torch_decode(sizes: dict[str, int], prompts: int, inputs: int, new: int) -> None:
    """New tokens/s of transformers' greedy `generate`, all prompts in one batch."""
    import numpy as np

    model, device = torch_model(sizes)
    import torch

    ids = torch.from_numpy(np.random.default_rng(0).integers(3, sizes["vocab_size"], (prompts, inputs))).to(device)
    options = {"do_sample": False, "num_beams": 1, "min_new_tokens": new, "max_new_tokens": new}

    def run() -> None:
        with torch.inference_mode():
            model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        if device == "cuda":
            torch.cuda.synchronize()

    name = f"greedy, {prompts} prompts of {inputs}, {new} new tokens"
    say(name, prompts * new / seconds(run, 2), "tokens/s", torch=torch.__version__, device=device)


def loader(rows: int, steps: int, inputs: int, targets: int) -> None:
    """Packed rows/s that the host reads from a token store, placed on the device; the embedded tasks, in bytes."""
    import jax

    from flanx.data.pipeline.batches import DatasetConfig
    from flanx.data.pipeline.mixture import Mixture
    from flanx.data.pipeline.prefetch import Loader
    from flanx.data.store.build import build_store
    from flanx.partition import Partitioner

    store = pathlib.Path(os.environ["ACCELERATOR_SCRATCH"]) / "store"
    build_store(str(store), "suite_text", vocabulary="byte", workers=0, validation=None, quiet=True)
    lengths = {"inputs": inputs, "targets": targets}
    batches = DatasetConfig(Mixture("suite_text"), str(store), "byte", lengths, rows).open(384, "encoder_decoder", 0)
    partitioner = Partitioner()
    with partitioner.scope(), contextlib.closing(Loader(batches, 0, partitioner.host_rows(rows))) as stream:
        jax.block_until_ready(partitioner.global_batch(next(stream), rows))
        began = time.perf_counter()
        for batch in itertools.islice(stream, steps):
            jax.block_until_ready(partitioner.global_batch(batch, rows))
        taken = time.perf_counter() - began
    rate = rows * steps / taken
    say("rows/s", rate, "rows/s", tokens_per_second=float(f"{rate * (inputs + targets):.4g}"))


def checkpoint(sizes: dict[str, int]) -> None:
    """GB/s of saving and restoring a state in float32, next to those of a plain file of the same size."""
    import jax

    from flanx.checkpoint import Checkpoints
    from flanx.optim import adafactor
    from flanx.partition import Partitioner
    from flanx.train_step import Trainer

    scratch = pathlib.Path(os.environ["ACCELERATOR_SCRATCH"])
    trainer, partitioner = Trainer(model_of(sizes), adafactor(1e-3)), Partitioner()
    with partitioner.scope():
        target = trainer.abstract_state(partitioner)
        state = jax.jit(trainer.init, out_shardings=jax.tree.map(lambda s: s.sharding, target))()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        jax.block_until_ready(state)
        saved = Checkpoints(scratch / "run")
        began = time.perf_counter()
        saved.save(state)
        blocked = time.perf_counter() - began
        saved.wait()
        written = time.perf_counter() - began
        del state
        began = time.perf_counter()
        jax.block_until_ready(saved.restore(target))
        read = time.perf_counter() - began
        saved.close()
    block, file = os.urandom(2**24), scratch / "plain"
    began = time.perf_counter()
    with open(file, "wb") as out:
        for _ in range(max(size // len(block), 1)):
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    plain = time.perf_counter() - began
    count = max(size // len(block), 1) * len(block)
    say("save", size / written / 1e9, "GB/s", bytes=size, step_waits_seconds=round(blocked, 3),
        plain_write=float(f"{count / plain / 1e9:.4g}"))  # fmt: skip
    say("restore", size / read / 1e9, "GB/s")


if __name__ == "__main__":
    globals()[sys.argv[1]](**json.loads(sys.argv[2]))
