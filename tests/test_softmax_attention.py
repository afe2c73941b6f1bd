"""Every way to compute attention gives the same answer."""

from __future__ import annotations

import pytest
import torch

from imagen_pytorch.nn import softmax_attention
from imagen_pytorch.nn.softmax_attention import attend, by_products

SHAPES = {"map": (40, 51, 8, 8), "few keys": (64, 3, 8, 4), "one query": (1, 70, 8, 8), "one key": (5, 1, 4, 4)}


def given(shape, dtype=torch.float64, shared=False, masked=False):
    queries, keys, width, out = SHAPES[shape]
    draw = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=draw, dtype=torch.float64).to(dtype)

    mask = torch.rand(2, 1, 1, keys, generator=draw) < 0.5
    mask[..., 0] = True
    parts = (normal(2, 1 if shared else 3, queries, width), normal(2, 3, keys, width), normal(2, 3, keys, out))
    return (*parts, 0.3, mask if masked else None)


def textbook(query, keys, values, scale, mask=None, bias=0):
    logits = scale * query.double() @ keys.double().transpose(-1, -2) + bias
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return logits.softmax(-1) @ values.double()


@pytest.mark.parametrize("at_once", [1, 100, 5000, 2**19])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_matrices_are_the_textbook_formula(shape, masked, shared, at_once, monkeypatch):
    """However many logits are held at once."""
    monkeypatch.setattr(softmax_attention, "_AT_ONCE", at_once)
    parts = given(shape, shared=shared, masked=masked)
    torch.testing.assert_close(by_products(*parts), textbook(*parts))
    torch.testing.assert_close(attend(*parts), textbook(*parts))


@pytest.mark.parametrize("at_once", [1, 2**19])
@pytest.mark.parametrize("form", ["plain", "masked", "biased", "biased and trained"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_fewer_keys_than_queries_serve_consecutive_heads(kv_heads, form, at_once, monkeypatch):
    monkeypatch.setattr(softmax_attention, "_AT_ONCE", at_once)
    query, _, _, scale, mask = given("map", masked=form == "masked")
    query = torch.cat([query, query.flip(1), query[:, :2] * 2], dim=1)[:, :6]
    keys, values = (torch.randn(2, kv_heads, 51, 8, dtype=torch.float64) for _ in range(2))
    bias = torch.randn(1, 6, 40, 51, dtype=torch.float64) if "biased" in form else None
    if bias is not None:
        bias.requires_grad_("trained" in form)
    repeated = (part.repeat_interleave(6 // kv_heads, dim=1) for part in (keys, values))
    expected = textbook(query, *repeated, scale, mask, 0 if bias is None else bias)
    torch.testing.assert_close(attend(query, keys, values, scale, mask, bias), expected)


@pytest.mark.parametrize("faster", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_half_precision_is_as_near_as_its_digits_allow(shape, masked, faster, monkeypatch):
    """Eight bits of a mantissa, for the logits, the weights and the answer."""
    taken = []
    monkeypatch.setattr(softmax_attention, "PRODUCTS_ARE_FASTER", faster)
    monkeypatch.setattr(softmax_attention, "by_products", lambda *parts: taken.append(1) or by_products(*parts))
    parts = given(shape, torch.bfloat16, masked=masked)
    with torch.no_grad():
        answer = attend(*parts)
    exact = textbook(*parts)
    assert answer.dtype == torch.bfloat16 and taken == [1] * faster
    torch.testing.assert_close(answer.double(), exact, rtol=0, atol=float(4 * 2**-8 * exact.abs().max()))


def test_what_needs_a_gradient_or_a_bias_goes_to_the_fused_kernel(monkeypatch):
    monkeypatch.setattr(softmax_attention, "PRODUCTS_ARE_FASTER", True)
    monkeypatch.setattr(softmax_attention, "by_products", lambda *_: pytest.fail("has no gradient"))
    query, keys, values, scale, _ = given("map", torch.bfloat16)
    query.requires_grad_()
    attend(query, keys, values, scale).sum().backward()
    assert query.grad.isfinite().all() and query.grad.any()
    bias = torch.randn(1, 3, 40, 51, dtype=torch.bfloat16)
    with torch.no_grad():
        answer = attend(query, keys, values, scale, bias=bias)
    exact = textbook(query, keys, values, scale, bias=bias.double())
    torch.testing.assert_close(answer.double(), exact, rtol=0, atol=0.05)


def test_the_operator_of_compiled_networks_is_the_same_and_knows_its_shape():
    parts = given("map", torch.bfloat16, masked=True)
    with torch.no_grad():
        assert softmax_attention._opaque(*parts).equal(by_products(*parts))
    torch.library.opcheck(softmax_attention._opaque, parts, test_utils=("test_schema", "test_faketensor"))
