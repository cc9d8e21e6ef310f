import pytest
import runs
import torch
import world

from kdpl import Classifier
from kdpl.class_vectors import ClassVectors, FrozenTeacher
from kdpl.doubt.words import NEGATIVE_VECTORS_FILE
from kdpl.errors import ArtifactError
from kdpl.refinement.target import PoolTargets
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, POOL_TARGETS_FILE
from kdpl.targets.mixture import TeacherMixture
from kdpl.targets.student_teacher import open_teacher

ALWAYS = ["--model.init_args.target=refined", "--model.init_args.refinement={mode: always, views: 2}"]


@pytest.fixture(scope="module")
def labelled(teacher_run, tmp_path_factory):
    """The folder of a student with two heads, both of which count."""
    out = tmp_path_factory.mktemp("labelled") / "student"
    assert (
        runs.fit_student(out, teacher_run, "--model.init_args.label_weight=1", *runs.configs("trainer/cpu.yaml")) == 0
    )
    return out


@pytest.fixture(scope="module")
def again(student_run, tmp_path_factory):
    """The folder of a student of that student, of refined targets."""
    out = tmp_path_factory.mktemp("again") / "student"
    cache = [f"--data.init_args.teacher_cache={out.parent}/cache", "--data.init_args.fill_teacher_cache=true"]
    assert runs.fit_student(out, student_run, *ALWAYS, *cache) == 0
    return out


def opened(folder):
    return open_teacher(folder, ClassVectors.of_teacher(str(folder)))


def images(n=6):
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("run", ["student_run", "labelled"])
@torch.no_grad()
def test_it_predicts_what_the_students_classifier_predicts(run, request):
    folder = request.getfixturevalue(run)
    teacher, classifier = opened(folder), Classifier.load(folder / "classifier")
    teacher.load()
    features = teacher.features(images())
    torch.testing.assert_close(features, classifier.encoder(images()))
    torch.testing.assert_close(teacher.logits(features), classifier(images()))
    assert (classifier.label_head is not None) == (run == "labelled")


def test_a_tuned_teacher_stays_one_and_a_mixture_takes_both_kinds(teacher_run, student_run):
    tuned = opened(teacher_run)
    assert type(tuned) is FrozenTeacher
    mixture = TeacherMixture(tuned, [str(student_run)], "mean")
    mixture.load()
    student = opened(student_run)
    student.load()
    each = [teacher.logits(teacher.features(images())).softmax(1) for teacher in (tuned, student)]
    mixed = mixture.logits(mixture.features(images(), images())).softmax(1)
    torch.testing.assert_close(mixed, sum(each) / 2)


def test_the_second_student_has_the_first_teachers_class_vectors_and_targets_of_the_first_student(
    again, student_run, teacher_run
):
    vectors = [ClassVectors.load(folder / CLASS_VECTORS_FILE) for folder in (again, teacher_run)]
    assert vectors[0].vectors.equal(vectors[1].vectors)
    assert vectors[0].teacher == vectors[1].teacher
    first, second = (Classifier.load(folder / "classifier") for folder in (student_run, again))
    assert first.fingerprint() != second.fingerprint()
    assert second.vectors.teacher == vectors[1].teacher
    assert PoolTargets.load(again / POOL_TARGETS_FILE).teacher == first.fingerprint()
    assert runs.test(again) == 0


def test_the_second_student_has_the_negative_words_of_the_first(again, student_run, teacher_run):
    copies = [(folder / NEGATIVE_VECTORS_FILE).read_bytes() for folder in (teacher_run, student_run, again)]
    assert len(set(copies)) == 1
    first, second = (Classifier.load(folder / "classifier").companions["unknown"] for folder in (student_run, again))
    assert first.words
    assert second.words == first.words


def test_with_a_complete_cache_and_in_a_test_the_first_students_encoder_is_not_built(
    again, student_run, tmp_path, monkeypatch
):
    cached = [*ALWAYS, f"--data.init_args.teacher_cache={again.parent}/cache", "--data.init_args.shots=0"]
    built = []
    monkeypatch.setattr("kdpl.targets.student_teacher.Classifier.load", lambda folder: built.append(folder))
    assert runs.fit_student(tmp_path, student_run, *cached) == 0
    assert runs.test(tmp_path) == 0
    assert not built


def test_a_cache_of_its_features_is_not_taken_for_one_of_its_teachers(again, teacher_run, tmp_path, capsys):
    cached = f"--data.init_args.teacher_cache={again.parent}/cache"
    assert runs.fit_student(tmp_path, teacher_run, cached) == 1
    assert "cache is of something else (teacher is" in runs.error_line(capsys)


def test_other_class_vectors_than_the_students_are_refused(student_run):
    vectors = ClassVectors.load(student_run / CLASS_VECTORS_FILE)
    other = ClassVectors.from_fields(vectors.vectors.roll(1, 0), vectors.fields(), "rolled")
    with world.refused(ArtifactError, "not those of the student"):
        open_teacher(student_run, other)


def test_a_checkpoint_is_refused_with_another_student_as_its_teacher(again, labelled, tmp_path, capsys):
    assert (
        runs.test(
            again,
            f"--model.init_args.teacher={labelled}",
            f"--out={tmp_path}",
            f"--ckpt_path={again}/checkpoints/last.ckpt",
        )
        == 1
    )
    assert "distilled from a different teacher" in runs.error_line(capsys)
