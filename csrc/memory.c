/* SPDX-License-Identifier: Apache-2.0
 *
 * What controls remember of a text: its tokens, how often each occurs of late, and mirostat's aim. Adding a token and
 * finding where one occurred before take the same time however long the text is. */
#include "memory.h"

#include <stdlib.h>

fl_status fl_memory_new(const fl_model *model, uint32_t window, fl_memory **memory, fl_error *error) {
    const size_t V = model->vocab_size, bytes = sizeof **memory + V * (5 * sizeof(uint32_t) + 1);
    fl_memory *m = calloc(1, bytes);
    *memory = m;
    if (!m) return fl_fail(error, FL_ERROR_MEMORY, "no memory for a text's memory of %zu bytes", bytes);
    uint32_t *arrays = (uint32_t *)(void *)(m + 1);
    m->vocab_size = model->vocab_size, m->window = window, m->surprise = NAN;
    m->last = arrays, m->present = arrays + V, m->times = arrays + 2 * V, m->spot = arrays + 3 * V;
    m->distinct = (int32_t *)(void *)(arrays + 4 * V), m->longest = (uint8_t *)(arrays + 5 * V);
    return FL_OK;
}

void fl_memory_free(fl_memory *m) {
    if (!m) return;
    free(m->tokens);
    free(m->written);
    free(m->surprises);
    free(m->before);
    free(m);
}

/* Whether *array, of whatever type, has room for so many bytes now. */
static bool grow(void *array, size_t bytes) {
    void *old, *grown;
    memcpy(&old, array, sizeof old);
    grown = realloc(old, bytes);
    if (grown) memcpy(array, &grown, sizeof grown);
    return grown != NULL;
}

fl_status fl_memory_reserve(fl_memory *m, size_t more, fl_error *error) {
    if (m->room - m->n >= more) return FL_OK;
    if (more >= UINT32_MAX - m->n)
        return fl_fail(error, FL_ERROR_MEMORY, "a text of more than %u tokens: no more are remembered", UINT32_MAX - 1);
    const size_t wanted = m->n + more, room = wanted > 2 * m->room ? wanted : 2 * m->room;
    if (!grow(&m->tokens, room * sizeof *m->tokens) || !grow(&m->written, room * sizeof *m->written) ||
        !grow(&m->surprises, room * sizeof *m->surprises) || !grow(&m->before, room * sizeof *m->before))
        return fl_fail(error, FL_ERROR_MEMORY, "no memory for a text of %zu tokens", room);
    m->room = room;
    return FL_OK;
}

/* ---- the window -------------------------------------------------------------------------------------- */

static void enter_window(fl_memory *m, size_t place) {
    const int32_t token = m->tokens[place];
    m->times[token] += m->written[place];
    if (m->present[token]++) return;
    m->spot[token] = m->n_distinct;
    m->distinct[m->n_distinct++] = token;
}

static void leave_window(fl_memory *m, size_t place) {
    const int32_t token = m->tokens[place];
    m->times[token] -= m->written[place];
    if (--m->present[token]) return;
    const int32_t moved = m->distinct[--m->n_distinct];
    m->distinct[m->spot[token]] = moved;
    m->spot[moved] = m->spot[token];
}

void fl_memory_add(fl_memory *m, const int32_t *tokens, size_t n, int written) {
    for (size_t i = 0; i < n; i++) {
        const size_t place = m->n++;
        m->tokens[place] = tokens[i];
        m->written[place] = written != 0;
        m->surprises[place] = m->surprise;
        m->before[place] = m->last[tokens[i]];
        m->last[tokens[i]] = (uint32_t)m->n;
        enter_window(m, place);
        if (m->window && m->n > m->window) leave_window(m, place - m->window);
    }
}

void fl_memory_undraw(fl_memory *m) { m->surprise = m->n ? m->surprises[m->n - 1] : NAN; }

void fl_memory_rewind(fl_memory *m, size_t n) {
    while (m->n > n) {
        const size_t place = --m->n;
        if (m->window && place >= m->window) enter_window(m, place - m->window);
        leave_window(m, place);
        m->last[m->tokens[place]] = m->before[place];
    }
    fl_memory_undraw(m);
}

fl_status fl_memory_copy(fl_memory *m, const fl_memory *from, fl_error *error) {
    const size_t more = from->n > m->n ? from->n - m->n : 0;
    const fl_status status = fl_memory_reserve(m, more, error);
    if (status != FL_OK) return status;
    memcpy(m->last, from->last, 5 * (size_t)m->vocab_size * sizeof(uint32_t));
    m->n = from->n, m->n_distinct = from->n_distinct, m->surprise = from->surprise;
    if (!m->n) return FL_OK;
    memcpy(m->tokens, from->tokens, m->n * sizeof *m->tokens);
    memcpy(m->written, from->written, m->n * sizeof *m->written);
    memcpy(m->surprises, from->surprises, m->n * sizeof *m->surprises);
    memcpy(m->before, from->before, m->n * sizeof *m->before);
    return FL_OK;
}

/* ---- repetition -------------------------------------------------------------------------------------- */

enum { LONGEST_PATTERN = 64 };

bool fl_memory_repeats(const fl_memory *m, uint32_t times) {
    for (size_t size = 1; size <= LONGEST_PATTERN && size * times <= m->n; size++) {
        const size_t first = m->n - size * times;
        size_t at = m->n;
        while (at > first + size && m->tokens[at - 1] == m->tokens[at - 1 - size]) at--;
        if (at == first + size && !memchr(m->written + first, 0, size * times)) return true;
    }
    return false;
}

/* ---- what is known of it ------------------------------------------------------------------------------- */

size_t fl_memory_size(const fl_memory *m) { return m->n; }
const int32_t *fl_memory_tokens(const fl_memory *m) { return m->tokens; }
const uint8_t *fl_memory_written(const fl_memory *m) { return m->written; }
const float *fl_memory_surprises(const fl_memory *m) { return m->surprises; }

void fl_memory_set_surprises(fl_memory *m, const float *surprises) {
    if (!m->n) return;
    memcpy(m->surprises, surprises, m->n * sizeof *surprises);
    m->surprise = surprises[m->n - 1];
}
