"""Save a trained network, load it sparse, fold its norms, and export it dense to ONNX."""

import torch
from torch import nn

import regrow


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 10))


def main() -> None:
    torch.manual_seed(0)
    trained = regrow.sparsify(network(), sparsity=0.95).eval()  # trained, in your case
    example = torch.randn(8, 784)
    wanted = trained(example)
    regrow.save(trained, "model.safetensors")  # the connections, not the zeros

    # on a CPU with regrow installed: the connections alone, batch norms folded into the layers before them
    fast = regrow.fold(regrow.load("model.safetensors", into=network()))
    with torch.inference_mode():
        torch.testing.assert_close(fast(example), wanted, rtol=1e-4, atol=1e-5)

    # for everything else: a dense network with zeros, and without the units that nothing reaches
    dense = regrow.densify(regrow.load("model.safetensors", into=network())).eval()
    torch.testing.assert_close(regrow.compact(trained)(example), wanted, rtol=1e-4, atol=1e-5)
    torch.onnx.export(dense, (example,), "model.onnx", dynamo=True, verbose=False)
    torch.export.save(torch.export.export(dense, (example,)), "model.pt2")


if __name__ == "__main__":
    main()
