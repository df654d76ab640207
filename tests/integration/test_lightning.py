"""Lightning's Trainer, which always passes a closure to `step`, trains as the plain loop does."""

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
from regrow.weights import sparse_weights

with warnings.catch_warnings():
    # lightning's own imports use what torch and python call old by now
    warnings.simplefilter("ignore")
    import lightning

HOOKS = ("configure_optimizers", "on_fit_start", "on_train_start")
EPOCH, ACCUMULATE = 20, 2
STEPS = EPOCH // ACCUMULATE


class Task(lightning.LightningModule):
    """The network of `loops`, with a method attached in the Lightning hook named `attach_in`."""

    def __init__(self, storage: str, method: str, optimizer: str, attach_in: str, epochs: int = 2) -> None:
        super().__init__()
        self.network = network(storage)
        self.method_name, self.optimizer_name, self.attach_in = method, optimizer, attach_in
        self.total_steps = epochs * STEPS
        self.history = History(self.network)
        self.continues_at: int | None = None

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return cross_entropy(self.network(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = OPTIMIZERS[self.optimizer_name](self.network)
        if self.attach_in == "configure_optimizers":
            self.attach(optimizer)
        return optimizer

    def on_fit_start(self) -> None:
        if self.attach_in == "on_fit_start":
            self.attach(self.optimizers())  # a LightningOptimizer

    def on_train_start(self) -> None:
        if self.attach_in == "on_train_start":
            self.attach(self.optimizers())
        self.continues_at = self.method.step

    def attach(self, optimizer: object) -> None:
        self.method = METHODS[self.method_name](
            self.network, optimizer, total_steps=self.total_steps, **UPDATES
        )
        self.history.follow(self.method)


def trainer(folder: Path, **settings: object) -> "lightning.Trainer":
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        precision="64-true",
        gradient_clip_val=CLIP,
        accumulate_grad_batches=ACCUMULATE,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def loader() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(batches(EPOCH), batch_size=None)


def expected(storage: str, method: str, optimizer: str = "sgd", epochs: int = 2) -> History:
    model = network(storage)
    driven = OPTIMIZERS[optimizer](model)
    total = epochs * STEPS
    attached = METHODS[method](model, driven, total_steps=total, **UPDATES)
    return plain(model, driven, attached, batches(EPOCH) * epochs, accumulate=ACCUMULATE)


@pytest.mark.parametrize("attach_in", ["configure_optimizers", "on_fit_start"])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("method", METHODS)
def test_trains_as_the_plain_loop_does(method: str, storage: str, attach_in: str, tmp_path: Path) -> None:
    task = Task(storage, method, "sgd", attach_in)
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(task, loader())
    assert_same(expected(storage, method), task.history)
    assert task.method.step == task.total_steps


@pytest.mark.parametrize("method", METHODS)
def test_adamw_trains_as_in_the_plain_loop(method: str, tmp_path: Path) -> None:
    task = Task("masked", method, "adamw", "configure_optimizers")
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(task, loader())
    assert_same(expected("masked", method, "adamw"), task.history)


@pytest.mark.parametrize("attach_in", HOOKS)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists"
)  # whoever resumes goes on in the same folder
def test_resumes_from_lightnings_checkpoint(
    method: str, storage: str, attach_in: str, tmp_path: Path
) -> None:
    first = Task(storage, method, "adamw", attach_in)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "one", every_n_epochs=1)
    trainer(tmp_path, max_epochs=1, callbacks=[keep]).fit(first, loader())

    # another topology at first, so that nothing but the checkpoint can have brought back the right one
    second = Task(storage, method, "adamw", attach_in)
    second.network = network(storage, seed=99)
    second.history = History(second.network)
    resumed = trainer(tmp_path, max_epochs=2, callbacks=[keep])
    resumed.fit(second, loader(), ckpt_path=tmp_path / "one.ckpt", weights_only=True)

    assert second.continues_at == STEPS
    assert_same(expected(storage, method, "adamw"), second.history, start=STEPS)


def test_a_checkpoint_is_loaded_weights_only(tmp_path: Path) -> None:
    task = Task("compressed", "rigl", "adamw", "configure_optimizers")
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    run.fit(task, loader())
    run.save_checkpoint(tmp_path / "model.ckpt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["regrow_step"] == STEPS

    other = Task("masked", "rigl", "adamw", "configure_optimizers")  # the other storage reads it
    other.load_state_dict(checkpoint["state_dict"])
    for name, mask in regrow.masks(task.network).items():
        assert torch.equal(mask, regrow.masks(other.network)[name])


@pytest.mark.parametrize("storage", STORAGES)
def test_a_second_fit_of_one_module(storage: str, tmp_path: Path) -> None:
    """Its `configure_optimizers` makes a new method, while the old one and its optimizer are still there."""
    task = Task(storage, "rigl", "sgd", "configure_optimizers", epochs=1)
    for _ in range(2):
        trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(task, loader())
        assert task.method.step == STEPS

    model = network(storage)
    for _ in range(2):
        optimizer = OPTIMIZERS["sgd"](model)
        method = METHODS["rigl"](model, optimizer, total_steps=STEPS, **UPDATES)
        plain(model, optimizer, method, batches(EPOCH), accumulate=ACCUMULATE)
    for one, two in zip(task.network.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_search_for_the_learning_rate_before_the_fit(tmp_path: Path) -> None:
    task = Task("masked", "rigl", "sgd", "configure_optimizers")
    task.lr = 0.1
    before = regrow.masks(task.network)
    run = trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
    found = lightning.pytorch.tuner.Tuner(run).lr_find(
        task, loader(), num_training=STEPS, early_stop_threshold=None
    )
    assert found is not None
    for name, mask in regrow.masks(task.network).items():
        assert torch.equal(mask, before[name])  # Lightning brings the model back to where it was
    assert task.method.step == 0
    run.fit(task, loader())
    assert task.method.step == task.total_steps


@pytest.mark.parametrize("storage", ["masked", "compressed"])
@pytest.mark.parametrize("callback", ["ema", "swa", "sum"])
def test_callbacks_that_average_weights(callback: str, storage: str) -> None:
    from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging

    callbacks: dict[str, Any] = {
        "ema": EMAWeightAveraging(decay=0.9),  # with buffers, as is its default
        "swa": StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2),
        "sum": WeightAveraging(),
    }
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    y = x[:, :4].argmax(1)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
            regrow.sparsify(self.net, 0.7, storage=storage)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.net(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            self.method = regrow.RigL(self.net, optimizer, total_steps=200, update_every=5)
            return optimizer

    module = Module()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16)
    trainer = lightning.Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks[callback],
    )
    trainer.fit(module, loader, loader)
    assert nn.functional.cross_entropy(module.net(x), y).item() < 0.35
    for weight in sparse_weights(module.net):
        assert weight.nnz == round(weight.record.asked * weight.numel)
        assert not weight.to_dense()[~weight.mask()].any()
