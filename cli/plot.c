#include "cli/plot.h"

#include <math.h>
#include <stdbool.h>

#define WIDTH 820
#define HEIGHT 520
#define LEFT 90
#define RIGHT 150 /* room for the names at the lines' ends */
#define TOP 70
#define BOTTOM 60
#define LINE_HEIGHT 15.0

/* Told apart by lightness too, for print and for colour-blind readers. */
static const char *const colours[] = {"#0b5fa5", "#d1495b", "#6a994e", "#8d6a9f"};

typedef struct plot_axes {
    double x_low, x_high, y_low, y_high; /* logarithms to base 10 */
} plot_axes;

static bool usable(double value) {
    return isfinite(value) && value > 0;
}

static double place_x(const plot_axes *axes, double value) {
    return LEFT + (log10(value) - axes->x_low) / (axes->x_high - axes->x_low) * (WIDTH - LEFT - RIGHT);
}

static double place_y(const plot_axes *axes, double value) {
    return HEIGHT - BOTTOM - (log10(value) - axes->y_low) / (axes->y_high - axes->y_low) * (HEIGHT - TOP - BOTTOM);
}

/* Whole decades in y; x ends at its first and last value. */
static plot_axes find_axes(const plot_data *plot) {
    plot_axes axes = {log10(plot->x[0]), log10(plot->x[plot->points - 1]), INFINITY, -INFINITY};
    for (int l = 0; l < plot->line_count; l++)
        for (int i = 0; i < plot->points; i++)
            if (usable(plot->lines[l].y[i])) {
                axes.y_low = fmin(axes.y_low, floor(log10(plot->lines[l].y[i])));
                axes.y_high = fmax(axes.y_high, ceil(log10(plot->lines[l].y[i])));
            }
    if (!(axes.y_high > axes.y_low)) {
        axes.y_low = isfinite(axes.y_low) ? axes.y_low : 0;
        axes.y_high = axes.y_low + 1;
    }
    if (!(axes.x_high > axes.x_low)) axes.x_high = axes.x_low + 1;
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
    if (seconds >= 1)
        snprintf(out, size, "%g s", seconds);
    else if (seconds >= 1e-3)
        snprintf(out, size, "%g ms", seconds * 1e3);
    else
        snprintf(out, size, "%g \xc2\xb5s", seconds * 1e6);
}

static void print_grid(FILE *file, const plot_data *plot, const plot_axes *axes) {
    char text[32];
    for (int i = 0; i <= (int)(axes->y_high - axes->y_low + 0.5); i++) {
        double decade = axes->y_low + i;
        double y = place_y(axes, pow(10, decade));
        fprintf(file, "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", LEFT, y, WIDTH - RIGHT,
                y);
        print_seconds(text, sizeof text, pow(10, decade));
        print_label(file, LEFT - 8, y + 4, "text-anchor=\"end\"", text);
    }
    for (int i = 0; i < plot->points; i++) {
        double x = place_x(axes, plot->x[i]);
        fprintf(file, "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"#eee\"/>\n", x, TOP, x,
                HEIGHT - BOTTOM);
        snprintf(text, sizeof text, "%g", plot->x[i]);
        print_label(file, x, HEIGHT - BOTTOM + 18, "text-anchor=\"middle\"", text);
    }
}

/* *name_y: where the last line's name stands; one that would cover it moves away. */
static void print_line(FILE *file, const plot_data *plot, const plot_axes *axes, int l, double *name_y) {
    const plot_line *line = &plot->lines[l];
    const char *colour = colours[l % (int)(sizeof colours / sizeof colours[0])];
    double x = 0, y = 0;
    fprintf(file, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2.5\" points=\"", colour);
    for (int i = 0; i < plot->points; i++)
        if (usable(line->y[i])) {
            x = place_x(axes, plot->x[i]);
            y = place_y(axes, line->y[i]);
            fprintf(file, "%.1f,%.1f ", x, y);
        }
    fputs("\"/>\n", file);
    for (int i = 0; i < plot->points; i++)
        if (usable(line->y[i]))
            fprintf(file, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"/>\n", place_x(axes, plot->x[i]),
                    place_y(axes, line->y[i]), colour);
    if (!(y > 0)) return;
    double apart = y + 4 - *name_y;
    *name_y = fabs(apart) >= LINE_HEIGHT ? y + 4 : *name_y + (apart < 0 ? -LINE_HEIGHT : LINE_HEIGHT);
    char style[96];
    snprintf(style, sizeof style, "fill=\"%s\" font-weight=\"bold\"", colour);
    print_label(file, x + 10, *name_y, style, line->name);
}

void print_plot(FILE *file, const void *data) {
    const plot_data *plot = data;
    if (plot->points < 1) return;
    plot_axes axes = find_axes(plot);
    fprintf(
        file,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"13\">\n"
        "<rect width=\"%d\" height=\"%d\" fill=\"white\"/>\n",
        WIDTH, HEIGHT, WIDTH, HEIGHT);
    print_label(file, LEFT, 30, "font-size=\"18\"", plot->title);
    print_label(file, LEFT, 52, "fill=\"#555\"", plot->subtitle);
    print_grid(file, plot, &axes);
    double name_y = -LINE_HEIGHT;
    for (int l = 0; l < plot->line_count; l++)
        print_line(file, plot, &axes, l, &name_y);
    print_label(file, LEFT + (WIDTH - LEFT - RIGHT) / 2.0, HEIGHT - 15, "text-anchor=\"middle\"", plot->x_name);
    fprintf(file, "<g transform=\"translate(20,%.1f) rotate(-90)\">", TOP + (HEIGHT - TOP - BOTTOM) / 2.0);
    print_label(file, 0, 0, "text-anchor=\"middle\"", plot->y_name);
    fputs("</g>\n</svg>\n", file);
}
