// Computes everything that concerns the pixels of one group: their vectors, logits, loss and gradient.

#ifndef KILOSEG_GROUP_H
#define KILOSEG_GROUP_H

#include "loss.h"

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define LEAST 1e-7f  // the smallest squared distance that is distinguished from 0
#define NORM_EPS 1e-12f

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

// Adds the rows of the classes first to last - 1 by their weights to `pull` (D, GROUP); COUNT dimensions from d on.
#define PULL(COUNT)                                                                                             \
    static void pull_##COUNT(const struct logits *l, int64_t d, int64_t first, int64_t last, const float *weights, \
                             float *pull) {                                                                     \
        vec sums[COUNT][VECTORS];                                                                               \
        for (int r = 0; r < COUNT; ++r)                                                                         \
            for (int u = 0; u < VECTORS; ++u) sums[r][u] = load(pull + (d + r) * GROUP + u * LANES);            \
        for (int64_t c = first; c < last; ++c) {                                                                \
            const float *row = l->rows + c * l->width + d;                                                      \
            vec w[VECTORS];                                                                                     \
            for (int u = 0; u < VECTORS; ++u) w[u] = load(weights + (c - first) * GROUP + u * LANES);           \
            for (int r = 0; r < COUNT; ++r)                                                                     \
                for (int u = 0; u < VECTORS; ++u) sums[r][u] += splat(row[r]) * w[u];                           \
        }                                                                                                       \
        for (int r = 0; r < COUNT; ++r)                                                                         \
            for (int u = 0; u < VECTORS; ++u) store(pull + (d + r) * GROUP + u * LANES, sums[r][u]);            \
    }
PULL(1)
PULL(2)
PULL(3)
PULL(4)
PULL(5)
PULL(6)

static void pull_chunk(const struct logits *l, int64_t first, int64_t last, const float *weights, float *pull) {
    int64_t d = 0;
    for (; d + ROWS <= l->D; d += ROWS) pull_6(l, d, first, last, weights, pull);
    switch (l->D - d) {
        case 1: pull_1(l, d, first, last, weights, pull); break;
        case 2: pull_2(l, d, first, last, weights, pull); break;
        case 3: pull_3(l, d, first, last, weights, pull); break;
        case 4: pull_4(l, d, first, last, weights, pull); break;
        case 5: pull_5(l, d, first, last, weights, pull); break;
    }
}

// Holds a thread's values for its current group.
struct group {
    float away[MAX_DIM * GROUP] ALIGNED;  // (D, GROUP): the target's row, or the difference from it to the pixel
    float pull[MAX_DIM * GROUP] ALIGNED;  // (D, GROUP): the negatives' part of the gradient, then the whole gradient
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
static void take(const struct loss *a, int parity, int64_t start, int count, float *o, float *unit, float *inverse) {
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
static void look_at_target(const struct loss *a, struct group *g, const float *unit) {
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
        if (a->wants_grad) pull_chunk(&l, first, last, weights, g->pull);
    }
    for (int u = 0; u < VECTORS; ++u) store(g->sums + u * LANES, sums[u]);
    // Rows are scaled for the products: by tau log2(e), or by -2 times its square.
    float factor = a->tau * LOG2E, unscale = 1 / (a->cosine ? factor : -2 * factor * factor);
    for (int64_t i = 0; a->wants_grad && i < a->D * GROUP; ++i) g->pull[i] *= unscale;
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

// Computes the softmax over each pixel's own K classes.
static void compare_with_own(const struct loss *a, struct group *g, const float *unit, float *weights, int32_t *ids) {
    float factor = a->tau * LOG2E;
    struct logits l = {.constant = 0, .least = LEAST * factor * factor};
    search(&g->search, &g->found, unit, a->rows, a->D, a->width, a->C, a->searched, g->targets);
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
        for (int64_t d = 0; d < a->D; ++d) g->pull[d * GROUP + i] = sums[d];
    }
}

// Computes loss and gradient from the sums of exponentials.
static void settle(const struct loss *a, struct group *g, int64_t start, int count, float *o, const float *unit) {
    float *push = scalars(a, PUSH) + start, *own = scalars(a, OWN) + start, *part = scalars(a, PART) + start;
    float *grad = a->grad + start * a->width;
    // d z / d cosine is tau for cosines and tau / distance for distances, whose slope is that over tau^2 log2(e).
    float scale = a->weight * a->tau * (a->cosine ? 1 : a->tau * LOG2E);
    float target[GROUP] ALIGNED, along[GROUP] ALIGNED = {0};
    for (int u = 0; u < VECTORS; ++u) {
        store(target + u * LANES, exp2v(load(g->target + u * LANES) - load(g->top + u * LANES)));
    }
    for (int i = 0; i < GROUP; ++i) {
        float sum = g->sums[i], whole = sum + target[i];
        push[i] = scale / whole;
        own[i] = -sum * g->slope[i];
        // log(1 + sum / exp z) keeps its digits when a pixel is nearly right and the loss is tiny.
        part[i] = sum < 0.5f * target[i] ? log1pf(sum / target[i]) : logf(whole) - LN2 * (g->target[i] - g->top[i]);
    }
    for (int i = count; i < GROUP; ++i) push[i] = part[i] = 0;
    if (!a->wants_grad) return;
    float sign = a->cosine ? 1 : -1;
    for (int64_t d = 0; d < a->D; ++d) {
        float *pull = g->pull + d * GROUP;
        const float *away = g->away + d * GROUP;
        for (int i = 0; i < GROUP; ++i) {
            pull[i] = push[i] * (pull[i] + sign * own[i] * away[i]);
            along[i] += pull[i] * unit[d * GROUP + i];
        }
    }
    // Normalization removes the part along o.
    for (int64_t d = 0; d < a->D; ++d) {
        float *pull = g->pull + d * GROUP;
        for (int i = 0; i < GROUP; ++i) pull[i] = (pull[i] - along[i] * unit[d * GROUP + i]) * g->inverse[i];
    }
    for (int i = 0; i < count; ++i) {
        for (int64_t d = 0; d < a->D; ++d) grad[i * a->width + d] = g->pull[d * GROUP + i];
        float factor = g->inverse[i] * push[i];
        for (int64_t d = 0; d < a->width; d += LANES) store(o + i * a->width + d, load(o + i * a->width + d) * factor);
    }
}

static void compute_group(const struct loss *a, struct group *g, int parity, int64_t number, int64_t pixels) {
    int64_t start = number * GROUP;
    int count = pixels - start < GROUP ? (int)(pixels - start) : GROUP;
    float *o = a->o + start * a->width, *unit = a->unit + start * a->D;
    for (int i = 0; i < GROUP; ++i) {
        g->targets[i] = i < count ? integers(a, parity, TARGET)[start + i] : 0;
        g->left_out[i] = a->left_out ? (int32_t)a->left_out[g->targets[i]] : g->targets[i];
        g->top[i] = 0;
    }
    take(a, parity, start, count, o, unit, g->inverse);
    look_at_target(a, g, unit);
    if (a->S) {
        for (int64_t i = 0; a->wants_grad && i < a->D * GROUP; ++i) g->pull[i] = 0;
        compare_with_candidates(a, g, unit, a->keeps_weights ? a->kept + start * whole_tiles(a->S) : 0);
    } else {
        compare_with_own(a, g, unit, a->own_weights + start * a->K, a->own_ids + start * a->K);
    }
    for (int i = 0; i < GROUP; ++i) scalars(a, TOP)[start + i] = g->top[i];
    settle(a, g, start, count, o, unit);
}

#endif
