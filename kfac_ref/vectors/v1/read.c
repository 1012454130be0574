/* Recompute the input factor A of the first layer from x, and compare it with a test vector: the least that a reader
   of these files does. C has no reader of JSON; the keys are looked for, and each number is read by strtod.
       cc -O1 -o read read.c -lm && ./read softmax-regression.json ...                     prints and exits 0, or 1 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char text[1 << 22];

static const char *after(const char *from, const char *key) {
    const char *found = strstr(from, key);
    if (!found) { fprintf(stderr, "there is no %s\n", key); exit(2); }
    return found + strlen(key);
}

static double *numbers(const char *from, const char *key, size_t count) {       /* of the first list after the key */
    double *out = malloc((count + 1) * sizeof *out);
    char *p = (char *)after(after(from, key), "[");
    for (size_t i = 0; i < count; i++) out[i] = strtod(p, &p), p++;              /* p++ passes the comma */
    return out;
}

int main(int argc, char **argv) {
    int wrong = argc < 2;
    for (int f = 1; f < argc; f++) {
        FILE *file = fopen(argv[f], "rb");
        if (!file) { perror(argv[f]); return 2; }
        text[fread(text, 1, sizeof text - 1, file)] = 0;
        fclose(file);
        const char *x_at = after(text, "\"x\": "), *A_at = after(after(text, "\"expected\": "), "\"A\": ");
        double *shape = numbers(x_at, "\"shape\": ", 2), tolerance = strtod(after(A_at, "\"tolerance\": "), NULL);
        size_t N = (size_t)shape[0], d = (size_t)shape[1], n = d + 1;
        double *x = numbers(x_at, "\"data\": ", N * d), *A = numbers(A_at, "\"data\": ", n * n), worst = 0, size = 0;
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++) {
                double sum = 0;
                for (size_t k = 0; k < N; k++) sum += (i < d ? x[k * d + i] : 1) * (j < d ? x[k * d + j] : 1);
                worst = fmax(worst, fabs(sum / (double)N - A[i * n + j]));
                size = fmax(size, fabs(A[i * n + j]));
            }
        printf("%s: A[0] differs by %.1e of its largest entry\n", argv[f], worst / size);
        wrong |= !(worst <= tolerance * size);
        free(shape), free(x), free(A);
    }
    return wrong;
}
