// Steps of inference programs that are layers: checked, and divided among the threads.
#include "infer_steps.h"

namespace regrow::infer {
namespace {

Window window_of(const WindowStep& s, int64_t channels, int64_t scratch) {
    require_sizes({s.height, s.width, s.out_height, s.out_width, s.kernel_height, s.kernel_width, s.padding_y, s.padding_x,
                   s.dilation_y, s.dilation_x, s.copy, s.channel});
    require(s.stride_y > 0 && s.stride_x > 0 && s.band > 0 && s.phases > 0 && s.phases <= s.stride_y);
    if (s.channel) {
        const int64_t rows = std::min(s.band, s.out_height) + (s.kernel_height - 1) * s.dilation_y / s.stride_y;
        require(s.kernel_width > 0 && s.kernel_height > 0 && s.copy >= rows * s.out_width &&
                s.channel >= s.kernel_width * s.phases * s.copy && scratch >= channels * s.channel);
    } else {
        require(s.height == s.out_height && s.width == s.out_width);
    }
    return {s.height,    s.width,     s.out_height, s.out_width,  s.kernel_height, s.kernel_width, s.stride_y, s.stride_x,
            s.padding_y, s.padding_x, s.dilation_y, s.dilation_x, s.band,          s.phases,       s.copy,     s.channel};
}

// Kernels write whole vectors.
void require_room(int64_t planes, int64_t plane, int64_t pixels) {
    require(planes <= 1 || plane >= (pixels + 15) / 16 * 16);
}

int64_t bands_of(const WindowStep& s) { return (s.out_height + s.band - 1) / s.band; }

// A convolution by connections, whose bands are divided among the threads; outputs are too, by `parts`, where there is not
// enough else: each part lays out its input again.
template <class C, class F>
void run_conv(const Conv& c, int64_t parts_of_outputs, const Memory& memory, const F& kernel, const C& given) {
    const int32_t* const part = memory.constant<int32_t>(parts_of_outputs, 2, {ScalarType::Int});
    require(part != nullptr);
    const int64_t bands = (c.window.out_height + c.window.band - 1) / c.window.band, units = c.images * c.groups * bands;
    const int64_t parts = memory.size_of(parts_of_outputs) - 1,
                  divided = units >= 2 * threads() ? 1 : std::min(parts, threads());
    in_tasks(units * divided, [&](int64_t thread, int64_t task) {
        const int64_t unit = task / divided, share = task % divided;
        const int64_t first = part[parts * share / divided], last = part[parts * (share + 1) / divided];
        kernel(given, unit / (c.groups * bands), unit / bands % c.groups, unit % bands, first, last, memory.scratch(thread));
    });
}

} // namespace

void run(const ConvStep& s, const Memory& memory) {
    require_sizes({s.x_image, s.x_plane, s.y_image, s.y_plane, s.residual_image, s.residual_plane, s.images, s.groups,
                   s.channels, s.outputs, s.blocks});
    const int64_t in = s.window.height * s.window.width, out = s.window.out_height * s.window.out_width;
    const int64_t all_in = s.groups * s.channels, all_out = s.groups * s.outputs;
    Conv c{window_of(s.window, s.channels, memory.scratch_size()),
           s.images,
           s.groups,
           s.channels,
           s.outputs,
           s.x_image,
           s.x_plane,
           s.y_image,
           s.y_plane,
           s.residual_image,
           s.residual_plane,
           s.blocks,
           memory.source(s.x, extent(s.images, s.x_image, extent(all_in, s.x_plane, in))),
           memory.source(s.residual, extent(s.images, s.residual_image, extent(all_out, s.residual_plane, out))),
           memory.find(s.y, extent(s.images, s.y_image, extent(all_out, s.y_plane, out))),
           memory.constant<int32_t>(s.start, s.groups * s.blocks * (s.outputs + 1), {ScalarType::Int}),
           memory.constant<int32_t>(s.order, s.groups * s.blocks * s.outputs, {ScalarType::Int}),
           memory.constant<Connection>(s.connections, 0, {ScalarType::Long}),
           memory.constant<float>(s.bias, all_out, {ScalarType::Float}),
           Activation(s.activation)};
    require(c.x && c.y && c.start && c.order && s.connections != NONE && s.blocks > 0);
    require_room(all_out, s.y_plane, out);
    require(s.reach <= s.channels * (s.window.channel ? s.window.channel : s.x_plane));
    run_conv(c, s.parts, memory, kernels().conv, c);
}

void run(const Int8Step& s, const Memory& memory) {
    require_sizes({s.x_image, s.x_plane, s.y_image, s.y_plane, s.residual_image, s.residual_plane, s.images, s.groups,
                   s.channels, s.outputs});
    const WindowStep& w = s.window;
    const int64_t in = w.height * w.width, out = w.out_height * w.out_width;
    const int64_t all_in = s.groups * s.channels, all_out = s.groups * s.outputs;
    const int64_t scratch = memory.scratch_size() * sizeof(float);
    Int8Conv q{};
    q.conv = {window_of(w, s.channels, scratch),
              s.images,
              s.groups,
              s.channels,
              s.outputs,
              s.x_image,
              s.x_plane,
              s.y_image,
              s.y_plane,
              s.residual_image,
              s.residual_plane,
              1,
              memory.find(s.x, extent(s.images, s.x_image, extent(all_in, s.x_plane, in))),
              memory.find(s.residual, extent(s.images, s.residual_image, extent(all_out, s.residual_plane, out))),
              memory.find(s.y, extent(s.images, s.y_image, extent(all_out, s.y_plane, out))),
              memory.constant<int32_t>(s.start, s.groups * (s.outputs + 1), {ScalarType::Int}),
              memory.constant<int32_t>(s.order, all_out, {ScalarType::Int}),
              nullptr,
              memory.constant<float>(s.bias, all_out, {ScalarType::Float}),
              Activation(s.activation)};
    q.direct = w.kernel_height == 1 && w.kernel_width == 1 && w.stride_y == 1 && w.stride_x == 1 && w.padding_y == 0 &&
               w.padding_x == 0 && w.height == w.out_height && w.width == w.out_width;
    q.bundle = memory.constant<int32_t>(s.bundle, all_out, {ScalarType::Int});
    q.pairs = memory.constant<BytePair>(s.pairs, 0, {ScalarType::Int});
    q.correction = memory.constant<int32_t>(s.correction, all_out, {ScalarType::Int});
    q.scale = memory.constant<float>(s.scale, all_out, {ScalarType::Float});
    require(q.conv.x && q.conv.y && q.conv.start && q.conv.order && q.bundle && q.correction && q.scale && s.pairs != NONE);
    require_room(all_out, s.y_plane, out);
    q.inverse = float(s.inverse);
    q.lowest = s.is_signed ? -127.0f : 0.0f;
    q.zero = s.is_signed ? 128 : 0;
    require(w.channel > 0 && s.reach <= s.channels * w.channel && s.channels * w.channel + in + 2 * INT8_SLACK <= scratch);
    run_conv(q.conv, s.parts, memory, kernels().int8, q);
}

void run(const DenseStep& s, const Memory& memory) {
    require_sizes({s.x_image, s.x_plane, s.y_image, s.y_plane, s.residual_image, s.residual_plane, s.images, s.channels,
                   s.outputs, s.taps});
    const int64_t in = s.window.height * s.window.width, out = s.window.out_height * s.window.out_width;
    const int64_t some = (s.outputs + TOGETHER - 1) / TOGETHER;
    DenseConv d{};
    d.conv = {window_of(s.window, s.channels, memory.scratch_size()),
              s.images,
              1,
              s.channels,
              s.outputs,
              s.x_image,
              s.x_plane,
              s.y_image,
              s.y_plane,
              s.residual_image,
              s.residual_plane,
              1,
              memory.source(s.x, extent(s.images, s.x_image, extent(s.channels, s.x_plane, in))),
              memory.source(s.residual, extent(s.images, s.residual_image, extent(s.outputs, s.residual_plane, out))),
              memory.find(s.y, extent(s.images, s.y_image, extent(s.outputs, s.y_plane, out))),
              nullptr,
              nullptr,
              nullptr,
              memory.constant<float>(s.bias, s.outputs, {ScalarType::Float}),
              Activation(s.activation)};
    d.offset = memory.constant<int32_t>(s.offset, s.taps, {ScalarType::Int});
    d.weight = memory.constant<float>(s.weight, some * TOGETHER * s.taps, {ScalarType::Float});
    d.taps = s.taps;
    require(d.conv.x && d.conv.y && d.offset && d.weight);
    require_room(s.outputs, s.y_plane, out);
    require(s.reach <= s.channels * (s.window.channel ? s.window.channel : s.x_plane));
    const int64_t bands = bands_of(s.window), units = s.images * bands;
    const int64_t divided = units >= 2 * threads() ? 1 : std::min(some, threads());
    const Kernels& k = kernels();
    in_tasks(units * divided, [&](int64_t thread, int64_t task) {
        const int64_t unit = task / divided, share = task % divided;
        k.dense(d, unit / bands, unit % bands, some * share / divided, some * (share + 1) / divided, memory.scratch(thread));
    });
}

void run(const VectorStep& s, const Memory& memory) {
    require_sizes({s.rows, s.columns});
    require(s.values != NONE && (s.crow == NONE) == (s.col == NONE));
    const bool dense = s.crow == NONE;
    const int32_t* const crow = memory.constant<int32_t>(s.crow, s.rows + 1, {ScalarType::Int});
    const int64_t nnz = dense ? s.rows * s.columns : crow[s.rows];
    const ScalarType type = memory.type_of(s.values);
    require(!dense || type == ScalarType::Float);
    const Vector v{s.rows,
                   s.columns,
                   memory.source(s.x, s.columns),
                   memory.source(s.residual, s.rows),
                   memory.find(s.y, s.rows),
                   crow,
                   memory.constant<void>(s.col, nnz, {ScalarType::UInt16, ScalarType::Int}),
                   !dense && memory.type_of(s.col) == ScalarType::Int,
                   memory.constant<void>(s.values, nnz, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Char}),
                   type == ScalarType::Float      ? Values::float32
                   : type == ScalarType::BFloat16 ? Values::bfloat16
                                                  : Values::int8,
                   memory.constant<float>(s.scale, s.rows, {ScalarType::Float}),
                   memory.constant<float>(s.bias, s.rows, {ScalarType::Float}),
                   Activation(s.activation)};
    require(v.x && v.y);
    const int64_t parts = std::clamp<int64_t>(nnz / 4096, 1, std::min(threads(), std::max<int64_t>(s.rows, 1)));
    const auto first = [&](int64_t part) -> int64_t { // rows that have equally many connections
        if (part == parts || dense) return s.rows * part / parts;
        return std::lower_bound(crow, crow + s.rows, int32_t(nnz * part / parts)) - crow;
    };
    const Kernels& k = kernels();
    in_tasks(parts, [&](int64_t, int64_t part) { k.vector(v, first(part), first(part + 1)); });
}

} // namespace regrow::infer
