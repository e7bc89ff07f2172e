// The search for each pixel's K nearest classes by scores at feature cells, as loss.c uses it.

#ifndef KILOSEG_CELLS_NEAREST_H
#define KILOSEG_CELLS_NEAREST_H

#include <stdint.h>

struct nearest_cells;
struct team;

// Divides the axes of the image, once before the threads start.
void kiloseg_nearest_prepare(struct nearest_cells *a);

// Searches for the pixels of one block of an image whose map is loaded, on all threads of the team, which meet at its end. Returns
// the row of intervals after the block's last.
int64_t kiloseg_nearest_block(struct team *team, struct nearest_cells *a, int64_t image, int64_t first);

// Returns the first row of pixels of a row of intervals, or H after the last.
int64_t kiloseg_nearest_row(const struct nearest_cells *a, int64_t interval);

// Returns the K classes of a pixel of the last block, counted from the block's first row of pixels; -1 where scores are NaN.
const int32_t *kiloseg_nearest_ids(const struct nearest_cells *a, int64_t pixel);

#endif
