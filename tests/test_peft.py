"""Folders of Hugging Face PEFT: peft computes the same, what does not fit is refused, a base inside, cards, the hub."""

import dataclasses
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import flanx
from flanx import convert, files, hub, lora
from flanx.cli import main
from flanx.convert import hf, peft
from flanx.convert.adapter_merge import Pairs
from flanx.convert.lazy_tensor import fingerprint, in_memory
from flanx.errors import UserError
from flanx.storage import open_storage
from tests.convert_case import draw
from tests.hub_case import ask_here, served
from tests.test_lora import OWN, home, train

__all__ = ["home"]  # a fixture
SHAPES = {"a": (16, 8), "b": (8, 16)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft 0.21 with transformers 5
@pytest.mark.parametrize("dora", [False, True])
def test_peft_loads_what_is_written_and_is_read(home, tmp_path, dora):
    """Logits of both within 1e-5; what peft saves is read back."""
    torch = pytest.importorskip("torch", reason="CI installs no torch")
    peft_package = pytest.importorskip("peft", reason="CI installs no peft")
    transformers = pytest.importorskip("transformers", reason="CI installs no transformers")
    run = home / "run"
    if dora:
        more = {"lora.Adapter.dora": True, "lora.Adapter.rs": True}
        run = train(tmp_path / "run", home / "hf", learning_rate=0.03, lora_targets=[".*"], bindings=more)
    assert main.main(["convert", str(run), str(tmp_path / "peft"), "--to", "peft"]) == 0
    plain = transformers.T5ForConditionalGeneration.from_pretrained(home / "hf", tie_word_embeddings=False)
    theirs = peft_package.PeftModel.from_pretrained(plain, tmp_path / "peft").eval()
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(3, 380, (2, 8)), rng.integers(3, 380, (2, 6))
    with torch.no_grad():
        wanted = theirs(input_ids=torch.tensor(inputs), decoder_input_ids=torch.tensor(targets)).logits.numpy()
    ones = {"encoder_segment_ids": np.ones_like(inputs), "decoder_segment_ids": np.ones_like(targets)}
    rows = {"encoder_input_tokens": inputs, "decoder_input_tokens": targets} | ones
    tokens = {name: jnp.asarray(array, jnp.int32) for name, array in rows.items()}

    def ours(folder: pathlib.Path) -> np.ndarray:
        loaded = flanx.load(folder, vocabulary="byte").predictor
        return np.asarray(loaded.model.logits(loaded.params, tokens))

    found, base = ours(run), ours(home / "hf")
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, np.abs(wanted).max()), rtol=0)
    assert np.abs(found - base).max() > 1e-3
    theirs.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(home / "hf")
    np.testing.assert_allclose(ours(tmp_path / "saved"), found, atol=1e-5)


def test_folders_of_peft_that_do_not_fit_are_refused(tmp_path):
    own = write_base(tmp_path / "own")
    write_adapter(tmp_path / "peft", own)
    assert convert.open_checkpoint(tmp_path / "peft").pairs is not None
    good = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    sizes = dataclasses.replace(OWN, emb_dim=24)
    hf.write(open_storage(tmp_path / "wide"), draw(sizes), sizes, {})
    cases: list[tuple[str, dict[str, Any]]] = [
        (
            "another base .* is .16, 16. there and .24, 16.",
            {"base_model_name_or_path": str(tmp_path / "wide")},
        ),
        ("peft_type is 'IA3'", {"peft_type": "IA3"}),
        ("modules_to_save is .'lm_head'.", {"modules_to_save": ["lm_head"]}),
        ("r is 2, the matrices have .8.", {"r": 2}),
        ("names no base", {"base_model_name_or_path": None}),
        ("'lora_alpha' above 0", {"lora_alpha": -4}),
        ("'lora_alpha' above 0", {"lora_alpha": True}),
        ("has no magnitude, which DoRA has", {"use_dora": True}),
    ]
    note = tmp_path / "peft" / "flanx_convert.json"
    note.write_text(json.dumps({"base_fingerprint": "0" * 64}))
    with pytest.raises(UserError, match=r"has fingerprint .*, its own was 000"):
        convert.open_checkpoint(tmp_path / "peft")
    note.unlink()
    for message, change in cases:
        (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(good | change))
        with pytest.raises(UserError, match=message) as caught:
            convert.open_checkpoint(tmp_path / "peft")
        assert "\n" not in str(caught.value)
    damaged: list[tuple[str, dict[str, Any]]] = [
        ("has matrices .16, 8. and .2, 16. at rank 8", {"b": in_memory(np.ones((2, 16), np.float32))}),
        ("a magnitude, which only DoRA has", {"magnitude": in_memory(np.ones(16, np.float32))}),
    ]
    for number, (message, part) in enumerate(damaged):
        write_adapter(tmp_path / f"damaged{number}", own, **part)
        with pytest.raises(UserError, match=message):
            convert.open_checkpoint(tmp_path / f"damaged{number}")
    (tmp_path / "peft" / "adapter_config.json").unlink()
    with pytest.raises(
        UserError, match=r"peft has no adapter_config\.json, which has the rank and base of its adapter_mo"
    ):
        convert.open_checkpoint(tmp_path / "peft")


def write_base(folder: pathlib.Path) -> str:
    """A T5 of one layer that reads bytes, in Hugging Face's form; its path."""
    hf.write(open_storage(folder), draw(OWN), OWN, {})
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    return str(folder)


def write_adapter(folder: pathlib.Path, base: str, **parts: Any) -> pathlib.Path:
    """A folder of PEFT with one drawn pair of rank 8, some of whose parts may be others."""
    rng = np.random.default_rng(0)
    pair = {name: in_memory(rng.normal(0, 1, shape).astype(np.float32)) for name, shape in SHAPES.items()} | parts
    of_layers = {"encoder/layers_0/attention/query": pair}
    peft.write(open_storage(folder), Pairs(lora.Adapter(8), of_layers, base, None, "here"))
    return folder


def mark(folder: pathlib.Path | str) -> str:
    """The fingerprint of what is computed with: an adapter is merged."""
    return fingerprint(convert.open_checkpoint(folder).tensors)


def test_an_adapter_whose_base_is_itself_or_above_it_is_one_line(tmp_path, capsys):
    for name, base in (("own", "own"), ("one", "two"), ("two", "one")):
        write_adapter(tmp_path / name, str(tmp_path / base))
    for name in ("own", "one"):
        assert main.main(["convert", str(tmp_path / name), str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err
        assert "is an adapter and its own base; name a whole model" in err and err.count("\n") == 1, err
        words = ["infer", "--checkpoint", str(tmp_path / name), "--prompts", "p.txt", "--output", "out.jsonl"]
        assert main.main(words) == 2 and "has no vocabulary that flanx reads" in capsys.readouterr().err


def test_a_base_is_written_beside_the_adapter_and_both_move_together(tmp_path, capsys):
    base = write_base(tmp_path / "base_of_it")
    apart = write_adapter(tmp_path / "apart", base)
    words = ["convert", str(apart), str(tmp_path / "both"), "--to", "peft", "--with-base"]
    assert main.main(words) == 0, capsys.readouterr().err
    assert "for the base in " in capsys.readouterr().out
    config = files.read_json(tmp_path / "both" / "adapter_config.json")
    assert config["base_model_name_or_path"] == "base"
    wanted, plain = mark(apart), mark(base)
    pathlib.Path(base).rename(tmp_path / "gone")
    (tmp_path / "both").rename(tmp_path / "moved")
    assert mark(tmp_path / "moved") == wanted != plain == mark(tmp_path / "moved" / "base")
    with pytest.raises(UserError, match=r"the base of the adapter .*apart: no folder '.*base_of_it'"):
        flanx.load(apart)
    assert main.main(["convert", str(tmp_path / "moved"), str(tmp_path / "x"), "--to", "flanx", "--with-base"]) == 2
    assert main.main(["convert", str(tmp_path / "gone"), str(tmp_path / "x"), "--to", "peft"]) == 2
    err = capsys.readouterr().err
    assert (
        "--with-base writes base and adapter apart" in err and "gone is not an adapter, which --to peft writes" in err
    )
    assert not (tmp_path / "x").exists()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's call of httpx
def test_an_adapter_is_given_away_with_its_card_where_the_hub_has_its_base(tmp_path, monkeypatch, capsys):
    pytest.importorskip("huggingface_hub", reason="the extra hf")
    base = write_base(tmp_path / "served")
    apart = write_adapter(tmp_path / "apart", base)
    with served(tmp_path / "served") as (endpoint, handler):
        ask_here(monkeypatch, endpoint, tmp_path / "cache", token="hf_right")
        assert main.main(["convert", str(apart), str(tmp_path / "local"), "--to", "peft"]) == 0
        assert main.main(["push", str(tmp_path / "local"), "hf:org/adapter"]) == 2
        err = capsys.readouterr().err
        assert "served', which the hub does not have: `flanx convert RUN" in err and err.count("\n") == 1
        words = ["convert", str(apart), str(tmp_path / "named"), "--to", "peft", "--base", "hf:org/small"]
        assert main.main(words) == 0, capsys.readouterr().err
        card = (tmp_path / "named" / "README.md").read_text()
        assert "library_name: peft\n" in card and "base_model: org/small\n" in card and str(tmp_path) not in card
        assert main.main(["push", str(tmp_path / "named"), "hf:org/adapter", "--yes"]) == 0, capsys.readouterr().err
        names = {"adapter_config.json", "adapter_model.safetensors", "README.md", "DATA.md", "flanx_convert.json"}
        assert handler.sent == {name: (tmp_path / "named" / name).read_bytes() for name in names}
        (tmp_path / "named" / "README.md").unlink()
        assert main.main(["push", str(tmp_path / "named"), "hf:org/adapter"]) == 2
        assert "lacks a card (README.md): make it by `flanx convert RUN" in capsys.readouterr().err
        wanted = mark(apart)
        handler.others = {"org/adapter": tmp_path / "named"}
        hub.fetch.cache_clear()
        assert mark("hf:org/adapter") == wanted
        (tmp_path / "p.txt").write_text("abc\n")
        words = ["infer", "--checkpoint", "hf:org/adapter", "--prompts", str(tmp_path / "p.txt"), "--output"]
        words += [str(tmp_path / "a.jsonl"), "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 4}"]
        assert main.main(words) == 0, capsys.readouterr().err
    hub.fetch.cache_clear()
    assert len(files.read_jsonl(tmp_path / "a.jsonl")) == 1
