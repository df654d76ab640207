// Batch tiles: images [N, C, H, W] as one buffer [T, C, P, 16], T = ceil(N / 16), with 16 batch elements innermost and
// P lines of 16 to a channel: the image row by row with a border of zeros around it, rounded up by `plane`. The border at
// the right of a row is the one at the left of the next.
// Border, rounding lines and lanes past the batch hold zeros, in every buffer.
#pragma once

#include <cstdint>

namespace regrow {

constexpr int64_t TILE = 16; // batch elements that are stored together

// Lines of a channel. Channels a multiple of 64 lines apart fall upon the same few lines of the caches.
inline int64_t plane(int64_t height, int64_t width, int64_t border) {
    const int64_t lines = (height + 2 * border) * (width + border) + border;
    return lines % 64 == 0 ? lines + 1 : lines;
}

struct Geometry {
    int64_t images, height, width, border;
    int64_t tiles() const { return (images + TILE - 1) / TILE; }
    int64_t pixels() const { return height * width; }
    int64_t row() const { return width + border; }                 // lines from one row to the next
    int64_t first() const { return border * row() + border; }      // line of the first pixel
    int64_t size() const { return plane(height, width, border) * TILE; } // elements of a channel
    // images of tile t
    int64_t present(int64_t t) const { return images - t * TILE < TILE ? images - t * TILE : TILE; }
    int64_t line(int64_t pixel) const { return first() + pixel / width * row() + pixel % width; }
};

// Images in torch's layouts beside their tiles, for a copy either way. Where `by_channel`, the channels of a pixel
// follow one another in memory; else the pixels of a channel do.
template <class T>
struct Tiling {
    T* images;
    T* buffer;
    int64_t channels;
    int64_t batch_stride, channel_stride, row_stride, pixel_stride; // of `images`
    bool by_channel;
    Geometry geometry;
};

// Sets the images that tile t lacks to zero in one channel.
template <class T>
void clear_absent(const Geometry& g, T* channel, int64_t t);

} // namespace regrow
