import inspect
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import world
import yaml
from doubting import predict
from plain import relative_error
from runs import noise
from zoo import odd_photo

import kdpl
import kdpl.prompts
from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.classifier.export import metadata
from kdpl.cli import COMMANDS, STAGES, find_command
from kdpl.cli.arguments import parse
from kdpl.cli.fit import parse_stage
from kdpl.confidence.held_out import HeldOutScores
from kdpl.confidence.unknown import none_of_these
from kdpl.data.decoding import PUBLISHED, Decoding
from kdpl.runtime.configs import find_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = {path: path.read_text(encoding="utf-8") for path in [*sorted(ROOT.glob("*.md")), *PAGES]}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = "python -m kdpl"
INIT_WRITES = (
    "data: {class_path: kdpl.DomainDataModule, init_args: {dataset: table, root: images.csv}}"
)


# --- the site ---


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, in which broken links are errors."""
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module, reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    assert len(list(folder.rglob("*.html"))) > len(PAGES)
    return folder


@pytest.mark.slow
def test_the_reference_has_every_public_name_with_what_its_docstring_says(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    ids = set(re.findall(r'id="(kdpl\.[\w.]+)"', text))
    for module in (kdpl, kdpl.prompts):
        for name in module.__all__:
            # errors are on the page of their own module
            home = getattr(getattr(module, name), "__module__", "kdpl")
            assert ids & {f"{page}.{name}" for page in ("kdpl", module.__name__, home)}, name
    assert {"kdpl.losses.distillation_kl", "kdpl.errors.KdplError"} <= ids
    for public in (kdpl.Classifier, kdpl.TeacherPromptTuning, kdpl.DomainDataModule):
        assert inspect.getdoc(public).splitlines()[0] in text
    # a section that was not parsed is left unchanged
    assert re.findall(r"<p>(?:Args|Returns|Raises|Attributes|Yields):.{60}", text) == []


# --- what the texts say ---


def slugs(text):
    """Return the anchors that GitHub gives a text's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_headings_of_the_repository():
    broken = []
    for path, text in TEXTS.items():
        links = re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)", FENCE.sub("", text))
        for target, anchor in links:
            file = (path.parent / target).resolve() if target else path
            # objects of the reference are not headings; the build of the site checks them
            is_heading = anchor and not anchor.startswith("kdpl.")
            if not file.exists() or (is_heading and anchor not in slugs(TEXTS[file])):
                broken.append(f"{path.relative_to(ROOT)}: {target}#{anchor}")
    assert broken == []


def settings_of(config, prefix=""):
    """Yield the options that set the values and sections of a complete config."""
    for key, value in config.items():
        yield f"--{prefix}{key}"
        if isinstance(value, dict):
            yield from settings_of(value, f"{prefix}{key}.")


def test_every_config_and_setting_that_a_text_names_exists(teacher_run, student_run):
    texts = [*TEXTS.values(), (ROOT / "Makefile").read_text(encoding="utf-8")]
    named = set(re.findall(r"(?:configs|benchmarks)/[\w/]+\.yaml", "".join(texts)))
    assert len(named) > 20
    assert {name for name in named if not (ROOT / name).is_file()} <= {"configs/data/NAME.yaml"}
    options = {"--data.init_args.NAME", "--model.init_args.NAME"}
    for run in (teacher_run, student_run):
        options.update(settings_of(yaml.safe_load((run / "config.yaml").read_text())))
    named = set(re.findall(r"--(?:data|model|trainer)\.[\w.]*\w", "".join(texts)))
    assert len(named) > 20
    assert named - options == set()


def commands_of(text):
    """Yield the arguments of each call of kdpl in a text's shell blocks, with the block's variables filled in."""
    for language, block in FENCE.findall(text):
        if language not in ("bash", "console", "sh"):
            continue
        variables = {}
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
                variables[assigned[1]] = assigned[2]
            elif COMMAND in line:
                words = shlex.split(line.split(COMMAND)[1], comments=True)
                end = next(
                    (i for i, word in enumerate(words) if word in ("|", ">", "&&", "&", ";")),
                    len(words),
                )
                yield words[:end]


def python_of(page, word=""):
    """The one Python block of a page that has this word."""
    blocks = FENCE.findall(TEXTS[(DOCS / page).resolve()])
    (code,) = (code for language, code in blocks if language == "python" and word in code)
    return code


def fits_of(words):
    """Parse the arguments of a command; yields the fits that it would start, unless it chooses them."""
    options = parse(find_command(words[0]), words[1:], COMMAND)
    settings = options.get("settings", [])
    if words[0] == "run" and options["path"] is None:
        shared = [f"--config={file}" for file in options["config"]]
        for stage, teacher in (("teacher", []), ("student", ["--model.init_args.teacher=T"])):
            configs = [f"--config={find_config(file, stage)}" for file in options[stage]]
            yield ["fit", *shared, *configs, *teacher, "--out=stage", *settings]


def test_every_command_that_a_text_shows_is_understood(
    tmp_path, monkeypatch, teacher_run, student_run
):
    monkeypatch.chdir(tmp_path)
    for folder in ("configs", "benchmarks", "examples"):
        Path(folder).symlink_to(ROOT / folder)
    # a page names classes of the example there
    monkeypatch.syspath_prepend(ROOT / "examples" / "plugin")
    fits = []
    # the changelog also has commands of the past
    for text in (text for path, text in TEXTS.items() if path.name != "CHANGELOG.md"):
        assert set(re.findall(rf"{COMMAND} ([a-z][\w-]*)", text)) <= set(COMMANDS)
        for words in commands_of(text):
            words = [word.removeprefix("/home/me/") for word in words if word != "…"]
            for config in filter(re.compile(r"runs/.*\.yaml").fullmatch, words):
                Path(config).parent.mkdir(parents=True, exist_ok=True)
                run = teacher_run if re.search("teacher|untuned", config) else student_run
                written = (run / "config.yaml").read_text()
                Path(config).write_text(INIT_WRITES if config.endswith("data.yaml") else written)
            if {"--help", "--version"}.isdisjoint(words) and words:
                fits += [words] if words[0] in STAGES else fits_of(words)
    # once for each word: two fits that differ in their folders say the same
    understood = set()
    for words in sorted(fits, key=len, reverse=True):
        new = {word for word in words if not re.search(r"^runs/[\w/-]+$", word)} - understood
        if new:
            options = ["--out=stage" if word == "--print_config" else word for word in words[1:]]
            parse_stage(words[0], options).check()
        understood |= new


@pytest.fixture
def quickstart(tmp_path, monkeypatch, student_run):
    """A folder with the student of the quickstart, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    Path("runs/quickstart").mkdir(parents=True)
    Path("runs/quickstart/student").symlink_to(student_run)


def run_python(code, **names):
    exec(compile(code, "a page", "exec"), names)  # noqa: S102
    return names


@pytest.mark.usefixtures("quickstart")
def test_the_python_that_the_quickstart_shows_runs(capsys):
    run_python(python_of("quickstart.md"))
    assert Path("digit.png").is_file()
    assert capsys.readouterr().out.startswith("digits/1784 five\n")


def test_the_python_that_shows_what_a_tower_takes_runs(tmp_path, monkeypatch):
    noise(50, 40).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    published, tiny = '"ViT-B-16-quickgelu", "openai"', f'"test-teacher", "{world.TAG}"'
    names = run_python(python_of("api.md", "load_clip").replace(published, tiny))
    tower, image = names["clip"].image_tower, names["image"][None]
    assert image.dtype == torch.uint8
    assert relative_error(names["features"], tower(image / 255)) < 1e-6


@pytest.mark.usefixtures("quickstart")
def test_what_the_readme_shows_of_the_quickstarts_classifier_runs_in_its_order(classifier, capsys):
    run_python(python_of("../README.md"))
    assert capsys.readouterr().out.strip() in Classifier.load(classifier).class_names
    blocks = FENCE.findall(TEXTS[ROOT / "README.md"])
    (block,) = (block for language, block in blocks if language == "console")
    (command,) = commands_of(f"```console\n{block}```")
    assert main(command) == 0
    printed, shown = capsys.readouterr().out.splitlines(), block.splitlines()[1:]
    # the shown numbers are of a longer run
    assert [line.split(",")[0] for line in printed] == [line.split(",")[0] for line in shown]


def test_the_neighbours_that_a_page_looks_for_are_found(student_run, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/student").symlink_to(student_run)
    Path("photos").mkdir()
    for i in range(8):
        noise(40 + i, 40).save(f"photos/{i}.png")
    noise(43, 40).save("photos/same.png")
    Path("photos/broken.png").touch()
    noise(45, 40).save("query.jpg", quality=100)
    (command,) = (
        words for words in commands_of(TEXTS[DOCS / "predict.md"]) if "--embeddings" in words
    )
    assert main(command) == 0
    capsys.readouterr()
    run_python(python_of("predict.md", "NearestNeighbors"))
    *same, similar = capsys.readouterr().out.splitlines()
    pair = ("photos/3.png", "photos/same.png")
    assert same == [f"{one} is nearly the same as {other}" for one, other in (pair, pair[::-1])]
    assert similar.startswith("query.jpg is most similar to photos/5.png ")


def run_without(packages, script, image, monkeypatch, capsys):
    """Run a script on an image in its folder, where it cannot import these packages; returns the lines it prints."""
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.chdir(image.parent)
        patch.setattr(sys, "argv", ["script.py", image.name])
        for package in packages:
            patch.setitem(sys.modules, package, None)
        run_python(script)
    return capsys.readouterr().out.splitlines()


def require_prediction(line, expected):
    """Require a printed line to have a class and its probability."""
    name, probability = line.rsplit(maxsplit=1)
    assert name == expected.class_name
    assert float(probability) == pytest.approx(expected.probability, abs=1e-5)


@pytest.mark.parametrize(
    ("decoding", "way"),
    [
        (PUBLISHED, {}),
        (Decoding((0, 90, 200)), {"crop_pct": 0.875}),
        (PUBLISHED, {"resize_mode": "squash", "interpolation": "bilinear", "crop_pct": 0.9}),
    ],
)
def test_the_script_without_torch_makes_the_classifiers_predictions(
    decoding, way, classifier, exported, tmp_path, monkeypatch, capsys
):
    given, folder = Classifier.load(classifier), tmp_path / "classifier"
    tower = given.encoder.tower.module
    tower.preprocessing = replace(tower.preprocessing, **way)
    companions = {"unknown": given.companions["unknown"]}
    made = Classifier(
        *(given.encoder, given.vectors, given.logit_scale, given.clip, decoding),
        companions=companions,
    )
    scores = torch.linspace(0.02, 1, 200)
    made.companions["held_out"] = HeldOutScores(0.7, scores, scores.clone(), scores > 0.2)
    made.save(folder)
    # the network is the same for all ways of preparing images, which are metadata
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported("onnx"))
    onnx.helper.set_model_props(model, metadata(Classifier.load(folder), "uint8"))
    onnx.save(model, tmp_path / "classifier.onnx")
    noise(47, 90).save(tmp_path / "0.png")
    pictures = [tmp_path / "0.png", odd_photo(tmp_path / "1.png", 101, 64)]
    script, read = python_of("export.md", "ImageOps"), Classifier.load(folder)
    for path in pictures:
        ((expected,),), ((accepted,),) = read.predict([path]), predict(read, [path], max_error=0.1)
        ((calibrated,),) = predict(read, [path], calibrated=True)
        (several,) = predict(read, [path], sets=0.9)
        first, *doubt, shown, unknown = run_without(
            ("torch", "torchvision", "kdpl"), script, path, monkeypatch, capsys
        )
        require_prediction(first, expected)
        decided = "rejected" if accepted.class_name is None else "accepted"
        assert doubt == [decided, ";".join(str(top.class_name) for top in several)]
        assert float(shown) == pytest.approx(calibrated.probability, abs=1e-5)
        assert float(unknown) == pytest.approx(none_of_these(read, [path]).item(), abs=1e-4)


def test_openvino_takes_other_lines_of_that_script(
    classifier, exported, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("openvino")
    (tmp_path / "classifier_openvino").symlink_to(exported("openvino"))
    photo = tmp_path / "0.png"
    noise(47, 90).save(photo)
    imports, loading, call = python_of("export.md", "openvino").split("\n\n")
    script = python_of("export.md", "ImageOps").replace("import onnxruntime\n", f"{imports}\n")
    script, made = re.subn(r"session = .*\nabout = .*\n", lambda _: f"{loading}\n", script)
    script, called = re.subn(r"found = session.*\noutputs = .*\n", lambda _: call, script)
    assert (made, called) == (1, 1)
    first, *_, unknown = run_without(("onnxruntime", "kdpl"), script, photo, monkeypatch, capsys)
    read = Classifier.load(classifier)
    require_prediction(first, read.predict([photo])[0][0])
    assert float(unknown) == pytest.approx(none_of_these(read, [photo]).item(), abs=1e-4)
