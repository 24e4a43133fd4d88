"""The cockpit's server: Voila as a service of the hub, for the notebooks of this package and nothing else.

What it changes in Voila 0.5:

- the viewer's own OAuth token reaches the viewer's kernel, and no other (`HubIdentity`, `RequestInfo`);
- a kernel answers only to the person whose page it draws (`check_owner`);
- a websocket message whose header claims billions of parts is dropped, instead of making the server
  allocate without bound (`harmless_header`);
- pages come from this package's own template, and the browser is told to load nothing from anywhere else.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import voila.handler as voila_handler
import voila.tornado.kernel_websocket_handler as voila_websocket
from jupyter_server.auth import IdentityProvider, User
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from jupyter_server.utils import url_path_join
from jupyterhub.singleuser.extension import JupyterHubIdentityProvider
from tornado.web import HTTPError, RedirectHandler, RequestHandler
from traitlets.config import Config
from voila import __version__ as voila_version
from voila.app import Voila
from voila.request_info_handler import RequestInfoSocketHandler
from voila.static_file_handler import MultiStaticFileHandler

from beamhub_cockpit.identity import SECRET, TOKEN_HEADER, USER_HEADER

HERE: Final = Path(__file__).parent
NOTEBOOKS: Final = (
    "cockpit.ipynb",
    "viewer.ipynb",
    "analysis.ipynb",
    "compare.ipynb",
    "experiments.ipynb",
    "facility.ipynb",
    "rules.ipynb",
)
SHORT: Final = 40  # characters; the path of a socket below a longer one would not fit
IDLE: Final = 300  # seconds after which a kernel without a page ends
POLICY: Final = "; ".join(
    [
        "default-src 'self'",
        # widgets are modules in blob URLs; Voila's loader and what it bundles need the rest
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' ws: wss:",
        "frame-ancestors 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "object-src 'none'",
    ]
)
STAMP: Final = f"static-{voila_version}"
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Kernels(AsyncMappingKernelManager):
    """Kernels that do not inherit the service's own credentials, each with the one person it answers to."""

    owners: ClassVar[dict[str, str]] = {}  # kernel id -> user name

    async def start_kernel(  # type: ignore[override]  # as jupyter_server itself overrides it
        self, *, env: dict[str, str] | None = None, **options: Any
    ) -> str:
        given = dict(os.environ if env is None else env)
        for name in (
            "JUPYTERHUB_API_TOKEN",
            "JUPYTERHUB_CLIENT_ID",
            "JPY_API_TOKEN",
            "CONFIGPROXY_AUTH_TOKEN",
        ):
            given.pop(name, None)
        kernel_id: str = await super().start_kernel(env=given, **options)
        user = given.get("HTTP_" + USER_HEADER.upper().replace("-", "_"))
        if user:  # a cold kernel: started for one request; a warm one learns its owner when a page takes it
            self.owners[kernel_id] = user
        return kernel_id

    async def shutdown_kernel(  # type: ignore[override]
        self, kernel_id: str, *args: Any, **options: Any
    ) -> None:
        await super().shutdown_kernel(kernel_id, *args, **options)  # type: ignore[no-untyped-call]
        self.owners.pop(kernel_id, None)


class RequestInfo(RequestInfoSocketHandler):  # type: ignore[misc]  # voila is not typed
    """Tells a waiting kernel about the request that took it: once, and only to a kernel of this server."""

    def prepare(self) -> None:
        if not hmac.compare_digest(self.request.headers.get(SECRET, ""), os.environ[SECRET]):
            raise HTTPError(403)

    def open(self, kernel_id: str) -> None:
        super().open(kernel_id)
        self._cache.pop(kernel_id, None)

    @classmethod
    def send_updates(cls, message: dict[str, Any]) -> None:
        """Called by Voila when a page takes a warm kernel."""
        Kernels.owners[message["kernel_id"]] = message["payload"].get(
            "HTTP_" + USER_HEADER.upper().replace("-", "_"), ""
        )
        super().send_updates(message)


def check_owner(handler: RequestHandler, user: str) -> None:
    """Refuse a request that names a kernel which belongs to somebody else."""
    for part in handler.path_args + list(handler.path_kwargs.values()):
        if part and _UUID.fullmatch(part) and Kernels.owners.get(part, user) != user:
            raise HTTPError(404)


def tell_kernel(handler: RequestHandler, user: str, token: str) -> None:
    """Put the viewer into headers that Voila hands to the kernel, in place of any that the browser sent."""
    for name in (USER_HEADER, TOKEN_HEADER):
        handler.request.headers.pop(name, None)
    if user:
        handler.request.headers[USER_HEADER] = user
        handler.request.headers[TOKEN_HEADER] = token


class HubIdentity(JupyterHubIdentityProvider):  # type: ignore[misc]  # jupyterhub is not typed
    """Viewers are the hub's users."""

    def get_handlers(self) -> list[tuple[Any, ...]]:
        # Voila registers these at the root of the server, whatever its base_url
        return [(url_path_join(self.parent.base_url, path), *rest) for path, *rest in super().get_handlers()]

    async def get_user(self, handler: Any) -> User | None:
        tell_kernel(handler, "", "")
        user: User | None = await super().get_user(handler)
        if user is None:
            return None
        check_owner(handler, user.username)
        tell_kernel(handler, user.username, self.hub_auth.get_token(handler) or "")
        return user


class LocalIdentity(IdentityProvider):
    """Without a hub, everybody on this machine is the one whose BEAMHUB_TOKEN the server was started with."""

    async def get_user(self, handler: Any) -> User | None:
        name = os.environ.get("BEAMHUB_USER", "local")
        check_owner(handler, name)
        tell_kernel(handler, name, os.environ.get("BEAMHUB_TOKEN", ""))
        return User(name)


def harmless_header(message: bytes) -> dict[str, Any] | None:
    """The header of a v1 websocket message, or None where the bytes are no such message.

    The first 8 bytes say how many offsets follow. A message of the older protocol has other things there,
    which read as a number of offsets would be billions.
    """
    count = int.from_bytes(message[:8], "little")
    if not 3 <= count <= 64 or 8 * (count + 1) > len(message):
        return None
    start, end = (int.from_bytes(message[8 * i : 8 * (i + 1)], "little") for i in (2, 3))
    try:
        header = json.loads(message[start:end])
    except ValueError:
        return None
    return header if isinstance(header, dict) else None


class LastingFiles(MultiStaticFileHandler):  # type: ignore[misc]  # voila is not typed
    """Voila's own scripts at an address that changes with its version, so that browsers may keep them."""

    def set_extra_headers(self, path: str) -> None:  # noqa: ARG002 (tornado's signature)
        self.set_header("Cache-Control", "public, max-age=31536000, immutable")


def lasting_address(page_config: dict[str, Any], base_url: str, **_options: Any) -> dict[str, Any]:
    """Have pages load Voila's scripts from where they may be kept."""
    return {**page_config, "fullStaticUrl": url_path_join(base_url, "voila", STAMP)}


class CockpitServer(Voila):  # type: ignore[misc]  # voila is not typed
    """`python -m beamhub_cockpit`: as a managed service of the hub, or alone on 127.0.0.1."""

    name = "beamhub-cockpit"

    def initialize(self, argv: list[str] | None = None) -> None:
        os.environ.setdefault(SECRET, secrets.token_urlsafe(32))
        # where Voila looks for templates
        paths = [str(HERE / "share"), *filter(None, [os.environ.get("JUPYTER_PATH")])]
        os.environ["JUPYTER_PATH"] = os.pathsep.join(paths)
        voila_websocket.read_header_from_binary_message = harmless_header
        voila_handler.RequestInfoSocketHandler = RequestInfo
        super().initialize(argv if argv is not None else sys.argv[1:])

    def load_config_file(self, *_args: Any, **_options: Any) -> None:
        """Configured by this class and the command line only: no voila.py or voila.json that lies about."""
        warm = int(os.environ.get("BEAMHUB_COCKPIT_KERNELS", "1"))
        service = urlsplit(os.environ.get("JUPYTERHUB_SERVICE_URL", "http://127.0.0.1:8866"))
        in_hub = "JUPYTERHUB_SERVICE_URL" in os.environ
        config = Config()
        config.Voila.ip = service.hostname
        config.Voila.port = service.port
        config.Voila.port_retries = 0
        config.Voila.base_url = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "/")
        config.Voila.root_dir = str(HERE / "notebooks")
        config.Voila.open_browser = False
        config.Voila.identity_provider_class = HubIdentity if in_hub else LocalIdentity
        config.Voila.tornado_settings = {
            "headers": {
                "Content-Security-Policy": POLICY,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "same-origin",
            },
        }
        config.VoilaConfiguration.template = "beamhub"
        config.VoilaConfiguration.allow_template_override = "NO"
        config.VoilaConfiguration.allow_theme_override = "NO"
        config.VoilaConfiguration.file_allowlist = []
        config.VoilaConfiguration.show_tracebacks = False
        config.VoilaConfiguration.http_header_envs = [USER_HEADER, TOKEN_HEADER]
        config.VoilaConfiguration.extension_allowlist = [
            "@jupyter-widgets/jupyterlab-manager",
            "@voila-dashboards/widgets-manager8",
            "anywidget",
        ]
        if len(tempfile.gettempdir()) <= SHORT:
            config.KernelManager.transport = "ipc"  # sockets of this user, instead of ports of this machine
        config.VoilaConfiguration.page_config_hook = lasting_address
        config.VoilaConfiguration.multi_kernel_manager_class = Kernels
        config.VoilaConfiguration.preheat_kernel = warm > 0
        config.VoilaConfiguration.default_pool_size = warm
        config.VoilaKernelManager.kernel_pools_config = {
            "default": {"pool_size": 0, "kernel_env_variables": {}},
            **{notebook: {"pool_size": warm} for notebook in NOTEBOOKS},
        }
        for manager in ("Kernels", "VoilaKernelManager", "NormalKernelManager"):
            config[manager].cull_idle_timeout = IDLE
            config[manager].cull_interval = 60
        config.merge(self.cli_config)
        self.update_config(config)

    def init_settings(self) -> dict[str, Any]:
        """Voila's settings; what a browser has once loaded it need not load again."""
        return {
            **super().init_settings(),
            "compress_response": True,
            # what a page begins with is text that says much twice; level 1, as frames are packed already
            "websocket_compression_options": {"compression_level": 1},
            "static_immutable_cache": [url_path_join(self.server_url, "voila/labextensions")],
        }

    def init_handlers(self) -> list[Any]:
        """Voila's handlers, without its file browser and its list of notebooks."""
        lasting = url_path_join(self.server_url, f"/voila/{STAMP}/(.*)")
        hidden = ("/voila/tree", "/voila/files", "/voila/api/contents")
        handlers = []
        for pattern, handler, *rest in super().init_handlers():
            if handler is RequestInfoSocketHandler:
                handler = RequestInfo
            if pattern != self.server_url and not any(part in pattern for part in hidden):
                handlers.append((pattern, handler, *rest))
        cockpit = url_path_join(self.base_url, "voila/render/cockpit.ipynb")
        start = re.escape(self.base_url.rstrip("/")) + "/?"
        return [
            *handlers,
            (lasting, LastingFiles, {"paths": self.static_paths}),
            (start, RedirectHandler, {"url": cockpit, "permanent": False}),
        ]


def main() -> None:
    """Run the server until it is told to stop."""
    CockpitServer.launch_instance()
