// Computes logits of the candidates that all pixels share, their weights, and sums of rows by these weights.

#ifndef KILOSEG_LOGITS_H
#define KILOSEG_LOGITS_H

#include "loss.h"

// Holds the candidates' logits as they are computed: products with scaled rows, plus a constant.
struct logits {
    const float *rows;
    int64_t D, S, width;
    float constant;  // of a squared distance, times (tau log2 e)^2
    float least;
};

INLINE struct logits logits_of(const struct loss *a) {
    float factor = a->tau * LOG2E;
    return (struct logits){
        a->candidates, a->D, a->S, a->width, a->cosine ? 0 : 2 * factor * factor, LEAST * factor * factor
    };
}

// Computes logits to base 2 minus `top` from products; `slope` is 1 / (tau log2(e) distance), or 1 for cosines.
INLINE vec logit(const struct logits *l, vec product, vec top, int cosine, vec *slope) {
    if (cosine) {
        *slope = splat(1);
        return product - top;
    }
    product = vmax(splat(l->least), product);
    *slope = rsqrt(product);
    return -product * *slope - top;
}

// Writes weights of the classes first to last - 1 into `weights` (classes, GROUP): exp2 of the logit, times its slope. It adds the
// exponentials to `sums`.
INLINE void weigh(
    const struct logits *l, const float *o, int64_t first, int64_t last, const float *top, const int32_t *left_out,
    vec sums[VECTORS], float *weights, int cosine, int masked
) {
    for (int64_t c = first; c < last; c += ROWS) {
        vec z[ROWS][VECTORS];
        for (int r = 0; r < ROWS; ++r) {
            for (int u = 0; u < VECTORS; ++u) z[r][u] = splat(l->constant);
        }
        products(o, l->rows + c * l->width, l->D, l->width, z);
        for (int r = 0; r < ROWS; ++r) {
            for (int u = 0; u < VECTORS; ++u) {
                vec slope;
                vec w = exp2v(logit(l, z[r][u], load(top + u * LANES), cosine, &slope));
                if (masked) {
                    w = unless(*(const ivec *)(left_out + u * LANES) == isplat((int32_t)(c + r)), w);
                    if (c + r >= l->S) w = splat(0);
                }
                sums[u] += w;
                store(weights + (c - first + r) * GROUP + u * LANES, w * slope);
            }
        }
    }
}

// Does what `weigh` does, faster: classes that nobody leaves out and that all exist need no mask.
static void weigh_chunk(
    const struct logits *l, const float *o, int64_t first, int64_t last, const float *top, const int32_t *left_out,
    vec sums[VECTORS], float *weights, int cosine
) {
    int masked = last > l->S;
    for (int i = 0; i < GROUP; ++i) masked |= left_out[i] >= first && left_out[i] < last;
    if (cosine && masked) weigh(l, o, first, last, top, left_out, sums, weights, 1, 1);
    else if (cosine) weigh(l, o, first, last, top, left_out, sums, weights, 1, 0);
    else if (masked) weigh(l, o, first, last, top, left_out, sums, weights, 0, 1);
    else weigh(l, o, first, last, top, left_out, sums, weights, 0, 0);
}

// Raises `top` to the highest logit of the candidates that a pixel does not leave out.
static void raise_top(const struct logits *l, const float *o, float *top, const int32_t *left_out, int cosine) {
    for (int64_t c = 0; c < l->S; c += ROWS) {
        vec z[ROWS][VECTORS];
        for (int r = 0; r < ROWS; ++r) {
            for (int u = 0; u < VECTORS; ++u) z[r][u] = splat(l->constant);
        }
        products(o, l->rows + c * l->width, l->D, l->width, z);
        for (int r = 0; r < ROWS && c + r < l->S; ++r) {
            for (int u = 0; u < VECTORS; ++u) {
                vec slope, found = logit(l, z[r][u], splat(0), cosine, &slope);
                vec beyond = vmax(found, load(top + u * LANES));
                for (int i = 0; i < LANES; ++i) {
                    if (left_out[u * LANES + i] != c + r) top[u * LANES + i] = beyond[i];
                }
            }
        }
    }
}

// Adds the rows of the classes first to last - 1 by their weights to `to` (D, GROUP); COUNT dimensions from d on.
#define ADD_WEIGHTED(COUNT)                                                                                   \
    static void add_weighted_##COUNT(const struct logits *l, int64_t d, int64_t first, int64_t last, const float *weights,\
                             float *to) {                                                                     \
        vec sums[COUNT][VECTORS];                                                                             \
        for (int r = 0; r < COUNT; ++r)                                                                       \
            for (int u = 0; u < VECTORS; ++u) sums[r][u] = load(to + (d + r) * GROUP + u * LANES);            \
        for (int64_t c = first; c < last; ++c) {                                                              \
            const float *row = l->rows + c * l->width + d;                                                    \
            vec w[VECTORS];                                                                                   \
            for (int u = 0; u < VECTORS; ++u) w[u] = load(weights + (c - first) * GROUP + u * LANES);         \
            for (int r = 0; r < COUNT; ++r)                                                                   \
                for (int u = 0; u < VECTORS; ++u) sums[r][u] += splat(row[r]) * w[u];                         \
        }                                                                                                     \
        for (int r = 0; r < COUNT; ++r)                                                                       \
            for (int u = 0; u < VECTORS; ++u) store(to + (d + r) * GROUP + u * LANES, sums[r][u]);            \
    }
ADD_WEIGHTED(1)
ADD_WEIGHTED(2)
ADD_WEIGHTED(3)
ADD_WEIGHTED(4)
ADD_WEIGHTED(5)
ADD_WEIGHTED(6)

static void add_weighted_chunk(const struct logits *l, int64_t first, int64_t last, const float *weights, float *to) {
    int64_t d = 0;
    for (; d + ROWS <= l->D; d += ROWS) add_weighted_6(l, d, first, last, weights, to);
    switch (l->D - d) {
        case 1: add_weighted_1(l, d, first, last, weights, to); break;
        case 2: add_weighted_2(l, d, first, last, weights, to); break;
        case 3: add_weighted_3(l, d, first, last, weights, to); break;
        case 4: add_weighted_4(l, d, first, last, weights, to); break;
        case 5: add_weighted_5(l, d, first, last, weights, to); break;
    }
}

#endif
