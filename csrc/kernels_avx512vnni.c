/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels.h"

#ifdef FL_X86
FL_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#define FL_VNNI
#include "vec_avx512.h"

#define FL_LEVEL avx512vnni
#include "kernels_template.h"
FL_TARGET_END
#endif
