"""The endpoints around samples: datasets, mappings, datasource, quota, versions."""

from typing import Any

from .asgi import Call, Reply, json_reply
from .dataset import Dataset
from .errors import not_found
from .options import ServerOptions
from .params import boolean, choice
from .samples_api import array_reply, see_new_objects, window_of

OWNER = "local"
QUOTA_SAMPLES = "100000000"
CLIENT_VERSION = "1.5.22"
"""The last released client; also the minimum, so that no client is told to update."""


class DatasetsApi:
    """Handlers outside `/samples` and `/tags`. Runs on the server's loop."""

    def __init__(self, dataset: Dataset, options: ServerOptions) -> None:
        self._dataset = dataset
        self._options = options

    async def get(self, call: Call) -> Reply:
        """GET one dataset."""
        await see_new_objects(self._dataset)
        return json_reply(self._data())

    async def list_all(self, call: Call) -> Reply:
        """GET all datasets: the one there is, unless only shared ones are asked for."""
        return json_reply(self._visible(call, True))

    async def by_name(self, call: Call) -> Reply:
        """GET by name: equal with `exact`, else by prefix."""
        asked, name = call.path["name"], self._dataset.facts.name
        exact = boolean(call.query, "exact", False)
        return json_reply(self._visible(call, name == asked if exact else name.startswith(asked)))

    async def mappings(self, call: Call) -> Reply:
        """GET mappings: ids or names in the order of tag bits."""
        field = choice(call.query, "field", ("_id", "fileName"))
        window = window_of(call, None)
        texts = self._dataset.catalog.page("id" if field == "_id" else "name", window)
        return array_reply(texts, self._options.response_cap_bytes)

    async def datasource(self, call: Call) -> Reply:
        """GET datasource: none is configured, the server is the storage."""
        raise not_found("DATASET_DATASOURCE_UNKNOWN", "a datasource of this dataset")

    async def quota(self, call: Call) -> Reply:
        """GET quota: the most samples per dataset, a number in a JSON string."""
        return json_reply(QUOTA_SAMPLES)

    async def version(self, call: Call) -> Reply:
        """GET the latest or the minimum client version; needs no token."""
        return json_reply(CLIENT_VERSION)

    def _visible(self, call: Call, wanted: bool) -> list[dict[str, Any]]:
        shared = boolean(call.query, "shared", False)
        of_team = boolean(call.query, "getAssetsOfTeam", False)
        boolean(call.query, "getAssetsOfTeamInclusiveSelf", False)
        boolean(call.query, "excludePlayground", False)
        window = window_of(call, None)
        found = [self._data()] if wanted and not shared and not of_team else []
        return found[window.offset :][: window.limit]

    def _data(self) -> dict[str, Any]:
        facts = self._dataset.facts
        return {
            "id": facts.id,
            "name": facts.name,
            "userId": OWNER,
            "type": "Images",
            "imgType": "full",
            "nSamples": self._dataset.catalog.count(),
            "sizeInBytes": self._dataset.catalog.total_bytes(),
            "createdAt": facts.created_ms,
            "lastModifiedAt": max(facts.created_ms, self._dataset.catalog.modified_ms()),
        }
