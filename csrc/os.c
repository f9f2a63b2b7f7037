/* SPDX-License-Identifier: Apache-2.0
 *
 * Files, mappings and memory: the only code that knows the operating system. POSIX; Windows is not supported
 * yet (it wants CreateFileMapping and VirtualAlloc here, nothing elsewhere). */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* MAP_ANONYMOUS under -std=c11, sched_getaffinity */
#endif
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
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

/* ---- cores ------------------------------------------------------------------------------------------- */

#if defined(__linux__)
/* First line of a small file, without its end; false: there is none. */
static bool read_line(const char *path, char *line, size_t room) {
    FILE *file = fopen(path, "re");
    if (!file) return false;
    const bool found = fgets(line, (int)room, file) != NULL;
    fclose(file);
    if (found) line[strcspn(line, "\n")] = 0;
    return found;
}

static uint32_t quota_cores(double quota, double period) {
    if (quota <= 0 || period <= 0) return UINT32_MAX;
    return quota <= period ? 1 : (uint32_t)((quota + period - 1) / period);
}

/* Limit of one control group, of either version. */
static uint32_t group_limit(const char *folder) {
    char path[4200], line[64], *rest;
    snprintf(path, sizeof path, "%s/cpu.max", folder);
    if (read_line(path, line, sizeof line)) { /* "max 100000" or "150000 100000" */
        const double quota = strtod(line, &rest);
        return rest == line ? UINT32_MAX : quota_cores(quota, strtod(rest, NULL));
    }
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
    if (!read_line(path, line, sizeof line)) return UINT32_MAX;
    const double quota = strtod(line, NULL);
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    return read_line(path, line, sizeof line) ? quota_cores(quota, strtod(line, NULL)) : UINT32_MAX;
}

uint32_t fl_os_quota(const char *root, const char *group) {
    char folder[4096];
    uint32_t least = UINT32_MAX;
    if (snprintf(folder, sizeof folder, "%s%s", root, group) >= (int)sizeof folder) return least;
    for (char *end = folder + strlen(folder);; end = strrchr(folder, '/')) {
        if (!end || end < folder + strlen(root)) return least;
        *end = 0;
        const uint32_t limit = group_limit(folder);
        least = limit < least ? limit : least;
    }
}

/* Cores that the control groups grant: one, if they grant less. */
static uint32_t granted_cores(void) {
    char line[4096];
    uint32_t least = UINT32_MAX;
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file && fgets(line, sizeof line, file)) { /* "0::/group" or "4:cpu,cpuacct:/group" */
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *controllers++ = 0, *group++ = 0;
        if (*controllers && !strstr(controllers, "cpu")) continue;
        const uint32_t limit = fl_os_quota(*controllers ? "/sys/fs/cgroup/cpu" : "/sys/fs/cgroup", group);
        least = limit < least ? limit : least;
    }
    if (file) fclose(file);
    return least;
}

/* The lowest of the threads that share a core with a processor. */
static int first_sibling(int cpu) {
    char path[96], line[64];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    return read_line(path, line, sizeof line) ? (int)strtol(line, NULL, 10) : cpu;
}
#endif

uint32_t fl_os_cores(void) {
#if defined(__linux__)
    cpu_set_t mine;
    if (sched_getaffinity(0, sizeof mine, &mine) == 0) return (uint32_t)CPU_COUNT(&mine);
#endif
    const long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count < 1 ? 1 : (uint32_t)count;
}

uint32_t fl_os_own_cores(void) {
    uint32_t cores = fl_os_cores();
#if defined(__linux__)
    cpu_set_t mine, firsts;
    CPU_ZERO(&firsts);
    if (sched_getaffinity(0, sizeof mine, &mine) == 0) {
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
            if (CPU_ISSET(cpu, &mine)) CPU_SET(first_sibling(cpu), &firsts);
        cores = (uint32_t)CPU_COUNT(&firsts);
    }
    const uint32_t granted = granted_cores();
    if (granted < cores) cores = granted;
#endif
    return cores;
}

uint64_t fl_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}
