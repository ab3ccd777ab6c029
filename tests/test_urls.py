import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpilot.errors import DescriptionError
from dpilot.urls import KINDS, ObjectURL, new_id

schedulers = st.builds(
    "{}://{}:{}".format,
    st.sampled_from(["tcp", "tls"]),
    st.sampled_from(["127.0.0.1", "node-1.example.org", "[::1]"]),
    st.integers(1, 65535),
)
names = st.text(st.characters(codec="utf-8"), max_size=30)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_fresh_and_name_their_kind(kind):
    ids = {new_id(kind) for _ in range(100)}
    assert len(ids) == 100
    assert all(ObjectURL.parse(f"dpilot://h:1/{i}", kind).id == i for i in ids)


@given(schedulers, st.sampled_from(list(KINDS)), names)
def test_a_url_survives_being_written_and_read(scheduler, kind, name):
    url = ObjectURL(scheduler, new_id(kind), name)
    text = str(url)
    assert text.isascii()
    assert " " not in text
    assert ObjectURL.parse(text) == url


def test_the_form_of_a_url():
    assert (
        str(ObjectURL("tcp://h:8786", "du-0123456789ab", "a b/c?.txt"))
        == "dpilot://h:8786/du-0123456789ab/a%20b/c%3F.txt"
    )
    assert str(ObjectURL("tls://h:8786", "cu-0123456789ab")) == "dpilot+tls://h:8786/cu-0123456789ab"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "du-0123456789ab",
        "http://h:1/du-0123456789ab",
        "dpilot://h/du-0123456789ab",
        "dpilot://:1/du-0123456789ab",
        "dpilot://h:1/",
        "dpilot://h:1/du-0123456789AB",
        "dpilot://h:1/xx-0123456789ab",
        "dpilot://h:1/du-0123456789ab/",
        "dpilot://h:1/du-0123456789ab\n",
        "dpilot://h:1/du-0123456789abc",
        "xdpilot://h:1/du-0123456789ab",
        "dpilot://h:\u0661/du-0123456789ab",
        None,
        b"dpilot://h:1/du-0123456789ab",
    ],
)
def test_what_is_no_url_of_an_object_is_refused(url):
    with pytest.raises(DescriptionError, match="dpilot://HOST:PORT/ID") as error:
        ObjectURL.parse(url)
    assert error.value.field == "url"
    assert error.value.value == url


def test_a_url_of_another_kind_says_which_class_to_use():
    with pytest.raises(DescriptionError, match=r"names a DataUnit, not a ComputeUnit; use DataUnit\("):
        ObjectURL.parse("dpilot://h:1/du-0123456789ab", "cu")
