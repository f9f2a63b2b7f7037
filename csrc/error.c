/* SPDX-License-Identifier: Apache-2.0
 *
 * How every failure is reported. */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>

fl_status fl_fail(fl_error *error, fl_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    error->status = status;
    error->os_code = 0;
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    return status;
}
