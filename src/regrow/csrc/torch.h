// libtorch's stable ABI, and short names for what we use of it.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <stdexcept>
#include <string>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

// torch has had it since 2.13; null in one that is older.
extern "C" AOTI_TORCH_EXPORT __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace regrow {
// What torch says of a call of its C interface that has failed, which its own check leaves out.
[[noreturn]] inline void throw_error_of_torch(const char* call) {
    const char* const what =
        torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : nullptr;
    throw std::runtime_error(what && *what ? what : std::string("torch failed, for lack of memory perhaps, in ") + call);
}
} // namespace regrow
#undef TORCH_ERROR_CODE_CHECK
#define TORCH_ERROR_CODE_CHECK(call) \
    if ((call) != 0) { regrow::throw_error_of_torch(#call); }

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK // what torch 2.10 calls it
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace regrow {

using torch::headeronly::BFloat16;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// As torch's. What a thread throws is thrown here: torch's interface between would leave its message out.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
    std::exception_ptr thrown;
    std::atomic_flag any = ATOMIC_FLAG_INIT;
    torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
        try {
            f(first, last);
        } catch (...) {
            if (!any.test_and_set()) thrown = std::current_exception();
        }
    });
    if (thrown) std::rethrow_exception(thrown);
}

template <class T> constexpr ScalarType TYPE = ScalarType::Float;
template <> constexpr ScalarType TYPE<double> = ScalarType::Double;

template <class T = int32_t>
const T* read(const Tensor& t) {
    return static_cast<const T*>(t.const_data_ptr());
}
template <class T = int32_t>
T* write(const Tensor& t) {
    return static_cast<T*>(t.mutable_data_ptr());
}

// As torch's C interface calls it.
inline int32_t code_of(ScalarType type) { return torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)); }

constexpr size_t DIMENSIONS = 5; // of a tensor that is made here, at most

// The distances of neighbours in each dimension of a contiguous tensor.
inline std::array<int64_t, DIMENSIONS> contiguous_strides(std::initializer_list<int64_t> shape) {
    std::array<int64_t, DIMENSIONS> strides{};
    int64_t stride = 1;
    for (size_t d = shape.size(); d-- > 0; stride *= std::max<int64_t>(shape.begin()[d], 1)) strides.at(d) = stride;
    return strides;
}

// A new tensor like `like`, of another shape, uninitialised. Not by the dispatcher, which takes longer than a small kernel.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
    int32_t device, index;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
    AtenTensorHandle made;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        int64_t(shape.size()), shape.begin(), contiguous_strides(shape).data(), code_of(type), device, index, &made));
    return Tensor(made);
}

// The same memory as a matrix of other sizes and strides.
inline Tensor as_matrix(const Tensor& memory, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
    const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
    AtenTensorHandle made;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(memory.get(), 2, sizes, strides, 0, &made));
    return Tensor(made);
}

inline void check_index(const Tensor& index, int64_t least, const char* name) {
    STD_TORCH_CHECK(index.scalar_type() == ScalarType::Int && index.dim() == 1 && index.is_contiguous() && index.is_cpu() &&
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
// A vector, or a matrix of one column, of the dtype of `like`.
inline void check_vector(const Tensor& t, int64_t least, const Tensor& like, const char* name) {
    STD_TORCH_CHECK(t.is_cpu() && t.numel() >= least && t.dim() > 0 && t.size(0) == t.numel(), "`", name,
                    "` must hold at least ", least, " numbers, in one column on the CPU, got ", t.numel());
    STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), "`", name, "` must be of the input's dtype");
}

} // namespace regrow
