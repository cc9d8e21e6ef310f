"""What scores images as being of none of the classes, against a plain implementation, and the words that it takes."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from plain import normalized
from world import refused

from kdpl.confidence.unknown import MIN_HELD_OUT, Unknown, share_above, usual_rank
from kdpl.confidence.words import everyday_words, farthest, other_than, read_words
from kdpl.errors import ArtifactError, ConfigError, DataError

SCALE = 20.0


def drawn(seed, *shape):
    return normalized(torch.from_numpy(np.random.RandomState(seed).randn(*shape))).float()


CLASSES, NEGATIVES = drawn(0, 3, 6), drawn(1, 4, 6)
WORDS = ("sun", "moon", "star", "sky")


def score(unknown, images):
    """The scores of images by their features, [N]."""
    return unknown.further_scores(images, CLASSES, SCALE)["unknown"]


def around(vectors, count, noise, seed):
    draw = np.random.RandomState(seed)
    rows = vectors[torch.arange(count) % len(vectors)].numpy()
    rows = rows + noise * draw.randn(*rows.shape)
    return normalized(torch.from_numpy(rows)).float()


POOL, HELD_OUT = around(CLASSES[:2], 60, 0.2, seed=2), around(CLASSES[:2], 39, 0.2, seed=3)


def calibrated(unknown, features=HELD_OUT):
    return unknown.calibrated(features, CLASSES, SCALE, torch.empty(0))


@dataclass
class Plain:
    """The score image by image, without any matrix product."""

    pool: list
    negatives: list

    def __post_init__(self):
        groups = {}
        for f in self.pool:
            nearest = max(range(3), key=lambda c: sum(f * CLASSES[c].double().numpy()))
            groups.setdefault(nearest, []).append(f)
        self.means = [sum(g) / len(g) for g in groups.values()]
        rest = [f - m for g, m in zip(groups.values(), self.means, strict=True) for f in g]
        covariance = sum(np.outer(r, r) for r in rest) / len(rest)
        covariance += (0.01 * np.mean(np.diag(covariance)) + 1e-8) * np.eye(6)
        self.inverse = np.linalg.inv(covariance)
        self.distances = [self.distance(f) for f in self.pool]
        self.shares = [self.share(f) for f in self.pool]

    def distance(self, f):
        return np.log(min((f - m) @ self.inverse @ (f - m) for m in self.means))

    def share(self, f):
        return np.log(
            sum(np.exp(SCALE * sum(f * c)) for c in CLASSES.double().numpy())
            / sum(np.exp(SCALE * sum(f * n)) for n in self.negatives)
        )

    def unusual(self, f):
        z = (self.distance(f) - np.mean(self.distances)) / np.std(self.distances, ddof=1)
        if not len(self.negatives):
            return z
        return z - 0.3 * (self.share(f) - np.mean(self.shares)) / np.std(self.shares, ddof=1)


@pytest.mark.parametrize("negatives", [NEGATIVES, None])
def test_the_score_is_that_of_a_plain_implementation(negatives, monkeypatch):
    if negatives is None:
        monkeypatch.setattr(Plain, "share", lambda *_: 0.0)
    words = () if negatives is None else WORDS
    made = calibrated(Unknown.fit(POOL, CLASSES, SCALE, negatives, words))
    plain = Plain(
        [*POOL.double().numpy()], [] if negatives is None else [*negatives.double().numpy()]
    )
    # of 39 images the 38th: 5 % of 40 are above it
    cutoff = sorted(plain.unusual(f) for f in HELD_OUT.double().numpy())[37]
    images = torch.cat([drawn(4, 20, 6), HELD_OUT])
    expected = [1 / (1 + np.exp(cutoff - plain.unusual(f))) for f in images.double().numpy()]
    scores = score(made, images)
    assert scores.tolist() == pytest.approx(expected, abs=2e-4)
    assert (scores[20:] > 0.5 + 1e-6).sum() == 1
    assert scores[:20].mean() > 0.7 > 0.3 > scores[20:].mean()
    # without held-out images the unlabelled ones make the cutoff
    made = Unknown.fit(POOL, CLASSES, SCALE)
    assert (score(made, POOL) > 0.5 + 1e-6).sum() == 60 - 58


@pytest.mark.parametrize("images", [1, 18, 19, 198])
def test_the_share_above_the_limit_is_that_of_draws_and_at_most_5_percent_from_19_images_on(images):
    scores = np.random.default_rng(0).random((20_000, images + 1))
    limits = np.sort(scores[:, 1:], axis=1)[:, usual_rank(images) - 1]
    assert share_above(images) == pytest.approx((scores[:, 0] > limits).mean(), abs=0.011)
    assert (share_above(images) <= 0.05) == (images >= MIN_HELD_OUT == 19)


def test_an_image_that_is_alone_in_its_class_does_not_count_as_usual():
    usual = POOL[(POOL @ CLASSES.T).argmax(dim=1) < 2]
    made = [
        calibrated(Unknown.fit(pool, CLASSES, SCALE))
        for pool in (usual, torch.cat([usual, CLASSES[2:]]))
    ]
    assert made[1].means.shape[0] == made[0].means.shape[0] + 1
    assert made[1].distance == pytest.approx(made[0].distance, abs=0.05)


def test_equal_features_are_scored():
    same = CLASSES[:1].repeat(20, 1)
    scores = score(Unknown.fit(same, CLASSES, SCALE), torch.cat([same, CLASSES[1:]]))
    assert scores.isfinite().all()
    assert scores[0] <= 0.5 < scores[-1]


def test_the_words_that_are_least_similar_to_the_classes_are_chosen():
    words = torch.cat([around(CLASSES, 6, 0.1, seed=5), NEGATIVES])
    plain = [
        np.quantile([sum(w * c) for c in CLASSES.double().numpy()], 0.95)
        for w in words.double().numpy()
    ]
    assert farthest(words, CLASSES) == sorted(np.argsort(plain)[:5])
    assert farthest(words[:1], CLASSES) == [0]


def test_an_everyday_word_that_is_a_class_is_left_out_and_a_chosen_one_is_refused():
    words = ("dog", "Traffic  Light", "traffic light", "crane")
    assert [words[i] for i in other_than(["Dog", "tram"], words, "my.txt")] == [*words[1:]]
    assert other_than(["traffic_light"], words[2:], "my.txt") == [1]
    for names, chosen in ((["traffic_light"], words), (["caf\u00e9"], ["cafe\u0301"])):
        with refused(ConfigError, "my.txt has the word .*, which is a class"):
            other_than(names, chosen, "my.txt")


def test_words_are_read_by_line_or_refused_and_those_that_ship_are_distinct_and_plain(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("\ufeffhand\n\n  table top \nhand\n", encoding="utf-8")
    assert read_words(str(file)) == ("hand", "table top")
    words = everyday_words()
    assert len({*words}) == len(words) > 200
    assert all(word == word.strip().casefold() and word for word in words)
    # and refused where they cannot be
    for content, fault in ((b"a\nB\xe4r", "line 2"), (b" \n", "no words"), (b"a\x1bb", "be shown")):
        file.write_bytes(content)
        with refused(DataError, f"negative words .*words.txt .*{fault}"):
            read_words(str(file))
    with refused(DataError, r"negative words .*none.txt cannot be read"):
        read_words(str(tmp_path / "none.txt"))


def test_a_file_gives_the_same_scores_to_its_classifier_alone(tmp_path):
    made = calibrated(Unknown.fit(POOL, CLASSES, SCALE, NEGATIVES, WORDS))
    made.save(tmp_path, "ab12")
    read = Unknown.read(tmp_path, "ab12", 6)
    assert read.words == WORDS
    torch.testing.assert_close(score(read, HELD_OUT), score(made, HELD_OUT))
    with refused(ArtifactError, "unknown.safetensors belongs to another classifier"):
        Unknown.read(tmp_path, "cd34", 6)
    with refused(ArtifactError, "its tensors are invalid"):
        Unknown.read(tmp_path, "ab12", 5)
    made.words = WORDS[1:]
    made.save(tmp_path, "ab12")
    with refused(ArtifactError, "its tensors are invalid"):
        Unknown.read(tmp_path, "ab12", 6)
