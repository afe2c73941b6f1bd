"""Captions in the U-Net: conditioned once, padding without influence or cost, two routes, guidance."""

from __future__ import annotations

import warnings
from dataclasses import replace

import jaxtyping
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from imagen_pytorch import Unet
from imagen_pytorch.nn.embeddings import PerceiverResampler

TOY = dict(
    dim=8,
    dim_mults=(1, 2),
    attn_heads=2,
    attn_dim_head=4,
    text_embed_dim=6,
    attn_pool_num_latents=2,
    layer_attns=(False, True),
    layer_cross_attns=(False, True),
)
KINDS = {
    "pooled": {},
    "tokens": {"attn_pool_text": False},
    "linear": {
        "attn_pool_text": False,
        "layer_attns": False,
        "use_linear_attn": (False, True),
        "use_linear_cross_attn": (False, True),
    },
    "upsampler": {"attn_pool_text": False, "lowres_cond": True, "memory_efficient": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def unchecked(monkeypatch):
    """Without the run-time checks of annotations, which take most of the time of many small networks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def make(kind: str = "tokens", **options) -> Unet:
    """In double precision, and nothing is zero: all that the text does can be seen."""
    torch.manual_seed(0)
    net = Unet(**{**TOY, **KINDS[kind], **options})
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return net.double()


def inputs(net: Unet, batch: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    given = {"x": torch.randn(batch, 3, 6, 8), "time": torch.randn(batch)}
    if net.lowres_cond:
        given |= {"lowres_cond_img": torch.randn(batch, 3, 3, 4), "lowres_noise_times": torch.randn(batch)}
    return {name: value.double() for name, value in given.items()}


def captions(batch: int = 2, count: int = 5, dim: int = 6) -> torch.Tensor:
    return torch.randn(batch, count, dim, generator=torch.Generator().manual_seed(3)).double()


def conditioned(net: Unet, given: dict, **text) -> tuple[dict, dict]:
    """Inputs of every step, and those of `condition`."""
    steps = {name: given[name] for name in ("x", "time")}
    return steps, {name: value for name, value in given.items() if name not in steps} | text


class Products(TorchDispatchMode):
    """Counts the elements that matrix products, convolutions and attention make."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(word in str(func) for word in ("mm", "convolution", "attention")):
            self.elements += sum(item.numel() for item in (out if isinstance(out, tuple) else (out,)))
        return out


def work(net: Unet, given: dict) -> int:
    with torch.no_grad(), Products() as products:
        net(**given)
    return products.elements


# -- once -------------------------------------------------------------------------------------------------------------


@each_kind
def test_conditioning_once_is_conditioning_at_every_step_bit_for_bit(kind):
    net = make(kind)
    given = inputs(net)
    steps, once = conditioned(net, given, text_embeds=captions(), text_keep=torch.tensor([True, False]))
    conditioning = net.condition(batch=2, size=(6, 8), **once)
    for time in (steps["time"], steps["time"] + 1):
        steps["time"] = time
        assert torch.equal(net(**steps, conditioning=conditioning), net(**steps, **once))


@pytest.mark.usefixtures("unchecked")
@each_kind
def test_text_is_read_once_however_many_steps(kind):
    net, calls = make(kind), []
    parts = [net.text_to_cond, net.to_text_non_attn_cond, *([net.attn_pool] if net.attn_pool is not None else [])]
    for part in parts:
        part.register_forward_hook(lambda module, args, out: calls.append(module))
    widths = []
    for reader in net._readers:
        reader.attention.to_context.register_forward_hook(lambda module, args, out: widths.append(args[0].shape[1]))
    steps, once = conditioned(net, inputs(net), text_embeds=captions())
    conditioning = net.condition(batch=2, size=(6, 8), **once)
    widths.clear()
    for _ in range(3):
        net(**steps, conditioning=conditioning)
    assert len(calls) == len(parts)
    assert set(widths) == {2}  # at each step only the two tokens of the noise level are projected


def test_rows_of_a_conditioning_are_the_conditioning_of_the_rows():
    net = make("upsampler", cond_images_channels=1)
    given = inputs(net) | {"cond_images": torch.randn(2, 1, 4, 4)}
    steps, once = conditioned(net, given, text_embeds=captions())
    rows = net.condition(batch=2, size=(6, 8), **once).rows(slice(1, 2))
    alone = net.condition(batch=1, size=(6, 8), **{name: value[1:] for name, value in once.items()})
    steps = {name: value[1:] for name, value in steps.items()}
    torch.testing.assert_close(
        net(**steps, conditioning=rows), net(**steps, conditioning=alone), rtol=1e-10, atol=1e-10
    )


def test_a_ready_conditioning_and_parts_of_one_are_refused():
    net = make()
    steps, once = conditioned(net, inputs(net), text_embeds=captions())
    conditioning = net.condition(batch=2, size=(6, 8), **once)
    with pytest.raises(ValueError, match="ready conditioning was given and text_embeds too"):
        net(**steps, conditioning=conditioning, **once)


# -- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@each_kind
def test_padding_influences_nothing(kind):
    net = make(kind)
    given, text = inputs(net), captions()
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    expected = net(**given, text_embeds=text, text_mask=mask)
    padded = torch.cat([torch.where(mask[..., None], text, 1e3), torch.full((2, 300, 6), -1e3)], dim=1)
    wide = torch.cat([mask, torch.zeros(2, 300, dtype=torch.bool)], dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # padding beyond max_text_len is not "cut"
        found = net(**given, text_embeds=padded, text_mask=wide)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    zeros = padded * wide[..., None]
    torch.testing.assert_close(net(**given, text_embeds=zeros), expected, rtol=0, atol=1e-10)
    alone = net(**{name: value[1:] for name, value in given.items()}, text_embeds=text[1:, :3])
    torch.testing.assert_close(alone, expected[1:], rtol=0, atol=1e-10)


@pytest.mark.usefixtures("unchecked")
@each_kind
def test_text_costs_by_the_longest_caption(kind):
    net = make(kind)
    given, text = inputs(net), captions(count=4)
    padded = torch.cat([text, torch.zeros(2, 200, 6)], dim=1)
    cost = work(net, given | {"text_embeds": text})
    assert work(net, given | {"text_embeds": padded}) == cost
    assert work(net, given | {"text_embeds": captions(count=204)}) > cost
    # a dropped caption is as long as the null text: one token
    dropped = {"text_embeds": padded, "text_keep": torch.zeros(2, dtype=torch.bool)}
    assert work(net, given | dropped) == work(net, given | {"text_embeds": text[:, :1]})


def test_long_captions_are_cut_with_a_warning_and_600_tokens_fit_if_asked_for():
    net, text = make("pooled", max_text_len=8), captions(count=9)
    with pytest.warns(UserWarning, match="captions of 9 tokens are cut at max_text_len=8"):
        cut = net(**inputs(net), text_embeds=text)
    assert torch.equal(cut, net(**inputs(net), text_embeds=text[:, :8]))
    large = make("pooled", max_text_len=600)
    assert large(**inputs(large), text_embeds=captions(count=600)).isfinite().all()


# -- the null text ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@each_kind
def test_a_dropped_caption_says_nothing_and_leaves_its_neighbour_alone(kind):
    net = make(kind)
    given, keep = inputs(net), torch.tensor([True, False])
    some = net(**given, text_embeds=captions(), text_keep=keep)
    other = captions()
    other[1] = captions(count=7)[0, 2:]
    torch.testing.assert_close(net(**given, text_embeds=other, text_keep=keep), some, rtol=0, atol=1e-10)
    full, none = (net(**given, text_embeds=captions(), cond_drop_prob=share) for share in (0.0, 1.0))
    torch.testing.assert_close(some, torch.stack([full[0], none[1]]), rtol=0, atol=1e-10)
    assert not torch.allclose(full[1], none[1], atol=1e-3)
    net.null_text_embed.data.neg_()
    changed = net(**given, text_embeds=captions(), text_keep=keep)
    torch.testing.assert_close(changed[0], some[0], rtol=0, atol=1e-10)
    # attention reads the null token; its pooled form is a vector of its own
    assert not torch.allclose(changed[1], some[1], atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_empty_caption_is_the_null_text(count):
    net = make()
    given = inputs(net)
    null = net(**given, text_embeds=captions(), cond_drop_prob=1.0)
    empty = net(**given, text_embeds=captions(count=count) * 0)
    torch.testing.assert_close(empty, null, rtol=0, atol=1e-10)


def test_dropping_is_drawn_per_caption():
    net = make("pooled")
    net.to_text_non_attn_cond = nn.Identity()
    kept = []
    net._read_text = lambda embeds, mask, keep: kept.append(keep) or Unet._read_text(make("pooled"), embeds, mask, keep)
    given = inputs(net, batch=400)
    small = {"x": given["x"][..., :2, :2], "time": given["time"]}
    with torch.no_grad():
        net(**small, text_embeds=captions(batch=400), cond_drop_prob=0.25)
    assert abs(kept[0].float().mean() - 0.75) < 3 * (0.25 * 0.75 / 400) ** 0.5


def test_a_network_made_unconditional_in_place_still_answers():
    net = make("upsampler")
    given = inputs(net)
    net.cond_on_text = False
    assert net(**given).isfinite().all()
    with pytest.raises(ValueError, match="text_embeds was given"):
        net(**given, text_embeds=captions())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_embeds": captions(batch=1)}, "a batch of 2 needs as many text_embeds, got 1"),
        ({"text_embeds": captions(dim=7)}, r"text_embeds must be \(batch, tokens, 6\), got \(2, 5, 7\)"),
        ({"text_embeds": None}, "text_embeds must be given"),
    ],
)
def test_text_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make().condition(batch=2, size=(6, 8), **change)


# -- routes -----------------------------------------------------------------------------------------------------------

DEAF = {"layer_cross_attns": False, "mid_cross_attn": False, "layer_attns_add_text_cond": False, "text_film": False}
ROUTES = {
    "cross": {"layer_cross_attns": True},
    "middle": {"mid_cross_attn": True},
    "self": {"layer_attns_add_text_cond": True},
    "film": {"text_film": True},
}


def influence(net: Unet, **given) -> float:
    text = captions().requires_grad_()
    answer = net(**inputs(net), text_embeds=text, **given).square().sum()
    found = torch.autograd.grad(answer, text, allow_unused=True)[0]
    return 0.0 if found is None else found.norm().item()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_each_route_alone_carries_the_text(route, pooled):
    assert influence(make(**{**DEAF, **ROUTES[route], "attn_pool_text": pooled})) > 0


def test_without_a_route_the_text_says_exactly_nothing():
    net = make(**DEAF)
    assert influence(net) == 0
    assert torch.equal(*(net(**inputs(net), text_embeds=text) for text in (captions(), -captions())))


def test_vector_and_tokens_are_separate_parts_of_the_conditioning():
    net = make()
    steps, once = conditioned(net, inputs(net), text_embeds=captions().requires_grad_())
    conditioning = net.condition(batch=2, size=(6, 8), **once)
    for part in (replace(conditioning, emb=None), replace(conditioning, static=(), mask=None)):
        answer = net(**steps, conditioning=part).square().sum()
        assert torch.autograd.grad(answer, once["text_embeds"], retain_graph=True)[0].norm() > 0
    deaf = replace(conditioning, emb=None, static=(), mask=None)
    assert torch.autograd.grad(net(**steps, conditioning=deaf).sum(), once["text_embeds"], allow_unused=True) == (None,)


def test_the_resampler_adds_its_own_parameters_only():
    def size(module):
        return sum(item.numel() for item in module.parameters())

    own = size(PerceiverResampler(dim=8, num_latents=2, max_len=256, heads=2, dim_head=4))
    assert size(make("pooled")) - size(make("tokens")) == own


# -- guidance ---------------------------------------------------------------------------------------------------------


def test_guidance_is_the_plain_formula_and_one_is_one_pass():
    net, calls = make(), []
    given = inputs(net) | {"text_embeds": captions()}
    answer, null = net(**given), net(**given, cond_drop_prob=1.0)
    net.init_conv.register_forward_hook(lambda module, args, out: calls.append(1))
    torch.testing.assert_close(net.forward_with_cond_scale(**given, cond_scale=3.0), null + 3 * (answer - null))
    assert len(calls) == 2
    assert torch.equal(net.forward_with_cond_scale(given["x"], given["time"], text_embeds=captions()), answer)
    assert len(calls) == 3


def test_projected_guidance_drops_what_is_parallel_to_the_answer():
    net = make()
    given = inputs(net) | {"text_embeds": captions()}
    answer, null = (net(**given, cond_drop_prob=share) for share in (0.0, 1.0))
    update, axis = (answer - null).flatten(1), answer.flatten(1)
    parallel = axis * (update * axis).sum(1, keepdim=True) / axis.square().sum(1, keepdim=True)
    expected = answer + 2 * (update - 0.75 * parallel).view_as(answer)
    found = net.forward_with_cond_scale(
        **given, cond_scale=3.0, remove_parallel_component=True, keep_parallel_frac=0.25
    )
    torch.testing.assert_close(found, expected)


def test_guidance_needs_something_to_take_away():
    net, calls = make("pooled", cond_on_text=False), []
    net.init_conv.register_forward_hook(lambda module, args, out: calls.append(1))
    assert torch.equal(net.forward_with_cond_scale(**inputs(net), cond_scale=3.0), net(**inputs(net)))
    assert len(calls) == 2
    net = make()
    conditioning = net.condition(batch=2, size=(6, 8), text_embeds=captions())
    with pytest.raises(ValueError, match="not a ready conditioning"):
        net.forward_with_cond_scale(**inputs(net), conditioning=conditioning, cond_scale=3.0)
