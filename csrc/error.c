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

fl_shown fl_show(const char *text, size_t size) {
    fl_shown s;
    size_t n = 0;
    for (; n < size && n < sizeof s.text - 1; n++) s.text[n] = text[n] >= 32 && text[n] < 127 ? text[n] : '?';
    s.text[n] = 0;
    return s;
}
