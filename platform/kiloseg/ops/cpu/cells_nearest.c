// Finds the K nearest classes of every labeled pixel other than its own, from scores at feature cells. loss.c calls it.
//
// For each chunk of panels, a first pass over the upsampled scores keeps the highest score of each lane of a panel. The highest but
// K of these is a bound that K classes other than the pixel's own reach. The second pass inserts the few scores that reach it: of
// 1,284 classes in random order about 10 for K = 8, where a running best would insert about 49. Scores are not divided by a pixel's
// length, which would not change their order.

#include "cells_nearest.h"

#include "cells_scores.h"

struct nearest_cells {
    struct cells cells;
    int64_t K;
    float *scores;  // (capacity, K) of a block, highest first
    int32_t *ids;   // likewise; -1 for none yet
};

#define BESIDE 4  // pixels that are searched side by side, with their highest scores in registers

// Up to PIECE labeled pixels of a segment.
struct piece {
    int64_t count;
    float shares[PIECE];     // of the right column of cells
    float bounds[PIECE];
    int32_t labels[PIECE];
    int64_t places[PIECE];   // in the block
};

// Computes the scores of a segment's columns of cells with one panel: the left ones, and what is added towards the right. Columns
// that do not exist have -infinity.
INLINE void panel_columns(
    const struct nearest_cells *a, const struct block *b, const struct segment *s, int64_t panel, vec left[VECTORS],
    vec right[VECTORS]
) {
    columns_of(a->cells.scores + (panel - b->panel) * b->stride * TILE, s, VECTORS, left, right);
    int partial = (panel + 1) * TILE > a->cells.S;
    for (int u = 0; u < VECTORS; ++u) {
        right[u] -= left[u];
        if (!partial) continue;
        ivec out = excluded(panel * TILE + u * LANES, -1, a->cells.S);
        left[u] = unless(out, left[u]) + (vec)(out & (ivec)splat(-INFINITY));
        right[u] = unless(out, right[u]);
    }
}

INLINE void order(vec *higher, vec *lower) {
    vec high = vmax(*higher, *lower);
    *lower = vmin(*higher, *lower);
    *higher = high;
}

// Returns the highest but K of a pixel's lanes, or `least` if that is higher. Sets `any` if a lane is higher than `least`.
INLINE float bound_of(vec highest[VECTORS], int64_t K, float least, int *any) {
    for (int u = VECTORS - 1; u > 0; --u) {
        for (int v = 0; v < u; ++v) order(&highest[v], &highest[v + 1]);
    }
    for (int64_t k = 0;;) {
        float score = max_of(highest[0]);
        if (!(score > least)) return least;
        *any = 1;
        ivec found = highest[0] >= splat(score);
        k += __builtin_popcount(at_least(highest[0], splat(score)));
        if (k > K) return score;
        for (int u = 0; u + 1 < VECTORS; ++u) {
            highest[u] = unless(found, highest[u]) + (vec)(found & (ivec)highest[u + 1]);
        }
        highest[VECTORS - 1] = unless(found, highest[VECTORS - 1]) + (vec)(found & (ivec)splat(-INFINITY));
    }
}

// Sets the bounds of `count` pixels from `first` on. Returns whether any class may be inserted.
INLINE int bound_pixels(
    const struct nearest_cells *a, const struct block *b, const struct segment *s, struct piece *now, int64_t first, int count
) {
    vec left[VECTORS], right[VECTORS], highest[BESIDE][VECTORS];
    for (int p = 0; p < count; ++p) {
        for (int u = 0; u < VECTORS; ++u) highest[p][u] = splat(-INFINITY);
    }
    for (int64_t panel = b->panel; panel < b->panel + b->panels; ++panel) {
        panel_columns(a, b, s, panel, left, right);
        for (int p = 0; p < count; ++p) {
            vec share = splat(now->shares[first + p]);
            for (int u = 0; u < VECTORS; ++u) highest[p][u] = vmax(left[u] + share * right[u], highest[p][u]);
        }
    }
    int any = 0;
    for (int p = 0; p < count; ++p) {
        float least = a->scores[(now->places[first + p] + 1) * a->K - 1];
        now->bounds[first + p] = bound_of(highest[p], a->K, least, &any);
    }
    return any;
}

INLINE void insert(const struct nearest_cells *a, int64_t place, float score, int32_t id) {
    float *scores = a->scores + place * a->K;
    int32_t *ids = a->ids + place * a->K;
    int64_t k = a->K - 1;
    if (!(score > scores[k])) return;
    for (; k > 0 && score > scores[k - 1]; --k) scores[k] = scores[k - 1], ids[k] = ids[k - 1];
    scores[k] = score, ids[k] = id;
}

static void search_piece(const struct nearest_cells *a, const struct block *b, const struct segment *s, struct piece *now) {
    int64_t first = 0;
    int any = 0;
    for (; first + BESIDE <= now->count; first += BESIDE) any |= bound_pixels(a, b, s, now, first, BESIDE);
    for (; first < now->count; ++first) any |= bound_pixels(a, b, s, now, first, 1);
    if (!any) return;
    vec left[VECTORS], right[VECTORS], scores[VECTORS], highest;
    for (int64_t panel = b->panel; panel < b->panel + b->panels; ++panel) {
        panel_columns(a, b, s, panel, left, right);
        for (int64_t p = 0; p < now->count; ++p) {
            vec share = splat(now->shares[p]), bound = splat(now->bounds[p]);
            for (int u = 0; u < VECTORS; ++u) {
                scores[u] = left[u] + share * right[u];
                highest = u ? vmax(scores[u], highest) : scores[u];
            }
            if (!at_least(highest, bound)) continue;
            for (int u = 0; u < VECTORS; ++u) {
                for (unsigned hits = at_least(scores[u], bound); hits; hits &= hits - 1) {
                    int l = __builtin_ctz(hits);
                    int32_t id = (int32_t)(panel * TILE + u * LANES + l);
                    if (id != now->labels[p]) insert(a, now->places[p], scores[u][l], id);
                }
            }
        }
    }
}

static void search_segment(const struct nearest_cells *a, const struct block *b, int64_t j, int64_t i, int64_t y) {
    const struct cells *cells = &a->cells;
    struct segment s = segment_at(b, j, i, y);
    int64_t line = (y - cells->y_starts[b->first]) * cells->W;
    const int64_t *labels = cells->labels + (b->image * cells->H + y) * cells->W;
    struct piece now;
    for (int64_t x = cells->x_starts[i], end = cells->x_starts[i + 1]; x < end;) {
        for (now.count = 0; x < end && now.count < PIECE; ++x) {
            if (labels[x] == cells->ignore) continue;
            now.shares[now.count] = cells->x_parts[x];
            now.labels[now.count] = (int32_t)labels[x];
            now.places[now.count++] = line + x;
            for (int64_t k = (line + x) * a->K; !b->panel && k < (line + x + 1) * a->K; ++k) {
                a->scores[k] = -INFINITY;
                a->ids[k] = -1;
            }
        }
        search_piece(a, b, &s, &now);
    }
}

int64_t kiloseg_nearest_block(struct team *team, struct nearest_cells *a, int64_t image, int64_t first) {
    const struct cells *cells = &a->cells;
    struct block mine = {.a = cells, .image = image, .first = first}, *b = &mine;
    int64_t across = (intervals(cells->w) + PATCHES - 1) / PATCHES;
    choose_block(b);
    for (int64_t panel = 0; panel < all_panels(cells); panel += cells->chunk) {
        choose_chunk(b, panel);
        score_chunk(team, b);
        for (int64_t task; (task = next_task(team)) < (b->last - b->first) * across;) {
            int64_t j = b->first + task / across, from = task % across * PATCHES, to = from + PATCHES;
            for (int64_t i = from; i < to && i < intervals(cells->w); ++i) {
                for (int64_t y = cells->y_starts[j]; y < cells->y_starts[j + 1]; ++y) search_segment(a, b, j, i, y);
            }
        }
        meet(team);
    }
    return b->last;
}

void kiloseg_nearest_prepare(struct nearest_cells *a) {
    divide_axis(a->cells.H, a->cells.h, a->cells.y_starts, a->cells.y_parts);
    divide_axis(a->cells.W, a->cells.w, a->cells.x_starts, a->cells.x_parts);
}

int64_t kiloseg_nearest_row(const struct nearest_cells *a, int64_t interval) { return a->cells.y_starts[interval]; }

const int32_t *kiloseg_nearest_ids(const struct nearest_cells *a, int64_t pixel) { return a->ids + pixel * a->K; }

const int64_t kiloseg_cells_nearest = TILE / 2;  // the largest K: with more, bounds from TILE lanes are loose
