"""Package a deployed network for C++: main.cpp beside this file runs it without Python."""

import torch
from torch import nn

import regrow


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 10))


def main() -> None:
    torch.manual_seed(0)
    trained = regrow.sparsify(network(), sparsity=0.95).eval()  # trained, in your case
    example = torch.arange(784).view(1, 784) / 784
    deployed = regrow.deploy(trained, example)
    program = torch.export.export(deployed, (example,))  # for this batch size
    torch._inductor.aoti_compile_and_package(program, package_path="network.pt2")
    torch.save(deployed(example), "wanted.pt")
    print(regrow.Deployed.library())


if __name__ == "__main__":
    main()
