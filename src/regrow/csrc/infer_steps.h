// An inference program as it stands in a tensor of whole numbers: a header, then steps, each its kind, the number of its
// fields, and these. `regrow.inference.steps` writes what is read here, field by field in the same order.
#pragma once

#include <cstdint>
#include <vector>

#include "infer.h"
#include "torch.h"

namespace regrow::infer {

constexpr int64_t FORMAT = 1;

struct Header {
    int64_t format, arena, scratch, steps; // floats of the arena, floats of each thread's scratch memory, number of steps
};

// A place in memory: of the arena (0), of an input (1, 2, ...), of an output (following the inputs), or, to be read only, of
// a constant (-2, -3, ...); in floats.
struct Place { int64_t space, at; };

constexpr int64_t NONE = -1; // a constant, or a space, that is not there

struct WindowStep {
    int64_t height, width, out_height, out_width, kernel_height, kernel_width, stride_y, stride_x, padding_y, padding_x,
        dilation_y, dilation_x, band, phases, copy, channel;
};

struct ConvStep {
    static constexpr int64_t KIND = 1;
    Place x, y, residual;
    int64_t x_image, x_plane, y_image, y_plane, residual_image, residual_plane;
    int64_t images, groups, channels, outputs, blocks;
    int64_t start, order, connections, parts, bias, activation; // constants; parts: [n + 1], outputs in `order`
    int64_t reach; // floats of a channel, or its copies, that connections read
    WindowStep window;
};

struct DenseStep {
    static constexpr int64_t KIND = 2;
    Place x, y, residual;
    int64_t x_image, x_plane, y_image, y_plane, residual_image, residual_plane;
    int64_t images, channels, outputs, taps;
    int64_t offset, weight, bias, activation;
    int64_t reach;
    WindowStep window;
};

struct VectorStep {
    static constexpr int64_t KIND = 3;
    Place x, y, residual;
    int64_t rows, columns;
    int64_t crow, col, values, scale, bias, activation; // without crow and col: a dense weight, float32
};

constexpr int64_t DIMENSIONS_OF_COPY = 6;

// y[i] = x[i], in any order of dimensions; sizes of 1 where there are fewer.
struct CopyStep {
    static constexpr int64_t KIND = 4;
    Place x, y;
    int64_t size[DIMENSIONS_OF_COPY], x_stride[DIMENSIONS_OF_COPY], y_stride[DIMENSIONS_OF_COPY];
};

// y = activation((x operation b) + c); b and c may be left out.
struct MapStep {
    static constexpr int64_t KIND = 5;
    Place x, b, c, y;
    int64_t operation, activation;
    int64_t size[DIMENSIONS], x_stride[DIMENSIONS], b_stride[DIMENSIONS], c_stride[DIMENSIONS], y_stride[DIMENSIONS];
};

struct MeanStep {
    static constexpr int64_t KIND = 6;
    Place x, y;
    int64_t images, channels, pixels, x_image, x_plane, y_image, y_plane;
};

struct PoolStep {
    static constexpr int64_t KIND = 7;
    Place x, y;
    int64_t images, channels, x_image, x_plane, y_image, y_plane;
    int64_t max, adaptive, count_padding;
    int64_t height, width, out_height, out_width;
    int64_t kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
    int64_t divisor, scratch;
};

struct NormStep {
    static constexpr int64_t KIND = 8;
    Place x, y;
    int64_t images, channels, pixels, x_image, x_plane, y_image, y_plane;
    int64_t weight, bias; // constants
    int64_t softmax;
    double epsilon;
};

struct AttentionStep {
    static constexpr int64_t KIND = 9;
    Place q, k, v, y;
    int64_t q_image, q_head, q_plane, k_image, k_head, k_plane, v_image, v_head, v_plane, y_image, y_head, y_plane;
    int64_t images, heads, queries, keys, size, out_size;
    int64_t causal;
    double scale;
};

// A convolution in int8: the sizes of its window in bytes.
struct Int8Step {
    static constexpr int64_t KIND = 10;
    Place x, y, residual;
    int64_t x_image, x_plane, y_image, y_plane, residual_image, residual_plane;
    int64_t images, groups, channels, outputs;
    int64_t start, order, bundle, pairs, parts, correction, scale, bias, activation; // constants
    int64_t is_signed; // whether the input is rounded to [-127, 127] or [0, 127]
    double inverse; // of the input's scale
    int64_t reach;
    WindowStep window;
};

// What a step is done with.
class Memory {
public:
    Memory(float* arena, int64_t size, int64_t scratch, const std::vector<Tensor>& constants,
           const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs);

    // `size` floats from a place on, which must be there; null where the space is NONE.
    float* find(Place place, int64_t size) const;
    const float* source(Place place, int64_t size) const; // of constants too
    // A constant of at least `size` elements of some type; null where it is NONE.
    template <class T>
    const T* constant(int64_t index, int64_t size, std::initializer_list<ScalarType> types) const {
        return static_cast<const T*>(find_constant(index, size, types));
    }
    ScalarType type_of(int64_t index) const { return constants_.at(index).scalar_type(); }
    int64_t size_of(int64_t index) const { return constants_.at(index).numel(); }
    // One thread's own.
    float* scratch(int64_t part) const { return arena_ + arena_size_ + part * scratch_; }
    int64_t scratch_size() const { return scratch_; }

private:
    const void* find_constant(int64_t index, int64_t size, std::initializer_list<ScalarType> types) const;

    struct Space {
        float* data;
        int64_t size;
    };
    float* arena_;
    int64_t arena_size_, scratch_;
    std::vector<Space> spaces_;
    const std::vector<Tensor>& constants_;
};

inline void require(bool holds) { STD_TORCH_CHECK(holds, "a step of an inference program contradicts itself"); }

// Sizes are such that a sum of a few does not overflow.
inline void require_sizes(std::initializer_list<int64_t> sizes) {
    for (const int64_t size : sizes) require(size >= 0 && size <= int64_t(1) << 40);
}

// As many floats as the last of `count` rows ends at, `stride` apart and `size` long.
inline int64_t extent(int64_t count, int64_t stride, int64_t size) {
    if (count <= 0) return 0;
    require(double(count) * double(stride) < double(int64_t(1) << 50));
    return (count - 1) * stride + size;
}

// The same of a tensor of these sizes and strides, where none is 0; returns how many elements it has.
inline int64_t elements(int dimensions, const int64_t* size, const int64_t* stride, int64_t* extent) {
    double all = 1, last = 0;
    for (int d = 0; d < dimensions; d++) {
        require_sizes({size[d], stride[d]});
        all *= double(size[d]);
        last += double(size[d]) * double(stride[d]);
    }
    require(all < double(int64_t(1) << 50) && last < double(int64_t(1) << 50));
    *extent = 1;
    for (int d = 0; d < dimensions; d++) *extent += (size[d] - 1) * stride[d];
    return int64_t(all);
}

void run(const ConvStep&, const Memory&);
void run(const Int8Step&, const Memory&);
void run(const DenseStep&, const Memory&);
void run(const VectorStep&, const Memory&);
void run(const CopyStep&, const Memory&);
void run(const MapStep&, const Memory&);
void run(const MeanStep&, const Memory&);
void run(const PoolStep&, const Memory&);
void run(const NormStep&, const Memory&);
void run(const AttentionStep&, const Memory&);

// f(part, task) for each of `tasks` tasks, the threads each taking a range of them; part: below `threads()`.
int64_t threads();
template <class F>
void in_tasks(int64_t tasks, const F& f) {
    const int64_t parts = std::min(tasks, threads());
    if (parts <= 1) {
        for (int64_t task = 0; task < tasks; task++) f(0, task);
        return;
    }
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; part++)
            for (int64_t task = tasks * part / parts; task < tasks * (part + 1) / parts; task++) f(part, task);
    });
}

} // namespace regrow::infer
