"""Access to scheduler and workers: certificates, listening addresses, and a warning if they are exposed."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from typing import Any

import dask
from distributed import Client
from distributed.comm import get_address_host

from kmeans_dask.config.cluster import Tls
from kmeans_dask.errors import UserError


def tls_settings(tls: Tls | None) -> dict[str, Any]:
    """Return Dask's settings for certificates, which apply to clients and to every process that Dask starts.

    Parameters
    ----------
    tls
        Section ``cluster.tls`` of a config; client, scheduler and workers use the same certificate.

    Returns
    -------
    dict
        Settings for ``dask.config.set``; empty without certificates.

    Raises
    ------
    UserError
        A file is missing or invalid.
    """
    if tls is None:
        return {}
    key = tls.key or tls.cert
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        context.load_cert_chain(tls.cert, key, password=lambda: "")  # otherwise OpenSSL would prompt for it
    except (OSError, ValueError) as error:
        raise UserError(
            f"cluster.tls: ca={tls.ca}, cert={tls.cert}, key={key} cannot be used ({error}); give PEM files, and a key "
            "without a password"
        ) from None
    settings: dict[str, Any] = {"distributed.comm.require-encryption": True, "distributed.comm.tls.ca-file": tls.ca}
    for role in ("client", "scheduler", "worker"):
        settings[f"distributed.comm.tls.{role}"] = {"cert": tls.cert, "key": key}
    return settings


def check_certificates(address: str) -> None:
    """Raise `UserError` for a ``tls://`` address if neither the config nor Dask's own config names certificates."""
    if address.startswith("tls://") and not dask.config.get("distributed.comm.tls.ca-file"):
        raise UserError(
            f"{address} requires a certificate: give cluster.tls, whose keys ca, cert and key name PEM files"
        )


def listen_options(host: str | None) -> dict[str, str]:
    """Return Dask's arguments for listening on an address, host name or network interface; None: on loopback."""
    if host is None:
        return {"host": "127.0.0.1"}
    return {"interface": host} if _is_interface(host) else {"host": host}


def worker_listen_options(scheduler: dict[str, str]) -> dict[str, str]:
    """Return the listen arguments of workers elsewhere: the scheduler's interface, loopback, or all their networks."""
    return scheduler if "interface" in scheduler or is_loopback(scheduler["host"]) else {}


def _is_interface(host: str) -> bool:
    if host in {name for _, name in socket.if_nameindex()}:
        return True
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return True  # an interface of another machine; if there is none, Dask reports it
    return False


def is_loopback(host: str) -> bool:
    """Return whether a host is reachable only from this machine."""
    try:
        addresses = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def exposure_warning(client: Client) -> str | None:
    """Return a warning if other machines can reach the scheduler of a client without a certificate, else None."""
    address = str(client.scheduler.address)
    if not address.startswith("tcp://") or is_loopback(get_address_host(address)):
        return None
    return (
        f"connections to {address} are not authenticated: anyone who can reach it can run code on the workers as their "
        "user; keep it on a private network, or give scheduler, workers and job certificates (cluster.tls)"
    )
