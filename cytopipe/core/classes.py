"""Classes of objects: name, kind, suspicion. The one place that knows which names the field uses.

A class list stands in store.json and model.toml; where a file brings only names, `class_named` gives what the name
means.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["nucleus", "cell", "other"]

SUSPICIOUS = ("ASC-US", "ASC-H", "LSIL", "HSIL", "SCC", "AGC", "AIS", "Adenocarcinoma")  # The Bethesda System 2014
NUCLEUS_NAMES = ("nucleus", "nuclei")


class ObjectClass(BaseModel):
    """One class of objects."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="as the annotations spell it")
    kind: Kind = Field(
        description="nucleus, cell (whole cell, cytoplasm), or other; two objects of one kind at one place are one "
        "object"
    )
    suspicious: bool = Field(description="counts towards an object's suspicion")


def class_named(name: str) -> ObjectClass:
    """What a bare class name means: nuclei by name, the Bethesda lesion classes as suspicious cells, any other name as
    a cell.
    """
    if name.lower() in NUCLEUS_NAMES:
        return ObjectClass(name=name, kind="nucleus", suspicious=False)
    return ObjectClass(name=name, kind="cell", suspicious=name.upper() in {s.upper() for s in SUSPICIOUS})
