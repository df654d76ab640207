#include "activations.h"

#include <algorithm>
#include <cstring>

#include "buffers.h"

namespace regrow {
namespace {

// to[f * stride + b] = from[b * batch_stride + f * feature_stride], zeros up to the stride.
template <class T, class From>
void lay_out(const From* from, int64_t batch_stride, int64_t feature_stride, T* to, int64_t stride, int64_t batch,
             int64_t begin, int64_t end) {
    if (batch_stride == 1) {
        for (int64_t f = begin; f < end; f++) {
            for (int64_t b = 0; b < batch; b++) to[f * stride + b] = T(from[f * feature_stride + b]);
            std::fill(to + f * stride + batch, to + (f + 1) * stride, T(0));
        }
        return;
    }
    constexpr int64_t SIDE = 16; // squares of a line each way
    for (int64_t f0 = begin; f0 < end; f0 += SIDE) {
        const int64_t f1 = std::min(f0 + SIDE, end);
        for (int64_t b0 = 0; b0 < stride; b0 += SIDE) {
            const int64_t b1 = std::min(b0 + SIDE, batch);
            if (f1 - f0 == SIDE && b1 - b0 == SIDE && feature_stride == 1) {
                for (int64_t f = 0; f < SIDE; f++)
                    for (int64_t b = 0; b < SIDE; b++)
                        to[(f0 + f) * stride + b0 + b] = T(from[(b0 + b) * batch_stride + f0 + f]);
                continue;
            }
            for (int64_t f = f0; f < f1; f++) {
                for (int64_t b = b0; b < b1; b++)
                    to[f * stride + b] = T(from[b * batch_stride + f * feature_stride]);
                for (int64_t b = std::max(b0, b1); b < std::min(b0 + SIDE, stride); b++) to[f * stride + b] = T(0);
            }
        }
    }
}

} // namespace

template <class T>
Input<T>::Input(const Tensor& given, Tiles tiles, bool fresh) : tensor_(given) {
    STD_TORCH_CHECK(given.dim() == 2 && given.is_cpu(), "activations must be two-dimensional, on the CPU");
    const int64_t batch = given.size(0), features = given.size(1);
    const int64_t batch_stride = batch == 1 ? 1 : given.stride(0), feature_stride = given.stride(1);
    const bool same = given.scalar_type() == TYPE<T>;
    if (same && !fresh && tiles.parts(batch) <= 1 && batch_stride == 1 && feature_stride % ROUND == 0 &&
        feature_stride >= rounded(batch) && reinterpret_cast<uintptr_t>(given.const_data_ptr()) % 64 == 0) {
        int64_t room;
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(given.get(), &room));
        const int64_t last = given.storage_offset() + (features - 1) * feature_stride + rounded(batch);
        if (last * int64_t(sizeof(T)) <= room) {
            data_ = read<T>(given);
            stride_ = feature_stride;
            tile_stride_ = tiles.size;
            return;
        }
    }
    stride_ = tiles.stride(batch);
    tile_stride_ = tiles.split ? features * stride_ : tiles.size;
    const int64_t parts = tiles.parts(batch), groups = (features + 15) / 16;
    tensor_ = empty_buffer(given, {parts, features, stride_}, TYPE<T>);
    T* const to = write<T>(tensor_);
    data_ = to;
    const auto convert = [&](const auto* from) {
        torch::stable::parallel_for(0, parts * groups, 1 + (1 << 11) / (stride_ + 1), [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) {
                const int64_t part = i / groups, start = part * stride_, f = i % groups * 16;
                lay_out(from + start * batch_stride, batch_stride, feature_stride, to + part * features * stride_, stride_,
                        std::min(batch - start, stride_), f, std::min(f + 16, features));
            }
        });
    };
    const void* const from = given.const_data_ptr();
    if (same) convert(static_cast<const T*>(from));
    else convert(static_cast<const BFloat16*>(from));
}

template <class T>
Output<T>::Output(const Tensor& like, int64_t batch, int64_t features, Tiles tiles)
    : batch_(batch), features_(features), stride_(tiles.stride(batch)),
      tile_stride_(tiles.split ? features * stride_ : tiles.size),
      direct_(like.scalar_type() == TYPE<T> && stride_of(batch) == stride_) {
    result_ = empty_buffer(like, {features, stride_of(batch)}, like.scalar_type());
    buffer_ = direct_ ? result_ : empty_buffer(like, {tiles.parts(batch), features, stride_}, TYPE<T>);
}

template <class T>
Tensor Output<T>::finish() const {
    Tensor result = result_;
    if (!direct_) {
        const T* const from = read<T>(buffer_);
        const auto convert = [&](auto* to) {
            const int64_t stride = stride_of(batch_);
            torch::stable::parallel_for(0, features_, 1 + (1 << 14) / (stride + 1), [&](int64_t begin, int64_t end) {
                for (int64_t f = begin; f < end; f++)
                    for (int64_t start = 0; start < batch_; start += stride_) {
                        const T* const part = from + (start / stride_ * features_ + f) * stride_;
                        auto* const whole = to + f * stride + start;
                        for (int64_t b = 0; b < std::min(stride_, stride - start); b++)
                            whole[b] = std::remove_reference_t<decltype(*to)>(part[b]);
                    }
            });
        };
        if (result_.scalar_type() == TYPE<T>) convert(write<T>(result_));
        else convert(write<BFloat16>(result_));
    }
    if (stride_of(batch_) != batch_) result = torch::stable::narrow(result, 1, 0, batch_);
    return torch::stable::transpose(result, 0, 1);
}

template class Input<float>;
template class Input<double>;
template class Output<float>;
template class Output<double>;

Parts::Parts(const int32_t* crow, int64_t rows, int64_t most, int64_t batch) : crow_(crow), rows_(rows) {
    const int64_t work = (crow[rows] - crow[0] + ROW * rows) * std::max<int64_t>(batch, ROUND);
    count_ = std::clamp<int64_t>(work >> 17, 1, std::max<int64_t>(most, 1)); // some 5 microseconds each, or more
}

int64_t Parts::first(int64_t part) const {
    const int64_t wanted = (crow_[rows_] + ROW * rows_) * part / count_;
    int64_t low = 0, high = rows_;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (crow_[middle] + ROW * middle < wanted) low = middle + 1; else high = middle;
    }
    return low;
}

} // namespace regrow

namespace regrow {
namespace {

template <class T>
Tensor laid_out(const Tensor& input) {
    const int64_t batch = input.size(0), stride = rounded(batch);
    Tensor copy = torch::stable::view(Input<T>(input, {stride, false}, true).tensor(), {input.size(1), stride});
    copy = torch::stable::narrow(copy, 1, 0, batch);
    return torch::stable::transpose(copy, 0, 1);
}
Tensor lay_out_op(Tensor input) {
    return input.scalar_type() == ScalarType::Double ? laid_out<double>(input) : laid_out<float>(input);
}

} // namespace
} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) { m.def("lay_out(Tensor input) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) { m.impl("lay_out", TORCH_BOX(&regrow::lay_out_op)); }
