"""Copies that other people's code keeps up to date, and values that it mixes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from runs import storages
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import regrow
from regrow.weights import hook_of, sparse_weights, stamp

Update = Callable[[nn.Module, nn.Module], None]


def trained(storage: str) -> tuple[nn.Sequential, SGD]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 5))
    regrow.sparsify(model, 0.7, storage=storage)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    regrow.RigL(model, optimizer, total_steps=1000, update_every=4)
    return model, optimizer


def train(model: nn.Module, optimizer: SGD, steps: int, after: Callable[[nn.Module], object]) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(32, 20, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), x[:, :5].argmax(1)).backward()
        optimizer.step()
        after(model)


def dense(model: nn.Module) -> list[Tensor]:
    return [weight.to_dense() for weight in sparse_weights(model)]


@torch.no_grad()
def by_data(copied: nn.Module, model: nn.Module) -> None:
    for mine, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        mine.data.copy_(theirs.data)


@torch.no_grad()
def by_copy(copied: nn.Module, model: nn.Module) -> None:
    for mine, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        mine.copy_(theirs)


@torch.no_grad()
def by_new_data(copied: nn.Module, model: nn.Module) -> None:
    for mine, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        mine.data = mine.data * 0.0 + theirs.data * 1.0


@torch.no_grad()
def by_polyak(copied: nn.Module, model: nn.Module) -> None:
    for mine, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        mine.data.mul_(0)
        torch.add(mine.data, theirs.data, alpha=1.0, out=mine.data)


@torch.no_grad()
def by_foreach(copied: nn.Module, model: nn.Module) -> None:
    torch._foreach_lerp_(list(copied.parameters()), list(model.parameters()), 1.0)


def by_vector(copied: nn.Module, model: nn.Module) -> None:
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector, copied.parameters())


@torch.no_grad()
def by_state_dict_in_place(copied: nn.Module, model: nn.Module) -> None:
    theirs = model.state_dict()
    for name, mine in copied.state_dict().items():
        mine.copy_(theirs[name])


def by_state_dict(copied: nn.Module, model: nn.Module) -> None:
    copied.load_state_dict(model.state_dict())


@torch.no_grad()
def by_parameters_and_buffers(copied: nn.Module, model: nn.Module) -> None:
    by_copy(copied, model)
    for mine, theirs in zip(copied.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


UPDATES: list[Update] = [
    by_data,
    by_copy,
    by_new_data,
    by_polyak,
    by_foreach,
    by_vector,
    by_state_dict_in_place,
    by_state_dict,
    by_parameters_and_buffers,
]


@storages
@pytest.mark.parametrize("update", UPDATES, ids=lambda update: update.__name__)
@pytest.mark.parametrize("used", [True, False])
def test_a_copy_that_is_overwritten_is_the_model(storage: str, update: Update, used: bool) -> None:
    model, optimizer = trained(storage)
    copied = copy.deepcopy(model).eval()

    def after(model: nn.Module) -> None:
        update(copied, model)
        if used:
            copied(torch.randn(2, 20))

    train(model, optimizer, 19, after)  # 4 updates of the topology
    x = torch.randn(50, 20)
    found = copied(x)
    assert regrow.masks(copied).keys() == regrow.masks(model).keys()
    for mine, theirs in zip(sparse_weights(copied), sparse_weights(model), strict=True):
        assert torch.equal(mine.mask(), theirs.mask())
        assert torch.equal(mine.to_dense(), theirs.to_dense())
    by_state_dict_in_place(copied, model)  # running statistics
    torch.testing.assert_close(copied(x), model.eval()(x))
    assert found.isfinite().all()


@storages
@pytest.mark.parametrize("every", [1, 3, 7, 13])
@pytest.mark.parametrize("used", [True, False])
def test_a_target_network_that_is_overwritten_now_and_then(storage: str, every: int, used: bool) -> None:
    model, optimizer = trained(storage)
    target = copy.deepcopy(model).eval()
    count = 0
    written = (dense(model), regrow.masks(model))

    def after(model: nn.Module) -> None:
        nonlocal count, written
        count += 1
        if used or count % 13 == 12:  # three moves later
            target(torch.randn(2, 20))
            for mine, theirs in zip(dense(target), written[0], strict=True):
                assert torch.equal(mine, theirs)
            if storage == "compressed":  # masks cannot tell a new connection at 0 from none
                assert all(regrow.masks(target)[name].equal(mask) for name, mask in written[1].items())
        if count % every == 0:
            by_data(target, model)
            written = (dense(model), regrow.masks(model))

    train(model, optimizer, 40, after)
    if storage == "masked":
        target(torch.randn(2, 20))  # without its siblings a mask knows of no other topology
    copied, loaded = copy.deepcopy(target), pickle.loads(pickle.dumps(target))
    for each in (target, copied, loaded):
        each(torch.randn(2, 20))
        for mine, theirs in zip(dense(each), written[0], strict=True):
            assert torch.equal(mine, theirs)


@storages
def test_a_target_network_of_a_model_that_is_pruned_keeps_its_shape(storage: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))
    regrow.sparsify(model, 0.5, storage=storage)
    optimizer = SGD(model.parameters(), lr=0.1)
    regrow.GraNet(model, optimizer, total_steps=100, update_every=4, final_sparsity=0.9)
    target, count, written = copy.deepcopy(model), 0, dense(model)
    shapes = [p.shape for p in target.parameters()]

    def after(model: nn.Module) -> None:
        nonlocal count, written
        count += 1
        if count % 12 == 2:
            by_data(target, model)
            written = dense(model)
        elif count % 12 == 11:
            loaded = copy.deepcopy(model)
            loaded.load_state_dict(target.state_dict())
            for each in (loaded, target):
                assert all(map(torch.equal, dense(each), written))
            assert [p.shape for p in target.parameters()] == shapes

    train(model, optimizer, 60, after)


def test_a_target_network_that_is_cast_stays_as_it_was_written() -> None:
    model, optimizer = trained("masked")
    target = copy.deepcopy(model)
    train(model, optimizer, 6, lambda model: None)
    by_data(target, model)
    written = [weight.half() for weight in dense(model)]
    train(model, optimizer, 4, lambda model: None)
    assert all(weight.record.kept is not None for weight in sparse_weights(target))
    target.half()
    regrow.summary(target)
    assert all(map(torch.equal, dense(target), written))


@storages
def test_a_target_network_that_is_asked_to_follow(storage: str) -> None:
    model, optimizer = trained(storage)
    method = sparse_weights(model)[0].driver()
    target = copy.deepcopy(model)
    train(model, optimizer, 6, lambda model: None)
    by_data(target, model)
    train(model, optimizer, 4, lambda model: None)
    with pytest.raises(regrow.RegrowError, match="`copy` must have the topology of the model"):
        method.follow(target)  # it is what it was before the last move
    by_data(target, model)
    method.follow(target)
    train(model, optimizer, 9, lambda model: None)
    assert all(map(torch.equal, regrow.masks(target).values(), regrow.masks(model).values()))


def test_a_model_trains_beside_more_copies_than_there_are_clocks() -> None:
    model, optimizer = trained("compressed")
    copies: list[nn.Module] = []
    train(model, optimizer, stamp.FINE + 3, lambda model: copies.append(copy.deepcopy(model)))
    assert len(copies) == stamp.FINE + 3


@storages
@pytest.mark.parametrize("rate", [0.1, 0.001])
@pytest.mark.parametrize("buffers", [True, False])
def test_an_average_follows_by_itself_as_it_does_when_asked(storage: str, rate: float, buffers: bool) -> None:
    averages = []
    for asked in (False, True):
        model, optimizer = trained(storage)
        average = AveragedModel(model, avg_fn=get_ema_avg_fn(1 - rate), use_buffers=buffers)
        if asked:
            optimizer._regrow_driver().follow(average)  # type: ignore[attr-defined]
        train(model, optimizer, 40, average.update_parameters)
        average.eval()(torch.randn(2, 20))
        assert regrow.masks(average.module)["0.weight"].equal(regrow.masks(model)["0.weight"])
        averages.append(dense(average))
    for alone, told in zip(*averages, strict=True):
        # masked values show an average only after the first update of the topology
        torch.testing.assert_close(alone, told, atol=0.02 if storage == "masked" else 1e-6, rtol=0)


@storages
def test_an_average_of_everything(storage: str) -> None:
    for settings in ({}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}):
        model, optimizer = trained(storage)
        average = AveragedModel(model, use_buffers=True, **settings)  # type: ignore[arg-type]
        train(model, optimizer, 20, average.update_parameters)
        average(torch.randn(8, 20))
        assert regrow.masks(average.module)["0.weight"].equal(regrow.masks(model)["0.weight"])


@storages
def test_a_copy_that_is_kept_stays_as_it_is(storage: str) -> None:
    model, optimizer = trained(storage)
    train(model, optimizer, 5, lambda model: None)
    kept = copy.deepcopy(model).eval()
    before, parameters = dense(kept), [p.detach().clone() for p in kept.parameters()]
    x = torch.randn(10, 20)
    expected = kept(x)
    train(model, optimizer, 20, lambda model: None)
    assert all(torch.equal(p, q) for p, q in zip(kept.parameters(), parameters, strict=True))
    assert torch.equal(kept(x), expected)
    assert all(torch.equal(a, b) for a, b in zip(dense(kept), before, strict=True))


@storages
def test_a_copy_that_somebody_changes_for_itself_does_not_follow(storage: str) -> None:
    model, optimizer = trained(storage)
    changed = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(0.5)
    before = dense(changed)
    train(model, optimizer, 20, lambda model: None)
    changed(torch.randn(2, 20))
    assert all(torch.equal(a, b) for a, b in zip(dense(changed), before, strict=True))


@storages
def test_a_copy_that_trains_by_itself_does_not_follow(storage: str) -> None:
    model, optimizer = trained(storage)
    student = copy.deepcopy(model)
    masks = regrow.masks(student)
    own = SGD(student.parameters(), lr=0.1)

    def learn(teacher: nn.Module) -> None:
        x = torch.randn(16, 20)
        own.zero_grad()
        F.mse_loss(student(x), teacher(x).detach()).backward()
        own.step()

    train(model, optimizer, 20, learn)
    assert all(torch.equal(regrow.masks(student)[name], mask) for name, mask in masks.items())


def test_values_of_several_topologies_are_refused_however_they_came() -> None:
    model, optimizer = trained("compressed")
    shadow = [p.detach().clone() for p in model.parameters()]  # as torch_ema keeps them

    def average(model: nn.Module) -> None:
        for mine, theirs in zip(shadow, model.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 0.1)

    train(model, optimizer, 12, average)
    for mine, theirs in zip(model.parameters(), shadow, strict=True):
        mine.data.copy_(theirs)
    with pytest.raises(
        regrow.RegrowError, match=r"`0.weight` holds values of another topology(.|\n)*follow\(copy\)"
    ):
        model(torch.randn(8, 20))
    with pytest.raises(regrow.RegrowError, match="holds values of another topology"):
        regrow.save(model, "never-written.safetensors")


@pytest.mark.parametrize("everything", [True, False])
def test_a_soup_of_two_topologies_is_refused(everything: bool) -> None:
    first, second = (
        regrow.sparsify(nn.Sequential(nn.Linear(64, 64)), 0.8, storage="compressed", seed=s) for s in (0, 1)
    )
    other = second.state_dict()
    soup = {
        key: ((value + other[key]) / 2).to(value.dtype) if everything or value.is_floating_point() else value
        for key, value in first.state_dict().items()
    }
    before = copy.deepcopy(first.state_dict())
    with pytest.raises(regrow.RegrowError, match="`0.weight_"):
        first.load_state_dict(soup)
    assert all(torch.equal(value, before[key]) for key, value in first.state_dict().items())


def test_a_soup_of_one_topology_is_taken() -> None:
    first, second = (
        regrow.sparsify(nn.Sequential(nn.Linear(64, 64)), 0.8, storage="compressed") for _ in range(2)
    )
    other = second.state_dict()
    soup = {key: ((v + other[key]) / 2).to(v.dtype) for key, v in first.state_dict().items()}
    expected = (dense(first)[0] + dense(second)[0]) / 2
    first.load_state_dict(soup)
    torch.testing.assert_close(dense(first)[0], expected)


def test_a_stamp_survives_what_optimizers_do_and_is_too_small_to_see() -> None:
    settings = {"lr": 0.1, "weight_decay": 0.1}
    optimizers = (
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adagrad,
        torch.optim.RMSprop,
    )
    for make in optimizers:
        torch.manual_seed(0)
        model = regrow.sparsify(nn.Sequential(nn.Linear(20, 40), nn.Linear(40, 5)), 0.7, storage="compressed")
        optimizer = make(model.parameters(), **settings)  # type: ignore[arg-type]
        for _ in range(30):
            optimizer.zero_grad()
            model(torch.randn(8, 20)).square().sum().backward()
            optimizer.step()
            for weight in sparse_weights(model):
                found = stamp.read(weight.parameter)
                assert found is not None
                assert found.is_of(weight.fingerprint())
        assert float(weight.parameter.detach()[-stamp.SIZE :].norm()) < 1e-6


@storages
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_masks_hold_in_copies_whose_layer_is_never_called(storage: str, how: str) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.layer.weight)

    globals()["Reads"] = Reads  # pickle looks it up by its name
    Reads.__qualname__ = "Reads"
    model: nn.Module = regrow.sparsify(Reads(), 0.8, include="layer", storage=storage)
    if how == "deepcopy":
        model = copy.deepcopy(model)
    elif how == "pickle":
        model = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        model = torch.load(file, weights_only=False)
    (weight,) = sparse_weights(model)
    assert hook_of(weight.parameter) is not None
    optimizer = SGD(model.parameters(), lr=0.1)
    before = weight.to_dense()
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 32)).square().mean().backward()
        optimizer.step()
    assert not torch.equal(weight.to_dense(), before)
    assert torch.equal(weight.to_dense() != 0, weight.mask())
    if storage == "masked":
        assert torch.equal(model.layer.weight != 0, weight.mask())  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_stamp_survives_other_types_and_back(dtype: torch.dtype) -> None:
    model, optimizer = trained("compressed")
    train(model, optimizer, 5, lambda model: None)
    model.to(dtype)
    regrow.masks(model)
    model.float()
    (weight, _) = sparse_weights(model)
    weight.settle(thorough=True)
    found = stamp.read(weight.parameter)
    assert found is not None
    assert found.is_of(weight.fingerprint())
    train(model, optimizer, 5, lambda model: None)


def test_codes_are_exact_in_bfloat16() -> None:
    clock = 0.5
    seen = set()
    for number in (0, 1, -1, 123456789123):
        for part in (*stamp.code_of(number), clock := stamp.tick(clock)):
            assert 0.5 <= part < 1
            assert float(torch.tensor(part, dtype=torch.bfloat16)) == part
        seen.add(stamp.code_of(number))
    assert len(seen) == 4


@storages
@pytest.mark.parametrize("change", [regrow.densify, regrow.fuse, lambda model: model.to(torch.bfloat16)])
def test_a_copy_that_is_made_another_thing_leaves_the_model_alone(storage: str, change: object) -> None:
    model, optimizer = trained(storage)
    copied = copy.deepcopy(model)
    change(copied)  # type: ignore[operator]
    before = [p.detach().clone() for p in copied.parameters()]
    train(model, optimizer, 10, lambda model: None)
    assert all(torch.equal(p, q) for p, q in zip(copied.parameters(), before, strict=True))


@storages
def test_a_copy_of_a_target_network_that_nobody_has_used_since(storage: str) -> None:
    model, optimizer = trained(storage)
    target = copy.deepcopy(model)
    train(model, optimizer, 10, lambda model: None)
    by_data(target, model)
    second = copy.deepcopy(target)
    for copied in (target, second):
        regrow.summary(copied)
        for mine, theirs in zip(dense(copied), dense(model), strict=True):
            assert torch.equal(mine, theirs)


def with_noise(values: Tensor) -> Tensor:
    return values + 1e-3 * torch.randn_like(values)


def by_half(values: Tensor) -> Tensor:
    return values.half().float()


def in_steps(values: Tensor) -> Tensor:
    return (values * 128).round() / 128


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        *((change, torch.float32) for change in (with_noise, by_half, in_steps)),
        *((change, torch.float16) for change in (with_noise, in_steps)),  # by_half is an exact copy
    ],
)
def test_values_that_lost_their_stamp_on_the_way_are_told(change: object, dtype: torch.dtype) -> None:
    model, optimizer = trained("compressed")
    target = copy.deepcopy(model).to(dtype).eval()
    train(model, optimizer, 10, lambda model: None)
    for mine, theirs in zip(target.parameters(), model.parameters(), strict=True):
        mine.data.copy_(change(theirs.data))  # type: ignore[operator]
    with pytest.warns(UserWarning, match=r"of which topology they are cannot be told(.|\n)*method.follow"):
        regrow.summary(target)
    regrow.summary(target)  # once


@pytest.mark.parametrize("change", [with_noise, by_half, in_steps])
def test_values_that_lost_their_stamp_where_it_tells_nothing_are_not(change: object) -> None:
    model, optimizer = trained("compressed")
    kept, population = copy.deepcopy(model), [copy.deepcopy(model) for _ in range(2)]

    def write(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.data.copy_(change(parameter.data))  # type: ignore[operator]

    for member in population:
        write(member)
        regrow.summary(member)
    train(model, optimizer, 10, write)
    regrow.summary(kept)


def test_topologies_are_told_apart_in_bfloat16() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))
    regrow.sparsify(model.bfloat16(), 0.7, storage="compressed")
    optimizer = SGD(model.parameters(), lr=0.1)
    regrow.SET(model, optimizer, total_steps=1000, update_every=1, schedule="constant")
    for step in range(200):
        target = copy.deepcopy(model)
        x = torch.randn(8, 20, dtype=torch.bfloat16)
        F.cross_entropy(model(x), torch.arange(8) % 5).backward()
        optimizer.step()
        by_data(target, model)
        assert torch.equal(target(x), model(x)), step


@pytest.mark.parametrize("decay", [0.03, 0.05])
def test_weight_decay_in_bfloat16_is_no_other_topology(decay: float) -> None:
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(20, 40)).bfloat16(), 0.7, storage="compressed")
    optimizer = SGD(model.parameters(), lr=0.1, weight_decay=decay)
    for _ in range(200):
        model(torch.randn(4, 20, dtype=torch.bfloat16)).square().mean().backward()
        optimizer.step()


@storages
def test_values_taken_back_from_a_copy_leave_no_state_of_other_connections(storage: str) -> None:
    model, optimizer = trained(storage)
    train(model, optimizer, 5, lambda model: None)
    best = copy.deepcopy(model)
    train(model, optimizer, 20, lambda model: None)
    (weight, _), (taken, _) = sparse_weights(model), sparse_weights(best)
    state = optimizer.state[weight.parameter]
    before = torch.zeros(weight.numel)
    before[weight.positions()] = weight.take(state["momentum_buffer"])
    before[(~taken.mask()).view(-1)] = 0
    by_data(model, best)
    model(torch.randn(8, 20)).sum().backward()
    optimizer.param_groups[0].update(weight_decay=0.0)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.zero_()
    with pytest.warns(UserWarning, match="connections of .* that are new start without its state"):
        optimizer.step()
    after = torch.zeros(weight.numel)
    after[weight.positions()] = weight.take(state["momentum_buffer"])
    torch.testing.assert_close(after, 0.9 * before)


@pytest.mark.filterwarnings("ignore:.*written to where it has no connection")
@storages
def test_slow_weights_in_a_copy_do_not_undo_the_moves(storage: str) -> None:
    model, optimizer = trained(storage)
    slow, masks = copy.deepcopy(model), []

    @torch.no_grad()
    def look_ahead(model: nn.Module) -> None:
        masks.append(regrow.masks(model))
        if len(masks) % 3:
            return
        for mine, theirs in zip(slow.parameters(), model.parameters(), strict=True):
            mine.add_(0.5 * (theirs - mine))
            theirs.copy_(mine)
        assert all(mask.equal(masks[-1][name]) for name, mask in regrow.masks(model).items())

    train(model, optimizer, 20, look_ahead)
    assert not masks[0]["0.weight"].equal(masks[-1]["0.weight"])


def test_an_average_of_values_without_stamps_follows() -> None:
    averages = []
    for storage in ("masked", "compressed"):
        model, optimizer = trained(storage)
        average = copy.deepcopy(model).eval()

        @torch.no_grad()
        def shrink(model: nn.Module, average: nn.Module = average) -> None:
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                theirs.copy_(theirs.sign() * (theirs.abs() - 1e-4).clamp(min=0))
                mine.lerp_(theirs, 0.1)
            average(torch.randn(2, 20))

        train(model, optimizer, 20, shrink)
        averages.append(dense(average))
    for mine, theirs in zip(*averages, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_values_of_another_topology_in_a_functional_call_are_refused() -> None:
    model, optimizer = trained("compressed")
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = torch.randn(8, 20)
    assert torch.equal(torch.func.functional_call(model, average, x), model(x))

    def update(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            average[name].lerp_(parameter.detach(), 0.1)

    train(model, optimizer, 10, update)
    with pytest.raises(regrow.RegrowError, match="`0.weight` holds values of another topology"):
        torch.func.functional_call(model, average, x)
    adapted = {name: p - 0.1 * torch.ones_like(p) * (p != 0) for name, p in model.named_parameters()}
    assert torch.func.functional_call(model, adapted, x).isfinite().all()  # somebody's own


@storages
def test_models_that_are_copies_of_one_have_averages_of_their_own(storage: str) -> None:
    first, optimizer = trained(storage)
    second = copy.deepcopy(first)
    own = SGD(second.parameters(), lr=0.02)
    regrow.RigL(second, own, total_steps=1000, update_every=4)
    models = {first: copy.deepcopy(first), second: copy.deepcopy(second)}
    twice = copy.deepcopy(models[first])

    def learn(model: nn.Module) -> None:
        x = torch.randn(16, 20)
        own.zero_grad()
        F.mse_loss(second(x), x[:, :5]).backward()
        own.step()
        with torch.no_grad():
            pairs = [*((average, model) for model, average in models.items()), (twice, models[first])]
            for average, source in pairs:
                for mine, theirs in zip(average.parameters(), source.parameters(), strict=True):
                    mine.lerp_(theirs, 0.1)

    train(first, optimizer, 30, learn)
    for average, model in (*((average, model) for model, average in models.items()), (twice, first)):
        assert regrow.masks(average)["0.weight"].equal(regrow.masks(model)["0.weight"])


@storages
@pytest.mark.parametrize("update", [by_data, by_foreach, by_vector], ids=lambda update: update.__name__)
def test_a_compiled_copy_is_looked_at_in_each_pass(storage: str, update: Update) -> None:
    model, optimizer = trained(storage)
    copied = copy.deepcopy(model).eval()
    compiled = torch.compile(copied, backend="aot_eager")
    x = torch.randn(50, 20)

    for _ in range(2):
        with torch.no_grad():
            compiled(x)
        train(model, optimizer, 10, lambda _: None)  # 2 updates of the topology
        by_parameters_and_buffers(copied, model)
        update(copied, model)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), copy.deepcopy(model).eval()(x))


def test_a_compiled_copy_of_mixed_topologies_is_refused() -> None:
    model, optimizer = trained("compressed")
    copied = copy.deepcopy(model).eval()
    compiled = torch.compile(copied, backend="aot_eager")
    compiled(torch.randn(2, 20))
    train(model, optimizer, 10, lambda _: None)
    with torch.no_grad():
        for mine, theirs in zip(copied.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, 0.5)
    with pytest.raises(RuntimeError, match="holds values of another topology than its own, or of several"):
        compiled(torch.randn(2, 20))
