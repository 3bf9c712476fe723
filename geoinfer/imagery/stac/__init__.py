"""STAC: an API, a collection, a catalog, items or a table of them, and the rasters that a search finds in it.

Every kind is searched with the same filters and gives the same items in the same order: newest first, then by collection and
identifier; only a file of items keeps the order it has. pystac and pystac-client do the talking. What an item becomes is the
affair of `stac.items`; what a link may lead to, that of `stac.links`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from geoinfer.errors import GeoinferError, SafetyError, SourceError
from geoinfer.imagery.options import SourceOptions
from geoinfer.imagery.scene import Scene
from geoinfer.imagery.stac.filter import Bounds, Wanted
from geoinfer.imagery.stac.io import Client, ConformanceClasses, GuardedIO, ItemSearch, pystac, quiet
from geoinfer.imagery.stac.items import Item, scene_of
from geoinfer.imagery.stac.links import Origin
from geoinfer.region import Region
from geoinfer.remote.address import is_remote, shown

PREFIX = "stac+"
PAGE = 100
"""Items that a page is asked to hold."""
MAX_ITEMS = 100_000
MAX_PAGES = 10_000
MAX_DOCUMENTS = 100_000
"""Of a static catalog."""
_IDLE_PAGES = 8
"""Pages in a row without a new item before a search counts as endless."""
_DEPTH = 32
_FAULTS = (pystac.STACError, pystac.STACTypeError, LookupError, ValueError, TypeError, AttributeError, RecursionError)
"""What the libraries raise over a document that is not as it should be."""


def scenes_of(text: str, options: SourceOptions, region: Region | None = None) -> list[Scene]:
    """The rasters of all items that are wanted, one an item, each address once.

    Args:
        text: URL or path of a STAC API, collection, catalog, item, item collection or stac-geoparquet; `stac+` may stand
            before it.
        options: What is wanted, and how remotes may be reached.
        region: Items that do not meet it are left out.

    Raises:
        SourceError: Nothing matched, or an item without an asset that can be read.
        SafetyError: An address that no document may lead to.
        RemoteError: A remote gave up.
        ConfigError: A filter that cannot be understood.
    """
    return scenes_and_skipped(text, options, region)[0]


def scenes_and_skipped(text: str, options: SourceOptions, region: Region | None = None) -> tuple[list[Scene], list[str]]:
    """As `scenes_of`, and why items were left out where `options.on_error` is `skip`."""
    items = search(text, options, region)
    if not items:
        raise SourceError(f"{shown(_address(text))}: 0 items matched{_filters(options, region)}")
    scenes: dict[str, Scene] = {}
    skipped: list[str] = []
    for item in items:
        try:
            scene = scene_of(item, options)
        except SafetyError:
            raise
        except SourceError as error:
            if options.on_error == "fail":
                raise
            skipped.append(str(error))
            continue
        scenes.setdefault(scene.address, scene)
    if not scenes:
        raise SourceError(f"none of {len(items)} items can be read; the first: {skipped[0]}")
    return list(scenes.values()), skipped


def search(text: str, options: SourceOptions, region: Region | None = None) -> list[Item]:
    """The items that are wanted, each (collection, id) once; at most `max_items`, of those that come first."""
    wanted, stac = Wanted.of(options.search, region), GuardedIO(Origin.typed(_address(text)), options.access)
    name = shown(stac.origin.address)
    found: dict[tuple[str, str], Item] = {}
    with quiet():
        for item in _items(stac, wanted):
            if not wanted.meets(item.value):
                continue
            found.setdefault(item.key, item)
            if len(found) == wanted.max_items:
                break
            if len(found) > MAX_ITEMS:
                raise SourceError(f"{name}: more than {MAX_ITEMS} items; narrow the search or set --max-items")
    if stac.document.get("type") == "FeatureCollection":
        return list(found.values())
    ordered = sorted(found.values(), key=lambda item: item.key)
    return sorted(ordered, key=lambda item: item.datetime or "", reverse=True)


def count(text: str, options: SourceOptions, region: Region | None = None) -> int:
    """How many items are wanted, whatever `max_items` says. Asks an API for the number alone where it tells one."""
    unlimited = replace(options, search=replace(options.search, max_items=None))
    wanted, stac = Wanted.of(unlimited.search, region), GuardedIO(Origin.typed(_address(text)), options.access)
    with quiet():
        client = _client(stac)
        if client is not None and len(wanted.boxes or ()) <= 1 and (not wanted.conditions or _has_query(client)):
            asked = _search(client, wanted, wanted.boxes[0] if wanted.boxes else None)
            with _told_as_ours(f"{shown(stac.origin.address)}: not STAC, a page that cannot be read"):
                matched = asked.matched()
            if isinstance(matched, int):
                return matched
    return len(search(text, unlimited, region))


def _address(text: str) -> str:
    return text.removeprefix(PREFIX)


def _filters(options: SourceOptions, region: Region | None) -> str:
    """What a search that found nothing asked for."""
    asked = options.search
    parts = [
        f"collections {', '.join(asked.collections)}" if asked.collections else "",
        f"datetime {asked.datetime}" if asked.datetime else "",
        " and ".join(asked.query),
        "the region" if region is not None else "",
    ]
    given = "; ".join(part for part in parts if part)
    return f" ({given}); widen the search" if given else ""


def _items(stac: GuardedIO, wanted: Wanted) -> Iterator[Item]:
    """Every item that a document is, holds or leads to; an API leaves out what it can tell is not wanted."""
    document, origin = stac.document, stac.origin
    kind = document.get("type")
    if kind != "FeatureCollection":
        _check_links(document, shown(origin.address))
    if kind == "Feature":
        yield _item(document, origin, is_own=True)
    elif kind == "FeatureCollection":
        pages = stac.get_pages(origin.address, "GET") if is_remote(origin.address) else iter([document])
        yield from _paged(stac, pages)
    elif (client := _client(stac)) is not None:
        for box in wanted.boxes or (None,):
            yield from _paged(stac, _search(client, wanted, box).pages_as_dicts())
    elif (listed := _listed(document)) is not None:
        for box in wanted.boxes or (None,):
            asked = _search_of(listed, wanted, box)
            yield from _paged(stac, stac.get_pages(listed, "GET", asked))
    else:
        yield from _walked(stac, wanted)


def _client(stac: GuardedIO) -> Client | None:
    """An API that can be searched; None for all other documents."""
    links = [link for link in _links(stac.document) if link.get("rel") == "search"]
    if not links or stac.document.get("type", "Catalog") != "Catalog":
        return None
    name = shown(stac.origin.address)
    if not any(str(link.get("method") or "GET").upper() == "GET" for link in links):
        raise SourceError(f"{name}: it can only be searched by POST, which no STAC API may insist on")
    classes = stac.document.get("conformsTo")
    known = [one for one in classes if isinstance(one, str)] if isinstance(classes, list) else []
    with _told_as_ours(f"{name}: not a STAC API that can be read"):
        client = stac.stac_object_from_dict({**stac.document, "conformsTo": known}, href=stac.origin.address)
    if not isinstance(client, Client):
        raise SourceError(f"{name}: not a STAC API, though it has a search")
    if not client.conforms_to(ConformanceClasses.ITEM_SEARCH):
        client.add_conforms_to(ConformanceClasses.ITEM_SEARCH.name)
    return client


def _has_query(client: Client) -> bool:
    return client.conforms_to(ConformanceClasses.QUERY)


def _search(client: Client, wanted: Wanted, box: Bounds | None) -> ItemSearch:
    """A search by GET, which every STAC API offers."""
    return client.search(
        method="GET",
        limit=min(PAGE, wanted.max_items or PAGE),
        bbox=box,
        collections=list(wanted.collections) or None,
        datetime=wanted.datetime,
        query=wanted.query if _has_query(client) else None,
    )


def _listed(document: Mapping[str, Any]) -> str | None:
    """Where an API lists the items of one collection."""
    links = _links(document) if document.get("type") == "Collection" else []
    return next((str(link.get("href")) for link in links if link.get("rel") == "items"), None)


def _search_of(listed: str, wanted: Wanted, box: Bounds | None) -> dict[str, Any]:
    """What a list of items is asked for (OGC API Features)."""
    search = ItemSearch(listed, method="GET", limit=min(PAGE, wanted.max_items or PAGE), bbox=box, datetime=wanted.datetime)
    return search.get_parameters()


def _links(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    links = document.get("links")
    return [link for link in links if isinstance(link, Mapping)] if isinstance(links, list) else []


@contextmanager
def _told_as_ours(said: str) -> Iterator[None]:
    """What the libraries raise over a damaged document becomes one line of ours."""
    try:
        yield
    except GeoinferError:
        raise
    except _FAULTS as error:
        raise SourceError(f"{said}: {error}") from error


def _each(pages: Iterable[Mapping[str, Any]], name: str) -> Iterator[Mapping[str, Any]]:
    left = iter(pages)
    while True:
        with _told_as_ours(f"{name}: not STAC, a page that cannot be read"):
            page = next(left, None)
        if page is None:
            return
        yield page


def _check_links(document: Mapping[str, Any], name: str) -> None:
    """What pystac takes for granted of links."""
    links = document.get("links", [])
    if not isinstance(links, list) or not all(isinstance(link, Mapping) and _is_link(link) for link in links):
        raise SourceError(f"{name}: not STAC: something in its links is no link (with a rel and a href)")


def _is_link(link: Mapping[str, Any]) -> bool:
    return all(isinstance(link.get(part), str) and link[part] for part in ("rel", "href"))


def _paged(stac: GuardedIO, pages: Iterable[Mapping[str, Any]]) -> Iterator[Item]:
    """The items of pages.

    Raises:
        SourceError: Pages without end.
    """
    name, idle = shown(stac.origin.address), 0
    known: set[tuple[str, str]] = set()
    for number, page in enumerate(_each(pages, name)):
        before = len(known)
        features = page.get("features")
        if not isinstance(features, list):
            raise SourceError(f"{name}: an item collection without a list of features")
        _check_links(page, name)
        for feature in features:
            item = _item(feature, stac.page)
            known.add(item.key)
            yield item
        idle = 0 if len(known) > before else idle + 1
        if number >= MAX_PAGES or idle >= _IDLE_PAGES:
            raise SourceError(f"{name}: its pages have no end, {len(known)} items so far; take fewer with --max-items")


def _item(value: Any, origin: Origin, *, is_own: bool = False) -> Item:
    """Addresses in an item are relative to where it was read (`is_own`), or to its own address if it is one of several."""
    name = shown(origin.address)
    if not (isinstance(value, Mapping) and value.get("type") == "Feature" and isinstance(value.get("id"), str)):
        raise SourceError(f"{name}: something in it is not a STAC item (a Feature with an id)")
    if not isinstance(value.get("collection"), str | None):
        raise SourceError(f"{name}: {value['id']!r} is not a STAC item, its collection is no text")
    _check_links(value, name)
    with _told_as_ours(f"{name}: {value['id']!r} is not a STAC item"):
        item = pystac.Item.from_dict(dict(value), href=origin.address if is_own else None)
        own = item.get_self_href()
    return Item(item, Origin(own, None) if own is not None and is_remote(own) else origin)


def _walked(stac: GuardedIO, wanted: Wanted) -> Iterator[Item]:
    """The items of a static catalog, level by level; each document is read once, several at a time."""
    name, seen = shown(stac.origin.address), {stac.origin.address}
    level = [_catalog(stac, stac.document, stac.origin)]
    at_once = 4 * stac.access.concurrency

    def read(place: Origin) -> dict[str, Any]:
        return stac.read_json(place.address)

    with ThreadPoolExecutor(max_workers=stac.access.concurrency) as pool:
        for _ in range(_DEPTH):
            places: list[Origin] = []
            for catalog, origin in level:
                for link in (*catalog.get_links("item"), *catalog.get_links("child")):
                    place = origin.to(link.get_href(transform_href=False), stac.access)
                    if place.address not in seen:
                        seen.add(place.address)
                        places.append(place)
            if len(seen) > MAX_DOCUMENTS:
                raise SourceError(f"{name}: more than {MAX_DOCUMENTS} documents; use an API or a stac-geoparquet")
            level = []
            for start in range(0, len(places), at_once):
                batch = places[start : start + at_once]
                for place, found in zip(batch, pool.map(read, batch), strict=True):
                    if found.get("type") == "Feature":
                        yield _item(found, place, is_own=True)
                    else:
                        catalog, _ = _catalog(stac, found, place)
                        if wanted.meets_extent(catalog):
                            level.append((catalog, place))
            if not level:
                return
    raise SourceError(f"{name}: catalogs within catalogs, {_DEPTH} deep")


def _catalog(stac: GuardedIO, document: dict[str, Any], origin: Origin) -> tuple[pystac.Catalog, Origin]:
    _check_links(document, shown(origin.address))
    with _told_as_ours(f"{shown(origin.address)}: not STAC: neither an API, a catalog, a collection, an item nor items"):
        found = stac.stac_object_from_dict(document, href=origin.address)
    assert isinstance(found, pystac.Catalog)  # an item was told apart before
    return found, origin
