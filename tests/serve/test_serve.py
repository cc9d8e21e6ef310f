"""The service, within this process: requests through its app, which hands them to a worker's code at once."""

import asyncio
import io
import json
import signal
import socket
from dataclasses import replace

import pytest
import torch
from fastapi.testclient import TestClient
from litserve.utils import LitAPIStatus, WorkerSetupStatus
from PIL import Image
from runs import noise, refused
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from zoo import odd_photo

from kdpl.__main__ import main
from kdpl.classifier import Classifier
from kdpl.confidence.decision import decision_rule
from kdpl.confidence.held_out import HeldOutScores
from kdpl.serve.api import PATH, ClassifierApi
from kdpl.serve.server import Gate, Limits, build

PNG = {"content-type": "image/png"}
LIMITS = Limits(size=300_000, images=5, waiting=2, seconds=60)


def png(image):
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


PICTURE = png(noise(50, 40))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(4):
        noise(40 + i, 40, seed=i).save(folder / f"{i}.png")
    odd_photo(folder / "odd.png")
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module")
def sure(classifier, photos, tmp_path_factory):
    """The folder of a classifier with held-out scores by which some of the photos are rejected."""
    made = Classifier.load(classifier)
    tops = sorted(top.probability for (top,) in made.predict(photos))
    # between two images, where rounding does not matter
    scores = torch.cat([torch.ones(200), torch.full((100,), sum(tops[1:3]) / 2), torch.zeros(100)])
    made.companions["held_out"] = HeldOutScores(1.7, scores, scores.clone(), scores > 0)
    made.save(folder := tmp_path_factory.mktemp("sure") / "classifier")
    return str(folder)


def worker(*settings):
    """A worker's code, set up as in its own process."""
    before = signal.getsignal(signal.SIGINT)
    api = ClassifierApi(*settings)
    api.setup("cpu")
    signal.signal(signal.SIGINT, before)
    return api


def client_of(folder, top_k=1, limits=LIMITS, **rule):
    loaded = Classifier.load(folder)
    api = worker(folder, top_k, decision_rule(loaded, **rule))
    server = build(api, loaded, "cpu", 1, limits)

    class AtOnce:
        def put(self, request):
            def answer():
                (rows,) = api.predict([api.decode_request(request[3])])
                item = server.response_buffer[request[1]]
                item.response = (api.encode_response(rows), LitAPIStatus.OK)
                item.event.set()

            asyncio.get_running_loop().call_soon(answer)

    server.litapi_request_queues[PATH] = AtOnce()
    server.workers_setup_status = {"predict_0": WorkerSetupStatus.READY}
    client = TestClient(server.app)
    client.server = server
    return client


@pytest.fixture(scope="module")
def client(sure):
    return client_of(sure)


def form(*files):
    return {"files": [("images", file) for file in files]}


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--top-k=3"], {"top_k": 3}),
        (["--max-error=2%", "--top-k=2"], {"max_error": 0.02, "top_k": 2}),
        (["--sets=70%"], {"sets": 0.7}),
        (["--calibrated"], {"calibrated": True}),
        (["--unknown"], {"unknown": True}),
    ],
)
def test_answers_are_the_rows_of_predict(options, rule, sure, photos, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert main(["predict", sure, *map(str, photos), *options, f"--out={out}"]) == 0
    expected = [json.loads(line) for line in out.read_text().splitlines()]
    sent = form(*((str(path), path.read_bytes()) for path in photos))
    answer = client_of(sure, **rule).post(PATH, **sent)
    assert answer.status_code == 200
    rows = answer.json()["predictions"]
    assert [row.pop("error") for row in expected] == [None] * len(photos)
    assert [list(row) for row in rows] == [list(row) for row in expected]
    assert rows == [pytest.approx(row, abs=2e-6) for row in expected]
    assert ("--max-error=2%" in options) == (None in [row["class"] for row in rows])


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "IMAGE/PNG; x=y"])
def test_an_image_can_be_the_whole_body(kind, client):
    expected = client.post(PATH, **form(("body", PICTURE))).json()
    answer = client.post(PATH, content=PICTURE, headers={"content-type": kind})
    assert answer.json() == expected


BOMB = png(Image.new("1", (8000, 8000)))


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"content": b"", "headers": PNG}, 400, "there is no image in the request"),
        ({"files": [("photos", ("a.png", PICTURE))]}, 400, "there is no image in the request"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": PICTURE}, 415, "the Content-Type is missing"),
        ({"json": {"images": []}}, 415, "the Content-Type is application/json"),
        ({"content": bytes(LIMITS.size + 1), "headers": PNG}, 413, "Payload too large"),
        # a body of unknown length
        ({"content": [bytes(100_000)] * 50, "headers": PNG}, 413, "Payload too large"),
        (form(*[("a.png", PICTURE)] * 6), 413, "there are 6 images, at most 5"),
        ({"data": {"images": "x"}, "files": {"b": b""}}, 422, "the field images holds no file"),
        ({"content": b"garbage", "headers": PNG}, 422, "body cannot be read (no format"),
        (form(("a.png", PICTURE), ("b.png", PICTURE[:900])), 422, "image b.png cannot be read"),
        (form(("bomb.png", BOMB)), 422, "image bomb.png has 8000 × 8000 pixels"),
    ],
)
def test_a_bad_request_is_refused_with_one_sentence(request_, status, words, client):
    answer = client.post(PATH, **request_)
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])
    assert words in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


def test_a_name_is_never_taken_as_a_path(client, photos):
    path = str(photos[0])
    for content in (b"garbage", b""):
        assert client.post(PATH, **form((path, content))).status_code == 422
    rows = []
    for name in ("a.png", path, "http://localhost/a.png"):
        (row,) = client.post(PATH, **form((name, PICTURE))).json()["predictions"]
        assert row.pop("path") == name
        rows.append(row)
    assert rows[1] == rows[2] == rows[0]


def test_characters_of_a_name_that_cannot_be_written_are_escaped(client):
    # the client chooses the encoding of its names
    head = "multipart/form-data; boundary=x; charset=unicode_escape"
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a\\\\ud800.png"\r\n\r\n%b\r\n'
    answer = client.post(PATH, content=part % PICTURE + b"--x--", headers={"content-type": head})
    assert answer.status_code == 200
    assert [row["path"] for row in answer.json()["predictions"]] == ["a\\ud800.png"]
    answer = client.post(PATH, content=part % b"garbage" + b"--x--", headers={"content-type": head})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("image a\\ud800.png cannot be read")


def test_an_unreadable_image_does_not_fail_the_requests_beside_it(sure):
    api = worker(sure)
    good, bad = ("good.png", PICTURE), ("bad.png", PICTURE[:900])
    first, second, third = map(
        api.encode_response, api.predict([[good, good], [good, bad], [good]])
    )
    assert [row["path"] for row in first["predictions"]] == ["good.png"] * 2
    # but for the last digit, in another batch
    assert third["predictions"] == [pytest.approx(first["predictions"][0], abs=2e-6)]
    assert second.status_code == 422


def test_health_is_ready_once_every_worker_has_its_classifier(client, monkeypatch):
    assert client.get("/health").status_code == 200
    states = {"predict_0": WorkerSetupStatus.READY, "predict_1": WorkerSetupStatus.STARTING}
    monkeypatch.setattr(client.server, "workers_setup_status", states)
    assert client.get("/health").status_code == 503


def test_the_pages_for_programs_describe_requests_answers_classes_and_limits(client, sure):
    operation = client.get("/openapi.json").json()["paths"][PATH]["post"]
    assert "multipart/form-data" in operation["requestBody"]["content"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("/Predictions")
    limits = Limits(size=3 * 2**20, images=5, waiting=7, seconds=40)
    facts = client_of(sure, limits=limits).get("/info").json()
    model, server = facts["model"], facts["server"]
    assert model["names"] == list(Classifier.load(sure).class_names)
    assert model["rule"]["threshold"] is None
    assert model["limits"] == {"max_images": 5, "max_waiting": 7}
    assert (server["timeout"], server["max_payload_size"]) == (40, 3 * 2**20)


def ask(*apps_and_bodies, limits):
    """Send requests to one gate at once; returns what each got: a status and its headers, or None."""

    async def serve_all():
        async def app(scope, receive, send):
            await scope["app"](scope, receive, send)

        guarded = Gate(app, limits)

        async def one(app, messages):
            sent, waiting = [], iter(messages)

            async def receive():
                message = next(waiting, None)
                return message if message is not None else await asyncio.Event().wait()

            async def send(message):
                sent.append(message)

            await guarded({"type": "http", "path": PATH, "headers": [], "app": app}, receive, send)
            return (sent[0]["status"], dict(sent[0]["headers"])) if sent else None

        return await asyncio.gather(*(one(app, messages) for app, messages in apps_and_bodies))

    return asyncio.run(serve_all())


WHOLE = [{"type": "http.request", "body": b"x"}]
PART = [{"type": "http.request", "body": b"x", "more_body": True}]


async def answering(scope, receive, send):
    await receive()
    await asyncio.sleep(0)
    await PlainTextResponse("ok")(scope, receive, send)


async def silent(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await asyncio.Event().wait()


async def left(scope, receive, send):
    raise ClientDisconnect


def test_requests_beyond_those_that_may_wait_get_503_and_later_ones_an_answer():
    answers = ask(*[(answering, WHOLE)] * 5, limits=replace(LIMITS, waiting=3))
    assert [status for status, _ in answers] == [200] * 3 + [503] * 2
    assert answers[-1][1][b"retry-after"] == b"1"
    assert ask((left, WHOLE), limits=replace(LIMITS, waiting=1)) == [None]


def test_requests_and_bodies_that_take_too_long_are_ended():
    answers = ask((silent, WHOLE), (silent, PART), limits=replace(LIMITS, seconds=0.05))
    assert [status for status, _ in answers] == [504, 504]
    assert answers[1][1][b"connection"] == b"close"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sets=90%", "--top-k=2"], ["leave out --top-k"]),
        (["--port=99999"], ["cannot listen on 127.0.0.1 port 99999"]),
        (["--port=80"], ["--port 80 is kept for the system"]),
        (["--host=192.0.2.1"], ["192.0.2.1", "127.0.0.1"]),
    ],
)
def test_what_the_command_cannot_serve_is_one_sentence(options, words, sure, capsys):
    refused(capsys, main(["serve", sure, *options]), *words)


def test_a_port_in_use_and_a_classifier_that_lacks_something_are_one_sentence(
    sure, tmp_path, capsys
):
    refused(capsys, main(["serve", str(tmp_path / "none")]), f"{tmp_path}/none does not exist")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(capsys, main(["serve", sure, f"--port={port}"]), f"port {port} (", "--host")
    made = Classifier.load(sure)
    del made.companions["held_out"]
    made.save(tmp_path / "bare")
    options = ["--max-error=5%", "--port=0"]
    refused(capsys, main(["serve", str(tmp_path / "bare"), *options]), "kdpl calibrate")
