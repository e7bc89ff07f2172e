// Finds the one or two classes of highest score for every pixel, from scores at feature cells. kiloseg.ops.upsampled_search calls
// it.

#include "cells_scores.h"

#define MAX_BEST 2

// This is a running best over the panels. Scores are not divided by a pixel's length, which would not change their order.
struct best {
    struct cells cells;
    int64_t K;        // 1 or 2
    float *scores;    // (K, capacity) of a block
    int32_t *ids;     // likewise; -1 for none yet
    int64_t *labels;  // (K, B, H, W)
    float *cosines;   // likewise, or null
};

// Inserts a score that is higher than the lowest of the K.
INLINE void insert(struct best *a, int64_t place, float score, int32_t id) {
    float *scores = a->scores + place;
    int32_t *ids = a->ids + place;
    int64_t next = a->cells.capacity;
    if (a->K == 1) {
        scores[0] = score, ids[0] = id;
    } else if (score > scores[0]) {
        scores[next] = scores[0], ids[next] = ids[0];
        scores[0] = score, ids[0] = id;
    } else {
        scores[next] = score, ids[next] = id;
    }
}

// Searches one panel for one row of a patch: pixels x from `from` to `to` - 1, whose places begin at `line`.
INLINE void search_panel(
    struct best *a, const struct block *b, const struct segment *s, int64_t panel, int64_t line, int64_t from, int64_t to,
    int vectors, int partial
) {
    const float *lowest = a->scores + (a->K - 1) * a->cells.capacity + line;
    vec left[VECTORS], right[VECTORS];
    columns_of(a->cells.scores + (panel - b->panel) * b->stride * TILE, s, vectors, left, right);
    for (int u = 0; u < vectors; ++u) {
        right[u] -= left[u];
        if (!partial) continue;
        ivec out = excluded(panel * TILE + u * LANES, -1, a->cells.S);
        left[u] = unless(out, left[u]) + (vec)(out & (ivec)splat(-INFINITY));
        right[u] = unless(out, right[u]);
    }
    for (int64_t x = from; x < to; ++x) {
        vec share = splat(a->cells.x_parts[x]), found[VECTORS], highest;
        for (int u = 0; u < vectors; ++u) {
            found[u] = left[u] + share * right[u];
            highest = u ? vmax(highest, found[u]) : found[u];
        }
        if (!at_least(highest, splat(lowest[x]))) continue;
        for (int u = 0; u < vectors; ++u) {
            for (unsigned hits = at_least(found[u], splat(lowest[x])); hits; hits &= hits - 1) {
                int l = __builtin_ctz(hits);
                float score = found[u][l];
                if (score > lowest[x]) insert(a, line + x, score, (int32_t)(panel * TILE + u * LANES + l));
            }
        }
    }
}

static float inverse_length(const struct cells *a, const struct block *b, const struct segment *s, float share) {
    const float *map = a->map + b->cell * a->width;
    const float *upper_left = map + s->upper_left / TILE * a->width, *upper_right = map + s->upper_right / TILE * a->width;
    const float *lower_left = map + s->lower_left / TILE * a->width, *lower_right = map + s->lower_right / TILE * a->width;
    vec squares = {0};
    for (int64_t d = 0; d < a->width; d += LANES) {
        vec left = load(upper_left + d) + splat(s->part) * (load(lower_left + d) - load(upper_left + d));
        vec right = load(upper_right + d) + splat(s->part) * (load(lower_right + d) - load(upper_right + d));
        vec u = splat(1 - share) * left + splat(share) * right;
        squares += u * u;
    }
    float length = sqrtf(sum_of(squares));
    return 1 / (length < NORM_EPS ? NORM_EPS : length);
}

// Compares one row of a patch with the panels of the chunk.
static void search_segment(struct best *best, const struct block *b, int64_t j, int64_t i, int64_t y, int first, int last) {
    const struct cells *a = &best->cells;
    struct segment s = segment_at(b, j, i, y);
    int64_t line = (y - a->y_starts[b->first]) * a->W, from = a->x_starts[i], to = a->x_starts[i + 1];
    for (int64_t x = from; first && x < to; ++x) {
        for (int64_t k = 0; k < best->K; ++k) {
            best->scores[k * a->capacity + line + x] = -INFINITY;
            best->ids[k * a->capacity + line + x] = -1;
        }
    }
    for (int64_t panel = b->panel; panel < b->panel + b->panels; ++panel) {
        int partial = (panel + 1) * TILE > a->S;
        if (!partial) search_panel(best, b, &s, panel, line, from, to, VECTORS, 0);
        else if (panel_vectors(a, panel) == 1) search_panel(best, b, &s, panel, line, from, to, 1, 1);
        else search_panel(best, b, &s, panel, line, from, to, VECTORS, 1);
    }
    for (int64_t x = from; last && x < to; ++x) {
        float inverse = best->cosines ? inverse_length(a, b, &s, a->x_parts[x]) : 1;
        for (int64_t k = 0; k < best->K; ++k) {
            int64_t place = ((k * a->B + b->image) * a->H + y) * a->W + x;
            int32_t id = best->ids[k * a->capacity + line + x];  // none where scores are NaN
            best->labels[place] = id < 0 ? 0 : id;
            if (best->cosines) best->cosines[place] = id < 0 ? NAN : inverse * best->scores[k * a->capacity + line + x];
        }
    }
}

static void search_patches(struct best *best, const struct block *b, int64_t j, int64_t from, int64_t to) {
    const struct cells *a = &best->cells;
    int first = b->panel == 0, last = b->panel + b->panels == all_panels(a);
    for (int64_t i = from; i < to; ++i) {
        for (int64_t y = a->y_starts[j]; y < a->y_starts[j + 1]; ++y) search_segment(best, b, j, i, y, first, last);
    }
}

static void run(struct team *team, int thread) {
    (void)thread;
    struct best *best = team->work;
    const struct cells *a = &best->cells;
    struct block mine = {.a = a}, *b = &mine;
    int64_t across = (intervals(a->w) + PATCHES - 1) / PATCHES;
    for (int64_t image = 0; image < a->B; ++image) {
        b->image = image;
        for (int64_t j; (j = next_task(team)) < a->h;) load_row(a, image, j);
        meet(team);
        for (b->first = 0; b->first < intervals(a->h); b->first = b->last) {
            choose_block(b);
            for (int64_t panel = 0; panel < all_panels(a); panel += a->chunk) {
                choose_chunk(b, panel);
                score_chunk(team, b);
                for (int64_t task; (task = next_task(team)) < (b->last - b->first) * across;) {
                    int64_t from = task % across * PATCHES, to = from + PATCHES;
                    search_patches(best, b, b->first + task / across, from, to < intervals(a->w) ? to : intervals(a->w));
                }
                meet(team);
            }
        }
    }
}

void kiloseg_best(struct best *a) {
    struct cells *cells = &a->cells;
    divide_axis(cells->H, cells->h, cells->y_starts, cells->y_parts);
    divide_axis(cells->W, cells->w, cells->x_starts, cells->x_parts);
    int64_t useful = cells->B * cells->H * cells->W * cells->S / 131072;  // starting a thread costs this many scores
    run_team(run, a, cells->threads < useful ? cells->threads : useful);
}

const int64_t kiloseg_max_best = MAX_BEST;
