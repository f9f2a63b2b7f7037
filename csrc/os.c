/* SPDX-License-Identifier: Apache-2.0
 *
 * Files, mappings and memory: the only code that knows the operating system. POSIX; Windows is not supported
 * yet (it wants CreateFileMapping and VirtualAlloc here, nothing elsewhere). */
#if !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS under -std=c11 */
#endif
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static fl_status os_error(fl_error *error, int code, const char *path) {
    fl_fail(error, FL_ERROR_OS, "%s: %s", path, strerror(code));
    error->os_code = code;
    return FL_ERROR_OS;
}

fl_status fl_os_map(const char *path, fl_mapping *mapping, fl_error *error) {
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not hang us */
    if (file < 0) return os_error(error, errno, path);
    struct stat about;
    int code = fstat(file, &about) < 0 ? errno : 0;
    if (!code && S_ISDIR(about.st_mode)) code = EISDIR;
    if (!code && (!S_ISREG(about.st_mode) || about.st_size == 0)) {
        close(file);
        return fl_fail(error, FL_ERROR_FORMAT, "%s: expected a model file, found %s", path,
                       S_ISREG(about.st_mode) ? "an empty file" : "something that is not a regular file");
    }
    void *bytes = code ? MAP_FAILED : mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_SHARED, file, 0);
    if (!code && bytes == MAP_FAILED) code = errno;
    close(file); /* the mapping stays */
    if (code) return os_error(error, code, path);
    *mapping = (fl_mapping){bytes, (size_t)about.st_size, true};
    return FL_OK;
}

fl_status fl_os_copy(const void *bytes, size_t size, fl_mapping *mapping, fl_error *error) {
    if (size == 0) return fl_fail(error, FL_ERROR_FORMAT, "expected a model file, found no bytes");
    void *copy = fl_os_alloc(size);
    if (!copy) return fl_fail(error, FL_ERROR_MEMORY, "no memory for a model of %zu bytes", size);
    memcpy(copy, bytes, size);
    *mapping = (fl_mapping){copy, size, false};
    return FL_OK;
}

void fl_os_unmap(fl_mapping *mapping) {
    if (mapping->bytes) munmap((void *)(uintptr_t)mapping->bytes, mapping->size);
    *mapping = (fl_mapping){0};
}

void *fl_os_alloc(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

void fl_os_free(void *memory, size_t size) {
    if (memory) munmap(memory, size);
}
