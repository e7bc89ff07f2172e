// Computes where pixels lie between feature cells, as F.interpolate does with align_corners=False.

#ifndef KILOSEG_GEOMETRY_H
#define KILOSEG_GEOMETRY_H

#include <stdint.h>

#include "lanes.h"

struct between {
    int64_t first, second;
    float part;
};

INLINE struct between between(int64_t pixel, int64_t pixels, int64_t cells) {
    float at = (float)cells / (float)pixels * ((float)pixel + 0.5f) - 0.5f;
    at = at > 0 ? at : 0;
    int64_t first = (int64_t)at;
    first = first < cells ? first : cells - 1;
    return (struct between){first, first + 1 < cells ? first + 1 : first, at - (float)first};
}

// Returns the pairs of neighboring cells along one axis; an axis of one cell has one pair, which is that cell twice.
INLINE int64_t intervals(int64_t cells) { return cells > 1 ? cells - 1 : 1; }

// Finds the interval of each pixel of an axis, as the first pixel of each interval (and the number of pixels at the end), and the
// share of its second cell. Pixels beyond the last cell's center belong to the last interval with a share of 1.
INLINE void divide_axis(int64_t pixels, int64_t cells, int32_t *starts, float *parts) {
    int64_t filled = 0;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        struct between found = between(pixel, pixels, cells);
        parts[pixel] = found.part;
        if (found.first == cells - 1) {
            parts[pixel] = cells > 1 ? 1 : 0;
            if (cells > 1) found.first = cells - 2;
        }
        for (; filled <= found.first; ++filled) starts[filled] = (int32_t)pixel;
    }
    for (; filled <= intervals(cells); ++filled) starts[filled] = (int32_t)pixels;
}

#endif
