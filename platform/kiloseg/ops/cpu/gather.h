// Adds up the gradients of a block: for some classes of the table, or for a row of the map.

#ifndef KILOSEG_GATHER_H
#define KILOSEG_GATHER_H

#include "group.h"

// Adds weights (SUMS / COUNT classes, GROUP) x o (GROUP, COUNT vectors from `from` on) to rows of the gradient.
#define ADD_ROWS(COUNT)                                                                                       \
    static void add_rows_##COUNT(const float *weights, const float *o, float *grad, int64_t width) {          \
        vec sums[SUMS / COUNT][COUNT];                                                                        \
        for (int r = 0; r < SUMS / COUNT; ++r)                                                                \
            for (int v = 0; v < COUNT; ++v) sums[r][v] = load(grad + r * width + v * LANES);                  \
        for (int i = 0; i < GROUP; ++i) {                                                                     \
            vec pixel[COUNT];                                                                                 \
            for (int v = 0; v < COUNT; ++v) pixel[v] = load(o + i * width + v * LANES);                       \
            for (int r = 0; r < SUMS / COUNT; ++r)                                                            \
                for (int v = 0; v < COUNT; ++v) sums[r][v] += splat(weights[r * GROUP + i]) * pixel[v];       \
        }                                                                                                     \
        for (int r = 0; r < SUMS / COUNT; ++r)                                                                \
            for (int v = 0; v < COUNT; ++v) store(grad + r * width + v * LANES, sums[r][v]);                  \
    }
ADD_ROWS(1)
ADD_ROWS(2)
ADD_ROWS(3)
ADD_ROWS(4)

// Handles classes first to last - 1, a multiple of SUMS, of one group; `weights` is (last - first, GROUP).
static void add_chunk(const float *weights, const float *o, float *grad, int64_t classes, int64_t width) {
    for (int64_t v = 0; v < width; v += 4 * LANES) {
        int64_t vectors = (width - v) / LANES < 4 ? (width - v) / LANES : 4, step = SUMS / vectors;
        for (int64_t c = 0; c < classes; c += step) {
            const float *w = weights + c * GROUP;
            float *to = grad + c * width + v;
            switch (vectors) {
                case 1: add_rows_1(w, o + v, to, width); break;
                case 2: add_rows_2(w, o + v, to, width); break;
                case 3: add_rows_3(w, o + v, to, width); break;
                default: add_rows_4(w, o + v, to, width);
            }
        }
    }
}

// Adds up the candidates' gradient of the classes first to last - 1.
static void gather_classes(
    const struct loss *a, struct group *g, const struct state *now, int parity, int64_t first, int64_t last
) {
    struct logits l = logits_of(a);
    int64_t groups = (now->count[parity] + GROUP - 1) / GROUP, whole = whole_tiles(a->S);
    for (int64_t number = 0; number < groups; ++number) {
        int64_t start = number * GROUP;
        const float *weights = g->weights;
        if (a->keeps_weights) {
            weights = a->kept + start * whole + first * GROUP;
        } else {
            const int32_t *targets = integers(a, parity, TARGET) + start;
            vec sums[VECTORS] = {0};
            for (int i = 0; i < GROUP; ++i) {  // targets beyond the last pixel have weight 0 but must be valid classes
                int32_t target = start + i < now->count[parity] ? targets[i] : 0;
                g->left_out[i] = a->left_out ? (int32_t)a->left_out[target] : target;
            }
            weigh_chunk(
                &l, a->unit + start * a->D, first, last, scalars(a, TOP) + start, g->left_out, sums, g->weights,
                (int)a->cosine
            );
        }
        add_chunk(weights, a->o + start * a->width, a->grad_candidates + first * a->width, last - first, a->width);
    }
}

INLINE void add_row(const struct loss *a, int32_t id, float weight, const float *o) {
    float *grad = a->grad_rows + id * a->width;
    for (int64_t d = 0; d < a->width; d += LANES) store(grad + d, load(grad + d) + weight * load(o + d));
}

// Adds up the targets' gradient for the pixels whose class `is mine`: first to last - 1, or if last is 0, one of `shares`.
INLINE int mine(int32_t id, int64_t first, int64_t last, int64_t share, int64_t shares) {
    if (last) return id >= first && id < last;
    return (int64_t)(((uint64_t)((uint32_t)id * 2654435769u) * (uint64_t)shares) >> 32) == share;
}

static void gather_targets(
    const struct loss *a, const struct state *now, int parity, int64_t first, int64_t last, int64_t share, int64_t shares
) {
    const int32_t *targets = integers(a, parity, TARGET);
    const float *own = scalars(a, OWN), *factor = scalars(a, FACTOR);
    for (int64_t p = 0; p < now->count[parity]; ++p) {
        if (!mine(targets[p], first, last, share, shares)) continue;
        add_row(a, targets[p], own[p], a->o + p * a->width);
        if (!a->cosine) add_row(a, targets[p], -own[p] * factor[p], a->rows + targets[p] * a->width);
    }
}

// Adds up the gradient of the pixels' own classes.
static void gather_own(const struct loss *a, const struct state *now, int parity, int64_t share, int64_t shares) {
    for (int64_t p = 0; p < now->count[parity]; ++p) {
        int64_t place = p / GROUP * GROUP * a->K + p % GROUP;
        for (int64_t k = 0; k < a->K; ++k, place += GROUP) {
            if (mine(a->own_ids[place], 0, 0, share, shares)) {
                add_row(a, a->own_ids[place], a->own_weights[place], a->o + p * a->width);
            }
        }
    }
}

// Adds up the gradient of row j of the map.
static void gather_map_row(const struct loss *a, const struct state *now, int parity, int64_t j) {
    const int32_t *rows = integers(a, parity, ROW), *columns = integers(a, parity, COLUMN);
    float *to = a->grad_map + j * a->w * a->width;
    int64_t low = 0, high = now->count[parity];
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (between(rows[middle], a->H, a->h).second < j) low = middle + 1;
        else high = middle;
    }
    for (int64_t p = low; p < now->count[parity]; ++p) {
        struct between y = between(rows[p], a->H, a->h), x = between(columns[p], a->W, a->w);
        if (y.first > j) break;
        float part = (y.first == j ? 1 - y.part : 0) + (y.second == j ? y.part : 0);
        for (int64_t d = 0; d < a->width; d += LANES) {
            vec grad = load(a->grad + p * a->width + d) * part;
            float *left = to + x.first * a->width + d, *right = to + x.second * a->width + d;
            store(left, load(left) + grad * (1 - x.part));
            store(right, load(right) + grad * x.part);
        }
    }
}

#endif
