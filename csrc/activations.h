// Activations [batch, features] as kernels want them: batch innermost, features aligned to 64 bytes.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "torch.h"

namespace regrow {

constexpr int64_t ROUND = 16; // elements of a batch that are stored together

inline int64_t rounded(int64_t batch) { return (batch + ROUND - 1) / ROUND * ROUND; }

// The distance of two features in what operators return: whole lines, but for small batches.
inline int64_t stride_of(int64_t batch) { return batch < ROUND ? batch : rounded(batch); }

// How activations are cut into tiles of so many batch elements. `split`: each tile is copied together first, since
// features far apart in memory fall upon the same few lines of the caches; worth it where each is read often.
struct Tiles {
    int64_t size;
    bool split;
    int64_t stride(int64_t batch) const { return split ? std::min(rounded(batch), size) : rounded(batch); }
    int64_t parts(int64_t batch) const { return split ? (batch + size - 1) / size : batch > 0; } // in memory
};

// An input of an operator, read in place where its layout allows it, else through a copy.
template <class T>
class Input {
public:
    // fresh: take a copy in any case
    Input(const Tensor& given, Tiles tiles, bool fresh = false);
    const T* data() const { return data_; }
    T* copy() const { return const_cast<T*>(data_); } // where there is one
    int64_t stride() const { return stride_; }
    int64_t tile_stride() const { return tile_stride_; }
    const Tensor& tensor() const { return tensor_; } // [parts, features, stride] where there is a copy
    Operand<const T> operand() const { return {data_, stride_, tile_stride_}; }

private:
    Tensor tensor_;
    const T* data_;
    int64_t stride_, tile_stride_ = 0;
};

// An output of an operator: written in place where type and batch allow it, else through a copy.
template <class T>
class Output {
public:
    Output(const Tensor& like, int64_t batch, int64_t features, Tiles tiles);
    Operand<T> operand() const { return {write<T>(buffer_), stride_, tile_stride_}; }
    Tensor finish() const; // [batch, features]

private:
    Tensor result_, buffer_;
    int64_t batch_, features_, stride_, tile_stride_;
    bool direct_;
};

// The tensor as type T, contiguous: itself, or a copy.
template <class T>
Tensor as(const Tensor& given) {
    if (given.scalar_type() == TYPE<T> && given.is_contiguous()) return given;
    return torch::stable::contiguous(torch::stable::to(given, TYPE<T>));
}

// Whether the kernels compute in float64; there are none for a type but these.
inline bool is_double(const Tensor& t) {
    const ScalarType type = t.scalar_type();
    STD_TORCH_CHECK(
        type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16,
        "kernels are for float32, float64 and bfloat16");
    return type == ScalarType::Double;
}

// Ranges [first(p), first(p + 1)) of rows of a CSR matrix that take about the same time.
class Parts {
public:
    Parts(const int32_t* crow, int64_t rows, int64_t most, int64_t batch);
    int64_t count() const { return count_; }
    int64_t first(int64_t part) const;

private:
    static constexpr int64_t ROW = 4; // the time a row takes beside its connections, in connections
    const int32_t* crow_;
    int64_t rows_, count_;
};

} // namespace regrow
