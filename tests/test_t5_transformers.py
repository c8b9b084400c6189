"""T5 against transformers' T5 on torch: every module's output, logits, gradients; gated and plain, tied and untied."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanx.models.t5 import T5
from tests import drawn

torch = pytest.importorskip("torch", reason="torch is in the extra hf")
transformers = pytest.importorskip("transformers", reason="transformers is in the extra hf")

TINY = T5(vocab_size=96, emb_dim=32, num_heads=2, head_dim=24, mlp_dim=48, num_encoder_layers=2, num_decoder_layers=2)
FORMS = {
    f"{'gated' if gated else 'plain'}-{'tied' if tied else 'untied'}": dataclasses.replace(
        TINY, mlp_activations=("gelu", "linear") if gated else ("relu",), tied_head=tied
    )
    for gated, tied in itertools.product((True, False), repeat=2)
}
ATTENTIONS = {"encoder": ["attention"], "decoder": ["self_attention", "encoder_decoder_attention"]}
NORMS = {"encoder": ["attention", "mlp"], "decoder": ["self_attention", "cross_attention", "mlp"]}


def module_names(model: T5) -> Iterator[tuple[str, str]]:
    """(flanx's, transformers') name of every module that both have."""
    for side in ("encoder", "decoder"):
        yield f"{side}/{side}_norm", f"{side}.final_layer_norm"
        for layer in range(2):
            here, there = f"{side}/layers_{layer}", f"{side}.block.{layer}.layer"
            for index, attention in enumerate(ATTENTIONS[side]):
                theirs = f"{there}.{index}.{('SelfAttention', 'EncDecAttention')[index]}"
                yield f"{here}/{attention}", theirs
                yield from ((f"{here}/{attention}/{n}", f"{theirs}.{n[0]}") for n in ("query", "key", "value", "out"))
            for index, norm in enumerate(NORMS[side]):
                yield f"{here}/pre_{norm}_layer_norm", f"{there}.{index}.layer_norm"
            mlp = f"{there}.{len(NORMS[side]) - 1}.DenseReluDense"
            yield f"{here}/mlp", mlp
            products = ("wi_0", "wi_1", "wo") if len(model.mlp_activations) == 2 else ("wi", "wo")
            yield from ((f"{here}/mlp/{name}", f"{mlp}.{name}") for name in products)
    yield "token_embedder", "decoder.embed_tokens"
    if not model.tied_head:
        yield "decoder/logits_dense", "lm_head"


def weight_names(model: T5) -> Iterator[tuple[str, str, bool]]:
    """(flanx's, transformers') name of every parameter, and whether one is the other's transpose."""
    for ours, theirs in module_names(model):
        last = ours.rsplit("/", 1)[-1]
        if last in ("query", "key", "value", "out", "wi", "wi_0", "wi_1", "wo", "logits_dense"):
            yield f"{ours}/kernel", f"{theirs}.weight", True
        elif last.endswith("norm"):
            yield f"{ours}/scale", f"{theirs}.weight", False
    yield "token_embedder/embedding", "shared.weight", False
    for side in ("encoder", "decoder"):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield f"{side}/relpos_bias/rel_embedding", bias, True


def at(tree: Any, name: str) -> Any:
    for key in name.split("/"):
        tree = tree[key]
    return tree


def theirs_with(model: T5, params: Any) -> Any:
    """transformers' model with flanx's parameters; every one of its own is set."""
    config = transformers.T5Config(
        vocab_size=model.vocab_size,
        d_model=model.emb_dim,
        d_kv=model.head_dim,
        d_ff=model.mlp_dim,
        num_heads=model.num_heads,
        num_layers=2,
        num_decoder_layers=2,
        feed_forward_proj="gated-gelu" if len(model.mlp_activations) == 2 else "relu",
        tie_word_embeddings=model.tied_head,
        dropout_rate=0.0,
        attn_implementation="eager",
    )
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    if not model.tied_head:  # version 5 ties what it makes afresh, whatever the config says
        theirs.lm_head.weight = torch.nn.Parameter(torch.empty(model.vocab_size, model.emb_dim))
    weights = dict(theirs.named_parameters())
    with torch.no_grad():
        for ours, name, turned in weight_names(model):
            array = np.array(at(params, ours))
            weights.pop(name).copy_(torch.tensor(array.T if turned else array))
    assert not weights
    return theirs


def their_outputs(theirs: Any, names: list[str], **batch: Any) -> tuple[dict[str, Any], Any]:
    """Outputs of the named modules, and the logits."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [theirs.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    logits = theirs(**batch).logits
    for hook in hooks:
        hook.remove()
    return found, logits


@pytest.mark.parametrize("form", FORMS)
def test_every_module_logits_and_gradients_equal_those_of_transformers(form: str) -> None:
    model = FORMS[form]
    params = drawn.params(model, seed=3)
    theirs = theirs_with(model, params)
    pairs = drawn.pairs(3, inputs=40, targets=9, vocab_size=96)
    batch = drawn.encoder_decoder([[pair] for pair in pairs], inputs=40, targets=9)
    tokens = {name: torch.tensor(np.array(array)).long() for name, array in batch.items()}
    inside = {side: np.asarray(batch[f"{side}_segment_ids"] > 0) for side in ("encoder", "decoder")}

    names = dict(module_names(model))
    hooked, logits = their_outputs(
        theirs,
        list(names.values()),
        input_ids=tokens["encoder_input_tokens"],
        attention_mask=tokens["encoder_segment_ids"],
        decoder_input_ids=tokens["decoder_input_tokens"],
    )
    outputs = jax.jit(model.outputs)(params, batch)
    for ours, name in names.items():
        mine, wanted = at(outputs, ours)["__call__"][0], hooked[name].detach().numpy()
        if ours == "token_embedder":  # one look-up for both sides here, the last of two there
            mine = mine[:, 40:]
        memory = "encoder_decoder_attention/key" in ours or "encoder_decoder_attention/value" in ours
        side = "encoder" if ours.startswith("encoder") or memory else "decoder"
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(mine[inside[side]] / scale, wanted[inside[side]] / scale, atol=1e-5, err_msg=ours)
    mine = model.logits(params, batch)[inside["decoder"]]
    np.testing.assert_allclose(mine, logits.detach().numpy()[inside["decoder"]], atol=1e-5)

    weight = (
        np.random.default_rng(0).standard_normal(logits.shape) * inside["decoder"][..., None] / inside["decoder"].sum()
    )
    (logits * torch.tensor(weight).float()).sum().backward()
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(model.logits(p, batch) * jnp.asarray(weight, jnp.float32))))(params)
    their_gradients = {name: leaf.grad.numpy() for name, leaf in theirs.named_parameters()}
    for ours, name, turned in weight_names(model):
        wanted = their_gradients[name].T if turned else their_gradients[name]
        np.testing.assert_allclose(at(gradients, ours), wanted, atol=1e-4, err_msg=ours)
