// Steps of inference programs between the layers: checked, and divided among the threads.
#include "infer_steps.h"

namespace regrow::infer {
namespace {

constexpr int64_t LEAST = 1 << 15; // numbers that are worth a second thread
constexpr int64_t LINE = 16;       // floats; vectors are no longer

int64_t parts_of(double numbers) { return numbers < LEAST ? 1 : threads(); }

// f(image, first, last, thread) for all channels of all images.
template <class F>
void each_part(int64_t images, int64_t channels, double numbers, const F& f) {
    const int64_t parts = images >= threads() ? 1 : std::min(channels, parts_of(numbers));
    const auto one = [&](int64_t thread, int64_t task) {
        const int64_t part = task % parts;
        f(task / parts, channels * part / parts, channels * (part + 1) / parts, thread);
    };
    if (parts_of(numbers) > 1) return in_tasks(images * parts, one);
    for (int64_t task = 0; task < images * parts; task++) one(0, task);
}

Activation activation_of(int64_t number) {
    require(number >= 0 && number <= int64_t(Activation::tanh));
    return Activation(number);
}

} // namespace

void run(const MapStep& s, const Memory& memory) {
    require(s.operation >= 0 && s.operation <= int64_t(Operation::divide));
    Map m{Operation(s.operation), activation_of(s.activation)};
    int64_t x, b, c, y;
    const int64_t all = elements(DIMENSIONS, s.size, s.x_stride, &x);
    elements(DIMENSIONS, s.size, s.b_stride, &b);
    elements(DIMENSIONS, s.size, s.c_stride, &c);
    elements(DIMENSIONS, s.size, s.y_stride, &y);
    if (!all) return;
    for (int d = 0; d < DIMENSIONS; d++) {
        m.size[d] = s.size[d];
        m.x_stride[d] = s.x_stride[d];
        m.b_stride[d] = s.b_stride[d];
        m.c_stride[d] = s.c_stride[d];
        m.y_stride[d] = s.y_stride[d];
    }
    m.x = memory.source(s.x, x);
    m.b = memory.source(s.b, b);
    m.c = memory.source(s.c, c);
    m.y = memory.find(s.y, y);
    constexpr int INNER = DIMENSIONS - 1;
    for (const auto& stride : {s.x_stride, s.b_stride, s.c_stride}) require(stride[INNER] <= 1);
    require(m.x && m.y && (m.b || m.operation == Operation::none) && s.y_stride[INNER] == 1);
    const int64_t columns = s.size[INNER], rows = all / columns, parts = parts_of(all);
    const Kernels& k = kernels();
    in_tasks(parts, [&](int64_t, int64_t part) {
        if (rows >= parts) return k.map(m, rows * part / parts, rows * (part + 1) / parts, 0, columns);
        const auto border = [&](int64_t i) { return i == parts ? columns : columns * i / parts / LINE * LINE; };
        k.map(m, 0, rows, border(part), border(part + 1));
    });
}

void run(const MeanStep& s, const Memory& memory) {
    require_sizes({s.images, s.channels, s.pixels, s.x_image, s.x_plane, s.y_image, s.y_plane});
    const Mean m{memory.source(s.x, extent(s.images, s.x_image, extent(s.channels, s.x_plane, s.pixels))),
                 memory.find(s.y, extent(s.images, s.y_image, extent(s.channels, s.y_plane, 1))),
                 s.pixels,
                 s.x_image,
                 s.x_plane,
                 s.y_image,
                 s.y_plane};
    require(m.x && m.y);
    const Kernels& k = kernels();
    each_part(s.images, s.channels, double(s.images) * s.channels * s.pixels,
              [&](int64_t image, int64_t first, int64_t last, int64_t) { k.mean(m, image, first, last); });
}

void run(const PoolStep& s, const Memory& memory) {
    require_sizes({s.images, s.channels, s.x_image, s.x_plane, s.y_image, s.y_plane, s.height, s.width, s.out_height,
                   s.out_width, s.kernel_y, s.kernel_x, s.padding_y, s.padding_x, s.divisor, s.scratch});
    for (const int64_t each : {s.height, s.width, s.out_height, s.out_width, s.padding_y, s.padding_x})
        require(each <= int64_t(1) << 30);
    require(s.height > 0 && s.width > 0 && s.scratch % LINE == 0 && memory.scratch_size() >= 3 * s.scratch);
    if (s.adaptive) {
        require(!s.max && s.scratch >= std::max(s.width, s.out_width) + 2 * LINE);
    } else {
        for (const int64_t each : {s.kernel_y, s.kernel_x, s.stride_y, s.stride_x, s.dilation_y, s.dilation_x})
            require(each > 0 && each <= int64_t(1) << 30);
        require(s.scratch >= s.padding_x + s.width + 2 * LINE &&
                s.scratch >= s.out_width * s.stride_x + (s.kernel_x - 1) * s.dilation_x + 3 * LINE);
    }
    const Pool p{memory.source(s.x, extent(s.images, s.x_image, extent(s.channels, s.x_plane, s.height * s.width))),
                 memory.find(s.y, extent(s.images, s.y_image, extent(s.channels, s.y_plane, s.out_height * s.out_width))),
                 s.x_image,
                 s.x_plane,
                 s.y_image,
                 s.y_plane,
                 s.max != 0,
                 s.adaptive != 0,
                 s.count_padding != 0,
                 s.height,
                 s.width,
                 s.out_height,
                 s.out_width,
                 s.kernel_y,
                 s.kernel_x,
                 s.stride_y,
                 s.stride_x,
                 s.padding_y,
                 s.padding_x,
                 s.dilation_y,
                 s.dilation_x,
                 s.divisor,
                 s.scratch};
    require(p.x && p.y);
    const Kernels& k = kernels();
    each_part(s.images, s.channels, double(s.images) * s.channels * s.height * s.width,
              [&](int64_t image, int64_t first, int64_t last, int64_t thread) {
                  k.pool(p, image, first, last, memory.scratch(thread));
              });
}

void run(const NormStep& s, const Memory& memory) {
    require_sizes({s.images, s.channels, s.pixels, s.x_image, s.x_plane, s.y_image, s.y_plane});
    // whole vectors are written: where there are pixels, into what lies between the planes
    const bool vector = s.x_plane == 1 && s.y_plane == 1;
    const int64_t whole = (s.pixels + LINE - 1) / LINE * LINE;
    require(vector ? s.pixels == 1 : s.y_plane >= whole);
    const Norm n{memory.source(s.x, extent(s.images, s.x_image, extent(s.channels, s.x_plane, s.pixels))),
                 memory.constant<float>(s.weight, s.channels, {ScalarType::Float}),
                 memory.constant<float>(s.bias, s.channels, {ScalarType::Float}),
                 memory.find(s.y, extent(s.images, s.y_image, extent(s.channels, s.y_plane, vector ? 1 : whole))),
                 s.channels,
                 s.pixels,
                 s.x_image,
                 s.x_plane,
                 s.y_image,
                 s.y_plane,
                 float(s.epsilon),
                 s.softmax != 0};
    require(n.x && n.y);
    const Kernels& k = kernels();
    const int64_t runs = (s.pixels + k.run - 1) / k.run;
    each_part(s.images, runs, double(s.images) * s.channels * s.pixels,
              [&](int64_t image, int64_t first, int64_t last, int64_t) {
                  if (first < last) k.norm(n, image, first * k.run, std::min(s.pixels, last * k.run));
              });
}

void run(const AttentionStep& s, const Memory& memory) {
    require_sizes({s.q_image, s.q_head, s.q_plane, s.k_image, s.k_head, s.k_plane, s.v_image, s.v_head, s.v_plane, s.y_image,
                   s.y_head, s.y_plane, s.images, s.heads, s.queries, s.keys, s.size, s.out_size});
    const Kernels& k = kernels();
    const int64_t whole = (s.queries + LINE - 1) / LINE * LINE;
    require(s.y_plane >= whole && memory.scratch_size() >= s.keys * k.queries && s.scale > 0);
    const auto floats = [&](int64_t image, int64_t head, int64_t plane, int64_t channels, int64_t tokens) {
        return extent(s.images, image, extent(s.heads, head, extent(channels, plane, tokens)));
    };
    const Attention a{memory.source(s.q, floats(s.q_image, s.q_head, s.q_plane, s.size, s.queries)),
                      memory.source(s.k, floats(s.k_image, s.k_head, s.k_plane, s.size, s.keys)),
                      memory.source(s.v, floats(s.v_image, s.v_head, s.v_plane, s.out_size, s.keys)),
                      memory.find(s.y, floats(s.y_image, s.y_head, s.y_plane, s.out_size, whole)),
                      s.q_image,
                      s.q_head,
                      s.q_plane,
                      s.k_image,
                      s.k_head,
                      s.k_plane,
                      s.v_image,
                      s.v_head,
                      s.v_plane,
                      s.y_image,
                      s.y_head,
                      s.y_plane,
                      s.queries,
                      s.keys,
                      s.size,
                      s.out_size,
                      float(s.scale),
                      s.causal != 0};
    require(a.q && a.k && a.v && a.y);
    const int64_t blocks = (s.queries + k.queries - 1) / k.queries;
    in_tasks(s.images * s.heads * blocks, [&](int64_t thread, int64_t task) {
        const int64_t block = task % blocks, head = task / blocks % s.heads;
        k.attention(a, task / blocks / s.heads, head, block * k.queries, std::min(s.queries, (block + 1) * k.queries),
                    memory.scratch(thread));
    });
}

} // namespace regrow::infer
