import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import regrow
from regrow.measure.landscape import Curve, barrier, bezier, profile

A, B, C, D = (
    torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(4)
)
TS = (0.0, 0.125, 0.5, 0.9, 1.0)


@pytest.mark.parametrize("t", TS)
def test_formulas(t):
    """rigl-family 12 K."""
    torch.testing.assert_close(bezier([A, B], t), (1 - t) * A + t * B)
    torch.testing.assert_close(bezier([A, C, B], t), (1 - t) ** 2 * A + 2 * t * (1 - t) * C + t**2 * B)
    cubic = (1 - t) ** 3 * A + 3 * (1 - t) ** 2 * t * C + 3 * (1 - t) * t**2 * D + t**3 * B
    torch.testing.assert_close(bezier([A, C, D, B], t), cubic)
    torch.testing.assert_close(bezier([A, (A + B) / 2, B], t), bezier([A, B], t))


def test_ends_are_exact():
    for points in ([A, B], [A, C, B], [A, C, D, B]):
        assert torch.equal(bezier(points, 0.0), A)
        assert torch.equal(bezier(points, 1.0), B)


def pair(storages=("masked", "compressed")):
    models = []
    for seed, storage in enumerate(storages):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
        models.append(regrow.sparsify(model, include="0", sparsity=0.8, storage=storage, seed=seed))
    return models


@pytest.fixture(scope="module")
def data():
    x = torch.randn(60, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return [(x[i : i + 20], x[i : i + 20, :3].argmax(1)) for i in range(0, 60, 20)]


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("storages", [("masked", "masked"), ("masked", "compressed")])
def test_an_untrained_curve_is_the_straight_line_between_the_models(degree, storages, data):
    start, end = pair(storages)
    curve = Curve(start, end, degree=degree)
    x = data[0][0]
    torch.testing.assert_close(curve(x, t=0.0), start(x))
    torch.testing.assert_close(curve(x, t=1.0), end(x))
    torch.testing.assert_close(curve.at(0.25)["2.weight"], 0.75 * start[2].weight + 0.25 * end[2].weight)
    torch.testing.assert_close(curve.model(0.25)(x), curve(x, t=0.25))
    assert len(list(curve.parameters())) == 4 * (degree - 1)  # of the inner points alone


def train(curve, data, steps=40):
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(curve.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        x, y = data[step % len(data)]
        optimizer.zero_grad()
        F.cross_entropy(curve(x), y).backward()
        optimizer.step()
    return curve


def test_inner_points_stay_in_the_space_of_both_topologies(data):
    start, end = pair()
    union = regrow.masks(start)["0.weight"] | regrow.masks(end)["0.weight"]
    assert not union.all()
    before = copy.deepcopy(start.state_dict())
    for degree in (2, 3):
        curve = train(Curve(start, end, degree=degree), data)
        for point in curve.points(0)[1:-1]:
            assert (point[~union] == 0).all()
            assert (point[union] != 0).any()
        assert curve.at(0.3)["0.weight"][~union].abs().sum() == 0
        assert torch.equal(curve.at(0.0)["0.weight"], curve.points(0)[0])
    dense = train(Curve(start, end, degree=2, space="dense"), data)
    assert (dense.points(0)[1][~union] != 0).any()
    assert all(torch.equal(start.state_dict()[name], value) for name, value in before.items())


def test_training_lowers_the_loss_along_the_curve_and_leaves_the_ends(data):
    start, end = pair()
    line = profile(Curve(start, end), F.cross_entropy, data, points=9)
    curve = train(Curve(start, end, degree=2, space="dense"), data, steps=200)
    along = profile(curve, F.cross_entropy, data, points=9)
    assert [t for t, _ in along] == [k / 8 for k in range(9)]
    assert along[4][1] < line[4][1]
    assert along[0] == line[0]
    assert along[-1] == line[-1]
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    with torch.no_grad():
        assert along[0][1] == pytest.approx(float(F.cross_entropy(start(x), y)))


def test_statistics_of_batch_norm_are_estimated_anew(data):
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
        for x, _ in data:
            model(3 * x)  # statistics of other data
        models.append(model)
    curve = Curve(*models, degree=2)
    stale = profile(curve, F.cross_entropy, data, points=3)
    fresh = profile(curve, F.cross_entropy, data, points=3, norm_batches=data)
    assert all(abs(a - b) > 1e-6 for (_, a), (_, b) in zip(stale, fresh, strict=True))
    assert fresh == profile(curve, F.cross_entropy, data, points=3, norm_batches=data)
    train(curve, data, steps=5)  # in training mode the norms see the batch
    assert int(models[0][1].num_batches_tracked) == 3


def test_barrier():
    assert barrier([(0.0, 1.0), (0.5, 3.0), (1.0, 2.0)]) == 1.0
    assert barrier([(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)]) == 0.0


def test_bad_input(data):
    start, end = pair()
    other = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    with pytest.raises(
        ValueError, match=r"`end` must be of the architecture of `start`, but `0.bias` is \(8,\) at"
    ):
        Curve(start, other)
    with pytest.raises(ValueError, match="but `2.bias` is absent at the start"):
        Curve(nn.Sequential(nn.Linear(6, 8)), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    with pytest.raises(ValueError, match="`degree` must be 1, 2 or 3, got 4"):
        Curve(start, end, degree=4)
    with pytest.raises(ValueError, match="`degree` must be a whole number of at least 1, got 0"):
        Curve(start, end, degree=0)
    with pytest.raises(
        ValueError, match="`space` must be one of union, dense, got 'dens', did you mean `dense`?"
    ):
        Curve(start, end, space="dens")
    with pytest.raises(ValueError, match="`points` must be at least 2, for both ends, got 1"):
        profile(Curve(start, end), F.cross_entropy, data, points=1)
    with pytest.raises(ValueError, match="`batches` holds nothing at this point of the curve\nGive a list"):
        profile(Curve(start, end), F.cross_entropy, iter(data))
