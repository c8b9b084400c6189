"""The page for raters: served, with every choice saved as it is made, or one file that keeps them in the browser.

The page contains texts and pair ids, and nothing that reveals which candidate wrote what.
"""

import datetime
import pathlib
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flanx.compare import ballot, rater_page
from flanx.compare.pairing import Comparison
from flanx.errors import UserError
from flanx.web.server import page_response, read_object


def routes(made: Comparison, folder: pathlib.Path) -> list[Route]:
    """Routes for the page, a rater's ballots so far, and a new ballot.

    POST /api/rater {"rater"} -> {"ballots": {pair: {"choice", "note"}}}
    POST /api/ballot {"rater", "pair", "choice", "note", "seconds"} -> {"done": pairs that the rater has rated}
    """
    text = rater_page.served(made)
    raters: dict[str, ballot.Rater] = {each.name: each for each in ballot.read(folder, made)}

    def known(record: dict[str, Any]) -> ballot.Rater:
        name = ballot.check_name(record.get("rater"))
        if name in raters and raters[name].kind != ballot.PEOPLE:
            raise UserError(f"'{name}' is the name of a judge that is a model: take another one")
        return raters.setdefault(name, ballot.Rater(name, ballot.PEOPLE))

    async def show(request: Request) -> Response:
        return page_response(text)

    async def rater(request: Request) -> Response:
        found = known(await read_object(request, mends=True)).ballots
        return JSONResponse(
            {"ballots": {each.pair: {"choice": each.choice, "note": each.note} for each in found.values()}}
        )

    async def add(request: Request) -> Response:
        record = await read_object(request, mends=True)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        given = ballot.check(made, {**record, "swapped": False, "time": now})
        of = known(record)
        try:
            ballot.Writer(folder, made, of.name).add([given])
        except OSError as error:  # disk full, folder gone
            what = f"the choice could not be written ({error.strerror}): tell whoever runs `flanx compare`"
            raise HTTPException(507, what) from error
        of.take(given)
        return JSONResponse({"done": len(of.ballots)})

    return [
        Route("/", show),
        Route("/api/rater", rater, methods=["POST"]),
        Route("/api/ballot", add, methods=["POST"]),
    ]
