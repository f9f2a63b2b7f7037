/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels.h"

#ifdef FL_X86
FL_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include "vec_avx512.h"

#define FL_LEVEL avx512
#include "kernels_template.h"
FL_TARGET_END
#endif
