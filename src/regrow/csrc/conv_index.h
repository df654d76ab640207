// What the kernels for convolutions read beside the activations, worked out from a compressed weight at each call.
#pragma once

#include <vector>

#include "conv.h"
#include "tiles.h"

namespace regrow {

// Where a convolution's taps lie; vertically, then horizontally.
struct Window {
    int64_t kernel[2], stride[2], before[2], after[2], dilation[2]; // before, after: rows and columns of padding

    int64_t taps() const { return kernel[0] * kernel[1]; }
    int64_t span(int d) const { return dilation[d] * (kernel[d] - 1) + 1; }
    int64_t output(int d, int64_t size) const { return (size + before[d] + after[d] - span(d)) / stride[d] + 1; }
    // The input's pixel that a tap reads at the output's pixel 0.
    int64_t origin(int d, int64_t tap) const { return tap * dilation[d] - before[d]; }
    // The border of the input that is read, and that of the output's gradient.
    int64_t border(const Geometry& in, const Geometry& out) const;
    int64_t gradient_border(const Geometry& in, const Geometry& out) const;
};

// Channels with a connection, ascending, and where in the list each block of channels begins.
struct Used {
    std::vector<int32_t> channels, start; // [number], [blocks + 1]
    ChannelList read() const { return {channels.data(), start.data()}; }
};

// For the forward pass: connections as they are, in blocks of input channels.
struct ForwardIndex {
    // patch: pixels that a kernel holds; large: the activations come from memory
    ForwardIndex(const int32_t* crow, const int32_t* col, int64_t rows, int64_t channels, const Window& window,
                 const Geometry& in, int64_t patch, bool large);
    int64_t blocks;
    std::vector<int32_t> start, offset;
    Used used;
};

// Pixels of the input that meet the same taps, and their connections: [blocks][channels + 1] of one part.
struct Sweep {
    int64_t first[2], size[2]; // of the pixels, as many as the stride apart
    std::vector<int32_t> start;
};

// For the backward pass: connections by part of the input channels, sweep, block of output channels, input channel.
struct BackwardIndex {
    // values: as many as `order` may name
    BackwardIndex(const int32_t* crow_t, const int32_t* row_t, const int32_t* order, int64_t values, int64_t rows,
                  int64_t channels, const Window& window, const Geometry& in, const Geometry& out, int64_t patch, bool large,
                  int64_t most);
    struct Part {
        int64_t begin, end; // input channels
        int64_t first, last; // connections
        std::vector<Sweep> sweeps;
    };
    int64_t blocks;
    std::vector<Part> parts; // at most `most`
    std::vector<int32_t> offset, place; // place: in the values
    Used used;
};

} // namespace regrow
