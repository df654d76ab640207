"""Deploy a trained network: as a file of regrow, for torch without its code, and dense as ONNX."""

import copy

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

    # on a CPU with regrow installed: the connections alone, batch norms folded into the layers before them
    regrow.deploy(trained, example).save("deployed.safetensors")
    deployed = regrow.Deployed.load("deployed.safetensors")  # needs nothing of this file
    torch.testing.assert_close(deployed(example), wanted, rtol=1e-4, atol=1e-5)

    # for everything else: a dense network with zeros, and without the units that nothing reaches
    dense = regrow.densify(copy.deepcopy(trained))
    torch.testing.assert_close(regrow.compact(trained)(example), wanted, rtol=1e-4, atol=1e-5)
    torch.onnx.export(dense, (example,), "model.onnx", dynamo=True, verbose=False)
    torch.export.save(torch.export.export(dense, (example,)), "model.pt2")


if __name__ == "__main__":
    main()
