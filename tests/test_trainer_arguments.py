"""Every argument of the trainer does what it says, or is refused by its name."""

from __future__ import annotations

import copy
import inspect
import math
import warnings

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from toys import CAPTIONS, pictures, small_imagen

from imagen_pytorch import Imagen, ImagenTrainer, Unet3D
from imagen_pytorch.training.arguments import HONOURED, NUMBERS, REFUSED, SWITCHES, check_arguments

IMPOSSIBLE = (math.nan, math.inf, -math.inf, -1, -0.5, 0, True, "1", {}, 2.5, torch.ones(2))


@pytest.fixture(scope="module")
def model():
    return small_imagen()


def impossible(name):
    """What a number can never be; what is possible for this one left out."""
    fits = NUMBERS[name]
    for value in IMPOSSIBLE:
        finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (finite and (isinstance(value, int) or not fits.whole) and fits.fits(value)):
            yield value


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_refuses_what_is_impossible_by_its_name(model, name):
    values = list(impossible(name))
    assert any(value is True for value in values) and "1" in [value for value in values if isinstance(value, str)]
    for value in values:
        with pytest.raises((ValueError, TypeError), match=f"{name} must .*, got "):
            ImagenTrainer(model, **{name: value})
        if name in ("lr", "eps", "warmup_steps", "cosine_decay_max_steps", "cooldown_steps"):
            with pytest.raises((ValueError, TypeError), match=f"{name} must .*, got "):
                ImagenTrainer(model, **{name: [value]})


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_is_true_or_false(model, name):
    for value in ("no", "x", 0.5, 2, None):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got "):
            ImagenTrainer(model, **{name: value})


def test_every_argument_with_a_number_or_a_switch_is_checked():
    """A new argument of the trainer belongs into one of the tables."""
    others = {
        "imagen", "imagen_checkpoint_path", "precision", "dl_tuple_output_keywords_names", "checkpoint_path",
        "checkpoint_fs", "fs_kwargs", "strategy", "compile", "on_save_error", "options", "self", "posthoc_ema",
        "optimizer",
    }  # fmt: skip
    arguments = inspect.signature(ImagenTrainer.__init__).parameters.keys() - others
    assert arguments <= NUMBERS.keys() | set(SWITCHES)


def test_what_is_possible_is_taken():
    check_arguments(dict.fromkeys(NUMBERS.keys() - {"beta1", "beta2"}, 1))
    check_arguments({"beta1": 0.0, "beta2": 0.999, "lr": [1e-3, 0], "max_grad_norm": None, "seed": -1})


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_gradient_norm_that_trains_uphill_or_not_at_all_is_refused(model, value):
    with pytest.raises(ValueError, match="max_grad_norm must be above 0 and finite or None, got"):
        ImagenTrainer(model, max_grad_norm=value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_refused_with_what_to_do(dtype):
    imagen = small_imagen((8, 16))
    imagen.unets[1].to(dtype)
    words = rf"U-Net 2 has weights in {str(dtype)[6:]} \(\w.*\).*call float\(\) on the model; precision="
    with pytest.raises(ValueError, match=words):
        ImagenTrainer(imagen, verbose=False)
    imagen.unets[1].requires_grad_(False)  # what is not trained may have any precision
    ImagenTrainer(imagen, verbose=False, only_train_unet_number=1)
    assert ImagenTrainer(imagen.float(), precision="bf16", verbose=False).precision.name == "bf16"


# -- what is forwarded to Accelerate ----------------------------------------------------------------------------------


def parameters_of_accelerator():
    return inspect.signature(Accelerator.__init__).parameters.keys() - {"self"}


def test_every_argument_of_accelerate_is_honoured_or_refused():
    """A new one of a later version belongs into one of the tables."""
    assert parameters_of_accelerator() <= set(HONOURED) | REFUSED.keys()
    assert not set(HONOURED) & REFUSED.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_nothing_here_is_refused_by_name_with_what_to_say_instead(model, name):
    with pytest.raises(ValueError, match=f"accelerate_{name} does nothing here: .+"):
        ImagenTrainer(model, **{f"accelerate_{name}": object()})


def test_two_ways_to_say_a_precision_must_agree(model):
    with pytest.raises(ValueError, match="precision='no' and accelerate_mixed_precision='bf16' contradict"):
        ImagenTrainer(model, precision="no", accelerate_mixed_precision="bf16")
    assert ImagenTrainer(model, accelerate_mixed_precision="bf16", verbose=False).precision.name == "bf16"


class Kept(GeneralTracker):
    """Keeps what it is told."""

    name, requires_logging_directory, main_process_only = "kept", False, True

    def __init__(self):
        super().__init__()
        self.rows = []

    @property
    def tracker(self):
        return self.rows

    def store_init_configuration(self, values):
        self.configuration = values

    def log(self, values, step=None, **_):
        self.rows.append((step, values))


def test_trackers_get_loss_and_rate():
    kept = Kept()
    made = ImagenTrainer(small_imagen((8, 16)), lr=(1e-3, 2e-3), verbose=False, accelerate_log_with=kept)
    losses = []
    for number in (1, 2, 2):
        losses.append(made(pictures(size=16), texts=CAPTIONS, unet_number=number))
        made.update(number)
    assert kept.rows == [
        (1, {"unet1/loss": losses[0], "unet1/lr": 1e-3}),
        (2, {"unet2/loss": losses[1], "unet2/lr": 2e-3}),
        (3, {"unet2/loss": losses[2], "unet2/lr": 2e-3}),
    ]


def test_a_tracker_whose_package_is_missing_is_refused(model):
    with pytest.raises(ValueError, match="accelerate_log_with='comet_ml'.*not installed"):
        ImagenTrainer(model, accelerate_log_with="comet_ml")
    with pytest.raises(ValueError, match="accelerate_project_dir is for trackers: .*accelerate_log_with"):
        ImagenTrainer(model, accelerate_project_dir="x")


# -- gradients of several batches -------------------------------------------------------------------------------------


def test_gradients_of_batches_are_averaged_and_applied_together():
    """Four batches of two are one batch of eight: the same gradient, and one update."""
    torch.manual_seed(0)
    kept = []
    made = ImagenTrainer(small_imagen(), lr=1e-3, verbose=False, seed=1, accelerate_gradient_accumulation_steps=4)
    before = [item.detach().clone() for item in made.imagen.parameters()]
    alone = [torch.zeros_like(item) for item in made.imagen.parameters()]
    twin = ImagenTrainer(small_imagen(), lr=1e-3, verbose=False, seed=1)
    twin.imagen.load_state_dict(made.imagen.state_dict())
    for index in range(4):
        images = pictures(2, seed=index)
        made(images, texts=CAPTIONS[:2])
        twin(images, texts=CAPTIONS[:2])
        for total, item in zip(alone, twin.imagen.parameters(), strict=True):
            total += 0 if item.grad is None else item.grad / 4
        twin.optim0.zero_grad()
        if index == 3:
            kept = [torch.zeros_like(item) if item.grad is None else item.grad.clone() for item in
                    made.imagen.parameters()]  # fmt: skip
        assert made.update() == (index == 3) and made.steps.tolist() == [int(index == 3)]
        changed = any(not torch.equal(one, other) for one, other in zip(before, made.imagen.parameters(), strict=True))
        assert changed == (index == 3)
    for mine, theirs in zip(kept, alone, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)


def test_a_checkpoint_between_batches_goes_on_there(tmp_path):
    def new():
        torch.manual_seed(2)
        return ImagenTrainer(small_imagen(), lr=1e-3, verbose=False, seed=1, accelerate_gradient_accumulation_steps=3)

    def batches(made, indices):
        for index in indices:
            made(pictures(seed=index), texts=CAPTIONS)
            made.update()
        return [item.detach().clone() for item in made.imagen.parameters()]

    whole = new()
    batches(whole, range(2))
    whole.save(tmp_path / "a.pt")
    other = new()
    other.load(tmp_path / "a.pt")
    wanted, found = batches(whole, range(2, 6)), batches(other, range(2, 6))
    assert other.steps.tolist() == [2] and all(map(torch.equal, wanted, found))


# -- keywords of the batch --------------------------------------------------------------------------------------------


def test_steps_hand_keywords_on_to_the_loss(monkeypatch):
    video = Imagen(Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2, attn_dim_head=8), image_sizes=8, timesteps=2,
                   condition_on_text=False)  # fmt: skip
    made, seen = ImagenTrainer(video, verbose=False, seed=1), []
    batch = video.training_batch
    monkeypatch.setattr(video, "training_batch", lambda **kwargs: seen.append(kwargs) or batch(**kwargs))
    made.add_train_dataset([torch.rand(3, 4, 8, 8) for _ in range(2)], batch_size=2)
    made.add_valid_dataset([torch.rand(3, 4, 8, 8) for _ in range(2)], batch_size=2)
    made.train_step(unet_number=1, ignore_time=True, fps=4.0)
    made.valid_step(unet_number=1, ignore_time=True)
    assert seen[0]["ignore_time"] is True and seen[0]["fps"] == 4.0 and seen[1]["ignore_time"] is True
    for call in (made.train_step, made.valid_step):
        with pytest.raises(TypeError, match="ignore_tiem"):
            call(ignore_tiem=True)


# -- copies -----------------------------------------------------------------------------------------------------------


def test_a_copy_of_a_trainer_trains_on_its_own():
    made = ImagenTrainer(small_imagen(), lr=1e-3, verbose=False, seed=1, warmup_steps=3, ema_update_after_step=0)
    for _ in range(2):
        made(pictures(), texts=CAPTIONS)
        made.update()
    other = copy.deepcopy(made)
    assert other.stated == made.stated and other.get_lr(1) == made.get_lr(1)
    before = {name: item.clone() for name, item in made.state_dict().items()}
    other(pictures(), texts=CAPTIONS)
    other.update()
    assert other.steps.tolist() == [3] and made.steps.tolist() == [2]
    assert all(torch.equal(item, before[name]) for name, item in made.state_dict().items())
    made(pictures(), texts=CAPTIONS)
    made.update()
    assert all(torch.equal(item, other.state_dict()[name]) for name, item in made.state_dict().items())
    assert other.get_lr(1) == made.get_lr(1)


# -- what is said -----------------------------------------------------------------------------------------------------


def test_a_loader_without_images_is_told_how_to_rename(model):
    made = ImagenTrainer(model, verbose=False)
    made.add_train_dataloader([{"image": pictures(), "texts": CAPTIONS}])
    with pytest.raises(ValueError, match=r'yields "image", "texts" and no "images"; did you mean "image"\?; rename'):
        made.train_step()
    made = ImagenTrainer(model, verbose=False)
    made.add_train_dataloader([{"images": pictures(), "texts": CAPTIONS, "label": torch.zeros(4)}])
    with pytest.raises(TypeError, match='a batch has no "label"; it has images, texts'):
        made.train_step()


def test_labels_beside_images_are_no_embeddings(model):
    made = ImagenTrainer(model, verbose=False)
    made.add_train_dataloader([(pictures(), torch.arange(4))])
    with pytest.raises(ValueError, match=r"entry 2 of the loader's tuple was taken for text_embeds.*got \(4,\)"):
        made.train_step()


def test_a_network_of_which_nothing_is_trained_is_named():
    made = ImagenTrainer(small_imagen().requires_grad_(False), verbose=False)
    with pytest.raises(ValueError, match="U-Net 1 has nothing to train: none of its parameters requires a gradient"):
        made(pictures(), texts=CAPTIONS)


def test_an_encoder_in_front_gets_the_gradient_of_all_pieces():
    found = []
    for pieces in (None, 2):
        torch.manual_seed(0)
        made = ImagenTrainer(small_imagen(unet={"text_embed_dim": 5}, text_embed_dim=5), verbose=False, seed=1)
        with torch.no_grad():  # much of a new network is zero
            for item in made.imagen.parameters():
                item += 0.05 * torch.randn(item.shape)
        encoder = torch.nn.Linear(3, 5)
        made(pictures(), text_embeds=encoder(torch.ones(4, 2, 3)), max_batch_size=pieces)
        found.append(encoder.weight.grad)
    assert float(found[0].abs().max()) > 0
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


def test_saving_says_where_and_what_can_be_typed_with_it(tmp_path, capsys):
    made = ImagenTrainer(small_imagen())
    path = str(tmp_path / "my run.pt")
    made.save(path)
    said = capsys.readouterr().out
    assert f"saved to {path}: trainer.load({path!r})" in said and f"imagen sample --model '{path}'" in said
    made.verbose = False
    made.save(path)
    assert capsys.readouterr().out == ""


def test_a_rate_that_fell_to_zero_is_said_once():
    made = ImagenTrainer(small_imagen(), verbose=False, cosine_decay_max_steps=2)

    def steps(count):
        for _ in range(count):
            made(pictures(), texts=CAPTIONS)
            made.update()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(2)
    with pytest.warns(UserWarning, match=r"rate of U-Net 1 fell to 0 at update 2, .*set_decay\(1, ...\)") as caught:
        steps(2)
    assert len(caught) == 1
    made.set_decay(1, 10)
    assert made.get_lr(1) > 0
