"""Sources: where the examples come from, and in which order they become batches."""

from __future__ import annotations

from flowml.data.accept import as_source
from flowml.data.binary_files import idx, npz
from flowml.data.blocks import evaluation_blocks
from flowml.data.csv_files import csv
from flowml.data.dask_collections import dask_array, dask_dataframe
from flowml.data.libsvm_files import libsvm
from flowml.data.memory import arrays, parts
from flowml.data.parquet_files import parquet
from flowml.data.rows import Rows
from flowml.data.share import BatchOrder, Share, deal, deal_indices, random_seed
from flowml.data.source import Partition, Source, count_rows
from flowml.data.stream import BatchStream
from flowml.data.streams import iterable

__all__ = [
    "BatchOrder",
    "BatchStream",
    "Partition",
    "Rows",
    "Share",
    "Source",
    "arrays",
    "as_source",
    "count_rows",
    "csv",
    "dask_array",
    "dask_dataframe",
    "deal",
    "deal_indices",
    "evaluation_blocks",
    "idx",
    "iterable",
    "libsvm",
    "npz",
    "parquet",
    "parts",
    "random_seed",
]
