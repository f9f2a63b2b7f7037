/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels.h"

#ifdef FL_X86
FL_TARGET_BEGIN("avx2,fma,avxvnni")
#define FL_VNNI
#include "vec_avx2.h"

#define FL_LEVEL avxvnni
#include "kernels_template.h"
FL_TARGET_END
#endif
