# SPDX-License-Identifier: Apache-2.0
# Mirror of fastlm.h, in its order; nothing else.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t


cdef extern from "fastlm.h" nogil:
    const int FL_NUMERICS_VERSION

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

    ctypedef enum fl_screening:
        FL_SCREEN_USEFUL
        FL_SCREEN_NEVER
        FL_SCREEN_ALWAYS
        FL_SCREEN_CHECKED

    ctypedef struct fl_load_options:
        const char *isa
        size_t row_cache_bytes
        uint32_t threads
        fl_screening screening

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
        int screened
        int attends
        uint32_t source_vocab_size
        uint32_t labels
        int bidirectional

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
        const uint8_t *data
        size_t size

    size_t fl_model_field_count(const fl_model *model) noexcept
    void fl_model_field(const fl_model *model, size_t index, fl_field *field) noexcept
    size_t fl_model_tensor_count(const fl_model *model) noexcept
    void fl_model_tensor(const fl_model *model, size_t index, fl_tensor *tensor) noexcept
    fl_status fl_model_verify(const fl_model *model, double *largest, double *tolerance, fl_error *error) noexcept

    ctypedef struct fl_source:
        pass

    ctypedef struct fl_source_text:
        const int32_t *tokens
        size_t n

    fl_status fl_read_sources(fl_decoder *decoder, const fl_source_text *texts, size_t n, fl_source **sources,
                              fl_error *error) noexcept
    void fl_source_free(fl_source *source) noexcept
    size_t fl_source_size(const fl_source *source) noexcept

    fl_status fl_state_new(const fl_model *model, fl_state **state, fl_error *error) noexcept
    void fl_state_free(fl_state *state) noexcept
    void fl_state_reset(fl_state *state) noexcept
    void fl_state_begin(fl_state *state, const fl_source *source) noexcept
    void fl_state_copy(fl_state *state, const fl_state *origin) noexcept
    uint64_t fl_state_position(const fl_state *state) noexcept
    const float *fl_state_values(const fl_state *state, size_t *n) noexcept
    fl_status fl_state_set(fl_state *state, const fl_model *model, uint64_t position, const float *values,
                           fl_error *error) noexcept

    fl_status fl_decoder_new(const fl_model *model, fl_decoder **decoder, fl_error *error) noexcept
    void fl_decoder_free(fl_decoder *decoder) noexcept
    void fl_feed(fl_decoder *decoder, fl_state *state, const int32_t *tokens, size_t n) noexcept
    const float *fl_logits(fl_decoder *decoder, const fl_state *state) noexcept
    void fl_logprobs(fl_decoder *decoder, const fl_state *state, float *logprobs) noexcept
    void fl_advance(fl_decoder *decoder, fl_state **states, const int32_t *tokens, size_t n, float *logprobs) noexcept

    ctypedef struct fl_branches:
        double ended
        double listed
        double unlisted
        size_t n
        int32_t *ids
        float *logprobs

    void fl_follow(fl_decoder *decoder, fl_state **states, const int32_t *tokens, size_t n, const uint8_t *ending,
                   uint32_t most, fl_branches *branches) noexcept
    void fl_score(fl_decoder *decoder, fl_state *state, const int32_t *tokens, size_t n, float *logprobs) noexcept

    void fl_align(fl_decoder *decoder, fl_state *state, const int32_t *tokens, size_t n, float *weights) noexcept

    ctypedef struct fl_text:
        fl_state *state
        const int32_t *tokens
        size_t n
        float *logprobs

    void fl_score_texts(fl_decoder *decoder, const fl_text *texts, size_t n) noexcept

    fl_status fl_classify(fl_decoder *decoder, const fl_text *texts, size_t n, fl_error *error) noexcept

    ctypedef struct fl_memory:
        pass

    fl_status fl_memory_new(const fl_model *model, uint32_t window, fl_memory **memory, fl_error *error) noexcept
    void fl_memory_free(fl_memory *memory) noexcept
    fl_status fl_memory_reserve(fl_memory *memory, size_t more, fl_error *error) noexcept
    fl_status fl_memory_copy(fl_memory *memory, const fl_memory *origin, fl_error *error) noexcept
    void fl_memory_add(fl_memory *memory, const int32_t *tokens, size_t n, int written) noexcept
    void fl_memory_rewind(fl_memory *memory, size_t n) noexcept
    size_t fl_memory_size(const fl_memory *memory) noexcept
    const int32_t *fl_memory_tokens(const fl_memory *memory) noexcept
    const uint8_t *fl_memory_written(const fl_memory *memory) noexcept
    const float *fl_memory_surprises(const fl_memory *memory) noexcept
    void fl_memory_set_surprises(fl_memory *memory, const float *surprises) noexcept

    ctypedef enum fl_control:
        FL_NO_CONTROL
        FL_LOGIT_BIAS
        FL_PENALTIES
        FL_DRY
        FL_TEMPERATURE
        FL_TOP_N_SIGMA
        FL_TOP_K
        FL_TOP_P
        FL_MIN_P
        FL_TYPICAL_P
        FL_EPSILON_CUTOFF
        FL_ETA_CUTOFF
        FL_XTC
        FL_MIROSTAT
        FL_CONTROLS

    ctypedef struct fl_index:
        pass

    fl_status fl_index_open(const void *data, size_t size, fl_index **index, fl_error *error) noexcept
    void fl_index_free(fl_index *index) noexcept
    size_t fl_index_vocab_size(const fl_index *index) noexcept
    uint64_t fl_index_tokens(const fl_index *index) noexcept
    uint64_t fl_index_count(const fl_index *index, const int32_t *tokens, size_t n) noexcept
    void fl_index_longest(const fl_index *index, const int32_t *tokens, size_t n, uint32_t *lengths) noexcept

    ctypedef struct fl_sampling:
        float temperature
        uint8_t steps[14]  # FL_CONTROLS; C knows the true size
        const int32_t *bias_ids
        const float *biases
        size_t n_biases
        float repetition_penalty
        float frequency_penalty
        float presence_penalty
        float dry_multiplier
        float dry_base
        uint32_t dry_allowed_length
        uint32_t dry_window
        const uint8_t *dry_breakers
        float top_n_sigma
        uint32_t top_k
        double top_p
        float min_p
        double typical_p
        float epsilon_cutoff
        float eta_cutoff
        float xtc_probability
        float xtc_threshold
        float mirostat_tau
        float mirostat_eta
        uint32_t no_repeat_ngram_size
        const int32_t *bad_words
        const size_t *bad_ends
        size_t n_bad_words
        const fl_index *corpus
        uint32_t most_copied
        fl_decoder *amateur
        float contrast_alpha
        float contrast_beta
        const int32_t *stop
        size_t n_stop
        const uint8_t *pauses
        uint32_t stop_repeats

    ctypedef enum fl_finish:
        FL_FINISH_LENGTH
        FL_FINISH_STOP
        FL_FINISH_PAUSE
        FL_FINISH_REPETITION
        FL_FINISH_UNSATISFIABLE
        FL_FINISH_DEADLINE

    ctypedef struct fl_request:
        fl_state *state
        fl_state *amateur
        fl_memory *memory
        const int32_t *prompt
        size_t n_prompt
        const fl_sampling *sampling
        uint64_t seed
        uint32_t index
        const uint32_t *allowed
        size_t min_tokens
        size_t max_tokens
        uint32_t alternatives
        int32_t *tokens
        float *logprobs
        int32_t *alternative_ids
        float *alternative_logprobs
        const int32_t *asked
        size_t n_asked
        float *asked_logprobs
        float *keys
        size_t written
        fl_finish finish
        int32_t ended_by
        size_t screened
        size_t finished
        size_t computed
        size_t wrong

    void fl_generate(fl_decoder *decoder, fl_request *requests, size_t n, uint64_t deadline) noexcept
    void fl_expand(fl_decoder *decoder, fl_request *requests, size_t n) noexcept
    uint64_t fl_clock() noexcept

    ctypedef struct fl_coder:
        pass

    fl_status fl_coder_new(const void *data, size_t size, fl_coder **coder, fl_error *error) noexcept
    void fl_coder_free(fl_coder *coder) noexcept
    void fl_encode(fl_decoder *decoder, fl_state *state, fl_coder *coder, const int32_t *tokens, size_t n,
                   int escapes) noexcept
    void fl_encode_escape(fl_decoder *decoder, const fl_state *state, fl_coder *coder) noexcept
    void fl_encode_bits(fl_coder *coder, uint32_t value, int bits) noexcept
    fl_status fl_coder_finish(fl_coder *coder, const uint8_t **data, size_t *size, fl_error *error) noexcept
    size_t fl_decode(fl_decoder *decoder, fl_state *state, fl_coder *coder, int32_t *tokens, size_t n,
                     int escapes) noexcept
    uint32_t fl_decode_bits(fl_coder *coder, int bits) noexcept
    int fl_coder_is_past_end(const fl_coder *coder) noexcept

    void fl_draw(fl_decoder *decoder, const float *logits, fl_request *request) noexcept
    size_t fl_candidates(fl_decoder *decoder, const fl_request *request, int32_t *ids, float *logits) noexcept
