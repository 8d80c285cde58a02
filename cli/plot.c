#include "cli/plot.h"

#include <math.h>
#include <stdbool.h>

#define WIDTH 1020
#define HEIGHT 540
#define LEFT 90
#define RIGHT 330 /* room for the legend */
#define TOP 70
#define BOTTOM 60
#define LEGEND_HEIGHT 22
#define TICK_DISTANCE 44.0 /* labels of x closer than this are left out */

/* Told apart by lightness and by marks too, for print and for colour-blind readers. */
static const char *const colours[] = {"#0b5fa5", "#4fa3d9", "#6a994e", "#c0392b", "#8d6a9f"};
static const char *const dashes[] = {"none", "7 4", "2 3", "10 3 2 3"};
#define PICK(from, i) (from)[(i) % (int)(sizeof(from) / sizeof((from)[0]))]

typedef struct plot_axes {
    double x_low, x_high, y_low, y_high; /* logarithms to base 10 */
} plot_axes;

static double place_x(const plot_axes *axes, double value) {
    return LEFT + (log10(value) - axes->x_low) / (axes->x_high - axes->x_low) * (WIDTH - LEFT - RIGHT);
}

static double place_y(const plot_axes *axes, double value) {
    return HEIGHT - BOTTOM - (log10(value) - axes->y_low) / (axes->y_high - axes->y_low) * (HEIGHT - TOP - BOTTOM);
}

/* Whole decades in y; x ends at its first and last value. */
static plot_axes find_axes(const plot_data *plot) {
    plot_axes axes = {INFINITY, -INFINITY, INFINITY, -INFINITY};
    for (int l = 0; l < plot->line_count; l++)
        for (int i = 0; i < plot->lines[l].points; i++) {
            double x = log10(plot->lines[l].x[i]), y = log10(plot->lines[l].y[i]);
            axes.x_low = fmin(axes.x_low, x);
            axes.x_high = fmax(axes.x_high, x);
            axes.y_low = fmin(axes.y_low, floor(y));
            axes.y_high = fmax(axes.y_high, ceil(y));
        }
    if (!(axes.y_high > axes.y_low)) {
        axes.y_low = isfinite(axes.y_low) ? axes.y_low : 0;
        axes.y_high = axes.y_low + 1;
    }
    if (!(axes.x_high > axes.x_low)) {
        axes.x_low = isfinite(axes.x_low) ? axes.x_low - 0.5 : 0;
        axes.x_high = axes.x_low + 1;
    }
    return axes;
}

static void print_text(FILE *file, const char *text) {
    for (; *text != '\0'; text++)
        if (*text == '<' || *text == '>' || *text == '&')
            fprintf(file, "&#%d;", *text);
        else
            fputc(*text, file);
}

static void print_label(FILE *file, double x, double y, const char *style, const char *text) {
    fprintf(file, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, style);
    print_text(file, text);
    fputs("</text>\n", file);
}

static void print_seconds(char *out, size_t size, double seconds) {
    if (seconds > 0.99)
        snprintf(out, size, "%g s", seconds);
    else if (seconds > 0.99e-3)
        snprintf(out, size, "%g ms", seconds * 1e3);
    else
        snprintf(out, size, "%g \xc2\xb5s", seconds * 1e6);
}

static void print_rule(FILE *file, double x1, double y1, double x2, double y2, const char *colour) {
    fprintf(file, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", x1, y1, x2, y2, colour);
}

/* Decades with a label, their 2 ... 9 without. */
static void print_times(FILE *file, const plot_axes *axes) {
    char text[32];
    for (int decade = (int)axes->y_low; decade <= (int)axes->y_high; decade++) {
        for (int digit = 1; digit <= (decade < (int)axes->y_high ? 9 : 1); digit++) {
            double y = place_y(axes, digit * pow(10, decade));
            print_rule(file, LEFT, y, WIDTH - RIGHT, y, digit == 1 ? "#c8c8c8" : "#efefef");
        }
        print_seconds(text, sizeof text, pow(10, decade));
        print_label(file, LEFT - 8, place_y(axes, pow(10, decade)) + 4, "text-anchor=\"end\"", text);
    }
}

/* The line with the most points has a mark at each of its x. */
static void print_counts(FILE *file, const plot_data *plot, const plot_axes *axes) {
    const plot_line *longest = &plot->lines[0];
    double last = -INFINITY;
    char text[32];
    for (int l = 1; l < plot->line_count; l++)
        if (plot->lines[l].points > longest->points) longest = &plot->lines[l];
    for (int i = 0; i < longest->points; i++) {
        double x = place_x(axes, longest->x[i]);
        print_rule(file, x, TOP, x, HEIGHT - BOTTOM, "#e4e4e4");
        if (x - last < TICK_DISTANCE) continue;
        last = x;
        snprintf(text, sizeof text, "%.0f", longest->x[i]);
        print_label(file, x, HEIGHT - BOTTOM + 18, "text-anchor=\"middle\"", text);
    }
}

static void print_mark(FILE *file, double x, double y, const plot_line *line) {
    static const char *const shapes[] = {
        "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"/>\n",
        "<path transform=\"translate(%.1f,%.1f)\" d=\"M-4,-4h8v8h-8z\" fill=\"%s\"/>\n",
        "<path transform=\"translate(%.1f,%.1f)\" d=\"M0,-5.5L5,4H-5z\" fill=\"%s\"/>\n",
        "<path transform=\"translate(%.1f,%.1f)\" d=\"M0,-5.5L5.5,0L0,5.5L-5.5,0z\" fill=\"%s\"/>\n",
        "<path transform=\"translate(%.1f,%.1f)\" d=\"M0,5.5L5,-4H-5z\" fill=\"%s\"/>\n"};
    const char *shape = PICK(shapes, line->colour), *colour = PICK(colours, line->colour);
    fprintf(file, shape, x, y, colour);
}

static void print_stroke(FILE *file, const plot_line *line) {
    fprintf(file, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2.2\" stroke-dasharray=\"%s\" points=\"",
            PICK(colours, line->colour), PICK(dashes, line->dashes));
}

static void print_line(FILE *file, const plot_axes *axes, const plot_line *line) {
    print_stroke(file, line);
    for (int i = 0; i < line->points; i++)
        fprintf(file, "%.1f,%.1f ", place_x(axes, line->x[i]), place_y(axes, line->y[i]));
    fputs("\"/>\n", file);
    for (int i = 0; i < line->points; i++)
        print_mark(file, place_x(axes, line->x[i]), place_y(axes, line->y[i]), line);
}

static void print_legend(FILE *file, const plot_data *plot) {
    for (int l = 0; l < plot->line_count; l++) {
        const plot_line *line = &plot->lines[l];
        double x = WIDTH - RIGHT + 14, y = TOP + 10 + l * (double)LEGEND_HEIGHT;
        print_stroke(file, line);
        fprintf(file, "%.1f,%.1f %.1f,%.1f\"/>\n", x, y, x + 34, y);
        print_mark(file, x + 17, y, line);
        print_label(file, x + 42, y + 4, "font-size=\"12\"", line->name);
    }
}

void print_plot(FILE *file, const void *data) {
    const plot_data *plot = data;
    plot_axes axes = find_axes(plot);
    fprintf(file,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
            "font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"%d\" height=\"%d\" fill=\"white\"/>\n",
            WIDTH, HEIGHT, WIDTH, HEIGHT, WIDTH, HEIGHT);
    print_label(file, LEFT, 30, "font-size=\"18\"", plot->title);
    print_label(file, LEFT, 52, "fill=\"#555\"", plot->subtitle);
    print_times(file, &axes);
    if (plot->line_count > 0) print_counts(file, plot, &axes);
    for (int l = 0; l < plot->line_count; l++)
        print_line(file, &axes, &plot->lines[l]);
    print_legend(file, plot);
    print_label(file, LEFT + (WIDTH - LEFT - RIGHT) / 2.0, HEIGHT - 15, "text-anchor=\"middle\"", plot->x_name);
    fprintf(file, "<g transform=\"translate(20,%.1f) rotate(-90)\">", TOP + (HEIGHT - TOP - BOTTOM) / 2.0);
    print_label(file, 0, 0, "text-anchor=\"middle\"", plot->y_name);
    fputs("</g>\n</svg>\n", file);
}
