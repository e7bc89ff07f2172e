// Computes products of a group of pixels with rows of a class table, one tile at a time.

#ifndef KILOSEG_SCORES_H
#define KILOSEG_SCORES_H

#include "lanes.h"

// Adds ROWS x VECTORS products to `sums`. `o` is (D, GROUP), `rows` is (ROWS, width).
INLINE void products(const float *o, const float *rows, int64_t D, int64_t width, vec sums[ROWS][VECTORS]) {
    for (int64_t d = 0; d < D; ++d) {
        vec pixels[VECTORS];
        for (int u = 0; u < VECTORS; ++u) pixels[u] = load(o + d * GROUP + u * LANES);
        for (int r = 0; r < ROWS; ++r) {
            vec row = splat(rows[r * width + d]);
            for (int u = 0; u < VECTORS; ++u) sums[r][u] += row * pixels[u];
        }
    }
}

#endif
