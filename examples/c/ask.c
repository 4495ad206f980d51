/* A question about an image file, in C: ask MODEL IMAGE QUESTION [DEADLINE_MS] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <trtvlm.h>

/* Reads a file of at most 64 MiB; null if it cannot. */
static unsigned char *read_file(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    const size_t most = (size_t)64 << 20;
    unsigned char *bytes = malloc(most);
    if (file && bytes) *length = fread(bytes, 1, most, file);
    if (!file || !bytes || ferror(file) || !feof(file)) {
        free(bytes);
        bytes = NULL;
    }
    if (file) fclose(file);
    return bytes;
}

/* Prints the answer as it grows. */
static uint32_t print(void *user, const char *text, size_t length) {
    (void)user;
    fwrite(text, 1, length, stdout);
    fflush(stdout);
    return 0; /* go on */
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: %s MODEL IMAGE QUESTION [DEADLINE_MS]\n", argv[0]);
        return 2;
    }
    if (trtvlm_abi_version() != TRTVLM_ABI_VERSION) {
        fprintf(stderr, "libtrtvlm %s has another interface than trtvlm.h\n", trtvlm_version());
        return 1;
    }
    char message[512];
    trtvlm_session *session = NULL;
    trtvlm_status status = trtvlm_open(argv[1], NULL, &session, message, sizeof message);
    if (status != TRTVLM_STATUS_OK) {
        fprintf(stderr, "%s: %s\n", trtvlm_status_text(status), message);
        return 1;
    }

    trtvlm_frame frame;
    memset(&frame, 0, sizeof frame);
    frame.size = sizeof frame;
    frame.format = TRTVLM_FORMAT_ENCODED;
    unsigned char *file = read_file(argv[2], &frame.planes[0].length);
    frame.planes[0].data = file;

    trtvlm_question question;
    memset(&question, 0, sizeof question);
    question.size = sizeof question;
    question.text = argv[3];
    question.length = SIZE_MAX; /* a zero ends it */
    question.deadline_ns = argc > 4 ? strtoull(argv[4], NULL, 10) * 1000000 : 0;
    question.on_text = print;

    char answer[1024];
    trtvlm_result result;
    memset(&result, 0, sizeof result);
    result.size = sizeof result;
    status = trtvlm_ask(session, &frame, &question, answer, sizeof answer, &result);
    if (status == TRTVLM_STATUS_OK || status == TRTVLM_STATUS_BUFFER_TOO_SMALL) {
        printf("\n%u tokens, %s, %.1f ms\n", (unsigned)result.tokens, trtvlm_stop_text(result.stop),
               (double)result.total_ns / 1e6);
    } else {
        trtvlm_last_error(session, message, sizeof message);
        fprintf(stderr, "%s: %s\n", trtvlm_status_text(status), message);
    }
    free(file);
    trtvlm_close(session);
    return status == TRTVLM_STATUS_OK ? 0 : 1;
}
