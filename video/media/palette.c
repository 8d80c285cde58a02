/* video/media/palette.c - at most 256 colours for a frame: exact when it has no more, else boxes of colour space cut
 * where the variance is largest (after X. Wu's and P. Heckbert's cuts), and an ordered dither. */
#include "video/media/media.h"

#include <string.h>

#define COLOURS 256
#define BINS (1 << 15) /* five bits a channel */
#define EXACT_SLOTS (1 << 10)
#define DITHER_SIDE 8
#define DITHER_RANGE 8 /* a bin is 8 levels wide */

typedef struct colour_bin {
    int64_t count, sum[3];
} colour_bin;

typedef struct colour_box {
    int start, end;      /* into order */
    int axis;            /* of its largest variance */
    double mean, spread; /* along axis; spread: sum of squared deviations, 0 when the box cannot be cut */
} colour_box;

struct hlv_palette {
    colour_bin bins[BINS];
    uint16_t order[BINS];        /* the bins in use, grouped by box */
    int16_t nearest[BINS];       /* palette index, -1: not asked yet */
    uint32_t exact[EXACT_SLOTS]; /* colour plus one; 0: empty */
    uint8_t exact_index[EXACT_SLOTS];
};

hlv_palette *hlv_palette_create(hlv_context *ctx) {
    return hlv_alloc(ctx, sizeof(hlv_palette));
}

void hlv_palette_free(hlv_context *ctx, hlv_palette *palette) {
    hlv_free(ctx, palette);
}

/* Fills colours and indices while no more than 256 colours turn up; 0 when there are more. */
static int map_exactly(hlv_palette *palette, uint8_t *colours, uint8_t *indices, const uint8_t *rgb, size_t pixels) {
    int count = 0;
    memset(palette->exact, 0, sizeof palette->exact);
    for (size_t i = 0; i < pixels; i++) {
        uint32_t key = ((uint32_t)rgb[3 * i] << 16 | (uint32_t)rgb[3 * i + 1] << 8 | rgb[3 * i + 2]) + 1;
        unsigned slot = key * 2654435761u >> 22;
        while (palette->exact[slot] != 0 && palette->exact[slot] != key)
            slot = (slot + 1) % EXACT_SLOTS;
        if (palette->exact[slot] == 0) {
            if (count == COLOURS) return 0;
            palette->exact[slot] = key;
            palette->exact_index[slot] = (uint8_t)count;
            memcpy(colours + 3 * count++, rgb + 3 * i, 3);
        }
        indices[i] = palette->exact_index[slot];
    }
    return count;
}

static int bin_of(const int *channel) {
    return channel[0] >> 3 << 10 | channel[1] >> 3 << 5 | channel[2] >> 3;
}

/* The histogram; returns how many bins are in use. */
static int count_colours(hlv_palette *palette, const uint8_t *rgb, size_t pixels) {
    memset(palette->bins, 0, sizeof palette->bins);
    for (size_t i = 0; i < pixels; i++) {
        int channel[3] = {rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2]};
        colour_bin *bin = &palette->bins[bin_of(channel)];
        bin->count++;
        for (int c = 0; c < 3; c++)
            bin->sum[c] += channel[c];
    }
    int used = 0;
    for (int i = 0; i < BINS; i++)
        if (palette->bins[i].count > 0) palette->order[used++] = (uint16_t)i;
    return used;
}

static double bin_mean(const colour_bin *bin, int axis) {
    return (double)bin->sum[axis] / (double)bin->count;
}

static colour_box measure_box(const hlv_palette *palette, int start, int end) {
    colour_box box = {.start = start, .end = end};
    for (int axis = 0; axis < 3; axis++) {
        double weight = 0, sum = 0, squares = 0;
        for (int i = start; i < end; i++) {
            const colour_bin *bin = &palette->bins[palette->order[i]];
            double value = bin_mean(bin, axis), count = (double)bin->count;
            weight += count;
            sum += count * value;
            squares += count * value * value;
        }
        double spread = squares - sum * sum / weight;
        if (end - start > 1 && spread > box.spread) {
            box.axis = axis;
            box.mean = sum / weight;
            box.spread = spread;
        }
    }
    return box;
}

/* Moves the bins up to the mean to the front; returns where the rest starts, box->start or box->end when rounding left
 * one side empty. */
static int partition(hlv_palette *palette, const colour_box *box) {
    int middle = box->start;
    for (int i = box->start; i < box->end; i++) {
        uint16_t bin = palette->order[i];
        if (bin_mean(&palette->bins[bin], box->axis) <= box->mean) {
            palette->order[i] = palette->order[middle];
            palette->order[middle++] = bin;
        }
    }
    return middle;
}

static int cut_boxes(hlv_palette *palette, colour_box *boxes, int used) {
    int count = 1;
    boxes[0] = measure_box(palette, 0, used);
    while (count < COLOURS) {
        int widest = 0;
        for (int i = 1; i < count; i++)
            if (boxes[i].spread > boxes[widest].spread) widest = i;
        colour_box box = boxes[widest];
        if (!(box.spread > 0)) break;
        int middle = partition(palette, &box);
        if (middle == box.start || middle == box.end) {
            boxes[widest].spread = 0;
            continue;
        }
        boxes[widest] = measure_box(palette, box.start, middle);
        boxes[count++] = measure_box(palette, middle, box.end);
    }
    return count;
}

static void box_colour(const hlv_palette *palette, uint8_t *colour, const colour_box *box) {
    double sum[3] = {0}, weight = 0;
    for (int i = box->start; i < box->end; i++) {
        const colour_bin *bin = &palette->bins[palette->order[i]];
        weight += (double)bin->count;
        for (int c = 0; c < 3; c++)
            sum[c] += (double)bin->sum[c];
    }
    for (int c = 0; c < 3; c++)
        colour[c] = (uint8_t)(sum[c] / weight + 0.5);
}

static int nearest_colour(hlv_palette *palette, const uint8_t *colours, int count, const int *channel) {
    int bin = bin_of(channel);
    if (palette->nearest[bin] >= 0) return palette->nearest[bin];
    int best = 0, best_distance = INT32_MAX;
    for (int i = 0; i < count; i++) {
        int distance = 0;
        for (int c = 0; c < 3; c++) {
            int difference = colours[3 * i + c] - ((channel[c] & ~7) + 4);
            distance += difference * difference;
        }
        if (distance < best_distance) {
            best_distance = distance;
            best = i;
        }
    }
    palette->nearest[bin] = (int16_t)best;
    return best;
}

/* Bayer's threshold at (x, y), 0 to 63: the bits of x^y and y interleaved, most significant last. */
static int threshold(int x, int y) {
    int value = 0;
    for (int bit = 0; bit < 3; bit++)
        value |= ((x ^ y) >> bit & 1) << (5 - 2 * bit) | (y >> bit & 1) << (4 - 2 * bit);
    return value;
}

static int clamp_level(int value) {
    return value < 0 ? 0 : value > 255 ? 255 : value;
}

int hlv_palette_map(hlv_palette *palette, uint8_t *colours, uint8_t *indices, const uint8_t *rgb, int width,
                    int height) {
    size_t pixels = (size_t)width * (size_t)height;
    int count = map_exactly(palette, colours, indices, rgb, pixels);
    if (count > 0) return count;
    colour_box boxes[COLOURS];
    count = cut_boxes(palette, boxes, count_colours(palette, rgb, pixels));
    for (int i = 0; i < count; i++)
        box_colour(palette, colours + 3 * i, &boxes[i]);
    memset(palette->nearest, 0xff, sizeof palette->nearest);
    int offsets[DITHER_SIDE][DITHER_SIDE];
    for (int y = 0; y < DITHER_SIDE; y++)
        for (int x = 0; x < DITHER_SIDE; x++)
            offsets[y][x] = threshold(x, y) * DITHER_RANGE / 64 - DITHER_RANGE / 2;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            size_t i = (size_t)y * (size_t)width + (size_t)x;
            int channel[3];
            for (int c = 0; c < 3; c++)
                channel[c] = clamp_level(rgb[3 * i + (size_t)c] + offsets[y % DITHER_SIDE][x % DITHER_SIDE]);
            indices[i] = (uint8_t)nearest_colour(palette, colours, count, channel);
        }
    return count;
}
