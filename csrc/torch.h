// libtorch's stable ABI, and short names for what we use of it.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>

namespace regrow {

using torch::headeronly::BFloat16;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T> constexpr ScalarType TYPE = ScalarType::Float;
template <> constexpr ScalarType TYPE<double> = ScalarType::Double;

template <class T = int32_t>
const T* read(const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); }
template <class T = int32_t>
T* write(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }

// A new tensor like `like`, of another shape, uninitialised.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
    return torch::stable::new_empty(like, {shape.begin(), shape.size()}, type);
}

inline void check_index(const Tensor& index, int64_t least, const char* name) {
    STD_TORCH_CHECK(
        index.scalar_type() == ScalarType::Int && index.dim() == 1 && index.is_contiguous() && index.is_cpu() &&
            index.numel() >= least,
        "`", name, "` must be a contiguous int32 vector on the CPU of at least ", least, " entries");
}

inline void check_positions(const Tensor& positions, const char* name) {
    STD_TORCH_CHECK(positions.scalar_type() == ScalarType::Long && positions.dim() == 1 && positions.is_contiguous() &&
                        positions.is_cpu(),
                    "`", name, "` must be a contiguous int64 vector on the CPU");
}

// Row pointers; returns the number of connections.
inline int64_t check_pointers(const Tensor& crow, int64_t rows, const char* name) {
    check_index(crow, rows + 1, name);
    const int32_t* const c = read(crow);
    STD_TORCH_CHECK(crow.numel() == rows + 1 && c[0] == 0 && c[rows] >= 0, "`", name, "` must be of shape [", rows + 1,
                    "] and start at 0");
    return c[rows];
}
inline void check_vector(const Tensor& t, int64_t least, const char* name) {
    STD_TORCH_CHECK(t.is_cpu() && t.numel() >= least, "`", name, "` must hold at least ", least, " numbers, on the CPU, got ",
                    t.numel());
}

} // namespace regrow
