// Forward pass: the pixels of a block, their sums of exponentials, their losses, and the factors of their gradients.

#ifndef KILOSEG_CELLS_FORWARD_H
#define KILOSEG_CELLS_FORWARD_H

#include "cells_scores.h"

// Computes the logit of a target that is not a candidate, or of one at a distance. It uses the difference of the vectors, because
// the target is the one class whose distance goes to 0, where 2 - 2 cosine has no digits left.
static void score_outside(const struct cells *a, int64_t p, const float *left, const float *right, int64_t class) {
    float share = floats(a, SHARE)[p], inverse = floats(a, INVERSE)[p], scale = a->tau * LOG2E;
    vec sum = {0};
    for (int64_t d = 0; d < a->width; d += LANES) {
        vec o = (splat(1 - share) * load(left + d) + splat(share) * load(right + d)) * inverse;
        vec row = load(a->rows + class * a->width + d), away = o - row;
        sum += a->cosine ? o * row : away * away;
    }
    if (a->cosine) {
        floats(a, OWN)[p] = scale * sum_of(sum);
        return;
    }
    float squared = sum_of(sum), distance = sqrtf(squared), least = sqrtf(LEAST);
    floats(a, OWN)[p] = -scale * distance;
    floats(a, OWN_SLOPE)[p] = 1 / (scale * (distance < least ? least : distance));
    floats(a, OWN_COSINE)[p] = 1 - squared / 2;
}

// Lists the pixels that count in row j of intervals, patch by patch, with their lengths.
static void list_pixels(const struct block *b, int64_t j) {
    const struct cells *a = b->a;
    float left[MAX_DIM] ALIGNED, right[MAX_DIM] ALIGNED;
    int64_t first = (a->y_starts[j] - a->y_starts[b->first]) * a->W, width = a->width;
    int64_t below = a->h > 1 ? a->w * width : 0, beside = a->w > 1 ? width : 0;
    for (int64_t i = 0; i < intervals(a->w); ++i) {
        const float *upper = a->map + (j * a->w + i) * width, *lower = upper + below;
        for (int64_t y = a->y_starts[j]; y < a->y_starts[j + 1]; ++y) {
            const int64_t *labels = a->labels + (b->image * a->H + y) * a->W;
            int64_t count = 0;
            for (int64_t x = a->x_starts[i]; x < a->x_starts[i + 1]; ++x) {
                int64_t label = labels[x], p = first + count;
                if (label == a->ignore) continue;
                integers_of(a, TARGET)[p] = (int32_t)(a->target ? a->target[label] : label);
                integers_of(a, LEFT_OUT)[p] = (int32_t)(a->left_out ? a->left_out[label] : label);
                floats(a, SHARE)[p] = a->x_parts[x];
                floats(a, TOP)[p] = a->needs_top ? -INFINITY : 0;
                floats(a, SUM)[p] = floats(a, DOT)[p] = floats(a, OWN)[p] = 0;
                floats(a, OWN_SLOPE)[p] = 1;
                ++count;
            }
            int32_t *at = a->segments + 2 * segment_number(b, y, i);
            at[0] = (int32_t)first, at[1] = (int32_t)count;
            a->losses[segment_number(b, y, i)] = 0;
            if (!count) continue;
            vec part = splat(a->y_parts[y]);
            for (int64_t d = 0; d < width; d += LANES) {
                store(left + d, load(upper + d) + part * (load(lower + d) - load(upper + d)));
                store(right + d, load(upper + beside + d) + part * (load(lower + beside + d) - load(upper + beside + d)));
            }
            for (int64_t p = first; p < first + count; ++p) {
                float share = floats(a, SHARE)[p], scale = a->tau * LOG2E;
                if (!a->cosine) scale *= -2 * scale;
                float length = length_between(left, right, share, width);
                float inverse = 1 / (length < NORM_EPS ? NORM_EPS : length);
                floats(a, INVERSE)[p] = inverse;
                floats(a, LEFT)[p] = scale * inverse * (1 - share);
                floats(a, RIGHT)[p] = scale * inverse * share;
                int32_t target = integers_of(a, TARGET)[p];
                if (target < 0) score_outside(a, p, left, right, -1 - (int64_t)target);
            }
            first += count;
        }
    }
}

// Adds one panel to the sums of up to PIECE pixels.
INLINE void sum_panel(
    const struct block *b, const struct segment *s, int64_t panel, int64_t start, int64_t end, float *sums, float *dots,
    int vectors, int cosine
) {
    const struct cells *a = b->a;
    const float *lefts = floats(a, LEFT), *rights = floats(a, RIGHT), *tops = floats(a, TOP);
    const int32_t *left_out = integers_of(a, LEFT_OUT);
    struct distances distances = distances_of(a);
    vec left[VECTORS], right[VECTORS], slope, along;
    columns_of(a->scores + (panel - b->panel) * b->stride * TILE, s, vectors, left, right);
    for (int64_t p = start; p < end; ++p) {
        float l = lefts[p], r = rights[p], top = tops[p];
        vec sum = load(sums + (p - start) * LANES), dot = load(dots + (p - start) * LANES);
        if (masked(a, panel, left_out[p])) {
            for (int u = 0; u < vectors; ++u) {
                vec z = logit_of(left[u], right[u], l, r, top, &distances, cosine, &slope, &along);
                ivec out = excluded(panel * TILE + u * LANES, left_out[p], a->S);
                vec w = unless(out, exp2v(z));
                sum += w, dot += w * unless(out, along * slope);
            }
        } else {
            for (int u = 0; u < vectors; ++u) {
                vec w = exp2v(logit_of(left[u], right[u], l, r, top, &distances, cosine, &slope, &along));
                sum += w, dot += w * (along * slope);
            }
        }
        store(sums + (p - start) * LANES, sum);
        store(dots + (p - start) * LANES, dot);
    }
}

// Raises the highest logits of up to PIECE pixels by those of one panel.
INLINE void raise_tops(const struct block *b, const struct segment *s, int64_t panel, int64_t start, int64_t end, float *tops) {
    const struct cells *a = b->a;
    vec left[VECTORS], right[VECTORS], slope, along;
    struct distances distances = distances_of(a);
    int vectors = (int)panel_vectors(a, panel);
    columns_of(a->scores + (panel - b->panel) * b->stride * TILE, s, vectors, left, right);
    for (int64_t p = start; p < end; ++p) {
        vec top = load(tops + (p - start) * LANES);
        for (int u = 0; u < vectors; ++u) {
            float l = floats(a, LEFT)[p], r = floats(a, RIGHT)[p];
            vec z = logit_of(left[u], right[u], l, r, 0, &distances, (int)a->cosine, &slope, &along);
            ivec out = excluded(panel * TILE + u * LANES, integers_of(a, LEFT_OUT)[p], a->S);
            top = vmax(top, unless(out, z) + (vec)(out & (ivec)splat(-INFINITY)));
        }
        store(tops + (p - start) * LANES, top);
    }
}

// The logit of the target of each pixel whose column is in the chunk.
static void score_targets(const struct block *b, const struct segment *s) {
    const struct cells *a = b->a;
    for (int64_t p = s->first; p < s->first + s->count; ++p) {
        int64_t column = integers_of(a, TARGET)[p], panel = column / TILE - b->panel;
        if (column < 0 || panel < 0 || panel >= b->panels) continue;
        const float *scores = a->scores + panel * b->stride * TILE + column % TILE;
        float left = scores[s->upper_left] + s->part * (scores[s->lower_left] - scores[s->upper_left]);
        float right = scores[s->upper_right] + s->part * (scores[s->lower_right] - scores[s->upper_right]);
        floats(a, OWN)[p] = floats(a, LEFT)[p] * left + floats(a, RIGHT)[p] * right;
    }
}

static void sum_segment(const struct block *b, const struct segment *s) {
    const struct cells *a = b->a;
    float sums[PIECE * LANES] ALIGNED, dots[PIECE * LANES] ALIGNED;
    for (int64_t start = s->first, end; start < s->first + s->count; start = end) {
        end = start + PIECE < s->first + s->count ? start + PIECE : s->first + s->count;
        for (int64_t l = 0; l < (end - start) * LANES; ++l) sums[l] = dots[l] = 0;
        for (int64_t panel = b->panel; panel < b->panel + b->panels; ++panel) {
            int vectors = (int)panel_vectors(a, panel);
            if (!a->cosine) sum_panel(b, s, panel, start, end, sums, dots, VECTORS, 0);
            else if (vectors == 1) sum_panel(b, s, panel, start, end, sums, dots, 1, 1);
            else if (vectors == 2) sum_panel(b, s, panel, start, end, sums, dots, 2, 1);
            else sum_panel(b, s, panel, start, end, sums, dots, VECTORS, 1);
        }
        for (int64_t p = start; p < end; ++p) {
            floats(a, SUM)[p] += sum_of(load(sums + (p - start) * LANES));
            floats(a, DOT)[p] += sum_of(load(dots + (p - start) * LANES));
        }
    }
}

static void raise_segment(const struct block *b, const struct segment *s) {
    const struct cells *a = b->a;
    float tops[PIECE * LANES] ALIGNED;
    for (int64_t start = s->first, end; start < s->first + s->count; start = end) {
        end = start + PIECE < s->first + s->count ? start + PIECE : s->first + s->count;
        for (int64_t l = 0; l < (end - start) * LANES; ++l) tops[l] = -INFINITY;
        for (int64_t panel = b->panel; panel < b->panel + b->panels; ++panel) raise_tops(b, s, panel, start, end, tops);
        for (int64_t p = start; p < end; ++p) {
            float top = floats(a, TOP)[p];
            for (int l = 0; l < LANES; ++l) {
                float other = tops[(p - start) * LANES + l];
                top = top >= other ? top : other;  // the other if either is NaN
            }
            floats(a, TOP)[p] = top;
        }
    }
}

// Computes the loss of a segment's pixels and the factors of their gradients, and adds to the patch's stencil.
static void finish_segment(const struct block *b, const struct segment *s, int64_t number, float *stencil) {
    const struct cells *a = b->a;
    float loss = 0;
    for (int64_t p = s->first; p < s->first + s->count; ++p) {
        float own = floats(a, OWN)[p] - floats(a, TOP)[p], sum = floats(a, SUM)[p], inverse = floats(a, INVERSE)[p];
        float target = exp2f(own), whole = sum + target;
        // log(1 + sum / exp z) keeps its digits when a pixel is nearly right and the loss is tiny.
        loss += sum < 0.5f * target ? log1pf(sum / target) : logf(whole) - LN2 * own;
        if (!a->wants_grad) continue;
        // d z / d cosine is tau for cosines and tau / distance for distances, whose slope is that over tau^2 log2(e).
        float share = floats(a, SHARE)[p];
        float factor = a->weight * a->tau * (a->cosine ? 1 : a->tau * LOG2E) * inverse / whole;
        floats(a, LEFT_GRAD)[p] = factor * (1 - share);
        floats(a, RIGHT_GRAD)[p] = factor * share;
        float radial = factor * inverse;
        if (a->cosine) radial *= (floats(a, DOT)[p] - sum * own) / (a->tau * LOG2E);
        else radial *= floats(a, DOT)[p] - sum * floats(a, OWN_SLOPE)[p] * floats(a, OWN_COSINE)[p];
        float parts[4] = {
            (1 - s->part) * (1 - share), (1 - s->part) * share, s->part * (1 - share), s->part * share
        };
        for (int m = 0, k = 0; m < 4; ++m) {
            for (int n = m; n < 4; ++n, ++k) stencil[k] += radial * parts[m] * parts[n];
        }
    }
    a->losses[number] = loss;
}

// Compares patches `from` to `to` - 1 of row j of intervals with the panels of the chunk. With `tops`, it finds only their highest
// logits.
static void compare_patches(const struct block *b, int64_t j, int64_t from, int64_t to, int tops, int last) {
    const struct cells *a = b->a;
    for (int64_t i = from; i < to; ++i) {
        float *stencil = a->stencils + patch_number(b, j, i) * 10;
        if (last) for (int k = 0; k < 10; ++k) stencil[k] = 0;
        for (int64_t y = a->y_starts[j]; y < a->y_starts[j + 1]; ++y) {
            struct segment s = segment_of(b, j, i, y);
            if (!s.count) continue;
            if (tops) {
                score_targets(b, &s);
                raise_segment(b, &s);
                for (int64_t p = s.first; last && p < s.first + s.count; ++p) {
                    float *top = floats(a, TOP) + p, own = floats(a, OWN)[p];
                    *top = *top >= own ? *top : own;
                }
            } else {
                if (!a->needs_top) score_targets(b, &s);
                sum_segment(b, &s);
                if (last) finish_segment(b, &s, segment_number(b, y, i), stencil);
            }
        }
    }
}

#endif
