"""Metrics of the tasks against published values and values worked out by hand, and SeqIO's own evaluator on a task."""

import pytest
import seqio

from flanx.data import vocabulary
from flanx.data.task import spec, tables
from flanx.seqio import tasks
from flanx.seqio.metrics import METRICS


@pytest.mark.parametrize(
    ("name", "target", "prediction", "wanted"),
    [
        ("exact_match", "a  b", "a b", {"exact_match": 100.0}),
        ("exact_match", "a b", "A b", {"exact_match": 0.0}),
        ("accuracy", "Yes", "yes.", {"accuracy": 100.0}),
        ("final_answer", "So. The answer is 1,000.", "Hm. So the answer is $1000.", {"final_answer": 100.0}),
        ("final_answer", "So. The answer is 10.", "Hm, 10", {"final_answer": 100.0, "no_final_answer": 100.0}),
        ("final_answer", "So. The answer is (B).", "Hence the answer is (B).", {"final_answer": 100.0}),
        ("final_answer", "So. The answer is no.", "The answer is yes.", {"final_answer": 0.0}),
        ("squad", "the Red House", "red house", {"em": 100.0, "f1": 100.0}),
        ("squad", "red house", "red hut", {"em": 0.0, "f1": 50.0}),
        ("rouge", "a b c d", "a c d", {"rouge1": 600 / 7, "rougeL": 600 / 7}),
        # the example of rouge-score's README: precision 6/8 and recall 6/9, then 5/8 and 5/9
        ("rouge", "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.",
         {"rouge1": 1200 / 17, "rougeL": 1000 / 17}),
        ("rouge", "a b", "b a", {"rouge1": 100.0, "rougeL": 50.0}),
        ("bleu", "one two three four five", "one two three four five", {"bleu": 100.0}),
        ("bleu", "one two", "three", {"bleu": 0.0}),
        # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 runs of four; no brevity penalty
        ("bleu", "the cat sat on a mat", "the cat sat on the mat", {"bleu": 100 * (5 / 6 * 3 / 5 * 2 / 4 / 3) ** 0.25}),
        ("bleu", "The cat sat on a mat", "the cat sat on a mat",
         {"bleu": 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25}),
    ],
)  # fmt: skip
def test_metrics_by_hand(name, target, prediction, wanted):
    found = METRICS[name]([target], [prediction])
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)


def test_pearson():
    assert METRICS["pearson"](["0", "2", "4"], ["1", "2", "3"]) == {"pearson": pytest.approx(100)}
    assert METRICS["pearson"](["0", "2"], ["x", "y"]) == {"pearson": 0.0}
    # by hand: covariance 8, variances 10 and 10
    assert METRICS["pearson"](["1", "2", "3", "4", "5"], ["2", "1", "4", "3", "5"]) == {"pearson": pytest.approx(80)}
    assert METRICS["pearson"]([], []) == {"pearson": 0.0} == METRICS["pearson"](["1"], ["1"])


def test_every_named_metric_exists():
    assert set(spec.METRICS) == set(METRICS)


def test_seqio_scores_a_task_with_its_own_evaluator(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    lines = ['{"question": "How many?", "answer": "Count. #### 3"}', '{"question": "How old?", "answer": "#### 1,400"}']
    (tmp_path / "gsm8k" / "test.jsonl").write_text("\n".join(lines))
    task = tasks.make_task(tables.load_tables()["gsm8k_test"], "zsopt", vocabulary.load("byte"), data_dir=tmp_path)
    seqio.TaskRegistry.add_provider("test_measure_gsm8k", task)
    evaluator = seqio.Evaluator("test_measure_gsm8k", feature_converter=seqio.EncDecFeatureConverter(pack=False),
                                eval_split="test", sequence_length={"inputs": 64, "targets": 16})  # fmt: skip
    said = ["The answer is 3.", "The answer is 1400."]
    metrics, _ = evaluator.evaluate(
        compute_metrics=True,
        predict_fn=lambda data, model_feature_shapes=None: [
            (i, (vocabulary.load("byte").encode(text) + [1] + 32 * [0])[:32]) for i, text in enumerate(said)
        ],
        score_fn=lambda data, model_feature_shapes=None: [],
    )
    assert metrics.result()[task.name]["final_answer"] == 100.0
