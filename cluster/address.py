"""What a given address of a cluster is, and who answers there, before Ray itself tries.

Ray would try for minutes, or end this whole process, where a port is not the one that it takes it for.
"""

import json
import os
import platform
import socket
import urllib.error
import urllib.request

from cluster import ray_internals

ANSWER_S = 10.0
_LOCAL = ("", "local")
_TOKEN = "put the cluster's token into ~/.ray/auth_token or RAY_AUTH_TOKEN, and set RAY_AUTH_MODE=token"
_START = "start one with `ray start --head`"
_SUBMIT = "`zfdist cluster submit --address http://HOST:8265 ...`"


def is_local(address: str | None) -> bool:
    """Return whether an address means a Ray of our own on this machine, as it does to Ray."""
    return address is None or address in _LOCAL


def misread(address: str) -> str | None:
    """Return why an address is not of the form that a program joins a cluster by, HOST:PORT of its GCS; else None."""
    scheme, separator, rest = address.partition("://")
    gcs = f"{_host(rest)}:6379"
    if separator and scheme == "ray":
        return (
            f"ray:// is for Ray Client, through which no workers are trained; on a machine of that cluster give its "
            f"GCS ({gcs}), from elsewhere {_SUBMIT}"
        )
    if separator and scheme in ("http", "https"):
        return (
            f"{scheme}:// is for a dashboard, which takes only jobs: {_SUBMIT.replace('http://HOST:8265', address)}; "
            f"on a machine of that cluster give its GCS ({gcs})"
        )
    if separator:
        return f"{scheme}:// is no address of Ray; give HOST:PORT of the cluster's GCS ({gcs})"
    host, colon, port = address.rpartition(":")
    if not colon or not host:
        return f"it has no {'host' if colon else 'port'}; give HOST:PORT of the cluster's GCS, as `ray start` prints it"
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        return f"{port!r} is no port; give HOST:PORT of the cluster's GCS, as `ray start` prints it"
    if any(c.isspace() or c in "/@?#" for c in host) or (":" in host and not host.startswith("[")):
        return (
            f"{host!r} is no host; give HOST:PORT of the cluster's GCS, as `ray start` prints it ([HOST]:PORT if IPv6)"
        )
    return None


def refused(address: str) -> str | None:
    """Ask at HOST:PORT whether it is the GCS of a cluster that this process can join; return why not, or None.

    Takes at most about twice `ANSWER_S`.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, UnicodeError) as error:
        return f"{_why(error)}; {_START}"
    return _ask_gcs(address)


def running_here() -> str:
    """Return the GCS of the cluster that "auto" means: the one on this machine, of several the latest `ray start`.

    Raises:
        LookupError: if there is none, or no way to tell which; the message is a sentence.
    """
    found, latest = ray_internals.gcs_addresses_here()
    if not found:
        stale = f" (the one that was at {latest} is gone)" if latest else ""
        raise LookupError(f"no Ray runs on this machine{stale}; {_START}")
    if len(found) > 1 and latest not in found:
        raise LookupError(f"several run on this machine: give one of {', '.join(found)}")
    return str(latest if latest in found else found[0])


def dashboard_refused(address: str) -> str | None:
    """Return why jobs cannot be sent to an address, which must be http://HOST:PORT of Ray's dashboard; else None.

    Takes at most about twice `ANSWER_S`.
    """
    scheme, separator, rest = address.partition("://")
    host = _host(rest if separator else address)
    if not separator or scheme not in ("http", "https") or host == "HOST":
        host = "HOST" if host in ("auto", "local") else host
        return f"jobs go to the dashboard of a cluster, which is at http://{host}:8265 unless it was started otherwise"
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=ANSWER_S) as answer:
            is_ray = "ray_version" in json.loads(answer.read(2**16))
    except urllib.error.HTTPError as error:
        is_ray = error.code in (401, 403)  # it wants the token, which the client has or misses
    except TimeoutError:
        return f"it takes connections and answers nothing within {ANSWER_S:.0f} s"
    except urllib.error.URLError as error:
        return _why(error.reason if isinstance(error.reason, OSError) else OSError(str(error.reason)))
    except OSError as error:
        return _why(error)
    except ValueError:
        is_ray = False
    except Exception as error:  # http.client has errors of its own for what is not HTTP
        return f"no web server answers ({type(error).__name__})"
    return None if is_ray else "a web server answers, but it is not Ray's dashboard"


def _host(rest: str) -> str:
    """Return the host of what stands behind a scheme, HOST if there is none."""
    place = rest.partition("/")[0].rpartition("@")[2]
    return place.rpartition(":")[0] or place or "HOST"


def _why(error: Exception) -> str:
    """Return in words why there is no connection."""
    if isinstance(error, socket.gaierror | UnicodeError):
        return "no machine of that name is known here"
    if isinstance(error, TimeoutError):
        return f"nothing answers within {ANSWER_S:.0f} s: is it on, and does a firewall let us through?"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    return f"no connection ({getattr(error, 'strerror', None) or error})"


def _ask_gcs(address: str) -> str | None:
    """Ask for what every GCS keeps of its cluster: whether it answers, to us, and with which versions."""
    import grpc
    from ray.exceptions import AuthenticationError

    try:
        told = ray_internals.cluster_metadata(address, within_s=ANSWER_S)
        return _other_versions(told) or _not_a_node(address)
    except AuthenticationError:  # before the question is sent
        return f"RAY_AUTH_MODE=token, but there is no token; {_TOKEN}"
    except grpc.RpcError as error:
        return _refusal(error.code().name, address)


def _refusal(code: str, address: str) -> str:
    """Return what it means that a question to a GCS ended with this code of gRPC."""
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        has_one = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
        return f"that cluster {'refuses our token' if has_one else 'asks for a token'}; {_TOKEN}"
    if code == "UNIMPLEMENTED":
        return (
            "another service than a GCS answers, as Ray Client's on port 10001; give the port that `ray start` prints, "
            "usually 6379"
        )
    if code == "DEADLINE_EXCEEDED":
        return f"it takes connections, but no GCS answers within {ANSWER_S:.0f} s"
    if _speaks_http(address):
        return (
            f"a web server answers, no GCS; if it is Ray's dashboard: "
            f"{_SUBMIT.replace('HOST:8265', address)}; else give the port that `ray start` prints, usually 6379"
        )
    return "what listens there is no GCS; give the port that `ray start` prints, usually 6379"


def _speaks_http(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2) as there:
            there.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return there.recv(5) == b"HTTP/"
    except OSError:
        return False


def _other_versions(told: bytes) -> str | None:
    """Return what differs between the cluster's versions and ours, which Ray wants to be the same."""
    import ray

    try:
        theirs = json.loads(told or b"{}")
    except ValueError:
        return None
    level = 2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    for name, key, ours, parts in (
        ("Ray", "ray_version", ray.__version__, None),
        ("Python", "python_version", platform.python_version(), level),
    ):
        their = str(theirs.get(key, ours))
        if their.split(".")[:parts] != ours.split(".")[:parts]:
            return f"it runs {name} {their}, and this is {name} {ours}; install the same version on both sides"
    return None


def _not_a_node(address: str) -> str | None:
    """Return what to do if no process of that cluster runs on this machine, through which alone a program joins it."""
    if ray_internals.living_nodes(address, within_s=ANSWER_S) & ray_internals.node_ids_here():
        return None
    return (
        f"this machine is no node of that cluster; run the command on one, make this one a node with "
        f"`ray start --address={address}`, or send it there with {_SUBMIT}"
    )
