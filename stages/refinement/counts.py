"""Counts of a refined file, for `--json`: rows by what was done, and the views and tracks of each person."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.artefacts.kinds import OK
from stages.artefacts.table import Artefact

REFINED = ("untouched", "refined", "filled", "alone")  # the values of extra/refined


def counts(table: Artefact) -> dict[str, Any]:
    """{"refined": {...}, "joined": rows refined together with another view, "people": [...]}; the last two for files
    refined in mode views, nothing for files that were not refined."""
    result: dict[str, Any] = {}
    good = table.rows["status"] == OK
    if table.has("extra/refined"):
        count = np.bincount(table.read("extra/refined")[good], minlength=len(REFINED))
        result["refined"] = dict(zip(REFINED, count.tolist(), strict=False))
    if table.has("extra/person"):
        result |= view_counts(table, table.read("extra/person"), table.read("extra/views"))
    return result


def view_counts(table: Artefact, person: np.ndarray, views: np.ndarray) -> dict[str, Any]:
    """Rows joined with another view, and of each person its rows and its track numbers by view. person, views (R,): the
    number of the person, and of views of this moment that show it."""
    rows, view = table.rows, table.frames["view"][table.rows["frame"]]
    good, people = rows["status"] == OK, []
    for number in np.unique(person[good]).tolist():
        of_person = good & (person == number)
        views_of_person = np.unique(view[of_person]).tolist()
        tracks = {str(v): np.unique(rows["track"][of_person & (view == v)]).tolist() for v in views_of_person}
        joined = int((of_person & (views > 1)).sum())
        people.append({"person": number, "rows": int(of_person.sum()), "joined": joined, "tracks": tracks})
    return {"joined": int((good & (views > 1)).sum()), "people": people}
