"""Videos longer than a window: every frame once, from frames that exist, and as good as the conditionals allow."""

from __future__ import annotations

import pytest
import torch
from cascade_toys import SMALL, sample, video_cascade

from imagen_pytorch import Imagen, Unet3D
from imagen_pytorch.cascade.long_video import SCHEMES, Part, checked

SIZES = [(1, 2), (5, 8), (8, 8), (9, 3), (16, 8), (17, 8), (33, 6), (64, 10)]


def video_model(**options):
    torch.manual_seed(0)
    unet = Unet3D(**{**SMALL, "cond_on_text": False, "time_causal_attn": False, **options})
    for part in unet.parameters():
        part.data += 0.03 * torch.randn(part.shape)
    return Imagen(unet, image_sizes=8, condition_on_text=False, timesteps=2)


@pytest.mark.parametrize("scheme", SCHEMES.names())
@pytest.mark.parametrize(("total", "window"), SIZES)
def test_every_scheme_makes_each_frame_once_from_frames_that_exist(scheme, total, window):
    parts = SCHEMES[scheme](total, window)
    assert checked(parts, total, window) == parts
    assert sorted(index for part in parts for index in part.new) == list(range(total))
    assert all(part.given for part in parts[1:])


def divergence(parts, exact):
    """KL divergence of what exact conditionals of a scheme make from the exact Gaussian, in nats."""
    made = torch.zeros_like(exact)
    for given, new in parts:
        known, fresh = list(given), list(new)
        gain = exact[fresh][:, known] @ torch.linalg.inv(exact[known][:, known]) if known else None
        rest = exact[fresh][:, fresh] - (gain @ exact[known][:, fresh] if known else 0)
        done = [index for index in range(len(exact)) if float(made[index, index]) > 0]
        if known:
            cross = gain @ made[known][:, done]
            made[torch.tensor(fresh)[:, None], torch.tensor(done)] = cross
            made[torch.tensor(done)[:, None], torch.tensor(fresh)] = cross.T
            rest = rest + gain @ made[known][:, known] @ gain.T
        made[torch.tensor(fresh)[:, None], torch.tensor(fresh)] = rest
    ratio = torch.linalg.solve(exact, made)
    return float((ratio.trace() - len(exact) - torch.linalg.slogdet(ratio)[1]) / 2)


def stationary(correlation, count):
    places = torch.arange(count, dtype=torch.float64)
    return correlation((places[:, None] - places).abs())


def test_which_scheme_loses_what():
    """Exact where the nearest frames are given and frames forget all others; else the far ones are missed."""
    markov = stationary(lambda apart: 0.9**apart, 24)
    slow = stationary(lambda apart: 0.5 + 0.5 * 0.6**apart, 24)  # half of the variance is the whole video's own
    smooth = stationary(lambda apart: torch.exp(-(apart**2) / 20), 24) + 0.01 * torch.eye(24, dtype=torch.float64)
    processes = (markov, slow, smooth)
    lost = {name: [divergence(SCHEMES[name](24, 8), exact) for exact in processes] for name in SCHEMES.names()}
    assert all(abs(values[0]) < 1e-9 for values in lost.values())
    expected = {"autoregressive": (0.393, 0.226), "long_range": (0.095, 0.724), "hierarchical": (0.062, 0.891)}
    for name, values in expected.items():
        assert lost[name][1:] == pytest.approx(values, abs=1e-3)
    apart = [((), (0, 1, 2, 3)), ((0, 1), (4, 5, 6, 7))]
    assert divergence([Part(*part) for part in apart], markov[:8][:, :8]) > 0.3  # the nearest frames were not given


@pytest.mark.parametrize("scheme", [*SCHEMES.names(), [((), (0, 4)), ((0, 4), (1, 2, 3)), ((3, 4), (5, 6))]])
def test_given_frames_are_those_made_before_at_their_times(scheme, monkeypatch):
    model, made, calls = video_model(), {}, []

    def spy(self, video_frames, frame_times, cond_video_frames=None, **_):
        index = (frame_times[0] * 8).round().long().tolist()
        given, new = index[: len(index) - video_frames], index[len(index) - video_frames :]
        for place, number in enumerate(given):
            assert torch.equal(cond_video_frames[:, :, place], made[number])
        clip = torch.rand(1, 3, len(new), 8, 8)
        made.update({number: clip[:, :, place] for place, number in enumerate(new)})
        calls.append(len(index))
        return clip

    monkeypatch.setattr(type(model), "sample", spy)
    film = model.sample_long(7, 5, scheme)
    assert max(calls) <= 5
    assert all(torch.equal(film[:, :, number], made[number]) for number in range(7))


@pytest.mark.parametrize("inpaint", [False, True])
def test_a_seed_gives_the_same_film_in_any_batch(inpaint):
    model = video_model()
    options = {"use_tqdm": False, "inpaint": inpaint, **({"inpaint_resample_times": 1} if inpaint else {})}
    both = model.sample_long(6, 4, batch_size=2, seed=3, **options)
    second = model.sample_long(6, 4, batch_size=1, seed=4, **options)
    assert both.shape == (2, 3, 6, 8, 8) and torch.allclose(both[1:], second, atol=1e-5)
    assert not torch.equal(both[:, :, 0:2], both[:, :, 4:6])  # another call, other noise


def test_a_film_no_longer_than_the_window_is_one_sample():
    model = video_model()
    film = model.sample_long(4, 8, seed=0, use_tqdm=False)
    assert torch.equal(film, sample(model, video_frames=4))


def test_a_causal_network_goes_forward_but_cannot_fill_in():
    model = video_model(time_causal_attn=True)
    assert model.sample_long(6, 4, use_tqdm=False).shape[2] == 6
    with pytest.raises(
        ValueError, match="causal .time_causal_attn=True.: its frames cannot see given ones that follow"
    ):
        model.sample_long(9, 4, "hierarchical", use_tqdm=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 4, "backwards"), 'no scheme "backwards"; known: autoregressive, long_range, hierarchical'),
        ((8, 1), "a window of 2, got 8 and 1"),
        ((4, 4, [((), (0, 1)), ((2,), (3,))]), "call 2 of the scheme must make new frames, each once"),
        ((4, 4, [((), (0, 1, 2))]), r"each of the frames 0 to 3 once; amiss: \[3\]"),
        ((4, 2, [((), (0, 1, 2, 3))]), "call 1 of the scheme has 4 frames, the window 2"),
    ],
)
def test_mistakes_get_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        video_model().sample_long(*arguments, use_tqdm=False)


def test_frames_are_not_named_twice():
    with pytest.raises(ValueError, match="each call of sample_long makes: it takes no video_frames"):
        video_model().sample_long(8, 4, video_frames=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1, "generator": torch.Generator()}, "seed or generator, not both"),
        ({"init_images": torch.rand(1, 3, 8, 8, 8), "strength": 0.5}, "it takes no init_images"),
        ({"inpaint_images": torch.rand(1, 3, 8, 8, 8), "inpaint_masks": torch.ones(1, 8, 8)}, "no inpaint_images, inp"),
        ({"start_image_or_video": torch.rand(1, 3, 4, 4, 4), "start_at_unet_number": 2}, "no start_image_or_video"),
        ({"stop_at_unet_number": 1}, "makes every frame, but U-Net 1 makes one of 2 .*stop_at_unet_number"),
        ({"stop_at_unet_number": 3}, "cannot start at 1 and stop at 3"),
        ({"bach_size": 2}, "bach_size"),
    ],
)
def test_what_a_later_call_could_not_do_is_known_before_the_first(options, message):
    model = video_cascade(stages=2, condition_on_text=False, temporal_downsample_factor=(2, 1))
    steps = []
    with pytest.raises((ValueError, TypeError), match=message):
        model.sample_long(8, 4, callback=lambda *step: steps.append(step), use_tqdm=False, **options)
    assert not steps


@pytest.mark.parametrize("scheme", [[(0, 1, 2)], [((), ("a", "b"))], [((), (0.5,))], [3]])
def test_a_scheme_is_a_name_or_pairs_of_frame_indices(scheme):
    with pytest.raises(TypeError, match=r"^scheme must be a name or a list of \(given, new\) frame indices"):
        checked(scheme, 4, 4)
