// Finds the classes nearest to pixels, for kiloseg.ops.top_k.

#include "search.h"
#include "team.h"

struct nearest {
    int64_t P, D, C, K, width, threads;
    int64_t pixel_stride, dim_stride;
    const float *pixels;      // P x D by these strides
    const float *rows;        // (C, width), padded to whole tiles
    const int64_t *excluded;  // (P), or null
    float *scores;            // (P, K)
    int64_t *ids;             // (P, K)
};

static void nearest_run(struct team *team, int thread) {
    (void)thread;
    const struct nearest *a = team->work;
    float o[MAX_DIM * GROUP] ALIGNED;
    int32_t excluded[GROUP];
    struct search s;
    struct found found;
    for (;;) {
        int64_t start = next_task(team) * GROUP;
        if (start >= a->P) break;
        int count = a->P - start < GROUP ? (int)(a->P - start) : GROUP;
        for (int i = 0; i < GROUP; ++i) {
            int64_t p = start + (i < count ? i : 0);  // lanes beyond the last pixel look at the first
            excluded[i] = a->excluded ? (int32_t)a->excluded[p] : -1;
            for (int64_t d = 0; d < a->D; ++d) o[d * GROUP + i] = a->pixels[p * a->pixel_stride + d * a->dim_stride];
        }
        search(&s, &found, o, a->rows, a->D, a->width, a->C, a->K, excluded);
        for (int i = 0; i < count; ++i) {
            for (int64_t k = 0; k < a->K; ++k) {
                a->scores[(start + i) * a->K + k] = found.scores[k][i];
                a->ids[(start + i) * a->K + k] = found.ids[k][i];
            }
        }
    }
}

void kiloseg_nearest(struct nearest *a) {
    int64_t groups = (a->P + GROUP - 1) / GROUP;
    int64_t useful = groups * GROUP * a->C / 16384;  // starting a thread costs about this many scores
    int64_t threads = a->threads < groups ? a->threads : groups;
    run_team(nearest_run, a, threads < useful ? threads : useful);
}
