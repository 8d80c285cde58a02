/* cli/plot.h - a log-log line plot as SVG, for people to read. */
#ifndef HLA_CLI_PLOT_H
#define HLA_CLI_PLOT_H

#include <stdio.h>

#define PLOT_POINTS 16
#define PLOT_LINES 24

typedef struct plot_line {
    char name[80];
    int colour, dashes; /* lines of one kind share a colour and differ in their dashes */
    int points;
    double x[PLOT_POINTS], y[PLOT_POINTS]; /* positive, x ascending */
} plot_line;

typedef struct plot_data {
    const char *title, *subtitle, *x_name, *y_name; /* y is in seconds */
    const plot_line *lines;
    int line_count;
} plot_data;

void print_plot(FILE *file, const void *data); /* data: a plot_data */

#endif
