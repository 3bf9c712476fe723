"""The flags that several verbs share, each written once. All default to None: whether a flag was given decides if the
environment or the file of --config may speak; `options` says what the values mean.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

WHAT = "What is found"
WHERE = "Where imagery comes from"
HOW = "How it is worked through"
MANNERS = "Manners"

Text = str | None
Texts = list[str] | None


def _option(*names: str, help: str, metavar: str | None = None, panel: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel)


Source = Annotated[
    Texts,
    typer.Argument(
        help="GeoTIFFs (also https://, s3://, gs://, az://), folders, patterns, tile indexes, snapshots, stac+URL, xyz:URL, "
        "tms:URL, wmts:URL."
    ),
]
Output = Annotated[Text, _option("-o", "--output", help="The run directory.", metavar="RUN")]

Model = Annotated[Text, _option("--model", help="A model's name or directory (default: buildings).", panel=WHAT)]
Bbox = Annotated[Text, _option("--bbox", help="Bounding box; four values do too.", metavar="W,S,E,N", panel=WHAT)]
BboxCrs = Annotated[Text, _option("--bbox-crs", help="Its coordinate system (default: EPSG:4326).", panel=WHAT)]
Region = Annotated[Text, _option("--region", help="A file of polygons to stay inside.", metavar="FILE", panel=WHAT)]
Place = Annotated[
    Texts,
    _option("--place", help="Only this named place of --region; may stand several times.", metavar="NAME", panel=WHAT),
]
Crs = Annotated[Text, _option("--crs", help="Of the output (default: the grid's).", panel=WHAT)]
Mask = Annotated[
    Texts,
    _option(
        "--mask",
        help="A mask layer: drop, keep, clip, flag or skip what a file covers; may stand several times, in order.",
        metavar="FILE:key=value,...",
        panel=WHAT,
    ),
]
Calibrated = Annotated[
    Text,
    _option(
        "--calibrated",
        help="Region of the model's card whose threshold and minimum area to use.",
        metavar="REGION",
        panel=WHAT,
    ),
]
Threshold = Annotated[
    Text, _option("--threshold", help="Probability from which a pixel is building (default: the model's).", panel=WHAT)
]
MinArea = Annotated[Text, _option("--min-area", help="Smallest footprint (default: the model's).", metavar="M2", panel=WHAT)]
Bands = Annotated[Text, _option("--bands", help="Band numbers in the model's order.", metavar="3,2,1", panel=WHAT)]
Stretch = Annotated[Text, _option("--stretch", help="Values that become 0 and 255.", metavar="LO,HI", panel=WHAT)]
Scaling = Annotated[
    Text,
    _option(
        "--scaling",
        help="percentile: the 2nd and 98th of the imagery (default); declared: what its items or files declare.",
        metavar="NAME",
        panel=WHAT,
    ),
]
AssumeCrs = Annotated[Text, _option("--assume-crs", help="Coordinate system of imagery that names none.", panel=WHAT)]
Prefer = Annotated[
    Text,
    _option(
        "--prefer",
        help="Which raster wins: given (default), newest, finest or least-cloud.",
        metavar="NAME",
        panel=WHAT,
    ),
]
NoOverviews = Annotated[
    bool | None,
    typer.Option("--no-overviews", help="Always read full resolution.", show_default=False, rich_help_panel=WHAT),
]
Domain = Annotated[
    Text,
    _option(
        "--domain",
        help="Imagery unlike the model's training: warn (default), mark its footprints, refuse or ignore.",
        metavar="NAME",
        panel=WHAT,
    ),
]
StrictDomain = Annotated[
    bool | None,
    typer.Option("--strict-domain", help="The same as --domain refuse.", show_default=False, rich_help_panel=WHAT),
]
Precision = Annotated[Text, _option("--precision", help="auto, fp32, bf16 or fp16 (default: auto).", panel=WHAT)]

Collection = Annotated[
    Texts, _option("-c", "--collection", help="STAC collection; may stand several times.", metavar="ID", panel=WHERE)
]
Datetime = Annotated[Text, _option("--datetime", help="STAC: a time, or a range.", metavar="A/B", panel=WHERE)]
Query = Annotated[
    Texts,
    _option("--query", help="STAC: a property filter; may stand several times.", metavar="eo:cloud_cover<10", panel=WHERE),
]
Asset = Annotated[
    Texts,
    _option(
        "--asset",
        help="STAC: key of the asset to read (default: the visual one); may stand several times.",
        metavar="KEY",
        panel=WHERE,
    ),
]
MaxItems = Annotated[Text, _option("--max-items", help="STAC: at most so many items.", metavar="N", panel=WHERE)]
Zoom = Annotated[
    Text, _option("--zoom", help="Map tiles: zoom level (default: by the model's pixel size).", metavar="Z", panel=WHERE)
]
TileRate = Annotated[Text, _option("--tile-rate", help="Map tiles: requests a second, at most.", metavar="N", panel=WHERE)]
TileConcurrency = Annotated[
    Text, _option("--tile-concurrency", help="Map tiles: requests at a time (default: 4).", metavar="N", panel=WHERE)
]
TileCache = Annotated[
    Text, _option("--tile-cache", help="Map tiles: folder that keeps them (default: the user's cache).", panel=WHERE)
]
Placeholder = Annotated[
    Texts,
    _option(
        "--placeholder", help="Map tiles: a tile that means 'nothing here', as file or sha256.", metavar="FILE", panel=WHERE
    ),
]
WmtsLayer = Annotated[Text, _option("--wmts-layer", help="WMTS: identifier of the layer.", metavar="ID", panel=WHERE)]
AllowHost = Annotated[
    Texts,
    _option(
        "--allow-host",
        help="A private or loopback host that documents may point to; may stand several times.",
        metavar="HOST",
        panel=WHERE,
    ),
]
AllowVrt = Annotated[
    bool | None,
    typer.Option("--allow-vrt", help="Read a VRT as the list of its files.", show_default=False, rich_help_panel=WHERE),
]
NoSign = Annotated[
    bool | None,
    typer.Option("--aws-no-sign-requests", help="Object stores: no credentials.", show_default=False, rich_help_panel=WHERE),
]
RequesterPays = Annotated[
    bool | None,
    typer.Option(
        "--aws-requester-pays", help="Object stores: pay for the transfer.", show_default=False, rich_help_panel=WHERE
    ),
]
Sign = Annotated[
    Text,
    _option(
        "--sign",
        help="Who signs addresses of items: planetary-computer, or module:function.",
        metavar="NAME",
        panel=WHERE,
    ),
]
Changed = Annotated[
    Text,
    _option(
        "--changed", help="Imagery that is not what its snapshot says: fail (default) or warn.", metavar="NAME", panel=WHERE
    ),
]

Device = Annotated[Text, _option("--device", help="auto, cpu or cuda:N (default: auto).", panel=HOW)]
Tile = Annotated[Text, _option("--tile", help="Cores on a side of a tile.", metavar="K", panel=HOW)]
BatchSize = Annotated[
    Text, _option("--batch-size", help="Chips a forward pass, or auto (default: auto).", metavar="N", panel=HOW)
]
Workers = Annotated[
    Text,
    _option(
        "--workers",
        help="Processes (default: one a GPU; on a CPU 0, which works in this one).",
        metavar="N",
        panel=HOW,
    ),
]
Threads = Annotated[
    Text,
    _option(
        "--threads",
        help="Threads of the network in each process (default: one a core, one in a worker).",
        metavar="N",
        panel=HOW,
    ),
]
Scheduler = Annotated[Text, _option("--scheduler", help="An existing Dask scheduler.", metavar="ADDR", panel=HOW)]
InFlight = Annotated[Text, _option("--in-flight", help="Most tiles handed out at once.", metavar="N", panel=HOW)]
OnError = Annotated[
    Text,
    _option(
        "--on-error",
        help="fail: stop at the first failed tile, or raster that cannot be opened; skip: go on.",
        panel=HOW,
    ),
]
MaxFailed = Annotated[
    Text,
    _option("--max-failed", help="Share of failed tiles that still counts as done (default: 0).", metavar="1%", panel=HOW),
]
Retries = Annotated[
    Text, _option("--retries", help="More attempts after a failure that may pass (default: 3).", metavar="N", panel=HOW)
]
MaxPixels = Annotated[
    Text, _option("--max-pixels", help="Refuse a region of more pixels than this.", metavar="N", panel=HOW)
]
PriceGpuHour = Annotated[
    Text, _option("--price-gpu-hour", help="For `plan`: what an hour of the device costs.", metavar="PRICE", panel=HOW)
]
MaskAlarm = Annotated[
    Text,
    _option(
        "--mask-alarm",
        help="Share of the footprints from which what a layer removes is an alarm (default: 20%).",
        metavar="20%",
        panel=HOW,
    ),
]
StrictMasks = Annotated[
    bool | None,
    typer.Option("--strict-masks", help="End with status 5 on an alarm.", show_default=False, rich_help_panel=HOW),
]
Update = Annotated[
    bool | None,
    typer.Option(
        "--update",
        help="RUN is of older imagery: recompute the tiles whose imagery changed.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]
Trace = Annotated[
    Text,
    _option("--trace", help="Write what each thread did when, in Chrome's trace format.", metavar="FILE", panel=MANNERS),
]
DryRun = Annotated[
    bool | None, typer.Option("-n", "--dry-run", help="Only say what it will take, as `plan`.", show_default=False)
]
Overwrite = Annotated[
    bool | None, typer.Option("--overwrite", help="Remove another job's run from RUN first.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=MANNERS)]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No talk but errors.", rich_help_panel=MANNERS)]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More talk.", rich_help_panel=MANNERS)]
