/* include/hla/device.h on a context that computes on the CPU, and without one: each call says so and changes nothing.
 * On a GPU tests/attention/cuda uses it throughout. */
#include "hla/device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Every call that returns a status; place is an address that is neither device memory nor anything else. */
static int call_all(hla_context *context, hla_status statuses[16], void **made, double *seconds) {
    char place[8] = {0};
    size_t available, total;
    int count = 0;
    statuses[count++] = hla_device_allocate(context, 64, made);
    statuses[count++] = hla_device_copy(context, place, place + 4, 4);
    statuses[count++] = hla_device_queue_copy(context, place, place + 4, 4);
    statuses[count++] = hla_device_queue_fill(context, place, 0, 4);
    statuses[count++] = hla_device_memory(context, &available, &total);
    statuses[count++] = hla_device_stream_create(context, made);
    statuses[count++] = hla_device_synchronise(context);
    statuses[count++] = hla_device_event_create(context, made);
    statuses[count++] = hla_device_event_record(context, place);
    statuses[count++] = hla_device_event_seconds(context, place, place, seconds);
    hla_device_free(context, NULL);
    hla_device_stream_free(context, NULL);
    hla_device_event_free(context, NULL);
    return count;
}

static void test_on_cpu(void **unused) {
    (void)unused;
    hla_context *context = NULL;
    hla_status statuses[16];
    char poison;
    void *made = &poison;
    double seconds = 7;
    assert_int_equal(hla_context_create(&context, NULL), HLA_OK);
    int count = call_all(context, statuses, &made, &seconds);
    for (int i = 0; i < count; i++)
        assert_int_equal(statuses[i], HLA_ERROR_ARGUMENT);
    assert_null(made);
    assert_true(seconds == 7);
    assert_non_null(strstr(hla_context_error(context), "hla_context_use_cuda"));
    hla_context_free(context);
}

static void test_without_context(void **unused) {
    (void)unused;
    hla_status statuses[16];
    void *made = NULL;
    double seconds = 7;
    int count = call_all(NULL, statuses, &made, &seconds);
    for (int i = 0; i < count; i++)
        assert_int_equal(statuses[i], HLA_ERROR_ARGUMENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_on_cpu), cmocka_unit_test(test_without_context)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
