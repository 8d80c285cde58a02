/* Names of the activations, as checkpoints and command lines spell them. */
#include "attention/ops/feature_map/kernel.h"

#include <string.h>

static const char *const names[HLA_ACTIVATIONS] = {"relu", "elu1", "softplus", "exp", "softmax", "square", "identity"};

bool hla_activation_from_name(const char *name, hla_activation *activation) {
    for (int i = 0; name && activation && i < HLA_ACTIVATIONS; i++) {
        if (strcmp(name, names[i]) == 0) {
            *activation = (hla_activation)i;
            return true;
        }
    }
    return false;
}

const char *hla_activation_name(hla_activation activation) {
    size_t i = (size_t)activation;
    return i < HLA_ACTIVATIONS ? names[i] : "unknown";
}
