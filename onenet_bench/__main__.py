"""``python -m onenet_bench`` is ``onenet-bench``."""

from onenet_bench.cli import main

main()
