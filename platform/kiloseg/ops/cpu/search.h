// Finds the K classes with the largest product for each pixel of a group.
//
// Scores of SPAN classes at a time stay in the cache.
// First, a network of minima and maxima keeps for each pixel the K largest of the highest scores of small sets of classes; the
// smallest of these is a bound that K scores reach. Then the few scores that reach it are inserted one by one. In random order
// about 8.5 of 1,284 reach the bound for K = 8, where a pixel that holds its best 8 so far would insert about 49.

#ifndef KILOSEG_SEARCH_H
#define KILOSEG_SEARCH_H

#include "scores.h"

#define SPAN 480  // a multiple of ROWS and of every size of a set
#define MAX_NEAREST 64

struct found {
    float scores[MAX_NEAREST][GROUP] ALIGNED;
    int32_t ids[MAX_NEAREST][GROUP] ALIGNED;
};

struct search {
    float scores[SPAN][GROUP] ALIGNED;
    float bounds[MAX_NEAREST][GROUP] ALIGNED;
    int32_t held[GROUP];
    int32_t worst[GROUP];
};

// Returns the number of classes in a set: the larger it is, the fewer steps the network takes and the looser the bound.
static int64_t set_size(int64_t C, int64_t K) {
    static const int64_t sizes[] = {24, 12, 6, 3, 2};
    for (int i = 0; i < 5; ++i) {
        if (C >= 4 * K * sizes[i]) return sizes[i];
    }
    return 1;
}

static void score_span(
    struct search *s, const float *o, const float *rows, int64_t D, int64_t width, int64_t C, int64_t first, int64_t count,
    const int32_t *excluded
) {
    for (int64_t r = 0; r < count; r += ROWS) {
        vec sums[ROWS][VECTORS] = {0};
        products(o, rows + (first + r) * width, D, width, sums);
        for (int k = 0; k < ROWS; ++k) {
            for (int u = 0; u < VECTORS; ++u) store(&s->scores[r + k][u * LANES], sums[k][u]);
        }
    }
    for (int64_t c = C - first; c < count; ++c) {
        for (int i = 0; i < GROUP; ++i) s->scores[c][i] = -INFINITY;
    }
    for (int i = 0; i < GROUP; ++i) {
        int64_t c = excluded[i] - first;
        if (c >= 0 && c < count) s->scores[c][i] = -INFINITY;
    }
}

// This is the network: it keeps the K largest of its inputs, largest first.
static void raise_bounds(struct search *s, int64_t count, int64_t K, int64_t size) {
    for (int64_t c = 0; c < count; c += size) {
        vec highest[VECTORS];
        for (int u = 0; u < VECTORS; ++u) highest[u] = load(&s->scores[c][u * LANES]);
        for (int64_t k = 1; k < size; ++k) {
            for (int u = 0; u < VECTORS; ++u) highest[u] = vmax(load(&s->scores[c + k][u * LANES]), highest[u]);
        }
        unsigned any = 0;
        for (int u = 0; u < VECTORS; ++u) any |= at_least(highest[u], load(&s->bounds[K - 1][u * LANES]));
        if (!any) continue;
        for (int64_t k = 0; k < K; ++k) {
            for (int u = 0; u < VECTORS; ++u) {
                vec bound = load(&s->bounds[k][u * LANES]);
                store(&s->bounds[k][u * LANES], vmax(highest[u], bound));
                highest[u] = vmin(highest[u], bound);
            }
        }
    }
}

static void find_worst(struct search *s, const struct found *found, int i, int64_t K) {
    int32_t worst = 0;
    for (int32_t k = 1; k < K; ++k) worst = found->scores[k][i] < found->scores[worst][i] ? k : worst;
    s->worst[i] = worst;
}

static inline void insert(struct search *s, struct found *found, int i, int32_t id, float score, int64_t K) {
    int32_t slot = s->held[i];
    if (slot < K) {
        s->held[i] = slot + 1;
    } else {
        slot = s->worst[i];
        if (!(score > found->scores[slot][i])) return;
    }
    found->scores[slot][i] = score;
    found->ids[slot][i] = id;
    if (s->held[i] == K) find_worst(s, found, i, K);
}

static void collect(struct search *s, struct found *found, int64_t first, int64_t count, int64_t K) {
    vec bounds[VECTORS];
    for (int u = 0; u < VECTORS; ++u) bounds[u] = load(&s->bounds[K - 1][u * LANES]);
    for (int64_t c = 0; c < count; ++c) {
        uint64_t hits = 0;
        for (int u = 0; u < VECTORS; ++u) {
            hits |= (uint64_t)at_least(load(&s->scores[c][u * LANES]), bounds[u]) << (u * LANES);
        }
        for (; hits; hits &= hits - 1) {
            int i = __builtin_ctzll(hits);
            insert(s, found, i, (int32_t)(first + c), s->scores[c][i], K);
        }
    }
}

static void search_one(
    struct search *s, struct found *found, const float *o, const float *rows, int64_t D, int64_t width, int64_t C,
    const int32_t *excluded
) {
    vec best[VECTORS];
    ivec ids[VECTORS];
    for (int u = 0; u < VECTORS; ++u) best[u] = splat(-INFINITY), ids[u] = isplat(0);
    for (int64_t first = 0; first < C; first += SPAN) {
        int64_t count = C - first < SPAN ? C - first : SPAN;
        score_span(s, o, rows, D, width, C, first, (count + ROWS - 1) / ROWS * ROWS, excluded);
        for (int64_t c = 0; c < count; ++c) {
            for (int u = 0; u < VECTORS; ++u) {
                vec score = load(&s->scores[c][u * LANES]);
                ivec better = score > best[u];
                best[u] = vmax(best[u], score);
                ids[u] = (better & isplat((int32_t)(first + c))) | (~better & ids[u]);
            }
        }
    }
    for (int u = 0; u < VECTORS; ++u) {
        store(&found->scores[0][u * LANES], best[u]);
        *(ivec *)&found->ids[0][u * LANES] = ids[u];
    }
}

// Fills K places of `found` for each pixel, in no particular order. If scores are NaN, a place has a score of NaN and class 0, so
// ids stay valid classes.
//
// o is (D, GROUP), rows is (C padded to whole tiles, width), and excluded (GROUP) holds a class each, or -1.
static void search(
    struct search *s, struct found *found, const float *o, const float *rows, int64_t D, int64_t width, int64_t C, int64_t K,
    const int32_t *excluded
) {
    if (K == 1) {
        search_one(s, found, o, rows, D, width, C, excluded);
        return;
    }
    int64_t size = set_size(C, K);
    for (int64_t k = 0; k < K; ++k) {
        for (int i = 0; i < GROUP; ++i) {
            found->scores[k][i] = NAN;
            found->ids[k][i] = 0;
            s->bounds[k][i] = -INFINITY;
        }
    }
    for (int i = 0; i < GROUP; ++i) s->held[i] = s->worst[i] = 0;
    for (int64_t first = 0; first < C; first += SPAN) {
        int64_t count = C - first < SPAN ? C - first : SPAN;
        int64_t whole = (count + 23) / 24 * 24;  // a multiple of every set size
        score_span(s, o, rows, D, width, C, first, (count + ROWS - 1) / ROWS * ROWS, excluded);
        for (int64_t c = (count + ROWS - 1) / ROWS * ROWS; c < whole; ++c) {
            for (int i = 0; i < GROUP; ++i) s->scores[c][i] = -INFINITY;
        }
        raise_bounds(s, whole, K, size);
        collect(s, found, first, count, K);
    }
}

#endif
