from types import SimpleNamespace

import plain
import pytest
import torch
import world
from lightning.pytorch.callbacks import Callback
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from plain import normalized, relative_error

from kdpl.callbacks.averaging import GaussianPromptAveraging, gaussian_weights
from kdpl.class_vectors import ClassVectors, NameEncoder
from kdpl.clip import ClipConfig
from kdpl.errors import ArtifactError, ConfigError
from kdpl.optim import OptimConfig
from kdpl.prompts import PromptConfig
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, PROMPTS_FILE
from kdpl.teacher import AveragingConfig, RegularizerWeights, TeacherPromptTuning

MODEL, WORDS = "test-teacher", "a photo of a"
NO_PROMPTS = PromptConfig(depth=0)
# cross entropy alone
IVLP = {"regularizers": RegularizerWeights(text=0, image=0, logits=0)}
COOP = {"vision_prompts": NO_PROMPTS, "text_prompts": PromptConfig(4, 1), "context": None, **IVLP}
VPT = {"text_prompts": NO_PROMPTS, **IVLP}
MAPS = {f"maps.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
MAPLE = {
    "vision_prompts": PromptConfig(2, 3),
    "text_prompts": PromptConfig(2, 3),
    "method": "coupled",
    **IVLP,
}
TEMPLATES = OPENAI_IMAGENET_TEMPLATES[:2]


@pytest.fixture(scope="module", autouse=True)
def few_templates():
    """Encode the ensemble of the frozen CLIP in two templates instead of 60."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpl.teacher.PROMPTSRC_TEMPLATES", TEMPLATES)
        yield


def make_teacher(model=MODEL, **options):
    torch.manual_seed(0)
    sizes = {"vision_prompts": PromptConfig(3, 2), "text_prompts": PromptConfig(4, 3)}
    return TeacherPromptTuning(ClipConfig(model, world.TAG), **{**sizes, **options})


def disturbed(*args, **options):
    """A teacher whose prompts were moved away from their start, so that every term matters."""
    return world.disturbed(make_teacher(*args, **options), 0.5)


def leaves_of(teacher):
    """The parameters by name, in float64, as leaves."""
    return {name: p.detach().double().requires_grad_() for name, p in teacher.named_parameters()}


def prompts_of(state):
    """Visual and text prompts of all layers, each [J, n, W] or None, from parameters by name."""
    state = {name.removeprefix("prompts."): tensor for name, tensor in state.items()}
    text, vision = state.get("text_prompts.context"), state.get("vision_prompts.tokens")
    if text is not None:
        text = torch.cat([text[None], state["text_prompts.deep"]])
    if "maps.0.weight" in state:
        maps = [(state[f"maps.{i}.weight"], state[f"maps.{i}.bias"]) for i in range(len(text))]
        vision = torch.stack([layer @ w.T + b for layer, (w, b) in zip(text, maps, strict=True)])
    return vision, text


def texts_of(names, words=WORDS):
    return [plain.prompt_text(words, name) for name in names]


@pytest.fixture(scope="module")
def plain_of_method(plain_of):
    """The plain terms of the loss on a batch of a domain; without ``weights``, the cross entropy alone."""

    def terms(domain, state, batch=slice(4), weights=(25.0, 10.0, 1.0), model=MODEL, words=WORDS):
        clip, names = plain_of(model), domain.tuning_class_names
        vision, text = prompts_of(state)
        images, labels = domain.labeled[batch], domain.labels[batch]
        if weights is None:
            texts = clip.text_features(texts_of(names, words), text)
            logits = clip.logits(clip.image_features(images, vision), texts)
            return {"ce": plain.cross_entropy(logits, labels)}
        ensemble = clip.ensemble(names, TEMPLATES)
        return plain.promptsrc(clip, images, labels, names, WORDS, vision, text, ensemble, weights)

    return terms


def first_batch(teacher, folder, domain=None, **options):
    return world.fit(teacher, folder, domain=domain, limit_train_batches=1, **options)


def require_loss(seen, *terms):
    assert seen.losses == [pytest.approx(sum(terms).item(), rel=1e-5)]


def require_plain_step(teacher, domain, folder, terms, leaves):
    """Fit on one batch, and require the loss, its terms and all gradients to be the plain ones."""
    seen = first_batch(teacher, folder, domain)
    require_loss(seen, *terms.values())
    logged = {f"train/loss_{name}": term.item() for name, term in terms.items() if len(terms) > 1}
    expected = {**logged, "train/loss": seen.losses[0]}
    # a term may be small beside the logits that it comes from
    assert seen.logged == pytest.approx(expected, rel=1e-5, abs=1e-6)
    sum(terms.values()).backward()
    assert seen.gradients.keys() == {name for name, leaf in leaves.items() if len(leaf)}
    for name, gradient in seen.gradients.items():
        layers = gradient.ndim == 3
        pairs = zip(gradient, leaves[name].grad, strict=True) if layers else []
        for actual, expected in [*pairs] or [(gradient, leaves[name].grad)]:
            assert relative_error(actual, expected) < 1e-5, name
    return seen


@pytest.mark.parametrize(("model", "num_base"), [(MODEL, None), (f"{MODEL}-quickgelu", 2)])
def test_loss_terms_and_all_gradients_are_the_plain_ones(
    model, num_base, tmp_path, plain_of_method
):
    teacher = disturbed(model)
    domain = world.TinyDomain(num_base, names=world.NAMES[: 3 if num_base else 2])
    leaves = leaves_of(teacher)
    terms = plain_of_method(domain, leaves, model=model)
    require_plain_step(teacher, domain, tmp_path, terms, leaves)


@pytest.mark.parametrize(
    "weights", [(7.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.0, 0.0, 5.0)], ids=["text", "image", "logits"]
)
def test_each_regularizer_alone_adds_its_own_term(weights, tmp_path, plain_of_method):
    teacher = disturbed(regularizers=RegularizerWeights(*weights))
    domain = world.TinyDomain(num_base=2)
    terms = plain_of_method(domain, leaves_of(teacher), weights=weights)
    require_loss(first_batch(teacher, tmp_path, domain), *terms.values())


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        (IVLP, {"vision_prompts.tokens", "text_prompts.context", "text_prompts.deep"}),
        (COOP, {"text_prompts.context"}),
        (VPT, {"vision_prompts.tokens"}),
        (MAPLE, {"text_prompts.context", "text_prompts.deep", *MAPS}),
    ],
    ids=["IVLP", "CoOp", "VPT", "MaPLe"],
)
def test_settings_make_the_module_another_published_method(
    method, trained, tmp_path, plain_of_method
):
    teacher, domain = disturbed(**method), world.TinyDomain(num_base=3)
    leaves, context = leaves_of(teacher), method.get("context", WORDS)
    terms = plain_of_method(domain, leaves, weights=None, words=context or "X X X X")
    seen = require_plain_step(teacher, domain, tmp_path, terms, leaves)
    assert set(seen.gradients) == {f"prompts.{name}" for name in trained}
    assert ClassVectors.load(tmp_path / CLASS_VECTORS_FILE).context == context


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"context": None, "text_prompts": NO_PROMPTS}, r"text_prompts\.depth 0.*give context"),
        ({**MAPLE, "vision_prompts": PromptConfig(3, 3)}, "vision_prompts has length 3"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, match):
    with world.refused(ConfigError, match):
        make_teacher(**options)


WEIGHTS = gaussian_weights(3, 2, 1.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A teacher after three epochs with averaging."""
    run = SimpleNamespace(folder=tmp_path_factory.mktemp("teacher"), domain=world.TinyDomain(3))
    run.teacher = make_teacher(averaging=AveragingConfig(2, 1.5), optim=OptimConfig(lr=0.05))
    run.start = leaves_of(run.teacher)
    run.epochs = world.fit(run.teacher, run.folder, 3, domain=run.domain, save=True).epochs
    run.prompts = TunedPrompts.load(run.folder / PROMPTS_FILE)
    run.vectors = ClassVectors.load(run.folder / CLASS_VECTORS_FILE)
    return run


def test_nine_steps_of_the_trainer_are_nine_plain_steps(run, plain_of_method):
    start = {name: leaf.detach().clone() for name, leaf in run.start.items()}
    optimizer = plain.PlainSGD(list(run.start.values()))
    for epoch, state in enumerate(run.epochs):
        for batch in torch.arange(12).split(4):
            terms = plain_of_method(run.domain, run.start, batch)
            optimizer.step(sum(terms.values()), plain.learning_rate(epoch, 3, 0.05))
        for name, expected in run.start.items():
            assert relative_error(state[name], expected) < 1e-5
            if epoch > 0:
                # what was learned is small beside what it was added to
                learned = state[name] - start[name]
                assert relative_error(learned, expected - start[name]) < 1e-4


def test_after_the_last_epoch_the_prompts_are_the_average_of_the_epochs(run):
    for name, parameter in run.teacher.named_parameters():
        epochs = [epoch[name].double() for epoch in run.epochs]
        expected = sum(w * epoch for w, epoch in zip(WEIGHTS, epochs, strict=True))
        assert relative_error(parameter, expected) < 1e-6
        assert relative_error(parameter, epochs[-1]) > 1e-4


def test_class_vectors_are_those_of_the_averaged_prompts_for_all_names(run, plain_of):
    texts = [prompts_of(epoch)[1].double() for epoch in run.epochs]
    average = sum(w * text for w, text in zip(WEIGHTS, texts, strict=True))
    clip = plain_of("test-teacher")
    expected = normalized(clip.text_features(texts_of(world.NAMES), average))
    assert relative_error(run.vectors.vectors, expected) < 1e-5
    last = normalized(clip.text_features(texts_of(world.NAMES), texts[-1]))
    assert relative_error(run.vectors.vectors, last) > 1e-4, "averaging must come before freezing"
    assert run.vectors.class_names == world.NAMES
    assert run.vectors.num_base == 3
    assert run.vectors.logit_scale == pytest.approx(30)
    assert run.vectors.teacher == run.prompts.teacher
    assert run.vectors.clip == run.teacher.clip
    assert run.vectors.preprocessing == run.teacher.preprocessing


def test_frozen_towers_stay_as_they_are_and_a_checkpoint_holds_the_prompts_alone(run):
    world.assert_untouched(run.teacher.image_tower.module.visual, "test-teacher", "visual.")
    world.assert_untouched(run.teacher.text_tower.module, "test-teacher")
    learned = torch.load(run.folder / "epoch=2.ckpt", weights_only=True)["state_dict"]
    assert learned.keys() == {name for name, _ in run.teacher.named_parameters()}
    assert all(name.startswith("prompts.") for name in learned)
    # the averaged ones, after the last epoch
    assert all(torch.equal(learned[name], p) for name, p in run.teacher.named_parameters())


def test_evaluation_counts_all_classes_with_the_prompts_as_they_are(run, plain_of, tmp_path):
    clip, domain = plain_of("test-teacher"), run.domain
    vision, text = (prompts.double() for prompts in prompts_of(run.teacher.state_dict()))
    texts = clip.text_features(texts_of(world.NAMES), text)
    logits = clip.logits(clip.image_features(domain.test_images, vision), texts)
    metrics = world.evaluate(run.teacher, tmp_path, domain)
    expected = plain.accuracies(logits, domain.test_labels, 3)
    assert metrics == pytest.approx({f"test/{k}": v for k, v in expected.items()})
    with torch.no_grad():
        assert relative_error(run.teacher.class_logits(domain.test_images), logits) < 1e-5


def test_validation_between_epochs_sees_the_prompts_of_its_own_epoch(tmp_path):
    class Look(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, *_):
            fresh = pl_module.encode_names(trainer.datamodule.class_names)
            features = pl_module.prompts.encode_images(pl_module.image_tower.module, batch.images)
            seen.append((outputs["logits"], 30 * features @ fresh.T))

    teacher, seen = make_teacher(optim=OptimConfig(lr=0.5, warmup_lr=0.5), **IVLP), []
    world.fit(teacher, tmp_path, 2, [Look()], limit_val_batches=1)
    assert len(seen) == 2
    assert all(relative_error(used, fresh) < 1e-6 for used, fresh in seen)
    assert relative_error(seen[0][0], seen[1][0]) > 1e-3


def test_the_rate_rises_and_falls_by_steps_if_asked_to(tmp_path):
    rates, watch = [], Callback()
    watch.on_train_batch_start = lambda t, *_: rates.append(t.optimizers[0].param_groups[0]["lr"])
    optim = OptimConfig(lr=0.01, warmup_steps=2)
    world.fit(make_teacher(optim=optim, **IVLP), tmp_path, 2, [watch])
    # by hand: 2 epochs of 3 batches, of which 2 steps warm up; then ½ (1 + cos(π s / 4)) for s = 0, 1, 2, 3
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.0085355, 0.005, 0.0014645], rel=1e-4)


def test_texts_are_read_in_place_of_names(tmp_path, plain_of):
    teacher, domain = disturbed(), world.TinyDomain(num_base=3)
    domain.class_texts = ("crab", "fish with a horse's head", "squid", "shark", "flat_fish")
    first_batch(teacher, tmp_path, domain)
    vectors = ClassVectors.load(tmp_path / CLASS_VECTORS_FILE)
    assert (vectors.class_names, vectors.class_texts) == (world.NAMES, domain.class_texts)
    prompts = prompts_of(leaves_of(teacher))[1].detach()
    expected = normalized(plain_of(MODEL).text_features(texts_of(domain.class_texts), prompts))
    assert relative_error(vectors.vectors, expected) < 1e-5
    again = NameEncoder.load(tmp_path).encode(world.NAMES, 3, domain.class_texts)
    assert torch.equal(again.vectors, vectors.vectors)


SEVERAL = (
    "crab",
    ("sea_horse", "fish with a horse's head", "horse"),
    ("jelly", "squid"),
    "shark",
    ("ray", "flat fish"),
)


def test_normalised_features_of_several_texts_are_averaged(tmp_path, plain_of):
    teacher, domain = disturbed(classes_at_once=2), world.TinyDomain(num_base=3)
    domain.class_texts = SEVERAL
    leaves, clip = leaves_of(teacher), plain_of(MODEL)
    vision, prompts = prompts_of(leaves)

    def averaged(encode):
        several = [(texts,) if isinstance(texts, str) else texts for texts in SEVERAL]
        return normalized(torch.stack([normalized(encode(t)).mean(dim=0) for t in several]))

    whole = averaged(lambda texts: clip.text_features(texts_of(texts), prompts))
    zero_shot = averaged(lambda texts: clip.ensemble(texts, TEMPLATES))[:3]
    text, images, labels = whole[:3], domain.labeled[:4], domain.labels[:4]
    features, frozen = (normalized(clip.image_features(images, p)) for p in (vision, None))
    logits, frozen_logits = clip.scale * features @ text.T, clip.scale * frozen @ zero_shot.T
    terms = {
        "ce": plain.cross_entropy(logits, labels),
        "text": 25 * (text - zero_shot).abs().mean(),
        "image": 10 * (features - frozen).abs().mean(),
        "logits": plain.kl(frozen_logits, logits),
    }
    require_plain_step(teacher, domain, tmp_path, terms, leaves)
    vectors = ClassVectors.load(tmp_path / CLASS_VECTORS_FILE)
    assert (vectors.class_names, vectors.class_texts) == (world.NAMES, SEVERAL)
    prompts = prompts_of(leaves_of(teacher))[1].detach()
    expected = averaged(lambda texts: clip.text_features(texts_of(texts), prompts))
    assert relative_error(vectors.vectors, expected) < 1e-5
    encode = NameEncoder.load(tmp_path).encode
    assert torch.equal(encode(world.NAMES, 3, SEVERAL).vectors, vectors.vectors)
    # one text is the same, bit by bit, as a tuple or beside classes of several
    alone = encode(world.NAMES, 3, ("crab",) * 5).vectors
    assert torch.equal(encode(world.NAMES, 3, (("crab",),) * 5).vectors, alone)


def test_zero_shot_is_the_untouched_clip(tmp_path, plain_of, monkeypatch):
    # nothing is trained, so nothing is made that only training needs
    monkeypatch.setattr(
        "kdpl.teacher.ensemble_features", lambda *_: pytest.fail("an ensemble was encoded")
    )
    teacher = make_teacher(vision_prompts=NO_PROMPTS, text_prompts=NO_PROMPTS)
    domain, clip = world.TinyDomain(num_base=3), plain_of(MODEL)
    world.fit(teacher, tmp_path, 0, domain=domain)
    texts = clip.text_features(texts_of(world.NAMES))
    vectors = ClassVectors.load(tmp_path / CLASS_VECTORS_FILE).vectors
    assert relative_error(vectors, normalized(texts)) < 1e-5
    assert TunedPrompts.load(tmp_path / PROMPTS_FILE).tensors == {}
    expected = clip.logits(clip.image_features(domain.test_images), texts)
    teacher.on_test_epoch_start()
    assert relative_error(teacher.class_logits(domain.test_images), expected) < 1e-5


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-true"])
def test_what_is_trained_is_float32_under_every_precision(precision, tmp_path):
    teacher = disturbed(averaging=AveragingConfig(1, 1))
    before = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    seen = first_batch(teacher, tmp_path, precision=precision)
    momenta = [s["momentum_buffer"] for s in teacher.trainer.optimizers[0].state.values()]
    sums = next(c.sums for c in teacher.trainer.callbacks if isinstance(c, GaussianPromptAveraging))
    vectors = ClassVectors.load(tmp_path / CLASS_VECTORS_FILE).vectors
    kept = [*teacher.parameters(), *seen.gradients.values(), *momenta, *sums.values(), vectors]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    assert relative_error(vectors.norm(dim=1), torch.ones(5)) < 1e-6
    # one step at 1e-5 moves prompts by less than half precision could show
    assert all(0 < (p - before[name]).abs().max() < 1e-3 for name, p in teacher.named_parameters())


def test_without_a_datamodule_that_knows_its_classes_it_is_refused(tmp_path):
    batches = [(torch.zeros(1, 3, 32, 32), torch.zeros(1))]
    with world.refused(ConfigError, r"class names.*DomainDataModule"):
        world.quiet_trainer(tmp_path).fit(make_teacher(), train_dataloaders=batches)


def test_a_run_is_not_resumed_with_another_text_tower_or_other_sizes(tmp_path):
    first_batch(make_teacher(**IVLP), tmp_path, save=True)
    checkpoint = {"ckpt_path": tmp_path / "epoch=0.ckpt"}
    other = make_teacher(**IVLP)
    other.text_fingerprint = "0" * 32
    with world.refused(ArtifactError, r"\(clip is .* here\).*test-teacher"):
        world.fit(other, tmp_path, 2, **checkpoint)
    other = make_teacher(**IVLP, vision_prompts=PromptConfig(2, 1))
    with world.refused(ConfigError, r"'prompts\.vision_prompts\.tokens' has shape"):
        world.fit(other, tmp_path, 2, **checkpoint)
