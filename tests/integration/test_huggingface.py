"""The Hugging Face Trainer: clipping, accumulation and its own checkpoints, on a plain module and on GPT-2."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.loops import (
    CLIP,
    METHODS,
    OPTIMIZERS,
    STORAGES,
    UPDATES,
    History,
    assert_same,
    batches,
    network,
    plain,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import regrow

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # transformers imports what happens to be installed
    import transformers

STEPS, ACCUMULATE, SIZE = 20, 2, 6


class Classifier(nn.Module):
    """What the Trainer takes: a module that returns its loss."""

    def __init__(self, storage: str, seed: int = 0) -> None:
        super().__init__()
        self.network = network(storage, seed=seed)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.network(x)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class AttachAtStart(transformers.TrainerCallback):
    """Attaches a method to the optimizer that the Trainer made, or has loaded, and records each step."""

    def __init__(self, method: str, model: nn.Module, history: History) -> None:
        self.method, self.model, self.history = method, model, history
        self.continues_at: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        attached = METHODS[self.method](self.model, kwargs["optimizer"], total_steps=STEPS, **UPDATES)
        self.continues_at = attached.step
        self.history.follow(attached)


def arguments(folder: Path, **changes: Any) -> "transformers.TrainingArguments":
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": SIZE,
        "gradient_accumulation_steps": ACCUMULATE,
        "max_grad_norm": CLIP,
        "max_steps": STEPS,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
        "learning_rate": 0.02,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    return transformers.TrainingArguments(**(settings | changes))


def examples() -> list[dict[str, Tensor]]:
    return [
        {"x": x, "labels": y}
        for xs, ys in batches(STEPS * ACCUMULATE, SIZE)
        for x, y in zip(xs, ys, strict=True)
    ]


def expected(method: str, storage: str, optimizer: str) -> History:
    model = network(storage)
    driven = OPTIMIZERS[optimizer](model)
    attached = METHODS[method](model, driven, total_steps=STEPS, **UPDATES)
    return plain(model, driven, attached, batches(STEPS * ACCUMULATE, SIZE), accumulate=ACCUMULATE)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("method", METHODS)
def test_trains_as_the_plain_loop_does(method: str, storage: str, optimizer: str, tmp_path: Path) -> None:
    model = Classifier(storage)
    driven = OPTIMIZERS[optimizer](model)
    history = History(model.network)
    history.follow(METHODS[method](model.network, driven, total_steps=STEPS, **UPDATES))
    trainer = transformers.Trainer(
        model, arguments(tmp_path), train_dataset=examples(), optimizers=(driven, None)
    )
    trainer.train()
    assert_same(expected(method, storage, optimizer), history)


@pytest.mark.parametrize("attached", ["before loading", "after loading"])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("method", METHODS)
def test_resumes_from_the_trainers_checkpoint(
    method: str, storage: str, attached: str, tmp_path: Path
) -> None:
    def trainer(model: Classifier, **changes: Any) -> tuple["transformers.Trainer", History, AttachAtStart]:
        driven = OPTIMIZERS["adamw"](model)
        history = History(model.network)
        callback = AttachAtStart(method, model.network, history)
        if attached == "before loading":
            early = METHODS[method](model.network, driven, total_steps=STEPS, **UPDATES)
            history.follow(early)
        made = transformers.Trainer(
            model,
            arguments(tmp_path, **changes),
            train_dataset=examples(),
            optimizers=(driven, None),
            callbacks=[callback] if attached == "after loading" else [],
        )
        return made, history, callback

    half = STEPS // 2
    first, *_ = trainer(Classifier(storage), save_strategy="steps", save_steps=half, max_steps=half)
    first.train()

    # another topology at first, so that nothing but the checkpoint can have brought back the right one
    second, history, callback = trainer(Classifier(storage, seed=99))
    second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{half}"))
    assert callback.continues_at == (half if attached == "after loading" else None)
    assert_same(expected(method, storage, "adamw"), history, start=half)


@pytest.mark.parametrize("method", METHODS)
def test_gpt2_trains_and_resumes(method: str, tmp_path: Path) -> None:
    """Conv1D blocks with a transposed weight, a head tied to the embedding, and save_pretrained's files."""

    def model(seed: int) -> "transformers.GPT2LMHeadModel":
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=31,
            n_positions=8,
            n_embd=12,
            n_layer=2,
            n_head=2,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
        return regrow.sparsify(transformers.GPT2LMHeadModel(config).double(), sparsity=0.7, seed=seed)

    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(31, (STEPS * ACCUMULATE * SIZE, 8), generator=generator)
    data = [{"input_ids": t, "labels": t} for t in tokens]

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """In float64 throughout (the model's own is in float32), and divided here."""
        return cross_entropy(outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten()) / ACCUMULATE

    def train(network: nn.Module, resume: str | None = None, **changes: Any) -> History:
        history = History(network)
        callback = AttachAtStart(method, network, history)
        driven = OPTIMIZERS["adamw"](network)
        trainer = transformers.Trainer(
            network,
            arguments(tmp_path, **changes),
            train_dataset=data,
            optimizers=(driven, None),
            callbacks=[callback],
            compute_loss_func=loss,
        )
        trainer.train(resume_from_checkpoint=resume)
        return history

    undisturbed = model(0)
    driven = OPTIMIZERS["adamw"](undisturbed)
    history = History(undisturbed)
    history.follow(METHODS[method](undisturbed, driven, total_steps=STEPS, **UPDATES))
    for number, ids in enumerate(tokens.split(SIZE), 1):
        loss(undisturbed(input_ids=ids), ids).backward()
        if number % ACCUMULATE == 0:
            nn.utils.clip_grad_norm_(undisturbed.parameters(), CLIP)
            driven.step()
            driven.zero_grad()
    whole = train(model(0))
    assert_same(history, whole)

    half = STEPS // 2
    train(model(0), save_strategy="steps", save_steps=half, max_steps=half)
    resumed = train(model(99), resume=str(tmp_path / f"checkpoint-{half}"))
    assert_same(history, resumed, start=half)
