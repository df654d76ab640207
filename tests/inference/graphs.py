"""Graphs written by hand, for tests of what is done with them."""

import torch
from torch import Tensor

from regrow.inference.gaps import column_dtype
from regrow.inference.graph import Connections, Graph, Node, Ref


def connections(weight: Tensor, dtype: torch.dtype = torch.float32) -> Connections:
    """The non-zero positions of a dense weight, one at a time, with values of `dtype`."""
    matrix = weight.flatten(1)
    crow, col, values = [0], [], []
    for row in matrix:
        at = row.nonzero().flatten()
        col.append(at)
        values.append(row[at])
        crow.append(crow[-1] + len(at))
    scale = None
    if dtype == torch.int8:
        scale = torch.stack([row.abs().max() for row in matrix]) / 127
        values = [(v / s).round() for v, s in zip(values, scale, strict=True)]
    return Connections(
        tuple(weight.shape),
        torch.tensor(crow, dtype=torch.int32),
        torch.cat(col).to(column_dtype(matrix.shape[1])),
        torch.cat(values).to(dtype),
        scale,
    )


def sparse(*shape: int, density: float = 0.1, seed: int = 0) -> Tensor:
    """A weight that is mostly zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return weight * (torch.rand(shape, generator=generator) < density)


def small(precision: str = "float32") -> Graph:
    """A convolution of connections, pooling, a dense linear layer: most kinds of arguments are in it."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[precision]
    nodes = [
        Node(
            "conv",
            "regrow.conv2d",
            (Ref("x"), Ref("conv.weight"), Ref("conv.bias"), (1, 1), (1, 1), (1, 1), 1, None, "relu"),
            {"input_scale": 0.03, "input_signed": True} if precision == "int8" else {},
            layer="conv",
        ),
        Node("pool", "aten.mean.dim", (Ref("conv"), [2, 3]), {"dtype": torch.float32}, layer="pool"),
        Node("low", "aten.clamp.default", (Ref("pool"), float("-inf"), 1e9)),
        Node("fc", "regrow.linear", (Ref("low"), Ref("fc.weight"), None, None, None), layer="fc"),
    ]
    return Graph(
        inputs=[Ref("x")],
        outputs=[Ref("fc")],
        nodes=nodes,
        constants={"conv.bias": torch.arange(8.0)},
        weights={
            "conv.weight": connections(sparse(8, 3, 3, 3, density=0.5), dtype),
            "fc.weight": torch.ones(4, 8),
        },
        shapes=[(2, 3, 9, 9)],
        dtypes=[torch.float32],
        signature={"tuple": [{"tuple": [{"tensor": 0}]}, {"dict": {}}]},
        structure={"dict": {"logits": {"tensor": 0}, "kind": {"value": None}}},
        precision=precision,
    )
