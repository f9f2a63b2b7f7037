/* SPDX-License-Identifier: Apache-2.0
 *
 * Ways to damage a model file: at random, and where its structure is known to hurt. */
#ifndef MUTATIONS_H
#define MUTATIONS_H

#include "tiny_model.h"

/* ---- mutations ------------------------------------------------------------------------------------------- */

typedef struct victim {
    const tiny_model *model; /* what it was made from */
    uint8_t *bytes;          /* [room] */
    size_t size, room;
} victim;

static void restore(victim *v, const tiny_model *model) {
    v->model = model;
    v->size = model->size;
    memcpy(v->bytes, model->bytes, model->size);
}

/* Numbers that make arithmetic on sizes fail: powers of two and their neighbours, and those near what is there. */
static uint64_t evil_number(size_t n, uint64_t old, size_t file_size) {
    const uint64_t numbers[] = {0,
                                1,
                                2,
                                4,
                                5,
                                6,
                                8,
                                9,
                                13,
                                64,
                                65537,
                                old + 1,
                                old - 1,
                                old + 64,
                                old - 64,
                                2 * old,
                                file_size,
                                file_size - 1,
                                file_size + 1,
                                file_size / 4,
                                INT32_MAX,
                                (uint64_t)INT32_MAX + 1,
                                UINT32_MAX,
                                (uint64_t)UINT32_MAX + 1,
                                (uint64_t)1 << 62,
                                INT64_MAX,
                                (uint64_t)1 << 63,
                                UINT64_MAX,
                                UINT64_MAX - 63,
                                UINT64_MAX / 4 + 1,
                                UINT64_MAX - file_size,
                                UINT64_MAX - old};
    return numbers[n % (sizeof numbers / sizeof *numbers)];
}
enum { EVIL_NUMBERS = 32 };

static void set_spot(victim *v, size_t spot, size_t n) {
    const tiny_spot s = v->model->spots[spot];
    uint64_t old = 0;
    memcpy(&old, v->bytes + s.at, (size_t)s.size);
    const uint64_t value = evil_number(n, old, v->model->size);
    memcpy(v->bytes + s.at, &value, (size_t)s.size);
}

static void set_random_spots(victim *v, uint64_t *random) {
    for (uint64_t n = 1 + below(random, 3); n; n--)
        set_spot(v, below(random, v->model->spot_count), below(random, EVIL_NUMBERS));
}

static void flip_bits(victim *v, uint64_t *random) {
    const size_t header = v->model->data_start, reach = below(random, 3) && header < v->size ? header : v->size;
    for (uint64_t n = 1 + below(random, 8); n && reach; n--)
        v->bytes[below(random, reach)] ^= (uint8_t)(1 << below(random, 8));
}

static void set_bytes(victim *v, uint64_t *random) {
    const size_t at = below(random, v->model->data_start), n = 1 + below(random, 16);
    for (size_t i = at; i < at + n && i < v->size; i++) v->bytes[i] = (uint8_t)next_random(random);
}

/* Puts n bytes in (of what lies at `from`) or takes them out; what follows moves. */
static void insert_bytes(victim *v, size_t at, size_t from, size_t n) {
    uint8_t copy[512];
    if (n > sizeof copy || v->size + n > v->room || from + n > v->size) return;
    memcpy(copy, v->bytes + from, n);
    memmove(v->bytes + at + n, v->bytes + at, v->size - at);
    memcpy(v->bytes + at, copy, n);
    v->size += n;
}

static void remove_bytes(victim *v, size_t at, size_t n) {
    if (at + n > v->size) return;
    memmove(v->bytes + at, v->bytes + at + n, v->size - at - n);
    v->size -= n;
}

static void move_bytes(victim *v, uint64_t *random) {
    const size_t at = below(random, v->model->data_start), n = 1 + below(random, 64);
    if (below(random, 2))
        insert_bytes(v, at, below(random, v->model->data_start), n);
    else
        remove_bytes(v, at, n);
}

static void add_to_count(victim *v, size_t at, int64_t difference) {
    uint64_t count;
    memcpy(&count, v->bytes + at, 8);
    count += (uint64_t)difference;
    memcpy(v->bytes + at, &count, 8);
}

/* After the header's end has moved: padding that brings the data to where its alignment wants it. */
static void pad_header(victim *v, size_t end) {
    const size_t old = v->model->data_start - v->model->header_end, wanted = tiny_up(end, 64) - end;
    if (wanted > old)
        insert_bytes(v, end, v->size - (wanted - old), wanted - old);
    else
        remove_bytes(v, end, old - wanted);
}

/* The number of keys, and that of tensors. */
enum { TENSORS_AT = 8, KEYS_AT = 16 };

static void drop(victim *v, const tiny_record *r, size_t count_at) {
    const size_t n = r->end - r->begin;
    add_to_count(v, count_at, -1);
    remove_bytes(v, r->begin, n);
    pad_header(v, v->model->header_end - n);
}

/* A key or tensor twice or not at all, mostly with the count that belongs to it. */
static void repeat_or_drop(victim *v, uint64_t *random) {
    const bool key = below(random, 2);
    const size_t count_at = key ? KEYS_AT : TENSORS_AT;
    const tiny_model *m = v->model;
    const tiny_record r = key ? m->keys[below(random, m->key_count)] : m->tensors[below(random, m->tensor_count)];
    if (below(random, 8) == 0) add_to_count(v, count_at, below(random, 2) ? 1 : -1);
    if (below(random, 2)) {
        drop(v, &r, count_at);
        return;
    }
    add_to_count(v, count_at, 1);
    insert_bytes(v, r.end, r.begin, r.end - r.begin);
    pad_header(v, m->header_end + r.end - r.begin);
}

/* One item less in an array of numbers, and in its count; in other keys, damage. */
static void shorten_array(victim *v, uint64_t *random) {
    const tiny_record r = v->model->keys[below(random, v->model->key_count)];
    uint64_t name;
    memcpy(&name, v->bytes + r.begin, 8);
    if (r.begin + 8 + name + 16 > r.end) return;
    add_to_count(v, r.begin + 8 + name + 8, -1);
    remove_bytes(v, r.end - 4, 4);
    pad_header(v, v->model->header_end - 4);
}

/* One tensor laid over another, whole or in part. */
static void overlap(victim *v, uint64_t *random) {
    const tiny_model *m = v->model;
    const tiny_record a = m->tensors[below(random, m->tensor_count)], b = m->tensors[below(random, m->tensor_count)];
    const int64_t shifts[] = {0, 64, -64, 4, (int64_t)(b.data_size / 2), -(int64_t)(a.data_size / 2)};
    const uint64_t offset = b.data - m->data_start + (uint64_t)shifts[below(random, 6)];
    memcpy(v->bytes + a.end - 8, &offset, 8);
}

/* Where the parts of a tensor's description lie: name, number of dimensions, dimensions, type, offset. */
static size_t dims_at(const tiny_record *r, const uint8_t *bytes) {
    uint64_t name;
    memcpy(&name, bytes + r->begin, 8);
    return r->begin + 8 + (size_t)name + 4;
}

/* Another of the types that there are, or one that is none. */
static void change_type(victim *v, const tiny_record *r, uint32_t type) { memcpy(v->bytes + r->end - 12, &type, 4); }

static void change_some_type(victim *v, uint64_t *random) {
    static const uint32_t types[] = {0, 1, 2, 8, 24, 25, 30, 31};
    change_type(v, &v->model->tensors[below(random, v->model->tensor_count)], types[below(random, 8)]);
}

/* Two dimensions change places; returns whether that is another shape. */
static bool swap_dims(victim *v, const tiny_record *r, size_t a, size_t b) {
    const size_t at = dims_at(r, v->bytes), n = (r->end - 12 - at) / 8;
    uint64_t one, other;
    memcpy(&one, v->bytes + at + 8 * (a % n), 8);
    memcpy(&other, v->bytes + at + 8 * (b % n), 8);
    memcpy(v->bytes + at + 8 * (a % n), &other, 8);
    memcpy(v->bytes + at + 8 * (b % n), &one, 8);
    return one != other;
}

static void swap_some_dims(victim *v, uint64_t *random) {
    swap_dims(v, &v->model->tensors[below(random, v->model->tensor_count)], below(random, 4), below(random, 4));
}

/* Two tensors whose names are as long exchange them: a scale becomes a group, one layer's weights another's. */
static void swap_names(victim *v, uint64_t *random) {
    const tiny_model *m = v->model;
    const tiny_record *a = &m->tensors[below(random, m->tensor_count)],
                      *b = &m->tensors[below(random, m->tensor_count)];
    uint8_t name[64];
    const size_t n = dims_at(a, v->bytes) - a->begin;
    if (n != dims_at(b, v->bytes) - b->begin || n > sizeof name) return;
    memcpy(name, v->bytes + a->begin, n);
    memcpy(v->bytes + a->begin, v->bytes + b->begin, n);
    memcpy(v->bytes + b->begin, name, n);
}

/* One tensor is of the type, the dimensions and the place of another. */
static void copy_description(victim *v, uint64_t *random) {
    const tiny_model *m = v->model;
    const tiny_record *a = &m->tensors[below(random, m->tensor_count)],
                      *b = &m->tensors[below(random, m->tensor_count)];
    const size_t n = a->end - dims_at(a, v->bytes);
    if (n == b->end - dims_at(b, v->bytes)) memcpy(v->bytes + a->end - n, v->bytes + b->end - n, n);
}

static void truncate_somewhere(victim *v, uint64_t *random) { v->size = below(random, v->size); }

static void append(victim *v, uint64_t *random) {
    for (uint64_t n = 1 + below(random, 200); n && v->size < v->room; n--)
        v->bytes[v->size++] = (uint8_t)next_random(random);
}

static void garbage(victim *v, uint64_t *random) {
    v->size = below(random, 300);
    for (size_t i = below(random, 2) ? 0 : 24; i < v->size; i++) v->bytes[i] = (uint8_t)next_random(random);
}

static void mutate(victim *v, uint64_t *random) {
    static void (*const kinds[])(victim *, uint64_t *) = {
        set_random_spots, set_random_spots, flip_bits,        set_bytes, move_bytes,         overlap,
        repeat_or_drop,   shorten_array,    append,           garbage,   truncate_somewhere, change_some_type,
        swap_some_dims,   swap_names,       copy_description,
    };
    kinds[below(random, sizeof kinds / sizeof *kinds)](v, random);
    if (below(random, 4) == 0) flip_bits(v, random);
}

#endif
