import plain
import pytest
import torch
import world
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from plain import normalized, relative_error

from kdpl.callbacks.averaging import GaussianPromptAveraging, gaussian_weights
from kdpl.class_vectors import ClassVectors
from kdpl.clip.loading import ClipConfig, register_model
from kdpl.errors import ConfigError, WeightsError
from kdpl.optim import OptimConfig
from kdpl.prompts import PromptConfig
from kdpl.prompts.tuned import TunedPrompts
from kdpl.teacher import AveragingConfig, RegularizerWeights, TeacherPromptTuning

WORDS = "a photo of a"
TOKENS, CONTEXT, DEEP = (
    f"prompts.{name}" for name in ("vision_prompts.tokens", "text_prompts.context", "text_prompts.deep")
)
TEMPLATES = OPENAI_IMAGENET_TEMPLATES[:60]
NONE = RegularizerWeights(text=0, image=0, logits=0)


def make_teacher(model="test-teacher", **options):
    torch.manual_seed(0)
    sizes = {"vision_prompts": PromptConfig(3, 2), "text_prompts": PromptConfig(4, 3)}
    return TeacherPromptTuning(ClipConfig(model, world.TAG), **{**sizes, **options})


def disturb(teacher):
    """Move the prompts away from their start, so that every term has something to say."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=draw)
    return teacher


def leaves(teacher):
    """Visual [J, n, W] and text prompts [J, n, W] in float64, as leaves."""
    text = torch.cat([teacher.prompts.text_prompts.context[None], teacher.prompts.text_prompts.deep])
    return [t.detach().double().requires_grad_() for t in (teacher.prompts.vision_prompts.tokens, text)]


@pytest.fixture(scope="session")
def plain_terms(plain_of):
    """The plain terms for batches of a domain; the ensemble, which is frozen, is encoded once."""
    encoded = {}

    def terms(model, images, labels, names, vision, text):
        clip = plain_of(model)
        if model not in encoded:
            encoded[model] = clip.ensemble(world.NAMES, TEMPLATES)
        rows = encoded[model][[world.NAMES.index(name) for name in names]]
        return plain.promptsrc(clip, images, labels, names, WORDS, vision, text, rows)

    return terms


class FirstBatch(Callback):
    """Stops after the first batch of a fit; keeps its loss, its terms and the gradients."""

    def on_after_backward(self, _, pl_module):
        self.gradients = {k: p.grad.clone() for k, p in pl_module.named_parameters() if p.grad is not None}
        self.training = pl_module.training
        self.towers_training = [
            m for t in (pl_module.image_tower, pl_module.text_tower) for m in t.module.modules() if m.training
        ]

    def on_train_batch_end(self, _, __, outputs, *___):
        self.loss = outputs["loss"].item()


def first_batch(teacher, domain, folder, **options):
    seen = FirstBatch()
    trainer = world.quiet_trainer(folder, callbacks=[seen], limit_train_batches=1, **options)
    trainer.fit(teacher, datamodule=domain)
    seen.logged = {k: v.item() for k, v in trainer.callback_metrics.items()}
    return seen


@pytest.mark.parametrize("model", ["test-teacher", "test-teacher-quickgelu"])
@pytest.mark.parametrize("num_base", [None, 3])
def test_the_loss_its_terms_and_all_gradients_are_the_plain_ones(model, num_base, tmp_path, plain_terms):
    teacher, domain = disturb(make_teacher(model)), world.TinyDomain(num_base)
    vision, text = leaves(teacher)
    names = world.NAMES[:num_base]
    terms = plain_terms(model, domain.labeled[:4], domain.labels[:4], names, vision, text)
    seen = first_batch(teacher, domain, tmp_path)

    assert seen.loss == pytest.approx(sum(t.item() for t in terms.values()), rel=1e-5)
    for name, term in terms.items():
        assert seen.logged[f"train/loss_{name}"] == pytest.approx(term.item(), rel=1e-5), name
    assert seen.logged["train/loss"] == pytest.approx(seen.loss)

    sum(terms.values()).backward()
    assert set(seen.gradients) == {
        TOKENS,
        CONTEXT,
        DEEP,
    }
    for layer in range(2):
        assert relative_error(seen.gradients[TOKENS][layer], vision.grad[layer]) < 1e-5
    assert relative_error(seen.gradients[CONTEXT], text.grad[0]) < 1e-5
    for layer in range(2):
        assert relative_error(seen.gradients[DEEP][layer], text.grad[1 + layer]) < 1e-5


@pytest.mark.parametrize("left", ["text", "image", "logits"])
def test_each_regulariser_alone_adds_its_own_term(left, tmp_path, plain_terms):
    weight = {"text": 12.0, "image": 7.0, "logits": 3.0}[left]
    weights = RegularizerWeights(**{"text": 0.0, "image": 0.0, "logits": 0.0, left: weight})
    teacher, domain = disturb(make_teacher(regularizers=weights)), world.TinyDomain()
    terms = plain_terms("test-teacher", domain.labeled[:4], domain.labels[:4], world.NAMES, *leaves(teacher))
    published = {"text": 25.0, "image": 10.0, "logits": 1.0}[left]
    expected = terms["ce"] + terms[left] * weight / published
    assert first_batch(teacher, domain, tmp_path).loss == pytest.approx(expected.item(), rel=1e-5)


class TestVariants:
    """The settings of METHOD under which the module is another published one."""

    def test_ivlp_is_cross_entropy_over_both_kinds_of_prompts(self, tmp_path, plain_terms):
        teacher, domain = disturb(make_teacher(regularizers=NONE)), world.TinyDomain()
        terms = plain_terms("test-teacher", domain.labeled[:4], domain.labels[:4], world.NAMES, *leaves(teacher))
        seen = first_batch(teacher, domain, tmp_path)
        assert seen.loss == pytest.approx(terms["ce"].item(), rel=1e-5)
        assert set(seen.logged) == {"train/loss"}

    def test_coop_is_a_context_alone(self, tmp_path, plain_of):
        teacher = make_teacher(
            vision_prompts=PromptConfig(depth=0), text_prompts=PromptConfig(4, 1), context=None, regularizers=NONE
        )
        clip, domain = plain_of("test-teacher"), world.TinyDomain()
        context = teacher.prompts.text_prompts.context.detach().double()[None].requires_grad_()
        texts = [plain.prompt_text("X X X X", name) for name in world.NAMES]
        logits = clip.logits(clip.image_features(domain.labeled[:4]), clip.text_features(texts, context))
        loss = plain.cross_entropy(logits, domain.labels[:4])
        loss.backward()
        seen = first_batch(teacher, domain, tmp_path)
        assert seen.loss == pytest.approx(loss.item(), rel=1e-5)
        assert set(seen.gradients) == {CONTEXT}
        assert relative_error(seen.gradients[CONTEXT], context.grad[0]) < 1e-5
        assert ClassVectors.load(tmp_path / "class_vectors.safetensors").context is None

    def test_vpt_is_visual_prompts_alone_with_fixed_text_features(self, tmp_path, plain_of):
        teacher = disturb(make_teacher(text_prompts=PromptConfig(depth=0), regularizers=NONE))
        clip, domain = plain_of("test-teacher"), world.TinyDomain(num_base=3)
        prompts = teacher.prompts.vision_prompts.tokens.detach().double().requires_grad_()
        texts = [plain.prompt_text(WORDS, name) for name in world.NAMES[:3]]
        logits = clip.logits(clip.image_features(domain.labeled[:4], prompts), clip.text_features(texts))
        loss = plain.cross_entropy(logits, domain.labels[:4])
        loss.backward()
        seen = first_batch(teacher, domain, tmp_path)
        assert seen.loss == pytest.approx(loss.item(), rel=1e-5)
        assert relative_error(seen.gradients[TOKENS], prompts.grad) < 1e-5

    def test_maple_is_cross_entropy_over_text_prompts_and_what_is_mapped_from_them(self, tmp_path, plain_of):
        teacher, domain = disturb(make_teacher(**MAPLE)), world.TinyDomain(num_base=3)
        text, weights, biases = maple_leaves(teacher)
        loss = maple_loss(plain_of("test-teacher"), domain, slice(4), text, weights, biases)
        loss.backward()
        seen = first_batch(teacher, domain, tmp_path)
        assert seen.loss == pytest.approx(loss.item(), rel=1e-5)
        assert set(seen.logged) == {"train/loss"}
        maps = [f"prompts.maps.{layer}.{name}" for layer in range(3) for name in ("weight", "bias")]
        assert set(seen.gradients) == {CONTEXT, DEEP, *maps}
        assert relative_error(seen.gradients[CONTEXT], text.grad[0]) < 1e-5
        for layer in range(2):
            assert relative_error(seen.gradients[DEEP][layer], text.grad[1 + layer]) < 1e-5
        for layer in range(3):
            assert relative_error(seen.gradients[f"prompts.maps.{layer}.weight"], weights[layer].grad) < 1e-5
            assert relative_error(seen.gradients[f"prompts.maps.{layer}.bias"], biases[layer].grad) < 1e-5

    def test_fixed_text_without_words_before_the_name_is_refused(self):
        with pytest.raises(ConfigError, match=r"text_prompts\.depth 0.*give context") as error:
            make_teacher(context=None, text_prompts=PromptConfig(depth=0))
        assert world.one_sentence(error)


MAPLE = {
    "vision_prompts": PromptConfig(2, 3),
    "text_prompts": PromptConfig(2, 3),
    "method": "coupled",
    "regularizers": NONE,
}


def maple_leaves(teacher):
    """Text prompts [J, n, W], and weights and biases of the maps, in float64, as leaves."""
    text = torch.cat([teacher.prompts.text_prompts.context[None], teacher.prompts.text_prompts.deep])
    maps = teacher.prompts.maps
    return (
        text.detach().double().requires_grad_(),
        [m.weight.detach().double().requires_grad_() for m in maps],
        [m.bias.detach().double().requires_grad_() for m in maps],
    )


def maple_loss(clip, domain, batch, text, weights, biases):
    vision = torch.stack([t @ w.T + b for t, w, b in zip(text, weights, biases, strict=True)])
    texts = [plain.prompt_text(WORDS, name) for name in domain.tuning_class_names]
    logits = clip.logits(clip.image_features(domain.labeled[batch], vision), clip.text_features(texts, text))
    return plain.cross_entropy(logits, domain.labels[batch])


@pytest.fixture(scope="module")
def coupled_run(tmp_path_factory):
    """A coupled teacher after three epochs without averaging, with its run folder and what each epoch left."""
    folder = tmp_path_factory.mktemp("maple")
    teacher, record, domain = make_teacher(**MAPLE, optim=OptimConfig(lr=0.05)), Record(), world.TinyDomain(3)
    trainer = world.quiet_trainer(folder, 3, callbacks=[record])
    trainer.fit(teacher, datamodule=domain)
    return teacher, record.epochs, domain, folder


class TestCoupledPrompts:
    """MaPLe over several epochs, and what it leaves behind."""

    def test_nine_steps_of_the_trainer_are_nine_plain_steps(self, coupled_run, plain_of):
        _, epochs, domain, _ = coupled_run
        text, weights, biases = maple_leaves(make_teacher(**MAPLE))
        start = [t.detach().clone() for t in (text, *weights, *biases)]
        optimizer = plain.PlainSGD([text, *weights, *biases])
        for epoch in range(3):
            for batch in torch.arange(12).split(4):
                loss = maple_loss(plain_of("test-teacher"), domain, batch, text, weights, biases)
                optimizer.step(loss, plain.learning_rate(epoch, 3, 0.05))
            got = epochs[epoch]
            maps = [got[f"prompts.maps.{i}.{kind}"] for kind in ("weight", "bias") for i in range(3)]
            mine = [torch.cat([got[CONTEXT][None], got[DEEP]]), *maps]
            for tensor, expected, first in zip(mine, (text, *weights, *biases), start, strict=True):
                assert relative_error(tensor, expected) < 1e-5
                assert epoch == 0 or relative_error(tensor - first, expected - first) < 1e-4

    def test_stage_two_reads_tokens_and_nothing_of_the_maps(self, coupled_run):
        teacher, _, domain, folder = coupled_run
        prompts = TunedPrompts.load(folder / "prompts.safetensors")
        shapes = {name: tuple(tensor.shape) for name, tensor in prompts.tensors.items()}
        assert shapes == {
            "vision_prompts.tokens": (3, 2, 48),
            "text_prompts.context": (2, 40),
            "text_prompts.deep": (2, 2, 40),
        }
        text, weights, biases = maple_leaves(teacher)
        expected = torch.stack([t @ w.T + b for t, w, b in zip(text, weights, biases, strict=True)])
        assert relative_error(prompts.tensors["vision_prompts.tokens"], expected) < 1e-6
        tower = teacher.image_tower.module
        read = prompts.restore(prompts.load_image_clip())
        expected = teacher.prompts.encode_images(tower, domain.test_images)
        assert torch.equal(read.encode_images(tower, domain.test_images), expected)
        assert prompts.teacher == ClassVectors.load(folder / "class_vectors.safetensors").teacher

    def test_averaging_and_resuming_end_as_one_run_does(self, tmp_path):
        def fit(folder, **options):
            settings = {"averaging": AveragingConfig(2, 1.5), "optim": OptimConfig(lr=0.05)}
            teacher, record = make_teacher(**MAPLE, **settings), Record()
            saved = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_top_k=-1)
            trainer = world.quiet_trainer(folder, 3, callbacks=[record, saved], enable_checkpointing=True)
            trainer.fit(teacher, datamodule=world.TinyDomain(3), **options)
            return teacher, record.epochs

        teacher, epochs = fit(tmp_path / "one")
        weights = gaussian_weights(3, 2, 1.5)
        for name, parameter in teacher.named_parameters():
            expected = sum(w * epoch[name].double() for w, epoch in zip(weights, epochs, strict=True))
            assert relative_error(parameter, expected) < 1e-6
        checkpoint = tmp_path / "one" / "checkpoints" / "epoch=0.ckpt"
        fit(tmp_path / "other", ckpt_path=checkpoint, weights_only=True)
        for file in ("prompts.safetensors", "class_vectors.safetensors"):
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
        world.assert_plain_values(torch.load(checkpoint, weights_only=True))

    @pytest.mark.parametrize("vision", [PromptConfig(3, 3), PromptConfig(2, 2), PromptConfig(2, 0)])
    def test_sizes_that_differ_are_refused(self, vision):
        match = rf"vision_prompts has length {vision.length} and depth {vision.depth}, text_prompts 2 and 3: make"
        with pytest.raises(ConfigError, match=match) as error:
            make_teacher(**{**MAPLE, "vision_prompts": vision})
        assert world.one_sentence(error)

    def test_without_prompts_nothing_is_coupled(self):
        none = PromptConfig(depth=0)
        teacher = make_teacher(method="coupled", vision_prompts=none, text_prompts=none)
        assert not list(teacher.parameters())


class Record(Callback):
    """Keeps the prompts as the last step of each epoch leaves them."""

    def __init__(self):
        self.epochs = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.epochs = self.epochs[: trainer.current_epoch]
        self.epochs.append({k: p.detach().clone() for k, p in pl_module.named_parameters()})


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A teacher after three epochs with averaging, its run folder, and its prompts before and after each epoch."""
    folder = tmp_path_factory.mktemp("teacher")
    teacher = make_teacher(averaging=AveragingConfig(2, 1.5), optim=OptimConfig(lr=0.05))
    before = {k: p.detach().clone() for k, p in teacher.named_parameters()}
    tower_before = {k: v.clone() for k, v in teacher.image_tower.module.visual.state_dict().items()}
    record, domain = Record(), world.TinyDomain(num_base=3)
    saved = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_top_k=-1)
    trainer = world.quiet_trainer(folder, 3, callbacks=[record, saved], enable_checkpointing=True)
    trainer.fit(teacher, datamodule=domain)
    return {
        "teacher": teacher,
        "domain": domain,
        "folder": folder,
        "before": before,
        "tower_before": tower_before,
        "epochs": record.epochs,
    }


def test_nine_steps_of_the_trainer_are_nine_plain_steps(tuned, plain_terms):
    torch.manual_seed(0)
    teacher, domain = make_teacher(), tuned["domain"]
    assert all(torch.equal(p, tuned["before"][k]) for k, p in teacher.named_parameters())
    vision, text = leaves(teacher)
    start = [vision.detach().clone(), text.detach().clone()]
    optimizer = plain.PlainSGD([vision, text])
    for epoch in range(3):
        for batch in torch.arange(12).split(4):
            args = domain.labeled[batch], domain.labels[batch], world.NAMES[:3], vision, text
            terms = plain_terms("test-teacher", *args)
            optimizer.step(sum(terms.values()), plain.learning_rate(epoch, 3, 0.05))
        got = tuned["epochs"][epoch]
        got = [
            got[TOKENS],
            torch.cat([got[CONTEXT][None], got[DEEP]]),
        ]
        for mine, theirs, first in zip(got, (vision, text), start, strict=True):
            assert relative_error(mine, theirs) < 1e-5
            # what was learnt is smaller than what it was added to
            assert epoch == 0 or relative_error(mine - first, theirs - first) < 1e-4


def test_after_the_last_epoch_the_prompts_are_the_average_of_the_epochs(tuned):
    weights = gaussian_weights(3, 2, 1.5)
    for name, parameter in tuned["teacher"].named_parameters():
        expected = sum(w * epoch[name].double() for w, epoch in zip(weights, tuned["epochs"], strict=True))
        assert relative_error(parameter, expected) < 1e-6
        assert relative_error(parameter, tuned["epochs"][-1][name]) > 1e-4


def test_class_vectors_are_those_of_the_averaged_prompts_for_all_names(tuned, plain_of):
    vectors = ClassVectors.load(tuned["folder"] / "class_vectors.safetensors")
    prompts = TunedPrompts.load(tuned["folder"] / "prompts.safetensors")
    weights = gaussian_weights(3, 2, 1.5)

    def layers(epoch):
        return torch.cat([epoch[CONTEXT][None], epoch[DEEP]]).double()

    average = sum(w * layers(epoch) for w, epoch in zip(weights, tuned["epochs"], strict=True))
    texts = [plain.prompt_text(WORDS, name) for name in world.NAMES]
    clip = plain_of("test-teacher")
    assert relative_error(vectors.vectors, normalized(clip.text_features(texts, average))) < 1e-5
    last = normalized(clip.text_features(texts, layers(tuned["epochs"][-1])))
    assert relative_error(vectors.vectors, last) > 1e-4, "averaging must come before freezing"
    assert vectors.class_names == world.NAMES
    assert vectors.num_base == 3
    assert vectors.vectors.shape == (5, 24)
    assert vectors.logit_scale == pytest.approx(30)
    assert vectors.context == WORDS
    assert vectors.teacher == prompts.teacher
    assert vectors.clip == tuned["teacher"].clip
    assert vectors.preprocessing == tuned["teacher"].preprocessing
    for name, parameter in tuned["teacher"].named_parameters():
        assert torch.equal(prompts.tensors[name.removeprefix("prompts.")], parameter)


def test_training_never_touches_the_frozen_towers(tuned):
    teacher = tuned["teacher"]
    after = teacher.image_tower.module.visual.state_dict()
    assert all(torch.equal(after[k], v) for k, v in tuned["tower_before"].items())
    state = world.weights("test-teacher")
    assert all(torch.equal(state[f"visual.{k}"], v) for k, v in after.items())
    text_after = teacher.text_tower.module.state_dict()
    assert len(text_after) > 40
    assert all(torch.equal(state[k], v) for k, v in text_after.items())
    for tower in (teacher.image_tower.module, teacher.text_tower.module):
        assert not [p for p in tower.parameters() if p.requires_grad or p.grad is not None]


def test_towers_are_in_evaluation_mode_while_the_teacher_trains(tmp_path):
    teacher = make_teacher()
    seen = first_batch(teacher, world.TinyDomain(), tmp_path)
    assert seen.training
    assert not seen.towers_training


def test_a_checkpoint_holds_the_prompts_alone_as_plain_values(tuned):
    checkpoint = torch.load(tuned["folder"] / "checkpoints" / "epoch=2.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {
        TOKENS,
        CONTEXT,
        DEEP,
    }
    world.assert_plain_values(checkpoint)


def test_a_resumed_run_ends_with_the_same_prompts_and_class_vectors(tuned, tmp_path):
    torch.manual_seed(99)
    config = ClipConfig("test-teacher", world.TAG)
    resumed = TeacherPromptTuning(
        config,
        vision_prompts=PromptConfig(3, 2),
        text_prompts=PromptConfig(4, 3),
        averaging=AveragingConfig(2, 1.5),
        optim=OptimConfig(lr=0.05),
    )
    checkpoint = tuned["folder"] / "checkpoints" / "epoch=0.ckpt"
    trainer = world.quiet_trainer(tmp_path, 3)
    trainer.fit(resumed, datamodule=world.TinyDomain(num_base=3), ckpt_path=checkpoint, weights_only=True)
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, dict(tuned["teacher"].named_parameters())[name])
    for file in ("prompts.safetensors", "class_vectors.safetensors"):
        assert (tmp_path / file).read_bytes() == (tuned["folder"] / file).read_bytes()


def test_evaluation_counts_all_classes_with_the_prompts_as_they_are(tuned, plain_of, tmp_path):
    teacher, domain, clip = tuned["teacher"], tuned["domain"], plain_of("test-teacher")
    vision, text = (t.detach() for t in leaves(teacher))
    texts = [plain.prompt_text(WORDS, name) for name in world.NAMES]
    logits = clip.logits(clip.image_features(domain.test_images, vision), clip.text_features(texts, text))
    labels = domain.test_labels
    base = labels < 3
    base_acc = (logits[base][:, :3].argmax(dim=1) == labels[base]).double().mean().item()
    novel_acc = (logits[~base][:, 3:].argmax(dim=1) + 3 == labels[~base]).double().mean().item()
    metrics = world.quiet_trainer(tmp_path, limit_val_batches=1.0).test(teacher, datamodule=domain, verbose=False)[0]
    assert metrics["test/acc"] == pytest.approx((logits.argmax(dim=1) == labels).double().mean().item())
    assert metrics["test/base_acc"] == pytest.approx(base_acc)
    assert metrics["test/novel_acc"] == pytest.approx(novel_acc)
    assert metrics["test/hm"] == pytest.approx(2 * base_acc * novel_acc / (base_acc + novel_acc))


def test_logits_are_the_plain_ones_with_the_teachers_own_scale(tuned, plain_of):
    teacher, clip = tuned["teacher"], plain_of("test-teacher")
    vision, text = (t.detach() for t in leaves(teacher))
    images = tuned["domain"].test_images
    texts = [plain.prompt_text(WORDS, name) for name in world.NAMES]
    teacher.on_test_epoch_start()
    expected = clip.logits(clip.image_features(images, vision), clip.text_features(texts, text))
    assert relative_error(teacher.class_logits(images), expected) < 1e-5
    assert clip.scale == pytest.approx(30)


def test_validation_between_epochs_sees_the_prompts_of_its_own_epoch(tmp_path):
    teacher, seen = make_teacher(optim=OptimConfig(lr=0.5, warmup_lr=0.5)), []

    class Look(Callback):
        def on_validation_batch_end(self, trainer, pl_module, _, __, batch_idx):
            if batch_idx == 0:
                fresh = pl_module.encode_names(trainer.datamodule.class_names)
                seen.append((pl_module._class_vectors.clone(), fresh))

    trainer = world.quiet_trainer(tmp_path, 2, callbacks=[Look()], limit_val_batches=1.0)
    trainer.fit(teacher, datamodule=world.TinyDomain())
    assert len(seen) == 2
    assert all(torch.equal(used, fresh) for used, fresh in seen)
    assert not torch.equal(seen[0][0], seen[1][0])


def test_zero_shot_is_the_untouched_clip(tmp_path, plain_of, monkeypatch):
    # nothing is trained, so nothing that only training needs is made
    monkeypatch.setattr("kdpl.teacher.ensemble_features", lambda *_: pytest.fail("an ensemble was encoded"))
    teacher = make_teacher(vision_prompts=PromptConfig(depth=0), text_prompts=PromptConfig(depth=0))
    domain = world.TinyDomain(num_base=3)
    world.quiet_trainer(tmp_path, max_epochs=0).fit(teacher, datamodule=domain)
    vectors = ClassVectors.load(tmp_path / "class_vectors.safetensors")
    clip = plain_of("test-teacher")
    texts = [plain.prompt_text(WORDS, name) for name in world.NAMES]
    assert relative_error(vectors.vectors, normalized(clip.text_features(texts))) < 1e-5
    assert TunedPrompts.load(tmp_path / "prompts.safetensors").tensors == {}
    expected = clip.logits(clip.image_features(domain.test_images), clip.text_features(texts))
    teacher.on_test_epoch_start()
    assert relative_error(teacher.class_logits(domain.test_images), expected) < 1e-5


def test_a_bound_on_the_memory_does_not_change_what_is_learnt(tmp_path):
    whole, parts = make_teacher(), make_teacher(classes_at_once=2)
    for name, teacher in (("whole", whole), ("parts", parts)):
        world.quiet_trainer(tmp_path / name, limit_train_batches=2).fit(teacher, datamodule=world.TinyDomain())
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert relative_error(other, one) < 1e-6
    one, other = (ClassVectors.load(tmp_path / f / "class_vectors.safetensors").vectors for f in ("whole", "parts"))
    assert relative_error(one, other) < 1e-5


def test_a_bound_below_one_class_is_refused():
    with pytest.raises(ConfigError, match="classes_at_once is 0, expected 1 or more") as error:
        make_teacher(classes_at_once=0)
    assert world.one_sentence(error)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-true"])
def test_what_is_trained_and_kept_is_float32_under_every_precision(precision, tmp_path):
    teacher = disturb(make_teacher(averaging=AveragingConfig(1, 1)))
    exact = make_teacher()
    exact.load_state_dict(teacher.state_dict())
    seen = first_batch(teacher, world.TinyDomain(), tmp_path / "run", precision=precision)
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    assert {g.dtype for g in seen.gradients.values()} == {torch.float32}
    optimizer = teacher.trainer.optimizers[0]
    assert {s["momentum_buffer"].dtype for s in optimizer.state.values()} == {torch.float32}
    sums = next(c.sums for c in teacher.trainer.callbacks if isinstance(c, GaussianPromptAveraging))
    assert {s.dtype for s in sums.values()} == {torch.float32}
    vectors = ClassVectors.load(tmp_path / "run" / "class_vectors.safetensors").vectors
    assert vectors.dtype == torch.float32
    assert relative_error(vectors.norm(dim=1), torch.ones(5)) < 1e-6
    # one step at 1e-5 moves prompts by less than half precision could show
    moved = [(p - q).abs().max() for p, q in zip(teacher.parameters(), exact.parameters(), strict=True)]
    assert all(0 < m < 1e-3 for m in moved)


def test_a_teacher_of_the_published_size_has_a_small_checkpoint(tmp_path):
    # ViT-L/14 as far as what is trained depends on it: widths 1024 and 768, and as many layers as are prompted. The
    # frozen rest (15 further image and 3 further text layers, MLPs, most tokens) is cut away, for the checkpoint must
    # not hold any of it.
    config = {
        "embed_dim": 768,
        "vision_cfg": {"image_size": 32, "layers": 9, "width": 1024, "patch_size": 32, "mlp_ratio": 0.01},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 768,
            "heads": 12,
            "layers": 9,
            "mlp_ratio": 0.01,
        },
    }
    register_model("test-wide-teacher", config, {})
    with pytest.warns(UserWarning, match="random weights"):
        teacher = TeacherPromptTuning(
            ClipConfig("test-wide-teacher", "random"), averaging=AveragingConfig(1, 1), regularizers=NONE
        )
    saved = ModelCheckpoint(tmp_path, filename="teacher")
    trainer = world.quiet_trainer(tmp_path, callbacks=[saved], enable_checkpointing=True, limit_train_batches=1)
    trainer.fit(teacher, datamodule=world.TinyDomain())
    path = tmp_path / "teacher.ckpt"
    trained = (9 * 4 * 1024 + 9 * 4 * 768) * 4
    assert sum(p.numel() for p in teacher.parameters()) * 4 == trained
    # parameters, momentum and the running average
    assert 3 * trained <= path.stat().st_size < 5e6
    world.assert_plain_values(torch.load(path, weights_only=True))


def test_without_a_datamodule_that_knows_its_classes_the_teacher_says_so(tmp_path):
    batches = [(torch.zeros(1, 3, 32, 32), torch.zeros(1))]
    with pytest.raises(
        ConfigError, match=r"TeacherPromptTuning needs to know the class names.*DomainDataModule"
    ) as error:
        world.quiet_trainer(tmp_path).fit(make_teacher(), train_dataloaders=batches)
    assert world.one_sentence(error)


def test_a_checkpoint_of_another_clip_is_refused():
    small = {"vision_prompts": PromptConfig(2, 1), "text_prompts": PromptConfig(4, 1)}
    first, second = (
        TeacherPromptTuning(ClipConfig(name, world.TAG), **small) for name in ("test-teacher", "test-student")
    )
    checkpoint = {}
    first.on_save_checkpoint(checkpoint)
    first.on_load_checkpoint(checkpoint)
    with pytest.raises(WeightsError, match="made on other weights than 'noise' of test-student"):
        second.on_load_checkpoint(checkpoint)
