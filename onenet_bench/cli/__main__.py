"""``python -m onenet_bench.cli``."""

from onenet_bench.cli import main

main()
