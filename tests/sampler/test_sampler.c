/* Noise, sigmas, UniPC, Euler and guidance against the published generator's known answers, the reference scheduler's
 * trajectories (tests/golden/make_sampler.py) and an ordinary differential equation with a known solution. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "video/sampler/noise.h"
#include "video/sampler/sampler.h"
#include "video/weights/weights.h"

static const hlv_scheduler_config WAN = {.num_train_timesteps = 1000, .solver_order = 2, .flow_shift = 3.0};

static hlv_context *open_context(void) {
    hlv_context *ctx = NULL;
    assert_int_equal(hlv_context_create(&ctx), HLV_OK);
    return ctx;
}

/* Known answers of the Random123 distribution. */
static void test_philox(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], want[4];
    } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t out[4] = {0};
        hlv_philox(out, cases[i].counter, cases[i].key);
        assert_memory_equal(out, cases[i].want, sizeof out);
    }
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Kolmogorov-Smirnov against the normal distribution, the first moments, and no correlation of neighbours. */
static void test_noise_is_normal(void **state) {
    (void)state;
    enum { COUNT = 200000 };
    float *noise = malloc(COUNT * sizeof(float));
    assert_non_null(noise);
    hlv_noise(noise, COUNT, 42);
    double sum = 0, squares = 0, fourth = 0, neighbours = 0, pairs = 0;
    for (int i = 0; i < COUNT; i++) {
        double x = noise[i];
        sum += x, squares += x * x, fourth += x * x * x * x;
        if (i) neighbours += x * noise[i - 1];
        if (i >= 4) pairs += x * noise[i - 4];
    }
    const double bound = 4.5 / sqrt(COUNT); /* four and a half standard errors; the seed is fixed */
    assert_true(fabs(sum / COUNT) < bound);
    assert_true(fabs(squares / COUNT - 1) < bound * sqrt(2));
    assert_true(fabs(fourth / COUNT - 3) < bound * sqrt(96));
    assert_true(fabs(neighbours / COUNT) < bound);
    assert_true(fabs(pairs / COUNT) < bound);
    qsort(noise, COUNT, sizeof *noise, by_value);
    double distance = 0;
    for (int i = 0; i < COUNT; i++) {
        double cdf = 0.5 * erfc(-noise[i] / sqrt(2));
        distance = fmax(distance, fmax(fabs(cdf - (double)i / COUNT), fabs(cdf - (double)(i + 1) / COUNT)));
    }
    assert_true(distance < 1.95 / sqrt(COUNT)); /* 0.1 % level */
    free(noise);
}

/* A shorter request gives the head of a longer one; seeds that differ in either half differ; nothing is written past.
 */
static void test_noise_by_index(void **state) {
    (void)state;
    float all[64], head[16], other[64];
    hlv_noise(all, 64, 7);
    for (int64_t count = 0; count <= 13; count++) {
        for (int i = 0; i < 16; i++)
            head[i] = NAN;
        hlv_noise(head, count, 7);
        assert_memory_equal(head, all, (size_t)count * sizeof(float));
        for (int64_t i = count; i < 16; i++)
            assert_true(isnan(head[i]));
    }
    const uint64_t seeds[] = {8, 7 + (UINT64_C(1) << 32), UINT64_MAX};
    for (size_t s = 0; s < 3; s++) {
        hlv_noise(other, 64, seeds[s]);
        for (int i = 0; i < 64; i++)
            assert_true(other[i] != all[i] && isfinite(other[i]));
    }
}

static void toy_velocity(float *v, const float *x, int64_t count, double t) {
    for (int64_t i = 0; i < count; i++)
        v[i] = (float)(0.7 * tanh(x[i]) + 0.001 * t * x[i] - 0.2);
}

static void test_unipc_self_test(void **state) {
    (void)state;
    static const struct {
        int steps;
        double shift, want;
    } cases[] = {{4, 3, 0.3514377}, {10, 5, 0.4165811}, {50, 3, 0.4568960}};
    hlv_context *ctx = open_context();
    for (size_t c = 0; c < 3; c++) {
        hlv_solver *solver = NULL;
        assert_int_equal(hlv_solver_create(ctx, HLV_SAMPLER_UNIPC, &WAN, cases[c].steps, cases[c].shift, 1, &solver),
                         HLV_OK);
        float x = 1, v = NAN;
        for (int i = 0; i < cases[c].steps; i++) {
            toy_velocity(&v, &x, 1, hlv_solver_timestep(solver, i));
            assert_int_equal(hlv_solver_step(solver, i, &x, &v), HLV_OK);
        }
        assert_true(fabs(x - cases[c].want) < 2e-6);
        assert_true(*hlv_solver_estimate(solver) == x); /* the last step ends on the estimate */
        hlv_solver_free(solver);
    }
    hlv_context_free(ctx);
}

static const float *golden(const hlv_weights *file, int steps, const char *what, int64_t count) {
    char name[64];
    snprintf(name, sizeof name, "%d.%s", steps, what);
    const hlv_weight *weight = hlv_weights_find(file, name);
    assert_non_null(weight);
    assert_int_equal(weight->count, count);
    float *values = malloc((size_t)count * sizeof(float));
    assert_non_null(values);
    hlv_weight_to_f32(weight, values);
    return values;
}

static void follow(hlv_context *ctx, const hlv_weights *file, const hlv_scheduler_config *config, int steps,
                   double shift) {
    enum { COUNT = 13 };
    const float *sigmas = golden(file, steps, "sigmas", steps + 1),
                *timesteps = golden(file, steps, "timesteps", steps);
    const float *start = golden(file, steps, "start", COUNT),
                *path = golden(file, steps, "path", (int64_t)steps * COUNT);
    hlv_solver *solver = NULL;
    assert_int_equal(hlv_solver_create(ctx, HLV_SAMPLER_UNIPC, config, steps, shift, COUNT, &solver), HLV_OK);
    float x[COUNT], v[COUNT];
    memcpy(x, start, sizeof x);
    for (int i = 0; i < steps; i++) {
        assert_true(hlv_solver_timestep(solver, i) == timesteps[i]);
        assert_true(hlv_solver_sigma(solver, i) == sigmas[i]);
        toy_velocity(v, x, COUNT, timesteps[i]);
        assert_int_equal(hlv_solver_step(solver, i, x, v), HLV_OK);
        for (int j = 0; j < COUNT; j++)
            assert_true(fabsf(x[j] - path[i * COUNT + j]) <= 1e-5f);
    }
    assert_true(hlv_solver_sigma(solver, steps) == sigmas[steps]);
    hlv_solver_free(solver);
    free((void *)sigmas), free((void *)timesteps), free((void *)start), free((void *)path);
}

static void test_unipc_follows_reference(void **state) {
    (void)state;
    static const int steps[] = {1, 2, 4, 9, 10, 50};
    static const int shifts[] = {1, 3, 5, 8};
    hlv_context *ctx = open_context();
    for (int order = 1; order <= 2; order++)
        for (size_t s = 0; s < 4; s++) {
            char path[512];
            snprintf(path, sizeof path, HLA_TEST_ROOT "/tests/golden/sampler/order%d_shift%d.safetensors", order,
                     shifts[s]);
            hlv_weights *file = NULL;
            assert_int_equal(hlv_weights_open(ctx, path, &file), HLV_OK);
            hlv_scheduler_config config = WAN;
            config.solver_order = order;
            for (size_t n = 0; n < sizeof steps / sizeof *steps; n++)
                follow(ctx, file, &config, steps[n], shifts[s]);
            hlv_weights_free(file);
        }
    hlv_context_free(ctx);
}

/* All clean latents are normal with deviation s: the velocity is linear in x, v = x (sigma - (1-sigma) s^2) / d with
 * d = sigma^2 + (1-sigma)^2 s^2, and x scales with sqrt(d) along the exact path. */
static double gaussian_end_error(hlv_context *ctx, hlv_sampler kind, int steps) {
    const double deviation = 0.6;
    hlv_solver *solver = NULL;
    assert_int_equal(hlv_solver_create(ctx, kind, &WAN, steps, 3.0, 1, &solver), HLV_OK);
    float x = 1, v = NAN;
    for (int i = 0; i < steps; i++) {
        double sigma = hlv_solver_sigma(solver, i), clean = (1 - sigma) * deviation * deviation;
        v = (float)(x * (sigma - clean) / (sigma * sigma + (1 - sigma) * clean));
        assert_int_equal(hlv_solver_step(solver, i, &x, &v), HLV_OK);
    }
    hlv_solver_free(solver);
    return fabs(x - deviation);
}

static void test_orders_of_convergence(void **state) {
    (void)state;
    hlv_context *ctx = open_context();
    double euler50 = gaussian_end_error(ctx, HLV_SAMPLER_EULER, 50);
    double euler100 = gaussian_end_error(ctx, HLV_SAMPLER_EULER, 100);
    double unipc50 = gaussian_end_error(ctx, HLV_SAMPLER_UNIPC, 50);
    assert_true(euler50 < 0.05);
    assert_true(euler50 / euler100 > 1.8 && euler50 / euler100 < 2.2); /* first order */
    assert_true(unipc50 < euler50 / 5);
    hlv_context_free(ctx);
}

static void test_euler_grid(void **state) {
    (void)state;
    hlv_context *ctx = open_context();
    hlv_solver *solver = NULL;
    assert_int_equal(hlv_solver_create(ctx, HLV_SAMPLER_EULER, &WAN, 4, 3.0, 2, &solver), HLV_OK);
    static const double sigmas[] = {0.999999, 0.90012, 0.750375, 0.500999,
                                    0}; /* docs/WAN21.md section 5, the same grid */
    for (int i = 0; i <= 4; i++)
        assert_true(fabs(hlv_solver_sigma(solver, i) - sigmas[i]) < 2e-6);
    for (int i = 0; i < 4; i++)
        assert_true(fabs(hlv_solver_timestep(solver, i) - 1000 * sigmas[i]) < 2e-3);
    float x[2] = {1, -2}, v[2] = {0.5f, 3};
    assert_int_equal(hlv_solver_step(solver, 0, x, v), HLV_OK);
    assert_true(fabs(x[0] - (1 - 0.099879 * 0.5)) < 2e-6 && fabs(x[1] - (-2 - 0.099879 * 3)) < 2e-6);
    const float *estimate = hlv_solver_estimate(solver);
    assert_true(fabs(estimate[0] - 0.5000005) < 1e-6 && fabs(estimate[1] + 4.999997) < 2e-6);
    hlv_solver_free(solver);
    hlv_context_free(ctx);
}

static void test_guide(void **state) {
    (void)state;
    float positive[3] = {1, 2, -3};
    const float negative[3] = {0, 2, 1};
    hlv_guide(positive, negative, 5.0, 3);
    const float want[3] = {5, 2, -19};
    assert_memory_equal(positive, want, sizeof want);
}

static void test_bad_arguments(void **state) {
    (void)state;
    hlv_context *ctx = open_context();
    hlv_scheduler_config order3 = WAN, untrained = WAN;
    order3.solver_order = 3;
    untrained.num_train_timesteps = 0;
    const struct {
        hlv_sampler kind;
        const hlv_scheduler_config *config;
        int steps;
        double shift;
        hlv_status want;
        const char *word;
    } cases[] = {
        {HLV_SAMPLER_UNIPC, &WAN, 0, 3, HLV_ERROR_ARGUMENT, "steps"},
        {HLV_SAMPLER_EULER, &WAN, -1, 3, HLV_ERROR_ARGUMENT, "steps"},
        {HLV_SAMPLER_UNIPC, &WAN, 4, 0, HLV_ERROR_ARGUMENT, "shift"},
        {HLV_SAMPLER_UNIPC, &WAN, 4, -1, HLV_ERROR_ARGUMENT, "shift"},
        {HLV_SAMPLER_UNIPC, &WAN, 4, NAN, HLV_ERROR_ARGUMENT, "shift"},
        {HLV_SAMPLER_UNIPC, &WAN, 4, INFINITY, HLV_ERROR_ARGUMENT, "shift"},
        {(hlv_sampler)9, &WAN, 4, 3, HLV_ERROR_ARGUMENT, "sampler"},
        {HLV_SAMPLER_UNIPC, &order3, 4, 3, HLV_ERROR_UNSUPPORTED, "solver_order"},
        {HLV_SAMPLER_UNIPC, &untrained, 4, 3, HLV_ERROR_ARGUMENT, "num_train_timesteps"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hlv_solver *solver = (hlv_solver *)ctx;
        assert_int_equal(
            hlv_solver_create(ctx, cases[i].kind, cases[i].config, cases[i].steps, cases[i].shift, 3, &solver),
            cases[i].want);
        assert_null(solver);
        assert_non_null(strstr(hlv_context_error(ctx), cases[i].word));
    }
    hlv_solver *solver = NULL;
    assert_int_equal(hlv_solver_create(ctx, HLV_SAMPLER_UNIPC, &WAN, 2, 3, INT64_MAX / 2, &solver), HLV_ERROR_MEMORY);
    assert_null(solver);
    assert_int_equal(hlv_solver_create(ctx, HLV_SAMPLER_UNIPC, &WAN, 2, 3, 1, &solver), HLV_OK);
    float x = 1, v = 1;
    assert_int_equal(hlv_solver_step(solver, 1, &x, &v), HLV_ERROR_ARGUMENT); /* out of order */
    assert_true(x == 1);
    assert_int_equal(hlv_solver_step(solver, 0, &x, &v), HLV_OK);
    assert_int_equal(hlv_solver_step(solver, 1, &x, &v), HLV_OK);
    assert_int_equal(hlv_solver_step(solver, 2, &x, &v), HLV_ERROR_ARGUMENT); /* past the end */
    hlv_solver_free(solver);
    hlv_solver_free(NULL);
    hlv_context_free(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox),
        cmocka_unit_test(test_noise_is_normal),
        cmocka_unit_test(test_noise_by_index),
        cmocka_unit_test(test_unipc_self_test),
        cmocka_unit_test(test_unipc_follows_reference),
        cmocka_unit_test(test_orders_of_convergence),
        cmocka_unit_test(test_euler_grid),
        cmocka_unit_test(test_guide),
        cmocka_unit_test(test_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
