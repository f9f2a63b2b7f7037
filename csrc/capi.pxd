# SPDX-License-Identifier: Apache-2.0
# Mirror of fastlm.h, in its order; nothing else.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t


cdef extern from "fastlm.h" nogil:
    ctypedef struct fl_model:
        pass
    ctypedef struct fl_state:
        pass
    ctypedef struct fl_decoder:
        pass

    ctypedef enum fl_status:
        FL_OK
        FL_ERROR_FORMAT
        FL_ERROR_OS
        FL_ERROR_MEMORY
        FL_ERROR_ARGUMENT

    ctypedef struct fl_error:
        fl_status status
        int os_code
        char message[512]

    size_t fl_isa_count() noexcept
    const char *fl_isa_name(size_t index) noexcept
    int fl_isa_supported(size_t index) noexcept
    fl_status fl_isa_choose(const char *isa, const char **name, fl_error *error) noexcept

    ctypedef struct fl_load_options:
        const char *isa
        size_t row_cache_bytes
        uint32_t threads

    ctypedef struct fl_model_info:
        uint32_t vocab_size
        uint32_t embedding_size
        uint32_t layers
        int32_t bos
        int32_t eos
        int tied
        size_t file_bytes
        size_t row_cache_bytes
        uint32_t threads
        const char *isa

    fl_status fl_model_open(const char *path, const fl_load_options *options, fl_model **model,
                            fl_error *error) noexcept
    fl_status fl_model_from_memory(const void *data, size_t size, const fl_load_options *options, fl_model **model,
                                   fl_error *error) noexcept
    void fl_model_close(fl_model *model) noexcept
    void fl_model_get_info(const fl_model *model, fl_model_info *info) noexcept
    uint32_t fl_model_units(const fl_model *model, uint32_t layer) noexcept

    ctypedef struct fl_field:
        const char *key
        size_t key_size
        uint32_t type
        uint32_t item_type
        uint64_t count
        const uint8_t *data
        size_t data_size

    ctypedef struct fl_tensor:
        const char *name
        size_t name_size
        uint32_t n_dims
        uint64_t dims[4]
        uint32_t type
        uint64_t offset
        size_t size

    size_t fl_model_field_count(const fl_model *model) noexcept
    void fl_model_field(const fl_model *model, size_t index, fl_field *field) noexcept
    size_t fl_model_tensor_count(const fl_model *model) noexcept
    void fl_model_tensor(const fl_model *model, size_t index, fl_tensor *tensor) noexcept
    fl_status fl_model_verify(const fl_model *model, double *largest, double *tolerance, fl_error *error) noexcept

    fl_status fl_state_new(const fl_model *model, fl_state **state, fl_error *error) noexcept
    void fl_state_free(fl_state *state) noexcept
    void fl_state_reset(fl_state *state) noexcept
    void fl_state_copy(fl_state *state, const fl_state *origin) noexcept
    uint64_t fl_state_position(const fl_state *state) noexcept

    fl_status fl_decoder_new(const fl_model *model, fl_decoder **decoder, fl_error *error) noexcept
    void fl_decoder_free(fl_decoder *decoder) noexcept
    void fl_feed(fl_decoder *decoder, fl_state *state, const int32_t *tokens, size_t n) noexcept
    const float *fl_logits(fl_decoder *decoder, const fl_state *state) noexcept
    void fl_score(fl_decoder *decoder, fl_state *state, const int32_t *tokens, size_t n, float *logprobs) noexcept

    ctypedef struct fl_sampling:
        float temperature
        uint32_t top_k
        double top_p
        uint64_t seed
        uint32_t index

    ctypedef enum fl_finish:
        FL_FINISH_LENGTH
        FL_FINISH_STOP

    ctypedef struct fl_request:
        fl_state *state
        const int32_t *prompt
        size_t n_prompt
        fl_sampling sampling
        const int32_t *stop
        size_t n_stop
        size_t max_tokens
        int32_t *tokens
        float *logprobs
        size_t written
        fl_finish finish

    void fl_generate(fl_decoder *decoder, fl_request *requests, size_t n) noexcept
