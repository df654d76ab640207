// What stands around the backward sweep of a linear layer: the gradient that goes into it, and where each thread puts
// the gradient of the values.
#pragma once

#include <optional>
#include <type_traits>
#include <vector>

#include "layout.h"

namespace regrow {

// The gradient of the output before its activation; the bias's, where `bias` is not null, is written there. All in one
// pass over what autograd has given, which stays as it is.
template <class T>
class BeforeActivation {
public:
    BeforeActivation(const Tensor& given, const std::optional<Tensor>& kept, Tiles cut, Activation activation, T* bias)
        : given_(given, cut, Reading::filled_later), out_(given_.copy()) {
        const int64_t batch = given.size(0), rows = given.size(1);
        const std::optional<Input<T>> y = kept ? std::optional<Input<T>>(std::in_place, *kept, cut) : std::nullopt;
        if (kept && !given_.copied()) {
            memory_ = empty(given, {rows, rounded(batch)}, TYPE<T>);
            out_ = {write<T>(*memory_), rounded(batch), cut.size};
        }
        if (bias && batch == 0) std::fill(bias, bias + rows, T(0));
        if (!kept && !bias && !given_.copied()) return;
        const Operand<const T> g = given_.operand(), k = y ? y->operand() : Operand<const T>{};
        for_groups(rows, batch, [&](int64_t begin, int64_t end) {
            if (given_.copied()) given_.fill(begin, end);
            for (int64_t t = 0; (kept || bias) && t * cut.size < batch; t++)
                isa().kernels<T>().finish({g.data + t * g.tile_stride, kept ? k.data + t * k.tile_stride : nullptr,
                                           kept ? out_.data + t * out_.tile_stride : nullptr, bias, g.row_stride,
                                           k.row_stride, out_.row_stride, std::min(cut.size, batch - t * cut.size), t > 0,
                                           activation},
                                          begin, end);
        });
    }
    Operand<const T> gradient() const {
        return out_.data ? Operand<const T>{out_.data, out_.row_stride, out_.tile_stride} : given_.operand();
    }

private:
    Input<T> given_;
    Operand<T> out_;
    std::optional<Tensor> memory_;
};

// Where each part of the columns puts its gradients of the values. Rows of few connections share lines of memory that
// all parts write to, and that would go from core to core all the time: then each part has memory of its own.
template <class T>
class OfValues {
public:
    // values: the first `nnz` of them are to be written
    OfValues(const Tensor& values, int64_t nnz, int64_t rows, int64_t parts)
        : values_(write<T>(values)), nnz_(nnz), parts_(parts) {
        if (parts > 1 && nnz < FEW * rows * parts && nnz * int64_t(sizeof(T)) <= MOST)
            others_ = empty(values, {parts - 1, nnz}, TYPE<T>);
    }
    T* of(int64_t part) const {
        if (!others_) return values_;
        T* const own = part == 0 ? values_ : write<T>(*others_) + (part - 1) * nnz_;
        std::fill(own, own + nnz_, T(0));
        return own;
    }
    // Each number is zero but in one part. Not added, so that no bit depends on the parts, a zero's sign included.
    void join() const {
        if (!others_) return;
        Bits* const all = reinterpret_cast<Bits*>(values_);
        const Bits* const others = reinterpret_cast<const Bits*>(read<T>(*others_));
        parallel_for(0, nnz_, 1 << 12, [&](int64_t begin, int64_t end) {
            for (int64_t part = 0; part < parts_ - 1; part++)
                for (int64_t i = begin; i < end; i++) all[i] |= others[part * nnz_ + i];
        });
    }

private:
    typedef std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t> Bits __attribute__((may_alias));
    static constexpr int64_t FEW = 32;       // connections of a row in a part
    static constexpr int64_t MOST = 1 << 21; // bytes
    T* values_;
    int64_t nnz_, parts_;
    std::optional<Tensor> others_;
};

} // namespace regrow
