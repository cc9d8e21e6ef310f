import shutil
from dataclasses import replace

import plain
import pytest
import torch
import world
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from plain import PlainProjector, normalized, relative_error

import kdpl.clip.loading
from kdpl.clip.identity import ClipIdentity
from kdpl.clip.loading import ClipConfig, register_model
from kdpl.errors import ArtifactError, ConfigError, WeightsError
from kdpl.optim import OptimConfig
from kdpl.prompts import PromptConfig
from kdpl.prompts.tuned import TunedPrompts
from kdpl.student import StudentDistillation


def make_student(teacher, model="test-student", **options):
    torch.manual_seed(0)
    sizes = {"vision_prompts": PromptConfig(2, 3)}
    return StudentDistillation(ClipConfig(model, world.TAG), str(teacher), **{**sizes, **options})


def disturb(student):
    """Move what is trained away from its start, so that every part has something to say."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)


class PlainStudent:
    """The student, its teacher and their logits in the plain implementation; starts where ``student`` is."""

    def __init__(self, student, vectors, teacher_prompts, plain_of, teacher_model="test-teacher-quickgelu"):
        self.clip, self.teacher_clip = plain_of("test-student"), plain_of(teacher_model)
        self.vectors = vectors.vectors.double()
        self.teacher_prompts = None if teacher_prompts is None else teacher_prompts.double()
        prompts = student.encoder.prompts
        self.prompts = None if prompts is None else prompts.tokens.detach().double().requires_grad_()
        self.projector = PlainProjector(student.encoder.projector.state_dict())
        self.leaves = {k: v.requires_grad_() for k, v in self.projector.parameters.items() if "running" not in k}

    def logits(self, images, training=True):
        features = self.clip.image_features(images, self.prompts)
        return 17 * normalized(self.projector(features, training)) @ self.vectors.T

    def teacher_logits(self, images):
        return 30 * normalized(self.teacher_clip.image_features(images, self.teacher_prompts)) @ self.vectors.T

    def loss(self, images, weight=1000, temperature=1.0):
        return plain.distillation(self.logits(images), self.teacher_logits(images), weight, temperature)


class FirstBatch(Callback):
    """Takes the plain student's start before the first batch; keeps the loss and gradients of it."""

    def __init__(self, start):
        self.start = start

    def on_train_start(self, _, pl_module):
        disturb(pl_module)
        self.plain = self.start(pl_module)
        self.training = pl_module.training

    def on_after_backward(self, _, pl_module):
        self.gradients = {k: p.grad.clone() for k, p in pl_module.named_parameters()}
        frozen = (pl_module.image_clip.image_tower, pl_module.teacher.module.tower)
        self.frozen_training = [m for tower in frozen for m in tower.modules() if m.training]

    def on_train_batch_end(self, _, __, outputs, *___):
        self.loss = outputs["loss"].item()


def first_batch(student, start, folder, **options):
    seen = FirstBatch(start)
    trainer = world.quiet_trainer(folder, callbacks=[seen], limit_train_batches=1, **options)
    trainer.fit(student, datamodule=world.TinyDomain(num_base=3, batch_size=6))
    seen.logged = {k: v.item() for k, v in trainer.callback_metrics.items()}
    return seen


@pytest.mark.parametrize(("weight", "temperature"), [(1000.0, 1.0), (200.0, 1.0), (1000.0, 3.0), (50.0, 0.5)])
def test_the_loss_and_all_gradients_are_the_plain_ones(weight, temperature, tmp_path, plain_of):
    written = world.write_teacher(tmp_path)
    student = make_student(tmp_path, kd_weight=weight, temperature=temperature)
    seen = first_batch(student, lambda s: PlainStudent(s, *written, plain_of), tmp_path)
    images = world.TinyDomain().unlabeled[:6]
    loss = seen.plain.loss(images, weight, temperature)
    assert seen.loss == pytest.approx(loss.item(), rel=1e-5)
    assert seen.logged["train/loss"] == pytest.approx(seen.loss)

    loss.backward()
    gradients = {k.removeprefix("encoder."): g for k, g in seen.gradients.items()}
    for layer in range(3):
        assert relative_error(gradients["prompts.tokens"][layer], seen.plain.prompts.grad[layer]) < 1e-5
    for name, leaf in seen.plain.leaves.items():
        if name != "layers.0.bias":  # batch norm takes it away again: its gradient is zero but for rounding
            assert relative_error(gradients[f"projector.{name}"], leaf.grad) < 1e-5, name
    assert gradients.keys() == {"prompts.tokens", *(f"projector.{name}" for name in seen.plain.leaves)}


def test_agreement_is_the_share_of_images_on_which_both_say_the_same(tmp_path, plain_of):
    written = world.write_teacher(tmp_path)
    seen = first_batch(make_student(tmp_path), lambda s: PlainStudent(s, *written, plain_of), tmp_path)
    images = world.TinyDomain().unlabeled[:6]
    same = seen.plain.logits(images).argmax(dim=1) == seen.plain.teacher_logits(images).argmax(dim=1)
    assert seen.logged["train/agreement"] == pytest.approx(same.double().mean().item())


@pytest.mark.parametrize("depth", [0, 3])
def test_a_teacher_without_visual_prompts_is_distilled_as_it_is(depth, tmp_path, plain_of):
    written = world.write_teacher(tmp_path, depth=depth)
    student = make_student(tmp_path, vision_prompts=PromptConfig(depth=0))
    seen = first_batch(student, lambda s: PlainStudent(s, *written, plain_of), tmp_path)
    assert (written[1] is None) == (depth == 0)
    assert seen.loss == pytest.approx(seen.plain.loss(world.TinyDomain().unlabeled[:6]).item(), rel=1e-5)
    assert all(name.startswith("encoder.projector.") for name in seen.gradients)


def test_both_towers_see_the_same_image(tmp_path, monkeypatch):
    world.write_teacher(tmp_path)
    student, seen = make_student(tmp_path), []

    class Watch(Callback):
        def on_train_start(self, _, pl_module):
            for tower in (pl_module.image_clip.image_tower, pl_module.teacher.module.tower):
                monkeypatch.setattr(
                    tower, "embed", lambda images, embed=tower.embed: seen.append(images) or embed(images)
                )

    trainer = world.quiet_trainer(tmp_path, callbacks=[Watch()])
    trainer.fit(student, datamodule=world.TinyDomain())
    assert len(seen) == 6
    assert all(student_sees is teacher_sees for student_sees, teacher_sees in zip(seen[::2], seen[1::2], strict=True))
    assert torch.equal(torch.cat(seen[::2]), world.TinyDomain().unlabeled)


class Record(Callback):
    def __init__(self, start):
        self.start, self.epochs = start, []

    def on_train_start(self, _, pl_module):
        disturb(pl_module)
        self.plain = self.start(pl_module)

    def on_train_epoch_end(self, _, pl_module):
        self.epochs.append({k: v.detach().clone() for k, v in pl_module.encoder.state_dict().items()})


@pytest.fixture(scope="module")
def distilled(tmp_path_factory, plain_of):
    """A student after three epochs, with its run folder and what it was after each epoch."""
    teacher, folder = tmp_path_factory.mktemp("teacher"), tmp_path_factory.mktemp("student")
    written = world.write_teacher(teacher)
    # a random student is pulled far in one step of the published weight
    student = make_student(teacher, kd_weight=20, optim=OptimConfig(lr=0.01))
    domain = world.TinyDomain(num_base=3)
    record = Record(lambda s: PlainStudent(s, *written, plain_of))
    saved = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = world.quiet_trainer(folder, 3, callbacks=[record, saved], enable_checkpointing=True)
    trainer.fit(student, datamodule=domain)
    metrics = world.quiet_trainer(folder).test(student, datamodule=domain, verbose=False)[0]
    return {
        "student": student,
        "teacher": teacher,
        "folder": folder,
        "record": record,
        "checkpoint": folder / "epoch=2.ckpt",
        "metrics": metrics,
    }


def test_nine_steps_of_the_trainer_are_nine_plain_steps(distilled):
    student, images = distilled["record"].plain, world.TinyDomain().unlabeled
    start = {k: v.detach().clone() for k, v in {"prompts": student.prompts, **student.projector.parameters}.items()}
    optimizer = plain.PlainSGD([student.prompts, *student.leaves.values()])
    for epoch in range(3):
        for batch in images.split(4):
            optimizer.step(student.loss(batch, weight=20), plain.learning_rate(epoch, 3, 0.01))
        got = distilled["record"].epochs[epoch]
        for name, expected in {"prompts": student.prompts, **student.projector.parameters}.items():
            mine = got["prompts.tokens" if name == "prompts" else f"projector.{name}"]
            assert relative_error(mine, expected) < 1e-5, (epoch, name)
            # batch norm takes the first bias away again, so that rounding alone moves it
            if epoch > 0 and name != "layers.0.bias":
                # what was learnt may be smaller than what it was added to
                assert relative_error(mine - start[name], expected - start[name]) < 1e-4, (epoch, name)
        assert got["projector.layers.1.num_batches_tracked"] == 3 * (epoch + 1)


def test_evaluation_is_the_plain_one_with_running_statistics(distilled, plain_of):
    domain, student = world.TinyDomain(num_base=3), distilled["student"]
    written = student.vectors, None
    logits = PlainStudent(student, *written, plain_of).logits(domain.test_images, training=False)
    student.eval()
    assert relative_error(student.class_logits(domain.test_images), logits) < 1e-5
    labels = domain.test_labels
    base = labels < 3
    base_acc = (logits[base][:, :3].argmax(dim=1) == labels[base]).double().mean().item()
    novel_acc = (logits[~base][:, 3:].argmax(dim=1) + 3 == labels[~base]).double().mean().item()
    metrics = distilled["metrics"]
    assert metrics["test/acc"] == pytest.approx((logits.argmax(dim=1) == labels).double().mean().item())
    assert metrics["test/base_acc"] == pytest.approx(base_acc)
    assert metrics["test/novel_acc"] == pytest.approx(novel_acc)


def test_training_never_touches_the_frozen_towers_and_class_vectors(distilled):
    student = distilled["student"]
    towers = {"test-student": student.image_clip.image_tower, "test-teacher-quickgelu": student.teacher.module.tower}
    for name, tower in towers.items():
        state = tower.visual.state_dict()
        assert all(torch.equal(v, world.weights(name)[f"visual.{k}"]) for k, v in state.items())
        assert not [p for p in tower.parameters() if p.requires_grad or p.grad is not None]
    written = TunedPrompts.load(distilled["teacher"] / "prompts.safetensors").tensors["vision_prompts.tokens"]
    assert torch.equal(student.teacher.module.prompts.vision_prompts.tokens, written)
    assert torch.equal(student.head.class_vectors, student.vectors.vectors)


def test_towers_are_in_evaluation_mode_while_the_student_trains(tmp_path, plain_of):
    written = world.write_teacher(tmp_path)
    seen = first_batch(make_student(tmp_path), lambda s: PlainStudent(s, *written, plain_of), tmp_path)
    assert seen.training
    assert not seen.frozen_training


def test_a_checkpoint_holds_what_was_learnt_and_class_vectors_as_plain_values(distilled):
    checkpoint = torch.load(distilled["checkpoint"], weights_only=True)
    encoder = {f"encoder.{k}" for k in distilled["record"].epochs[-1]}
    assert set(checkpoint["state_dict"]) == {"head.class_vectors", *encoder}
    world.assert_plain_values(checkpoint)


def test_a_checkpoint_is_tested_without_the_teacher(distilled, tmp_path, monkeypatch):
    gone = tmp_path / "teacher"
    shutil.copytree(distilled["teacher"], gone)
    student = make_student(gone)
    shutil.rmtree(gone)
    for name in ("test-teacher", "test-teacher-quickgelu"):
        monkeypatch.delitem(kdpl.clip.loading._REGISTRY, name)
    trainer = world.quiet_trainer(tmp_path, limit_val_batches=1.0)
    options = {"datamodule": world.TinyDomain(num_base=3), "ckpt_path": distilled["checkpoint"], "verbose": False}
    assert trainer.test(student, **options, weights_only=True)[0] == distilled["metrics"]
    validated = trainer.validate(make_student(gone), **options, weights_only=True)[0]
    # the two splits of this domain hold the same images
    assert validated == {k.replace("test/", "val/"): v for k, v in distilled["metrics"].items()}
    assert student.teacher is None
    with pytest.raises(ConfigError, match="teacher is there during fit alone"):
        student.training_step((world.TinyDomain().unlabeled, None), 0)


def test_a_resumed_run_ends_the_same(distilled, tmp_path):
    torch.manual_seed(99)
    config = ClipConfig("test-student", world.TAG)
    resumed = StudentDistillation(
        config, str(distilled["teacher"]), vision_prompts=PromptConfig(2, 3), kd_weight=20, optim=OptimConfig(lr=0.01)
    )
    trainer = world.quiet_trainer(tmp_path, 3)
    checkpoint = distilled["folder"] / "epoch=0.ckpt"
    trainer.fit(resumed, datamodule=world.TinyDomain(num_base=3), ckpt_path=checkpoint, weights_only=True)
    last = distilled["record"].epochs[-1]
    assert all(torch.equal(v, last[k]) for k, v in resumed.encoder.state_dict().items())


class TestMeanToken:
    def test_prompts_start_at_the_mean_tokens_of_the_domain(self, tmp_path):
        world.write_teacher(tmp_path)
        drawn, moved = make_student(tmp_path), make_student(tmp_path, prompt_init="mean_token")
        starts = []

        class Look(Callback):
            def on_train_start(self, _, pl_module):
                starts.append(pl_module.encoder.prompts.tokens.detach().clone())

        for student in (drawn, moved):
            torch.manual_seed(1)
            trainer = world.quiet_trainer(tmp_path, callbacks=[Look()], limit_train_batches=1)
            trainer.fit(student, datamodule=world.TinyDomain())
        assert starts[0].std() < 0.03
        with torch.no_grad():
            drawn.encoder.prompts.tokens.copy_(starts[0])
        drawn.encoder.prompts.init_at_mean_tokens(drawn.image_clip.image_tower, world.TinyDomain().unlabeled)
        assert relative_error(starts[1], drawn.encoder.prompts.tokens) < 1e-6

    def test_a_resumed_run_is_not_moved_again(self, distilled, tmp_path):
        options = {"kd_weight": 20, "optim": OptimConfig(lr=0.01)}
        student = make_student(distilled["teacher"], prompt_init="mean_token", **options)
        trainer = world.quiet_trainer(tmp_path, 3)
        checkpoint = distilled["folder"] / "epoch=1.ckpt"
        trainer.fit(student, datamodule=world.TinyDomain(num_base=3), ckpt_path=checkpoint, weights_only=True)
        expected = distilled["record"].epochs[-1]["prompts.tokens"]
        assert torch.equal(student.encoder.prompts.tokens, expected)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-true"])
def test_what_is_trained_and_kept_is_float32_under_every_precision(precision, tmp_path, plain_of):
    written = world.write_teacher(tmp_path)
    student = make_student(tmp_path)
    seen = first_batch(student, lambda s: PlainStudent(s, *written, plain_of), tmp_path, precision=precision)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert {g.dtype for g in seen.gradients.values()} == {torch.float32}
    kept = {k: v for k, v in student.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert {v.dtype for v in kept.values()} == {torch.float32}
    assert torch.equal(student.head.class_vectors, written[0].vectors)
    assert {s["momentum_buffer"].dtype for s in student.trainer.optimizers[0].state.values()} == {torch.float32}
    # the frozen towers' arithmetic is what the setting is for
    half = {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(precision, torch.float32)
    assert student.image_clip.image_tower.visual.proj.dtype == half
    assert student.teacher.module.tower.visual.proj.dtype == half
    loss = seen.plain.loss(world.TinyDomain().unlabeled[:6]).item()
    assert seen.loss == pytest.approx(loss, rel=1e-5 if precision == "32-true" else 0.2)


def test_a_student_of_the_published_size_has_a_small_checkpoint(tmp_path):
    # ViT-L/14 -> ViT-B/16 as far as what is trained depends on it: width 768, embeddings 512 and 768, nine prompted
    # layers, and the 1,000 classes of ImageNet. The frozen rest (the teacher's tower, three further layers, MLPs, most
    # tokens) is cut away, for the checkpoint must not hold any of it.
    def config(embed_dim, width, layers):
        vision = {"image_size": 32, "layers": layers, "width": width, "patch_size": 32, "mlp_ratio": 0.1}
        text = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
        return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}

    register_model("test-wide-teacher", config(768, 64, 1), {})
    register_model("test-wide-student", config(512, 768, 9), {})
    names = tuple(f"class number {i} of many" for i in range(1000))
    with pytest.warns(UserWarning, match="random weights"):
        teacher = kdpl.clip.loading.load_clip(ClipConfig("test-wide-teacher", "random"))
    with pytest.warns(UserWarning, match="random weights"):
        student = StudentDistillation(ClipConfig("test-wide-student", "random"), str(tmp_path))
    prompts = world.tuned_prompts({}, clip=teacher.identity)
    prompts.save(tmp_path / "prompts.safetensors")
    replace(
        world.frozen_vectors(),
        vectors=torch.nn.functional.normalize(torch.randn(1000, 768), dim=-1),
        class_names=names,
        num_base=None,
        clip=teacher.identity,
        teacher=prompts.teacher,
    ).save(tmp_path / "class_vectors.safetensors")
    saved = ModelCheckpoint(tmp_path, filename="student")
    trainer = world.quiet_trainer(tmp_path, callbacks=[saved], enable_checkpointing=True, limit_train_batches=1)
    with pytest.warns(UserWarning, match="random weights"):
        trainer.fit(student, datamodule=world.TinyDomain(names=names))
    path = tmp_path / "student.ckpt"
    trained = 4 * (9 * 4 * 768 + (512 + 1) * 768 + 2 * 768 + (768 + 1) * 768)
    assert sum(p.numel() for p in student.parameters()) * 4 == trained
    # parameters, momentum and class vectors
    assert 2 * trained + 4 * 1000 * 768 <= path.stat().st_size < 15e6
    checkpoint = torch.load(path, weights_only=True)
    world.assert_plain_values(checkpoint)
    assert checkpoint["state_dict"]["head.class_vectors"].shape == (1000, 768)


class TestRefusals:
    """Each is one sentence, said before the first step."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path

    def refuse(self, student, kind, match, domain=None, **options):
        class Started(Callback):
            def on_train_batch_start(self, *_):
                raise AssertionError("training began")

        trainer = world.quiet_trainer(self.folder, callbacks=[Started()])
        with pytest.raises(kind, match=match) as error:
            trainer.fit(student, datamodule=domain or world.TinyDomain(num_base=3), **options)
        assert world.one_sentence(error)

    def test_a_teacher_that_is_not_there(self, tmp_path):
        match = r"nowhere.class_vectors\.safetensors does not exist.*run stage 1"
        self.refuse(make_student(tmp_path / "nowhere"), ArtifactError, match)

    def test_a_teacher_without_prompts_file(self, tmp_path):
        world.write_teacher(tmp_path)
        (tmp_path / "prompts.safetensors").unlink()
        self.refuse(make_student(tmp_path), ArtifactError, r"prompts\.safetensors does not exist")

    @pytest.mark.parametrize(
        ("names", "match"),
        [
            (
                ("sea_horse", "crab", "whale", "squid", "star_fish"),
                "class 2 is 'blue whale' there and 'whale' in the data",
            ),
            (world.NAMES[:4], "it has 5 classes, the data has 4"),
            (world.NAMES[::-1], "class 0 is 'sea_horse' there and 'star_fish' in the data"),
        ],
    )
    def test_class_vectors_of_other_names(self, names, match, tmp_path):
        world.write_teacher(tmp_path)
        match = rf"class_vectors\.safetensors are for other class names \({match}\).*stage 1"
        self.refuse(make_student(tmp_path), ArtifactError, match, world.TinyDomain(names=names))

    def test_class_vectors_of_another_teacher(self, tmp_path):
        world.write_teacher(tmp_path / "one")
        world.write_teacher(tmp_path / "other", seed=1)
        student = make_student(tmp_path / "one", class_vectors=str(tmp_path / "other" / "class_vectors.safetensors"))
        self.refuse(
            student, ArtifactError, r"other.class_vectors\.safetensors were frozen by another teacher than .*one"
        )

    def test_class_vectors_of_another_width_than_the_teachers(self, tmp_path):
        narrow = torch.nn.functional.normalize(torch.randn(5, 16), dim=-1)
        world.write_teacher(tmp_path, vectors=narrow)
        match = r"class_vectors\.safetensors have width 16.*test-teacher-quickgelu has 24.*stage 1"
        self.refuse(make_student(tmp_path), ArtifactError, match)

    def test_a_teacher_whose_clip_has_other_weights_now(self, tmp_path, monkeypatch):
        world.write_teacher(tmp_path)
        student, changed = make_student(tmp_path), dict(world.weights("test-teacher-quickgelu"))
        changed["visual.ln_post.bias"] = changed["visual.ln_post.bias"] + 1e-3
        config = world.CONFIGS["test-teacher-quickgelu"]
        registered = kdpl.clip.loading._Registered(config, {world.TAG: lambda: changed})
        monkeypatch.setitem(kdpl.clip.loading._REGISTRY, "test-teacher-quickgelu", registered)
        self.refuse(
            student, WeightsError, "'noise' of test-teacher-quickgelu are not those that the teacher was tuned on"
        )

    @pytest.mark.parametrize("options", [{"kd_weight": 0.0}, {"temperature": 0.0}, {"temperature": -1.0}])
    def test_weights_and_temperatures_that_are_not_positive(self, options, tmp_path):
        with pytest.raises(ConfigError, match="both must be above 0") as error:
            make_student(tmp_path, **options)
        assert world.one_sentence(error)

    def test_a_checkpoint_of_another_student(self, distilled):
        student = make_student(distilled["teacher"])
        student.clip = ClipIdentity("test-student", world.TAG, False, "0" * 32)
        match = "made on other weights than 'noise' of test-student"
        self.refuse(student, WeightsError, match, ckpt_path=distilled["checkpoint"], weights_only=True)

    def test_a_checkpoint_of_another_teacher(self, distilled, tmp_path):
        world.write_teacher(tmp_path, seed=1)
        match = f"distilled from another teacher than {tmp_path}"
        self.refuse(make_student(tmp_path), ArtifactError, match, ckpt_path=distilled["checkpoint"], weights_only=True)

    def test_a_checkpoint_that_is_not_one_of_a_student(self, distilled, tmp_path):
        checkpoint = torch.load(distilled["checkpoint"], weights_only=True)
        del checkpoint["kdpl_class_vectors"]
        torch.save(checkpoint, tmp_path / "other.ckpt")
        match = "the checkpoint is not one of a student"
        student = make_student(distilled["teacher"])
        self.refuse(student, ArtifactError, match, ckpt_path=tmp_path / "other.ckpt", weights_only=True)

    def test_a_checkpoint_for_other_class_names(self, distilled, tmp_path):
        trainer = world.quiet_trainer(tmp_path)
        options = {"ckpt_path": distilled["checkpoint"], "weights_only": True}
        with pytest.raises(ArtifactError, match="the checkpoint are for other class names") as error:
            trainer.test(make_student(tmp_path), datamodule=world.TinyDomain(names=world.NAMES[::-1]), **options)
        assert world.one_sentence(error)

    def test_a_test_without_a_checkpoint(self, tmp_path):
        with pytest.raises(ConfigError, match="tested from a checkpoint: give --ckpt_path") as error:
            world.quiet_trainer(tmp_path).test(make_student(tmp_path), datamodule=world.TinyDomain())
        assert world.one_sentence(error)


def test_a_teacher_from_a_weights_file_is_found_again(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(world.weights("test-teacher"), path)
    world.write_teacher(tmp_path)
    clip = kdpl.clip.loading.load_clip(ClipConfig("test-teacher", str(path), quick_gelu=False)).identity
    prompts = world.tuned_prompts({}, clip=clip)
    prompts.save(tmp_path / "prompts.safetensors")
    vectors = world.frozen_vectors("test-teacher", clip=clip, teacher=prompts.teacher)
    vectors.save(tmp_path / "class_vectors.safetensors")
    student = make_student(tmp_path)
    world.quiet_trainer(tmp_path, limit_train_batches=1).fit(student, datamodule=world.TinyDomain(num_base=3))
    assert student.teacher.module.tower.visual.proj.shape == (48, 24)
