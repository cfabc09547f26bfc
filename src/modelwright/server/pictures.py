"""The pictures of a request: found out what they are in the order of what that costs, and decoded beside the loop."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from PIL import Image

from modelwright.errors import RequestError
from modelwright.processing.data_urls import DataUrl, is_data_url
from modelwright.processing.images import MAX_PIXELS
from modelwright.processing.messages import DETAILS
from modelwright.server.fetch import ALL_SECONDS, Fetcher
from modelwright.server.picture_bytes import EncodedPicture, too_large, too_slow, unsupported
from modelwright.server.picture_folder import PictureFolder
from modelwright.server.picture_hosts import PictureUrl
from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError
from modelwright.server.workers import Workers

DECODING = 2
"""Pictures that are decoded at once, in all requests together."""
FETCHING = 8
"""Pictures that are fetched at once."""
DECODE_SECONDS = 10.0
WAIT_SECONDS = 10.0
"""How long a picture waits until others are done."""
TOGETHER = 4
"""The pictures of one request may have so many times the pixels of the largest that is taken."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class PictureSource:
    """A picture as a request names it.

    Attributes:
        url: ``data:``, ``https:``, ``http:`` or ``file:``.
        detail: one of `processing.messages.DETAILS`; None is ``auto``.
        where: the part of the request that it is, such as ``messages[0].content[1]``.
    """

    url: str
    detail: str | None
    where: str


@dataclass(frozen=True)
class Picture:
    """A picture as the prompt takes it.

    Attributes:
        image: upright, RGB.
        size: its (width, height) in pixels, which boxes are told in.
        detail: how closely it is looked at.
    """

    image: Image.Image
    size: tuple[int, int]
    detail: str

    @property
    def part(self) -> dict[str, Any]:
        """The part of a message's content that `serving.prompts.encode_messages` takes it as."""
        return {"type": "image", "image": self.image, "detail": self.detail}


class PictureReader:
    """Reads the pictures of requests; one for a server, made where its event loop runs or before.

    Args:
        timed: makes a context that times a stage, ``fetch`` or ``decode``.

    Raises:
        ConfigError: a picture_host that is no host, or a picture_dir that is no folder.
    """

    def __init__(
        self,
        settings: ServerSettings,
        fetcher: Fetcher | None = None,
        timed: Callable[[str], AbstractContextManager[None]] = nullcontext,
    ):
        self._settings, self._timed = settings, timed
        self._most_pixels = min(settings.max_picture_pixels, MAX_PIXELS)
        self._fetcher = Fetcher(settings) if fetcher is None else fetcher
        self._folder = PictureFolder(settings.picture_dir)
        self._fetching = Workers(FETCHING, WAIT_SECONDS, "fetching pictures")
        self._opening = Workers(DECODING, WAIT_SECONDS, "reading pictures")
        self._decoding = Workers(DECODING, WAIT_SECONDS, "decoding pictures")

    async def read(self, sources: Sequence[PictureSource]) -> list[Picture]:
        """The pictures of one request, in order.

        All are counted and their lengths checked before one is opened, and all headers are read before one is decoded.

        Raises:
            ApiError: 400 for what is not taken, 429 where others keep the decoders busy.
        """
        most = self._settings.max_pictures
        if len(sources) > most:
            message = f"the request shows {len(sources)} pictures, and at most {most} are taken"
            raise ApiError(400, "too_many_pictures", message, param=sources[most].where)
        details = [_read_detail(source) for source in sources]
        fetches = [self._prepare(source) for source in sources]
        await self._check_lengths(sources)
        opened = await _together(fetch() for fetch in fetches)
        pixels, allowed = sum(each.pixels for each in opened), TOGETHER * self._most_pixels
        if pixels > allowed:
            message = f"the pictures have {pixels} pixels together, and at most {allowed} are taken"
            raise too_large(sources[-1].where, message)
        images = await _together(self._decode(each, source.where) for each, source in zip(opened, sources, strict=True))
        return [Picture(image, image.size, detail) for image, detail in zip(images, details, strict=True)]

    def close(self) -> None:
        """Take no more pictures."""
        for workers in (self._fetching, self._opening, self._decoding):
            workers.close()

    def _prepare(self, source: PictureSource) -> Callable[[], Awaitable[EncodedPicture]]:
        """What opens a picture; everything that costs nothing is checked at once."""
        where, settings = source.where, self._settings
        scheme = _scheme(source.url)
        if scheme == "data":
            url = _data_url(source)
            return partial(self._open, lambda: _decoded(url, where), where)
        if scheme in ("http", "https"):
            return partial(self._fetch, self._fetcher.check(source.url, where), where)
        if scheme == "file":
            name = self._folder.check(source.url, where)
            return partial(self._open, lambda: self._folder.read(name, settings.max_picture_bytes, where), where)
        message = f"{where}: a picture's url must begin with data:, https:, http: or file:"
        raise ApiError(400, "invalid_value", message, param=where)

    async def _check_lengths(self, sources: Sequence[PictureSource]) -> None:
        """Refuse pictures in the request itself that are too long, before one is opened."""
        most = self._settings.max_picture_bytes
        for each in sources:
            if is_data_url(each.url) and (url := _data_url(each)).most > most:
                work = partial(_check_size, url, most, each.where)
                await self._opening.run(work, DECODE_SECONDS, too_slow(each.where, DECODE_SECONDS))

    async def _fetch(self, url: PictureUrl, where: str) -> EncodedPicture:
        work = partial(self._fetcher.fetch, url, where)
        late = ApiError(400, "invalid_value", f"{where}: the picture's host was not found in time", param=where)
        with self._timed("fetch"):
            encoded = await self._fetching.run(work, ALL_SECONDS + 1, late)  # only a resolver takes longer
        return await self._open(lambda: encoded, where)

    async def _open(self, encoded: Callable[[], bytes], where: str) -> EncodedPicture:
        def work() -> EncodedPicture:
            return EncodedPicture(encoded(), self._most_pixels, where)

        return await self._opening.run(work, DECODE_SECONDS, too_slow(where, DECODE_SECONDS))

    async def _decode(self, picture: EncodedPicture, where: str) -> Image.Image:
        work = partial(picture.decode, DECODE_SECONDS)
        with self._timed("decode"):
            return await self._decoding.run(work, DECODE_SECONDS, too_slow(where, DECODE_SECONDS))


def _scheme(url: str) -> str:
    return "data" if is_data_url(url) else url[:8].partition(":")[0].lower()


def _data_url(source: PictureSource) -> DataUrl:
    try:
        return DataUrl.read(source.url)
    except RequestError as error:
        raise unsupported(source.where, str(error)) from None


def _check_size(url: DataUrl, most: int, where: str) -> None:
    """Refuse what cannot become a picture of at most `most` bytes. In a thread: it is read for blanks and escapes."""
    size = url.size()
    if size > most:
        raise too_large(where, f"the picture has {size} bytes, and at most {most} are taken")


def _decoded(url: DataUrl, where: str) -> bytes:
    try:
        return url.decode()
    except RequestError as error:
        raise unsupported(where, str(error)) from None


def _read_detail(source: PictureSource) -> str:
    if source.detail is None or source.detail in DETAILS:
        return source.detail or DETAILS[0]
    message = f"{source.where}: detail must be one of {', '.join(DETAILS)}, got {source.detail[:40]!r}"
    raise ApiError(400, "invalid_value", message, param=source.where)


async def _together(work: Iterable[Awaitable[Result]]) -> list[Result]:
    """All results in order; the first failure ends what is still waiting."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
