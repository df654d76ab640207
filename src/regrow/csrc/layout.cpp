#include "layout.h"

#include <algorithm>
#include <type_traits>

#include "buffers.h"

namespace regrow {
namespace {

// to[f * stride + b] = from[b * batch_stride + f * feature_stride] for some features, zeros up to the stride.
template <class T, class From>
void lay_out(const From* from, int64_t batch_stride, int64_t feature_stride, T* to, int64_t stride, int64_t batch,
             int64_t begin, int64_t end) {
    if constexpr (std::is_same_v<T, From>) {
        if (feature_stride == 1 && batch_stride != 1)
            return isa().kernels<T>().lay_out({from, batch_stride, to, stride, batch}, begin, end);
    }
    for (int64_t f = begin; f < end; f++) {
        for (int64_t b = 0; b < batch; b++) to[f * stride + b] = T(from[b * batch_stride + f * feature_stride]);
        std::fill(to + f * stride + batch, to + (f + 1) * stride, T(0));
    }
}

// The distance of two elements of the batch.
int64_t batch_stride(const Tensor& given) { return given.size(0) == 1 ? 1 : given.stride(0); }

// Whether a kernel may read it where it is: aligned, and whole vectors at the end of each feature.
template <class T>
bool in_place(const Tensor& given, Tiles tiles) {
    const int64_t batch = given.size(0), stride = given.stride(1);
    if (given.scalar_type() != TYPE<T> || tiles.parts(batch) > 1 || batch_stride(given) != 1 || stride % ROUND != 0 ||
        stride < rounded(batch) || reinterpret_cast<uintptr_t>(given.const_data_ptr()) % 64 != 0)
        return false;
    int64_t room;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(given.get(), &room));
    const int64_t last = given.storage_offset() + (given.size(1) - 1) * stride + rounded(batch);
    return last * int64_t(sizeof(T)) <= room;
}

} // namespace

template <class T>
Input<T>::Input(const Tensor& given, Tiles tiles, Reading reading) : given_(given), tensor_(given) {
    STD_TORCH_CHECK(given.dim() == 2 && given.is_cpu(), "activations must be two-dimensional, on the CPU");
    if (reading != Reading::copy && in_place<T>(given, tiles)) {
        data_ = read<T>(given);
        stride_ = given.stride(1);
        tile_stride_ = tiles.size;
        return;
    }
    const int64_t batch = given.size(0), features = given.size(1);
    stride_ = tiles.stride(batch);
    tile_stride_ = tiles.split ? features * stride_ : tiles.size;
    tensor_ = empty_buffer(given, {tiles.parts(batch), features, stride_}, TYPE<T>);
    data_ = copy_ = write<T>(tensor_);
    if (reading != Reading::filled_later) for_groups(features, batch, [&](int64_t begin, int64_t end) { fill(begin, end); });
}

template <class T>
void Input<T>::fill(int64_t begin, int64_t end) const {
    const int64_t batch = given_.size(0), features = given_.size(1), step = batch_stride(given_);
    for (int64_t start = 0; start < batch; start += stride_) {
        T* const to = copy_ + start * features;
        const auto convert = [&](const auto* from) {
            lay_out(from + start * step, step, given_.stride(1), to, stride_, std::min(batch - start, stride_), begin, end);
        };
        if (given_.scalar_type() == TYPE<T>) convert(read<T>(given_));
        else convert(read<BFloat16>(given_));
    }
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
    if (!direct_) {
        const T* const from = read<T>(buffer_);
        const auto convert = [&](auto* to) {
            const int64_t stride = stride_of(batch_);
            parallel_for(0, features_, 1 + (1 << 14) / (stride + 1), [&](int64_t begin, int64_t end) {
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
    return batch_first(result_, batch_, features_, stride_of(batch_));
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
        if (crow_[middle] + ROW * middle < wanted) low = middle + 1;
        else high = middle;
    }
    return low;
}

} // namespace regrow

namespace regrow {
namespace {

template <class T>
Tensor laid_out(const Tensor& input) {
    const int64_t batch = input.size(0), stride = rounded(batch);
    return batch_first(Input<T>(input, {stride, false}, Reading::copy).tensor(), batch, input.size(1), stride);
}
Tensor lay_out_op(Tensor input) { return is_double(input) ? laid_out<double>(input) : laid_out<float>(input); }

} // namespace
} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) { m.def("lay_out(Tensor input) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) { m.impl("lay_out", TORCH_BOX(&regrow::lay_out_op)); }
