"""``data:`` URLs: what browsers take is taken, and what it stands for is counted before it is decoded."""

import base64
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.errors import RequestError
from modelwright.processing.data_urls import DataUrl, is_data_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [  # the first of them from web-platform-tests, fetch/data-urls/resources/data-urls.json and base64.json
        ("data:,X", b"X"),
        ("data:", None),
        ("data:image/png", None),
        ("data:,", b""),
        ("data:text/plain,X X", b"X X"),
        ("data:;charset=x,X", b"X"),
        ("data:;base64,WA", b"X"),
        ("data:;BASe64,WA", b"X"),
        ("data:;  base64,WA", b"X"),
        ("data:;x;base64,WA", b"X"),
        ("data:;base64;,WA", b"WA"),
        ("data:;base64;x,WA", b"WA"),
        ("data:base64,WA", b"WA"),
        ("data:;base64   ,WA", b"X"),
        ("data:;base64,W%20A", b"X"),
        ("data:;base64,W%0CA", b"X"),
        ("data:x;base64x,WA", b"WA"),
        ("data:;base64,=", None),
        ("data:;base64,W", None),
        ("data:;base64,WA=", None),
        ("data:;base64,WA==", b"X"),
        ("data:;base64,WA===", None),
        ("data:;base64,WA==WA==", None),
        ("data:;base64,Y29t*", None),
        ("data:;base64,\u00e9WA=", None),
        ("data:text/plain,\u00e9%e9%", "\u00e9".encode() + b"\xe9%"),
        ("data:,X#fragment", b"X"),
        ("  Data:image/png;name=%22a%22;base64,W\r\n\tA=\n=", b"X"),
        ("data:;base64,_-%2B/", b"\xff\xef\xbf"),  # URL-safe letters, which browsers refuse and programs send
        ("file:///data:,X", None),
    ],
)
def test_urls_stand_for_what_browsers_find_in_them(url, expected):
    if expected is None:
        with pytest.raises(RequestError, match="data: URL"):
            DataUrl.read(url).decode()
    else:
        found = DataUrl.read(url)
        assert (found.decode(), is_data_url(url)) == (expected, True)
        assert found.most >= found.size() == len(expected)


@given(
    st.binary(max_size=40),
    st.integers(1, 40),
    st.integers(0, 9),
    st.sampled_from(["", "\n", "\r\n", " \t", "%0a", "%"]),
    st.sampled_from([base64.b64encode, base64.urlsafe_b64encode, quote]),
    st.booleans(),
)
def test_pieces_are_read_as_the_whole_is(content, piece, width, blank, encode, padded):
    plain = encode is quote
    encoded = encode(content) if plain else encode(content).decode()
    encoded = encoded if padded else encoded.rstrip("=")
    if blank == "%":
        blank, encoded = "\n", "".join(f"%{ord(each):x}" for each in encoded)
    expected = unquote_to_bytes(encoded) if plain else content
    if plain and blank not in ("\n", "\r\n"):
        width = 0  # such blanks are content
    lines = [encoded[start : start + width] for start in range(0, len(encoded), width)] if width else [encoded]
    url = "data:image/png" + ("," if plain else ";base64,") + blank.join(lines)
    if "%" in encoded and blank == "%0a":
        url = url.replace("%0a", "")  # it would part an escape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modelwright.processing.data_urls._PIECE", piece)
        found = DataUrl.read(url)
        assert found.decode() == expected
        assert found.most >= found.size() == len(expected)
        if not plain:
            for wrong in (encoded + "!", "%3D" + encoded, encoded + "====", encoded + "=A"):
                with pytest.raises(RequestError, match="not valid base64"):
                    DataUrl.read("data:;base64," + wrong).decode()
