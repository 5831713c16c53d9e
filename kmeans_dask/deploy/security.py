"""Who may talk to scheduler and workers: certificates by config, addresses to listen at, and a warning."""

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
    """Return Dask's settings for certificates, which every process that it starts and every client reads.

    Parameters
    ----------
    tls
        Section ``cluster.tls`` of a config; one certificate stands for client, scheduler and workers.

    Returns
    -------
    dict
        For ``dask.config.set``; empty without certificates.

    Raises
    ------
    UserError
        A file is missing, or is not what it should be.
    """
    if tls is None:
        return {}
    key = tls.key or tls.cert
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        context.load_cert_chain(tls.cert, key, password=lambda: "")  # else an encrypted key would be asked for
    except (OSError, ValueError) as error:
        raise UserError(
            f"cluster.tls: ca={tls.ca}, cert={tls.cert}, key={key} cannot be used ({error}); give PEM files, a key "
            "without password"
        ) from None
    settings: dict[str, Any] = {"distributed.comm.require-encryption": True, "distributed.comm.tls.ca-file": tls.ca}
    for role in ("client", "scheduler", "worker"):
        settings[f"distributed.comm.tls.{role}"] = {"cert": tls.cert, "key": key}
    return settings


def check_certificates(address: str) -> None:
    """Raise UserError for an encrypted address if neither the config nor Dask's own names certificates."""
    if address.startswith("tls://") and not dask.config.get("distributed.comm.tls.ca-file"):
        raise UserError(f"{address} asks for a certificate: give cluster.tls, its keys ca, cert and key name PEM files")


def listening(host: str | None) -> dict[str, str]:
    """Return the arguments by which Dask listens at an address, a name or a network interface; None: on loopback."""
    if host is None:
        return {"host": "127.0.0.1"}
    return {"interface": host} if _is_interface(host) else {"host": host}


def of_workers(where: dict[str, str]) -> dict[str, str]:
    """Return where workers on other machines listen: the same interface, loopback, or all networks of theirs."""
    return where if "interface" in where or is_loopback(where["host"]) else {}


def _is_interface(host: str) -> bool:
    if host in {name for _, name in socket.if_nameindex()}:
        return True
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return True  # of another machine, or Dask says that there is none
    return False


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(each).is_loopback for each in found)


def open_to_others(client: Client) -> str | None:
    """Return what people must know if others can reach a client's scheduler and are asked for no certificate."""
    address = str(client.scheduler.address)
    if not address.startswith("tcp://") or is_loopback(get_address_host(address)):
        return None
    return (
        f"whoever reaches {address} can run any code on the workers, as their user, and read and change all that they "
        "can: keep it on a private network, or give scheduler, workers and job certificates (cluster.tls)"
    )
