// Convolutions on batch tiles with a compressed weight: the operators around the kernels.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "layout.h"
#include "conv_index.h"
#include "tiles_torch.h"

namespace regrow {
namespace {

constexpr int64_t GROUPS = 32;            // of tiles whose gradients of the values are summed on their own
constexpr int64_t PRODUCTS = 512 << 10;   // bytes of products that a cache holds beside the activations

using Sizes = std::vector<int64_t>;

Window window_of(const Sizes& kernel, const Sizes& stride, const Sizes& padding, const Sizes& dilation) {
    STD_TORCH_CHECK(kernel.size() == 2 && stride.size() == 2 && padding.size() == 4 && dilation.size() == 2,
                    "`kernel`, `stride` and `dilation` must be two numbers, `padding` four");
    const Window w{{kernel[0], kernel[1]},
                   {stride[0], stride[1]},
                   {padding[0], padding[2]},
                   {padding[1], padding[3]},
                   {dilation[0], dilation[1]}};
    for (int d = 0; d < 2; d++)
        STD_TORCH_CHECK(w.kernel[d] > 0 && w.stride[d] > 0 && w.dilation[d] > 0 && w.before[d] >= 0 && w.after[d] >= 0,
                        "`kernel`, `stride` and `dilation` must be positive, `padding` not negative");
    return w;
}

Geometry output_of(const Window& w, const Geometry& in, int64_t border) {
    check_geometry(in);
    STD_TORCH_CHECK(in.height > 0 && in.width > 0, "`height` and `width` must be positive");
    const Geometry out{in.images, w.output(0, in.height), w.output(1, in.width), border};
    STD_TORCH_CHECK(in.height + w.before[0] + w.after[0] >= w.span(0) && in.width + w.before[1] + w.after[1] >= w.span(1),
                    "the kernel is larger than the padded image");
    check_geometry(out);
    return out;
}

// The buffer as type T, where kernels can read it: itself, or a copy.
template <class T>
Tensor tiles_of(const Tensor& buffer, const Geometry& g, int64_t channels, const char* name) {
    check_tiles(buffer, g, name);
    STD_TORCH_CHECK(buffer.size(1) == channels, "`", name, "` must have ", channels, " channels, got ", buffer.size(1));
    STD_TORCH_CHECK(channels * g.size() < int64_t(1) << 31, "`", name, "` has 2^31 elements or more in a tile of 16 images");
    return aligned(as<T>(buffer));
}

template <class T>
Pixels<T> pixels_of(T* data, const Geometry& g, int64_t channels) {
    return {data + g.first() * TILE, channels * g.size(), g.size(), g.row() * TILE, TILE};
}

// Every `stride`-th pixel, from `first` on.
template <class T>
Pixels<T> every(Pixels<T> p, const int64_t* first, const int64_t* stride) {
    p.data += first[0] * p.rows + first[1] * p.pixels;
    p.rows *= stride[0];
    p.pixels *= stride[1];
    return p;
}

// Whether all are finite. Times the zeros past the batch, one that is not would fill them.
template <class T>
bool are_finite(const T* values, int64_t number) {
    int32_t bad = 0;
    for (int64_t i = 0; i < number; i++) bad |= !(std::abs(values[i]) <= std::numeric_limits<T>::max());
    return !bad;
}

// Zeros past the batch.
template <class T>
void clear_past_batch(const Geometry& g, T* buffer, int64_t channels) {
    const int64_t tile = g.tiles() - 1;
    for (int64_t c = 0; tile >= 0 && c < channels; c++) clear_absent(g, buffer + (tile * channels + c) * g.size(), tile);
}

// Parts of each job, so that all threads have as much to do.
int64_t split(int64_t jobs) {
    const int64_t threads = torch::stable::get_num_threads();
    return jobs % threads == 0 || jobs > 8 * threads ? 1 : threads;
}

template <class T>
Tensor forward(const Tensor& buffer, const Geometry& in, const Tensor& values, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& residual, const Tensor& crow, const Tensor& col, const Window& w,
               const Geometry& out) {
    const ConvKernels<T>& kernels = isa().kernels<T>().conv;
    const auto clear_borders = isa().kernels<T>().clear_borders;
    const int64_t rows = crow.numel() - 1, channels = buffer.size(1), tiles = out.tiles();
    const Tensor x = tiles_of<T>(buffer, in, channels, "buffer"), v = as<T>(values);
    const std::optional<Tensor> b = bias ? std::optional(as<T>(*bias)) : std::nullopt;
    const std::optional<Tensor> r = residual ? std::optional(tiles_of<T>(*residual, out, rows, "residual")) : std::nullopt;
    Tensor y = empty_tiles(x, rows, out);
    const bool large = is_large<T>(rows, out);
    const ForwardIndex index(read(crow), read(col), rows, channels, w, in, kernels.forward_pixels, large);
    const int64_t origin[2] = {0, 0};
    T* const to = write<T>(y);
    const ConvForward<T> work{index.start.data(),
                              index.offset.data(),
                              read<T>(v),
                              b ? read<T>(*b) : nullptr,
                              r ? pixels_of(read<T>(*r), out, rows).data : nullptr,
                              every(pixels_of(read<T>(x), in, channels), origin, w.stride),
                              pixels_of(to, out, rows),
                              rows,
                              index.blocks,
                              out.width,
                              large,
                              index.used.read(),
                              w.origin(0, w.kernel[0] - 1) * in.row() * TILE};
    const int64_t bands = std::min(split(tiles), out.height);
    parallel_for(0, tiles * bands, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            const int64_t tile = i / bands, band = i % bands;
            if (band == 0) clear_borders(out, to + tile * rows * out.size(), rows, large);
            kernels.forward(work, tile, band * out.height / bands, (band + 1) * out.height / bands);
        }
    });
    if (b || !are_finite(read<T>(v), read(crow)[rows])) clear_past_batch(out, to, rows); // a bias has filled them too
    return buffer.scalar_type() == TYPE<T> ? y : torch::stable::to(y, buffer.scalar_type());
}

template <class T>
Tensor bias_gradient(const Tensor& gradient, int64_t rows) {
    const int64_t size = gradient.size(2) * TILE, tiles = gradient.size(0);
    Tensor sums = empty(gradient, {rows}, TYPE<T>);
    if (tiles == 0) torch::stable::zero_(sums);
    const auto finish = isa().kernels<T>().finish;
    parallel_for(0, rows, 1 + (1 << 15) / (size * tiles + 1), [&](int64_t begin, int64_t end) {
        for (int64_t t = 0; t < tiles; t++)
            finish({read<T>(gradient) + t * rows * size, nullptr, nullptr, write<T>(sums), size, 0, 0, size, t > 0}, begin,
                   end);
    });
    return sums;
}

// Gradients of the input and of the values, either of them where it is given.
template <class T>
void sweep(const Tensor& gradient, const Geometry& out, const T* x, const Geometry& in, int64_t channels,
           const Tensor& values, const Tensor& crow_t, const Tensor& row_t, const Tensor& order, const Window& w,
           const T* passed, T* dx, T* dw) {
    const ConvKernels<T>& kernels = isa().kernels<T>().conv;
    const auto clear_borders = isa().kernels<T>().clear_borders;
    const int64_t rows = gradient.size(1), groups = std::min(in.tiles(), GROUPS);
    const bool large = is_large<T>(channels, in);
    const BackwardIndex index(read(crow_t), read(row_t), read(order), values.numel(), rows, channels, w, in, out,
                              kernels.backward_pixels, large, split(groups));
    const int64_t nnz = int64_t(index.place.size()), parts = int64_t(index.parts.size());
    std::vector<T> own(nnz), sums(dw ? groups * nnz : 0);
    for (int64_t j = 0; j < nnz; j++) own[j] = read<T>(values)[index.place[j]];
    const bool wait = dw && nnz * kernels.vector * int64_t(sizeof(T)) <= PRODUCTS;

    parallel_for(0, groups * parts, 1, [&](int64_t begin, int64_t end) {
        std::vector<T> room;
        for (int64_t i = begin; i < end; i++) {
            const BackwardIndex::Part& part = index.parts[i % parts];
            const int64_t group = i / parts, size = part.last - part.first;
            T* const sum = dw ? sums.data() + group * nnz : nullptr;
            T* products = nullptr;
            if (wait) {
                room.assign((size + 1) * kernels.vector, T(0)); // one more, to begin at a vector's alignment
                products = room.data();
                while (reinterpret_cast<uintptr_t>(products) % (kernels.vector * sizeof(T))) products++;
            }
            for (int64_t tile = group * in.tiles() / groups; tile < (group + 1) * in.tiles() / groups; tile++) {
                if (dx) clear_borders(in, dx + (tile * channels + part.begin) * in.size(), part.end - part.begin, large);
                for (const Sweep& each : part.sweeps) {
                    if (!dx && each.start.front() == each.start.back()) continue;
                    const int64_t skipped = part.begin * in.size();
                    ConvBackward<T> work{each.start.data(),
                                         index.offset.data(),
                                         own.data(),
                                         sum,
                                         wait ? products - part.first * kernels.vector : nullptr,
                                         pixels_of(read<T>(gradient), out, rows),
                                         every(pixels_of(x + skipped, in, channels), each.first, w.stride),
                                         {},
                                         nullptr,
                                         part.end - part.begin,
                                         index.blocks,
                                         each.size[0],
                                         each.size[1],
                                         large,
                                         index.used.read(),
                                         w.before[0] / w.stride[0] * out.row() * TILE};
                    if (dx) work.dx = every(pixels_of(dx + skipped, in, channels), each.first, w.stride);
                    if (passed) work.passed = every(pixels_of(passed + skipped, in, channels), each.first, w.stride).data;
                    kernels.backward(work, tile);
                }
            }
            if (wait) kernels.reduce(products, sum + part.first, size);
        }
    });
    if (dx && !are_finite(own.data(), nnz)) clear_past_batch(in, dx, channels);
    if (!dw) return;
    parallel_for(0, nnz, 1 << 13, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; j++) {
            T sum(0);
            for (int64_t group = 0; group < groups; group++) sum += sums[group * nnz + j];
            dw[index.place[j]] = sum;
        }
    });
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& gradient, const Geometry& out, const Tensor& buffer,
                                            const Geometry& in, const Tensor& values, const Tensor& crow_t,
                                            const Tensor& row_t, const Tensor& order, const Window& w, bool need_input,
                                            bool need_values, bool need_bias, const std::optional<Tensor>& passed) {
    const ScalarType type = buffer.scalar_type();
    const int64_t channels = buffer.size(1);
    const Tensor g = tiles_of<T>(gradient, out, gradient.size(1), "gradient"),
                 x = tiles_of<T>(buffer, in, channels, "buffer");
    const std::optional<Tensor> p = passed ? std::optional(tiles_of<T>(*passed, in, channels, "passed")) : std::nullopt;
    Tensor dx = need_input ? empty_tiles(x, channels, in) : empty(buffer, {0}, TYPE<T>);
    Tensor dw = empty(values, {need_values ? values.size(0) : 0, 1}, TYPE<T>);
    Tensor db = need_bias ? bias_gradient<T>(g, g.size(1)) : empty(buffer, {0}, TYPE<T>);
    torch::stable::zero_(dw);
    if (need_input || need_values)
        sweep<T>(g, out, read<T>(x), in, channels, as<T>(values), crow_t, row_t, order, w, p ? read<T>(*p) : nullptr,
                 need_input ? write<T>(dx) : nullptr, need_values ? write<T>(dw) : nullptr);
    const auto back = [&](const Tensor& t) { return type == TYPE<T> ? t : torch::stable::to(t, type); };
    return {back(dx), back(dw), back(db)};
}

void check_conv(int64_t rows, const Tensor& buffer, const std::optional<Tensor>& other, const char* name) {
    STD_TORCH_CHECK(rows > 0 && buffer.size(1) > 0, "a convolution has at least one channel on each side, got ",
                    buffer.size(1), " and ", rows);
    STD_TORCH_CHECK(!other || other->scalar_type() == buffer.scalar_type(), "`", name, "` must be of the buffer's dtype");
}

Tensor conv_forward(Tensor buffer, int64_t images, int64_t height, int64_t width, int64_t border, Tensor values,
                    std::optional<Tensor> bias, Tensor crow, Tensor col, Sizes kernel, Sizes stride, Sizes padding,
                    Sizes dilation, int64_t out_border, std::optional<Tensor> residual) {
    STD_TORCH_CHECK(buffer.dim() == 4, "`buffer` must be of shape [T, C, P, 16]");
    const auto f = is_double(buffer) ? &forward<double> : &forward<float>;
    const Window w = window_of(kernel, stride, padding, dilation);
    const Geometry in{images, height, width, border}, out = output_of(w, in, out_border);
    STD_TORCH_CHECK(w.border(in, out) <= border, "`border` must be at least ", w.border(in, out), ", got ", border);
    const int64_t rows = std::max<int64_t>(crow.numel() - 1, 0), nnz = check_pointers(crow, rows, "crow");
    check_index(col, nnz, "col");
    check_vector(values, nnz, buffer, "values");
    if (bias) check_vector(*bias, rows, buffer, "bias");
    check_conv(rows, buffer, residual, "residual");
    return f(buffer, in, values, bias, residual, crow, col, w, out);
}

std::tuple<Tensor, Tensor, Tensor> conv_backward(Tensor gradient, int64_t out_border, Tensor buffer, int64_t images,
                                                 int64_t height, int64_t width, int64_t border, Tensor values, Tensor crow_t,
                                                 Tensor row_t, Tensor order, Sizes kernel, Sizes stride, Sizes padding,
                                                 Sizes dilation, bool need_input, bool need_values, bool need_bias,
                                                 std::optional<Tensor> passed) {
    const Window w = window_of(kernel, stride, padding, dilation);
    const Geometry in{images, height, width, border}, out = output_of(w, in, out_border);
    STD_TORCH_CHECK(w.gradient_border(in, out) <= out_border, "`out_border` must be at least ", w.gradient_border(in, out),
                    ", got ", out_border);
    STD_TORCH_CHECK(buffer.dim() == 4 && gradient.dim() == 4, "`buffer` and `gradient` must be of shape [T, C, P, 16]");
    const auto f = is_double(buffer) ? &backward<double> : &backward<float>;
    const int64_t nnz = check_pointers(crow_t, buffer.size(1) * w.taps(), "crow_t");
    check_index(row_t, nnz, "row_t");
    check_index(order, nnz, "order");
    check_vector(values, nnz, buffer, "values");
    check_conv(gradient.size(1), buffer, gradient, "gradient");
    check_conv(gradient.size(1), buffer, passed, "passed");
    return f(gradient, out, buffer, in, values, crow_t, row_t, order, w, need_input, need_values, need_bias, passed);
}

} // namespace
} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) {
    m.def("conv_forward(Tensor buffer, int images, int height, int width, int border, Tensor values, Tensor? bias, "
          "Tensor crow, Tensor col, int[] kernel, int[] stride, int[] padding, int[] dilation, int out_border, "
          "Tensor? residual=None) -> Tensor");
    m.def("conv_backward(Tensor gradient, int out_border, Tensor buffer, int images, int height, int width, int border, "
          "Tensor values, Tensor crow_t, Tensor row_t, Tensor order, int[] kernel, int[] stride, int[] padding, "
          "int[] dilation, bool need_input, bool need_values, bool need_bias, Tensor? passed=None) "
          "-> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) {
    m.impl("conv_forward", TORCH_BOX(&regrow::conv_forward));
    m.impl("conv_backward", TORCH_BOX(&regrow::conv_backward));
}
