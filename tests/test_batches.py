"""Batches: the same for every number of hosts and after any jump; laid out as SeqIO lays out; nothing lost."""

import collections
import time

import numpy as np
import pytest

from flanx.data import store
from flanx.data.pipeline import batches as batches_module
from flanx.data.pipeline import features, mixture, sampling
from flanx.data.pipeline.batches import Batches
from flanx.data.pipeline.mixture import Mixture
from flanx.data.pipeline.prefetch import Loader
from flanx.errors import UserError
from tests import store_maker

LENGTHS = {"inputs": 48, "targets": 16}
SIZES = {"cot/cot_a": 37, "cot/cot_b": 11, "muffin/muffin_c": 50, "muffin/muffin_d": 400}


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    """Chunks of 600 draws, so that tests cross many of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "DRAWS", 600)
        patch.setattr(sampling.Order.__init__, "__defaults__", (600,))
        yield


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> store.Store:
    return store_maker.make(tmp_path_factory.mktemp("store"), SIZES, ("zsopt", "fsopt"))


def make(opened: store.Store, **changes) -> Batches:
    asked = {"lengths": LENGTHS, "batch_size": 8, "seed": 3} | changes
    return Batches(opened, asked.pop("mixture", Mixture("both")), **asked)


@pytest.fixture(autouse=True)
def both(monkeypatch):
    """A named mixture over both collections."""
    monkeypatch.setattr(mixture, "load_mixtures", lambda: {"both": {"collections": ["cot", "muffin"]}})


def equal(a: dict, b: dict) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == np.int32
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


PACKINGS = ["encoder_decoder", "decoder_only"]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("pack", [True, False])
def test_any_number_of_hosts_reads_the_same_batch(opened, packing, pack):
    whole = make(opened, packing=packing, pack=pack)
    for hosts in (1, 2, 4, 8):
        each = 8 // hosts
        own = [make(opened, packing=packing, pack=pack) for _ in range(hosts)]
        for step in (0, 17, 60):
            parts = [b.batch(step, range(h * each, (h + 1) * each)) for h, b in enumerate(own)]
            equal(whole.batch(step), {k: np.concatenate([p[k] for p in parts]) for k in parts[0]})


@pytest.mark.parametrize("pack", [True, False])
def test_jumping_gives_what_reading_on_gives(opened, pack):
    reading = make(opened, pack=pack)
    sequence = [reading.batch(step) for step in range(90)]
    assert reading.chunk_of(89) >= 1
    rng = np.random.default_rng(0)
    for step in rng.permutation(90)[:25]:
        equal(make(opened, pack=pack).batch(int(step)), sequence[step])
    far = make(opened, pack=pack).batch(10**9)
    equal(far, reading.batch(10**9))


def test_seed_mixture_and_lengths_change_the_batches_and_the_fingerprint(opened):
    base = make(opened)
    others = [
        make(opened, seed=4),
        make(opened, mixture=Mixture("both", cot_ratio=0.5)),
        make(opened, lengths={"inputs": 48, "targets": 17}),
        make(opened, batch_size=4),
        make(opened, packing="decoder_only"),
        make(opened, pack=False),
    ]
    assert len({b.fingerprint for b in [base, *others]}) == len(others) + 1
    assert make(opened).fingerprint == base.fingerprint
    assert not np.array_equal(others[0].batch(0)["encoder_input_tokens"], base.batch(0)["encoder_input_tokens"])


def examples_of(batch: dict) -> list[tuple[int, ...]]:
    """The first four tokens of every example of an encoder-decoder batch, row by row."""
    tokens, positions, segments = (batch[f"encoder_{n}"] for n in ("input_tokens", "positions", "segment_ids"))
    at = np.argwhere((positions == 0) & (segments > 0))
    return [tuple(tokens[r, c : c + 4].tolist()) for r, c in at]


def test_a_chunk_holds_every_draw_once(opened):
    packed, unpacked = make(opened, batch_size=1), make(opened, batch_size=1, pack=False)
    rows_per_chunk = len(packed.chunk_plan(0).starts) - 1
    for chunk in range(3):
        first = rows_per_chunk * chunk
        rows = [e for k in range(rows_per_chunk) for e in examples_of(packed.batch(first + k))]
        drawn = range(unpacked.order.drawn(chunk), unpacked.order.drawn(chunk + 1))
        draws = [examples_of(unpacked.batch(k))[0] for k in drawn]
        assert collections.Counter(rows) == collections.Counter(draws)


def test_every_example_once_an_epoch_as_read(opened):
    one = make(opened, mixture=Mixture("muffin_c_zsopt"), batch_size=10, pack=False)
    marks = {store_maker.mark("muffin_c zsopt 0", row) for row in range(50)}
    start = int(one.order.cursors(0)[0])
    assert start in (0, 1)
    seen = [e for k in range(16) for e in examples_of(one.batch(k))]
    seen = seen[50 - start :] if start else seen  # from the next epoch on
    for epoch in range(2):
        assert set(seen[epoch * 50 : (epoch + 1) * 50]) == marks


def test_shares_over_packed_batches(opened):
    made = make(opened, mixture=Mixture("both", cot_ratio=0.25), batch_size=16)
    steps = 4 * (len(made.chunk_plan(0).starts) - 1) // 16
    counts = collections.Counter(e[:2] for k in range(steps) for e in examples_of(made.batch(k)))
    total = counts.total()
    for source in made.resolved.sources:
        name = store_maker.mark(f"{source.task.name} {source.style} 0", 0)[:2]
        assert abs(counts[name] - source.weight * total) < 4 + 0.01 * total, source.name


# ---- layout ----------------------------------------------------------------------------------------------------------


def by_hand(plan, made: Batches, packing: str) -> dict[str, np.ndarray]:
    """The rows of a plan, laid out one example at a time."""
    opened, limits, names_of_tasks = made.store, made.limits, sorted({s.task.name for s in made.resolved.sources})
    out = collections.defaultdict(list)
    names = [f"decoder_{n}" for n in ("target_tokens", "input_tokens", "loss_weights", "segment_ids", "positions")]
    names += ["decoder_task_ids"]
    if packing == "encoder_decoder":
        names += [f"encoder_{n}" for n in ("input_tokens", "segment_ids", "positions")]
    else:
        names += ["decoder_causal_attention"]
    length = {"encoder": limits[0], "decoder": limits[1] if packing == "encoder_decoder" else sum(limits)}
    for first, last in zip(plan.starts, plan.starts[1:], strict=False):
        row = collections.defaultdict(list)
        for segment, i in enumerate(range(first, last), 1):
            volume = opened.volume(int(plan.volume[i]))
            record = volume.index[np.searchsorted(volume.index["offset"], plan.offset[i, 0])]
            start, n, m = int(record["offset"]), int(record["inputs"]), int(record["targets"])
            both = volume.tokens[start : start + n + m].astype(int).tolist()
            sides = [
                side if len(side) <= limit else [*side[: limit - 1], 1]
                for side, limit in zip((both[:n], both[n:]), limits, strict=True)
            ]
            if packing == "encoder_decoder":
                row["encoder_input_tokens"] += sides[0]
                row["encoder_segment_ids"] += [segment] * len(sides[0])
                row["encoder_positions"] += range(len(sides[0]))
                targets, weights = sides[1], [1] * len(sides[1])
            else:
                targets, weights = sides[0] + sides[1], [0] * len(sides[0]) + [1] * len(sides[1])
                causal = min(len(sides[0]) + 1, len(targets))
                row["decoder_causal_attention"] += [1] * causal + [0] * (len(targets) - causal)
            row["decoder_target_tokens"] += targets
            row["decoder_input_tokens"] += [0, *targets[:-1]]
            row["decoder_loss_weights"] += weights
            row["decoder_segment_ids"] += [segment] * len(targets)
            task = made.resolved.sources[plan.source[i]].task.name
            row["decoder_task_ids"] += [1 + names_of_tasks.index(task)] * len(targets)
            row["decoder_positions"] += range(len(targets))
        for name in names:  # a row may hold no example at all
            out[name].append(row[name] + [0] * (length[name.split("_")[0]] - len(row[name])))
    return {name: np.array(rows) for name, rows in out.items()}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("pack", [True, False])
def test_rows_are_laid_out_example_by_example(opened, packing, pack):
    made = make(opened, packing=packing, pack=pack, lengths={"inputs": 33, "targets": 9})
    assert made.plan(0, 200).cut.any(axis=0).all()  # both sides are cut somewhere
    for step in (0, 5, 40):
        expected = by_hand(made.plan(step * 8, 8), made, packing)
        batch = made.batch(step)
        assert set(batch) == set(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(batch[name], values, err_msg=name)


def test_decoder_only_rows_are_those_of_seqios_prefix_lm():
    """The example of SeqIO's documentation of its PrefixLM converter."""
    rows = batches_module.Plan(
        volume=np.zeros(2, np.int64), offset=np.array([[0, 4], [7, 12]]), length=np.array([[4, 3], [5, 2]]),
        cut=np.zeros((2, 2), bool), source=np.zeros(2, np.int64), starts=np.array([0, 2]),
    )  # fmt: skip

    tokens = np.array([7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1], np.uint16)
    expected = {
        "decoder_target_tokens": [7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1, 0],
        "decoder_input_tokens": [0, 7, 8, 5, 1, 3, 9, 0, 8, 4, 9, 3, 1, 4, 0],
        "decoder_loss_weights": [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0],
        "decoder_positions": [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0],
        "decoder_segment_ids": [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0],
        "decoder_causal_attention": [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0],
        "decoder_task_ids": [5, 5, 5, 5, 5, 5, 5, 9, 9, 9, 9, 9, 9, 9, 0],
    }
    made = features.decoder_only(rows, (7, 8), lambda volume: tokens, np.array([5, 9], np.int32))
    assert {name: values.tolist() for name, values in made.items()} == {n: [v] for n, v in expected.items()}


def test_batches_never_change(opened):
    """Golden: recipes name batches by their hash. A change here needs a new `batches.ALGORITHM`."""
    assert batches_module.ALGORITHM == 2
    batch = make(opened).batch(7)
    del batch["decoder_task_ids"]  # tells tasks apart and is not part of what is trained on
    assert sampling.key(*(f"{name} {batch[name].tolist()}" for name in sorted(batch))) == 5333492523468297172


# ---- bad input, record, loader ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing": "both"}, "packing 'both'"),
        ({"lengths": {"inputs": 5}}, "TASK_FEATURE_LENGTHS"),
        ({"lengths": {"inputs": 5, "targets": 1}}, "TASK_FEATURE_LENGTHS"),
        ({"batch_size": 0}, "BATCH_SIZE 0"),
    ],
)
def test_bad_arguments_are_one_line(opened, changes, message):
    with pytest.raises(UserError, match=message):
        make(opened, **changes)


def test_rows_outside_the_batch_are_refused(opened):
    with pytest.raises(UserError, match="of a batch of 8"):
        make(opened).batch(0, range(4, 12))


def test_describe_is_json_and_tells_what_was_asked(opened):
    import json

    found = json.loads(json.dumps(make(opened, mixture=Mixture("both", cot_ratio=0.5)).describe()))
    assert found["mixture"]["cot_share"] == 0.5
    assert found["store"]["hash"] == opened.hash
    assert found["packing"] == "encoder_decoder" and found["examples_per_row"] > 1


def test_the_loader_gives_the_batches_in_order_from_any_step(opened):
    made = make(opened)
    loader = Loader(made, start=70, rows=range(2, 6))
    for step in range(70, 140):
        equal(next(loader), made.batch(step, range(2, 6)))
    loader.close()
    assert not any(thread.is_alive() for thread in loader._threads)
    with pytest.raises(StopIteration):
        next(loader)


def test_the_loader_keeps_two_batches_ahead_and_of_small_ones_more(opened):
    for size, ahead in ((8, 64), (400, 2)):
        loader = Loader(make(opened, batch_size=size))
        until = time.monotonic() + 60
        while loader.ready < ahead and time.monotonic() < until:
            time.sleep(0.01)
        assert loader.ready == ahead
        loader.close()
        assert loader.ready == 0


def test_the_loader_raises_what_reading_raises(opened, monkeypatch):
    made = make(opened)

    def broken(step, rows):
        if step == 3:
            raise UserError("the store is damaged")
        return {}

    monkeypatch.setattr(made, "batch", broken)
    loader = Loader(made)
    for _ in range(3):
        next(loader)
    with pytest.raises(UserError, match="the store is damaged"):
        next(loader)
