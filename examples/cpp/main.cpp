// Runs a deployed network without Python: a package of AOTInductor, and the kernels of regrow.
//
//   TORCH=$(python -c 'import torch; print(torch.__path__[0])')
//   g++ -std=c++20 main.cpp -o run -I$TORCH/include -I$TORCH/include/torch/csrc/api/include \
//       -L$TORCH/lib -Wl,-rpath,$TORCH/lib -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10 -ldl
//   ./run network.pt2 KERNELS 1 784
//
// where `package.py` has written network.pt2 and printed KERNELS, and the other arguments are the input's shape.
#include <dlfcn.h>

#include <iostream>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

int main(int count, char** arguments) {
    if (count < 4) {
        std::cerr << "usage: run PACKAGE KERNELS SIZE...\n";
        return 2;
    }
    if (dlopen(arguments[2], RTLD_NOW | RTLD_GLOBAL) == nullptr) { // which registers its operators with torch
        std::cerr << dlerror() << "\n";
        return 1;
    }
    std::vector<int64_t> shape;
    for (int i = 3; i < count; i++) shape.push_back(std::stoll(arguments[i]));

    const c10::InferenceMode no_gradients;
    torch::inductor::AOTIModelPackageLoader network(arguments[1]);
    int64_t numbers = 1;
    for (const int64_t side : shape) numbers *= side;
    const at::Tensor input = at::arange(numbers).to(at::kFloat).div(numbers).view(shape);
    for (const at::Tensor& output : network.run({input})) {
        const at::Tensor values = output.contiguous().view(-1);
        for (int64_t i = 0; i < values.numel(); i++) std::cout << values[i].item<float>() << "\n";
    }
}
