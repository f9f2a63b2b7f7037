/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels.h"

#ifdef FL_NEON
FL_TARGET_BEGIN(FL_NEON_TARGET)
#include "vec_neon.h"

#define FL_LEVEL neon
#include "kernels_template.h"
FL_TARGET_END
#endif
