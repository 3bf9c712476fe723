"""Whether imagery is what a job's model was made for: the survey of a source against the domain of a card.

Reads a bounded sample of pixels; what follows from a finding (a line, a mark, a refusal) is for the caller.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from geoinfer.errors import ConfigError, SourceError
from geoinfer.imagery.ground import ground_pixel_size
from geoinfer.imagery.mosaic import RasterSource
from geoinfer.imagery.survey import survey, surveyed
from geoinfer.job import Job
from geoinfer.model.domain import Domain, Finding, check_domain, measure, saturation

Mode = Literal["warn", "mark", "refuse", "ignore"]
_NAMED = 3
"""Rasters that a line names."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A finding and whose it is."""

    raster: int
    """Number in order of priority."""
    name: str
    finding: Finding


@dataclass(frozen=True, slots=True)
class DomainReport:
    """What of a job's imagery is outside the domain of its model."""

    findings: tuple[Judged, ...]
    """By raster, in order of priority."""
    low_trust: tuple[bool, ...]
    """By raster, in order of priority: it has a finding."""
    asked: int
    """Rasters that the region meets."""
    surveyed: int
    """Rasters whose pixels were looked at; of the others only pixel size and bands were."""
    has_domain: bool
    """The card tells what the model was made for; else brightness, colour and detail were not judged."""

    @property
    def is_clean(self) -> bool:
        """No finding."""
        return not self.findings

    def lines(self) -> list[str]:
        """One line a kind of finding, for people."""
        by_code: dict[str, list[Judged]] = {}
        for judged in self.findings:
            by_code.setdefault(judged.finding.code, []).append(judged)
        return [
            f"outside the model's domain: {_names(found)}{f' of {self.asked}' * (self.asked > 1)}: "
            f"{found[0].finding.text} ({code} {found[0].finding.value:.3g}, limit {found[0].finding.limit:.3g})"
            for code, found in by_code.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "rasters": self.asked,
            "surveyed": self.surveyed,
            "card_has_domain": self.has_domain,
            "findings": [{"raster": j.raster, "name": j.name, **asdict(j.finding)} for j in self.findings],
        }

    def refuse(self) -> None:
        """Raise SourceError where there is a finding."""
        if self.findings:
            raise SourceError(
                "; ".join(self.lines()) + "; --domain warn runs all the same, --domain mark says so by footprint"
            )


def trusted(job: Job, mode: Mode) -> tuple[Job, list[str]]:
    """The job with what is known of its imagery, and lines for the user.

    Args:
        job: What is to be done.
        mode: `ignore` does not look; `mark` gives footprints of such rasters the mark `low_trust`.

    Raises:
        ConfigError: No such mode.
        SourceError: A raster is outside the model's domain, and `mode` is `refuse`.
        RemoteError: A server gave up.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"domain {mode!r}: use one of {', '.join(get_args(Mode))}")
    if mode == "ignore":
        return job, []
    report = judge_domain(job)
    if mode == "refuse":
        report.refuse()
    low_trust = report.low_trust if mode == "mark" else job.low_trust
    return replace(job, domain=report.to_dict(), low_trust=low_trust), report.lines()


def judge_domain(job: Job) -> DomainReport:
    """Judge each raster that a job's region meets. A source of another kind than rasters has nothing to judge.

    Raises:
        RemoteError: A server gave up.
    """
    domain, source = _domain_of(job), job.source
    if not isinstance(source, RasterSource):
        return DomainReport((), (False,) * len(source.origins()), 0, 0, domain is not None)
    asked = source.meeting(job.region.window)
    looked_at = set(surveyed(source, job.region))
    with ThreadPoolExecutor(8) as pool:  # remote rasters answer late
        found = list(pool.map(partial(_judge, job, source, domain, looked_at), asked))
    judged = tuple(one for several in found for one in several)
    low = {one.raster for one in judged}
    return DomainReport(
        findings=judged,
        low_trust=tuple(number in low for number in range(len(source.rasters))),
        asked=len(asked),
        surveyed=len(looked_at),
        has_domain=domain is not None,
    )


def _judge(job: Job, source: RasterSource, domain: Domain | None, looked_at: set[int], number: int) -> list[Judged]:
    file, is_scaled = source.rasters[number].file, source.rasters[number].stretch is not None
    tells = domain is not None or is_scaled  # what a look at pixels could tell
    patches = survey(source, number, job.region) if tells and number in looked_at else []
    findings = check_domain(
        domain,
        model_gsd=job.spec.gsd,
        model_bands=len(job.spec.bands),
        gsd=ground_pixel_size(file),
        bands=file.bands,
        measures=measure(patches) if domain is not None and source.bands == 3 else None,
        saturated=saturation(patches) if is_scaled else 0.0,
    )
    return [Judged(number, file.name, finding) for finding in findings]


def _domain_of(job: Job) -> Domain | None:
    """Of the card that the job names, or of a predictor that knows its own."""
    if not isinstance(job.model, str):
        domain = getattr(job.model, "domain", None)
        return domain if isinstance(domain, Domain) else None
    from geoinfer.model.registry import find_model

    return find_model(job.model).domain


def _names(found: list[Judged]) -> str:
    names = list(dict.fromkeys(judged.name for judged in found))
    listed = ", ".join(names[:_NAMED]) + ", ..." * (len(names) > _NAMED)
    return listed if len(names) == 1 else f"{len(names)} rasters ({listed})"
