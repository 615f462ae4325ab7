"""Cursors of lists that are cut by key: the id of a page's last item, opaque to its reader."""

from __future__ import annotations

import base64
import re

from controlplane.domain.errors import BadCursor


def cursor_after(last: str) -> str:
    """The cursor of the page that follows the item with this id."""
    return base64.urlsafe_b64encode(last.encode()).decode()


def id_before(cursor: str, form: re.Pattern[str]) -> str:
    """The id, of this form, that a cursor's page follows. Raises BadCursor."""
    try:
        last = base64.urlsafe_b64decode(cursor.encode()).decode("ascii")
    except ValueError:
        raise BadCursor(cursor) from None
    if not form.fullmatch(last):
        raise BadCursor(cursor)
    return last
