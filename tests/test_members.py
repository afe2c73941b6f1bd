"""Every schedule, objective, weighting, distribution, sampler, grid and guidance with every parameter, by each road."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import dataclass

import click
import pytest
import torch
from cascade_toys import cascade, sample
from jaxtyping import config

from imagen_pytorch import ElucidatedImagen, Imagen, ImagenTrainer, Network
from imagen_pytorch.checkpoint import load_imagen_from_checkpoint
from imagen_pytorch.cli._options import Entry, PerStage, split_values
from imagen_pytorch.cli._settings import with_entry
from imagen_pytorch.configs import ImagenConfig, cascade_model
from imagen_pytorch.construction import records_construction
from imagen_pytorch.diffusion.guidance import GUIDANCE, Interval
from imagen_pytorch.diffusion.losses import NOISE_LEVELS, WEIGHTINGS, LogNormal, MinSNR
from imagen_pytorch.diffusion.objectives import OBJECTIVES
from imagen_pytorch.diffusion.process import DiffusionProcess
from imagen_pytorch.diffusion.samplers import SAMPLERS, Ancestral
from imagen_pytorch.diffusion.schedules import GRIDS, SCHEDULES, Cosine, Flow
from imagen_pytorch.imagen import imagen_from_config
from imagen_pytorch.registry import Registry
from imagen_pytorch.signatures import ConfigError, parse

FAMILIES = {
    "noise_schedules": SCHEDULES,
    "pred_objectives": OBJECTIVES,
    "noise_levels": NOISE_LEVELS,
    "weighting": WEIGHTINGS,
    "sampler": SAMPLERS,
    "guidance": GUIDANCE,
    "grid": GRIDS,
}

#: a value of each parameter that is no member's default
VALUES = {
    "s": 0.01, "clip": [-10.0, 10.0], "shift": 3.0, "sigma_min": 0.01, "sigma_max": 50.0, "rho": 5.0,
    "betas": [0.1, 0.2], "sigma_data": 0.4, "P_mean": -1.0, "P_std": 1.0, "stratified": True, "mean": 0.2, "std": 0.8,
    "gamma": 1.5, "k": 2.0, "bias": -2.0, "low": -2.0, "high": 2.0, "phi": 0.5, "eta": 0.5, "radius": 5.0,
    "momentum": -0.5, "ref_steps": 20, "span": 8.0, "step": 0.3, "grid": "karras(rho=5.0)", "upper": 0.5,
    "S_churn": 20.0, "S_tmin": 0.1, "S_tmax": math.inf, "S_noise": 1.01, "order": 5, "heun": True,
}  # fmt: skip


@pytest.fixture
def unchecked():
    """Thousands of objects are made here; other tests check the annotations of the same functions."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def values_of(family, name):
    """Another value of each parameter; `heun` of the variant that has it is turned off."""
    defaults = {key: item.default for key, item in family.parameters(name).items()}
    return {key: not default if isinstance(default, bool) else VALUES[key] for key, default in defaults.items()}


MEMBERS = [(argument, name) for argument, family in FAMILIES.items() for name in family.names()]
PARAMETERS = [(*member, key) for member in MEMBERS for key in FAMILIES[member[0]].parameters(member[1])]


def written(name, values):
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})"


def same(one, other):
    """Whether two objects of a family are equal; functions with their keywords."""
    parts = ("func", "keywords")
    return one == other or all(getattr(one, part, 0) == getattr(other, part, 1) for part in parts)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("argument", "name", "key"), PARAMETERS)
def test_every_parameter_is_reached_by_text_mapping_and_object(argument, name, key):
    family = FAMILIES[argument]
    value = values_of(family, name)[key]
    made = family.make(written(name, {key: value}))
    default = family.make(name)
    assert not same(made, default)
    assert same(family.make(json.loads(json.dumps({"name": name, key: value}))), made)
    assert family.make(made) is made
    if not inspect.isfunction(family[name]):
        stated = tuple(value) if isinstance(value, list) else value
        assert getattr(made, key) == stated and made == family[name](**{key: stated})
    assert same(family.make(family.spell(made)), made)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("argument", "name"), MEMBERS)
def test_every_member_is_spelled_as_it_is_made(argument, name):
    family = FAMILIES[argument]
    assert family.spell(family.make(name)) == name == family.name_of(family.make(name))
    every = family.make({"name": name, **values_of(family, name)})
    assert same(family.make(json.loads(json.dumps(family.spell(every)))), every)


# -- models -----------------------------------------------------------------------------------------------------------


def members_of(model):
    process = model.stages[0].process
    return {
        "noise_schedules": process.schedule,
        "pred_objectives": process.objective,
        "noise_levels": process.noise_levels,
        "weighting": process.weighting,
        "sampler": process.sampler,
        "guidance": GUIDANCE.make(model.guidance or "cfg"),
    }


#: EDM's schedule and its training levels belong to `ElucidatedImagen`, where the numbers of the schedule are arguments
EDM = {("noise_schedules", "karras"), ("noise_levels", "log_normal")}
BUILT = [member for member in MEMBERS if member[0] != "grid" and member != ("noise_schedules", "karras")]
UNET = {"dim": 8, "dim_mults": [1, 2], "layer_attns": False, "layer_cross_attns": False, "attn_heads": 2}


class Nothing(Network):
    """A network without weights, quickly built."""

    @records_construction
    def __init__(self):
        super().__init__(cond_on_text=False)

    def predict(self, x, time, conditions, self_cond):
        return x


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("argument", "name"), BUILT)
def test_every_member_with_parameters_is_reached_from_a_model_and_its_record(argument, name):
    family, kind = FAMILIES[argument], ElucidatedImagen if (argument, name) in EDM else Imagen
    values = values_of(family, name)
    made = family.make({"name": name, **values})
    for spec in (written(name, values), {"name": name, **values}, made):
        model = kind(Nothing(), image_sizes=8, condition_on_text=False, **{argument: spec})
        record = json.loads(json.dumps(model.to_config()))
        again = kind(Nothing(), **{key: value for key, value in record.items() if key not in ("type", "unets")})
        assert members_of(model)[argument] == members_of(again)[argument] == made


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("argument", "name"), BUILT)
def test_every_member_with_parameters_is_reached_from_json_and_the_command_line(argument, name):
    family, kind = FAMILIES[argument], "elucidated" if (argument, name) in EDM else "original"
    values = values_of(family, name)
    text, mapping = written(name, values), {"name": name, **values}
    made = family.make(mapping)
    base = {"unets": [UNET], "image_sizes": [8], "text_encoder_name": "builtin:words"}
    model = cascade_model(kind)
    for spec in (text, mapping, made):
        stated = parse(model, {**base, argument: spec}).model_dump(mode="json", exclude_unset=True)
        assert family.make(parse(model, stated).given()[argument]) == made
    for typed in (text, json.dumps(mapping)):
        entry = Entry().convert(f"imagen.{argument}={typed}", None, None)
        assert family.make(parse(model, with_entry({"imagen": base}, *entry)["imagen"]).given()[argument]) == made
    assert PerStage(str).convert(f"{text},{name}", None, None) == [text, name]  # --sampler and sweeps
    assert split_values(f"{name}, {text}") == [name, text]


def test_one_member_for_each_network():
    options = {
        "noise_schedules": ["flow(shift=3)", {"name": "cosine", "s": 0.01}],
        "weighting": ["sigmoid(bias=-2)", None],
    }
    with torch.device("meta"):
        model = cascade(Imagen, 2, noise_levels=[None, "logit_normal(mean=1)"], **options)
        again = imagen_from_config(json.loads(json.dumps(model.to_config())))
    for made in (model, again):
        first, second = (stage.process for stage in made.stages)
        assert (first.schedule, second.schedule) == (Flow(3.0), Cosine(s=0.01))
        assert first.weighting == WEIGHTINGS["sigmoid"](bias=-2.0) and second.weighting == MinSNR()
        assert first.noise_levels == NOISE_LEVELS["uniform"]() and second.noise_levels.mean == 1


def test_a_saved_model_reopens_with_the_parameters(tmp_path):
    own = {
        "noise_schedules": "flow(shift=3)",
        "pred_objectives": {"name": "edm", "sigma_data": 0.4},
        "noise_levels": "stratified",
        "weighting": WEIGHTINGS["soft_min_snr"](gamma=2.0),
        "sampler": "ddpm(eta=0.5)",
        "guidance": Interval(low=-2.0),
        "lowres_noise_schedule": "shifted_cosine(shift=2)",
    }
    model = cascade(Imagen, **own)
    ImagenTrainer(model).save(tmp_path / "model.pt")
    again = load_imagen_from_checkpoint(tmp_path / "model.pt")
    assert members_of(again) == members_of(model)
    assert again.augmentation.schedule == SCHEDULES["shifted_cosine"](shift=2.0) == model.augmentation.schedule


# -- what a model states already --------------------------------------------------------------------------------------


def test_parameters_that_are_not_stated_are_those_of_the_model():
    with torch.device("meta"):
        model = cascade(
            ElucidatedImagen,
            P_mean=-1.0,
            S_churn=7.0,
            noise_levels="log_normal(stratified=True)",
            sampler="edm(S_noise=1)",
        )
        imagen = cascade(Imagen, min_snr_gamma=3.0, weighting="min_snr")
    process = model.stages[0].process
    assert process.noise_levels == LogNormal(P_mean=-1.0, stratified=True)
    assert process.sampler == SAMPLERS["edm"](S_churn=7.0, S_noise=1.0)
    assert imagen.stages[0].process.weighting == MinSNR(3.0)
    for asked, expected in (
        ("edm(S_tmin=1)", {"S_churn": 7.0, "S_noise": 1.0, "S_tmin": 1.0}),
        ("edm", {"S_churn": 7.0, "S_noise": 1.0}),
    ):
        assert process.plan(3, asked)[0] == SAMPLERS["edm"](**expected)


def test_the_number_of_steps_stays_with_the_sampler_whatever_its_parameters():
    parts = (SCHEDULES.make("cosine"), OBJECTIVES.make("v"), NOISE_LEVELS.make("uniform"), WEIGHTINGS.make("plain"))
    process = DiffusionProcess(*parts, Ancestral(), steps=40)
    count = {
        spec: len(process.plan(None, spec)[1]) - 1 for spec in ("ddpm(eta=0.5)", "ancestral", "ddim", "ab2", "ab3")
    }
    assert count == {"ddpm(eta=0.5)": 40, "ancestral": 40, "ddim": 50, "ab2": 20, "ab3": 20}
    process = DiffusionProcess(*parts, SAMPLERS.make("ab2(grid='log_snr')"), steps=7)
    assert process.plan(None, "ab2")[0].grid == "log_snr" and len(process.plan(None, "ab3")[1]) - 1 == 20


def test_a_stated_grid_wins_over_those_of_schedule_and_sampler():
    for schedule in (SCHEDULES.make("cosine"), SCHEDULES.make("karras")):
        found = SAMPLERS.make("ddpm(grid='karras(rho=3)')").discretize(schedule, 5)
        expected = GRIDS.make({"name": "karras", "rho": 3})(schedule, 5)
        assert [float(level.log_snr) for level in found[:-1]] == pytest.approx(expected.tolist())
        preferred = SAMPLERS.make("ddpm").discretize(schedule, 5)
        grid = GRIDS[schedule.grid or "time"](schedule, 5)
        assert [float(level.log_snr) for level in preferred[:-1]] == pytest.approx(grid.tolist())


def test_parameters_reach_the_images():
    model = cascade(Imagen, condition_on_text=False, sampler="ddpm(eta=0)")
    plain = sample(model, sampler="ddim(grid='time')", steps=3)
    assert torch.equal(sample(model, steps=3), sample(model, sampler={"name": "ddpm", "eta": 0}, steps=3))
    torch.testing.assert_close(sample(model, steps=3), plain)
    assert not torch.equal(sample(model, sampler="ddpm(eta=1)", steps=3), plain)


# -- mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES = [
    (SCHEDULES, "flo(shift=3)", ValueError, 'no noise schedule "flo"; known: cosine, .*did you mean "flow"'),
    (SCHEDULES, "flow(shft=3)", ValueError, 'has no parameter "shft"; did you mean "shift".* it has shift=1.0, clip='),
    (SCHEDULES, "flow(shift='3')", TypeError, 'shift of the noise schedule "flow" must be a number, got \'3\''),
    (SCHEDULES, "flow(shift=True)", TypeError, "must be a number, got True"),
    (SCHEDULES, "flow(shift=-1)", ValueError, "shift .* must be a number above 0 and at most 1e.06, got -1"),
    (SCHEDULES, "karras(sigma_min=3, sigma_max=2)", ValueError, '"karras": need 0 < sigma_min .*it has sigma_min='),
    (SCHEDULES, "flow(clip=[1, 2, 3])", TypeError, "clip .* must be a list of 2 numbers"),
    (SCHEDULES, "flow(shift=__import__('os').getpid())", ValueError, "values are numbers, texts in quotes"),
    (SCHEDULES, "flow(shift=3", ValueError, r"is not of the form flow\(parameter=value"),
    (SCHEDULES, "flow(3)", ValueError, "is not of the form"),
    (SCHEDULES, "flow(shift=1)(shift=2)", ValueError, "is not of the form"),
    (SCHEDULES, "flow(shift=1, shift=2)", ValueError, "is not of the form"),
    (SCHEDULES, "flow(**{'shift': 1})", ValueError, "is not of the form"),
    (SCHEDULES, f"flow(shift={'(' * 9999}1{')' * 9999})", ValueError, "is not of the form"),
    (SCHEDULES, f"flow(shift={'-' * 900}1)", ValueError, "is not of the form|must be"),
    (SCHEDULES, f"flow(shift={'-' * 50_000}1)", ValueError, "is not of the form"),
    (SCHEDULES, {"shift": 3}, ValueError, r'a noise schedule with parameters is \{"name": \.\.\.'),
    (SCHEDULES, 5, TypeError, "a noise schedule is a name, or a mapping with a name, got 5"),
    (SCHEDULES, Ancestral(), TypeError, "a noise schedule is a name"),
    (SAMPLERS, "ddim(eta=1)", ValueError, 'the sampler "ddim" has no parameter "eta"; it has grid=None'),
    (SAMPLERS, "ddim(grid='karas')", ValueError, 'no grid "karas"; .*did you mean "karras"'),
    (SAMPLERS, "ab2(order=2.5)", TypeError, "order .* must be a whole number, got 2.5"),
    (SAMPLERS, "ab2(order=99)", ValueError, "must be a whole number of at least 1 and at most 8"),
    (GRIDS, "log_snr(rho=3)", ValueError, 'has no parameter "rho"; it has no parameters'),
    (GUIDANCE, "cfg(scale=3)", ValueError, 'has no parameter "scale"; it is cond_scale'),
    (NOISE_LEVELS, "log_normal(stratified=1)", TypeError, "stratified .* must be True or False, got 1"),
    (GUIDANCE, "cfgpp(step='x')", TypeError, "step .* must be a number above 0 .* or None, got"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "spec", "error", "sentence"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line_that_lists_what_fits(family, spec, error, sentence):
    with pytest.raises(error, match=sentence) as found:
        family.make(spec)
    assert "\n" not in str(found.value) and len(str(found.value)) < 600


def test_mistakes_name_their_place():
    base = {"unets": [UNET], "image_sizes": [8], "text_encoder_name": "builtin:words"}
    with pytest.raises(ConfigError, match='^sampler: .*"ddim" has no parameter "eta"'):
        parse(ImagenConfig, {**base, "sampler": "ddim(eta=1)"})
    with pytest.raises(ConfigError, match="^noise_schedules: .*must be a number"):
        parse(ImagenConfig, {**base, "noise_schedules": [{"name": "flow", "shift": "x"}]})
    with pytest.raises(TypeError, match="^weighting must be a name, a mapping with a name, or a Weighting; got 5"):
        cascade(Imagen, weighting=5)
    with pytest.raises(ValueError, match="give weighting or p2_loss_weight_gamma, not both"):
        cascade(Imagen, weighting="plain", p2_loss_weight_gamma=0.5)
    with pytest.raises(ValueError, match='loss_space="v" has no effect on the weighting sigmoid'):
        cascade(Imagen, weighting="sigmoid", loss_space="v")
    with pytest.raises(ValueError, match="give the weight 3.0 of a ready method as cond_scale"):
        cascade(Imagen, guidance=Interval(3.0))
    with pytest.raises(ValueError, match="the log-SNR of Cosine has to fall with time, it goes from 1 to 1"):
        cascade(Imagen, noise_schedules="cosine(clip=[3, 1])")
    with pytest.raises(ValueError, match="LogNormal draws in training"):
        cascade(Imagen, noise_levels="log_normal")


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("imagen.sampler", "is not of the form imagen.sampler=ddim"),
        ("=3", "is not of the form"),
        ("imagen.unets.3.dim=8", 'no entry "3" in a list of 1, numbered from 0'),
        ("steps.many=8", 'no entry "many" in 5'),
    ],
)
def test_a_place_that_does_not_exist_is_named(entry, sentence):
    with pytest.raises(click.ClickException, match=sentence):
        with_entry({"imagen": {"unets": [UNET]}, "steps": 5}, *Entry().convert(entry, None, None))


def test_entries_are_json_or_text_and_leave_the_rest_alone():
    values = {"imagen": {"unets": [UNET]}, "steps": 5}
    for text in ("imagen.unets.0.dim=16", "trainer.lr=1e-4", "imagen.sampler=ab2(order=3)", 'sample_texts=["a"]'):
        changed = with_entry(values, *Entry().convert(text, None, None))
    assert values == {"imagen": {"unets": [UNET]}, "steps": 5} and UNET["dim"] == 8
    assert changed["sample_texts"] == ["a"] and changed["steps"] == 5
    assert with_entry(values, ["imagen", "unets", "0", "dim"], 16)["imagen"]["unets"][0]["dim"] == 16
    assert with_entry(values, ["trainer", "lr"], 1e-4)["trainer"] == {"lr": 1e-4}


# -- members of one's own ---------------------------------------------------------------------------------------------


def test_a_family_of_ones_own():
    family = Registry("shape", object)

    @family.register("box", "cube")
    @dataclass(frozen=True)
    class Box:
        size: int
        name_of_side: str = "side"

    made = family.make("cube(size=3, name_of_side='it\\'s')")
    assert made == Box(3, "it's") and family.make(family.spell(made)) == made
    with pytest.raises(TypeError, match='the shape "box".*size'):
        family.make("box")
    with pytest.raises(TypeError, match="Flow is not registered as a shape"):
        family.spell(Flow())
