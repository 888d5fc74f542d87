"""A client of the Mayfly daemon (``mayfly serve``): throw-away microVMs with a warm Docker daemon inside.

    import mayfly

    with mayfly.Client() as client, client.create("default") as session:
        print(session.exec(["uname", "-a"]).check().stdout.decode())

``AsyncClient`` is the same with ``async``. Other routes of the API: ``Client.call``.
"""

from ._async import AsyncBackground, AsyncClient, AsyncSession
from ._core import CommandFailed, MayflyError, Output, Result
from ._sync import Background, Client, Session

__all__ = [
    "AsyncBackground",
    "AsyncClient",
    "AsyncSession",
    "Background",
    "Client",
    "CommandFailed",
    "MayflyError",
    "Output",
    "Result",
    "Session",
]
