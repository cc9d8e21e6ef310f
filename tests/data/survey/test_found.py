from benchmark_tree import image
from PIL import Image
from runs import noise

from kdpl.data.inspection import is_drawn
from kdpl.data.survey import FoundImage, find, inspect_images, leave_out, views_to_choose


def test_two_spellings_of_one_name_in_unicode_are_one_class(tmp_path):
    for path in ("train/jose\u0301/1.png", "test/jos\u00e9/2.png", "train/zoe/3.png"):
        image(tmp_path / path)
    assert {image.label for image in find(tmp_path)} == {"jos\u00e9", "zoe"}


def test_of_equal_files_a_test_image_stays_before_val_before_labelled_before_unlabelled():
    described = "x::train x:cat:train y:cat:train x:dog:test y:cat:val z:cat:train z::train"
    images = []
    for number, text in enumerate(described.split()):
        digest, label, split = text.split(":")
        images.append(FoundImage(str(number), label, split, digest=digest))
    kept, copies = leave_out(images)
    assert [image.path for image in kept] == ["3", "4", "5"]
    assert [copy.problem for copy in copies] == [
        "0 is a copy of 3 (test)",
        "1 is a copy of 3 (test, of class dog)",
        "2 is a copy of 4 (val)",
        "6 is a copy of 5 (train)",
    ]


def test_a_look_tells_size_digest_and_problem_in_order_for_any_number_of_workers(tmp_path):
    image(tmp_path / "a/1.png")
    image(tmp_path / "a/3.png", shade=100)
    (tmp_path / "a/2.png").write_bytes(b"no image")
    (tmp_path / "a/4.png").write_bytes((tmp_path / "a/1.png").read_bytes())
    alone, helped = (inspect_images(find(tmp_path), workers) for workers in (1, 2))
    assert alone == helped
    assert [image.size for image in alone] == [(12, 10), None, (12, 10), (12, 10)]
    assert alone[0].digest == alone[3].digest != alone[2].digest
    assert "2.png cannot be read" in alone[1].problem
    assert [image.problem is None for image in alone] == [True, False, True, True]


def test_classes_that_a_mirror_would_change_are_told_by_their_names():
    photo = FoundImage("photo.png", "", "train", drawn=False)
    for names in ({"zero", "one", "2"}, {"letter a", "b"}, {"left hand", "right hand"}):
        assert views_to_choose(names, [photo]) is not None
    for names in ({"cat", "dog", "seven"}, {"class_07", "class_08"}):
        assert views_to_choose(names, [photo]) is None


def test_grey_images_on_a_plain_ground_are_not_mirrored():
    written = Image.new("RGB", (60, 40), "white")
    written.paste((30, 30, 30), (20, 10, 30, 30))
    coloured = written.copy()
    coloured.paste((200, 30, 30), (20, 10, 30, 30))
    assert is_drawn(written)
    assert not is_drawn(coloured)
    assert not is_drawn(noise(60, 40, "L").convert("RGB"))
    drawn = FoundImage("drawn.png", "", "train", drawn=True)
    assert views_to_choose({"cat", "dog"}, [drawn]) is not None
