"""The service, within this process: requests through its app, which hands them to a worker's code at once."""

import asyncio
import contextlib
import io
import json
import queue
import signal
import socket
import threading
from dataclasses import replace
from unittest.mock import Mock

import httpx
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient
from litserve.utils import LitAPIStatus, WorkerSetupStatus
from PIL import Image
from runs import noise, refused, wait_for
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from zoo import odd_photo

from kdpl.__main__ import main
from kdpl.classifier import Classifier
from kdpl.doubt.decision import decision_rule
from kdpl.doubt.held_out import HeldOutScores
from kdpl.serve import api as api_module
from kdpl.serve import gate
from kdpl.serve.api import PATH, Answers, ClassifierApi, SleepingLoop, Upload
from kdpl.serve.gate import Gate, ImpatientProtocol, Limits, Metrics
from kdpl.serve.server import build

PNG = {"content-type": "image/png"}
LIMITS = Limits(size=300_000, images=5, waiting=2, seconds=60)


def png(image):
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


PICTURE = png(noise(50, 40))
LABEL = 3


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
    # all of one class, so that the others have no threshold of their own
    predicted = torch.full((400,), LABEL, dtype=torch.int32)
    made.companions["held_out"] = HeldOutScores(1.7, scores, scores.clone(), scores > 0, predicted)
    made.save(folder := tmp_path_factory.mktemp("sure") / "classifier")
    return str(folder)


def worker(answers):
    """A worker's code, set up as in its own process."""
    before = signal.getsignal(signal.SIGINT)
    api = ClassifierApi(answers, workers=1, devices=1, patience=60)
    api.setup("cpu")
    signal.signal(signal.SIGINT, before)
    return api


def client_of(folder, top_k=1, limits=LIMITS, **rule):
    loaded = Classifier.load(folder)
    answers = Answers(folder, top_k, decision_rule(loaded, **rule))
    server, api = build(answers, loaded, "cpu", 1, limits), worker(answers)

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


def counts(client):
    lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--top-k=3"], {"top_k": 3}),
        (["--max-error=2%", "--top-k=2"], {"max_error": 0.02, "top_k": 2}),
        (["--max-error=2%", "--per-class"], {"max_error": 0.02, "per_class": True}),
        (["--sets=70%"], {"sets": 0.7}),
        (["--calibrated"], {"calibrated": True}),
        (["--unknown"], {"unknown": True}),
    ],
)
def test_answers_are_the_rows_of_predict(options, rule, sure, photos, tmp_path):
    assert main(["predict", sure, *map(str, photos), *options, f"--out={tmp_path / 'rows.jsonl'}"]) == 0
    expected = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    client = client_of(sure, **rule)
    answer = client.post(PATH, **form(*((str(path), path.read_bytes()) for path in photos)))
    assert answer.status_code == 200
    found = answer.json()["predictions"]
    assert [row.pop("error") for row in expected] == [None] * len(photos)
    assert [list(row) for row in found] == [list(row) for row in expected]
    assert found == [pytest.approx(row, abs=2e-6) for row in expected]
    assert ("--max-error=2%" in options) == (None in [row["class"] for row in found])


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "IMAGE/PNG; x=y"])
def test_an_image_can_be_the_whole_body(kind, client):
    (of_form,) = client.post(PATH, **form(("body", PICTURE))).json()["predictions"]
    assert client.post(PATH, content=PICTURE, headers={"content-type": kind}).json() == {"predictions": [of_form]}


BOMB = png(Image.new("1", (8000, 8000)))


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"content": b"", "headers": PNG}, 400, "there is no image in the request: send files in the field images"),
        ({"files": [("photos", ("a.png", PICTURE))]}, 400, "there is no image in the request"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": PICTURE}, 415, "the Content-Type is missing: send"),
        ({"json": {"images": []}}, 415, "the Content-Type is application/json: send"),
        ({"content": bytes(LIMITS.size + 1), "headers": PNG}, 413, "the body is larger than 300000 bytes: send fewer"),
        (form(*[("a.png", PICTURE)] * 6), 413, "there are 6 images, at most 5: send fewer"),
        ({"data": {"images": "x"}, "files": {"b": b""}}, 422, "the field images holds no file: give it"),
        ({"content": b"garbage", "headers": PNG}, 422, "body cannot be read (no format that Pillow knows): replace"),
        (form(("a.png", PICTURE), ("b.png", PICTURE[:900])), 422, "image b.png cannot be read"),
        (form(("bomb.png", BOMB)), 422, "image bomb.png has 8000 × 8000 pixels, expected at most 50 million: scale"),
    ],
)
def test_a_bad_request_is_refused_with_one_sentence(request_, status, words, client):
    before = counts(client).get(f'kdpl_requests_total{{status="{status}"}}', 0)
    answer = client.post(PATH, **request_)
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])
    assert words in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]
    assert counts(client)[f'kdpl_requests_total{{status="{status}"}}'] == before + 1


def test_a_name_is_never_taken_as_a_path(client, photos):
    path = photos[0]
    assert client.post(PATH, **form((str(path), b"garbage"))).status_code == 422
    answers = [client.post(PATH, **form((name, PICTURE))).json() for name in (str(path), "http://localhost/a.png")]
    (expected,) = client.post(PATH, **form(("a.png", PICTURE))).json()["predictions"]
    assert [{**row, "path": "a.png"} for answer in answers for row in answer["predictions"]] == [expected] * 2
    assert answers[0]["predictions"][0]["path"] == str(path)


def test_characters_of_a_name_that_cannot_be_written_are_escaped(client):
    # the client chooses the encoding of its names
    head = "multipart/form-data; boundary=x; charset=unicode_escape"
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a\\\\ud800\\\\u202e.png"\r\n\r\n%b\r\n'
    answer = client.post(PATH, content=part % PICTURE + b"--x--", headers={"content-type": head})
    assert answer.status_code == 200
    assert [row["path"] for row in answer.json()["predictions"]] == ["a\\ud800\\u202e.png"]
    answer = client.post(PATH, content=part % b"garbage" + b"--x--", headers={"content-type": head})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("image a\\ud800\\u202e.png cannot be read")


def test_an_unreadable_image_does_not_fail_the_requests_beside_it(sure):
    api = worker(Answers(sure))
    good, bad = Upload("good.png", PICTURE), Upload("bad.png", PICTURE[:900])
    first, second, third = map(api.encode_response, api.predict([[good, good], [good, bad], [good]]))
    assert [row["path"] for row in first.predictions] == ["good.png"] * 2
    # but for the last digit, in another batch
    assert third.predictions == [pytest.approx(first.predictions[0], abs=2e-6)]
    assert second.status_code == 422


def test_metrics_count_requests_images_and_time(client):
    before = counts(client)
    assert client.post(PATH, **form(("a.png", PICTURE), ("b.png", PICTURE))).status_code == 200
    client.get("/health")
    after = counts(client)
    changes = {name: after[name] - before.get(name, 0) for name in after}
    assert changes["kdpl_images_total"] == 2
    assert changes['kdpl_requests_total{status="200"}'] == changes["kdpl_request_seconds_count"] == 1
    assert after["kdpl_requests_active"] == 0


def test_health_is_ready_once_every_worker_has_its_classifier(client, monkeypatch):
    assert client.get("/health").status_code == 200
    states = {"predict_0": WorkerSetupStatus.READY, "predict_1": WorkerSetupStatus.STARTING}
    monkeypatch.setattr(client.server, "workers_setup_status", states)
    assert client.get("/health").status_code == 503


def test_health_fails_while_a_worker_hangs(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(api_module, "time", Mock(monotonic=lambda: clock[0]))
    api = ClassifierApi(Answers("unused"), workers=2, devices=1, patience=60)
    monkeypatch.setenv("LITSERVE_WORKER_ID", "1")
    begun, go_on, requests = threading.Event(), threading.Event(), queue.Queue()

    def hang(batch):
        begun.set()
        go_on.wait()
        raise SystemExit

    monkeypatch.setattr(api, "predict", hang)
    api.pre_setup()
    api.request_timeout = False
    api.beats[0] = 2000.0  # the other worker, which is idle

    def work():
        with contextlib.suppress(SystemExit):
            api.loop(api, "cpu", 1, requests, Mock(), {}, Mock())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    requests.put((0, "a", 0.0, []))
    begun.wait()
    assert api.health()
    clock[0] = 1061.0
    assert not api.health()
    go_on.set()
    thread.join()
    api.loop.get_batch_requests(api, Mock(get=Mock(side_effect=queue.Empty)), None)
    assert api.health()


def test_a_worker_that_hangs_makes_the_service_not_ready(client, monkeypatch):
    monkeypatch.setattr(ClassifierApi, "health", lambda _: False)
    assert client.get("/health").status_code == 503


def test_the_pages_for_programs_describe_requests_answers_and_classes(client, sure):
    described = client.get("/openapi.json").json()
    operation = described["paths"][PATH]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "image/*"}
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Predictions")
    assert "4XX" in operation["responses"]
    assert "422" not in operation["responses"]
    model = client.get("/info").json()["model"]
    assert model["names"] == list(Classifier.load(sure).class_names)
    thresholds = {"threshold": 0.0, "set_threshold": None, "class_thresholds": None}
    assert model["rule"] == {"temperature": 1.0, **thresholds, "scores": []}


def test_the_limits_are_shown_as_the_options_gave_them(sure):
    limits = Limits(size=3 * 2**20, images=5, waiting=7, seconds=40)
    server = client_of(sure, limits=limits).get("/info").json()["server"]
    shown = {"timeout": 40, "max_megabytes": 3, "max_images": 5, "max_waiting": 7}
    assert server == {"devices": ["cpu"], "workers_per_device": 1, **shown}


def test_the_thresholds_of_classes_are_shown_by_name(sure):
    made = Classifier.load(sure)
    rule = client_of(sure, max_error=0.02, per_class=True).get("/info").json()["model"]["rule"]
    threshold = made.companions["held_out"].class_thresholds(0.02)[LABEL]
    assert rule["class_thresholds"] == {**dict.fromkeys(made.class_names), made.class_names[LABEL]: threshold}
    assert 0 < threshold < 1


def test_a_worker_takes_all_requests_that_wait_and_sleeps_while_there_are_none(sure):
    waits, requests, api = [], queue.Queue(), ClassifierApi(Answers(sure), 1, 1, 60)

    class Watched:
        get_nowait = requests.get_nowait

        def get(self, block, timeout):
            waits.append((block, timeout))
            return requests.get(block=False)

    loop = api.loop
    assert isinstance(loop, SleepingLoop)
    assert loop.get_batch_requests(api, Watched(), None) == ([], [])
    assert waits == [(True, 1.0)]
    api.request_timeout = False
    for i in range(70):
        requests.put((0, str(i), 0.0, [Upload("a.png", PICTURE)]))
    sizes = [len(loop.get_batch_requests(api, Watched(), None)[0]) for _ in range(2)]
    assert sizes == [64, 6]


def ask(*apps_and_bodies, limits):
    """Send requests to one gate at once; returns what each got: a status and its headers, or None."""
    metrics = Metrics()

    async def serve_all():
        async def app(scope, receive, send):
            await scope["app"](scope, receive, send)

        guarded = Gate(app, PATH, limits, metrics)

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

    found = asyncio.run(serve_all())
    return found, metrics


WHOLE, PART = [{"type": "http.request", "body": b"x"}], [{"type": "http.request", "body": b"x", "more_body": True}]


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
    found, metrics = ask(*[(answering, WHOLE)] * 5, limits=replace(LIMITS, waiting=3))
    assert [status for status, _ in found] == [200] * 3 + [503] * 2
    assert found[-1][1][b"retry-after"] == b"1"
    found, metrics = ask((left, WHOLE), limits=replace(LIMITS, waiting=1))
    assert found == [None]
    assert metrics.registry.get_sample_value("kdpl_requests_total", {"status": "499"}) == 1
    assert metrics.registry.get_sample_value("kdpl_requests_active") == 0


def test_a_body_of_unknown_length_is_read_up_to_the_limit():
    parts = iter(PART * 100)
    found, _ = ask((silent, parts), limits=replace(LIMITS, size=10))
    assert (found[0][0], len(list(parts))) == (413, 100 - 11)


def test_requests_and_bodies_that_take_too_long_are_ended():
    found, metrics = ask((silent, WHOLE), (silent, PART), limits=replace(LIMITS, seconds=0.05))
    assert [status for status, _ in found] == [504, 408]
    assert found[1][1][b"connection"] == b"close"
    assert metrics.registry.get_sample_value("kdpl_requests_active") == 0


async def begun(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.sleep(0.2)
    await send({"type": "http.response.body", "body": b"x"})


async def failing(scope, receive, send):
    raise RuntimeError("a defect")


def test_an_answer_that_has_begun_is_not_ended():
    found, metrics = ask((begun, WHOLE), limits=replace(LIMITS, seconds=0.05))
    assert [status for status, _ in found] == [200]
    assert metrics.registry.get_sample_value("kdpl_requests_total", {"status": "200"}) == 1


def test_a_request_that_fails_is_counted_as_status_500():
    metrics, scope = Metrics(), {"type": "http", "path": PATH, "headers": []}
    with pytest.raises(RuntimeError, match="a defect"):
        asyncio.run(Gate(failing, PATH, LIMITS, metrics)(scope, None, None))
    assert metrics.registry.get_sample_value("kdpl_requests_total", {"status": "500"}) == 1
    assert metrics.registry.get_sample_value("kdpl_requests_active") == 0


@pytest.fixture
def server():
    """A server of short, slow and large answers, of which the kernel takes no more than some kB."""

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await asyncio.sleep(0.3 if scope["path"] == "/slow" else 0)
            number = scope["path"][1:]
            await PlainTextResponse(bytes(int(number)) if number.isdigit() else "ok")(scope, receive, send)

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server = uvicorn.Server(uvicorn.Config(app, http=ImpatientProtocol, lifespan="off", log_level="critical"))
    server.address = listener.getsockname()
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield server
    server.should_exit = True
    thread.join()


@pytest.fixture
def impatient(monkeypatch, server):
    """The address of a server that waits a tenth of a second for a request's head, and longer for its answer."""
    monkeypatch.setattr(gate, "_HEAD_SECONDS", 0.1)
    return server.address


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", b""),
        (b"", b"POST /predict HTTP/1.1\r\nHo"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /second HTTP/1.1\r\nHo"),
        # the rest of a body whose request is answered
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", b"xxxx"),
    ],
)
def test_a_connection_whose_next_request_does_not_arrive_is_closed(first, then, impatient):
    with socket.create_connection(impatient, timeout=60) as connection:
        connection.sendall(first)
        answer = b""
        while first and not answer.endswith(b"ok"):
            answer += connection.recv(4096)
        connection.sendall(then)
        assert connection.recv(4096) == b""


def test_a_connection_that_waits_for_an_answer_is_kept(impatient):
    with httpx.Client(base_url=f"http://127.0.0.1:{impatient[1]}") as client:
        assert [client.get(path).text for path in ("/slow", "/", "/slow")] == ["ok"] * 3


@pytest.mark.parametrize("size", [50_000, 5_000_000])
def test_a_client_that_does_not_read_its_answer_loses_its_connection(size, server, monkeypatch):
    monkeypatch.setattr(gate, "_ANSWER_SECONDS", 0.1)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(server.address)
        connection.sendall(f"GET /{size} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wait_for(lambda: server.server_state.total_requests)
        wait_for(lambda: not server.server_state.connections)


def test_a_client_that_reads_its_answer_keeps_its_connection(server):
    with httpx.Client(base_url=f"http://127.0.0.1:{server.address[1]}") as client:
        assert [len(client.get(path).content) for path in ("/5000000", "/", "/50000")] == [5_000_000, 2, 50_000]


def test_a_client_is_given_up_once_it_reads_nothing_between_two_looks(server):
    loop, transport = Mock(call_later=Mock(side_effect=lambda *_: Mock())), Mock(get_extra_info=Mock(return_value=None))
    protocol = ImpatientProtocol(server.config, server.server_state, {}, loop)
    protocol.connection_made(transport)
    transport.get_write_buffer_size.return_value = 1000
    protocol.pause_writing()
    for left in (900, 1):
        transport.get_write_buffer_size.return_value = left
        seconds, look, *before = loop.call_later.call_args.args
        assert seconds == gate._ANSWER_SECONDS
        look(*before)
        transport.abort.assert_not_called()
    protocol.resume_writing()
    protocol._answer_deadline.cancel.assert_called_once()
    # nothing was read since the last look
    _, look, *before = loop.call_later.call_args.args
    look(*before)
    transport.abort.assert_called_once()
    protocol.connection_lost(None)


def test_what_the_command_cannot_serve_is_one_sentence(sure, tmp_path, capsys):
    refused(capsys, main(["serve", str(tmp_path / "none")]), "does not exist: give the classifier folder")
    refused(capsys, main(["serve", sure, "--sets=90%", "--top-k=2"]), "leave out --top-k")
    refused(capsys, main(["serve", sure, "--per-class", "--port=0"]), "but none is wanted: give max_error")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(capsys, main(["serve", sure, f"--port={port}"]), f"port {port} (", "give another --host or --port")
    refused(capsys, main(["serve", sure, "--port=99999"]), "cannot listen on 127.0.0.1 port 99999")
    # an address for documentation, which no machine has
    refused(capsys, main(["serve", sure, "--host=192.0.2.1"]), "cannot listen on 192.0.2.1")
    bare = tmp_path / "bare"
    made = Classifier.load(sure)
    del made.companions["held_out"]
    made.save(bare)
    refused(capsys, main(["serve", str(bare), "--max-error=5%", "--port=0"]), "run python -m kdpl calibrate")
