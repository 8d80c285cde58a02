/* tests/attention/argument_support.h - what tests of bad arguments share: a context, and what a refusal must say.
 * Included after cmocka.h. */
#ifndef HLA_TESTS_ARGUMENT_SUPPORT_H
#define HLA_TESTS_ARGUMENT_SUPPORT_H

#include "hla/hla.h"

#include <string.h>

static hla_context *make_context(bool check_finite) {
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = 2, options.check_finite = check_finite;
    hla_context *context = NULL;
    assert_int_equal(hla_context_create(&context, &options), HLA_OK);
    return context;
}

static void expect(hla_context *context, hla_status found, hla_status wanted, const char *named) {
    const char *sentence = hla_context_error(context);
    if (found != wanted || !strstr(sentence, named)) {
        fail_msg("status %s, sentence \"%s\"; wanted status %s and a sentence that names \"%s\"",
                 hla_status_name(found), sentence, hla_status_name(wanted), named);
    }
}

#endif
