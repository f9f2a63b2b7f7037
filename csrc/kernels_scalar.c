/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels.h"

#include "vec_scalar.h"

#define FL_LEVEL scalar
#include "kernels_template.h"
