// Steps of an inference program, and the kernels that do them.
//
// Values are float32 in planes: channel c of image n starts at data + n * image + c * plane, its pixels follow one another,
// and what lies between the last pixel and the next plane may hold anything. The tokens of a transformer and the examples
// of a batch of vectors are pixels too; a single vector has planes of one number.
#pragma once

#include <cstdint>

namespace regrow::infer {

enum class Activation : int64_t { none, relu, relu6, silu, gelu, hardswish, hardsigmoid, sigmoid, tanh };

// One connection of a convolution: where its input starts, in floats from that of the pixel, and its value.
struct Connection {
    int32_t offset;
    float value;
};

// How a convolution reads images: for each column of the kernel, and each residue of its rows by the stride, a copy of the
// channel in which the pixels that neighbouring outputs read are neighbours. Each tap is then a run of such a copy.
struct Window {
    int64_t height, width, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
    int64_t band;    // output rows at a time
    int64_t phases;  // residues that are used
    int64_t copy;    // floats of one copy
    int64_t channel; // floats of all copies of one channel; 0: channels are read where they are
};

// A convolution of some images: out = activation(weight * x + bias + residual).
struct Conv {
    Window window;
    int64_t images, groups, channels, outputs; // the last two: of one group
    int64_t x_image, x_plane, y_image, y_plane, residual_image, residual_plane;
    int64_t blocks;             // of input channels
    const float *x, *residual;  // residual: null where there is none
    float* y;
    const int32_t* start;       // [groups, blocks, outputs + 1]: of the connections, in the order of `order`
    const int32_t* order;       // [groups, blocks, outputs]: outputs with equally many connections follow one another
    const Connection* connections;
    const float* bias;          // [groups * outputs] or null
    Activation activation;
};

constexpr int64_t TOGETHER = 6; // outputs of a dense weight that are computed together

// The same with a dense weight, without groups.
struct DenseConv {
    Conv conv;             // without connections
    const int32_t* offset; // [taps]
    const float* weight;   // [outputs / TOGETHER, rounded up; taps; TOGETHER]
    int64_t taps;
};

// Two connections of a convolution in int8: where their inputs start, in bytes from that of the pixel, and their values,
// twice.
struct BytePair {
    int32_t first, second;
    int8_t value[4];
};

// What is added to the sum of a bundle of pairs, such that it is not negative.
constexpr uint16_t BUNDLE_OFFSET = 0x8000;
// Bytes behind the copies, and behind the pixels of a channel, that may be read and written, though never used.
constexpr int64_t INT8_SLACK = 128;

// A convolution of an input that is rounded to bytes, out = activation((sum + correction) * scale + bias + residual).
struct Int8Conv {
    Conv conv;             // without connections; `start` and `order` in one block, of pairs; sizes of the window in bytes
    bool direct;           // a copy of a channel is the channel
    const int32_t* bundle; // [groups, outputs]: pairs of a bundle, in the order of `order`
    const BytePair* pairs;
    const int32_t* correction; // [groups * outputs]: for `zero` and BUNDLE_OFFSET
    const float* scale;        // [groups * outputs]: of the row times that of the input
    float inverse;             // of the input's scale
    float lowest;              // of the rounded input; the highest is 127
    uint8_t zero;              // the byte of an input of 0
};

enum class Values : int64_t { float32, bfloat16, int8 };

// y = activation(W x + bias + residual) of one vector.
struct Vector {
    int64_t rows, columns;
    const float *x, *residual; // residual: null where there is none
    float* y;
    const int32_t* crow; // null: the weight is dense, [rows, columns] in float32
    const void* col;     // uint16 or int32
    bool wide;           // int32
    const void* values;
    Values kind;
    const float *scale, *bias; // [rows] or null
    Activation activation;
};

constexpr int DIMENSIONS = 4; // of a map

enum class Operation : int64_t { none, add, subtract, multiply, divide };

// y = activation((x operation b) + c), element by element; operands have strides of 0 along what they are repeated for.
struct Map {
    Operation operation;
    Activation activation;
    const float *x, *b, *c; // b, c: null where there is none
    float* y;
    int64_t size[DIMENSIONS], x_stride[DIMENSIONS], b_stride[DIMENSIONS], c_stride[DIMENSIONS], y_stride[DIMENSIONS];
};

// The mean of each channel's pixels.
struct Mean {
    const float* x;
    float* y;
    int64_t pixels, x_image, x_plane, y_image, y_plane;
};

// The greatest of, or the mean over, a window of pixels for each pixel of the output.
struct Pool {
    const float* x;
    float* y;
    int64_t x_image, x_plane, y_image, y_plane;
    bool max, adaptive, count_padding; // adaptive: windows that divide the image, kernel and what follows are not used
    int64_t height, width, out_height, out_width;
    int64_t kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
    int64_t divisor; // of the mean, 0: the pixels that it is over
    int64_t scratch; // floats of one row
};

// A softmax over the channels, or a layer norm: each pixel on its own.
struct Norm {
    const float *x, *weight, *bias; // weight, bias: [channels] or null
    float* y;
    int64_t channels, pixels, x_image, x_plane, y_image, y_plane;
    float epsilon;
    bool softmax;
};

// softmax(scale * Q^T K) V^T of each head, which has planes of its own in all of them; queries and keys are the pixels.
struct Attention {
    const float *q, *k, *v;
    float* y;
    int64_t q_image, q_head, q_plane, k_image, k_head, k_plane, v_image, v_head, v_plane, y_image, y_head, y_plane;
    int64_t queries, keys, size, out_size; // channels of a head, of q and k, and of v and y
    float scale;
    bool causal;
};

struct Kernels {
    int64_t pixels;  // that a kernel holds in registers
    int64_t run;     // pixels that a norm takes at a time
    int64_t queries; // that attention takes at a time
    // outputs [first, last) by their place in `order`, of one group of one image, in one band of output rows
    void (*conv)(const Conv&, int64_t image, int64_t group, int64_t band, int64_t first, int64_t last, float* scratch);
    void (*int8)(const Int8Conv&, int64_t image, int64_t group, int64_t band, int64_t first, int64_t last, float* scratch);
    // first, last: of the outputs by `TOGETHER`
    void (*dense)(const DenseConv&, int64_t image, int64_t band, int64_t first, int64_t last, float* scratch);
    void (*vector)(const Vector&, int64_t first, int64_t last); // rows
    // of rows [first, last), all dimensions but the last, the elements [begin, end)
    void (*map)(const Map&, int64_t first, int64_t last, int64_t begin, int64_t end);
    void (*mean)(const Mean&, int64_t image, int64_t first, int64_t last); // channels
    void (*pool)(const Pool&, int64_t image, int64_t first, int64_t last, float* scratch);
    void (*norm)(const Norm&, int64_t image, int64_t begin, int64_t end); // pixels, begin a multiple of `run`
    // queries [begin, end), begin a multiple of `queries`; scratch: keys * queries
    void (*attention)(const Attention&, int64_t image, int64_t head, int64_t begin, int64_t end, float* scratch);
    // y[r * y_row + c] = x[r + c * x_column]
    void (*transpose)(const float* x, float* y, int64_t rows, int64_t columns, int64_t x_column, int64_t y_row);
};

const Kernels& kernels(); // of the instruction set in use

} // namespace regrow::infer
