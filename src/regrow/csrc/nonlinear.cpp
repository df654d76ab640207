// Activations and their derivatives in float64.
#include <cmath>

#include "kernels.h"

namespace regrow {
namespace {
double normal_share(double x) { return 0.5 * (1 + std::erf(x * 0.70710678118654752)); }
} // namespace

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double tangent(double x) { return std::tanh(x); }

double gelu(double x) { return x * normal_share(x); }
double silu(double x) { return x * sigmoid(x); }
double gelu_derivative(double x) { return normal_share(x) + x * 0.39894228040143268 * std::exp(-0.5 * x * x); }
double silu_derivative(double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }

} // namespace regrow
