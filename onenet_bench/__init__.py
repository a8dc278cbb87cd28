"""onenet-bench: architecture search and benchmarks for OneNet-family segmentation U-Nets.

A candidate travels through the package in this order::

    space -> spec -> plan -> costs -> models -> training -> record -> ledger -> pareto -> report
"""

__version__ = "0.1.0"
