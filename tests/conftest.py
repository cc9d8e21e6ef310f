import gc
import os
import shutil
import sys
from copy import deepcopy
from functools import cache
from importlib.util import find_spec

# before open_clip is imported: no test may reach for the network
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from filelock import FileLock

# xdist's first process runs no test, and starts the others seconds earlier without these
workers = sys.argv[sys.argv.index("-n") + 1] if "-n" in sys.argv else "0"
if workers == "0" or "PYTEST_XDIST_WORKER" in os.environ:
    import runs
    import torch
    import world
    from plain import PlainClip

    from kdpl.__main__ import main
    from kdpl.clip import loading
    from kdpl.clip.towers import building

    # the models are too small for threads to pay, several test processes share the machine, and with others sums have
    # other last bits
    torch.set_num_threads(1)

# Files that import what only an extra brings. Elsewhere single tests call pytest.importorskip. The environment for
# development has every extra, which test_project.py checks, so that nothing is left out there.
IMPORTED = {
    "hypothesis": ["data/test_groups.py", "data/test_names.py", "properties"],
    "litserve": ["serve"],
    "onnxruntime": ["classifier/formats/test_export.py"],
}
collect_ignore = [
    file for module, files in IMPORTED.items() if find_spec(module) is None for file in files
]

if find_spec("hypothesis") is not None:
    from hypothesis import settings

    # the same examples every time, and no clock: the machine may be busy
    settings.register_profile(
        "kdpl", derandomize=True, deadline=None, max_examples=50, database=None
    )
    settings.load_profile("kdpl")

# a sixth of the time of collecting tests would be for looking through the objects of all modules for garbage
gc.disable()


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Keep the index of shards out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_runtest_teardown():
    # a command that a test called may have taken all cores
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _registered_models():
    world.register()


@pytest.fixture(scope="session", autouse=True)
def _brief_timing_of_encoders():
    """Reports measure how fast encoders are in a few rounds, not for two seconds each; tests read no such number."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("kdpl.report") is not None:
            patch.setattr("kdpl.report.cost._SECONDS", 0)
        yield


@pytest.fixture(scope="session", autouse=True)
def _images_in_this_process():
    """Processes that load a few images take longer to start than to load; tests of them ask for some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpl.data.datamodule.cores", lambda: 0)
        patch.setattr("kdpl.data.parallel.cores", lambda: 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk():
    """A fit writes ten files through to the disk, each of which takes as long as some of its steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _copies_of_small_models():
    """Building draws all weights anew, the same each time, only for others to be loaded in their place."""
    build, built = building.build_clip, {}

    def copied(config):
        # a network that is read from a file is built without memory
        key = repr(config), torch.empty(0).device
        model = built.get(key) or build(config)
        if sum(p.numel() for p in model.parameters()) < 10_000_000:
            built[key] = model
        return deepcopy(model)

    with pytest.MonkeyPatch.context() as patch:
        for module in (building, loading):
            patch.setattr(module, "build_clip", copied)
        yield


@pytest.fixture(scope="session")
def clip_of():
    return world.clip_of


@pytest.fixture(scope="session")
def plain_of():
    """The plain implementation of a model by its name."""
    return cache(lambda name: PlainClip(world.weights(name), world.CONFIGS[name]))


@pytest.fixture
def images():
    return world.images_of(torch.tensor([0, 1, 2]), seed=5)


@pytest.fixture(scope="session")
def built_once(tmp_path_factory):
    """Let the first of the processes that run the tests build a folder; returns the folder."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    built = {}

    def once(name, build):
        folder, done = shared / name, shared / f"{name}.built"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                build(folder)
                done.touch()
        built[folder] = runs.files_of(folder)
        return folder

    yield once
    for folder, files in built.items():
        assert runs.files_of(folder) == files, f"a test has changed {folder}"


@pytest.fixture(scope="session")
def teacher_run(built_once):
    """The folder of a teacher that was fitted for two short epochs and tested; no test changes it."""

    def build(out):
        assert runs.fit_teacher(out, *runs.AVERAGING) == 0
        assert runs.test(out) == 0

    return built_once("teacher", build)


@pytest.fixture(scope="session")
def student_run(built_once, teacher_run):
    """The folder of a student that was distilled from that teacher and tested; no test changes it."""

    def build(out):
        assert runs.fit_student(out, teacher_run) == 0
        assert runs.test(out) == 0

    return built_once("student", build)


@pytest.fixture(scope="session")
def finished(built_once):
    """The folder of a finished run of the stages above, and beside it averaging.yaml; no test changes either."""

    def build(folder):
        folder.mkdir()
        averaging = folder / "averaging.yaml"
        averaging.write_text("model: {init_args: {averaging: {mean: 2, std: 1}}}")
        command = ["run", *runs.DATA, *runs.STAGES, *runs.SHORT, f"--teacher={averaging}"]
        assert main([*command, f"--out={folder / 'my run'}"]) == 0

    return built_once("run", build) / "my run"


@pytest.fixture(scope="module")
def without_companions():
    """Make nothing that is kept beside a classifier, as its images take a quarter of a short fit."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("kdpl.confidence") is not None:
            patch.setattr("kdpl.confidence.companions.make_companions", lambda *_: [])
        yield


@pytest.fixture(scope="session")
def classifier(student_run):
    """The folder of that student's classifier; no test changes it."""
    return student_run / "classifier"


@pytest.fixture(scope="session")
def exported(built_once, classifier):
    """The file that export writes of that classifier in a format; no test changes it."""
    from kdpl.classifier.formats import onnx_files, openvino
    from kdpl.classifier.formats.registry import FORMATS

    @cache
    def file(kind):
        name = f"classifier{FORMATS[kind].ending}"

        def build(folder):
            with pytest.MonkeyPatch.context() as patch:
                if kind in ("onnx-fp16", "openvino"):
                    # both are made of an ONNX file, which takes most of the time
                    plain = file("onnx")
                    for module in (onnx_files, openvino):
                        patch.setattr(
                            module, "write_onnx", lambda *args: shutil.copy(plain, args[2])
                        )
                command = ["export", str(classifier), f"--format={kind}", f"--out={folder / name}"]
                assert main(command) == 0

        return built_once(kind, build) / name

    return file


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory):
    """What stage 1 leaves for the digits, of a random CLIP; no test changes it."""
    folder = tmp_path_factory.mktemp("teacher")
    world.write_teacher(folder, class_names=world.DIGITS, num_base=None)
    return folder


@pytest.fixture
def pets(tmp_path):
    """Two classes of six images each, all different, without test images."""
    runs.image_folder(tmp_path / "pets", images=6, splits=("train",))
    return tmp_path / "pets"
