// Batch tiles: from images, back to images, and to another border.
#include "tiles.h"

#include <algorithm>

#include "kernels.h"
#include "tiles_torch.h"

namespace regrow {

template <class T>
void clear_absent(const Geometry& g, T* channel, int64_t t) {
    const int64_t present = g.present(t);
    if (present == TILE) return;
    for (T* line = channel; line < channel + g.size(); line += TILE) std::fill(line + present, line + TILE, T(0));
}
template void clear_absent(const Geometry&, float*, int64_t);
template void clear_absent(const Geometry&, double*, int64_t);

namespace {

constexpr int64_t GROUP = 16; // channels at a time

// Calls copy(tile, first channel, last channel), threaded.
template <class F>
void for_groups(const Geometry& g, int64_t channels, F copy) {
    const int64_t groups = (channels + GROUP - 1) / GROUP;
    const int64_t grain = 1 + (1 << 14) / (GROUP * g.size() + 1);
    parallel_for(0, g.tiles() * groups, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            const int64_t c = i % groups * GROUP;
            copy(i / groups, c, std::min(c + GROUP, channels));
        }
    });
}

Tensor tile(Tensor input, int64_t border) {
    STD_TORCH_CHECK(input.dim() == 4 && input.is_cpu() && border >= 0, "`input` must be [N, C, H, W] on the CPU");
    const Geometry g{input.size(0), input.size(2), input.size(3), border};
    const int64_t channels = input.size(1);
    Tensor buffer = empty_tiles(input, channels, g);
    if (input.numel() == 0) {
        torch::stable::zero_(buffer);
        return buffer;
    }
    const auto stride = [&](int d) { return input.size(d) == 1 ? int64_t(1) : input.stride(d); };
    const bool by_channel = stride(1) == 1;
    const bool by_pixel = stride(3) == 1 && (g.height == 1 || input.stride(2) == g.width);
    STD_TORCH_CHECK(by_channel || by_pixel, "`input` must be contiguous, or channels-last");
    by_type(input, [&](auto type) {
        using T = decltype(type);
        const Tiling<T> work{const_cast<T*>(read<T>(input)),
                             write<T>(buffer),
                             channels,
                             input.stride(0),
                             input.stride(1),
                             input.stride(2),
                             input.stride(3),
                             by_channel && (!by_pixel || channels > g.pixels()),
                             g};
        for_groups(g, channels, [&](int64_t t, int64_t begin, int64_t end) {
            const auto& kernels = isa().kernels<T>();
            kernels.clear_borders(g, work.buffer + (t * channels + begin) * g.size(), end - begin, is_large<T>(channels, g));
            kernels.tile(work, t, begin, end);
        });
        return 0;
    });
    return buffer;
}

// [N, C, H, W], or [N, H, W, C] where `channels_last`.
Tensor untile(Tensor buffer, int64_t images, int64_t height, int64_t width, int64_t border, bool channels_last) {
    const Geometry g{images, height, width, border};
    check_tiles(buffer, g);
    buffer = aligned(buffer);
    const int64_t channels = buffer.size(1);
    Tensor output = channels_last ? empty_buffer(buffer, {images, height, width, channels}, buffer.scalar_type())
                                  : empty_buffer(buffer, {images, channels, height, width}, buffer.scalar_type());
    if (output.numel() == 0) return output;
    by_type(buffer, [&](auto type) {
        using T = decltype(type);
        const int64_t pixel = channels_last ? channels : 1;
        const Tiling<T> work{write<T>(output),
                             const_cast<T*>(read<T>(buffer)),
                             channels,
                             channels * g.pixels(),
                             channels_last ? 1 : g.pixels(),
                             width * pixel,
                             pixel,
                             channels_last || g.pixels() == 1,
                             g};
        for_groups(g, channels,
                   [&](int64_t t, int64_t begin, int64_t end) { isa().kernels<T>().untile(work, t, begin, end); });
        return 0;
    });
    return output;
}

Tensor reborder(Tensor buffer, int64_t images, int64_t height, int64_t width, int64_t border, int64_t out_border) {
    const Geometry from{images, height, width, border}, to{images, height, width, out_border};
    check_tiles(buffer, from);
    check_geometry(to);
    const int64_t channels = buffer.size(1);
    Tensor output = empty_tiles(buffer, channels, to);
    if (output.numel() == 0) return output;
    by_type(buffer, [&](auto type) {
        using T = decltype(type);
        const T* const old = read<T>(buffer);
        T* const fresh = write<T>(output);
        for_groups(to, channels, [&](int64_t t, int64_t begin, int64_t end) {
            for (int64_t c = begin; c < end; c++) {
                T* const channel = fresh + (t * channels + c) * to.size();
                isa().kernels<T>().clear_borders(to, channel, 1, is_large<T>(channels, to));
                const T* row = old + (t * channels + c) * from.size() + from.first() * TILE;
                for (int64_t h = 0; h < height; h++, row += from.row() * TILE)
                    std::copy(row, row + width * TILE, channel + (to.first() + h * to.row()) * TILE);
            }
        });
        return 0;
    });
    return output;
}

} // namespace
} // namespace regrow

STABLE_TORCH_LIBRARY_FRAGMENT(regrow_native, m) {
    m.def("tile(Tensor input, int border) -> Tensor");
    m.def("untile(Tensor buffer, int images, int height, int width, int border, bool channels_last) -> Tensor");
    m.def("reborder(Tensor buffer, int images, int height, int width, int border, int out_border) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(regrow_native, CPU, m) {
    m.impl("tile", TORCH_BOX(&regrow::tile));
    m.impl("untile", TORCH_BOX(&regrow::untile));
    m.impl("reborder", TORCH_BOX(&regrow::reborder));
}
