import numpy as np

from kdpl.data.randomness import generator


def test_stream_is_philox_at_its_documented_key_and_counter():
    literal = np.random.Generator(np.random.Philox(key=7 + (0 << 64), counter=(5 << 64) + (3 << 128)))
    assert generator(7, "augmentation", epoch=3, index=5).random(4).tolist() == literal.random(4).tolist()


def test_every_key_has_its_own_stream():
    keys = [(s, p, e, i) for s in range(3) for p in ("augmentation", "order") for e in range(3) for i in range(3)]
    draws = {generator(s, p, epoch=e, index=i).random() for s, p, e, i in keys}
    assert len(draws) == len(keys)


def test_order_of_calls_does_not_matter():
    one, two = generator(1, "order", epoch=0), generator(1, "order", epoch=1)
    mixed = [one.random(), two.random(), one.random(), two.random()]
    plain = [generator(1, "order", epoch=e).random(2).tolist() for e in (0, 1)]
    assert mixed == [plain[0][0], plain[1][0], plain[0][1], plain[1][1]]
