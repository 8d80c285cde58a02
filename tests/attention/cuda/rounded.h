/* tests/attention/cuda/rounded.h - what 16 bits cost a kernel that works on products of features in them. */
#ifndef HLA_TESTS_CUDA_ROUNDED_H
#define HLA_TESTS_CUDA_ROUNDED_H

#include "tests/attention/hadamard_cases.h"

/* The relative error of out by the state form, evaluated naively with products of features, and the state where a query
 * reads it, rounded to the problem's type, and everything else in double: the least that a kernel on matrix products of
 * that type can do. Where signed scores nearly cancel it is far above the pairwise formula's. Of problems without
 * states. */
double rounded_error(const hadamard_data *data);

/* The same of the gradients, of problems without states; other entries are 0. */
void rounded_gradient_errors(const hadamard_data *data, double errors[HADAMARD_OUTPUTS]);

#endif
