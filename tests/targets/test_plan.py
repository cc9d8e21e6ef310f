"""The plan of stage 2 is complete when it is made: loader and student read it alone."""

from dataclasses import FrozenInstanceError

import pytest
import world

from kdpl.student import StudentDistillation
from kdpl.targets.plan import Plan
from kdpl.targets.refinement.target import Refined

POOL = {"shots": 2, "unlabeled_share": 0.12}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    world.write_teacher(folder, class_names=world.DIGITS, num_base=None)
    return folder


def test_nothing_is_written_after_the_plan_is_made(teacher, tmp_path, monkeypatch):
    target = Refined(views=2, rounds=1)
    student, domain = world.make_student(teacher, target=target), world.digits(7, **POOL)
    written, before = [], {}

    def planned(module, *arguments, **options):
        before.update({name: dict(vars(of)) for name, of in (("target", target), ("data", domain))})
        plan_fit(module, *arguments, **options)
        watch(StudentDistillation, "student")

    def watch(kind, name):
        plain = kind.__setattr__

        def noted(module, attribute, value):
            written.append((name, attribute))
            plain(module, attribute, value)

        monkeypatch.setattr(kind, "__setattr__", noted)

    plan_fit = StudentDistillation.plan_fit
    monkeypatch.setattr(StudentDistillation, "plan_fit", planned)
    world.fit(student, tmp_path, 1, (), domain, limit_train_batches=2)
    # Lightning's, by names with an underscore
    assert not [name for name in written if not name[1].startswith("_")]
    assert vars(target) == before["target"]
    # what is new was read on first use, such as the pool
    changed = {name for name, value in before["data"].items() if vars(domain)[name] is not value}
    assert not {name for name in changed if not name.startswith("_")}
    for value in (student.plan, student.plan.pool, student.plan.values):
        with pytest.raises(FrozenInstanceError):
            value.images = None


def test_the_plan_has_pool_values_and_whether_the_teacher_runs(teacher, tmp_path):
    for name, target in (("refined", Refined(views=2, rounds=1)), ("teacher", "teacher")):
        student, domain = world.make_student(teacher, target=target), world.digits(7, **POOL)
        world.fit(student, tmp_path / name, 1, (), domain, limit_train_batches=1)
        plan = student.plan
        assert isinstance(plan, Plan)
        assert plan.pool.train.tolist() == domain.pool.train.tolist()
        prepared = plan.values is not None
        assert plan.runs_teacher != prepared
        assert (student.teacher.module.tower is None) == prepared
        if prepared:
            assert plan.values.images.tolist() == plan.pool.targeted.tolist()
