// Pooling over batch tiles: the operators around the kernels.
#include "pool.h"

#include <algorithm>

#include "kernels.h"
#include "tiles_torch.h"

namespace regrow {
namespace {

// Calls run(t, c, channel) for each channel of each tile, threaded; `channel` counts channels from the buffer's start.
template <class Run>
void for_channels(const Geometry& g, int64_t channels, Run run) {
    parallel_for(0, g.tiles() * channels, 1 + (1 << 14) / (g.size() + 1), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) run(i / channels, i % channels, i);
    });
}

Pool pool_of(int64_t images, int64_t height, int64_t width, int64_t border, int64_t out_height, int64_t out_width,
             int64_t out_border, int64_t kernel_height, int64_t kernel_width, int64_t stride_height, int64_t stride_width,
             int64_t pad_height, int64_t pad_width, bool count_pad, int64_t divisor) {
    STD_TORCH_CHECK(std::min({kernel_height, kernel_width, stride_height, stride_width}) > 0 &&
                        std::min({pad_height, pad_width, divisor}) >= 0 && 2 * pad_height <= kernel_height &&
                        2 * pad_width <= kernel_width,
                    "kernel and stride must be positive, `pad` at most half the kernel, neither it nor `divisor` negative");
    const Pool p{{images, height, width, border},
                 {images, out_height, out_width, out_border},
                 kernel_height,
                 kernel_width,
                 stride_height,
                 stride_width,
                 pad_height,
                 pad_width,
                 count_pad,
                 divisor};
    check_geometry(p.input);
    check_geometry(p.output);
    STD_TORCH_CHECK((out_height - 1) * stride_height - pad_height < height &&
                        (out_width - 1) * stride_width - pad_width < width,
                    "`out_height` or `out_width` is too large: windows would begin behind the image");
    return p;
}

Tensor forward(const Tensor& input, const Pool& p, bool max) {
    check_tiles(input, p.input);
    const int64_t channels = input.size(1);
    Tensor output = empty_tiles(input, channels, p.output);
    by_type(input, [&](auto type) {
        using T = decltype(type);
        const auto& kernels = isa().kernels<T>();
        const T* const x = read<T>(input);
        T* const y = write<T>(output);
        for_channels(p.input, channels, [&](int64_t, int64_t, int64_t i) {
            T* const to = y + i * p.output.size();
            kernels.clear_borders(p.output, to, 1, is_large<T>(channels, p.output));
            (max ? kernels.pool.max : kernels.pool.average)(x + i * p.input.size(), to, p);
        });
        return 0;
    });
    return output;
}

// `input` and `output` are wanted for the maximum only.
Tensor backward(const Tensor& gradient, const Tensor* input, const Tensor* output, const Pool& p) {
    check_tiles(gradient, p.output);
    const int64_t channels = gradient.size(1);
    Tensor input_gradient = empty_tiles(gradient, channels, p.input);
    by_type(gradient, [&](auto type) {
        using T = decltype(type);
        const auto& kernels = isa().kernels<T>().pool;
        const T* const dy = read<T>(gradient);
        T* const dx = write<T>(input_gradient);
        for_channels(p.input, channels, [&](int64_t, int64_t, int64_t i) {
            T* const to = dx + i * p.input.size();
            const T* const from = dy + i * p.output.size();
            std::fill(to, to + p.input.size(), T(0));
            if (input)
                kernels.max_backward(read<T>(*input) + i * p.input.size(), read<T>(*output) + i * p.output.size(), from, to,
                                     p);
            else kernels.average_backward(from, to, p);
        });
        return 0;
    });
    return input_gradient;
}

#define POOL_PARAMETERS \
    int64_t images, int64_t height, int64_t width, int64_t border, int64_t out_height, int64_t out_width, \
        int64_t out_border, int64_t kernel_height, int64_t kernel_width, int64_t stride_height, int64_t stride_width, \
        int64_t pad_height, int64_t pad_width, bool count_pad, int64_t divisor
#define POOL \
    pool_of(images, height, width, border, out_height, out_width, out_border, kernel_height, kernel_width, stride_height, \
            stride_width, pad_height, pad_width, count_pad, divisor)

Tensor max_pool(Tensor input, POOL_PARAMETERS) { return forward(aligned(input), POOL, true); }
Tensor average_pool(Tensor input, POOL_PARAMETERS) { return forward(aligned(input), POOL, false); }
Tensor average_pool_backward(Tensor gradient, POOL_PARAMETERS) {
    return backward(aligned(gradient), nullptr, nullptr, POOL);
}
Tensor max_pool_backward(Tensor gradient, Tensor input, Tensor output, POOL_PARAMETERS) {
    const Pool p = POOL;
    check_tiles(input, p.input);
    check_tiles(output, p.output);
    STD_TORCH_CHECK(input.scalar_type() == gradient.scalar_type() && output.scalar_type() == gradient.scalar_type() &&
                        input.size(1) == gradient.size(1) && output.size(1) == gradient.size(1),
                    "`gradient`, `input` and `output` must be of one dtype and have the same channels");
    input = aligned(input);
    output = aligned(output);
    return backward(aligned(gradient), &input, &output, p);
}

Tensor image_means(Tensor input, int64_t images, int64_t height, int64_t width, int64_t border) {
    const Geometry g{images, height, width, border};
    check_tiles(input, g);
    input = aligned(input);
    const int64_t channels = input.size(1);
    Tensor output = empty(input, {images, channels}, input.scalar_type());
    by_type(input, [&](auto type) {
        using T = decltype(type);
        const T* const x = read<T>(input);
        T* const y = write<T>(output);
        for_channels(g, channels, [&](int64_t t, int64_t c, int64_t i) {
            T means[TILE];
            isa().kernels<T>().pool.mean(x + i * g.size(), means, g);
            for (int64_t n = 0; n < g.present(t); n++) y[(t * TILE + n) * channels + c] = means[n];
        });
        return 0;
    });
    return output;
}

Tensor image_means_backward(Tensor gradient, int64_t images, int64_t height, int64_t width, int64_t border) {
    const Geometry g{images, height, width, border};
    check_geometry(g);
    STD_TORCH_CHECK(gradient.dim() == 2 && gradient.is_contiguous() && gradient.is_cpu() && gradient.size(0) == images,
                    "`gradient` must be contiguous [", images, ", channels] on the CPU");
    const int64_t channels = gradient.size(1);
    Tensor output = empty_tiles(gradient, channels, g);
    by_type(gradient, [&](auto type) {
        using T = decltype(type);
        const auto& kernels = isa().kernels<T>();
        const T* const dy = read<T>(gradient);
        T* const dx = write<T>(output);
        for_channels(g, channels, [&](int64_t t, int64_t c, int64_t i) {
            T given[TILE] = {};
            for (int64_t n = 0; n < g.present(t); n++) given[n] = dy[(t * TILE + n) * channels + c];
            kernels.clear_borders(g, dx + i * g.size(), 1, is_large<T>(channels, g));
            kernels.pool.mean_backward(given, dx + i * g.size(), g);
        });
        return 0;
    });
    return output;
}

} // namespace
} // namespace regrow

#define GEOMETRY "int images, int height, int width, int border"
#define WINDOWS \
    GEOMETRY ", int out_height, int out_width, int out_border, int kernel_height, int kernel_width, " \
             "int stride_height, int stride_width, int pad_height, int pad_width, bool count_pad, int divisor"

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) {
    m.def("max_pool(Tensor input, " WINDOWS ") -> Tensor");
    m.def("max_pool_backward(Tensor gradient, Tensor input, Tensor output, " WINDOWS ") -> Tensor");
    m.def("average_pool(Tensor input, " WINDOWS ") -> Tensor");
    m.def("average_pool_backward(Tensor gradient, " WINDOWS ") -> Tensor");
    m.def("image_means(Tensor input, " GEOMETRY ") -> Tensor");
    m.def("image_means_backward(Tensor gradient, " GEOMETRY ") -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) {
    m.impl("max_pool", TORCH_BOX(&regrow::max_pool));
    m.impl("max_pool_backward", TORCH_BOX(&regrow::max_pool_backward));
    m.impl("average_pool", TORCH_BOX(&regrow::average_pool));
    m.impl("average_pool_backward", TORCH_BOX(&regrow::average_pool_backward));
    m.impl("image_means", TORCH_BOX(&regrow::image_means));
    m.impl("image_means_backward", TORCH_BOX(&regrow::image_means_backward));
}
