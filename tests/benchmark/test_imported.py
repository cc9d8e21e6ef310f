import published_files as files
import pytest
from campaigns import BASE_TO_NOVEL, FEW, ROOT, ROWS, make_trees, started, written

from kdpl.__main__ import main
from kdpl.benchmark.results import read_all

DEPTHS = [
    f"--model.init_args.vision_prompts.depth={files.VISION_DEPTH}",
    f"--model.init_args.text_prompts.depth={files.TEXT_DEPTH}",
]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_campaign_can_start_from_published_teachers(tmp_path, capsys):
    data, out = make_trees(tmp_path / "data"), tmp_path / "out"
    (tmp_path / "seed1").mkdir()
    state = files.teacher_state(name="tiny-teacher")
    for name in ("dtd", "other"):
        files.write(tmp_path / f"seed1/{name}.pt", state)
    own = f'import: "{tmp_path}/seed{{seed}}/{{dataset}}.pt", options: {DEPTHS}, title'
    file = written(tmp_path, BASE_TO_NOVEL, ROWS.replace('title: "teacher, tuned"', f'{own}: "teacher, published"'))
    command = [file, f"--root={data}", f"--out={out}", *FEW, "--seeds", "1", "--datasets", "dtd"]
    process = started(*command)
    text, err = process.communicate(timeout=120)
    assert process.returncode == 0, text + err
    found = {r.row: r for r in read_all(out)}
    assert {row: set(r.seconds) for row, r in found.items()} == {
        "teacher": {"import", "test"},
        "student": {"fit", "test"},
    }
    assert (out / "base_to_novel/dtd/seed_1/teacher/import.json").is_file()
    file.write_text(file.read_text().replace("{dataset}.pt", "other.pt"))
    capsys.readouterr()
    assert main(["benchmark", *map(str, command)]) == 1
    (fault,) = capsys.readouterr().err.splitlines()
    assert f"{out}/base_to_novel/dtd/seed_1/teacher was imported from another file" in fault
