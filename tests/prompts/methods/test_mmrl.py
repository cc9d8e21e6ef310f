"""Representation tokens, beside a plain implementation of towers, features and loss, one sequence at a time."""

import plain as p
import pytest
import torch
import world
from plain import END, START, layer_norm, normalized, relative_error, token_ids

from kdpl.class_vectors import ClassVectors
from kdpl.clip import ClipConfig
from kdpl.errors import ConfigError
from kdpl.optim import OptimConfig
from kdpl.prompts import PromptConfig
from kdpl.prompts.mmrl import RepresentationTokens
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE
from kdpl.targets.frozen_teacher import FrozenTeacher
from kdpl.teacher import RegularizerWeights, TeacherPromptTuning

WORDS = "a photo of a"
SIZE = PromptConfig(3, 2)


def make(clip, first_layer=2, size=SIZE, **settings):
    torch.manual_seed(0)
    method = RepresentationTokens(size, size, WORDS, clip, first_layer, 7, **settings)
    return world.disturbed(method, 0.3)


def tokens_of(state, kind, depth):
    return [
        state["space"] @ state[f"maps.{kind}.{i}.weight"].T + state[f"maps.{kind}.{i}.bias"]
        for i in range(depth)
    ]


def plain_images(clip, state, images, first_layer, depth):
    """f and r of each image; tokens stand right behind the class token, as in the authors' code."""
    s, tokens, rows = clip.state, tokens_of(state, "image", depth), []
    count = len(state["space"])
    for image in images:
        x = clip.image_norm(clip.image_tokens(image))
        for layer in range(clip.vision_layers):
            number = layer + 1 - first_layer
            if 0 <= number < depth:
                x = torch.cat([x[:1], tokens[number], x[1 if number == 0 else 1 + count :]])
            x = clip.image_block(x, layer)
        x = layer_norm(x, s["visual.ln_post.weight"], s["visual.ln_post.bias"])
        mean = sum(x[1 + i] for i in range(count)) / count
        rows.append((x[0] @ s["visual.proj"], mean @ state["projection"]))
    return [normalized(torch.stack(features)) for features in zip(*rows, strict=True)]


def plain_texts(clip, state, names, first_layer, depth):
    """The end's feature, with tokens right behind the start token, on all 77 positions."""
    s, tokens, rows = clip.state, tokens_of(state, "text", depth), []
    count = len(state["space"])
    for name in names:
        ids = token_ids(p.prompt_text(WORDS, name), clip.context_length)
        assert ids[0] == START
        x = s["token_embedding.weight"][ids] + s["positional_embedding"]
        for layer in range(clip.text_layers):
            number = layer + 1 - first_layer
            if 0 <= number < depth:
                x = torch.cat([x[:1], tokens[number], x[1 if number == 0 else 1 + count :]])
            x = clip._block(x, f"transformer.resblocks.{layer}", clip.text_heads, causal=True)
        end = ids.tolist().index(END) + count
        pooled = layer_norm(x[end], s["ln_final.weight"], s["ln_final.bias"])
        rows.append(pooled @ s["text_projection"])
    return normalized(torch.stack(rows))


def leaves_of(method, prefix=""):
    state = {name.removeprefix(prefix): t for name, t in method.named_parameters()}
    return {name: t.detach().double().requires_grad_() for name, t in state.items()}


def teacher_of(share=0.6, weight=1.5, combine=True, first_layer=2, **options):
    def method(*common):
        return make(common[3], first_layer, share=share, weight=weight, combine=combine)

    torch.manual_seed(0)
    return TeacherPromptTuning(
        ClipConfig("test-teacher", world.TAG),
        vision_prompts=SIZE,
        text_prompts=SIZE,
        method=method,
        **{"regularizers": RegularizerWeights(0, 0, 0), **options},
    )


@pytest.mark.parametrize(("first_layer", "depth"), [(1, 3), (2, 2), (2, 1), (3, 1)])
def test_features_are_the_plain_ones_and_their_product_is_the_combined_logits(
    first_layer, depth, clip_of, plain_of, images
):
    clip, plain = clip_of("test-teacher"), plain_of("test-teacher")
    method = make(clip, first_layer, PromptConfig(3, depth), share=0.6)
    state = leaves_of(method)
    f, r = plain_images(plain, state, images, first_layer, depth)
    t = plain_texts(plain, state, world.NAMES, first_layer, depth)

    pair = method.image_features(clip.image_tower, images)
    assert relative_error(pair[0], f) < 1e-5
    assert relative_error(pair[1], r) < 1e-5
    features = method.encode_images(clip.image_tower, images)
    vectors = method.encode_names(world.NAMES, clip.text_tower, clip.tokenize)
    assert features.shape == (3, 48)
    for rows in (features, vectors):
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)))
    assert relative_error(features @ vectors.T, 0.6 * f @ t.T + 0.4 * r @ t.T) < 1e-5

    method.combine = False
    assert torch.equal(method.encode_images(clip.image_tower, images), pair[0])
    alone = method.encode_names(world.NAMES, clip.text_tower, clip.tokenize)
    assert relative_error(alone, t) < 1e-5


def plain_terms(plain, state, names, images, labels):
    """The terms of the loss of tokens in layers 2 and 3, with share 0.6 and weight 1.5."""
    f, r = plain_images(plain, state, images, 2, 2)
    t = plain_texts(plain, state, names, 2, 2)
    frozen = normalized(plain.image_features(images))
    zero_shot = normalized(plain.text_features([p.prompt_text(WORDS, name) for name in names]))
    return {
        "ce": 0.6 * p.cross_entropy(plain.scale * f @ t.T, labels),
        "representation": 0.4 * p.cross_entropy(plain.scale * r @ t.T, labels),
        "image": 1.5 * (1 - sum((a * b).sum() for a, b in zip(f, frozen, strict=True)) / len(f)),
        "text": 1.5 * (1 - sum((a * b).sum() for a, b in zip(t, zero_shot, strict=True)) / len(t)),
    }


@pytest.mark.parametrize(("at_once", "combine"), [(2, True), (128, False)])
def test_loss_terms_and_all_gradients_are_the_plain_ones(at_once, combine, tmp_path, plain_of):
    teacher = teacher_of(combine=combine, classes_at_once=at_once)
    plain, domain = plain_of("test-teacher"), world.TinyDomain(num_base=3)
    state, names = leaves_of(teacher, "prompts."), domain.tuning_class_names
    images, labels = domain.labeled[:4], domain.labels[:4]
    terms = plain_terms(plain, state, names, images, labels)

    seen = world.fit(teacher, tmp_path, domain=domain, limit_train_batches=1)
    expected = {f"train/loss_{name}": term.item() for name, term in terms.items()}
    total = sum(expected.values())
    assert seen.logged == pytest.approx({**expected, "train/loss": total}, rel=1e-5)
    sum(terms.values()).backward()
    assert seen.gradients.keys() == {f"prompts.{name}" for name in state}
    for name, leaf in state.items():
        assert relative_error(seen.gradients[f"prompts.{name}"], leaf.grad) < 1e-5, name


def test_the_loss_on_labels_is_of_averaged_texts(tmp_path, plain_of):
    teacher, plain, domain = teacher_of(), plain_of("test-teacher"), world.TinyDomain(num_base=3)
    texts = ("crab", "sea_horse", "horse", "jelly")
    domain.class_texts = ("crab", texts[1:3], "jelly", "shark", "ray")
    state, images = leaves_of(teacher, "prompts."), domain.labeled[:4]
    f, _ = plain_images(plain, state, images, 2, 2)
    t = plain_texts(plain, state, texts, 2, 2)
    t = torch.stack([t[0], normalized(t[1:3].mean(dim=0)), t[3]])
    expected = 0.6 * p.cross_entropy(plain.scale * f @ t.T, domain.labels[:4])
    seen = world.fit(teacher, tmp_path, domain=domain, limit_train_batches=1)
    assert seen.logged["train/loss_ce"] == pytest.approx(expected.item(), rel=1e-5)


def test_six_steps_end_with_the_plain_weights(tmp_path, plain_of):
    teacher, domain = teacher_of(optim=OptimConfig(lr=0.02, warmup_lr=0.01)), world.TinyDomain(3)
    state, names = leaves_of(teacher, "prompts."), domain.tuning_class_names
    world.fit(teacher, tmp_path, 2, domain=domain)
    plain = plain_of("test-teacher")

    def loss(images, labels):
        return sum(plain_terms(plain, state, names, images, labels).values())

    batches = zip(domain.labeled.split(4), domain.labels.split(4), strict=True)
    p.sgd([*state.values()], (0.01, 0.02), batches, loss)
    for name, leaf in state.items():
        trained = teacher.prompts.get_parameter(name)
        assert relative_error(trained, leaf) < 1e-5, name


def test_maps_start_alike_and_the_space_small(clip_of):
    torch.manual_seed(0)
    size = PromptConfig(40, 2)
    method = RepresentationTokens(size, size, WORDS, clip_of("test-teacher"), 1)
    assert method.space.shape == (40, 512)
    assert method.space.std().item() == pytest.approx(0.02, rel=0.05)
    assert method.projection.std().item() == pytest.approx(48**-0.5, rel=0.05)
    for kind in ("image", "text"):
        first, second = (mapped.weight for mapped in method.maps[kind])
        assert torch.equal(first, second)


def test_stage_2_reads_the_combined_logits_from_the_two_files(tmp_path, images):
    teacher, domain = teacher_of(), world.TinyDomain(num_base=3)
    world.fit(teacher, tmp_path, domain=domain, limit_train_batches=1)
    vectors = ClassVectors.load(tmp_path / CLASS_VECTORS_FILE)
    assert vectors.vectors.shape == (5, 48)
    frozen = FrozenTeacher(tmp_path, vectors)
    frozen.load()
    assert not [p for p in frozen.method.parameters() if p.requires_grad]
    logits = frozen.logits(frozen.features(images))
    f, r = teacher.prompts.image_features(teacher.image_tower.module, images)
    texts = teacher.prompts.arrange(world.NAMES, teacher.text_tower.module, teacher.tokenize)
    t = teacher.prompts.text_features(teacher.text_tower.module, texts, 128)
    assert relative_error(logits, teacher.logit_scale * (0.6 * f + 0.4 * r) @ t.T) < 1e-5
    student = world.make_student(tmp_path)
    world.fit(student, tmp_path / "student", limit_train_batches=1)
    assert student.encoder.projector.layers[-1].out_features == 48


@pytest.mark.parametrize(
    ("model", "text", "settings", "match"),
    [
        ("test-teacher", PromptConfig(2, 2), {}, "give one size"),
        ("test-teacher", SIZE, {"first_layer": 3}, "do not fit 3 layers"),
        ("test-teacher", SIZE, {"first_layer": 0}, "from layer 0 on"),
        ("test-teacher", SIZE, {"share": 1.0}, r"share 1\.0"),
        ("test-resnet", SIZE, {}, "do not fit 0 layers"),
    ],
)
def test_what_does_not_fit_is_refused(model, text, settings, match, clip_of):
    with world.refused(ConfigError, match):
        RepresentationTokens(SIZE, text, WORDS, clip_of(model), **{"first_layer": 1, **settings})


def test_a_teacher_with_a_loss_of_its_own_takes_no_regularizers():
    with world.refused(ConfigError, r"set regularizers\.text"):
        teacher_of(regularizers=RegularizerWeights())
