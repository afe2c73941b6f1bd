"""Optimizers by name and by class, and Muon."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from toys import pictures, small_imagen
from train_toys import SMALL, enter, metrics, refused, succeed, write_config
from train_toys import imagen as command

from imagen_pytorch import ImagenTrainer, Unet
from imagen_pytorch.checkpoint import CheckpointError, CheckpointMismatch, read_checkpoint, write_checkpoint
from imagen_pytorch.training import muon
from imagen_pytorch.training.muon import Muon, muon_groups, orthogonalized
from imagen_pytorch.training.optim import chosen_optimizer

# -- Muon -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (4, 30), (30, 4), (6, 5, 3, 3)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_updates_are_nearly_orthogonal_and_keep_the_singular_vectors(shape, scale):
    given = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalized(given)
    assert found.shape == given.shape
    left, _, right = torch.linalg.svd(given.flatten(1), full_matrices=False)
    rotated = left.T @ found.flatten(1) @ right.T
    values = rotated.diagonal()
    assert values.min() > 0.5 and values.max() < 1.3
    torch.testing.assert_close(rotated, values.diag(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(20, 22), (20, 180), (180, 20), (16, 5, 3, 3)])
@pytest.mark.parametrize("rank", [4, 20])
def test_steps_map_every_singular_value_by_the_quintic(shape, rank):
    """Wide matrices take their steps on X X', all others on X: both are U p(p(...p(S))) V'."""
    generator = torch.Generator().manual_seed(2)
    rows, columns = shape[0], math.prod(shape[1:])
    given = torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
    left, values, right = torch.linalg.svd(given.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    found = orthogonalized(given.reshape(shape)).flatten(1).double()
    # float32 leaves values of about 1e-7 where there are none, and five steps multiply them by 3.4445**5 = 485
    torch.testing.assert_close(found, left * values @ right, rtol=0, atol=1e-3)


def test_zeros_stay_zeros():
    assert torch.equal(orthogonalized(torch.zeros(3, 4)), torch.zeros(3, 4))


def gradients(items, steps=4):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for group in items:
            draws = [torch.randn(item.shape, generator=generator) for item in group[0]]
            for members in group:
                for item, draw in zip(members, draws, strict=True):
                    item.grad = draw.clone().view_as(item)
        yield


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_matrices_follow_torchs_muon_and_the_rest_follows_adamw(decay, monkeypatch):
    monkeypatch.setattr(muon, "_iteration_dtype", lambda device: torch.bfloat16)  # as torch does everywhere
    start = [torch.randn(6, 10), torch.randn(12, 5)], [torch.randn(7), torch.randn(3, 4)]
    own, other = (copy.deepcopy(start) for _ in range(2))
    mine = Muon([{"params": own[0]}, {"params": own[1], "muon": False}], lr=1e-2, betas=(0.9, 0.95), weight_decay=decay)
    theirs = [
        torch.optim.Muon(other[0], lr=1e-2, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(other[1], lr=1e-2, betas=(0.9, 0.95), weight_decay=decay),
    ]
    for _ in gradients([(own[0], other[0]), (own[1], other[1])]):
        mine.step()
        for each in theirs:
            each.step()
    for one, two in zip((*own[0], *own[1]), (*other[0], *other[1]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_a_kernel_is_trained_as_its_matrix():
    kernel = torch.randn(6, 5, 3, 3)
    matrix = kernel.flatten(1).clone()
    both = Muon([kernel], lr=1e-2), Muon([matrix], lr=1e-2)
    for _ in gradients([([matrix], [kernel])]):
        for each in both:
            each.step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_vectors_in_a_group_for_muon_are_refused():
    with pytest.raises(ValueError, match=r"matrices and kernels, got shape \(3,\): give its group muon=False"):
        Muon([torch.zeros(3)])


def test_ends_embeddings_tokens_and_vectors_are_left_to_adamw():
    unet = Unet(dim=8, dim_mults=(1, 2), attn_heads=2, attn_dim_head=4, text_embed_dim=6, layer_attns=False,
                use_linear_attn=True)  # fmt: skip
    names = {id(item): name for name, item in unet.named_parameters()}
    first, second, third = ([names[id(item)] for item in group["params"]] for group in muon_groups(unet, 0.1))
    assert sorted((*first, *second, *third)) == sorted(names.values())
    assert {"mid_block1.conv1.weight", "to_time_cond.weight", "text_to_cond.weight"} <= set(first)
    assert {"final_conv.weight", "attn_pool.positions.weight", "attn_pool.latents", "null_text_embed"} <= set(second)
    assert any(name.startswith("init_conv.") for name in second) and all("bias" not in name for name in first)
    assert any(name.endswith("to_qkv.1.weight") for name in second)  # depthwise
    shapes = dict(unet.named_parameters())
    assert all(shapes[name].ndim == 1 or shapes[name].ndim == 0 for name in third)
    assert [group["weight_decay"] for group in muon_groups(unet, 0.1)] == [0.1, 0.1, 0.0]
    assert muon_groups(unet, 0.1, decay_vectors=True)[2]["weight_decay"] == 0.1


# -- in the trainer ---------------------------------------------------------------------------------------------------


def new(**options):
    torch.manual_seed(0)
    return ImagenTrainer(small_imagen(condition_on_text=False), **{"verbose": False, "seed": 1, **options})


def step(made, count=1):
    losses = []
    for _ in range(count):
        losses.append(made(pictures(2), unet_number=1))
        assert made.update(1)
    return losses


def weights(made):
    return [item.detach().clone() for item in made.imagen.parameters()]


def same(one, other):
    return all(map(torch.equal, one, other))


SGD = partial(torch.optim.SGD, momentum=0.9)
CHOICES = {
    "muon": {"optimizer": "muon", "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw"},
    "class": {"optimizer": torch.optim.NAdam, "weight_decay": 0.1},
    "function": {"optimizer": SGD},
}


SLOW = ("adamw", "function")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CHOICES])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, name):
    options = {"lr": 1e-3, "warmup_steps": 4, "use_ema": False, **CHOICES[name]}
    whole = new(**options)
    step(whole, 2)
    whole.save(tmp_path / "a.pt")
    losses = step(whole, 2)
    other = new(**options)
    other.load(tmp_path / "a.pt")
    assert other.resume_notes == [] and step(other, 2) == losses and same(weights(whole), weights(other))


def test_names_and_classes_make_what_they_say():
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "muon": Muon, "torch.optim.SGD": torch.optim.SGD}
    for name, kind in kinds.items():
        made = new(optimizer=name, lr=1e-3)
        assert type(made.optim0) is kind
        assert made.optim0.param_groups[0]["weight_decay"] == (0.01 if name == "adamw" else 0)
    assert new(optimizer="adamw", weight_decay=0.2).optim0.param_groups[0]["weight_decay"] == 0.2
    assert [group["weight_decay"] for group in new(optimizer=SGD, weight_decay=0.1).optim0.param_groups] == [0.1, 0.0]
    assert type(copy.deepcopy(new(optimizer="muon")).optim0) is Muon


def test_what_is_not_stated_comes_from_the_checkpoint_and_a_change_is_said(tmp_path):
    made = new(optimizer="muon", lr=1e-3, weight_decay=0.1)
    step(made)
    made.save(tmp_path / "a.pt")
    unstated, stated = new(), new(optimizer="adam")
    unstated.load(tmp_path / "a.pt")
    assert isinstance(unstated.optim0, Muon) and unstated.optim0.state and unstated.resume_notes == []
    assert [group["weight_decay"] for group in unstated.optim0.param_groups] == [0.1, 0.1, 0.0]
    stated.load(tmp_path / "a.pt")
    assert isinstance(stated.optim0, torch.optim.AdamW) and not stated.optim0.state
    line = "optimizer of U-Net 1: adam (the checkpoint has muon), its moments begin anew"
    assert stated.resume_notes == [line]
    step(stated)


def test_opening_a_checkpoint_imports_nothing(tmp_path):
    made = new(optimizer=SGD, lr=1e-3)
    step(made)
    made.save(tmp_path / "a.pt")
    with pytest.raises(CheckpointMismatch, match=r"optim0 is of the optimizer torch\.optim\.sgd\.SGD: give"):
        new().load(tmp_path / "a.pt")
    new(optimizer="adam").load(tmp_path / "a.pt")
    new(optimizer=torch.optim.SGD).load(tmp_path / "a.pt")


def test_moments_that_do_not_fit_are_refused(tmp_path):
    made = new(optimizer="muon", lr=1e-3)
    step(made)
    made.save(tmp_path / "a.pt")
    contents = read_checkpoint(tmp_path / "a.pt")
    first = contents["optim0"]["state"][0]
    for value, words in ((torch.zeros(2), "momentum_buffer of shape"), (first["momentum_buffer"] / 0, "optim0")):
        contents["optim0"]["state"][0] = {"momentum_buffer": value}
        write_checkpoint(contents, tmp_path / "b.pt")
        with pytest.raises(CheckpointError, match=words):
            new(optimizer="muon").load(tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"optimizer": "moun"}, ValueError, 'no optimizer "moun"; known: adam, adamw, muon.* did you mean "muon"'),
        ({"optimizer": "torch.optim.Nothing"}, ValueError, '"torch.optim.Nothing" cannot be imported'),
        ({"optimizer": "nothing.at.all"}, ValueError, "cannot be imported: No module named 'nothing'"),
        ({"optimizer": lambda groups, lr: {}}, TypeError, "makes a dict, not a torch.optim.Optimizer"),
        ({"optimizer": SGD, "beta1": 0.5}, ValueError, "beta1 would not reach it; bind its own arguments"),
        ({"optimizer": "muon", "amsgrad": True}, ValueError, 'optimizer="muon" takes no amsgrad'),
    ],
)
def test_impossible_optimizers_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        new(**options)


@pytest.mark.parametrize("given", [torch.optim.SGD([torch.zeros(1)]), 5, None])
def test_what_makes_no_optimizer_is_refused(given):
    with pytest.raises(TypeError, match="must be one of adam, adamw, muon, or a class or function that makes"):
        chosen_optimizer(given, {}, (), False)
    with pytest.raises(ValueError, match='strategy="fsdp2" trains with optimizer="adam" only'):
        chosen_optimizer("muon", {}, (), True)


def test_the_configuration_names_the_optimizer(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    write_config(model=SMALL, trainer={"lr": 1e-3, "optimizer": "muon"})
    succeed("train", "--steps", 2, "-q", "--log-every", 1)
    assert len(metrics()) == 2 and read_checkpoint("imagen.pt")["state"]["settings"]["optimizer"] == "muon"
    write_config(model=SMALL, trainer={"optimizer": "nothing"})
    refused(command("train", "--steps", 1, "-q"), 2, "trainer.optimizer", "known: adam, adamw, muon")
