"""The other side of the `scoring` benchmark: numpy and faiss on two threads.

    python peer.py numpy|flat|sq8 DIR

DIR holds `codes.i8` ([N, 256]), `scales.u16` ([N]) and `queries.i8` ([Q, 256]).
The first line on stdout is `ready NAME`, or `absent REASON`. Then each line
`QUERY N_BEST` on stdin is searched once and answered by `seconds BEST`, the
position of the best record; the seconds are measured here, around the search
alone.
"""

import os
import sys
import time

THREADS = 2
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(THREADS)

K = 256
ROWS = 1 << 16


def load(folder, numpy):
    """Scaled sketches a few rows at a time, and the queries, in f32."""
    codes = numpy.memmap(os.path.join(folder, "codes.i8"), numpy.int8, "r").reshape(-1, K)
    scales = numpy.fromfile(os.path.join(folder, "scales.u16"), "<u2")
    queries = numpy.fromfile(os.path.join(folder, "queries.i8"), numpy.int8).reshape(-1, K)

    def parts():
        for start in range(0, len(codes), ROWS):
            part = slice(start, start + ROWS)
            yield codes[part].astype(numpy.float32) * scales[part, None].astype(numpy.float32)

    return len(codes), parts, queries.astype(numpy.float32)


class Numpy:
    """All scores: one matrix-vector product in f32. Neither nets nor sorts."""

    def __init__(self, folder):
        import numpy

        n, parts, self.queries = load(folder, numpy)
        self.rows = numpy.empty((n, K), numpy.float32)
        for i, part in enumerate(parts()):
            self.rows[i * ROWS : i * ROWS + len(part)] = part
        self.name = f"numpy {numpy.__version__} f32 matrix-vector, all scores"

    def search(self, query, _n_best):
        start = time.perf_counter()
        scores = self.rows @ self.queries[query]
        return time.perf_counter() - start, scores.argmax()


class Faiss:
    """The best records by inner product."""

    def __init__(self, folder, kind):
        import faiss
        import numpy

        faiss.omp_set_num_threads(THREADS)
        n, parts, self.queries = load(folder, numpy)
        if kind == "flat":
            self.index = faiss.IndexFlatIP(K)
            self.name = f"faiss {faiss.__version__} IndexFlatIP"
        else:
            self.index = faiss.IndexScalarQuantizer(
                K, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
            )
            self.index.train(next(parts()))
            self.name = f"faiss {faiss.__version__} IndexScalarQuantizer 8 bit, not exact"
        for part in parts():
            self.index.add(part)

    def search(self, query, n_best):
        row = self.queries[query : query + 1]
        start = time.perf_counter()
        _, positions = self.index.search(row, n_best)
        return time.perf_counter() - start, positions[0, 0]


def main():
    kind, folder = sys.argv[1:]
    try:
        peer = Numpy(folder) if kind == "numpy" else Faiss(folder, kind)
    except ImportError as error:
        print(f"absent {error}", flush=True)
        return
    print(f"ready {peer.name}", flush=True)
    for line in sys.stdin:
        query, n_best = map(int, line.split())
        seconds, best = peer.search(query, n_best)
        print(f"{seconds} {best}", flush=True)


main()
