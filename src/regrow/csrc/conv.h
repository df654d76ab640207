// Convolutions on batch tiles with a compressed weight: what their kernels are given.
//
// A weight [O, I, kh, kw] is the CSR matrix [O, I * kh * kw]. One connection is a scalar times a run of pixels, each of
// TILE batch elements; where its run starts is the connection's offset, worked out once for all tiles and pixels.
#pragma once

#include <cstdint>

namespace regrow {

// Pixel (p, q) of a channel of a tile is at data + tile * tiles + channel * channels + p * rows + q * pixels.
template <class T>
struct Pixels {
    T* data;
    int64_t tiles, channels, rows, pixels; // distances in elements
};

// Channels that some connection reads, block by block.
struct ChannelList {
    const int32_t* all;
    const int32_t* start; // [blocks + 1]
};

template <class T>
struct ConvForward {
    const int32_t* start;  // [blocks + 1][outputs]: the first connection of each output in each block of input channels
    const int32_t* offset; // [connections]: from the input at an output's pixel to what the connection reads there
    const T* values;       // [connections]
    const T* bias;         // [outputs] or null
    const T* residual;     // added, laid out as y; or null
    Pixels<const T> x;     // by the output's pixels: `rows` and `pixels` hold the stride
    Pixels<T> y;
    int64_t outputs, blocks, width;
    bool large; // more than the caches hold: what is read soon is fetched early, what is written goes past them
    ChannelList read;
    int64_t below; // from the input at an output's pixel to the lowest row that is read there
};

// Gradients of the input and of the values for some input channels, by pixels of the input that meet the same taps:
// without a stride all of them, else those of one remainder. These go through the output gradient by single pixels.
template <class T>
struct ConvBackward {
    const int32_t* start;  // [blocks][inputs + 1]: the connections of each input channel in each block of outputs
    const int32_t* offset; // [connections]: from the output gradient at a pixel to what the connection reads there
    const T* values;       // [connections], in this order
    T* sums;               // [connections] of the values' gradient, added to; null: not wanted
    T* products;           // [connections][a vector] that waits for `reduce`, added to; null: straight to the sums
    Pixels<const T> gradient;
    Pixels<const T> x;
    Pixels<T> dx;    // null: not wanted
    const T* passed; // added to it, laid out as dx; or null
    int64_t inputs, blocks, height, width;
    bool large;   // as above
    ChannelList read; // of the output gradient
    int64_t below; // from the output gradient at a pixel to the lowest row that is read there
};

template <class T>
struct ConvKernels {
    int64_t vector;                          // elements
    int64_t forward_pixels, backward_pixels; // of a patch
    // rows [begin, end) of pixels of one tile
    void (*forward)(const ConvForward<T>&, int64_t tile, int64_t begin, int64_t end);
    void (*backward)(const ConvBackward<T>&, int64_t tile);
    void (*reduce)(const T* products, T* sums, int64_t connections);
};

} // namespace regrow
