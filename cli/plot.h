/* cli/plot.h - a log-log line plot as SVG, for people to read. */
#ifndef HLA_CLI_PLOT_H
#define HLA_CLI_PLOT_H

#include <stdio.h>

typedef struct plot_line {
    const char *name;
    const double *y; /* positive; others are left out */
} plot_line;

typedef struct plot_data {
    const char *title, *subtitle, *x_name, *y_name;
    const double *x; /* positive */
    int points;
    const plot_line *lines;
    int line_count; /* at most 4 */
} plot_data;

void print_plot(FILE *file, const void *data); /* data: a plot_data */

#endif
