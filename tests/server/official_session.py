"""One session of the official generated client against a server; run as a process by its test.

Arguments: server URL, token, dataset id, dataset name. Exits 0 if every answer says what was expected and
fits the client's models, which refuse unknown fields.
"""

import sys
from urllib.request import Request, urlopen

from lightly.openapi_generated.swagger_client.api.datasets_api import DatasetsApi
from lightly.openapi_generated.swagger_client.api.mappings_api import MappingsApi
from lightly.openapi_generated.swagger_client.api.quota_api import QuotaApi
from lightly.openapi_generated.swagger_client.api.samples_api import SamplesApi
from lightly.openapi_generated.swagger_client.api.tags_api import TagsApi
from lightly.openapi_generated.swagger_client.api.versioning_api import VersioningApi
from lightly.openapi_generated.swagger_client.api_client import ApiClient
from lightly.openapi_generated.swagger_client.configuration import Configuration
from lightly.openapi_generated.swagger_client.exceptions import ApiException
from lightly.openapi_generated.swagger_client.models.file_name_format import FileNameFormat
from lightly.openapi_generated.swagger_client.models.file_output_format import FileOutputFormat
from lightly.openapi_generated.swagger_client.models.sample_create_request import SampleCreateRequest
from lightly.openapi_generated.swagger_client.models.sample_meta_data import SampleMetaData
from lightly.openapi_generated.swagger_client.models.sample_partial_mode import SamplePartialMode
from lightly.openapi_generated.swagger_client.models.sample_sort_by import SampleSortBy
from lightly.openapi_generated.swagger_client.models.sample_update_request import SampleUpdateRequest
from lightly.openapi_generated.swagger_client.models.tag_create_request import TagCreateRequest

NEW = "made/by the client.jpg"


def samples(client: ApiClient, dataset: str) -> str:
    """Create, get, list, update; return the new sample's id."""
    api = SamplesApi(client)
    meta = SampleMetaData(sizeInBytes=3, shape=[1, 2, 3], mean=[0.1, 0.2, 0.3])
    request = SampleCreateRequest(fileName=NEW, metaData=meta, customMetaData={"k": [1, None]})
    created = api.create_sample_by_dataset_id(dataset, request).id
    got = api.get_sample_by_id(dataset, created)
    assert (got.file_name, got.meta_data.size_in_bytes, got.custom_meta_data) == (NEW, 3, {"k": [1, None]})
    assert api.update_sample_by_id(dataset, created, SampleUpdateRequest(customMetaData=None)) is None
    after = api.get_sample_by_id(dataset, created)
    assert after.last_modified_at > got.last_modified_at
    listed = api.get_samples_by_dataset_id(dataset, page_size=5000, page_offset=0)
    assert listed[-1] == after
    assert [one.id for one in api.get_samples_by_dataset_id(dataset, sort_by=SampleSortBy.ID)] == sorted(
        one.id for one in listed
    )
    for mode in (SamplePartialMode.IDS, SamplePartialMode.FILENAMES, SamplePartialMode.FULL, None):
        rows = api.get_samples_partial_by_dataset_id(dataset, mode=mode, page_size=25000)
        assert [row.id for row in rows] == [one.id for one in listed]
        assert (rows[-1].file_name == NEW) == (mode != SamplePartialMode.IDS)
    (found,) = api.get_samples_partial_by_dataset_id(dataset, file_name=NEW)
    assert found.id == created
    return str(created)


def urls(client: ApiClient, dataset: str, sample: str) -> None:
    """Ask for every kind of URL and use it."""
    api = SamplesApi(client)
    put(api.get_sample_image_write_url_by_id(dataset, sample, False), b"abc")
    put(api.get_sample_image_write_url_by_id(dataset, sample, is_thumbnail=True), b"t")
    both = api.get_sample_image_write_urls_by_id(dataset, sample)
    put(both.thumb, b"thumb")
    put(both.full, b"full image")
    assert fetch(api.get_sample_image_read_url_by_id(dataset, sample)) == b"full image"
    assert fetch(api.get_sample_image_read_url_by_id(dataset, sample, type="thumbnail")) == b"thumb"
    made = api.create_sample_with_write_urls_by_dataset_id(dataset, SampleCreateRequest(fileName="w.jpg"))
    put(made.sample_write_urls.full, b"w")
    assert fetch(api.get_sample_image_read_url_by_id(dataset, made.id)) == b"w"


def around(client: ApiClient, dataset: str, name: str) -> None:
    """Datasets, mappings, quota, versions, errors."""
    api = DatasetsApi(client)
    data = api.get_dataset_by_id(dataset)
    assert (data.id, data.name) == (dataset, name)
    assert api.get_datasets(shared=False) == [data]
    assert api.get_datasets_query_by_name(name, exact=True, shared=False) == [data]
    assert api.get_datasets_query_by_name(name, exact=True, shared=True) == []
    assert api.get_datasets_query_by_name(name, exact=True, get_assets_of_team=True) == []
    ids = MappingsApi(client).get_sample_mappings_by_dataset_id(dataset, field="_id", page_size=25000)
    names = MappingsApi(client).get_sample_mappings_by_dataset_id(dataset, field="fileName")
    assert len(ids) == len(names) == data.n_samples
    assert int(QuotaApi(client).get_quota_maximum_dataset_size()) > 0
    assert VersioningApi(client).get_latest_pip_version() == "1.5.22"
    assert VersioningApi(client).get_minimum_compatible_pip_version() == "1.5.22"
    assert refusal(client, dataset) == (404, True)


def refusal(client: ApiClient, dataset: str) -> tuple[int, bool]:
    """Return the status for an unknown sample, and whether its code is the right one."""
    try:
        SamplesApi(client).get_sample_by_id(dataset, "0" * 24)
    except ApiException as error:
        return error.status, '"SAMPLE_UNKNOWN"' in error.body
    return 200, False


def tags(client: ApiClient, dataset: str) -> None:
    """Create, list, get and export tags."""
    api = TagsApi(client)
    initial = api.get_tags_by_dataset_id(dataset)[-1]
    request = TagCreateRequest(name="mine", prevTagId=initial.id, bitMaskData="0x5", totSize=2)
    made = api.get_tag_by_tag_id(dataset, api.create_tag_by_dataset_id(dataset, request).id)
    assert (made.name, made.tot_size, made.prev_tag_id) == ("mine", 2, initial.id)
    mapped = MappingsApi(client).get_sample_mappings_by_dataset_id(dataset, field="fileName")
    for name_format in (
        FileNameFormat.NAME,
        FileNameFormat.DATASOURCE_FULL,
        FileNameFormat.REDIRECTED_READ_URL,
    ):
        lines = api.export_tag_to_basic_filenames(dataset, made.id, file_name_format=name_format).split("\n")
        assert len(lines) == 2
        assert (lines == [mapped[0], mapped[2]]) == (name_format == FileNameFormat.NAME)
    rows = api.export_tag_to_basic_filenames_and_read_urls(dataset, made.id, format=FileOutputFormat.JSON)
    assert [row.file_name for row in rows] == [mapped[0], mapped[2]]
    assert fetch(lines[0]) == fetch(rows[0].read_url), "a redirect link and a read URL lead to one object"


def put(url: str, data: bytes) -> None:
    """PUT to a signed URL."""
    with urlopen(Request(url, data=data, method="PUT"), timeout=5) as answer:
        assert answer.status == 200


def fetch(url: str) -> bytes:
    """GET a signed URL."""
    with urlopen(url, timeout=5) as answer:
        return bytes(answer.read())


def main() -> None:
    """Run the session."""
    server, token, dataset, name = sys.argv[1:]
    configuration = Configuration(host=server, api_key={"ApiKeyAuth": token})
    with ApiClient(configuration) as client:
        urls(client, dataset, samples(client, dataset))
        around(client, dataset, name)
        tags(client, dataset)


if __name__ == "__main__":
    main()
