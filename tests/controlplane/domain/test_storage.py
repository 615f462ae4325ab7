from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.storage import BadStorage, Place, place_of, uri_of, within


def test_on_one_machine_an_address_is_a_folder() -> None:
    assert place_of("/runs/ü x", shared_folders=True) == Place("/runs/ü x", "/runs/ü x", None)


@pytest.mark.parametrize("uri", ["runs", "", "s3://bucket/x", "pvc://claim/x", "/a\0b", "~/runs"])
def test_on_one_machine_everything_else_is_refused(uri: str) -> None:
    with pytest.raises(BadStorage, match="allowed: an absolute path of a folder on this machine"):
        place_of(uri, shared_folders=True)


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("pvc://ckpts/a/b", Place("pvc://ckpts/a/b", "/mnt/teragpt/ckpts/a/b", "ckpts")),
        ("pvc://ckpts/a/", Place("pvc://ckpts/a", "/mnt/teragpt/ckpts/a", "ckpts")),
        ("pvc://ckpts", Place("pvc://ckpts", "/mnt/teragpt/ckpts", "ckpts")),
        ("pvc://team.ckpts/ü x", Place("pvc://team.ckpts/ü x", "/mnt/teragpt/team.ckpts/ü x", "team.ckpts")),
        ("s3://bucket/a/b/", Place("s3://bucket/a/b", "s3://bucket/a/b", None)),
        ("gs://bucket", Place("gs://bucket", "gs://bucket", None)),
        ("https://host:8443/set", Place("https://host:8443/set", "https://host:8443/set", None)),
    ],
)
def test_on_a_cluster_it_is_a_claim_that_is_mounted_or_an_object_store(uri: str, place: Place) -> None:
    assert place_of(uri, shared_folders=False) == place


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [
        ("/runs/x", "pvc://CLAIM/PATH, or an object store's URL such as s3://BUCKET/PREFIX"),
        ("relative", "pvc://CLAIM/PATH"),
        ("", "pvc://CLAIM/PATH"),
        ("S3://bucket", "pvc://CLAIM/PATH"),
        ("s3://bucket/a\nb", "pvc://CLAIM/PATH"),
        ("s3://", "s3://BUCKET/PREFIX"),
        ("s3:///prefix", "s3://BUCKET/PREFIX"),
        ("s3://bucket/../other", "s3://BUCKET/PREFIX"),
        ("simplecache::s3://bucket", "s3://BUCKET/PREFIX"),
        ("file:///runs", "a pod has no file storage that outlives it"),
        ("memory://runs", "a pod has no memory storage that outlives it"),
        ("s3://key:secret@bucket/x", "without credentials and parameters"),
        ("https://host/set?token=x", "without credentials and parameters"),
        ("pvc://", "the name of a persistent volume claim"),
        ("pvc:///path", "the name of a persistent volume claim"),
        ("pvc://Claim/path", "the name of a persistent volume claim"),
        ("pvc://a_b/path", "the name of a persistent volume claim"),
        (f"pvc://{'c' * 254}/path", "the name of a persistent volume claim"),
        ("pvc://claim/../x", "without empty parts, . and .."),
        ("pvc://claim/a/./x", "without empty parts, . and .."),
        ("pvc://claim//x", "without empty parts, . and .."),
    ],
)
def test_a_bad_address_is_told_with_what_is_allowed(uri: str, allowed: str) -> None:
    with pytest.raises(BadStorage) as caught:
        place_of(uri, shared_folders=False)
    assert f"got {uri!r}" in str(caught.value)
    assert allowed in str(caught.value)


@given(st.text(max_size=40))
def test_what_is_accepted_stays_below_the_claims_mount(path: str) -> None:
    try:
        place = place_of(f"pvc://claim/{path}", shared_folders=False)
    except BadStorage:
        return
    assert place.path == "/mnt/teragpt/claim" or place.path.startswith("/mnt/teragpt/claim/")
    assert ".." not in place.path.split("/")
    assert uri_of(place.path) == place.uri
    assert place_of(place.uri, shared_folders=False) == place


def test_a_folder_below_an_address_and_the_address_of_a_path() -> None:
    assert within("pvc://runs", "run_1") == "pvc://runs/run_1"
    assert within("s3://bucket/runs/", "run_1") == "s3://bucket/runs/run_1"
    assert uri_of("s3://bucket/x") == "s3://bucket/x"
