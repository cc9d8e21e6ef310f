import pytest
import torch
import world
import yaml
from plain import normalized, prompt_text, relative_error
from runs import AVERAGING, CONFIGS, TEACHER, configs, files_of, fit_teacher, image_folder

from kdpl.__main__ import main
from kdpl.class_vectors import ClassVectors

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "new" / "vectors.safetensors"


def encode(teacher, out, *more):
    return main(["class-vectors", f"--teacher={teacher}", f"--out={out}", *more])


def same(one, other):
    return torch.equal(one.vectors, other.vectors) and one.fields() == other.fields()


def frozen_in(run):
    return ClassVectors.load(run / "class_vectors.safetensors")


class TestTheNamesOfTheTeachersOwnRun:
    """The vectors are those that stage 1 froze itself, bit for bit."""

    def test_given_one_by_one(self, teacher_run, out, capsys):
        assert encode(teacher_run, out, "--classes", *DIGITS) == 0
        assert same(ClassVectors.load(out), frozen_in(teacher_run))
        assert capsys.readouterr() == (f"class vectors of 10 classes: {out}\n", "")

    def test_given_by_a_list(self, teacher_run, out, tmp_path):
        names = tmp_path / "names.txt"
        names.write_text("\ufeff" + "\n\n".join(DIGITS) + "\n  \n", encoding="utf-8")
        assert encode(teacher_run, out, f"--class-list={names}") == 0
        assert same(ClassVectors.load(out), frozen_in(teacher_run))

    @pytest.mark.parametrize("whole", [False, True])
    def test_given_by_the_data(self, whole, teacher_run, out):
        files = [f"--config={teacher_run}/config.yaml"] if whole else configs("data/digits.yaml")
        assert encode(teacher_run, out, *files) == 0
        assert same(ClassVectors.load(out), frozen_in(teacher_run))

    @pytest.mark.slow
    def test_in_a_run_of_base_and_novel_classes(self, tmp_path, out):
        data = ["data/digits.yaml", "data/base_to_novel.yaml"]
        assert fit_teacher(tmp_path / "run", *configs(data[1]), *AVERAGING) == 0
        expected = frozen_in(tmp_path / "run")
        assert expected.num_base == 5
        assert encode(tmp_path / "run", out, *configs(*data)) == 0
        assert same(ClassVectors.load(out), expected)
        assert encode(tmp_path / "run", out, *configs(data[0]), "--data.init_args.protocol", "base_to_novel") == 0
        assert same(ClassVectors.load(out), expected)


def test_names_that_the_teacher_never_saw_are_encoded_with_its_prompts(tmp_path, out, plain_of):
    draw = torch.Generator().manual_seed(0)
    context, deep = torch.randn(4, 40, generator=draw), torch.randn(2, 4, 40, generator=draw)
    tensors = {"text_prompts.context": context, "text_prompts.deep": deep}
    prompts = world.tuned_prompts(tensors, "test-teacher", context=None)
    prompts.save(tmp_path / "prompts.safetensors")
    assert encode(tmp_path, out, "--classes", "hermit_crab", " eel ") == 0
    vectors = ClassVectors.load(out)
    texts = [prompt_text("X X X X", name) for name in ("hermit_crab", "eel")]
    layers = torch.cat([context[None], deep]).double()
    assert relative_error(vectors.vectors, normalized(plain_of("test-teacher").text_features(texts, layers))) < 1e-5
    assert (vectors.class_names, vectors.num_base, vectors.context) == (("hermit_crab", "eel"), None, None)
    assert vectors.logit_scale == pytest.approx(30)
    assert (vectors.clip, vectors.teacher) == (prompts.clip, prompts.teacher)
    assert vectors.preprocessing == prompts.preprocessing


def test_a_second_start_replaces_the_file_and_leaves_nothing_else(teacher_run, out):
    before = files_of(teacher_run)
    assert encode(teacher_run, out, "--classes", "one", "two") == 0
    assert encode(teacher_run, out, "--classes", "three") == 0
    assert ClassVectors.load(out).class_names == ("three",)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert files_of(teacher_run) == before


def test_other_data_may_be_a_folder_of_images(teacher_run, out, tmp_path):
    image_folder(tmp_path / "data", classes=("dog", "cat", "eel"))
    settings = ["--data.init_args.root", str(tmp_path / "data"), "--data.init_args.protocol=base_to_novel"]
    assert encode(teacher_run, out, *configs("data/folder.yaml"), *settings) == 0
    vectors = ClassVectors.load(out)
    assert (vectors.class_names, vectors.num_base) == (("cat", "dog", "eel"), 2)


def refused(capsys, args, *words):
    assert main(["class-vectors", *args]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err, err


class TestRefusals:
    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (["one", "two", "one"], ["--classes", "'one' twice"]),
            (["one", " one"], ["--classes", "'one' twice"]),
            (["one", "  "], ["--classes", "class name that is empty"]),
            (["word " * 100], ["all 32 tokens", "shorten the class name"]),
        ],
    )
    def test_names(self, names, words, teacher_run, out, capsys):
        refused(capsys, [f"--teacher={teacher_run}", f"--out={out}", "--classes", *names], *words)
        assert not out.exists()

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"one\ntwo\none \n", ["names.txt", "'one' twice"]),
            (b"\n \n", ["names.txt", "no class names"]),
            (b"caf\xe9\n", ["names.txt", "cannot be read"]),
            (None, ["names.txt", "cannot be read", "No such file"]),
        ],
    )
    def test_lists(self, content, words, teacher_run, out, tmp_path, capsys):
        names = tmp_path / "names.txt"
        if content is not None:
            names.write_bytes(content)
        refused(capsys, [f"--teacher={teacher_run}", f"--out={out}", f"--class-list={names}"], *words)
        assert not out.exists()

    def test_a_folder_without_prompts(self, out, tmp_path, capsys):
        args = [f"--teacher={tmp_path}", f"--out={out}", "--classes", "one"]
        refused(capsys, args, str(tmp_path / "prompts.safetensors"), "does not exist", "run folder of a teacher")

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ([], ["one source: give --classes, --class-list or --config"]),
            (["--classes", "one", "--config=a.yaml"], ["one source"]),
            (["--classes", "one", "--data.init_args.shots=1"], ["no option --data.init_args.shots=1"]),
            (["--config=gone.yaml"], ["gone.yaml", "does not exist"]),
            ([f"--config={CONFIGS}/data/digits.yaml", "--data.init_args.shot=1"], ["'shot'"]),
            ([f"--config={CONFIGS}/data/digits.yaml", "--data.init_args.shots=0"], ["shots must be at least 1"]),
            ([f"--config={CONFIGS}/data/digits.yaml", "--shots=1"], ["--shots=1"]),
            ([f"--config={CONFIGS}/data/folder.yaml", "--data.init_args.root=gone"], ["gone does not exist"]),
            ([*TEACHER], ["dataset"]),
        ],
        ids=str,
    )
    def test_settings(self, settings, words, teacher_run, out, capsys):
        refused(capsys, [f"--teacher={teacher_run}", f"--out={out}", *settings], *words)
        assert not out.exists()

    @pytest.mark.parametrize(
        ("section", "words"),
        [
            (3, ["data in config", "is 3"]),
            ({"class_path": "kdpl.Nothing"}, ["kdpl.Nothing"]),
            (
                {"class_path": "lightning.pytorch.demos.boring_classes.BoringDataModule"},
                ["BoringDataModule does not say its class names"],
            ),
        ],
        ids=str,
    )
    def test_data_sections(self, section, words, teacher_run, out, tmp_path, capsys):
        file = tmp_path / "data.yaml"
        file.write_text(yaml.safe_dump({"data": section}))
        refused(capsys, [f"--teacher={teacher_run}", f"--out={out}", f"--config={file}"], *words)
