import pytest
import torch
from torch import nn
from torch.nn import functional as F

import regrow
from regrow.accounting import stored_size
from regrow.models import lenet, mlp
from regrow.rewrite.compact import Pick, compact

pytestmark = pytest.mark.filterwarnings("ignore:`rescale` is not given")  # nothing is trained here


def same(model, smaller, x):
    model.eval(), smaller.eval()
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), model(x), rtol=1e-9, atol=1e-12)


def trained(model, x):
    """Norms with statistics, and biases, that are not those of a fresh model."""
    torch.manual_seed(3)
    for _ in range(3):
        model(x)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.5 * torch.randn_like(parameter))
            assert name
    return model


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_mlp_keeps_its_outputs_and_its_connections(storage):
    torch.manual_seed(0)
    model = mlp().double()
    regrow.sparsify(model, distribution={"layers.0": 0.995, "layers.2": 0.99}, storage=storage)
    x = torch.randn(7, 1, 28, 28, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smaller = compact(model)
    same(model, smaller, x)
    widths = [smaller.layers[i].out_features for i in (0, 2, 4)]
    assert widths[0] < 300
    assert widths[1] < 100
    assert widths[2] == 10
    assert [w.storage for w in regrow.weights.sparse_weights(smaller)] == [storage] * 2
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    # every unit that is left is reached and reaches something
    masks = regrow.masks(smaller)
    assert masks["layers.0.weight"].any(1).all()
    assert masks["layers.2.weight"].any(0).all()
    assert masks["layers.2.weight"].any(1).all()


def test_by_hand():
    """Unit 0 reaches nothing; nothing reaches unit 1, a constant relu(2) = 2; unit 2 stays."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        model[0].bias.copy_(torch.tensor([0.5, 2.0, -1.0]))
        model[2].weight.copy_(torch.tensor([[7.0, 8.0, 9.0], [1.0, 10.0, 11.0]]))
        model[2].bias.copy_(torch.tensor([0.0, 1.0]))
    masks = {
        "0.weight": torch.tensor([[True, True], [False, False], [True, False]]),
        "2.weight": torch.tensor([[False, True, True], [False, False, True]]),
    }
    regrow.sparsify(model, init=masks)
    smaller = compact(model)
    assert smaller[0].weight.tolist() == [[5.0, 0.0]]
    assert smaller[0].bias.tolist() == [-1.0]
    assert smaller[2].weight.tolist() == [[9.0], [11.0]]
    assert smaller[2].bias.tolist() == [16.0, 1.0]
    assert regrow.masks(smaller)["0.weight"].tolist() == [[True, False]]


def test_a_bias_appears_where_a_constant_has_to_go():
    model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2, bias=False)).double()
    masks = {"0.weight": torch.ones(3, 4, dtype=torch.bool)}
    masks["0.weight"][1] = False
    regrow.sparsify(model, include="0", init=masks)
    smaller = compact(model)
    assert smaller[0].out_features == 2
    same(model, smaller, torch.randn(5, 4, dtype=torch.float64))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3),
        nn.BatchNorm2d(16),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64, 20),
        nn.BatchNorm1d(20),
        nn.Tanh(),
        nn.Linear(20, 5),
    ).double()


def test_convolutions_with_batch_norm_pooling_and_flatten():
    torch.manual_seed(0)
    model = convolutional()
    levels = {"0": 0.9, "4": 0.985, "10": 0.985, "13": 0.8}
    regrow.sparsify(model, distribution=levels)
    x = torch.randn(9, 1, 14, 14, dtype=torch.float64)
    trained(model, x)
    smaller = compact(model)
    assert smaller[0].out_channels < 12
    assert smaller[1].num_features == smaller[0].out_channels
    assert smaller[4].out_channels < 16
    assert smaller[10].in_features == 4 * smaller[4].out_channels
    assert smaller[10].out_features < 20
    same(model, smaller, x)


def test_padding_keeps_a_channel_whose_constant_is_not_zero():
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1)).double()
    masks = {"0.weight": torch.ones(3, 1, 3, 3, dtype=torch.bool)}
    masks["0.weight"][:2] = False
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([1.0, -1.0, 0.0]))  # after ReLU 1, 0, 0
    regrow.sparsify(model, include="0", init=masks)
    smaller = compact(model)
    assert smaller[0].out_channels == 2
    same(model, smaller, torch.randn(2, 1, 6, 6, dtype=torch.float64))


def test_a_forward_of_functions():
    torch.manual_seed(1)
    model = lenet().double()
    regrow.sparsify(model, distribution={"conv1": 0.9, "conv2": 0.99, "fc1": 0.999, "fc2": 0.9})
    trained(model, torch.randn(2, 1, 28, 28, dtype=torch.float64))
    smaller = compact(model)
    assert smaller.fc1.out_features < 500
    same(model, smaller, torch.randn(3, 1, 28, 28, dtype=torch.float64))


def test_the_result_is_sparse_trainable_and_not_to_be_made_smaller():
    torch.manual_seed(0)
    smaller = compact(regrow.sparsify(mlp(), distribution={"layers.0": 0.995, "layers.2": 0.9}))
    assert [smaller.layers[i].out_features for i in (0, 2)] == [
        compact(smaller).layers[i].out_features for i in (0, 2)
    ]
    optimizer = torch.optim.SGD(smaller.parameters(), lr=0.1)
    method = regrow.RigL(smaller, optimizer, total_steps=10, update_every=2)
    count = {name: int(mask.sum()) for name, mask in regrow.masks(smaller).items()}
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(smaller(torch.randn(4, 784)), torch.arange(4)).backward()
        optimizer.step()
    assert method.step == 6
    assert count == {name: int(mask.sum()) for name, mask in regrow.masks(smaller).items()}


def test_inputs_that_reach_nothing():
    torch.manual_seed(0)
    model = mlp().double()
    regrow.sparsify(model, distribution={"layers.0": 0.998, "layers.2": 0.95})
    smaller = compact(model, inputs=True)
    pick, first = smaller.layers[0]
    assert isinstance(pick, Pick)
    assert first.in_features == len(pick.indices) < 784
    assert regrow.masks(smaller)["layers.0.1.weight"].any(0).all()
    same(model, smaller, torch.randn(6, 1, 28, 28, dtype=torch.float64))


def test_a_layer_keeps_one_unit():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    masks = {"0.weight": torch.zeros(3, 2, dtype=torch.bool), "2.weight": torch.zeros(3, 3, dtype=torch.bool)}
    masks["0.weight"][0, 0] = True
    masks["2.weight"][0, 2] = True  # unit 2 of the first layer, which nothing reaches
    regrow.sparsify(model, include=["0", "2"], init=masks)
    smaller = compact(model)
    assert [smaller[i].out_features for i in (0, 2, 4)] == [1, 1, 2]
    same(model, smaller, torch.randn(4, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("widths", "size"),
    [((245, 160, 55), 195100), ((266, 88, 33), 107092), ((97, 71, 33), 38696)],
)
def test_bytes_of_the_mnist_table_dense(widths, size):
    """4 bytes a connection and a bias of each unit (rigl-family 1.6, derived; exact)."""
    model = mlp(widths[0], widths[1:])
    assert round(1e6 * stored_size(model, {})) == size


@pytest.mark.parametrize(
    ("widths", "connections", "size"), [((408, 100, 69), 6309, 31914), ((375, 62, 51), 3080, 16113)]
)
def test_bytes_of_the_mnist_table_sparse(widths, connections, size):
    """And one bit a position of the two sparse layers; the table rounds down."""
    model = mlp(widths[0], widths[1:])
    dense = widths[2] * 10
    first = (connections - dense) * 2 // 3
    counts = {"layers.0.weight": first, "layers.2.weight": connections - dense - first}
    masks = {}
    for name, count in counts.items():
        shape = model.get_parameter(name).shape
        masks[name] = (torch.arange(shape.numel()) < count).view(shape)
    regrow.sparsify(model, include=list(masks), init=masks)
    costs = regrow.costs(model, torch.zeros(1, widths[0]))
    assert int(1e6 * costs.size_megabytes["sparse"] + 1e-6) == size


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x)
        return self.last(x + torch.relu(self.second(x)))


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.relu(self.layer(x)))


def sequence(*between):
    return nn.Sequential(nn.Linear(4, 6), *between, nn.Linear(6, 2))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Residual(), "`model`: `first` is read by 2 others, so its units cannot be cut"),
        (Branch(), "`model`: torch.fx cannot follow the forward of Branch: .*\nWrite it as a chain"),
        (Twice(), "`model`: `layer` is used twice, so its units cannot be cut"),
        (
            sequence(nn.LayerNorm(6)),
            "`model`: `1` is nothing that can be followed: linear layers, convolutions",
        ),
        (sequence(nn.Softmax(1)), "`model`: `1` is nothing that can be followed"),
        (
            sequence(nn.BatchNorm1d(6, track_running_stats=False)),
            "`model`: `1` is nothing that can be followed",
        ),
        (
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 3)),
            "`model`: `1` is a grouped convolution",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.AvgPool2d(3, padding=1), nn.Conv2d(4, 2, 3)),
            "`model`: `1` is nothing that can be followed: .*pooling without padding",
        ),
        (nn.Sequential(nn.ReLU()), "`model` has no linear layer or convolution"),
        (
            nn.Sequential(nn.Linear(4, 6), nn.Linear(12, 2)),
            "`model`: `1` reads 12 features, which do not belong",
        ),
    ],
)
def test_what_is_no_chain_is_named(model, text):
    with pytest.raises(ValueError, match=f"(?s){text}"):
        compact(model)


def test_inputs_of_a_convolution_cannot_be_cut():
    with pytest.raises(ValueError, match="`inputs` is True, but the first layer `0` is not a linear layer"):
        compact(convolutional(), inputs=True)
