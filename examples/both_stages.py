"""Both stages and their tests in Python, which train what `make quickstart` trains.

The trainer is Lightning's own, and the accuracies are the same. The modules bring the callbacks
that they need: `FreezeClassVectors` writes the class vectors at the end of stage 1,
`SaveClassifier` the classifier at that of stage 2.
"""

import sys
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer, seed_everything

from kdpl import Classifier, DomainDataModule, StudentDistillation, TeacherPromptTuning
from kdpl.clip import ClipConfig
from kdpl.optim import OptimConfig
from kdpl.prompts import PromptConfig, StudentPrompts
from kdpl.teacher import RegularizerWeights

SEED = 1


def digits(batch_size: int) -> DomainDataModule:
    """Handwritten digits, for either stage; use dataset="folder" and root=… for your own."""
    return DomainDataModule(
        "digits",
        shots=16,  # labelled images a class, which stage 1 alone sees
        val_shots=None,  # all validation images
        augmentation="light_affine",
        batch_size=batch_size,
        num_workers=0,
        seed=SEED,
    )


def tune_teacher() -> TeacherPromptTuning:
    """Stage 1: a frozen CLIP whose prompts are tuned on the labelled images."""
    return TeacherPromptTuning(
        ClipConfig("tiny-teacher", "glyphs"),
        vision_prompts=PromptConfig(depth=4),
        text_prompts=PromptConfig(depth=2),
        regularizers=RegularizerWeights(text=5, image=2, logits=1),
        optim=OptimConfig(optimizer="adamw", lr=0.002, weight_decay=0),
    )


def distil_student(teacher: Path) -> StudentDistillation:
    """Stage 2: a smaller CLIP that learns a teacher's predictions on images without labels."""
    return StudentDistillation(
        ClipConfig("tiny-student", "glyphs"),
        teacher=str(teacher),
        vision_prompts=StudentPrompts(depth=2, init="mean_token"),
        optim=OptimConfig(optimizer="adamw", lr=0.003, weight_decay=0.0001),
    )


def fit(module: LightningModule, data: DomainDataModule, epochs: int, folder: Path) -> Trainer:
    """Train a stage; what it leaves for the next one is written into the folder."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        # the datamodule shards the data and counts each test image once
        use_distributed_sampler=False,
        check_val_every_n_epoch=5,
        log_every_n_steps=10,
        logger=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return trainer


def main(out: Path, teacher_epochs: int = 30, student_epochs: int = 20) -> None:
    """Run both stages into a folder."""
    seed_everything(SEED)
    teacher, data = tune_teacher(), digits(batch_size=16)
    trainer = fit(teacher, data, teacher_epochs, out / "teacher")
    trainer.test(teacher, data)

    seed_everything(SEED)
    student, data = distil_student(out / "teacher"), digits(batch_size=64)
    trainer = fit(student, data, student_epochs, out / "student")
    trainer.test(student, data)

    classifier = Classifier.load(out / "student" / "classifier")
    source, image, label = data.test_item(0)
    ((best, second),) = classifier.predict([image], top_k=2)
    print(f"{source} shows {classifier.class_names[label]}")
    print(
        f"predicted: {best.class_name} ({best.probability:.3f}), then {second.class_name} "
        f"({second.probability:.3f})"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/both_stages"))
