/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads a GGUF version 3 file (docs/format.md). This is the only code that looks at a file's bytes, and the
 * file may be hostile: every size, count and offset is compared with what is left of the mapping before a
 * pointer is formed from it, and memory is set aside only for what the header counts, which is bounded. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>

enum { HEADER_ITEMS = 65536 }; /* keys, and tensors, at most: far above any model, far below any harm */

/* ---- cursor ------------------------------------------------------------------------------------------ */

typedef struct cursor {
    const uint8_t *bytes;
    size_t size, at;
    fl_error *error;
} cursor;

static size_t left(const cursor *c) { return c->size - c->at; }

static bool take(cursor *c, const char *what, uint64_t size, const uint8_t **bytes) {
    if (size > left(c)) {
        fl_fail(c->error, FL_ERROR_FORMAT, "%s at byte %zu: expected %llu bytes, found %zu before the end of the file",
                what, c->at, (unsigned long long)size, left(c));
        return false;
    }
    *bytes = c->bytes + c->at;
    c->at += (size_t)size;
    return true;
}

static uint64_t little_endian(const uint8_t *bytes, int size) {
    uint64_t value = 0;
    for (int i = size; i--;) value = value << 8 | bytes[i];
    return value;
}

static bool take_u32(cursor *c, const char *what, uint32_t *value) {
    const uint8_t *bytes;
    if (!take(c, what, 4, &bytes)) return false;
    *value = (uint32_t)little_endian(bytes, 4);
    return true;
}

static bool take_u64(cursor *c, const char *what, uint64_t *value) {
    const uint8_t *bytes;
    if (!take(c, what, 8, &bytes)) return false;
    *value = little_endian(bytes, 8);
    return true;
}

/* Bytes of the well-formed UTF-8 character (no surrogate, nothing longer than it need be) at s; 0: there is none. */
static size_t utf8_size(const uint8_t *s, size_t left) {
    if (s[0] < 0x80) return 1;
    const size_t size = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || size > left) return 0;
    for (size_t i = 1; i < size; i++)
        if ((s[i] & 0xC0) != 0x80) return 0;
    const bool good = !(s[0] == 0xE0 && s[1] < 0xA0) && !(s[0] == 0xED && s[1] > 0x9F) &&
                      !(s[0] == 0xF0 && s[1] < 0x90) && !(s[0] == 0xF4 && s[1] > 0x8F);
    return good ? size : 0;
}

static bool take_string(cursor *c, const char *what, const char **text, size_t *size) {
    uint64_t length;
    const uint8_t *bytes;
    if (!take_u64(c, what, &length) || !take(c, what, length, &bytes)) return false;
    for (size_t at = 0, step; at < length; at += step) {
        step = utf8_size(bytes + at, (size_t)length - at);
        if (step) continue;
        fl_fail(c->error, FL_ERROR_FORMAT, "%s at byte %zu: expected UTF-8 text, found byte 0x%02x", what,
                (size_t)(bytes - c->bytes) + at, bytes[at]);
        return false;
    }
    *text = (const char *)bytes;
    *size = (size_t)length;
    return true;
}

/* ---- keys -------------------------------------------------------------------------------------------- */

/* Bytes of a value by GGUF type; 0: a string, an array or unknown. */
static uint32_t value_size(uint32_t type) {
    static const uint8_t size[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof size ? size[type] : 0;
}

static bool skip_strings(cursor *c, const char *what, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        const char *text;
        size_t size;
        if (!take_string(c, what, &text, &size)) return false;
    }
    return true;
}

static bool take_value(cursor *c, const char *what, fl_field *field) {
    const uint8_t *bytes;
    field->count = 1;
    field->item_type = field->type;
    if (field->type == FL_GGUF_ARRAY) {
        if (!take_u32(c, what, &field->item_type) || !take_u64(c, what, &field->count)) return false;
        if (field->item_type == FL_GGUF_ARRAY) {
            fl_fail(c->error, FL_ERROR_FORMAT, "%s: arrays of arrays are not used in model files", what);
            return false;
        }
    }
    const size_t start = c->at;
    const uint32_t size = value_size(field->item_type);
    if (field->item_type == FL_GGUF_STRING) {
        if (!skip_strings(c, what, field->count)) return false;
    } else if (size == 0) {
        fl_fail(c->error, FL_ERROR_FORMAT, "%s at byte %zu: unknown value type %u", what, start, field->item_type);
        return false;
    } else if (!take(c, what, field->count > UINT64_MAX / size ? UINT64_MAX : field->count * size, &bytes)) {
        return false;
    }
    field->data = c->bytes + start;
    field->data_size = c->at - start;
    return true;
}

static bool take_field(cursor *c, fl_field *field) {
    if (!take_string(c, "a key", &field->key, &field->key_size)) return false;
    char what[80];
    snprintf(what, sizeof what, "key '%s'", fl_show(field->key, field->key_size).text);
    return take_u32(c, what, &field->type) && take_value(c, what, field);
}

/* ---- tensors ----------------------------------------------------------------------------------------- */

/* Bytes of a value by GGML type; 0: none that we know. */
static uint32_t value_bytes(uint32_t type) {
    return type == FL_GGML_F32 ? 4 : type == FL_GGML_BF16 ? 2 : type == FL_GGML_I8 ? 1 : 0;
}

static bool take_tensor(cursor *c, fl_tensor *tensor) {
    if (!take_string(c, "a tensor's name", &tensor->name, &tensor->name_size)) return false;
    char what[80];
    snprintf(what, sizeof what, "tensor '%s'", fl_show(tensor->name, tensor->name_size).text);
    if (!take_u32(c, what, &tensor->n_dims)) return false;
    if (tensor->n_dims == 0 || tensor->n_dims > 4) {
        fl_fail(c->error, FL_ERROR_FORMAT, "%s: expected 1 to 4 dimensions, found %u", what, tensor->n_dims);
        return false;
    }
    for (uint32_t i = 0; i < 4; i++) {
        tensor->dims[i] = 1;
        if (i < tensor->n_dims && !take_u64(c, what, &tensor->dims[i])) return false;
    }
    if (!take_u32(c, what, &tensor->type) || !take_u64(c, what, &tensor->offset)) return false;
    if (value_bytes(tensor->type) == 0) {
        fl_fail(c->error, FL_ERROR_FORMAT, "%s: expected type 0 (f32), 24 (int8) or 30 (bf16), found %u", what,
                tensor->type);
        return false;
    }
    return true;
}

/* Size from the dimensions, then offset from the start of the file. */
static bool place_tensor(cursor *c, fl_tensor *tensor, size_t data_start) {
    const fl_shown name = fl_show(tensor->name, tensor->name_size);
    uint64_t size = value_bytes(tensor->type);
    for (int i = 0; i < 4; i++) {
        if (tensor->dims[i] == 0 || tensor->dims[i] > c->size / size) {
            fl_fail(c->error, FL_ERROR_FORMAT,
                    "tensor '%s': dimension %d is %llu, which the file of %zu bytes cannot hold", name.text, i,
                    (unsigned long long)tensor->dims[i], c->size);
            return false;
        }
        size *= tensor->dims[i];
    }
    if (data_start > c->size || tensor->offset > c->size - data_start || size > c->size - data_start - tensor->offset) {
        fl_fail(c->error, FL_ERROR_FORMAT,
                "tensor '%s': expected %llu bytes at %zu + %llu, found the end of the file at %zu", name.text,
                (unsigned long long)size, data_start, (unsigned long long)tensor->offset, c->size);
        return false;
    }
    tensor->offset += data_start;
    tensor->size = (size_t)size;
    if (tensor->offset % FL_ALIGN) {
        fl_fail(c->error, FL_ERROR_FORMAT, "tensor '%s': expected an offset that is a multiple of %d, found %llu",
                name.text, FL_ALIGN, (unsigned long long)tensor->offset);
        return false;
    }
    return true;
}

/* ---- whole file -------------------------------------------------------------------------------------- */

static bool take_counts(cursor *c, uint64_t *tensors, uint64_t *fields) {
    const uint8_t *magic;
    uint32_t version;
    if (!take(c, "the header", 4, &magic)) return false;
    if (memcmp(magic, "GGUF", 4) != 0) {
        fl_fail(c->error, FL_ERROR_FORMAT, "expected a model file, which starts with 'GGUF', found '%s'",
                fl_show((const char *)magic, 4).text);
        return false;
    }
    if (!take_u32(c, "the header", &version)) return false;
    if (version != 3) {
        fl_fail(c->error, FL_ERROR_FORMAT, "expected GGUF version 3 in little-endian order, found version %u", version);
        return false;
    }
    if (!take_u64(c, "the header", tensors) || !take_u64(c, "the header", fields)) return false;
    if (*tensors > HEADER_ITEMS || *fields > HEADER_ITEMS) {
        fl_fail(c->error, FL_ERROR_FORMAT, "the header: expected at most %d keys and tensors, found %llu and %llu",
                HEADER_ITEMS, (unsigned long long)*fields, (unsigned long long)*tensors);
        return false;
    }
    return true;
}

static int by_offset(const void *a, const void *b) {
    const fl_tensor *x = *(const fl_tensor *const *)a, *y = *(const fl_tensor *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Tensors that share bytes mean a damaged file. */
static bool check_overlap(const fl_file *file, fl_error *error) {
    if (file->n_tensors < 2) return true;
    const fl_tensor **order = malloc(file->n_tensors * sizeof *order);
    if (!order) return fl_fail(error, FL_ERROR_MEMORY, "no memory to check %zu tensors", file->n_tensors), false;
    for (size_t i = 0; i < file->n_tensors; i++) order[i] = &file->tensors[i];
    qsort(order, file->n_tensors, sizeof *order, by_offset);
    bool good = true;
    for (size_t i = 1; good && i < file->n_tensors; i++) {
        if (order[i - 1]->offset + order[i - 1]->size <= order[i]->offset) continue;
        fl_fail(error, FL_ERROR_FORMAT, "tensors '%s' and '%s' overlap",
                fl_show(order[i - 1]->name, order[i - 1]->name_size).text,
                fl_show(order[i]->name, order[i]->name_size).text);
        good = false;
    }
    free(order);
    return good;
}

static bool parse(cursor *c, fl_file *file) {
    uint64_t n_tensors, n_fields;
    if (!take_counts(c, &n_tensors, &n_fields)) return false;
    file->fields = calloc((size_t)n_fields + 1, sizeof *file->fields);
    file->tensors = calloc((size_t)n_tensors + 1, sizeof *file->tensors);
    if (!file->fields || !file->tensors)
        return fl_fail(c->error, FL_ERROR_MEMORY, "no memory for the file's index"), false;
    for (; file->n_fields < n_fields; file->n_fields++)
        if (!take_field(c, &file->fields[file->n_fields])) return false;
    for (; file->n_tensors < n_tensors; file->n_tensors++)
        if (!take_tensor(c, &file->tensors[file->n_tensors])) return false;
    uint32_t alignment = 32; /* GGUF's own default */
    if (fl_file_field(file, "general.alignment") && fl_file_u32(file, "general.alignment", &alignment, c->error))
        return false;
    if (alignment == 0 || alignment > 1u << 20) {
        fl_fail(c->error, FL_ERROR_FORMAT, "key 'general.alignment': expected 64, found %u", alignment);
        return false;
    }
    const size_t data_start = fl_round_up(c->at, alignment);
    for (size_t i = 0; i < file->n_tensors; i++)
        if (!place_tensor(c, &file->tensors[i], data_start)) return false;
    return check_overlap(file, c->error);
}

fl_status fl_file_parse(fl_mapping mapping, fl_file *file, fl_error *error) {
    *file = (fl_file){.mapping = mapping};
    cursor c = {mapping.bytes, mapping.size, 0, error};
    if (parse(&c, file)) return FL_OK;
    fl_file_close(file);
    return error->status;
}

void fl_file_close(fl_file *file) {
    free(file->fields);
    free(file->tensors);
    fl_os_unmap(&file->mapping);
    *file = (fl_file){0};
}

/* ---- look-ups ---------------------------------------------------------------------------------------- */

bool fl_same_text(const char *text, size_t size, const char *expected) {
    return size == strlen(expected) && memcmp(text, expected, size) == 0;
}

const fl_field *fl_file_field(const fl_file *file, const char *key) {
    for (size_t i = 0; i < file->n_fields; i++)
        if (fl_same_text(file->fields[i].key, file->fields[i].key_size, key)) return &file->fields[i];
    return NULL;
}

static fl_status missing(const char *key, fl_error *error) {
    return fl_fail(error, FL_ERROR_FORMAT, "key '%s': expected, not found", key);
}

fl_status fl_file_u32(const fl_file *file, const char *key, uint32_t *value, fl_error *error) {
    const fl_field *field = fl_file_field(file, key);
    if (!field) return missing(key, error);
    if (field->type != FL_GGUF_UINT32)
        return fl_fail(error, FL_ERROR_FORMAT, "key '%s': expected type 4 (uint32), found %u", key, field->type);
    *value = fl_field_u32(field, 0);
    return FL_OK;
}

fl_status fl_file_array(const fl_file *file, const char *key, uint32_t item_type, uint64_t count,
                        const fl_field **field, fl_error *error) {
    const fl_field *found = fl_file_field(file, key);
    if (!found) return missing(key, error);
    if (found->type != FL_GGUF_ARRAY || found->item_type != item_type)
        return fl_fail(error, FL_ERROR_FORMAT, "key '%s': expected an array of type %u, found type %u of %u", key,
                       item_type, found->type, found->item_type);
    if (found->count != count)
        return fl_fail(error, FL_ERROR_FORMAT, "key '%s': expected %llu items, found %llu", key,
                       (unsigned long long)count, (unsigned long long)found->count);
    *field = found;
    return FL_OK;
}

uint32_t fl_field_u32(const fl_field *field, uint64_t n) { return (uint32_t)little_endian(field->data + 4 * n, 4); }

const char *fl_field_string(const fl_field *field, uint64_t n, size_t *size) {
    const uint8_t *at = field->data;
    for (; n; n--) at += 8 + little_endian(at, 8);
    *size = (size_t)little_endian(at, 8);
    return (const char *)at + 8;
}

/* Sign aside, floats order as their bits do, so one comparison of whole numbers finds what is too large,
 * infinite or not a number; the loops have nothing to stop them, so that compilers make them wide. */
static bool all_tame(const uint8_t *bytes, size_t n) {
    enum { LIMIT = 0x53800000 }; /* 2^40 */
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, bytes + 4 * i, 4);
        bad |= (uint32_t)((int32_t)(bits & 0x7FFFFFFF) > LIMIT);
    }
    return !bad;
}

static bool all_tame_bf16(const uint8_t *bytes, size_t n) {
    enum { LIMIT = 0x5380 }; /* 2^40 */
    uint16_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, bytes + 2 * i, 2);
        bad |= (uint16_t)((bits & 0x7FFF) > LIMIT);
    }
    return !bad;
}

static bool has_byte(const uint8_t *bytes, size_t n, uint8_t byte) {
    uint8_t found = 0;
    for (size_t i = 0; i < n; i++) found |= (uint8_t)(bytes[i] == byte);
    return found;
}

const fl_tensor *fl_file_tensor(const fl_file *file, const char *prefix, size_t prefix_size, const char *suffix) {
    const size_t suffix_size = strlen(suffix);
    for (size_t i = 0; i < file->n_tensors; i++) {
        const fl_tensor *t = &file->tensors[i];
        if (t->name_size == prefix_size + 1 + suffix_size && memcmp(t->name, prefix, prefix_size) == 0 &&
            t->name[prefix_size] == '.' && memcmp(t->name + prefix_size + 1, suffix, suffix_size) == 0)
            return t;
    }
    return NULL;
}

fl_status fl_file_data(const fl_file *file, const char *prefix, size_t prefix_size, const char *suffix, uint32_t type,
                       const uint64_t dims[4], const void **data, fl_error *error) {
    const fl_shown name = fl_show(prefix, prefix_size);
    const fl_tensor *found = fl_file_tensor(file, prefix, prefix_size, suffix);
    if (!found) return fl_fail(error, FL_ERROR_FORMAT, "tensor '%s.%s': expected, not found", name.text, suffix);
    if (found->type != type)
        return fl_fail(error, FL_ERROR_FORMAT, "tensor '%s.%s': expected type %u, found %u", name.text, suffix, type,
                       found->type);
    if (memcmp(found->dims, dims, 4 * sizeof *dims) != 0)
        return fl_fail(error, FL_ERROR_FORMAT,
                       "tensor '%s.%s': expected dimensions %llu x %llu x %llu x %llu, found %llu x %llu x %llu x %llu",
                       name.text, suffix, (unsigned long long)dims[0], (unsigned long long)dims[1],
                       (unsigned long long)dims[2], (unsigned long long)dims[3], (unsigned long long)found->dims[0],
                       (unsigned long long)found->dims[1], (unsigned long long)found->dims[2],
                       (unsigned long long)found->dims[3]);
    const uint8_t *bytes = file->mapping.bytes + found->offset;
    if ((type == FL_GGML_F32 && !all_tame(bytes, found->size / 4)) ||
        (type == FL_GGML_BF16 && !all_tame_bf16(bytes, found->size / 2)))
        return fl_fail(error, FL_ERROR_FORMAT, "tensor '%s.%s': a weight is not a number, infinite or above 2^40",
                       name.text, suffix);
    *data = bytes;
    return FL_OK;
}

fl_status fl_file_int8(const fl_file *file, const char *prefix, size_t prefix_size, const char *suffix,
                       const uint64_t dims[4], const void **data, fl_error *error) {
    const fl_status status = fl_file_data(file, prefix, prefix_size, suffix, FL_GGML_I8, dims, data, error);
    if (status || !has_byte(*data, (size_t)(dims[0] * dims[1] * dims[2] * dims[3]), 0x80)) return status;
    return fl_fail(error, FL_ERROR_FORMAT, "tensor '%s.%s': expected weights from -127 to 127, found -128",
                   fl_show(prefix, prefix_size).text, suffix);
}
