"""How remotes may be reached, and by what right: a value that travels to workers. Opens nothing."""

from __future__ import annotations

from dataclasses import dataclass

from geoinfer.errors import ConfigError


def check_several(name: str, values: object) -> None:
    """A text in the place of several would be taken letter by letter."""
    if isinstance(values, str):
        raise ConfigError(f"{name} {values!r}: give a tuple of texts, as ({values!r},)")


@dataclass(frozen=True, slots=True)
class Access:
    """What a user allows and asks for when imagery, layers or items come over a network. Enters no fingerprint."""

    hosts: tuple[str, ...] = ()
    """`host` or `host:port` that may be reached although it is loopback, link-local or private: named by the user with
    `--allow-host`, or part of an address that the user typed. Every public host may be reached."""
    sign_requests: bool = True
    """False: requests to object stores carry no credentials (`--aws-no-sign-requests`)."""
    requester_pays: bool = False
    """True: the caller agrees to pay for the transfer (`--aws-requester-pays`)."""
    signer: str | None = None
    """Who turns an item's addresses into ones that can be read: `planetary-computer`, or `module:function` of the user's."""
    connect_s: float = 10.0
    """Longest time for a connection, seconds."""
    stall_s: float = 20.0
    """Longest time without a byte, seconds."""
    tries: int = 5
    """Attempts at a request whose failure may pass, with a pause that doubles and jitter."""
    concurrency: int = 16
    """Requests to one host at a time from this process, at most."""

    def __post_init__(self) -> None:
        check_several("hosts", self.hosts)
        if not (self.connect_s > 0 and self.stall_s > 0):
            raise ConfigError(f"time-outs of {self.connect_s} and {self.stall_s} s: must be above 0")
        if self.tries < 1 or self.concurrency < 1:
            raise ConfigError(f"{self.tries} tries, {self.concurrency} requests at a time: use 1 or more")


DEFAULT = Access()
