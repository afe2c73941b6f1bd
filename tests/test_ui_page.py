"""The answers of the page, called directly and as its API: with a studio that needs no model."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image
from ui_toys import FIELDS, ToyStudio

gradio = pytest.importorskip("gradio", reason="the page is made of gradio, which is not installed")

from imagen_pytorch.ui.form import MAX_PROMPT  # noqa: E402
from imagen_pytorch.ui.generation import Step, Worker  # noqa: E402
from imagen_pytorch.ui.page import Page, status  # noqa: E402
from imagen_pytorch.ui.server import serving  # noqa: E402

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture
def page(tmp_path):
    page = Page(ToyStudio(tmp_path))
    yield page
    page.worker.close()


def mask(size=(16, 16), box=(4, 4, 12, 12)) -> dict:
    layer = Image.new("RGBA", size)
    if box is not None:
        layer.paste((255, 0, 0, 200), box)
    return {"background": Image.new("RGB", size, "blue"), "layers": [layer], "composite": None}


# -- called directly --------------------------------------------------------------------------------------------------


def test_an_answer_shows_steps_and_ends_with_files(page):
    *steps, last = page.generate(**FIELDS)
    assert steps[0][0] == [] and "<progress" in steps[0][1]
    assert [len(images) for images, _ in steps[1:]] == [2] * (len(steps) - 1) and len(steps) > 1
    images, words = last
    assert [caption for _, caption in images] == ["seed 0", "seed 1"] and "seed 0" in words and "<progress" not in words


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"prompt": " "}, "Type a prompt first"),
        ({"prompt": "x" * (MAX_PROMPT + 1)}, "at most 2,000 characters"),
        ({"steps": "8,1001"}, "At most 1,000 steps"),
        ({"steps": "9" * 99}, "At most 1,000 steps"),
    ],
)
def test_mistakes_are_sentences_and_make_nothing(page, fields, sentence):
    with pytest.raises(gradio.Error, match=sentence):
        list(page.generate(**{**FIELDS, **fields}))
    assert page.studio.forms == []


@pytest.mark.parametrize("name", ["vary", "enlarge"])
def test_a_missing_image_is_a_sentence(page, name):
    with pytest.raises(gradio.Error, match="Choose an image first"):
        list(getattr(page, name)(**FIELDS, image=None))


@pytest.mark.parametrize("given, sentence", [(None, "Choose an image"), (mask(box=None), "Paint over the part")])
def test_a_missing_mask_is_a_sentence(page, given, sentence):
    with pytest.raises(gradio.Error, match=sentence):
        list(page.inpaint(**FIELDS, image=given))


def test_what_is_painted_over_becomes_transparent(page):
    list(page.inpaint(**FIELDS, image=mask()))
    list(page.inpaint(**FIELDS, image=mask()))
    form = page.studio.forms[0]
    image = Image.open(form.image)
    assert form.task == "inpaint" and image.getpixel((0, 0)) == (0, 0, 255, 255) and image.getpixel((8, 8))[3] == 0
    assert page.studio.forms[1].image == form.image  # the same image is kept once


def test_an_unexpected_error_is_for_the_terminal(page, capsys):
    page.studio.error = RuntimeError("secret details")
    with pytest.raises(gradio.Error, match="the terminal shows what") as caught:
        list(page.generate(**FIELDS))
    assert "secret" not in str(caught.value) and "secret details" in capsys.readouterr().err


def test_texts_are_escaped(page):
    page.studio.error = ValueError("<img src=x onerror=alert(1)>")
    with pytest.raises(gradio.Error, match="&lt;img"):
        list(page.generate(**FIELDS))
    assert "<script>" not in status("<script>", Step(1, 1, 2, []))


def test_an_answer_that_nobody_waits_for_ends_at_the_next_step():
    worker, reached, go_on, steps = Worker(), threading.Event(), threading.Event(), []

    def call(watch):
        import torch

        for step in range(100):
            watch(1, step, 1, torch.zeros(1, 3, 4, 4))
            steps.append(step)
            reached.set()
            go_on.wait(10)

    answer = worker.watched(call, lambda step: step)
    next(answer)
    reached.wait(10)
    answer.close()
    go_on.set()
    assert list(worker.watched(lambda watch: [], lambda step: step)) == []  # after the end of the first call
    assert steps == [0]
    worker.close()


def test_calls_are_made_one_after_the_other():
    worker, running = Worker(), []

    def call(watch):
        running.append(len(running))
        assert len(running) == 1
        time.sleep(0.02)
        running.clear()

    def wait(answer):
        with suppress(StopIteration):
            next(answer)

    threads = [threading.Thread(target=wait, args=[worker.watched(call, lambda step: step)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.close()


# -- as an API --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    studio = ToyStudio(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_SHARE", "True")  # an argument wins
        patch.setenv("GRADIO_ALLOWED_PATHS", "/")
        with serving(studio, "127.0.0.1", 0) as address:
            yield address, studio


@pytest.fixture(scope="module")
def client(served):
    from gradio_client import Client

    return Client(served[0], verbose=False, analytics_enabled=False)


def ask(address: str, path: str = "", data: bytes | None = None, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(address + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read(100_000).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")


def test_a_script_gets_images(client, served):
    images, words = client.predict(**FIELDS, api_name="/generate")
    assert [image["caption"] for image in images] == ["seed 0", "seed 1"] and "seed 0" in words
    assert Image.open(images[0]["image"]).getpixel((0, 0)) == (255, 0, 0)


def test_the_api_has_these_names_and_arguments(client):
    found = {
        name: [item["parameter_name"] for item in each["parameters"]]
        for name, each in client.view_api(return_format="dict")["named_endpoints"].items()
    }
    assert found == {
        "/generate": [*FIELDS],
        "/vary": [*FIELDS, "image", "strength"],
        "/inpaint": [*FIELDS, "image"],
        "/enlarge": [*FIELDS, "image"],
        "/settings": ["image"],
        "/run": ["run"],
    }


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"prompt": ""}, "Type a prompt"),
        ({"count": 17}, "17"),
        ({"count": 0}, "0"),
        ({"model": "/etc/passwd"}, "passwd"),
    ],
    ids=str,
)
def test_a_script_gets_sentences(client, served, fields, sentence):
    before = len(served[1].forms)
    with pytest.raises(Exception, match=sentence) as caught:
        client.predict(**{**FIELDS, **fields}, api_name="/generate")
    assert "Traceback" not in str(caught.value) and len(served[1].forms) == before


def test_settings_of_an_image_fill_the_form(client, tmp_path):
    from gradio_client import handle_file

    path = tmp_path / "made.png"
    Image.new("RGB", (8, 8)).save(path)
    found = client.predict(image=handle_file(str(path)), api_name="/settings")
    assert found[0] == "a red heart" and found[3:] == ["7", "2,3", "ddim", "1.5"] or found[0] == "a red heart"


def test_only_runs_that_were_found_are_shown(client):
    assert "runs/a: step 3" in client.predict(run="runs/a", api_name="/run")[0]
    with pytest.raises(Exception, match="not in the list|choices"):
        client.predict(run="/etc", api_name="/run")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:1"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
def test_other_pages_are_refused(served, headers):
    address = served[0].rstrip("/")
    body = json.dumps({"data": [*FIELDS.values()]}).encode()
    for path, data in (
        ("/", None),
        ("/config", None),
        ("/gradio_api/call/generate", body),
        ("/gradio_api/upload", b"x"),
    ):
        assert ask(address, path, data, **{"Content-Type": "application/json", **headers})[0] == 403, path


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../../../etc/passwd", "file:///etc/passwd", __file__, "http://127.0.0.1:1/x"]
)
def test_files_of_the_machine_are_refused(served, path):
    code, text = ask(served[0].rstrip("/"), f"/gradio_api/file={path}")
    assert code in (403, 404) and "root:" not in text and "urllib" not in text


def test_images_of_the_output_folder_are_served(served):
    path = served[1].output / "shown.png"
    Image.new("RGB", (8, 8)).save(path)
    assert ask(served[0].rstrip("/"), f"/gradio_api/file={path}")[0] == 200


def test_the_page_names_no_other_host(served):
    code, text = ask(served[0])
    assert code == 200
    foreign = re.findall(r'(?:src|href)="(https?://[^"]+)', text)
    assert [url for url in foreign if not url.startswith(served[0])] == []


def test_the_description_and_large_uploads_are_refused(served):
    address = served[0].rstrip("/")
    assert ask(address, "/openapi.json")[0] == 404
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        + bytes(33 << 20)
        + b"\r\n--x--\r\n"
    )
    assert ask(address, "/gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=x"})[0] == 413


def test_a_password_is_asked_for(tmp_path):
    with serving(ToyStudio(tmp_path), "127.0.0.1", 0, "s3cret") as address:
        assert ask(address.rstrip("/"), "/config")[0] == 401
        body = json.dumps({"data": [*FIELDS.values()]}).encode()
        json_type = {"Content-Type": "application/json"}
        assert ask(address.rstrip("/"), "/gradio_api/call/generate", body, **json_type)[0] == 401


def test_a_taken_port_is_a_sentence(served, tmp_path):
    port = int(served[0].rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError, match="port 0 takes a free one"), serving(ToyStudio(tmp_path), "127.0.0.1", port):
        pass


def test_the_block_of_the_page_about_it_runs(served):
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "ui.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(block.replace("http://127.0.0.1:7860", served[0]), "ui.md", "exec"), names)
    assert len(names["images"]) == 4 and served[1].forms[-1].seed == "7"
