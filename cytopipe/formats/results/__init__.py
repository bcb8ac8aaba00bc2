"""The results folder of one slide: what `infer` found on it. The room that writes it and reads it back.

objects.parquet    a row an object (`table`); also without any object
objects.geojson    QuPath: a detection an object, frame bounds unless told; .gz, or -0001 and on, on request
objects.coco.json, objects.csv, labels.zarr    on request
run.json           what ran, versions, counts, errors, times; clock times stand here and nowhere else
"""

from cytopipe.formats.results.geojson import geojson_files
from cytopipe.formats.results.run_facts import read_run_json, write_run_json
from cytopipe.formats.results.schema import (
    COCO_NAME,
    CSV_NAME,
    GEOJSON_NAME,
    LABELS_NAME,
    RUN_NAME,
    SCHEMA_VERSION,
    TABLE_NAME,
    Results,
    ResultsInfo,
    shapes_of,
    suspicion,
)
from cytopipe.formats.results.table import find_results, iter_results, read_info, read_results
from cytopipe.formats.results.writer import (
    DEFAULT_PARTS,
    PARTS,
    Part,
    ResultsWriter,
    WriteOptions,
    write_results,
)

__all__ = [
    "COCO_NAME",
    "CSV_NAME",
    "DEFAULT_PARTS",
    "GEOJSON_NAME",
    "LABELS_NAME",
    "PARTS",
    "RUN_NAME",
    "SCHEMA_VERSION",
    "TABLE_NAME",
    "Part",
    "Results",
    "ResultsInfo",
    "ResultsWriter",
    "WriteOptions",
    "find_results",
    "geojson_files",
    "iter_results",
    "read_info",
    "read_results",
    "read_run_json",
    "shapes_of",
    "suspicion",
    "write_results",
    "write_run_json",
]
