// Computes everything that concerns the pixels of one group: their vectors, logits, loss and gradient.

#ifndef KILOSEG_GROUP_H
#define KILOSEG_GROUP_H

#include "logits.h"

// Holds a thread's values for its current group.
struct group {
    float away[MAX_DIM * GROUP] ALIGNED;  // (D, GROUP): the target's row, or the difference from it to the pixel
    float gradient[MAX_DIM * GROUP] ALIGNED;  // (D, GROUP): the negatives' part of the gradient, then the whole gradient
    float weights[CHUNK * GROUP] ALIGNED;
    float inverse[GROUP] ALIGNED;  // 1 / length
    float target[GROUP] ALIGNED;   // its logit to base 2
    float slope[GROUP] ALIGNED;    // slope of the target's logit
    float top[GROUP] ALIGNED;
    float sums[GROUP] ALIGNED;
    int32_t left_out[GROUP] ALIGNED;
    int32_t targets[GROUP] ALIGNED;
    struct search search;
    struct found found;
};

// Upsamples the pixels into `o` and, normalized to unit length, into `unit`; lanes beyond the last pixel get zeros.
static void upsample_group(const struct loss *a, int parity, int64_t start, int count, float *o, float *unit, float *inverse) {
    const int32_t *rows = integers(a, parity, ROW) + start, *columns = integers(a, parity, COLUMN) + start;
    for (int i = 0; i < GROUP; ++i) {
        float *to = o + i * a->width;
        if (i < count) {
            struct between y = between(rows[i], a->H, a->h), x = between(columns[i], a->W, a->w);
            const float *upper = a->map + y.first * a->w * a->width, *lower = a->map + y.second * a->w * a->width;
            for (int64_t d = 0; d < a->width; d += LANES) {
                vec above = load(upper + x.first * a->width + d) * (1 - x.part) + load(upper + x.second * a->width + d) * x.part;
                vec below = load(lower + x.first * a->width + d) * (1 - x.part) + load(lower + x.second * a->width + d) * x.part;
                store(to + d, above * (1 - y.part) + below * y.part);
            }
        } else {
            for (int64_t d = 0; d < a->width; d += LANES) store(to + d, splat(0));
        }
        for (int64_t d = 0; d < a->D; ++d) unit[d * GROUP + i] = to[d];
    }
    float squares[GROUP] ALIGNED = {0};
    for (int64_t d = 0; d < a->D; ++d) {
        for (int i = 0; i < GROUP; ++i) squares[i] += unit[d * GROUP + i] * unit[d * GROUP + i];
    }
    for (int i = 0; i < GROUP; ++i) {
        float length = sqrtf(squares[i]);
        inverse[i] = 1.0f / (length < NORM_EPS ? NORM_EPS : length);
    }
    for (int64_t d = 0; d < a->D; ++d) {
        for (int i = 0; i < GROUP; ++i) unit[d * GROUP + i] *= inverse[i];
    }
}

// Computes the target's logit and its slope. Distances use the difference of the vectors: the target is the one class whose
// distance goes to 0, where 2 - 2 o.e has no digits left.
static void score_target(const struct loss *a, struct group *g, const float *unit) {
    float factor = a->tau * LOG2E;
    float sums[GROUP] ALIGNED = {0};
    for (int i = 0; i < GROUP; ++i) {
        const float *row = a->rows + g->targets[i] * a->width;
        for (int64_t d = 0; d < a->D; ++d) g->away[d * GROUP + i] = row[d];
    }
    for (int64_t d = 0; d < a->D; ++d) {
        const float *o = unit + d * GROUP;
        float *away = g->away + d * GROUP;
        if (a->cosine) {
            for (int i = 0; i < GROUP; ++i) sums[i] += o[i] * away[i];
        } else {
            for (int i = 0; i < GROUP; ++i) away[i] = o[i] - away[i];
            for (int i = 0; i < GROUP; ++i) sums[i] += away[i] * away[i];
        }
    }
    for (int i = 0; i < GROUP; ++i) {
        if (a->cosine) {
            g->target[i] = factor * sums[i];
            g->slope[i] = 1;
        } else {
            float distance = sqrtf(sums[i]), least = sqrtf(LEAST);
            g->target[i] = -factor * distance;
            g->slope[i] = 1.0f / (factor * (distance < least ? least : distance));
        }
    }
}

// Computes the softmax over the candidates that all pixels share.
static void compare_with_candidates(const struct loss *a, struct group *g, const float *unit, float *kept) {
    struct logits l = logits_of(a);
    int64_t whole = whole_tiles(a->S);
    vec sums[VECTORS] = {0};
    if (a->needs_top) {
        for (int i = 0; i < GROUP; ++i) g->top[i] = g->target[i];
        raise_top(&l, unit, g->top, g->left_out, (int)a->cosine);
    }
    for (int64_t first = 0; first < whole; first += CHUNK) {
        int64_t last = first + CHUNK < whole ? first + CHUNK : whole;
        float *weights = kept ? kept + first * GROUP : g->weights;
        weigh_chunk(&l, unit, first, last, g->top, g->left_out, sums, weights, (int)a->cosine);
        if (a->wants_grad) add_weighted_chunk(&l, first, last, weights, g->gradient);
    }
    for (int u = 0; u < VECTORS; ++u) store(g->sums + u * LANES, sums[u]);
    // Rows are scaled for the products: by tau log2(e), or by -2 times its square.
    float factor = a->tau * LOG2E, unscale = 1 / (a->cosine ? factor : -2 * factor * factor);
    for (int64_t i = 0; a->wants_grad && i < a->D * GROUP; ++i) g->gradient[i] *= unscale;
}

// Adds the classes drawn for the batch that are neither a pixel's own class nor among its nearest, up to K classes per pixel.
static void take_drawn(const struct loss *a, struct group *g, const float *unit, int i) {
    int64_t held = a->searched;
    for (int64_t s = 0; s < a->num_drawn && held < a->K; ++s) {
        int32_t id = (int32_t)a->drawn[s];
        int taken = id == g->targets[i];
        for (int64_t k = 0; k < a->searched; ++k) taken |= g->found.ids[k][i] == id;
        if (taken) continue;
        float score = 0;
        for (int64_t d = 0; d < a->D; ++d) score += a->rows[id * a->width + d] * unit[d * GROUP + i];
        g->found.scores[held][i] = score;
        g->found.ids[held++][i] = id;
    }
    for (; held < a->K; ++held) {  // only if scores are NaN
        g->found.scores[held][i] = NAN;
        g->found.ids[held][i] = 0;
    }
}

// Takes the nearest classes that were found at cells, and computes their scores from the pixels. Lanes beyond the last pixel, whose
// vectors are 0, take those of the first.
static void take_nearest(const struct loss *a, struct group *g, int parity, int64_t start, int count, int64_t first_row, const float *o) {
    for (int i = 0; i < GROUP; ++i) {
        int64_t p = start + (i < count ? i : 0);
        int64_t row = integers(a, parity, ROW)[p] - first_row, column = integers(a, parity, COLUMN)[p];
        const int32_t *ids = kiloseg_nearest_ids(a->search, row * a->W + column);
        for (int64_t k = 0; k < a->searched; ++k) {
            int32_t id = ids[k] < 0 ? 0 : ids[k];
            const float *from = o + i * a->width, *class = a->rows + id * a->width;
            vec sum = {0};
            for (int64_t d = 0; d < a->width; d += LANES) sum += load(from + d) * load(class + d);
            g->found.ids[k][i] = id;
            g->found.scores[k][i] = ids[k] < 0 ? NAN : sum_of(sum) * g->inverse[i];
        }
    }
}

// Computes the softmax over each pixel's own K classes.
static void compare_with_own(const struct loss *a, struct group *g, const float *unit, float *weights, int32_t *ids) {
    float factor = a->tau * LOG2E;
    struct logits l = {.constant = 0, .least = LEAST * factor * factor};
    if (a->searched < a->K) {
        for (int i = 0; i < GROUP; ++i) take_drawn(a, g, unit, i);
    }
    for (int u = 0; u < VECTORS; ++u) {
        vec top = load(g->target + u * LANES), sums = {0}, slope;
        float scale = a->cosine ? factor : -2 * factor * factor, constant = a->cosine ? 0 : 2 * factor * factor;
        for (int64_t k = 0; k < a->K; ++k) {
            float *score = &g->found.scores[k][u * LANES];
            vec product = load(score) * scale + constant;
            store(score, product);
            top = vmax(top, logit(&l, product, splat(0), (int)a->cosine, &slope));
        }
        for (int64_t k = 0; k < a->K; ++k) {
            vec w = exp2v(logit(&l, load(&g->found.scores[k][u * LANES]), top, (int)a->cosine, &slope));
            sums += w;
            store(weights + k * GROUP + u * LANES, w * slope);
        }
        store(g->top + u * LANES, top);
        store(g->sums + u * LANES, sums);
    }
    for (int64_t k = 0; k < a->K; ++k) {
        for (int i = 0; i < GROUP; ++i) ids[k * GROUP + i] = g->found.ids[k][i];
    }
    if (!a->wants_grad) return;
    for (int i = 0; i < GROUP; ++i) {
        float sums[MAX_DIM] ALIGNED;
        for (int64_t d = 0; d < a->width; d += LANES) {
            vec sum = {0};
            for (int64_t k = 0; k < a->K; ++k) sum += weights[k * GROUP + i] * load(a->rows + ids[k * GROUP + i] * a->width + d);
            store(sums + d, sum);
        }
        for (int64_t d = 0; d < a->D; ++d) g->gradient[d * GROUP + i] = sums[d];
    }
}

// Computes loss and gradient from the sums of exponentials.
static void finish_group(const struct loss *a, struct group *g, int64_t start, int count, float *o, const float *unit) {
    float *factor = scalars(a, FACTOR) + start, *own = scalars(a, OWN) + start, *part = scalars(a, PART) + start;
    float *grad = a->grad + start * a->width;
    // d z / d cosine is tau for cosines and tau / distance for distances, whose slope is that over tau^2 log2(e).
    float scale = a->weight * a->tau * (a->cosine ? 1 : a->tau * LOG2E);
    float target[GROUP] ALIGNED, along[GROUP] ALIGNED = {0};
    for (int u = 0; u < VECTORS; ++u) {
        store(target + u * LANES, exp2v(load(g->target + u * LANES) - load(g->top + u * LANES)));
    }
    for (int i = 0; i < GROUP; ++i) {
        float sum = g->sums[i], whole = sum + target[i];
        factor[i] = scale / whole;
        own[i] = -sum * g->slope[i];
        // log(1 + sum / exp z) keeps its digits when a pixel is nearly right and the loss is tiny.
        part[i] = sum < 0.5f * target[i] ? log1pf(sum / target[i]) : logf(whole) - LN2 * (g->target[i] - g->top[i]);
    }
    for (int i = count; i < GROUP; ++i) factor[i] = part[i] = 0;
    if (!a->wants_grad) return;
    float sign = a->cosine ? 1 : -1;
    for (int64_t d = 0; d < a->D; ++d) {
        float *gradient = g->gradient + d * GROUP;
        const float *away = g->away + d * GROUP;
        for (int i = 0; i < GROUP; ++i) {
            gradient[i] = factor[i] * (gradient[i] + sign * own[i] * away[i]);
            along[i] += gradient[i] * unit[d * GROUP + i];
        }
    }
    // Normalization removes the part along o.
    for (int64_t d = 0; d < a->D; ++d) {
        float *gradient = g->gradient + d * GROUP;
        for (int i = 0; i < GROUP; ++i) gradient[i] = (gradient[i] - along[i] * unit[d * GROUP + i]) * g->inverse[i];
    }
    for (int i = 0; i < count; ++i) {
        for (int64_t d = 0; d < a->D; ++d) grad[i * a->width + d] = g->gradient[d * GROUP + i];
        float scaled = g->inverse[i] * factor[i];
        for (int64_t d = 0; d < a->width; d += LANES) store(o + i * a->width + d, load(o + i * a->width + d) * scaled);
    }
}

static void compute_group(const struct state *now, struct group *g, int parity, int64_t number) {
    const struct loss *a = now->a;
    int64_t start = number * GROUP, pixels = now->count[parity];
    int count = pixels - start < GROUP ? (int)(pixels - start) : GROUP;
    float *o = a->o + start * a->width, *unit = a->unit + start * a->D;
    for (int i = 0; i < GROUP; ++i) {
        g->targets[i] = i < count ? integers(a, parity, TARGET)[start + i] : 0;
        g->left_out[i] = a->left_out ? (int32_t)a->left_out[g->targets[i]] : g->targets[i];
        g->top[i] = 0;
    }
    upsample_group(a, parity, start, count, o, unit, g->inverse);
    score_target(a, g, unit);
    if (a->S) {
        for (int64_t i = 0; a->wants_grad && i < a->D * GROUP; ++i) g->gradient[i] = 0;
        compare_with_candidates(a, g, unit, a->keeps_weights ? a->kept + start * whole_tiles(a->S) : 0);
    } else {
        if (a->search) take_nearest(a, g, parity, start, count, now->first_row, o);
        else search(&g->search, &g->found, unit, a->rows, a->D, a->width, a->C, a->searched, g->targets);
        compare_with_own(a, g, unit, a->own_weights + start * a->K, a->own_ids + start * a->K);
    }
    for (int i = 0; i < GROUP; ++i) scalars(a, TOP)[start + i] = g->top[i];
    finish_group(a, g, start, count, o, unit);
}

#endif
