"""What a refined file says of itself in numbers, for `--json`: rows by what was done, who was seen where."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.artefacts.kinds import OK
from stages.artefacts.table import Artefact

REFINED = ("untouched", "refined", "filled", "alone")  # the values of extra/refined


def counts(table: Artefact) -> dict[str, Any]:
    """{"refined": {...}, "joined": rows refined together with another view, "people": [...]}; the last two for files
    refined in mode views, nothing for files that were not refined."""
    found: dict[str, Any] = {}
    good = table.rows["status"] == OK
    if table.has("extra/refined"):
        number = np.bincount(table.read("extra/refined")[good], minlength=len(REFINED))
        found["refined"] = dict(zip(REFINED, number.tolist(), strict=False))
    if table.has("extra/person"):
        found |= view_counts(table, table.read("extra/person"), table.read("extra/views"))
    return found


def view_counts(table: Artefact, person: np.ndarray, views: np.ndarray) -> dict[str, Any]:
    """Rows joined with another view, and of each person its rows and its track numbers by view. person, views (R,): who
    it is and in how many views at this moment."""
    rows, view = table.rows, table.frames["view"][table.rows["frame"]]
    good, people = rows["status"] == OK, []
    for number in np.unique(person[good]).tolist():
        mine = good & (person == number)
        tracks = {str(v): np.unique(rows["track"][mine & (view == v)]).tolist() for v in np.unique(view[mine]).tolist()}
        joined = int((mine & (views > 1)).sum())
        people.append({"person": number, "rows": int(mine.sum()), "joined": joined, "tracks": tracks})
    return {"joined": int((good & (views > 1)).sum()), "people": people}
