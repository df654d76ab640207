"""The Hugging Face Trainer: clipping, accumulation and its own checkpoints, on a plain module and on GPT-2."""

import copy
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
from regrow.weights import stamp

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # transformers imports what happens to be installed
    import accelerate
    import huggingface_hub
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


def bert(storage: str | None, seed: int = 0) -> "transformers.BertForSequenceClassification":
    """In evaluation mode: without dropout, whose random numbers would not be the same after a resume."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    model = transformers.BertForSequenceClassification(config).double().eval()
    return model if storage is None else regrow.sparsify(model, sparsity=0.7, storage=storage, seed=seed)


def gpt2(storage: str | None, seed: int = 0) -> "transformers.GPT2LMHeadModel":
    """Conv1D layers, which are masked, and a head tied to the embedding."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(vocab_size=31, n_positions=8, n_embd=12, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    return model if storage is None else regrow.sparsify(model, sparsity=0.7, storage="masked", seed=seed)


TOKENS = torch.arange(24).view(3, 8)


def logits(model: nn.Module) -> Tensor:
    out: Tensor = model(input_ids=TOKENS).logits
    return out.detach()


def assert_loads_as(folder: Path, model: nn.Module) -> nn.Module:
    """`from_pretrained` gives a dense model with the very weights, and misses nothing."""
    loaded, report = type(model).from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert not regrow.is_sparse(loaded)
    dense = regrow.dense_state_dict(model)
    assert all(torch.equal(value, dense[key]) for key, value in loaded.state_dict().items())
    torch.testing.assert_close(logits(loaded), logits(model))
    return loaded


WAYS: dict[str, Any] = {
    "plain": lambda model, folder: model.save_pretrained(folder),
    "sharded": lambda model, folder: model.save_pretrained(folder, max_shard_size="5KB"),
    "its state dict": lambda model, folder: model.save_pretrained(folder, state_dict=model.state_dict()),
    "by position": lambda model, folder: model.save_pretrained(folder, True, model.state_dict()),
    "a copy": lambda model, folder: copy.deepcopy(model).save_pretrained(folder),
    "compiled": lambda model, folder: torch.compile(model).save_pretrained(folder),
    "by accelerate": lambda model, folder: model.save_pretrained(
        folder, state_dict=accelerate.Accelerator(cpu=True).get_state_dict(model)
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("make", "storage"), [(bert, "masked"), (bert, "compressed"), (gpt2, "masked")])
def test_from_pretrained_reads_what_save_pretrained_writes(
    make: Any, storage: str, way: str, tmp_path: Path
) -> None:
    model = make(storage)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    WAYS[way](model, tmp_path)
    loaded = assert_loads_as(tmp_path, model)
    after = model.state_dict()  # in its own form, by the very tensors
    assert list(after) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    if way != "sharded":
        sparse_again = regrow.load(tmp_path / "model.safetensors", into=loaded)
        assert all(
            torch.equal(m, regrow.masks(sparse_again)[name]) for name, m in regrow.masks(model).items()
        )
        assert torch.equal(logits(sparse_again), logits(model))
    regrow.densify(model).save_pretrained(tmp_path / "dense")
    assert_loads_as(tmp_path / "dense", model)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_model_with_a_sparse_part_and_a_part_of_a_sparse_model(storage: str, tmp_path: Path) -> None:
    model = bert(None)
    regrow.sparsify(model.bert.encoder, sparsity=0.7, storage=storage)
    model.save_pretrained(tmp_path / "whole")
    assert_loads_as(tmp_path / "whole", model)
    bert(storage).bert.save_pretrained(tmp_path / "part")
    part, report = transformers.BertModel.from_pretrained(
        tmp_path / "part", dtype=torch.float64, output_loading_info=True
    )
    assert not report["missing_keys"]
    dense = regrow.dense_state_dict(bert(storage).bert)
    assert all(torch.equal(value, dense[key]) for key, value in part.state_dict().items())


@pytest.mark.parametrize("storage", STORAGES)
def test_the_hubs_mixin_reads_what_it_writes(storage: str, tmp_path: Path) -> None:
    model = regrow.sparsify(OnTheHub(), sparsity=0.7, storage=storage)
    x = torch.randn(3, 12)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(OnTheHub.from_pretrained(tmp_path)(x), model(x))


class OnTheHub(nn.Module, huggingface_hub.PyTorchModelHubMixin):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 6))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


@pytest.mark.parametrize("storage", STORAGES)
def test_accelerates_save_model_is_read_by_a_dense_model(storage: str, tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(network(storage))
    accelerator.save_model(model, tmp_path)
    plain = regrow.densify(network("masked"))
    accelerate.load_checkpoint_in_model(plain, tmp_path)
    sparse = network(storage, seed=99)
    accelerate.load_checkpoint_in_model(sparse, tmp_path)
    x = batches(1)[0][0]
    torch.testing.assert_close(plain(x), model(x))
    assert torch.equal(sparse(x), model(x))


@pytest.mark.parametrize("storage", STORAGES)
def test_a_checkpoint_in_shards_is_not_taken_in_pieces(storage: str, tmp_path: Path) -> None:
    bert(storage).save_pretrained(tmp_path, max_shard_size="1KB")
    warnings.simplefilter(
        "ignore", UserWarning
    )  # a weight whose topology is in the next shard is cut: said too
    with pytest.raises(
        regrow.RegrowError, match=r"is missing: the state dict holds .*\nLoad them together \(all sh"
    ):
        transformers.trainer_utils.load_sharded_checkpoint(bert(storage, seed=99), tmp_path, strict=False)


def test_a_topology_that_other_code_has_changed_is_not_saved(tmp_path: Path) -> None:
    model = bert("compressed")
    model.classifier.weight_col.data.zero_()
    with pytest.raises(regrow.RegrowError, match="the topology of `classifier.weight` was overwritten"):
        model.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("storage", STORAGES)
def test_a_trainers_checkpoint_resumes_in_a_fresh_process_and_loads_as_a_dense_model(
    storage: str, tmp_path: Path
) -> None:
    whole = train_bert(bert(storage), tmp_path / "whole", None)
    half = STEPS // 2
    train_bert(bert(storage), tmp_path / "half", None, save_strategy="steps", save_steps=half, max_steps=half)
    saved = tmp_path / "half" / f"checkpoint-{half}"
    assert not transformers.BertForSequenceClassification.from_pretrained(
        saved, dtype=torch.float64, output_loading_info=True
    )[1]["missing_keys"]
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        pool.apply(save_there, (bert(storage), tmp_path / "there"))
        resumed = pool.apply(resume_bert, (storage, str(saved), str(tmp_path / "resumed")))
    assert_loads_as(tmp_path / "there", bert(storage))
    assert list(whole) == list(resumed)
    for key, value in whole.items():
        other = resumed[key]
        if key.endswith("_values"):  # a stamp is not in what dense models read
            value, other = value[: -stamp.SIZE], other[: -stamp.SIZE]
        assert torch.equal(value, other), key


def save_there(model: nn.Module, folder: Path) -> None:
    """In another process, which has called nothing of regrow."""
    model.save_pretrained(folder)


def resume_bert(storage: str, saved: str, folder: str) -> dict[str, Tensor]:
    """In another process, from another topology."""
    torch.set_num_threads(1)
    return train_bert(bert(storage, seed=99), Path(folder), saved)


def train_bert(model: nn.Module, folder: Path, resume: str | None, **changes: Any) -> dict[str, Tensor]:
    """The state dict after training with RigL."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(31, (STEPS * ACCUMULATE * SIZE, 8), generator=generator)
    data = [{"input_ids": t, "labels": t[0] % 2} for t in tokens]
    driven = OPTIMIZERS["adamw"](model)
    callback = AttachAtStart("rigl", model, History(model))
    trainer = transformers.Trainer(
        model,
        arguments(folder, **changes),
        train_dataset=data,
        optimizers=(driven, None),
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=resume)
    return {key: value.clone() for key, value in model.state_dict().items()}
