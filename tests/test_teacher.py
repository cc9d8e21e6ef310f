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

WORDS = "a photo of a"
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


def make_teacher(model="test-teacher", **options):
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
    text = None
    if "prompts.text_prompts.context" in state:
        layers = [
            state["prompts.text_prompts.context"][None],
            state.get("prompts.text_prompts.deep"),
        ]
        text = torch.cat([layer for layer in layers if layer is not None])
    vision = state.get("prompts.vision_prompts.tokens")
    if "prompts.maps.0.weight" in state:
        maps = [
            (state[f"prompts.maps.{i}.weight"], state[f"prompts.maps.{i}.bias"])
            for i in range(len(text))
        ]
        vision = torch.stack([layer @ w.T + b for layer, (w, b) in zip(text, maps, strict=True)])
    return vision, text


def texts_of(names, words=WORDS):
    return [plain.prompt_text(words, name) for name in names]


@pytest.fixture(scope="module")
def plain_of_method(plain_of):
    """The plain terms of the loss on a batch of a domain; with ``published``, those of the regularizers as well."""
    ensembles = {}

    def terms(domain, batch, state, published=True, model="test-teacher", words=WORDS):
        clip, names = plain_of(model), domain.tuning_class_names
        vision, text = prompts_of(state)
        images, labels = domain.labeled[batch], domain.labels[batch]
        if not published:
            texts = clip.text_features(texts_of(names, words), text)
            return {
                "ce": plain.cross_entropy(
                    clip.logits(clip.image_features(images, vision), texts), labels
                )
            }
        if model not in ensembles:
            ensembles[model] = clip.ensemble(world.NAMES, OPENAI_IMAGENET_TEMPLATES[:60])
        return plain.promptsrc(
            clip, images, labels, names, WORDS, vision, text, ensembles[model][: len(names)]
        )

    return terms


def first_batch(teacher, folder, domain=None, **options):
    return world.fit(teacher, folder, domain=domain, limit_train_batches=1, **options)


def assert_gradients(seen, leaves):
    assert seen.gradients.keys() == {name for name, leaf in leaves.items() if len(leaf)}
    for name, mine in seen.gradients.items():
        # layer by layer
        for one, other in (
            zip(mine, leaves[name].grad, strict=True)
            if mine.ndim == 3
            else [(mine, leaves[name].grad)]
        ):
            assert relative_error(one, other) < 1e-5, name


@pytest.mark.parametrize("model", ["test-teacher", "test-teacher-quickgelu"])
@pytest.mark.parametrize("num_base", [None, 3])
def test_the_loss_its_terms_and_all_gradients_are_the_plain_ones(
    model, num_base, tmp_path, plain_of_method
):
    teacher, domain = disturbed(model), world.TinyDomain(num_base)
    leaves = leaves_of(teacher)
    terms = plain_of_method(domain, slice(4), leaves, model=model)
    seen = first_batch(teacher, tmp_path, domain)
    assert seen.losses == [pytest.approx(sum(t.item() for t in terms.values()), rel=1e-5)]
    expected = {f"train/loss_{name}": term.item() for name, term in terms.items()}
    assert seen.logged == pytest.approx({**expected, "train/loss": seen.losses[0]}, rel=1e-5)
    sum(terms.values()).backward()
    assert_gradients(seen, leaves)


@pytest.mark.parametrize(("left", "published"), [("text", 25.0), ("image", 10.0), ("logits", 1.0)])
def test_each_regularizer_alone_adds_its_own_term(left, published, tmp_path, plain_of_method):
    weights = RegularizerWeights(**{"text": 0.0, "image": 0.0, "logits": 0.0, left: 7.0})
    teacher, domain = disturbed(regularizers=weights), world.TinyDomain()
    terms = plain_of_method(domain, slice(4), leaves_of(teacher))
    expected = terms["ce"] + terms[left] * 7 / published
    assert first_batch(teacher, tmp_path, domain).losses == [
        pytest.approx(expected.item(), rel=1e-5)
    ]


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
    leaves = leaves_of(teacher)
    words = method.get("context", WORDS) or "X X X X"
    loss = plain_of_method(domain, slice(4), leaves, published=False, words=words)["ce"]
    loss.backward()
    seen = first_batch(teacher, tmp_path, domain)
    assert seen.losses == [pytest.approx(loss.item(), rel=1e-5)]
    assert set(seen.logged) == {"train/loss"}
    assert set(seen.gradients) == {f"prompts.{name}" for name in trained}
    assert_gradients(seen, leaves)
    assert ClassVectors.load(tmp_path / CLASS_VECTORS_FILE).context == method.get("context", WORDS)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"context": None, "text_prompts": NO_PROMPTS}, r"text_prompts\.depth 0.*give context"),
        ({"classes_at_once": 0}, "classes_at_once is 0, expected 1 or more"),
        (
            {**MAPLE, "vision_prompts": PromptConfig(3, 3)},
            "vision_prompts has length 3 and depth 3, text",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(options, match):
    with world.refused(ConfigError, match):
        make_teacher(**options)


SETTINGS = {"averaging": AveragingConfig(2, 1.5), "optim": OptimConfig(lr=0.05)}
WEIGHTS = gaussian_weights(3, 2, 1.5)


class Run:
    """A teacher after three epochs with averaging."""

    def __init__(self, method, folder):
        self.method, self.folder, self.domain = method, folder, world.TinyDomain(num_base=3)
        self.teacher = make_teacher(**method, **SETTINGS)
        self.start = leaves_of(self.teacher)
        self.epochs = world.fit(self.teacher, folder, 3, domain=self.domain, save=True).epochs
        self.prompts = TunedPrompts.load(folder / PROMPTS_FILE)
        self.vectors = ClassVectors.load(folder / CLASS_VECTORS_FILE)


@pytest.fixture(
    scope="module",
    params=[{}, MAPLE],
    ids=["independent", "coupled"],
)
def run(request, tmp_path_factory):
    return Run(request.param, tmp_path_factory.mktemp("teacher"))


def test_nine_steps_of_the_trainer_are_nine_plain_steps(run, plain_of_method):
    start = {name: leaf.detach().clone() for name, leaf in run.start.items()}
    optimizer = plain.PlainSGD(list(run.start.values()))
    for epoch, state in enumerate(run.epochs):
        for batch in torch.arange(12).split(4):
            terms = plain_of_method(run.domain, batch, run.start, published=not run.method)
            optimizer.step(sum(terms.values()), plain.learning_rate(epoch, 3, 0.05))
        for name, expected in run.start.items():
            assert relative_error(state[name], expected) < 1e-5
            # what was learned is small beside what it was added to
            assert (
                epoch == 0
                or relative_error(state[name] - start[name], expected - start[name]) < 1e-4
            )


def test_after_the_last_epoch_the_prompts_are_the_average_of_the_epochs(run):
    for name, parameter in run.teacher.named_parameters():
        expected = sum(
            w * epoch[name].double() for w, epoch in zip(WEIGHTS, run.epochs, strict=True)
        )
        assert relative_error(parameter, expected) < 1e-6
        assert relative_error(parameter, run.epochs[-1][name]) > 1e-4


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
    assert (run.vectors.clip, run.vectors.preprocessing) == (
        run.teacher.clip,
        run.teacher.preprocessing,
    )


def test_frozen_towers_stay_as_they_are_and_a_checkpoint_holds_the_prompts_alone(run):
    world.assert_untouched(run.teacher.image_tower.module.visual, "test-teacher", "visual.")
    world.assert_untouched(run.teacher.text_tower.module, "test-teacher")
    file = run.folder / "epoch=2.ckpt"
    learned = torch.load(file, weights_only=True)["state_dict"]
    assert learned.keys() == {name for name, _ in run.teacher.named_parameters()}
    assert all(name.startswith("prompts.") for name in learned)
    # the averaged ones, after the last epoch
    assert all(torch.equal(learned[name], p) for name, p in run.teacher.named_parameters())
    # parameters, momentum and the running average, and little more
    size = sum(p.numel() for p in run.teacher.parameters()) * 4
    assert 3 * size <= file.stat().st_size < 3 * size + 20_000


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

    teacher, seen = make_teacher(optim=OptimConfig(lr=0.5, warmup_lr=0.5)), []
    world.fit(teacher, tmp_path, 2, [Look()], limit_val_batches=1)
    assert len(seen) == 2
    assert all(relative_error(used, fresh) < 1e-6 for used, fresh in seen)
    assert relative_error(seen[0][0], seen[1][0]) > 1e-3


SEVERAL = (
    "crab",
    ("sea_horse", "fish with a horse's head", "horse"),
    ("jelly", "squid"),
    "shark",
    ("ray", "flat fish"),
)


def test_the_rate_rises_and_falls_by_steps_if_asked_to(tmp_path):
    rates, watch = [], Callback()
    watch.on_train_batch_start = lambda trainer, *_: rates.append(
        trainer.optimizers[0].param_groups[0]["lr"]
    )
    world.fit(make_teacher(optim=OptimConfig(lr=0.01, warmup_steps=2)), tmp_path, 2, [watch])
    # by hand: 2 epochs of 3 batches, of which 2 steps warm up; then ½ (1 + cos(π s / 4)) for s = 0, 1, 2, 3
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.0085355, 0.005, 0.0014645], rel=1e-4)


@pytest.mark.parametrize("at_once", [2, 128])
def test_the_features_of_several_texts_of_a_class_are_averaged_before_they_are_normalised(
    at_once, tmp_path, plain_of
):
    teacher, domain = disturbed(classes_at_once=at_once), world.TinyDomain(num_base=3)
    domain.class_texts = SEVERAL
    leaves, clip = leaves_of(teacher), plain_of("test-teacher")
    vision, prompts = prompts_of(leaves)

    def averaged(of_class, mean=lambda features: features.mean(dim=0)):
        texts = [(text,) if isinstance(text, str) else text for text in of_class]
        return normalized(
            torch.stack([mean(clip.text_features(texts_of(each), prompts)) for each in texts])
        )

    def ensemble(text):
        templates = [template for _ in text for template in OPENAI_IMAGENET_TEMPLATES[:60]]
        names = [name.replace("_", " ") for name in text for _ in range(60)]
        return clip.text_features([t(n) for t, n in zip(templates, names, strict=True)]).mean(dim=0)

    several = [(text,) if isinstance(text, str) else text for text in SEVERAL[:3]]
    zero_shot = normalized(torch.stack([ensemble(text) for text in several]))
    text = averaged(SEVERAL[:3])
    images, labels = domain.labeled[:4], domain.labels[:4]
    features, frozen = (normalized(clip.image_features(images, each)) for each in (vision, None))
    logits, frozen_logits = clip.scale * features @ text.T, clip.scale * frozen @ zero_shot.T
    loss = plain.cross_entropy(logits, labels) + plain.kl(frozen_logits, logits)
    loss = loss + 25 * (text - zero_shot).abs().mean() + 10 * (features - frozen).abs().mean()
    loss.backward()

    seen = first_batch(teacher, tmp_path, domain)
    assert seen.losses == [pytest.approx(loss.item(), rel=1e-5)]
    assert_gradients(seen, leaves)
    vectors = ClassVectors.load(tmp_path / CLASS_VECTORS_FILE)
    assert (vectors.class_names, vectors.class_texts) == (world.NAMES, SEVERAL)
    prompts = prompts_of(leaves_of(teacher))[1].detach()
    assert relative_error(vectors.vectors, averaged(SEVERAL)) < 1e-5
    later = averaged(SEVERAL, lambda features: normalized(features).mean(dim=0))
    assert relative_error(vectors.vectors, later) > 1e-4, "the order must matter here"
    again = NameEncoder.load(tmp_path).encode(world.NAMES, 3, SEVERAL)
    assert torch.equal(again.vectors, vectors.vectors)


def test_zero_shot_is_the_untouched_clip(tmp_path, plain_of, monkeypatch):
    # nothing is trained, so nothing is made that only training needs
    monkeypatch.setattr(
        "kdpl.teacher.ensemble_features", lambda *_: pytest.fail("an ensemble was encoded")
    )
    teacher, domain = (
        make_teacher(vision_prompts=NO_PROMPTS, text_prompts=NO_PROMPTS),
        world.TinyDomain(num_base=3),
    )
    world.fit(teacher, tmp_path, 0, domain=domain)
    clip = plain_of("test-teacher")
    texts = clip.text_features(texts_of(world.NAMES))
    assert (
        relative_error(ClassVectors.load(tmp_path / CLASS_VECTORS_FILE).vectors, normalized(texts))
        < 1e-5
    )
    assert TunedPrompts.load(tmp_path / PROMPTS_FILE).tensors == {}
    expected = clip.logits(clip.image_features(domain.test_images), texts)
    teacher.on_test_epoch_start()
    assert relative_error(teacher.class_logits(domain.test_images), expected) < 1e-5


def test_a_bound_on_the_memory_does_not_change_what_is_learned(tmp_path):
    whole, parts = make_teacher(), make_teacher(classes_at_once=2)
    for name, teacher in (("whole", whole), ("parts", parts)):
        world.fit(teacher, tmp_path / name, limit_train_batches=2)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert relative_error(other, one) < 1e-6


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true"])
def test_what_is_trained_and_kept_is_float32_under_every_precision(precision, tmp_path):
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
    with world.refused(
        ConfigError, r"TeacherPromptTuning needs to know the class names.*DomainDataModule"
    ):
        world.quiet_trainer(tmp_path).fit(make_teacher(), train_dataloaders=batches)


def test_a_run_is_not_resumed_with_another_text_tower(tmp_path):
    world.fit(make_teacher(**IVLP), tmp_path, save=True)
    other = make_teacher(**IVLP)
    other.text_fingerprint = "0" * 32
    with world.refused(ArtifactError, r"\(clip is .* here\): .*'noise' of test-teacher"):
        world.fit(other, tmp_path, 2, ckpt_path=tmp_path / "epoch=0.ckpt")


def test_a_run_is_not_resumed_with_other_sizes(tmp_path):
    world.fit(make_teacher(**IVLP), tmp_path, save=True)
    other = make_teacher(**IVLP, vision_prompts=PromptConfig(2, 1))
    match = r"does not fit the settings \(tensor 'prompts.vision_prompts.tokens' has shape"
    with world.refused(ConfigError, match):
        world.fit(other, tmp_path, 2, ckpt_path=tmp_path / "epoch=0.ckpt")
