"""Names of the Hugging Face hub, against a stand-in on loopback: what is fetched, recorded, cached and refused."""

import dataclasses
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import flanx
from flanx import config, files, hub, storage, train
from flanx.checkpoint import RestoreCheckpointConfig
from flanx.cli import main
from flanx.convert import adapter_merge, lazy_tensor, peft
from flanx.convert.architecture import read_model
from flanx.data import vocabulary
from flanx.errors import UserError
from flanx.models.adapter import Adapter
from flanx.models.palm import PaLM
from tests import run_case, t5_vocabulary
from tests.hub_case import FILES, LATER, SHA, ask_here, served, write_model

pytest.importorskip("huggingface_hub")


@pytest.fixture
def stand(tmp_path):
    """A folder of the model, its server's address, and what it was asked."""
    folder = tmp_path / "served"
    write_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle, which is never asked for")
    with served(folder) as (endpoint, handler):
        yield folder, endpoint, handler.asked


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The handler of a hub that this process asks; its model's folder is the attribute `folder`."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "served")
    with served(tmp_path / "served") as (endpoint, handler):
        ask_here(monkeypatch, endpoint, tmp_path / "cache")
        yield handler
    hub.fetch.cache_clear()


def run(code: str, home: pathlib.Path, endpoint: str, **env: str) -> subprocess.CompletedProcess:
    """Python in a process of its own: huggingface_hub reads its environment when it is imported."""
    kept = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    env = {**kept, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **env}
    head = "import flanx, json\nfrom flanx import hub\n"
    code = f"{head}try:\n    {code}\nexcept flanx.UserError as e:\n    print('refused:', e)"
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=home.parent)


FETCH = "print(json.dumps(hub.fetch('{}').record()))"


def test_a_model_is_fetched_once_without_what_is_no_data_and_recorded(stand, tmp_path):
    folder, endpoint, asked = stand
    done = run(FETCH.format("org/small"), tmp_path / "hub", endpoint, HF_TOKEN="hf_secret")
    record = (
        json.loads(done.stdout) if done.returncode == 0 and "refused" not in done.stdout else pytest.fail(str(done))
    )
    assert record["hub"] == "org/small" and record["revision"] == SHA
    names = sorted(set(FILES) - {"pytorch_model.bin", "spiece.model"})
    assert record["files"] == {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}
    assert not any("pytorch_model.bin" in path for path in asked) and "hf_secret" not in done.stdout + done.stderr
    fetched = sum("/resolve/" in path for path in asked)
    again = run(FETCH.format(f"hf:org/small@{SHA}"), tmp_path / "hub", endpoint)
    assert json.loads(again.stdout) == record and sum("/resolve/" in path for path in asked) == fetched
    offline = run(FETCH.format("org/small"), tmp_path / "hub", endpoint, HF_HUB_OFFLINE="1")
    assert json.loads(offline.stdout) == record, offline.stderr


def test_a_model_of_the_hub_answers_as_its_folder_does(here):
    ours, theirs = (flanx.load(name, lengths={"inputs": 16, "targets": 8}) for name in ("org/small", here.folder))
    assert ours.generate(["abc", "x"]) == theirs.generate(["abc", "x"])
    assert ours.source == hub.record("hf:org/small") and ours.checkpoint == "org/small"


def test_what_is_not_there_is_one_line(stand, tmp_path):
    folder, endpoint, _ = stand
    for name, message in (
        ("org/none", "no folder 'org/none' here; no model 'org/none' on the hub"),
        ("org/closed", "org/closed on the hub asks for its conditions to be accepted"),
        ("hf:a b", "is not a name on the Hugging Face hub"),
    ):
        done = run(FETCH.format(name), tmp_path / "hub", endpoint)
        assert done.stdout.startswith(f"refused: {message}") or message in done.stdout, done
        assert len(done.stdout.splitlines()) == 1
    (folder / "model.safetensors").unlink()
    assert "has no safetensors" in run(FETCH.format("org/small"), tmp_path / "hub", endpoint).stdout


def test_no_network_is_a_line_within_twenty_seconds(tmp_path):
    with socket.socket() as silent:  # accepts, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        done = run(FETCH.format("org/small"), tmp_path / "hub", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "does not answer" in done.stdout and time.monotonic() - began < 40, done
    done = run(FETCH.format("org/small"), tmp_path / "hub", "http://127.0.0.1:9")
    assert "does not answer" in done.stdout and "is there a network?" in done.stdout, done
    done = run(FETCH.format("org/small"), tmp_path / "hub", "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert "no folder 'org/small' here; " in done.stdout and "HF_HUB_OFFLINE is set" in done.stdout
    assert hub.NAME.fullmatch("hf:t5-small") and not hub.NAME.fullmatch("t5-small")


def test_which_texts_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_name("google/flan-t5-small") and hub.is_name("hf:t5-small") and hub.is_name("a/b@v1")
    (tmp_path / "out").mkdir()
    for text in ("out/my_run", "my_run", "./a/b", "/a/b", "a/b/c", "gs://a/b", "~/a"):
        assert not hub.is_name(text), text
    with pytest.raises(UserError, match="not a name on the Hugging Face hub"):
        hub.fetch("hf:../etc/passwd")


def test_what_the_hub_refuses_is_one_line(here, monkeypatch):
    for name, message in (
        ("hf:org/private", "no model 'org/private' on the hub, or none that HF_TOKEN gives access to"),
        ("hf:org/small@v9", "org/small on the hub has no revision 'v9'"),
        ("hf:org/down", "org/down is not in the hub's cache"),
    ):
        with pytest.raises(UserError, match=message):
            hub.fetch(name)
    here.gated = True
    with pytest.raises(UserError, match="org/small on the hub asks for its conditions to be accepted"):
        hub.fetch("hf:org/small")
    here.gated = False
    refused = (  # a model that is not a T5, a gate and a field that flanx does not compute
        ({"model_type": "bart"}, "config.json: model_type 'bart'; flanx converts t5, mt5, umt5"),
        ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj is 'gated-tanh'; flanx has gated-gelu"),
        ({"use_alibi": True}, "flanx does not know 'use_alibi'"),
    )
    for number, (change, message) in enumerate(refused, 4):
        here.sha = str(number) * 40
        whole = json.loads((here.folder / "config.json").read_text())
        (here.folder / "config.json").write_text(json.dumps(whole | change))
        hub.fetch.cache_clear()
        for call in (flanx.load, read_model):
            with pytest.raises(UserError, match=message) as caught:
                call("hf:org/small")
            assert len(str(caught.value).splitlines()) == 1
        (here.folder / "config.json").write_text(json.dumps(whole))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    hub.fetch.cache_clear()
    with pytest.raises(UserError, match=r"the hub refuses the access token \(401\): fix or unset HF_TOKEN"):
        hub.fetch("hf:org/small")


def test_a_tokenizer_is_fetched_without_the_weights(here, tmp_path):
    assert vocabulary.load("hf:org/small").spec == "byte"
    (here.folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 7}))
    file = pathlib.Path(t5_vocabulary.train(tmp_path))
    (here.folder / "spiece.model").write_bytes(file.read_bytes())
    here.sha = LATER
    hub.fetch.cache_clear()
    vocabulary._load.cache_clear()
    found, theirs = vocabulary.load("hf:org/small"), vocabulary.load(str(file), 7)
    assert found.fingerprint == theirs.fingerprint and found.encode("Question: 5") == theirs.encode("Question: 5")
    assert found.spec == "hf:org/small" and not any("safetensors" in path for path in here.asked)
    marked = vocabulary.load("hf:org/small#line_break=+")
    assert marked.decode(marked.encode("5\n6")) == "5\n6"
    (here.folder / "spiece.model").unlink()
    here.sha = "3" * 40
    hub.fetch.cache_clear()
    vocabulary._load.cache_clear()
    with pytest.raises(UserError, match="VOCABULARY: hf:org/small does not say its vocabulary"):
        vocabulary.load("hf:org/small")


def gin(**bound: object) -> list[str]:
    return [f"--gin.{name}={value!r}" for name, value in bound.items()]


def test_infer_takes_model_vocabulary_and_checkpoint_by_one_name(here, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("abc\nx\n")
    answers = []
    for name in ("hf:org/small", str(here.folder)):
        out = tmp_path / f"out{len(answers)}"
        bound = dict.fromkeys(("MODEL", "VOCABULARY", "CHECKPOINT_PATH"), name)
        bound |= {"PROMPTS": "prompts.txt", "INFER_OUTPUT_DIR": str(out)}
        bound |= {"TASK_FEATURE_LENGTHS": {"inputs": 16, "targets": 8}}
        assert main.main(["infer", "--gin_file=runs/infer.gin", *gin(**bound)]) == 0, capsys.readouterr().err
        answers.append((out / "predictions.jsonl").read_text())
    assert answers[0] == answers[1] and len(answers[0].splitlines()) == 2
    origin = files.read_jsonl(tmp_path / "out0" / "predictions.part")[0]["checkpoint"]
    assert origin == hub.record("hf:org/small") and origin["revision"] == SHA
    wrong = ["--gin_file=models/t5_1_1/tiny.gin", "--gin_file=runs/infer.gin"]
    bound["INFER_OUTPUT_DIR"] = str(tmp_path / "none")
    assert main.main(["infer", *wrong, *gin(**bound)]) == 2
    err = capsys.readouterr().err.rpartition("\nflanx infer: ")[2]  # after the lines of the download
    assert "is a T5 with emb_dim 16 (gin: 64)" in err and len(err.splitlines()) == 1
    sizes = {"emb_dim": 16, "head_dim": 8, "mlp_dim": 32, "num_encoder_layers": 1, "num_decoder_layers": 1}
    bound |= {f"t5.T5.{name}": size for name, size in sizes.items()}
    config.parse([name.removeprefix("--gin_file=") for name in wrong], [each[6:] for each in gin(**bound)])
    assert config.parameter("flanx.infer.infer", "model").emb_dim == 16


def test_a_parent_of_the_hub_is_recorded_and_compared_on_resume(here, tmp_path, capsys):
    parent = RestoreCheckpointConfig("hf:org/small")
    record = train.parent_metadata(tmp_path / "run", parent)
    assert record["initial_checkpoint_source"] == hub.record("hf:org/small")
    (tmp_path / "run" / "checkpoints" / "checkpoint_1").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert train.parent_metadata(tmp_path / "run", parent) == record and capsys.readouterr().out == ""
    here.sha = LATER  # a new card, the same weights
    assert train.parent_metadata(tmp_path / "run", parent) == record
    assert f"has moved since the run began, from revision {SHA} to {LATER}; its weights" in capsys.readouterr().out
    weights = (here.folder / "model.safetensors").read_bytes()
    (here.folder / "model.safetensors").write_bytes(weights[:-1] + b"\x3f")
    with pytest.raises(UserError, match=f"to {LATER}: give hf:org/small@{SHA} to resume, or another MODEL_DIR"):
        train.parent_metadata(tmp_path / "run", parent)
    hub.expect_unmoved(f"hf:org/small@{SHA}", record["initial_checkpoint_source"])
    pinned = record | {"initial_checkpoint_path": f"hf:org/small@{SHA}"}
    of_other = {**record["initial_checkpoint_source"], "revision": LATER}
    assert train.changes(record, pinned | {"initial_checkpoint_source": of_other}) == []
    (tmp_path / "run" / "checkpoints" / "checkpoint_1").rmdir()  # not begun: what the name means now is the parent
    fresh = train.parent_metadata(tmp_path / "run", parent)
    assert fresh["initial_checkpoint_source"]["revision"] == SHA  # the same throughout a process
    hub.fetch.cache_clear()
    (here.folder / "model.safetensors").write_bytes(weights)
    assert train.parent_metadata(tmp_path / "run", parent)["initial_checkpoint_source"]["revision"] == LATER


@pytest.mark.slow
def test_a_run_records_its_parent_of_the_hub_and_notices_that_it_moved(here, tmp_path, capsys):
    def run(path: str = "hf:org/small", steps: int = 1) -> int:
        hub.fetch.cache_clear()
        more = {"MODEL": "hf:org/small", "INITIAL_CHECKPOINT_PATH": path, "TRAIN_STEPS": steps, "CHECKPOINT_PERIOD": 1}
        command = run_case.command(tmp_path / "run", **more)[3:]
        skip = ("--gin_file=models", "--gin.t5.T5")
        return main.main([each for each in command if not each.startswith(skip)])

    assert run() == 0, capsys.readouterr().err
    record = files.read_json(tmp_path / "run" / "run.json")
    assert record["initial_checkpoint_source"] == hub.record("hf:org/small")
    assert record["initial_checkpoint_path"] == "hf:org/small"
    here.sha = LATER  # a new card, the same weights
    assert run(steps=2) == 0
    assert f"note: hf:org/small has moved since the run began, from revision {SHA}" in capsys.readouterr().out
    weights = (here.folder / "model.safetensors").read_bytes()
    (here.folder / "model.safetensors").write_bytes(weights[:-1] + b"\x3f")
    assert run(steps=3) == 2
    err = capsys.readouterr().err.rpartition("\nflanx train: ")[2]
    assert f"to {LATER}: give hf:org/small@{SHA} to resume, or another MODEL_DIR" in err and len(err.splitlines()) == 1
    hub.expect_unmoved(f"hf:org/small@{SHA}", record["initial_checkpoint_source"])
    assert files.read_json(tmp_path / "run" / "run.json") == record


def test_the_model_of_a_run_is_the_one_that_it_was_trained_with(tmp_path):
    model = PaLM(vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_layers=1, dropout_rate=0.2)
    settings = {f"palm.PaLM.{field.name}": getattr(model, field.name) for field in dataclasses.fields(model)}
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings}))
    found = read_model(str(tmp_path), dropout_rate=0.1, dtype="bfloat16")
    assert dataclasses.replace(found, dropout_rate=0.2, dtype=model.dtype, kernels=model.kernels) == model
    assert read_model(str(tmp_path), given=model) is model
    with pytest.raises(UserError, match=r"is a PaLM with emb_dim 16 \(gin: 32\): leave out the gin file"):
        read_model(str(tmp_path), given=dataclasses.replace(model, emb_dim=32))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["T5", "MT5"])
def test_a_folder_of_transformers_answers_by_name_as_transformers_does(here, tmp_path, kind):
    transformers = pytest.importorskip("transformers", reason="the extra hf")
    torch = pytest.importorskip("torch", reason="the extra hf")
    spiece = pathlib.Path(t5_vocabulary.train(tmp_path))
    words = vocabulary.load(str(spiece), 20)
    sizes = {"vocab_size": words.size, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes, decoder_start_token_id=0)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    for file in here.folder.iterdir():
        file.unlink()
    model.save_pretrained(here.folder)
    (here.folder / "spiece.model").write_bytes(spiece.read_bytes())
    (here.folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 20}))
    here.sha = "5" * 40
    prompts = ["Question: 5 + 5", "Frage: 1"]
    ours = flanx.load("org/small", lengths={"inputs": 32, "targets": 8}).generate(prompts)
    for prompt, answer in zip(prompts, ours, strict=True):
        tokens = torch.tensor([words.sequences([prompt])[0].tolist()])
        theirs = model.generate(tokens, max_new_tokens=8, do_sample=False, num_beams=1)[0, 1:].tolist()
        assert words.decode(theirs) == answer


def test_a_conversion_by_name_records_it_and_carries_tokenizer_and_cards(here, tmp_path, capsys):
    assert main.main(["convert", "hf:org/small", str(tmp_path / "t5x"), "--to", "t5x"]) == 0, capsys.readouterr().err
    note = files.read_json(tmp_path / "t5x" / "flanx_convert.json")
    assert note["source"] == f"hf:org/small@{SHA}"
    assert {name: note[name] for name in ("hub", "revision", "files")} == hub.record("hf:org/small")
    assert vocabulary.named_in(tmp_path / "t5x") == vocabulary.named_in(tmp_path / "t5x/checkpoint_0") == ("byte", None)
    assert "base_model: org/small" in (tmp_path / "t5x" / "README.md").read_text()
    assert main.main(["convert", "hf:org/small", "hf:org/mine", "--to", "hf"]) == 2
    assert "is on the hub: convert to a folder, then `flanx push FOLDER hf:org/mine`" in capsys.readouterr().err


def test_training_from_python_takes_the_model_of_a_name(here, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "call", lambda function, folder: None)
    for model in ("hf:org/small", str(here.folder)):
        lengths = {"inputs": 16, "targets": 8}
        flanx.train(
            model=model, mixture="suite", store_dir="none", vocabulary=model, model_dir=tmp_path / "run",
            task_feature_lengths=lengths, train_steps=1, dropout_rate=0.1,
        )  # fmt: skip
        found = config.parameter("flanx.train_step.Trainer", "model")
        assert found.emb_dim == 16 and found.dropout_rate == 0.1 and found.kernels == "tuned"


@pytest.mark.slow
def test_an_evaluation_by_name_records_the_revision(here, tmp_path, capsys):
    words = ["--suites", "suite_rule[:1]", "--output", str(tmp_path / "scores")]
    bound = "--gin.TASK_FEATURE_LENGTHS={'inputs': 256, 'targets': 8}"
    assert main.main(["evaluate", "--checkpoint", "org/small", *words, bound]) == 0, capsys.readouterr().err
    run = files.read_json(tmp_path / "scores" / "scores.json")["run"]
    assert run["checkpoint"] == "hf:org/small" and run["revision"] == SHA and run["hub"] == "org/small"
    assert run["files"] == hub.record("hf:org/small")["files"] and run["step"] is None


def test_a_folder_of_peft_names_a_base_of_the_hub_as_peft_does_and_has_its_vocabulary(here, tmp_path):
    pair = {name: lazy_tensor.in_memory(np.zeros(shape, np.float32)) for name, shape in (("a", (8, 2)), ("b", (2, 8)))}
    named = (
        ("hf:org/small", "org/small", None),
        (f"hf:org/small@{SHA}", "org/small", SHA),
        (str(tmp_path / "served"), str(tmp_path / "served"), None),
    )
    for base, name, revision in named:
        folder = storage.open_storage(tmp_path / "adapter")
        of_layers = {"encoder/layers_0/attention/query": pair}
        peft.write(folder, adapter_merge.Pairs(Adapter(2), of_layers, base, None, "here"))
        config = files.read_json(tmp_path / "adapter" / "adapter_config.json")
        assert (config["base_model_name_or_path"], config["revision"]) == (name, revision)
        assert peft.read(folder).base == base
        assert vocabulary.named_in(tmp_path / "adapter") == ("byte", None)
