"""Whether Weights & Biases can be used online now, found out quickly and without a run that half exists.

``wandb.init`` waits for its own timeout and for two look-ups of the account (16 s were measured with ``init_timeout=6``),
and after a failure keeps the run's id occupied. One plain request tells in a moment whether anybody is there.
"""

import ssl
import threading
import urllib.error
import urllib.request
from typing import Any

import wandb

#: Seconds that the server has for a first answer.
ANSWER_TIMEOUT = 5.0

OFFLINE_MODES = ("offline", "dryrun", "disabled")


def why_offline() -> str | None:
    """Why nothing can be sent now.

    Returns:
        ``None`` if a server answers and an API key is there, or if W&B is told to stay offline or off anyway
        (``WANDB_MODE``, ``wandb offline``); else the reason.
    """
    settings = wandb.setup().settings
    if settings.mode in OFFLINE_MODES:
        return None
    # The server first: wandb.login asks it who we are, and a question that is never answered still delays the exit.
    if fault := server_fault(settings):
        return f"{settings.base_url} can't be used: {fault}"
    if wandb.run is None and not wandb.login(prompt=False, verify=False):
        return "nobody is logged in; run `wandb login` once, or set WANDB_API_KEY"
    return None


def server_fault(settings: "wandb.Settings", *, timeout: float = ANSWER_TIMEOUT) -> str | None:
    """What is wrong with the server that W&B is set to use; ``None`` if it answers.

    Args:
        settings: W&B's settings.
        timeout: seconds that the server has to answer.
    """
    proxies = {"http": settings.http_proxy, "https": settings.https_proxy}
    given = {scheme: proxy for scheme, proxy in proxies.items() if proxy}
    return fault_of(settings.base_url, proxies=given, timeout=timeout)


def fault_of(url: str, *, proxies: dict[str, str] | None = None, timeout: float = ANSWER_TIMEOUT) -> str | None:
    """What is wrong with a server.

    Args:
        url: its address, http or https.
        proxies: proxy by scheme; ``None`` or empty: those of the environment.
        timeout: seconds that the server has to answer, looking up its name included.

    Returns:
        ``None`` if it answers anything that is no server error; else a short description.
    """
    answers: list[str | None] = []
    # Looking up a name has no timeout of its own (a cluster node without a resolver takes half a minute): hence the thread.
    asking = threading.Thread(target=lambda: answers.append(_ask(url, proxies, timeout)), daemon=True)
    asking.start()
    asking.join(timeout)
    return answers[0] if answers else f"no answer within {timeout:g} s"


def _ask(url: str, proxies: dict[str, str] | None, timeout: float) -> str | None:
    handlers = [_NoRedirect(), *([urllib.request.ProxyHandler(proxies)] if proxies else [])]
    try:
        urllib.request.build_opener(*handlers).open(url, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        error.close()
        return f"it answers HTTP {error.code}" if error.code >= 500 else None
    except urllib.error.URLError as error:
        # A certificate that Python does not know is W&B's to judge: somebody is there.
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer; where it leads does not matter."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Follow nothing."""
