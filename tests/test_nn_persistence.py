"""Networks written down, read back, refitted, copied and compiled; presets and the placeholder."""

from __future__ import annotations

import copy
import pickle
import random
import subprocess
import sys
import warnings

import jaxtyping
import pytest
import torch
from torch import nn

from imagen_pytorch import BaseUnet64, NullUnet, SRUnet256, SRUnet1024, Unet
from imagen_pytorch.nn.persistence import UNETS

TOY = dict(dim=8, dim_mults=(1, 2), attn_heads=2, attn_dim_head=4, text_embed_dim=6, attn_pool_num_latents=2)
SMALL = TOY | dict(num_resnet_blocks=1, layer_attns=False, layer_cross_attns=False)
AS_BUILT = dict(lowres_cond=False, text_embed_dim=6, channels=3, channels_out=3, cond_on_text=True)


def trained(net: nn.Module) -> nn.Module:
    """Weights that no fresh network has."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


def same(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def unchecked(monkeypatch):
    """Without the run-time checks of annotations, which take most of the time of many small networks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


# -- random configurations --------------------------------------------------------------------------------------------


def random_options(seed: int) -> dict:
    """Any valid combination: about half of the options away from their defaults."""
    draw = random.Random(seed)
    levels = draw.choice((1, 2, 2, 3))

    def flag() -> bool:
        return draw.random() < 0.5

    def per_level(make):
        return make() if flag() else [make() for _ in range(levels)]

    return dict(
        dim=draw.choice((4, 6, 8)),
        dim_mults=[draw.choice((1, 2, 1.5)) for _ in range(levels)],
        text_embed_dim=draw.choice((3, 6)),
        num_resnet_blocks=per_level(lambda: draw.choice((0, 1))),
        cond_dim=draw.choice((None, 5)),
        num_time_tokens=draw.choice((1, 2)),
        learned_sinu_pos_emb_dim=draw.choice((2, 8)),
        cond_images_channels=draw.choice((0, 0, 2)),
        channels=draw.choice((1, 3)),
        channels_out=draw.choice((None, 2)),
        attn_dim_head=draw.choice((2, 4)),
        attn_heads=2,
        ff_mult=draw.choice((1.0, 2.0)),
        lowres_cond=flag(),
        layer_attns=per_level(flag),
        layer_attns_depth=per_level(lambda: draw.choice((0, 1))),
        layer_mid_attns_depth=draw.choice((0, 1)),
        layer_attns_add_text_cond=flag(),
        attend_at_middle=flag(),
        mid_cross_attn=flag(),
        layer_cross_attns=per_level(flag),
        use_linear_attn=per_level(flag),
        use_linear_cross_attn=per_level(flag),
        cond_on_text=flag(),
        max_text_len=draw.choice((2, 256)),
        text_film=flag(),
        init_dim=draw.choice((None, 5)),
        init_conv_kernel_size=draw.choice((3, 7)),
        init_cross_embed=flag(),
        init_cross_embed_kernel_sizes=draw.choice(((3, 7), (1, 3, 5))),
        cross_embed_downsample=flag(),
        attn_pool_text=flag(),
        attn_pool_num_latents=draw.choice((1, 3)),
        dropout=draw.choice((0.0, 0.1)),
        memory_efficient=flag(),
        init_conv_to_final_conv_residual=flag(),
        use_global_context_attn=flag(),
        skip_layer_excitation=flag(),
        scale_skip_connection=flag(),
        final_resnet_block=flag(),
        final_conv_kernel_size=draw.choice((1, 3)),
        self_cond=flag(),
        resize_mode=draw.choice(("nearest", "bilinear")),
        combine_upsample_fmaps=flag(),
        pixel_shuffle_upsample=flag(),
        resnet_groups=per_level(lambda: draw.choice((1, 4))),
        cosine_sim_attn=flag(),
        gradient_checkpointing=flag(),
    )


def inputs(net: Unet) -> dict[str, torch.Tensor]:
    given = {"x": torch.randn(2, net.channels, 5, 7), "time": torch.randn(2)}
    if net.cond_on_text:
        given |= {"text_embeds": torch.randn(2, 2, net.text_embed_dim), "text_keep": torch.tensor([True, False])}
    if net.lowres_cond:
        given |= {"lowres_cond_img": torch.randn(2, net.channels, 3, 4), "lowres_noise_times": torch.randn(2)}
    if net.has_cond_image:
        given |= {"cond_images": torch.randn(2, net.cond_images_channels, 4, 4)}
    return given


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("seed", range(64))
def test_random_configuration_keeps_the_shape_and_survives_the_round_trip(seed):
    net = trained(Unet(**random_options(seed)))
    given = inputs(net)
    answer = net(**given)
    assert answer.shape == (2, net.channels_out, 5, 7)
    answer.square().mean().backward()
    assert all(item.grad is not None and item.grad.isfinite().all() for item in net.parameters())
    again = Unet.from_config_and_state_dict(*net.to_config_and_state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(**given), net.eval()(**given))


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Unet, BaseUnet64, SRUnet256, SRUnet1024])
def test_a_file_brings_back_class_arguments_and_weights(kind, tmp_path):
    net = trained(kind(**SMALL))
    path = tmp_path / "deep" / "net.pt"
    net.persist_to_file(path)
    for reader in (kind, Unet):
        again = reader.hydrate_from_file(str(path))
        assert type(again) is kind and same(again, net)
        assert again._locals == SMALL | {"dim_mults": [1, 2]}
    assert set(torch.load(path, weights_only=True)) == {"type", "config", "state_dict"}


@pytest.mark.parametrize("contents", [b"", b"no network", {"config": 3, "state_dict": {}}, [1]], ids=repr)
def test_a_file_that_holds_no_network_is_refused(contents, tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(contents) if isinstance(contents, bytes) else torch.save(contents, path)
    with pytest.raises(ValueError, match="net.pt (is damaged, or|does not hold a network)"):
        Unet.hydrate_from_file(path)


def test_a_file_that_was_cut_is_refused_and_one_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    net, path = Unet(**SMALL), tmp_path / "net.pt"
    net.persist_to_file(path)
    whole = path.read_bytes()

    def full(_, file):
        file.write(whole[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        net.persist_to_file(path)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="net.pt is damaged"):
        Unet.hydrate_from_file(path)


def test_a_class_of_ones_own_is_read_by_itself(tmp_path):
    class Mine(Unet):
        pass

    Mine(**SMALL).persist_to_file(tmp_path / "mine.pt")
    assert type(Mine.hydrate_from_file(tmp_path / "mine.pt")) is Mine
    with pytest.raises(ValueError, match='no network "Mine"; known: Unet'):
        Unet.hydrate_from_file(tmp_path / "mine.pt")
    with pytest.raises(FileNotFoundError, match=f"no network at {tmp_path / 'none.pt'}"):
        Unet.hydrate_from_file(tmp_path / "none.pt")


def test_only_given_arguments_are_remembered():
    assert Unet(**SMALL)._locals == SMALL
    assert SRUnet256(**SMALL)._locals == SMALL


# -- refitting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Unet, SRUnet1024])
def test_a_network_that_fits_is_returned_as_it_is(kind):
    net = kind(**SMALL)
    assert net.cast_model_parameters(**AS_BUILT) is net


@pytest.mark.parametrize("kind", [Unet, SRUnet1024])
@pytest.mark.parametrize(
    "change",
    [{"lowres_cond": True}, {"text_embed_dim": 5}, {"channels": 1}, {"channels_out": 2}, {"cond_on_text": False}],
)
def test_refitting_keeps_class_mode_precision_and_all_weights_that_fit(kind, change):
    net = trained(kind(**SMALL)).bfloat16().eval()
    with pytest.warns(UserWarning, match="trained weights no longer fit"):
        fitted = net.cast_model_parameters(**AS_BUILT | change)
    assert type(fitted) is kind and not fitted.training
    assert all(getattr(fitted, name) == value for name, value in change.items())
    before, after = net.state_dict(), fitted.state_dict()
    shared = [name for name in after if name in before and before[name].shape == after[name].shape]
    assert len(shared) > len(after) / 4
    assert all(torch.equal(after[name], before[name]) for name in shared)
    assert {value.dtype for value in after.values()} == {torch.bfloat16}


def test_refitting_a_fresh_network_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Unet(**SMALL).cast_model_parameters(**AS_BUILT | {"lowres_cond": True})


def test_an_unconditional_network_fits_whatever_the_width_of_text():
    net = Unet(**SMALL, cond_on_text=False)
    assert net.cast_model_parameters(**AS_BUILT | {"cond_on_text": False, "text_embed_dim": None}) is net


# -- presets and the placeholder --------------------------------------------------------------------------------------

# width, its multiples, blocks behind the first, attention per level, memory-efficient, attention in the middle
PRESETS = {
    BaseUnet64: (512, (1, 2, 3, 4), (3, 3, 3, 3), (0, 1, 1, 1), False, True),
    SRUnet256: (128, (1, 2, 4, 8), (2, 4, 8, 8), (0, 0, 0, 1), True, True),
    SRUnet1024: (128, (1, 2, 4, 8), (2, 4, 8, 8), (0, 0, 0, 0), True, False),
}


@pytest.mark.parametrize("kind", PRESETS)
def test_presets_have_the_sizes_of_the_paper(kind):
    dim, mults, blocks, attends, efficient, middle = PRESETS[kind]
    with torch.device("meta"):
        net = kind()
    assert tuple(len(level.blocks) for level in net.downs) == blocks
    assert tuple(int(level.attention is not None) for level in net.downs) == attends
    crossed = (0, 0, 0, 1) if kind is SRUnet1024 else attends
    assert tuple(int(level.init_block.cross is not None) for level in net.downs) == crossed
    widths = tuple(level.init_block.conv2.out_channels for level in net.ups)[::-1]
    assert widths == tuple(dim * mult for mult in mults)
    assert (net.init_resnet_block is not None) == efficient
    assert (net.mid_attn is not None) == middle
    assert net._readers[0].attention.heads == 8


def test_every_registered_network_is_a_public_name():
    assert UNETS.names() == ("Unet", "Unet3D", "NullUnet", "BaseUnet64", "SRUnet256", "SRUnet1024")


def test_the_placeholder_takes_anything_and_does_nothing(tmp_path):
    null = NullUnet("anything", at=1)
    x = torch.randn(2, 3)
    assert null(x, 1, what=2) is x
    assert null.cast_model_parameters(**AS_BUILT | {"lowres_cond": True}) is null and not null.lowres_cond
    assert [tuple(item.shape) for item in null.parameters()] == [(1,)]
    null.persist_to_file(tmp_path / "null.pt")
    assert type(Unet.hydrate_from_file(tmp_path / "null.pt")) is NullUnet


# -- copies and compilers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_copies_answer_alike_and_share_nothing(copied):
    net = trained(Unet(**TOY))
    other = copied(net)
    given = inputs(net)
    assert torch.equal(other(**given), net(**given))
    trained(other)
    assert not torch.equal(other(**given), net(**given))
    assert other._locals == net._locals
    assert {id(reader) for reader in other._readers} <= {id(module) for module in other.modules()}


FULL_GRAPH = """
import torch
from imagen_pytorch import Unet
torch.set_num_threads(1)
shape = dict(dim=8, dim_mults=(1,), attn_heads=2, attn_dim_head=4, text_embed_dim=6, attn_pool_num_latents=2)
for kv_heads in (None, 1):
    net = Unet(**shape, attn_kv_heads=kv_heads)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    given = dict(x=torch.randn(2, 3, 5, 8), time=torch.randn(2), text_embeds=torch.randn(2, 3, 6))
    expected = net(**given)
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(**given), expected)
"""


@pytest.mark.slow  # test_cascade_fast.py has it in every run, for the network of a cascade
def test_compiles_without_a_graph_break():
    # in a process of its own: the run-time checks of annotations cannot be traced
    done = subprocess.run([sys.executable, "-c", FULL_GRAPH], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
