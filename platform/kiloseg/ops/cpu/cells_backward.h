// Backward pass: the weights of pixels are brought to the cells, then to the rows of the table and to the map.

#ifndef KILOSEG_CELLS_BACKWARD_H
#define KILOSEG_CELLS_BACKWARD_H

#include "cells.h"

// Brings the weights of one panel and a segment's pixels to the four cells.
INLINE void narrow_segment(const struct block *b, const struct segment *s, int64_t panel, int vectors, int cosine) {
    const struct cells *a = b->a;
    int64_t place = (panel - b->panel) * b->stride * TILE;
    float *grads = a->grads + place;
    const float *lefts = floats(a, LEFT), *rights = floats(a, RIGHT), *tops = floats(a, TOP);
    const float *left_grads = floats(a, LEFT_GRAD), *right_grads = floats(a, RIGHT_GRAD);
    const int32_t *left_out = integers_of(a, LEFT_OUT);
    struct distances distances = distances_of(a);
    vec left[VECTORS], right[VECTORS], left_grad[VECTORS], right_grad[VECTORS], slope, along;
    columns_of(a->scores + place, s, vectors, left, right);
    for (int u = 0; u < vectors; ++u) left_grad[u] = right_grad[u] = splat(0);
    for (int64_t p = s->first; p < s->first + s->count; ++p) {
        float l = lefts[p], r = rights[p], top = tops[p];
        vec left_factor = splat(left_grads[p]), right_factor = splat(right_grads[p]);
        if (masked(a, panel, left_out[p])) {
            for (int u = 0; u < vectors; ++u) {
                ivec out = excluded(panel * TILE + u * LANES, left_out[p], a->S);
                vec w = exp2v(logit_of(left[u], right[u], l, r, top, &distances, cosine, &slope, &along)) * slope;
                w = unless(out, w);
                left_grad[u] += left_factor * w, right_grad[u] += right_factor * w;
            }
        } else {
            for (int u = 0; u < vectors; ++u) {
                vec w = exp2v(logit_of(left[u], right[u], l, r, top, &distances, cosine, &slope, &along)) * slope;
                left_grad[u] += left_factor * w, right_grad[u] += right_factor * w;
            }
        }
    }
    vec lower = splat(s->part), upper = splat(1 - s->part);
    for (int u = 0; u < vectors; ++u) {
        float *to = grads + u * LANES;
        store(to + s->upper_left, load(to + s->upper_left) + upper * left_grad[u]);
        store(to + s->upper_right, load(to + s->upper_right) + upper * right_grad[u]);
        store(to + s->lower_left, load(to + s->lower_left) + lower * left_grad[u]);
        store(to + s->lower_right, load(to + s->lower_right) + lower * right_grad[u]);
    }
}

// Computes the gradient of the targets' scores: minus the sum of all others.
static void narrow_targets(const struct block *b, const struct segment *s, int64_t panel) {
    const struct cells *a = b->a;
    float *grads = a->grads + (panel - b->panel) * b->stride * TILE;
    for (int64_t p = s->first; p < s->first + s->count; ++p) {
        int64_t column = integers_of(a, TARGET)[p];
        if (column < 0 || column / TILE != panel) continue;
        float *to = grads + column % TILE, sum = floats(a, SUM)[p];
        float left = sum * floats(a, LEFT_GRAD)[p], right = sum * floats(a, RIGHT_GRAD)[p];
        to[s->upper_left] -= (1 - s->part) * left;
        to[s->upper_right] -= (1 - s->part) * right;
        to[s->lower_left] -= s->part * left;
        to[s->lower_right] -= s->part * right;
    }
}

// Brings the weights of one panel and a segment's pixels to the four cells, with the number of vectors known to the compiler.
INLINE void narrow(const struct block *b, const struct segment *s, int64_t panel) {
    int64_t vectors = panel_vectors(b->a, panel);
    if (!b->a->cosine) narrow_segment(b, s, panel, VECTORS, 0);
    else if (vectors == 1) narrow_segment(b, s, panel, 1, 1);
    else if (vectors == 2) narrow_segment(b, s, panel, 2, 1);
    else narrow_segment(b, s, panel, VECTORS, 1);
}

// Computes the gradients of the scores of one panel in one patch.
static void narrow_patch(const struct block *b, int64_t j, int64_t i, int64_t panel) {
    const struct cells *a = b->a;
    for (int64_t y = a->y_starts[j]; y < a->y_starts[j + 1]; ++y) {
        struct segment s = segment_of(b, j, i, y);
        if (!s.count) continue;
        narrow(b, &s, panel);
        narrow_targets(b, &s, panel);
    }
}

// Adds the products of the map's cells and the gradients of one panel's scores to the panel's rows.
static void add_rows(const struct block *b, int64_t panel) {
    const struct cells *a = b->a;
    const float *grads = a->grads + (panel - b->panel) * b->stride * TILE;
    for (int64_t c = 0; c < TILE && panel * TILE + c < a->S; c += STRIP) {
        float *to = a->grad_candidates + (panel * TILE + c) * a->width;
        add_products(to, a->width, grads + c, 1, TILE, a->map + b->cell * a->width, b->count);
    }
}

// Computes the gradients of the scores of one panel at the cells, and of its rows.
static void differentiate_panel(const struct block *b, int64_t panel) {
    const struct cells *a = b->a;
    float *grads = a->grads + (panel - b->panel) * b->stride * TILE;
    for (int64_t k = 0; k < b->stride * TILE; k += LANES) store(grads + k, splat(0));
    for (int64_t j = b->first; j < b->last; ++j) {
        for (int64_t i = 0; i < intervals(a->w); ++i) narrow_patch(b, j, i, panel);
    }
    add_rows(b, panel);
}

// Computes the gradient of the map from targets that are not candidates, for the pixels in row j of intervals.
static void differentiate_outside(const struct block *b, int64_t j) {
    const struct cells *a = b->a;
    for (int64_t i = 0; i < intervals(a->w); ++i) {
        for (int64_t y = a->y_starts[j]; y < a->y_starts[j + 1]; ++y) {
            struct segment s = segment_of(b, j, i, y);
            for (int64_t p = s.first; p < s.first + s.count; ++p) {
                int64_t class = -1 - (int64_t)integers_of(a, TARGET)[p];
                if (class < 0) continue;
                const float *row = a->rows + class * a->width;
                float *to = a->grad_map + b->cell * a->width, sum = floats(a, SUM)[p] * floats(a, OWN_SLOPE)[p];
                float left = sum * floats(a, LEFT_GRAD)[p], right = sum * floats(a, RIGHT_GRAD)[p];
                float *cells[4] = {
                    to + s.upper_left / TILE * a->width, to + s.upper_right / TILE * a->width,
                    to + s.lower_left / TILE * a->width, to + s.lower_right / TILE * a->width
                };
                float parts[4] = {(1 - s.part) * left, (1 - s.part) * right, s.part * left, s.part * right};
                for (int m = 0; m < 4; ++m) {
                    for (int64_t d = 0; d < a->width; d += LANES) {
                        store(cells[m] + d, load(cells[m] + d) - splat(parts[m]) * load(row + d));
                    }
                }
            }
        }
    }
}

// Computes the gradient of the classes of `share` that are targets of the block's pixels but not candidates.
static void add_outside(const struct block *b, int64_t share, int64_t shares) {
    const struct cells *a = b->a;
    for (int64_t j = b->first; j < b->last; ++j) {
        for (int64_t i = 0; i < intervals(a->w); ++i) {
            for (int64_t y = a->y_starts[j]; y < a->y_starts[j + 1]; ++y) {
                struct segment s = segment_of(b, j, i, y);
                const float *from = a->map + b->cell * a->width;
                const float *cells[4] = {
                    from + s.upper_left / TILE * a->width, from + s.upper_right / TILE * a->width,
                    from + s.lower_left / TILE * a->width, from + s.lower_right / TILE * a->width
                };
                for (int64_t p = s.first; p < s.first + s.count; ++p) {
                    int64_t class = -1 - (int64_t)integers_of(a, TARGET)[p];
                    if (class < 0 || class % shares != share) continue;
                    float *to = a->grad_rows + class * a->width, sum = floats(a, SUM)[p] * floats(a, OWN_SLOPE)[p];
                    float left = sum * floats(a, LEFT_GRAD)[p], right = sum * floats(a, RIGHT_GRAD)[p];
                    vec parts[4] = {
                        splat((1 - s.part) * left), splat((1 - s.part) * right), splat(s.part * left), splat(s.part * right)
                    };
                    for (int64_t d = 0; d < a->width; d += LANES) {
                        vec grad = parts[0] * load(cells[0] + d) + parts[1] * load(cells[1] + d) +
                                   parts[2] * load(cells[2] + d) + parts[3] * load(cells[3] + d);
                        store(to + d, load(to + d) - grad);
                    }
                }
            }
        }
    }
}

// Applies what normalization removes at one cell: products with the cells of the patches around it.
static void add_stencils(const struct block *b, int64_t cell) {
    const struct cells *a = b->a;
    static const int place[4][4] = {{0, 1, 2, 3}, {1, 4, 5, 6}, {2, 5, 7, 8}, {3, 6, 8, 9}};
    int64_t y = cell / a->w, x = cell % a->w, below = a->h > 1 ? a->w : 0, beside = a->w > 1;
    float *to = a->grad_map + (b->cell + cell) * a->width;
    for (int m = 0; m < 4; ++m) {
        int64_t j = y - (m / 2) * (a->h > 1), i = x - (m % 2) * (a->w > 1);
        if (j < 0 || j >= b->last - b->first || i < 0 || i >= intervals(a->w)) continue;
        const float *stencil = a->stencils + (j * intervals(a->w) + i) * 10;
        const float *corner = a->map + (b->cell + j * a->w + i) * a->width;
        const float *others[4] = {corner, corner + beside * a->width, corner + below * a->width,
                                  corner + (below + beside) * a->width};
        for (int n = 0; n < 4; ++n) {
            vec factor = splat(stencil[place[m][n]]);
            for (int64_t d = 0; d < a->width; d += LANES) store(to + d, load(to + d) - factor * load(others[n] + d));
        }
    }
}

// Computes the gradient of STRIP cells of the block from the chunk's panels.
static void differentiate_cells(const struct block *b, int64_t cell, int first) {
    const struct cells *a = b->a;
    float *to = a->grad_map + (b->cell + cell) * a->width;
    for (int64_t panel = b->panel; panel < b->panel + b->panels; ++panel) {
        int64_t left = a->S - panel * TILE;
        const float *grads = a->grads + ((panel - b->panel) * b->stride + cell) * TILE;
        add_products(to, a->width, grads, TILE, 1, a->candidates + panel * TILE * a->width, left < TILE ? left : TILE);
    }
    for (int64_t k = 0; first && k < STRIP && cell + k < b->count; ++k) add_stencils(b, cell + k);
}

#endif
