// Computes products of small dense matrices whose sums stay in registers.

#ifndef KILOSEG_MATRIX_H
#define KILOSEG_MATRIX_H

#include "lanes.h"

#define TILE (LANES * VECTORS)  // classes side by side in a panel of scores
#if LANES == 16
#define STRIP 8  // rows of a product that are computed together
#else
#define STRIP 4
#endif

// Computes scores (ROWS, TILE) = vectors (ROWS, width) x panel (D, TILE), the first COUNT vectors of each row.
#define SCORE_ROWS(COUNT)                                                                                             \
    static void score_rows_##COUNT(const float *vectors, int64_t width, const float *panel, int64_t D, float *scores) { \
        vec sums[ROWS][COUNT] = {0};                                                                                  \
        for (int64_t d = 0; d < D; ++d) {                                                                             \
            vec row[COUNT];                                                                                           \
            for (int u = 0; u < COUNT; ++u) row[u] = load(panel + d * TILE + u * LANES);                              \
            for (int r = 0; r < ROWS; ++r)                                                                            \
                for (int u = 0; u < COUNT; ++u) sums[r][u] += splat(vectors[r * width + d]) * row[u];                 \
        }                                                                                                             \
        for (int r = 0; r < ROWS; ++r)                                                                                \
            for (int u = 0; u < COUNT; ++u) store(scores + r * TILE + u * LANES, sums[r][u]);                         \
    }
SCORE_ROWS(1)
SCORE_ROWS(2)
#if VECTORS == 4
SCORE_ROWS(4)
#endif

// Computes the scores of `count` cells, a multiple of ROWS, with the first `classes` classes of one panel.
static void score_cells(
    const float *cells, int64_t width, int64_t count, const float *panel, int64_t D, int64_t classes, float *scores
) {
    for (int64_t r = 0; r < count; r += ROWS) {
        const float *from = cells + r * width;
        float *to = scores + r * TILE;
        if (classes <= LANES) score_rows_1(from, width, panel, D, to);
        else if (classes <= 2 * LANES || VECTORS == 2) score_rows_2(from, width, panel, D, to);
#if VECTORS == 4
        else score_rows_4(from, width, panel, D, to);
#endif
    }
}

// Computes out (STRIP, COUNT vectors) += factors (STRIP, count) x vectors (count, COUNT vectors). The factor of row r and vector k
// lies at r * row_step + k * step.
#define ADD_PRODUCTS(COUNT)                                                                                          \
    static void add_products_##COUNT(                                                                                \
        float *out, int64_t width, const float *factors, int64_t row_step, int64_t step, const float *vectors,       \
        int64_t count                                                                                                \
    ) {                                                                                                              \
        vec sums[STRIP][COUNT];                                                                                      \
        for (int r = 0; r < STRIP; ++r)                                                                              \
            for (int u = 0; u < COUNT; ++u) sums[r][u] = load(out + r * width + u * LANES);                          \
        for (int64_t k = 0; k < count; ++k) {                                                                        \
            vec row[COUNT];                                                                                          \
            for (int u = 0; u < COUNT; ++u) row[u] = load(vectors + k * width + u * LANES);                          \
            for (int r = 0; r < STRIP; ++r)                                                                          \
                for (int u = 0; u < COUNT; ++u) sums[r][u] += splat(factors[r * row_step + k * step]) * row[u];      \
        }                                                                                                            \
        for (int r = 0; r < STRIP; ++r)                                                                              \
            for (int u = 0; u < COUNT; ++u) store(out + r * width + u * LANES, sums[r][u]);                          \
    }
ADD_PRODUCTS(1)
ADD_PRODUCTS(2)
ADD_PRODUCTS(3)

INLINE void add_products(
    float *out, int64_t width, const float *factors, int64_t row_step, int64_t step, const float *vectors, int64_t count
) {
    for (int64_t d = 0; d < width; d += 3 * LANES) {
        int64_t left = (width - d) / LANES;
        if (left == 1) add_products_1(out + d, width, factors, row_step, step, vectors + d, count);
        else if (left == 2) add_products_2(out + d, width, factors, row_step, step, vectors + d, count);
        else add_products_3(out + d, width, factors, row_step, step, vectors + d, count);
    }
}

#endif
