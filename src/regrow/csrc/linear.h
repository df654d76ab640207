// What the kernels of linear layers are given.
#pragma once

#include <cstdint>

namespace regrow {

enum class Activation : int64_t { none = 0, relu = 1, gelu = 2, silu = 3 };

// In float64; the kernels have their own for float32.
double gelu(double x), gelu_derivative(double x), silu(double x), silu_derivative(double x);

// Activations [features, batch], batch innermost, in tiles of some batch elements: feature f of tile t starts at
// data + t * tile_stride + f * row_stride, aligned to a vector; the last vector of a tile may hold anything past the batch.
template <class T>
struct Operand {
    T* data;
    int64_t row_stride;
    int64_t tile_stride;
};

// y = activation(W x + bias) for some rows of one tile.
template <class T>
struct Forward {
    const int32_t* crow; // [rows + 1]
    const int32_t* col;
    const T* values;
    const int32_t* order; // where in `values` each connection's value is, or null: in its own place
    const T* bias;        // [rows] or null
    Operand<const T> x;
    Operand<T> y;
    Operand<T> sum; // what goes into the activation; null: not wanted
    int64_t columns;
    int64_t block; // columns at a time
    int64_t chunk; // rows at a time: their outputs stay in a cache while the blocks pass
    int64_t batch;
    Activation activation;
};

// Gradients of the input and of the values, by the transposed index, for some columns.
template <class T>
struct Backward {
    const int32_t* crow_t; // [columns + 1]
    const int32_t* row_t;
    const int32_t* order; // where in `values` and `values_gradient` each connection is, or null: in its own place
    const T* values;
    Operand<const T> x;
    Operand<const T> gradient; // of the output
    Operand<T> input_gradient; // null: not wanted
    T* values_gradient;
    int64_t rows;
    int64_t block; // rows at a time
    int64_t batch;
    bool dense; // a row's values follow one another soon enough to fetch them early
};

// The gradient of the output before the activation, and of the bias.
template <class T>
struct Finish {
    const T* gradient; // [features, row_stride], as all of these
    const T* kept;     // the output of a ReLU, or what went into another activation; null where there is none
    T* out;            // may be `gradient`; null where `kept` is
    T* bias;           // [features] or null
    int64_t gradient_stride, kept_stride, out_stride;
    int64_t batch;
    bool add; // to `bias`
    Activation activation;
};

// Activations in torch's own layout, [batch, features], and as the kernels want them: to[f * stride + b], zeros up to the
// stride.
template <class T>
struct Laying {
    const T* from;
    int64_t batch_stride;
    T* to;
    int64_t stride;
    int64_t batch;
};

} // namespace regrow
