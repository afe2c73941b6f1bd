"""The components of the page, from gradio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .form import MAX_COUNT, Studio
from .page import REFILLED, Page

if TYPE_CHECKING:
    import gradio

#: Results lie beside the form, or between prompt and settings where it is narrow. Small images are not smoothed.
CSS = """
.gradio-container { width: 100% !important; max-width: 1240px !important; margin: auto !important; }
#room { display: grid; grid-template: auto 1fr / minmax(0, 2fr) minmax(0, 3fr); }
#results { grid-area: 1 / 2 / span 2; }
@media (max-width: 800px) { #room { grid-template: none / minmax(0, 1fr); } #results { grid-area: auto; } }
#tasks > .tab-wrapper button { padding-inline: .7em; }
#images img, #init img, #enlarge img { image-rendering: pixelated; }
#init img, #enlarge img { width: 100%; height: 100%; object-fit: contain; }
#status { min-height: 3.2em; overflow-wrap: anywhere; }
#status progress { appearance: none; width: 100%; height: .6em; border: 0; background: #e4e4e7; }
#status progress::-webkit-progress-bar { background: #e4e4e7; }
#status progress::-webkit-progress-value { background: #ea580c; }
#status progress::-moz-progress-bar { background: #ea580c; }
#images .grid-wrap { max-height: none !important; }
"""
#: Seconds between two looks at a training.
_REFRESH = 5.0
_OWN = "model's own"
_UPLOAD: dict[str, Any] = {"sources": ("upload", "clipboard"), "height": 260}


def _settings(studio: Studio, prompt: gradio.Textbox) -> dict[str, Any]:
    """Return the fields that all tasks have, by their names in `Form`."""
    import gradio

    with gradio.Accordion("Settings"):
        models, samplers = list(studio.models), list(studio.samplers)
        model = gradio.Dropdown(models, value=models[0], label="Model", elem_id="model")
        negative = gradio.Textbox(label="Negative prompt", placeholder="what the image must not show")
        with gradio.Row():
            count = gradio.Slider(1, MAX_COUNT, value=4, step=1, label="Images", min_width=120)
            seed = gradio.Textbox(label="Seed", placeholder="random", min_width=120, max_lines=1, elem_id="seed")
        with gradio.Row():
            steps = gradio.Textbox(label="Steps", placeholder=_OWN, max_lines=1, min_width=120)
            guidance = gradio.Textbox(label="Guidance", placeholder=_OWN, max_lines=1, min_width=120)
        sampler = gradio.Dropdown(
            ["", *samplers], value="", label="Sampler", info=f"empty: the {_OWN}", allow_custom_value=True
        )
    return {
        "prompt": prompt,
        "negative": negative,
        "model": model,
        "count": count,
        "seed": seed,
        "steps": steps,
        "sampler": sampler,
        "guidance": guidance,
    }


def _brush(side: int) -> gradio.Brush:
    """Return a brush for an image whose shorter side has this number of pixels, in which its size counts."""
    import gradio

    return gradio.Brush(default_size=max(1, side // 16), colors=["#ea580c"], color_mode="fixed")


def _fitting_brush(image: dict[str, Any]) -> Any:
    import gradio

    return gradio.ImageMask(brush=_brush(min(image["background"].size)))


def _tasks() -> dict[str, tuple[gradio.Button, dict[str, Any]]]:
    """Return the button of each answer of the page that makes images, and the fields that it alone has."""
    import gradio

    with gradio.Tabs(elem_id="tasks"):
        with gradio.Tab("Text"):
            generate = gradio.Button("Generate", variant="primary", elem_id="generate")
        with gradio.Tab("Change"):
            init = gradio.Image(label="Image to change", type="filepath", image_mode=None, elem_id="init", **_UPLOAD)
            strength = gradio.Slider(
                0, 1, value=0.4, step=0.05, label="Strength", info="0 keeps the image, 1 ignores it"
            )
            vary = gradio.Button("Change the image", variant="primary")
        with gradio.Tab("Inpaint"):
            look: dict[str, Any] = {"type": "pil", "format": "png", "transforms": (), "layers": False}
            look["brush"] = _brush(64)
            mask = gradio.ImageMask(label="Paint over a part", elem_id="mask", **look, **{**_UPLOAD, "height": 420})
            mask.upload(_fitting_brush, mask, mask, api_visibility="private", show_progress="hidden")
            inpaint = gradio.Button("Paint that part", variant="primary")
        with gradio.Tab("Enlarge"):
            small = gradio.Image(
                label="Image to enlarge", type="filepath", image_mode=None, elem_id="enlarge", **_UPLOAD
            )
            enlarge = gradio.Button("Enlarge", variant="primary")
    return {
        "generate": (generate, {}),
        "vary": (vary, {"image": init, "strength": strength}),
        "inpaint": (inpaint, {"image": mask}),
        "enlarge": (enlarge, {"image": small}),
    }


def _images(page: Page) -> None:
    """Add the form and the images that it asks for."""
    import gradio

    with gradio.Row(elem_id="room"):
        with gradio.Column():
            look: dict[str, Any] = {
                "placeholder": "a red heart",
                "max_lines": 4,
                "autofocus": True,
                "elem_id": "prompt",
            }
            prompt = gradio.Textbox(label="Prompt", **look)
            tasks = _tasks()
        with gradio.Column(elem_id="results"):
            status = gradio.HTML("Type a prompt and press Enter.", elem_id="status")
            stop = gradio.Button("Stop", size="sm")
            look = {
                "format": "png",
                "object_fit": "contain",
                "buttons": ["download", "fullscreen"],
                "elem_id": "images",
            }
            images = gradio.Gallery(show_label=False, columns=2, height=None, interactive=False, **look)
        with gradio.Column():
            fields = _settings(page.studio, prompt)
            label = "An image made here: take its settings"
            made = gradio.File(label=label, type="filepath", height=150, elem_id="from")
    shown: dict[str, Any] = {"outputs": [images, status], "show_progress": "hidden"}
    alone: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
    events = [
        button.click(getattr(page, name), inputs_kwargs={**fields, **own}, api_name=name, **shown, **alone)
        for name, (button, own) in tasks.items()
    ]
    events.append(prompt.submit(page.generate, inputs_kwargs=fields, api_visibility="private", **shown, **alone))
    stop.click(lambda: "Stopped.", None, status, cancels=events, queue=False, api_visibility="private")
    made.upload(page.settings, made, [fields[name] for name in REFILLED], api_name="settings")


def _trainings(page: Page, tab: gradio.Tab, other: gradio.Tab) -> None:
    """Add the trainings, which are looked at again and again while their tab is open."""
    import gradio

    with gradio.Row():
        run = gradio.Dropdown(page.studio.runs(), label="Training", scale=4, elem_id="run")
        again = gradio.Button("Look for others", scale=1, min_width=140)
    words = gradio.HTML()
    with gradio.Row():
        look: dict[str, Any] = {"show_label": False, "buttons": [], "interactive": False, "format": "png"}
        curve, sheet = (gradio.Image(min_width=320, **look) for _ in range(2))
    timer, shown = gradio.Timer(_REFRESH, active=False), [words, curve, sheet]
    look = {"show_progress": "hidden", "api_visibility": "private"}
    run.input(page.run, run, shown, api_name="run", show_progress="hidden")
    timer.tick(page.run, run, shown, **look)
    for event in (again.click, tab.select):
        event(page.runs, None, run, **look).then(page.run, run, shown, **look)
    tab.select(lambda: gradio.Timer(active=True), None, timer, **look)
    other.select(lambda: gradio.Timer(active=False), None, timer, **look)


def build(page: Page) -> gradio.Blocks:
    """Return the page with all its components."""
    import gradio

    with gradio.Blocks(title="imagen", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gradio.Markdown("# imagen")
        with gradio.Tab("Images") as images:
            _images(page)
        with gradio.Tab("Trainings") as trainings:
            _trainings(page, trainings, images)
    return blocks
