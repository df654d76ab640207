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

// What lies in `memory` feature by feature, as [batch, features].
inline Tensor batch_first(const Tensor& memory, int64_t batch, int64_t features, int64_t stride) {
    return as_matrix(memory, batch, features, 1, std::max<int64_t>(stride, 1));
}

// How activations are cut into tiles of so many batch elements. `split`: each tile is copied together first, since
// features far apart in memory fall upon the same few lines of the caches; worth it where each is read often.
struct Tiles {
    int64_t size;
    bool split;
    int64_t stride(int64_t batch) const { return split ? std::min(rounded(batch), size) : rounded(batch); }
    int64_t parts(int64_t batch) const { return split ? (batch + size - 1) / size : batch > 0; } // in memory
};

// How an input is read: in place where its layout allows it and else from a copy, from one that `fill` is yet to make,
// or from a copy in any case.
enum class Reading { any, filled_later, copy };

// An input of an operator.
template <class T>
class Input {
public:
    Input(const Tensor& given, Tiles tiles, Reading reading = Reading::any);
    bool copied() const { return copy_ != nullptr; }
    void fill(int64_t begin, int64_t end) const; // these features of the copy
    Operand<const T> operand() const { return {data_, stride_, tile_stride_}; }
    Operand<T> copy() const { return {copy_, stride_, tile_stride_}; } // where there is one
    const Tensor& tensor() const { return tensor_; } // [parts, features, stride] where there is a copy

private:
    Tensor given_, tensor_;
    const T* data_;
    T* copy_ = nullptr;
    int64_t stride_, tile_stride_;
};

constexpr int64_t GROUP = 16; // features that are copied together

// f(begin, end) for all features, in groups, threaded.
template <class F>
void for_groups(int64_t features, int64_t batch, const F& f) {
    const int64_t groups = (features + GROUP - 1) / GROUP;
    parallel_for(0, groups, 1 + (1 << 14) / (GROUP * batch + 1), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) f(i * GROUP, std::min(i * GROUP + GROUP, features));
    });
}

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
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16,
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
