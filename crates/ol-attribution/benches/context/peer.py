"""The other side of the `context` benchmark: bm25s on one thread.

    python peer.py numpy|numba DIR

DIR holds `texts` and `queries`, one a line, words between single spaces. The
first line on stdout is `ready NAME`, or `absent REASON`. Then `build` on stdin
indexes the texts, and `QUERY K` searches once; the answers are `seconds N`,
with the number of texts, or the sum of the positions found. The words are cut
before the clock starts.
"""

import os
import sys
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"


def lines(folder, name):
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return [line.split() for line in file.read().split("\n")]


def main():
    kind, folder = sys.argv[1:]
    try:
        import bm25s

        if kind == "numba":
            import numba  # noqa: F401
    except ImportError as error:
        print(f"absent {error}", flush=True)
        return
    texts, queries = lines(folder, "texts"), lines(folder, "queries")

    def build():
        index = bm25s.BM25(method="lucene", k1=1.2, b=0.75, backend=kind)
        index.index(texts, show_progress=False)
        return index

    index = build()
    index.retrieve([queries[0]], k=10, show_progress=False)
    print(f"ready bm25s {bm25s.__version__} ({kind})", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        if line.strip() == "build":
            build()
            found = len(texts)
        else:
            query, k = map(int, line.split())
            found = index.retrieve([queries[query]], k=k, show_progress=False)[0].sum()
        print(f"{time.perf_counter() - start} {found}", flush=True)


main()
